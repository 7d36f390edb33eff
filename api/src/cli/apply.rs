//! `apply`: makes a server's documents what the files say.
//!
//! Safe to repeat, and safe to stop at any point: each document is stored or not, and the next run does the rest.

use std::{collections::BTreeMap, path::PathBuf};

use callboard_runtime::document::{Document, Fault};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Failure,
    client::{Client, Refusal},
    documents,
    output::{Output, harmless, member, shorten},
    validate,
};

/// How many changes of one document are shown to a person.
const CHANGES_SHOWN: usize = 20;
/// How long a shown value may be, in characters.
const VALUE_CHARS_SHOWN: usize = 60;
/// What a server shows in place of a secret that it holds.
const HIDDEN: &str = "***";

/// Flags of `apply`.
#[derive(clap::Args)]
pub struct ApplyArgs {
    /// Directories or files; `-` is standard input
    #[arg(required = true, value_name = "DIR|FILE")]
    paths: Vec<PathBuf>,
    /// Say what would change, change nothing
    #[arg(long)]
    dry_run: bool,
}

/// What became of a document.
struct Applied {
    kind: String,
    name: String,
    file: Option<String>,
    result: &'static str,
    version: Option<i64>,
    changes: Vec<Change>,
}

/// A member that differs.
#[derive(Debug, PartialEq)]
struct Change {
    path: String,
    old: Option<Value>,
    new: Option<Value>,
}

/// Creates what is missing, replaces what differs, and prints what it did.
pub async fn apply(client: &Client, args: &ApplyArgs, output: &Output) -> Result<(), Failure> {
    let loaded = documents::read_paths(&args.paths)?;
    let mut faults = loaded.faults;
    // All of it before any of it: a set of documents is not left half applied for want of a comma.
    let nodes = documents::node_types()?;
    faults.extend(documents::check(&loaded.documents, &nodes));
    if !faults.is_empty() {
        return validate::report(&faults, loaded.documents.len(), output);
    }
    let mut applied = Vec::new();
    let mut pending: Vec<&Document> = loaded.documents.iter().collect();
    // Agents may name workflows as tools, and workflows agents: what the server refuses is tried again as long
    // as something else got through.
    loop {
        let before = pending.len();
        let mut refused = Vec::new();
        let mut faults = Vec::new();
        for document in pending {
            match apply_one(client, document, args.dry_run).await {
                Ok(done) => {
                    if !output.is_json() {
                        print(&done, output);
                    }
                    applied.push(done);
                }
                Err(Failure::Refused(refusal)) if refusal.status == 422 => {
                    faults.extend(faults_of(document, &refusal));
                    refused.push(document);
                }
                Err(failure) => return Err(in_document(document, failure)),
            }
        }
        if refused.is_empty() {
            break;
        } else if refused.len() == before {
            return validate::report(&faults, loaded.documents.len(), output);
        }
        pending = refused;
    }
    summarise(&applied, args.dry_run, output);
    Ok(())
}

async fn apply_one(
    client: &Client,
    document: &Document,
    dry_run: bool,
) -> Result<Applied, Failure> {
    let collection = documents::collection(&document.kind).ok_or_else(|| {
        Failure::Failed(format!(
            "`{}` is not a kind of document that can be applied",
            document.kind
        ))
    })?;
    let path = ["v1", collection, document.name.as_str()];
    let mut applied = Applied {
        kind: document.kind.clone(),
        name: document.name.clone(),
        file: document.source.file.clone(),
        result: "created",
        version: None,
        changes: Vec::new(),
    };
    let Some(stored) = client.find(&path).await? else {
        if !dry_run {
            let answer = client
                .with_body(Method::POST, &path[..2], &document.body)
                .await?;
            applied.version = answer.get("version").and_then(Value::as_i64);
        }
        return Ok(applied);
    };
    let version = stored.get("version").and_then(Value::as_i64);
    let (changes, hidden) = changes_between(&stored, &document.body);
    applied.changes = changes;
    applied.version = version;
    applied.result = if applied.changes.is_empty() {
        "unchanged"
    } else {
        "changed"
    };
    if (hidden || applied.result == "changed") && !dry_run {
        let answer = client.with_body(Method::PUT, &path, &document.body).await?;
        applied.version = answer.get("version").and_then(Value::as_i64);
        // Only the server can compare what it does not show.
        applied.result = if applied.version == version {
            "unchanged"
        } else {
            "changed"
        };
    }
    Ok(applied)
}

