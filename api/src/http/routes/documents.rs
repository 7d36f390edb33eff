//! What workflows, agents and providers have in common: documents that are listed, stored, switched and removed.

use std::{io, marker::PhantomData, sync::Arc};

use callboard_runtime::{
    document::{self, Document},
    documents::{Put, StoredDocument},
};
use chrono::{DateTime, Utc};
use poem::{IntoResponse, Request, RequestBody, Response};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ApiResponse, ExtractParamOptions, Object,
    registry::{MetaMediaType, MetaRequest, MetaResponses, Registry},
    types::Type,
};
use serde::Serialize;
use serde_json::Value;

use crate::http::{
    State,
    answer::{self, Created, Found, NoContent},
    body::{self, ContentType},
    input::{self, Cursor, Limit},
    problem::{ApiError, ApiResult, Fault},
};

/// The largest document, in bytes of JSON: the store takes no larger one.
const DOCUMENT_MAX: usize = 4 << 20;

/// A kind of document.
pub struct Kind {
    /// As documents have it.
    pub name: &'static str,
    /// Where its documents are.
    pub path: &'static str,
    /// Finds all faults of one that is to be stored. Called with the lock on documents held.
    pub check: fn(&State, &Document) -> ApiResult<()>,
    /// Checks what only matters for one that is in use.
    pub check_enabled: fn(&State, &StoredDocument) -> ApiResult<()>,
}

/// The schemas of a kind's documents as clients see them, which differ in name only.
macro_rules! document_types {
    ($kind:literal, $create:ident, $update:ident, $patch:ident, $details:ident) => {
        /// Enables or disables.
        #[derive(poem_openapi::Object)]
        pub struct $patch {
            /// Whether it may be started.
            enabled: bool,
        }

        impl $crate::http::input::BodyType for $patch {
            fn read(fields: &mut $crate::http::input::Fields) -> Option<Self> {
                fields.required("enabled").map(|enabled| Self { enabled })
            }
        }

        #[doc = concat!($kind, " document, as JSON or YAML.")]
        #[derive(poem_openapi::Object)]
        #[allow(dead_code, reason = "read by the schema only")]
        pub struct $create {
            #[doc = concat!("`", $kind, "`")]
            kind: String,
            /// `name`, and what else is said about it.
            metadata: serde_json::Value,
            /// What it is.
            spec: serde_json::Value,
        }

        #[doc = concat!($kind, " document, as JSON or YAML; `metadata.name` is the name in the path.")]
        #[derive(poem_openapi::Object)]
        #[allow(dead_code, reason = "read by the schema only")]
        pub struct $update {
            #[doc = concat!("`", $kind, "`")]
            kind: String,
            /// `name`, and what else is said about it.
            metadata: serde_json::Value,
            /// What it is.
            spec: serde_json::Value,
        }

        #[doc = concat!($kind, " document with what the server knows of it.")]
        #[derive(poem_openapi::Object, serde::Serialize)]
        pub struct $details {
            #[doc = concat!("`", $kind, "`")]
            kind: String,
            /// `name`, and what else is said about it.
            metadata: serde_json::Value,
            /// What it is.
            spec: serde_json::Value,
            /// `metadata.name`
            name: String,
            /// From 1; a changed document is a new one.
            version: i32,
            /// Whether it may be started.
            enabled: bool,
            /// When the name first appeared.
            created_at: chrono::DateTime<chrono::Utc>,
            /// When this version was made.
            updated_at: chrono::DateTime<chrono::Utc>,
        }

        impl From<$crate::http::routes::documents::Shown> for $details {
            fn from(shown: $crate::http::routes::documents::Shown) -> Self {
                let $crate::http::routes::documents::Shown { document, metadata, spec } = shown;
                Self {
                    kind: document.kind.clone(),
                    metadata,
                    spec,
                    name: document.name.clone(),
                    version: document.version,
                    enabled: document.enabled,
                    created_at: document.created_at,
                    updated_at: document.updated_at,
                }
            }
        }
    };
}
pub(super) use document_types;

