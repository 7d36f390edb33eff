//! Scripts of `code` steps.

use std::{rc::Rc, sync::Arc};

use serde_json::Value;

use super::{
    ExpressionError, References, SCRIPT_BYTES_MAX, Scope, TemplateFault, check, engine, names,
    token::{self, Kind},
};

/// The body of a JavaScript function over the variables of expressions, `items` and `item`.
#[derive(Clone, Debug)]
pub struct Script {
    source: Arc<str>,
    function: Arc<str>,
    waits: bool,
    references: References,
}

impl Script {
    /// Checks the syntax without running anything. At most [`SCRIPT_BYTES_MAX`] bytes. The fault's path is empty, its
    /// offset counts bytes of `source`, and its message says the line.
    pub fn check(source: &str) -> Result<(), TemplateFault> {
        let fault = |offset: usize, message: String| TemplateFault {
            path: Vec::new(),
            offset,
            message,
        };
        if source.len() > SCRIPT_BYTES_MAX {
            let message = format!("the script is longer than {SCRIPT_BYTES_MAX} bytes");
            return Err(fault(SCRIPT_BYTES_MAX, message));
        }
        check::body(source, has_word(source, "await")).map_err(|error| {
            let before = &source.as_bytes()[..error.offset];
            let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
            fault(error.offset, format!("line {line}: {}", error.message))
        })
    }

    /// A script to run. Cheap: it is compiled when a thread first runs it, and kept there. A syntax error is an error
    /// of the run.
    pub fn new(source: &str) -> Self {
        let waits = has_word(source, "await");
        let mut function = String::from("(function($$scope){\"use strict\";");
        for name in names::VARIABLES.iter().chain(names::SCRIPT_VARIABLES) {
            // Only what the source mentions is made, because making it converts data.
            if has_word(source, name) {
                function.push_str(&format!("var {name}=$$scope.{name};"));
            }
        }
        // The body begins on the first line, so that lines in traces are the script's. It is a function of its own, so
        // that it may declare what is declared here.
        let kind = if waits { "async function" } else { "function" };
        function.push_str(&format!("return {kind}(){{{source}\n}}}})"));
        Self {
            source: source.into(),
            function: function.into(),
            waits,
            references: references(source),
        }
    }

    /// Which steps it names.
    pub fn references(&self) -> &References {
        &self.references
    }

    /// Runs it and gives what it returns: as it is, `Null` for undefined. `$json` and `item` are those of item
    /// `index`, without one of the first item. Blocks for at most [`super::SCRIPT_TIME_MAX`]: call it on a thread
    /// meant for that. Leaves nothing behind, so running it again is harmless.
    pub fn run(&self, scope: &Scope, index: Option<usize>) -> Result<Value, ExpressionError> {
        if self.source.len() > SCRIPT_BYTES_MAX {
            let message = format!("the script is longer than {SCRIPT_BYTES_MAX} bytes");
            return Err(self.error(message, None));
        }
        let scope = Rc::new(scope.clone());
        let index = index.unwrap_or(0);
        engine::run(&self.function, &self.source, self.waits, scope, index)
            .map(|value| value.into_value().unwrap_or(Value::Null))
            .map_err(|thrown| self.error(thrown.message, thrown.line))
    }

    fn error(&self, mut message: String, line: Option<usize>) -> ExpressionError {
        if let Some(line) = line {
            message.push_str(&format!(" (line {line})"));
        }
        let written = line
            .and_then(|line| self.source.lines().nth(line - 1))
            .or_else(|| self.source.lines().find(|line| !line.trim().is_empty()));
        ExpressionError {
            message,
            path: Vec::new(),
            expression: super::excerpt(written.unwrap_or_default()),
        }
    }
}

/// The steps a script names. Where the text is not understood, any step may be meant.
fn references(source: &str) -> References {
    let mut found = References::default();
    match token::tokens(source) {
        Ok(tokens) => {
            names::references(&tokens, source, &mut found);
            // A slash that was misread hides code in what looks like a regular expression.
            found.any_step |= tokens.iter().any(|token| {
                let text = &source[token.start..token.end];
                token.kind == Kind::Regex && (text.contains("$(") || text.contains("$node"))
            });
        }
        Err(_) => found.any_step = has_word(source, "$") || has_word(source, "$node"),
    }
    found
}

/// Whether `word` stands somewhere in the source as a whole name, be it in a string or a comment.
fn has_word(source: &str, word: &str) -> bool {
    let part = |c: char| c == '$' || c == '_' || c.is_alphanumeric();
    source.match_indices(word).any(|(at, _)| {
        !source[..at].ends_with(part) && !source[at + word.len()..].starts_with(part)
    })
}
