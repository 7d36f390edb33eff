//! What the journal does when something breaks: fences, lost connections, an absent database, refused rows.

use std::{sync::atomic::AtomicBool, time::Duration};

use sqlx::{Connection, postgres::PgConnectOptions};

use super::*;
use crate::store::{hosts, testing::Database};

#[tokio::test]
async fn a_fenced_host_cannot_write() {
    let host = TestHost::start().await;
    let new = new_execution(host.host_id);
    host.journal
        .save(new.id.0, vec![started(&new)])
        .await
        .expect("saved");
    hosts::fence(&host.db, host.host_id).await.expect("fenced");
    let row = vec![ran(node_run(new.id, host.host_id, 0))];
    for _ in 0..2 {
        let refused = host.journal.save(new.id.0, row.clone()).await;
        assert!(matches!(refused, Err(StoreError::Fenced)), "{refused:?}");
    }
    assert!(
        node_runs::journal(&host.db, new.id)
            .await
            .expect("read")
            .is_empty()
    );
    assert!(host.is_fenced());
    assert!(!host.may_start_effects());
    let mut pulse = host.pulse.clone();
    pulse
        .wait_for(|pulse| pulse.fenced)
        .await
        .expect("a last pulse");
}

#[tokio::test]
async fn a_batch_that_waits_while_its_host_is_fenced_writes_nothing() {
    let host = TestHost::start().await;
    let new = new_execution(host.host_id);
    let mut gate = Gate::close(&host).await;
    sqlx::query("UPDATE host_fences SET fenced = true")
        .execute(&mut gate.connection)
        .await
        .expect("fenced");
    let in_flight = append(&host, new.id.0, vec![started(&new)]);
    Gate::crowd(&host, 1).await;
    let queued = append(
        &host,
        new.id.0,
        vec![ran(node_run(new.id, host.host_id, 0))],
    );
    gate.open().await;
    for refused in [in_flight, queued] {
        let refused = refused.await.expect("told");
        assert!(matches!(refused, Err(StoreError::Fenced)), "{refused:?}");
    }
    assert!(
        executions::get(&host.db, new.id)
            .await
            .expect("read")
            .is_none()
    );
    assert!(host.is_fenced());
}

