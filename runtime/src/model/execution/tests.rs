//! Random graphs, random orders, crashes at every point: what must hold of the state machine whatever happens.

mod recovery;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

use super::*;
use crate::{
    expression::Template,
    id::HostId,
    model::graph::{Action, Edge, Join, Map, OnError, Retry, Settings, Trigger},
    node::{
        AnyNode, ERROR, EffectClass, MAIN, Node, NodeInput, NodeOutput, NodeType, PureNode, Wait,
    },
    store::rows::{NodeRunRow, NodeRunStatus, WaitRow},
    tool::OnCrash,
};

mod bounds;

struct Nothing;

impl Node for Nothing {
    fn node_type(&self) -> NodeType {
        NodeType {
            name: "nothing",
            version: 1,
            summary: "",
            effect: EffectClass::Pure,
            parameters: json!({}),
            several_inputs: false,
        }
    }
}

impl PureNode for Nothing {
    fn run(&self, input: &NodeInput) -> Result<NodeOutcome, NodeError> {
        Ok(NodeOutput::main(input.items().to_vec()).into())
    }
}

fn step(id: &str, action: Action) -> Step {
    Step {
        id: id.into(),
        uses: "nothing".into(),
        action,
        effect: EffectClass::Pure,
        with: Arc::new(json!({})),
        template: Arc::new(Template::compile(&json!({}), &[]).expect("an empty template compiles")),
        edges: Vec::new(),
        join: None,
        retry: Retry::default(),
        timeout: None,
        on_error: OnError::Fail,
        on_crash: OnCrash::Retry,
    }
}

fn node(id: &str) -> Step {
    step(id, Action::Node(AnyNode::Pure(Arc::new(Nothing))))
}

fn edge(port: &str, to: usize) -> Edge {
    Edge {
        port: port.into(),
        to,
        slot: None,
    }
}

/// Makes `to` wait for these ports.
fn join(steps: &mut [Step], to: usize, need: Option<usize>, sources: &[(usize, &str)]) {
    for (slot, (from, port)) in sources.iter().enumerate() {
        steps[*from].edges.push(Edge {
            port: (*port).into(),
            to,
            slot: Some(slot),
        });
    }
    let sources = sources
        .iter()
        .map(|(from, port)| (*from, Arc::from(*port)))
        .collect();
    steps[to].join = Some(Join { sources, need });
}

fn graph(steps: Vec<Step>, settings: Settings) -> Arc<Graph> {
    Arc::new(Graph {
        name: "test".into(),
        required_scope: None,
        triggers: vec![Trigger::Manual { input_schema: None }],
        settings,
        body: Arc::new(Body::new(steps)),
    })
}

/// What a test's nodes do: the same for the same visit and attempt, whatever the order.
type Behaviour<'a> = &'a dyn Fn(&str, u32) -> Result<NodeOutcome, NodeError>;

/// Plays the actors: keeps the journal, performs effects in random order, crashes.
struct World<'a> {
    graph: Arc<Graph>,
    behaviour: Behaviour<'a>,
    execution: Execution,
    rows: Vec<NodeRunRow>,
    waits: HashMap<String, WaitRow>,
    /// After each append, how many rows there were, and the waits: a crash takes both back.
    history: Vec<(usize, HashMap<String, WaitRow>)>,
    /// Which append is durable for certain, with all before it.
    durable: usize,
    /// What is to be done, and after which append it was asked for.
    todo: Vec<(usize, Effect)>,
    now: DateTime<Utc>,
    /// Attempts of effectful steps that were performed.
    performed: Vec<(String, u32)>,
    /// Attempts of steps that must not run twice.
    marked: HashSet<(String, u32)>,
    end: Option<End>,
}

impl<'a> World<'a> {
    fn new(graph: Arc<Graph>, behaviour: Behaviour<'a>) -> Self {
        let now = DateTime::from_timestamp(1_700_000_000, 0).expect("in range");
        let execution = Execution::new(ExecutionId::new(), graph.clone(), now);
        let mut world = Self {
            graph,
            behaviour,
            execution,
            rows: Vec::new(),
            waits: HashMap::new(),
            history: vec![(0, HashMap::new())],
            durable: 0,
            todo: Vec::new(),
            now,
            performed: Vec::new(),
            marked: HashSet::new(),
            end: None,
        };
        let items = vec![Item::new(json!({"n": 1})), Item::new(json!({"n": 2}))];
        world.decide(Event::Started { items, at: now });
        world
    }

