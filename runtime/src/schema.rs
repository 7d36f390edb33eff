//! JSON Schema (2020-12): checks of inputs, tool arguments and structured answers.
//!
//! Schemas come from documents and from the parameters of tools, so both they and what they are applied to may be
//! hostile: nothing is fetched, patterns have a budget, and the number of reported violations is bounded.

use std::fmt;

use jsonschema::{
    JsonType, PatternOptions, ValidationError, Validator,
    error::{TypeKind, ValidationErrorKind as Kind},
    paths::Location,
};
use serde_json::{Map, Value};

use crate::document::wording::{self, Expected};

mod expansion;

/// The deepest nesting of a schema.
const SCHEMA_DEPTH_MAX: usize = 64;
/// The most values a schema may be made of.
const SCHEMA_NODES_MAX: usize = 20_000;
/// The most violations that are reported of one value.
const VIOLATIONS_MAX: usize = 500;
/// Steps a pattern may go back before it is given up, per match.
const PATTERN_BACKTRACKS_MAX: usize = 100_000;
/// Bytes a compiled pattern may take.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// One way in which a value does not fit its schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Where in the value: names and indexes.
    pub path: Vec<String>,
    /// What is wrong, in Pydantic 2's words where it has some: `Field required`.
    pub message: String,
    /// Pydantic 2's type of it: `missing`, `string_type`, …
    pub kind: String,
}

impl Violation {
    /// The `loc` of a 422 detail: `["body", "items", 0, "name"]`.
    pub fn loc(&self) -> Vec<Value> {
        crate::document::loc(&self.path)
    }
}

/// A violation whose kind is known to be one of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) path: Vec<String>,
    pub(crate) kind: &'static str,
    pub(crate) message: String,
}

/// A compiled schema.
pub struct Schema {
    validator: Validator,
    source: Value,
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Schema({})", self.source)
    }
}

impl Schema {
    /// Compiles a schema. Never fetches anything: a reference to another document is an error. The error is a sentence.
    pub fn compile(schema: &Value) -> Result<Self, String> {
        Self::check(schema).map_err(|found| match found.path.as_slice() {
            [] => found.message,
            path => format!("`{}`: {}", path.join("."), found.message),
        })
    }

    /// As [`Schema::compile`], with the place of the fault in the schema.
    pub(crate) fn check(schema: &Value) -> Result<Self, Found> {
        let mut nodes = 0;
        bounded(schema, 1, &mut nodes)?;
        expansion::check(schema).map_err(|message| Found {
            path: Vec::new(),
            kind: "value_error",
            message,
        })?;
        let patterns = PatternOptions::fancy_regex()
            .backtrack_limit(PATTERN_BACKTRACKS_MAX)
            .size_limit(PATTERN_BYTES_MAX)
            .dfa_size_limit(PATTERN_BYTES_MAX);
        let validator = jsonschema::options()
            .offline()
            .should_validate_formats(true)
            .with_pattern_options(patterns)
            .build(schema)
            .map_err(|error| refusal(&error))?;
        Ok(Self {
            validator,
            source: schema.clone(),
        })
    }

    /// All violations, in the order of the schema's properties.
    pub fn violations(&self, value: &Value) -> Vec<Violation> {
        let found = self.find(value).into_iter();
        found
            .map(|found| Violation {
                path: found.path,
                message: found.message,
                kind: found.kind.to_owned(),
            })
            .collect()
    }

    /// Whether the value fits. Cheaper than [`Schema::violations`].
    pub fn accepts(&self, value: &Value) -> bool {
        self.validator.is_valid(value)
    }

    /// The value with the `default` of every absent property filled in, at every depth that `properties` and `items`
    /// reach. Filling it again changes nothing.
    pub fn with_defaults(&self, mut value: Value) -> Value {
        fill_defaults(&self.source, &mut value, SCHEMA_DEPTH_MAX);
        value
    }

    pub(crate) fn find(&self, value: &Value) -> Vec<Found> {
        let mut found = Vec::new();
        for error in self.validator.iter_errors(value).take(VIOLATIONS_MAX) {
            describe(&error, &mut found);
        }
        found.truncate(VIOLATIONS_MAX);
        found.sort_by_cached_key(|found| rank(&self.source, &found.path));
        found
    }
}

