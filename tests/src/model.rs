//! A model provider that speaks the OpenAI-compatible wire format and says what a script wants.
//!
//! The answer depends on the conversation alone (how often the model spoke in it), so a request that is repeated
//! after a crash or a failure gets the same answer.

use serde_json::{Value, json};

use crate::stub::{Answer, Gate, Piece, Recorded, Stub};

/// What the model says when it is its turn.
#[derive(Clone)]
pub struct Turn {
    pieces: Vec<Piece>,
    cut: bool,
    whole: Option<Answer>,
}

impl Turn {
    /// A text, in pieces of a few characters.
    pub fn text(text: &str) -> Self {
        Self::pieces(
            &chunks_of(text, 3)
                .iter()
                .map(String::as_str)
                .collect::<Vec<_>>(),
        )
    }

    /// A text in given pieces.
    pub fn pieces(texts: &[&str]) -> Self {
        let deltas = texts.iter().map(|text| json!({"content": text}));
        Self::stream(deltas.map(|delta| chunk(delta, None)).collect(), "stop")
    }

    /// Calls of tools: id, name, arguments. The arguments come in pieces, as real ones do.
    pub fn calls(calls: &[(&str, &str, Value)]) -> Self {
        let mut chunks = Vec::new();
        for (index, (id, name, arguments)) in calls.iter().enumerate() {
            let function = json!({"name": name, "arguments": ""});
            let start = json!({"index": index, "id": id, "type": "function", "function": function});
            chunks.push(chunk(json!({"tool_calls": [start]}), None));
            for part in chunks_of(&arguments.to_string(), 5) {
                let more = json!({"index": index, "function": {"arguments": part}});
                chunks.push(chunk(json!({"tool_calls": [more]}), None));
            }
        }
        Self::stream(chunks, "tool_calls")
    }

    /// Half a text, then the connection breaks.
    pub fn half(text: &str) -> Self {
        let mut turn = Self::text(text);
        turn.pieces.truncate(turn.pieces.len() / 2);
        turn.cut = true;
        turn
    }

    /// The same, but the connection breaks after so many pieces.
    #[must_use]
    pub fn cut_after(mut self, pieces: usize) -> Self {
        self.pieces.truncate(pieces);
        self.cut = true;
        self
    }

    /// A text whose stream ends cleanly but without a finish reason.
    pub fn unfinished(text: &str) -> Self {
        let mut turn = Self::text(text);
        // The finish, the usage and `[DONE]`.
        turn.pieces.truncate(turn.pieces.len() - 3);
        turn
    }

    /// Any answer but a stream, such as an error.
    pub fn answer(answer: Answer) -> Self {
        Self {
            pieces: Vec::new(),
            cut: false,
            whole: Some(answer),
        }
    }

    /// An error as OpenAI words it.
    pub fn error(status: u16, message: &str) -> Self {
        let error = json!({"message": message, "type": "error", "code": null, "param": null});
        Self::answer(Answer::Json(status, json!({"error": error})))
    }

    /// The same, but after `pieces` pieces the model pauses until a gate is open.
    #[must_use]
    pub fn paused_after(mut self, pieces: usize, gate: &Gate) -> Self {
        self.pieces.insert(pieces, Piece::Wait(gate.clone()));
        self
    }

    fn stream(chunks: Vec<Value>, finish: &str) -> Self {
        let usage = json!({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15});
        let role = chunk(json!({"role": "assistant"}), None);
        let end = chunk(json!({}), Some(finish));
        let mut last = chunk(json!({}), None);
        last["choices"] = json!([]);
        last["usage"] = usage;
        let mut pieces: Vec<Piece> = std::iter::once(role)
            .chain(chunks)
            .chain([end, last])
            .map(|chunk| Piece::Bytes(format!("data: {chunk}\n\n").into_bytes()))
            .collect();
        pieces.push(Piece::Bytes(b"data: [DONE]\n\n".to_vec()));
        Self {
            pieces,
            cut: false,
            whole: None,
        }
    }

    fn to_answer(&self) -> Answer {
        self.whole.clone().unwrap_or_else(|| Answer::Pieces {
            content_type: "text/event-stream",
            pieces: self.pieces.clone(),
            cut: self.cut,
        })
    }
}

fn chunk(delta: Value, finish: Option<&str>) -> Value {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "stub",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    })
}

fn chunks_of(text: &str, size: usize) -> Vec<String> {
    let characters: Vec<char> = text.chars().collect();
    characters
        .chunks(size)
        .map(|part| part.iter().collect())
        .collect()
}

/// A provider on a local port.
pub struct ModelStub {
    stub: Stub,
}

impl ModelStub {
    /// One that says `turns[n]` to a conversation in which the model spoke `n` times, and the last one for ever.
    ///
    /// # Panics
    /// When no port is free.
    pub async fn start(turns: Vec<Turn>) -> Self {
        Self::with(move |conversation, _| {
            let spoken = conversation
                .iter()
                .filter(|message| message["role"] == "assistant")
                .count();
            turns[spoken.min(turns.len() - 1)].clone()
        })
        .await
    }

    /// One that decides by the conversation and the number of the request.
    ///
    /// # Panics
    /// When no port is free.
    pub async fn with(say: impl Fn(&[Value], usize) -> Turn + Send + Sync + 'static) -> Self {
        let stub = Stub::start(move |request| {
            if request.path != "/v1/chat/completions" {
                return Answer::Json(404, json!({"error": {"message": "no such path"}}));
            }
            let none = Vec::new();
            let conversation = request.body["messages"].as_array().unwrap_or(&none);
            say(conversation, request.nth).to_answer()
        })
        .await;
        Self { stub }
    }

    /// A provider document for it, named `stub`.
    pub fn provider(&self) -> Value {
        json!({
            "kind": "Provider",
            "metadata": {"name": "stub"},
            "spec": {"type": "openai", "base_url": self.stub.url("/v1"), "api_key": "sk-stub-secret"},
        })
    }

    /// All requests for completions so far.
    pub fn requests(&self) -> Vec<Recorded> {
        self.stub.requests_to("/v1/chat/completions")
    }

    /// The server itself.
    pub fn stub(&self) -> &Stub {
        &self.stub
    }

    /// Waits until there were so many requests.
    ///
    /// # Panics
    /// When that does not happen in time.
    pub async fn wait_for(&self, count: usize) {
        self.stub.wait_for("/v1/chat/completions", count).await;
    }
}