    fn decide(&mut self, event: Event) {
        let decision = self.execution.decide(event);
        self.take(decision);
    }

    fn take(&mut self, decision: Decision) {
        for record in decision.records {
            match record {
                Record::Run(run) => {
                    assert_eq!(run.seq as usize, self.rows.len(), "seq has no gaps");
                    self.rows.push(run.to_row(&self.execution, HostId::new()));
                }
                Record::WaitOpened(wait) => {
                    let earlier = self
                        .waits
                        .insert(wait.key.clone(), wait.to_row(&self.execution));
                    assert!(earlier.is_none(), "a wait is opened once: {}", wait.key);
                }
                Record::WaitClosed(key) => {
                    self.waits.remove(&key);
                }
                Record::Ended(end) => {
                    assert!(self.end.replace(end).is_none(), "an execution ends once");
                }
            }
        }
        self.history.push((self.rows.len(), self.waits.clone()));
        let append = self.history.len() - 1;
        let effects = decision.effects.into_iter();
        self.todo.extend(effects.map(|effect| (append, effect)));
    }

    /// Everything appended so far is durable.
    fn save(&mut self) {
        self.durable = self.history.len() - 1;
    }

    /// Performs one effect chosen by `rng`. False when there is nothing to do.
    fn perform(&mut self, rng: &mut StdRng) -> bool {
        if self.todo.is_empty() {
            return false;
        }
        self.now += TimeDelta::seconds(1);
        let (append, effect) = self.todo.swap_remove(rng.random_range(0..self.todo.len()));
        match effect {
            Effect::Start {
                key,
                attempt,
                barrier,
            } => self.start(key, attempt, barrier.then_some(append)),
            Effect::Expand { key, .. } if self.execution.may_expand(key) => {
                let elements = (0..4)
                    .map(|n| Item::new(json!({"element": n})).paired(0))
                    .collect();
                self.decide(Event::MapExpanded {
                    key,
                    elements: Ok(elements),
                    at: self.now,
                });
            }
            Effect::Delay(key, at) => {
                self.now = self.now.max(at);
                self.decide(Event::DelayOver { key });
            }
            Effect::WakeAt(key, at) => {
                self.now = self.now.max(at);
                self.decide(Event::WaitEnded {
                    key,
                    with: WaitEnd::Due,
                    at: self.now,
                });
            }
            Effect::StartChild(key, child) => {
                self.durable = self.durable.max(append);
                let with = if child.wait {
                    WaitEnd::ChildEnded {
                        status: ExecutionStatus::Succeeded,
                        output: json!({"child": child.input}),
                        error: None,
                    }
                } else {
                    WaitEnd::ChildStarted
                };
                self.decide(Event::WaitEnded {
                    key,
                    with,
                    at: self.now,
                });
            }
            _ => {}
        }
        true
    }

    /// Runs a node once the append `barrier` is durable.
    fn start(&mut self, key: RunKey, attempt: u32, barrier: Option<usize>) {
        if !self.execution.is_current(key, attempt) {
            return;
        }
        self.durable = self.durable.max(barrier.unwrap_or_default());
        let text = self.execution.key_text(key);
        let step = self.execution.step(key);
        if step.effect == EffectClass::Effectful || step.on_crash == OnCrash::Fail {
            assert!(
                barrier.is_some(),
                "an effect starts only when everything before it is durable"
            );
        }
        if step.effect == EffectClass::Effectful {
            self.performed.push((text.clone(), attempt));
        }
        if step.on_crash == OnCrash::Fail {
            assert!(
                self.marked.insert((text.clone(), attempt)),
                "{text} must not run twice"
            );
        }
        let outcome = (self.behaviour)(&text, attempt);
        let (started_at, finished_at) = (self.now, self.now);
        // Delivered twice: the second must change nothing.
        for _ in 0..2 {
            let outcome = outcome.clone();
            let event = Event::NodeRunFinished {
                key,
                attempt,
                outcome,
                started_at,
                finished_at,
                random: 0.5,
                child_id: ExecutionId::new(),
            };
            self.decide(event);
        }
    }

