//! One entry of `steps`, read but not yet connected.

use std::time::Duration;

use super::{Compiler, Scope, settings};
use crate::{
    document::{reader::Reader, wording},
    model::graph::{Action, OnError, Retry},
    node::{AnyNode, EffectClass, MAIN, Ports},
    tool::OnCrash,
};

/// The longest step id, in characters.
const ID_CHARS_MAX: usize = 64;
/// The most targets of one port, and the most entries of one `after`.
const EDGES_MAX: usize = 100;
const PORT_CHARS_MAX: usize = 100;
const ATTEMPTS_MAX: i64 = 100;
/// Attempts of a step that asks for retries and gives no number.
const ATTEMPTS_DEFAULT: u32 = 3;

/// Node types that the language has; those that no crate registered are not in this version.
const LATER_NODE_TYPES: [&str; 16] = [
    "loop",
    "wait.signal",
    "wait.callback",
    "wait.approval",
    "wait.form",
    "wait.timer",
    "wait.until",
    "agent",
    "llm.complete",
    "model.create",
    "model.read",
    "model.update",
    "model.upsert",
    "model.delete",
    "model.list",
    "workflow.execute",
];

/// A step as read. What is faulty is left out, so that the rest can still be checked.
pub(super) struct Draft<'a> {
    pub(super) at: Reader<'a>,
    pub(super) id: Option<&'a str>,
    /// `None` when the node type is not known: every port may exist.
    pub(super) ports: Option<Ports>,
    pub(super) routes: Vec<Route<'a>>,
    pub(super) after: Option<Vec<After<'a>>>,
    pub(super) join: Option<(Need, Reader<'a>)>,
    pub(super) on_error: Option<(OnError, Reader<'a>)>,
    pub(super) retry: Retry,
    pub(super) timeout: Option<Duration>,
    pub(super) on_crash: OnCrash,
    pub(super) work: Option<Work<'a>>,
}

/// What a step does, compiled.
pub(super) struct Work<'a> {
    pub(super) uses: &'a str,
    pub(super) action: Action,
    pub(super) effect: EffectClass,
    pub(super) ports: Ports,
    pub(super) parameters: super::parameters::Compiled,
}

/// One member of `routes`.
pub(super) struct Route<'a> {
    pub(super) port: &'a str,
    pub(super) at: Reader<'a>,
    /// Whether `end` is among its targets.
    pub(super) ends: bool,
    pub(super) targets: Vec<(&'a str, Reader<'a>)>,
}

/// One entry of `after`.
pub(super) struct After<'a> {
    pub(super) step: &'a str,
    pub(super) port: &'a str,
    pub(super) at: Reader<'a>,
}

/// `join`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    All,
    Any,
    Some(usize),
}

impl<'a> Compiler<'a, '_> {
    pub(super) fn step(&mut self, at: &Reader<'a>, scope: &Scope<'_, 'a>) -> Draft<'a> {
        let mut draft = Draft {
            at: at.clone(),
            id: None,
            ports: None,
            routes: Vec::new(),
            after: None,
            join: None,
            on_error: None,
            retry: Retry::default(),
            timeout: None,
            on_crash: self.on_crash,
            work: None,
        };
        let Some(mut fields) = at.fields() else {
            return draft;
        };
        draft.id = fields.required("id").and_then(|id| self.step_id(&id));
        let uses = fields.required("uses");
        let with = fields.optional("with");
        let steps = fields.optional("steps");
        if let Some(retry) = fields.optional("retry") {
            draft.retry = read_retry(&retry).unwrap_or_default();
        }
        draft.timeout = fields
            .optional("timeout")
            .and_then(|timeout| timeout.duration());
        draft.on_error = fields.optional("on_error").and_then(read_on_error);
        if let Some(choice) = fields.optional("on_crash") {
            draft.on_crash = settings::on_crash(&choice).unwrap_or_default();
        }
        draft.routes = fields
            .optional("routes")
            .map(|routes| read_routes(&routes))
            .unwrap_or_default();
        draft.after = fields
            .optional("after")
            .and_then(|after| read_after(&after));
        draft.join = fields
            .optional("join")
            .and_then(|join| read_join(join, draft.after.as_deref()));
        let _ = fields.optional("notes").map(|notes| notes.string());
        fields.later(&["placement"]);
        fields.finish();
        draft.work = uses.and_then(|uses| self.work(at, &uses, with, steps, scope));
        draft.ports = draft.work.as_ref().map(|work| work.ports.clone());
        draft
    }

    fn work(
        &mut self,
        at: &Reader<'a>,
        uses: &Reader<'a>,
        with: Option<Reader<'a>>,
        steps: Option<Reader<'a>>,
        scope: &Scope<'_, 'a>,
    ) -> Option<Work<'a>> {
        if uses.value() == "map" {
            return self.map(at, with, steps, scope);
        }
        let node = self.node_type(uses)?;
        if let Some(steps) = steps {
            steps.fault("extra_forbidden", "Only a `map` has `steps` of its own");
        }
        let with = with.unwrap_or_else(|| super::parameters::none(at));
        let parameters = self.parameters(&node, &with, scope)?;
        Some(Work {
            uses: uses.string()?,
            effect: node.node().effect(with.value()),
            ports: node.node().ports(with.value()),
            action: Action::Node(node),
            parameters,
        })
    }

    fn node_type(&mut self, uses: &Reader<'a>) -> Option<AnyNode> {
        let name = uses.string()?;
        self.used.insert(name);
        if let Some(node) = self.nodes.find(name) {
            return Some(node.clone());
        }
        if LATER_NODE_TYPES.contains(&name) {
            uses.unsupported(&format!("`{name}` is"));
            return None;
        }
        let mut known: Vec<_> = self.nodes.names().chain(["map"]).collect();
        known.sort_unstable();
        let hint = wording::hint(name, known, "known are");
        uses.fault("value_error", format!("Unknown node type `{name}`{hint}"));
        None
    }

    /// Ids are unique in the whole workflow: `$('id')` and the journal know no lists within lists. A faulty one is given
    /// all the same, so that what names it is not faulty too.
    fn step_id(&mut self, id: &Reader<'a>) -> Option<&'a str> {
        let name = id.text(1..=ID_CHARS_MAX)?;
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if !name.chars().all(fits) {
            let message = "A step's id should be made of letters, digits, `-` and `_`";
            id.fault("string_pattern_mismatch", message);
        } else if matches!(name, "trigger" | "end") {
            let message = format!("`{name}` has a meaning of its own: choose another id");
            id.fault("value_error", message);
        } else if let Some(first) = self.seen.get(name) {
            let message = format!("Duplicate step id `{name}`; `{first}` has it already");
            id.fault("value_error", message);
        } else {
            let step = id.path().split_last().map(|(_, step)| step.join("."));
            self.seen.insert(name, step.unwrap_or_default());
        }
        Some(name)
    }
}

