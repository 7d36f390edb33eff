//! `merge`: brings the items of several steps together, in the ways n8n's does.

use callboard_runtime::{
    bounds::{ITEMS_MAX, Meter},
    item::{Item, Items, PairedItem},
    node::{
        Node, NodeError, NodeInput, NodeOutcome, NodeOutput, NodeType, ParameterFault, PureNode,
    },
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    fields::Path,
    parameters::{self, fault, invalid, is_expression},
};
use combine::Combiner;

mod combine;
mod join;

pub(crate) struct Merge;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    #[serde(default)]
    mode: Mode,
    #[serde(default)]
    combine_by: CombineBy,
    #[serde(default)]
    fields_to_match: Pairs,
    #[serde(default)]
    join_mode: JoinMode,
    #[serde(default)]
    output_data_from: OutputFrom,
    #[serde(default)]
    multiple_matches: Matches,
    #[serde(default)]
    fuzzy_compare: bool,
    #[serde(default)]
    include_unpaired: bool,
    #[serde(default = "one")]
    use_data_of_input: usize,
    #[serde(default)]
    clash_handling: Option<String>,
    #[serde(default)]
    merge_mode: Depth,
    #[serde(default)]
    override_empty: bool,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Mode {
    #[default]
    Append,
    Combine,
    ChooseBranch,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum CombineBy {
    #[default]
    Fields,
    Position,
    All,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum JoinMode {
    #[default]
    KeepMatches,
    KeepNonMatches,
    KeepEverything,
    EnrichInput1,
    EnrichInput2,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum OutputFrom {
    #[default]
    Both,
    Input1,
    Input2,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Matches {
    #[default]
    All,
    First,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Depth {
    #[default]
    Deep,
    Shallow,
}

/// Which field of input 1 is compared with which of input 2.
#[derive(Default, Deserialize)]
#[serde(try_from = "WrittenPairs")]
struct Pairs(Vec<(Path, Path)>);

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected paths, or a list of {field1, field2}")]
enum WrittenPairs {
    Same(crate::fields::Fields),
    Different(Vec<WrittenPair>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenPair {
    field1: Path,
    field2: Path,
}

impl From<WrittenPairs> for Pairs {
    fn from(written: WrittenPairs) -> Self {
        Self(match written {
            WrittenPairs::Same(fields) => fields
                .0
                .into_iter()
                .map(|path| (path.clone(), path))
                .collect(),
            WrittenPairs::Different(pairs) => pairs
                .into_iter()
                .map(|pair| (pair.field1, pair.field2))
                .collect(),
        })
    }
}

fn one() -> usize {
    1
}

impl Node for Merge {
    fn node_type(&self) -> NodeType {
        NodeType {
            several_inputs: true,
            ..parameters::pure(
                "merge",
                "Brings the items of several steps together. Input 1 is the first step under `after`.",
                parameters::schema(&[], properties()),
            )
        }
    }

    fn check(&self, with: &Value) -> Vec<ParameterFault> {
        let word = |name| with.get(name).and_then(Value::as_str);
        let mut faults = Vec::new();
        let by_fields =
            word("mode") == Some("combine") && word("combine_by").is_none_or(|by| by == "fields");
        if by_fields && with.get("fields_to_match").is_none() {
            faults.push(fault(&["fields_to_match"], "Needed to combine by fields"));
        }
        let clash = with
            .get("clash_handling")
            .filter(|value| !is_expression(value));
        if let Some(text) = clash.and_then(Value::as_str)
            && let Err(message) = combine::Clash::parse(text)
        {
            faults.push(fault(&["clash_handling"], message));
        }
        faults
    }
}

fn properties() -> Value {
    json!({
        "mode": {
            "enum": ["append", "combine", "choose_branch"], "default": "append",
            "description": "append: one input after the other; combine: items of several inputs into one; choose_branch: wait for all, pass one on.",
        },
        "combine_by": {
            "enum": ["fields", "position", "all"], "default": "fields",
            "description": "With `combine`, which items go together: those with equal fields, those at the same place, or each with each.",
        },
        "fields_to_match": {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"anyOf": [
                    {"type": "string"},
                    {
                        "type": "object",
                        "properties": {"field1": {"type": "string"}, "field2": {"type": "string"}},
                        "required": ["field1", "field2"],
                        "additionalProperties": false,
                    },
                ]}},
            ],
            "description": "By fields: the paths to compare, `{field1, field2}` where they differ between input 1 and input 2.",
        },
        "join_mode": {
            "enum": ["keep_matches", "keep_non_matches", "keep_everything", "enrich_input1", "enrich_input2"],
            "default": "keep_matches",
            "description": "By fields: which items leave; as an inner join, an anti-join, an outer, a left or a right join.",
        },
        "output_data_from": {
            "enum": ["both", "input1", "input2"], "default": "both",
            "description": "With `keep_matches` and `keep_non_matches`: whose data leaves.",
        },
        "multiple_matches": {
            "enum": ["all", "first"], "default": "all",
            "description": "By fields: whether an item of input 1 is combined with all its matches or the first.",
        },
        "fuzzy_compare": {
            "type": "boolean", "default": false,
            "description": "By fields: whether 1 equals \"1\", and null equals \"\".",
        },
        "include_unpaired": {
            "type": "boolean", "default": false,
            "description": "By position: whether items without a partner leave too.",
        },
        "use_data_of_input": {
            "type": "integer", "minimum": 1, "default": 1,
            "description": "With `choose_branch`: the input that is passed on.",
        },
        "clash_handling": {
            "type": "string",
            "description": "Whose value wins under a name that several have: prefer_input1, prefer_input2, … or prefer_last; add_suffix keeps all, as name_1 and name_2. Otherwise the last input's, and input 1's with `enrich_input2`.",
        },
        "merge_mode": {
            "enum": ["deep", "shallow"], "default": "deep",
            "description": "Whether objects under the same name are combined, too, or the winner's replaces the other.",
        },
        "override_empty": {
            "type": "boolean", "default": false,
            "description": "Whether a winner that is null or an empty text gives way.",
        },
    })
}

/// An item and the input and place it has there.
#[derive(Clone, Copy)]
struct Source<'i> {
    item: &'i Item,
    place: PairedItem,
}

impl Source<'_> {
    /// The item as it is, made from itself.
    fn passed(self) -> Item {
        Item {
            paired_item: Some(self.place),
            ..self.item.clone()
        }
    }
}

fn sources(input: u32, items: &Items) -> impl Iterator<Item = Source<'_>> {
    items.iter().zip(0..).map(move |(item, index)| Source {
        item,
        place: PairedItem { item: index, input },
    })
}

impl PureNode for Merge {
    fn run(&self, input: &NodeInput) -> Result<NodeOutcome, NodeError> {
        let parameters: Parameters = input.parameters(0)?;
        let inputs: Vec<Vec<Source<'_>>> = (0..)
            .zip(&input.inputs)
            .map(|(i, items)| sources(i, items).collect())
            .collect();
        let items = match parameters.mode {
            Mode::Append => inputs.into_iter().flatten().map(Source::passed).collect(),
            Mode::ChooseBranch => {
                let chosen = parameters
                    .use_data_of_input
                    .checked_sub(1)
                    .and_then(|i| inputs.get(i));
                let chosen = chosen.ok_or_else(|| {
                    invalid(format!(
                        "`use_data_of_input` must be a number from 1 to {}",
                        inputs.len()
                    ))
                })?;
                chosen.iter().map(|source| source.passed()).collect()
            }
            Mode::Combine => combined(&parameters, &inputs)?,
        };
        Ok(NodeOutput::main(items).into())
    }
}

fn combined(parameters: &Parameters, inputs: &[Vec<Source<'_>>]) -> Result<Vec<Item>, NodeError> {
    let combiner = Combiner::new(parameters, inputs.len()).map_err(invalid)?;
    let two = || match inputs {
        [first, second] => Ok((first.as_slice(), second.as_slice())),
        _ => Err(invalid(format!(
            "this combination takes two inputs, not {}",
            inputs.len()
        ))),
    };
    match parameters.combine_by {
        CombineBy::Position => by_position(parameters, &combiner, inputs),
        CombineBy::All => {
            let (first, second) = two()?;
            each_with_each(&combiner, first, second)
        }
        CombineBy::Fields => {
            let (first, second) = two()?;
            join::join(parameters, &combiner, first, second)
        }
    }
}

fn by_position(
    parameters: &Parameters,
    combiner: &Combiner,
    inputs: &[Vec<Source<'_>>],
) -> Result<Vec<Item>, NodeError> {
    let mut meter = Meter::output();
    let lengths = inputs.iter().map(Vec::len);
    let len = if parameters.include_unpaired {
        lengths.max()
    } else {
        lengths.min()
    };
    (0..len.unwrap_or_default())
        .map(|i| {
            let present: Vec<_> = inputs
                .iter()
                .filter_map(|items| items.get(i).copied())
                .collect();
            meter.passing(combiner.combine(&present))
        })
        .collect()
}

fn each_with_each(
    combiner: &Combiner,
    first: &[Source<'_>],
    second: &[Source<'_>],
) -> Result<Vec<Item>, NodeError> {
    check_count(first.len().saturating_mul(second.len()))?;
    let pairs = first
        .iter()
        .flat_map(|a| second.iter().map(move |b| [*a, *b]));
    let mut meter = Meter::output();
    pairs
        .map(|pair| meter.passing(combiner.combine(&pair)))
        .collect()
}

fn check_count(items: usize) -> Result<(), NodeError> {
    if items > ITEMS_MAX {
        return Err(NodeError::permanent(
            "too_many_items",
            format!("the combination has more than {ITEMS_MAX} items"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
