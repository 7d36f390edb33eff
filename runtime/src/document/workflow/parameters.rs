//! `with`: checked against the node type's schema, compiled into a template, and its references resolved.

use std::sync::{Arc, LazyLock};

use serde_json::{Map, Value};

use super::{Compiler, Scope};
use crate::{
    document::{reader::Reader, wording},
    expression::Template,
    node::{AnyNode, Node},
    schema::{Found, Schema},
};

/// `with` of a step that has none.
static NOTHING: LazyLock<Value> = LazyLock::new(|| Value::Object(Map::new()));

/// `with`, compiled.
pub(super) struct Compiled {
    pub(super) with: Arc<Value>,
    pub(super) template: Arc<Template>,
}

/// The parameters of a step that has no `with`.
pub(super) fn none<'a>(step: &Reader<'a>) -> Reader<'a> {
    let path = step.below(&["with"]);
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    Reader::at(&NOTHING, &path, step.faults())
}

impl<'a> Compiler<'a, '_> {
    /// Checks and compiles the parameters of a node.
    pub(super) fn parameters(
        &mut self,
        node: &AnyNode,
        with: &Reader<'a>,
        scope: &Scope<'_, 'a>,
    ) -> Option<Compiled> {
        with.entries()?;
        let before = with.faults().len();
        self.check_schema(node.node(), with);
        if with.faults().len() == before {
            for fault in node.node().check(with.value()) {
                with.fault_below(&fault.path, "value_error", fault.message);
            }
        }
        self.template(with, with.value(), node.node().verbatim(), scope)
    }

    /// Compiles `value`, which is `with` or a part of it.
    pub(super) fn template(
        &self,
        with: &Reader<'a>,
        value: &Value,
        verbatim: &[&str],
        scope: &Scope<'_, 'a>,
    ) -> Option<Compiled> {
        let template = Template::compile(value, verbatim).map_err(|faults| {
            for fault in faults {
                let text = find(value, &fault.path)
                    .and_then(Value::as_str)
                    .unwrap_or_default();
                let path = with.below(&fault.path);
                with.faults().add_at_offset(
                    &path,
                    text,
                    fault.offset,
                    "value_error",
                    fault.message,
                );
            }
        });
        let template = template.ok()?;
        for name in &template.references().steps {
            if let Some(message) = self.unknown_reference(name, scope) {
                let (path, text, offset) =
                    find_text(value, name, &mut Vec::new()).unwrap_or_default();
                let path = with.below(&path);
                with.faults()
                    .add_at_offset(&path, text, offset, "value_error", message);
            }
        }
        Some(Compiled {
            with: Arc::new(with.value().clone()),
            template: Arc::new(template),
        })
    }

    /// What is wrong with `$('name')` here: a step sees those of its own list and of the lists around it.
    fn unknown_reference(&self, name: &str, scope: &Scope<'_, 'a>) -> Option<String> {
        if name == "trigger" || scope.sees(name) {
            return None;
        }
        if let Some(Some(map)) = self.ids.get(name) {
            return Some(format!(
                "`$('{name}')` is a step inside the map `{map}` and cannot be seen from here; its results are those of `$('{map}')`"
            ));
        }
        let hint = wording::hint(name, scope.visible(), "the steps are");
        Some(format!("`$('{name}')` names no step{hint}"))
    }

    fn check_schema(&mut self, node: &dyn Node, with: &Reader<'a>) {
        let node_type = node.node_type();
        let schema = self.schemas.entry(node_type.name).or_insert_with(|| {
            let mut parameters = node_type.parameters.clone();
            if let Value::Object(schema) = &mut parameters {
                // The properties are all the parameters there are, unless the node type says otherwise.
                schema
                    .entry("additionalProperties")
                    .or_insert(Value::Bool(false));
            }
            Schema::check(&parameters)
        });
        let schema = match schema {
            Ok(schema) => schema,
            Err(fault) => {
                let message = format!(
                    "The parameters of `{}` cannot be checked: its schema is faulty ({})",
                    node_type.name, fault.message
                );
                return with.fault("value_error", message);
            }
        };
        for found in schema.find(with.value()) {
            if may_change(with.value(), &found) {
                continue;
            }
            let mut message = found.message;
            if let ("extra_forbidden", [name]) = (found.kind, found.path.as_slice()) {
                let known = node_type.parameters["properties"].as_object();
                let known = known.into_iter().flat_map(Map::keys).map(String::as_str);
                message += &wording::hint(name, known, "known here");
            }
            with.fault_below(&found.path, found.kind, message);
        }
    }
}

/// Whether an expression decides what the value will be, so that it cannot be judged yet.
fn may_change(with: &Value, found: &Found) -> bool {
    found.kind != "extra_forbidden" && find(with, &found.path).is_some_and(has_expression)
}

pub(super) fn has_expression(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains("{{"),
        Value::Array(elements) => elements.iter().any(has_expression),
        Value::Object(members) => members.values().any(has_expression),
        _ => false,
    }
}

fn find<'v>(value: &'v Value, path: &[String]) -> Option<&'v Value> {
    path.iter().try_fold(value, |value, segment| match value {
        Value::Object(members) => members.get(segment),
        Value::Array(elements) => elements.get(segment.parse::<usize>().ok()?),
        _ => None,
    })
}

/// The text with an expression that holds `name`, its path, and where in it the name begins.
fn find_text<'v>(
    value: &'v Value,
    name: &str,
    path: &mut Vec<String>,
) -> Option<(Vec<String>, &'v str, usize)> {
    let mut below = |segment: String, value: &'v Value| {
        path.push(segment);
        let found = find_text(value, name, path);
        path.pop();
        found
    };
    match value {
        Value::String(text) => {
            let begin = text.find("{{")?;
            let offset = begin + text[begin..].find(name)?;
            Some((path.clone(), text, offset))
        }
        Value::Array(elements) => {
            let mut elements = elements.iter().enumerate();
            elements.find_map(|(index, value)| below(index.to_string(), value))
        }
        Value::Object(members) => members
            .iter()
            .find_map(|(name, value)| below(name.clone(), value)),
        _ => None,
    }
}
