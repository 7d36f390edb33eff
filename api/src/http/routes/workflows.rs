//! Definitions of workflows.

use std::sync::Arc;

use callboard_runtime::{
    document::{Document, workflow},
    documents::StoredDocument,
};
use poem_openapi::{
    OpenApi,
    param::{Path, Query},
};

use super::{
    Tag,
    documents::{DocumentBody, Kind, Shown, Stored, VersionList, document_types, list_types},
};
use crate::http::{
    State,
    answer::{Created, Found, NoContent},
    auth::{Auth, WorkflowsRead, WorkflowsWrite},
    hooks,
    input::{Body, Cursor, Faults, Limit, Param},
    problem::ApiResult,
};

pub struct Operations(pub Arc<State>);

document_types!(
    "Workflow",
    WorkflowCreate,
    WorkflowUpdate,
    WorkflowPatch,
    WorkflowDetails
);
list_types!(WorkflowListItem, WorkflowList);

const KIND: Kind = Kind {
    name: "Workflow",
    path: "/v1/workflows",
    check,
    check_enabled,
};

/// Compiles it, and refuses webhooks that another workflow has.
fn check(state: &State, document: &Document) -> ApiResult<()> {
    let graph = workflow::compile(document, &state.app.nodes)?;
    hooks::check_free(state, &graph)
}

/// What it claims may have been claimed by another while it was disabled.
fn check_enabled(state: &State, document: &StoredDocument) -> ApiResult<()> {
    match state.app.executions.graph(&document.name) {
        Some(graph) => hooks::check_free(state, &graph),
        None => Ok(()),
    }
}

#[OpenApi(prefix_path = "/v1/workflows", tag = "Tag::Workflows")]
impl Operations {
    /// List workflows
    ///
    /// By name. Scope `workflows:read`.
    #[oai(path = "/", method = "get", operation_id = "list_workflows")]
    async fn list(
        &self,
        _auth: Auth<WorkflowsRead>,
        limit: Query<Option<Param<Limit>>>,
        cursor: Query<Option<Param<Cursor<String>>>>,
    ) -> ApiResult<Found<WorkflowList>> {
        let mut faults = Faults::default();
        let limit = faults.query("limit", limit.0).unwrap_or_default();
        let after = faults.query("cursor", cursor.0);
        faults.check(Some(()))?;
        Ok(Found::new(KIND.list(&self.0, limit, after).into()))
    }

    /// Create a workflow
    ///
    /// 409 when the name is taken. Scope `workflows:write`.
    #[oai(path = "/", method = "post", operation_id = "create_workflow")]
    async fn create(
        &self,
        _auth: Auth<WorkflowsWrite>,
        body: DocumentBody<WorkflowCreate>,
    ) -> ApiResult<Created<WorkflowDetails>> {
        KIND.create(&self.0, body, WorkflowDetails::from).await
    }

    /// Get a workflow
    ///
    /// Its current version. Scope `workflows:read`.
    #[oai(path = "/:name", method = "get", operation_id = "get_workflow")]
    async fn get(
        &self,
        _auth: Auth<WorkflowsRead>,
        name: Path<String>,
    ) -> ApiResult<Found<WorkflowDetails>> {
        Ok(Found::new(WorkflowDetails::from(Shown::from(
            KIND.get(&self.0, &name)?,
        ))))
    }

    /// Create or replace a workflow
    ///
    /// A changed document is a new version; the same one changes nothing. Scope `workflows:write`.
    #[oai(path = "/:name", method = "put", operation_id = "replace_workflow")]
    async fn replace(
        &self,
        _auth: Auth<WorkflowsWrite>,
        name: Path<String>,
        body: DocumentBody<WorkflowUpdate>,
    ) -> ApiResult<Stored<WorkflowDetails>> {
        KIND.replace(&self.0, &name, body, |_, _| {}, WorkflowDetails::from)
            .await
    }

    /// Enable or disable a workflow
    ///
    /// Scope `workflows:write`.
    #[oai(path = "/:name", method = "patch", operation_id = "patch_workflow")]
    async fn patch(
        &self,
        _auth: Auth<WorkflowsWrite>,
        name: Path<String>,
        body: Body<WorkflowPatch>,
    ) -> ApiResult<Found<WorkflowDetails>> {
        let mut faults = Faults::default();
        let patch = faults.body(body);
        let patch = faults.check(patch)?;
        Ok(Found::new(WorkflowDetails::from(Shown::from(
            KIND.patch(&self.0, &name, patch.enabled).await?,
        ))))
    }

    /// Delete a workflow
    ///
    /// What runs goes on with the version it has. Scope `workflows:write`.
    #[oai(path = "/:name", method = "delete", operation_id = "delete_workflow")]
    async fn delete(
        &self,
        _auth: Auth<WorkflowsWrite>,
        name: Path<String>,
    ) -> ApiResult<NoContent> {
        KIND.delete(&self.0, &name).await
    }

    /// List the versions of a workflow
    ///
    /// Newest first. Scope `workflows:read`.
    #[oai(
        path = "/:name/versions",
        method = "get",
        operation_id = "list_workflow_versions"
    )]
    async fn versions(
        &self,
        _auth: Auth<WorkflowsRead>,
        name: Path<String>,
        limit: Query<Option<Param<Limit>>>,
        cursor: Query<Option<Param<Cursor<i32>>>>,
    ) -> ApiResult<Found<VersionList>> {
        let mut faults = Faults::default();
        let limit = faults.query("limit", limit.0).unwrap_or_default();
        let before = faults.query("cursor", cursor.0);
        faults.check(Some(()))?;
        Ok(Found::new(
            KIND.versions(&self.0, &name, limit, before).await?,
        ))
    }
}