    fn fold(&self) -> Execution {
        let waits: Vec<WaitRow> = self.waits.values().cloned().collect();
        Execution::fold(
            self.execution.id,
            self.graph.clone(),
            self.execution.started_at,
            &self.rows,
            &waits,
        )
        .expect("own rows fold")
    }

    /// The host dies: what was not durable is gone, and a new host folds the rest.
    fn crash(&mut self, rng: &mut StdRng) {
        let append = rng.random_range(self.durable..self.history.len());
        let (rows, waits) = self.history[append].clone();
        if rows == 0 {
            return;
        }
        self.rows.truncate(rows);
        self.history.truncate(append + 1);
        self.durable = append;
        self.waits = waits;
        self.todo.clear();
        self.end = None;
        self.execution = self.fold();
        let owed = self.execution.owed(self.now);
        self.take(owed);
    }

    /// Plays to the end; crashes with this probability before each effect.
    fn play(&mut self, rng: &mut StdRng, crash: f64) -> End {
        for _ in 0..20_000 {
            if self.end.is_none() && rng.random_bool(crash) {
                self.crash(rng);
            }
            self.folding_gives_the_same_state();
            if !self.perform(rng) {
                break;
            }
        }
        self.end.clone().expect("every execution ends")
    }

    fn folding_gives_the_same_state(&self) {
        let folded = self.fold();
        assert_eq!(folded.next_seq, self.execution.next_seq);
        if self.end.is_none() {
            assert_eq!(
                picture(&folded),
                picture(&self.execution),
                "the journal tells the same state"
            );
        }
    }

    fn output(&self, id: &str) -> Option<&NodeRunRow> {
        self.rows
            .iter()
            .find(|row| row.step == id && row.status == NodeRunStatus::Succeeded)
    }
}

/// All of a state that a fold must give back. What is ready, running or delayed is one: it is to be done.
fn picture(execution: &Execution) -> BTreeMap<String, String> {
    let mut picture = BTreeMap::new();
    for (key, run) in &execution.runs {
        let state = match &run.state {
            RunState::Ready | RunState::Running | RunState::Delayed(_) => "to do".to_owned(),
            RunState::Waiting(waiting) => format!("waits since {}", waiting.started_at),
            RunState::Mapping(mapping) => format!("{mapping:?}"),
        };
        let inputs: Vec<_> = run.inputs.iter().map(|input| &input.items).collect();
        picture.insert(
            execution.key_text(*key),
            format!("{} {:?} {inputs:?} {state}", run.attempt, run.parent_seq),
        );
    }
    for frame in execution.frames.iter().flatten() {
        for (step, state) in frame.body.steps.iter().zip(&frame.steps) {
            let slots: Vec<_> = state.slots.iter().map(VecDeque::len).collect();
            let latest = state.latest.as_ref().map(|latest| latest.seq);
            picture.insert(
                format!("{} {}", frame.scope, step.id),
                format!("{} {latest:?} {slots:?} {:?}", state.visits, state.dropped),
            );
        }
        let last = frame.last.as_ref().map(|last| last.seq);
        picture.insert(
            frame.scope.to_string(),
            format!("{} {last:?} {:?}", frame.active, frame.failure),
        );
    }
    let skips: Vec<_> = execution.skips.iter().map(|skip| &skip.step).collect();
    picture.insert("skips".to_owned(), format!("{skips:?}"));
    picture
}

fn passes(_: &str, _: u32) -> Result<NodeOutcome, NodeError> {
    Ok(NodeOutput::main(vec![Item::new(json!({"ok": true})).paired(0)]).into())
}

fn on_port(port: &str) -> Result<NodeOutcome, NodeError> {
    Ok(NodeOutput {
        ports: vec![(
            port.into(),
            vec![Item::new(json!({"port": port})).paired(0)],
        )],
        response: None,
    }
    .into())
}

