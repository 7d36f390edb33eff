//! Documents against a real Postgres.

use futures_util::future::join_all;
use serde_json::json;

use super::*;
use crate::store::testing::TestHost;

#[tokio::test]
async fn a_changed_body_makes_a_version_and_the_same_one_does_not() {
    let host = TestHost::start().await;
    let documents = &host.documents;
    let one = json!({"spec": {"rules": {"b": 1, "a": 2}}});
    let two = json!({"spec": {"rules": {"a": 2, "b": 1}}});
    let (first, put) = documents
        .put("Workflow", "w", one.clone())
        .await
        .expect("stored");
    assert_eq!((first.version, put, first.enabled), (1, Put::Created, true));
    let (same, put) = documents
        .put("Workflow", "w", one.clone())
        .await
        .expect("stored");
    assert_eq!((same.version, put), (1, Put::Unchanged));
    let (second, put) = documents
        .put("Workflow", "w", two.clone())
        .await
        .expect("stored");
    assert_eq!(
        (second.version, put),
        (2, Put::Changed),
        "the order of members counts"
    );
    let (third, put) = documents
        .put("Workflow", "w", one.clone())
        .await
        .expect("stored");
    assert_eq!(
        (third.version, put),
        (3, Put::Changed),
        "back to an older body"
    );
    assert_eq!(third.created_at, first.created_at);
    assert!(third.updated_at > first.updated_at);

    let found = documents.find("Workflow", "w").expect("there");
    assert_eq!(found.version, 3);
    assert_eq!(found.body.to_string(), one.to_string(), "in its order");
    let old = documents
        .version("Workflow", "w", 2)
        .await
        .expect("read")
        .expect("there");
    assert_eq!((old.version, old.body.to_string()), (2, two.to_string()));
    assert!(
        documents
            .version("Workflow", "w", 4)
            .await
            .expect("read")
            .is_none()
    );
    let versions = documents.versions("Workflow", "w").await.expect("read");
    assert_eq!(
        versions.iter().map(|row| row.version).collect::<Vec<_>>(),
        [3, 2, 1]
    );
    assert!(documents.find("Agent", "w").is_none());
}

#[tokio::test]
async fn what_is_derived_from_documents_learns_of_every_change_and_of_nothing_else() {
    let host = TestHost::start().await;
    let documents = &host.documents;
    let mut seen = documents.changes();
    let mut changed = || {
        let before = std::mem::replace(&mut seen, documents.changes());
        before != seen
    };
    let put = |n: i32| documents.put("Workflow", "w", json!({"n": n}));
    put(1).await.expect("stored");
    assert!(changed(), "a new one");
    put(1).await.expect("stored");
    documents.refresh().await.expect("read");
    assert!(!changed(), "the same one, and what memory has already");
    put(2).await.expect("stored");
    assert!(changed(), "a new version");
    let disabled = documents.set_enabled("Workflow", "w", false).await;
    assert!(disabled.is_ok() && changed(), "disabled");
    documents.delete("Workflow", "w").await.expect("deleted");
    assert!(changed(), "deleted");
    documents.refresh().await.expect("read");
    assert!(!changed());
}

#[tokio::test]
async fn a_document_is_disabled_deleted_and_made_again_with_its_versions_kept() {
    let host = TestHost::start().await;
    let documents = &host.documents;
    for name in ["b", "a"] {
        documents
            .put("Agent", name, json!({"n": name}))
            .await
            .expect("stored");
    }
    let disabled = documents
        .set_enabled("Agent", "a", false)
        .await
        .expect("disabled");
    assert!(!disabled.enabled && !documents.find("Agent", "a").expect("there").enabled);
    let (changed, _) = documents
        .put("Agent", "a", json!({"n": 2}))
        .await
        .expect("stored");
    assert!(!changed.enabled, "a change does not enable");
    let listed = documents.list("Agent");
    assert_eq!(
        listed
            .iter()
            .map(|row| row.name.as_str())
            .collect::<Vec<_>>(),
        ["a", "b"]
    );
    documents.delete("Agent", "a").await.expect("deleted");
    assert!(documents.find("Agent", "a").is_none());
    for gone in [
        documents.delete("Agent", "a").await,
        documents.set_enabled("Agent", "a", true).await.map(drop),
    ] {
        assert!(matches!(gone, Err(StoreError::NotFound)), "{gone:?}");
    }
    let old = documents
        .version("Agent", "a", 1)
        .await
        .expect("read")
        .expect("there");
    assert!(!old.enabled);
    let (again, put) = documents
        .put("Agent", "a", json!({"n": 2}))
        .await
        .expect("stored");
    assert_eq!((again.version, put, again.enabled), (3, Put::Created, true));
}

#[tokio::test]
async fn concurrent_changes_of_one_document_are_all_versions() {
    let host = TestHost::start().await;
    let other = host.database.host().await;
    let puts = (0..20).map(|n| {
        let documents = [&host.documents, &other.documents][n % 2].clone();
        async move {
            documents
                .put("Workflow", "w", json!({"n": n}))
                .await
                .expect("stored")
        }
    });
    let mut versions: Vec<i32> = join_all(puts)
        .await
        .iter()
        .map(|(row, _)| row.version)
        .collect();
    versions.sort_unstable();
    assert_eq!(versions, (1..=20).collect::<Vec<_>>());
    for core in [&*host, &other] {
        core.documents.refresh().await.expect("read");
        assert_eq!(
            core.documents.find("Workflow", "w").expect("there").version,
            20
        );
    }
    let same = (0..10).map(|_| host.documents.put("Workflow", "same", json!({})));
    let puts: Vec<Put> = join_all(same)
        .await
        .into_iter()
        .map(|put| put.expect("stored").1)
        .collect();
    assert_eq!(puts.iter().filter(|put| **put == Put::Created).count(), 1);
}

#[tokio::test]
async fn a_body_that_could_not_be_read_again_is_refused() {
    let host = TestHost::start().await;
    let deep = (0..200).fold(json!(1), |value, _| json!([value]));
    let large = json!("x".repeat(BODY_BYTES_MAX));
    for body in [deep, large] {
        let refused = host.documents.put("Workflow", "w", body).await;
        assert!(matches!(refused, Err(StoreError::Corrupt(_))));
    }
}
