//! What every request passes first and every answer last: trace id, span, counters, and the shape of errors.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Instant};

use futures_util::FutureExt;
use poem::{
    Endpoint, Request, Response, Route,
    endpoint::BoxEndpoint,
    error::{MethodNotAllowedError, NotFoundError},
    http::{HeaderName, HeaderValue, StatusCode, Uri, Version, header},
};
use poem_openapi::error::{
    ContentTypeError, ParseParamError, ParsePathError, ParseRequestPayloadError,
};
use tracing::Instrument;

use super::{
    State, hooks,
    metrics::RouteKind,
    openapi::{Docs, Operations},
    problem::{ApiError, Fault},
    routes,
    trace::TraceId,
};

/// The headers every answer carries.
const TRACE_ID: HeaderName = HeaderName::from_static("x-trace-id");
/// Text that a client sent must not be taken for a page or a script.
const NO_SNIFF: (HeaderName, HeaderValue) = (
    header::X_CONTENT_TYPE_OPTIONS,
    HeaderValue::from_static("nosniff"),
);

/// The whole HTTP interface.
pub struct Front {
    state: Arc<State>,
    pub(super) routes: BoxEndpoint<'static, Response>,
    operations: Operations,
}

impl Front {
    /// The interface over `state`.
    pub fn new(state: Arc<State>) -> Self {
        use poem::EndpointExt;
        let service = routes::service(&state);
        let docs = Docs::new(&service);
        let operations = docs.operations();
        let routes = Route::new()
            .at("/hooks/*path", hooks::Receiver)
            .at("/openapi.json", poem::get(docs.document()))
            .at("/docs", poem::get(docs.page()))
            .nest_no_strip("/", service)
            .map_to_response()
            .boxed();
        Self {
            state,
            routes,
            operations,
        }
    }

    /// Everything that is not an answer of a handler becomes one here, so that clients meet one shape of errors.
    fn refused(&self, error: poem::Error, uri: &Uri, trace_id: &TraceId) -> Response {
        if error.is_from_response() {
            return error.into_response();
        }
        let error = error
            .downcast::<ApiError>()
            .unwrap_or_else(|error| self.refusal(&error, uri));
        error.into_response(trace_id.as_str())
    }

    /// The refusals of the framework.
    fn refusal(&self, error: &poem::Error, uri: &Uri) -> ApiError {
        if error.is::<NotFoundError>() {
            ApiError::not_found(format!("There is nothing at `{}`.", uri.path()))
        } else if error.is::<MethodNotAllowedError>() {
            let allowed = self.operations.methods(uri.path());
            let refusal = ApiError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                format!("This path takes {allowed} only."),
            );
            match HeaderValue::from_str(&allowed) {
                Ok(allowed) => refusal.header(header::ALLOW, allowed),
                Err(_) => refusal,
            }
        } else if let Some(error) = error.downcast_ref::<ParsePathError>() {
            ApiError::invalid(vec![Fault::new(
                ["path", error.name],
                "value_error",
                &error.reason,
            )])
        } else if let Some(error) = error.downcast_ref::<ParseParamError>() {
            ApiError::invalid(vec![Fault::new(
                ["query", error.name],
                "value_error",
                &error.reason,
            )])
        } else if let Some(error) = error.downcast_ref::<ParseRequestPayloadError>() {
            ApiError::invalid(vec![Fault::new(["body"], "value_error", &error.reason)])
        } else if error.is::<ContentTypeError>() {
            ApiError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "The content type is not supported here.",
            )
        } else if error.status().is_client_error() {
            let status = error.status();
            ApiError::new(
                status,
                "bad_request",
                status
                    .canonical_reason()
                    .unwrap_or("The request is not valid."),
            )
        } else {
            ApiError::internal(error.to_string())
        }
    }

    async fn answer(&self, request: Request, trace_id: &TraceId) -> Response {
        let uri = request.uri().clone();
        // A handler holds no lock across a panic that others would wait for, and what it shares is either
        // atomic or behind a mutex whose poison is ignored because every change under it is complete.
        let answered = AssertUnwindSafe(self.routes.call(request))
            .catch_unwind()
            .await;
        match answered {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => self.refused(error, &uri, trace_id),
            Err(_) => {
                self.state.metrics.panicked();
                ApiError::internal("a handler panicked").into_response(trace_id.as_str())
            }
        }
    }
}

impl Endpoint for Front {
    type Output = Response;

    async fn call(&self, mut request: Request) -> poem::Result<Response> {
        let started = Instant::now();
        let trace_id = TraceId::of(request.headers());
        let kind = RouteKind::of(request.uri().path());
        let span = tracing::info_span!(
            "request",
            trace_id = %trace_id,
            http.request.method = %request.method(),
            url.path = request.uri().path(),
        );
        request.extensions_mut().insert(trace_id.clone());
        request.extensions_mut().insert(self.state.clone());
        let one_by_one = request.version() <= Version::HTTP_11;
        let in_flight = self.state.metrics.begin();
        let mut response = self
            .answer(request, &trace_id)
            .instrument(span.clone())
            .await;
        drop(in_flight);
        if let Ok(value) = HeaderValue::from_str(trace_id.as_str()) {
            response.headers_mut().insert(TRACE_ID, value);
        }
        response.headers_mut().insert(NO_SNIFF.0, NO_SNIFF.1);
        if one_by_one && self.state.is_stopping() {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        let (status, elapsed) = (response.status().as_u16(), started.elapsed());
        self.state.metrics.answered(kind, status, elapsed);
        tracing::debug!(parent: &span, status, elapsed_us = elapsed.as_micros() as u64, "answered");
        Ok(response)
    }
}
