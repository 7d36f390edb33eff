//! A host from start to stop: the database, the engine, documents to load, HTTP, and the way down.
//!
//! What can be refused is refused first: a taken port and faulty documents are found before a database is started.
//! Everything that was begun is stopped in reverse order; a second signal ends the process at once, and what was in
//! flight is then recovered by the next start, as after any crash.

use std::{
    fs,
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use callboard_agents::sessions::Sessions;
use callboard_runtime::{
    core::{self, Core, Pulse},
    document::Document,
    documents::Put,
    executions::Executions,
    node::NodeRegistry,
    outbound::OutboundPolicy,
    postgres::PrivatePostgres,
};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    cli::{
        Failure,
        client::{KEY_FILE, SERVER_FILE, chain},
        documents::{self, Loaded},
        output::{Output, count, remark},
    },
    config::Config,
    http::{self, App, ServeOptions, keys},
};

/// How long requests may take to finish once everything they could wait for has ended.
const LAST_ANSWERS: Duration = Duration::from_secs(5);
/// How long a host waits between attempts to join again.
const REJOIN_PAUSE: Duration = Duration::from_secs(1);

/// A host that serves, over all its incarnations.
pub struct Host {
    /// Where clients reach it, such as `http://127.0.0.1:8080`.
    pub url: String,
    /// The admin key.
    pub admin_key: String,
    /// The file that holds the admin key.
    pub key_file: PathBuf,
    /// The key was made just now.
    pub first_start: bool,
    config: Config,
    /// Kept over all incarnations, so that the port is never free for another program.
    listener: std::net::TcpListener,
    postgres: Option<PrivatePostgres>,
    incarnation: Incarnation,
    stop: CancellationToken,
}

/// A host under one id: it ends when the process stops or when others have fenced it.
struct Incarnation {
    core: Core,
    executions: Executions,
    sessions: Sessions,
    draining: CancellationToken,
    shutdown: CancellationToken,
    served: JoinHandle<io::Result<()>>,
}

/// Serves until a signal, having said where.
pub async fn serve(config: Config, output: &Output) -> Result<(), Failure> {
    let host = Host::start(config, Loaded::default()).await?;
    host.announce(output);
    host.run().await
}

impl Host {
    /// Starts a host with these documents besides those that the configuration names. Returns when it serves.
    pub async fn start(config: Config, mut loaded: Loaded) -> Result<Self, Failure> {
        // From here on a signal is a wish to stop, not the end of the process.
        let stop = stop_signal()?;
        if config.database_url.is_some() {
            core_config(&config, None)?;
        }
        let listener = listen(config.listen)?;
        if !config.load.is_empty() {
            let read = documents::read_paths(&config.load)?;
            loaded.documents.extend(read.documents);
            loaded.faults.extend(read.faults);
            loaded.sort();
        }
        check(&loaded)?;
        make_private(&config.data_dir).map_err(|error| {
            Failure::Failed(format!(
                "cannot make {}: {error}",
                config.data_dir.display()
            ))
        })?;
        let starting = async {
            let postgres = start_database(&config).await?;
            Self::start_on(config, &loaded.documents, listener, postgres, stop.clone()).await
        };
        tokio::select! {
            started = starting => started,
            () = stop.cancelled() => Err(Failure::Failed("stopped before it had started".to_owned())),
        }
    }

    async fn start_on(
        config: Config,
        documents: &[Document],
        listener: std::net::TcpListener,
        postgres: Option<PrivatePostgres>,
        stop: CancellationToken,
    ) -> Result<Self, Failure> {
        let (key_file, admin_key, first_start) = admin_key(&config)?;
        let core = core_config(&config, postgres.as_ref())?;
        let address = listener.local_addr().map_err(failed("cannot listen"))?;
        let incarnation =
            Incarnation::start(&config, core, &listener, Some((&admin_key, documents))).await?;
        let host = Self {
            url: format!("http://{}", reachable(address)),
            admin_key,
            key_file,
            first_start,
            config,
            listener,
            postgres,
            incarnation,
            stop,
        };
        host.record();
        Ok(host)
    }

