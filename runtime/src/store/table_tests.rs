//! Claims, lists and keys against a real Postgres.

use std::collections::HashSet;

use sqlx::{AssertSqlSafe, Connection};

use super::{
    StoreError, api_keys, executions, hosts, node_runs,
    rows::{
        ExecutionStatus, NewExecution, NewSession, SessionChange, SessionEventRow, SessionStatus,
        Write,
    },
    session_events, sessions,
    testing::{
        TestHost, change, changed, new_execution, node_run, now, opened, ran, started, wait,
    },
    waits,
};
use crate::{
    core::Core,
    id::{ExecutionId, HostId, KeyId, SessionId},
};

async fn start(host: &Core, count: usize) -> Vec<NewExecution> {
    let all: Vec<_> = (0..count).map(|_| new_execution(host.host_id)).collect();
    for new in &all {
        host.journal.append(new.id.0, vec![started(new)], None);
    }
    host.journal.flush().await;
    all
}

async fn open_session(host: &Core, agent: &str, key: Option<&str>) -> SessionId {
    let id = SessionId::new();
    let new = NewSession {
        id,
        agent: agent.to_owned(),
        execution_id: None,
        idempotency_key: key.map(str::to_owned),
        created_at: now(),
    };
    let write = Write::SessionOpened(Box::new(new));
    host.journal.save(id.0, vec![write]).await.expect("saved");
    id
}

async fn run_session(host: &Core, id: SessionId) {
    let change = SessionChange {
        id,
        status: SessionStatus::Running,
        host_id: Some(host.host_id),
        usage: "{}".to_owned(),
        updated_at: now(),
    };
    let write = Write::SessionChanged(Box::new(change));
    host.journal.save(id.0, vec![write]).await.expect("saved");
}

#[tokio::test]
async fn two_hosts_never_adopt_the_same_execution() {
    let dead = TestHost::start().await;
    let all = start(&dead, 300).await;
    let ended = vec![changed(change(all[0].id, ExecutionStatus::Failed))];
    dead.journal.save(all[0].id.0, ended).await.expect("saved");
    let one = dead.database.host().await;
    let two = dead.database.host().await;
    let live = start(&one, 3).await;
    let nothing = executions::adopt(&one.db, one.host_id, 100)
        .await
        .expect("asked");
    assert!(nothing.is_empty(), "its host lives");
    hosts::fence(&one.db, dead.host_id).await.expect("fenced");
    let claim = async |core: &Core| {
        let mut claimed = Vec::new();
        loop {
            let ids = executions::adopt(&core.db, core.host_id, 7)
                .await
                .expect("claimed");
            assert!(ids.len() <= 7 && ids.is_sorted());
            if ids.is_empty() {
                return claimed;
            }
            claimed.extend(ids);
        }
    };
    let (a, b) = tokio::join!(claim(&one), claim(&two));
    assert!(!a.is_empty() && !b.is_empty());
    let together: HashSet<ExecutionId> = a.iter().chain(&b).copied().collect();
    assert_eq!(together.len(), a.len() + b.len(), "none twice");
    assert_eq!(
        together,
        all[1..].iter().map(|new| new.id).collect(),
        "all that had not ended"
    );
    assert!(live.iter().all(|new| !together.contains(&new.id)));
    let stored = executions::get(&one.db, a[0])
        .await
        .expect("read")
        .expect("there");
    assert_eq!(stored.host_id, Some(one.host_id));
}

#[tokio::test]
async fn what_a_host_without_a_row_owns_is_adopted_too() {
    let host = TestHost::start().await;
    let mut vanished = new_execution(HostId::new());
    vanished.status = ExecutionStatus::Queued;
    let mut unowned = new_execution(host.host_id);
    unowned.host_id = None;
    for new in [&vanished, &unowned] {
        host.journal
            .save(new.id.0, vec![started(new)])
            .await
            .expect("saved");
    }
    let ids = executions::adopt(&host.db, host.host_id, 0)
        .await
        .expect("claimed");
    assert!(ids.is_empty(), "no room");
    let ids = executions::adopt(&host.db, host.host_id, 10)
        .await
        .expect("claimed");
    assert_eq!(ids, [vanished.id, unowned.id]);
    let stored = executions::get(&host.db, vanished.id)
        .await
        .expect("read")
        .expect("there");
    assert_eq!(
        stored.status,
        ExecutionStatus::Queued,
        "whether it began is its owner's to say"
    );
}

