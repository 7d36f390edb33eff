//! Templates: where expressions are found, what becomes of their values, and how faults are reported.

use super::*;
use crate::expression::{References, TemplateFault};

fn resolve(template: Value) -> Value {
    Template::compile(&template, &[])
        .unwrap()
        .resolve(&scope(), 0)
        .unwrap()
}

fn faults(template: Value) -> Vec<(String, usize)> {
    Template::compile(&template, &[])
        .unwrap_err()
        .into_iter()
        .map(|fault| (fault.path.join("."), fault.offset))
        .collect()
}

#[test]
fn a_string_that_is_one_expression_keeps_its_type() {
    assert_eq!(resolve(json!("{{ $json.n }}")), json!(42));
    assert_eq!(resolve(json!("{{$json.list}}")), json!([1, 2, 3]));
    assert_eq!(resolve(json!("{{ $json.yes }}")), json!(true));
    assert_eq!(resolve(json!("{{ $json.nil }}")), Value::Null);
    assert_eq!(resolve(json!("{{ [$json.n, $json.f] }}")), json!([42, 1.5]));
    assert_eq!(resolve(json!(" {{ $json.n }}")), json!(" 42"));
    assert_eq!(resolve(json!("{{ $json.n }}{{ $json.n }}")), json!("4242"));
}

#[test]
fn values_inside_text_render_as_text() {
    for (template, text) in [
        ("a{{ $json.n }}b", "a42b"),
        ("a{{ $json.missing }}b{{ $json.nil }}c", "abc"),
        ("a{{ $json.list }}", "a[1,2,3]"),
        ("a{{ $json.nothing }}", "a{}"),
        (
            "a{{ $input.last() }}",
            r#"a{"json":{"name":"Bob","n":7},"pairedItem":{"item":1,"input":0}}"#,
        ),
        ("a{{ $json.tiny }}", "a1e-7"),
        ("a{{ 0 / 0 }}{{ 1 / 0 }}", "aNaNInfinity"),
        ("a{{ $json.no }}", "afalse"),
        ("a{{ [1].map(x => x / 0) }}", "a[null]"),
        ("a{{ ({x: undefined, y: 1}) }}", "a{\"y\":1}"),
        ("ä{{ $json.umlaut }}😀{{ $json.emoji }}", "äGrüße😀a😀b"),
        ("a{{ $now }}", "a2024-05-06T09:08:09.123+02:00"),
        (
            "a{{ $now.plus({days: 1}) }}",
            "a2024-05-07T09:08:09.123+02:00",
        ),
        ("a{{ new Date(0) }}", "a1970-01-01T00:00:00.000Z"),
        ("a{{ }}b", "ab"),
        ("{ not } {one}", "{ not } {one}"),
        (r"\{{ $json.n }} {{ $json.n }}", "{{ $json.n }} 42"),
        ("}} {{ $json.n }} }}", "}} 42 }}"),
    ] {
        assert_eq!(resolve(json!(template)), json!(text), "{template}");
    }
}

#[test]
fn undefined_is_dropped_from_objects_and_null_in_lists() {
    assert_eq!(
        resolve(
            json!({"a": "{{ $json.missing }}", "b": ["{{ $json.missing }}", 1], "c": {"d": "{{ undefined }}"}, "{{ e }}": 1})
        ),
        json!({"b": [null, 1], "c": {}, "{{ e }}": 1})
    );
    assert_eq!(resolve(json!("{{ $json.missing }}")), Value::Null);
}

#[test]
fn braces_inside_an_expression_do_not_end_it() {
    assert_eq!(resolve(json!("{{ {a: {b: 1}} }}")), json!({"a": {"b": 1}}));
    assert_eq!(resolve(json!("{{ {a:{b:1}}}}")), json!({"a": {"b": 1}}));
    assert_eq!(resolve(json!("<{{ '}}' + \"{{\" }}>")), json!("<}}{{>"));
    assert_eq!(resolve(json!("{{ `${{a: $json.n}.a}}}` }}")), json!("42}}"));
    assert_eq!(resolve(json!("{{ /}}/.test('}}') }}")), json!(true));
    assert_eq!(
        resolve(json!("{{ $json.n // }} is 42 }}")),
        json!("42 is 42 }}")
    );
    assert_eq!(resolve(json!("{{ $json.n /* }} */ }}")), json!(42));
}

