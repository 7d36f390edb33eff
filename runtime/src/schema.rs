//! JSON Schema (2020-12): checks of inputs, tool arguments and structured answers.

use serde_json::Value;

/// One way in which a value does not fit its schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Where in the value: names and indexes.
    pub path: Vec<String>,
    /// What is wrong, in Pydantic 2's words where it has some: `Field required`.
    pub message: String,
    /// Pydantic 2's type of it: `missing`, `string_type`, …
    pub kind: String,
}

/// A compiled schema.
#[derive(Debug)]
pub struct Schema {}

impl Schema {
    /// Compiles a schema. Never fetches anything: a reference to another document is an error. The error is a sentence.
    pub fn compile(schema: &Value) -> Result<Self, String> {
        let _ = schema;
        unimplemented!()
    }

    /// All violations, in the order of the schema's properties.
    pub fn violations(&self, value: &Value) -> Vec<Violation> {
        let _ = value;
        unimplemented!()
    }
}
