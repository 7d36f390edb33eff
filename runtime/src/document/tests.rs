use serde_json::json;

use super::*;

fn faults(text: &str) -> Vec<String> {
    let faults = read(text, Some("f.yaml")).err().unwrap_or_default();
    faults.iter().map(ToString::to_string).collect()
}

#[test]
fn documents_of_a_file_are_read_with_their_names_and_places() {
    let text = "kind: Workflow\nmetadata: { name: a, description: d, tags: [x], required_scope: leads:run }\nspec: {}\n---\nkind: Provider\nmetadata:\n  name: b\nspec: { type: openai }\n";
    let documents = read(text, Some("f.yaml")).expect("they are sound");
    let names: Vec<_> = documents
        .iter()
        .map(|document| (document.kind.as_str(), document.name.as_str()))
        .collect();
    assert_eq!(names, [("Workflow", "a"), ("Provider", "b")]);
    assert_eq!(documents[1].source.positions["metadata/name"], (7, 9));
    assert_eq!(documents[1].source.file.as_deref(), Some("f.yaml"));
    assert_eq!(read("# nothing\n", None), Ok(vec![]));
}

#[test]
fn json_is_read_as_well_and_so_are_flow_mappings() {
    for text in [
        "{\"kind\": \"Agent\", \"metadata\": {\"name\": \"a\"}, \"spec\": {}}",
        "\u{feff}{kind: Agent, metadata: {name: a}, spec: {}}",
    ] {
        let documents = read(text, None).expect(text);
        assert_eq!(documents[0].name, "a");
    }
    let fault = &faults("{\"kind\": \"Agent\",\n \"spec\": {}")[0];
    assert_eq!(fault, "f.yaml:2:12: Invalid JSON: expected `,` or `}`");
}

#[test]
fn faults_of_form_say_where_and_what() {
    for (text, expected) in [
        ("[]", "f.yaml:1:1: Input should be a valid dictionary"),
        (
            "kind: Workflw\nmetadata: {name: a}\nspec: {}",
            "f.yaml:1:7: kind: Input should be 'Workflow', 'Agent' or 'Provider'; did you mean `Workflow`?",
        ),
        (
            "kind: Model\nmetadata: {name: A}\nspec: {}",
            "f.yaml:1:7: kind: Model documents are not supported by this version",
        ),
        (
            "kind: Agent\nmetadata: {nam: a}\nspec: {}",
            "f.yaml:2:11: metadata.name: Field required|f.yaml:2:12: metadata.nam: Extra inputs are not permitted; did you mean `name`?",
        ),
        (
            "kind: Agent\nmetadata: {name: a b}\nspec: {}",
            "f.yaml:2:18: metadata.name: A name should be made of letters, digits, `-` and `_`, and begin with a letter or digit",
        ),
        (
            "kind: Agent\nmetadata: {name: a, tags: x}\nspec: {}",
            "f.yaml:2:27: metadata.tags: Input should be a valid list",
        ),
        (
            "metadata: {name: a}\nspec:\nspecs: {}",
            "f.yaml:1:1: kind: Field required|f.yaml:2:1: spec: Input should be a valid dictionary|f.yaml:3:1: specs: Extra inputs are not permitted; did you mean `spec`?",
        ),
        (
            "kind: Agent\nmetadata: {name: a}\nspec: {}\n---\nkind: Agent\n---\na: [",
            "f.yaml:5:1: metadata: Field required|f.yaml:5:1: spec: Field required|f.yaml:8:1: a: Invalid YAML",
        ),
    ] {
        let mut found = faults(text);
        found.sort();
        let found = found.join("|");
        assert!(found.starts_with(expected), "{text}\n{found}");
    }
}

#[test]
fn a_json_value_is_checked_alike_and_bounded() {
    let faults = from_value(json!({"kind": "Workflow", "metadata": {"name": ""}}))
        .expect_err("it is not sound");
    let found: Vec<_> = faults.iter().map(Fault::detail).collect();
    assert_eq!(
        found,
        [
            json!({"loc": ["body", "metadata", "name"], "msg": "String should have at least 1 character", "type": "string_too_short"}),
            json!({"loc": ["body", "spec"], "msg": "Field required", "type": "missing"}),
        ]
    );
    let deep = (0..70).fold(json!(1), |value, _| json!([value]));
    let faults =
        from_value(json!({"kind": "Agent", "metadata": {"name": "a"}, "spec": {"x": deep}}))
            .expect_err("it is deep");
    assert_eq!(faults[0].message, "Nested deeper than 64 levels");
}

#[test]
fn a_fault_of_form_hides_no_fault_behind_it() {
    let text = "kind: Agent\nmetadata: {name: a b}\nspec: {x: 1}\n---\nkind: Agnt\n---\nkind: Provider\nmetadata: {name: p}\nspec: {}";
    let (documents, faults) = read_all(text, None);
    let names: Vec<_> = documents.iter().map(|it| (&*it.kind, &*it.name)).collect();
    assert_eq!(names, [("Agent", ""), ("Provider", "p")]);
    assert_eq!(faults.len(), 4, "{faults:?}");
    assert!(read(text, None).is_err());
    let (document, faults) = read_value(json!({"kind": "Agent", "metadata": {}, "spec": {}}));
    assert_eq!(
        (document.map(|it| it.name), faults.len()),
        (Some(String::new()), 1)
    );
    // Two names that cannot be read are not the same name.
    let nameless = "kind: Workflow\nmetadata: {}\nspec: {steps: []}\n";
    let (documents, _) = read_all(&format!("{nameless}---\n{nameless}"), None);
    let found = check_all(&documents, &NodeRegistry::default());
    assert!(
        found.iter().all(|fault| fault.path[0] == "spec"),
        "{found:?}"
    );
}

#[test]
fn a_file_that_is_too_large_is_refused_unread() {
    let text = " ".repeat(FILE_BYTES_MAX + 1);
    assert_eq!(
        faults(&text),
        ["f.yaml: The file is larger than 4194304 bytes"]
    );
}

#[test]
fn a_large_file_of_one_line_is_read_in_linear_time() {
    for text in [
        format!(
            "{{\"kind\": \"Agent\", \"metadata\": {{\"name\": \"a\"}}, \"spec\": {{\"x\": [{}1]}}}}",
            "1,".repeat(90_000)
        ),
        format!(
            "{{kind: Agent, metadata: {{name: a}}, spec: {{x: [{}1]}}}}",
            "1, ".repeat(90_000)
        ),
    ] {
        assert!(read(&text, None).is_ok());
    }
}

#[test]
fn an_index_is_a_number_in_loc_and_a_name_is_text() {
    let path = ["spec", "steps", "12", "007", "x"].map(str::to_owned);
    assert_eq!(
        json!(loc(&path)),
        json!(["body", "spec", "steps", 12, "007", "x"])
    );
}
