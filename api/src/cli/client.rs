//! Speaks to a server: finds it, carries the key, and turns what it answers into values or words.

use std::{collections::VecDeque, fs, path::Path, time::Duration};

use futures_util::{StreamExt, stream::BoxStream};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde_json::{Value, json};

use super::{
    Failure, Global,
    output::{harmless, member},
    sse,
};

/// Name of the file in the data directory that holds the admin key.
pub const KEY_FILE: &str = "admin.key";
/// Name of the file in the data directory that tells clients where the server listens.
pub const SERVER_FILE: &str = "server.json";
/// Where a server is looked for when nothing says otherwise.
const SERVER_DEFAULT: &str = "http://127.0.0.1:8080";
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an ordinary answer may take; streams and waits have no such limit.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a stream may stay silent before it is taken for dead: servers send comments while nothing happens.
const SILENCE_MAX: Duration = Duration::from_secs(90);
/// How often a broken stream is opened again without anything arriving in between.
const RECONNECTS_MAX: u32 = 12;
/// The longest pause between two of these.
const RECONNECT_PAUSE_MAX: Duration = Duration::from_secs(5);
/// The longest answer that is shown to explain a failure, in characters.
const BODY_CHARS_SHOWN: usize = 500;

/// A client of one server.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    key: Option<String>,
}

/// What a server answered, the status being a good one.
#[derive(Clone, Debug)]
pub struct Answer {
    /// 2xx.
    pub status: u16,
    /// The body; `Null` when there is none.
    pub body: Value,
}

impl Client {
    /// A client for the server and key that the flags, the environment or the data directory name.
    pub fn new(global: &Global) -> Result<Self, Failure> {
        let recorded = recorded_server(&global.data_dir);
        let given = global.server.clone().filter(|url| !url.is_empty());
        let base = given
            .or_else(|| recorded.clone())
            .unwrap_or_else(|| SERVER_DEFAULT.to_owned());
        let base = parse_base(&base)?;
        let key = match &global.key {
            Some(key) if !key.is_empty() => Some(key.clone()),
            // The key of this machine's server is for that server alone.
            _ if is_local(&base, recorded.as_deref()) => read_key(&global.data_dir),
            _ => None,
        };
        Self::with(base, key)
    }

    /// A client for a server in this process or at a known address.
    pub fn at(base: &str, key: Option<String>) -> Result<Self, Failure> {
        Self::with(parse_base(base)?, key)
    }

