//! The whole front over a real host and a real Postgres, without sockets.

use std::{collections::HashSet, sync::Arc, time::Duration};

use callboard_agents::sessions::Sessions;
use callboard_runtime::{
    core::{Config, Core},
    executions::Executions,
    node::NodeRegistry,
    outbound::OutboundPolicy,
};
use callboard_tests::Database;
use poem::{
    Endpoint, EndpointExt, Request, Response,
    endpoint::make,
    http::{Method, header},
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{App, State, front::Front, keys};

const ADMIN_KEY: &str = "cb_admin";

struct Host {
    front: Front,
    core: Core,
    draining: CancellationToken,
    shutdown: CancellationToken,
    // Dropped last.
    _database: Database,
}

impl Host {
    async fn start() -> Self {
        let database = Database::create().await;
        let config = Config {
            database_url: database.url().to_owned(),
            labels: Default::default(),
            lease: Duration::from_secs(30),
            running_max: 100,
            outbound: OutboundPolicy::default(),
            env_allowed: Vec::new(),
            exclusive: true,
        };
        let core = Core::connect(config).await.expect("the host joins");
        keys::ensure_admin_key(&core, ADMIN_KEY)
            .await
            .expect("the key is stored");
        let mut nodes = NodeRegistry::default();
        callboard_nodes::register(&mut nodes, core.outbound.clone());
        let late_sessions = callboard_agents::node::register(&mut nodes);
        let nodes = Arc::new(nodes);
        let executions = Executions::start_manager(core.clone(), nodes.clone())
            .await
            .expect("the manager starts");
        let sessions = Sessions::start(core.clone(), executions.clone(), nodes.clone())
            .await
            .expect("sessions start");
        late_sessions.set(sessions.clone());
        let app = App {
            core: core.clone(),
            executions,
            sessions,
            nodes,
        };
        let (draining, shutdown) = (CancellationToken::new(), CancellationToken::new());
        let front = Front::new(State::new(
            app,
            false,
            64 * 1024,
            draining.clone(),
            shutdown.clone(),
        ));
        Self {
            front,
            core,
            draining,
            shutdown,
            _database: database,
        }
    }

    async fn call(&self, request: Request) -> Response {
        self.front.get_response(request).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: impl Into<poem::Body>,
    ) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri_str(path)
            .header(header::AUTHORIZATION, format!("Bearer {ADMIN_KEY}"))
            .content_type(content_type)
            .body(body);
        Answer::of(self.call(request).await).await
    }

    async fn json(&self, method: Method, path: &str, body: Value) -> Answer {
        self.send(method, path, "application/json", body.to_string())
            .await
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, "", "").await
    }

    async fn yaml(&self, method: Method, path: &str, body: &str) -> Answer {
        self.send(method, path, "application/yaml", body.to_owned())
            .await
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: poem::http::HeaderMap,
    body: Value,
}

impl Answer {
    async fn of(response: Response) -> Self {
        let (parts, body) = response.into_parts();
        let text = body.into_string().await.expect("answers are text");
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Self {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body,
        }
    }

    fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// Places and types of all faults.
    fn faults(&self) -> Vec<(String, &str)> {
        let faults = self.body["detail"]
            .as_array()
            .unwrap_or_else(|| panic!("no faults: {self:?}"));
        let loc = |fault: &Value| {
            let parts = fault["loc"].as_array().into_iter().flatten();
            let parts: Vec<String> = parts
                .map(|part| part.to_string().replace('"', ""))
                .collect();
            parts.join(".")
        };
        faults
            .iter()
            .map(|fault| (loc(fault), fault["type"].as_str().unwrap_or_default()))
            .collect()
    }
}

/// A workflow that one webhook starts.
fn hook(name: &str, path: &str) -> String {
    format!(
        "kind: Workflow\nmetadata: {{ name: {name} }}\nspec:\n  trigger: {{ type: webhook, path: \"{path}\", method: POST }}\n  \
         steps: [ {{ id: a, uses: noop }} ]\n"
    )
}