/// How a stored document differs from the one in the file, and whether it may differ in secrets besides.
fn changes_between(stored: &Value, body: &Value) -> (Vec<Change>, bool) {
    let mut changes = Vec::new();
    for part in ["metadata", "spec"] {
        compare(part, stored.get(part), body.get(part), &mut changes);
    }
    let all = changes.len();
    changes.retain(|change| !is_hidden(change.old.as_ref()));
    let hidden = changes.len() < all;
    (changes, hidden)
}

fn is_hidden(value: Option<&Value>) -> bool {
    value.is_some_and(|value| value == HIDDEN)
}

fn compare(path: &str, old: Option<&Value>, new: Option<&Value>, changes: &mut Vec<Change>) {
    if old == new {
        return;
    }
    match (old, new) {
        (Some(Value::Object(old)), Some(Value::Object(new))) => {
            let names = old
                .keys()
                .chain(new.keys().filter(|name| !old.contains_key(*name)));
            for name in names {
                compare(
                    &format!("{path}.{name}"),
                    old.get(name),
                    new.get(name),
                    changes,
                );
            }
        }
        (Some(Value::Array(old)), Some(Value::Array(new))) => {
            compare_lists(path, old, new, changes)
        }
        _ => changes.push(Change {
            path: path.to_owned(),
            old: old.cloned(),
            new: new.cloned(),
        }),
    }
}

/// Elements with an `id` or `name` are compared with their namesakes, others with those in the same place.
fn compare_lists(path: &str, old: &[Value], new: &[Value], changes: &mut Vec<Change>) {
    let (Some(old_names), Some(new_names)) = (names(old), names(new)) else {
        for index in 0..old.len().max(new.len()) {
            compare(
                &format!("{path}[{index}]"),
                old.get(index),
                new.get(index),
                changes,
            );
        }
        return;
    };
    let before = changes.len();
    let all = old_names.keys().chain(
        new_names
            .keys()
            .filter(|name| !old_names.contains_key(*name)),
    );
    for name in all {
        let (old, new) = (
            old_names.get(name).map(|i| &old[*i]),
            new_names.get(name).map(|i| &new[*i]),
        );
        compare(&format!("{path}[{name}]"), old, new, changes);
    }
    if changes.len() == before {
        let order = |list: &[Value]| {
            list.iter()
                .map(|e| Value::from(name_of(e).unwrap_or_default()))
                .collect()
        };
        changes.push(Change {
            path: format!("{path} (order)"),
            old: Some(Value::Array(order(old))),
            new: Some(Value::Array(order(new))),
        });
    }
}

fn name_of(element: &Value) -> Option<&str> {
    ["id", "name"]
        .iter()
        .find_map(|key| element.get(key)?.as_str())
}

/// The place of each element by its name; none when some have no name or share one.
fn names(list: &[Value]) -> Option<BTreeMap<&str, usize>> {
    let names: BTreeMap<&str, usize> = list
        .iter()
        .enumerate()
        .map(|(index, element)| Some((name_of(element)?, index)))
        .collect::<Option<_>>()?;
    (names.len() == list.len()).then_some(names)
}

