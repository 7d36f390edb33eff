//! The part of the language that is evaluated without a script engine: look-ups, literals, and operators over them.
//!
//! Whatever it accepts means exactly what JavaScript means by it, except that members of undefined are undefined in
//! a look-up. What it does not know is not an error here: the script engine gets it.

use std::{cmp::Ordering, sync::Arc};

use super::{
    Scope,
    lookup::{Lookup, Part, Root},
    names,
    token::{Kind, Token, text_value},
    value::{Failure, Val, bounded, number_text, text_number},
};

/// How deep brackets may nest here. Deeper ones go to the script engine, which has a stack limit.
const DEPTH_MAX: usize = 32;
/// How many operators there may be, which bounds the depth of the tree.
const OPERATORS_MAX: usize = 128;

/// A tree of operators.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    Undefined,
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    Lookup(Box<Lookup>),
    Unary(Unary, Box<Node>),
    Binary(Binary, Box<[Node; 2]>),
    Choice(Box<[Node; 3]>),
    /// A template literal.
    Concat(Vec<Node>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unary {
    Not,
    Minus,
    Plus,
    TypeOf,
    IsEmpty,
    IsNotEmpty,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Binary {
    Coalesce,
    Or,
    And,
    Equal,
    NotEqual,
    Same,
    NotSame,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

impl Node {
    /// Its value for item `index` of the scope's input.
    pub fn evaluate<'s>(&'s self, scope: &'s Scope, index: usize) -> Result<Val<'s>, Failure> {
        Ok(match self {
            Node::Undefined => Val::Undefined,
            Node::Null => Val::Null,
            Node::Bool(truth) => Val::Bool(*truth),
            Node::Number(number) => Val::Number(*number),
            Node::Text(text) => Val::Text(text.as_str().into()),
            Node::Lookup(lookup) => lookup.evaluate(scope, index)?,
            Node::Unary(operator, operand) => unary(*operator, &operand.evaluate(scope, index)?)?,
            Node::Binary(operator, operands) => binary(*operator, operands, scope, index)?,
            Node::Choice(parts) => {
                let chosen = if parts[0].evaluate(scope, index)?.truthy() {
                    1
                } else {
                    2
                };
                parts[chosen].evaluate(scope, index)?
            }
            Node::Concat(parts) => {
                let mut text = String::new();
                for part in parts {
                    text.push_str(&part.evaluate(scope, index)?.to_text()?);
                    bounded(text.len())?;
                }
                Val::Text(text.into())
            }
        })
    }
}

fn unary(operator: Unary, operand: &Val<'_>) -> Result<Val<'static>, Failure> {
    Ok(match operator {
        Unary::Not => Val::Bool(!operand.truthy()),
        Unary::Minus => Val::Number(-operand.to_number()?),
        Unary::Plus => Val::Number(operand.to_number()?),
        Unary::TypeOf => Val::Text(operand.type_of().into()),
        Unary::IsEmpty => Val::Bool(operand.is_empty()),
        Unary::IsNotEmpty => Val::Bool(!operand.is_empty()),
    })
}

fn binary<'s>(
    operator: Binary,
    operands: &'s [Node; 2],
    scope: &'s Scope,
    index: usize,
) -> Result<Val<'s>, Failure> {
    let left = operands[0].evaluate(scope, index)?;
    let short = match operator {
        Binary::Coalesce => !left.is_nullish(),
        Binary::Or => left.truthy(),
        Binary::And => !left.truthy(),
        _ => false,
    };
    if short {
        return Ok(left);
    }
    let right = operands[1].evaluate(scope, index)?;
    let compared = |wanted: &dyn Fn(Ordering) -> bool| {
        left.compare(&right)
            .map(|order| Val::Bool(order.is_some_and(wanted)))
    };
    // JavaScript converts the left operand first, so its failure is the one reported.
    let computed = |compute: &dyn Fn(f64, f64) -> f64| {
        let (left, right) = (left.to_number()?, right.to_number()?);
        Ok::<_, Failure>(Val::Number(compute(left, right)))
    };
    Ok(match operator {
        Binary::Coalesce | Binary::Or | Binary::And => right,
        Binary::Equal => Val::Bool(left.loosely_equals(&right)?),
        Binary::NotEqual => Val::Bool(!left.loosely_equals(&right)?),
        Binary::Same => Val::Bool(left.strictly_equals(&right)),
        Binary::NotSame => Val::Bool(!left.strictly_equals(&right)),
        Binary::Less => compared(&Ordering::is_lt)?,
        Binary::LessOrEqual => compared(&Ordering::is_le)?,
        Binary::Greater => compared(&Ordering::is_gt)?,
        Binary::GreaterOrEqual => compared(&Ordering::is_ge)?,
        Binary::Add => left.plus(&right)?,
        Binary::Subtract => computed(&|left, right| left - right)?,
        Binary::Multiply => computed(&|left, right| left * right)?,
        Binary::Divide => computed(&|left, right| left / right)?,
        Binary::Remainder => computed(&|left, right| left % right)?,
    })
}

/// The tree of a whole expression; `None` when it needs the script engine (or is no expression at all).
pub(super) fn parse(tokens: &[Token], source: &str) -> Option<Node> {
    let mut parser = Parser::new(tokens, source, 0);
    // As text it is only right when nothing is computed with it: elsewhere it is an object.
    if let [token] = tokens {
        match parser.text(token) {
            "$now" => return Some(clock(Root::Now)),
            "$today" => return Some(clock(Root::Today)),
            _ => {}
        }
    }
    let node = parser.expression()?;
    (parser.at == tokens.len()).then_some(node)
}

fn clock(root: Root) -> Node {
    Node::Lookup(Box::new(Lookup {
        root,
        path: Vec::new(),
    }))
}

/// The longest look-up that starts at token `at`, and the index of the token after it.
pub(super) fn parse_lookup(tokens: &[Token], source: &str, at: usize) -> Option<(Lookup, usize)> {
    let mut parser = Parser::new(tokens, source, at);
    let lookup = parser.lookup()?;
    Some((lookup, parser.at))
}

struct Parser<'a> {
    tokens: &'a [Token],
    source: &'a str,
    at: usize,
    depth: usize,
    operators: usize,
}

/// Binary operators from the loosest to the tightest.
const LEVELS: &[&[(&str, Binary)]] = &[
    &[("??", Binary::Coalesce)],
    &[("||", Binary::Or)],
    &[("&&", Binary::And)],
    &[
        ("==", Binary::Equal),
        ("!=", Binary::NotEqual),
        ("===", Binary::Same),
        ("!==", Binary::NotSame),
    ],
    &[
        ("<", Binary::Less),
        ("<=", Binary::LessOrEqual),
        (">", Binary::Greater),
        (">=", Binary::GreaterOrEqual),
    ],
    &[("+", Binary::Add), ("-", Binary::Subtract)],
    &[
        ("*", Binary::Multiply),
        ("/", Binary::Divide),
        ("%", Binary::Remainder),
    ],
];

impl<'a> Parser<'a> {
    fn new(tokens: &'a [Token], source: &'a str, at: usize) -> Self {
        Self {
            tokens,
            source,
            at,
            depth: 0,
            operators: 0,
        }
    }

    fn text(&self, token: &Token) -> &'a str {
        &self.source[token.start..token.end]
    }

    fn peek(&self, ahead: usize) -> Option<(Kind, &'a str)> {
        let token = self.tokens.get(self.at + ahead)?;
        Some((token.kind, self.text(token)))
    }

    fn is(&self, ahead: usize, punctuation: &str) -> bool {
        self.peek(ahead) == Some((Kind::Punctuation, punctuation))
    }

    fn eat(&mut self, punctuation: &str) -> Option<()> {
        let found = self.is(0, punctuation);
        self.at += usize::from(found);
        found.then_some(())
    }

    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        self.depth += 1;
        let parsed = (self.depth <= DEPTH_MAX).then(|| parse(self)).flatten();
        self.depth -= 1;
        parsed
    }

    fn expression(&mut self) -> Option<Node> {
        self.nested(|parser| {
            let condition = parser.operators(0)?;
            if parser.eat("?").is_none() {
                return Some(condition);
            }
            let yes = parser.expression()?;
            parser.eat(":")?;
            let no = parser.expression()?;
            Some(Node::Choice(Box::new([condition, yes, no])))
        })
    }

    fn operators(&mut self, level: usize) -> Option<Node> {
        let Some(operators) = LEVELS.get(level) else {
            return self.unary();
        };
        let mut left = self.operators(level + 1)?;
        while let Some((Kind::Punctuation, text)) = self.peek(0) {
            let Some((_, operator)) = operators.iter().find(|(name, _)| *name == text) else {
                break;
            };
            self.at += 1;
            let right = self.operators(level + 1)?;
            // `a ?? b || c` is a syntax error without brackets: the engine's parser words it.
            if *operator == Binary::Coalesce && (is_logic(&left) || is_logic(&right)) {
                return None;
            }
            self.count()?;
            left = Node::Binary(*operator, Box::new([left, right]));
        }
        Some(left)
    }

    fn count(&mut self) -> Option<()> {
        self.operators += 1;
        (self.operators <= OPERATORS_MAX).then_some(())
    }

    fn unary(&mut self) -> Option<Node> {
        let operator = match self.peek(0)? {
            (Kind::Punctuation, "!") => Unary::Not,
            (Kind::Punctuation, "-") => Unary::Minus,
            (Kind::Punctuation, "+") => Unary::Plus,
            (Kind::Name, "typeof") => Unary::TypeOf,
            _ => return self.operand(),
        };
        self.at += 1;
        self.count()?;
        let operand = self.nested(Self::unary)?;
        Some(Node::Unary(operator, Box::new(operand)))
    }

    fn operand(&mut self) -> Option<Node> {
        let (kind, text) = self.peek(0)?;
        let node = match kind {
            Kind::Punctuation if text == "(" => {
                self.at += 1;
                let inner = self.expression()?;
                self.eat(")")?;
                inner
            }
            Kind::Number => {
                self.at += 1;
                Node::Number(number(text)?)
            }
            Kind::Text | Kind::Template => {
                let value = text_value(&self.tokens[self.at], self.source)?;
                self.at += 1;
                Node::Text(value)
            }
            Kind::TemplateHead => self.template()?,
            Kind::Name => self.name(text)?,
            _ => return None,
        };
        // Members of anything but a look-up, calls, tags and increments are the engine's.
        let more = match self.peek(0) {
            Some((Kind::Punctuation, text)) => {
                matches!(text, "." | "?." | "[" | "(" | "++" | "--" | "**" | "=>")
            }
            Some((Kind::Template | Kind::TemplateHead, _)) => true,
            _ => false,
        };
        (!more).then_some(node)
    }

    fn template(&mut self) -> Option<Node> {
        let mut parts = Vec::new();
        loop {
            let token = self.tokens.get(self.at)?;
            if !matches!(
                token.kind,
                Kind::TemplateHead | Kind::TemplateMiddle | Kind::TemplateTail
            ) {
                return None;
            }
            parts.push(Node::Text(text_value(token, self.source)?));
            self.at += 1;
            if token.kind == Kind::TemplateTail {
                return Some(Node::Concat(parts));
            }
            parts.push(self.expression()?);
        }
    }

    fn name(&mut self, text: &str) -> Option<Node> {
        let literal = match text {
            "true" => Node::Bool(true),
            "false" => Node::Bool(false),
            "null" => Node::Null,
            "undefined" => Node::Undefined,
            "NaN" => Node::Number(f64::NAN),
            "Infinity" => Node::Number(f64::INFINITY),
            _ if names::is_variable(text) => return self.lookup_operand(),
            // A name nobody knows is undefined.
            _ if names::is_free(text) => Node::Undefined,
            _ => return None,
        };
        self.at += 1;
        Some(literal)
    }

    fn lookup_operand(&mut self) -> Option<Node> {
        let lookup = Node::Lookup(Box::new(self.lookup()?));
        let method = match (self.peek(0), self.peek(1)) {
            (Some((Kind::Punctuation, ".")), Some((Kind::Name, "isEmpty"))) => Unary::IsEmpty,
            (Some((Kind::Punctuation, ".")), Some((Kind::Name, "isNotEmpty"))) => Unary::IsNotEmpty,
            _ => return Some(lookup),
        };
        if !self.is(2, "(") || !self.is(3, ")") {
            return None;
        }
        self.at += 4;
        Some(Node::Unary(method, Box::new(lookup)))
    }

    /// A variable and the path after it.
    fn lookup(&mut self) -> Option<Lookup> {
        let (Kind::Name, name) = self.peek(0)? else {
            return None;
        };
        self.at += 1;
        let mut path = Vec::new();
        let json = || Part::Key("json".into());
        let root = match name {
            "$json" => {
                path.push(json());
                Root::Item
            }
            "$binary" => {
                path.push(Part::Key("binary".into()));
                Root::Item
            }
            "$item" if !self.is(0, "(") => Root::Item,
            "$items" => self.items()?,
            "$input" => self.input()?,
            "$" => self.step()?,
            "$node" => self.node()?,
            "$trigger" => Root::Trigger,
            "$execution" => Root::Execution,
            "$workflow" => Root::Workflow,
            "$vars" => Root::Vars,
            "$env" => Root::Env,
            "$itemIndex" => Root::ItemIndex,
            "$runIndex" => Root::RunIndex,
            _ => return None,
        };
        while let Some(part) = self.part() {
            path.push(part);
        }
        Some(Lookup { root, path })
    }

    /// `.name`, `?.name`, `[key]` or `?.[key]`, unless it is a method that is called.
    fn part(&mut self) -> Option<Part> {
        let start = self.at;
        let part = self.try_part();
        if part.is_none() {
            self.at = start;
        }
        part
    }

    fn try_part(&mut self) -> Option<Part> {
        let (Kind::Punctuation, dot) = self.peek(0)? else {
            return None;
        };
        let part = match (dot, self.peek(1)?) {
            ("." | "?.", (Kind::Name, name)) if !name.contains('\\') => {
                self.at += 2;
                Part::Key(name.into())
            }
            ("?.", (Kind::Punctuation, "[")) | ("[", _) => {
                self.at += if dot == "[" { 1 } else { 2 };
                let key = self.expression()?;
                self.eat("]")?;
                match key {
                    Node::Text(text) => Part::Key(text.into()),
                    Node::Number(number) => Part::Key(number_text(number).into()),
                    computed => Part::Computed(computed),
                }
            }
            _ => return None,
        };
        let called = self.is(0, "(")
            || (self.is(0, "?.") && self.is(1, "("))
            || matches!(self.peek(0), Some((Kind::Template | Kind::TemplateHead, _)));
        (!called).then_some(part)
    }

    /// After `$items`: nothing, `()` or `("step")`.
    fn items(&mut self) -> Option<Root> {
        if !self.is(0, "(") {
            return Some(Root::All);
        }
        if self.is(1, ")") {
            self.at += 2;
            return Some(Root::All);
        }
        Some(Root::StepAll(self.argument()?))
    }

    /// `("…")`
    fn argument(&mut self) -> Option<Arc<str>> {
        let name = text_value(self.tokens.get(self.at + 1)?, self.source)?;
        let literal = matches!(self.peek(1)?.0, Kind::Text | Kind::Template);
        if !literal || !self.is(0, "(") || !self.is(2, ")") {
            return None;
        }
        self.at += 3;
        Some(name.into())
    }

    /// `.name`, and whether `()` follows it.
    fn property(&mut self) -> Option<(&'a str, bool)> {
        let (Kind::Name, name) = self.peek(1)? else {
            return None;
        };
        if !self.is(0, ".") && !self.is(0, "?.") {
            return None;
        }
        let called = self.is(2, "(") && self.is(3, ")");
        if !called && self.is(2, "(") {
            return None;
        }
        self.at += if called { 4 } else { 2 };
        Some((name, called))
    }

    /// After `$input`.
    fn input(&mut self) -> Option<Root> {
        Some(match self.property()? {
            ("item", false) => Root::Item,
            ("first", true) => Root::First,
            ("last", true) => Root::Last,
            ("all", true) => Root::All,
            _ => return None,
        })
    }

    /// After `$`.
    fn step(&mut self) -> Option<Root> {
        let name = self.argument()?;
        Some(match self.property()? {
            ("item", false) => Root::StepItem(name),
            ("first", true) => Root::StepFirst(name),
            ("last", true) => Root::StepLast(name),
            ("all", true) => Root::StepAll(name),
            ("isExecuted", false) => Root::StepRan(name),
            _ => return None,
        })
    }

    /// After `$node`: `["step"]` or `.step`, then `.json` or `.binary`.
    fn node(&mut self) -> Option<Root> {
        let Part::Key(name) = self.part()? else {
            return None;
        };
        let member = matches!(self.peek(1), Some((Kind::Name, "json" | "binary")));
        (member && (self.is(0, ".") || self.is(0, "?."))).then_some(Root::StepSame(name))
    }
}

fn is_logic(node: &Node) -> bool {
    matches!(node, Node::Binary(Binary::Or | Binary::And, _))
}

/// A literal's value. `None` for what strict code refuses and for big integers.
fn number(text: &str) -> Option<f64> {
    let octal = text.len() > 1 && text.starts_with('0') && text.as_bytes()[1].is_ascii_digit();
    if octal || text.contains('_') {
        return None;
    }
    let value = text_number(text);
    (!value.is_nan()).then_some(value)
}
