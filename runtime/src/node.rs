//! The contract of node types, and the registry that holds them.
//!
//! A node receives lists of items, one list per input, and returns lists of items, one per output port.
//! Nodes know nothing of the store, of other node types, or of retries: they say what kind of failure
//! they met, and the engine decides what follows.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::{
    expression::{self, Scope, Template},
    id::ExecutionId,
    item::{Item, Items},
};

/// The port a node's items leave on unless it says otherwise.
pub const MAIN: &str = "main";
/// The port that carries what a failed step says under `on_error: route`.
pub const ERROR: &str = "error";

/// What must be durable before what (`ARCHITECTURE.md`, effect classes).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EffectClass {
    /// Touches nothing outside. Running it again is harmless, its result may be saved late.
    Pure,
    /// Reads from outside. Running it again is harmless; its result is saved before the next effectful node starts.
    Idempotent,
    /// Changes something outside. Everything upstream is committed before it starts, and its result before
    /// anything downstream does.
    Effectful,
}

/// What a node type tells about itself.
#[derive(Clone, Debug, Serialize)]
pub struct NodeType {
    /// As documents write it under `uses`, such as `http.request`.
    pub name: &'static str,
    /// Raised when parameters or output change their meaning.
    pub version: u32,
    /// One sentence for people who choose a node.
    pub summary: &'static str,
    /// The class when [`Node::effect`] does not look at the parameters.
    pub effect: EffectClass,
    /// JSON Schema of the parameters under `with`; an object schema whose `properties` are all of them.
    pub parameters: Value,
    /// Whether each predecessor is an input of its own; otherwise their items are put one after the other.
    pub several_inputs: bool,
}

/// The ports a node may emit on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// Exactly these (`error` is always possible besides).
    Named(Vec<String>),
    /// Any name, known only when it runs.
    Open,
}

/// What every node type tells the compiler of workflows.
pub trait Node: Send + Sync + 'static {
    /// Its name, parameters and class. Must not change while the process lives.
    fn node_type(&self) -> NodeType;

    /// The class of one step, which may depend on its parameters. `with` is as written: any string may be an expression.
    fn effect(&self, with: &Value) -> EffectClass {
        let _ = with;
        self.node_type().effect
    }

    /// The ports of one step, which may depend on its parameters as written.
    fn ports(&self, with: &Value) -> Ports {
        let _ = with;
        Ports::Named(vec![MAIN.to_owned()])
    }

    /// Faults of the parameters as written, beyond unknown names and wrong types, which the schema finds.
    fn check(&self, with: &Value) -> Vec<ParameterFault> {
        let _ = with;
        Vec::new()
    }

    /// Parameters that are not templates but programs or nested documents: kept as written, never evaluated.
    fn verbatim(&self) -> &'static [&'static str] {
        &[]
    }
}

/// A fault in a step's parameters, found offline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterFault {
    /// Where below `with`: names and indexes.
    pub path: Vec<String>,
    /// What is wrong, as a sentence.
    pub message: String,
}

/// A node that computes. It must be [`EffectClass::Pure`]; it runs inside the execution's actor when its
/// input is small and its parameters need no script, else on a thread for blocking work.
pub trait PureNode: Node {
    /// Computes the output. Must not block on anything outside.
    fn run(&self, input: &NodeInput) -> Result<NodeOutcome, NodeError>;

    /// Whether [`PureNode::run`] may take long however small the input, as a script may.
    fn may_be_slow(&self) -> bool {
        false
    }
}

/// A node that does I/O. Each run is an actor of its own; cancelling drops the future.
#[async_trait]
pub trait AsyncNode: Node {
    /// Does the work. May be called again with the same idempotency key after a crash or a failure.
    async fn run(&self, input: NodeInput) -> Result<NodeOutcome, NodeError>;
}

/// Which try of which visit to which step of which execution this is.
#[derive(Clone, Debug)]
pub struct NodeRunIdentity {
    /// The execution.
    pub execution_id: ExecutionId,
    /// Name of its workflow.
    pub workflow: Arc<str>,
    /// Id of the step.
    pub step: Arc<str>,
    /// How often the step was entered before in this execution.
    pub visit: u32,
    /// 1 for the first try of this visit.
    pub attempt: u32,
    /// The same for every attempt of this visit, on every host: `execution/step/visit`.
    pub idempotency_key: Arc<str>,
}