    fn with(base: Url, key: Option<String>) -> Result<Self, Failure> {
        let mut http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("callboard/", env!("CARGO_PKG_VERSION")));
        if is_loopback(&base) {
            // A proxy cannot reach what listens on this machine.
            http = http.no_proxy();
        }
        let http = http
            .build()
            .map_err(|error| Failure::Failed(format!("cannot set up HTTP: {}", chain(&error))))?;
        Ok(Self { http, base, key })
    }

    /// The server's address, without a slash at its end.
    pub fn base(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// A request to a path given by its segments, which are escaped as needed.
    pub fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        let request = self.http.request(method, url);
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// Sends a request; anything but 2xx is a failure.
    pub async fn send(&self, request: RequestBuilder) -> Result<Answer, Failure> {
        let response = self.respond(request.timeout(ANSWER_TIMEOUT)).await?;
        read(response).await
    }

    /// As [`Client::send`], for answers that take as long as the work they speak of.
    pub async fn send_and_wait(
        &self,
        request: RequestBuilder,
        wait: Duration,
    ) -> Result<Answer, Failure> {
        let response = self.respond(request.timeout(wait)).await?;
        read(response).await
    }

    /// The answer to a `GET`.
    pub async fn get(&self, path: &[&str], query: &[(&str, String)]) -> Result<Value, Failure> {
        let query: Vec<_> = query
            .iter()
            .filter(|(_, value)| !value.is_empty())
            .collect();
        Ok(self
            .send(self.request(Method::GET, path).query(&query))
            .await?
            .body)
    }

    /// The answer to a `GET`, `None` when there is no such thing.
    pub async fn find(&self, path: &[&str]) -> Result<Option<Value>, Failure> {
        let request = self.request(Method::GET, path).timeout(ANSWER_TIMEOUT);
        let response = self.respond(request).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        Ok(Some(read(response).await?.body))
    }

    /// The answer to a request with a JSON body.
    pub async fn with_body(
        &self,
        method: Method,
        path: &[&str],
        body: &Value,
    ) -> Result<Value, Failure> {
        Ok(self.send(self.request(method, path).json(body)).await?.body)
    }

    /// Opens a stream of events; anything but 2xx is a failure.
    pub async fn stream(&self, request: RequestBuilder) -> Result<EventStream, Failure> {
        let response = self
            .respond(request.header("accept", "text/event-stream"))
            .await?;
        if !response.status().is_success() {
            return Err(refused(response).await);
        }
        Ok(EventStream {
            bytes: response
                .bytes_stream()
                .map(|piece| piece.map(|bytes| bytes.to_vec()))
                .boxed(),
            parser: sse::Parser::default(),
            ready: VecDeque::new(),
        })
    }

    async fn respond(&self, request: RequestBuilder) -> Result<Response, Failure> {
        request
            .send()
            .await
            .map_err(|error| self.unreachable(&error))
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let cause = if error.is_timeout() && !error.is_connect() {
            "it does not answer in time".to_owned()
        } else {
            root_cause(error)
        };
        Failure::Unreachable(format!(
            "no server at {}: {cause}\nstart one with `callboard serve`, or name it with --server",
            self.base()
        ))
    }
}

/// Reads a 2xx answer, or says why it is none.
async fn read(response: Response) -> Result<Answer, Failure> {
    if !response.status().is_success() {
        return Err(refused(response).await);
    }
    let status = response.status().as_u16();
    let text = response.text().await.map_err(|error| {
        Failure::Unreachable(format!("the answer broke off: {}", chain(&error)))
    })?;
    let body = match text.is_empty() {
        true => Value::Null,
        false => serde_json::from_str(&text).map_err(|_| {
            Failure::Failed(format!(
                "this is not an answer of Callboard: {}",
                excerpt(&text)
            ))
        })?,
    };
    Ok(Answer { status, body })
}

/// What a server said when it refused.
async fn refused(response: Response) -> Failure {
    let status = response.status();
    let retry_after = response
        .headers()
        .get("retry-after")
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .map(Duration::from_secs);
    let text = response.text().await.unwrap_or_default();
    let body = serde_json::from_str(&text).unwrap_or(Value::String(excerpt(&text)));
    Failure::Refused(Box::new(Refusal {
        status: status.as_u16(),
        message: refusal_words(status, &body),
        retry_after,
        body,
    }))
}

/// A refusal of the server.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// 4xx or 5xx.
    pub status: u16,
    /// For people.
    pub message: String,
    /// When to come again.
    pub retry_after: Option<Duration>,
    /// As answered; text that is not JSON as a string.
    pub body: Value,
}

/// Words for a refusal: the faults of a 422 one by one, else the problem's detail and code.
fn refusal_words(status: StatusCode, body: &Value) -> String {
    if let Some(faults) = body.get("detail").and_then(Value::as_array) {
        let lines: Vec<String> = faults
            .iter()
            .map(|fault| {
                let place: Vec<String> = fault
                    .get("loc")
                    .and_then(Value::as_array)
                    .map(|parts| parts.iter().map(plain).collect())
                    .unwrap_or_default();
                format!("{}: {}", place.join("."), member(fault, "msg"))
            })
            .collect();
        return harmless(&lines.join("\n"));
    }
    let detail = [member(body, "detail"), member(body, "title"), plain(body)]
        .into_iter()
        .find(|text| !text.is_empty() && text != "null")
        .unwrap_or_else(|| {
            status
                .canonical_reason()
                .unwrap_or("no reason given")
                .to_owned()
        });
    let code = member(body, "code");
    let hint = match status {
        StatusCode::UNAUTHORIZED => "\nname a key with --key or CALLBOARD_KEY",
        _ => "",
    };
    let code = if code.is_empty() {
        String::new()
    } else {
        format!(", {code}")
    };
    harmless(&format!("{detail} ({}{code}){hint}", status.as_u16()))
}

fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

fn excerpt(text: &str) -> String {
    super::output::shorten(&harmless(text), BODY_CHARS_SHOWN)
}

/// An error and its causes on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let words = next.to_string();
        // Some errors repeat their cause in their own words.
        if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
        cause = next.source();
    }
    text
}

/// The innermost cause: of a failed connection, the layers above it only say that it failed.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

fn parse_base(text: &str) -> Result<Url, Failure> {
    let text = text.trim_end_matches('/');
    let full = if text.contains("://") {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    match Url::parse(&full) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(url),
        _ => Err(Failure::Usage(format!(
            "--server: expected a URL such as {SERVER_DEFAULT}, not `{text}`"
        ))),
    }
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

/// Whether the key in the data directory may be shown to this server.
fn is_local(base: &Url, recorded: Option<&str>) -> bool {
    is_loopback(base) || recorded.is_some_and(|url| parse_base(url).is_ok_and(|url| url == *base))
}

/// Where the server of this data directory listens, if it said so.
fn recorded_server(data_dir: &Path) -> Option<String> {
    let text = fs::read_to_string(data_dir.join(SERVER_FILE)).ok()?;
    let value: Value = serde_json::from_str(&text).ok()?;
    value.get("url")?.as_str().map(str::to_owned)
}

fn read_key(data_dir: &Path) -> Option<String> {
    let text = fs::read_to_string(data_dir.join(KEY_FILE)).ok()?;
    Some(text.trim().to_owned()).filter(|key| !key.is_empty())
}

/// Events of one connection.
pub struct EventStream {
    bytes: BoxStream<'static, reqwest::Result<Vec<u8>>>,
    parser: sse::Parser,
    ready: VecDeque<sse::Event>,
}

impl EventStream {
    /// The next event. `None`: the connection ended, whether as it should or not. Safe to drop while it waits.
    pub async fn next(&mut self) -> Option<sse::Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            let piece = tokio::time::timeout(SILENCE_MAX, self.bytes.next())
                .await
                .ok()??;
            self.ready.extend(self.parser.push(&piece.ok()?).ok()?);
        }
    }
}

/// Events of a path over as many connections as it takes: each begins where the one before broke off.
pub struct Tail {
    client: Client,
    path: Vec<String>,
    last_id: String,
    stream: Option<EventStream>,
    failures: u32,
}

impl Tail {
    /// Events after `last_id` (empty: from the first one), from an open connection if there is one.
    pub fn new(client: &Client, path: &[&str], last_id: &str, stream: Option<EventStream>) -> Self {
        Self {
            client: client.clone(),
            path: path.iter().map(|segment| (*segment).to_owned()).collect(),
            last_id: last_id.to_owned(),
            stream,
            failures: 0,
        }
    }

    /// The next event. Fails when the server refuses, or could not be reached for about a minute. Dropping the
    /// wait loses no event, but a reconnection then begins anew.
    pub async fn next(&mut self) -> Result<sse::Event, Failure> {
        loop {
            if let Some(stream) = &mut self.stream {
                if let Some(event) = stream.next().await {
                    self.failures = 0;
                    if !event.id.is_empty() {
                        event.id.clone_into(&mut self.last_id);
                    }
                    return Ok(event);
                }
                self.stream = None;
                self.failures += 1;
            }
            self.reconnect().await?;
        }
    }

