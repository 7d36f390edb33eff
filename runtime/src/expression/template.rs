//! Templates: JSON whose strings may hold expressions.

use std::{
    cell::{Cell, OnceCell, RefCell},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Map, Value};

use super::{
    EXPRESSION_BYTES_MAX, ExpressionError, References, SCRIPT_TIME_MAX, Scope, TemplateFault,
    check, engine, excerpt, names, native,
    native::Node,
    program::Program,
    script::Script,
    token::{Token, tokens_until_close},
    value::{Failure, Val},
};
use crate::bounds::Meter;

/// Lists and objects inside each other.
const DEPTH_MAX: usize = 128;

/// One expression, compiled.
#[derive(Debug)]
pub(super) struct Expression {
    text: String,
    plan: Plan,
}

#[derive(Debug)]
enum Plan {
    Native(Node),
    Script(Arc<Program>),
}

/// What every expression of one `resolve` sees.
pub(super) struct Evaluation<'s> {
    scope: &'s Scope,
    index: usize,
    /// A copy for the script engine, which cannot borrow. Made when it is first needed.
    shared: OnceCell<Rc<Scope>>,
    /// How much the values take so far. Each is bounded; many of them together would not be.
    meter: RefCell<Meter>,
    /// How long the script engine worked so far.
    worked: Cell<Duration>,
}

impl<'s> Evaluation<'s> {
    pub fn new(scope: &'s Scope, index: usize) -> Self {
        Self {
            scope,
            index,
            shared: OnceCell::new(),
            meter: RefCell::new(Meter::output()),
            worked: Cell::new(Duration::ZERO),
        }
    }

    /// Counts a value that goes into the result.
    fn take(&self, value: &Value) -> Result<(), Failure> {
        let taken = self.meter.borrow_mut().take(value);
        taken.map_err(|excess| format!("with this one, {excess}"))
    }

    fn run(&self, program: &Arc<Program>) -> Result<Val<'static>, Failure> {
        if self.worked.get() > SCRIPT_TIME_MAX {
            return Err(format!(
                "the expressions before it took longer than {} ms together",
                SCRIPT_TIME_MAX.as_millis()
            ));
        }
        let scope = self.shared.get_or_init(|| Rc::new(self.scope.clone()));
        let began = Instant::now();
        let value = engine::evaluate(program, Rc::clone(scope), self.index);
        self.worked.set(self.worked.get() + began.elapsed());
        value.map_err(|thrown| thrown.message)
    }
}

impl Expression {
    /// Compiles the tokens, which are the whole expression. Fails with the offset in `source` and the message.
    pub fn compile(tokens: &[Token], source: &str) -> Result<Self, (usize, String)> {
        let (tokens, text) = trimmed(tokens, source);
        if text.len() > EXPRESSION_BYTES_MAX {
            let message = format!("the expression is longer than {EXPRESSION_BYTES_MAX} bytes");
            return Err((tokens[0].start, message));
        }
        let plan = if tokens.is_empty() {
            Plan::Native(Node::Undefined)
        } else if let Some(node) = native::parse(tokens, source) {
            Plan::Native(node)
        } else {
            Plan::Script(script(tokens, source, text)?)
        };
        Ok(Self {
            text: text.to_owned(),
            plan,
        })
    }

    /// The same, but always for the script engine.
    #[cfg(test)]
    pub fn compile_script(tokens: &[Token], source: &str) -> Result<Self, (usize, String)> {
        let (tokens, text) = trimmed(tokens, source);
        Ok(Self {
            text: text.to_owned(),
            plan: Plan::Script(script(tokens, source, text)?),
        })
    }

    pub fn is_native(&self) -> bool {
        matches!(self.plan, Plan::Native(_))
    }

    pub fn evaluate<'s>(&'s self, evaluation: &Evaluation<'s>) -> Result<Val<'s>, ExpressionError> {
        match &self.plan {
            Plan::Native(node) => node.evaluate(evaluation.scope, evaluation.index),
            Plan::Script(program) => evaluation.run(program),
        }
        .map_err(|message| self.error(message))
    }

    fn error(&self, message: Failure) -> ExpressionError {
        ExpressionError {
            message,
            path: Vec::new(),
            expression: excerpt(&self.text),
        }
    }
}

