//! How much data there may be: in one value, one node run, one execution.
//!
//! What flows between steps is kept in memory, in rows and in events, and is read back after a crash. A list that is
//! copied into each of its elements, or an object that is put into itself at every turn of a loop, would take more than
//! there is before anybody noticed. So whatever makes data counts it with a [`Meter`] while it makes it, and the engine
//! counts again what comes out.

use serde_json::Value;

use crate::{item::Item, node::NodeError};

/// Items that one node run may give, over all its ports; elements of a map; items that an execution starts with.
pub const ITEMS_MAX: usize = 100_000;
/// Bytes of JSON that one node run may give: a request's body of the usual limit twice over.
pub const OUTPUT_BYTES_MAX: usize = 32 << 20;
/// Bytes of JSON that all node runs of one execution may give together.
pub const EXECUTION_BYTES_MAX: usize = 1 << 30;
/// How deep lists and objects may nest. Rows and answers add a few levels, and JSON deeper than 127 cannot be read back.
pub const DEPTH_MAX: usize = 100;
/// Characters of an error's message.
pub const MESSAGE_CHARS_MAX: usize = 4_096;
/// Bytes of JSON of an error's other members.
pub const DETAILS_BYTES_MAX: usize = 64 << 10;

/// What an item takes beside its JSON.
const ITEM_BYTES: usize = 40;
/// What a value takes at least: `[0,0,…]` is small as text only.
const VALUE_BYTES: usize = 8;

/// What there is too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Excess {
    /// More items than [`ITEMS_MAX`].
    #[error("there are more than {ITEMS_MAX} items")]
    Items,
    /// More bytes than the meter allows.
    #[error("there are more than {0} bytes of JSON")]
    Bytes(usize),
    /// Deeper than [`DEPTH_MAX`].
    #[error("a value is nested deeper than {DEPTH_MAX} levels")]
    Depth,
}

impl From<Excess> for NodeError {
    fn from(excess: Excess) -> Self {
        Self::permanent(
            "output_too_large",
            format!("the step gives too much: {excess}"),
        )
    }
}

/// Counts what something takes as JSON, up to a bound. About right: strings are counted as they are written, numbers
/// as eight bytes.
#[derive(Clone, Debug)]
pub struct Meter {
    bytes: usize,
    bytes_max: usize,
    items: usize,
}

impl Meter {
    /// For at most this many bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes: 0,
            bytes_max,
            items: 0,
        }
    }

    /// For what one node run gives.
    pub fn output() -> Self {
        Self::new(OUTPUT_BYTES_MAX)
    }

    /// What was counted.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Counts bytes. Once there is an excess, everything further is one too.
    pub fn take_bytes(&mut self, bytes: usize) -> Result<(), Excess> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.bytes_max {
            return Err(Excess::Bytes(self.bytes_max));
        }
        Ok(())
    }

    /// Counts a value. Stops at the excess, so it takes no longer than the bound allows, however large the value.
    pub fn take(&mut self, value: &Value) -> Result<(), Excess> {
        self.value(value, DEPTH_MAX)
    }

    /// Counts an item.
    pub fn take_item(&mut self, item: &Item) -> Result<(), Excess> {
        self.items += 1;
        if self.items > ITEMS_MAX {
            return Err(Excess::Items);
        }
        self.take_bytes(ITEM_BYTES)?;
        for (name, value) in item.binary.iter().flat_map(|files| files.iter()) {
            self.take_bytes(text_bytes(name))?;
            self.value(value, DEPTH_MAX)?;
        }
        self.take(&item.json)
    }

    /// Counts items.
    pub fn take_items<'i>(
        &mut self,
        items: impl IntoIterator<Item = &'i Item>,
    ) -> Result<(), Excess> {
        items.into_iter().try_for_each(|item| self.take_item(item))
    }

    /// Counts an item on its way: for iterators that make items, which stop where there are too many.
    pub fn passing(&mut self, item: Item) -> Result<Item, NodeError> {
        self.take_item(&item)?;
        Ok(item)
    }

    fn value(&mut self, value: &Value, depth_left: usize) -> Result<(), Excess> {
        let deeper = || depth_left.checked_sub(1).ok_or(Excess::Depth);
        match value {
            Value::Null | Value::Bool(_) | Value::Number(_) => self.take_bytes(VALUE_BYTES),
            Value::String(text) => self.take_bytes(text_bytes(text)),
            Value::Array(list) => {
                let left = deeper()?;
                self.take_bytes(VALUE_BYTES)?;
                list.iter().try_for_each(|value| self.value(value, left))
            }
            Value::Object(members) => {
                let left = deeper()?;
                self.take_bytes(VALUE_BYTES)?;
                members.iter().try_for_each(|(name, value)| {
                    self.take_bytes(text_bytes(name))?;
                    self.value(value, left)
                })
            }
        }
    }
}

/// A text as JSON: quotes, and what must be escaped.
fn text_bytes(text: &str) -> usize {
    let escapes: usize = text
        .bytes()
        .map(|byte| match byte {
            b'"' | b'\\' | b'\n' | b'\r' | b'\t' => 1,
            0..0x20 => 5,
            _ => 0,
        })
        .sum();
    text.len() + escapes + 3
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn nested(depth: usize) -> Value {
        (1..depth).fold(json!([]), |inner, _| json!([inner]))
    }

    #[test]
    fn what_is_counted_is_about_what_is_written() {
        let value = json!({"name": "Äb\n\"\u{1}", "list": [1, 2.5, null, true], "empty": {}});
        let mut meter = Meter::output();
        meter.take(&value).expect("it fits");
        let written = value.to_string().len();
        assert!(meter.bytes() >= written, "{} < {written}", meter.bytes());
        assert!(meter.bytes() < 3 * written, "{}", meter.bytes());
    }

    #[test]
    fn control_characters_count_as_they_are_written() {
        let text = "\u{1}".repeat(1000);
        let mut meter = Meter::new(10_000);
        meter.take(&json!(text)).expect("it fits");
        assert!(meter.bytes() >= json!(text).to_string().len());
    }

    #[test]
    fn every_bound_has_its_excess() {
        assert_eq!(Meter::output().take(&nested(DEPTH_MAX)), Ok(()));
        assert_eq!(
            Meter::output().take(&nested(DEPTH_MAX + 1)),
            Err(Excess::Depth)
        );
        let mut meter = Meter::new(100);
        assert_eq!(meter.take(&json!("x".repeat(90))), Ok(()));
        assert_eq!(meter.take(&json!("x".repeat(10))), Err(Excess::Bytes(100)));
        let items = vec![Item::new(json!({})); ITEMS_MAX + 1];
        assert_eq!(Meter::output().take_items(&items[1..]), Ok(()));
        assert_eq!(Meter::output().take_items(&items), Err(Excess::Items));
    }
}
