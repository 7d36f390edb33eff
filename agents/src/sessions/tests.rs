//! Sessions over a real Postgres: one host, sometimes two of them one after the other.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use async_trait::async_trait;
use callboard_runtime::{
    core::Config,
    item::Item,
    node::{AsyncNode, EffectClass, Node, NodeError, NodeInput, NodeOutcome, NodeOutput, NodeType},
    outbound::OutboundPolicy,
};
use callboard_tests::Database;
use futures_util::StreamExt;
use serde_json::json;
use tokio::sync::Semaphore;

use super::*;
use crate::node::LateSessions;

const PATIENCE: Duration = Duration::from_secs(60);

/// A node that notes its calls and waits for leave to end.
#[derive(Clone, Default)]
struct Probe(Arc<ProbeState>);

#[derive(Default)]
struct ProbeState {
    /// Idempotency key and arguments of every run.
    runs: Mutex<Vec<(String, Value)>>,
    /// How many runs were dropped before they ended.
    dropped: AtomicUsize,
    /// How often the next checks of its parameters panic.
    bombs: AtomicUsize,
}

static OPEN: Semaphore = Semaphore::const_new(0);

impl Probe {
    fn runs(&self) -> Vec<(String, Value)> {
        let runs = self.0.runs.lock().unwrap_or_else(PoisonError::into_inner);
        runs.clone()
    }

    async fn wait_for(&self, runs: usize) {
        until(|| async { self.runs().len() >= runs }).await;
    }
}

impl Node for Probe {
    fn node_type(&self) -> NodeType {
        NodeType {
            name: "probe",
            version: 1,
            summary: "Notes its calls.",
            effect: EffectClass::Effectful,
            parameters: json!({"type": "object", "properties": {
                "value": {}, "hang": {"type": "boolean"}, "panic": {"type": "boolean"}, "fail": {"type": "boolean"}}}),
            several_inputs: false,
        }
    }

    fn check(&self, _with: &Value) -> Vec<callboard_runtime::node::ParameterFault> {
        let bombs = &self.0.bombs;
        let last = bombs.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        assert!(last.is_err(), "a fault of ours");
        Vec::new()
    }
}

/// Counts runs that are dropped in their midst.
struct Running(Option<Arc<ProbeState>>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(state) = &self.0 {
            state.dropped.fetch_add(1, Ordering::SeqCst);
        }
    }
}

#[async_trait]
impl AsyncNode for Probe {
    async fn run(&self, input: NodeInput) -> Result<NodeOutcome, NodeError> {
        let params = input.parameters.value(0)?;
        let key = input.identity.idempotency_key.to_string();
        let first = {
            let mut runs = self.0.runs.lock().unwrap_or_else(PoisonError::into_inner);
            runs.push((key.clone(), params.clone()));
            runs.iter().filter(|(other, _)| *other == key).count() == 1
        };
        let mut running = Running(Some(self.0.clone()));
        assert!(params["panic"] != true, "as asked");
        if params["hang"] == true && first {
            let _ = OPEN.acquire().await;
        }
        running.0 = None;
        if params["fail"] == true {
            return Err(NodeError::permanent("no_luck", "it failed"));
        }
        Ok(NodeOutput::main(vec![Item::new(json!({"value": params["value"]}))]).into())
    }
}

/// A process, as far as sessions are concerned.
struct Host {
    core: Core,
    sessions: Sessions,
    executions: Executions,
    nodes: Arc<NodeRegistry>,
}

impl Host {
    async fn start(database: &Database, probe: &Probe) -> Self {
        let limits = Limits {
            linger: Duration::ZERO,
            backoff: Duration::from_millis(1),
            restart_delay: Duration::from_millis(1),
            ..Limits::default()
        };
        let config = Config {
            database_url: database.url().to_owned(),
            labels: BTreeMap::new(),
            lease: Duration::from_secs(5),
            running_max: 100,
            outbound: OutboundPolicy::default(),
            env_allowed: Vec::new(),
            exclusive: true,
        };
        let core = Core::connect(config).await.expect("the host starts");
        let mut nodes = NodeRegistry::default();
        nodes.asynchronous(probe.clone());
        let late: LateSessions = crate::node::register(&mut nodes);
        let nodes = Arc::new(nodes);
        let executions = Executions::start_manager(core.clone(), nodes.clone())
            .await
            .expect("executions start");
        let sessions =
            Sessions::start_with(core.clone(), executions.clone(), nodes.clone(), limits)
                .await
                .expect("sessions start");
        late.set(sessions.clone());
        Self {
            core,
            sessions,
            executions,
            nodes,
        }
    }