/// The faults of a 422 with their places in the file.
fn faults_of(document: &Document, refusal: &Refusal) -> Vec<Fault> {
    let details = refusal
        .body
        .get("detail")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    if details.is_empty() {
        return vec![as_fault(document, Vec::new(), refusal.message.clone())];
    }
    details
        .iter()
        .map(|detail| {
            let path: Vec<String> = detail
                .get("loc")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .map(|part| {
                    part.as_str()
                        .map_or_else(|| part.to_string(), str::to_owned)
                })
                .collect();
            let path = path
                .strip_prefix(&["body".to_owned()])
                .map(<[String]>::to_vec)
                .unwrap_or(path);
            as_fault(document, path, member(detail, "msg"))
        })
        .collect()
}

fn as_fault(document: &Document, path: Vec<String>, message: String) -> Fault {
    Fault {
        file: document.source.file.clone(),
        position: document.source.position(&path),
        path,
        message,
        kind: "value_error",
    }
}

/// The failure with the name of the document it is about.
fn in_document(document: &Document, failure: Failure) -> Failure {
    match failure {
        Failure::Refused(mut refusal) => {
            refusal.message = format!("{} {}: {}", document.kind, document.name, refusal.message);
            Failure::Refused(refusal)
        }
        other => other,
    }
}

fn print(applied: &Applied, output: &Output) {
    let paint = output.paint;
    let version = applied
        .version
        .map(|version| paint.dim(&format!("  version {version}")))
        .unwrap_or_default();
    let padding = " ".repeat("unchanged".len() - applied.result.len());
    output.line(format!(
        "{}{padding}  {} {}{version}",
        paint.status(applied.result),
        applied.kind,
        applied.name
    ));
    for change in applied.changes.iter().take(CHANGES_SHOWN) {
        output.line(format!("    {}", describe(change)));
    }
    if applied.changes.len() > CHANGES_SHOWN {
        output.line(format!(
            "    … and {} more",
            applied.changes.len() - CHANGES_SHOWN
        ));
    }
}

fn describe(change: &Change) -> String {
    let show = |value: &Value| shorten(&harmless(&value.to_string()), VALUE_CHARS_SHOWN);
    let new = change
        .new
        .as_ref()
        .map(|value| without_secrets(&change.path, value));
    match (&change.old, &new) {
        (Some(old), Some(new)) => format!("~ {}: {} -> {}", change.path, show(old), show(new)),
        (None, Some(new)) => format!("+ {}: {}", change.path, show(new)),
        (Some(old), None) => format!("- {}: {}", change.path, show(old)),
        (None, None) => change.path.clone(),
    }
}

/// The value of the member `name` as it may be printed: a terminal keeps what it has shown.
fn without_secrets(name: &str, value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let shown = members
                .iter()
                .map(|(name, value)| (name.clone(), without_secrets(name, value)));
            Value::Object(shown.collect())
        }
        Value::Array(elements) => elements
            .iter()
            .map(|value| without_secrets(name, value))
            .collect(),
        Value::String(text) if is_secret(name) && !text.starts_with("${") => HIDDEN.into(),
        other => other.clone(),
    }
}

fn is_secret(path: &str) -> bool {
    let name = path
        .rsplit('.')
        .next()
        .unwrap_or(path)
        .to_ascii_lowercase()
        .replace('-', "_");
    ["api_key", "apikey", "secret", "password", "authorization"]
        .iter()
        .any(|word| name.contains(word))
        || name.ends_with("token")
}

