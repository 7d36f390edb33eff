//! Tools: what makes a node or a workflow callable by a model.

use std::sync::Arc;

use callboard_runtime::{documents::Documents, executions::Executions, tool::Tool};
use serde_json::Value;

use crate::model::agent::{ToolSource, ToolTarget};

mod node;
mod workflow;

pub use node::NodeTool;
pub use workflow::WorkflowTool;

/// What tools are made with.
#[derive(Clone)]
pub struct Workshop {
    /// Runs workflows.
    pub executions: Executions,
    /// Descriptions of workflows.
    pub documents: Documents,
    /// `$env` of expressions.
    pub env: Arc<Value>,
}

impl Workshop {
    /// The tool that a document declares. A workflow that does not exist (yet) makes a tool whose calls fail.
    pub fn build(&self, source: &ToolSource) -> Arc<dyn Tool> {
        match &source.target {
            ToolTarget::Node(target) => {
                Arc::new(NodeTool::new(source, target.clone(), self.env.clone()))
            }
            ToolTarget::Workflow(name) => Arc::new(WorkflowTool::new(
                source,
                name,
                self.executions.clone(),
                &self.documents,
            )),
        }
    }
}
