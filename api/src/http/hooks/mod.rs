//! Webhooks: `ANY /hooks/{path}` starts the workflow that claims the method and path.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use callboard_runtime::{
    documents::StoredDocument,
    executions::{StartError, StartExecution, Started},
    model::graph::{Graph, Respond, Trigger, Webhook},
    schema::Schema,
};
use futures_util::StreamExt;
use poem::{Endpoint, IntoResponse, Request, Response, http::header};

use self::{reply::Shape, table::Table};
use super::{
    State, answer, body,
    input::{Faults, IdempotencyKey},
    problem::{ApiError, ApiResult, Fault},
    sse::{self, Events},
    trace::TraceId,
};

mod reply;
mod request;
mod table;

/// How long a caller waits for an answer at most; then it is told where to look.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// What a caller needs unless the workflow says otherwise.
const RUN: &str = "workflows:run";

/// A webhook trigger, ready to be called.
struct Hook {
    workflow: String,
    required_scope: Option<String>,
    webhook: Webhook,
    wait: Duration,
    /// Each webhook of a workflow may have its own.
    input: Option<Schema>,
    shape: Option<Shape>,
}

impl Hook {
    fn new(graph: &Graph, webhook: &Webhook) -> Result<Self, String> {
        Ok(Self {
            workflow: graph.name.to_string(),
            required_scope: graph.required_scope.clone(),
            wait: graph
                .settings
                .timeout
                .map_or(WAIT_MAX, |timeout| timeout.min(WAIT_MAX)),
            input: webhook
                .input_schema
                .as_ref()
                .map(Schema::compile)
                .transpose()?,
            shape: webhook
                .response_schema
                .as_ref()
                .filter(|schema| !reply::is_empty(schema))
                .map(Shape::compile)
                .transpose()?,
            webhook: webhook.clone(),
        })
    }
}

/// The webhooks of all enabled workflows, as they were when the documents last changed.
#[derive(Default)]
pub struct Hooks {
    current: Mutex<Option<Arc<Snapshot>>>,
}

struct Snapshot {
    table: Table<Hook>,
    /// [`Documents::changes`] when it was built.
    ///
    /// [`Documents::changes`]: callboard_runtime::documents::Documents::changes
    changes: u64,
}

impl Hooks {
    /// A document was changed here. Memory has the change already, but counts it only with the next look at the store.
    pub fn forget(&self) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The table, built anew when documents changed. Between changes this costs one lock.
    fn snapshot(&self, state: &State) -> Arc<Snapshot> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        // Read before the documents: what changes in between makes the next request build again.
        let changes = state.app.core.documents.changes();
        match current.as_ref() {
            Some(snapshot) if snapshot.changes == changes => snapshot.clone(),
            _ => current
                .insert(Arc::new(Snapshot::build(state, changes)))
                .clone(),
        }
    }
}

/// The enabled workflows; the oldest first, which keeps a path that two claim.
fn enabled(state: &State) -> Vec<Arc<StoredDocument>> {
    let mut documents = state.app.core.documents.list("Workflow");
    documents.retain(|document| document.enabled);
    documents.sort_by(|a, b| (a.created_at, &a.name).cmp(&(b.created_at, &b.name)));
    documents
}

impl Snapshot {
    fn build(state: &State, changes: u64) -> Self {
        let mut table = Table::default();
        for document in enabled(state) {
            let Some(graph) = state.app.executions.graph(&document.name) else {
                continue;
            };
            for webhook in webhooks(&graph) {
                let claimed = Hook::new(&graph, webhook).and_then(|hook| {
                    table
                        .claim(&webhook.method, &webhook.path, hook)
                        .map_err(|first: Arc<Hook>| {
                            format!("workflow {} claims it already", first.workflow)
                        })
                });
                if let Err(reason) = claimed {
                    let (method, path) = (&webhook.method, &webhook.path);
                    tracing::warn!(
                        workflow = document.name,
                        method,
                        path,
                        reason,
                        "a webhook is not served"
                    );
                }
            }
        }
        Self { table, changes }
    }
}

fn webhooks(graph: &Graph) -> impl Iterator<Item = &Webhook> {
    graph.triggers.iter().filter_map(|trigger| match trigger {
        Trigger::Webhook(webhook) => Some(webhook),
        Trigger::Manual { .. } => None,
    })
}

