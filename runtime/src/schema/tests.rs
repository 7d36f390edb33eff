use serde_json::json;

use super::*;

fn found(schema: Value, value: Value) -> Vec<(String, String, String)> {
    let schema = Schema::compile(&schema).expect("the schema is sound");
    let violations = schema.violations(&value);
    assert_eq!(violations.is_empty(), schema.accepts(&value));
    let parts =
        |violation: Violation| (violation.path.join("."), violation.kind, violation.message);
    violations.into_iter().map(parts).collect()
}

#[test]
fn violations_are_worded_as_pydantic_words_them() {
    for (schema, value, kind, message) in [
        (
            json!({"type": "string"}),
            json!(5),
            "string_type",
            "Input should be a valid string",
        ),
        (
            json!({"type": "integer"}),
            json!([]),
            "int_type",
            "Input should be a valid integer",
        ),
        (
            json!({"type": "integer"}),
            json!("x"),
            "int_parsing",
            "Input should be a valid integer, unable to parse string as an integer",
        ),
        (
            json!({"type": "integer"}),
            json!(1.5),
            "int_from_float",
            "Input should be a valid integer, got a number with a fractional part",
        ),
        (
            json!({"type": "number"}),
            json!({}),
            "float_type",
            "Input should be a valid number",
        ),
        (
            json!({"type": "boolean"}),
            json!(null),
            "bool_type",
            "Input should be a valid boolean",
        ),
        (
            json!({"type": "array"}),
            json!({}),
            "list_type",
            "Input should be a valid list",
        ),
        (
            json!({"type": "object"}),
            json!([]),
            "dict_type",
            "Input should be a valid dictionary",
        ),
        (
            json!({"type": "null"}),
            json!(1),
            "none_required",
            "Input should be None",
        ),
        (
            json!({"type": ["string", "null"]}),
            json!(5),
            "string_type",
            "Input should be a valid string",
        ),
        (
            json!({"type": ["string", "integer"]}),
            json!([]),
            "value_error",
            "Input should be a valid integer or string",
        ),
        (
            json!({"enum": ["a", "b", 3]}),
            json!("c"),
            "literal_error",
            "Input should be 'a', 'b' or 3",
        ),
        (
            json!({"const": "a"}),
            json!("c"),
            "literal_error",
            "Input should be 'a'",
        ),
        (
            json!({"minLength": 1}),
            json!(""),
            "string_too_short",
            "String should have at least 1 character",
        ),
        (
            json!({"maxLength": 2}),
            json!("abc"),
            "string_too_long",
            "String should have at most 2 characters",
        ),
        (
            json!({"minimum": 1}),
            json!(0),
            "greater_than_equal",
            "Input should be greater than or equal to 1",
        ),
        (
            json!({"exclusiveMinimum": 1.5}),
            json!(1),
            "greater_than",
            "Input should be greater than 1.5",
        ),
        (
            json!({"maximum": 1}),
            json!(2),
            "less_than_equal",
            "Input should be less than or equal to 1",
        ),
        (
            json!({"exclusiveMaximum": 1}),
            json!(1),
            "less_than",
            "Input should be less than 1",
        ),
        (
            json!({"multipleOf": 5}),
            json!(7),
            "multiple_of",
            "Input should be a multiple of 5",
        ),
        (
            json!({"pattern": "^a$"}),
            json!("b"),
            "string_pattern_mismatch",
            "String should match pattern '^a$'",
        ),
        (
            json!({"minItems": 2}),
            json!([1]),
            "too_short",
            "List should have at least 2 items after validation, not 1",
        ),
        (
            json!({"maxItems": 1}),
            json!([1, 2]),
            "too_long",
            "List should have at most 1 item after validation, not 2",
        ),
        (
            json!({"minProperties": 1}),
            json!({}),
            "too_short",
            "Dictionary should have at least 1 item after validation, not 0",
        ),
        (
            json!({"format": "uuid"}),
            json!("x"),
            "uuid_parsing",
            "Input should be a valid UUID",
        ),
        (
            json!({"format": "date-time"}),
            json!("x"),
            "datetime_parsing",
            "Input should be a valid datetime",
        ),
        (
            json!({"format": "email"}),
            json!("x"),
            "value_error",
            "Input should be a valid email address",
        ),
        (
            json!({"uniqueItems": true}),
            json!([1, 1]),
            "value_error",
            "List items should be unique",
        ),
        (
            json!({"not": {}}),
            json!(1),
            "value_error",
            "Input has a form that is not allowed",
        ),
        (
            json!(false),
            json!(1),
            "value_error",
            "Nothing is allowed here",
        ),
        (
            json!({"anyOf": [{"type": "string"}, {"type": "null"}]}),
            json!(1),
            "string_type",
            "Input should be a valid string",
        ),
        (
            json!({"anyOf": [{"type": "string", "minLength": 2}, {"type": "integer"}]}),
            json!("a"),
            "string_too_short",
            "String should have at least 2 characters",
        ),
        (
            json!({"oneOf": [{"type": "string"}, {"type": "integer"}]}),
            json!([]),
            "value_error",
            "Input fits none of the allowed forms",
        ),
        (
            json!({"oneOf": [{"minimum": 1}, {"minimum": 2}]}),
            json!(5),
            "value_error",
            "Input fits more than one of the allowed forms",
        ),
    ] {
        let expected = (String::new(), kind.to_owned(), message.to_owned());
        assert_eq!(
            found(schema.clone(), value.clone()),
            [expected],
            "{schema} {value}"
        );
    }
}