fn bounded(schema: &Value, depth: usize, nodes: &mut usize) -> Result<(), Found> {
    *nodes += 1;
    if depth > SCHEMA_DEPTH_MAX || *nodes > SCHEMA_NODES_MAX {
        return Err(Found {
            path: Vec::new(),
            kind: "value_error",
            message: format!(
                "A schema should have at most {SCHEMA_DEPTH_MAX} levels and {SCHEMA_NODES_MAX} values"
            ),
        });
    }
    match schema {
        Value::Array(elements) => elements
            .iter()
            .try_for_each(|value| bounded(value, depth + 1, nodes)),
        Value::Object(members) => members
            .values()
            .try_for_each(|value| bounded(value, depth + 1, nodes)),
        _ => Ok(()),
    }
}

/// Why a schema is none, as a fault of the schema's own text.
fn refusal(error: &ValidationError<'_>) -> Found {
    if let Kind::Referencing(cause) = error.kind() {
        let message = match cause {
            jsonschema::ReferencingError::Unretrievable { uri, .. } => {
                format!("A schema cannot refer to another document (`{uri}`)")
            }
            jsonschema::ReferencingError::UnknownSpecification { specification } => {
                format!("`{specification}` is no known version of JSON Schema")
            }
            other => other.to_string(),
        };
        return Found {
            path: segments(error.instance_path()),
            kind: "value_error",
            message,
        };
    }
    let mut found = Vec::new();
    describe(error, &mut found);
    found.swap_remove(0)
}

fn segments(location: &Location) -> Vec<String> {
    location
        .segments()
        .map(|segment| segment.to_string())
        .collect()
}

/// Puts an error into words. Some errors are several violations, one per member; none is no violation at all.
fn describe(error: &ValidationError<'_>, found: &mut Vec<Found>) {
    let path = segments(error.instance_path());
    let mut push = |kind: &'static str, message: String| {
        found.push(Found {
            path: path.clone(),
            kind,
            message,
        });
    };
    match error.kind() {
        Kind::Required { property } => {
            let (kind, message) = wording::MISSING;
            let mut path = path;
            path.push(property.as_str().unwrap_or_default().to_owned());
            found.push(Found {
                path,
                kind,
                message: message.to_owned(),
            });
        }
        Kind::AdditionalProperties { unexpected } | Kind::UnevaluatedProperties { unexpected } => {
            for name in unexpected {
                let mut path = path.clone();
                path.push(name.clone());
                found.push(Found {
                    path,
                    kind: "extra_forbidden",
                    message: "Extra inputs are not permitted".to_owned(),
                });
            }
        }
        Kind::AnyOf { context } | Kind::OneOfNotValid { context } => {
            match closest_form(context, error.instance_path()) {
                Some(errors) => errors.iter().for_each(|error| describe(error, found)),
                None => push(
                    "value_error",
                    "Input fits none of the allowed forms".to_owned(),
                ),
            }
        }
        kind => {
            let (kind, message) = plain(kind, error.instance());
            push(kind, message);
        }
    }
}

/// Of several forms none of which fits, the one that was meant: the only one whose type is that of the value.
fn closest_form<'e>(
    forms: &'e [Vec<ValidationError<'static>>],
    at: &Location,
) -> Option<&'e Vec<ValidationError<'static>>> {
    let other_type = |form: &&Vec<ValidationError<'_>>| {
        form.iter()
            .any(|error| error.instance_path() == at && matches!(error.kind(), Kind::Type { .. }))
    };
    let mut same_type = forms.iter().filter(|form| !other_type(form));
    match (same_type.next(), same_type.next()) {
        (Some(only), None) => Some(only),
        (Some(_), Some(_)) => None,
        // `null` beside one form says that the other is what there is to write.
        (None, _) => {
            let is_null = |form: &&Vec<ValidationError<'_>>| match form.as_slice() {
                [error] => matches!(
                    error.kind(),
                    Kind::Type {
                        kind: TypeKind::Single(JsonType::Null)
                    }
                ),
                _ => false,
            };
            let mut others = forms.iter().filter(|form| !is_null(form));
            others.next().filter(|_| others.next().is_none())
        }
    }
}