/// Finds a workflow, other than the graph's, that claims one of its webhooks.
///
/// # Errors
/// 409 naming it.
pub fn check_free(state: &State, graph: &Graph) -> ApiResult<()> {
    let own: Vec<(&str, String)> = webhooks(graph)
        .map(|webhook| (webhook.method.as_str(), table::shape(&webhook.path)))
        .collect();
    if own.is_empty() {
        return Ok(());
    }
    for document in enabled(state) {
        if document.name == *graph.name {
            continue;
        }
        let Some(other) = state.app.executions.graph(&document.name) else {
            continue;
        };
        for webhook in webhooks(&other) {
            if own.contains(&(&webhook.method, table::shape(&webhook.path))) {
                return Err(ApiError::conflict(
                    "webhook_conflict",
                    format!(
                        "Workflow `{}` claims {} {} already.",
                        document.name, webhook.method, webhook.path
                    ),
                ));
            }
        }
    }
    Ok(())
}

/// Answers `/hooks/{path}`.
pub struct Receiver;

impl Endpoint for Receiver {
    type Output = Response;

    async fn call(&self, request: Request) -> poem::Result<Response> {
        let state = State::of(&request)?.clone();
        Ok(receive(&state, request).await?)
    }
}

async fn receive(state: &State, request: Request) -> ApiResult<Response> {
    let (request, mut body) = request.split();
    let path = request.uri().path();
    let path = path.strip_prefix("/hooks").unwrap_or(path).to_owned();
    let (hook, params) = state
        .hooks
        .snapshot(state)
        .table
        .find(request.method().as_str(), &path)
        .ok_or_else(|| {
            ApiError::not_found(format!("No workflow claims {} {path}.", request.method()))
        })?;
    if !hook.webhook.public {
        let caller = state.keys.caller(&request, false).await?;
        caller.require(hook.required_scope.as_deref().unwrap_or(RUN))?;
    }
    state.takes_work()?;
    let bytes = body::read(&request, &mut body, state.max_body).await?;
    let mut input = request::input(&request, bytes)?;
    if let Some(schema) = &hook.input {
        let violations = schema.violations(&input);
        if !violations.is_empty() {
            return Err(ApiError::invalid(
                violations.iter().map(Fault::from).collect(),
            ));
        }
        input = schema.with_defaults(input);
    }
    let mut faults = Faults::default();
    let key = faults.header::<IdempotencyKey>("idempotency-key", request.headers());
    faults.check(Some(()))?;
    let start = StartExecution {
        workflow: hook.workflow.clone(),
        version: None,
        trigger: "webhook",
        input,
        trigger_data: request::trigger_data(&request, &path, params),
        idempotency_key: key.map(|key| key.0),
        parent_id: None,
        trace_id: request
            .extensions()
            .get::<TraceId>()
            .map(ToString::to_string),
    };
    match hook.webhook.respond {
        // A `respond` step answers whatever the trigger says; without one the end does.
        Respond::LastStep | Respond::RespondStep => when_answered(state, &hook, start).await,
        Respond::Immediately => Ok(reply::accepted(
            state.app.executions.start(start).await.map_err(refused)?.id,
        )),
        Respond::Stream => streamed(state, start).await,
    }
}

/// Violations point into the body itself: a webhook's body is the input.
fn refused(error: StartError) -> ApiError {
    match error {
        StartError::InvalidInput(violations) => {
            ApiError::invalid(violations.iter().map(Fault::from).collect())
        }
        other => other.into(),
    }
}

async fn when_answered(state: &State, hook: &Hook, start: StartExecution) -> ApiResult<Response> {
    let mut started = state
        .app
        .executions
        .start_watched(start)
        .await
        .map_err(refused)?;
    let responded = started.watch.responded(hook.wait);
    match state.unless_stopped(responded).await {
        Some(Ok(response)) => reply::responded(started.id, response),
        Some(Err(ended)) => reply::ended(started.id, ended, hook.shape.as_ref()),
        None => goes_on(started).await,
    }
}

/// 202, but only for what is durable: a watched start returns before that.
async fn goes_on(mut started: Started) -> ApiResult<Response> {
    started.watch.stored().await?;
    Ok(reply::accepted(started.id))
}

async fn streamed(state: &State, start: StartExecution) -> ApiResult<Response> {
    let id = state.app.executions.start(start).await.map_err(refused)?.id;
    let events = state.app.executions.events(id, None).await?;
    let events = events.map(|event| {
        sse::event(
            event.seq.map(|seq| seq.to_string()),
            event.name,
            &event.data,
        )
    });
    let mut response = Events::new(events, state).into_response();
    answer::set(&mut response, header::LOCATION, &reply::place(id));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn violations_of_a_webhook_body_point_into_the_body() {
        let violation = callboard_runtime::schema::Violation {
            path: vec!["email".into()],
            message: "Field required".into(),
            kind: "missing".into(),
        };
        let text = format!("{:?}", refused(StartError::InvalidInput(vec![violation])));
        assert!(
            text.contains(r#"[String("body"), String("email")]"#),
            "{text}"
        );
    }
}
