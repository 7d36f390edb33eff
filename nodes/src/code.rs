//! `code`: runs JavaScript over the items. The script sees no clock but `$now`, no files and no network.

use callboard_runtime::{
    bounds::{ITEMS_MAX, Meter},
    expression::script::Script,
    item::{Item, PairedItem},
    node::{
        Node, NodeError, NodeInput, NodeOutcome, NodeOutput, NodeType, ParameterFault, PureNode,
    },
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::parameters::{self, fault, invalid};

/// What tells an item from an object that merely has a member `json`.
const ITEM_MEMBERS: &[&str] = &[
    "json",
    "binary",
    "pairedItem",
    "paired_item",
    "index",
    "error",
];

pub(crate) struct Code;

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Mode {
    #[default]
    All,
    Each,
}

impl Node for Code {
    fn node_type(&self) -> NodeType {
        parameters::pure(
            "code",
            "Runs JavaScript over the items.",
            parameters::schema(
                &["code"],
                json!({
                    "code": {
                        "type": "string",
                        "description": "The body of a function that returns an object or a list of objects. It sees `items`, `$json`, `$input`, `$('step')` and what else expressions see.",
                    },
                    "mode": {
                        "enum": ["all", "each"], "default": "all",
                        "description": "Whether it runs once for all items or once for each.",
                    },
                }),
            ),
        )
    }

    fn check(&self, with: &Value) -> Vec<ParameterFault> {
        let Some(code) = with.get("code").and_then(Value::as_str) else {
            return Vec::new();
        };
        let Err(found) = Script::check(code) else {
            return Vec::new();
        };
        vec![fault(&["code"], found.message)]
    }

    fn verbatim(&self) -> &'static [&'static str] {
        &["code"]
    }
}

impl PureNode for Code {
    fn run(&self, input: &NodeInput) -> Result<NodeOutcome, NodeError> {
        let code = input.parameters.written("code").and_then(Value::as_str);
        let script = Script::new(code.ok_or_else(|| invalid("`code` must be text"))?);
        let mode = match input.parameters.field("mode", 0)? {
            Value::Null => Mode::default(),
            mode => Mode::deserialize(mode).map_err(|fault| invalid(format!("`mode`: {fault}")))?,
        };
        let scope = &input.parameters.scope;
        let len = input.items().len();
        let mut items = Vec::new();
        let mut meter = Meter::output();
        match mode {
            Mode::All => {
                let result = script.run(scope, None)?;
                let count = count(&result);
                collect(result, &mut items, &mut meter, |index| match len {
                    1 => Some(0),
                    // As n8n: as many as came in are taken for the same ones.
                    len if len == count => Some(index),
                    _ => None,
                })?;
            }
            Mode::Each => {
                for i in 0..len {
                    input.check_cancelled()?;
                    collect(script.run(scope, Some(i))?, &mut items, &mut meter, |_| {
                        Some(i)
                    })?;
                }
            }
        }
        Ok(NodeOutput::main(items).into())
    }

    fn may_be_slow(&self) -> bool {
        true
    }
}

fn count(result: &Value) -> usize {
    result.as_array().map_or(1, Vec::len)
}

/// Adds the items of one result. `descends` says which input item the one at an index was made from.
fn collect(
    result: Value,
    into: &mut Vec<Item>,
    meter: &mut Meter,
    descends: impl Fn(usize) -> Option<usize>,
) -> Result<(), NodeError> {
    let elements = match result {
        Value::Array(elements) => elements,
        Value::Object(_) => vec![result],
        other => return Err(wrong_result(format!("returned {}", kind(&other)))),
    };
    if into.len() + elements.len() > ITEMS_MAX {
        return Err(wrong_result(format!(
            "returned more than {ITEMS_MAX} items"
        )));
    }
    for (i, element) in elements.into_iter().enumerate() {
        let Value::Object(members) = element else {
            return Err(wrong_result(format!(
                "returned a list with {} at index {i}",
                kind(&element)
            )));
        };
        let mut item = item(members)?;
        if item.paired_item.is_none()
            && let Some(index) = descends(i)
        {
            item = item.paired(index);
        }
        into.push(meter.passing(item)?);
    }
    Ok(())
}

fn item(mut members: Map<String, Value>) -> Result<Item, NodeError> {
    let is_item = members.get("json").is_some_and(Value::is_object)
        && members
            .keys()
            .all(|name| ITEM_MEMBERS.contains(&name.as_str()));
    if !is_item {
        return Ok(Item::new(Value::Object(members)));
    }
    let mut item = Item::new(members.remove("json").unwrap_or_default());
    item.binary = match members.remove("binary") {
        None | Some(Value::Null) => None,
        Some(Value::Object(files)) => Some(files.into()),
        Some(other) => {
            return Err(wrong_result(format!(
                "returned {} as an item's `binary`",
                kind(&other)
            )));
        }
    };
    let paired = members
        .remove("pairedItem")
        .or_else(|| members.remove("paired_item"));
    item.paired_item = paired.as_ref().and_then(paired_item);
    Ok(item)
}

