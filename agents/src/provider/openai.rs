//! Any server that speaks OpenAI's chat completions: one streamed request per call, nothing retried here.
//!
//! The client crate is used for its wire only. Requests and answers are JSON values of our own (its typed calls refuse
//! what most servers send), the HTTP service is ours (its own retries obey any `Retry-After` and lose the status of
//! errors), and only `*_byot` methods are called: with that feature on, the typed ones forget `stream: true`. It logs
//! whatever it cannot parse, prompts included, under the target `async_openai`; the log filter must keep that off.

use std::{collections::VecDeque, fmt, time::Duration};

use async_openai::{
    Client, config::OpenAIConfig, error::OpenAIError, middleware::HttpRequestFactory,
};
use async_trait::async_trait;
use callboard_runtime::{
    outbound::{OutboundClient, Url},
    provider::{Message, ModelError, ModelErrorKind, ModelEvent, ModelProvider, ModelRequest},
};
use chrono::Utc;
use futures_util::{
    Stream, StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use serde_json::{Value, json};

mod chunk;
mod error;

use chunk::{Assembler, malformed};

/// The largest body that is read whole: errors, and answers of servers that do not stream.
const BODY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The longest stream, in bytes.
const STREAM_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long usage may follow the finish reason.
const USAGE_GRACE: Duration = Duration::from_secs(2);

/// How to reach a server.
#[derive(Clone)]
pub struct OpenAiSettings {
    /// Such as `https://api.openai.com/v1`.
    pub base_url: Url,
    /// Sent as bearer token; empty for servers that want none.
    pub api_key: String,
    /// How long the first event may take to come.
    pub timeout: Duration,
    /// How long any later event may take.
    pub idle_timeout: Duration,
}

/// A server that speaks OpenAI's chat completions.
pub struct OpenAi {
    client: Client<OpenAIConfig>,
    settings: OpenAiSettings,
    outbound: OutboundClient,
}

impl fmt::Debug for OpenAi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "OpenAi({})",
            self.settings.base_url.origin().ascii_serialization()
        )
    }
}

impl OpenAi {
    /// A provider over the guarded client. The error is a sentence and holds no secret.
    pub fn new(settings: OpenAiSettings, outbound: OutboundClient) -> Result<Self, String> {
        // The client crate panics on a key that does not fit a header.
        if format!("Bearer {}", settings.api_key)
            .parse::<http::HeaderValue>()
            .is_err()
        {
            return Err("the api_key holds characters that no header may hold".to_owned());
        }
        let base = settings.base_url.as_str().trim_end_matches('/');
        // Its defaults read variables of the environment; all of them are set here instead.
        let config = OpenAIConfig::new()
            .with_api_base(base)
            .with_api_key(settings.api_key.as_str())
            .with_org_id("")
            .with_project_id("");
        let http = outbound.http().clone();
        let keyless = settings.api_key.is_empty();
        let client = Client::build(http.clone(), config).with_http_service(tower::service_fn(
            move |factory: HttpRequestFactory| execute(http.clone(), keyless, factory),
        ));
        Ok(Self {
            client,
            settings,
            outbound,
        })
    }

    async fn open(&self, body: Value) -> Result<Opened, ModelError> {
        let sent = self
            .client
            .chat()
            .create_stream_byot::<_, Value>(&body)
            .await;
        match sent {
            Ok(events) => Ok(Opened::Events(events.boxed())),
            Err(OpenAIError::Boxed(outcome)) => match outcome.downcast::<Outcome>() {
                Ok(outcome) => match *outcome {
                    Outcome::Whole(answer) => Ok(Opened::Whole(answer)),
                    Outcome::Failed(error) => Err(self.without_key(error)),
                },
                Err(_) => Err(malformed("the exchange with the provider failed")),
            },
            Err(error) => Err(self.without_key(unexpected(error))),
        }
    }

    /// Some servers repeat the key they refuse.
    fn without_key(&self, mut error: ModelError) -> ModelError {
        let key = &self.settings.api_key;
        if key.len() >= 4 {
            error.message = error.message.replace(key.as_str(), "***");
        }
        error
    }
}

