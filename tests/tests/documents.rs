//! Definitions: their life, and what is said about faulty ones, by the API and by `callboard validate`.

use callboard_tests::{Answer, Method, Options, Server, Stub, open_directory, server::run_command};
use serde_json::{Value, json};

fn workflow(name: &str, steps: Value) -> Value {
    json!({"kind": "Workflow", "metadata": {"name": name}, "spec": {"steps": steps}})
}

fn noop(id: &str) -> Value {
    json!({"id": id, "uses": "noop"})
}

/// Every detail of a 422 as `place: message`.
fn faults(body: &Value) -> Vec<String> {
    let details = body["detail"]
        .as_array()
        .unwrap_or_else(|| panic!("{body:#}"));
    let text = |part: &Value| {
        part.as_str()
            .map_or_else(|| part.to_string(), str::to_owned)
    };
    details
        .iter()
        .map(|detail| {
            let place: Vec<String> = detail["loc"].as_array().unwrap().iter().map(text).collect();
            format!("{}: {}", place.join("."), detail["msg"].as_str().unwrap())
        })
        .collect()
}

/// Checks that some fault is at a place that ends so, and says this.
#[track_caller]
fn assert_fault(found: &[String], place: &str, says: &str) {
    let fits = |fault: &String| {
        let (at, message) = fault.split_once(": ").unwrap_or((fault, ""));
        at.ends_with(place) && message.to_lowercase().contains(says)
    };
    assert!(
        found.iter().any(fits),
        "no fault at `{place}` that says `{says}`: {found:#?}"
    );
}

#[tokio::test]
async fn a_workflow_is_created_changed_versioned_disabled_and_deleted() {
    let server = Server::start().await;
    let first = workflow("life", json!([noop("a")]));
    let created = server.post("/v1/workflows", &first).await.expect(201);
    for (member, value) in [
        ("kind", json!("Workflow")),
        ("name", json!("life")),
        ("version", json!(1)),
        ("enabled", json!(true)),
    ] {
        assert_eq!(created[member], value, "{created:#}");
    }
    server
        .post("/v1/workflows", &first)
        .await
        .expect_problem(409);
    let stored = server.get("/v1/workflows/life").await.expect(200);
    assert_eq!(stored["spec"], first["spec"]);
    assert!(stored["created_at"].is_string() && stored["updated_at"].is_string());

    let same = server.put("/v1/workflows/life", &first).await.expect(200);
    assert_eq!(same["version"], 1, "the same document is the same version");
    let second = workflow("life", json!([noop("a"), noop("b")]));
    assert_eq!(
        server.put("/v1/workflows/life", &second).await.expect(200)["version"],
        2
    );
    let versions = server.get("/v1/workflows/life/versions").await.expect(200);
    assert_eq!(
        versions["data"].as_array().unwrap().len(),
        2,
        "{versions:#}"
    );
    let list = server.get("/v1/workflows").await.expect(200);
    assert_eq!(list["data"][0]["name"], "life");

    let disabled = server
        .patch("/v1/workflows/life", &json!({"enabled": false}))
        .await
        .expect(200);
    assert_eq!(disabled["enabled"], false);
    let refused = server
        .post("/v1/workflows/life/executions", &json!({"input": {}}))
        .await;
    assert!((400..500).contains(&refused.status), "{refused:#?}");
    server
        .patch("/v1/workflows/life", &json!({"enabled": true}))
        .await
        .expect(200);
    assert_eq!(server.run("life", json!({})).await["status"], "succeeded");

    server.delete("/v1/workflows/life").await.expect(204);
    server.get("/v1/workflows/life").await.expect_problem(404);
    server
        .delete("/v1/workflows/life")
        .await
        .expect_problem(404);
    server.put("/v1/workflows/other", &second).await.expect(422);
}

#[tokio::test]
async fn definitions_survive_a_restart() {
    let mut server = Server::start().await;
    server
        .apply_json(&workflow("kept", json!([noop("a")])))
        .await;
    server.restart().await;
    assert_eq!(
        server.get("/v1/workflows/kept").await.expect(200)["version"],
        1
    );
    assert_eq!(server.run("kept", json!({})).await["status"], "succeeded");
}