fn hash(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// Steps that fail, wait, branch, loop and map, with joins of every kind between them.
fn random_graph(rng: &mut StdRng) -> Arc<Graph> {
    let len = rng.random_range(3..14);
    let settings = Settings {
        max_parallel: rng.random_range(1..5),
        max_node_runs: [40, 400][rng.random_range(0..2)],
        ..Settings::default()
    };
    graph(random_steps("s", len, 2, rng), settings)
}

fn random_steps(prefix: &str, len: usize, maps: usize, rng: &mut StdRng) -> Vec<Step> {
    let mut steps = vec![step("trigger", Action::Entry)];
    for index in 1..len {
        let id = format!("{prefix}{index}");
        let mut next = if maps > 0 && rng.random_bool(0.15) {
            random_map(&id, maps - 1, rng)
        } else {
            node(&id)
        };
        match rng.random_range(0..10) {
            0..3 => next.effect = EffectClass::Effectful,
            3 => next.on_crash = OnCrash::Fail,
            _ => {}
        }
        next.retry.max_attempts = rng.random_range(1..4);
        next.on_error = [OnError::Fail, OnError::Continue, OnError::Route][rng.random_range(0..3)];
        if rng.random_bool(0.2) {
            next.uses = "wait.timer".into();
        }
        steps.push(next);
    }
    for to in 1..len {
        let ports = [MAIN, MAIN, MAIN, ERROR, "other"];
        if to > 2 && rng.random_bool(0.4) {
            let mut sources: Vec<(usize, &str)> = (0..rng.random_range(2..4))
                .map(|_| (rng.random_range(0..to), ports[rng.random_range(0..5)]))
                .collect();
            sources.dedup();
            let need = [None, Some(1), Some(2)][rng.random_range(0..3)];
            join(&mut steps, to, need, &sources);
        } else {
            let from = rng.random_range(0..to);
            steps[from]
                .edges
                .push(edge(ports[rng.random_range(0..5)], to));
        }
    }
    if rng.random_bool(0.3) {
        let from = rng.random_range(1..len);
        let to = rng.random_range(1..=from);
        steps[from].edges.push(edge("again", to));
    }
    steps
}

fn random_map(id: &str, maps: usize, rng: &mut StdRng) -> Step {
    let len = rng.random_range(2..6);
    let inner = random_steps(&format!("{id}-"), len, maps, rng);
    map(id, inner, rng.random_range(1..4), rng.random_bool(0.5))
}

fn map(id: &str, inner: Vec<Step>, max_parallel: usize, collect_errors: bool) -> Step {
    let map = Map {
        body: Arc::new(Body::new(inner)),
        max_parallel,
        collect_errors,
    };
    Step {
        uses: "map".into(),
        ..step(id, Action::Map(map))
    }
}

fn map_step(id: &str, rng: &mut StdRng) -> Step {
    let mut inner = vec![
        step("", Action::Entry),
        node(&format!("{id}-a")),
        node(&format!("{id}-b")),
    ];
    inner[0].edges.push(edge(MAIN, 1));
    inner[1].edges.push(edge(MAIN, 2));
    map(id, inner, rng.random_range(1..4), rng.random_bool(0.5))
}

/// Depends on nothing but the visit, so that a repeated run gives the same.
fn random_behaviour(seed: u64) -> impl Fn(&str, u32) -> Result<NodeOutcome, NodeError> {
    move |key, attempt| match hash((seed, key, attempt)) % 18 {
        0 | 1 => Err(NodeError::transient("flaky", "try again")),
        2 => Err(NodeError::permanent("broken", "never works")),
        3 => on_port("other"),
        4 => on_port("again"),
        5 => Ok(NodeOutput::main(Vec::new()).into()),
        6 => Ok(NodeOutcome::Wait(Wait::Until(
            DateTime::from_timestamp(1_700_000_500, 0).expect("in range"),
        ))),
        wait @ (7 | 8) => Ok(NodeOutcome::Wait(Wait::Child {
            workflow: "child".to_owned(),
            version: None,
            input: json!(key),
            wait: wait == 7,
        })),
        _ => passes(key, attempt),
    }
}

#[test]
fn every_execution_ends_and_its_journal_tells_its_state() {
    for seed in 0..1000 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let graph = random_graph(rng);
        let behaviour = random_behaviour(seed);
        let mut world = World::new(graph, &behaviour);
        let end = world.play(rng, 0.0);
        assert!(end.status.is_final(), "seed {seed}");
    }
}

