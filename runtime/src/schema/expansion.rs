//! How large a schema is once its references are followed.
//!
//! A schema of a hundred lines can ask for more checks than a processor makes in a year: each definition refers twice to
//! the next one. What refers to itself is counted once: how far it goes is a matter of the data, whose depth is bounded.

use std::collections::HashMap;

use serde_json::Value;

/// Values of a schema with every reference replaced by what it names.
const VALUES_MAX: u64 = 1_000_000;
/// References that lead from one to the next.
const CHAIN_MAX: usize = 128;

/// The error is a sentence.
pub(super) fn check(schema: &Value) -> Result<(), String> {
    let mut names = HashMap::new();
    collect(schema, &mut names);
    let mut expansion = Expansion {
        root: schema,
        names,
        known: HashMap::new(),
        chain: Vec::new(),
    };
    if expansion.count(schema)? > VALUES_MAX {
        return Err(format!(
            "A schema should have at most {VALUES_MAX} values with its references followed"
        ));
    }
    Ok(())
}

/// What `$id` and `$anchor` name.
fn collect<'s>(schema: &'s Value, names: &mut HashMap<String, &'s Value>) {
    match schema {
        Value::Object(members) => {
            let text = |name: &str| members.get(name).and_then(Value::as_str);
            if let Some(id) = text("$id") {
                names.insert(id.to_owned(), schema);
            }
            for anchor in [text("$anchor"), text("$dynamicAnchor")]
                .into_iter()
                .flatten()
            {
                names.insert(format!("#{anchor}"), schema);
            }
            members.values().for_each(|value| collect(value, names));
        }
        Value::Array(elements) => elements.iter().for_each(|value| collect(value, names)),
        _ => {}
    }
}

struct Expansion<'s> {
    root: &'s Value,
    names: HashMap<String, &'s Value>,
    known: HashMap<&'s str, u64>,
    /// The references that are being followed.
    chain: Vec<&'s str>,
}

impl<'s> Expansion<'s> {
    fn count(&mut self, schema: &'s Value) -> Result<u64, String> {
        let mut sum: u64 = 1;
        match schema {
            Value::Object(members) => {
                for (name, value) in members {
                    // Definitions count where they are referred to.
                    if matches!(name.as_str(), "$defs" | "definitions") {
                        continue;
                    }
                    let more = match (name.as_str(), value) {
                        ("$ref" | "$dynamicRef", Value::String(reference)) => {
                            self.follow(reference)?
                        }
                        (_, value) => self.count(value)?,
                    };
                    sum = sum.saturating_add(more);
                }
            }
            Value::Array(elements) => {
                for value in elements {
                    sum = sum.saturating_add(self.count(value)?);
                }
            }
            _ => {}
        }
        Ok(sum)
    }

    fn follow(&mut self, reference: &'s str) -> Result<u64, String> {
        if self.chain.contains(&reference) {
            return Ok(1);
        }
        if let Some(known) = self.known.get(reference) {
            return Ok(*known);
        }
        if self.chain.len() == CHAIN_MAX {
            return Err(format!(
                "A schema's references should not lead from one to the next more than {CHAIN_MAX} times"
            ));
        }
        let Some(target) = self.target(reference) else {
            return Ok(1);
        };
        self.chain.push(reference);
        let counted = self.count(target);
        self.chain.pop();
        let counted = counted?;
        self.known.insert(reference, counted);
        Ok(counted)
    }

    /// `None` for what is nowhere, which compiling finds.
    fn target(&self, reference: &str) -> Option<&'s Value> {
        if let Some(named) = self.names.get(reference) {
            return Some(named);
        }
        let (base, pointer) = reference.split_once('#')?;
        let base = if base.is_empty() {
            self.root
        } else {
            self.names.get(base)?
        };
        let decoded = percent_encoding::percent_decode_str(pointer).decode_utf8_lossy();
        base.pointer(&decoded)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;

    /// `$defs` in which each refers `times` to the next, `count` of them.
    fn chain(count: usize, times: usize) -> Value {
        let defs: Map<String, Value> = (0..count)
            .map(|i| {
                let next = json!({"$ref": format!("#/$defs/d{}", i + 1)});
                (format!("d{i}"), json!({"allOf": vec![next; times]}))
            })
            .chain([(format!("d{count}"), json!({"type": "object"}))])
            .collect();
        json!({"$defs": defs, "$ref": "#/$defs/d0"})
    }

    #[test]
    fn references_that_multiply_are_refused() {
        assert!(check(&chain(60, 1)).is_ok());
        assert!(check(&chain(10, 2)).is_ok());
        assert!(check(&chain(60, 2)).is_err());
        assert!(check(&chain(5_000, 1)).is_err());
    }

    #[test]
    fn other_ways_to_name_a_schema_are_followed_too() {
        for (name, reference) in [("$anchor", "#a"), ("$id", "x:a")] {
            let defs: Map<String, Value> = (0..40)
                .map(|i| {
                    let next = json!({"$ref": format!("{reference}{}", i + 1)});
                    let own = format!("{}{i}", reference.trim_start_matches('#'));
                    (format!("d{i}"), json!({name: own, "allOf": [next, next]}))
                })
                .collect();
            let schema = json!({"$defs": defs, "$ref": format!("{reference}0")});
            assert!(check(&schema).is_err(), "{name}");
        }
    }

    #[test]
    fn what_refers_to_itself_is_fine() {
        let tree = json!({"type": "object", "properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}});
        assert!(check(&tree).is_ok());
        assert!(check(&json!({"$ref": "#"})).is_ok());
    }
}
