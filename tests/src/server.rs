//! The real binary, started, killed and started again.

use std::{
    fs::{self, File},
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

use crate::{
    database::Database,
    http::{Call, Method, Reply},
    scratch,
    sse::Events,
    wait::{DEADLINE, wait_until},
};

/// The admin key of every server under test.
const ADMIN_KEY: &str = "cb_test_admin_key_0123456789abcdef";
const READY_LINE: &str = "listening on http://";

/// How a server is started.
#[derive(Default)]
pub struct Options {
    listen: Option<String>,
    flags: Vec<String>,
    env: Vec<(String, String)>,
    private_postgres: bool,
    database_url: Option<String>,
    data_dir: Option<PathBuf>,
    account: Option<(u32, u32)>,
}

impl Options {
    /// The usual: a fresh database, a data directory, the network of this machine allowed.
    pub fn new() -> Self {
        Self::default()
    }

    /// One more flag, as on the command line.
    #[must_use]
    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    /// On a given address instead of a free port of the loopback interface.
    #[must_use]
    pub fn listen(mut self, address: &str) -> Self {
        self.listen = Some(address.to_owned());
        self
    }

    /// One more environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Without a database URL: the server runs its own Postgres.
    #[must_use]
    pub fn private_postgres(mut self) -> Self {
        self.private_postgres = true;
        self
    }

    /// With a database that the test made itself.
    #[must_use]
    pub fn database_url(mut self, url: &str) -> Self {
        self.database_url = Some(url.to_owned());
        self
    }

    /// With a data directory that the test made itself.
    #[must_use]
    pub fn data_dir(mut self, path: &Path) -> Self {
        self.data_dir = Some(path.to_owned());
        self
    }

    /// As another user, which only root can start.
    #[must_use]
    pub fn account(mut self, (uid, gid): (u32, u32)) -> Self {
        self.account = Some((uid, gid));
        self
    }

    /// Starts it and waits until it listens.
    ///
    /// # Panics
    /// When it does not: the message has what it wrote.
    pub async fn start(self) -> Server {
        match self.try_start().await {
            Ok(server) => server,
            Err(failure) => panic!("the server did not start: {failure}"),
        }
    }

    /// Starts it and waits until it listens or has ended; then the error is what it wrote.
    ///
    /// # Errors
    /// The exit status and everything on standard error.
    ///
    /// # Panics
    /// When neither happens in time.
    pub async fn try_start(mut self) -> Result<Server, String> {
        let data_dir = self
            .data_dir
            .take()
            .unwrap_or_else(|| scratch::open_directory("server"));
        if let Some((uid, gid)) = self.account {
            chown(&data_dir, Some(uid), Some(gid)).expect("root may give a directory away");
        }
        let database = if self.private_postgres || self.database_url.is_some() {
            None
        } else {
            Some(Database::create().await)
        };
        let mut server = Server {
            binary: self.binary(&data_dir),
            options: self,
            data_dir,
            running: None,
            address: String::new(),
            database,
        };
        server.launch().await?;
        Ok(server)
    }

    /// Another user may not be able to reach the folder of the build: it gets a copy.
    fn binary(&self, data_dir: &Path) -> PathBuf {
        let built = binary();
        if self.account.is_none() {
            return built;
        }
        let copy = data_dir.join("callboard");
        if !copy.exists() {
            fs::copy(&built, &copy).expect("the binary can be copied");
        }
        copy
    }
}

/// The binary of the build that this test belongs to.
///
/// # Panics
/// When it was not built.
pub fn binary() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    // target/<profile>/deps/<test>
    let path = test
        .ancestors()
        .nth(2)
        .map(|profile| profile.join("callboard"))
        .expect("tests are built into target/<profile>/deps");
    assert!(
        path.is_file(),
        "{} is missing: run `cargo build --bin callboard` (with the same profile), or test the whole workspace",
        path.display()
    );
    path
}

