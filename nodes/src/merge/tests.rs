use callboard_runtime::node::{Node as _, PureNode as _};
use serde_json::{Value, json};

use super::{ITEMS_MAX, Merge};
use crate::testing::{code_of, input_of, run_inputs};

fn merged(with: Value, inputs: &[Value]) -> Value {
    run_inputs(&Merge, with, inputs).unwrap()["main"].clone()
}

fn people() -> [Value; 2] {
    [
        json!([{"id": 1, "name": "Ada", "o": {"a": 1}}, {"id": 2, "name": "Bob"}, {"name": "none"}]),
        json!([{"id": 3, "city": "Rome"}, {"id": 1, "city": "Bonn", "name": "Countess", "o": {"b": 2}}, {"id": 1, "city": "Kiel"}]),
    ]
}

fn join(more: Value) -> Value {
    let mut with = json!({"mode": "combine", "fields_to_match": "id"});
    with.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    with
}

#[test]
fn appending_keeps_input_and_place() {
    assert_eq!(
        merged(
            json!({}),
            &[json!([{"a": 1}]), json!([]), json!([{"b": 1}, {"b": 2}])]
        ),
        json!([[0, {"a": 1}], [[2, 0], {"b": 1}], [[2, 1], {"b": 2}]])
    );
}

#[test]
fn one_branch_is_chosen() {
    let inputs = [json!([{"a": 1}]), json!([{"b": 1}])];
    let with = |input: Value| json!({"mode": "choose_branch", "use_data_of_input": input});
    assert_eq!(merged(with(json!(2)), &inputs), json!([[[1, 0], {"b": 1}]]));
    assert_eq!(
        merged(json!({"mode": "choose_branch"}), &inputs),
        json!([[0, {"a": 1}]])
    );
    for input in [json!(0), json!(3)] {
        assert_eq!(
            code_of(run_inputs(&Merge, with(input), &inputs)),
            "invalid_parameters"
        );
    }
}

#[test]
fn items_at_the_same_place_are_combined() {
    let inputs = [
        json!([{"a": 1, "x": 1}, {"a": 2}]),
        json!([{"b": 1, "x": 2}]),
        json!([{"c": 1, "x": 3}]),
    ];
    let with = |more: Value| {
        let mut with = json!({"mode": "combine", "combine_by": "position"});
        with.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        with
    };
    assert_eq!(
        merged(with(json!({})), &inputs),
        json!([[0, {"a": 1, "x": 3, "b": 1, "c": 1}]])
    );
    assert_eq!(
        merged(
            with(json!({"include_unpaired": true, "clash_handling": "prefer_input2"})),
            &inputs
        ),
        json!([[0, {"a": 1, "x": 2, "c": 1, "b": 1}], [1, {"a": 2}]])
    );
    assert_eq!(
        merged(with(json!({"clash_handling": "add_suffix"})), &inputs),
        json!([[0, {"a_1": 1, "x_1": 1, "b_2": 1, "x_2": 2, "c_3": 1, "x_3": 3}]])
    );
    assert_eq!(
        merged(with(json!({})), &[json!([]), json!([{"b": 1}])]),
        json!([])
    );
}

#[test]
fn each_is_combined_with_each() {
    let with = json!({"mode": "combine", "combine_by": "all"});
    assert_eq!(
        merged(
            with.clone(),
            &[json!([{"a": 1}, {"a": 2}]), json!([{"b": 1}, {"b": 2}])]
        ),
        json!([[0, {"a": 1, "b": 1}], [0, {"a": 1, "b": 2}], [1, {"a": 2, "b": 1}], [1, {"a": 2, "b": 2}]])
    );
    let many = Value::Array(vec![json!({}); ITEMS_MAX / 300]);
    let fault = run_inputs(
        &Merge,
        with.clone(),
        &[many, Value::Array(vec![json!({}); 400])],
    );
    assert_eq!(code_of(fault), "too_many_items");
    let three = [json!([{}]), json!([{}]), json!([{}])];
    assert_eq!(
        code_of(run_inputs(&Merge, with, &three)),
        "invalid_parameters"
    );
}

#[test]
fn matches_are_combined_deeply_and_the_last_wins() {
    assert_eq!(
        merged(join(json!({})), &people()),
        json!([
            [0, {"id": 1, "name": "Countess", "o": {"a": 1, "b": 2}, "city": "Bonn"}],
            [0, {"id": 1, "name": "Ada", "o": {"a": 1}, "city": "Kiel"}],
        ])
    );
    assert_eq!(
        merged(
            join(
                json!({"multiple_matches": "first", "clash_handling": "prefer_input1", "merge_mode": "shallow"})
            ),
            &people()
        ),
        json!([[0, {"id": 1, "city": "Bonn", "name": "Ada", "o": {"a": 1}}]])
    );
    assert_eq!(
        merged(join(json!({"output_data_from": "input1"})), &people()),
        json!([[0, {"id": 1, "name": "Ada", "o": {"a": 1}}]])
    );
    let cities = merged(join(json!({"output_data_from": "input2"})), &people());
    assert_eq!(cities[0][0], json!([1, 1]));
    assert_eq!(cities.as_array().unwrap().len(), 2);
}

