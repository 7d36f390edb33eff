//! What the compiler says of workflows that are not sound, and where.

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::json;

use super::{LEADS, compile_text, graph, nodes, with_spec};
use crate::document::{
    check_all, from_value, read,
    workflow::{STEPS_MAX, compile},
};

fn faults(spec: &str) -> Vec<String> {
    let faults = compile_text(&with_spec(spec)).err().unwrap_or_default();
    faults.iter().map(ToString::to_string).collect()
}

/// Each line of `expected` is the beginning of one fault, all of them, in order.
fn check(spec: &str, expected: &[&str]) {
    let found = faults(spec);
    let alike = found.len() == expected.len()
        && found
            .iter()
            .zip(expected)
            .all(|(found, expected)| found.starts_with(&format!("w.yaml:{expected}")));
    assert!(alike, "{spec}\nfound {found:#?}\nexpected {expected:#?}");
}

#[test]
fn faults_of_steps_say_where_and_what() {
    for (step, expected) in [
        ("{uses: noop}", "4:11: spec.steps.0.id: Field required"),
        ("{id: a}", "4:11: spec.steps.0.uses: Field required"),
        (
            "{id: a b, uses: noop}",
            "4:16: spec.steps.0.id: A step's id should be made of",
        ),
        (
            "{id: end, uses: noop}",
            "4:16: spec.steps.0.id: `end` has a meaning of its own",
        ),
        (
            "{id: a, uses: noop, tiemout: 5s}",
            "4:31: spec.steps.0.tiemout: Extra inputs are not permitted; did you mean `timeout`?",
        ),
        (
            "{id: a, uses: htp.request}",
            "4:25: spec.steps.0.uses: Unknown node type `htp.request`; did you mean `http.request`?",
        ),
        (
            "{id: a, uses: loop, steps: []}",
            "4:25: spec.steps.0.uses: `loop` is not supported by this version",
        ),
        (
            "{id: a, uses: noop, placement: {gpu: x}}",
            "4:42: spec.steps.0.placement: `placement` is not supported by this version",
        ),
        (
            "{id: a, uses: noop, on_crash: ask}",
            "4:41: spec.steps.0.on_crash: `on_crash: ask` is not supported by this version",
        ),
        (
            "{id: a, uses: noop, timeout: 5}",
            "4:40: spec.steps.0.timeout: Expected a duration such as 500ms",
        ),
        (
            "{id: a, uses: noop, timeout: 0s}",
            "4:40: spec.steps.0.timeout: Input should be longer than 0",
        ),
        (
            "{id: a, uses: noop, retry: {max_attempts: 0}}",
            "4:53: spec.steps.0.retry.max_attempts: Input should be greater than or equal to 1",
        ),
        (
            "{id: a, uses: noop, retry: {initial: 5s, max: 1s}}",
            "4:57: spec.steps.0.retry.max: `max` should be at least as long as `initial`",
        ),
        (
            "{id: a, uses: noop, retry: {backoff: linear}}",
            "4:48: spec.steps.0.retry.backoff: Input should be 'exponential' or 'fixed'",
        ),
        (
            "{id: a, uses: noop, on_error: rout}",
            "4:41: spec.steps.0.on_error: Input should be 'fail', 'continue' or 'route'; did you mean `route`?",
        ),
        (
            "{id: a, uses: noop, on_error: route}",
            "4:41: spec.steps.0.on_error: `on_error: route` needs",
        ),
        (
            "{id: a, uses: noop, on_error: fail, routes: {error: end}}",
            "4:41: spec.steps.0.on_error: The port `error` is routed",
        ),
        (
            "{id: a, uses: noop, steps: []}",
            "4:31: spec.steps.0.steps: Only a `map` has `steps`",
        ),
        (
            "{id: a, uses: noop, join: any}",
            "4:37: spec.steps.0.join: `join` needs `after`",
        ),
        (
            "{id: a, uses: noop, after: [trigger], join: 2}",
            "4:55: spec.steps.0.join: Input should be less than or equal to 1",
        ),
        (
            "{id: a, uses: noop, after: []}",
            "4:38: spec.steps.0.after: List should have at least 1 item",
        ),
        (
            "{id: a, uses: noop, after: [trigger, trigger.main]}",
            "4:48: spec.steps.0.after.1: `trigger.main` is in this list twice",
        ),
        (
            "{id: a, uses: noop, routes: 5}",
            "4:39: spec.steps.0.routes: Input should be a valid dictionary",
        ),
        (
            "noop",
            "4:11: spec.steps.0: Input should be a valid dictionary",
        ),
    ] {
        check(&format!("  steps: [{step}]"), &[expected]);
    }
}