#[test]
fn crashes_lose_nothing_that_was_durable_and_repeat_no_recorded_effect() {
    for seed in 0..1000 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let graph = random_graph(rng);
        let behaviour = random_behaviour(seed);
        let mut world = World::new(graph, &behaviour);
        world.play(rng, 0.15);
        let mut recorded = HashSet::new();
        for row in &world.rows {
            assert!(
                recorded.insert((row.scope.clone(), row.step.clone(), row.visit, row.attempt)),
                "seed {seed}: recorded twice: {row:?}"
            );
            assert!(
                row.parent_seq.is_none_or(|parent| parent < row.seq),
                "seed {seed}: {row:?} before what led to it"
            );
        }
    }
}

#[test]
fn an_effect_whose_result_is_durable_is_not_performed_again() {
    let mut steps = vec![step("trigger", Action::Entry), node("pay"), node("tell")];
    steps[1].effect = EffectClass::Effectful;
    steps[2].effect = EffectClass::Effectful;
    steps[0].edges.push(edge(MAIN, 1));
    steps[1].edges.push(edge(MAIN, 2));
    let graph = graph(steps, Settings::default());
    for seed in 0..50 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let mut world = World::new(graph.clone(), &passes);
        world.perform(rng);
        world.save();
        world.crash(rng);
        world.play(rng, 0.0);
        assert_eq!(
            world.performed,
            [("pay/0".to_owned(), 1), ("tell/0".to_owned(), 1)]
        );
    }
}

#[test]
fn a_join_of_all_waits_for_both_branches_and_keeps_their_order() {
    let mut steps = vec![
        step("trigger", Action::Entry),
        node("a"),
        node("b"),
        node("both"),
    ];
    steps[0].edges.extend([edge(MAIN, 1), edge(MAIN, 2)]);
    join(&mut steps, 3, None, &[(1, MAIN), (2, MAIN)]);
    let graph = graph(steps, Settings::default());
    let named = |key: &str, _: u32| {
        Ok(NodeOutput::main(vec![Item::new(json!({"from": key})).paired(0)]).into())
    };
    for seed in 0..20 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let mut world = World::new(graph.clone(), &named);
        while world.rows.len() < 3 {
            assert!(world.output("both").is_none());
            world.perform(rng);
        }
        let key = RunKey {
            frame: 0,
            step: 3,
            visit: 0,
        };
        let from: Vec<Value> = world.execution.inputs(key)[0]
            .iter()
            .map(|item| item.json["from"].clone())
            .collect();
        assert_eq!(from, ["a/0", "b/0"]);
        world.play(rng, 0.0);
    }
}

#[test]
fn a_join_of_all_goes_on_without_a_branch_that_was_not_taken() {
    let mut steps = vec![
        step("trigger", Action::Entry),
        node("if"),
        node("yes"),
        node("store"),
    ];
    steps[0].edges.push(edge(MAIN, 1));
    steps[1].edges.push(edge("true", 2));
    join(&mut steps, 3, None, &[(2, MAIN), (1, "false")]);
    let graph = graph(steps, Settings::default());
    for (port, through) in [("true", "yes"), ("false", "if")] {
        let behaviour = |key: &str, attempt: u32| {
            if key.starts_with("if/") {
                on_port(port)
            } else {
                passes(key, attempt)
            }
        };
        let mut world = World::new(graph.clone(), &behaviour);
        let end = world.play(&mut StdRng::seed_from_u64(1), 0.0);
        assert_eq!(end.status, ExecutionStatus::Succeeded);
        let seq = world.output(through).expect("it ran").seq;
        assert_eq!(world.output("store").expect("it ran").parent_seq, Some(seq));
    }
}

#[test]
fn a_join_of_any_fires_once() {
    let mut steps = vec![
        step("trigger", Action::Entry),
        node("a"),
        node("b"),
        node("first"),
    ];
    steps[0].edges.extend([edge(MAIN, 1), edge(MAIN, 2)]);
    join(&mut steps, 3, Some(1), &[(1, MAIN), (2, MAIN)]);
    let graph = graph(steps, Settings::default());
    for seed in 0..20 {
        let mut world = World::new(graph.clone(), &passes);
        world.play(&mut StdRng::seed_from_u64(seed), 0.2);
        assert_eq!(
            world.rows.iter().filter(|row| row.step == "first").count(),
            1
        );
    }
}

