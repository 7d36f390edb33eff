//! `chat`: talks to an agent. The turn belongs to the session: a broken connection is taken up again where it broke
//! off, and leaving does not cancel anything.

use std::{
    collections::HashMap,
    io::{BufRead, IsTerminal, Read},
};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{
    Failure,
    client::{Client, Tail},
    follow::error_words,
    output::{Output, Paint, count, harmless, member, one_line, remark, shorten},
    sse::Event,
};

/// The longest message, in bytes; the API takes no longer one.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;
/// How often a message is sent again when its stream breaks before anything arrived.
const SENDS_MAX: u32 = 5;
/// How much of a tool's arguments or result is shown, in characters.
const TOOL_CHARS_SHOWN: usize = 160;

/// Flags of `chat`.
#[derive(clap::Args)]
pub struct ChatArgs {
    /// Name of the agent
    agent: String,
    /// Go on with this session instead of a new one
    #[arg(long, value_name = "ID")]
    session: Option<String>,
}

/// Talks until `/quit`, the end of standard input, or an interrupt at the prompt.
pub async fn chat(client: &Client, args: &ChatArgs, output: &Output) -> Result<(), Failure> {
    let session = open(client, args, output).await?;
    let terminal = std::io::stdin().is_terminal();
    let mut lines = read_lines();
    let mut completed = true;
    loop {
        if terminal && !output.is_json() {
            output.text(&output.paint.bold("> "));
        }
        let line = tokio::select! {
            line = lines.recv() => line,
            _ = tokio::signal::ctrl_c() => None,
        };
        let Some(line) = line else {
            if terminal && !output.is_json() {
                // The prompt stands open.
                output.line("");
            }
            break;
        };
        let message = line.map_err(Failure::Failed)?;
        match message.trim() {
            "" => continue,
            "/quit" | "/exit" => break,
            text => {
                if !terminal && !output.is_json() {
                    output.line(format!("> {text}"));
                }
                completed = turn(client, &session, text, output).await?;
            }
        }
    }
    if !output.is_json() {
        remark(format!(
            "go on with: callboard chat {} --session {session}",
            args.agent
        ));
    }
    // A script has to know; a person has read it.
    if completed || terminal {
        Ok(())
    } else {
        Err(Failure::Told)
    }
}

async fn open(client: &Client, args: &ChatArgs, output: &Output) -> Result<String, Failure> {
    let session = match &args.session {
        Some(id) => client.get(&["v1", "sessions", id], &[]).await?,
        None => {
            client
                .with_body(
                    Method::POST,
                    &["v1", "agents", &args.agent, "sessions"],
                    &json!({}),
                )
                .await?
        }
    };
    let agent = member(&session, "agent");
    if !agent.is_empty() && agent != args.agent {
        return Err(Failure::Usage(format!(
            "session {} is with agent {agent}",
            member(&session, "id")
        )));
    }
    if output.is_json() {
        output.json_line(&json!({"session": session}));
    } else if std::io::stdin().is_terminal() {
        remark(format!(
            "talking to {}; Ctrl-C cancels an answer, /quit leaves",
            args.agent
        ));
    }
    Ok(member(&session, "id"))
}

/// Lines of standard input, read by a thread of its own: a read cannot be interrupted.
fn read_lines() -> mpsc::Receiver<Result<String, String>> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut input = std::io::stdin().lock();
        loop {
            let mut line = String::new();
            let read = (&mut input)
                .take(MESSAGE_BYTES_MAX + 1)
                .read_line(&mut line);
            let next = match read {
                Ok(0) => return,
                Ok(bytes) if bytes as u64 > MESSAGE_BYTES_MAX => {
                    Err("a message is at most 1 MiB".to_owned())
                }
                Ok(_) => Ok(line),
                Err(error) => Err(format!("cannot read standard input: {error}")),
            };
            let last = next.is_err();
            if sender.blocking_send(next).is_err() || last {
                return;
            }
        }
    });
    receiver
}

/// Sends a message and shows the answer as it comes. Says whether the turn completed.
async fn turn(
    client: &Client,
    session: &str,
    text: &str,
    output: &Output,
) -> Result<bool, Failure> {
    let mut tail = send(client, session, text).await?;
    let mut conversation = Conversation::new(output.paint);
    let mut interrupts = 0;
    loop {
        let event = tokio::select! {
            event = tail.next() => event?,
            _ = tokio::signal::ctrl_c() => {
                interrupts += 1;
                if interrupts > 1 {
                    return Ok(false);
                }
                cancel(client, session).await?;
                continue;
            }
        };
        if output.is_json() {
            output.json_line(&json!({"id": event.id, "event": event.name, "data": event.data}));
            conversation.apply(&event);
        } else if event.name != "turn.started" {
            output.text(&conversation.apply(&event));
        }
        if let Some(status) = conversation.ended() {
            return Ok(status == "completed");
        }
    }
}