/// Kind and message of an error that concerns one value.
fn plain(kind: &Kind, value: &Value) -> (&'static str, String) {
    match kind {
        Kind::Type { kind } => wrong_type(kind, value),
        Kind::Enum { options } => {
            let options = options.as_array().map(Vec::as_slice).unwrap_or_default();
            ("literal_error", wording::one_of(options))
        }
        Kind::Constant { expected_value } => {
            ("literal_error", wording::one_of([&**expected_value]))
        }
        Kind::MinLength { limit } => (
            "string_too_short",
            sized("String", "at least", *limit, "character"),
        ),
        Kind::MaxLength { limit } => (
            "string_too_long",
            sized("String", "at most", *limit, "character"),
        ),
        Kind::MinItems { limit } => ("too_short", counted("List", "at least", *limit, value)),
        Kind::MaxItems { limit } => ("too_long", counted("List", "at most", *limit, value)),
        Kind::AdditionalItems { limit } => {
            ("too_long", counted("List", "at most", *limit as u64, value))
        }
        Kind::MinProperties { limit } => (
            "too_short",
            counted("Dictionary", "at least", *limit, value),
        ),
        Kind::MaxProperties { limit } => {
            ("too_long", counted("Dictionary", "at most", *limit, value))
        }
        Kind::Minimum { limit } => (
            "greater_than_equal",
            compared("greater than or equal to", limit),
        ),
        Kind::ExclusiveMinimum { limit } => ("greater_than", compared("greater than", limit)),
        Kind::Maximum { limit } => ("less_than_equal", compared("less than or equal to", limit)),
        Kind::ExclusiveMaximum { limit } => ("less_than", compared("less than", limit)),
        Kind::MultipleOf { multiple_of } => (
            "multiple_of",
            compared("a multiple of", &Value::from(*multiple_of)),
        ),
        Kind::Pattern { pattern } => (
            "string_pattern_mismatch",
            format!("String should match pattern '{pattern}'"),
        ),
        Kind::Format { format } => wrong_format(format),
        Kind::PropertyNames { error } => {
            let (_, message) = plain(error.kind(), error.instance());
            (
                "value_error",
                format!("A member's name does not fit: {message}"),
            )
        }
        other => ("value_error", rare(other).to_owned()),
    }
}

fn rare(kind: &Kind) -> &'static str {
    match kind {
        Kind::Contains => "List contains too few or too many items of the expected form",
        Kind::FalseSchema => "Nothing is allowed here",
        Kind::Not { .. } => "Input has a form that is not allowed",
        Kind::OneOfMultipleValid { .. } => "Input fits more than one of the allowed forms",
        Kind::UniqueItems => "List items should be unique",
        Kind::UnevaluatedItems { .. } => "List has items that are not permitted",
        Kind::ContentEncoding { .. } | Kind::FromUtf8 { .. } => {
            "String should be in the declared encoding"
        }
        Kind::ContentMediaType { .. } => "String should be of the declared media type",
        Kind::BacktrackLimitExceeded { .. } | Kind::RegexEngineFailure { .. } => {
            "String is too long for its pattern to be checked"
        }
        _ => "Input does not fit its schema",
    }
}

fn sized(what: &str, bound: &str, limit: u64, noun: &str) -> String {
    format!(
        "{what} should have {bound} {}",
        wording::counted(limit, noun)
    )
}

fn counted(what: &str, bound: &str, limit: u64, value: &Value) -> String {
    let len = match value {
        Value::Array(elements) => elements.len(),
        Value::Object(members) => members.len(),
        _ => 0,
    };
    let sized = sized(what, bound, limit, "item");
    format!("{sized} after validation, not {len}")
}

fn compared(relation: &str, limit: &Value) -> String {
    // 5.0 is how a whole limit may come back.
    match limit.as_f64() {
        Some(number) if number.fract() == 0.0 && number.abs() < 1e15 => {
            format!("Input should be {relation} {number:.0}")
        }
        _ => format!("Input should be {relation} {limit}"),
    }
}

fn expected(json_type: JsonType) -> Expected {
    match json_type {
        JsonType::String => Expected::String,
        JsonType::Integer => Expected::Integer,
        JsonType::Number => Expected::Number,
        JsonType::Boolean => Expected::Bool,
        JsonType::Array => Expected::List,
        JsonType::Object => Expected::Object,
        JsonType::Null => Expected::Null,
    }
}