    /// Ends at once: nothing in progress is brought to an end.
    async fn die(self) {
        self.sessions.drain(Duration::ZERO).await;
        self.executions.drain(Duration::ZERO).await;
        self.core.shutdown().await;
    }

    async fn apply(&self, kind: &str, name: &str, spec: Value) {
        let body = json!({"kind": kind, "metadata": {"name": name}, "spec": spec});
        self.core
            .documents
            .put(kind, name, body)
            .await
            .expect("the document is stored");
    }

    /// An agent `a` with the tool `probe` whose model says these replies.
    async fn agent(&self, replies: Value, more: Value) {
        self.script(replies, json!({})).await;
        let mut spec = json!({"model": "script/m", "tools": [{"node": "probe"}]});
        for (name, value) in more.as_object().into_iter().flatten() {
            spec[name] = value.clone();
        }
        self.apply("Agent", "a", spec).await;
    }

    async fn script(&self, replies: Value, more: Value) {
        let mut spec = json!({"type": "scripted", "replies": replies});
        for (name, value) in more.as_object().into_iter().flatten() {
            spec[name] = value.clone();
        }
        self.apply("Provider", "script", spec).await;
    }

    async fn open(&self) -> SessionId {
        let opened = self.sessions.open("a", OpenSession::default()).await;
        opened.expect("the session opens").id
    }

    async fn send(&self, id: SessionId, content: &str) -> Accepted {
        let sent = self.sessions.send(id, message(content, None)).await;
        sent.expect("the message is accepted")
    }

    async fn ended(&self, id: SessionId, turn: i64) -> TurnResult {
        let ended = self.sessions.turn(id, turn, PATIENCE).await;
        ended.expect("the turn is known").expect("the turn ends")
    }

    async fn say(&self, id: SessionId, content: &str) -> TurnResult {
        let accepted = self.send(id, content).await;
        self.ended(id, accepted.turn).await
    }

    async fn watch(&self, id: SessionId, after: Option<&str>) -> BoxStream<'static, StreamEvent> {
        let events = self.sessions.events(id, after).await;
        events.expect("the stream opens")
    }

    /// The stored events up to and with the first whose name is this.
    async fn events_until(&self, id: SessionId, name: &str) -> Vec<StreamEvent> {
        take_until(&mut self.watch(id, None).await, name).await
    }
}

fn message(content: &str, key: Option<&str>) -> SendMessage {
    SendMessage {
        content: content.to_owned(),
        idempotency_key: key.map(str::to_owned),
    }
}

async fn until<F: Future<Output = bool>>(condition: impl Fn() -> F) {
    let look = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, look)
        .await
        .expect("it comes true");
}

async fn next(stream: &mut BoxStream<'static, StreamEvent>) -> StreamEvent {
    tokio::time::timeout(PATIENCE, stream.next())
        .await
        .expect("there is an event")
        .expect("the stream never ends")
}

async fn take_until(stream: &mut BoxStream<'static, StreamEvent>, name: &str) -> Vec<StreamEvent> {
    let mut events = vec![next(stream).await];
    while events.last().is_some_and(|event| event.name != name) {
        events.push(next(stream).await);
    }
    events
}

fn names(events: &[StreamEvent]) -> Vec<&str> {
    events.iter().map(|event| event.name.as_str()).collect()
}

fn text_of(events: &[StreamEvent]) -> String {
    events
        .iter()
        .filter(|event| event.name == "message.delta")
        .map(|event| event.data["delta"].as_str().unwrap_or_default())
        .collect()
}

