//! The operations of the API, one file per resource.

use std::sync::Arc;

use poem_openapi::{OpenApi, OpenApiService, Tags};

use super::State;

mod agents;
mod documents;
mod executions;
mod keys;
mod providers;
mod secrets;
mod service;
mod sessions;
mod workflows;

/// How operations are grouped.
#[derive(Tags)]
#[oai(rename_all = "lowercase")]
enum Tag {
    /// Definitions of workflows.
    Workflows,
    /// Runs of workflows.
    Executions,
    /// Definitions of agents.
    Agents,
    /// Conversations with agents.
    Sessions,
    /// Where models come from.
    Providers,
    /// API keys.
    Keys,
    /// Health and metrics.
    Service,
}

/// All documented operations.
pub fn service(state: &Arc<State>) -> OpenApiService<impl OpenApi + use<>, ()> {
    let of = || state.clone();
    let operations = (
        service::Operations(of()),
        workflows::Operations(of()),
        executions::Operations(of()),
        agents::Operations(of()),
        sessions::Operations(of()),
        providers::Operations(of()),
        keys::Operations(of()),
    );
    OpenApiService::new(operations, "Callboard", env!("CARGO_PKG_VERSION")).description(
        "Workflows and AI agents as supervised actors. Every answer carries `X-Trace-Id`; errors are problem \
         documents, faults of a request are 422 with all of them.",
    )
}