fn summarise(applied: &[Applied], dry_run: bool, output: &Output) {
    let count = |result: &str| applied.iter().filter(|one| one.result == result).count();
    let (created, changed, unchanged) = (count("created"), count("changed"), count("unchanged"));
    if !output.is_json() {
        let note = if dry_run {
            " (dry run: nothing was stored)"
        } else {
            ""
        };
        output.line(format!(
            "{created} created, {changed} changed, {unchanged} unchanged{note}"
        ));
        return;
    }
    let documents: Vec<Value> = applied
        .iter()
        .map(|one| {
            let changes: Vec<Value> = one
                .changes
                .iter()
                .map(|change| {
                    let new = change
                        .new
                        .as_ref()
                        .map(|value| without_secrets(&change.path, value));
                    json!({"path": change.path, "old": change.old, "new": new})
                })
                .collect();
            json!({"kind": one.kind, "name": one.name, "file": one.file, "result": one.result,
                   "version": one.version, "changes": changes})
        })
        .collect();
    output.json(&json!({
        "dry_run": dry_run, "created": created, "changed": changed, "unchanged": unchanged, "documents": documents,
    }));
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use callboard_runtime::document::Source;

    use super::*;

    fn paths(old: Value, new: Value) -> Vec<String> {
        changes_between(&json!({"spec": old}), &json!({"spec": new}))
            .0
            .iter()
            .map(describe)
            .collect()
    }

    #[test]
    fn equal_documents_have_no_changes_whatever_the_server_adds() {
        let stored = json!({"kind": "Workflow", "metadata": {"name": "x"}, "spec": {"a": 1}, "version": 4, "enabled": true});
        assert_eq!(
            changes_between(
                &stored,
                &json!({"kind": "Workflow", "metadata": {"name": "x"}, "spec": {"a": 1}})
            ),
            (vec![], false)
        );
    }

    #[test]
    fn steps_are_compared_by_their_id() {
        let old = json!({"steps": [{"id": "a", "uses": "noop"}, {"id": "b", "uses": "set"}]});
        let new = json!({"steps": [{"id": "new", "uses": "noop"}, {"id": "a", "uses": "noop"}, {"id": "b", "uses": "if"}]});
        assert_eq!(
            paths(old, new),
            [
                "~ spec.steps[b].uses: \"set\" -> \"if\"",
                "+ spec.steps[new]: {\"id\":\"new\",\"uses\":\"noop\"}",
            ]
        );
    }

    #[test]
    fn a_changed_order_is_a_change() {
        let old = json!({"steps": [{"id": "a"}, {"id": "b"}]});
        let new = json!({"steps": [{"id": "b"}, {"id": "a"}]});
        assert_eq!(
            paths(old, new),
            ["~ spec.steps (order): [\"a\",\"b\"] -> [\"b\",\"a\"]"]
        );
    }

    #[test]
    fn lists_without_names_are_compared_by_place() {
        assert_eq!(
            paths(json!({"l": [1, 2]}), json!({"l": [1, 3, 4]})),
            ["~ spec.l[1]: 2 -> 3", "+ spec.l[2]: 4"]
        );
    }

    #[test]
    fn a_secret_that_the_server_hides_is_left_to_the_server_to_compare() {
        let stored = json!({"spec": {"type": "openai", "api_key": "***"}});
        let body = json!({"spec": {"type": "openai", "api_key": "sk-1"}});
        assert_eq!(changes_between(&stored, &body), (vec![], true));
    }

    #[test]
    fn a_new_secret_is_not_printed() {
        let shown = paths(
            json!({}),
            json!({"api_key": "sk-1", "headers": {"Authorization": "Bearer x"}}),
        );
        assert_eq!(
            shown,
            [
                "+ spec.api_key: \"***\"",
                "+ spec.headers: {\"Authorization\":\"***\"}"
            ]
        );
    }

    #[test]
    fn what_the_server_finds_is_told_with_its_place_in_the_file() {
        let document = Document {
            kind: "Workflow".into(),
            name: "x".into(),
            body: json!({}),
            source: Arc::new(Source {
                file: Some("x.yaml".into()),
                positions: [("spec/steps/0".to_owned(), (4, 5))].into_iter().collect(),
            }),
        };
        let refusal = Refusal {
            status: 422,
            message: String::new(),
            retry_after: None,
            body: json!({"detail": [{"loc": ["body", "spec", "steps", 0, "uses"], "msg": "unknown", "type": "value_error"}]}),
        };
        let faults = faults_of(&document, &refusal);
        assert_eq!(faults[0].position, Some((4, 5)));
        assert_eq!(faults[0].path, ["spec", "steps", "0", "uses"]);
    }
}