#[tokio::test]
async fn every_refusal_has_one_of_two_shapes_and_a_trace_id() {
    let host = Host::start().await;
    let get = |path: &'static str| host.get(path);
    for (answer, status, code) in [
        (get("/nothing").await, 404, "not_found"),
        (get("/v1/workflows/none").await, 404, "not_found"),
        (get("/hooks/none").await, 404, "not_found"),
        (
            host.json(Method::DELETE, "/v1/workflows", json!({})).await,
            405,
            "method_not_allowed",
        ),
        (
            host.send(Method::POST, "/v1/keys", "text/plain", "x").await,
            415,
            "unsupported_media_type",
        ),
        (
            host.send(
                Method::POST,
                "/v1/keys",
                "application/json",
                "x".repeat(70_000),
            )
            .await,
            413,
            "body_too_large",
        ),
    ] {
        assert_eq!(answer.status, status, "{answer:?}");
        assert_eq!(answer.header("content-type"), "application/problem+json");
        assert_eq!(
            (&answer.body["code"], &answer.body["status"]),
            (&json!(code), &json!(status))
        );
        assert!(
            answer.body["title"].is_string() && answer.body["detail"].is_string(),
            "{answer:?}"
        );
        assert_eq!(answer.body["trace_id"], answer.header("x-trace-id"));
    }
    let faulty = host
        .json(
            Method::POST,
            "/v1/keys",
            json!({ "name": 1, "scopes": ["x", 2], "z": 0 }),
        )
        .await;
    assert_eq!(
        (faulty.status, faulty.header("content-type")),
        (422, "application/json")
    );
    assert_eq!(faulty.header("x-trace-id").len(), 32);
    let at = |place: &str, kind| (place.to_owned(), kind);
    assert_eq!(
        faulty.faults(),
        [
            at("body.name", "string_type"),
            at("body.scopes.0", "value_error"),
            at("body.scopes.1", "string_type"),
            at("body.z", "extra_forbidden"),
        ]
    );
    let empty = host
        .send(Method::POST, "/v1/keys", "application/json", "")
        .await;
    assert_eq!(empty.faults(), [at("body", "missing")]);
    let several = host
        .get("/v1/executions/x/node-runs?limit=0&cursor=!")
        .await;
    assert_eq!(
        several.faults(),
        [
            at("path.id", "uuid_parsing"),
            at("query.limit", "greater_than_equal"),
            at("query.cursor", "value_error")
        ]
    );
}

