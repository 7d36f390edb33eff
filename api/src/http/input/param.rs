//! Parameters of path, query and headers.

use std::{borrow::Cow, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use callboard_runtime::{
    id::{ExecutionId, KeyId, SessionId},
    store::rows::ExecutionStatus,
};
use chrono::{DateTime, Utc};
use poem_openapi::{
    registry::{MetaSchema, MetaSchemaRef},
    types::{ParseFromParameter, ParseResult, Type},
};
use uuid::Uuid;

/// What is wrong with a parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Wrong {
    pub(super) kind: &'static str,
    pub(super) msg: String,
}

impl Wrong {
    /// `kind` and `msg` as Pydantic 2 has them.
    pub fn new(kind: &'static str, msg: impl Into<String>) -> Self {
        Self {
            kind,
            msg: msg.into(),
        }
    }
}

/// A parameter that was read, or not: the handler gathers the faults of all of them.
pub struct Param<T>(pub Result<T, Wrong>);

/// What a parameter may be.
pub trait ParamType: Send + Sync + Sized {
    /// Its schema.
    fn schema() -> MetaSchema;
    /// Reads it.
    fn parse(text: &str) -> Result<Self, Wrong>;
}

impl<T: ParamType> Type for Param<T> {
    const IS_REQUIRED: bool = true;
    type RawValueType = Self;
    type RawElementValueType = Self;

    fn name() -> Cow<'static, str> {
        "parameter".into()
    }

    fn schema_ref() -> MetaSchemaRef {
        MetaSchemaRef::Inline(Box::new(T::schema()))
    }

    fn as_raw_value(&self) -> Option<&Self> {
        Some(self)
    }

    fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Self> + 'a> {
        Box::new(std::iter::once(self))
    }
}

impl<T: ParamType> ParseFromParameter for Param<T> {
    fn parse_from_parameter(value: &str) -> ParseResult<Self> {
        Ok(Self(T::parse(value)))
    }
}

macro_rules! uuid_param {
    ($($id:ident),*) => {$(
        impl ParamType for $id {
            fn schema() -> MetaSchema {
                MetaSchema::new_with_format("string", "uuid")
            }

            fn parse(text: &str) -> Result<Self, Wrong> {
                Uuid::parse_str(text)
                    .map($id)
                    .map_err(|error| Wrong::new("uuid_parsing", format!("Input should be a valid UUID, {error}")))
            }
        }
    )*};
}

uuid_param!(ExecutionId, SessionId, KeyId);

impl ParamType for String {
    fn schema() -> MetaSchema {
        MetaSchema::new("string")
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        if text.contains('\0') {
            return Err(no_nul());
        }
        Ok(text.to_owned())
    }
}

/// The id of an event of an execution: -1 for `execution.started`, which has no row.
impl ParamType for i64 {
    fn schema() -> MetaSchema {
        MetaSchema {
            minimum: Some(-1.0),
            ..MetaSchema::new_with_format("integer", "int64")
        }
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        integer(text, -1, Self::MAX)
    }
}

/// The database takes this character in JSON only.
pub fn no_nul() -> Wrong {
    Wrong::new(
        "value_error",
        "Value error, a text here cannot hold the character U+0000",
    )
}

fn integer(text: &str, min: i64, max: i64) -> Result<i64, Wrong> {
    match text.trim().parse::<i64>() {
        Err(_) => Err(Wrong::new(
            "int_parsing",
            "Input should be a valid integer, unable to parse string as an integer",
        )),
        Ok(number) if number < min => Err(Wrong::new(
            "greater_than_equal",
            format!("Input should be greater than or equal to {min}"),
        )),
        Ok(number) if number > max => Err(Wrong::new(
            "less_than_equal",
            format!("Input should be less than or equal to {max}"),
        )),
        Ok(number) => Ok(number),
    }
}

/// How many rows a list answers at most: 1 to 1000, 100 unless told.
#[derive(Clone, Copy)]
pub struct Limit(pub usize);

impl Default for Limit {
    fn default() -> Self {
        Self(100)
    }
}

impl ParamType for Limit {
    fn schema() -> MetaSchema {
        MetaSchema {
            minimum: Some(1.0),
            maximum: Some(1000.0),
            default: Some(100.into()),
            ..MetaSchema::new("integer")
        }
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        integer(text, 1, 1000).map(|limit| Self(limit as usize))
    }
}

