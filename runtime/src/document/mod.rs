//! Documents as people write them: YAML or JSON, several per file, with a place for every fault.
//!
//! [`read`] and [`from_value`] check the form that all kinds share; what a kind means is checked by its reader, such
//! as [`workflow::compile`], with the tools of [`reader`]. Faults are found all at once and say where they are.

use std::{collections::HashMap, fmt, sync::Arc};

use serde_json::Value;

use crate::node::NodeRegistry;

pub mod reader;
pub mod workflow;

mod json;
mod source;
pub(crate) mod wording;
mod yaml;

pub use source::{Position, Source};
pub use wording::closest;

use reader::{Faults, Reader};

/// The largest file, in bytes.
pub const FILE_BYTES_MAX: usize = 4 << 20;
/// The deepest nesting of values.
pub const DEPTH_MAX: usize = 64;
/// The most values in one file, those repeated by aliases included.
pub const NODES_MAX: usize = 200_000;
/// The longest `metadata.name`, in characters.
pub const NAME_CHARS_MAX: usize = 100;

/// The kinds of this version.
const KINDS: [&str; 3] = ["Workflow", "Agent", "Provider"];
/// Kinds that the language has and this version does not.
const LATER_KINDS: [&str; 3] = ["Model", "Toolset", "Credential"];

/// One document, with the places of its parts.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// `Workflow`, `Agent`, `Provider`.
    pub kind: String,
    /// `metadata.name`.
    pub name: String,
    /// The whole document: `{kind, metadata, spec}`.
    pub body: Value,
    /// Where its parts stand.
    pub source: Arc<Source>,
}

impl Document {
    /// An empty list for the faults of this document: what is put in it gets its file and its position.
    pub fn faults(&self) -> Faults {
        Faults::new(Arc::clone(&self.source))
    }

    /// A reader of `spec`.
    pub fn spec<'a>(&'a self, faults: &'a Faults) -> Reader<'a> {
        Reader::at(&self.body["spec"], &["spec"], faults)
    }

    /// A reader of `metadata`.
    pub fn metadata<'a>(&'a self, faults: &'a Faults) -> Reader<'a> {
        Reader::at(&self.body["metadata"], &["metadata"], faults)
    }
}

/// A fault in a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file's name.
    pub file: Option<String>,
    /// Line and column, from 1; none for documents that came as JSON values.
    pub position: Option<(usize, usize)>,
    /// Where in the document: names and indexes, such as `spec steps 0 uses`.
    pub path: Vec<String>,
    /// What is wrong, as a sentence.
    pub message: String,
    /// For the `type` of a 422 detail: `missing`, `extra_forbidden`, `string_type`, `value_error`, …
    pub kind: &'static str,
}

impl Fault {
    /// The `loc` of a 422 detail: `["body", "spec", "steps", 0, "uses"]`.
    pub fn loc(&self) -> Vec<Value> {
        loc(&self.path)
    }

    /// One entry of the `detail` of a 422: `{loc, msg, type}`.
    pub fn detail(&self) -> Value {
        serde_json::json!({"loc": self.loc(), "msg": self.message, "type": self.kind})
    }
}

/// A path into a body as the `loc` of a 422 detail. Indexes are numbers; so is a member's name that
/// reads as one, which a path cannot tell from an index.
pub fn loc(path: &[String]) -> Vec<Value> {
    let segments = path.iter().map(|segment| match segment.parse::<u32>() {
        Ok(index) if index.to_string() == *segment => Value::from(index),
        _ => Value::from(segment.as_str()),
    });
    std::iter::once(Value::from("body"))
        .chain(segments)
        .collect()
}

impl fmt::Display for Fault {
    /// `file:line:column: path: message`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut place = self.file.clone().unwrap_or_default();
        if let Some((line, column)) = self.position {
            let colon = if place.is_empty() { "" } else { ":" };
            place.push_str(&format!("{colon}{line}:{column}"));
        }
        for part in [place, self.path.join(".")] {
            if !part.is_empty() {
                write!(f, "{part}: ")?;
            }
        }
        f.write_str(&self.message)
    }
}

/// Reads all documents of a file, at most [`FILE_BYTES_MAX`] long. All faults of form are found at once; behind a
/// fault of syntax nothing can be read. A file without a document is none.
pub fn read(text: &str, file: Option<&str>) -> Result<Vec<Document>, Vec<Fault>> {
    let (documents, faults) = read_all(text, file);
    if faults.is_empty() {
        Ok(documents)
    } else {
        Err(faults)
    }
}