/// Sends a message. Its key makes it harmless to send it again when the stream breaks before its first event: only
/// from then on is it known where to resume.
async fn send(client: &Client, session: &str, text: &str) -> Result<Tail, Failure> {
    let key = uuid::Uuid::now_v7().to_string();
    let mut attempt = 1;
    loop {
        let request = client
            .request(Method::POST, &["v1", "sessions", session, "messages"])
            .header("idempotency-key", &key)
            .json(&json!({"content": text}));
        match client.stream(request).await {
            Ok(stream) => {
                return Ok(Tail::new(
                    client,
                    &["v1", "sessions", session, "events"],
                    "",
                    Some(stream),
                ));
            }
            Err(failure) if failure.may_pass() && attempt < SENDS_MAX && attempt > 1 => {}
            // The first failure to connect is told at once: nobody wants to wait for a server that is not there.
            Err(failure @ Failure::Refused(_)) if failure.may_pass() && attempt < SENDS_MAX => {}
            Err(failure) => return Err(failure),
        }
        attempt += 1;
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
}

async fn cancel(client: &Client, session: &str) -> Result<(), Failure> {
    let path = ["v1", "sessions", session, "cancel"];
    match client
        .with_body(Method::POST, &path, &json!({"mode": "now"}))
        .await
    {
        // 409: the turn ended while the key was pressed.
        Err(Failure::Refused(refusal)) if refusal.status == 409 => Ok(()),
        result => result.map(drop),
    }
}

/// Turns events of a session into text. Each character of an answer appears once, however often the stream breaks.
pub struct Conversation {
    paint: Paint,
    shown: HashMap<String, usize>,
    line_open: bool,
    ended: Option<&'static str>,
}

impl Conversation {
    /// Nothing shown yet.
    pub fn new(paint: Paint) -> Self {
        Self {
            paint,
            shown: HashMap::new(),
            line_open: false,
            ended: None,
        }
    }

    /// How the turn ended, once it has.
    pub fn ended(&self) -> Option<&'static str> {
        self.ended
    }

    /// Takes the next event; gives what is to be printed, which may be nothing.
    pub fn apply(&mut self, event: &Event) -> String {
        let data = &event.data;
        match event.name.as_str() {
            "turn.started" => self.turn_started(data),
            "message.delta" => {
                let offset = data
                    .get("offset")
                    .and_then(Value::as_u64)
                    .map(|offset| offset as usize);
                self.more(&member(data, "message_id"), offset, &member(data, "delta"))
            }
            "message.completed" => {
                let content = data
                    .get("message")
                    .map(|message| member(message, "content"))
                    .unwrap_or_default();
                let rest = self.more(&member(data, "message_id"), Some(0), &content);
                format!("{rest}{}", self.close())
            }
            "message.retracted" => {
                self.shown.remove(&member(data, "message_id"));
                self.note(&self.paint.yellow("the answer broke off; asking again"))
            }
            "answer.rejected" => self.note(&self.paint.yellow(&format!(
                "not the agreed form: {}",
                one_line(&member(data, "reason"))
            ))),
            "turn.resumed" => self.note(&self.paint.yellow("going on after an interruption")),
            "tool_call.started" => self.tool_started(data),
            "tool_call.finished" => self.tool_finished(data),
            "approval.requested" => {
                let title = data
                    .get("task")
                    .map(|task| member(task, "title"))
                    .unwrap_or_default();
                self.note(
                    &self
                        .paint
                        .yellow(&format!("waits for approval: {}", one_line(&title))),
                )
            }
            "turn.completed" => {
                let words = format!("({})", usage_words(data.get("usage")));
                self.end("completed", &words)
            }
            "turn.failed" => {
                let error = self
                    .paint
                    .red(&format!("failed: {}", error_words(data.get("error"))));
                self.end("failed", &error)
            }
            "turn.cancelled" => self.end("cancelled", "cancelled"),
            "turn.limited" => {
                let words = format!(
                    "stopped at {}: {} of {}",
                    member(data, "limit"),
                    member(data, "used"),
                    member(data, "max")
                );
                self.end("limited", &self.paint.red(&one_line(&words)))
            }
            _ => String::new(),
        }
    }

    fn turn_started(&mut self, data: &Value) -> String {
        self.ended = None;
        let content = [
            member(data, "content"),
            data.get("message")
                .map(|m| member(m, "content"))
                .unwrap_or_default(),
        ]
        .into_iter()
        .find(|text| !text.is_empty());
        match content {
            Some(text) => format!("{}> {}\n", self.close(), self.paint.bold(&harmless(&text))),
            None => self.close(),
        }
    }

    /// The part of `text`, which begins at character `offset` of its message, that was not shown yet.
    fn more(&mut self, message: &str, offset: Option<usize>, text: &str) -> String {
        let shown = self.shown.entry(message.to_owned()).or_insert(0);
        let offset = offset.unwrap_or(*shown);
        let length = text.chars().count();
        let new: String = text.chars().skip(shown.saturating_sub(offset)).collect();
        *shown = (*shown).max(offset + length);
        if !new.is_empty() {
            self.line_open = !new.ends_with('\n');
        }
        harmless(&new)
    }

    fn tool_started(&mut self, data: &Value) -> String {
        let arguments = data.get("arguments").map(compact).unwrap_or_default();
        let name = self.paint.cyan(&one_line(&member(data, "name")));
        self.note(&format!("→ {name} {}", self.paint.dim(&arguments)))
    }

    fn tool_finished(&mut self, data: &Value) -> String {
        let name = self.paint.cyan(&one_line(&member(data, "name")));
        let error = data.get("error").filter(|error| !error.is_null());
        let result = match error {
            Some(error) => self.paint.red(&error_words(Some(error))),
            None => self
                .paint
                .dim(&data.get("result").map(compact).unwrap_or_default()),
        };
        self.note(&format!("← {name} {result}"))
    }

    fn end(&mut self, status: &'static str, words: &str) -> String {
        self.ended = Some(status);
        self.note(&self.paint.dim(words))
    }

    fn note(&mut self, text: &str) -> String {
        format!("{}  {text}\n", self.close())
    }

    /// Ends the line that an answer left open.
    fn close(&mut self) -> String {
        if std::mem::take(&mut self.line_open) {
            "\n".to_owned()
        } else {
            String::new()
        }
    }
}

