//! Hosts against a real Postgres: joining, leaving, dying.

use std::time::Duration;

use serde_json::json;

use super::*;
use crate::store::{
    executions,
    rows::ExecutionStatus,
    testing::{
        Database, TestHost, change, changed, config, new_execution, now, opened, started, until,
        wait,
    },
    waits,
};

#[test]
fn all_faults_of_the_settings_are_found_at_once() {
    let good = config("postgres://localhost/callboard");
    good.check().expect("good");
    let bad = Config {
        database_url: "not a URL".to_owned(),
        lease: Duration::from_secs(1),
        running_max: 0,
        labels: [(String::new(), "x".to_owned())].into(),
        ..good
    };
    assert_eq!(bad.check().expect_err("faults").faults.len(), 4);
}

#[test]
fn a_password_is_not_shown() {
    let config = config("postgres://me:secret@localhost/callboard");
    assert!(!format!("{config:?}").contains("secret"));
}

#[tokio::test]
async fn a_database_that_is_not_there_is_said_at_once() {
    let refused = Core::connect(config("postgres://nobody@127.0.0.1:1/nowhere")).await;
    assert!(
        matches!(refused, Err(ConnectError::Migrate(_))),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_new_host_has_a_good_lease_and_a_pulse() {
    let host = TestHost::start().await;
    assert!(host.may_start_effects());
    let mut pulse = host.pulse.clone();
    let first = pulse.borrow_and_update().clone();
    assert!(
        !first.fenced && !first.orphan_executions && !first.orphan_sessions && !first.due_waits
    );
    assert_eq!(first.next_wake_at, None);
    host.pulse_now();
    pulse.changed().await.expect("another");
    assert!(pulse.borrow().database_now > first.database_now);
}

#[tokio::test]
async fn what_a_host_left_is_seen_by_the_next_pulse_after_it_stopped() {
    let host = TestHost::start().await;
    let leaving = host.database.host().await;
    let new = new_execution(leaving.host_id);
    leaving.journal.append(new.id.0, vec![started(&new)], None);
    leaving.shutdown().await;
    leaving.shutdown().await;
    let mut pulse = host.pulse.clone();
    host.pulse_now();
    pulse
        .wait_for(|pulse| pulse.orphan_executions)
        .await
        .expect("a pulse");
    let adopted = executions::adopt(&host.db, host.host_id, 9)
        .await
        .expect("adopted");
    assert_eq!(adopted, [new.id], "what was queued was written");
    host.pulse_now();
    pulse
        .wait_for(|pulse| !pulse.orphan_executions)
        .await
        .expect("a pulse");
}

/// A host that stops renewing, as one that was killed does.
async fn expire(host: &TestHost, dead: &Core) {
    dead.membership.kill();
    sqlx::query("UPDATE hosts SET lease_expires_at = now() - interval '1 second' WHERE id = $1")
        .bind(dead.host_id.0)
        .execute(&host.db)
        .await
        .expect("expired");
}

#[tokio::test]
async fn a_host_whose_lease_expired_is_fenced_by_a_peer() {
    let host = TestHost::start().await;
    let dead = host.database.host().await;
    let new = new_execution(dead.host_id);
    dead.journal
        .save(new.id.0, vec![started(&new)])
        .await
        .expect("saved");
    expire(&host, &dead).await;
    let mut pulse = host.pulse.clone();
    pulse
        .wait_for(|pulse| pulse.orphan_executions)
        .await
        .expect("a pulse");
    let adopted = executions::adopt(&host.db, host.host_id, 9)
        .await
        .expect("adopted");
    assert_eq!(adopted, [new.id]);
    let late = dead.journal.save(new.id.0, vec![started(&new)]).await;
    assert!(matches!(late, Err(StoreError::Fenced)), "{late:?}");
}

#[tokio::test]
async fn a_lease_that_expired_may_be_renewed_while_nobody_fenced_it() {
    let host = TestHost::start().await;
    sqlx::query("UPDATE hosts SET lease_expires_at = now() - interval '1 hour'")
        .execute(&host.db)
        .await
        .expect("expired");
    let mut pulse = host.pulse.clone();
    pulse.mark_unchanged();
    host.pulse_now();
    pulse.changed().await.expect("a pulse");
    assert!(!pulse.borrow().fenced);
    let listed = hosts::list(&host.db).await.expect("listed");
    assert!(listed[0].leased && !listed[0].fenced);
}

#[tokio::test]
async fn an_exclusive_host_adopts_at_once() {
    let database = Database::create().await;
    let earlier = database.host().await;
    let new = new_execution(earlier.host_id);
    earlier
        .journal
        .save(new.id.0, vec![started(&new)])
        .await
        .expect("saved");
    let exclusive = Config {
        exclusive: true,
        ..config(&database.url)
    };
    let host = Core::connect(exclusive).await.expect("a host");
    assert!(host.pulse.borrow().orphan_executions, "in its first pulse");
    let adopted = executions::adopt(&host.db, host.host_id, 9)
        .await
        .expect("adopted");
    assert_eq!(adopted, [new.id]);
    let late = earlier.journal.save(new.id.0, vec![started(&new)]).await;
    assert!(matches!(late, Err(StoreError::Fenced)), "{late:?}");
}

#[tokio::test]
async fn the_pulse_tells_of_waits_and_comes_when_one_ends() {
    let host = TestHost::start().await;
    let new = new_execution(host.host_id);
    let mut soon = wait(new.id, "w");
    soon.wake_at = Some(now() + chrono::Duration::milliseconds(300));
    let pause = changed(change(new.id, ExecutionStatus::Waiting));
    let writes = vec![started(&new), opened(soon.clone()), pause];
    host.journal.save(new.id.0, writes).await.expect("saved");
    host.pulse_now();
    let mut pulse = host.pulse.clone();
    let first = pulse
        .wait_for(|pulse| pulse.next_wake_at.is_some() || pulse.due_waits)
        .await;
    let next = first.expect("a pulse").next_wake_at;
    assert!(next.is_none_or(|next| Some(next) == soon.wake_at));
    pulse
        .wait_for(|pulse| pulse.due_waits)
        .await
        .expect("a pulse");
    let claimed = waits::claim_due(&host.db, host.host_id, 9).await;
    assert_eq!(claimed.expect("claimed"), [new.id]);
}

#[tokio::test]
async fn a_host_that_loses_a_writer_fences_itself() {
    let host = TestHost::start().await;
    let peer = host.database.host().await;
    let new = new_execution(host.host_id);
    host.journal
        .save(new.id.0, vec![started(&new)])
        .await
        .expect("saved");
    for writer in host.persistence.get_children() {
        writer.kill();
    }
    let mut pulse = host.pulse.clone();
    pulse
        .wait_for(|pulse| pulse.fenced)
        .await
        .expect("a last pulse");
    assert!(host.is_fenced() && !host.may_start_effects());
    let refused = host.journal.save(new.id.0, vec![started(&new)]).await;
    assert!(matches!(refused, Err(StoreError::Fenced)), "{refused:?}");
    let mut pulse = peer.pulse.clone();
    pulse
        .wait_for(|pulse| pulse.orphan_executions)
        .await
        .expect("a pulse");
}

#[tokio::test]
async fn a_change_of_a_document_reaches_every_host() {
    let host = TestHost::start().await;
    let other = host.database.host().await;
    let revision = other.documents.revision();
    host.documents
        .put("Workflow", "w", json!({"n": 1}))
        .await
        .expect("stored");
    other.pulse_now();
    let mut pulse = other.pulse.clone();
    pulse
        .wait_for(|pulse| pulse.documents_revision > revision)
        .await
        .expect("a pulse");
    let found = other.documents.find("Workflow", "w").expect("there");
    assert_eq!(*found.body, json!({"n": 1}));
    other
        .documents
        .delete("Workflow", "w")
        .await
        .expect("deleted");
    host.pulse_now();
    let mut pulse = host.pulse.clone();
    pulse
        .wait_for(|pulse| pulse.documents_revision > revision + 1)
        .await
        .expect("a pulse");
    assert!(host.documents.find("Workflow", "w").is_none());
}

#[tokio::test]
async fn a_lease_goes_on_being_renewed_when_its_actor_fails() {
    let host = TestHost::start().await;
    let mut pulse = host.pulse.clone();
    for _ in 0..2 {
        let child = until("it has a child", async || {
            host.membership.get_children().pop()
        })
        .await;
        child.kill();
        until("it is gone", async || {
            let children = host.membership.get_children();
            children
                .iter()
                .all(|other| other.get_id() != child.get_id())
                .then_some(())
        })
        .await;
        pulse.mark_unchanged();
        pulse.changed().await.expect("a pulse");
    }
    assert!(host.may_start_effects() && host.is_connected());
    host.shutdown().await;
    assert!(!host.may_start_effects());
}
