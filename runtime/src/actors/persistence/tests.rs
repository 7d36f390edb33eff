//! The journal against a real Postgres: what is appended is stored, in order, merged, and at the cost it should have.

use std::sync::{Arc, Mutex, atomic::Ordering};

use futures_util::future::join_all;
use sqlx::{PgConnection, Row};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::{
    core::Core,
    id::{ExecutionId, SessionId},
    store::{
        StoreError, executions, node_runs,
        rows::{ExecutionStatus, NewSession, SessionChange, SessionEventRow, SessionStatus, Write},
        session_events, sessions,
        testing::{
            TestHost, change, changed, closed, new_execution, node_run, now, opened, ran, started,
            until, wait,
        },
        waits,
    },
};

mod faults;

/// Keeps every batch of one host waiting until it is dropped or committed.
struct Gate {
    connection: PgConnection,
}

impl Gate {
    async fn close(host: &TestHost) -> Self {
        let mut connection = host.database.connect().await;
        sqlx::raw_sql("BEGIN; SELECT FROM host_fences FOR UPDATE")
            .execute(&mut connection)
            .await
            .expect("a lock");
        Self { connection }
    }

    /// Waits until `count` writers stand before it.
    async fn crowd(host: &TestHost, count: i64) {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'
            AND datname = current_database() AND application_name LIKE 'callboard % w_'";
        until("writers wait for the gate", async || {
            let found: i64 = sqlx::query_scalar(waiting)
                .fetch_one(&host.db)
                .await
                .expect("an answer");
            (found >= count).then_some(())
        })
        .await;
    }

    async fn open(mut self) {
        sqlx::raw_sql("COMMIT")
            .execute(&mut self.connection)
            .await
            .expect("a commit");
    }
}

/// Appends, and gives what becomes of it.
fn append(
    core: &Core,
    owner: Uuid,
    writes: Vec<Write>,
) -> oneshot::Receiver<Result<(), StoreError>> {
    let (done, saved) = oneshot::channel();
    let on_saved = Box::new(move |result| drop(done.send(result)));
    core.journal.append(owner, writes, Some(on_saved));
    saved
}

/// Two executions that the same writer writes.
fn neighbours(core: &Core) -> [crate::store::rows::NewExecution; 2] {
    let parity = |id: ExecutionId| id.0.as_u64_pair().1 % 2;
    let one = new_execution(core.host_id);
    loop {
        let other = new_execution(core.host_id);
        if parity(other.id) == parity(one.id) {
            return [one, other];
        }
    }
}

