use serde_json::json;

use super::*;

fn one(text: &str) -> Loaded {
    let (mut documents, faults) = load(text, None);
    assert_eq!(faults, [], "{text}");
    assert_eq!(documents.len(), 1, "{text}");
    documents.remove(0)
}

fn faults(text: &str) -> Vec<String> {
    load(text, None).1.iter().map(ToString::to_string).collect()
}

fn path(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn scalars_mean_what_the_core_schema_says() {
    for (text, value) in [
        ("on", json!("on")),
        ("yes", json!("yes")),
        ("No", json!("No")),
        ("2024-01-01", json!("2024-01-01")),
        ("1_000", json!("1_000")),
        ("~", json!(null)),
        ("True", json!(true)),
        ("010", json!(10)),
        ("-7", json!(-7)),
        ("+7", json!(7)),
        ("0x1F", json!(31)),
        ("0o17", json!(15)),
        (
            "18446744073709551615",
            json!(18_446_744_073_709_551_615_u64),
        ),
        ("1.5", json!(1.5)),
        ("1e3", json!(1000.0)),
        (".5", json!(0.5)),
        ("1.", json!(1.0)),
        (".", json!(".")),
        ("1e", json!("1e")),
        ("1.2.3", json!("1.2.3")),
        ("'5'", json!("5")),
        ("!!str 5", json!("5")),
        ("!!int 5", json!(5)),
        ("5m", json!("5m")),
    ] {
        assert_eq!(
            one(&format!("k: {text}")).body,
            json!({"k": value}),
            "{text}"
        );
    }
}

#[test]
fn keys_are_texts() {
    let body = one("true: a\n\"false\": b\n200: c\nnull_: d").body;
    assert_eq!(
        body,
        json!({"true": "a", "false": "b", "200": "c", "null_": "d"})
    );
}

#[test]
fn every_part_has_a_place() {
    let text = "kind: Workflow\nspec:\n  steps:\n    - id: a\n      with: { url: 'x y' }\n    - id: b\n  empty:\n";
    let source = one(text).source;
    for (at, expected) in [
        ("", (1, 1)),
        ("kind", (1, 7)),
        ("spec steps", (4, 5)),
        ("spec steps 0", (4, 7)),
        ("spec steps 0 with url", (5, 20)),
        ("spec steps 1 id", (6, 11)),
        ("spec steps 1 uses", (6, 7)),
        ("spec empty", (7, 3)),
    ] {
        assert_eq!(source.position(&path(at)), Some(expected), "{at}");
    }
    assert_eq!(
        source.name_position(&path("spec steps 0 with url")),
        Some((5, 15))
    );
}

#[test]
fn a_character_of_a_text_is_found_where_the_text_stands_as_it_is() {
    let text = "plain: ab {{\nquoted: { a: \"ä {{ x\" }\nescaped: \"a\\t{{\"\nblock: |\n    one\n\n    two {{\nlate: |2\n\n    in\n    {{\n";
    let source = one(text).source;
    for (at, value, offset, expected) in [
        ("plain", "ab {{", 3, (1, 11)),
        ("quoted a", "ä {{ x", 3, (2, 17)),
        ("escaped", "a\t{{", 2, (3, 10)),
        ("block", "one\n\ntwo {{\n", 9, (7, 9)),
        ("late", "\n  in\n  {{\n", 8, (11, 5)),
    ] {
        let found = source.offset_position(&path(at), value, offset);
        assert_eq!(found, Some(expected), "{at}");
    }
}

#[test]
fn several_documents_stand_in_one_file_and_empty_ones_do_not_count() {
    let (documents, faults) = load(
        "---\n# nothing\n---\na: 1\n---\nb: 2\n...\n",
        Some("f.yaml"),
    );
    assert_eq!(faults, []);
    let bodies: Vec<_> = documents.iter().map(|document| &document.body).collect();
    assert_eq!(bodies, [&json!({"a": 1}), &json!({"b": 2})]);
    assert_eq!(documents[1].source.position(&path("b")), Some((6, 4)));
    assert!(load("", None).0.is_empty());
}

#[test]
fn aliases_are_repeated_within_bounds() {
    assert_eq!(
        one("a: &x {b: [1]}\nc: *x\n").body,
        json!({"a": {"b": [1]}, "c": {"b": [1]}})
    );
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let before = format!("*a{}, ", level - 1).repeat(9);
        bomb.push_str(&format!("a{level}: &a{level} [{before}]\n"));
    }
    assert!(faults(&bomb)[0].contains("values, aliases included"));
    let wide = format!("a: &a {}\nb: [{}]", "x".repeat(1 << 20), "*a, ".repeat(20));
    assert!(faults(&wide)[0].contains("values, aliases included"));
}

#[test]
fn what_cannot_be_read_is_a_fault_with_its_place() {
    let deep = format!("a: {}", "[".repeat(80));
    for (text, expected) in [
        ("a: [1", "2:1"),
        (
            "a: 1\nb: 2\na: 3",
            "3:1: a: Duplicate key `a`; it is already on line 1",
        ),
        ("a: *x", "1:4: Invalid YAML"),
        ("a: &x [*x]", "1:8: a.0: An alias cannot stand inside"),
        (
            "a: !secret x",
            "1:4: a: The tag `!secret` has no meaning here",
        ),
        ("? [a]\n: b", "1:3: A key should be a plain name"),
        ("~: b", "1:1: A key cannot be empty or null"),
        ("a: .inf", "1:4: a: `.inf` is no JSON number"),
        (
            "a: 99999999999999999999",
            "1:4: a: `99999999999999999999` is too large",
        ),
        (deep.as_str(), "Nested deeper than 64 levels"),
    ] {
        let faults = faults(text);
        assert_eq!(faults.len(), 1, "{text}: {faults:?}");
        assert!(faults[0].contains(expected), "{text}: {faults:?}");
    }
}