fn compact(value: &Value) -> String {
    let text = value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned);
    shorten(&one_line(&text), TOOL_CHARS_SHOWN)
}

/// What a turn used, in words.
pub fn usage_words(usage: Option<&Value>) -> String {
    let number = |name: &str| {
        usage
            .and_then(|usage| usage.get(name))
            .and_then(Value::as_u64)
            .unwrap_or(0)
    };
    let mut words = vec![count(number("model_calls") as usize, "model call")];
    if number("tool_calls") > 0 {
        words.push(count(number("tool_calls") as usize, "tool call"));
    }
    let tokens = number("input_tokens") + number("output_tokens");
    if tokens > 0 {
        words.push(format!("{tokens} tokens"));
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(events: &[(&str, Value)]) -> (Conversation, String) {
        let mut conversation = Conversation::new(Paint(false));
        let text = events
            .iter()
            .map(|(name, data)| {
                conversation.apply(&Event {
                    id: String::new(),
                    name: (*name).to_owned(),
                    data: data.clone(),
                })
            })
            .collect();
        (conversation, text)
    }

    fn delta(offset: u64, text: &str) -> (&'static str, Value) {
        (
            "message.delta",
            json!({"message_id": "m", "offset": offset, "delta": text}),
        )
    }

    fn completed(text: &str) -> (&'static str, Value) {
        (
            "message.completed",
            json!({"message_id": "m", "message": {"role": "assistant", "content": text}}),
        )
    }

    #[test]
    fn an_answer_with_a_tool_call_reads_in_order() {
        let (conversation, text) = show(&[
            ("turn.started", json!({"turn": 1})),
            delta(0, "Let me look."),
            (
                "message.completed",
                json!({"message_id": "m", "message": {"content": "Let me look."}}),
            ),
            (
                "tool_call.started",
                json!({"id": "c", "name": "order_status", "arguments": {"order": "A-1001"}}),
            ),
            (
                "tool_call.finished",
                json!({"id": "c", "name": "order_status", "status": "succeeded", "result": {"status": "shipped"}}),
            ),
            (
                "message.delta",
                json!({"message_id": "n", "offset": 0, "delta": "Shipped."}),
            ),
            (
                "turn.completed",
                json!({"usage": {"model_calls": 2, "tool_calls": 1, "input_tokens": 40, "output_tokens": 2}}),
            ),
        ]);
        assert_eq!(
            text,
            "Let me look.\n  → order_status {\"order\":\"A-1001\"}\n  ← order_status {\"status\":\"shipped\"}\nShipped.\n  (2 model calls, 1 tool call, 42 tokens)\n"
        );
        assert_eq!(conversation.ended(), Some("completed"));
    }

    #[test]
    fn a_resumed_stream_repeats_and_loses_nothing() {
        let (_, text) = show(&[
            delta(0, "Grüße"),
            delta(3, "ße, "),
            delta(7, "Welt"),
            completed("Grüße, Welt!"),
        ]);
        assert_eq!(text, "Grüße, Welt!\n");
        let (_, text) = show(&[delta(0, "Gr"), completed("Grüße")]);
        assert_eq!(text, "Grüße\n");
    }

    #[test]
    fn how_a_turn_ended_is_said() {
        for (event, expected, status) in [
            (
                (
                    "turn.failed",
                    json!({"error": {"code": "provider", "message": "no answer"}}),
                ),
                "  failed: provider: no answer\n",
                "failed",
            ),
            (("turn.cancelled", json!({})), "  cancelled\n", "cancelled"),
            (
                (
                    "turn.limited",
                    json!({"limit": "tool_calls", "used": 5, "max": 5}),
                ),
                "  stopped at tool_calls: 5 of 5\n",
                "limited",
            ),
        ] {
            let (conversation, text) = show(&[event]);
            assert_eq!(text, expected);
            assert_eq!(conversation.ended(), Some(status));
        }
    }

    #[test]
    fn what_a_model_says_cannot_steer_the_terminal() {
        let (_, text) = show(&[delta(0, "a\x1b[2Jb")]);
        assert_eq!(text, "a[2Jb");
    }
}