#[tokio::test]
async fn faulty_workflows_are_refused_with_every_place_and_reason() {
    let server = Server::start().await;
    let set = |values: Value| json!({"id": "s", "uses": "set", "with": {"values": values}});
    let cases = [
        // Unknown fields name the closest known one.
        (
            json!([{"id": "a", "uses": "noop", "rettry": {}}]),
            "steps.0.rettry",
            "retry",
        ),
        (
            json!([{"id": "a", "uses": "set", "with": {"valeus": {}}}]),
            "with.valeus",
            "values",
        ),
        (
            json!([{"id": "a", "uses": "http.requets", "with": {"url": "x"}}]),
            "steps.0.uses",
            "http.request",
        ),
        (json!([{"uses": "noop"}]), "steps.0.id", ""),
        (json!([noop("a"), noop("a")]), "steps.1.id", ""),
        (json!([{"id": "trigger", "uses": "noop"}]), "steps.0.id", ""),
        (
            json!([{"id": "a", "uses": "noop", "after": "nobody"}]),
            "after",
            "",
        ),
        (
            json!([{"id": "a", "uses": "noop", "after": ["nobody"]}]),
            "after.0",
            "nobody",
        ),
        (
            json!([{"id": "a", "uses": "noop", "routes": {"main": "nobody"}}]),
            "routes.main",
            "nobody",
        ),
        (
            json!([{"id": "a", "uses": "noop", "routes": {"odd": "b"}}, noop("b")]),
            "routes.odd",
            "odd",
        ),
        (
            json!([{"id": "a", "uses": "noop", "timeout": "soon"}]),
            "timeout",
            "",
        ),
        (
            json!([{"id": "a", "uses": "noop", "retry": {"max_attempts": "many"}}]),
            "retry.max_attempts",
            "",
        ),
        (
            json!([{"id": "a", "uses": "noop", "on_error": "panic"}]),
            "on_error",
            "",
        ),
        (json!([{"id": 5, "uses": "noop"}]), "steps.0.id", ""),
        (json!("none"), "spec.steps", ""),
        (json!([set(json!({"x": "{{ $json. }}"}))]), "values.x", ""),
        (json!([set(json!({"x": "{{ $json.a"}))]), "values.x", ""),
        (
            json!([{"id": "a", "uses": "if", "with": {"condition": "{{ 1 + }}"}, "routes": {"true": "end"}}]),
            "with.condition",
            "",
        ),
    ];
    for (steps, place, says) in cases {
        let body = server
            .post("/v1/workflows", &workflow("bad", steps.clone()))
            .await;
        assert_eq!(body.status, 422, "{steps:#}\n{body:#?}");
        assert_fault(&faults(&body.body), place, says);
    }
    let several = workflow(
        "bad",
        json!([{"id": "a", "uses": "nope"}, {"id": "b", "uses": "noop", "timeout": "x"}, {"id": "c", "uses": "noop", "zzz": 1}]),
    );
    let found = faults(&server.post("/v1/workflows", &several).await.expect(422));
    for place in ["steps.0.uses", "steps.1.timeout", "steps.2.zzz"] {
        assert_fault(&found, place, "");
    }
    server.get("/v1/workflows/bad").await.expect_problem(404);
}

#[tokio::test]
async fn circles_and_dead_ends_are_refused() {
    let server = Server::start().await;
    let circle = json!([
        {"id": "a", "uses": "noop", "after": ["b"]},
        {"id": "b", "uses": "noop", "after": ["a"]},
    ]);
    let found = faults(
        &server
            .post("/v1/workflows", &workflow("bad", circle))
            .await
            .expect(422),
    );
    assert!(
        found.iter().any(|fault| fault.contains("steps.")),
        "{found:#?}"
    );
    // `b` follows nothing: the step before it routes its only port elsewhere.
    let unreachable = json!([
        {"id": "a", "uses": "noop", "routes": {"main": "end"}},
        {"id": "b", "uses": "noop"},
    ]);
    let found = faults(
        &server
            .post("/v1/workflows", &workflow("bad", unreachable))
            .await
            .expect(422),
    );
    assert_fault(&found, "steps.1", "");
}