#[test]
fn faults_of_edges_say_where_and_what() {
    for (steps, expected) in [
        (
            "[{id: enrich, uses: noop}, {id: b, uses: noop, after: enrch}]",
            "4:64: spec.steps.1.after: Unknown step `enrch`; did you mean `enrich`?",
        ),
        (
            "[{id: a, uses: switch, routes: {x: zebra}}, {id: b, uses: noop}]",
            "4:45: spec.steps.0.routes.x: Unknown step `zebra`; the steps are: `trigger`, `a` and `b`",
        ),
        (
            "[{id: a, uses: if, with: {condition: 1}, routes: {ture: b}}, {id: b, uses: noop}]",
            "4:60: spec.steps.0.routes.ture: The step `a` has no port `ture`; did you mean `true`?",
        ),
        (
            "[{id: a, uses: if, with: {condition: 1}}, {id: b, uses: noop, after: a}]",
            "4:79: spec.steps.1.after: The step `a` has no port `main`; its ports are: `true` and `false`",
        ),
        (
            "[{id: a, uses: if, with: {condition: 1}}, {id: b, uses: noop}]",
            "4:52: spec.steps.1: This step is listed after `a`, which has no port `main` but `true` and `false`: name it in that step's `routes`, or give it `after`",
        ),
        (
            "[{id: a, uses: noop}, {id: a, uses: noop}]",
            "4:37: spec.steps.1.id: Duplicate step id `a`; `spec.steps.0` has it already",
        ),
        (
            "[{id: a, uses: noop, routes: {main: trigger}}]",
            "4:46: spec.steps.0.routes.main: The trigger cannot be led back to",
        ),
        (
            "[{id: a, uses: switch, routes: {main: end}}, {id: b, uses: noop}]",
            "4:55: spec.steps.1: Nothing leads to this step",
        ),
        (
            "[{id: a, uses: noop}, {id: b, uses: switch, after: b.x}]",
            "4:32: spec.steps.1: The step `b` waits for itself",
        ),
        (
            "[{id: a, uses: noop}, {id: b, uses: noop, after: [a, d]}, {id: c, uses: noop}, {id: d, uses: noop}]",
            "4:32: spec.steps.1: The steps `b`, `c` and `d` wait for each other; this is a cycle without a loop",
        ),
        (
            "[{id: a, uses: noop, after: trigger.x}]",
            "4:38: spec.steps.0.after: The step `trigger` has no port `x`",
        ),
    ] {
        check(&format!("  steps: {steps}"), &[expected]);
    }
}

#[test]
fn faults_of_parameters_say_where_and_what() {
    for (with, expected) in [
        (
            "{ methd: GET, url: x }",
            "6:15: spec.steps.0.with.methd: Extra inputs are not permitted; did you mean `method`?",
        ),
        (
            "{ method: GET }",
            "6:13: spec.steps.0.with.url: Field required",
        ),
        (
            "{ url: 5 }",
            "6:20: spec.steps.0.with.url: Input should be a valid string",
        ),
        (
            "{ url: x, method: PUT }",
            "6:31: spec.steps.0.with.method: Input should be 'GET' or 'POST'",
        ),
        (
            "{ url: x, headers: { a: \"{{ $json }}\", b: 5 } }",
            "6:55: spec.steps.0.with.headers.b: Input should be a valid string",
        ),
        (
            "{ url: x, follow_redirects: maybe }",
            "6:41: spec.steps.0.with.follow_redirects: Input should be a valid boolean",
        ),
        (
            "{ url: \"ftp://x\" }",
            "6:20: spec.steps.0.with.url: ftp is not spoken",
        ),
        (
            "[url]",
            "6:13: spec.steps.0.with: Input should be a valid dictionary",
        ),
    ] {
        check(
            &format!("  steps:\n    - id: a\n      with: {with}\n      uses: http.request")
                .replace("steps:\n    - id", "steps:\n    - id"),
            &[expected],
        );
    }
    // What an expression decides cannot be judged yet.
    graph(
        "  steps: [{id: a, uses: http.request, with: {url: \"{{ 5 }}\", follow_redirects: \"{{ $json.f }}\", method: \"{{ $json.m }}\"}}]",
    );
    // A program is no template.
    graph("  steps: [{id: a, uses: code, with: {code: \"return {{}}\"}}]");
}

