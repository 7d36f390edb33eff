//! Items: what flows between nodes.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A list of items, shared between everything that reads it.
pub type Items = Arc<Vec<Item>>;

/// One unit of data. Its JSON is shared, so passing an item on costs no copy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// Always an object; [`Item::new`] wraps anything else as `{"value": …}`.
    pub json: Arc<Value>,
    /// Names of files that travel with the item, by reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binary: Option<Arc<Map<String, Value>>>,
    /// Which input item this one was made from. `None` where lineage is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paired_item: Option<PairedItem>,
}

/// The place of an item among its node's inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairedItem {
    /// Index within the input's list.
    pub item: u32,
    /// Which input, for nodes with several.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub input: u32,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl Item {
    /// An item without lineage. A value that is not an object becomes `{"value": it}`.
    pub fn new(json: Value) -> Self {
        let json = match json {
            Value::Object(_) => json,
            other => Value::Object(Map::from_iter([("value".to_owned(), other)])),
        };
        Self {
            json: Arc::new(json),
            binary: None,
            paired_item: None,
        }
    }

    /// The same item, made from item `index` of the first input.
    #[must_use]
    pub fn paired(mut self, index: usize) -> Self {
        self.paired_item = Some(PairedItem {
            item: index as u32,
            input: 0,
        });
        self
    }

    /// Items from a request body: one per element of a list, else one. `null` is an empty object.
    pub fn from_body(body: Value) -> Vec<Self> {
        match body {
            Value::Array(elements) => elements.into_iter().map(Self::new).collect(),
            Value::Null => vec![Self::new(Value::Object(Map::new()))],
            other => vec![Self::new(other)],
        }
    }
}
