//! The database's own directory: making it, telling whether its server is ready, clearing what a dead one left.

use std::{
    fs::{self, Permissions},
    io::Write,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{
    Context, NAME, PostgresError, account::Account, binaries::Binaries, command, death_signal,
    place::Place,
};

/// Names the socket's file; nothing listens on a port.
const PORT: u16 = 5432;
/// A socket's path may have 107 bytes on Linux and 103 elsewhere.
const SOCKET_PATH_BYTES_MAX: usize = 100;
const INITDB_MAX: Duration = Duration::from_secs(180);
/// How long a server of an earlier process may take to stop cleanly, then at once.
const LEFTOVER_MAX: [(Signal, Duration); 2] = [
    (Signal::INT, Duration::from_secs(20)),
    (Signal::QUIT, Duration::from_secs(10)),
];

/// Settings of a new database, which its owner may change later in `postgresql.conf`. Durable (`fsync`,
/// `synchronous_commit` and `full_page_writes` stay on) and lean. The log gets no statements: they hold payloads.
const SETTINGS: &str = "
# Callboard's defaults. Change them as you like; `listen_addresses`, `port` and the socket are set by the server.
max_connections = 100
shared_buffers = 128MB
wal_compression = on
random_page_cost = 1.1
jit = off
max_logical_replication_workers = 0
# Queries are short; parallel workers would need more shared memory than small containers have.
max_parallel_workers_per_gather = 0
log_checkpoints = off
log_autovacuum_min_duration = -1
log_min_error_statement = panic
log_line_prefix = '%m [%p] '
log_timezone = 'GMT'
timezone = 'GMT'
";

/// A database's directory and its socket.
#[derive(Clone, Debug)]
pub struct Cluster {
    directory: PathBuf,
    // Removed with its last owner.
    short_socket: Option<Arc<TempDir>>,
}

impl Cluster {
    /// The cluster at `directory`, which need not exist yet.
    pub fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            short_socket: None,
        }
    }

    /// Makes a short private directory for the socket when the path to it is too long here. The one that a killed
    /// process left is removed.
    pub fn shorten_socket(&mut self, account: &Account) -> Result<(), PostgresError> {
        if self.socket().as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
            return Ok(());
        }
        let note = self.directory.with_extension("socket");
        if let Ok(earlier) = fs::read_to_string(&note) {
            remove_socket_directory(Path::new(earlier.trim()));
        }
        let parent = [PathBuf::from("/tmp"), std::env::temp_dir()]
            .into_iter()
            .find(|parent| parent.is_dir())
            .unwrap_or_else(|| PathBuf::from("/"));
        let making = || format!("making a directory for the socket in {}", parent.display());
        let directory = tempfile::Builder::new()
            .prefix(SOCKET_DIRECTORY_PREFIX)
            .tempdir_in(&parent)
            .context(making)?;
        account.give(directory.path())?;
        fs::write(&note, directory.path().as_os_str().as_encoded_bytes())
            .context(|| format!("writing {}", note.display()))?;
        account.give(&note)?;
        self.short_socket = Some(Arc::new(directory));
        Ok(())
    }

    /// Where the files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the socket is.
    pub fn socket_directory(&self) -> &Path {
        self.short_socket
            .as_ref()
            .map_or(&self.directory, |directory| directory.path())
    }

    fn socket(&self) -> PathBuf {
        self.socket_directory().join(format!(".s.PGSQL.{PORT}"))
    }

    /// A URL of one of its databases. The host's name is never looked up, since the socket takes its place.
    pub fn url(&self, database: &str) -> String {
        let socket: String = self
            .socket_directory()
            .as_os_str()
            .as_encoded_bytes()
            .iter()
            .map(|&byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' => {
                    char::from(byte).to_string()
                }
                _ => format!("%{byte:02X}"),
            })
            .collect();
        format!("postgres://{NAME}@localhost:{PORT}/{database}?host={socket}")
    }

    /// The version that made it; none when there is nothing yet.
    pub fn major(&self) -> Result<Option<u32>, PostgresError> {
        let reading = || format!("reading {}", self.directory.display());
        match fs::read_to_string(self.directory.join("PG_VERSION")) {
            Ok(text) => match text.trim().parse() {
                Ok(major) => Ok(Some(major)),
                Err(_) => Err(PostgresError::NotACluster(self.directory.clone())),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                match fs::read_dir(&self.directory).map(|mut entries| entries.next().is_none()) {
                    Ok(true) => Ok(None),
                    Ok(false) => Err(PostgresError::NotACluster(self.directory.clone())),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(error).context(reading),
                }
            }
            Err(error) => Err(error).context(reading),
        }
    }

    /// Whether the server with this pid says that it takes connections.
    pub fn is_ready(&self, pid: i32) -> bool {
        fs::read_to_string(self.pid_file()).is_ok_and(|text| {
            let mut lines = text.lines();
            let found = lines.next().and_then(|line| line.trim().parse().ok());
            // The status is the eighth line.
            found == Some(pid) && lines.nth(6).map(str::trim) == Some("ready")
        })
    }

    fn pid_file(&self) -> PathBuf {
        self.directory.join("postmaster.pid")
    }

    /// The server's command. What matters for safety is set here, where `postgresql.conf` cannot undo it.
    pub fn server(&self, binaries: &Binaries, account: &Account) -> Command {
        let mut command = binaries.command("postgres");
        command
            .current_dir(&self.directory)
            .arg("-D")
            .arg(&self.directory);
        let socket_directory = self.socket_directory().display();
        for setting in [
            "listen_addresses=".to_owned(),
            format!("port={PORT}"),
            format!(
                "unix_socket_directories={}",
                quoted(&socket_directory.to_string())
            ),
            "unix_socket_permissions=0700".to_owned(),
            "logging_collector=off".to_owned(),
            "log_destination=stderr".to_owned(),
            format!("cluster_name={NAME}"),
        ] {
            command.arg("-c").arg(setting);
        }
        account.apply(&mut command);
        command
    }

    /// Stops a server that an earlier process left running here, and removes a pid file whose pid belongs to
    /// something else by now, as after the restart of a container. The caller holds the lock.
    pub fn end_leftovers(&self) -> Result<(), PostgresError> {
        let Ok(text) = fs::read_to_string(self.pid_file()) else {
            return Ok(());
        };
        let recorded = text
            .lines()
            .next()
            .and_then(|line| line.trim().parse().ok());
        let Some(recorded) = recorded.filter(|&pid: &i32| pid > 0) else {
            return self.remove_pid_file();
        };
        for (signal, patience) in LEFTOVER_MAX {
            let servers = self.servers(recorded);
            if servers.is_empty() {
                break;
            }
            tracing::info!(
                ?servers,
                ?signal,
                "stopping a database left by an earlier run"
            );
            for &pid in &servers {
                send(pid, signal);
            }
            let started = Instant::now();
            while started.elapsed() < patience && !self.servers(recorded).is_empty() {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        match self.servers(recorded).first() {
            Some(&pid) => Err(PostgresError::Leftover(pid)),
            None if is_alive(recorded) => self.remove_pid_file(),
            // With its pid gone Postgres removes the file itself, after a look for orphans of its own.
            None => Ok(()),
        }
    }

    fn remove_pid_file(&self) -> Result<(), PostgresError> {
        match fs::remove_file(self.pid_file()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context(|| format!("removing {}", self.pid_file().display()))
            }
            _ => Ok(()),
        }
    }

    /// The processes of a server on this directory: they all have it as their working directory. On systems
    /// without `/proc`, the recorded one if its command line names the directory.
    fn servers(&self, recorded: i32) -> Vec<i32> {
        let Ok(processes) = fs::read_dir("/proc") else {
            return if self.is_server_by_ps(recorded) {
                vec![recorded]
            } else {
                Vec::new()
            };
        };
        processes
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|pid: &i32| {
                fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == self.directory)
                    && fs::read_to_string(format!("/proc/{pid}/comm"))
                        .is_ok_and(|name| name.starts_with("postgres"))
            })
            .collect()
    }

    fn is_server_by_ps(&self, pid: i32) -> bool {
        Command::new("ps")
            .args(["-o", "command=", "-p", &pid.to_string()])
            .output()
            .is_ok_and(|output| {
                let text = String::from_utf8_lossy(&output.stdout);
                text.contains("postgres") && text.contains(&*self.directory.to_string_lossy())
            })
    }
}