#[test]
fn all_faults_come_at_once_in_the_order_of_the_file() {
    check(
        "  trigger: { type: webhook }
  settings: { timezone: Europe/Berln }
  stesp: 1
  steps:
    - { id: a, uses: nop }
    - { id: b, uses: http.request, with: { urll: x } }
    - { id: c, uses: noop, after: [x] }",
        &[
            "4:12: spec.trigger.path: Field required",
            "5:25: spec.settings.timezone: Input should be an IANA time zone such as `UTC` or `Europe/Berlin`; did you mean `Europe/Berlin`?",
            "6:3: spec.stesp: Extra inputs are not permitted; did you mean `steps`?",
            "8:22: spec.steps.0.uses: Unknown node type `nop`; did you mean `noop`?",
            "9:42: spec.steps.1.with.url: Field required",
            "9:44: spec.steps.1.with.urll: Extra inputs are not permitted; did you mean `url`?",
            "10:36: spec.steps.2.after.0: Unknown step `x`",
        ],
    );
}

#[test]
fn faults_of_triggers_say_where_and_what() {
    for (trigger, expected) in [
        (
            "trigger: { type: schedule, cron: x }",
            "4:20: spec.trigger.type: `schedule` triggers are not supported by this version",
        ),
        (
            "trigger: { type: webhok }",
            "4:20: spec.trigger.type: Input should be 'manual' or 'webhook'; did you mean `webhook`?",
        ),
        (
            "trigger: { path: /x }",
            "4:12: spec.trigger.type: Field required",
        ),
        (
            "trigger: { type: webhook, path: /a//b }",
            "4:35: spec.trigger.path: A path should be made of segments",
        ),
        (
            "trigger: { type: webhook, path: '/{a}/{a}' }",
            "4:35: spec.trigger.path: The parameter `{a}` occurs twice",
        ),
        (
            "trigger: { type: webhook, path: /a, method: GTE }",
            "4:47: spec.trigger.method: Input should be 'GET', 'POST', 'PUT', 'PATCH' or 'DELETE'; did you mean `GET`?",
        ),
        (
            "trigger: { type: webhook, path: /a, respond: respond_step }",
            "4:48: spec.trigger.respond: `respond: respond_step` needs a step",
        ),
        (
            "trigger: { type: webhook, path: /a, input_schema: context }",
            "4:53: spec.trigger.input_schema: schemas of models are not supported by this version",
        ),
        (
            "trigger: { type: webhook, path: /a, input_schema: { type: strin } }",
            "4:61: spec.trigger.input_schema.type: Input should be 'array', 'boolean'",
        ),
        (
            "trigger: { type: webhook, path: /a, input_schema: { email: string } }",
            "4:53: spec.trigger.input_schema: Input should be a JSON Schema or a list of fields; no member",
        ),
        (
            "trigger: { type: webhook, path: /a, response_schema: [{ name: a, type: strng }] }",
            "4:74: spec.trigger.response_schema.0.type: Input should be 'string'",
        ),
        (
            "trigger: { type: manual, input_schema: [{ name: a, type: string, min: 1 }] }",
            "4:73: spec.trigger.input_schema.0.min: `min` has no meaning for this type",
        ),
        (
            "trigger: { type: manual, input_schema: [{ name: a, type: integer, default: x }] }",
            "4:78: spec.trigger.input_schema.0.default: Input should be a valid integer",
        ),
        (
            "triggers: [{ type: webhook, path: '/{a}' }, { type: webhook, path: '/{b}' }]",
            "4:47: spec.triggers.1: Another trigger of this workflow is the same",
        ),
        (
            "settings: { concurrency: { key: x } }",
            "4:28: spec.settings.concurrency: `concurrency` is not supported by this version",
        ),
        (
            "context: Contact",
            "4:12: spec.context: `context` is not supported by this version",
        ),
        (
            "settings: { max_parallel: lots }",
            "4:29: spec.settings.max_parallel: Input should be a valid integer",
        ),
    ] {
        check(
            &format!("  {trigger}\n  steps: [{{id: a, uses: noop}}]"),
            &[expected],
        );
    }
}

