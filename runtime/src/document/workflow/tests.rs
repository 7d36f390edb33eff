//! The compiler over node types made for it.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;

use super::*;
use crate::{
    document::read,
    model::graph::{Join, Settings, Webhook},
    node::{
        AsyncNode, Node, NodeError, NodeInput, NodeOutcome, NodeOutput, NodeType, ParameterFault,
        PureNode,
    },
};

mod faults;

/// A node type that passes its items on.
struct Passing {
    name: &'static str,
    effect: EffectClass,
    parameters: Value,
    ports: fn(&Value) -> Ports,
    verbatim: &'static [&'static str],
}

impl Node for Passing {
    fn node_type(&self) -> NodeType {
        NodeType {
            name: self.name,
            version: 1,
            summary: "Passes its items on.",
            effect: self.effect,
            parameters: self.parameters.clone(),
            several_inputs: false,
        }
    }

    fn effect(&self, with: &Value) -> EffectClass {
        match with["method"] == "GET" {
            true => EffectClass::Idempotent,
            false => self.effect,
        }
    }

    fn ports(&self, with: &Value) -> Ports {
        (self.ports)(with)
    }

    fn check(&self, with: &Value) -> Vec<ParameterFault> {
        let fault = || ParameterFault {
            path: vec!["url".to_owned()],
            message: "ftp is not spoken".to_owned(),
        };
        let ftp = with["url"]
            .as_str()
            .is_some_and(|url| url.starts_with("ftp:"));
        ftp.then(fault).into_iter().collect()
    }

    fn verbatim(&self) -> &'static [&'static str] {
        self.verbatim
    }
}

impl PureNode for Passing {
    fn run(&self, input: &NodeInput) -> Result<NodeOutcome, NodeError> {
        Ok(NodeOutput::main(input.items().to_vec()).into())
    }
}

#[async_trait]
impl AsyncNode for Passing {
    async fn run(&self, input: NodeInput) -> Result<NodeOutcome, NodeError> {
        Ok(NodeOutput::main(input.items().to_vec()).into())
    }
}

fn named(names: &[&str]) -> Ports {
    Ports::Named(names.iter().map(|&name| name.to_owned()).collect())
}

fn passing(name: &'static str, properties: Value, required: Value) -> Passing {
    Passing {
        name,
        effect: EffectClass::Pure,
        parameters: json!({"type": "object", "properties": properties, "required": required}),
        ports: |_| named(&["main"]),
        verbatim: &[],
    }
}

fn nodes() -> NodeRegistry {
    let mut nodes = NodeRegistry::default();
    nodes
        .pure(passing("noop", json!({}), json!([])))
        .pure(passing(
            "set",
            json!({"values": {"type": "object"}, "keep": {"enum": ["all", "none"]}}),
            json!([]),
        ))
        .pure(Passing {
            ports: |_| named(&["true", "false"]),
            ..passing("if", json!({"condition": {}}), json!(["condition"]))
        })
        .pure(Passing {
            ports: |_| Ports::Open,
            ..passing("switch", json!({"value": {}}), json!([]))
        })
        .pure(Passing {
            ports: |_| named(&[]),
            ..passing(
                "stop_and_error",
                json!({"message": {"type": "string"}}),
                json!([]),
            )
        })
        .pure(Passing {
            verbatim: &["code"],
            ..passing("code", json!({"code": {"type": "string"}}), json!(["code"]))
        })
        .pure(passing(
            "respond",
            json!({"status": {"type": "integer"}}),
            json!([]),
        ))
        .asynchronous(Passing {
            effect: EffectClass::Effectful,
            ..passing(
                "http.request",
                json!({
                    "method": {"enum": ["GET", "POST"]},
                    "url": {"type": "string"},
                    "headers": {"type": "object", "additionalProperties": {"type": "string"}},
                    "follow_redirects": {"type": "boolean"},
                }),
                json!(["url"]),
            )
        })
        .asynchronous(Passing {
            effect: EffectClass::Effectful,
            ..passing(
                "model.create",
                json!({"model": {"type": "string"}, "data": {}}),
                json!(["model"]),
            )
        })
        .asynchronous(Passing {
            effect: EffectClass::Effectful,
            ports: |_| Ports::Open,
            ..passing(
                "agent",
                json!({"agent": {"type": "string"}, "input": {}}),
                json!(["agent"]),
            )
        })
        .asynchronous(passing(
            "wait.approval",
            json!({"title": {}, "expires": {}}),
            json!([]),
        ));
    nodes
}