    /// Says on standard output where it listens, and at the first start how to speak to it.
    pub fn announce(&self, output: &Output) {
        if output.is_json() {
            output.json_line(&json!({
                "listening": self.url, "admin_key_file": self.key_file, "first_start": self.first_start,
            }));
            return;
        }
        output.line(format!("listening on {}", self.url));
        if self.first_start {
            let file = self.key_file.display();
            output.line(format!("admin key in {file}; for example:"));
            output.line(format!(
                "  curl -H \"Authorization: Bearer $(cat {file})\" {}/v1/workflows",
                self.url
            ));
        }
    }

    /// Tells clients on this machine where the server is. They can be told by hand, so failing here stops nothing.
    fn record(&self) {
        let file = self.config.data_dir.join(SERVER_FILE);
        let told = json!({"url": self.url, "pid": std::process::id()});
        // Clients send their key to where this file says.
        if let Err(error) = write_owned(&file, &told.to_string(), 0o644) {
            tracing::warn!(%error, file = %file.display(), "clients will have to be told the address");
        }
    }

    /// Takes back what [`Host::record`] told, unless another process has told something else since.
    fn forget(&self) {
        let file = self.config.data_dir.join(SERVER_FILE);
        let text = fs::read_to_string(&file).unwrap_or_default();
        let told: Value = serde_json::from_str(&text).unwrap_or_default();
        if told["pid"] == std::process::id() {
            // One that stays behind only leads to a server that is not there.
            let _ = fs::remove_file(&file);
        }
    }

    /// Waits for the wish to stop, without stopping anything.
    pub async fn stop_wished(&self) {
        self.stop.cancelled().await;
    }

    /// Serves until a signal, then stops. A host that others have fenced goes on under a new id.
    pub async fn run(mut self) -> Result<(), Failure> {
        loop {
            let fenced = fenced(self.incarnation.core.pulse.clone());
            tokio::select! {
                () = self.stop.cancelled() => return self.stop().await,
                () = fenced => self.rejoin().await?,
                served = &mut self.incarnation.served => {
                    // Nothing else ends it: the listener is broken.
                    self.finish().await;
                    return outcome(served);
                }
            }
        }
    }

    /// Lets what runs finish for as long as the configuration says, then stops everything.
    pub async fn stop(mut self) -> Result<(), Failure> {
        tracing::info!("stopping; a second signal stops at once");
        let served = self.incarnation.drain(self.config.drain_timeout).await;
        self.finish().await;
        outcome(served)
    }

    async fn finish(&mut self) {
        self.forget();
        self.incarnation.core.shutdown().await;
        if let Some(postgres) = self.postgres.take() {
            postgres.shutdown().await;
        }
    }

    /// Ends the fenced incarnation, which may not write any more, and begins an empty one. Goes on trying until it
    /// is asked to stop: the database may be away.
    async fn rejoin(&mut self) -> Result<(), Failure> {
        tracing::warn!(
            "this host was fenced: others have taken over what it ran; it goes on under a new id"
        );
        let _ = self.incarnation.drain(Duration::ZERO).await;
        self.incarnation.core.shutdown().await;
        while !self.stop.is_cancelled() {
            let core = core_config(&self.config, self.postgres.as_ref())?;
            match Incarnation::start(&self.config, core, &self.listener, None).await {
                Ok(next) => {
                    self.incarnation = next;
                    break;
                }
                Err(failure) => tracing::error!(%failure, "this host cannot join; trying again"),
            }
            tokio::select! {
                () = tokio::time::sleep(REJOIN_PAUSE) => {}
                () = self.stop.cancelled() => {}
            }
        }
        Ok(())
    }
}