#[test]
fn faults_of_maps_say_where_and_what() {
    for (map, expected) in [
        (
            "{id: m, uses: map, with: {items: []}}",
            "4:11: spec.steps.0.steps: Field required",
        ),
        (
            "{id: m, uses: map, steps: [{id: b, uses: noop}]}",
            "4:11: spec.steps.0.with.items: Field required",
        ),
        (
            "{id: m, uses: map, with: {items: x}, steps: [{id: b, uses: noop}]}",
            "4:44: spec.steps.0.with.items: Input should be a valid list",
        ),
        (
            "{id: m, uses: map, with: {items: [], itms: 1}, steps: [{id: b, uses: noop}]}",
            "4:48: spec.steps.0.with.itms: Extra inputs are not permitted; did you mean `items`?",
        ),
        (
            "{id: m, uses: map, with: {items: []}, steps: [{id: m, uses: noop}]}",
            "4:62: spec.steps.0.steps.0.id: Duplicate step id `m`",
        ),
        (
            "{id: m, uses: map, with: {items: []}, steps: [{id: b, uses: noop, routes: {main: z}}]}, {id: z, uses: noop}",
            "4:92: spec.steps.0.steps.0.routes.main: The step `z` is in another list of steps",
        ),
        (
            "{id: m, uses: map, with: {items: []}, steps: []}",
            "4:56: spec.steps.0.steps: List should have at least 1 item",
        ),
    ] {
        let found = faults(&format!("  steps: [{map}]"));
        assert!(
            found.len() == 1 && found[0].starts_with(&format!("w.yaml:{expected}")),
            "{map}\n{found:#?}"
        );
    }
    let nested = (0..5).fold("{id: x, uses: noop}".to_owned(), |inner, level| {
        format!("{{id: m{level}, uses: map, with: {{items: []}}, steps: [{inner}]}}")
    });
    assert!(
        faults(&format!("  steps: [{nested}]"))[0].contains("Maps may stand in each other 4 deep")
    );
}

