//! Workflow documents: checked as a whole and compiled into a [`Graph`].

use super::{Document, Fault};
use crate::{model::graph::Graph, node::NodeRegistry};

/// Compiles a workflow. Finds all faults.
pub fn compile(document: &Document, nodes: &NodeRegistry) -> Result<Graph, Vec<Fault>> {
    let _ = (document, nodes);
    unimplemented!()
}