fn content(result: &TurnResult) -> &str {
    let message = result.message.as_ref();
    message
        .and_then(|message| message["content"].as_str())
        .unwrap_or_default()
}

fn call(arguments: Value) -> Value {
    json!({"name": "probe", "arguments": arguments})
}

#[tokio::test]
async fn an_agent_answers_and_its_session_leaves_memory() {
    let (database, probe) = (Database::create().await, Probe::default());
    let host = Host::start(&database, &probe).await;
    host.agent(
        json!([{"text": "You said {{ $json.message }}."}]),
        json!({}),
    )
    .await;
    let id = host.open().await;
    let result = host.say(id, "hi").await;
    assert_eq!(result.status, TurnStatus::Completed);
    assert_eq!(content(&result), "You said hi.");
    assert_eq!(result.usage.model_calls, 1);
    let view = host.sessions.get(id).await.expect("it is there");
    assert_eq!((view.status.as_str(), view.agent.as_str()), ("idle", "a"));
    assert_eq!(view.usage["model_calls"], 1);
    until(|| async { host.sessions.shared.lives.find(id).is_none() }).await;
    assert_eq!(content(&host.say(id, "bye").await), "You said bye.");
    assert_eq!(content(&host.ended(id, 1).await), "You said hi.");
    let unknown = host.sessions.turn(id, 9, PATIENCE).await;
    assert!(matches!(unknown, Err(SessionError::Invalid(_))));
    host.die().await;
}

#[tokio::test]
async fn calls_run_beside_each_other_and_results_stay_in_order() {
    let (database, probe) = (Database::create().await, Probe::default());
    let host = Host::start(&database, &probe).await;
    let steps = json!([
        {"text": "Let me see.", "tool_calls": [call(json!({"value": 1})), call(json!({"fail": true})),
            call(json!({"panic": true})), call(json!({"value": 4})), {"name": "nothing"},
            {"name": "probe", "arguments": {"valu": 1}}]},
        {"text": "Got {{ $json.results.length }}, first {{ $json.results[0].value }}."}
    ]);
    host.agent(json!([{"steps": steps}]), json!({})).await;
    let id = host.open().await;
    let result = host.say(id, "go").await;
    assert_eq!(content(&result), "Got 6, first 1.");
    assert_eq!(result.usage.tool_calls, 6);
    let rows = host
        .sessions
        .transcript(id, 0, 100)
        .await
        .expect("it reads");
    let roles: Vec<_> = rows.iter().map(|row| row.role).collect();
    assert_eq!(
        roles,
        [
            "user",
            "assistant",
            "tool",
            "tool",
            "tool",
            "tool",
            "tool",
            "tool",
            "assistant"
        ]
    );
    assert!(rows[3].content.contains("no_luck"), "{}", rows[3].content);
    assert!(
        rows[4].content.contains("fault of its own"),
        "{}",
        rows[4].content
    );
    assert!(rows[6].content.contains("not_found"), "{}", rows[6].content);
    assert!(
        rows[7].content.contains("invalid_args"),
        "{}",
        rows[7].content
    );
    assert!(rows.windows(2).all(|pair| pair[0].seq < pair[1].seq));
    for row in &rows {
        let rest = host
            .sessions
            .transcript(id, row.seq, 100)
            .await
            .expect("it reads");
        assert_eq!(
            rest.first().map(|row| row.seq),
            rows.iter()
                .map(|other| other.seq)
                .find(|seq| *seq > row.seq)
        );
    }
    host.die().await;
}