const SOCKET_DIRECTORY_PREFIX: &str = "callboard-";

fn remove_socket_directory(path: &Path) {
    let ours = path
        .file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with(SOCKET_DIRECTORY_PREFIX));
    if ours && let Err(error) = fs::remove_dir_all(path) {
        tracing::debug!(%error, path = %path.display(), "a socket directory was not removed");
    }
}

/// One element of a list-valued setting.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// Sends a signal. A process that is gone needs none.
pub fn send(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid)
        && let Err(error) = kill_process(pid, signal)
    {
        tracing::debug!(%error, ?pid, "a signal was not delivered");
    }
}

fn is_alive(pid: i32) -> bool {
    Pid::from_raw(pid).is_some_and(|pid| {
        !matches!(
            rustix::process::test_kill_process(pid),
            Err(rustix::io::Errno::SRCH)
        )
    })
}

/// Sets a new database up under another name and renames it, so that there is a whole one or none.
pub fn create(place: &Place, binaries: &Binaries) -> Result<(), PostgresError> {
    let directory = place.new_cluster_directory();
    let mut failure = String::new();
    for locale in locales(binaries.major) {
        make_empty(&directory, place.account())?;
        let outcome = initdb(&directory, binaries, place.account(), locale)?;
        if outcome.ok {
            write_settings(&directory)?;
            let name = place.cluster().directory();
            return fs::rename(&directory, name)
                .context(|| format!("renaming {} to {}", directory.display(), name.display()));
        }
        failure = outcome.complaint();
    }
    Err(PostgresError::Initdb(failure))
}

