//! Documents as people write them: YAML or JSON, several per file, with a place for every fault.

use std::{collections::HashMap, fmt, sync::Arc};

use serde_json::Value;

pub mod workflow;

/// One document, with the places of its parts.
#[derive(Clone, Debug)]
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

/// Where the parts of a document stand in its file.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// The file's name as given.
    pub file: Option<String>,
    /// Line and column, from 1, by path joined with `/`.
    pub positions: HashMap<String, (usize, usize)>,
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

impl fmt::Display for Fault {
    /// `file:line:column: path: message`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let _ = f;
        unimplemented!()
    }
}

/// Reads all documents of a file. All faults of form are found at once.
pub fn read(text: &str, file: Option<&str>) -> Result<Vec<Document>, Vec<Fault>> {
    let _ = (text, file);
    unimplemented!()
}

/// A document that came as a JSON value.
pub fn from_value(body: Value) -> Result<Document, Vec<Fault>> {
    let _ = body;
    unimplemented!()
}