#[tokio::test]
async fn a_stream_resumes_at_any_place_of_a_message_in_progress() {
    let (database, probe) = (Database::create().await, Probe::default());
    let host = Host::start(&database, &probe).await;
    let text = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.";
    host.agent(json!([{"text": text}]), json!({})).await;
    host.script(json!([{"text": text}]), json!({"chunk": 2, "delay": "5ms"}))
        .await;
    let id = host.open().await;
    let accepted = host.send(id, "go").await;
    let (mut seen, mut last) = (Vec::new(), accepted.after_seq.to_string());
    // Every stream is dropped after a few events, while the text goes on.
    'turn: for cut in (1..4).cycle() {
        let mut stream = host.watch(id, Some(&last)).await;
        for _ in 0..cut {
            let event = next(&mut stream).await;
            last = event.id.clone();
            seen.push(event);
            if seen
                .last()
                .is_some_and(|event| event.name == "turn.completed")
            {
                break 'turn;
            }
        }
    }
    let seqs: Vec<_> = seen
        .iter()
        .filter_map(|e| e.id.parse::<i64>().ok())
        .collect();
    assert_eq!(seqs, [1, 2, 3]);
    let so_far = text_of(&seen);
    assert!(
        text.starts_with(&so_far),
        "no gap and no duplicate: {so_far}"
    );
    for event in &seen {
        if event.name == "message.delta" {
            let offset = event.data["offset"].as_u64().unwrap_or_default() as usize;
            let delta = event.data["delta"].as_str().unwrap_or_default();
            assert_eq!(event.id, format!("1.{}", offset + delta.chars().count()));
        }
    }
    // Afterwards the journal gives the rest from any place.
    for event in &seen {
        let rest = take_until(&mut host.watch(id, Some("1")).await, "turn.completed").await;
        assert_eq!(
            names(&rest),
            ["message.completed", "turn.completed"],
            "{}",
            event.id
        );
    }
    assert!(matches!(
        host.sessions.events(id, Some("77")).await.err(),
        Some(SessionError::Invalid(_))
    ));
    host.die().await;
}

#[tokio::test]
async fn a_record_in_the_midst_of_a_message_keeps_its_place_in_every_stream() {
    let (database, probe) = (Database::create().await, Probe::default());
    let host = Host::start(&database, &probe).await;
    let text = "0123456789".repeat(20);
    let replies = json!([{"when": "long", "text": text}, {"text": "short"}]);
    host.agent(replies.clone(), json!({})).await;
    host.script(replies, json!({"chunk": 3, "delay": "5ms"}))
        .await;
    let id = host.open().await;
    host.send(id, "long").await;
    let mut live = host.watch(id, None).await;
    take_until(&mut live, "message.delta").await;
    let queued = host.send(id, "second").await;
    assert_eq!(queued.turn, 2);
    let before = take_until(&mut live, "message.queued").await;
    drop(live);
    // From the record on, only what followed it in the first stream.
    let resumed = host.watch(id, Some(&queued.after_seq.to_string())).await;
    let after = take_until(&mut { resumed }, "turn.completed").await;
    let heard = text_of(&before).chars().count();
    if let Some(first) = after.iter().find(|event| event.name == "message.delta") {
        let offset = first.data["offset"].as_u64().unwrap_or_default() as usize;
        assert!(offset >= heard, "told twice: {offset} after {heard}");
    }
    assert_eq!(content(&host.ended(id, 2).await), "short");
    let rows = host.sessions.transcript(id, 0, 10).await.expect("it reads");
    let roles: Vec<_> = rows.iter().map(|row| row.role).collect();
    assert_eq!(roles, ["user", "user", "assistant", "assistant"]);
    host.die().await;
}