/// Text is compared by code point everywhere; upper and lower case follow Unicode where the system can.
fn locales(major: u32) -> &'static [&'static [&'static str]] {
    if major >= 17 {
        &[&[
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
        ]]
    } else {
        &[&["--locale=C", "--lc-ctype=C.UTF-8"], &["--locale=C"]]
    }
}

fn make_empty(directory: &Path, account: &Account) -> Result<(), PostgresError> {
    let making = || format!("making {}", directory.display());
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).context(making);
        }
        _ => {}
    }
    fs::DirBuilder::new()
        .mode(0o700)
        .create(directory)
        .context(making)?;
    account.give(directory)
}

fn initdb(
    directory: &Path,
    binaries: &Binaries,
    account: &Account,
    locale: &[&str],
) -> Result<command::Outcome, PostgresError> {
    let mut command = binaries.command("initdb");
    command
        .current_dir(directory)
        .args(["--auth=trust", "--encoding=UTF8", "--no-instructions"])
        .args(["--username", NAME])
        .args(locale)
        .arg("-D")
        .arg(directory);
    account.apply(&mut command);
    death_signal::stop_with_parent(&mut command);
    command::run(&mut command, INITDB_MAX).context(|| "running initdb".to_owned())
}

fn write_settings(directory: &Path) -> Result<(), PostgresError> {
    let path = directory.join("postgresql.conf");
    let writing = || format!("writing {}", path.display());
    let mut file = fs::OpenOptions::new()
        .append(true)
        .open(&path)
        .context(writing)?;
    file.write_all(SETTINGS.as_bytes()).context(writing)?;
    file.sync_all().context(writing)?;
    fs::set_permissions(&path, Permissions::from_mode(0o600)).context(writing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_server_itself_can_be_ready() {
        let directory = tempfile::tempdir().unwrap();
        let cluster = Cluster::new(directory.path().to_owned());
        let write = |status: &str| {
            let text = format!("42\n/data\n1700000000\n5432\n/data\n\n  1 2\n{status}\n");
            fs::write(cluster.pid_file(), text).unwrap();
        };
        assert!(!cluster.is_ready(42));
        write("starting");
        assert!(!cluster.is_ready(42));
        write("ready   ");
        assert!(cluster.is_ready(42));
        assert!(!cluster.is_ready(43));
    }

    #[test]
    fn a_url_holds_any_path() {
        let cluster = Cluster::new(PathBuf::from("/a b/ü&c=%/postgres"));
        let options: sqlx::postgres::PgConnectOptions = cluster.url("x").parse().unwrap();
        assert_eq!(
            options.get_socket().map(PathBuf::as_path),
            Some(cluster.directory())
        );
        assert_eq!(options.get_database(), Some("x"));
        assert_eq!(options.get_username(), NAME);
    }

    #[test]
    fn a_pid_file_whose_pid_is_another_process_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let cluster = Cluster::new(directory.path().canonicalize().unwrap());
        // This test is surely alive and surely no Postgres.
        fs::write(
            cluster.pid_file(),
            format!("{}\n/data\n", std::process::id()),
        )
        .unwrap();
        cluster.end_leftovers().unwrap();
        assert!(!cluster.pid_file().exists());
    }

    #[test]
    fn a_directory_with_other_content_is_no_cluster() {
        let directory = tempfile::tempdir().unwrap();
        let cluster = Cluster::new(directory.path().to_owned());
        assert_eq!(cluster.major().unwrap(), None);
        fs::write(directory.path().join("thesis.doc"), "x").unwrap();
        assert!(matches!(
            cluster.major(),
            Err(PostgresError::NotACluster(_))
        ));
    }

    #[test]
    fn a_long_path_gets_a_short_socket() {
        let directory = tempfile::tempdir().unwrap();
        let long = directory.path().join("x".repeat(120));
        fs::create_dir(&long).unwrap();
        let mut cluster = Cluster::new(long.join("postgres"));
        cluster.shorten_socket(&Account::own()).unwrap();
        assert!(cluster.socket().as_os_str().len() <= SOCKET_PATH_BYTES_MAX);
        let first = cluster.socket_directory().to_owned();
        // As a killed process would leave it.
        std::mem::forget(cluster.short_socket.take());
        cluster.shorten_socket(&Account::own()).unwrap();
        assert!(!first.exists());
    }
}
