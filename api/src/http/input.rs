//! Reads what a request says and collects everything that is wrong with it, so that all faults are answered at once.

use std::{borrow::Cow, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use callboard_runtime::{
    id::{ExecutionId, KeyId, SessionId},
    store::rows::ExecutionStatus,
};
use chrono::{DateTime, Utc};
use poem::{Request, RequestBody, http::HeaderMap};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ExtractParamOptions,
    registry::{MetaMediaType, MetaRequest, MetaSchema, MetaSchemaRef, Registry},
    types::{ParseFromParameter, ParseResult, Type},
};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{
    State,
    body::{self, ContentType},
    problem::{ApiError, ApiResult, Fault},
};

/// The faults found so far.
#[derive(Default)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// Adds one.
    pub fn push(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    /// The value of a path parameter; a fault otherwise.
    pub fn path<T>(&mut self, name: &'static str, param: Param<T>) -> Option<T> {
        self.take("path", name, param)
    }

    /// The value of a query parameter, if there is one; a fault when it is wrong.
    pub fn query<T>(&mut self, name: &'static str, param: Option<Param<T>>) -> Option<T> {
        self.take("query", name, param?)
    }

    /// The value of a header, if there is one; a fault when it is wrong. `name` is in lower case.
    pub fn header<T: ParamType>(&mut self, name: &'static str, headers: &HeaderMap) -> Option<T> {
        let value = headers.get(name)?;
        let parsed = match value.to_str() {
            Ok(text) => T::parse(text),
            Err(_) => Err(Wrong::new(
                "string_unicode",
                "Input should be a valid string",
            )),
        };
        self.take("header", name, Param(parsed))
    }

    /// As [`Faults::header`], for one that was read already.
    pub fn parsed_header<T>(&mut self, name: &'static str, param: Option<Param<T>>) -> Option<T> {
        self.take("header", name, param?)
    }

    /// A body that was read as `T`.
    pub fn body<T>(&mut self, body: Body<T>) -> Option<T> {
        match body.0 {
            Ok(value) => Some(value),
            Err(faults) => {
                self.0.extend(faults);
                None
            }
        }
    }

    fn take<T>(&mut self, part: &'static str, name: &'static str, param: Param<T>) -> Option<T> {
        match param.0 {
            Ok(value) => Some(value),
            Err(wrong) => {
                self.push(Fault::new([part, name], wrong.kind, wrong.msg));
                None
            }
        }
    }

    /// `value` when nothing was wrong. It is only `None` when something was.
    pub fn check<T>(self, value: Option<T>) -> ApiResult<T> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(ApiError::invalid(self.0)),
        }
    }
}

/// What is wrong with a parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Wrong {
    kind: &'static str,
    msg: String,
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
        Ok(text.to_owned())
    }
}

impl ParamType for i64 {
    fn schema() -> MetaSchema {
        MetaSchema {
            minimum: Some(0.0),
            ..MetaSchema::new_with_format("integer", "int64")
        }
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        integer(text, 0, Self::MAX)
    }
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

/// A request body, read as `T`, or everything that is wrong with it. Wrong content types, sizes and
/// transfers are answered at once instead.
pub struct Body<T>(pub Result<T, Vec<Fault>>);

/// What a JSON body may be.
pub trait BodyType: Type + Sized {
    /// Whether an absent body is an empty object.
    const OPTIONAL: bool = false;
    /// Reads the members; what is wrong goes to `fields`. May only be `None` when something was.
    fn read(fields: &mut Fields) -> Option<Self>;
}

impl<'a, T: BodyType> ApiExtractor<'a> for Body<T> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        T::register(registry);
    }

    fn request_meta() -> Option<MetaRequest> {
        Some(MetaRequest {
            description: None,
            content: vec![MetaMediaType {
                content_type: "application/json",
                schema: T::schema_ref(),
            }],
            required: !T::OPTIONAL,
        })
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        let bytes = body::read(request, body, State::of(request)?.max_body).await?;
        if bytes.is_empty() {
            return Ok(Self(if T::OPTIONAL {
                Fields::read(Value::Object(Map::new()))
            } else {
                Err(vec![missing()])
            }));
        }
        if ContentType::of(request) != ContentType::Json {
            return Err(body::unsupported(request, "application/json").into());
        }
        Ok(Self(
            body::json(&bytes)
                .map_err(|fault| vec![fault])
                .and_then(Fields::read),
        ))
    }
}

/// An absent body.
pub fn missing() -> Fault {
    Fault::new(["body"], "missing", "Field required")
}

/// The members of a body, taken one by one.
pub struct Fields {
    members: Map<String, Value>,
    faults: Vec<Fault>,
}

impl Fields {
    /// Reads a whole body; members that `T` does not know are faults.
    fn read<T: BodyType>(value: Value) -> Result<T, Vec<Fault>> {
        let Value::Object(members) = value else {
            return Err(vec![Fault::new(
                ["body"],
                "model_attributes_type",
                "Input should be a valid dictionary or object to extract fields from",
            )]);
        };
        let mut fields = Self {
            members,
            faults: Vec::new(),
        };
        let value = T::read(&mut fields);
        for name in fields.members.keys() {
            fields.faults.push(Fault::new(
                ["body", name.as_str()],
                "extra_forbidden",
                "Extra inputs are not permitted",
            ));
        }
        value
            .filter(|_| fields.faults.is_empty())
            .ok_or(fields.faults)
    }

