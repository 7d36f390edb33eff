//! Expressions: `{{ … }}` in parameters, compiled once and evaluated per item.

use std::{collections::HashMap, sync::Arc};

use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::{item::Items, node::NodeError};

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
pub struct Template {}

/// Which steps a template's expressions name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    /// Names in `$('…')` and `$node["…"]`, once each.
    pub steps: Vec<String>,
    /// Some name is computed: any step may be meant.
    pub any_step: bool,
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
    /// Compiles every string in `value` except below the top-level names in `verbatim`. Finds all syntax errors.
    pub fn compile(value: &Value, verbatim: &[&str]) -> Result<Self, Vec<TemplateFault>> {
        let _ = (value, verbatim);
        unimplemented!()
    }

    /// Which steps its expressions name.
    pub fn references(&self) -> &References {
        unimplemented!()
    }

    /// Whether it can be evaluated without a script engine: cheap enough to do inside an actor.
    pub fn is_native(&self) -> bool {
        unimplemented!()
    }

    /// The value with every expression evaluated for item `index` of the scope's input.
    pub fn resolve(&self, scope: &Scope, index: usize) -> Result<Value, ExpressionError> {
        let _ = (scope, index);
        unimplemented!()
    }

    /// Top-level member `name` only. `Null` when absent.
    pub fn resolve_field(
        &self,
        name: &str,
        scope: &Scope,
        index: usize,
    ) -> Result<Value, ExpressionError> {
        let _ = (name, scope, index);
        unimplemented!()
    }
}
