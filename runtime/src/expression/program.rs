//! Expressions that need the script engine, rewritten so that look-ups stay what they are natively.
//!
//! `$json.a.b.trim() + x` becomes a function whose body is `return (get(0).trim() + x)`, with look-up 0 followed in
//! Rust and converted only when it is reached, and with `x` declared, because unknown names are undefined and no
//! error. So both ways of evaluating agree on look-ups by construction, and one evaluation cannot change what the
//! next one sees.

use std::{fmt::Write as _, sync::Arc};

use super::{
    lookup::Lookup,
    names,
    native::parse_lookup,
    token::{Kind, Token},
};

/// A function for the script engine and the look-ups it may ask for.
#[derive(Debug)]
pub(super) struct Program {
    /// The function's text; also its key in the cache.
    pub function: Arc<str>,
    /// The rewritten expression alone.
    pub rewritten: String,
    /// What `get(n)` means.
    pub lookups: Vec<Lookup>,
}

/// The name under which a program reaches its look-ups.
const GET: &str = "$$get";
/// The name under which a program reaches everything that is not a plain look-up.
const SCOPE: &str = "$$scope";

impl Program {
    /// Rewrites an expression. The tokens are the whole of it.
    pub fn new(tokens: &[Token], source: &str) -> Self {
        let mut writer = Writer {
            tokens,
            source,
            copied: tokens.first().map_or(0, |token| token.start),
            at: 0,
            open: Vec::new(),
            text: String::with_capacity(source.len() + 32),
            lookups: Vec::new(),
            unknown: Vec::new(),
        };
        writer.write(tokens.len());
        let Writer {
            text: rewritten,
            lookups,
            unknown,
            ..
        } = writer;
        let mut function = format!("(function({GET},{SCOPE}){{\"use strict\";");
        if !unknown.is_empty() {
            let _ = write!(function, "var {};", unknown.join(","));
        }
        // The line break ends a comment at the end of the expression.
        let _ = write!(function, "return ({rewritten}\n)}})");
        Self {
            function: function.into(),
            rewritten,
            lookups,
        }
    }
}

struct Writer<'a> {
    tokens: &'a [Token],
    source: &'a str,
    /// Everything before this byte is written or dropped.
    copied: usize,
    at: usize,
    open: Vec<&'a str>,
    text: String,
    lookups: Vec<Lookup>,
    unknown: Vec<&'a str>,
}