#[test]
fn verbatim_members_and_member_names_are_kept_as_written() {
    let template = Template::compile(
        &json!({"code": "{{ not ( an expression", "with": {"code": "{{ $json.n }}"}}),
        &["code"],
    )
    .unwrap();
    assert_eq!(
        template.resolve(&scope(), 0).unwrap(),
        json!({"code": "{{ not ( an expression", "with": {"code": 42}})
    );
    assert_eq!(
        template.resolve_field("code", &scope(), 0).unwrap(),
        json!("{{ not ( an expression")
    );
}

#[test]
fn one_field_is_resolved_without_the_others() {
    let template = Template::compile(
        &json!({"bad": "{{ $('never').first() }}", "good": "{{ $json.name }}", "plain": 1}),
        &[],
    )
    .unwrap();
    assert_eq!(
        template.resolve_field("good", &scope(), 1).unwrap(),
        json!("Bob")
    );
    assert_eq!(
        template.resolve_field("plain", &scope(), 0).unwrap(),
        json!(1)
    );
    assert_eq!(
        template.resolve_field("absent", &scope(), 0).unwrap(),
        Value::Null
    );
    let error = template.resolve_field("bad", &scope(), 0).unwrap_err();
    assert_eq!(error.path, ["bad"]);
    let whole = Template::compile(&json!("{{ {a: 1} }}"), &[]).unwrap();
    assert_eq!(whole.resolve_field("a", &scope(), 0).unwrap(), json!(1));
}

#[test]
fn all_syntax_errors_are_found_with_path_and_offset() {
    assert_eq!(
        faults(
            json!({"a": "x {{ 1 + }}", "b": [0, "{{ $json. }} {{ ) }}"], "c": "{{ $json.n", "d": "ok {{ 1 }}"})
        ),
        [
            ("a".into(), 8),
            ("b.1".into(), 9),
            ("b.1".into(), 16),
            ("c".into(), 0)
        ]
    );
}

#[test]
fn faults_say_where_and_what() {
    for (template, offset, message) in [
        ("{{ 'abc }}", 3, "the string is not closed"),
        ("ü {{ 'é' 5 }}", 11, "Unexpected number"),
        ("{{ f(1 }}", 4, "`(` is not closed"),
        ("{{ `${1 }}", 3, "the template literal is not closed"),
        ("{{ a ?? b || c }}", 10, "Unexpected token '||'"),
        (
            "{{ $json.a = 1 }}",
            3,
            "variables such as `$json` can be read only: not assigned, and not declared",
        ),
        (
            "{{ $json => 1 }}",
            3,
            "variables such as `$json` can be read only: not assigned, and not declared",
        ),
        (
            "{{ return 1 }}",
            3,
            "unexpected token in expression: 'return'",
        ),
        ("{{ a; b }}", 4, "Unexpected token ';'"),
        ("{{ /(/ }}", 3, "expecting ')'"),
        (
            "{{ 010 }}",
            3,
            "Octal literals are not allowed in strict mode",
        ),
        ("{{ a # b }}", 5, "invalid first character of private name"),
    ] {
        let fault = Template::compile(&json!(template), &[])
            .unwrap_err()
            .remove(0);
        assert_eq!(
            (fault.offset, fault.message.as_str()),
            (offset, message),
            "{template}"
        );
    }
}

#[test]
fn what_is_too_long_or_too_deep_is_refused() {
    let long = format!("{{{{ '{}' }}}}", "x".repeat(70_000));
    assert!(faults(json!(long))[0].1 > 0);
    let deep = format!("{{{{ {}1{} }}}}", "(".repeat(300), ")".repeat(300));
    assert!(Template::compile(&json!(deep), &[]).is_err());
    let nested = (0..200).fold(json!("{{ 1 }}"), |inner, _| json!([inner]));
    assert!(Template::compile(&nested, &[]).is_err());
}