#[tokio::test]
async fn a_turn_goes_on_where_a_dead_host_left_it() {
    let (database, probe) = (Database::create().await, Probe::default());
    let host = Host::start(&database, &probe).await;
    let steps = json!([
        {"tool_calls": [call(json!({"value": "quick"})), call(json!({"value": "slow", "hang": true})),
            {"name": "once", "arguments": {"value": "once", "hang": true}}]},
        {"text": "Done: {{ $json.results[0].value }} {{ $json.results[1].value }} {{ $json.results[2].error.code }}."}
    ]);
    let tools = json!([{"node": "probe"}, {"node": "probe", "name": "once", "on_crash": "fail"}]);
    host.agent(json!([{"steps": steps}]), json!({"tools": tools}))
        .await;
    let id = host.open().await;
    let sent = host.sessions.send(id, message("go", Some("k"))).await;
    let accepted = sent.expect("the message is accepted");
    probe.wait_for(3).await;
    let mut live = host.watch(id, None).await;
    take_until(&mut live, "tool_call.finished").await;
    host.die().await;

    let host = Host::start(&database, &probe).await;
    let result = host.ended(id, 1).await;
    assert_eq!(content(&result), "Done: quick slow unknown_after_crash.");
    let runs = probe.runs();
    let of = |value: &str| -> Vec<_> {
        runs.iter()
            .filter(|(_, params)| params["value"] == value)
            .map(|(key, _)| key)
            .collect()
    };
    assert_eq!((of("quick").len(), of("once").len()), (1, 1));
    assert_eq!(of("slow").len(), 2);
    assert_eq!(of("slow")[0], of("slow")[1]);
    assert!(of("slow")[0].starts_with(&format!("{id}/1/")));
    let again = host.sessions.send(id, message("go", Some("k"))).await;
    assert_eq!(again.expect("the message is known"), accepted);
    let events = host.events_until(id, "turn.completed").await;
    let seqs: Vec<_> = events
        .iter()
        .filter_map(|e| e.id.parse::<i64>().ok())
        .collect();
    assert_eq!(seqs, (1..=seqs.len() as i64).collect::<Vec<_>>());
    assert!(names(&events).contains(&"turn.resumed"));
    // The repeated message took hold of the session for a moment.
    until(|| async { host.sessions.get(id).await.expect("it is there").status == "idle" }).await;
    host.die().await;
}

#[tokio::test]
async fn cancelling_cuts_calls_and_keeps_words() {
    let (database, probe) = (Database::create().await, Probe::default());
    let host = Host::start(&database, &probe).await;
    let replies = json!([
        {"when": "hang", "steps": [{"text": "Wait.", "tool_calls": [call(json!({"hang": true}))]}]},
        {"when": "talk", "text": "blah ".repeat(2000)},
        {"text": "Fine."}
    ]);
    host.agent(replies.clone(), json!({})).await;
    let id = host.open().await;
    assert!(matches!(
        host.sessions.cancel(id, CancelMode::Now).await,
        Err(SessionError::Idle)
    ));
    let turn = host.send(id, "hang").await.turn;
    probe.wait_for(1).await;
    host.sessions
        .cancel(id, CancelMode::Now)
        .await
        .expect("it is cancelled");
    assert_eq!(host.ended(id, turn).await.status, TurnStatus::Cancelled);
    until(|| async { probe.0.dropped.load(Ordering::SeqCst) == 1 }).await;
    assert_eq!(content(&host.say(id, "go on").await), "Fine.");

    host.script(replies, json!({"delay": "5ms"})).await;
    let turn = host.send(id, "talk").await.turn;
    let mut live = host.watch(id, None).await;
    take_until(&mut live, "message.delta").await;
    host.sessions
        .cancel(id, CancelMode::AfterTool)
        .await
        .expect("it is cancelled");
    let rest = take_until(&mut live, "turn.cancelled").await;
    let result = host.ended(id, turn).await;
    assert!(content(&result).starts_with("blah"));
    let kept = rest.iter().find(|event| event.name == "message.completed");
    assert_eq!(
        kept.map(|event| event.data["message"]["content"].clone()),
        Some(json!(content(&result)))
    );
    host.die().await;
}

#[tokio::test]
async fn time_and_calls_are_limited() {
    let (database, probe) = (Database::create().await, Probe::default());
    let host = Host::start(&database, &probe).await;
    let hang = json!([{"steps": [{"tool_calls": [call(json!({"hang": true}))]}]}]);
    host.agent(hang, json!({"budgets": {"wall": "200ms"}}))
        .await;
    let id = host.open().await;
    let result = host.say(id, "go").await;
    assert_eq!(result.status, TurnStatus::Limited);
    assert_eq!(
        result.limit.map(|limit| limit["limit"].clone()),
        Some(json!("wall"))
    );

    let endless = json!([{"tool_calls": [call(json!({"value": 1}))]}]);
    host.agent(endless, json!({"budgets": {"model_calls": 3}}))
        .await;
    let result = host.say(id, "go").await;
    assert_eq!(result.usage.model_calls, 3);
    assert_eq!(
        result.limit.map(|limit| limit["limit"].clone()),
        Some(json!("model_calls"))
    );

    let slow = json!([{"node": "probe", "timeout": "100ms"}]);
    let steps = json!([{"tool_calls": [call(json!({"hang": true}))]}, {"text": "{{ $json.results[0].error.code }}"}]);
    host.agent(json!([{"steps": steps}]), json!({"tools": slow}))
        .await;
    assert_eq!(content(&host.say(id, "go").await), "timeout");
    host.die().await;
}

