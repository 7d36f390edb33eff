//! The native evaluator and the script engine mean the same.

use super::*;
use crate::expression::{engine, names, script::Script};

/// Look-ups, with what they give. `None` is undefined.
fn lookups() -> Vec<(&'static str, Option<Value>)> {
    vec![
        ("$json.name", Some(json!("Ada"))),
        ("$json['name']", Some(json!("Ada"))),
        ("$json?.name", Some(json!("Ada"))),
        ("$json?.['name']", Some(json!("Ada"))),
        ("$json[`name`]", Some(json!("Ada"))),
        ("$json[$json.key]", Some(json!("Ada"))),
        ("$json.obj.a.b[0]", Some(json!(10))),
        ("$json.obj.a.b[1]['c d']", Some(json!("deep"))),
        ("$json.obj.a.b[1][\"c d\"]", Some(json!("deep"))),
        ("$json.list[$runIndex]", Some(json!(3))),
        ("$json.list['1']", Some(json!(2))),
        ("$json.list['01']", None),
        ("$json.list[-1]", None),
        ("$json.list[9]", None),
        ("$json.list.length", Some(json!(3))),
        ("$json.emoji.length", Some(json!(4))),
        ("$json.umlaut[2]", Some(json!("ü"))),
        ("$json.missing", None),
        ("$json.missing.deeper[0].still", None),
        ("$json.nil", Some(Value::Null)),
        ("$json.nil.x", None),
        ("$json.n.x", None),
        ("$json.yes.x", None),
        ("$json.constructor", None),
        ("$json.__proto__", None),
        ("$json.toString", Some(json!("own"))),
        ("$json.obj.toString", None),
        (
            "$json.obj",
            Some(json!({"a": {"b": [10, {"c d": "deep"}]}})),
        ),
        ("$json.list", Some(json!([1, 2, 3]))),
        ("$json /* c */ . /* d */ name // e", Some(json!("Ada"))),
        ("$binary", None),
        ("$item.json.name", Some(json!("Ada"))),
        ("$item.pairedItem", Some(json!({"item": 0, "input": 0}))),
        ("$item.pairedItem.input", Some(json!(0))),
        ("$input.item.json.name", Some(json!("Ada"))),
        ("$input.first().json.name", Some(json!("Ada"))),
        ("$input.last().json.name", Some(json!("Bob"))),
        ("$input.all()[1].json.name", Some(json!("Bob"))),
        ("$input.all().length", Some(json!(2))),
        ("$items[1].json.n", Some(json!(7))),
        ("$items()[1].json.n", Some(json!(7))),
        ("$items('First Step')[2].json.v", Some(json!("three"))),
        ("$('First Step').item.json.v", Some(json!("three"))),
        ("$(\"First Step\").item.json.v", Some(json!("three"))),
        ("$('First Step').first().json.v", Some(json!("one"))),
        ("$('First Step').last().json", Some(json!({"v": "three"}))),
        (
            "$('First Step').last()",
            Some(json!({"json": {"v": "three"}})),
        ),
        ("$('First Step').all()[1].json.v", Some(json!("two"))),
        ("$('First Step').isExecuted", Some(json!(true))),
        ("$('never').isExecuted", Some(json!(false))),
        ("$('none').first().json.v", None),
        ("$('lost').first().json.v", Some(json!(1))),
        ("$node['First Step'].json.v", Some(json!("three"))),
        ("$node['lost'].json.v", Some(json!(1))),
        ("$node.lost.json.v", Some(json!(1))),
        ("$trigger.body.x", Some(json!(5))),
        ("$trigger.headers['x-a']", Some(json!("1"))),
        ("$execution.id", Some(json!("e1"))),
        ("$workflow.name", Some(json!("flow"))),
        ("$vars.x", Some(json!("var"))),
        ("$vars.y", None),
        ("$env.HOME", Some(json!("/"))),
        ("$itemIndex", Some(json!(0))),
        ("$runIndex", Some(json!(2))),
        ("asdas", None),
        ("true", Some(json!(true))),
        ("null", Some(Value::Null)),
        ("undefined", None),
        ("-0", Some(json!(0))),
        ("0x1F", Some(json!(31))),
        ("1e3", Some(json!(1000))),
        (".5", Some(json!(0.5))),
        (
            "'a\\n\\u0041\\u{1F600}\\ud83d\\ude00'",
            Some(json!("a\nA😀😀")),
        ),
        (
            "`a${$json.n}b${`c${$json.missing}`}`",
            Some(json!("a42bcundefined")),
        ),
        ("(($json.name))", Some(json!("Ada"))),
    ]
}