/// As [`read`], with what can be read in spite of faults. Such documents are for finding further faults only: those
/// without a readable `kind` or `spec` are left out, and a name that cannot be read is empty.
pub fn read_all(text: &str, file: Option<&str>) -> (Vec<Document>, Vec<Fault>) {
    if text.len() > FILE_BYTES_MAX {
        let faults = Faults::new(Arc::new(Source::in_file(file)));
        faults.add::<&str>(
            &[],
            "value_error",
            format!("The file is larger than {FILE_BYTES_MAX} bytes"),
        );
        return (Vec::new(), faults.into_vec());
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (loaded, mut faults) = load(text, file);
    let mut documents = Vec::new();
    for document in loaded {
        let (document, more) = check_form(document.body, document.source);
        documents.extend(document);
        faults.extend(more);
    }
    (documents, faults)
}

/// What begins as a JSON object is read as JSON, unless only YAML makes sense of it (`{kind: Agent}`).
fn load(text: &str, file: Option<&str>) -> (Vec<yaml::Loaded>, Vec<Fault>) {
    if !text.trim_start().starts_with('{') {
        return yaml::load(text, file);
    }
    match json::load(text, file) {
        Ok(document) => (vec![document], Vec::new()),
        Err(faults) => match yaml::load(text, file) {
            (documents, none) if none.is_empty() => (documents, none),
            _ => (Vec::new(), faults),
        },
    }
}

/// A document that came as a JSON value.
pub fn from_value(body: Value) -> Result<Document, Vec<Fault>> {
    match read_value(body) {
        (Some(document), faults) if faults.is_empty() => Ok(document),
        (_, faults) => Err(faults),
    }
}

/// As [`from_value`], with what can be read in spite of faults, as [`read_all`] gives it. Without a document there is a
/// fault.
pub fn read_value(body: Value) -> (Option<Document>, Vec<Fault>) {
    let mut nodes = 0;
    if let Err(message) = bounded(&body, 1, &mut nodes) {
        let faults = Faults::new(Arc::default());
        faults.add::<&str>(&[], "value_error", message);
        return (None, faults.into_vec());
    }
    check_form(body, Source::default())
}

fn bounded(value: &Value, depth: usize, nodes: &mut usize) -> Result<(), String> {
    *nodes += 1;
    if depth > DEPTH_MAX {
        return Err(format!("Nested deeper than {DEPTH_MAX} levels"));
    }
    if *nodes > NODES_MAX {
        return Err(format!("More than {NODES_MAX} values"));
    }
    match value {
        Value::Array(elements) => elements
            .iter()
            .try_for_each(|value| bounded(value, depth + 1, nodes)),
        Value::Object(members) => members
            .values()
            .try_for_each(|value| bounded(value, depth + 1, nodes)),
        _ => Ok(()),
    }
}

/// Checks what all kinds share: `kind`, `metadata`, and that there is a `spec`. Without a document there is a fault.
fn check_form(body: Value, source: Source) -> (Option<Document>, Vec<Fault>) {
    let source = Arc::new(source);
    let faults = Faults::new(Arc::clone(&source));
    let form = Reader::new(&body, &faults).fields().and_then(|mut fields| {
        let kind = fields.required("kind").and_then(|kind| read_kind(&kind));
        let name = fields
            .required("metadata")
            .and_then(|metadata| read_metadata(&metadata));
        let spec = fields.required("spec").and_then(|spec| spec.entries());
        fields.finish();
        spec.and(Some((
            kind?.to_owned(),
            name.unwrap_or_default().to_owned(),
        )))
    });
    let document = form.map(|(kind, name)| Document {
        kind,
        name,
        body,
        source,
    });
    (document, faults.into_vec())
}

fn read_kind<'a>(kind: &Reader<'a>) -> Option<&'a str> {
    let name = kind.string()?;
    if LATER_KINDS.contains(&name) {
        kind.unsupported(&format!("{name} documents are"));
        return None;
    }
    kind.choice(&KINDS.map(|kind| (kind, ()))).map(|()| name)
}

fn read_metadata<'a>(metadata: &Reader<'a>) -> Option<&'a str> {
    let mut fields = metadata.fields()?;
    let name = fields.required("name").and_then(|name| name.name());
    fields
        .optional("description")
        .map(|description| description.string());
    fields.optional("tags").map(|tags| tags.strings(100));
    fields
        .optional("required_scope")
        .map(|scope| scope.text(1..=200));
    fields.finish();
    name
}

/// Checks documents as a set: every workflow, and that no two of a kind share a name and no two workflows claim the
/// same webhook. The other kinds are checked by the crates that own them. Finds all faults.
pub fn check_all(documents: &[Document], nodes: &NodeRegistry) -> Vec<Fault> {
    let mut found = Vec::new();
    let mut names: HashMap<(&str, &str), &Document> = HashMap::new();
    let mut webhooks = HashMap::new();
    for document in documents {
        let faults = document.faults();
        let key = (document.kind.as_str(), document.name.as_str());
        if document.name.is_empty() {
            // It could not be read, and that has been said.
        } else if let Some(first) = names.get(&key) {
            let message = format!(
                "Another {} is named `{}`{}",
                document.kind,
                document.name,
                place_of(first, &["metadata", "name"])
            );
            faults.add(&["metadata", "name"], "value_error", message);
        } else {
            names.insert(key, document);
        }
        if document.kind == "Workflow" {
            match workflow::compile(document, nodes) {
                Ok(graph) => workflow::claim_webhooks(&graph, document, &mut webhooks, &faults),
                Err(more) => found.extend(more),
            }
        }
        found.extend(faults.into_vec());
    }
    found
}

/// ` (file:line:column)`, for messages that speak of another document.
fn place_of(document: &Document, path: &[&str]) -> String {
    let path: Vec<String> = path.iter().map(|&segment| segment.to_owned()).collect();
    let file = document.source.file.as_deref();
    match (file, document.source.position(&path)) {
        (Some(file), Some((line, column))) => format!(" ({file}:{line}:{column})"),
        (None, Some((line, column))) => format!(" (line {line}, column {column})"),
        (Some(file), None) => format!(" ({file})"),
        (None, None) => String::new(),
    }
}

#[cfg(test)]
mod tests;
