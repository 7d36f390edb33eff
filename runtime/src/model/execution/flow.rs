//! How items move: what a record changes, where items go, when joins fire.

use std::{collections::VecDeque, sync::Arc};

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use super::{
    Delivery, Execution, Finished, Frame, Input, Run, RunKey, RunRecord, RunState, StepState,
    map::Mapping,
};
use crate::{
    item::{Item, Items},
    model::graph::{Body, Join, StepIndex},
    node::{EffectClass, MAIN},
    store::rows::NodeRunStatus,
    tool::OnCrash,
};

impl Finished {
    /// What the step gave: the items of the first port that fired.
    pub(super) fn items(&self) -> Items {
        self.ports
            .iter()
            .find(|(_, items)| !items.is_empty())
            .map(|(_, items)| items.clone())
            .unwrap_or_default()
    }
}

impl Frame {
    pub(super) fn new(body: Arc<Body>, parent: Option<(RunKey, usize)>, scope: Arc<str>) -> Self {
        let steps = body
            .steps
            .iter()
            .map(|step| {
                let inputs = step.join.as_ref().map_or(0, |join| join.sources.len());
                StepState {
                    visits: 0,
                    latest: None,
                    slots: vec![VecDeque::new(); inputs],
                    dropped: vec![0; inputs],
                }
            })
            .collect();
        Self {
            body,
            parent,
            scope,
            steps,
            active: 0,
            last: None,
            failure: None,
        }
    }
}

impl Execution {
    /// Changes the state as a record says. Decides nothing that needs a record of its own.
    pub(super) fn apply(&mut self, record: &RunRecord) {
        self.bytes = self.bytes.saturating_add(record.bytes);
        let place = (record.seq, &*record.uses, &*record.scope);
        self.pass(place, record.started_at, record.finished_at);
        let key = record.key;
        if record.status == NodeRunStatus::Skipped {
            self.skips.retain(|skip| skip.key != key);
            return;
        }
        if (key.frame, key.step) == (0, 0) {
            return self.open_root(record);
        }
        let Some(run) = self.runs.get_mut(&key) else {
            return;
        };
        if matches!(run.state, RunState::Running) {
            self.running -= 1;
        }
        if let Some(retry_at) = record.retry_at {
            run.attempt += 1;
            run.state = RunState::Delayed(retry_at);
            if !self.restored.is_empty() {
                self.restore(key);
            }
            return;
        }
        let run = self.runs.remove(&key).expect("looked up above");
        self.frame_mut(key.frame).active -= 1;
        match record.status {
            NodeRunStatus::Failed if record.ports.is_empty() => self.frame_failed(key, record),
            NodeRunStatus::Cancelled | NodeRunStatus::Skipped => {}
            NodeRunStatus::Succeeded | NodeRunStatus::Failed => self.finished(record, run),
        }
        self.resolve_joins(key.frame);
        if key.frame != 0 && self.frame(key.frame).active == 0 {
            self.close_frame(key.frame);
        }
    }

    /// Takes note of a record's place and time. A wait that ended was waiting, as far as nothing else was going on.
    pub(super) fn pass(
        &mut self,
        (seq, uses, scope): (i32, &str, &str),
        started_at: DateTime<Utc>,
        finished_at: DateTime<Utc>,
    ) {
        self.next_seq = seq + 1;
        if is_wait(uses) && self.only_waits(finished_at, scope) {
            let since = self.busy_until.max(started_at);
            self.waited += (finished_at - since).max(TimeDelta::zero());
        }
        self.busy_until = self.busy_until.max(finished_at);
    }

    /// Whether every run in progress at this time is a wait, or a map around some. Tells by types, since a fold does not
    /// know when a run began to wait. Nor does it know the elements of a map that has ended, so it takes their waits
    /// for all that was going on in it; and it begins the others when they are entered, which may be too early.
    fn only_waits(&self, at: DateTime<Utc>, scope: &str) -> bool {
        self.runs.iter().all(|(key, run)| match &run.state {
            RunState::Mapping(mapping) => mapping.started_at <= at,
            _ if is_wait(&self.step(*key).uses) => true,
            _ => scope
                .strip_prefix(&self.key_text(*key))
                .is_some_and(|rest| rest.starts_with('[')),
        })
    }

    fn open_root(&mut self, record: &RunRecord) {
        let body = self.graph.body.clone();
        let entry = &body.steps[0];
        let finished = Finished {
            frame: 0,
            step: 0,
            seq: record.seq,
            ports: record.ports.clone(),
            inputs: Vec::new(),
            effectful: entry.effect == EffectClass::Effectful,
        };
        self.frames.push(Some(Frame::new(body, None, "".into())));
        self.scopes.insert("".into(), 0);
        self.deliver(Arc::new(finished));
        self.resolve_joins(0);
    }

    fn finished(&mut self, record: &RunRecord, run: Run) {
        let step = self.step(record.key);
        let effectful = step.effect == EffectClass::Effectful || step.on_crash != OnCrash::Retry;
        let finished = Finished {
            frame: record.key.frame,
            step: record.key.step,
            seq: record.seq,
            ports: record.ports.clone(),
            inputs: run.inputs,
            effectful,
        };
        self.deliver(Arc::new(finished));
    }