#[test]
fn expressions_are_checked_where_they_stand() {
    check(
        "  steps:
    - { id: first, uses: noop }
    - id: m
      uses: map
      with: { items: \"{{ $('frist').all() }}\" }
      steps:
        - { id: inner, uses: set, with: { values: { a: \"{{ $('first').item.json.a + $('trigger').item.json.b }}\" } } }
        - { id: next, uses: set, with: { values: { a: \"x {{ $('inner').item.json.a }}\" } } }
    - id: last
      uses: set
      with:
        values:
          text: |
            Dear
              {{ $('inner').item.json }}",
        &[
            "8:29: spec.steps.1.with.items: `$('frist')` names no step; did you mean `first`?",
            "18:21: spec.steps.2.with.values.text: `$('inner')` is a step inside the map `m`",
        ],
    );
    let found = faults(
        "  steps:\n    - { id: a, uses: set, with: { values: { b: \"ok {{ $json. }} \" } } }",
    );
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(
        found[0].starts_with("w.yaml:5:") && found[0].contains("spec.steps.0.with.values.b: "),
        "{found:#?}"
    );
}

#[test]
fn a_workflow_of_too_many_steps_is_refused() {
    let steps: String = (0..=STEPS_MAX)
        .map(|n| format!("{{id: s{n}, uses: noop}},"))
        .collect();
    let found = faults(&format!("  steps: [{steps}]"));
    assert_eq!(
        found,
        ["w.yaml:4:10: spec.steps: A workflow should have at most 1000 steps, not 1001"]
    );
    let steps: String = (0..STEPS_MAX)
        .map(|n| format!("{{id: s{n}, uses: noop}},"))
        .collect();
    assert_eq!(
        graph(&format!("  steps: [{steps}]")).body.steps.len(),
        STEPS_MAX + 1
    );
}

#[test]
fn a_document_that_came_as_a_value_has_faults_with_paths_alone() {
    let body = json!({"kind": "Workflow", "metadata": {"name": "w"}, "spec": {"steps": [{"id": "a", "uses": "nop"}]}});
    let document = from_value(body).expect("its form is sound");
    let faults = compile(&document, &nodes()).expect_err("its node type is unknown");
    assert_eq!(
        faults[0].detail(),
        json!({
            "loc": ["body", "spec", "steps", 0, "uses"],
            "msg": "Unknown node type `nop`; did you mean `noop`?",
            "type": "value_error",
        })
    );
    let agent = json!({"kind": "Agent", "metadata": {"name": "w"}, "spec": {}});
    let agent = from_value(agent).expect("its form is sound");
    assert_eq!(
        compile(&agent, &nodes()).expect_err("it is no workflow")[0].kind,
        "literal_error"
    );
}

#[test]
fn documents_are_checked_as_a_set() {
    let one = |name: &str, path: &str| {
        format!(
            "kind: Workflow\nmetadata: {{ name: {name} }}\nspec:\n  trigger: {{ type: webhook, path: {path} }}\n  steps: [{{id: a, uses: noop}}]\n---\n"
        )
    };
    let text =
        one("a", "'/x/{id}'") + &one("b", "/y") + &one("b", "/z") + &one("c", "'/x/{other}'");
    let documents = read(&text, Some("w.yaml")).expect("their form is sound");
    let faults: Vec<_> = check_all(&documents, &nodes())
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        faults,
        [
            "w.yaml:14:19: metadata.name: Another Workflow is named `b` (w.yaml:8:19)",
            "w.yaml:22:12: spec.trigger: The workflow `a` claims the webhook `POST /x/{}` (w.yaml:4:12)",
        ]
    );
}

#[test]
fn a_faulty_id_is_one_fault_however_often_it_is_named() {
    check(
        "  steps: [{id: a b, uses: noop}, {id: c, uses: switch, routes: {x: a b}, after: a b}]",
        &["4:16: spec.steps.0.id: A step's id should be made of"],
    );
}

#[test]
fn no_damage_to_a_file_makes_its_reading_panic() {
    const PIECES: [&str; 26] = [
        "{",
        "}",
        "[",
        "]",
        ": ",
        "- ",
        "\n",
        "  ",
        "|\n",
        ">-\n",
        "&a ",
        "*a",
        "!!str ",
        "!x ",
        "\"",
        "'",
        "#",
        "---\n",
        "%YAML 1.2\n",
        "\t",
        "? ",
        ", ",
        "ä",
        "end",
        "trigger",
        "{{",
    ];
    let mut rng = StdRng::seed_from_u64(7);
    for _ in 0..300 {
        let mut text: Vec<char> = LEADS.chars().collect();
        for _ in 0..rng.random_range(1..6) {
            let at = rng.random_range(0..text.len());
            let to = (at + rng.random_range(1..30)).min(text.len());
            let from = rng.random_range(0..text.len());
            match rng.random_range(0..3) {
                0 => drop(text.drain(at..to)),
                1 => drop(text.splice(at..at, PIECES[rng.random_range(0..PIECES.len())].chars())),
                _ => {
                    let copy = text[from..(from + 40).min(text.len())].to_vec();
                    drop(text.splice(at..at, copy));
                }
            }
        }
        let text: String = text.into_iter().collect();
        if let Ok(documents) = read(&text, None) {
            let _ = check_all(&documents, &nodes());
        }
    }
}