/// Ends the connections of all writers. They connect again as soon as they have something to write.
async fn end_writers(db: &mut PgConnection) -> i64 {
    sqlx::query_scalar(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
         WHERE datname = current_database() AND application_name LIKE 'callboard % w_'",
    )
    .fetch_one(db)
    .await
    .expect("an answer")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_break_under_load_lose_and_repeat_nothing() {
    const OWNERS: usize = 16;
    const ROWS: i32 = 400;
    let host = TestHost::start().await;
    let done = Arc::new(AtomicBool::new(false));
    let killer = tokio::spawn({
        let (done, mut db) = (Arc::clone(&done), host.database.connect().await);
        let journal = host.journal.clone();
        async move {
            let batches = || journal.stats().batches.load(Ordering::Relaxed);
            let (mut killed, mut seen) = (0, 0);
            while !done.load(Ordering::Relaxed) {
                // Not faster than it recovers, or nothing would ever be written.
                if batches() > seen + 4 {
                    seen = batches();
                    killed += end_writers(&mut db).await;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            killed
        }
    });
    let all: Vec<_> = (0..OWNERS).map(|_| new_execution(host.host_id)).collect();
    let work = all.iter().map(|new| async {
        host.journal.append(new.id.0, vec![started(new)], None);
        for seq in 0..ROWS {
            let row = vec![ran(node_run(new.id, host.host_id, seq))];
            if seq % 4 == 0 {
                host.journal.save(new.id.0, row).await.expect("saved");
            } else {
                host.journal.append(new.id.0, row, None);
            }
        }
        let end = vec![changed(change(new.id, ExecutionStatus::Succeeded))];
        host.journal.save(new.id.0, end).await.expect("saved");
    });
    join_all(work).await;
    done.store(true, Ordering::Relaxed);
    assert!(killer.await.expect("ended") > 0, "something was broken");
    assert!(host.journal.stats().retries.load(Ordering::Relaxed) > 0);
    for new in &all {
        let stored = executions::get(&host.db, new.id)
            .await
            .expect("read")
            .expect("there");
        assert_eq!(stored.status, ExecutionStatus::Succeeded);
        let journal = node_runs::journal(&host.db, new.id).await.expect("read");
        assert!(journal.iter().map(|row| row.seq).eq(0..ROWS));
    }
    assert!(host.journal.is_connected());
}

#[tokio::test]
async fn a_former_connection_is_ended_before_anything_is_sent_again() {
    let host = TestHost::start().await;
    let [new, other] = neighbours(&host);
    host.journal
        .save(new.id.0, vec![started(&new)])
        .await
        .expect("saved");
    let shard = new.id.0.as_u64_pair().1 % 2;
    let mut db = host.database.connect().await;
    end_writers(&mut db).await;
    // As one whose batch is stuck on its way.
    let options: PgConnectOptions = host.database.url.parse().expect("a URL");
    let options = options.application_name(&format!("callboard {} w{shard}", host.host_id));
    let mut former = PgConnection::connect_with(&options)
        .await
        .expect("a connection");
    former.ping().await.expect("alive");
    host.journal
        .save(other.id.0, vec![started(&other)])
        .await
        .expect("saved");
    former.ping().await.expect_err("ended");
}

#[tokio::test]
async fn writes_wait_while_the_database_is_away() {
    let host = TestHost::start().await;
    let mut db = host.database.connect().await;
    let other = Database::create().await;
    let mut elsewhere = other.connect().await; // nobody locks himself out
    let allow = |allowed: bool| {
        let name = &host.database.name;
        sqlx::AssertSqlSafe(format!("ALTER DATABASE {name} ALLOW_CONNECTIONS {allowed}"))
    };
    let new = new_execution(host.host_id);
    host.journal
        .save(new.id.0, vec![started(&new)])
        .await
        .expect("saved");
    sqlx::raw_sql(allow(false))
        .execute(&mut elsewhere)
        .await
        .expect("closed");
    end_writers(&mut db).await;
    let saved = append(
        &host,
        new.id.0,
        vec![ran(node_run(new.id, host.host_id, 0))],
    );
    until("the journal notices", async || {
        (!host.journal.is_connected()).then_some(())
    })
    .await;
    let many = (0..100_001).map(|_| closed(new.id, "w")).collect();
    let more = append(&host, new.id.0, many);
    assert!(host.journal.is_saturated());
    sqlx::raw_sql(allow(true))
        .execute(&mut elsewhere)
        .await
        .expect("opened");
    saved.await.expect("told").expect("saved");
    more.await.expect("told").expect("saved");
    assert!(host.journal.is_connected());
    assert!(!host.journal.is_saturated());
    assert_eq!(
        node_runs::journal(&host.db, new.id)
            .await
            .expect("read")
            .len(),
        1
    );
}

#[tokio::test]
async fn what_the_database_refuses_fails_its_owner_alone() {
    let host = TestHost::start().await;
    let gate = Gate::close(&host).await;
    let first: Vec<_> = neighbours(&host).into_iter().collect();
    let blocked: Vec<_> = first
        .iter()
        .map(|new| append(&host, new.id.0, vec![started(new)]))
        .collect();
    Gate::crowd(&host, 1).await;
    let all: Vec<_> = (0..60).map(|_| new_execution(host.host_id)).collect();
    let bad = [7, 8, 41].map(|index: usize| all[index].id);
    let saves: Vec<_> = all
        .iter()
        .map(|new| {
            let mut row = node_run(new.id, host.host_id, 0);
            match bad.iter().position(|id| *id == new.id) {
                Some(0) => row.port = Some("nul \0".to_owned()),
                Some(1) => row.output = Some("{".to_owned()),
                Some(_) => row.output = Some("[".repeat(100_000)),
                None => {}
            }
            host.journal.append(new.id.0, vec![started(new)], None);
            let row = append(&host, new.id.0, vec![ran(row)]);
            (
                row,
                append(
                    &host,
                    new.id.0,
                    vec![ran(node_run(new.id, host.host_id, 1))],
                ),
            )
        })
        .collect();
    gate.open().await;
    for saved in blocked {
        saved.await.expect("told").expect("saved");
    }
    for (new, (row, next)) in all.iter().zip(saves) {
        let results = [row.await.expect("told"), next.await.expect("told")];
        let journal = node_runs::journal(&host.db, new.id).await.expect("read");
        if bad.contains(&new.id) {
            assert!(
                results
                    .iter()
                    .all(|result| matches!(result, Err(StoreError::Corrupt(_)))),
                "{results:?}"
            );
            assert!(journal.is_empty());
        } else {
            assert!(results.iter().all(Result::is_ok), "{results:?}");
            assert_eq!(journal.len(), 2);
        }
    }
    let owner = all[7].id;
    let write = || vec![started(&all[7]), ran(node_run(owner, host.host_id, 0))];
    let refused = host.journal.save(owner.0, write()).await;
    assert!(
        matches!(refused, Err(StoreError::Corrupt(_))),
        "until it is opened again: {refused:?}"
    );
    host.journal.reopen(owner.0).await.expect("opened");
    host.journal.save(owner.0, write()).await.expect("saved");
    assert_eq!(
        node_runs::journal(&host.db, owner)
            .await
            .expect("read")
            .len(),
        1
    );
    assert!(!host.is_fenced());
}

#[tokio::test]
async fn a_callback_that_panics_harms_nobody() {
    let host = TestHost::start().await;
    let new = new_execution(host.host_id);
    let on_saved: crate::journal::OnSaved = Box::new(|_| panic!("on purpose"));
    host.journal
        .append(new.id.0, vec![started(&new)], Some(on_saved));
    let row = vec![ran(node_run(new.id, host.host_id, 0))];
    host.journal.save(new.id.0, row).await.expect("saved");
    assert!(!host.is_fenced());
}

#[tokio::test]
async fn a_flush_waits_for_everything_and_a_stopped_journal_says_so() {
    let host = TestHost::start().await;
    let all: Vec<_> = (0..50).map(|_| new_execution(host.host_id)).collect();
    for new in &all {
        host.journal.append(new.id.0, vec![started(new)], None);
    }
    host.journal.flush().await;
    assert_eq!(host.journal.queued(), (0, 0));
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM executions")
        .fetch_one(&host.db)
        .await
        .expect("read");
    assert_eq!(count, 50);
    host.shutdown().await;
    host.journal.flush().await;
    let closed = host.journal.save(all[0].id.0, vec![started(&all[0])]).await;
    assert!(
        matches!(closed, Err(StoreError::Closed | StoreError::Fenced)),
        "{closed:?}"
    );
}

#[tokio::test]
async fn an_append_that_no_message_could_hold_is_refused_at_once() {
    let host = TestHost::start().await;
    let new = new_execution(host.host_id);
    let mut row = node_run(new.id, host.host_id, 0);
    row.output = Some("1".repeat(129 << 20));
    let refused = host
        .journal
        .save(new.id.0, vec![started(&new), ran(row)])
        .await;
    assert!(matches!(refused, Err(StoreError::Corrupt(_))));
    assert_eq!(host.journal.stats().refusals.load(Ordering::Relaxed), 1);
    host.journal.reopen(new.id.0).await.expect("opened");
    host.journal
        .save(new.id.0, vec![started(&new)])
        .await
        .expect("saved");
}
