//! Workflow documents: checked as a whole and compiled into a [`Graph`].
//!
//! Every part is read even when another is faulty, so one look shows all faults. Steps are read first (`step`),
//! then connected (`edges`), and a graph is only built when nothing was wrong. What the language has and this
//! version does not is refused by name, never ignored.
//!
//! Beyond the wording of the language: a route whose step also stands in the target's `after` with the same port is one
//! connection, not two; `routes: {main: end}` ends the run there, so the step listed next does not follow; the head of a
//! loop, to which only routes from further on lead, follows the step listed before it; inside a `map`, `after: trigger`
//! names the element.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use serde_json::Value;

use super::{
    Document, Fault,
    reader::{Faults, Reader},
};
use crate::{
    expression::Template,
    model::graph::{Action, Body, Graph, Map, OnError, Respond, Retry, Step, Trigger},
    node::{EffectClass, MAIN, NodeRegistry, Ports},
    schema::{Found, Schema},
    tool::OnCrash,
};

mod edges;
mod inputs;
mod parameters;
mod settings;
mod step;
mod trigger;

use edges::Wired;
use step::{Draft, Work};

/// The most steps of a workflow, those inside its maps included.
pub const STEPS_MAX: usize = 1_000;
/// How deep maps may stand in each other.
pub const MAP_DEPTH_MAX: usize = 4;
const MAP_PARALLEL_DEFAULT: usize = 8;
const MAP_PARALLEL_MAX: i64 = 1_000;

/// Webhooks by method and path, and the documents that claim them.
pub(super) type Claims<'d> = HashMap<(String, String), &'d Document>;
pub(super) use trigger::claim_all as claim_webhooks;

/// Compiles a workflow. Finds all faults.
pub fn compile(document: &Document, nodes: &NodeRegistry) -> Result<Graph, Vec<Fault>> {
    let faults = document.faults();
    let graph = read(document, nodes, &faults);
    faults.into_result(graph)
}

fn read(document: &Document, nodes: &NodeRegistry, faults: &Faults) -> Option<Graph> {
    if document.kind != "Workflow" {
        faults.add(&["kind"], "literal_error", "Input should be 'Workflow'");
        return None;
    }
    let mut fields = document.spec(faults).fields()?;
    fields.later(&["context"]);
    let triggers = trigger::read(&mut fields);
    let settings = settings::read(fields.optional("settings").as_ref());
    let steps = fields.required("steps");
    fields.finish();
    let mut compiler = Compiler {
        nodes,
        on_crash: settings
            .as_ref()
            .map(|(_, on_crash)| *on_crash)
            .unwrap_or_default(),
        ids: HashMap::new(),
        seen: HashMap::new(),
        used: HashSet::new(),
        schemas: HashMap::new(),
    };
    let body = steps.and_then(|steps| compiler.workflow(&steps));
    let triggers = triggers?;
    compiler.check_respond(&triggers, trigger::member(document), faults);
    Some(Graph {
        name: document.name.as_str().into(),
        required_scope: document.body["metadata"]["required_scope"]
            .as_str()
            .map(str::to_owned),
        triggers,
        settings: settings?.0,
        body: Arc::new(body?),
    })
}

/// What the steps of one workflow share while they are compiled.
struct Compiler<'a, 'n> {
    nodes: &'n NodeRegistry,
    /// What a step does after a crash unless it says otherwise.
    on_crash: OnCrash,
    /// All ids as written, with the map whose list they stand in.
    ids: HashMap<&'a str, Option<&'a str>>,
    /// Ids read so far, with their steps' paths.
    seen: HashMap<&'a str, String>,
    /// Node types that some step uses.
    used: HashSet<&'a str>,
    /// Parameter schemas of node types met so far.
    schemas: HashMap<&'static str, Result<Schema, Found>>,
}

/// Which steps an expression may name: those of its own list and of the lists around it.
struct Scope<'s, 'a> {
    ids: Vec<&'a str>,
    outer: Option<&'s Scope<'s, 'a>>,
}

impl<'a> Scope<'_, 'a> {
    fn sees(&self, name: &str) -> bool {
        self.ids.contains(&name) || self.outer.is_some_and(|outer| outer.sees(name))
    }

    fn visible(&self) -> Vec<&'a str> {
        let mut visible = self
            .outer
            .map_or_else(|| vec!["trigger"], |outer| outer.visible());
        visible.extend(&self.ids);
        visible
    }

    /// How many maps stand around this list.
    fn depth(&self) -> usize {
        self.outer.map_or(0, |outer| outer.depth() + 1)
    }
}