impl Incarnation {
    /// Joins under a new id and serves. The first one makes the admin key known and stores the documents to load; a
    /// later one leaves both as they have become.
    async fn start(
        config: &Config,
        core: core::Config,
        listener: &std::net::TcpListener,
        first: Option<(&str, &[Document])>,
    ) -> Result<Self, Failure> {
        let core = Core::connect(core)
            .await
            .map_err(failed("cannot use the database"))?;
        if let Some((admin_key, documents)) = first {
            keys::ensure_admin_key(&core, admin_key)
                .await
                .map_err(failed("cannot store the admin key"))?;
            store(&core, documents).await?;
        }
        let mut nodes = NodeRegistry::default();
        callboard_nodes::register(&mut nodes, core.outbound.clone());
        let late_sessions = callboard_agents::node::register(&mut nodes);
        let nodes = Arc::new(nodes);
        let executions = Executions::start_manager(core.clone(), Arc::clone(&nodes))
            .await
            .map_err(failed("cannot start executions"))?;
        let sessions = Sessions::start(core.clone(), executions.clone(), Arc::clone(&nodes))
            .await
            .map_err(failed("cannot start sessions"))?;
        late_sessions.set(sessions.clone());

        let draining = CancellationToken::new();
        let shutdown = CancellationToken::new();
        let listener = listener
            .try_clone()
            .and_then(TcpListener::from_std)
            .map_err(failed("cannot listen"))?;
        let app = App {
            core: core.clone(),
            executions: executions.clone(),
            sessions: sessions.clone(),
            nodes,
        };
        let served = tokio::spawn(http::serve(
            app,
            ServeOptions {
                listener,
                no_auth: !config.auth,
                max_body: config.body_bytes_max,
                draining: draining.clone(),
                shutdown: shutdown.clone(),
                drain_timeout: config.drain_timeout.min(LAST_ANSWERS),
            },
        ));
        Ok(Self {
            core,
            executions,
            sessions,
            draining,
            shutdown,
            served,
        })
    }

    /// Takes nothing new, and gives what runs up to `timeout`. Requests that wait for an execution end with it.
    async fn drain(&mut self, timeout: Duration) -> Served {
        self.draining.cancel();
        self.executions.close();
        self.sessions.close();
        // Neither stops before the other is done: a step may ask an agent, and an agent have a workflow for a tool.
        let deadline = tokio::time::Instant::now() + timeout;
        while self.executions.running() + self.sessions.running() > 0
            && tokio::time::Instant::now() < deadline
        {
            tokio::time::sleep(LOOK).await;
        }
        self.executions.drain(Duration::ZERO).await;
        self.sessions.drain(Duration::ZERO).await;
        self.shutdown.cancel();
        (&mut self.served).await
    }
}

/// Returns when the host that this is the pulse of was fenced; never when it ended in another way.
async fn fenced(mut pulse: watch::Receiver<Pulse>) {
    if pulse.wait_for(|pulse| pulse.fenced).await.is_err() {
        std::future::pending().await
    }
}

/// How often a host that stops looks whether anything still runs.
const LOOK: Duration = Duration::from_millis(20);

/// How the task that serves HTTP ended.
type Served = Result<io::Result<()>, tokio::task::JoinError>;

fn outcome(served: Served) -> Result<(), Failure> {
    match served {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Failure::Failed(format!("HTTP broke off: {error}"))),
        Err(error) => Err(Failure::Failed(format!("HTTP broke off: {error}"))),
    }
}

/// Cancelled by the first interrupt or termination; the second one ends the process at once.
fn stop_signal() -> Result<CancellationToken, Failure> {
    let take = |kind| signal(kind).map_err(failed("cannot take signals"));
    let (mut interrupt, mut terminate) = (
        take(SignalKind::interrupt())?,
        take(SignalKind::terminate())?,
    );
    let stop = CancellationToken::new();
    let first = stop.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if first.is_cancelled() {
                remark("stopped at once; what was in flight is taken up by the next start");
                std::process::exit(1);
            }
            first.cancel();
        }
    });
    Ok(stop)
}

/// Binds a port; 0 takes a free one.
fn listen(address: SocketAddr) -> Result<std::net::TcpListener, Failure> {
    let listener =
        std::net::TcpListener::bind(address).map_err(|error| cannot_listen(address, &error))?;
    listener
        .set_nonblocking(true)
        .map_err(failed("cannot listen"))?;
    Ok(listener)
}