fn compile_text(text: &str) -> Result<Graph, Vec<Fault>> {
    let documents = read(text, Some("w.yaml"))?;
    compile(&documents[0], &nodes())
}

/// A workflow of these steps, written as the members of `spec`.
fn with_spec(spec: &str) -> String {
    format!("kind: Workflow\nmetadata: {{ name: w }}\nspec:\n{spec}\n")
}

fn graph(spec: &str) -> Graph {
    let text = with_spec(spec);
    compile_text(&text).unwrap_or_else(|faults| panic!("{text}\n{faults:#?}"))
}

/// `a.port -> b`, or `a.port -> b#2` for the input of a join.
fn edges(body: &Body) -> Vec<String> {
    let edge = |from: &Step, edge: &crate::model::graph::Edge| {
        let slot = edge.slot.map(|slot| format!("#{slot}")).unwrap_or_default();
        let to = &body.steps[edge.to].id;
        format!("{}.{} -> {to}{slot}", from.id, edge.port)
    };
    let steps = body.steps.iter();
    steps
        .flat_map(|from| from.edges.iter().map(move |each| edge(from, each)))
        .collect()
}

const LEADS: &str = r#"
kind: Workflow
metadata: { name: lead-intake, description: "...", tags: [sales], required_scope: leads:run }
spec:
  trigger:
    type: webhook
    path: /leads/{source}
    method: post
    respond: last_step
    public: false
    input_schema:
      - { name: email, type: string, required: true }
      - { name: employees, type: integer, default: 0, min: 0 }
  settings: { timeout: 5m, max_parallel: 4, on_crash: fail, timezone: Europe/Berlin, max_node_runs: 50 }
  steps:
    - id: enrich
      uses: http.request
      with: { method: GET, url: "https://crm.example/api/people?email={{ $json.email }}" }
      retry: { max_attempts: 4, backoff: exponential, initial: 500ms, max: 30s }
      timeout: 10s
      on_error: route
      routes: { error: triage }
    - id: qualified
      uses: if
      with: { condition: "{{ $json.employees > 50 }}" }
      routes: { "true": score, "false": store }
    - id: score
      uses: agent
      with: { agent: lead-scorer, input: "{{ $json }}" }
      on_crash: retry
    - id: store
      uses: model.create
      with: { model: Contact, data: "{{ $('trigger').item.json }}" }
      after: [score, qualified.false]
    - id: triage
      uses: wait.approval
      with: { title: "CRM is down for {{ $json.email }}", expires: 2d }
"#;

#[test]
fn the_example_of_the_language_is_connected_as_it_says() {
    let graph = compile_text(LEADS).expect("it is sound");
    assert_eq!(
        edges(&graph.body),
        [
            "trigger.main -> enrich",
            "enrich.error -> triage",
            "enrich.main -> qualified",
            "qualified.true -> score",
            "qualified.false -> store#1",
            "score.main -> store#0",
        ]
    );
    let store = &graph.body.steps[4];
    assert_eq!(
        store.join,
        Some(Join {
            sources: vec![(3, "main".into()), (2, "false".into())],
            need: None
        })
    );
    assert!(graph.body.reach[1].contains(5) && !graph.body.reach[2].contains(5));
}

#[test]
fn everything_a_step_says_is_in_the_graph() {
    let graph = compile_text(LEADS).expect("it is sound");
    assert_eq!(&*graph.name, "lead-intake");
    assert_eq!(graph.required_scope.as_deref(), Some("leads:run"));
    assert_eq!(
        graph.settings,
        Settings {
            timeout: Some(Duration::from_secs(300)),
            max_parallel: 4,
            max_node_runs: 50,
            timezone: "Europe/Berlin".into()
        }
    );
    let [entry, enrich, qualified, score, ..] = graph.body.steps.as_slice() else {
        panic!("there are six steps")
    };
    assert!(matches!(entry.action, Action::Entry));
    assert_eq!(
        enrich.retry,
        Retry {
            max_attempts: 4,
            initial: Duration::from_millis(500),
            max: Duration::from_secs(30),
            exponential: true
        }
    );
    assert_eq!(enrich.timeout, Some(Duration::from_secs(10)));
    assert_eq!(
        (enrich.on_error, enrich.on_crash),
        (OnError::Route, OnCrash::Fail)
    );
    assert_eq!(enrich.effect, EffectClass::Idempotent);
    assert_eq!(qualified.effect, EffectClass::Pure);
    assert_eq!(
        (score.effect, score.on_crash),
        (EffectClass::Effectful, OnCrash::Retry)
    );
    assert_eq!(score.with["agent"], "lead-scorer");
    let [
        Trigger::Manual { input_schema: None },
        Trigger::Webhook(webhook),
    ] = graph.triggers.as_slice()
    else {
        panic!("there are two triggers")
    };
    assert_eq!(
        (webhook.path.as_str(), webhook.method.as_str()),
        ("/leads/{source}", "POST")
    );
    assert_eq!(
        webhook.input_schema,
        Some(json!({
            "type": "object",
            "properties": {
                "email": {"type": "string"},
                "employees": {"minimum": 0, "type": ["integer", "null"], "default": 0},
            },
            "required": ["email"],
        }))
    );
}