#[test]
fn what_does_not_match_is_kept_when_asked() {
    let alone1 = json!([[1, {"id": 2, "name": "Bob"}], [2, {"name": "none"}]]);
    let alone2 = json!([[[1, 0], {"id": 3, "city": "Rome"}]]);
    let with =
        |from: &str| join(json!({"join_mode": "keep_non_matches", "output_data_from": from}));
    assert_eq!(merged(with("input1"), &people()), alone1);
    assert_eq!(merged(with("input2"), &people()), alone2);
    assert_eq!(
        merged(with("both"), &people()),
        json!([
            [1, {"id": 2, "name": "Bob", "_source": "input1"}],
            [2, {"name": "none", "_source": "input1"}],
            [[1, 0], {"id": 3, "city": "Rome", "_source": "input2"}],
        ])
    );
    let places = |join_mode: &str| -> Vec<Value> {
        let all = merged(join(json!({"join_mode": join_mode})), &people());
        all.as_array()
            .unwrap()
            .iter()
            .map(|item| item[0].clone())
            .collect()
    };
    assert_eq!(
        places("keep_everything"),
        [json!(0), json!(0), json!(1), json!(2), json!([1, 0])]
    );
    assert_eq!(
        places("enrich_input1"),
        [json!(0), json!(0), json!(1), json!(2)]
    );
    assert_eq!(places("enrich_input2"), [json!(0), json!(0), json!([1, 0])]);
}

#[test]
fn data_that_enriches_wins() {
    for (join_mode, name) in [("enrich_input1", "Countess"), ("enrich_input2", "Ada")] {
        let all = merged(
            join(json!({"join_mode": join_mode, "multiple_matches": "first"})),
            &people(),
        );
        assert_eq!(all[0][1]["name"], name, "{join_mode}");
    }
    let inputs = [
        json!([{"id": 1, "a": "x", "b": "y"}]),
        json!([{"id": 1, "a": "", "b": null}]),
    ];
    let kept = merged(join(json!({"override_empty": true})), &inputs);
    assert_eq!(kept, json!([[0, {"id": 1, "a": "x", "b": "y"}]]));
    let suffixed = merged(
        join(json!({"clash_handling": "add_suffix", "join_mode": "keep_everything"})),
        &people(),
    );
    assert_eq!(suffixed[2], json!([1, {"id_1": 2, "name_1": "Bob"}]));
}

#[test]
fn fields_may_have_different_names_and_kinds() {
    let inputs = [
        json!([{"user": {"id": 1}, "l": "a"}, {"user": {"id": 2}, "l": "a"}]),
        json!([{"key": "1", "m": "a"}]),
    ];
    let with = |fuzzy: bool| {
        let pairs = json!([{"field1": "user.id", "field2": "key"}, {"field1": "l", "field2": "m"}]);
        json!({"mode": "combine", "fields_to_match": pairs, "fuzzy_compare": fuzzy})
    };
    assert_eq!(merged(with(false), &inputs), json!([]));
    assert_eq!(
        merged(with(true), &inputs),
        json!([[0, {"user": {"id": 1}, "l": "a", "key": "1", "m": "a"}]])
    );
}

#[test]
fn wrong_parameters_are_errors() {
    for with in [
        json!({"mode": "combine"}),
        join(json!({"clash_handling": "prefer_input3"})),
        join(json!({"clash_handling": "prefer_me"})),
        join(json!({"fields_to_match": [{"field1": "a"}]})),
        json!({"mode": "sql"}),
    ] {
        assert_eq!(
            code_of(run_inputs(&Merge, with, &people())),
            "invalid_parameters"
        );
    }
    assert_eq!(Merge.check(&json!({"mode": "combine"})).len(), 1);
    assert_eq!(
        Merge.check(&json!({"clash_handling": "prefer_me"})).len(),
        1
    );
    assert_eq!(
        Merge.check(&join(json!({"clash_handling": "prefer_input2"}))),
        []
    );
}

#[test]
fn files_of_combined_items_travel_on() {
    let mut input = input_of(
        &Merge,
        json!({"mode": "combine", "combine_by": "position"}),
        &[json!([{}]), json!([{}])],
    );
    for (list, name) in input.inputs.iter_mut().zip(["a", "b"]) {
        let items = std::sync::Arc::make_mut(list);
        items[0].binary = Some(std::sync::Arc::new(
            [(name.to_owned(), json!({}))].into_iter().collect(),
        ));
    }
    let Ok(callboard_runtime::node::NodeOutcome::Output(output)) = Merge.run(&input) else {
        panic!("no output")
    };
    let binary = output.ports[0].1[0].binary.as_deref().unwrap();
    assert_eq!(binary.keys().collect::<Vec<_>>(), ["a", "b"]);
}