    fn frame_failed(&mut self, key: RunKey, record: &RunRecord) {
        let mut error = record.error.clone().unwrap_or_else(|| json!({}));
        if let Some(error) = error.as_object_mut() {
            error.insert("step".to_owned(), Value::String(record.step.to_string()));
        }
        self.frame_mut(key.frame).failure.get_or_insert(error);
        self.failing.push(key.frame);
    }

    /// Sends what a step gave along its edges, and remembers it for `$('step')`.
    pub(super) fn deliver(&mut self, finished: Arc<Finished>) {
        let (frame, step) = (finished.frame, finished.step);
        let body = self.frame(frame).body.clone();
        self.frame_mut(frame).steps[step].latest = Some(finished.clone());
        let mut followed = false;
        for edge in &body.steps[step].edges {
            let Some(port) = finished
                .ports
                .iter()
                .position(|(port, items)| *port == edge.port && !items.is_empty())
            else {
                continue;
            };
            followed = true;
            let delivery = Delivery {
                from: finished.clone(),
                port,
            };
            match edge.slot {
                None => {
                    let input = Input {
                        items: delivery.items().clone(),
                        segments: vec![delivery],
                    };
                    self.enter(frame, edge.to, vec![input], finished.seq);
                }
                Some(slot) => self.arrive(frame, edge.to, slot, delivery),
            }
        }
        let frame = self.frame_mut(frame);
        if !followed
            && (frame.last.is_none() || finished.ports.iter().any(|(_, items)| !items.is_empty()))
        {
            frame.last = Some(finished);
        }
    }

    fn arrive(&mut self, frame: usize, step: StepIndex, slot: usize, delivery: Delivery) {
        let state = &mut self.frame_mut(frame).steps[step];
        if state.dropped[slot] > 0 {
            state.dropped[slot] -= 1;
        } else {
            state.slots[slot].push_back(delivery);
        }
    }

    /// Begins a visit, unless its frame has failed.
    pub(super) fn enter(
        &mut self,
        frame: usize,
        step: StepIndex,
        inputs: Vec<Input>,
        parent_seq: i32,
    ) {
        if self.is_halted(frame) {
            return;
        }
        let max = self.graph.settings.max_node_runs;
        if self.next_seq as usize + self.runs.len() >= max as usize {
            let id = self.frame(frame).body.steps[step].id.clone();
            let message = format!("the execution made {max} node runs, which is its limit");
            self.fail_root(json!({"code": "max_node_runs", "message": message, "step": &*id}));
            return;
        }
        let state = &mut self.frame_mut(frame).steps[step];
        let key = RunKey {
            frame,
            step,
            visit: state.visits,
        };
        state.visits += 1;
        self.frame_mut(frame).active += 1;
        self.runs.insert(
            key,
            Run {
                attempt: 1,
                inputs,
                parent_seq: Some(parent_seq),
                state: RunState::Ready,
            },
        );
        self.ready.push_back(key);
        if !self.restored.is_empty() {
            self.restore(key);
        }
    }

    /// Fires the joins of a frame for which enough has arrived, or for which nothing more can.
    pub(super) fn resolve_joins(&mut self, frame: usize) {
        let body = self.frame(frame).body.clone();
        if body.joins.is_empty() {
            return;
        }
        loop {
            let next = body
                .joins
                .iter()
                .copied()
                .find_map(|step| self.verdict(frame, step, false).map(|fire| (step, fire)));
            let next = next.or_else(|| {
                // Joins that wait for each other: nothing else is left, so the first one goes with what it has.
                if self.frame(frame).active > 0 {
                    return None;
                }
                body.joins
                    .iter()
                    .copied()
                    .find_map(|step| self.verdict(frame, step, true).map(|fire| (step, fire)))
            });
            match next {
                Some((step, true)) => self.fire(frame, step),
                Some((step, false)) => self.skip(frame, step),
                None => return,
            }
        }
    }

    /// `Some(true)`: fire; `Some(false)`: it can never fire; `None`: wait.
    fn verdict(&self, frame: usize, step: StepIndex, forced: bool) -> Option<bool> {
        let at = self.frame(frame);
        let join = at.body.steps[step].join.as_ref()?;
        let slots = &at.steps[step].slots;
        let arrived = slots.iter().filter(|slot| !slot.is_empty()).count();
        if arrived == 0 {
            return None;
        }
        if arrived >= join.need.unwrap_or(slots.len()) {
            return Some(true);
        }
        let coming = if forced {
            0
        } else {
            (0..slots.len())
                .filter(|&slot| slots[slot].is_empty() && self.can_arrive(frame, step, join, slot))
                .count()
        };
        match join.need {
            None if coming == 0 => Some(true),
            Some(need) if arrived + coming < need => Some(false),
            _ => None,
        }
    }

