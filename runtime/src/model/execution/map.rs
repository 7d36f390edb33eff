//! `map`: one frame per element, so many at once, results in order.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::{
    Decision, Execution, Frame, Record, Run, RunKey, RunState, WaitRecord, journal::WaitKind,
};
use crate::{
    bounds::Meter,
    item::{Item, Items, PairedItem},
    model::graph::{Action, Map},
    node::NodeError,
};

/// A map at work.
#[derive(Debug)]
pub(super) struct Mapping {
    pub(super) started_at: DateTime<Utc>,
    elements: Items,
    /// Index of the first element not begun.
    next: usize,
    /// How many frames are at work.
    open: usize,
    results: Vec<Option<Result<Value, Value>>>,
    /// Why the map fails: no further element begins.
    pub(super) failure: Option<Value>,
}

impl Mapping {
    pub(super) fn new(elements: Vec<Item>, started_at: DateTime<Utc>) -> Self {
        let results = vec![None; elements.len()];
        Self {
            started_at,
            elements: Arc::new(elements),
            next: 0,
            open: 0,
            results,
            failure: None,
        }
    }

    fn is_settled(&self) -> bool {
        self.open == 0 && (self.failure.is_some() || self.next == self.elements.len())
    }
}

impl Execution {
    pub(super) fn map_expanded(
        &mut self,
        key: RunKey,
        elements: Result<Vec<Item>, NodeError>,
        at: DateTime<Utc>,
        out: &mut Decision,
    ) -> DateTime<Utc> {
        if !matches!(
            self.runs.get(&key),
            Some(Run {
                state: RunState::Ready,
                ..
            })
        ) || !matches!(self.step(key).action, Action::Map(_))
        {
            return at;
        }
        let bounded = elements.and_then(|elements| {
            Meter::output().take_items(&elements)?;
            Ok(elements)
        });
        let elements = match bounded {
            Ok(elements) => elements,
            Err(error) => {
                self.map_refused(key, error, at, out);
                return at;
            }
        };
        let kind = WaitKind::Map(elements.clone());
        out.records.push(Record::WaitOpened(WaitRecord {
            key: self.wait_key(key),
            kind,
            started_at: at,
        }));
        self.begin_map(key, Mapping::new(elements, at));
        at
    }

    /// Puts a map to work: from its elements on, everything it does follows from the journal.
    pub(super) fn begin_map(&mut self, key: RunKey, mapping: Mapping) {
        let Some(run) = self.runs.get_mut(&key) else {
            return;
        };
        run.state = RunState::Mapping(mapping);
        self.open_frames(key);
    }

    fn open_frames(&mut self, key: RunKey) {
        let (body, max_parallel) = match &self.step(key).action {
            Action::Map(Map {
                body, max_parallel, ..
            }) => (body.clone(), (*max_parallel).max(1)),
            _ => return,
        };
        let prefix = self.key_text(key);
        loop {
            let halted = self.is_halted(key.frame);
            let frame = self.frames.len();
            let Some(run) = self.runs.get_mut(&key) else {
                return;
            };
            let RunState::Mapping(mapping) = &mut run.state else {
                return;
            };
            if mapping.is_settled() {
                self.settled_maps.push(key);
                return;
            }
            if halted
                || mapping.failure.is_some()
                || mapping.open >= max_parallel
                || mapping.next == mapping.elements.len()
            {
                return;
            }
            let index = mapping.next;
            mapping.next += 1;
            mapping.open += 1;
            let element = mapping.elements[index].clone();
            let (inputs, seq) = (run.inputs.clone(), run.parent_seq.unwrap_or_default());
            let scope: Arc<str> = format!("{prefix}[{index}]").into();
            self.scopes.insert(scope.clone(), frame);
            self.frames
                .push(Some(Frame::new(body.clone(), Some((key, index)), scope)));
            self.deliver(Arc::new(Self::entry(frame, seq, element, inputs)));
            self.resolve_joins(frame);
            if self.frame(frame).active == 0 {
                self.store_result(frame);
            }
        }
    }

    /// A frame has nothing left to do.
    pub(super) fn close_frame(&mut self, frame: usize) {
        if let Some(map) = self.store_result(frame) {
            self.open_frames(map);
        }
    }

    /// Hands what a frame gave to its map, and forgets the frame. `None` when the map itself is gone.
    fn store_result(&mut self, frame: usize) -> Option<RunKey> {
        let closed = self.frames[frame].take()?;
        self.scopes.remove(&closed.scope);
        let (map, index) = closed.parent?;
        let collect = matches!(
            &self.step(map).action,
            Action::Map(Map {
                collect_errors: true,
                ..
            })
        );
        let RunState::Mapping(mapping) = &mut self.runs.get_mut(&map)?.state else {
            return None;
        };
        mapping.open -= 1;
        match closed.failure {
            None => mapping.results[index] = Some(Ok(result(closed.last.map(|last| last.items())))),
            Some(error) if collect => mapping.results[index] = Some(Err(error)),
            Some(error) if mapping.failure.is_none() => {
                mapping.failure = Some(error);
                let siblings = self.frames.iter().enumerate().filter(|(_, at)| {
                    at.as_ref()
                        .is_some_and(|at| at.parent.is_some_and(|(of, _)| of == map))
                });
                let siblings: Vec<usize> = siblings.map(|(sibling, _)| sibling).collect();
                self.failing.extend(siblings);
            }
            Some(_) => {}
        }
        Some(map)
    }

    /// The record of a map that has nothing left to do.
    pub(super) fn finish_map(&mut self, key: RunKey, at: DateTime<Utc>, out: &mut Decision) {
        let Some(Run {
            state: RunState::Mapping(mapping),
            ..
        }) = self.runs.get_mut(&key)
        else {
            return;
        };
        if !mapping.is_settled() {
            return;
        }
        let started_at = mapping.started_at;
        let result = match mapping.failure.take() {
            Some(error) => Err(error),
            None => {
                let results = std::mem::take(&mut mapping.results);
                Ok(results
                    .into_iter()
                    .zip(mapping.elements.iter())
                    .map(|(result, element)| to_item(result, element.paired_item))
                    .collect())
            }
        };
        self.map_ended(key, started_at, at, result, out);
    }
}

fn to_item(result: Option<Result<Value, Value>>, paired: Option<PairedItem>) -> Item {
    let json = match result {
        Some(Ok(value)) => value,
        Some(Err(error)) => json!({"error": error}),
        None => json!({}),
    };
    Item {
        paired_item: paired,
        ..Item::new(json)
    }
}

/// What one element came to: its last step's item; all of them under `items` when there are several.
fn result(items: Option<Items>) -> Value {
    match items.as_deref().map(Vec::as_slice) {
        None | Some([]) => json!({}),
        Some([only]) => (*only.json).clone(),
        Some(several) => {
            json!({"items": several.iter().map(|item| (*item.json).clone()).collect::<Vec<_>>()})
        }
    }
}