/// Why a port could not be had, and what to do about it.
pub fn cannot_listen(address: SocketAddr, error: &io::Error) -> Failure {
    Failure::Failed(match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "port {} on {} is in use; stop what listens there, or choose another one with --listen",
            address.port(),
            address.ip()
        ),
        io::ErrorKind::PermissionDenied => {
            format!("listening on {address} is not permitted; ports below 1024 need privileges")
        }
        io::ErrorKind::AddrNotAvailable => format!("this machine has no address {}", address.ip()),
        _ => format!("cannot listen on {address}: {error}"),
    })
}

fn failed<E: std::error::Error>(what: &'static str) -> impl Fn(E) -> Failure {
    move |error| Failure::Failed(format!("{what}: {}", chain(&error)))
}

/// The address that a client on this machine can use.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Refuses documents with faults, having listed these on standard error.
fn check(loaded: &Loaded) -> Result<(), Failure> {
    let mut faults: Vec<String> = loaded.faults.iter().map(ToString::to_string).collect();
    let found = documents::check(&loaded.documents, &documents::node_types()?);
    faults.extend(found.iter().map(ToString::to_string));
    if faults.is_empty() {
        return Ok(());
    }
    Err(Failure::Failed(format!(
        "{} in the documents to load\n{}",
        count(faults.len(), "fault"),
        faults.join("\n")
    )))
}

async fn start_database(config: &Config) -> Result<Option<PrivatePostgres>, Failure> {
    if config.database_url.is_some() {
        return Ok(None);
    }
    let postgres = PrivatePostgres::start(&config.data_dir)
        .await
        .map_err(failed("cannot start a private Postgres"))?;
    if let Some(note) = postgres.note() {
        tracing::info!("{note}");
    }
    Ok(Some(postgres))
}

fn core_config(
    config: &Config,
    postgres: Option<&PrivatePostgres>,
) -> Result<core::Config, Failure> {
    let given = config.database_url.clone();
    let core = core::Config {
        database_url: given
            .or_else(|| postgres.map(|postgres| postgres.url().to_owned()))
            .unwrap_or_default(),
        labels: config.labels.clone(),
        lease: config.lease,
        running_max: config.running_max,
        outbound: OutboundPolicy::parse(&config.allow_outbound).map_err(Failure::Usage)?,
        env_allowed: config.allow_env.clone(),
        // Nobody else has the socket of a private Postgres.
        exclusive: postgres.is_some(),
    };
    core.check()
        .map_err(|faults| Failure::Usage(faults.to_string()))?;
    Ok(core)
}

/// Brings a database to this version's schema.
pub async fn migrate(database_url: &str) -> Result<(), Failure> {
    let options = database_url.parse().map_err(|error| {
        Failure::Usage(format!("--database-url: {}", chain(&error as &sqlx::Error)))
    })?;
    callboard_runtime::store::migrate(&options)
        .await
        .map_err(failed("cannot migrate the database"))
}

/// Stores documents that were checked. Repeating it changes nothing.
async fn store(core: &Core, documents: &[Document]) -> Result<(), Failure> {
    for document in documents {
        let (stored, put) = core
            .documents
            .put(&document.kind, &document.name, document.body.clone())
            .await
            .map_err(failed("cannot store documents"))?;
        if put != Put::Unchanged {
            tracing::info!(
                kind = document.kind,
                name = document.name,
                version = stored.version,
                "document applied"
            );
        }
    }
    Ok(())
}

