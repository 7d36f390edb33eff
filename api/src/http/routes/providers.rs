//! Definitions of providers.

use std::sync::Arc;

use callboard_agents::model;
use callboard_runtime::{document::Document, documents::StoredDocument};
use chrono::{DateTime, Utc};
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
};

use serde::Serialize;
use serde_json::Value;

use super::{
    Tag,
    documents::{DocumentBody, DocumentPage, Kind, Shown, Stored, document_types},
    secrets::{hide_secrets, keep_secrets},
};
use crate::http::{
    State,
    answer::{Created, Found, NoContent},
    auth::{AgentsRead, Auth, CredentialsWrite},
    input::{Body, Cursor, Faults, Limit, Param},
    problem::ApiResult,
};

pub struct Operations(pub Arc<State>);

document_types!(
    "Provider",
    ProviderCreate,
    ProviderUpdate,
    ProviderPatch,
    ProviderDetails
);

/// One of them, without its secrets.
#[derive(Object, Serialize)]
pub struct ProviderListItem {
    /// `metadata.name`
    name: String,
    /// What it is.
    spec: Value,
    /// The current version.
    version: i32,
    /// Whether it may be used.
    enabled: bool,
    /// When the name first appeared.
    created_at: DateTime<Utc>,
    /// When the current version was made.
    updated_at: DateTime<Utc>,
}

impl From<Arc<StoredDocument>> for ProviderListItem {
    fn from(document: Arc<StoredDocument>) -> Self {
        let ProviderDetails {
            name,
            spec,
            version,
            enabled,
            created_at,
            updated_at,
            ..
        } = shown(Shown::from(document));
        Self {
            name,
            spec,
            version,
            enabled,
            created_at,
            updated_at,
        }
    }
}

/// A page of them, by name.
#[derive(Object, Serialize)]
pub struct ProviderList {
    /// The page.
    data: Vec<ProviderListItem>,
    /// For `cursor`, when there is more.
    next_cursor: Option<String>,
}

impl From<DocumentPage> for ProviderList {
    fn from(DocumentPage(page, next_cursor): DocumentPage) -> Self {
        Self {
            data: page.into_iter().map(Into::into).collect(),
            next_cursor,
        }
    }
}

const KIND: Kind = Kind {
    name: "Provider",
    path: "/v1/providers",
    check,
    check_enabled: |_, _| Ok(()),
};

fn check(_: &State, document: &Document) -> ApiResult<()> {
    model::provider::compile(document)?;
    Ok(())
}

/// A client that sends back what it was shown changes no secret.
fn keep(document: &mut Document, stored: &StoredDocument) {
    keep_secrets(&mut document.body, &stored.body);
}

/// Secrets are write-only.
fn shown(mut shown: Shown) -> ProviderDetails {
    hide_secrets(&mut shown.spec);
    shown.into()
}

#[OpenApi(prefix_path = "/v1/providers", tag = "Tag::Providers")]
impl Operations {
    /// List providers
    ///
    /// By name. Scope `agents:read`.
    #[oai(path = "/", method = "get", operation_id = "list_providers")]
    async fn list(
        &self,
        _auth: Auth<AgentsRead>,
        limit: Query<Option<Param<Limit>>>,
        cursor: Query<Option<Param<Cursor<String>>>>,
    ) -> ApiResult<Found<ProviderList>> {
        let mut faults = Faults::default();
        let limit = faults.query("limit", limit.0).unwrap_or_default();
        let after = faults.query("cursor", cursor.0);
        faults.check(Some(()))?;
        Ok(Found::new(KIND.list(&self.0, limit, after).into()))
    }

    /// Create a provider
    ///
    /// 409 when the name is taken. Scope `credentials:write`.
    #[oai(path = "/", method = "post", operation_id = "create_provider")]
    async fn create(
        &self,
        _auth: Auth<CredentialsWrite>,
        body: DocumentBody<ProviderCreate>,
    ) -> ApiResult<Created<ProviderDetails>> {
        KIND.create(&self.0, body, shown).await
    }

    /// Get a provider
    ///
    /// Its current version. Scope `agents:read`.
    #[oai(path = "/:name", method = "get", operation_id = "get_provider")]
    async fn get(
        &self,
        _auth: Auth<AgentsRead>,
        name: Path<String>,
    ) -> ApiResult<Found<ProviderDetails>> {
        Ok(Found::new(shown(Shown::from(KIND.get(&self.0, &name)?))))
    }

    /// Create or replace a provider
    ///
    /// A changed document is a new version; the same one changes nothing. Scope `credentials:write`.
    #[oai(path = "/:name", method = "put", operation_id = "replace_provider")]
    async fn replace(
        &self,
        _auth: Auth<CredentialsWrite>,
        name: Path<String>,
        body: DocumentBody<ProviderUpdate>,
    ) -> ApiResult<Stored<ProviderDetails>> {
        KIND.replace(&self.0, &name, body, keep, shown).await
    }

    /// Enable or disable a provider
    ///
    /// Scope `credentials:write`.
    #[oai(path = "/:name", method = "patch", operation_id = "patch_provider")]
    async fn patch(
        &self,
        _auth: Auth<CredentialsWrite>,
        name: Path<String>,
        body: Body<ProviderPatch>,
    ) -> ApiResult<Found<ProviderDetails>> {
        let mut faults = Faults::default();
        let patch = faults.body(body);
        let patch = faults.check(patch)?;
        Ok(Found::new(shown(Shown::from(
            KIND.patch(&self.0, &name, patch.enabled).await?,
        ))))
    }

    /// Delete a provider
    ///
    /// What runs goes on with the version it has. Scope `credentials:write`.
    #[oai(path = "/:name", method = "delete", operation_id = "delete_provider")]
    async fn delete(
        &self,
        _auth: Auth<CredentialsWrite>,
        name: Path<String>,
    ) -> ApiResult<NoContent> {
        KIND.delete(&self.0, &name).await
    }
}