#[test]
fn all_violations_come_at_once_in_the_order_of_the_properties() {
    let schema = json!({
        "type": "object",
        "properties": {
            "b": {"type": "string"},
            "a": {"$ref": "#/$defs/list"},
            "c": {"type": "integer"},
        },
        "required": ["c", "b"],
        "additionalProperties": false,
        "$defs": {"list": {"items": {"properties": {"y": {"type": "string"}, "x": {"type": "string"}}}}},
    });
    let value = json!({"zz": 1, "a": [{}, {"x": 1, "y": 2}], "yy": 1});
    let paths: Vec<_> = found(schema, value)
        .into_iter()
        .map(|(path, kind, _)| format!("{path} {kind}"))
        .collect();
    assert_eq!(
        paths,
        [
            "b missing",
            "a.1.y string_type",
            "a.1.x string_type",
            "c missing",
            "zz extra_forbidden",
            "yy extra_forbidden",
        ]
    );
}

#[test]
fn what_is_no_schema_is_refused_with_its_place() {
    for (schema, expected) in [
        (
            json!({"properties": {"a": {"type": "strin"}}}),
            "`properties.a.type`: Input should be 'array', 'boolean'",
        ),
        (json!({"type": 5}), "`type`: Input should be 'array'"),
        (json!([]), "Input should be a valid boolean or dictionary"),
        (
            json!({"pattern": "("}),
            "`pattern`: Input should be a valid regular expression",
        ),
        (
            json!({"$ref": "http://x.example/a.json"}),
            "A schema cannot refer to another document (`http://x.example/a.json`)",
        ),
        (
            json!({"$ref": "file:///etc/passwd"}),
            "A schema cannot refer to another document",
        ),
        (
            json!({"$ref": "#/$defs/none"}),
            "Pointer '/$defs/none' does not exist",
        ),
        (
            json!({"$schema": "http://nope.example/"}),
            "`http://nope.example/` is no known version",
        ),
    ] {
        let error = Schema::compile(&schema).expect_err("it is not sound");
        assert!(error.starts_with(expected), "{schema}: {error}");
    }
}

#[test]
fn hostile_schemas_and_values_are_bounded() {
    let deep = (0..100).fold(json!({}), |schema, _| json!({"items": schema}));
    assert!(Schema::compile(&deep).is_err());
    let wide = json!({"enum": (0..30_000).collect::<Vec<_>>()});
    assert!(Schema::compile(&wide).is_err());
    let circle = json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}});
    let _ = Schema::compile(&circle).map(|schema| schema.violations(&json!({"a": 1})));
    let slow = Schema::compile(&json!({"pattern": "^(?=(a+)+$)(a|b)*\\1c$"})).expect("it is sound");
    assert!(!slow.violations(&json!("a".repeat(60))).is_empty());
    let many = Schema::compile(&json!({"items": {"type": "string"}})).expect("it is sound");
    assert_eq!(many.violations(&json!(vec![1; 5000])).len(), VIOLATIONS_MAX);
}

#[test]
fn a_draft_may_be_named() {
    let schema = json!({"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "string"}], "additionalItems": false});
    assert_eq!(found(schema, json!(["a", 1]))[0].1, "too_long");
}

#[test]
fn defaults_fill_what_is_absent_at_every_depth() {
    let schema = Schema::compile(&json!({
        "properties": {
            "a": {"default": 1},
            "b": {"properties": {"c": {"default": [2]}}},
            "d": {"items": {"$ref": "#/$defs/e"}},
        },
        "$defs": {"e": {"properties": {"f": {"default": null}}}},
    }))
    .expect("it is sound");
    let filled = schema.with_defaults(json!({"a": null, "b": {}, "d": [{}, 5]}));
    assert_eq!(
        filled,
        json!({"a": null, "b": {"c": [2]}, "d": [{"f": null}, 5]})
    );
    assert_eq!(schema.with_defaults(json!("x")), json!("x"));
    assert_eq!(schema.with_defaults(json!({})), json!({"a": 1}));
}
