//! Expressions: `{{ … }}` in parameters, compiled once and evaluated per item, and the scripts of `code` steps.
//!
//! Both are JavaScript. Plain look-ups and operators over them are evaluated natively; everything else by QuickJS, one
//! engine per thread, with limits on time, memory and stack. Nothing is reachable from a script but the data of its
//! scope and the language itself, and nothing it does is seen by the next evaluation. A look-up such as `$json.a.b`
//! never fails: what is missing is undefined, also below undefined. Elsewhere JavaScript's own rules hold.

mod check;
mod engine;
mod host;
mod lookup;
mod names;
mod native;
mod program;
pub mod script;
mod template;
#[cfg(test)]
mod tests;
mod time;
mod token;
mod value;

use std::{collections::HashMap, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use tokio::sync::Semaphore;

use self::template::{Compiler, Evaluation, Part};
use crate::{item::Items, node::NodeError};

/// How long one expression may take. Operators and built-ins that work on megabytes at once are only stopped between
/// two of them.
pub const EXPRESSION_TIME_MAX: Duration = Duration::from_millis(250);
/// How long one run of a script may take, with the same reservation.
pub const SCRIPT_TIME_MAX: Duration = Duration::from_secs(10);
/// Memory of a script engine, compiled functions and the data of an evaluation included.
pub const MEMORY_BYTES_MAX: usize = 64 << 20;
/// Length of one expression.
pub const EXPRESSION_BYTES_MAX: usize = 64 << 10;
/// Length of one script.
pub const SCRIPT_BYTES_MAX: usize = 256 << 10;
/// How many evaluations there may be at once on threads of their own, besides node runs that compute.
pub const ELSEWHERE_MAX: usize = 16;
/// Size of a text or, as JSON, of a value that an evaluation gives.
pub const TEXT_BYTES_MAX: usize = 16 << 20;

/// Evaluates on a thread meant for that, so that a slow script holds up no other work. `None` when it panicked. At most
/// [`ELSEWHERE_MAX`] do so at once: each thread has an engine of its own, with its memory.
pub async fn elsewhere<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    static PLACES: Semaphore = Semaphore::const_new(ELSEWHERE_MAX);
    // It is never closed; if it were, evaluating without a place is right.
    let place = PLACES.acquire().await.ok();
    let done = tokio::task::spawn_blocking(move || {
        let _place = place;
        work()
    });
    match done.await {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::error!(%error, "an evaluation panicked");
            None
        }
    }
}

/// What the expressions of one node run may see. A snapshot: nothing in it changes while the node runs.
#[derive(Clone, Debug)]
pub struct Scope {
    /// The items `$json`, `$input` and `$itemIndex` speak of.
    pub input: Items,
    /// `$execution`: `{id, mode, resume_url?}`.
    pub execution: Arc<Value>,
    /// `$workflow`: `{id, name, version}`.
    pub workflow: Arc<Value>,
    /// `$trigger`: `{body, query, headers, params, method, path}`.
    pub trigger: Arc<Value>,
    /// `$vars`.
    pub vars: Arc<Value>,
    /// `$env`: only the names the operator allowed.
    pub env: Arc<Value>,
    /// `$now`; `$today` is its midnight in `timezone`.
    pub now: DateTime<Utc>,
    /// IANA name.
    pub timezone: Arc<str>,
    /// `$runIndex`.
    pub run_index: u32,
    /// What `$('step')` gives, for the steps the template refers to and that have run.
    pub steps: HashMap<Arc<str>, StepOutput>,
}

impl Default for Scope {
    /// Nothing to see: no items, empty objects, 1970 in UTC.
    fn default() -> Self {
        let nothing = Arc::new(Value::Object(Map::new()));
        Self {
            input: Items::default(),
            execution: Arc::clone(&nothing),
            workflow: Arc::clone(&nothing),
            trigger: Arc::clone(&nothing),
            vars: Arc::clone(&nothing),
            env: nothing,
            now: DateTime::UNIX_EPOCH,
            timezone: "UTC".into(),
            run_index: 0,
            steps: HashMap::new(),
        }
    }
}

