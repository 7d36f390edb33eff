//! Which names mean what in expressions and scripts.

use super::{
    References,
    token::{Kind, Token, text_value},
};

/// Names that stand for data. Look-ups start with them.
pub(super) const VARIABLES: &[&str] = &[
    "$",
    "$binary",
    "$env",
    "$execution",
    "$input",
    "$item",
    "$itemIndex",
    "$items",
    "$json",
    "$node",
    "$now",
    "$runIndex",
    "$today",
    "$trigger",
    "$vars",
    "$workflow",
];

/// What scripts see besides.
pub(super) const SCRIPT_VARIABLES: &[&str] = &["item", "items"];

/// Names the engine itself defines. A test compares the list with the engine.
pub(super) const GLOBALS: &[&str] = &[
    "$agentInfo",
    "$average",
    "$evaluateExpression",
    "$fromAI",
    "$getPairedItem",
    "$getWorkflowStaticData",
    "$if",
    "$ifEmpty",
    "$jmespath",
    "$max",
    "$min",
    "$not",
    "$parameter",
    "$prevNode",
    "$secrets",
    "$self",
    "$tool",
    "AggregateError",
    "Array",
    "BigInt",
    "Boolean",
    "Date",
    "DateTime",
    "Error",
    "EvalError",
    "Function",
    "Infinity",
    "InternalError",
    "JSON",
    "Map",
    "Math",
    "NaN",
    "Number",
    "Object",
    "Promise",
    "RangeError",
    "ReferenceError",
    "RegExp",
    "Set",
    "String",
    "Symbol",
    "SyntaxError",
    "TypeError",
    "URIError",
    "WeakMap",
    "WeakSet",
    "console",
    "decodeURI",
    "decodeURIComponent",
    "encodeURI",
    "encodeURIComponent",
    "escape",
    "globalThis",
    "isFinite",
    "isNaN",
    "parseFloat",
    "parseInt",
    "undefined",
    "unescape",
];

/// Words that cannot be declared in strict code.
const RESERVED: &[&str] = &[
    "arguments",
    "async",
    "await",
    "break",
    "case",
    "catch",
    "class",
    "const",
    "continue",
    "debugger",
    "default",
    "delete",
    "do",
    "else",
    "enum",
    "eval",
    "export",
    "extends",
    "false",
    "finally",
    "for",
    "function",
    "if",
    "implements",
    "import",
    "in",
    "instanceof",
    "interface",
    "let",
    "new",
    "null",
    "package",
    "private",
    "protected",
    "public",
    "return",
    "static",
    "super",
    "switch",
    "this",
    "throw",
    "true",
    "try",
    "typeof",
    "using",
    "var",
    "void",
    "while",
    "with",
    "yield",
];

/// Methods every object has in an expression. They are not inherited by data, where they would hide nothing but
/// appear everywhere: a call of one is rewritten to the name with `@` before it.
pub(super) const OBJECT_METHODS: &[&str] = &[
    "compact",
    "hasField",
    "isEmpty",
    "isNotEmpty",
    "keepFieldsContaining",
    "keys",
    "merge",
    "removeField",
    "removeFieldsContaining",
    "toJsonString",
    "urlEncode",
    "values",
];

pub(super) fn is_variable(name: &str) -> bool {
    VARIABLES.contains(&name)
}

/// Whether nothing defines the name: it reads as undefined.
pub(super) fn is_free(name: &str) -> bool {
    !is_variable(name)
        && !GLOBALS.contains(&name)
        && !RESERVED.contains(&name)
        && !name.contains('\\')
}

/// Whether token `at` is a name of its own, and not a member of what is before it.
pub(super) fn stands_alone(tokens: &[Token], source: &str, at: usize) -> bool {
    tokens[at].kind == Kind::Name
        && !at.checked_sub(1).is_some_and(|before| {
            matches!(
                &source[tokens[before].start..tokens[before].end],
                "." | "?." | "#"
            )
        })
}

/// The steps that tokens speak of.
pub(super) fn references(tokens: &[Token], source: &str, found: &mut References) {
    let text = |at: usize| {
        tokens
            .get(at)
            .map_or("", |token| &source[token.start..token.end])
    };
    let literal = |at: usize| {
        tokens
            .get(at)
            .filter(|token| matches!(token.kind, Kind::Text | Kind::Template))
            .and_then(|token| text_value(token, source))
    };
    for at in 0..tokens.len() {
        if !stands_alone(tokens, source, at) {
            continue;
        }
        let call = |closing: &str| (text(at + 3) == closing).then(|| literal(at + 2)).flatten();
        let named = match (text(at), text(at + 1)) {
            ("$", "(") => call(")"),
            ("$items", "(") if text(at + 2) != ")" => call(")"),
            ("$items", _) => continue,
            ("$node", "[") => call("]"),
            ("$node", "." | "?.") if tokens.get(at + 2).is_some_and(|t| t.kind == Kind::Name) => {
                Some(text(at + 2).to_owned())
            }
            ("$" | "$node", _) => None,
            _ => continue,
        };
        match named {
            Some(name) if found.steps.contains(&name) => {}
            Some(name) => found.steps.push(name),
            None => found.any_step = true,
        }
    }
}
