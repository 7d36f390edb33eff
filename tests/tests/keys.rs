//! Keys and scopes: who gets in, and how far.

use callboard_tests::{Method, Options, Server, wait_until};
use serde_json::{Value, json};

const ADD: &str =
    "kind: Workflow\nmetadata: { name: add }\nspec:\n  steps:\n    - { id: a, uses: noop }\n";

#[tokio::test]
async fn without_a_valid_key_nobody_gets_in() {
    let server = Server::start().await;
    for key in ["", "cb_unknown_key_0123456789"] {
        let reply = server
            .call_as(key, Method::GET, "/v1/workflows")
            .send()
            .await;
        assert!(reply.header("www-authenticate").is_some(), "{reply:#?}");
        reply.expect_problem(401);
    }
    let reply = server
        .call_as("", Method::GET, "/v1/workflows")
        .header("authorization", "Basic YTpi")
        .send()
        .await;
    reply.expect_problem(401);
    server.get("/v1/workflows").await.expect(200);
}

#[tokio::test]
async fn a_key_is_shown_once_listed_without_its_secret_and_revoked() {
    let server = Server::start().await;
    let created = server
        .post(
            "/v1/keys",
            &json!({"name": "ci", "scopes": ["workflows:read"]}),
        )
        .await
        .expect(201);
    assert_eq!(
        (&created["name"], &created["scopes"]),
        (&json!("ci"), &json!(["workflows:read"]))
    );
    let (secret, id) = (
        created["key"].as_str().unwrap(),
        created["id"].as_str().unwrap(),
    );
    let list = server.get("/v1/keys").await.expect(200);
    assert!(
        list.to_string().contains(id) && !list.to_string().contains(secret),
        "{list:#}"
    );
    let call = || server.call_as(secret, Method::GET, "/v1/workflows").send();
    call().await.expect(200);
    server.delete(&format!("/v1/keys/{id}")).await.expect(204);
    call().await.expect_problem(401);
    server
        .delete(&format!("/v1/keys/{id}"))
        .await
        .expect_problem(404);
}