    /// A member as it is, `null` included.
    pub fn raw(&mut self, name: &str) -> Option<Value> {
        self.members.shift_remove(name)
    }

    /// A member that must be there.
    pub fn required<T: FieldType>(&mut self, name: &str) -> Option<T> {
        match self.raw(name) {
            Some(value) => self.typed(name, value),
            None => {
                self.fault(name, Wrong::new("missing", "Field required"));
                None
            }
        }
    }

    /// A member that may be absent or `null`.
    pub fn optional<T: FieldType>(&mut self, name: &str) -> Option<T> {
        let value = self.raw(name).filter(|value| !value.is_null())?;
        self.typed(name, value)
    }

    fn typed<T: FieldType>(&mut self, name: &str, value: Value) -> Option<T> {
        T::from_json(value)
            .map_err(|wrong| self.fault(name, wrong))
            .ok()
    }

    /// Notes that a member is wrong.
    pub fn fault(&mut self, name: &str, wrong: Wrong) {
        self.faults
            .push(Fault::new(["body", name], wrong.kind, wrong.msg));
    }

    /// Notes that an element of a member is wrong.
    pub fn fault_at(&mut self, name: &str, index: usize, wrong: Wrong) {
        self.faults.push(Fault::new(
            [Value::from("body"), name.into(), index.into()],
            wrong.kind,
            wrong.msg,
        ));
    }
}

/// What a member may be. Nothing is converted: `"7"` is no number.
pub trait FieldType: Sized {
    /// Reads it.
    fn from_json(value: Value) -> Result<Self, Wrong>;
}

impl FieldType for String {
    fn from_json(value: Value) -> Result<Self, Wrong> {
        match value {
            Value::String(text) => Ok(text),
            _ => Err(Wrong::new("string_type", "Input should be a valid string")),
        }
    }
}

impl FieldType for bool {
    fn from_json(value: Value) -> Result<Self, Wrong> {
        value
            .as_bool()
            .ok_or_else(|| Wrong::new("bool_type", "Input should be a valid boolean"))
    }
}

impl FieldType for i32 {
    fn from_json(value: Value) -> Result<Self, Wrong> {
        value
            .as_i64()
            .and_then(|number| number.try_into().ok())
            .ok_or_else(|| Wrong::new("int_type", "Input should be a valid integer"))
    }
}

impl FieldType for Vec<Value> {
    fn from_json(value: Value) -> Result<Self, Wrong> {
        match value {
            Value::Array(elements) => Ok(elements),
            _ => Err(Wrong::new("list_type", "Input should be a valid list")),
        }
    }
}

impl FieldType for DateTime<Utc> {
    fn from_json(value: Value) -> Result<Self, Wrong> {
        match value.as_str() {
            Some(text) => <Self as ParamType>::parse(text),
            None => Err(Wrong::new(
                "datetime_type",
                "Input should be a valid datetime",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use poem_openapi::Object;
    use serde_json::json;

    use super::*;

    #[derive(Debug, PartialEq, Object)]
    struct Sample {
        name: String,
        count: Option<i32>,
        on: bool,
    }

    impl BodyType for Sample {
        fn read(fields: &mut Fields) -> Option<Self> {
            let (name, count, on) = (
                fields.required("name"),
                fields.optional("count"),
                fields.required("on"),
            );
            Some(Self {
                name: name?,
                count,
                on: on?,
            })
        }
    }

    fn kinds(value: Value) -> Vec<(Vec<Value>, String)> {
        let faults = Fields::read::<Sample>(value).expect_err("it has faults");
        faults
            .into_iter()
            .map(|fault| (fault.loc, fault.kind))
            .collect()
    }

    #[test]
    fn all_faults_of_a_body_are_found_at_once() {
        let found = kinds(json!({ "count": "7", "on": 1, "more": null }));
        let at = |name: &str, kind: &str| (vec!["body".into(), name.into()], kind.to_owned());
        assert_eq!(
            found,
            [
                at("name", "missing"),
                at("count", "int_type"),
                at("on", "bool_type"),
                at("more", "extra_forbidden")
            ]
        );
    }

    #[test]
    fn a_body_that_is_no_object_is_one_fault() {
        assert_eq!(
            kinds(json!([1])),
            [(vec!["body".into()], "model_attributes_type".to_owned())]
        );
    }

    #[test]
    fn null_counts_as_absent_where_absence_is_allowed() {
        let read = Fields::read::<Sample>(json!({ "name": "a", "count": null, "on": true }));
        assert_eq!(
            read,
            Ok(Sample {
                name: "a".into(),
                count: None,
                on: true
            })
        );
    }

    #[test]
    fn parameters_are_bounded_and_worded() {
        let wrong = |text: &str| Limit::parse(text).err().map(|wrong| wrong.kind);
        assert_eq!(wrong("0"), Some("greater_than_equal"));
        assert_eq!(wrong("1001"), Some("less_than_equal"));
        assert_eq!(wrong("ten"), Some("int_parsing"));
        assert_eq!(wrong("1000"), None);
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
