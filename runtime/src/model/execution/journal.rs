//! Records, and the rows they are stored as.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};

use super::{Child, Execution, RunKey};
use crate::{
    id::HostId,
    item::{Item, Items},
    store::rows::{Json, NodeRunRow, NodeRunStatus, WaitRow},
};

/// An attempt that ended.
#[derive(Clone, Debug)]
pub struct RunRecord {
    /// Which visit.
    pub key: RunKey,
    /// From 1.
    pub attempt: u32,
    /// How it ended.
    pub status: NodeRunStatus,
    /// Items by port.
    pub ports: Vec<(Arc<str>, Items)>,
    /// How much `ports` take as JSON.
    pub bytes: usize,
    /// `{code, message, …}`.
    pub error: Option<Value>,
    /// When the next attempt is due.
    pub retry_at: Option<DateTime<Utc>>,
    /// Its place in the journal.
    pub seq: i32,
    /// `seq` of what started it.
    pub parent_seq: Option<i32>,
    /// When the attempt began.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: DateTime<Utc>,
    /// Id of the step.
    pub step: Arc<str>,
    /// Node type.
    pub uses: Arc<str>,
    /// Which bodies it ran in.
    pub scope: Arc<str>,
    /// Index of the element, inside a map.
    pub item_index: Option<usize>,
}

impl RunRecord {
    /// The port that rows and events name: the first that fired, else the first at all.
    pub fn port(&self) -> Option<&Arc<str>> {
        self.ports
            .iter()
            .find(|(_, items)| !items.is_empty())
            .or(self.ports.first())
            .map(|(port, _)| port)
    }

    /// The record as a row of execution `id`.
    pub fn to_row(&self, execution: &Execution, host_id: HostId) -> NodeRunRow {
        NodeRunRow {
            execution_id: execution.id,
            seq: self.seq,
            step: self.step.to_string(),
            node_type: self.uses.to_string(),
            scope: self.scope.to_string(),
            visit: self.key.visit as i32,
            attempt: self.attempt as i32,
            status: self.status,
            port: self.port().map(|port| port.to_string()),
            output: output_text(&self.ports),
            error: self.error.as_ref().map(Value::to_string),
            item_index: self.item_index.map(|index| index as i32),
            parent_seq: self.parent_seq,
            retry_at: self.retry_at,
            host_id,
            started_at: self.started_at,
            finished_at: self.finished_at,
        }
    }

    /// The items on the port that fired, or a list by port when several did, as the API shows them.
    pub fn output(&self) -> Option<Value> {
        output_text(&self.ports).and_then(|text| serde_json::from_str(&text).ok())
    }
}

fn fired(ports: &[(Arc<str>, Items)]) -> impl Iterator<Item = &(Arc<str>, Items)> {
    ports.iter().filter(|(_, items)| !items.is_empty())
}

fn output_text(ports: &[(Arc<str>, Items)]) -> Option<Json> {
    let text = match fired(ports).count() {
        0 if ports.is_empty() => return None,
        0 => "[]".to_owned(),
        1 => fired(ports)
            .next()
            .map(|(_, items)| to_json(items.as_slice()))?,
        _ => {
            let by_port: Map<String, Value> = fired(ports)
                .map(|(port, items)| {
                    (
                        port.to_string(),
                        serde_json::to_value(&**items).unwrap_or_default(),
                    )
                })
                .collect();
            to_json(&by_port)
        }
    };
    Some(text)
}

fn to_json<T: serde::Serialize + ?Sized>(value: &T) -> Json {
    serde_json::to_string(value).expect("items hold only JSON")
}

/// Reads back what [`RunRecord::to_row`] wrote.
pub(super) fn read_ports(
    port: Option<&str>,
    output: Option<&str>,
) -> Result<Vec<(Arc<str>, Items)>, serde_json::Error> {
    let (Some(port), Some(output)) = (port, output) else {
        return Ok(Vec::new());
    };
    if output.starts_with('{') {
        let by_port: Map<String, Value> = serde_json::from_str(output)?;
        by_port
            .into_iter()
            .map(|(port, items)| {
                Ok((
                    Arc::from(port),
                    Arc::new(serde_json::from_value::<Vec<Item>>(items)?),
                ))
            })
            .collect()
    } else {
        Ok(vec![(
            port.into(),
            Arc::new(serde_json::from_str::<Vec<Item>>(output)?),
        )])
    }
}

/// A wait that began.
#[derive(Clone, Debug)]
pub struct WaitRecord {
    /// [`Execution::key_text`].
    pub key: String,
    /// What it waits for.
    pub kind: WaitKind,
    /// When the node run began.
    pub started_at: DateTime<Utc>,
}

/// What a stored wait is for.
#[derive(Clone, Debug)]
pub enum WaitKind {
    /// A point in time.
    Timer(DateTime<Utc>),
    /// Another execution.
    Child(Box<Child>),
    /// Not a wait: these are a map's elements, which must not change while it runs.
    Map(Vec<Item>),
    /// Not a wait: this attempt began and must not be repeated unasked.
    Started(u32),
}

impl WaitRecord {
    /// The record as a row of execution `id`.
    pub fn to_row(&self, execution: &Execution) -> WaitRow {
        let (kind, wake_at, child_id, data) = match &self.kind {
            WaitKind::Timer(at) => ("timer", Some(*at), None, None),
            WaitKind::Child(child) => ("child", None, Some(child.id), Some(to_json(child))),
            WaitKind::Map(elements) => ("map", None, None, Some(to_json(elements))),
            WaitKind::Started(attempt) => ("started", None, None, Some(to_json(attempt))),
        };
        WaitRow {
            execution_id: execution.id,
            key: self.key.clone(),
            kind: kind.to_owned(),
            wake_at,
            child_id,
            data,
            started_at: self.started_at,
        }
    }
}