enum Opened {
    Events(BoxStream<'static, Result<Value, OpenAIError>>),
    Whole(Value),
}

/// What our HTTP service hands past the client crate.
#[derive(Debug, thiserror::Error)]
enum Outcome {
    #[error("the provider answered without streaming")]
    Whole(Value),
    #[error(transparent)]
    Failed(ModelError),
}

impl From<ModelError> for Outcome {
    fn from(error: ModelError) -> Self {
        Self::Failed(error)
    }
}

#[async_trait]
impl ModelProvider for OpenAi {
    async fn stream(
        &self,
        request: ModelRequest,
    ) -> Result<BoxStream<'static, Result<ModelEvent, ModelError>>, ModelError> {
        self.outbound
            .check_url(&self.settings.base_url)
            .map_err(|refused| ModelError {
                kind: ModelErrorKind::Rejected,
                message: refused.to_string(),
                status: None,
                retry_after: None,
            })?;
        let first = tokio::time::Instant::now() + self.settings.timeout;
        let opened = tokio::time::timeout_at(first, self.open(body(&request)))
            .await
            .map_err(|_| timed_out("no answer", self.settings.timeout))??;
        match opened {
            Opened::Whole(answer) => Ok(stream::iter(whole(&answer)?.into_iter().map(Ok)).boxed()),
            Opened::Events(events) => {
                let key = self.settings.api_key.clone();
                Ok(read(events, first, self.settings.clone())
                    .map_err(move |mut error| {
                        if key.len() >= 4 {
                            error.message = error.message.replace(key.as_str(), "***");
                        }
                        error
                    })
                    .boxed())
            }
        }
    }
}

/// The request as the wire wants it.
fn body(request: &ModelRequest) -> Value {
    let mut body = json!({
        "model": request.model,
        "messages": request.messages.iter().map(message).collect::<Vec<_>>(),
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    if !request.tools.is_empty() {
        body["tools"] = request
            .tools
            .iter()
            .map(|tool| json!({"type": "function", "function": tool}))
            .collect();
    }
    if let Some(schema) = &request.output_schema {
        body["response_format"] = json!({
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": schema},
        });
    }
    body
}

fn message(message: &Message) -> Value {
    match message {
        Message::System { content } => json!({"role": "system", "content": content}),
        Message::User { content } => json!({"role": "user", "content": content}),
        Message::Tool {
            tool_call_id,
            content,
        } => json!({"role": "tool", "tool_call_id": tool_call_id, "content": content}),
        Message::Assistant {
            content,
            tool_calls,
        } if tool_calls.is_empty() => json!({"role": "assistant", "content": content}),
        Message::Assistant {
            content,
            tool_calls,
        } => {
            let calls: Vec<_> = tool_calls
                .iter()
                .map(|call| {
                    json!({"id": call.id, "type": "function", "function": {
                        "name": call.name, "arguments": arguments(&call.arguments)}})
                })
                .collect();
            let content = if content.is_empty() {
                Value::Null
            } else {
                json!(content)
            };
            json!({"role": "assistant", "content": content, "tool_calls": calls})
        }
    }
}

/// Arguments as the text they must be. What the model wrote and was no JSON is wrapped: servers parse it again.
fn arguments(arguments: &Value) -> String {
    match arguments {
        Value::String(raw) => json!({"malformed_arguments": raw}).to_string(),
        other => other.to_string(),
    }
}

/// Our HTTP service: keeps status, headers and body of errors, and notices answers that are not streams.
async fn execute(
    http: reqwest::Client,
    keyless: bool,
    factory: HttpRequestFactory,
) -> Result<reqwest::Response, tower::BoxError> {
    let mut request = factory.build().await?;
    if keyless {
        request.headers_mut().remove(http::header::AUTHORIZATION);
    }
    let response = http
        .execute(request)
        .await
        .map_err(|fault| Outcome::Failed(error::from_reqwest(fault)))?;
    let (status, headers) = (response.status(), response.headers().clone());
    let mut chunks = response.bytes_stream().boxed();
    if !status.is_success() {
        let body = read_whole(Vec::new(), &mut chunks)
            .await
            .unwrap_or_default();
        let error = error::from_response(status, &headers, &body, Utc::now());
        return Err(Box::new(Outcome::Failed(error)));
    }
    let mut head = Vec::new();
    while head.iter().all(u8::is_ascii_whitespace) {
        match chunks.next().await {
            Some(Ok(chunk)) => head.extend_from_slice(&chunk),
            Some(Err(fault)) => return Err(Box::new(Outcome::Failed(error::from_reqwest(fault)))),
            None => break,
        }
    }
    // An event stream never begins like this, whatever its content type says.
    let first = head.iter().find(|byte| !byte.is_ascii_whitespace());
    if matches!(first, Some(b'{' | b'[' | b'<')) {
        let body = read_whole(head, &mut chunks).await?;
        return Err(Box::new(match serde_json::from_slice(&body) {
            Ok(answer) => Outcome::Whole(answer),
            Err(_) => Outcome::Failed(malformed("the answer is neither a stream nor JSON")),
        }));
    }
    let rest = limited(head.len(), chunks);
    let whole = stream::once(async move { Ok(head) }).chain(rest);
    let mut answer = http::Response::new(reqwest::Body::wrap_stream(whole));
    *answer.status_mut() = status;
    Ok(answer.into())
}

type Chunks<T> = BoxStream<'static, reqwest::Result<T>>;

async fn read_whole<T: AsRef<[u8]>>(
    mut body: Vec<u8>,
    chunks: &mut Chunks<T>,
) -> Result<Vec<u8>, Outcome> {
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(error::from_reqwest)?;
        if body.len() + chunk.as_ref().len() > BODY_BYTES_MAX {
            return Err(malformed("the answer is longer than 8 MiB").into());
        }
        body.extend_from_slice(chunk.as_ref());
    }
    Ok(body)
}

/// The rest of a stream, cut with an error where it gets too long: the client crate reads ahead without a bound.
fn limited<T: AsRef<[u8]> + Send + 'static>(
    mut bytes: usize,
    chunks: Chunks<T>,
) -> impl Stream<Item = Result<Vec<u8>, std::io::Error>> + Send {
    chunks.map(move |chunk| {
        let chunk = chunk.map_err(std::io::Error::other)?;
        bytes += chunk.as_ref().len();
        if bytes > STREAM_BYTES_MAX {
            return Err(std::io::Error::other("the stream is longer than 64 MiB"));
        }
        Ok(chunk.as_ref().to_vec())
    })
}