fn read_on_error(choice: Reader<'_>) -> Option<(OnError, Reader<'_>)> {
    let read = choice.choice(&[
        ("fail", OnError::Fail),
        ("continue", OnError::Continue),
        ("route", OnError::Route),
    ])?;
    Some((read, choice))
}

fn read_retry(retry: &Reader<'_>) -> Option<Retry> {
    let mut fields = retry.fields()?;
    let attempts = fields
        .optional("max_attempts")
        .map(|max| max.integer(1..=ATTEMPTS_MAX));
    let exponential = fields
        .optional("backoff")
        .map(|backoff| backoff.choice(&[("exponential", true), ("fixed", false)]));
    let initial = fields.optional("initial").map(|initial| initial.duration());
    let max = fields.optional("max");
    let max_read = max.as_ref().map(|max| max.duration());
    fields.later(&["max_elapsed"]);
    fields.finish();
    let default = Retry::default();
    let initial = initial.unwrap_or(Some(default.initial))?;
    let max_read = max_read.unwrap_or(Some(default.max.max(initial)))?;
    if let Some(max) = max.filter(|_| max_read < initial) {
        max.fault(
            "value_error",
            "`max` should be at least as long as `initial`",
        );
        return None;
    }
    Some(Retry {
        max_attempts: attempts.unwrap_or(Some(ATTEMPTS_DEFAULT))?,
        initial,
        max: max_read,
        exponential: exponential.unwrap_or(Some(true))?,
    })
}

fn read_routes<'a>(routes: &Reader<'a>) -> Vec<Route<'a>> {
    let entries = routes.entries().unwrap_or_default();
    entries
        .into_iter()
        .map(|(port, at)| {
            if port.is_empty() || port.chars().count() > PORT_CHARS_MAX {
                let message = format!("A port's name should have 1 to {PORT_CHARS_MAX} characters");
                at.fault_of_name("value_error", message);
            }
            let mut route = Route {
                port,
                ends: false,
                targets: Vec::new(),
                at: at.clone(),
            };
            for target in at.one_or_many(EDGES_MAX).unwrap_or_default() {
                match target.string() {
                    Some("end") => route.ends = true,
                    Some(step) if route.targets.iter().any(|(other, _)| *other == step) => {
                        target.fault("value_error", format!("`{step}` is in this list twice"));
                    }
                    Some(step) => route.targets.push((step, target)),
                    None => {}
                }
            }
            route
        })
        .collect()
}

fn read_after<'a>(after: &Reader<'a>) -> Option<Vec<After<'a>>> {
    let entries = match after.value() {
        serde_json::Value::Array(_) => after.list_not_empty(EDGES_MAX)?,
        _ => vec![after.clone()],
    };
    let mut read: Vec<After<'a>> = Vec::new();
    for at in entries {
        let Some(text) = at.string() else { continue };
        let (step, port) = text.split_once('.').unwrap_or((text, MAIN));
        if read
            .iter()
            .any(|other| (other.step, other.port) == (step, port))
        {
            at.fault(
                "value_error",
                format!("`{step}.{port}` is in this list twice"),
            );
        } else {
            read.push(After { step, port, at });
        }
    }
    Some(read)
}

fn read_join<'a>(join: Reader<'a>, after: Option<&[After<'a>]>) -> Option<(Need, Reader<'a>)> {
    let Some(after) = after else {
        join.fault("value_error", "`join` needs `after` with several entries");
        return None;
    };
    let need = match join.value() {
        serde_json::Value::Number(_) => Need::Some(join.integer(1..=after.len().max(1) as i64)?),
        _ => join.choice(&[("all", Need::All), ("any", Need::Any)])?,
    };
    Some((need, join))
}
