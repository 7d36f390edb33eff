//! `spec.trigger` and `spec.triggers`.

use std::collections::HashSet;

use super::{Claims, inputs};
use crate::{
    document::{
        Document, place_of,
        reader::{Faults, Fields, Reader},
    },
    model::graph::{Graph, Respond, Trigger, Webhook},
};

const TRIGGERS_MAX: usize = 32;
const PATH_CHARS_MAX: usize = 512;
const METHODS: [&str; 5] = ["GET", "POST", "PUT", "PATCH", "DELETE"];
/// Types that the language has and this version does not.
const LATER_TYPES: [&str; 6] = ["schedule", "event", "chat", "form", "error", "mcp"];

/// All triggers, the one by hand always among them. A list that is not sound gives `None`.
pub(super) fn read(spec: &mut Fields<'_>) -> Option<Vec<Trigger>> {
    let one = spec.optional("trigger");
    let several = spec.optional("triggers");
    if let (Some(_), Some(several)) = (&one, &several) {
        several.fault("value_error", "Write either `trigger` or `triggers`");
    }
    let readers = match (one, several) {
        (None, Some(several)) => several.list(TRIGGERS_MAX)?,
        (Some(one), _) => vec![one],
        (None, None) => Vec::new(),
    };
    let mut seen = HashSet::new();
    let triggers: Vec<_> = readers
        .iter()
        .map(|reader| {
            let trigger = read_one(reader)?;
            if !seen.insert(claim(&trigger)) {
                reader.fault(
                    "value_error",
                    "Another trigger of this workflow is the same",
                );
            }
            Some(trigger)
        })
        .collect();
    let mut triggers: Vec<Trigger> = triggers.into_iter().collect::<Option<_>>()?;
    if !triggers
        .iter()
        .any(|trigger| matches!(trigger, Trigger::Manual { .. }))
    {
        triggers.insert(0, Trigger::Manual { input_schema: None });
    }
    Some(triggers)
}

/// What two triggers cannot both have: a method and a path, whatever its parameters are called.
pub(super) fn claim(trigger: &Trigger) -> (String, String) {
    match trigger {
        Trigger::Manual { .. } => (String::new(), String::new()),
        Trigger::Webhook(webhook) => {
            let segments = webhook
                .path
                .split('/')
                .map(|segment| match segment.starts_with('{') {
                    true => "{}",
                    false => segment,
                });
            let path: Vec<_> = segments.collect();
            (webhook.method.clone(), path.join("/"))
        }
    }
}

#[derive(Clone, Copy)]
enum Type {
    Manual,
    Webhook,
}

fn read_one(trigger: &Reader<'_>) -> Option<Trigger> {
    let mut fields = trigger.fields()?;
    let name = fields.required("type")?;
    if let Some(later) = LATER_TYPES.iter().find(|later| name.value() == **later) {
        name.unsupported(&format!("`{later}` triggers are"));
        return None;
    }
    let read = match name.choice(&[("manual", Type::Manual), ("webhook", Type::Webhook)])? {
        Type::Manual => Some(Trigger::Manual {
            input_schema: schema(&mut fields, "input_schema"),
        }),
        Type::Webhook => webhook(&mut fields).map(Trigger::Webhook),
    };
    fields.finish();
    read
}

fn schema(fields: &mut Fields<'_>, name: &'static str) -> Option<serde_json::Value> {
    fields
        .optional(name)
        .and_then(|schema| inputs::read(&schema))
}

fn webhook(fields: &mut Fields<'_>) -> Option<Webhook> {
    let path = fields.required("path").and_then(|path| read_path(&path));
    let method = match fields.optional("method") {
        Some(method) => read_method(&method),
        None => Some("POST".to_owned()),
    };
    let respond = fields.optional("respond").map(|respond| {
        respond.choice(&[
            ("last_step", Respond::LastStep),
            ("immediately", Respond::Immediately),
            ("respond_step", Respond::RespondStep),
            ("stream", Respond::Stream),
        ])
    });
    let public = fields.optional("public").map(|public| public.bool());
    let input_schema = schema(fields, "input_schema");
    let response_schema = schema(fields, "response_schema");
    Some(Webhook {
        path: path?,
        method: method?,
        respond: respond.unwrap_or(Some(Respond::default()))?,
        public: public.unwrap_or(Some(false))?,
        input_schema,
        response_schema,
    })
}

fn read_method(method: &Reader<'_>) -> Option<String> {
    let upper = method.value().as_str().map(str::to_uppercase);
    if let Some(upper) = upper.filter(|upper| METHODS.contains(&upper.as_str())) {
        return Some(upper);
    }
    method
        .choice(&METHODS.map(|name| (name, name)))
        .map(str::to_owned)
}

/// Segments of letters, digits, `-`, `.`, `_`, `~`, or a parameter such as `{id}`. The leading `/` may be left out.
fn read_path(path: &Reader<'_>) -> Option<String> {
    let text = path.text(1..=PATH_CHARS_MAX)?;
    let relative = text.strip_prefix('/').unwrap_or(text);
    let mut names = HashSet::new();
    for segment in relative.split('/') {
        let parameter = segment
            .strip_prefix('{')
            .and_then(|rest| rest.strip_suffix('}'));
        let fits = match parameter {
            Some(name) => {
                !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            }
            None => {
                let plain = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
                !matches!(segment, "" | "." | "..") && segment.chars().all(plain)
            }
        };
        if !fits {
            let message = format!(
                "A path should be made of segments of letters, digits, `-`, `.`, `_` and `~`, or parameters such as `{{id}}`; `{segment}` is none"
            );
            path.fault("string_pattern_mismatch", message);
            return None;
        }
        if parameter.is_some_and(|name| !names.insert(name)) {
            path.fault(
                "value_error",
                format!("The parameter `{segment}` occurs twice"),
            );
            return None;
        }
    }
    Some(format!("/{relative}"))
}

/// Under which name the triggers of a workflow stand.
pub(super) fn member(document: &Document) -> &'static str {
    match document.body["spec"].get("triggers") {
        Some(_) => "triggers",
        None => "trigger",
    }
}

/// Faults each webhook that an earlier document claims.
pub(in crate::document) fn claim_all<'d>(
    graph: &Graph,
    document: &'d Document,
    claims: &mut Claims<'d>,
    faults: &Faults,
) {
    let webhooks = graph
        .triggers
        .iter()
        .filter(|trigger| matches!(trigger, Trigger::Webhook(_)));
    for trigger in webhooks {
        let claim = claim(trigger);
        let Some(first) = claims.get(&claim) else {
            claims.insert(claim, document);
            continue;
        };
        let (method, path) = claim;
        let place = place_of(first, &["spec", member(first)]);
        let message = format!(
            "The workflow `{}` claims the webhook `{method} {path}`{place}",
            first.name
        );
        faults.add(&["spec", member(document)], "value_error", message);
    }
}
