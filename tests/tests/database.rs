//! The database under the server: gone and back, private, shared by mistake; and the server's own start and end.

use std::{net::TcpListener, path::Path};

use callboard_runtime::postgres::PrivatePostgres;
use callboard_tests::{
    Answer, Gate, Method, ModelStub, Options, Server, Stub, Turn, account_that_is_not_root,
    is_root, open_directory, wait_until,
};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::{Value, json};

const ADD: &str = r#"
kind: Workflow
metadata: { name: add }
spec:
  steps:
    - { id: one, uses: set, with: { keep: all, values: { n: "{{ $json.n + 1 }}" } } }
"#;

fn pid_of_database(data_dir: &Path) -> i32 {
    let file = data_dir.join("postgres/postmaster.pid");
    let text = std::fs::read_to_string(&file)
        .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    text.lines().next().unwrap().trim().parse().unwrap()
}

fn kill_database(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

async fn database_has_ended(pid: i32) {
    wait_until("the database ends", || async {
        test_kill_process(Pid::from_raw(pid).unwrap())
            .is_err()
            .then_some(())
    })
    .await;
}

async fn ready(server: &Server, expected: u16) -> Value {
    wait_until(&format!("/health/ready says {expected}"), || async {
        let reply = server
            .call_as("", Method::GET, "/health/ready")
            .try_send()
            .await
            .ok()?;
        (reply.status == expected).then_some(reply.body)
    })
    .await
}

#[tokio::test]
async fn a_database_that_is_gone_and_back_costs_time_and_nothing_else() {
    let directory = open_directory("own-postgres");
    let postgres = PrivatePostgres::start(&directory).await.unwrap();
    let gate = Gate::new();
    let stub = Stub::start({
        let gate = gate.clone();
        move |request| match &*request.path {
            "/held" => Answer::ok(json!({"nth": request.nth})).after(&gate),
            _ => Answer::ok(json!({"ok": true})),
        }
    })
    .await;
    let server = Options::new().database_url(postgres.url()).start().await;
    server.apply(ADD).await;
    server
        .apply(
            &r#"
kind: Workflow
metadata: { name: call }
spec:
  steps:
    - { id: held, uses: http.request, with: { method: POST, url: "STUB/held" } }
    - { id: next, uses: http.request, with: { method: POST, url: "STUB/next" } }
"#
            .replace("STUB", &stub.url("")),
        )
        .await;
    let before = server.run("add", json!({"n": 1})).await;
    let running = server.begin("call", json!({})).await;
    stub.wait_for("/held", 1).await;

    postgres.shutdown().await;
    ready(&server, 503).await;
    server
        .call_as("", Method::GET, "/health/live")
        .send()
        .await
        .expect(200);
    let refused = server
        .post("/v1/workflows/add/executions", &json!({"input": {"n": 2}}))
        .await;
    assert!(
        matches!(refused.status, 429 | 503),
        "nothing is acknowledged that is not durable: {refused:#?}"
    );
    // The step ends meanwhile; what follows waits until its result is recorded.
    gate.open();
    wait_until("the step's request is answered", || async {
        (stub.running() == 0).then_some(())
    })
    .await;
    assert_eq!(stub.count("/next"), 0);

    let postgres = PrivatePostgres::start(&directory).await.unwrap();
    ready(&server, 200).await;
    let run = server.finished(&running).await;
    assert_eq!(run["status"], "succeeded", "{run:#}");
    assert_eq!((stub.count("/held"), stub.count("/next")), (1, 1));
    assert_eq!(
        server.finished(before["id"].as_str().unwrap()).await["output"],
        json!({"n": 2})
    );
    assert_eq!(
        server.run("add", json!({"n": 5})).await["output"],
        json!({"n": 6})
    );
    drop(server);
    postgres.shutdown().await;
}

#[tokio::test]
async fn a_private_database_that_is_killed_comes_back_under_the_same_server() {
    let server = Options::new().private_postgres().start().await;
    server.apply(ADD).await;
    let before = server.run("add", json!({"n": 1})).await;
    let pid = pid_of_database(server.data_dir());
    kill_database(pid);
    database_has_ended(pid).await;
    let after = wait_until("the server works again", || async {
        let reply = server
            .call(Method::POST, "/v1/workflows/add/executions")
            .header("prefer", "wait=30")
            .json(&json!({"input": {"n": 2}}))
            .try_send()
            .await
            .ok()?;
        (reply.status == 200).then_some(reply.body)
    })
    .await;
    assert_eq!(after["output"], json!({"n": 3}));
    ready(&server, 200).await;
    assert_eq!(
        server.finished(before["id"].as_str().unwrap()).await["output"],
        json!({"n": 2})
    );
}

#[tokio::test]
async fn a_private_database_dies_with_its_server_and_keeps_its_data() {
    let stub = Stub::start(|request| match request.nth {
        1 => Answer::Hang,
        nth => Answer::ok(json!({"nth": nth})),
    })
    .await;
    let mut server = Options::new().private_postgres().start().await;
    server
        .apply(&format!(
            "kind: Workflow\nmetadata: {{ name: call }}\nspec:\n  steps: [ {{ id: call, uses: http.request, with: {{ method: POST, url: \"{}\" }} }} ]\n",
            stub.url("/call")
        ))
        .await;
    let id = server.begin("call", json!({})).await;
    stub.wait_for("/call", 1).await;
    let pid = pid_of_database(server.data_dir());
    server.kill9().await;
    database_has_ended(pid).await;
    server.restart().await;
    assert_eq!(server.finished(&id).await["output"], json!({"nth": 2}));
    // And at once, while the old database may still be stopping.
    server.restart().await;
    assert_eq!(server.finished(&id).await["output"], json!({"nth": 2}));
    let pid = pid_of_database(server.data_dir());
    assert!(server.stop().await.success());
    database_has_ended(pid).await;
}

#[tokio::test]
async fn an_ordinary_user_can_run_it_all() {
    if !is_root() {
        return; // Then every other test of this file has shown it.
    }
    let mut server = Options::new()
        .private_postgres()
        .account(account_that_is_not_root())
        .start()
        .await;
    server.apply(ADD).await;
    assert_eq!(
        server.run("add", json!({"n": 1})).await["output"],
        json!({"n": 2})
    );
    server.restart().await;
    assert_eq!(
        server.run("add", json!({"n": 2})).await["output"],
        json!({"n": 3})
    );
    assert!(server.stop().await.success());
}

#[tokio::test]
async fn two_servers_cannot_share_a_data_directory() {
    let server = Options::new().private_postgres().start().await;
    let refusal = Options::new()
        .private_postgres()
        .data_dir(server.data_dir())
        .try_start()
        .await;
    let words = refusal.err().expect("the second server must not start");
    assert!(
        words.contains(&*server.data_dir().to_string_lossy()),
        "{words}"
    );
    assert!(words.contains(&server.pid().to_string()), "{words}");
    ready(&server, 200).await;
}

#[tokio::test]
async fn a_port_in_use_is_said_in_plain_words() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let port = taken.local_addr().unwrap().port().to_string();
    let refusal = Options::new().listen(&address).try_start().await;
    let words = refusal.err().expect("the port is taken");
    assert!(words.contains(&port) && words.contains("in use"), "{words}");
    assert!(!words.contains("panicked"), "{words}");
}