/// A page of a kind's documents, in short.
macro_rules! list_types {
    ($item:ident, $list:ident) => {
        /// One of them, in short.
        #[derive(poem_openapi::Object, serde::Serialize)]
        pub struct $item {
            /// `metadata.name`
            name: String,
            /// `metadata.description`
            description: Option<String>,
            /// `metadata.tags`
            tags: Vec<String>,
            /// The current version.
            version: i32,
            /// Whether it may be started.
            enabled: bool,
            /// When the name first appeared.
            created_at: chrono::DateTime<chrono::Utc>,
            /// When the current version was made.
            updated_at: chrono::DateTime<chrono::Utc>,
        }

        /// A page of them, by name.
        #[derive(poem_openapi::Object, serde::Serialize)]
        pub struct $list {
            /// The page.
            data: Vec<$item>,
            /// For `cursor`, when there is more.
            next_cursor: Option<String>,
        }

        impl From<$crate::http::routes::documents::DocumentPage> for $list {
            fn from(page: $crate::http::routes::documents::DocumentPage) -> Self {
                let item = |document: std::sync::Arc<
                    callboard_runtime::documents::StoredDocument,
                >| {
                    let (description, tags) = $crate::http::routes::documents::described(&document);
                    $item {
                        name: document.name.clone(),
                        description,
                        tags,
                        version: document.version,
                        enabled: document.enabled,
                        created_at: document.created_at,
                        updated_at: document.updated_at,
                    }
                };
                Self {
                    data: page.0.into_iter().map(item).collect(),
                    next_cursor: page.1,
                }
            }
        }
    };
}
pub(super) use list_types;

/// `metadata.description` and `metadata.tags`.
pub fn described(document: &StoredDocument) -> (Option<String>, Vec<String>) {
    let metadata = document.body.get("metadata");
    let member = |name| metadata.and_then(|metadata| metadata.get(name));
    let tags = member("tags")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    (
        member("description")
            .and_then(Value::as_str)
            .map(str::to_owned),
        tags.filter_map(|tag| tag.as_str().map(str::to_owned))
            .collect(),
    )
}

/// A document as it is shown: without secrets.
pub struct Shown {
    /// What is stored.
    pub document: Arc<StoredDocument>,
    /// Its `metadata`.
    pub metadata: Value,
    /// Its `spec`.
    pub spec: Value,
}

impl From<Arc<StoredDocument>> for Shown {
    fn from(document: Arc<StoredDocument>) -> Self {
        let part = |name| document.body.get(name).cloned().unwrap_or_default();
        Self {
            metadata: part("metadata"),
            spec: part("spec"),
            document,
        }
    }
}

/// Documents of a page, and the cursor of the next.
pub struct DocumentPage(pub Vec<Arc<StoredDocument>>, pub Option<String>);

/// A body that is one document, of schema `T`; with faults, what could be read in spite of them.
pub struct DocumentBody<T>(Option<Document>, Vec<Fault>, PhantomData<T>);

impl<'a, T: Type> ApiExtractor<'a> for DocumentBody<T> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        T::register(registry);
    }

    fn request_meta() -> Option<MetaRequest> {
        let content = |content_type| MetaMediaType {
            content_type,
            schema: T::schema_ref(),
        };
        Some(MetaRequest {
            description: None,
            content: ["application/json", "application/yaml", "text/yaml"]
                .map(content)
                .into(),
            required: true,
        })
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        let bytes = body::read(request, body, State::of(request)?.max_body).await?;
        if bytes.is_empty() {
            return Ok(Self(None, vec![input::missing()], PhantomData));
        }
        let (document, faults) = match ContentType::of(request) {
            ContentType::Json => match body::json(&bytes) {
                Ok(value) => {
                    let (document, faults) = document::read_value(value);
                    (document, worded(&faults))
                }
                Err(faults) => (None, faults),
            },
            ContentType::Yaml => from_yaml(&bytes),
            _ => {
                return Err(
                    body::unsupported(request, "application/json or application/yaml").into(),
                );
            }
        };
        if document
            .as_ref()
            .is_some_and(|document| is_too_large(&document.body))
        {
            return Err(body::too_large(DOCUMENT_MAX).into());
        }
        Ok(Self(document, faults, PhantomData))
    }
}