#[tokio::test]
async fn a_fenced_host_claims_nothing() {
    let host = TestHost::start().await;
    let live = host.database.host().await;
    let [running, waiting] = [new_execution(HostId::new()), new_execution(host.host_id)];
    let mut due = wait(waiting.id, "w");
    due.wake_at = Some(now());
    let pause = changed(change(waiting.id, ExecutionStatus::Waiting));
    host.journal
        .save(running.id.0, vec![started(&running)])
        .await
        .expect("saved");
    let writes = vec![started(&waiting), opened(due), pause];
    host.journal
        .save(waiting.id.0, writes)
        .await
        .expect("saved");
    let session = open_session(&host, "a", None).await;
    let idle = open_session(&host, "a", None).await;
    run_session(&host, session).await;
    let me = host.host_id;
    hosts::fence(&live.db, me).await.expect("fenced");
    assert!(
        executions::adopt(&live.db, me, 9)
            .await
            .expect("asked")
            .is_empty()
    );
    assert!(
        waits::claim_due(&live.db, me, 9)
            .await
            .expect("asked")
            .is_empty()
    );
    assert!(
        !executions::claim_waiting(&live.db, me, waiting.id)
            .await
            .expect("asked")
    );
    assert!(
        sessions::adopt(&live.db, me, 9)
            .await
            .expect("asked")
            .is_empty()
    );
    assert!(
        !sessions::claim_idle(&live.db, me, idle)
            .await
            .expect("asked")
    );

    let me = live.host_id;
    assert_eq!(
        executions::adopt(&live.db, me, 9).await.expect("asked"),
        [running.id]
    );
    assert_eq!(
        waits::claim_due(&live.db, me, 9).await.expect("asked"),
        [waiting.id]
    );
    assert_eq!(
        sessions::adopt(&live.db, me, 9).await.expect("asked"),
        [session]
    );
    assert!(
        sessions::claim_idle(&live.db, me, idle)
            .await
            .expect("asked")
    );
    assert!(
        !sessions::claim_idle(&live.db, me, idle)
            .await
            .expect("asked"),
        "not idle any more"
    );
}

#[tokio::test]
async fn only_waiting_executions_with_a_due_wait_are_claimed_and_once() {
    let host = TestHost::start().await;
    let other = host.database.host().await;
    let all = start(&host, 40).await;
    let (running, waiting) = all.split_at(5);
    for (index, new) in all.iter().enumerate() {
        let mut soon = wait(new.id, "soon");
        soon.wake_at = Some(now() - chrono::Duration::seconds(index as i64));
        let mut also = wait(new.id, "also");
        also.wake_at = Some(now());
        let mut later = wait(new.id, "later");
        later.wake_at = Some(now() + chrono::Duration::hours(1));
        let mut writes = vec![opened(later)];
        if index % 5 != 0 {
            writes.extend([opened(soon), opened(also)]);
        }
        if index >= running.len() {
            writes.push(changed(change(new.id, ExecutionStatus::Waiting)));
        }
        host.journal.append(new.id.0, writes, None);
    }
    host.journal.flush().await;
    let claim = async |core: &Core| {
        let mut claimed = Vec::new();
        loop {
            let ids = waits::claim_due(&core.db, core.host_id, 4)
                .await
                .expect("claimed");
            if ids.is_empty() {
                return claimed;
            }
            claimed.extend(ids);
        }
    };
    let (mut a, b) = tokio::join!(claim(&host), claim(&other));
    a.extend(b);
    a.sort();
    let expected = waiting
        .iter()
        .enumerate()
        .filter(|(index, _)| index % 5 != 0);
    assert_eq!(a, expected.map(|(_, new)| new.id).collect::<Vec<_>>());
    let sleeping = waiting[0].id;
    assert!(
        executions::claim_waiting(&host.db, host.host_id, sleeping)
            .await
            .expect("asked")
    );
    assert!(
        !executions::claim_waiting(&other.db, other.host_id, sleeping)
            .await
            .expect("asked")
    );
    let stored = executions::get(&host.db, sleeping)
        .await
        .expect("read")
        .expect("there");
    assert_eq!(
        (stored.status, stored.host_id),
        (ExecutionStatus::Running, Some(host.host_id))
    );
}