/// Runs another command of the binary to its end.
///
/// # Panics
/// When it cannot be started or does not end in time.
pub async fn run_command(arguments: &[&str], directory: &Path) -> std::process::Output {
    let mut command = Command::new(binary());
    command
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    clean(&mut command);
    tokio::time::timeout(DEADLINE, command.output())
        .await
        .expect("the command ends")
        .expect("the command can be started")
}

/// What the person who runs the tests has configured must not reach the servers.
fn clean(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CALLBOARD_") || text.starts_with("PG") || text == "DATABASE_URL" {
            command.env_remove(&name);
        }
    }
}

struct Running {
    child: Child,
    pid: u32,
    output: tokio::task::JoinHandle<()>,
}

/// A server under test. It is killed with this.
pub struct Server {
    options: Options,
    binary: PathBuf,
    data_dir: PathBuf,
    running: Option<Running>,
    address: String,
    database: Option<Database>,
}

impl Server {
    /// Starts the usual server.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start() -> Self {
        Options::new().start().await
    }

    /// Where it listens: `127.0.0.1:PORT`. Another one after each restart.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Its data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Its database, unless it runs its own.
    ///
    /// # Panics
    /// When it runs its own.
    pub fn database(&self) -> &Database {
        self.database.as_ref().expect("it uses the tests' Postgres")
    }

    /// Its process id.
    ///
    /// # Panics
    /// When it does not run.
    pub fn pid(&self) -> u32 {
        self.running.as_ref().expect("it runs").pid
    }

    /// Everything it wrote to standard error, over all its starts.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.data_dir.join("stderr.log")
    }

    async fn launch(&mut self) -> Result<(), String> {
        let mut child = self.command().spawn().expect("the binary can be started");
        let pid = child.id().expect("it has not been waited for");
        scratch::remember(pid);
        let stdout = child.stdout.take().expect("it is a pipe");
        let mut lines = BufReader::new(stdout).lines();
        let address = tokio::time::timeout(DEADLINE, ready_line(&mut lines))
            .await
            .unwrap_or_else(|_| panic!("it neither listens nor ends: {}", self.log()));
        let Some(address) = address else {
            let status = child.wait().await.expect("it can be waited for");
            scratch::forget(pid);
            return Err(format!("{status}\n{}", self.log()));
        };
        self.address = address;
        // A full pipe would stop the server.
        let output =
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        self.running = Some(Running { child, pid, output });
        Ok(())
    }

    fn command(&self) -> Command {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_file())
            .expect("a log can be opened");
        let mut command = std::process::Command::new(&self.binary);
        if let Some((uid, gid)) = self.options.account {
            command.uid(uid).gid(gid);
        }
        let mut command = Command::from(command);
        clean(&mut command);
        command
            .args(["serve", "--listen"])
            .arg(self.options.listen.as_deref().unwrap_or("127.0.0.1:0"))
            .arg("--data-dir")
            .arg(&self.data_dir)
            // The shortest there is: what a killed server owned goes on after it.
            .args(["--lease", "2s", "--allow-outbound", "127.0.0.0/8"])
            .args(&self.options.flags)
            .env("CALLBOARD_ADMIN_KEY", ADMIN_KEY)
            .envs(self.options.env.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.data_dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true);
        let url = self.options.database_url.as_deref();
        if let Some(url) = url.or(self.database.as_ref().map(Database::url)) {
            command.args(["--database-url", url]);
        }
        command
    }

    /// Ends it as a power cut would.
    ///
    /// # Panics
    /// When it does not run.
    pub async fn kill9(&mut self) {
        let mut running = self.running.take().expect("it runs");
        running.child.kill().await.expect("it can be killed");
        running.output.abort();
        scratch::forget(running.pid);
    }

    /// Ends it as an operator would, and waits for its end.
    ///
    /// # Panics
    /// When it does not run, or does not end in time.
    pub async fn stop(&mut self) -> ExitStatus {
        self.tell_to_stop();
        self.ended().await
    }

    /// Tells it to stop, as an operator would.
    ///
    /// # Panics
    /// When it does not run.
    pub fn tell_to_stop(&self) {
        signal(self.pid(), Signal::TERM);
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not run, or does not end in time.
    pub async fn ended(&mut self) -> ExitStatus {
        let mut running = self.running.take().expect("it runs");
        let status = tokio::time::timeout(DEADLINE, running.child.wait())
            .await
            .unwrap_or_else(|_| panic!("it does not stop: {}", self.log()))
            .expect("it can be waited for");
        scratch::forget(running.pid);
        status
    }

    /// Starts it again on the same data, after ending it like a power cut if it still runs.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn restart(&mut self) {
        if self.running.is_some() {
            self.kill9().await;
        }
        if let Err(failure) = self.launch().await {
            panic!("the server did not start again: {failure}");
        }
    }

    /// A request with the admin key.
    pub fn call(&self, method: Method, path: &str) -> Call {
        self.call_as(ADMIN_KEY, method, path)
    }

    /// A request with another key; none when that is empty.
    pub fn call_as(&self, key: &str, method: Method, path: &str) -> Call {
        Call::new(method, &self.url(path), key)
    }

    /// GET.
    pub async fn get(&self, path: &str) -> Reply {
        self.call(Method::GET, path).send().await
    }

    /// POST of JSON.
    pub async fn post(&self, path: &str, body: &Value) -> Reply {
        self.call(Method::POST, path).json(body).send().await
    }

    /// PUT of JSON.
    pub async fn put(&self, path: &str, body: &Value) -> Reply {
        self.call(Method::PUT, path).json(body).send().await
    }

    /// PATCH with JSON.
    pub async fn patch(&self, path: &str, body: &Value) -> Reply {
        self.call(Method::PATCH, path).json(body).send().await
    }

    /// DELETE.
    pub async fn delete(&self, path: &str) -> Reply {
        self.call(Method::DELETE, path).send().await
    }

    /// Sends the documents of a YAML text, one by one; a name that is taken is replaced.
    ///
    /// # Panics
    /// When the text is wrong or the server refuses a document.
    pub async fn apply(&self, yaml: &str) {
        let documents = callboard_runtime::document::read(yaml, None).unwrap_or_else(|faults| {
            let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
            panic!("{}\n{yaml}", faults.join("\n"))
        });
        for document in documents {
            self.apply_json(&document.body).await;
        }
    }

    /// Sends one document.
    ///
    /// # Panics
    /// When the server refuses it.
    pub async fn apply_json(&self, document: &Value) {
        let kind = document["kind"].as_str().expect("a document has a kind");
        let collection = format!("/v1/{}s", kind.to_lowercase());
        let reply = self.post(&collection, document).await;
        if reply.status != 409 {
            reply.expect(201);
            return;
        }
        let name = document["metadata"]["name"]
            .as_str()
            .expect("a document has a name");
        let reply = self.put(&format!("{collection}/{name}"), document).await;
        assert!(matches!(reply.status, 200 | 201), "{:#}", reply.body);
    }

    /// Starts an execution and returns it when it has ended.
    ///
    /// # Panics
    /// When it is refused or does not end in time.
    pub async fn run(&self, workflow: &str, input: Value) -> Value {
        let reply = self
            .call(
                Method::POST,
                &format!("/v1/workflows/{workflow}/executions"),
            )
            .header("prefer", "wait=50")
            .json(&json!({"input": input}))
            .send()
            .await;
        reply.expect(200)
    }

    /// Starts an execution and returns its id when it is durable.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn begin(&self, workflow: &str, input: Value) -> String {
        let path = format!("/v1/workflows/{workflow}/executions");
        let body = self.post(&path, &json!({"input": input})).await.expect(202);
        body["id"]
            .as_str()
            .expect("an execution has an id")
            .to_owned()
    }

    /// Waits until an execution has one of these statuses, and returns it.
    ///
    /// # Panics
    /// When that does not happen in time.
    pub async fn wait_for_status(&self, id: &str, statuses: &[&str]) -> Value {
        let path = format!("/v1/executions/{id}");
        wait_until(&format!("execution {id} becomes {statuses:?}"), || async {
            // While it starts again after a crash there may be no answer.
            let reply = self.call(Method::GET, &path).try_send().await.ok()?;
            let status = reply.body["status"].as_str()?.to_owned();
            statuses.contains(&status.as_str()).then_some(reply.body)
        })
        .await
    }

    /// Waits for the end of an execution, and returns it.
    ///
    /// # Panics
    /// When it does not end in time.
    pub async fn finished(&self, id: &str) -> Value {
        self.wait_for_status(id, &["succeeded", "failed", "cancelled"])
            .await
    }

    /// The whole journal of an execution.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn node_runs(&self, id: &str) -> Vec<Value> {
        let path = format!("/v1/executions/{id}/node-runs?limit=1000");
        let body = self.get(&path).await.expect(200);
        body["data"].as_array().expect("a list has `data`").clone()
    }

    /// The outcomes of one step: its rows in the journal, in order.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn runs_of(&self, id: &str, step: &str) -> Vec<Value> {
        let mut runs = self.node_runs(id).await;
        runs.retain(|run| run["step"] == step);
        runs
    }

    /// Opens an event stream; after an id if there is one.
    ///
    /// # Panics
    /// When the server answers anything else.
    pub async fn events(&self, path: &str, last_event_id: Option<&str>) -> Events {
        let call = self.call(Method::GET, path);
        match last_event_id {
            Some(id) => call.header("last-event-id", id),
            None => call,
        }
        .events()
        .await
    }

    /// Makes a key with these scopes and returns its secret.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn key(&self, name: &str, scopes: &[&str]) -> String {
        let body = json!({"name": name, "scopes": scopes});
        let created = self.post("/v1/keys", &body).await.expect(201);
        created["key"]
            .as_str()
            .expect("the key is shown once")
            .to_owned()
    }

    /// Opens a session with an agent and returns its id.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn open_session(&self, agent: &str) -> String {
        let path = format!("/v1/agents/{agent}/sessions");
        let session = self.post(&path, &json!({})).await.expect(201);
        session["id"]
            .as_str()
            .expect("a session has an id")
            .to_owned()
    }

    /// Says something to an agent and returns its answer.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn say(&self, session: &str, content: &str) -> Value {
        let path = format!("/v1/sessions/{session}/messages");
        self.post(&path, &json!({"content": content}))
            .await
            .expect(200)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            // `kill_on_drop` of the child does the same, but only on its runtime.
            signal(running.pid, Signal::KILL);
            running.output.abort();
            scratch::forget(running.pid);
        }
        if std::thread::panicking() {
            // Where a failed test is read, the server's own words belong too.
            eprintln!(
                "--- standard error of the server ---\n{}",
                tail(&self.log())
            );
        }
        if self.database.is_some() {
            scratch::remove(&self.data_dir);
        }
        // A private Postgres may need a moment to stop: the clearing at the end waits for it.
    }
}

fn tail(log: &str) -> String {
    /// More than this only hides the failure.
    const LINES_MAX: usize = 100;
    let lines: Vec<&str> = log.lines().collect();
    let skipped = lines.len().saturating_sub(LINES_MAX);
    lines[skipped..].join("\n")
}

fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended by itself.
        let _ = kill_process(pid, signal);
    }
}

async fn ready_line(lines: &mut Lines<BufReader<ChildStdout>>) -> Option<String> {
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some((_, rest)) = line.split_once(READY_LINE) {
            let end = rest
                .find(|c: char| c.is_whitespace() || c == '/')
                .unwrap_or(rest.len());
            return Some(rest[..end].to_owned());
        }
    }
    None
}