#[test]
fn a_join_that_can_never_be_met_is_recorded_as_skipped() {
    let mut steps = vec![
        step("trigger", Action::Entry),
        node("a"),
        node("if"),
        node("two"),
    ];
    steps[0].edges.extend([edge(MAIN, 1), edge(MAIN, 2)]);
    join(&mut steps, 3, Some(2), &[(1, MAIN), (2, "true")]);
    let graph = graph(steps, Settings::default());
    let behaviour = |key: &str, attempt: u32| {
        if key.starts_with("if/") {
            on_port("false")
        } else {
            passes(key, attempt)
        }
    };
    for seed in 0..20 {
        let mut world = World::new(graph.clone(), &behaviour);
        let end = world.play(&mut StdRng::seed_from_u64(seed), 0.2);
        assert_eq!(end.status, ExecutionStatus::Succeeded);
        let two: Vec<_> = world
            .rows
            .iter()
            .filter(|row| row.step == "two")
            .map(|row| row.status)
            .collect();
        assert_eq!(two, [NodeRunStatus::Skipped]);
    }
}

#[test]
fn a_loop_ends_at_the_limit_of_node_runs() {
    let mut steps = vec![step("trigger", Action::Entry), node("again")];
    steps[0].edges.push(edge(MAIN, 1));
    steps[1].edges.push(edge(MAIN, 1));
    let graph = graph(
        steps,
        Settings {
            max_node_runs: 50,
            ..Settings::default()
        },
    );
    let mut world = World::new(graph, &passes);
    let end = world.play(&mut StdRng::seed_from_u64(1), 0.0);
    assert_eq!(end.error.expect("it failed")["code"], "max_node_runs");
    assert_eq!(world.rows.len(), 50);
}

#[test]
fn a_failed_attempt_is_tried_again_after_its_delay_and_then_routed() {
    let mut steps = vec![step("trigger", Action::Entry), node("call"), node("triage")];
    steps[0].edges.push(edge(MAIN, 1));
    steps[1].edges.push(edge(ERROR, 2));
    steps[1].on_error = OnError::Route;
    steps[1].retry = Retry {
        max_attempts: 3,
        initial: Duration::from_secs(10),
        ..Retry::default()
    };
    let graph = graph(steps, Settings::default());
    let behaviour = |key: &str, attempt: u32| match key {
        "call/0" => Err(NodeError::transient("http_status", "503")),
        _ => passes(key, attempt),
    };
    let mut world = World::new(graph, &behaviour);
    let end = world.play(&mut StdRng::seed_from_u64(1), 0.3);
    assert_eq!(end.status, ExecutionStatus::Succeeded);
    let calls: Vec<_> = world.rows.iter().filter(|row| row.step == "call").collect();
    assert_eq!(
        calls
            .iter()
            .map(|row| (row.attempt, row.status))
            .collect::<Vec<_>>(),
        [
            (1, NodeRunStatus::Failed),
            (2, NodeRunStatus::Failed),
            (3, NodeRunStatus::Failed)
        ]
    );
    assert!(calls[0].retry_at.is_some() && calls[2].retry_at.is_none());
    let routed: Value =
        serde_json::from_str(calls[2].output.as_deref().expect("it was routed")).expect("JSON");
    assert_eq!(routed[0]["json"]["n"], 1, "the input's item is still there");
    assert_eq!(
        routed[0]["json"]["error"],
        json!({"code": "http_status", "message": "503", "step": "call"})
    );
}

#[test]
fn a_map_keeps_order_and_its_limit_whatever_finishes_first() {
    for seed in 0..40 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let mut steps = vec![step("trigger", Action::Entry), map_step("each", rng)];
        steps[0].edges.push(edge(MAIN, 1));
        let graph = graph(steps, Settings::default());
        let behaviour = |key: &str, _: u32| {
            Ok(NodeOutput::main(vec![Item::new(json!({"key": key})).paired(0)]).into())
        };
        let mut world = World::new(graph, &behaviour);
        let end = world.play(rng, 0.1);
        let keys: Vec<_> = end
            .output
            .iter()
            .map(|item| item.json["key"].as_str().unwrap_or_default().to_owned())
            .collect();
        let expected: Vec<_> = (0..4)
            .map(|index| format!("each/0[{index}]/each-b/0"))
            .collect();
        assert_eq!(keys, expected, "seed {seed}");
    }
}