#[tokio::test]
async fn documents_of_the_wrong_shape_are_refused() {
    let server = Server::start().await;
    for (document, place) in [
        (
            json!({"kind": "Workflow", "metadata": {"name": "x"}}),
            "spec",
        ),
        (
            json!({"kind": "Workflow", "spec": {"steps": []}}),
            "metadata",
        ),
        (
            json!({"kind": "Workflow", "metadata": {}, "spec": {"steps": []}}),
            "metadata.name",
        ),
        (
            json!({"kind": "Workflow", "metadata": {"name": "x", "nam": 1}, "spec": {"steps": [noop("a")]}}),
            "metadata.nam",
        ),
        (
            json!({"kind": "Workflow", "metadata": {"name": "no spaces, please"}, "spec": {"steps": [noop("a")]}}),
            "metadata.name",
        ),
        (
            json!({"kind": "Agent", "metadata": {"name": "x"}, "spec": {"model": "a/b", "instructions": "c"}}),
            "kind",
        ),
    ] {
        let reply = server.post("/v1/workflows", &document).await;
        assert_eq!(reply.status, 422, "{document:#}\n{reply:#?}");
        assert_fault(&faults(&reply.body), place, "");
    }
    let call = |content_type: &str, body: &str| {
        server
            .call(Method::POST, "/v1/workflows")
            .body(content_type, body.to_owned())
            .send()
    };
    call("application/json", "{\"kind\": ").await.expect(422);
    call("application/json", "[1, 2]").await.expect(422);
    call("image/png", "\u{1}").await.expect_problem(415);
    let deep = format!("{}{}", "{\"a\":".repeat(100), "1") + &"}".repeat(100);
    call("application/json", &deep).await.expect(422);
}

#[tokio::test]
async fn a_fault_of_form_hides_no_other_fault() {
    let server = Server::start().await;
    let document = json!({
        "kind": "Workflow",
        "metadata": {"name": "two words", "tag": "x"},
        "spec": {"steps": [{"id": "a", "uses": "sett"}]},
        "specs": {},
    });
    let body = server.post("/v1/workflows", &document).await.expect(422);
    let found = faults(&body);
    assert_fault(&found, "metadata.name", "a name");
    assert_fault(&found, "metadata.tag", "did you mean `tags`");
    assert_fault(&found, "body.specs", "did you mean `spec`");
    assert_fault(&found, "steps.0.uses", "did you mean `set`");
    // What is no workflow is not looked at as one.
    let agent = json!({"kind": "Agent", "metadata": {}, "spec": {"steps": 5}});
    let found = faults(&server.post("/v1/workflows", &agent).await.expect(422));
    assert_eq!(found.len(), 2, "{found:#?}");
}

#[tokio::test]
async fn a_set_of_documents_is_applied_whole_or_not_at_all() {
    let server = Server::start().await;
    let directory = open_directory("apply");
    let sound = serde_json::to_string(&workflow("sound", json!([noop("a")]))).unwrap();
    let faulty = serde_json::to_string(&workflow("faulty", json!([{"id": "a"}]))).unwrap();
    std::fs::write(directory.join("a.json"), sound).unwrap();
    std::fs::write(directory.join("b.json"), faulty).unwrap();
    let data_dir = server.data_dir().display().to_string();
    let apply = ["apply", "--data-dir", &data_dir, "."];
    for arguments in [&apply[..], &[&apply[..], &["--dry-run"]].concat()] {
        let output = run_command(arguments, &directory).await;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("spec.steps.0.uses: Field required"), "{said}");
        server.get("/v1/workflows/sound").await.expect_problem(404);
    }
}

#[tokio::test]
async fn bodies_over_the_limit_are_refused_and_small_ones_are_not() {
    let server = Options::new()
        .flag("--max-body")
        .flag("64KiB")
        .start()
        .await;
    let text = "x".repeat(80_000);
    let large = workflow(
        "large",
        json!([{"id": "a", "uses": "set", "with": {"values": {"text": text}}}]),
    );
    server
        .post("/v1/workflows", &large)
        .await
        .expect_problem(413);
    server
        .apply_json(&workflow("small", json!([noop("a")])))
        .await;
    server
        .post(
            "/v1/workflows/small/executions",
            &json!({"input": {"text": text}}),
        )
        .await
        .expect_problem(413);
    assert_eq!(
        server.run("small", json!({"text": "y"})).await["status"],
        "succeeded"
    );
}

#[tokio::test]
async fn secrets_of_providers_are_never_shown() {
    let stub = Stub::start(|_| Answer::Close).await;
    let server = Server::start().await;
    let provider = json!({
        "kind": "Provider",
        "metadata": {"name": "p"},
        "spec": {"type": "openai", "base_url": stub.url("/v1"), "api_key": "sk-very-secret"},
    });
    let created = server.post("/v1/providers", &provider).await.expect(201);
    let stored = server.get("/v1/providers/p").await.expect(200);
    let list = server.get("/v1/providers").await.expect(200);
    for body in [created, stored, list] {
        assert!(!body.to_string().contains("sk-very-secret"), "{body:#}");
        assert!(body.to_string().contains("/v1"), "{body:#}");
    }
    server.delete("/v1/providers/p").await.expect(204);
}

