use std::{fs::Permissions, future::Future, os::unix::fs::PermissionsExt, path::Path};

use rustix::process::Signal;

use super::*;

/// A directory that any account may pass through, as a real data directory's parent is.
fn open_directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), Permissions::from_mode(0o711)).unwrap();
    directory
}

async fn connect(postgres: &PrivatePostgres) -> sqlx::Result<PgConnection> {
    PgConnection::connect(postgres.url()).await
}

async fn setting(connection: &mut PgConnection, name: &str) -> String {
    sqlx::query_scalar("SELECT current_setting($1)")
        .bind(name)
        .fetch_one(connection)
        .await
        .unwrap()
}

/// Tries until it works. Nothing here takes longer than a second on an idle machine.
async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut attempt: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(value) = attempt().await {
            return value;
        }
        assert!(Instant::now() < deadline, "{what} did not happen in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn is_running(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}/cwd")).exists()
}

#[tokio::test(flavor = "multi_thread")]
async fn data_survives_a_restart_and_nothing_listens_on_a_port() {
    let root = open_directory();
    let data_dir = root.path().join("data");
    let postgres = PrivatePostgres::start(&data_dir).await.unwrap();
    assert_eq!(postgres.note(), None);
    let mut connection = connect(&postgres).await.unwrap();
    for (name, value) in [("listen_addresses", ""), ("fsync", "on"), ("jit", "off")] {
        assert_eq!(setting(&mut connection, name).await, value, "{name}");
    }
    connection
        .execute("CREATE TABLE t (x int); INSERT INTO t VALUES (42)")
        .await
        .unwrap();
    drop(connection);
    let pid = postgres.pid().unwrap();
    postgres.shutdown().await;
    assert!(!is_running(pid));

    let postgres = PrivatePostgres::start(&data_dir).await.unwrap();
    let mut connection = connect(&postgres).await.unwrap();
    let x: i32 = sqlx::query_scalar("SELECT x FROM t")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(x, 42);
    postgres.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_on_the_same_data_directory_is_refused() {
    let root = open_directory();
    let postgres = PrivatePostgres::start(root.path()).await.unwrap();
    let refusal = PrivatePostgres::start(root.path())
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(refusal.contains("another server (pid "), "{refusal}");
    connect(&postgres).await.unwrap();
    postgres.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_database_comes_back_with_what_was_committed() {
    let root = open_directory();
    let postgres = PrivatePostgres::start(root.path()).await.unwrap();
    let mut connection = connect(&postgres).await.unwrap();
    connection
        .execute("CREATE TABLE t (x int); INSERT INTO t VALUES (42)")
        .await
        .unwrap();
    let first = postgres.pid().unwrap();
    cluster::send(first, Signal::KILL);
    let mut connection = eventually("a new server", || async {
        match postgres.pid() {
            Some(pid) if pid != first => connect(&postgres).await.ok(),
            _ => None,
        }
    })
    .await;
    let x: i32 = sqlx::query_scalar("SELECT x FROM t")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(x, 42);
    postgres.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_database_stops() {
    let root = open_directory();
    let postgres = PrivatePostgres::start(root.path()).await.unwrap();
    let pid = postgres.pid().unwrap();
    drop(postgres);
    assert!(!is_running(pid));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_a_killed_process_left_is_replaced() {
    let root = open_directory();
    let postgres = PrivatePostgres::start(root.path()).await.unwrap();
    let cluster = postgres.place.cluster().clone();
    let binaries = binaries::find(&postgres.place, None).unwrap();
    let account = postgres.place.account().clone();
    postgres.shutdown().await;
    // A server without a keeper, as on systems that have no parent-death signal.
    let mut left = cluster
        .server(&binaries, &account)
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let pid = i32::try_from(left.id()).unwrap();
    eventually("the server left over", || async {
        cluster.is_ready(pid).then_some(())
    })
    .await;
    // Here it is our child: somebody must reap it, as `init` would.
    let reaped = std::thread::spawn(move || left.wait().unwrap());
    let postgres = PrivatePostgres::start(root.path()).await.unwrap();
    assert!(reaped.join().unwrap().success());
    connect(&postgres).await.unwrap();
    postgres.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_path_still_has_a_socket() {
    let root = open_directory();
    let data_dir = root.path().join("a long name".repeat(12));
    let postgres = PrivatePostgres::start(&data_dir).await.unwrap();
    connect(&postgres).await.unwrap();
    postgres.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_up_that_was_cut_short_begins_again() {
    let root = open_directory();
    std::fs::create_dir(root.path().join("postgres.new")).unwrap();
    std::fs::write(root.path().join("postgres.new/PG_VERSION"), "15").unwrap();
    let postgres = PrivatePostgres::start(root.path()).await.unwrap();
    connect(&postgres).await.unwrap();
    postgres.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_behind_a_closed_door_keeps_its_data_elsewhere_and_says_so() {
    if !account::is_root() {
        return; // Only root needs another account to run the database.
    }
    let (closed, fallback) = (tempfile::tempdir().unwrap(), open_directory());
    std::fs::set_permissions(closed.path(), Permissions::from_mode(0o700)).unwrap();
    let data_dir = closed.path().join(".callboard");
    let postgres = PrivatePostgres::start_with_fallback(&data_dir, fallback.path())
        .await
        .unwrap();
    assert!(postgres.note().unwrap().contains("is kept in"));
    connect(&postgres).await.unwrap();
    postgres.shutdown().await;
}
