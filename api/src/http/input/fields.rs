//! JSON bodies, member by member.

use chrono::{DateTime, Utc};
use poem::{Request, RequestBody};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ExtractParamOptions,
    registry::{MetaMediaType, MetaRequest, Registry},
    types::Type,
};
use serde_json::{Map, Value};

use super::{ParamType, Wrong};
use crate::http::{
    State,
    body::{self, ContentType},
    problem::Fault,
};

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
        Ok(Self(body::json(&bytes).and_then(Fields::read)))
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
}