    /// Whether a visit in progress, or another join that may yet fire, can lead to this input.
    fn can_arrive(&self, frame: usize, step: StepIndex, join: &Join, slot: usize) -> bool {
        let at = self.frame(frame);
        let source = join.sources[slot].0;
        let leads = |from: StepIndex| from == source || at.body.reach[from].contains(source);
        let first = RunKey {
            frame,
            step: 0,
            visit: 0,
        };
        let last = RunKey {
            frame,
            step: usize::MAX,
            visit: u32::MAX,
        };
        self.runs
            .range(first..=last)
            .any(|(key, _)| leads(key.step))
            || at.body.joins.iter().any(|&other| {
                other != step
                    && leads(other)
                    && at.steps[other].slots.iter().any(|slot| !slot.is_empty())
            })
    }

    fn fire(&mut self, frame: usize, step: StepIndex) {
        let body = self.frame(frame).body.clone();
        // What is still on its way belongs to this visit and comes too late. What is not on its way will not come: in a
        // loop, the next to arrive there belongs to the next visit.
        let late: Vec<bool> = match &body.steps[step].join {
            Some(join) if join.need.is_some() => (0..join.sources.len())
                .map(|slot| self.can_arrive(frame, step, join, slot))
                .collect(),
            _ => Vec::new(),
        };
        let state = &mut self.frame_mut(frame).steps[step];
        let arrived: Vec<Option<Delivery>> =
            state.slots.iter_mut().map(VecDeque::pop_front).collect();
        for (slot, late) in late.into_iter().enumerate() {
            state.dropped[slot] += u32::from(late && arrived[slot].is_none());
        }
        let parent_seq = arrived
            .iter()
            .flatten()
            .map(|delivery| delivery.from.seq)
            .max()
            .unwrap_or_default();
        let inputs = if takes_several_inputs(&body, step) {
            arrived
                .into_iter()
                .map(|delivery| Input::concat(delivery.into_iter().collect()))
                .collect()
        } else {
            vec![Input::concat(arrived.into_iter().flatten().collect())]
        };
        self.enter(frame, step, inputs, parent_seq);
    }

    fn skip(&mut self, frame: usize, step: StepIndex) {
        let started_at = self.started_at;
        let at = self.frame_mut(frame);
        let state = &mut at.steps[step];
        let parent_seq = state
            .slots
            .iter()
            .flatten()
            .map(|delivery| delivery.from.seq)
            .max();
        state.slots.iter_mut().for_each(VecDeque::clear);
        let visit = state.visits;
        state.visits += 1;
        let (definition, scope) = (&at.body.steps[step], at.scope.clone());
        let skip = RunRecord {
            key: RunKey { frame, step, visit },
            attempt: 1,
            status: NodeRunStatus::Skipped,
            ports: Vec::new(),
            bytes: 0,
            error: None,
            retry_at: None,
            seq: 0,
            parent_seq,
            started_at,
            finished_at: started_at,
            step: definition.id.clone(),
            uses: definition.uses.clone(),
            scope,
            item_index: at.parent.map(|(_, index)| index),
        };
        self.skips.push(skip);
    }

    /// Whether nothing may start in a frame any more.
    pub(super) fn is_halted(&self, frame: usize) -> bool {
        let at = self.frame(frame);
        if at.failure.is_some() || (frame == 0 && self.cancel_requested) {
            return true;
        }
        let Some((map, _)) = at.parent else {
            return false;
        };
        let stopping = matches!(
            self.runs.get(&map),
            Some(Run {
                state: RunState::Mapping(Mapping {
                    failure: Some(_),
                    ..
                }),
                ..
            }) | None
        );
        stopping || self.is_halted(map.frame)
    }

    /// Whether `inner` is `outer` or a frame inside it.
    pub(super) fn is_within(&self, inner: usize, outer: usize) -> bool {
        inner == outer
            || self.frames[inner]
                .as_ref()
                .and_then(|frame| frame.parent)
                .is_some_and(|(map, _)| self.is_within(map.frame, outer))
    }

    /// Items of a body's entry.
    pub(super) fn entry(frame: usize, seq: i32, element: Item, inputs: Vec<Input>) -> Finished {
        Finished {
            frame,
            step: 0,
            seq,
            ports: vec![(MAIN.into(), Arc::new(vec![element]))],
            inputs,
            effectful: false,
        }
    }
}

/// Whether steps of this type do nothing but wait, for a time or for another execution.
fn is_wait(uses: &str) -> bool {
    uses.starts_with("wait.") || uses == "workflow.execute"
}

fn takes_several_inputs(body: &Body, step: StepIndex) -> bool {
    match &body.steps[step].action {
        crate::model::graph::Action::Node(node) => node.node().node_type().several_inputs,
        _ => false,
    }
}

impl Input {
    /// The items of several deliveries, one after the other. One delivery is shared, not copied.
    fn concat(segments: Vec<Delivery>) -> Self {
        let items = match segments.as_slice() {
            [] => Items::default(),
            [only] => only.items().clone(),
            several => Arc::new(
                several
                    .iter()
                    .flat_map(|delivery| delivery.items().iter().cloned())
                    .collect(),
            ),
        };
        Self { items, segments }
    }
}
