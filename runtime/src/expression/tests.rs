//! What expressions mean, natively and in the script engine, and that scripts stay inside.

mod agreement;
mod isolation;
mod library;
mod limits;
mod scripts;
mod templates;

use std::{collections::HashMap, sync::Arc};

use serde_json::{Value, json};

use super::{
    ExpressionError, Scope, StepOutput, Template,
    template::{Evaluation, Expression},
    token::tokens,
};
use crate::item::Item;

/// Two input items, one step `First Step` with lineage, one step `lost` without, and all variables.
fn scope() -> Scope {
    let input = vec![
        Item::new(json!({
            "name": "Ada", "empty": "", "zero": 0, "n": 42, "f": 1.5, "neg": -7, "yes": true, "no": false, "nil": null,
            "text": "1,5", "digits": "12", "emoji": "a😀b", "list": [1, 2, 3], "none": [], "obj": {"a": {"b": [10, {"c d": "deep"}]}},
            "nothing": {},  "tiny": 1e-7, "key": "name", "toString": "own",
            "items": [{"k": 1}, {"k": 2}, {"k": 2}], "umlaut": "Grüße", "date": "2024-02-28T10:00:00Z"
        }))
        .paired(0),
        Item::new(json!({"name": "Bob", "n": 7})).paired(1),
    ];
    let step = |items: Vec<Value>, paired: Vec<Option<u32>>| StepOutput {
        items: Arc::new(items.into_iter().map(Item::new).collect()),
        paired: Arc::new(paired),
    };
    Scope {
        input: Arc::new(input),
        execution: Arc::new(json!({"id": "e1", "mode": "webhook"})),
        workflow: Arc::new(json!({"id": "w1", "name": "flow", "version": 3})),
        trigger: Arc::new(
            json!({"body": {"x": 5}, "query": {}, "headers": {"x-a": "1"}, "method": "POST"}),
        ),
        vars: Arc::new(json!({"x": "var", "big": 9_007_199_254_740_993_i64, "huge": u64::MAX})),
        env: Arc::new(json!({"HOME": "/"})),
        now: "2024-05-06T07:08:09.123Z".parse().unwrap(),
        timezone: "Europe/Berlin".into(),
        run_index: 2,
        steps: HashMap::from([
            (
                "First Step".into(),
                step(
                    vec![
                        json!({"v": "one"}),
                        json!({"v": "two"}),
                        json!({"v": "three"}),
                    ],
                    vec![Some(2), Some(0)],
                ),
            ),
            ("lost".into(), step(vec![json!({"v": 1})], vec![None, None])),
            ("none".into(), step(vec![], vec![])),
        ]),
    }
}

/// The value of one expression as the template engine chooses to evaluate it.
fn value(expression: &str) -> Result<Value, ExpressionError> {
    let template = Template::compile(&json!(format!("{{{{ {expression} }}}}")), &[])
        .unwrap_or_else(|faults| panic!("{expression}: {faults:?}"));
    template.resolve(&scope(), 0)
}

fn is_native(expression: &str) -> bool {
    Template::compile(&json!(format!("{{{{ {expression} }}}}")), &[])
        .unwrap_or_else(|faults| panic!("{expression}: {faults:?}"))
        .is_native()
}

/// The value of one expression in the script engine, whatever it is; undefined and text as text renders them.
fn scripted(expression: &str) -> Result<(Option<Value>, String), ExpressionError> {
    let tokens = tokens(expression).unwrap();
    let compiled = Expression::compile_script(&tokens, expression)
        .unwrap_or_else(|fault| panic!("{expression}: {fault:?}"));
    both_forms(&compiled)
}

/// The value of one expression by the plan the compiler chose.
fn planned(expression: &str) -> Result<(Option<Value>, String), ExpressionError> {
    let tokens = tokens(expression).unwrap();
    let compiled = Expression::compile(&tokens, expression)
        .unwrap_or_else(|fault| panic!("{expression}: {fault:?}"));
    both_forms(&compiled)
}

fn both_forms(expression: &Expression) -> Result<(Option<Value>, String), ExpressionError> {
    let scope = scope();
    let evaluation = Evaluation::new(&scope, 0);
    let value = expression.evaluate(&evaluation)?;
    let mut text = String::new();
    value.clone().render(&mut text).unwrap();
    Ok((value.into_value(), text))
}