#[tokio::test]
async fn a_database_that_does_not_answer_is_said_in_plain_words() {
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let url = format!("postgres://somebody:hunter2@{closed}/nowhere");
    let words = Options::new()
        .database_url(&url)
        .try_start()
        .await
        .err()
        .expect("there is no database");
    assert!(words.contains("database"), "{words}");
    assert!(
        !words.contains("hunter2") && !words.contains("panicked"),
        "{words}"
    );
}

#[tokio::test]
async fn a_server_that_is_told_to_stop_finishes_what_it_does() {
    let gate = Gate::new();
    let stub = Stub::start({
        let gate = gate.clone();
        move |_| Answer::ok(json!({"done": true})).after(&gate)
    })
    .await;
    let mut server = Server::start().await;
    server
        .apply(&format!(
            "kind: Workflow\nmetadata: {{ name: call }}\nspec:\n  steps: [ {{ id: call, uses: http.request, with: {{ method: POST, url: \"{}\" }} }} ]\n",
            stub.url("/call")
        ))
        .await;
    let id = server.begin("call", json!({})).await;
    stub.wait_for("/call", 1).await;
    server.tell_to_stop();
    draining(&server).await;
    gate.open();
    assert!(server.ended().await.success());
    server.restart().await;
    let run = server.finished(&id).await;
    assert_eq!(run["output"], json!({"done": true}), "{run:#}");
    assert_eq!(
        stub.count("/call"),
        1,
        "the step in progress was finished, not cut"
    );
}

/// Returns when the stop is under way: no new work is taken.
async fn draining(server: &Server) {
    wait_until("the server drains", || async {
        let ready = server.call_as("", Method::GET, "/health/ready");
        let reply = ready.try_send().await;
        reply
            .map_or(true, |reply| reply.status != 200)
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_agent_that_is_asked_by_a_step_finishes_with_its_tools_before_the_server_stops() {
    let gate = Gate::new();
    let turns = vec![
        Turn::calls(&[("c1", "double", json!({"n": 21}))]).paused_after(1, &gate),
        Turn::text("It is 42."),
    ];
    let model = ModelStub::start(turns).await;
    let mut server = Server::start().await;
    server.apply_json(&model.provider()).await;
    server
        .apply(
            r#"
kind: Workflow
metadata: { name: double }
spec:
  steps: [ { id: twice, uses: set, with: { values: { n: "{{ $json.n * 2 }}" } } } ]
---
kind: Agent
metadata: { name: clerk }
spec: { model: stub/m, instructions: Count., tools: [ { workflow: double } ] }
---
kind: Workflow
metadata: { name: asks }
spec:
  steps:
    - { id: ask, uses: agent, with: { agent: clerk, input: "What is twice 21?" } }
    - { id: again, uses: workflow.execute, with: { workflow: double, input: { n: 1 } } }
    - { id: answer, uses: set, with: { keep: none, values: { text: "{{ $('ask').item.json.text }}", n: "{{ $json.n }}" } } }
"#,
        )
        .await;
    let id = server.begin("asks", json!({})).await;
    model.wait_for(1).await;
    server.tell_to_stop();
    draining(&server).await;
    gate.open();
    assert!(server.ended().await.success());
    assert_eq!(model.requests().len(), 2, "the turn went on to its end");
    server.restart().await;
    let run = server.finished(&id).await;
    assert_eq!(
        run["output"],
        json!({"text": "It is 42.", "n": 2}),
        "{run:#}"
    );
    let rows = server.node_runs(&id).await;
    let hosts: std::collections::BTreeSet<_> =
        rows.iter().map(|row| row["host"].as_str()).collect();
    assert_eq!(
        (rows.len(), hosts.len()),
        (4, 1),
        "nothing was left to the next start: {rows:#?}"
    );
}