/// Operands of every kind, for every operator.
const OPERANDS: &[&str] = &[
    "$json.name",
    "$json.empty",
    "$json.zero",
    "$json.n",
    "$json.f",
    "$json.neg",
    "$json.yes",
    "$json.no",
    "$json.nil",
    "$json.missing",
    "$json.digits",
    "$json.text",
    "$json.list",
    "$json.none",
    "$json.obj",
    "$json.nothing",
    "$json.emoji",
    "$json.tiny",
    "$json.obj.a.b",
    "$item",
    "$input.all()",
    "'12'",
    "' 12 '",
    "'0x10'",
    "''",
    "'\\uffff'",
    "12",
    "0",
    "-1.5",
    "1e21",
    "true",
    "null",
    "undefined",
    "NaN",
    "Infinity",
    "nobody",
    "'Ada'",
    "$('First Step').first()",
    "0.1",
];

const OPERATORS: &[&str] = &[
    "+", "-", "*", "/", "%", "==", "!=", "===", "!==", "<", "<=", ">", ">=", "&&", "||", "??",
];

#[test]
fn look_ups_give_what_is_there_in_both() {
    for (expression, expected) in lookups() {
        assert!(is_native(expression), "{expression} should be native");
        assert_eq!(planned(expression).unwrap().0, expected, "{expression}");
        assert_eq!(planned(expression), scripted(expression), "{expression}");
    }
}

#[test]
fn every_operator_agrees_on_every_pair_of_operands() {
    for left in OPERANDS {
        for right in OPERANDS {
            for operator in OPERATORS {
                let expression = format!("{left} {operator} {right}");
                let native = planned(&expression);
                let script = scripted(&expression);
                match (native, script) {
                    (Ok(native), Ok(script)) => assert_eq!(native, script, "{expression}"),
                    (Err(_), Err(_)) => {}
                    (native, script) => panic!("{expression}: {native:?} but {script:?}"),
                }
            }
        }
    }
}

#[test]
fn unary_operators_agree_on_every_operand() {
    for operand in OPERANDS {
        for expression in [
            format!("!{operand}"),
            format!("-({operand})"),
            format!("+({operand})"),
            format!("typeof ({operand})"),
            format!("{operand} ? 'yes' : 'no'"),
            format!("`<${{{operand}}}>`"),
        ] {
            assert_eq!(
                planned(&expression).ok(),
                scripted(&expression).ok(),
                "{expression}"
            );
        }
    }
}

#[test]
fn compound_expressions_are_native_and_agree() {
    for (expression, expected) in [
        (
            "$json.n > 40 && $json.name == 'Ada' ? 'x' + $json.n : 0",
            json!("x42"),
        ),
        ("($json.missing ?? $json.nil) ?? 'd'", json!("d")),
        ("!$json.yes || $json.zero === 0", json!(true)),
        ("1 + 2 * 3 - 8 / 4 % 3", json!(5)),
        ("1 + 2 + '3' + 4 + 5", json!("3345")),
        ("1 < 2 === true", json!(true)),
        ("'b' > 'a' ? 1 ? 2 : 3 : 4", json!(2)),
        ("$json.list == $json.list", json!(true)),
        ("$json.list == $input.first().json.list", json!(true)),
        ("$json.none == $json.nothing", json!(false)),
        ("$json.missing.isEmpty()", json!(true)),
        (
            "$json.nothing.isEmpty() && $json.none.isEmpty() && $json.empty.isEmpty()",
            json!(true),
        ),
        (
            "$json.n.isNotEmpty() && $json.list.isNotEmpty()",
            json!(true),
        ),
        ("'' + $json.tiny + $json.f", json!("1e-71.5")),
        ("0.1 + 0.2", json!(0.30000000000000004)),
        ("$json.n / 0", Value::Null),
        ("2 * 4503599627370496", json!(9_007_199_254_740_992_i64)),
        ("1e300 * 10", json!(1e301)),
        ("$json.n;", json!(42)),
        ("$json.n ; ;", json!(42)),
        ("'\u{ff61}' < '😀'", json!(false)),
    ] {
        assert!(is_native(expression), "{expression} should be native");
        let native = planned(expression).unwrap();
        assert_eq!(native.0, Some(expected), "{expression}");
        let bare = expression.trim_end_matches([' ', ';']);
        assert_eq!(native, scripted(bare).unwrap(), "{expression}");
    }
}