#[tokio::test]
async fn a_method_that_a_path_lacks_is_answered_with_those_it_has() {
    let host = Host::start().await;
    for (path, allowed) in [
        ("/v1/workflows", "GET, POST, HEAD"),
        ("/v1/workflows/a", "GET, PUT, PATCH, DELETE, HEAD"),
        ("/v1/executions/a/cancel", "POST"),
        ("/docs", "GET, HEAD"),
    ] {
        let answer = host.json(Method::TRACE, path, json!({})).await;
        assert_eq!(
            (answer.status, answer.header("allow")),
            (405, allowed),
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_panic_is_an_answer_and_not_the_end() {
    let mut host = Host::start().await;
    async fn broken(_: Request) -> poem::Result<()> {
        panic!("a secret")
    }
    host.front.routes = make(broken).map_to_response().boxed();
    let answer = host.get("/v1/workflows").await;
    assert_eq!(
        (answer.status, &answer.body["code"]),
        (500, &json!("internal"))
    );
    assert!(!answer.body.to_string().contains("secret"));
}

#[tokio::test]
async fn the_document_describes_every_operation_with_its_refusals() {
    let host = Host::start().await;
    let document = host.get("/openapi.json").await.body;
    assert!(
        document["openapi"]
            .as_str()
            .is_some_and(|version| version.starts_with("3.0."))
    );
    let mut ids = HashSet::new();
    for (path, operations) in document["paths"].as_object().expect("there are paths") {
        for (method, operation) in operations.as_object().expect("there are operations") {
            let name = format!("{method} {path}");
            assert!(operation["summary"].is_string(), "{name}");
            assert!(ids.insert(operation["operationId"].to_string()), "{name}");
            if path.starts_with("/v1") {
                assert!(!operation["security"].is_null(), "{name}");
                for status in ["401", "403", "422", "503"] {
                    assert!(!operation["responses"][status].is_null(), "{name} {status}");
                }
            }
            let parameters = operation["parameters"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            for parameter in path
                .split('/')
                .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
            {
                let declared = |known: &Value| known["name"] == parameter && known["in"] == "path";
                assert!(parameters.iter().any(declared), "{name}: {parameter}");
            }
        }
    }
    let text = document.to_string();
    let schemas = document["components"]["schemas"]
        .as_object()
        .expect("there are schemas");
    for reference in text
        .split("#/components/schemas/")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
    {
        assert!(schemas.contains_key(reference), "{reference}");
    }
    for stream in ["/v1/executions/{id}/events", "/v1/sessions/{id}/events"] {
        assert!(
            !document["paths"][stream]["get"]["responses"]["200"]["content"]["text/event-stream"]
                .is_null()
        );
    }
}

#[tokio::test]
async fn a_secret_is_never_shown_and_survives_being_sent_back_hidden() {
    let host = Host::start().await;
    let yaml = "kind: Provider\nmetadata: { name: p }\nspec: { type: openai, base_url: \"https://a/v1\", api_key: sk-1 }\n";
    let created = host.yaml(Method::POST, "/v1/providers", yaml).await;
    assert_eq!(
        (created.status, created.header("location")),
        (201, "/v1/providers/p")
    );
    assert_eq!(created.body["spec"]["api_key"], "***");
    let mut document =
        json!({ "kind": "Provider", "metadata": { "name": "p" }, "spec": created.body["spec"] });
    document["spec"]["base_url"] = json!("https://b/v1");
    let replaced = host.json(Method::PUT, "/v1/providers/p", document).await;
    assert_eq!(
        (replaced.status, &replaced.body["version"]),
        (200, &json!(2)),
        "{replaced:?}"
    );
    let stored = host
        .core
        .documents
        .find("Provider", "p")
        .expect("it is stored");
    assert_eq!(stored.body["spec"]["api_key"], "sk-1");
    assert_eq!(stored.body["spec"]["base_url"], "https://b/v1");
}

#[tokio::test]
async fn one_yaml_document_is_taken_and_several_are_not() {
    let host = Host::start().await;
    let two = format!("{}---\n{}", hook("a", "/a"), hook("b", "/b"));
    assert_eq!(
        host.yaml(Method::POST, "/v1/workflows", &two).await.status,
        422
    );
    assert_eq!(
        host.yaml(Method::POST, "/v1/workflows", "").await.status,
        422
    );
    let created = host
        .yaml(Method::PUT, "/v1/workflows/a", &hook("a", "/a"))
        .await;
    assert_eq!(
        (created.status, created.header("location")),
        (201, "/v1/workflows/a")
    );
    assert_eq!(
        host.yaml(Method::POST, "/v1/workflows", &hook("a", "/a"))
            .await
            .status,
        409
    );
    let other = host
        .yaml(Method::PUT, "/v1/workflows/b", &hook("a", "/a"))
        .await;
    assert_eq!(
        other.faults(),
        [("body.metadata.name".to_owned(), "value_error")]
    );
}

#[tokio::test]
async fn two_enabled_workflows_cannot_claim_one_webhook() {
    let host = Host::start().await;
    let enable = |name: &'static str, enabled| {
        host.json(
            Method::PATCH,
            if name == "a" {
                "/v1/workflows/a"
            } else {
                "/v1/workflows/b"
            },
            json!({ "enabled": enabled }),
        )
    };
    assert_eq!(
        host.yaml(Method::POST, "/v1/workflows", &hook("a", "/leads/{id}"))
            .await
            .status,
        201
    );
    let refused = host
        .yaml(Method::POST, "/v1/workflows", &hook("b", "/leads/{other}"))
        .await;
    assert_eq!(
        (refused.status, &refused.body["code"]),
        (409, &json!("webhook_conflict"))
    );
    assert_eq!(enable("a", false).await.status, 200);
    assert_eq!(
        host.json(Method::POST, "/hooks/leads/1", json!({}))
            .await
            .status,
        404
    );
    assert_eq!(
        host.yaml(Method::POST, "/v1/workflows", &hook("b", "/leads/{other}"))
            .await
            .status,
        201
    );
    assert_eq!(enable("a", true).await.body["code"], "webhook_conflict");
    assert_eq!(
        host.json(Method::POST, "/hooks/leads/1", json!({ "n": 1 }))
            .await
            .body,
        json!({ "n": 1 })
    );
    assert_eq!(enable("b", false).await.status, 200);
    assert_eq!(enable("a", true).await.status, 200);
}

#[tokio::test]
async fn a_host_that_stops_starts_nothing_and_lets_tails_go() {
    let host = Host::start().await;
    let nap = "kind: Workflow\nmetadata: { name: nap }\nspec: { steps: [ { id: a, uses: wait.timer, with: { duration: 1h } } ] }\n";
    assert_eq!(
        host.yaml(Method::POST, "/v1/workflows", nap).await.status,
        201
    );
    let started = host
        .json(Method::POST, "/v1/workflows/nap/executions", json!({}))
        .await;
    assert_eq!(started.status, 202, "{started:?}");
    let place = started.header("location").to_owned();
    let tail = Request::builder()
        .uri_str(format!("{place}/events"))
        .header(header::AUTHORIZATION, format!("Bearer {ADMIN_KEY}"))
        .finish();
    let tail = host.call(tail).await;
    host.draining.cancel();
    for refused in [
        host.json(Method::POST, "/v1/workflows/nap/executions", json!({}))
            .await,
        host.get("/health/ready").await,
    ] {
        assert_eq!(
            (refused.status, refused.header("retry-after")),
            (503, "1"),
            "{refused:?}"
        );
        assert_eq!(refused.header("connection"), "close");
    }
    assert_eq!(host.get(&place).await.status, 200);
    assert_eq!(host.get("/health/live").await.status, 200);
    host.shutdown.cancel();
    tail.into_body()
        .into_string()
        .await
        .expect("the stream ends");
}

#[tokio::test]
async fn whoever_waits_while_the_host_stops_is_told_where_to_look() {
    let host = Host::start().await;
    let nap = "kind: Workflow\nmetadata: { name: nap }\nspec:\n  trigger: { type: webhook, path: /nap, method: POST }\n  \
               steps: [ { id: a, uses: wait.timer, with: { duration: 1h } } ]\n";
    assert_eq!(
        host.yaml(Method::POST, "/v1/workflows", nap).await.status,
        201
    );
    let prefer = Request::builder()
        .method(Method::POST)
        .uri_str("/v1/workflows/nap/executions")
        .header(header::AUTHORIZATION, format!("Bearer {ADMIN_KEY}"))
        .header("Prefer", "wait=60")
        .finish();
    let stop = async {
        let started = || async {
            host.get("/v1/executions").await.body["data"]
                .as_array()
                .map_or(0, Vec::len)
        };
        while started().await < 2 {
            tokio::task::yield_now().await;
        }
        host.shutdown.cancel();
    };
    let (hook, preferred, ()) = tokio::join!(
        host.json(Method::POST, "/hooks/nap", json!({})),
        host.call(prefer),
        stop
    );
    for answer in [hook, Answer::of(preferred).await] {
        assert_eq!(answer.status, 202, "{answer:?}");
        assert!(
            answer.header("location").starts_with("/v1/executions/"),
            "{answer:?}"
        );
        assert!(answer.body["id"].is_string());
    }
}

#[tokio::test]
async fn what_a_client_may_not_say_is_a_fault_and_no_failure() {
    let host = Host::start().await;
    for path in [
        "/v1/executions?workflow=a%00b",
        "/v1/executions?trigger=a%00b",
        "/v1/sessions?agent=a%00b",
    ] {
        assert_eq!(host.get(path).await.status, 422, "{path}");
    }
    for kind in ["workflows", "agents", "providers"] {
        let path = format!("/v1/{kind}/a%00b");
        for method in [Method::GET, Method::DELETE] {
            let answer = host.send(method, &path, "", "").await;
            assert_eq!(answer.status, 404, "{path}");
        }
    }
    let key = json!({"name": "a\0b", "scopes": ["workflows:read"]});
    let answer = host.json(Method::POST, "/v1/keys", key).await;
    assert_eq!(answer.status, 422);
}

#[tokio::test]
async fn an_idempotency_key_that_is_no_text_is_refused_and_not_passed_over() {
    let host = Host::start().await;
    let paths = [
        "/v1/workflows/w/executions".to_owned(),
        "/v1/agents/a/sessions".to_owned(),
        format!("/v1/sessions/{}/messages", uuid::Uuid::nil()),
    ];
    for path in paths {
        let key = header::HeaderValue::from_bytes("é".as_bytes()).expect("a header may be so");
        let request = Request::builder()
            .method(Method::POST)
            .uri_str(&path)
            .header(header::AUTHORIZATION, format!("Bearer {ADMIN_KEY}"))
            .header("Idempotency-Key", key)
            .content_type("application/json")
            .body("{}");
        let answer = Answer::of(host.call(request).await).await;
        assert_eq!(answer.status, 422, "{path}: {:#}", answer.body);
        assert!(
            answer.body.to_string().contains("idempotency-key"),
            "{path}"
        );
    }
}

#[tokio::test]
async fn no_answer_is_guessed_at_by_its_content() {
    let host = Host::start().await;
    for path in [
        "/health/live",
        "/docs",
        "/v1/workflows",
        "/nowhere",
        "/hooks/x",
    ] {
        let request = Request::builder().uri_str(path).finish();
        let response = host.call(request).await;
        let header = response.headers().get("x-content-type-options");
        assert_eq!(
            header.map(|value| value.as_bytes()),
            Some(&b"nosniff"[..]),
            "{path}"
        );
    }
}