#[test]
fn edges_follow_order_routes_and_after() {
    for (steps, expected) in [
        (
            "[{id: a, uses: noop}, {id: b, uses: noop}]",
            "trigger.main -> a, a.main -> b",
        ),
        // A route may be a list, may lead back, and may end.
        (
            "[{id: a, uses: noop}, {id: b, uses: switch, routes: {x: [c, d], again: a, out: end}}, {id: c, uses: noop}, {id: d, uses: noop}]",
            "trigger.main -> a, a.main -> b, b.x -> c, b.x -> d, b.again -> a",
        ),
        // A loop may have its head in the middle, and may say where it is entered.
        (
            "[{id: s, uses: noop}, {id: a, uses: noop}, {id: b, uses: if, with: {condition: 1}, routes: {true: a, false: end}}]",
            "trigger.main -> s, s.main -> a, a.main -> b, b.true -> a",
        ),
        (
            "[{id: a, uses: noop, after: trigger}, {id: b, uses: if, with: {condition: 1}, routes: {true: a, false: end}}]",
            "trigger.main -> a, a.main -> b, b.true -> a",
        ),
        (
            "[{id: a, uses: switch, routes: {again: a}}]",
            "trigger.main -> a, a.again -> a",
        ),
        // What is led to from further on and reached that way is no head of a loop.
        (
            "[{id: s, uses: noop}, {id: fix, uses: noop}, {id: b, uses: if, with: {condition: 1}, after: s, routes: {true: fix}}]",
            "trigger.main -> s, s.main -> b, b.true -> fix",
        ),
        // Parallel branches from the trigger, and a join of any.
        (
            "[{id: a, uses: noop}, {id: b, uses: noop, after: [trigger]}, {id: c, uses: noop, after: [a, b], join: any}]",
            "trigger.main -> a, trigger.main -> b, a.main -> c#0, b.main -> c#1",
        ),
        // Behind a step that ends the run the order still holds.
        (
            "[{id: a, uses: stop_and_error}, {id: b, uses: noop}]",
            "trigger.main -> a, a.main -> b",
        ),
        // A route to a step that comes after this very port is the same connection; another port is another visit.
        (
            "[{id: a, uses: if, with: {condition: 1}, routes: {true: b, false: b}}, {id: b, uses: noop, after: a.true}]",
            "trigger.main -> a, a.true -> b, a.false -> b",
        ),
        // A port's name begins behind the first dot.
        (
            "[{id: a, uses: switch}, {id: b, uses: noop, after: a.v1.2}]",
            "trigger.main -> a, a.v1.2 -> b",
        ),
        // `main: end` takes the place of what would follow.
        (
            "[{id: a, uses: switch, routes: {main: end, x: c}}, {id: b, uses: noop, after: trigger}, {id: c, uses: noop}]",
            "trigger.main -> a, trigger.main -> b, a.x -> c",
        ),
        // A step may follow one that is listed later.
        (
            "[{id: a, uses: noop, after: b}, {id: b, uses: noop, after: trigger}]",
            "trigger.main -> b, b.main -> a",
        ),
    ] {
        assert_eq!(
            edges(&graph(&format!("  steps: {steps}")).body).join(", "),
            expected,
            "{steps}"
        );
    }
}

