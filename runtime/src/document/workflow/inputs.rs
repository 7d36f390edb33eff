//! `input_schema` and `response_schema`: a JSON Schema, or a list of fields that is made into one.

use serde_json::{Map, Value, json};

use crate::{document::reader::Reader, schema::Schema};

const FIELDS_MAX: usize = 500;

/// What a field's type says in JSON Schema.
const TYPES: [(&str, FieldType); 17] = [
    ("string", FieldType::String(None)),
    ("text", FieldType::String(None)),
    ("uuid", FieldType::String(Some("uuid"))),
    ("date", FieldType::String(Some("date"))),
    ("timestamp", FieldType::String(Some("date-time"))),
    ("integer", FieldType::Number("integer")),
    ("float", FieldType::Number("number")),
    ("number", FieldType::Number("number")),
    ("numeric", FieldType::Number("number")),
    ("boolean", FieldType::Plain("boolean")),
    ("object", FieldType::Plain("object")),
    ("list", FieldType::Plain("array")),
    ("array", FieldType::Plain("array")),
    ("enum", FieldType::Enum),
    ("bytes", FieldType::Bytes),
    ("jsonb", FieldType::Any),
    ("any", FieldType::Any),
];

#[derive(Clone, Copy, PartialEq)]
enum FieldType {
    /// With its format.
    String(Option<&'static str>),
    Number(&'static str),
    Plain(&'static str),
    Enum,
    Bytes,
    Any,
}

/// The JSON Schema that is meant.
pub(super) fn read(schema: &Reader<'_>) -> Option<Value> {
    match schema.value() {
        Value::Array(_) => from_fields(schema),
        Value::Object(members) => {
            if !members.is_empty() && !members.keys().any(|name| is_keyword(name)) {
                let message = "Input should be a JSON Schema or a list of fields; no member of this is a keyword of JSON Schema";
                schema.fault("value_error", message);
                return None;
            }
            schema.schema()
        }
        Value::String(_) => {
            schema.unsupported("schemas of models are");
            None
        }
        _ => {
            schema.fault(
                "value_error",
                "Input should be a JSON Schema or a list of fields",
            );
            None
        }
    }
}

/// Enough of the keywords to tell a schema from something else.
fn is_keyword(name: &str) -> bool {
    name.starts_with('$')
        || matches!(
            name,
            "type"
                | "properties"
                | "required"
                | "items"
                | "prefixItems"
                | "enum"
                | "const"
                | "anyOf"
                | "oneOf"
                | "allOf"
                | "not"
                | "if"
                | "additionalProperties"
                | "patternProperties"
                | "propertyNames"
                | "minProperties"
                | "maxProperties"
                | "minItems"
                | "maxItems"
                | "minLength"
                | "maxLength"
                | "pattern"
                | "format"
                | "minimum"
                | "maximum"
                | "title"
                | "description"
                | "definitions"
        )
}

/// `[{name, type, required, default, …}]` as an object schema. Members that are not declared are let pass.
fn from_fields(list: &Reader<'_>) -> Option<Value> {
    let mut properties = Map::new();
    let mut required = Vec::new();
    let mut sound = true;
    for element in list.list_not_empty(FIELDS_MAX)? {
        let Some(field) = read_field(&element) else {
            sound = false;
            continue;
        };
        if field.required {
            required.push(field.name);
        }
        if properties
            .insert(field.name.to_owned(), field.schema)
            .is_some()
        {
            element.fault(
                "value_error",
                format!("Another field is named `{}`", field.name),
            );
            sound = false;
        }
    }
    sound.then(|| json!({"type": "object", "properties": properties, "required": required}))
}

struct Field<'a> {
    name: &'a str,
    required: bool,
    schema: Value,
}

fn read_field<'a>(field: &Reader<'a>) -> Option<Field<'a>> {
    let mut fields = field.fields()?;
    let name = fields.required("name").and_then(|name| name.text(1..=200));
    let kind = fields.required("type").and_then(|kind| kind.choice(&TYPES));
    let required = fields.optional("required").map(|required| required.bool());
    let default = fields.optional("default");
    let mut schema = Map::new();
    if let Some(text) = fields
        .optional("description")
        .and_then(|text| text.string())
    {
        schema.insert("description".to_owned(), text.into());
    }
    let values = fields.optional("values");
    for (name, keyword, numeric) in [
        ("min", "minimum", true),
        ("max", "maximum", true),
        ("min_length", "minLength", false),
        ("max_length", "maxLength", false),
        ("pattern", "pattern", false),
    ] {
        if let Some(limit) = fields.optional(name) {
            check_limit(&limit, name, numeric, kind);
            schema.insert(keyword.to_owned(), limit.value().clone());
        }
    }
    fields.finish();
    let (name, kind, mut is_required) = (name?, kind?, required.unwrap_or(Some(false))?);
    is_required &= default.is_none();
    let mut schema = typed(field, kind, values.as_ref(), schema, is_required)?;
    if let Some(default) = default {
        let compiled =
            Schema::compile(&schema).map_err(|message| field.fault("value_error", message));
        if !default.fits(&compiled.ok()?) {
            return None;
        }
        schema["default"] = default.value().clone();
    }
    Schema::compile(&schema)
        .map_err(|message| field.fault("value_error", message))
        .ok()?;
    Some(Field {
        name,
        required: is_required,
        schema,
    })
}

fn check_limit(limit: &Reader<'_>, name: &str, numeric: bool, kind: Option<FieldType>) {
    let fits = match kind {
        Some(FieldType::Number(_)) => numeric,
        Some(FieldType::String(None)) => !numeric,
        Some(_) => false,
        None => true,
    };
    if !fits {
        limit.fault(
            "value_error",
            format!("`{name}` has no meaning for this type"),
        );
    }
}

/// Adds the type. Absent optional fields are null, so an optional one may say so.
fn typed(
    field: &Reader<'_>,
    kind: FieldType,
    values: Option<&Reader<'_>>,
    mut schema: Map<String, Value>,
    required: bool,
) -> Option<Value> {
    if let Some(values) = values.filter(|_| kind != FieldType::Enum) {
        values.fault("value_error", "`values` belongs to the type `enum`");
        return None;
    }
    let name = match kind {
        FieldType::Any => return Some(schema.into()),
        FieldType::Enum => {
            let Some(values) = values else {
                field.fault_below(&["values"], "missing", "Field required");
                return None;
            };
            values.list_not_empty(FIELDS_MAX)?;
            let values = json!({"enum": values.value()});
            if required {
                schema.insert("enum".to_owned(), values["enum"].clone());
            } else {
                schema.insert("anyOf".to_owned(), json!([values, {"type": "null"}]));
            }
            return Some(schema.into());
        }
        FieldType::Bytes => {
            schema.insert("contentEncoding".to_owned(), "base64".into());
            "string"
        }
        FieldType::String(format) => {
            if let Some(format) = format {
                schema.insert("format".to_owned(), format.into());
            }
            "string"
        }
        FieldType::Number(name) | FieldType::Plain(name) => name,
    };
    let name = if required {
        json!(name)
    } else {
        json!([name, "null"])
    };
    schema.insert("type".to_owned(), name);
    Some(schema.into())
}