#[tokio::test]
async fn a_wait_whose_child_ended_unnoticed_is_found_later() {
    let host = TestHost::start().await;
    let all = start(&host, 2).await;
    let (parent, child) = (all[0].id, all[1].id);
    let mut row = wait(parent, "w");
    row.child_id = Some(child);
    host.journal
        .save(parent.0, vec![opened(row)])
        .await
        .expect("saved");
    // It does not say whose child it is.
    let end = vec![changed(change(child, ExecutionStatus::Succeeded))];
    host.journal.save(child.0, end).await.expect("saved");
    assert!(
        waits::of(&host.db, parent).await.expect("read")[0]
            .wake_at
            .is_none()
    );
    assert_eq!(waits::wake_missed(&host.db).await.expect("done"), 1);
    assert_eq!(waits::wake_missed(&host.db).await.expect("done"), 0);
    assert_eq!(
        waits::due_children(&host.db, host.host_id, 9)
            .await
            .expect("read"),
        [parent]
    );
}

#[tokio::test]
async fn executions_are_listed_newest_first_and_in_pages() {
    let host = TestHost::start().await;
    let mut all: Vec<_> = (0..10).map(|_| new_execution(host.host_id)).collect();
    for (index, new) in all.iter_mut().enumerate() {
        new.started_at += chrono::Duration::milliseconds(index as i64);
        new.workflow = ["even", "odd"][index % 2].to_owned();
        new.trigger = ["manual", "webhook"][index / 5].to_owned();
        host.journal
            .save(new.id.0, vec![started(new)])
            .await
            .expect("saved");
    }
    let end = vec![changed(change(all[3].id, ExecutionStatus::Succeeded))];
    host.journal.save(all[3].id.0, end).await.expect("saved");
    let list = async |filter: executions::ExecutionFilter| -> Vec<usize> {
        let rows = executions::list(&host.db, &filter).await.expect("listed");
        let place = |id| {
            all.iter()
                .position(|new| new.id == id)
                .expect("one of them")
        };
        rows.iter().map(|row| place(row.id)).collect()
    };
    let all_rows = executions::ExecutionFilter {
        limit: 4,
        ..Default::default()
    };
    let mut pages = Vec::new();
    let mut cursor = None;
    loop {
        let page = list(executions::ExecutionFilter {
            cursor,
            ..all_rows.clone()
        })
        .await;
        let Some(last) = page.last() else { break };
        cursor = Some(all[*last].id);
        pages.push(page);
    }
    assert_eq!(pages, [vec![9, 8, 7, 6], vec![5, 4, 3, 2], vec![1, 0]]);
    let filter = executions::ExecutionFilter {
        limit: 100,
        ..Default::default()
    };
    let workflow = Some("odd".to_owned());
    assert_eq!(
        list(executions::ExecutionFilter {
            workflow,
            ..filter.clone()
        })
        .await,
        [9, 7, 5, 3, 1]
    );
    let status = Some(ExecutionStatus::Succeeded);
    assert_eq!(
        list(executions::ExecutionFilter {
            status,
            ..filter.clone()
        })
        .await,
        [3]
    );
    let trigger = Some("manual".to_owned());
    assert_eq!(
        list(executions::ExecutionFilter {
            trigger,
            ..filter.clone()
        })
        .await,
        [4, 3, 2, 1, 0]
    );
    let window = executions::ExecutionFilter {
        started_after: Some(all[2].started_at),
        started_before: Some(all[6].started_at),
        ..filter
    };
    assert_eq!(list(window).await, [5, 4, 3, 2]);
    assert_eq!(
        list(executions::ExecutionFilter::default()).await,
        [9],
        "a limit is at least 1"
    );
}

#[tokio::test]
async fn journals_are_listed_in_order_and_in_pages() {
    let host = TestHost::start().await;
    let new = &start(&host, 1).await[0];
    let rows = (0..7)
        .map(|seq| ran(node_run(new.id, host.host_id, seq)))
        .collect();
    host.journal.save(new.id.0, rows).await.expect("saved");
    let page = async |after| -> Vec<i32> {
        let rows = node_runs::list(&host.db, new.id, after, 3)
            .await
            .expect("listed");
        rows.iter().map(|row| row.seq).collect()
    };
    assert_eq!(page(-1).await, [0, 1, 2]);
    assert_eq!(page(2).await, [3, 4, 5]);
    assert_eq!(page(5).await, [6]);
    assert!(page(6).await.is_empty());
}