/// The admin key: the operator's, the stored one, or a new one. It is in its file when this returns; says whether it
/// was made just now.
fn admin_key(config: &Config) -> Result<(PathBuf, String, bool), Failure> {
    let file = config.data_dir.join(KEY_FILE);
    let cannot = |verb: &'static str| {
        let file = file.display().to_string();
        move |error: io::Error| {
            Failure::Failed(format!("cannot {verb} the admin key in {file}: {error}"))
        }
    };
    let stored = match fs::read_to_string(&file) {
        Ok(text) => Some(text.trim().to_owned()).filter(|key| !key.is_empty()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(cannot("read")(error)),
    };
    let made = config.admin_key.is_none() && stored.is_none();
    let key = config
        .admin_key
        .clone()
        .or_else(|| stored.clone())
        .unwrap_or_else(keys::generate);
    if stored.as_ref() != Some(&key) || is_open(&file).map_err(cannot("read"))? {
        write_owned(&file, &key, 0o600).map_err(cannot("write"))?;
    }
    Ok((file, key, made))
}

/// Whether others may read a file that is for its owner alone.
fn is_open(file: &Path) -> io::Result<bool> {
    let open = fs::metadata(file)?.permissions().mode() & 0o077 != 0;
    if open {
        tracing::warn!(file = %file.display(), "others could read this file; that ends now");
    }
    Ok(open)
}

/// Makes a directory for its owner alone, whatever the umask. One that is there is left as it is.
fn make_private(directory: &Path) -> io::Result<()> {
    match fs::metadata(directory) {
        Ok(found) if found.permissions().mode() & 0o022 != 0 => {
            tracing::warn!(
                directory = %directory.display(),
                "others may write to the data directory: they can replace the admin key"
            );
        }
        Ok(_) => {}
        Err(_) => {
            fs::create_dir_all(directory)?;
            fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
        }
    }
    Ok(())
}

/// Writes a file that only its owner can change, whole or not at all, with this mode whatever the umask.
fn write_owned(file: &Path, text: &str, mode: u32) -> io::Result<()> {
    let temporary = file.with_extension(format!("{}.tmp", std::process::id()));
    // One that a crash left behind may have any mode.
    let _ = fs::remove_file(&temporary);
    let mut out = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    out.set_permissions(fs::Permissions::from_mode(mode))?;
    out.write_all(format!("{text}\n").as_bytes())?;
    out.sync_all()?;
    fs::rename(&temporary, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named_with_what_to_do() {
        let address = SocketAddr::from(([127, 0, 0, 1], 8080));
        let failure = cannot_listen(address, &io::Error::from(io::ErrorKind::AddrInUse));
        assert_eq!(failure.exit_code(), 1);
        assert!(
            failure
                .to_string()
                .starts_with("port 8080 on 127.0.0.1 is in use"),
            "{failure}"
        );
        assert!(failure.to_string().contains("--listen"), "{failure}");
    }

    #[test]
    fn clients_of_a_host_on_all_addresses_use_the_loopback_one() {
        assert_eq!(
            reachable(SocketAddr::from(([0, 0, 0, 0], 80))).to_string(),
            "127.0.0.1:80"
        );
        assert_eq!(
            reachable(SocketAddr::from(([0u16; 8], 80))).to_string(),
            "[::1]:80"
        );
        assert_eq!(
            reachable(SocketAddr::from(([10, 0, 0, 1], 80))).to_string(),
            "10.0.0.1:80"
        );
    }

    #[test]
    fn a_secret_is_for_its_owner_alone_even_where_a_file_was() -> io::Result<()> {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("admin.key");
        fs::write(&file, "old")?;
        assert!(is_open(&file)?);
        write_owned(&file, "secret", 0o600)?;
        assert!(!is_open(&file)?);
        assert_eq!(fs::read_to_string(&file)?, "secret\n");
        assert_eq!(fs::metadata(&file)?.permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path())?.count(), 1);
        Ok(())
    }

    #[test]
    fn a_new_data_directory_is_for_its_owner_alone() -> io::Result<()> {
        let outer = tempfile::tempdir()?;
        let directory = outer.path().join("a/b");
        make_private(&directory)?;
        assert_eq!(
            fs::metadata(&directory)?.permissions().mode() & 0o777,
            0o700
        );
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
        make_private(&directory)?;
        assert_eq!(
            fs::metadata(&directory)?.permissions().mode() & 0o777,
            0o755
        );
        Ok(())
    }
}