#[test]
fn values_that_are_there_are_the_same_in_a_plain_script() {
    for (expression, expected) in lookups() {
        // What n8n's names add, and what JavaScript inherits, is not plain data.
        let special = [
            "$item.",
            "$items[",
            "?.",
            "__proto__",
            "constructor",
            ".nil.",
            ".missing.",
            "obj.toString",
            "'none'",
        ];
        let undefined = expected.is_none() || special.iter().any(|part| expression.contains(part));
        if undefined || expression == "(($json.name))" {
            continue;
        }
        let script = Script::new(&format!("return ({expression}\n)"));
        assert_eq!(
            script.run(&scope(), Some(0)).unwrap(),
            expected.unwrap(),
            "{expression}"
        );
    }
}

#[test]
fn large_integers_pass_untouched() {
    assert_eq!(
        value("$vars.big").unwrap(),
        json!(9_007_199_254_740_993_i64)
    );
    assert_eq!(value("$vars.huge").unwrap(), json!(u64::MAX));
    let text = Template::compile(&json!("<{{ $vars.big }}>"), &[]).unwrap();
    assert_eq!(
        text.resolve(&scope(), 0).unwrap(),
        json!("<9007199254740993>")
    );
    assert_eq!(
        value("$json.missing ?? $vars.big").unwrap(),
        json!(9_007_199_254_740_993_i64)
    );
    // What is computed is a JavaScript number.
    assert_eq!(
        value("$vars.big + 0").unwrap(),
        json!(9_007_199_254_740_992_i64)
    );
    assert_eq!(value("$vars.big == 9007199254740992").unwrap(), json!(true));
    assert_eq!(
        value("[$vars.big][0]").unwrap(),
        json!(9_007_199_254_740_992_i64)
    );
}

#[test]
fn what_cannot_be_native_is_not() {
    for expression in [
        "$json.name.trim()",
        "[1]",
        "{a: 1}",
        "x => x",
        "$now.year",
        "'a'.length",
        "$(x).first()",
        "/a/.test($json.name)",
        "2 ** 3",
        "new Date()",
        "$if(1, 2, 3)",
        "Math",
        "$json.a?.()",
        "$json.n & 1",
        "(1, 2)",
        "1n",
        "'\\ud83d'",
    ] {
        assert!(!is_native(expression), "{expression}");
    }
}

#[test]
fn now_alone_is_text_in_the_zone_of_the_workflow() {
    assert!(is_native("$now") && is_native("$today"));
    assert_eq!(
        value("$now").unwrap(),
        json!("2024-05-06T09:08:09.123+02:00")
    );
    assert_eq!(
        value("$today").unwrap(),
        json!("2024-05-06T00:00:00.000+02:00")
    );
    assert_eq!(planned("$now"), scripted("$now"));
    assert_eq!(planned("$today"), scripted("$today"));
    assert_eq!(value("`${$now}`").unwrap(), value("$now").unwrap());
    // As in Luxon, where a date is a number to operators.
    assert_eq!(value("$now - 123 + ''").unwrap(), json!("1714979289000"));
}

#[test]
fn the_list_of_globals_is_the_engines() {
    let mut defined = engine::global_names();
    defined.sort();
    assert_eq!(defined, names::GLOBALS);
}