#[test]
fn joins_say_how_many_must_arrive() {
    for (join, need) in [
        ("", None),
        (", join: all", None),
        (", join: any", Some(1)),
        (", join: 2", Some(2)),
    ] {
        let steps = format!(
            "  steps: [{{id: a, uses: noop}}, {{id: b, uses: noop}}, {{id: c, uses: noop, after: [a, b, trigger]{join}}}]"
        );
        let graph = graph(&steps);
        let joined = graph.body.steps[3].join.as_ref().expect("it joins");
        assert_eq!(joined.need, need, "{join}");
        assert_eq!(
            joined.sources,
            [(1, "main".into()), (2, "main".into()), (0, "main".into())]
        );
    }
    let single =
        graph("  steps: [{id: a, uses: noop}, {id: b, uses: noop, after: [a], join: all}]");
    assert_eq!(single.body.steps[2].join, None);
}

#[test]
fn a_routed_error_port_decides_what_follows_an_error() {
    for (step, expected) in [
        ("{id: a, uses: noop}", OnError::Fail),
        ("{id: a, uses: noop, on_error: continue}", OnError::Continue),
        ("{id: a, uses: noop, routes: {error: b}}", OnError::Route),
        ("{id: a, uses: noop, routes: {error: end}}", OnError::Route),
        (
            "{id: a, uses: noop, on_error: route, routes: {error: b}}",
            OnError::Route,
        ),
    ] {
        let graph = graph(&format!("  steps: [{step}, {{id: b, uses: noop}}]"));
        assert_eq!(graph.body.steps[1].on_error, expected, "{step}");
    }
    let graph = graph(
        "  steps: [{id: a, uses: noop, on_error: route}, {id: b, uses: noop, after: a.error}]",
    );
    assert_eq!(graph.body.steps[1].on_error, OnError::Route);
}

#[test]
fn a_map_has_a_body_of_its_own() {
    let graph = graph(
        "  steps:
    - id: all
      uses: map
      with: { items: \"{{ $json.rows }}\", max_parallel: 3, on_item_error: collect }
      steps:
        - { id: get, uses: http.request, with: { method: GET, url: \"{{ $json.url }}\" } }
        - { id: side, uses: noop, after: trigger }
        - { id: both, uses: noop, after: [get, side] }
    - { id: last, uses: noop }",
    );
    assert_eq!(
        edges(&graph.body),
        ["trigger.main -> all", "all.main -> last"]
    );
    let all = &graph.body.steps[1];
    assert_eq!(all.effect, EffectClass::Idempotent);
    let Action::Map(map) = &all.action else {
        panic!("it is a map")
    };
    assert_eq!((map.max_parallel, map.collect_errors), (3, true));
    assert_eq!(
        edges(&map.body),
        [
            ".main -> get",
            ".main -> side",
            "get.main -> both#0",
            "side.main -> both#1"
        ]
    );
}

#[test]
fn triggers_have_their_defaults() {
    let steps = "  steps: [{id: a, uses: respond}]";
    assert_eq!(
        graph(steps).triggers,
        [Trigger::Manual { input_schema: None }]
    );
    let webhook = graph(&format!(
        "  triggers: [{{type: manual, input_schema: {{type: object}}}}, {{type: webhook, path: a/b, respond: respond_step}}]\n{steps}"
    ));
    assert_eq!(
        webhook.triggers,
        [
            Trigger::Manual {
                input_schema: Some(json!({"type": "object"}))
            },
            Trigger::Webhook(Webhook {
                path: "/a/b".to_owned(),
                method: "POST".to_owned(),
                respond: Respond::RespondStep,
                public: false,
                input_schema: None,
                response_schema: None,
            }),
        ]
    );
}

#[test]
fn fields_become_a_json_schema() {
    let graph = graph(
        "  trigger:
    type: manual
    input_schema:
      - { name: a, type: enum, values: [x, y], required: true, description: d }
      - { name: b, type: enum, values: [x] }
      - { name: c, type: timestamp }
      - { name: d, type: text, max_length: 5, pattern: '^a' }
      - { name: e, type: jsonb }
      - { name: f, type: bytes, required: true }
  steps: [{id: a, uses: noop}]",
    );
    let [
        Trigger::Manual {
            input_schema: Some(schema),
        },
    ] = graph.triggers.as_slice()
    else {
        panic!("there is one trigger, with a schema")
    };
    assert_eq!(
        schema["properties"],
        json!({
            "a": {"description": "d", "enum": ["x", "y"]},
            "b": {"anyOf": [{"enum": ["x"]}, {"type": "null"}]},
            "c": {"format": "date-time", "type": ["string", "null"]},
            "d": {"maxLength": 5, "pattern": "^a", "type": ["string", "null"]},
            "e": {},
            "f": {"contentEncoding": "base64", "type": "string"},
        })
    );
    assert_eq!(schema["required"], json!(["a", "f"]));
}
