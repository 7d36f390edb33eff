use serde_json::json;

use super::*;

/// What a reading of `value` gives, or the kind and message of its one fault.
fn reading<T>(value: Value, read: impl FnOnce(&Reader<'_>) -> Option<T>) -> Result<T, String> {
    let faults = Faults::default();
    let read = read(&Reader::new(&value, &faults));
    faults.into_result(read).map_err(|faults| {
        faults
            .iter()
            .map(|fault| format!("{} {}", fault.kind, fault.message))
            .collect()
    })
}

#[test]
fn values_of_the_right_type_and_range_are_read() {
    assert_eq!(
        reading(json!("a"), |value| value.string().map(str::to_owned)),
        Ok("a".to_owned())
    );
    assert_eq!(reading(json!(true), |value| value.bool()), Ok(true));
    assert_eq!(
        reading(json!(3.0), |value| value.integer::<u8>(1..=255)),
        Ok(3)
    );
    assert_eq!(reading(json!(1), |value| value.number(0.5..=2.0)), Ok(1.0));
    assert_eq!(
        reading(json!("5m"), |value| value.duration()),
        Ok(Duration::from_secs(300))
    );
    assert_eq!(
        reading(json!("b"), |value| value.choice(&[("a", 1), ("b", 2)])),
        Ok(2)
    );
    assert_eq!(
        reading(json!(["a", "b"]), |value| value
            .strings(2)
            .map(|texts| texts.len())),
        Ok(2)
    );
    assert_eq!(
        reading(json!("a"), |value| value
            .one_or_many(1)
            .map(|all| all.len())),
        Ok(1)
    );
    assert_eq!(
        reading(json!("lead-Scorer_2"), |value| value.name().map(str::len)),
        Ok(13)
    );
    assert_eq!(
        reading(json!({"type": "string"}), |value| value.schema()),
        Ok(json!({"type": "string"}))
    );
}

#[test]
fn other_values_are_faults_in_known_words() {
    let string = |value: &Reader<'_>| value.text(1..=3).map(str::to_owned).map(drop);
    let integer = |value: &Reader<'_>| value.integer::<u8>(1..=9).map(drop);
    let number = |value: &Reader<'_>| value.number(0.5..=2.0).map(drop);
    let duration = |value: &Reader<'_>| value.duration().map(drop);
    let choice = |value: &Reader<'_>| value.choice(&[("left", ()), ("right", ())]);
    let list = |value: &Reader<'_>| value.list_not_empty(2).map(drop);
    let name = |value: &Reader<'_>| value.name().map(drop);
    let schema = |value: &Reader<'_>| value.schema().map(drop);
    type Read<'r> = &'r dyn Fn(&Reader<'_>) -> Option<()>;
    let cases: [(Value, Read<'_>, &str); 20] = [
        (
            json!(null),
            &string,
            "string_type Input should be a valid string",
        ),
        (
            json!(""),
            &string,
            "string_too_short String should have at least 1 character",
        ),
        (
            json!("äöüß"),
            &string,
            "string_too_long String should have at most 3 characters",
        ),
        (json!("x"), &integer, "int_parsing "),
        (json!(1.5), &integer, "int_from_float "),
        (
            json!(0),
            &integer,
            "greater_than_equal Input should be greater than or equal to 1",
        ),
        (
            json!(10),
            &integer,
            "less_than_equal Input should be less than or equal to 9",
        ),
        (
            json!([]),
            &number,
            "float_type Input should be a valid number",
        ),
        (
            json!(3),
            &number,
            "less_than_equal Input should be less than or equal to 2",
        ),
        (
            json!(30),
            &duration,
            "value_error Expected a duration such as 500ms",
        ),
        (
            json!("0s"),
            &duration,
            "value_error Input should be longer than 0",
        ),
        (
            json!("rihgt"),
            &choice,
            "literal_error Input should be 'left' or 'right'; did you mean `right`?",
        ),
        (
            json!(5),
            &choice,
            "literal_error Input should be 'left' or 'right'",
        ),
        (json!({}), &list, "list_type Input should be a valid list"),
        (
            json!([]),
            &list,
            "too_short List should have at least 1 item after validation, not 0",
        ),
        (
            json!([1, 2, 3]),
            &list,
            "too_long List should have at most 2 items after validation, not 3",
        ),
        (
            json!("-a"),
            &name,
            "string_pattern_mismatch A name should be made of",
        ),
        (
            json!("a.b"),
            &name,
            "string_pattern_mismatch A name should be made of",
        ),
        (
            json!([]),
            &schema,
            "dict_type Input should be a valid dictionary",
        ),
        (
            json!({"type": "strin"}),
            &schema,
            "literal_error Input should be 'array'",
        ),
    ];
    for (value, read, expected) in cases {
        let fault = reading(value.clone(), read).expect_err("it does not fit");
        assert!(fault.starts_with(expected), "{value}: {fault}");
    }
}

#[test]
fn fields_that_nobody_took_are_reported_and_null_is_absent() {
    let value = json!({"a": null, "b": null, "bb": 1, "soon": {}, "zebra": 1});
    let faults = Faults::default();
    let mut fields = Reader::at(&value, &["spec"], &faults)
        .fields()
        .expect("it is an object");
    assert!(fields.optional("a").is_none());
    assert!(fields.required("b").is_some_and(|b| b.bool().is_none()));
    assert!(fields.required("c").is_none());
    fields.later(&["soon", "later"]);
    fields.finish();
    let found: Vec<_> = faults.into_vec().iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        [
            "spec.b: Input should be a valid boolean",
            "spec.c: Field required",
            "spec.soon: `soon` is not supported by this version",
            "spec.bb: Extra inputs are not permitted; did you mean `b`?",
            "spec.zebra: Extra inputs are not permitted; known here: `a`, `b` and `c`",
        ]
    );
}

#[test]
fn what_a_schema_finds_is_reported_below_the_value() {
    let schema =
        Schema::compile(&json!({"required": ["a"], "properties": {"b": {"type": "string"}}}))
            .expect("it is sound");
    let value = json!({"b": 1});
    let faults = Faults::default();
    assert!(!Reader::at(&value, &["input"], &faults).fits(&schema));
    let found: Vec<_> = faults.into_vec().iter().map(Fault::detail).collect();
    assert_eq!(
        found,
        [
            json!({"loc": ["body", "input", "b"], "msg": "Input should be a valid string", "type": "string_type"}),
            json!({"loc": ["body", "input", "a"], "msg": "Field required", "type": "missing"}),
        ]
    );
}

#[test]
fn faults_are_bounded() {
    let value = json!(vec![1; 3 * FAULTS_MAX]);
    let faults = Faults::default();
    assert!(Reader::new(&value, &faults).strings(usize::MAX).is_none());
    assert!(faults.is_full());
    assert_eq!(faults.into_vec().len(), FAULTS_MAX);
}