/// `n`, `{item, input?}`, or a list with one of these.
fn paired_item(value: &Value) -> Option<PairedItem> {
    let index = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
    match value {
        Value::Number(_) => Some(PairedItem {
            item: index(value)?,
            input: 0,
        }),
        Value::Object(place) => Some(PairedItem {
            item: index(place.get("item")?)?,
            input: place.get("input").and_then(index).unwrap_or_default(),
        }),
        Value::Array(places) => match places.as_slice() {
            [place] => paired_item(place),
            _ => None,
        },
        _ => None,
    }
}

fn wrong_result(what: String) -> NodeError {
    NodeError::permanent(
        "invalid_result",
        format!("the code must return an object or a list of objects, but it {what}"),
    )
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{code_of, run};

    fn main(with: Value, items: Value) -> Value {
        run(&Code, with, items).unwrap()["main"].clone()
    }

    fn all(code: &str) -> Value {
        json!({"code": code})
    }

    fn each(code: &str) -> Value {
        json!({"code": code, "mode": "each"})
    }

    #[test]
    fn all_items_are_given_at_once() {
        let items = json!([{"n": 1}, {"n": 2}]);
        assert_eq!(
            main(
                all("return items.map(item => ({n: item.json.n * 2}))"),
                items.clone()
            ),
            json!([[0, {"n": 2}], [1, {"n": 4}]])
        );
        assert_eq!(
            main(
                all("return {sum: items.reduce((sum, item) => sum + item.json.n, 0)}"),
                items.clone()
            ),
            json!([[null, {"sum": 3}]])
        );
        assert_eq!(main(all("return []"), items), json!([]));
        assert_eq!(
            main(all("return [{a: 1}, {a: 2}]"), json!([{}])),
            json!([[0, {"a": 1}], [0, {"a": 2}]])
        );
    }

    #[test]
    fn each_item_is_given_on_its_own() {
        let items = json!([{"n": 1}, {"n": 2}]);
        assert_eq!(
            main(
                each("return {n: $json.n + 10, at: $itemIndex}"),
                items.clone()
            ),
            json!([[0, {"n": 11, "at": 0}], [1, {"n": 12, "at": 1}]])
        );
        assert_eq!(
            main(each("return $json.n === 1 ? [] : [{a: 1}, {a: 2}]"), items),
            json!([[1, {"a": 1}], [1, {"a": 2}]])
        );
        assert_eq!(main(each("return 5"), json!([])), json!([]));
    }

    #[test]
    fn results_may_be_items_with_lineage() {
        let items = json!([{"n": 1}, {"n": 2}, {"n": 3}]);
        assert_eq!(
            main(
                all(
                    "return [{json: {a: 1}, pairedItem: 2}, {json: {a: 2}, pairedItem: {item: 1}}]"
                ),
                items.clone()
            ),
            json!([[2, {"a": 1}], [1, {"a": 2}]])
        );
        assert_eq!(
            main(all("return {json: {a: 1}, extra: true}"), items),
            json!([[null, {"json": {"a": 1}, "extra": true}]])
        );
    }

    #[test]
    fn braces_in_the_code_are_no_expressions() {
        assert_eq!(
            main(
                all("const o = {a: {b: 1}}; return {t: `{{ $json.n }}`, o}"),
                json!([{"n": 1}])
            ),
            json!([[0, {"t": "{{ $json.n }}", "o": {"a": {"b": 1}}}]])
        );
    }

    #[test]
    fn anything_else_is_a_clear_error() {
        for (code, says) in [
            ("", "nothing"),
            ("return 5", "a number"),
            ("return [1]", "a list with a number at index 0"),
            ("return 'x'", "text"),
            ("return [{json: {}, binary: 5}]", "as an item's `binary`"),
        ] {
            let fault = run(&Code, all(code), json!([{}])).unwrap_err();
            assert_eq!(fault.0, "invalid_result");
            assert!(fault.1.contains(says), "{}", fault.1);
        }
        assert_eq!(
            code_of(run(&Code, all("throw new Error('no')"), json!([{}]))),
            "expression_error"
        );
        assert_eq!(
            code_of(run(&Code, json!({"code": 5}), json!([{}]))),
            "invalid_parameters"
        );
        assert_eq!(
            code_of(run(
                &Code,
                json!({"code": "return []", "mode": "some"}),
                json!([{}])
            )),
            "invalid_parameters"
        );
    }

    #[test]
    fn a_syntax_error_is_found_offline() {
        let faults = Code.check(&all("return {\n  a: 1,\n  b: ]\n}"));
        assert_eq!(faults.len(), 1);
        assert_eq!(faults[0].path, ["code"]);
        assert_eq!(Code.check(&all("return items")), []);
    }
}