/// Everything one node run may use.
#[derive(Clone)]
pub struct NodeInput {
    /// Who runs.
    pub identity: NodeRunIdentity,
    /// One list per input; at least one.
    pub inputs: Vec<Items>,
    /// The step's parameters.
    pub parameters: Parameters,
    /// Cancelled when the execution is, or when the attempt timed out.
    pub cancel: CancellationToken,
    /// The time the run started: all it may know of the clock.
    pub now: DateTime<Utc>,
}

impl NodeInput {
    /// Items of the first input.
    pub fn items(&self) -> &Items {
        &self.inputs[0]
    }

    /// The typed parameters as they read for item `index` of the first input.
    pub fn parameters<P: DeserializeOwned>(&self, index: usize) -> Result<P, NodeError> {
        self.parameters.resolve(index)
    }

    /// As [`NodeInput::parameters`], for nodes that do I/O: a script among them does not hold up the runtime.
    pub async fn parameters_elsewhere<P>(&self, index: usize) -> Result<P, NodeError>
    where
        P: DeserializeOwned + Send + 'static,
    {
        if self.parameters.template.is_native() {
            return self.parameters(index);
        }
        let parameters = self.parameters.clone();
        expression::elsewhere(move || parameters.resolve(index))
            .await
            .unwrap_or_else(|| {
                let message = "the parameters could not be read for an internal error";
                Err(NodeError::permanent("panic", message))
            })
    }

    /// Fails when the run was cancelled or has taken too long. For loops that may run long; reading parameters checks
    /// it, too.
    pub fn check_cancelled(&self) -> Result<(), NodeError> {
        check(&self.cancel)
    }
}

fn check(cancel: &CancellationToken) -> Result<(), NodeError> {
    if cancel.is_cancelled() {
        Err(NodeError::Cancelled)
    } else {
        Ok(())
    }
}

/// A step's parameters: a compiled template and what its expressions may see.
#[derive(Clone)]
pub struct Parameters {
    /// `with`, compiled once per workflow version.
    pub template: Arc<Template>,
    /// What expressions see.
    pub scope: Arc<Scope>,
    /// `with` as written.
    pub written: Arc<Value>,
    /// Cancelled with the node run: nothing more is evaluated then.
    pub cancel: CancellationToken,
}

impl Parameters {
    /// The parameters for item `index`, with every expression evaluated.
    pub fn value(&self, index: usize) -> Result<Value, NodeError> {
        check(&self.cancel)?;
        self.template
            .resolve(&self.scope, index)
            .map_err(NodeError::from)
    }

    /// One parameter for item `index`; the others are not evaluated. `Null` when absent.
    pub fn field(&self, name: &str, index: usize) -> Result<Value, NodeError> {
        check(&self.cancel)?;
        self.template
            .resolve_field(name, &self.scope, index)
            .map_err(NodeError::from)
    }

    /// [`Parameters::value`], read as `P`.
    pub fn resolve<P: DeserializeOwned>(&self, index: usize) -> Result<P, NodeError> {
        serde_json::from_value(self.value(index)?)
            .map_err(|fault| NodeError::permanent("invalid_parameters", fault.to_string()))
    }

    /// One parameter exactly as written, for programs and for names.
    pub fn written(&self, name: &str) -> Option<&Value> {
        self.written.get(name)
    }
}

/// How a node run came out when it did not fail.
#[derive(Clone, Debug)]
pub enum NodeOutcome {
    /// It is done.
    Output(NodeOutput),
    /// It goes on later: the engine keeps the wait in a row and the run costs nothing meanwhile.
    Wait(Wait),
}

/// What left a node.
#[derive(Clone, Debug, Default)]
pub struct NodeOutput {
    /// Items by port. A port without items does not fire.
    pub ports: Vec<(Arc<str>, Vec<Item>)>,
    /// What the caller who started the execution is answered, if this node answers.
    pub response: Option<Response>,
}