/// Where the last page ended. Opaque to clients: what it holds may change with any release.
pub struct Cursor<T>(pub T);

impl<T: ToString> Cursor<T> {
    /// The cursor as a client gets it.
    pub fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0.to_string())
    }
}

impl<T: FromStr + Send + Sync> ParamType for Cursor<T> {
    fn schema() -> MetaSchema {
        MetaSchema::new("string")
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        URL_SAFE_NO_PAD
            .decode(text)
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok()?.parse().ok())
            .map(Self)
            .ok_or_else(|| {
                Wrong::new(
                    "value_error",
                    "Value error, this is not a cursor from `next_cursor`",
                )
            })
    }
}

impl ParamType for ExecutionStatus {
    fn schema() -> MetaSchema {
        MetaSchema {
            enum_items: STATUSES
                .iter()
                .map(|status| status.as_str().into())
                .collect(),
            ..MetaSchema::new("string")
        }
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        Self::parse(text).ok_or_else(|| Wrong::new("enum", one_of(&STATUSES.map(Self::as_str))))
    }
}

const STATUSES: [ExecutionStatus; 6] = [
    ExecutionStatus::Queued,
    ExecutionStatus::Running,
    ExecutionStatus::Waiting,
    ExecutionStatus::Succeeded,
    ExecutionStatus::Failed,
    ExecutionStatus::Cancelled,
];

/// Pydantic's words for a choice.
pub fn one_of(choices: &[&str]) -> String {
    let quoted: Vec<String> = choices.iter().map(|choice| format!("'{choice}'")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => {
            format!("Input should be {} or {last}", rest.join(", "))
        }
        _ => format!("Input should be {}", quoted.concat()),
    }
}

impl ParamType for DateTime<Utc> {
    fn schema() -> MetaSchema {
        MetaSchema::new_with_format("string", "date-time")
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        // A `+` of an offset reads as a space when a client did not encode it.
        DateTime::parse_from_rfc3339(&text.replace(' ', "+"))
            .map(|time| time.to_utc())
            .map_err(|error| {
                Wrong::new(
                    "datetime_from_date_parsing",
                    format!("Input should be a valid datetime or date, {error}"),
                )
            })
    }
}

/// A client's name for a request, under which repeating it is harmless: 1 to 255 printable ASCII characters.
pub struct IdempotencyKey(pub String);

impl ParamType for IdempotencyKey {
    fn schema() -> MetaSchema {
        MetaSchema {
            min_length: Some(1),
            max_length: Some(255),
            ..MetaSchema::new("string")
        }
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        match text.len() {
            0 => Err(Wrong::new(
                "string_too_short",
                "String should have at least 1 character",
            )),
            1..=255 => Ok(Self(text.to_owned())),
            _ => Err(Wrong::new(
                "string_too_long",
                "String should have at most 255 characters",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_bounded_and_worded() {
        let wrong = |text: &str| Limit::parse(text).err().map(|wrong| wrong.kind);
        assert_eq!(wrong("0"), Some("greater_than_equal"));
        assert_eq!(wrong("1001"), Some("less_than_equal"));
        assert_eq!(wrong("ten"), Some("int_parsing"));
        assert_eq!(wrong("1000"), None);
        assert!(<String as ParamType>::parse("a\0b").is_err());
        let wrong = <ExecutionId as ParamType>::parse("nope").expect_err("it is no id");
        assert_eq!(wrong.kind, "uuid_parsing");
        assert!(
            wrong.msg.starts_with("Input should be a valid UUID, "),
            "{}",
            wrong.msg
        );
        let wrong = <ExecutionStatus as ParamType>::parse("done").expect_err("it is no status");
        assert!(
            wrong.msg.ends_with("'failed' or 'cancelled'"),
            "{}",
            wrong.msg
        );
    }

    #[test]
    fn a_cursor_survives_the_trip() {
        let id = ExecutionId::new();
        let back = Cursor::<ExecutionId>::parse(&Cursor(id).encode()).map(|cursor| cursor.0);
        assert_eq!(back, Ok(id));
        assert!(Cursor::<ExecutionId>::parse("zzz").is_err());
    }
}