/// Without semicolons at the end, and the text that remains.
fn trimmed<'a>(mut tokens: &'a [Token], source: &'a str) -> (&'a [Token], &'a str) {
    while let Some((last, rest)) = tokens.split_last()
        && &source[last.start..last.end] == ";"
    {
        tokens = rest;
    }
    let text = match (tokens.first(), tokens.last()) {
        (Some(first), Some(last)) => &source[first.start..last.end],
        _ => "",
    };
    (tokens, text)
}

fn script(tokens: &[Token], source: &str, text: &str) -> Result<Arc<Program>, (usize, String)> {
    let start = tokens.first().map_or(0, |token| token.start);
    check::expression(text).map_err(|error| (start + error.offset, error.message))?;
    let program = Program::new(tokens, source);
    // What was right as written and is wrong now treats a variable as something to be declared or changed.
    check::expression(&program.rewritten).map_err(|_| {
        let message = "variables such as `$json` can be read only: not assigned, and not declared";
        (start, message.to_owned())
    })?;
    Ok(Arc::new(program))
}

/// A compiled part of a template.
#[derive(Debug)]
pub(super) enum Part {
    /// No expression in it.
    Literal(Value),
    /// A string that is one expression: keeps its type.
    Whole(Expression),
    Text(Vec<Piece>),
    List(Vec<Part>),
    Object(Vec<(String, Part)>),
}

#[derive(Debug)]
pub(super) enum Piece {
    Text(String),
    Expression(Expression),
}

impl Part {
    /// The value; `None` for undefined.
    pub fn resolve(&self, evaluation: &Evaluation<'_>) -> Result<Option<Value>, ExpressionError> {
        Ok(Some(match self {
            Part::Literal(value) => value.clone(),
            Part::Whole(expression) => {
                let value = expression.evaluate(evaluation)?.into_value();
                if let Some(value) = &value {
                    let taken = evaluation.take(value);
                    taken.map_err(|message| expression.error(message))?;
                }
                return Ok(value);
            }
            Part::Text(pieces) => {
                let text = Value::String(text(pieces, evaluation)?);
                evaluation.take(&text).map_err(|message| ExpressionError {
                    message,
                    path: Vec::new(),
                    expression: "{{ … }}".to_owned(),
                })?;
                text
            }
            Part::List(parts) => {
                let mut list = Vec::with_capacity(parts.len());
                for (at, part) in parts.iter().enumerate() {
                    let value = part
                        .resolve(evaluation)
                        .map_err(|error| below(error, &at.to_string()))?;
                    list.push(value.unwrap_or(Value::Null));
                }
                Value::Array(list)
            }
            Part::Object(parts) => {
                let mut map = Map::with_capacity(parts.len());
                for (name, part) in parts {
                    let value = part
                        .resolve(evaluation)
                        .map_err(|error| below(error, name))?;
                    if let Some(value) = value {
                        map.insert(name.clone(), value);
                    }
                }
                Value::Object(map)
            }
        }))
    }

    /// Member `name` alone.
    pub fn resolve_field(
        &self,
        name: &str,
        evaluation: &Evaluation<'_>,
    ) -> Result<Option<Value>, ExpressionError> {
        match self {
            Part::Object(parts) => match parts.iter().find(|(of, _)| of == name) {
                Some((_, part)) => part.resolve(evaluation).map_err(|error| below(error, name)),
                None => Ok(None),
            },
            Part::Literal(value) => Ok(value.get(name).cloned()),
            _ => Ok(self
                .resolve(evaluation)?
                .and_then(|mut value| value.get_mut(name).map(Value::take))),
        }
    }
}

fn below(mut error: ExpressionError, name: &str) -> ExpressionError {
    error.path.insert(0, name.to_owned());
    error
}

fn text(pieces: &[Piece], evaluation: &Evaluation<'_>) -> Result<String, ExpressionError> {
    let mut text = String::new();
    for piece in pieces {
        match piece {
            Piece::Text(literal) => text.push_str(literal),
            Piece::Expression(expression) => expression
                .evaluate(evaluation)?
                .render(&mut text)
                .map_err(|message| expression.error(message))?,
        }
    }
    Ok(text)
}