#[tokio::test]
async fn answers_are_data_where_a_schema_says_so() {
    let (database, probe) = (Database::create().await, Probe::default());
    let host = Host::start(&database, &probe).await;
    let schema = json!({"type": "object", "required": ["score"], "properties": {"score": {"type": "integer"}}});
    let replies = json!([
        {"when": "not accepted", "data": {"score": 7}},
        {"when": "never", "text": "seven"},
        {"text": "{\"score\": \"seven\"}"}
    ]);
    host.agent(replies, json!({"output_schema": schema})).await;
    let id = host.open().await;
    let result = host.say(id, "score it").await;
    assert_eq!(result.data, Some(json!({"score": 7})));
    assert_eq!(result.usage.model_calls, 2);
    host.die().await;
}

#[tokio::test]
async fn a_failing_model_is_tried_again_and_then_replaced() {
    let (database, probe) = (Database::create().await, Probe::default());
    let host = Host::start(&database, &probe).await;
    let replies = json!([
        {"model": "bad", "text": "half of", "error": "unavailable"},
        {"model": "good", "text": "All well."}
    ]);
    host.agent(
        replies,
        json!({"model": ["missing/x", "script/bad", "script/good"]}),
    )
    .await;
    let id = host.open().await;
    let result = host.say(id, "go").await;
    assert_eq!(content(&result), "All well.");
    let events = host.events_until(id, "turn.completed").await;
    let retracted = names(&events)
        .into_iter()
        .filter(|name| *name == "message.retracted");
    assert_eq!(retracted.count(), 3);
    host.agent(json!([{"text": "x"}]), json!({"model": "missing/x"}))
        .await;
    let result = host.say(id, "go").await;
    assert_eq!(result.status, TurnStatus::Failed);
    assert!(
        result
            .error
            .is_some_and(|error| error.to_string().contains("missing"))
    );
    host.die().await;
}

