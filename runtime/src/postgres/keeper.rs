//! Keeps the server running: one thread that starts it, waits for its end and starts it again.
//!
//! The thread lives as long as the server, because the kernel's parent-death signal follows the thread that
//! spawned a process, and threads of the async runtime come and go. Signals go out only while the server is known
//! to be unreaped, so they can never hit another process that got its pid.

use std::{
    fs::File,
    os::unix::process::CommandExt,
    process::{Child, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};

use super::{
    Context, PostgresError,
    account::Account,
    binaries::Binaries,
    cluster::{self, Cluster},
    death_signal,
};

/// How long a clean stop may take before the server is stopped at once.
pub const CLEAN_STOP_MAX: Duration = Duration::from_secs(20);
/// How long stopping may take altogether.
pub const STOP_MAX: Duration = Duration::from_secs(30);
/// How long a dropped server is waited for: its process may be ending, and a longer wait would be in the way.
const DROP_MAX: Duration = Duration::from_secs(5);
const RESTART_DELAY_FIRST: Duration = Duration::from_millis(100);
const RESTART_DELAY_MAX: Duration = Duration::from_secs(10);
/// A server that lived this long had started well: the next restart begins with the first delay again.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// What is needed to start the server, again and again.
pub struct Launch {
    /// Its directory.
    pub cluster: Cluster,
    /// Its programs.
    pub binaries: Binaries,
    /// Who runs it.
    pub account: Account,
    /// Its standard output and error.
    pub log: Arc<File>,
}

/// A server that is kept running until told to stop.
pub struct Keeper {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    pid: Option<i32>,
    deaths: u32,
    stopping: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole after every statement: a panic elsewhere spoils nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keeper {
    /// Starts the server and its keeper. Returns at once.
    pub fn start(launch: Launch) -> Result<Self, PostgresError> {
        let shared = Arc::<Shared>::default();
        let thread = std::thread::Builder::new()
            .name("postgres".to_owned())
            .spawn({
                let shared = shared.clone();
                move || keep(&launch, &shared)
            })
            .context(|| "starting a thread for the database".to_owned())?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// The server's pid, while there is one.
    pub fn pid(&self) -> Option<i32> {
        self.shared.lock().pid
    }

    /// How often it ended, or could not be started, without having been told to stop.
    pub fn deaths(&self) -> u32 {
        self.shared.lock().deaths
    }

    /// Tells the server to stop cleanly and not to be started again.
    pub fn request_stop(&self) {
        let mut state = self.shared.lock();
        state.stopping = true;
        signal(&state, Signal::INT);
        self.shared.changed.notify_all();
    }

    /// Waits for the server's end, with a rougher signal when it takes long. A second call has nothing to do.
    pub fn join(&mut self, patience: Duration) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        let started = Instant::now();
        let mut insisted = false;
        while !thread.is_finished() {
            if started.elapsed() > patience {
                tracing::error!("the database has not stopped");
                return;
            }
            if !insisted && started.elapsed() > CLEAN_STOP_MAX {
                tracing::warn!("the database takes long to stop: stopping it at once");
                signal(&self.shared.lock(), Signal::QUIT);
                insisted = true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        if thread.join().is_err() {
            tracing::error!("the keeper of the database panicked");
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.request_stop();
            self.join(DROP_MAX);
        }
    }
}

fn signal(state: &State, signal: Signal) {
    if let Some(pid) = state.pid {
        cluster::send(pid, signal);
    }
}

fn keep(launch: &Launch, shared: &Shared) {
    let mut delay = RESTART_DELAY_FIRST;
    loop {
        let started = Instant::now();
        let end = match start_unless_stopping(launch, shared) {
            Ok(Some(child)) => wait_for_end(child, shared),
            Ok(None) => return,
            Err(error) => format!("it could not be started: {error}"),
        };
        let mut state = shared.lock();
        if state.stopping {
            return;
        }
        state.deaths = state.deaths.saturating_add(1);
        if started.elapsed() > HEALTHY_AFTER {
            delay = RESTART_DELAY_FIRST;
        }
        tracing::warn!(end, ?delay, "the database ended: starting it again");
        let paused = shared
            .changed
            .wait_timeout_while(state, delay, |state| !state.stopping);
        drop(paused);
        delay = (delay * 2).min(RESTART_DELAY_MAX);
    }
}

fn start_unless_stopping(launch: &Launch, shared: &Shared) -> std::io::Result<Option<Child>> {
    let mut command = launch.cluster.server(&launch.binaries, &launch.account);
    command
        .stdin(Stdio::null())
        .stdout(launch.log.try_clone()?)
        .stderr(launch.log.try_clone()?)
        // A group of its own: Ctrl-C is for us, and we stop the database when we have stopped using it.
        .process_group(0);
    death_signal::stop_with_parent(&mut command);
    let mut state = shared.lock();
    if state.stopping {
        return Ok(None);
    }
    let child = command.spawn()?;
    state.pid = i32::try_from(child.id()).ok();
    Ok(Some(child))
}

/// Waits without reaping first, so that the pid is ours until nobody can signal it any more.
fn wait_for_end(mut child: Child, shared: &Shared) -> String {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let unreaped = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while let Err(rustix::io::Errno::INTR) = waitid(WaitId::Pid(pid), unreaped) {}
    }
    let mut state = shared.lock();
    state.pid = None;
    match child.wait() {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    }
}