/// Whether a document is larger than [`DOCUMENT_MAX`] as JSON. One in YAML may be shorter in the request.
fn is_too_large(document: &Value) -> bool {
    /// Takes as many bytes.
    struct Room(usize);

    impl io::Write for Room {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self
                .0
                .checked_sub(bytes.len())
                .ok_or(io::ErrorKind::WriteZero)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    serde_json::to_writer(Room(DOCUMENT_MAX), document).is_err()
}

fn worded(faults: &[document::Fault]) -> Vec<Fault> {
    faults.iter().map(Fault::from).collect()
}

fn from_yaml(bytes: &[u8]) -> (Option<Document>, Vec<Fault>) {
    let one = |msg| (None, vec![Fault::new(["body"], "value_error", msg)]);
    let Ok(text) = std::str::from_utf8(bytes) else {
        return one("Value error, YAML is UTF-8 text");
    };
    let (mut documents, faults) = document::read_all(text, None);
    match (documents.pop(), documents.is_empty()) {
        (Some(document), true) if body::is_too_deep(&document.body) => {
            one("Value error, the document nests too deep")
        }
        (None, _) if faults.is_empty() => (None, vec![input::missing()]),
        (Some(_), false) => one("Value error, send one document at a time"),
        (document, _) => (document, worded(&faults)),
    }
}

/// What storing a document did.
pub enum Stored<T> {
    /// The name is new: 201.
    Created(Created<T>),
    /// It was there: 200.
    Replaced(Found<T>),
}

impl<T: Type> ApiResponse for Stored<T> {
    fn meta() -> MetaResponses {
        MetaResponses {
            responses: vec![answer::json_meta::<T>(200), answer::json_meta::<T>(201)],
        }
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

impl<T: Serialize + Send> IntoResponse for Stored<T> {
    fn into_response(self) -> Response {
        match self {
            Self::Created(reply) => reply.into_response(),
            Self::Replaced(reply) => reply.into_response(),
        }
    }
}

impl Kind {
    /// 404 unless there is one of this name.
    pub fn get(&self, state: &State, name: &str) -> ApiResult<Arc<StoredDocument>> {
        state
            .app
            .core
            .documents
            .find(self.name, name)
            .ok_or_else(|| self.unknown(name))
    }

    fn unknown(&self, name: &str) -> ApiError {
        ApiError::not_found(format!(
            "There is no {} `{name}`.",
            self.name.to_lowercase()
        ))
    }

    /// A page of them, by name.
    pub fn list(&self, state: &State, limit: Limit, after: Option<Cursor<String>>) -> DocumentPage {
        let mut all = state.app.core.documents.list(self.name);
        if let Some(Cursor(after)) = after {
            all.retain(|document| document.name > after);
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        let (page, next) = answer::page(all, limit.0, |last| Cursor(last.name.clone()).encode());
        DocumentPage(page, next)
    }

    /// Stores a new one; 409 when the name is taken.
    pub async fn create<T, S>(
        &self,
        state: &State,
        body: DocumentBody<S>,
        show: fn(Shown) -> T,
    ) -> ApiResult<Created<T>> {
        let document = self.sound(state, body)?;
        let changing = state.documents_changing.lock().await;
        if state
            .app
            .core
            .documents
            .find(self.name, &document.name)
            .is_some()
        {
            return Err(ApiError::conflict(
                "already_exists",
                format!(
                    "There is a {} `{}` already.",
                    self.name.to_lowercase(),
                    document.name
                ),
            ));
        }
        (self.check)(state, &document)?;
        let (stored, _) = state
            .app
            .core
            .documents
            .put(self.name, &document.name, document.body)
            .await?;
        state.hooks.forget();
        drop(changing);
        let place = self.place(&stored.name);
        Ok(Created::new(show(stored.into())).at(place))
    }

    /// Stores one under the name in the path; the same document again changes nothing. `prepare` may complete the
    /// document from the stored one.
    pub async fn replace<T, S>(
        &self,
        state: &State,
        name: &str,
        body: DocumentBody<S>,
        prepare: fn(&mut Document, &StoredDocument),
        show: fn(Shown) -> T,
    ) -> ApiResult<Stored<T>> {
        let mut document = self.sound(state, body)?;
        if document.name != name {
            return Err(ApiError::invalid(vec![Fault::new(
                ["body", "metadata", "name"],
                "value_error",
                format!("Value error, the name is `{name}` in the path"),
            )]));
        }
        let changing = state.documents_changing.lock().await;
        if let Some(stored) = state.app.core.documents.find(self.name, name) {
            prepare(&mut document, &stored);
        }
        (self.check)(state, &document)?;
        let (stored, put) = state
            .app
            .core
            .documents
            .put(self.name, name, document.body)
            .await?;
        state.hooks.forget();
        drop(changing);
        let shown = show(stored.into());
        Ok(match put {
            Put::Created => Stored::Created(Created::new(shown).at(self.place(name))),
            Put::Changed | Put::Unchanged => Stored::Replaced(Found::new(shown)),
        })
    }

    /// Enables or disables one.
    pub async fn patch(
        &self,
        state: &State,
        name: &str,
        enabled: bool,
    ) -> ApiResult<Arc<StoredDocument>> {
        let _changing = state.documents_changing.lock().await;
        let current = self.get(state, name)?;
        if enabled && !current.enabled {
            (self.check_enabled)(state, &current)?;
        }
        let documents = &state.app.core.documents;
        let stored = documents.set_enabled(self.name, name, enabled).await?;
        state.hooks.forget();
        Ok(stored)
    }

    /// Removes one. What runs goes on with the version it has.
    pub async fn delete(&self, state: &State, name: &str) -> ApiResult<NoContent> {
        use callboard_runtime::store::StoreError;
        // Not a name that any document has, and not a text that the database takes.
        if name.contains('\0') {
            return Err(self.unknown(name));
        }
        let deleted = state.app.core.documents.delete(self.name, name).await;
        state.hooks.forget();
        match deleted {
            Ok(()) => Ok(NoContent),
            Err(StoreError::NotFound) => Err(self.unknown(name)),
            Err(error) => Err(error.into()),
        }
    }

    /// A document of this kind whose form is right. One with faults is read to its end all the same, so that the answer
    /// lists them all.
    fn sound<T>(&self, state: &State, body: DocumentBody<T>) -> ApiResult<Document> {
        let DocumentBody(document, mut faults, _) = body;
        match document {
            Some(document) if document.kind != self.name => {
                let msg = format!("Input should be '{}'", self.name);
                faults.push(Fault::new(["body", "kind"], "literal_error", msg));
            }
            Some(document) if faults.is_empty() => return Ok(document),
            Some(document) => {
                let further = (self.check)(state, &document).err();
                faults.extend(further.map(ApiError::into_faults).unwrap_or_default());
            }
            None => {}
        }
        Err(ApiError::invalid(faults))
    }

    fn place(&self, name: &str) -> String {
        format!("{}/{}", self.path, answer::encode_segment(name))
    }
}

/// The moment a version was made, and the document it is.
#[derive(Object, Serialize)]
#[oai(rename = "WorkflowVersionListItem")]
pub struct VersionItem {
    /// From 1.
    version: i32,
    /// `metadata` of that version.
    metadata: Value,
    /// `spec` of that version.
    spec: Value,
    /// When it was made.
    created_at: DateTime<Utc>,
}

/// Versions, newest first.
#[derive(Object, Serialize)]
#[oai(rename = "WorkflowVersionList")]
pub struct VersionList {
    /// The page.
    data: Vec<VersionItem>,
    /// For `cursor`, when there is more.
    next_cursor: Option<String>,
}

impl Kind {
    /// A page of a document's versions, newest first.
    pub async fn versions(
        &self,
        state: &State,
        name: &str,
        limit: Limit,
        before: Option<Cursor<i32>>,
    ) -> ApiResult<VersionList> {
        self.get(state, name)?;
        let mut versions = state.app.core.documents.versions(self.name, name).await?;
        if let Some(Cursor(before)) = before {
            versions.retain(|document| document.version < before);
        }
        let (page, next_cursor) =
            answer::page(versions, limit.0, |last| Cursor(last.version).encode());
        let item = |document: StoredDocument| VersionItem {
            version: document.version,
            metadata: document.body.get("metadata").cloned().unwrap_or_default(),
            spec: document.body.get("spec").cloned().unwrap_or_default(),
            created_at: document.updated_at,
        };
        Ok(VersionList {
            data: page.into_iter().map(item).collect(),
            next_cursor,
        })
    }
}