#[tokio::test]
async fn an_expired_key_is_refused() {
    let server = Server::start().await;
    let now: String = {
        // The server's own clock decides: any execution tells it.
        server.apply(ADD).await;
        server.run("add", json!({})).await["finished_at"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let create = |expires_at: String| {
        let body = json!({"name": "brief", "scopes": ["workflows:read"], "expires_at": expires_at});
        server.call(Method::POST, "/v1/keys").json(&body).send()
    };
    // A time that is past already is either refused or makes a key that never worked.
    let reply = create(now.clone()).await;
    if reply.status == 201 {
        let secret = reply.body["key"].as_str().unwrap().to_owned();
        server
            .call_as(&secret, Method::GET, "/v1/workflows")
            .send()
            .await
            .expect_problem(401);
    } else {
        reply.expect(422);
    }
    let soon = seconds_later(&now, 3);
    let created = create(soon).await.expect(201);
    let secret = created["key"].as_str().unwrap();
    wait_until("the key expires", || async {
        let reply = server
            .call_as(secret, Method::GET, "/v1/workflows")
            .send()
            .await;
        match reply.status {
            200 => None,
            _ => Some(reply.expect_problem(401)),
        }
    })
    .await;
    let wrong = json!({"name": "x", "scopes": ["workflows:read"], "expires_at": "tomorrow"});
    server
        .post("/v1/keys", &wrong)
        .await
        .expect_fault(&["body", "expires_at"]);
}

/// Adds seconds to a time as the API writes it.
fn seconds_later(time: &str, seconds: i64) -> String {
    let time: chrono::DateTime<chrono::Utc> = time.parse().unwrap();
    (time + chrono::Duration::seconds(seconds)).to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}

#[tokio::test]
async fn every_scope_opens_its_own_doors_only() {
    let server = Server::start().await;
    server.apply(ADD).await;
    let id = server.run("add", json!({})).await["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let document = json!({"kind": "Workflow", "metadata": {"name": "new"}, "spec": {"steps": [{"id": "a", "uses": "noop"}]}});
    let doors: [(&str, Method, String, Value); 9] = [
        (
            "workflows:read",
            Method::GET,
            "/v1/workflows".into(),
            Value::Null,
        ),
        (
            "workflows:read",
            Method::GET,
            "/v1/workflows/add".into(),
            Value::Null,
        ),
        (
            "workflows:write",
            Method::PUT,
            "/v1/workflows/new".into(),
            document,
        ),
        (
            "workflows:run",
            Method::POST,
            "/v1/workflows/add/executions".into(),
            json!({"input": {}}),
        ),
        (
            "executions:read",
            Method::GET,
            "/v1/executions".into(),
            Value::Null,
        ),
        (
            "executions:read",
            Method::GET,
            format!("/v1/executions/{id}"),
            Value::Null,
        ),
        (
            "executions:write",
            Method::POST,
            format!("/v1/executions/{id}/cancel"),
            json!({}),
        ),
        ("agents:read", Method::GET, "/v1/agents".into(), Value::Null),
        ("keys:write", Method::GET, "/v1/keys".into(), Value::Null),
    ];
    let scopes = [
        "workflows:read",
        "workflows:write",
        "workflows:run",
        "executions:read",
        "executions:write",
        "agents:read",
        "keys:write",
    ];
    for scope in scopes {
        let key = server.key(scope, &[scope]).await;
        for (needed, method, path, body) in &doors {
            let call = server.call_as(&key, method.clone(), path);
            let call = if body.is_null() {
                call
            } else {
                call.json(body)
            };
            let reply = call.send().await;
            if *needed == scope {
                assert!(
                    !matches!(reply.status, 401 | 403),
                    "{scope} at {method} {path}: {reply:#?}"
                );
            } else {
                let problem = reply.expect_problem(403);
                assert_eq!(problem["scope"], *needed, "{method} {path}");
            }
        }
    }
    for scope in ["*", "admin"] {
        let key = server.key(scope, &[scope]).await;
        server
            .call_as(&key, Method::GET, "/v1/executions")
            .send()
            .await
            .expect(200);
    }
}

#[tokio::test]
async fn a_key_cannot_make_a_key_with_more_than_it_has() {
    let server = Server::start().await;
    let key = server.key("clerk", &["keys:write", "workflows:read"]).await;
    let make = |scopes: Value| {
        server
            .call_as(&key, Method::POST, "/v1/keys")
            .json(&json!({"name": "child", "scopes": scopes}))
            .send()
    };
    make(json!(["workflows:read"])).await.expect(201);
    make(json!(["*"])).await.expect_problem(403);
    make(json!(["workflows:write"])).await.expect_problem(403);
}

#[tokio::test]
async fn a_key_in_the_address_counts_for_event_streams_only() {
    let server = Server::start().await;
    server.apply(ADD).await;
    let id = server.run("add", json!({})).await["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let key = server.key("watcher", &["executions:read"]).await;
    let events = server
        .call_as(
            "",
            Method::GET,
            &format!("/v1/executions/{id}/events?key={key}"),
        )
        .events()
        .await
        .rest()
        .await;
    assert_eq!(events.last().unwrap().name, "execution.finished");
    let reply = server
        .call_as("", Method::GET, &format!("/v1/executions/{id}?key={key}"))
        .send()
        .await;
    reply.expect_problem(401);
}

#[tokio::test]
async fn faulty_keys_are_refused() {
    let server = Server::start().await;
    server
        .post("/v1/keys", &json!({"scopes": ["*"]}))
        .await
        .expect_fault(&["body", "name"]);
    server
        .post("/v1/keys", &json!({"name": "x"}))
        .await
        .expect_fault(&["body", "scopes"]);
    server
        .post("/v1/keys", &json!({"name": "x", "scopes": "all"}))
        .await
        .expect_fault(&["body", "scopes"]);
    server
        .post("/v1/keys", &json!({"name": 5, "scopes": ["*"]}))
        .await
        .expect_fault(&["body", "name"]);
    server
        .post(
            "/v1/keys",
            &json!({"name": "x", "scopes": ["*"], "expires": "x"}),
        )
        .await
        .expect_fault(&["body", "expires"]);
}

#[tokio::test]
async fn the_admin_key_is_kept_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;

    let server = Server::start().await;
    let mut found = 0;
    for entry in std::fs::read_dir(server.data_dir()).unwrap().flatten() {
        let Ok(text) = std::fs::read_to_string(entry.path()) else {
            continue;
        };
        if text.contains("cb_test_admin_key") {
            let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", entry.path().display());
            found += 1;
        }
    }
    assert_eq!(
        found, 1,
        "the admin key is in one file of the data directory"
    );
    assert!(
        !server.log().contains("cb_test_admin_key"),
        "keys have no business in logs"
    );
}

#[tokio::test]
async fn no_auth_asks_nobody_and_is_refused_in_the_open() {
    let server = Options::new().flag("--no-auth").start().await;
    server
        .call_as("", Method::GET, "/v1/workflows")
        .send()
        .await
        .expect(200);
    let refusal = Options::new()
        .listen("0.0.0.0:0")
        .flag("--no-auth")
        .try_start()
        .await
        .err();
    assert!(refusal.is_some_and(|words| words.contains("loopback")));
}