fn wrong_type(kind: &TypeKind, value: &Value) -> (&'static str, String) {
    let types: Vec<JsonType> = match kind {
        TypeKind::Single(only) => vec![*only],
        TypeKind::Multiple(several) => several.iter().collect(),
    };
    let named: Vec<JsonType> = types
        .iter()
        .copied()
        .filter(|&kind| kind != JsonType::Null)
        .collect();
    match (named.as_slice(), types.as_slice()) {
        ([only], _) | ([], [only]) => wording::wrong_type(expected(*only), value),
        _ => {
            let names = named.iter().map(|kind| match expected(*kind) {
                Expected::List => "list".to_owned(),
                Expected::Object => "dictionary".to_owned(),
                Expected::Bool => "boolean".to_owned(),
                other => format!("{other:?}").to_lowercase(),
            });
            (
                "value_error",
                format!("Input should be a valid {}", wording::join(names, "or")),
            )
        }
    }
}

fn wrong_format(format: &str) -> (&'static str, String) {
    let (kind, noun) = match format {
        "uuid" => ("uuid_parsing", "UUID"),
        "date" => ("date_parsing", "date"),
        "date-time" => ("datetime_parsing", "datetime"),
        "time" => ("time_parsing", "time"),
        "uri" | "iri" => ("url_parsing", "URL"),
        "email" | "idn-email" => ("value_error", "email address"),
        "regex" => ("value_error", "regular expression"),
        other => ("value_error", other),
    };
    (kind, format!("Input should be a valid {noun}"))
}

/// The schema of one member or element, through local references.
fn schema_below<'s>(root: &'s Value, schema: &'s Value, segment: &str) -> Option<&'s Value> {
    let schema = dereferenced(root, schema);
    if let Some(property) = schema.get("properties").and_then(|all| all.get(segment)) {
        return Some(property);
    }
    let index: usize = segment.parse().ok()?;
    schema
        .get("prefixItems")
        .and_then(|all| all.get(index))
        .or_else(|| schema.get("items"))
}

fn dereferenced<'s>(root: &'s Value, schema: &'s Value) -> &'s Value {
    // One reference to the next, but not for ever: they may go round in a circle.
    const HOPS_MAX: usize = 8;
    let mut schema = schema;
    for _ in 0..HOPS_MAX {
        let target = schema
            .get("$ref")
            .and_then(Value::as_str)
            .and_then(|reference| reference.strip_prefix('#'))
            .and_then(|pointer| root.pointer(pointer));
        match target {
            Some(target) => schema = target,
            None => break,
        }
    }
    schema
}

/// Sorts paths by the schema's order of properties; members it does not name come last.
fn rank(root: &Value, path: &[String]) -> Vec<usize> {
    let mut schema = Some(root);
    path.iter()
        .map(|segment| {
            let here = schema.map(|schema| dereferenced(root, schema));
            schema = here.and_then(|here| schema_below(root, here, segment));
            let properties = here
                .and_then(|here| here.get("properties"))
                .and_then(Value::as_object);
            let index = segment.parse().unwrap_or(usize::MAX);
            properties
                .and_then(|properties| properties.keys().position(|name| name == segment))
                .unwrap_or(index)
        })
        .collect()
}

fn fill_defaults(root: &Value, value: &mut Value, depth: usize) {
    fill(root, root, value, depth);
}

fn fill(root: &Value, schema: &Value, value: &mut Value, depth: usize) {
    if depth == 0 {
        return;
    }
    let schema = dereferenced(root, schema);
    match value {
        Value::Object(members) => {
            let empty = Map::new();
            let properties = schema
                .get("properties")
                .and_then(Value::as_object)
                .unwrap_or(&empty);
            for (name, property) in properties {
                let default = dereferenced(root, property).get("default");
                if let (Some(default), false) = (default, members.contains_key(name)) {
                    members.insert(name.clone(), default.clone());
                }
                if let Some(member) = members.get_mut(name) {
                    fill(root, property, member, depth - 1);
                }
            }
        }
        Value::Array(elements) => {
            for (index, element) in elements.iter_mut().enumerate() {
                if let Some(below) = schema_below(root, schema, &index.to_string()) {
                    fill(root, below, element, depth - 1);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
