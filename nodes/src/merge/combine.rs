//! One item out of several.

use std::sync::Arc;

use callboard_runtime::item::Item;
use serde_json::{Map, Value};

use super::{Depth, JoinMode, Parameters, Source};

/// How items become one.
pub(super) struct Combiner {
    clash: Clash,
    deep: bool,
    empty_gives_way: bool,
}

/// Whose value stays under a name that several items have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clash {
    /// The last input's.
    PreferLast,
    /// That of the input with this index.
    Prefer(usize),
    /// All, under names with the input's number.
    AddSuffix,
}

impl Clash {
    /// Reads `prefer_input1`, `prefer_last`, `add_suffix`. The error is a sentence.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse().ok().filter(|number: &usize| *number > 0);
        match text {
            "prefer_last" => Ok(Self::PreferLast),
            "add_suffix" => Ok(Self::AddSuffix),
            text => match text.strip_prefix("prefer_input").and_then(number) {
                Some(number) => Ok(Self::Prefer(number - 1)),
                None => Err(format!(
                    "`clash_handling` is prefer_input1, prefer_input2, …, prefer_last or add_suffix, not `{text}`"
                )),
            },
        }
    }
}

impl Combiner {
    /// Fails when the preferred input is not there; the error is a sentence.
    pub(super) fn new(parameters: &Parameters, inputs: usize) -> Result<Self, String> {
        let clash = match &parameters.clash_handling {
            Some(text) => Clash::parse(text)?,
            // Data that is added in wins: that of the input which is not enriched.
            None if parameters.join_mode == JoinMode::EnrichInput2 => Clash::Prefer(0),
            None => Clash::PreferLast,
        };
        if matches!(clash, Clash::Prefer(input) if input >= inputs) {
            return Err(format!(
                "`clash_handling` prefers an input that is not there: there are {inputs}"
            ));
        }
        Ok(Self {
            clash,
            deep: parameters.merge_mode == Depth::Deep,
            empty_gives_way: parameters.override_empty,
        })
    }

    /// One item of all these, in the order of their inputs. It descends from the first.
    pub(super) fn combine(&self, sources: &[Source<'_>]) -> Item {
        let mut ordered: Vec<_> = sources.to_vec();
        if let Clash::Prefer(input) = self.clash {
            ordered.sort_by_key(|source| source.place.input as usize == input);
        }
        let (mut json, mut binary) = (Map::new(), Map::new());
        for source in &ordered {
            let own = self.named(*source);
            self.merge(&mut json, own.json.as_object());
            self.merge(&mut binary, own.binary.as_deref());
        }
        Item {
            json: Value::Object(json).into(),
            binary: (!binary.is_empty()).then(|| binary.into()),
            paired_item: sources.first().map(|source| source.place),
        }
    }

    /// An item that found no partner, with its names as they would be in a combination.
    pub(super) fn alone(&self, source: Source<'_>) -> Item {
        self.named(source)
    }

    fn named(&self, source: Source<'_>) -> Item {
        let mut item = source.passed();
        if self.clash == Clash::AddSuffix {
            let suffixed = item.json.as_object().into_iter().flatten();
            let number = source.place.input + 1;
            let json: Map<_, _> = suffixed
                .map(|(name, value)| (format!("{name}_{number}"), value.clone()))
                .collect();
            item.json = Arc::new(Value::Object(json));
        }
        item
    }

    fn merge(&self, into: &mut Map<String, Value>, from: Option<&Map<String, Value>>) {
        for (name, value) in from.into_iter().flatten() {
            match into.get_mut(name) {
                Some(present) => self.merge_value(present, value),
                None => {
                    into.insert(name.clone(), value.clone());
                }
            }
        }
    }

    fn merge_value(&self, into: &mut Value, from: &Value) {
        match (into, from) {
            (_, Value::Null) if self.empty_gives_way => {}
            (_, Value::String(text)) if self.empty_gives_way && text.is_empty() => {}
            (Value::Object(into), Value::Object(from)) if self.deep => self.merge(into, Some(from)),
            (Value::Array(into), Value::Array(from)) if self.deep => {
                for (i, element) in from.iter().enumerate() {
                    match into.get_mut(i) {
                        Some(present) => self.merge_value(present, element),
                        None => into.push(element.clone()),
                    }
                }
            }
            (into, from) => *into = from.clone(),
        }
    }
}