/// A whole answer, from a server that does not stream.
fn whole(answer: &Value) -> Result<Vec<ModelEvent>, ModelError> {
    let mut assembler = Assembler::default();
    let mut events = assembler.push(answer)?;
    if answer.get("choices").is_none() {
        return Err(malformed("the answer is JSON, but no chat completion"));
    }
    events.extend(assembler.finish()?);
    Ok(events)
}

struct Reading {
    events: BoxStream<'static, Result<Value, OpenAIError>>,
    assembler: Assembler,
    ready: VecDeque<ModelEvent>,
    deadline: tokio::time::Instant,
    settings: OpenAiSettings,
    begun: bool,
    ended: bool,
}

fn read(
    events: BoxStream<'static, Result<Value, OpenAIError>>,
    deadline: tokio::time::Instant,
    settings: OpenAiSettings,
) -> impl Stream<Item = Result<ModelEvent, ModelError>> + Send {
    let reading = Reading {
        events,
        assembler: Assembler::default(),
        ready: VecDeque::new(),
        deadline,
        settings,
        begun: false,
        ended: false,
    };
    stream::unfold(reading, |mut reading| async move {
        let event = reading.next().await?;
        Some((event, reading))
    })
}

impl Reading {
    async fn next(&mut self) -> Option<Result<ModelEvent, ModelError>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            if self.ended {
                return None;
            }
            if let Err(error) = self.read_on().await {
                self.ended = true;
                return Some(Err(error));
            }
        }
    }

    async fn read_on(&mut self) -> Result<(), ModelError> {
        let event = match tokio::time::timeout_at(self.deadline, self.events.next()).await {
            Ok(Some(Ok(chunk))) => chunk,
            Ok(None) => return self.end(),
            // Servers that never close and connections that break after the last word do no harm.
            Ok(Some(Err(_))) | Err(_) if self.assembler.is_finished() => return self.end(),
            Ok(Some(Err(fault))) => return Err(unexpected(fault)),
            Err(_) if self.begun => {
                return Err(timed_out("no further event", self.settings.idle_timeout));
            }
            Err(_) => return Err(timed_out("no event", self.settings.timeout)),
        };
        self.begun = true;
        self.ready.extend(self.assembler.push(&event)?);
        let wait = if self.assembler.is_finished() {
            self.settings.idle_timeout.min(USAGE_GRACE)
        } else {
            self.settings.idle_timeout
        };
        self.deadline = tokio::time::Instant::now() + wait;
        Ok(())
    }

    fn end(&mut self) -> Result<(), ModelError> {
        self.ended = true;
        self.ready
            .extend(std::mem::take(&mut self.assembler).finish()?);
        Ok(())
    }
}

/// A failure that the client crate reports itself. Its texts may hold the answer, so they are not passed on.
fn unexpected(fault: OpenAIError) -> ModelError {
    match fault {
        OpenAIError::Reqwest(fault) => error::from_reqwest(fault),
        OpenAIError::JSONDeserialize(..) => malformed("an event of the stream is not JSON"),
        OpenAIError::StreamError(_) => ModelError {
            kind: ModelErrorKind::Connection,
            message: "the connection broke in the middle of the answer".to_owned(),
            status: None,
            retry_after: None,
        },
        _ => malformed("the exchange with the provider failed"),
    }
}

fn timed_out(what: &str, after: Duration) -> ModelError {
    ModelError {
        kind: ModelErrorKind::Timeout,
        message: format!("{what} within {} ms", after.as_millis()),
        status: None,
        retry_after: None,
    }
}

#[cfg(test)]
mod tests;