    async fn reconnect(&mut self) -> Result<(), Failure> {
        if self.failures > 0 {
            let pause = Duration::from_millis(100 << self.failures.min(8)).min(RECONNECT_PAUSE_MAX);
            tokio::time::sleep(pause).await;
        }
        let path: Vec<&str> = self.path.iter().map(String::as_str).collect();
        let mut request = self.client.request(Method::GET, &path);
        if !self.last_id.is_empty() {
            request = request.header("last-event-id", &self.last_id);
        }
        match self.client.stream(request).await {
            Ok(stream) => self.stream = Some(stream),
            Err(failure) if failure.may_pass() && self.failures < RECONNECTS_MAX => {
                self.failures += 1
            }
            Err(failure) => return Err(failure),
        }
        if self.failures > RECONNECTS_MAX {
            return Err(Failure::Unreachable(format!(
                "{} keeps closing the stream",
                self.client.base()
            )));
        }
        Ok(())
    }
}

/// A failure as `--format json` shows it on standard error.
pub fn failure_json(failure: &Failure) -> Value {
    match failure {
        Failure::Refused(refusal) => {
            json!({"error": {"message": refusal.message, "status": refusal.status, "answer": refusal.body}})
        }
        other => json!({"error": {"message": other.to_string()}}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(status: u16, body: Value) -> String {
        refusal_words(StatusCode::from_u16(status).unwrap_or_default(), &body)
    }

    #[test]
    fn every_fault_of_a_422_is_told_with_its_place() {
        let body = json!({"detail": [
            {"loc": ["body", "spec", "steps", 0, "uses"], "msg": "Field required", "type": "missing"},
            {"loc": ["body", "name"], "msg": "x", "type": "y"},
        ]});
        assert_eq!(
            words(422, body),
            "body.spec.steps.0.uses: Field required\nbody.name: x"
        );
    }

    #[test]
    fn a_problem_is_told_with_its_code_and_a_missing_key_with_a_hint() {
        let body = json!({"title": "Not Found", "status": 404, "detail": "there is no workflow `x`", "code": "not_found"});
        assert_eq!(
            words(404, body),
            "there is no workflow `x` (404, not_found)"
        );
        assert!(words(401, json!({"title": "Unauthorized"})).contains("--key"));
        assert_eq!(words(502, json!("")), "Bad Gateway (502)");
    }

    #[test]
    fn the_key_of_this_machine_is_not_shown_to_another() -> Result<(), Failure> {
        let recorded = Some("http://10.0.0.5:8080");
        assert!(is_local(&parse_base("http://127.0.0.1:9")?, None));
        assert!(is_local(&parse_base("localhost:9")?, None));
        assert!(is_local(&parse_base("http://[::1]:9")?, None));
        assert!(is_local(&parse_base("http://10.0.0.5:8080/")?, recorded));
        assert!(!is_local(&parse_base("http://10.0.0.6:8080")?, recorded));
        assert!(!is_local(&parse_base("https://callboard.example")?, None));
        Ok(())
    }

    #[test]
    fn a_server_is_named_by_an_http_url() {
        assert!(parse_base("ftp://x").is_err());
        assert!(parse_base("").is_err());
        assert_eq!(
            parse_base("https://x.example/base/")
                .map(|url| url.to_string())
                .ok()
                .as_deref(),
            Some("https://x.example/base")
        );
    }

    #[test]
    fn segments_are_escaped() -> Result<(), Failure> {
        let client = Client::at("http://127.0.0.1:1/base", Some("k".into()))?;
        let request = client
            .request(Method::GET, &["v1", "workflows", "a/b c"])
            .build();
        assert_eq!(
            request.ok().map(|r| r.url().to_string()).as_deref(),
            Some("http://127.0.0.1:1/base/v1/workflows/a%2Fb%20c")
        );
        Ok(())
    }
}