#[tokio::test]
async fn sessions_and_their_events_are_listed_in_pages_and_deleted_together() {
    let host = TestHost::start().await;
    let mut ids = Vec::new();
    for index in 0..5 {
        let key = format!("key-{index}");
        ids.push(open_session(&host, ["a", "b"][index % 2], Some(&key)).await);
    }
    let list = async |agent: Option<&str>, cursor| -> Vec<SessionId> {
        let agent = agent.map(str::to_owned);
        let filter = sessions::SessionFilter {
            agent,
            cursor,
            limit: 2,
        };
        let rows = sessions::list(&host.db, &filter).await.expect("listed");
        rows.iter().map(|row| row.id).collect()
    };
    assert_eq!(list(None, None).await, [ids[4], ids[3]]);
    assert_eq!(list(None, Some(ids[3])).await, [ids[2], ids[1]]);
    assert_eq!(list(None, Some(ids[1])).await, [ids[0]]);
    assert_eq!(list(Some("a"), Some(ids[4])).await, [ids[2], ids[0]]);

    let id = ids[0];
    let events = (1..=5).map(|seq| {
        Write::SessionEvent(Box::new(SessionEventRow {
            session_id: id,
            seq,
            kind: "message.completed".to_owned(),
            payload: "{}".to_owned(),
            created_at: now(),
        }))
    });
    host.journal
        .save(id.0, events.collect())
        .await
        .expect("saved");
    let page = async |after| -> Vec<i64> {
        let rows = session_events::list(&host.db, id, after, 2)
            .await
            .expect("listed");
        rows.iter().map(|row| row.seq).collect()
    };
    assert_eq!(page(0).await, [1, 2]);
    assert_eq!(page(4).await, [5]);
    assert!(sessions::delete(&host.db, id).await.expect("deleted"));
    assert!(!sessions::delete(&host.db, id).await.expect("asked"));
    assert!(page(0).await.is_empty());
    assert!(sessions::get(&host.db, id).await.expect("read").is_none());
    assert!(
        sessions::find_by_key(&host.db, "key-0")
            .await
            .expect("read")
            .is_none()
    );
}

#[tokio::test]
async fn keys_are_found_by_hash_until_they_are_revoked_or_expire() {
    let host = TestHost::start().await;
    let key = |n: u8| api_keys::NewApiKey {
        id: KeyId::new(),
        name: format!("key {n}"),
        hash: vec![n; 32],
        scopes: vec!["workflows:run".to_owned(), "*".to_owned()],
        expires_at: None,
    };
    let mut keys = [key(1), key(2), key(3)];
    keys[2].expires_at = Some(now() - chrono::Duration::seconds(1));
    for key in &keys {
        let stored = api_keys::insert(&host.db, key).await.expect("stored");
        assert_eq!((stored.id, &stored.scopes), (key.id, &key.scopes));
    }
    let again = api_keys::insert(&host.db, &keys[0]).await;
    assert!(matches!(again, Err(StoreError::Conflict(_))), "{again:?}");
    let find = async |n: u8| {
        let found = api_keys::find_by_hash(&host.db, &[n; 32])
            .await
            .expect("read");
        found.map(|key| key.name)
    };
    assert_eq!(find(1).await.as_deref(), Some("key 1"));
    assert_eq!(find(3).await, None, "expired");
    assert!(
        api_keys::revoke(&host.db, keys[0].id)
            .await
            .expect("revoked")
    );
    assert!(api_keys::revoke(&host.db, keys[0].id).await.expect("again"));
    assert!(
        !api_keys::revoke(&host.db, KeyId::new())
            .await
            .expect("asked")
    );
    assert_eq!(find(1).await, None, "revoked");
    let page = api_keys::list(&host.db, None, 2).await.expect("listed");
    assert_eq!(
        page.iter().map(|key| key.id).collect::<Vec<_>>(),
        [keys[2].id, keys[1].id]
    );
    let page = api_keys::list(&host.db, Some(keys[1].id), 2)
        .await
        .expect("listed");
    assert!(page[0].revoked_at.is_some());
}

