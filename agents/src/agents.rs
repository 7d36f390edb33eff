//! Agents ready for use: documents compiled, tools built, schemas compiled. Kept in memory per version.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use callboard_runtime::{
    document,
    documents::{Documents, StoredDocument},
    node::NodeRegistry,
    schema::Schema,
    store::StoreError,
    tool::Tool,
};

use crate::{
    model::{
        agent::{AgentDefinition, compile},
        spec::{AgentSpec, ToolEntry},
    },
    sessions::SessionError,
    tool::Workshop,
};

/// How many versions are kept.
const KEPT_MAX: usize = 512;

/// An agent with its tools.
pub struct PreparedAgent {
    /// What the state machine knows.
    pub spec: Arc<AgentSpec>,
    /// What it calls, in the order of `spec.tools`.
    pub tools: Vec<Arc<dyn Tool>>,
}

impl PreparedAgent {
    /// The tool of this name.
    pub fn tool(&self, name: &str) -> Option<&Arc<dyn Tool>> {
        self.tools.iter().find(|tool| tool.spec().name == name)
    }
}

/// All agents.
pub struct Agents {
    documents: Documents,
    nodes: Arc<NodeRegistry>,
    workshop: Workshop,
    kept: Mutex<HashMap<(String, i32), Kept>>,
}

struct Kept {
    /// [`Documents::changes`] when it was made: a workflow that is a tool may have changed since.
    changes: u64,
    agent: Arc<PreparedAgent>,
}

impl Agents {
    /// None is prepared yet.
    pub fn new(documents: Documents, nodes: Arc<NodeRegistry>, workshop: Workshop) -> Self {
        Self {
            documents,
            nodes,
            workshop,
            kept: Mutex::default(),
        }
    }

    /// The current version of an agent that may take turns.
    pub fn current(&self, name: &str) -> Result<Arc<PreparedAgent>, SessionError> {
        let stored = self
            .documents
            .find("Agent", name)
            .ok_or_else(|| SessionError::UnknownAgent(name.to_owned()))?;
        if !stored.enabled {
            return Err(SessionError::AgentDisabled(name.to_owned()));
        }
        self.prepare(&stored).map_err(SessionError::Invalid)
    }

    /// A given version, enabled or not: a turn ends with the agent that it began with. `None` when it is gone or
    /// cannot be read by this program.
    pub async fn version(
        &self,
        name: &str,
        version: i32,
    ) -> Result<Option<Arc<PreparedAgent>>, StoreError> {
        let Some(stored) = self.documents.version("Agent", name, version).await? else {
            return Ok(None);
        };
        Ok(self
            .prepare(&stored)
            .inspect_err(|fault| tracing::warn!(agent = name, version, fault, "unusable agent"))
            .ok())
    }

    fn prepare(&self, stored: &StoredDocument) -> Result<Arc<PreparedAgent>, String> {
        let changes = self.documents.changes();
        let key = (stored.name.clone(), stored.version);
        let kept = |kept: &HashMap<_, Kept>| {
            kept.get(&key)
                .filter(|kept| kept.changes == changes)
                .map(|kept| Arc::clone(&kept.agent))
        };
        if let Some(agent) = kept(&self.kept.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(agent);
        }
        let agent = Arc::new(self.build(stored)?);
        let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= KEPT_MAX {
            all.clear();
        }
        all.insert(
            key.clone(),
            Kept {
                changes,
                agent: Arc::clone(&agent),
            },
        );
        Ok(agent)
    }

    fn build(&self, stored: &StoredDocument) -> Result<PreparedAgent, String> {
        let first = |faults: Vec<document::Fault>| {
            let first = faults.first().map(ToString::to_string).unwrap_or_default();
            format!("agent `{}` is faulty: {first}", stored.name)
        };
        let document = document::from_value((*stored.body).clone()).map_err(first)?;
        let definition = compile(&document, &self.nodes).map_err(first)?;
        self.equip(definition, stored.version)
    }

    fn equip(&self, definition: AgentDefinition, version: i32) -> Result<PreparedAgent, String> {
        let tools: Vec<_> = definition
            .tools
            .iter()
            .map(|source| self.workshop.build(source))
            .collect();
        let entries = tools
            .iter()
            .map(|tool| {
                let spec = tool.spec().clone();
                let schema = Schema::compile(&spec.parameters)
                    .map_err(|fault| format!("the schema of tool `{}`: {fault}", spec.name))?;
                Ok(ToolEntry {
                    schema: Arc::new(schema),
                    spec,
                })
            })
            .collect::<Result<_, String>>()?;
        let spec = AgentSpec {
            name: definition.name,
            version,
            models: definition.models,
            instructions: definition.instructions,
            tools: entries,
            output: definition.output,
            budgets: definition.budgets,
            window: definition.window,
            double_texting: definition.double_texting,
        };
        Ok(PreparedAgent {
            spec: Arc::new(spec),
            tools,
        })
    }
}
