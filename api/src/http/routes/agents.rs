//! Definitions of agents.

use std::sync::Arc;

use callboard_agents::model;
use callboard_runtime::document::Document;
use poem_openapi::{
    OpenApi,
    param::{Path, Query},
};

use super::{
    Tag,
    documents::{DocumentBody, Kind, Shown, Stored, document_types, list_types},
};
use crate::http::{
    State,
    answer::{Created, Found, NoContent},
    auth::{AgentsRead, AgentsWrite, Auth},
    input::{Body, Cursor, Faults, Limit, Param},
    problem::ApiResult,
};

pub struct Operations(pub Arc<State>);

document_types!("Agent", AgentCreate, AgentUpdate, AgentPatch, AgentDetails);
list_types!(AgentListItem, AgentList);

const KIND: Kind = Kind {
    name: "Agent",
    path: "/v1/agents",
    check,
    check_enabled: |_, _| Ok(()),
};

fn check(state: &State, document: &Document) -> ApiResult<()> {
    model::agent::compile(document, &state.app.nodes)?;
    Ok(())
}

#[OpenApi(prefix_path = "/v1/agents", tag = "Tag::Agents")]
impl Operations {
    /// List agents
    ///
    /// By name. Scope `agents:read`.
    #[oai(path = "/", method = "get", operation_id = "list_agents")]
    async fn list(
        &self,
        _auth: Auth<AgentsRead>,
        limit: Query<Option<Param<Limit>>>,
        cursor: Query<Option<Param<Cursor<String>>>>,
    ) -> ApiResult<Found<AgentList>> {
        let mut faults = Faults::default();
        let limit = faults.query("limit", limit.0).unwrap_or_default();
        let after = faults.query("cursor", cursor.0);
        faults.check(Some(()))?;
        Ok(Found::new(KIND.list(&self.0, limit, after).into()))
    }

    /// Create an agent
    ///
    /// 409 when the name is taken. Scope `agents:write`.
    #[oai(path = "/", method = "post", operation_id = "create_agent")]
    async fn create(
        &self,
        _auth: Auth<AgentsWrite>,
        body: DocumentBody<AgentCreate>,
    ) -> ApiResult<Created<AgentDetails>> {
        KIND.create(&self.0, body, AgentDetails::from).await
    }

    /// Get an agent
    ///
    /// Its current version. Scope `agents:read`.
    #[oai(path = "/:name", method = "get", operation_id = "get_agent")]
    async fn get(
        &self,
        _auth: Auth<AgentsRead>,
        name: Path<String>,
    ) -> ApiResult<Found<AgentDetails>> {
        Ok(Found::new(AgentDetails::from(Shown::from(
            KIND.get(&self.0, &name)?,
        ))))
    }

    /// Create or replace an agent
    ///
    /// A changed document is a new version; the same one changes nothing. Scope `agents:write`.
    #[oai(path = "/:name", method = "put", operation_id = "replace_agent")]
    async fn replace(
        &self,
        _auth: Auth<AgentsWrite>,
        name: Path<String>,
        body: DocumentBody<AgentUpdate>,
    ) -> ApiResult<Stored<AgentDetails>> {
        KIND.replace(&self.0, &name, body, |_, _| {}, AgentDetails::from)
            .await
    }

    /// Enable or disable an agent
    ///
    /// Scope `agents:write`.
    #[oai(path = "/:name", method = "patch", operation_id = "patch_agent")]
    async fn patch(
        &self,
        _auth: Auth<AgentsWrite>,
        name: Path<String>,
        body: Body<AgentPatch>,
    ) -> ApiResult<Found<AgentDetails>> {
        let mut faults = Faults::default();
        let patch = faults.body(body);
        let patch = faults.check(patch)?;
        Ok(Found::new(AgentDetails::from(Shown::from(
            KIND.patch(&self.0, &name, patch.enabled).await?,
        ))))
    }

    /// Delete an agent
    ///
    /// What runs goes on with the version it has. Scope `agents:write`.
    #[oai(path = "/:name", method = "delete", operation_id = "delete_agent")]
    async fn delete(&self, _auth: Auth<AgentsWrite>, name: Path<String>) -> ApiResult<NoContent> {
        KIND.delete(&self.0, &name).await
    }
}
