//! Scripts of `code` steps.

use super::*;
use crate::expression::script::Script;

fn run(source: &str, index: Option<usize>) -> Value {
    Script::check(source).unwrap_or_else(|fault| panic!("{source}: {fault:?}"));
    Script::new(source)
        .run(&scope(), index)
        .unwrap_or_else(|error| panic!("{source}: {error}"))
}

#[test]
fn a_script_sees_all_items_and_returns_what_it_likes() {
    for (source, expected) in [
        (
            "return items.map(item => ({json: {n: item.json.n + 1}}))",
            json!([{"json": {"n": 43}}, {"json": {"n": 8}}]),
        ),
        ("return {total: items.length}", json!({"total": 2})),
        (
            "return $input.all().map(i => i.json.name)",
            json!(["Ada", "Bob"]),
        ),
        (
            "for (const item of items) item.json = {x: 1};\nreturn items",
            json!([{"json": {"x": 1}, "pairedItem": {"item": 0, "input": 0}}, {"json": {"x": 1}, "pairedItem": {"item": 1, "input": 0}}]),
        ),
        (
            "const items = $input.all(); return items[1].json",
            json!({"name": "Bob", "n": 7}),
        ),
        ("const $json = 1, item = 2; return $json + item", json!(3)),
        (
            "return $json.name + $input.first().json.name + $input.last().json.n + $input.item.json.name",
            json!("AdaAda7Ada"),
        ),
        ("return", Value::Null),
        ("", Value::Null),
        ("// nothing", Value::Null),
        ("return undefined", Value::Null),
        ("return null", Value::Null),
        ("return 7", json!(7)),
        (
            "return $('First Step').item.json.v + $('First Step').all().length + $(\"lost\").first().json.v",
            json!("three31"),
        ),
        ("return $node['First Step'].json.v", json!("three")),
        (
            "return [$trigger.body.x, $execution.id, $workflow.version, $vars.x, $env.HOME, $itemIndex, $runIndex]",
            json!([5, "e1", 3, "var", "/", 0, 2]),
        ),
        (
            "return [$now.year, $today.hour, DateTime.isDateTime($now)]",
            json!([2024, 0, true]),
        ),
        (
            "console.log('x', {a: 1}); console.error(undefined); return 1",
            json!(1),
        ),
        (
            "function f(n) { return n ? n * f(n - 1) : 1 }\nreturn f(5)",
            json!(120),
        ),
        (
            "const {name, ...rest} = $json; return Object.keys(rest).length > 3 && name",
            json!("Ada"),
        ),
        ("return /a}b/.test('a}b') ? `${'}'}` : '{'", json!("}")),
        (
            "const text = '<!-- x -->'; return text",
            json!("<!-- x -->"),
        ),
    ] {
        assert_eq!(run(source, None), expected, "{source}");
    }
}

#[test]
fn a_script_may_run_for_one_item() {
    assert_eq!(
        run(
            "return {n: $json.n, name: item.json.name, at: $itemIndex}",
            Some(1)
        ),
        json!({"n": 7, "name": "Bob", "at": 1})
    );
    assert_eq!(
        run("$json.added = 1; return $input.item", Some(1)),
        json!({"json": {"name": "Bob", "n": 7, "added": 1}, "pairedItem": {"item": 1, "input": 0}})
    );
    assert_eq!(
        run("return $('First Step').item.json.v", Some(1)),
        json!("one")
    );
    assert_eq!(
        run("item.json.x = 1; return items[1].json.x", Some(1)),
        json!(1)
    );
}

#[test]
fn a_script_may_wait_for_what_it_makes_itself() {
    assert_eq!(
        run("const x = await Promise.resolve(4); return x + 1", None),
        json!(5)
    );
    assert_eq!(
        run("return Promise.all([1, 2].map(async x => x * 2))", None),
        json!([2, 4])
    );
    let error = Script::new("await new Promise(() => {})")
        .run(&scope(), None)
        .unwrap_err();
    assert_eq!(error.message, "waits for something that cannot happen");
    let error = Script::new("await 1;\nthrow new Error('late')")
        .run(&scope(), None)
        .unwrap_err();
    assert_eq!(error.message, "late (line 2)");
}

#[test]
fn syntax_errors_are_found_with_line_and_offset() {
    for (source, offset, message) in [
        (
            "const a = ;",
            10,
            "line 1: unexpected token in expression: ';'",
        ),
        ("return 1;\nreturn {", 18, "line 2: "),
        ("const a = 1;\nconst a = 2;", 19, "line 2: "),
        ("let é = 1;\n  x y", 16, "line 2: "),
        ("} evil(); {", 2, "line 1: "),
        ("return await 1", 0, ""),
    ] {
        let Err(fault) = Script::check(source) else {
            assert_eq!(source, "return await 1");
            continue;
        };
        assert!(fault.message.starts_with(message), "{source}: {fault:?}");
        assert!(fault.offset.abs_diff(offset) <= 2, "{source}: {fault:?}");
    }
    let error = Script::new("return {").run(&scope(), None).unwrap_err();
    assert!(
        error.message.starts_with("SyntaxError"),
        "{}",
        error.message
    );
    assert!(Script::check(&"x".repeat(300_000)).is_err());
}

#[test]
fn an_exception_names_the_line() {
    let error = Script::new("const a = 1;\nconst b = $json.missing\nreturn b.c.d")
        .run(&scope(), None)
        .unwrap_err();
    assert_eq!(
        error.message,
        "TypeError: cannot read property 'c' of undefined (line 3)"
    );
    assert_eq!(error.expression, "return b.c.d");
    let error = Script::new("return missing")
        .run(&scope(), None)
        .unwrap_err();
    assert_eq!(
        error.message,
        "ReferenceError: missing is not defined (line 1)"
    );
    let error = Script::new("return $('never').first()")
        .run(&scope(), None)
        .unwrap_err();
    assert_eq!(error.message, "step `never` has not run (line 1)");
}

#[test]
fn references_of_a_script_are_known() {
    let references = |source: &str| Script::new(source).references().clone();
    assert_eq!(
        references("return $('a').all().concat($node['b'].json)").steps,
        ["a", "b"]
    );
    assert!(!references("return items.map(i => i.json / 2 / 3)").any_step);
    assert!(references("const name = 'a'; return $(name).first()").any_step);
    assert!(references("const f = $; return f('a')").any_step);
    assert!(
        references("if (a) /'/.test($('x').first())").any_step
            || references("if (a) /'/.test($('x').first())").mentions("x")
    );
}

#[test]
fn the_same_script_runs_again_and_again() {
    let script = Script::new("globalCount = (typeof globalCount === 'undefined') ? 1 : 2");
    for _ in 0..3 {
        assert!(script.run(&scope(), None).is_err());
    }
    let script = Script::new("const a = items; a.length = 0; return a.length");
    for _ in 0..3 {
        assert_eq!(script.run(&scope(), None).unwrap(), json!(0));
    }
}