/// Compiles values and keeps what it learns on the way.
#[derive(Default)]
pub(super) struct Compiler {
    pub faults: Vec<TemplateFault>,
    pub references: References,
    pub needs_script: bool,
    path: Vec<String>,
}

impl Compiler {
    /// The top level, where members named in `verbatim` are kept as written.
    pub fn root(&mut self, value: &Value, verbatim: &[&str]) -> Part {
        match value {
            Value::Object(map) => self.object(map, verbatim),
            other => self.value(other),
        }
    }

    fn value(&mut self, value: &Value) -> Part {
        if self.path.len() > DEPTH_MAX {
            self.fault(0, format!("nested deeper than {DEPTH_MAX} levels"));
            return Part::Literal(Value::Null);
        }
        match value {
            Value::String(text) => self.string(text),
            Value::Array(list) => self.list(list),
            Value::Object(map) => self.object(map, &[]),
            other => Part::Literal(other.clone()),
        }
    }

    fn fault(&mut self, offset: usize, message: String) {
        self.faults.push(TemplateFault {
            path: self.path.clone(),
            offset,
            message,
        });
    }

    fn below(&mut self, name: String, value: &Value) -> Part {
        self.path.push(name);
        let part = self.value(value);
        self.path.pop();
        part
    }

    fn list(&mut self, list: &[Value]) -> Part {
        let parts: Vec<Part> = list
            .iter()
            .enumerate()
            .map(|(at, value)| self.below(at.to_string(), value))
            .collect();
        if parts.iter().all(|part| matches!(part, Part::Literal(_))) {
            let values = parts.into_iter().filter_map(|part| match part {
                Part::Literal(value) => Some(value),
                _ => None,
            });
            return Part::Literal(Value::Array(values.collect()));
        }
        Part::List(parts)
    }

    fn object(&mut self, map: &Map<String, Value>, verbatim: &[&str]) -> Part {
        let parts: Vec<(String, Part)> = map
            .iter()
            .map(|(name, value)| {
                let part = if verbatim.contains(&name.as_str()) {
                    if let Value::String(program) = value {
                        self.references.merge(Script::new(program).references());
                    }
                    Part::Literal(value.clone())
                } else {
                    self.below(name.clone(), value)
                };
                (name.clone(), part)
            })
            .collect();
        if parts
            .iter()
            .all(|(_, part)| matches!(part, Part::Literal(_)))
        {
            let members = parts.into_iter().filter_map(|(name, part)| match part {
                Part::Literal(value) => Some((name, value)),
                _ => None,
            });
            return Part::Literal(Value::Object(members.collect()));
        }
        Part::Object(parts)
    }

    fn string(&mut self, source: &str) -> Part {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut at = 0;
        while let Some(open) = source[at..].find("{{").map(|found| at + found) {
            if source[at..open].ends_with('\\') {
                literal.push_str(&source[at..open - 1]);
                literal.push_str("{{");
                at = open + 2;
                continue;
            }
            literal.push_str(&source[at..open]);
            let (tokens, close) = match tokens_until_close(source, open + 2) {
                Ok(Some(found)) => found,
                Ok(None) => {
                    self.fault(open, "`{{` is not closed".to_owned());
                    return Part::Literal(Value::Null);
                }
                Err(unreadable) => {
                    self.fault(unreadable.offset, unreadable.message);
                    return Part::Literal(Value::Null);
                }
            };
            at = close + 2;
            match Expression::compile(&tokens, source) {
                Ok(expression) => {
                    names::references(&tokens, source, &mut self.references);
                    self.needs_script |= !expression.is_native();
                    if !literal.is_empty() {
                        pieces.push(Piece::Text(std::mem::take(&mut literal)));
                    }
                    pieces.push(Piece::Expression(expression));
                }
                Err((offset, message)) => self.fault(offset, message),
            }
        }
        literal.push_str(&source[at..]);
        if pieces.is_empty() {
            return Part::Literal(Value::String(literal));
        }
        if !literal.is_empty() {
            pieces.push(Piece::Text(literal));
        } else if pieces.len() == 1
            && let Some(Piece::Expression(expression)) = pieces.pop()
        {
            return Part::Whole(expression);
        }
        Part::Text(pieces)
    }
}