impl<'a> Writer<'a> {
    fn token(&self, at: usize) -> &'a str {
        self.tokens
            .get(at)
            .map_or("", |token| &self.source[token.start..token.end])
    }

    fn before(&self, at: usize) -> &'a str {
        at.checked_sub(1).map_or("", |before| self.token(before))
    }

    /// Writes the tokens up to `end`, and the blanks between them as they are.
    fn write(&mut self, end: usize) {
        while self.at < end {
            let token = self.tokens[self.at];
            let text = self.token(self.at);
            match token.kind {
                Kind::Name if names::stands_alone(self.tokens, self.source, self.at) => {
                    self.name(text);
                }
                Kind::Name if self.is_object_method() => self.object_method(text),
                Kind::Punctuation => self.bracket(text),
                Kind::TemplateHead => {
                    self.open.push("`");
                    self.copy();
                }
                Kind::TemplateTail => {
                    self.open.pop();
                    self.copy();
                }
                _ => self.copy(),
            }
        }
    }

    fn bracket(&mut self, text: &'a str) {
        match text {
            "(" | "[" | "{" => self.open.push(text),
            ")" | "]" | "}" => {
                self.open.pop();
            }
            _ => {}
        }
        self.copy();
    }

    /// Writes the current token and the blanks before it.
    fn copy(&mut self) {
        let end = self.tokens[self.at].end;
        self.text.push_str(&self.source[self.copied..end]);
        self.copied = end;
        self.at += 1;
    }

    /// Writes `text` in place of the tokens up to `next`.
    fn replace(&mut self, next: usize, text: &str) {
        let start = self.tokens[self.at].start;
        self.text.push_str(&self.source[self.copied..start]);
        self.text.push_str(text);
        self.copied = self.tokens[next - 1].end;
        self.at = next;
    }

    fn name(&mut self, text: &'a str) {
        let in_braces = self.open.last() == Some(&"{") && matches!(self.before(self.at), "{" | ",");
        let after = self.token(self.at + 1);
        if in_braces && after == ":" {
            return self.copy();
        }
        if names::is_free(text) && !self.unknown.contains(&text) {
            self.unknown.push(text);
        }
        if !names::is_variable(text) {
            return self.copy();
        }
        if in_braces && matches!(after, "," | "}") {
            // `{ $json }` names the member as well as its value.
            let start = self.tokens[self.at].start;
            self.text.push_str(&self.source[self.copied..start]);
            self.copied = start;
            let _ = write!(self.text, "{text}:");
        }
        match parse_lookup(self.tokens, self.source, self.at) {
            Some((lookup, next)) => self.lookup(lookup, next),
            None => self.replace(self.at + 1, &format!("{SCOPE}.{text}")),
        }
    }

    fn lookup(&mut self, lookup: Lookup, next: usize) {
        let number = match self.lookups.iter().position(|known| *known == lookup) {
            Some(known) => known,
            None => {
                self.lookups.push(lookup);
                self.lookups.len() - 1
            }
        };
        let get = format!("{GET}({number})");
        let method = self.token(next + 1);
        if self.token(next) == "."
            && matches!(method, "isEmpty" | "isNotEmpty")
            && self.token(next + 2) == "("
            && self.token(next + 3) == ")"
        {
            // Asked of what may be undefined, which has no methods.
            return self.replace(next + 4, &format!("{SCOPE}.{method}({get})"));
        }
        if self.token(next) == "[" && self.path_end(next) > next {
            return self.computed_path(next, &get);
        }
        self.replace(next, &get);
    }

    /// Where the members after token `at` end: only `[…]` and `.name`, none of them called.
    fn path_end(&self, mut at: usize) -> usize {
        let mut end = at;
        loop {
            at = match self.token(at) {
                "[" => match self.closing(at) {
                    Some(closing) => closing + 1,
                    None => return end,
                },
                "." if self
                    .tokens
                    .get(at + 1)
                    .is_some_and(|t| t.kind == Kind::Name) =>
                {
                    at + 2
                }
                _ => return end,
            };
            if self.token(at) == "(" || self.token(at).starts_with('`') {
                return end;
            }
            end = at;
        }
    }

    fn closing(&self, open: usize) -> Option<usize> {
        let mut depth = 0;
        for at in open..self.tokens.len() {
            match (self.tokens[at].kind, self.token(at)) {
                (Kind::Punctuation, "(" | "[" | "{") | (Kind::TemplateHead, _) => depth += 1,
                (Kind::Punctuation, ")" | "]" | "}") | (Kind::TemplateTail, _) => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Some(at);
            }
        }
        None
    }

    /// A path goes on with computed members: they are as lenient as the ones before.
    fn computed_path(&mut self, next: usize, get: &str) {
        let end = self.path_end(next);
        self.replace(next, &format!("({get}"));
        while self.at < end {
            if self.token(self.at) == "[" {
                let closing = self.closing(self.at).unwrap_or(end);
                self.text.push_str("?.");
                self.open.push("[");
                self.copy();
                self.write(closing);
                self.open.pop();
                self.copy();
            } else {
                self.replace(self.at + 1, "?.");
                self.copy();
            }
        }
        self.text.push(')');
    }

    fn is_object_method(&self) -> bool {
        matches!(self.before(self.at), "." | "?.")
            && self.token(self.at + 1) == "("
            && names::OBJECT_METHODS.contains(&self.token(self.at))
    }

    /// `.keys(` becomes `["@keys"](`.
    fn object_method(&mut self, name: &str) {
        if self.text.ends_with('.') && !self.text.ends_with("?.") {
            self.text.pop();
        }
        self.replace(self.at + 1, &format!("[\"@{name}\"]"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expression::token::tokens;

    fn rewritten(source: &str) -> String {
        Program::new(&tokens(source).unwrap(), source).rewritten
    }

    #[test]
    fn look_ups_are_numbered_and_everything_else_is_kept() {
        for (source, expected) in [
            (
                "$json.a.trim() /* c */ + $json.b",
                "$$get(0).trim() /* c */ + $$get(1)",
            ),
            ("$json.a.b.length + $json.a.b.length", "$$get(0) + $$get(0)"),
            ("$input.all().map(x => x.json)", "$$get(0).map(x => x.json)"),
            (
                "{ $json, $now: $itemIndex }",
                "{ $json:$$get(0), $now: $$get(1) }",
            ),
            ("a ? $json : $vars.b", "a ? $$get(0) : $$get(1)"),
            ("`${$json.a}`", "`${$$get(0)}`"),
            ("$json.list[f(1)].x.trim()", "($$get(0)?.[f(1)]?.x).trim()"),
            ("$json.list[f($json)] + 1", "($$get(0)?.[f($$get(1))]) + 1"),
            ("$(x).first().json", "$$scope.$(x).first().json"),
            ("$now.plus({days: 1})", "$$scope.$now.plus({days: 1})"),
            ("Object.keys($json.a)", "Object[\"@keys\"]($$get(0))"),
            ("$json.a?.keys()", "$$get(0)?.[\"@keys\"]()"),
            ("f($json.a.isEmpty())", "f($$scope.isEmpty($$get(0)))"),
        ] {
            assert_eq!(rewritten(source), expected);
        }
    }

    #[test]
    fn unknown_names_are_declared_and_known_ones_are_not() {
        let source = "foo(bar => bar.baz + Math.max(1), {key: 1, short})";
        let program = Program::new(&tokens(source).unwrap(), source);
        assert!(program.function.contains("var foo,bar,short;"));
    }
}