#[tokio::test]
async fn what_an_execution_appends_is_read_back_as_it_was() {
    let host = TestHost::start().await;
    let mut new = new_execution(host.host_id);
    new.trigger_data = Some(r#"{"method":"POST"}"#.to_owned());
    new.idempotency_key = Some("k".to_owned());
    new.input_hash = Some(vec![7; 32]);
    new.trace_id = Some("t".to_owned());
    new.retry_of = Some(ExecutionId::new());
    let mut row = node_run(new.id, host.host_id, 0);
    row.item_index = Some(3);
    row.retry_at = Some(now());
    row.error = Some(r#"{"code":"x"}"#.to_owned());
    let mut timer = wait(new.id, "/wait/0");
    timer.data = Some("[1]".to_owned());
    timer.wake_at = Some(now());
    let writes = vec![started(&new), ran(row.clone()), opened(timer.clone())];
    host.journal.save(new.id.0, writes).await.expect("saved");

    let stored = executions::get(&host.db, new.id)
        .await
        .expect("read")
        .expect("there");
    assert_eq!(stored.input.to_string(), r#"{"b":1,"a":"\u0000"}"#);
    assert_eq!(
        stored.trigger_data.as_ref().map(ToString::to_string),
        new.trigger_data
    );
    assert_eq!(stored.status, ExecutionStatus::Running);
    assert_eq!(stored.host_id, Some(host.host_id));
    assert_eq!(stored.retry_of, new.retry_of);
    assert_eq!(stored.trace_id, new.trace_id);
    assert_eq!(stored.started_at, new.started_at);
    let journal = node_runs::journal(&host.db, new.id).await.expect("read");
    assert_eq!(format!("{journal:?}"), format!("{:?}", [row]));
    let stored = waits::of(&host.db, new.id).await.expect("read");
    assert_eq!(format!("{stored:?}"), format!("{:?}", [timer]));
    let holder = executions::find_by_key(&host.db, "intake", "k")
        .await
        .expect("read");
    assert_eq!(
        holder.map(|holder| (holder.id, holder.input_hash)),
        Some((new.id, new.input_hash))
    );
}

#[tokio::test]
async fn what_a_session_appends_is_read_back_as_it_was() {
    let host = TestHost::start().await;
    let id = SessionId::new();
    let open = NewSession {
        id,
        agent: "scorer".to_owned(),
        execution_id: None,
        idempotency_key: Some("k".to_owned()),
        created_at: now(),
    };
    let mut change = SessionChange {
        id,
        status: SessionStatus::Running,
        host_id: Some(host.host_id),
        usage: r#"{"model_calls":1}"#.to_owned(),
        updated_at: now(),
    };
    let event = |seq| {
        Write::SessionEvent(Box::new(SessionEventRow {
            session_id: id,
            seq,
            kind: "turn.started".to_owned(),
            payload: format!(r#"{{"turn":{seq}}}"#),
            created_at: now(),
        }))
    };
    let opened = Write::SessionOpened(Box::new(open));
    let writes = vec![
        opened,
        Write::SessionChanged(Box::new(change.clone())),
        event(1),
    ];
    host.journal.save(id.0, writes).await.expect("saved");
    let stored = sessions::get(&host.db, id)
        .await
        .expect("read")
        .expect("there");
    assert_eq!(stored.status, SessionStatus::Running);
    assert_eq!(stored.usage["model_calls"], 1);

    (change.status, change.host_id) = (SessionStatus::Idle, None);
    let writes = vec![Write::SessionChanged(Box::new(change)), event(2), event(2)];
    host.journal.save(id.0, writes).await.expect("saved");
    let stored = sessions::find_by_key(&host.db, "k")
        .await
        .expect("read")
        .expect("there");
    assert_eq!(
        (stored.id, stored.status, stored.host_id),
        (id, SessionStatus::Idle, None)
    );
    let events = session_events::list(&host.db, id, 0, 10)
        .await
        .expect("read");
    assert_eq!(
        events.iter().map(|event| event.seq).collect::<Vec<_>>(),
        [1, 2]
    );
    assert_eq!(events[1].payload["turn"], 2);
}

#[tokio::test]
async fn a_durable_write_implies_all_earlier_ones_of_its_owner() {
    let host = TestHost::start().await;
    let new = new_execution(host.host_id);
    let order = Arc::new(Mutex::new(Vec::new()));
    host.journal.append(new.id.0, vec![started(&new)], None);
    for seq in 0..5_000 {
        let order = Arc::clone(&order);
        let on_saved: crate::journal::OnSaved = Box::new(move |result| {
            result.expect("saved");
            order.lock().expect("sound").push(seq);
        });
        let row = ran(node_run(new.id, host.host_id, seq));
        host.journal.append(new.id.0, vec![row], Some(on_saved));
    }
    host.journal
        .save(new.id.0, Vec::new())
        .await
        .expect("a barrier");
    assert!(order.lock().expect("sound").iter().copied().eq(0..5_000));
    let journal = node_runs::journal(&host.db, new.id).await.expect("read");
    assert!(journal.iter().map(|row| row.seq).eq(0..5_000));
    let stats = host.journal.stats();
    assert_eq!(stats.rows.load(Ordering::Relaxed), 5_001);
    assert!(
        stats.batches.load(Ordering::Relaxed) < 100,
        "batches follow the load"
    );
    assert_eq!(host.journal.queued(), (0, 0));
}

#[tokio::test]
async fn an_execution_that_starts_and_ends_in_one_batch_is_stored_with_its_end() {
    let host = TestHost::start().await;
    let gate = Gate::close(&host).await;
    let [first, new] = neighbours(&host);
    let first = append(&host, first.id.0, vec![started(&first)]);
    Gate::crowd(&host, 1).await;
    let mut end = change(new.id, ExecutionStatus::Succeeded);
    end.output = Some("[1]".to_owned());
    host.journal.append(
        new.id.0,
        vec![started(&new), opened(wait(new.id, "w"))],
        None,
    );
    host.journal.append(
        new.id.0,
        vec![closed(new.id, "w"), changed(end.clone())],
        None,
    );
    // Nothing comes after the end.
    let late = append(
        &host,
        new.id.0,
        vec![changed(change(new.id, ExecutionStatus::Waiting))],
    );
    gate.open().await;
    first.await.expect("told").expect("saved");
    late.await.expect("told").expect("saved");
    let stored = executions::get(&host.db, new.id)
        .await
        .expect("read")
        .expect("there");
    assert_eq!(stored.status, ExecutionStatus::Succeeded);
    assert_eq!(stored.output, Some(serde_json::json!([1])));
    assert_eq!(stored.finished_at, end.finished_at);
    assert!(waits::of(&host.db, new.id).await.expect("read").is_empty());
    let late = vec![changed(change(new.id, ExecutionStatus::Failed))];
    host.journal.save(new.id.0, late).await.expect("saved");
    let stored = executions::get(&host.db, new.id)
        .await
        .expect("read")
        .expect("there");
    assert_eq!(stored.status, ExecutionStatus::Succeeded, "an end is final");
}

#[tokio::test]
async fn the_end_of_a_child_makes_its_parents_wait_due() {
    for wait_first in [true, false] {
        let host = TestHost::start().await;
        let parent = new_execution(host.host_id);
        let mut child = new_execution(host.host_id);
        child.parent_id = Some(parent.id);
        let mut row = wait(parent.id, "/call/0");
        row.child_id = Some(child.id);
        let mut end = change(child.id, ExecutionStatus::Failed);
        end.parent_id = Some(parent.id);
        host.journal
            .save(parent.id.0, vec![started(&parent)])
            .await
            .expect("saved");
        host.journal
            .save(child.id.0, vec![started(&child)])
            .await
            .expect("saved");
        let pause = changed(change(parent.id, ExecutionStatus::Waiting));
        let steps = [
            (parent.id, vec![opened(row), pause]),
            (child.id, vec![changed(end)]),
        ];
        let order = if wait_first { [0, 1] } else { [1, 0] };
        for step in order {
            let (owner, writes) = &steps[step];
            host.journal
                .save(owner.0, writes.clone())
                .await
                .expect("saved");
        }
        let due = waits::of(&host.db, parent.id).await.expect("read");
        assert!(due[0].wake_at.is_some(), "wait first: {wait_first}");
        let claimed = waits::claim_due(&host.db, host.host_id, 10)
            .await
            .expect("claimed");
        assert_eq!(claimed, [parent.id]);
    }
}

#[tokio::test]
async fn a_wait_for_a_child_that_ends_in_the_same_batch_is_due() {
    let host = TestHost::start().await;
    let [parent, mut child] = neighbours(&host);
    child.parent_id = Some(parent.id);
    host.journal
        .save(parent.id.0, vec![started(&parent)])
        .await
        .expect("saved");
    let gate = Gate::close(&host).await;
    let other = append(&host, parent.id.0, vec![opened(wait(parent.id, "other"))]);
    Gate::crowd(&host, 1).await;
    let mut row = wait(parent.id, "/call/0");
    row.child_id = Some(child.id);
    let mut end = change(child.id, ExecutionStatus::Succeeded);
    end.parent_id = Some(parent.id);
    let waiting = append(&host, parent.id.0, vec![opened(row)]);
    let ended = append(&host, child.id.0, vec![started(&child), changed(end)]);
    gate.open().await;
    for saved in [other, waiting, ended] {
        saved.await.expect("told").expect("saved");
    }
    let stored = waits::of(&host.db, parent.id).await.expect("read");
    let due: Vec<_> = stored
        .iter()
        .map(|wait| (wait.key.as_str(), wait.wake_at.is_some()))
        .collect();
    assert_eq!(due, [("/call/0", true), ("other", false)]);
    let due = waits::due_children(&host.db, host.host_id, 10)
        .await
        .expect("read");
    assert_eq!(due, [parent.id]);
}

#[tokio::test]
async fn a_parent_may_close_its_wait_in_the_batch_that_wakes_it() {
    let host = TestHost::start().await;
    let [parent, mut child] = neighbours(&host);
    child.parent_id = Some(parent.id);
    let mut row = wait(parent.id, "/call/0");
    row.child_id = Some(child.id);
    host.journal
        .save(parent.id.0, vec![started(&parent), opened(row)])
        .await
        .expect("saved");
    host.journal
        .save(child.id.0, vec![started(&child)])
        .await
        .expect("saved");
    let gate = Gate::close(&host).await;
    let other = append(
        &host,
        child.id.0,
        vec![ran(node_run(child.id, host.host_id, 0))],
    );
    Gate::crowd(&host, 1).await;
    let mut end = change(child.id, ExecutionStatus::Cancelled);
    end.parent_id = Some(parent.id);
    let ended = append(&host, child.id.0, vec![changed(end)]);
    let closing = append(&host, parent.id.0, vec![closed(parent.id, "/call/0")]);
    gate.open().await;
    for saved in [other, ended, closing] {
        saved.await.expect("told").expect("saved");
    }
    assert!(
        waits::of(&host.db, parent.id)
            .await
            .expect("read")
            .is_empty()
    );
}

#[tokio::test]
async fn the_end_of_an_execution_closes_its_waits() {
    let host = TestHost::start().await;
    let new = new_execution(host.host_id);
    let writes = vec![
        started(&new),
        opened(wait(new.id, "a")),
        opened(wait(new.id, "b")),
    ];
    host.journal.save(new.id.0, writes).await.expect("saved");
    assert_eq!(waits::of(&host.db, new.id).await.expect("read").len(), 2);
    let end = vec![
        closed(new.id, "a"),
        changed(change(new.id, ExecutionStatus::Cancelled)),
    ];
    host.journal.save(new.id.0, end).await.expect("saved");
    assert!(waits::of(&host.db, new.id).await.expect("read").is_empty());
}

#[tokio::test]
async fn a_wait_may_be_closed_and_opened_again_in_one_batch() {
    let host = TestHost::start().await;
    let new = new_execution(host.host_id);
    let mut row = wait(new.id, "w");
    host.journal
        .save(new.id.0, vec![started(&new), opened(row.clone())])
        .await
        .expect("saved");
    row.data = Some("2".to_owned());
    let again = vec![closed(new.id, "w"), opened(row)];
    host.journal.save(new.id.0, again).await.expect("saved");
    let stored = waits::of(&host.db, new.id).await.expect("read");
    assert_eq!(stored[0].data.as_deref(), Some("2"));
}

#[tokio::test]
async fn a_taken_idempotency_key_writes_nothing() {
    let host = TestHost::start().await;
    let keyed = || {
        let mut new = new_execution(host.host_id);
        new.idempotency_key = Some("once".to_owned());
        new
    };
    let all: Vec<_> = (0..20).map(|_| keyed()).collect();
    let saves = all
        .iter()
        .map(|new| host.journal.save(new.id.0, vec![started(new)]));
    for saved in join_all(saves).await {
        saved.expect("saved");
    }
    let holder = executions::find_by_key(&host.db, "intake", "once")
        .await
        .expect("read")
        .expect("one");
    let mut stored = 0;
    for new in &all {
        stored += i32::from(
            executions::get(&host.db, new.id)
                .await
                .expect("read")
                .is_some(),
        );
    }
    assert_eq!(stored, 1);
    assert!(all.iter().any(|new| new.id == holder.id));
}

#[tokio::test]
async fn what_another_host_owns_is_not_changed() {
    let host = TestHost::start().await;
    let other = host.database.host().await;
    let new = new_execution(host.host_id);
    host.journal
        .save(new.id.0, vec![started(&new)])
        .await
        .expect("saved");
    let steal = vec![changed(change(new.id, ExecutionStatus::Failed))];
    other.journal.save(new.id.0, steal).await.expect("answered");
    let stored = executions::get(&host.db, new.id)
        .await
        .expect("read")
        .expect("there");
    assert_eq!(
        (stored.status, stored.host_id),
        (ExecutionStatus::Running, Some(host.host_id))
    );
}

/// Every batch takes its rows by key, on tables that were never analysed, whatever their size when the plan was made.
#[tokio::test]
async fn no_part_of_a_batch_reads_a_whole_table() {
    let host = TestHost::start().await;
    let mut db = host.database.connect().await;
    sqlx::raw_sql("SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_hashjoin = off;
        SET enable_mergejoin = off; SET enable_material = off; SET plan_cache_mode = force_generic_plan")
        .execute(&mut db)
        .await
        .expect("set");
    let (text, arguments) = crate::store::batch::whole_statement();
    let prepare = format!("PREPARE batch AS {text}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(prepare))
        .execute(&mut db)
        .await
        .expect("prepared");
    let arguments = vec!["NULL"; arguments].join(", ");
    let explain = format!("EXPLAIN EXECUTE batch({arguments})");
    let rows = sqlx::raw_sql(sqlx::AssertSqlSafe(explain))
        .fetch_all(&mut db)
        .await
        .expect("explained");
    let plan: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let plan = plan.join("\n");
    assert!(!plan.contains("Seq Scan"), "{plan}");
}
