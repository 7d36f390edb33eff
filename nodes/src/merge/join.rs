//! Combination by equal fields, as a join of two tables.

use std::{collections::HashMap, sync::Arc};

use callboard_runtime::{bounds::Meter, item::Item, node::NodeError};
use serde_json::Value;

use super::{JoinMode, Matches, OutputFrom, Parameters, Source, check_count, combine::Combiner};
use crate::{fields::Path, parameters::invalid, values};

/// What found a partner and what did not.
struct Matched<'i> {
    /// Items of input 1 with their partners.
    pairs: Vec<(Source<'i>, Vec<Source<'i>>)>,
    alone1: Vec<Source<'i>>,
    /// Items of input 2 that are somebody's partner, in their order.
    partners: Vec<Source<'i>>,
    alone2: Vec<Source<'i>>,
}

pub(super) fn join(
    parameters: &Parameters,
    combiner: &Combiner,
    first: &[Source<'_>],
    second: &[Source<'_>],
) -> Result<Vec<Item>, NodeError> {
    if parameters.fields_to_match.0.is_empty() {
        return Err(invalid("`fields_to_match` names nothing"));
    }
    let matched = find(parameters, first, second)?;
    let pairs = || {
        let pairs = matched.pairs.iter();
        pairs.flat_map(|(item, partners)| partners.iter().map(|partner| [*item, *partner]))
    };
    // Every pair is a copy of both.
    let combined = || {
        let mut meter = Meter::output();
        let items = pairs().map(|pair| meter.passing(combiner.combine(&pair)));
        items.collect::<Result<Vec<Item>, _>>()
    };
    let alone = |sources: &[Source<'_>]| -> Vec<Item> {
        sources
            .iter()
            .map(|source| combiner.alone(*source))
            .collect()
    };
    let passed = |sources: &[Source<'_>]| -> Vec<Item> {
        sources.iter().map(|source| source.passed()).collect()
    };
    Ok(match (parameters.join_mode, parameters.output_data_from) {
        (JoinMode::KeepMatches, OutputFrom::Both) => combined()?,
        (JoinMode::KeepMatches, OutputFrom::Input1) => matched
            .pairs
            .iter()
            .map(|(item, _)| item.passed())
            .collect(),
        (JoinMode::KeepMatches, OutputFrom::Input2) => passed(&matched.partners),
        (JoinMode::KeepNonMatches, OutputFrom::Input1) => passed(&matched.alone1),
        (JoinMode::KeepNonMatches, OutputFrom::Input2) => passed(&matched.alone2),
        (JoinMode::KeepNonMatches, OutputFrom::Both) => {
            let first = passed(&matched.alone1)
                .into_iter()
                .map(|item| tagged(item, "input1"));
            first
                .chain(
                    passed(&matched.alone2)
                        .into_iter()
                        .map(|item| tagged(item, "input2")),
                )
                .collect()
        }
        (JoinMode::KeepEverything, _) => combined()?
            .into_iter()
            .chain(alone(&matched.alone1))
            .chain(alone(&matched.alone2))
            .collect(),
        (JoinMode::EnrichInput1, _) => [combined()?, alone(&matched.alone1)].concat(),
        (JoinMode::EnrichInput2, _) => [combined()?, alone(&matched.alone2)].concat(),
    })
}

/// Fails as soon as there are too many pairs.
fn find<'i>(
    parameters: &Parameters,
    first: &[Source<'i>],
    second: &[Source<'i>],
) -> Result<Matched<'i>, NodeError> {
    let mut count = 0;
    let pairs = &parameters.fields_to_match.0;
    let fuzzy = parameters.fuzzy_compare;
    let mut places: HashMap<String, Vec<usize>> = HashMap::new();
    for (i, source) in second.iter().enumerate() {
        if let Some(key) = key(&source.item.json, pairs.iter().map(|(_, path)| path), fuzzy) {
            places.entry(key).or_default().push(i);
        }
    }
    let mut is_partner = vec![false; second.len()];
    let mut matched = Matched {
        pairs: Vec::new(),
        alone1: Vec::new(),
        partners: Vec::new(),
        alone2: Vec::new(),
    };
    for source in first {
        let key = key(&source.item.json, pairs.iter().map(|(path, _)| path), fuzzy);
        let Some(found) = key.and_then(|key| places.get(&key)) else {
            matched.alone1.push(*source);
            continue;
        };
        let found = match parameters.multiple_matches {
            Matches::All => found.as_slice(),
            Matches::First => &found[..1],
        };
        count += found.len();
        check_count(count)?;
        for &i in found {
            is_partner[i] = true;
        }
        matched
            .pairs
            .push((*source, found.iter().map(|&i| second[i]).collect()));
    }
    for (source, is_partner) in second.iter().zip(is_partner) {
        if is_partner {
            &mut matched.partners
        } else {
            &mut matched.alone2
        }
        .push(*source);
    }
    Ok(matched)
}

/// What is compared. `None` when a field is missing: such an item has no partner.
fn key<'p>(json: &Value, paths: impl Iterator<Item = &'p Path>, fuzzy: bool) -> Option<String> {
    paths
        .map(|path| Some(values::key(path.get(json)?, fuzzy) + "\n"))
        .collect()
}

fn tagged(item: Item, input: &str) -> Item {
    let mut members = item.json.as_object().cloned().unwrap_or_default();
    members.insert("_source".to_owned(), input.into());
    Item {
        json: Arc::new(Value::Object(members)),
        ..item
    }
}
