//! Compiled workflows, kept as long as somebody may run them.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use serde_json::Value;

use crate::{
    document::{self, workflow},
    documents::{Documents, StoredDocument},
    model::graph::{Graph, Trigger},
    node::NodeRegistry,
    schema::Schema,
    store::StoreError,
};

/// The kind under which workflows are stored.
pub const WORKFLOW: &str = "Workflow";

/// How many compiled versions are kept. Past it the memory is emptied: compiling again is cheap.
const COMPILED_MAX: usize = 10_000;

/// A version of a workflow, ready to run.
#[derive(Clone)]
pub struct Compiled {
    /// The steps.
    pub graph: Arc<Graph>,
    /// Its version.
    pub version: i32,
    /// What inputs must fit, when the workflow says.
    pub input_schema: Option<Arc<Schema>>,
    /// Whether the answer is always a list.
    pub answers_list: bool,
}

/// Compiles stored workflows, once each.
pub(crate) struct Graphs {
    documents: Documents,
    nodes: Arc<NodeRegistry>,
    compiled: RwLock<HashMap<(String, i32), Compiled>>,
}

impl Graphs {
    pub(crate) fn new(documents: Documents, nodes: Arc<NodeRegistry>) -> Self {
        Self { documents, nodes, compiled: RwLock::default() }
    }

    pub(crate) fn nodes(&self) -> &Arc<NodeRegistry> {
        &self.nodes
    }

    /// The current version, and whether it is enabled. `Corrupt` when what is stored no longer compiles.
    pub(crate) fn current(&self, name: &str) -> Result<Option<(Compiled, bool)>, StoreError> {
        let Some(document) = self.documents.find(WORKFLOW, name) else { return Ok(None) };
        Ok(Some((self.compile(&document)?, document.enabled)))
    }

    /// A given version.
    pub(crate) async fn version(&self, name: &str, version: i32) -> Result<Option<Compiled>, StoreError> {
        if let Some(compiled) = self.find(name, version) {
            return Ok(Some(compiled));
        }
        match self.documents.version(WORKFLOW, name, version).await? {
            Some(document) => self.compile(&document).map(Some),
            None => Ok(None),
        }
    }

    fn find(&self, name: &str, version: i32) -> Option<Compiled> {
        let compiled = self.compiled.read().unwrap_or_else(PoisonError::into_inner);
        compiled.get(&(name.to_owned(), version)).cloned()
    }

    fn compile(&self, stored: &StoredDocument) -> Result<Compiled, StoreError> {
        if let Some(compiled) = self.find(&stored.name, stored.version) {
            return Ok(compiled);
        }
        let corrupt = |reason: String| StoreError::Corrupt(format!("workflow {} version {}: {reason}", stored.name, stored.version));
        let graph = document::from_value((*stored.body).clone())
            .and_then(|document| workflow::compile(&document, &self.nodes))
            .map_err(|faults| corrupt(faults.first().map(ToString::to_string).unwrap_or_default()))?;
        let input_schema = input_schema(&graph).map(Schema::compile).transpose().map_err(corrupt)?;
        let compiled = Compiled {
            answers_list: answers_list(&graph),
            graph: Arc::new(graph),
            version: stored.version,
            input_schema: input_schema.map(Arc::new),
        };
        let mut all = self.compiled.write().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= COMPILED_MAX {
            all.clear();
        }
        all.insert((stored.name.clone(), stored.version), compiled.clone());
        Ok(compiled)
    }
}

/// The schema of the first trigger that has one.
fn input_schema(graph: &Graph) -> Option<&Value> {
    graph.triggers.iter().find_map(|trigger| match trigger {
        Trigger::Manual { input_schema } => input_schema.as_ref(),
        Trigger::Webhook(webhook) => webhook.input_schema.as_ref(),
    })
}

fn answers_list(graph: &Graph) -> bool {
    graph.triggers.iter().any(|trigger| match trigger {
        Trigger::Webhook(webhook) => webhook.response_schema.as_ref().is_some_and(|schema| schema.get("type") == Some(&Value::from("array"))),
        Trigger::Manual { .. } => false,
    })
}