impl NodeOutput {
    /// Items on the main port.
    pub fn main(items: Vec<Item>) -> Self {
        Self {
            ports: vec![(MAIN.into(), items)],
            response: None,
        }
    }
}

impl From<NodeOutput> for NodeOutcome {
    fn from(output: NodeOutput) -> Self {
        Self::Output(output)
    }
}

/// An HTTP answer made by a workflow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// 100..=599.
    pub status: u16,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    /// A string is sent as text, everything else as JSON.
    pub body: Value,
}

/// What a node run may wait for.
#[derive(Clone, Debug, PartialEq)]
pub enum Wait {
    /// A point in time. The input's items then leave on `main`.
    Until(DateTime<Utc>),
    /// The end of another execution, started on this node's behalf exactly once. Its output's items leave on
    /// `main`; a failed child fails this run with code `child_failed`.
    Child {
        /// Name of the workflow to run.
        workflow: String,
        /// A version, or the current one.
        version: Option<i32>,
        /// Its input; a list is one item per element.
        input: Value,
        /// Whether to wait for its end. When not, `{execution_id}` leaves on `main` at once.
        wait: bool,
    },
}

/// Why a node run failed, and what that allows.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NodeError {
    /// May work when tried again.
    #[error("{message}")]
    Transient {
        /// A stable name, such as `timeout` or `http_status`.
        code: String,
        /// For people; no secrets.
        message: String,
        /// The least delay the other side asked for.
        retry_after: Option<Duration>,
        /// Members for the error item besides `code`, `message` and `step`, such as `status`.
        details: Option<Box<Value>>,
    },
    /// Will not work however often it is tried.
    #[error("{message}")]
    Permanent {
        /// A stable name, such as `expression_error` or `invalid_parameters`.
        code: String,
        /// For people; no secrets.
        message: String,
        /// Members for the error item besides `code`, `message` and `step`.
        details: Option<Box<Value>>,
    },
    /// It was told to stop.
    #[error("cancelled")]
    Cancelled,
}

impl NodeError {
    /// A failure that trying again may cure.
    pub fn transient(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Transient {
            code: code.into(),
            message: message.into(),
            retry_after: None,
            details: None,
        }
    }

    /// A failure that trying again cannot cure.
    pub fn permanent(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Permanent {
            code: code.into(),
            message: message.into(),
            details: None,
        }
    }
}

/// A node type of either kind.
#[derive(Clone)]
pub enum AnyNode {
    /// Computes.
    Pure(Arc<dyn PureNode>),
    /// Does I/O.
    Async(Arc<dyn AsyncNode>),
}

impl AnyNode {
    /// What the node type tells about itself.
    pub fn node(&self) -> &dyn Node {
        match self {
            Self::Pure(node) => node.as_ref(),
            Self::Async(node) => node.as_ref(),
        }
    }
}

/// All node types of a process, by name. Filled once at start.
#[derive(Clone, Default)]
pub struct NodeRegistry {
    nodes: HashMap<&'static str, AnyNode>,
}

impl NodeRegistry {
    /// Adds a node type that computes.
    ///
    /// # Panics
    /// When the name is taken: two meanings of one name are a mistake in the program.
    pub fn pure(&mut self, node: impl PureNode) -> &mut Self {
        self.insert(AnyNode::Pure(Arc::new(node)))
    }

    /// Adds a node type that does I/O. Panics as [`NodeRegistry::pure`] does.
    pub fn asynchronous(&mut self, node: impl AsyncNode) -> &mut Self {
        self.insert(AnyNode::Async(Arc::new(node)))
    }

    fn insert(&mut self, node: AnyNode) -> &mut Self {
        let name = node.node().node_type().name;
        assert!(
            self.nodes.insert(name, node).is_none(),
            "node type {name} is registered twice"
        );
        self
    }

    /// The node type of this name.
    pub fn find(&self, name: &str) -> Option<&AnyNode> {
        self.nodes.get(name)
    }

    /// All names, in no order.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.nodes.keys().copied()
    }
}
