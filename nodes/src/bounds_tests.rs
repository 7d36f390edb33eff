//! Nodes that copy: none of them makes more than a step may give, however small what they are given.

use callboard_runtime::node::{NodeError, PureNode};
use serde_json::{Value, json};

use crate::{
    aggregate::Aggregate,
    code::Code,
    merge::Merge,
    set::Set,
    split_out::SplitOut,
    testing::{code_of, input, run, run_inputs},
};

fn megabytes(count: usize) -> String {
    "x".repeat(count << 20)
}

/// Elements that each get a copy of a megabyte.
const COPIES: usize = 40;

#[track_caller]
fn is_too_much(node: &impl PureNode, with: Value, inputs: &[Value]) {
    let name = node.node_type().name;
    let code = code_of(run_inputs(node, with, inputs));
    assert_eq!(code, "output_too_large", "{name}");
}

#[test]
fn copies_beside_each_element_are_counted() {
    let item = json!({"list": vec![0; COPIES], "text": megabytes(1)});
    let all = json!({"field_to_split_out": "list", "include": "all_other_fields"});
    is_too_much(&SplitOut, all, &[json!([item])]);
    let lists = vec!["text"; COPIES].join(",");
    is_too_much(
        &SplitOut,
        json!({"field_to_split_out": lists}),
        &[json!([item])],
    );

    let many: Value = (0..COPIES).map(|i| json!({"i": i})).collect();
    let large = json!([{"text": megabytes(1)}]);
    let with = json!({"mode": "combine", "combine_by": "all"});
    is_too_much(&Merge, with, &[many.clone(), large.clone()]);

    let same: Value = (0..COPIES).map(|_| json!({"k": 1})).collect();
    let large = json!([{"k": 1, "text": megabytes(1)}]);
    let with = json!({"mode": "combine", "fields_to_match": "k"});
    is_too_much(&Merge, with, &[same, large]);

    let fields: Value = (0..COPIES)
        .map(|i| json!({"field_to_aggregate": "text", "output_field_name": format!("f{i}")}))
        .collect();
    let with = json!({"fields_to_aggregate": fields});
    is_too_much(&Aggregate, with, &[json!([{"text": megabytes(1)}])]);
}

#[test]
fn values_made_for_each_item_are_counted() {
    let items: Value = (0..COPIES).map(|i| json!({"i": i})).collect();
    let with = json!({"values": {"text": "{{ 'x'.repeat(1048576) }}"}});
    is_too_much(&Set, with, std::slice::from_ref(&items));
    let with = json!({"code": "return {text: 'x'.repeat(1048576)}", "mode": "each"});
    is_too_much(&Code, with, &[items]);
}

#[test]
fn lists_that_are_filled_up_to_an_index_are_counted() {
    let values: Value = (0..1_000)
        .map(|i| (format!("list{i}[9999]"), json!(1)))
        .collect::<serde_json::Map<_, _>>()
        .into();
    is_too_much(&Set, json!({"values": values}), &[json!([{}])]);
}

#[test]
fn one_items_parameters_are_bounded_together() {
    let values: Value = (0..COPIES)
        .map(|i| (format!("v{i}"), json!("{{ $json.text }}")))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let shown = run(
        &Set,
        json!({"values": values}),
        json!([{"text": megabytes(1)}]),
    );
    let (code, message) = shown.expect_err("it is too much");
    assert_eq!(code, "expression_error");
    assert!(message.contains("bytes of JSON"), "{message}");
}

#[test]
fn many_pairs_are_refused_before_they_are_made() {
    let same: Value = (0..10_000).map(|_| json!({"k": 1})).collect();
    let with = json!({"mode": "combine", "fields_to_match": "k"});
    let code = code_of(run_inputs(&Merge, with, &[same.clone(), same]));
    assert_eq!(code, "too_many_items");
}

#[test]
fn a_cancelled_run_computes_no_further_item() {
    fn cancelled(node: &impl PureNode, with: Value) -> bool {
        let input = input(node, with, json!([{}]));
        input.cancel.cancel();
        matches!(node.run(&input), Err(NodeError::Cancelled))
    }
    assert!(cancelled(&Set, json!({"values": {"a": "{{ $json.a }}"}})));
    assert!(cancelled(
        &Code,
        json!({"code": "return {}", "mode": "each"})
    ));
}
