//! Compiled workflows: immutable, shared by every execution of one version.

use std::{fmt, sync::Arc, time::Duration};

use serde_json::Value;

use crate::{
    expression::Template,
    node::{AnyNode, EffectClass},
    tool::OnCrash,
};

/// Index of a step within its [`Body`]. 0 is the entry: `trigger` at the top, the element inside a `map`.
pub type StepIndex = usize;

/// One version of a workflow, compiled.
#[derive(Debug)]
pub struct Graph {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `metadata.required_scope`: what a caller of its webhooks needs instead of `workflows:run`.
    pub required_scope: Option<String>,
    /// How it may be started besides by hand.
    pub triggers: Vec<Trigger>,
    /// Limits and defaults of its executions.
    pub settings: Settings,
    /// The steps.
    pub body: Arc<Body>,
}

/// Steps that run as a unit: a whole workflow, or what `map` does for one element.
#[derive(Debug)]
pub struct Body {
    /// All steps; the entry first, then in document order.
    pub steps: Vec<Step>,
    /// `reach[a]` has bit `b` set when a path of at least one edge leads from `a` to `b`.
    pub reach: Vec<StepSet>,
    /// The steps that have a join.
    pub joins: Vec<StepIndex>,
}

/// A set of step indexes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepSet(Vec<u64>);

impl StepSet {
    /// The empty set over `len` steps.
    pub fn new(len: usize) -> Self {
        Self(vec![0; len.div_ceil(64)])
    }

    /// Adds a step. Says whether it was new.
    pub fn insert(&mut self, step: StepIndex) -> bool {
        let (word, bit) = (step / 64, 1 << (step % 64));
        let new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        new
    }

    /// Whether the step is in it.
    pub fn contains(&self, step: StepIndex) -> bool {
        self.0[step / 64] & (1 << (step % 64)) != 0
    }
}

impl Body {
    /// Computes what is derived from the steps.
    pub fn new(steps: Vec<Step>) -> Self {
        let reach = (0..steps.len())
            .map(|from| {
                let mut seen = StepSet::new(steps.len());
                let mut pending = vec![from];
                while let Some(step) = pending.pop() {
                    pending.extend(
                        steps[step]
                            .edges
                            .iter()
                            .map(|edge| edge.to)
                            .filter(|&to| seen.insert(to)),
                    );
                }
                seen
            })
            .collect();
        let joins = (0..steps.len())
            .filter(|&step| steps[step].join.is_some())
            .collect();
        Self {
            steps,
            reach,
            joins,
        }
    }

    /// The step with this id.
    pub fn find(&self, id: &str) -> Option<StepIndex> {
        self.steps.iter().position(|step| &*step.id == id)
    }
}

/// One step, compiled.
pub struct Step {
    /// Unique in the whole workflow. The entry's is `trigger` at the top and empty inside a `map`.
    pub id: Arc<str>,
    /// As written under `uses`.
    pub uses: Arc<str>,
    /// What it does.
    pub action: Action,
    /// What must be durable before it starts, and before what follows does.
    pub effect: EffectClass,
    /// `with` as written.
    pub with: Arc<Value>,
    /// `with`, compiled.
    pub template: Arc<Template>,
    /// Where its items go. Several edges of one port each get all of that port's items.
    pub edges: Vec<Edge>,
    /// For a step with several `after` entries: how they come together.
    pub join: Option<Join>,
    /// What follows a failed attempt.
    pub retry: Retry,
    /// The longest one attempt may take.
    pub timeout: Option<Duration>,
    /// What follows the last failed attempt.
    pub on_error: OnError,
    /// What follows a crash in mid-run.
    pub on_crash: OnCrash,
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}) -> {:?}", self.id, self.uses, self.edges)
    }
}

/// What a step does.
pub enum Action {
    /// Passes on what started the body.
    Entry,
    /// Runs a node.
    Node(AnyNode),
    /// Runs `body` once per element of the parameter `items`.
    Map(Map),
}

/// The parts of a `map` step.
pub struct Map {
    /// What is done for each element.
    pub body: Arc<Body>,
    /// How many elements are worked on at once. At least 1.
    pub max_parallel: usize,
    /// Whether a failed element becomes `{"error": …}` instead of failing the step.
    pub collect_errors: bool,
}

/// A connection from a step's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edge {
    /// The port it leaves from.
    pub port: Arc<str>,
    /// The step it leads to.
    pub to: StepIndex,
    /// `Some(n)`: it is the n-th input of the target's join. `None`: each arrival is a visit of its own.
    pub slot: Option<usize>,
}

/// How several predecessors come together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    /// Where each input comes from, in the order of `after`.
    pub sources: Vec<(StepIndex, Arc<str>)>,
    /// How many must arrive. `None`: all that still can.
    pub need: Option<usize>,
}

/// What follows a failed attempt that may be tried again.
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    /// Attempts in all, the first included. 1: never again.
    pub max_attempts: u32,
    /// Delay before the second attempt.
    pub initial: Duration,
    /// No delay is longer.
    pub max: Duration,
    /// Whether each delay is twice the one before; else all are `initial`.
    pub exponential: bool,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            max_attempts: 1,
            initial: Duration::from_millis(500),
            max: Duration::from_secs(30),
            exponential: true,
        }
    }
}

/// What follows the last failed attempt of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// The execution fails.
    #[default]
    Fail,
    /// The error item leaves on `main`.
    Continue,
    /// The error item leaves on `error`.
    Route,
}

/// Limits and defaults of a workflow's executions.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The longest an execution may run, waiting not counted.
    pub timeout: Option<Duration>,
    /// How many node runs may be in progress at once.
    pub max_parallel: usize,
    /// How many node runs an execution may record before it fails with `max_node_runs`.
    pub max_node_runs: u32,
    /// IANA name; what `$now` and `$today` are in.
    pub timezone: Arc<str>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            timeout: None,
            max_parallel: 16,
            max_node_runs: 10_000,
            timezone: "UTC".into(),
        }
    }
}

/// A way to start a workflow.
#[derive(Clone, Debug, PartialEq)]
pub enum Trigger {
    /// By hand, through the API or another workflow. Always there, whether written or not.
    Manual {
        /// JSON Schema of the input.
        input_schema: Option<Value>,
    },
    /// By an HTTP request to `/hooks/{path}`.
    Webhook(Webhook),
}

/// A webhook trigger.
#[derive(Clone, Debug, PartialEq)]
pub struct Webhook {
    /// Starts with `/`; segments such as `{id}` are parameters.
    pub path: String,
    /// Upper case.
    pub method: String,
    /// What the caller is answered, and when.
    pub respond: Respond,
    /// Whether it needs no key.
    pub public: bool,
    /// JSON Schema of the body.
    pub input_schema: Option<Value>,
    /// JSON Schema that the answer is shaped by.
    pub response_schema: Option<Value>,
}

/// When the caller of a webhook is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Respond {
    /// When the execution ended, with its output.
    #[default]
    LastStep,
    /// At once, with 202.
    Immediately,
    /// When a `respond` step ran.
    RespondStep,
    /// With the execution's events, as they happen.
    Stream,
}