#[test]
fn long_chains_and_deep_brackets_still_work() {
    let sum = vec!["1"; 1000].join(" + ");
    assert_eq!(value(&sum).unwrap(), json!(1000));
    let deep = format!("{}1{}", "(".repeat(100), ")".repeat(100));
    assert_eq!(value(&deep).unwrap(), json!(1));
}

#[test]
fn a_step_that_has_not_run_is_an_error_with_its_name() {
    for expression in [
        "$('never').first().json.x",
        "$('never').item.json.x.trim()",
        "$node['never'].json.x",
        "$('nev' + 'er').first().json.x",
        "$('nev' + 'er').all()",
        "$items('never')",
    ] {
        let error = value(expression).unwrap_err();
        assert_eq!(error.message, "step `never` has not run", "{expression}");
        assert_eq!(error.expression, expression);
    }
    // Only what is reached counts.
    assert_eq!(
        value("$('never').isExecuted ? $('never').first().json.x : 'no'").unwrap(),
        json!("no")
    );
    assert_eq!(
        value("$('nev' + 'er').isExecuted ? 1 : 2").unwrap(),
        json!(2)
    );
}

#[test]
fn a_lost_lineage_is_an_error_that_says_what_to_do() {
    for expression in [
        "$('lost').item.json.v",
        "$('lost').item.json.v.toFixed()",
        "$('lo' + 'st').item.json",
    ] {
        let error = value(expression).unwrap_err();
        assert!(
            error.message.contains("lost the lineage"),
            "{}",
            error.message
        );
        assert!(
            error.message.contains("$('lost').first()"),
            "{}",
            error.message
        );
    }
}

#[test]
fn an_exception_is_an_error_with_path_and_expression() {
    let template =
        Template::compile(&json!({"a": [{"b": "x {{ $json.missing.trim() }}"}]}), &[]).unwrap();
    let error = template.resolve(&scope(), 0).unwrap_err();
    assert_eq!(error.path, ["a", "0", "b"]);
    assert_eq!(error.expression, "$json.missing.trim()");
    assert_eq!(
        error.message,
        "TypeError: cannot read property 'trim' of undefined"
    );
    let error = value("(() => { throw new Error('mine') })()").unwrap_err();
    assert_eq!(error.message, "mine");
    let error = value("(() => { throw {code: 7} })()").unwrap_err();
    assert_eq!(error.message, "threw {\"code\":7}");
    assert!(value("$json.list.map").unwrap().is_null());
    assert!(value("Math.max").unwrap_err().message.contains("function"));
    assert!(value("Symbol()").unwrap_err().message.contains("symbol"));
}

#[test]
fn references_name_the_steps() {
    let references = |expression: &str| {
        Template::compile(&json!(format!("{{{{ {expression} }}}}")), &[])
            .unwrap()
            .references()
            .clone()
    };
    let named = |steps: &[&str]| References {
        steps: steps.iter().map(|step| (*step).to_owned()).collect(),
        any_step: false,
    };
    assert_eq!(references("$json.a"), named(&[]));
    assert_eq!(
        references(
            "$('a').item.json.x + $node[\"b c\"].json.y + $('a').first() + $node.d.json + $items('e').length + `${$(`f`)}`"
        ),
        named(&["a", "b c", "d", "e", "f"])
    );
    assert_eq!(
        references("'$(\"no\")' + x.$('no') + $items[0] + $items()"),
        named(&[])
    );
    for computed in [
        "$($json.x).first()",
        "$('a' + b).first()",
        "$node[x].json",
        "Object.keys($node)",
    ] {
        assert!(references(computed).any_step, "{computed}");
    }
}

#[test]
fn a_template_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Template>();
    shared::<crate::expression::script::Script>();
    shared::<TemplateFault>();
}
