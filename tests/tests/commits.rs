//! What a run costs the database. Alone in its file, and so in its process and its Postgres: transaction numbers
//! are counted for the whole server.

use std::time::Instant;

use callboard_tests::{Method, Server, wait_until};
use serde_json::json;

const RUNS: i64 = 200;
/// What the server does without any run: lease, scans, statistics. Per second, generously.
const IDLE_PER_SECOND: i64 = 6;

const NEXT_TRANSACTION: &str = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint";
const COMMITS: &str = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()";

#[tokio::test]
async fn a_webhook_run_of_five_pure_steps_costs_at_most_two_transactions() {
    let server = Server::start().await;
    server
        .apply(
            r#"
kind: Workflow
metadata: { name: five }
spec:
  trigger: { type: webhook, path: /five, method: POST }
  steps:
    - { id: a, uses: set, with: { keep: all, values: { n: "{{ $json.n + 1 }}" } } }
    - { id: b, uses: set, with: { keep: all, values: { n: "{{ $json.n + 1 }}" } } }
    - { id: c, uses: set, with: { keep: all, values: { n: "{{ $json.n + 1 }}" } } }
    - { id: d, uses: set, with: { keep: all, values: { n: "{{ $json.n + 1 }}" } } }
    - { id: e, uses: set, with: { keep: all, values: { n: "{{ $json.n + 1 }}" } } }
"#,
        )
        .await;
    let run = |n: i64| {
        server
            .call(Method::POST, "/hooks/five")
            .json(&json!({"n": n}))
            .send()
    };
    run(0).await.expect(200);
    let (started, writes_before) = (
        Instant::now(),
        server.database().number(NEXT_TRANSACTION).await,
    );
    let commits_before = server.database().number(COMMITS).await;
    // One after the other: at the same time they would share commits, and prove less.
    for n in 0..RUNS {
        assert_eq!(run(n).await.expect(200), json!({"n": n + 5}));
    }
    let writes = server.database().number(NEXT_TRANSACTION).await - writes_before;
    let seconds = i64::try_from(started.elapsed().as_secs()).unwrap() + 1;
    let bound = 2 * RUNS + IDLE_PER_SECOND * seconds;
    assert!(
        writes <= bound,
        "{writes} writing transactions for {RUNS} runs in {seconds} s"
    );
    // Readers count too. Postgres reports them late: at least as many as the writing ones must have arrived.
    let commits = wait_until("the commits are reported", || async {
        let commits = server.database().number(COMMITS).await - commits_before;
        (commits >= writes).then_some(commits)
    })
    .await;
    let seconds = i64::try_from(started.elapsed().as_secs()).unwrap() + 1;
    let bound = 2 * RUNS + IDLE_PER_SECOND * seconds;
    assert!(
        commits <= bound,
        "{commits} transactions for {RUNS} runs in {seconds} s"
    );
    // Every one of them is durable all the same.
    let list = server
        .get("/v1/executions?workflow=five&status=succeeded&limit=1000")
        .await
        .expect(200);
    assert_eq!(
        i64::try_from(list["data"].as_array().unwrap().len()).unwrap(),
        RUNS + 1
    );
}