#[test]
fn a_map_fails_fast_or_collects() {
    for collect_errors in [false, true] {
        let mut inner = vec![step("", Action::Entry), node("task")];
        inner[0].edges.push(edge(MAIN, 1));
        let mut steps = vec![
            step("trigger", Action::Entry),
            map("each", inner, 2, collect_errors),
        ];
        steps[0].edges.push(edge(MAIN, 1));
        let graph = graph(steps, Settings::default());
        let behaviour = |key: &str, attempt: u32| match key {
            "each/0[1]/task/0" => Err(NodeError::permanent("bad", "no")),
            _ => passes(key, attempt),
        };
        for seed in 0..20 {
            let mut world = World::new(graph.clone(), &behaviour);
            let end = world.play(&mut StdRng::seed_from_u64(seed), 0.1);
            if collect_errors {
                assert_eq!(end.status, ExecutionStatus::Succeeded);
                assert_eq!(end.output[1].json["error"]["code"], "bad");
                assert_eq!(end.output[3].json["ok"], true);
            } else {
                assert_eq!(end.status, ExecutionStatus::Failed);
                assert_eq!(end.error.expect("it failed")["step"], "each");
            }
        }
    }
}

#[test]
fn a_step_that_must_not_run_twice_fails_after_a_crash() {
    let mut steps = vec![step("trigger", Action::Entry), node("once")];
    steps[0].edges.push(edge(MAIN, 1));
    steps[1].on_crash = OnCrash::Fail;
    let graph = graph(steps, Settings::default());
    let rng = &mut StdRng::seed_from_u64(1);
    let mut world = World::new(graph, &passes);
    assert!(
        world.waits.contains_key("once/0/1/started"),
        "the mark is saved before the step starts"
    );
    world.save();
    world.crash(rng);
    let end = world.play(rng, 0.0);
    assert_eq!(end.error.expect("it failed")["code"], "unknown_after_crash");
    assert!(world.waits.is_empty());
}

#[test]
fn cancelling_closes_everything_at_any_moment() {
    for seed in 0..300 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let graph = random_graph(rng);
        let behaviour = random_behaviour(seed);
        let mut world = World::new(graph, &behaviour);
        for _ in 0..rng.random_range(0..12) {
            world.perform(rng);
        }
        let over = world.end.is_some();
        world.decide(Event::CancelRequested { at: world.now });
        let end = world.end.clone().expect("cancel ends it at once");
        assert!(
            world.execution.runs.is_empty() && world.waits.is_empty(),
            "seed {seed}: {:?}",
            world.waits.keys()
        );
        assert!(
            over || end.status == ExecutionStatus::Cancelled,
            "seed {seed}"
        );
    }
}

#[test]
fn waiting_does_not_count_against_the_timeout() {
    let mut steps = vec![step("trigger", Action::Entry), node("nap"), node("after")];
    steps[0].edges.push(edge(MAIN, 1));
    steps[1].edges.push(edge(MAIN, 2));
    steps[1].uses = "wait.timer".into();
    let settings = Settings {
        timeout: Some(Duration::from_secs(60)),
        ..Settings::default()
    };
    let until = DateTime::from_timestamp(1_700_003_600, 0).expect("in range");
    let behaviour = |key: &str, attempt: u32| match key {
        "nap/0" => Ok(NodeOutcome::Wait(Wait::Until(until))),
        _ => passes(key, attempt),
    };
    let mut world = World::new(graph(steps, settings), &behaviour);
    let rng = &mut StdRng::seed_from_u64(1);
    world.perform(rng);
    assert_eq!(
        world.execution.is_waiting(),
        Some(Some(until)),
        "it needs no actor"
    );
    world.perform(rng);
    assert!(world.execution.deadline().expect("it has a timeout") > until);
}