#[tokio::test]
async fn faulty_agents_and_providers_are_refused() {
    let server = Server::start().await;
    let agent = |spec: Value| json!({"kind": "Agent", "metadata": {"name": "bad"}, "spec": spec});
    for (spec, place) in [
        (json!({"instructions": "x"}), "model"),
        (
            json!({"model": "stub/m", "instructions": "x", "instruction": "y"}),
            "instruction",
        ),
        (
            json!({"model": "stub/m", "instructions": 5}),
            "instructions",
        ),
        (
            json!({"model": "stub/m", "instructions": "x", "budgets": {"model_calls": "few"}}),
            "budgets.model_calls",
        ),
        (
            json!({"model": "stub/m", "instructions": "x", "double_texting": "shout"}),
            "double_texting",
        ),
    ] {
        let reply = server.post("/v1/agents", &agent(spec.clone())).await;
        assert_eq!(reply.status, 422, "{spec:#}\n{reply:#?}");
        assert_fault(&faults(&reply.body), place, "");
    }
    let provider =
        json!({"kind": "Provider", "metadata": {"name": "bad"}, "spec": {"type": "crystal-ball"}});
    let found = faults(&server.post("/v1/providers", &provider).await.expect(422));
    assert_fault(&found, "type", "");
}

#[tokio::test]
async fn validate_names_file_line_and_column_of_every_fault() {
    let directory = open_directory("validate");
    let good =
        "kind: Workflow\nmetadata: { name: good }\nspec:\n  steps:\n    - { id: a, uses: noop }\n";
    let bad = "kind: Workflow\nmetadata: { name: bad }\nspec:\n  steps:\n    - id: a\n      uses: set\n      with:\n        values:\n          x: \"{{ $json. }}\"\n    - id: b\n      uses: noop\n      rettry: 3\n";
    std::fs::write(directory.join("good.yaml"), good).unwrap();
    std::fs::write(directory.join("bad.yaml"), bad).unwrap();
    std::fs::write(directory.join("broken.yaml"), "kind: [Workflow\n").unwrap();
    let text = |output: &std::process::Output| {
        format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    };
    let output = run_command(&["validate", "good.yaml"], &directory).await;
    assert!(output.status.success(), "{}", text(&output));
    let output = run_command(&["validate", "bad.yaml"], &directory).await;
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    for place in ["bad.yaml:9:", "bad.yaml:12:"] {
        assert!(
            text(&output).contains(place),
            "no {place} in: {}",
            text(&output)
        );
    }
    assert!(text(&output).contains("retry"));
    let output = run_command(&["validate", "broken.yaml"], &directory).await;
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("broken.yaml:"), "{}", text(&output));
    // A folder: one good document does not hide the faults of the others.
    let output = run_command(&["validate", "."], &directory).await;
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let output = run_command(&["validate"], &directory).await;
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
}

#[tokio::test]
async fn documents_are_loaded_at_start() {
    let directory = open_directory("load");
    std::fs::write(
        directory.join("a.yaml"),
        "kind: Workflow\nmetadata: { name: first }\nspec:\n  steps: [ { id: a, uses: noop } ]\n---\nkind: Workflow\nmetadata: { name: second }\nspec:\n  steps: [ { id: a, uses: noop } ]\n",
    )
    .unwrap();
    let mut server = Options::new()
        .flag("--load")
        .flag(directory.to_str().unwrap())
        .start()
        .await;
    for name in ["first", "second"] {
        assert_eq!(
            server
                .get(&format!("/v1/workflows/{name}"))
                .await
                .expect(200)["version"],
            1
        );
    }
    server.restart().await;
    assert_eq!(
        server.get("/v1/workflows/first").await.expect(200)["version"],
        1,
        "loading again changes nothing"
    );
}

#[tokio::test]
async fn the_api_describes_itself_and_its_health() {
    let server = Server::start().await;
    let without_key = |path: &str| server.call_as("", Method::GET, path).send();
    without_key("/health/live").await.expect(200);
    without_key("/health/ready").await.expect(200);
    let openapi = without_key("/openapi.json").await.expect(200);
    for path in [
        "/v1/workflows",
        "/v1/executions/{id}",
        "/v1/sessions/{id}/messages",
    ] {
        let place = path.trim_start_matches("/v1");
        let paths = openapi["paths"].as_object().unwrap();
        assert!(
            paths.keys().any(|known| known == path || known == place),
            "{path}: {:?}",
            paths.keys()
        );
    }
    without_key("/docs").await.expect(200);
}