impl<'a> Compiler<'a, '_> {
    fn workflow(&mut self, steps: &Reader<'a>) -> Option<Body> {
        let mut count = 0;
        self.collect_ids(steps.value(), None, &mut count);
        if count > STEPS_MAX {
            let message = format!("A workflow should have at most {STEPS_MAX} steps, not {count}");
            steps.fault("too_long", message);
            return None;
        }
        self.body(steps, "trigger", None)
    }

    fn collect_ids(&mut self, steps: &'a Value, map: Option<&'a str>, count: &mut usize) {
        for step in steps.as_array().into_iter().flatten() {
            *count += 1;
            let id = step.get("id").and_then(Value::as_str);
            if let Some(id) = id {
                self.ids.entry(id).or_insert(map);
            }
            if let Some(inner) = step.get("steps") {
                self.collect_ids(inner, id, count);
            }
        }
    }

    /// Compiles one list of steps.
    fn body(
        &mut self,
        steps: &Reader<'a>,
        entry: &str,
        outer: Option<&Scope<'_, 'a>>,
    ) -> Option<Body> {
        let elements = steps.list_not_empty(STEPS_MAX)?;
        let ids = elements
            .iter()
            .filter_map(|step| step.value().get("id")?.as_str());
        let scope = Scope {
            ids: ids.collect(),
            outer,
        };
        let drafts: Vec<Draft<'a>> = elements
            .iter()
            .map(|step| self.step(step, &scope))
            .collect();
        let wired = edges::wire(&drafts, &|name| self.ids.contains_key(name));
        let mut wired = wired?.into_iter();
        let mut compiled = vec![entry_step(entry, wired.next()?)];
        let mut sound = true;
        for (draft, wired) in drafts.into_iter().zip(wired) {
            match finish(draft, wired) {
                Some(step) => compiled.push(step),
                None => sound = false,
            }
        }
        sound.then(|| Body::new(compiled))
    }

    /// A `map` step: its own parameters, and the steps it does for each element.
    fn map(
        &mut self,
        at: &Reader<'a>,
        with: Option<Reader<'a>>,
        steps: Option<Reader<'a>>,
        scope: &Scope<'_, 'a>,
    ) -> Option<Work<'a>> {
        if scope.depth() >= MAP_DEPTH_MAX {
            at.fault(
                "value_error",
                format!("Maps may stand in each other {MAP_DEPTH_MAX} deep"),
            );
            return None;
        }
        if steps.is_none() {
            at.fault_below(&["steps"], "missing", "Field required");
        }
        let body = steps.and_then(|steps| self.body(&steps, "", Some(scope)));
        let with = with.unwrap_or_else(|| parameters::none(at));
        let mut fields = with.fields()?;
        let items = fields.required("items");
        let parallel = fields
            .optional("max_parallel")
            .map(|max| max.integer(1..=MAP_PARALLEL_MAX));
        let collect = fields
            .optional("on_item_error")
            .map(|choice| choice.choice(&[("fail", false), ("collect", true)]));
        fields.finish();
        let items = items.filter(|items| {
            parameters::has_expression(items.value()) || items.list(usize::MAX).is_some()
        })?;
        // Only the elements are an expression; the rest was read above.
        let evaluated = serde_json::json!({"items": items.value()});
        let parameters = self.template(&with, &evaluated, &[], scope)?;
        let body = body?;
        Some(Work {
            uses: "map",
            effect: body
                .steps
                .iter()
                .map(|step| step.effect)
                .max()
                .unwrap_or(EffectClass::Pure),
            ports: Ports::Named(vec![MAIN.to_owned()]),
            action: Action::Map(Map {
                body: Arc::new(body),
                max_parallel: parallel.unwrap_or(Some(MAP_PARALLEL_DEFAULT))?,
                collect_errors: collect.unwrap_or(Some(false))?,
            }),
            parameters,
        })
    }

    /// A caller that a step is to answer would wait for ever if there were none.
    fn check_respond(&self, triggers: &[Trigger], member: &str, faults: &Faults) {
        let waits = triggers
            .iter()
            .any(|trigger| matches!(trigger, Trigger::Webhook(webhook) if webhook.respond == Respond::RespondStep));
        if waits && !self.used.contains("respond") {
            let message = "`respond: respond_step` needs a step that uses `respond`";
            faults.add(&["spec", member, "respond"], "value_error", message);
        }
    }
}

/// The step that passes on what started the list.
fn entry_step(id: &str, wired: Wired) -> Step {
    let with = Value::Object(serde_json::Map::new());
    let template = Template::compile(&with, &[]).expect("a template without text has no fault");
    Step {
        id: id.into(),
        uses: "trigger".into(),
        action: Action::Entry,
        effect: EffectClass::Pure,
        with: Arc::new(with),
        template: Arc::new(template),
        edges: wired.edges,
        join: None,
        retry: Retry::default(),
        timeout: None,
        on_error: OnError::Fail,
        on_crash: OnCrash::default(),
    }
}

/// A sound draft as a step. What its port `error` leads to decides what follows an error, unless the step says so.
fn finish(draft: Draft<'_>, wired: Wired) -> Option<Step> {
    let on_error = match (&draft.on_error, wired.error_routed) {
        (None, true) => OnError::Route,
        (None, false) => OnError::Fail,
        (Some((OnError::Route, at)), false) => {
            at.fault(
                "value_error",
                "`on_error: route` needs `routes: {error: …}`",
            );
            return None;
        }
        (Some((OnError::Fail | OnError::Continue, at)), true) => {
            at.fault(
                "value_error",
                "The port `error` is routed, which needs `on_error: route`",
            );
            return None;
        }
        (Some((said, _)), _) => *said,
    };
    let work = draft.work?;
    Some(Step {
        id: draft.id?.into(),
        uses: work.uses.into(),
        action: work.action,
        effect: work.effect,
        with: work.parameters.with,
        template: work.parameters.template,
        edges: wired.edges,
        join: wired.join,
        retry: draft.retry,
        timeout: draft.timeout,
        on_error,
        on_crash: draft.on_crash,
    })
}

#[cfg(test)]
mod tests;