#[tokio::test]
async fn a_workflow_is_a_tool_and_an_agent_is_a_step() {
    let (database, probe) = (Database::create().await, Probe::default());
    let host = Host::start(&database, &probe).await;
    let steps = json!([
        {"tool_calls": [{"name": "add", "arguments": {"n": 20}}, {"name": "add", "arguments": {"n": "x"}}]},
        {"text": "It is {{ $json.results[0].value }}."}
    ]);
    host.agent(
        json!([{"steps": steps}]),
        json!({"tools": [{"workflow": "add"}]}),
    )
    .await;
    let schema =
        json!({"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}});
    host.apply(
        "Workflow",
        "add",
        json!({
            "trigger": {"type": "manual", "input_schema": schema},
            "steps": [{"id": "one", "uses": "probe", "with": {"value": "{{ $json.n + 1 }}"}}]
        }),
    )
    .await;
    host.apply("Workflow", "asks", json!({
        "steps": [{"id": "ask", "uses": "agent", "with": {"agent": "a", "input": "{{ $json }}"}}]
    }))
    .await;
    let mut started = host
        .executions
        .start(callboard_runtime::executions::StartExecution {
            workflow: "asks".to_owned(),
            version: None,
            trigger: "manual",
            input: json!({"question": 1}),
            trigger_data: Value::Null,
            idempotency_key: None,
            parent_id: None,
            trace_id: None,
        })
        .await
        .expect("it starts");
    let ended = started.watch.ended(PATIENCE).await.expect("it ends");
    assert_eq!(ended.output["text"], "It is 21.", "{ended:?}");
    assert_eq!(
        probe.runs().len(),
        1,
        "arguments that do not fit start nothing"
    );
    let list = host
        .sessions
        .list(Some("a"), None, 10)
        .await
        .expect("it reads");
    assert_eq!(list[0].execution_id, Some(started.id));
    assert_eq!(ended.output["session_id"], json!(list[0].id));
    let rows = host
        .sessions
        .transcript(list[0].id, 0, 1)
        .await
        .expect("it reads");
    assert_eq!(rows[0].content, "{\"question\":1}");
    host.die().await;
}

/// Makes the next `bombs` looks at the agent panic, then sends something that makes the session look.
async fn blow_up(host: &Host, probe: &Probe, id: SessionId, bombs: usize) {
    let revision = host.core.documents.revision();
    let fresh = json!({"model": format!("script/{revision}")});
    host.apply("Agent", "other", fresh).await;
    until(|| async { host.core.documents.revision() > revision }).await;
    probe.0.bombs.store(bombs, Ordering::SeqCst);
    let sent = host.sessions.send(id, message("more", None)).await;
    assert!(matches!(
        sent,
        Err(SessionError::Store(StoreError::Unconfirmed(_)))
    ));
}

#[tokio::test]
async fn a_session_whose_actor_fails_goes_on_or_is_given_up() {
    let (database, probe) = (Database::create().await, Probe::default());
    let host = Host::start(&database, &probe).await;
    let steps = json!([{"tool_calls": [call(json!({"hang": true}))]}, {"text": "Done."}]);
    let replies = json!([{"when": "again", "text": "Fine."}, {"steps": steps}]);
    host.agent(replies, json!({})).await;
    let id = host.open().await;
    host.send(id, "go").await;
    probe.wait_for(1).await;
    blow_up(&host, &probe, id, 1).await;
    assert_eq!(content(&host.ended(id, 1).await), "Done.");
    assert_eq!(probe.runs().len(), 2);

    let id = host.open().await;
    host.send(id, "go").await;
    probe.wait_for(3).await;
    // The first failure, and that of each try but the last.
    blow_up(&host, &probe, id, 4).await;
    let result = host.ended(id, 1).await;
    assert_eq!(
        result.error.map(|error| error["code"].clone()),
        Some(json!("crashed"))
    );
    assert_eq!(content(&host.say(id, "again").await), "Fine.");
    host.die().await;
}

#[tokio::test]
async fn a_journal_that_cannot_be_read_is_told_and_nobody_owns_the_session() {
    let (database, probe) = (Database::create().await, Probe::default());
    let host = Host::start(&database, &probe).await;
    host.agent(json!([{"text": "ok"}]), json!({})).await;
    let id = host.open().await;
    sqlx::query("INSERT INTO session_events (session_id, seq, kind, payload, created_at) VALUES ($1, 1, 'turn.rewound', '{}', now())")
        .bind(id.0)
        .execute(&host.core.db)
        .await
        .expect("the row is stored");
    let sent = host.sessions.send(id, message("x", None)).await;
    assert!(
        matches!(sent, Err(SessionError::Store(StoreError::Corrupt(_)))),
        "{sent:?}"
    );
    assert_eq!(
        host.sessions.get(id).await.expect("it is there").status,
        "idle"
    );
    host.die().await;
}

#[tokio::test]
async fn keys_make_repeats_harmless() {
    let (database, probe) = (Database::create().await, Probe::default());
    let host = Host::start(&database, &probe).await;
    host.agent(json!([{"text": "ok"}]), json!({"double_texting": "reject"}))
        .await;
    host.apply("Agent", "b", json!({"model": "script/m"})).await;
    let options = OpenSession {
        idempotency_key: Some("s".to_owned()),
        execution_id: None,
    };
    let first = host
        .sessions
        .open("a", options.clone())
        .await
        .expect("it opens");
    let again = host
        .sessions
        .open("a", options.clone())
        .await
        .expect("it opens");
    assert_eq!(first.id, again.id);
    assert!(matches!(
        host.sessions.open("b", options).await,
        Err(SessionError::KeyReused)
    ));
    let id = first.id;
    let one = host
        .sessions
        .send(id, message("x", Some("k")))
        .await
        .expect("it is accepted");
    host.ended(id, one.turn).await;
    let two = host
        .sessions
        .send(id, message("x", Some("k")))
        .await
        .expect("it is known");
    assert_eq!(one, two);
    let other = host.sessions.send(id, message("y", Some("k"))).await;
    assert!(matches!(other, Err(SessionError::KeyReused)));
    until(|| async {
        let view = host.sessions.get(id).await.expect("it is there");
        view.status == "idle"
    })
    .await;
    assert!(matches!(
        host.sessions.open("nobody", OpenSession::default()).await,
        Err(SessionError::UnknownAgent(_))
    ));
    let nobody = SessionId::new();
    assert!(matches!(
        host.sessions.send(nobody, message("x", None)).await,
        Err(SessionError::NotFound(_))
    ));
    assert!(matches!(
        host.sessions.events(nobody, None).await.err(),
        Some(SessionError::NotFound(_))
    ));
    host.die().await;
}

#[tokio::test]
async fn a_session_is_deleted_with_what_it_was_doing() {
    let (database, probe) = (Database::create().await, Probe::default());
    let host = Host::start(&database, &probe).await;
    let hang = json!([{"steps": [{"tool_calls": [call(json!({"hang": true}))]}]}]);
    host.agent(hang, json!({})).await;
    let id = host.open().await;
    host.send(id, "one").await;
    host.send(id, "two").await;
    probe.wait_for(1).await;
    host.sessions.delete(id).await.expect("it is deleted");
    until(|| async { probe.0.dropped.load(Ordering::SeqCst) == 1 }).await;
    assert!(matches!(
        host.sessions.get(id).await,
        Err(SessionError::NotFound(_))
    ));
    assert_eq!(
        database.number("SELECT count(*) FROM session_events").await,
        0
    );
    let again = host.sessions.delete(id).await;
    assert!(matches!(again, Err(SessionError::NotFound(_))));
    host.die().await;
}

#[tokio::test]
async fn many_sessions_at_once_all_end() {
    let (database, probe) = (Database::create().await, Probe::default());
    let host = Host::start(&database, &probe).await;
    let steps = json!([
        {"tool_calls": [call(json!({"value": "{{ $json.message }}"}))]},
        {"text": "{{ $json.tools.probe.value }}"}
    ]);
    host.agent(json!([{"steps": steps}]), json!({})).await;
    let turns = (0..40).map(|n| {
        let host = &host;
        async move {
            let id = host.open().await;
            for round in 0..3 {
                let said = format!("n{n}-{round}");
                assert_eq!(content(&host.say(id, &said).await), said);
            }
        }
    });
    futures_util::future::join_all(turns).await;
    until(|| async { host.sessions.running() == 0 }).await;
    host.die().await;
}

#[tokio::test]
async fn a_turn_that_a_run_waits_for_is_cancelled_with_the_run() {
    let (database, probe) = (Database::create().await, Probe::default());
    let host = Host::start(&database, &probe).await;
    let hang = json!([{"steps": [{"tool_calls": [call(json!({"hang": true}))]}]}]);
    host.agent(hang, json!({})).await;
    host.apply(
        "Workflow",
        "asks",
        json!({
            "steps": [{"id": "ask", "uses": "agent", "with": {"agent": "a", "input": "go"}}]
        }),
    )
    .await;
    let request = callboard_runtime::executions::StartExecution {
        workflow: "asks".to_owned(),
        version: None,
        trigger: "manual",
        input: json!({}),
        trigger_data: Value::Null,
        idempotency_key: None,
        parent_id: None,
        trace_id: None,
    };
    let started = host.executions.start(request).await.expect("it starts");
    probe.wait_for(1).await;
    host.executions
        .cancel(started.id)
        .await
        .expect("it is cancelled");
    let list = host
        .sessions
        .list(Some("a"), None, 10)
        .await
        .expect("it reads");
    assert_eq!(
        host.ended(list[0].id, 1).await.status,
        TurnStatus::Cancelled
    );
    assert!(host.nodes.find("agent").is_some());
    host.die().await;
}