#[tokio::test]
async fn hosts_are_forgotten_when_they_are_fenced_and_own_nothing() {
    let host = TestHost::start().await;
    let [owner, idle] = [host.database.host().await, host.database.host().await];
    start(&owner, 1).await;
    for gone in [&owner, &idle] {
        gone.shutdown().await;
    }
    let long_ago = "UPDATE hosts SET lease_expires_at = now() - interval '1 day' WHERE id <> $1";
    sqlx::query(long_ago)
        .bind(host.host_id.0)
        .execute(&host.db)
        .await
        .expect("done");
    hosts::forget(&host.db).await.expect("done");
    let left = hosts::list(&host.db).await.expect("listed");
    let left: Vec<_> = left
        .iter()
        .map(|row| (row.id, row.leased, row.fenced))
        .collect();
    assert_eq!(
        left,
        [(owner.host_id, false, true), (host.host_id, true, false)]
    );
    assert_eq!(
        executions::adopt(&host.db, host.host_id, 9)
            .await
            .expect("claimed")
            .len(),
        1
    );
    hosts::forget(&host.db).await.expect("done");
    assert_eq!(hosts::list(&host.db).await.expect("listed").len(), 1);
    let late = executions::adopt(&host.db, owner.host_id, 9)
        .await
        .expect("asked");
    assert!(late.is_empty(), "a host that is forgotten is fenced");
}

#[tokio::test]
async fn an_id_is_registered_once() {
    let host = TestHost::start().await;
    let new = hosts::NewHost {
        id: host.host_id,
        address: None,
        version: "1".to_owned(),
        labels: Default::default(),
        lease: std::time::Duration::from_secs(5),
        shards: 2,
    };
    let again = hosts::register(&host.db, &new).await;
    assert!(matches!(again, Err(StoreError::Conflict(_))), "{again:?}");
}

#[tokio::test]
async fn a_caller_composes_reads_and_claims_in_one_transaction() {
    let host = TestHost::start().await;
    let vanished = new_execution(HostId::new());
    host.journal
        .save(vanished.id.0, vec![started(&vanished)])
        .await
        .expect("saved");
    let mut db = host.database.connect().await;
    let mut tx = db.begin().await.expect("begun");
    let ids = executions::adopt(&mut *tx, host.host_id, 9)
        .await
        .expect("claimed");
    assert_eq!(ids, [vanished.id]);
    tx.rollback().await.expect("rolled back");
    let stored = executions::get(&host.db, vanished.id)
        .await
        .expect("read")
        .expect("there");
    assert_eq!(stored.host_id, vanished.host_id);
}

/// Once a second, on every host: it must cost the same on large tables as on these empty ones.
#[tokio::test]
async fn the_pulse_reads_no_growing_table_as_a_whole() {
    let host = TestHost::start().await;
    let mut db = host.database.connect().await;
    for (name, value) in crate::actors::membership::SETTINGS {
        let set = format!("SET {name} = '{value}'");
        sqlx::raw_sql(AssertSqlSafe(set))
            .execute(&mut db)
            .await
            .expect("set");
    }
    let explain = format!("EXPLAIN {}", hosts::RENEW.as_str());
    let plan: Vec<String> = sqlx::query_scalar(AssertSqlSafe(explain))
        .bind(host.host_id.0)
        .bind(5.0_f64)
        .fetch_all(&mut db)
        .await
        .expect("explained");
    let plan = plan.join("\n");
    for table in ["executions", "sessions", "waits"] {
        assert!(!plan.contains(&format!("Seq Scan on {table}")), "{plan}");
    }
}

#[tokio::test]
async fn a_line_of_executions_is_counted_up_to_a_limit() {
    let host = TestHost::start().await;
    let mut line: Vec<NewExecution> = Vec::new();
    for _ in 0..4 {
        let mut new = new_execution(host.host_id);
        new.parent_id = line.last().map(|parent| parent.id);
        host.journal
            .save(new.id.0, vec![started(&new)])
            .await
            .expect("saved");
        line.push(new);
    }
    for (id, limit, counted) in [
        (line[0].id, 20, 1),
        (line[3].id, 20, 4),
        (line[3].id, 4, 4),
        (line[3].id, 3, 3),
        (ExecutionId::new(), 20, 0),
    ] {
        let found = executions::generation(&host.db, id, limit).await;
        assert_eq!(found.expect("counted"), counted);
    }
}
