//! stub
use super::{Document, Fault, reader::Faults};
use crate::{model::graph::Graph, node::NodeRegistry};
/// Compiles a workflow. Finds all faults.
pub fn compile(document: &Document, nodes: &NodeRegistry) -> Result<Graph, Vec<Fault>> {
    let _ = (document, nodes);
    unimplemented!()
}
pub(super) fn claim_webhooks<'d>(
    _: &Graph,
    _: &'d Document,
    _: &mut std::collections::HashMap<String, &'d Document>,
    _: &Faults,
) {
}