/// Output of a step as another step sees it.
#[derive(Clone, Debug)]
pub struct StepOutput {
    /// Items of the port that fired (the first, when several did) in the step's latest visit.
    pub items: Items,
    /// For each item of [`Scope::input`], the index in `items` it descends from; `None` where lineage is lost.
    pub paired: Arc<Vec<Option<u32>>>,
}

/// Why an expression gave no value. Code `expression_error` of the API.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ExpressionError {
    /// What happened, for people.
    pub message: String,
    /// Where in the parameters: names and indexes.
    pub path: Vec<String>,
    /// The expression's text.
    pub expression: String,
}

impl From<ExpressionError> for NodeError {
    fn from(error: ExpressionError) -> Self {
        let at = if error.path.is_empty() {
            String::new()
        } else {
            format!("{}: ", error.path.join("."))
        };
        NodeError::permanent(
            "expression_error",
            format!("{at}{} in `{}`", error.message, error.expression),
        )
    }
}

/// Parameters whose strings may hold expressions, compiled.
#[derive(Debug)]
pub struct Template {
    root: Part,
    references: References,
    native: bool,
}

/// Which steps a template's expressions name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    /// Names in `$('…')` and `$node["…"]`, once each.
    pub steps: Vec<String>,
    /// Some name is computed: any step may be meant.
    pub any_step: bool,
}

impl References {
    /// Adds what `other` names.
    pub fn merge(&mut self, other: &References) {
        for step in &other.steps {
            if !self.steps.contains(step) {
                self.steps.push(step.clone());
            }
        }
        self.any_step |= other.any_step;
    }

    /// Whether step `name` may be meant.
    pub fn mentions(&self, name: &str) -> bool {
        self.any_step || self.steps.iter().any(|step| step == name)
    }
}

/// A syntax error, found offline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateFault {
    /// Where in the value: names and indexes.
    pub path: Vec<String>,
    /// Byte offset of the fault within that string.
    pub offset: usize,
    /// What is wrong.
    pub message: String,
}

impl Template {
    /// Compiles every string in `value` except below the top-level names in `verbatim`, and member names. Finds all
    /// syntax errors; a string with an unclosed quote or bracket is not searched further. `\{{` stands for `{{`.
    /// A string that is exactly one expression keeps the expression's type, and an empty `{{ }}` is undefined.
    pub fn compile(value: &Value, verbatim: &[&str]) -> Result<Self, Vec<TemplateFault>> {
        let mut compiler = Compiler::default();
        let root = compiler.root(value, verbatim);
        if !compiler.faults.is_empty() {
            return Err(compiler.faults);
        }
        Ok(Self {
            root,
            references: compiler.references,
            native: !compiler.needs_script,
        })
    }

    /// Which steps its expressions name.
    pub fn references(&self) -> &References {
        &self.references
    }

    /// Whether it can be evaluated without a script engine: cheap enough to do inside an actor. Holds for every
    /// scope: what is evaluated natively never falls back to the engine.
    pub fn is_native(&self) -> bool {
        self.native
    }

    /// The value with every expression evaluated for item `index` of the scope's input. Undefined is dropped from
    /// objects, is null in lists and at the top, and empty inside text. Repeating it is harmless. Unless the template
    /// is native, each expression may block for [`EXPRESSION_TIME_MAX`].
    pub fn resolve(&self, scope: &Scope, index: usize) -> Result<Value, ExpressionError> {
        let value = self.root.resolve(&Evaluation::new(scope, index))?;
        Ok(value.unwrap_or(Value::Null))
    }

    /// Top-level member `name` only, as in [`Template::resolve`]. `Null` when absent or undefined.
    pub fn resolve_field(
        &self,
        name: &str,
        scope: &Scope,
        index: usize,
    ) -> Result<Value, ExpressionError> {
        let value = self
            .root
            .resolve_field(name, &Evaluation::new(scope, index))?;
        Ok(value.unwrap_or(Value::Null))
    }
}

/// As much of a source text as an error shows.
fn excerpt(source: &str) -> String {
    const CHARS_MAX: usize = 200;
    let mut text: String = source.trim().chars().take(CHARS_MAX + 1).collect();
    if text.chars().count() > CHARS_MAX {
        text.pop();
        text.push('…');
    }
    text
}
