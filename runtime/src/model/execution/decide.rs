//! From events to records and effects.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Map, Value, json};

use super::{
    Child, Decision, Effect, End, Event, Execution, Record, Run, RunKey, RunRecord, RunState,
    WaitEnd, WaitFor, Waiting,
    fold::Restored,
    journal::{WaitKind, WaitRecord},
};
use crate::{
    bounds::{
        DETAILS_BYTES_MAX, EXECUTION_BYTES_MAX, Excess, MESSAGE_CHARS_MAX, Meter, OUTPUT_BYTES_MAX,
    },
    id::ExecutionId,
    item::{Item, Items},
    model::graph::{Action, OnError, Retry, Step},
    node::{ERROR, EffectClass, MAIN, NodeError, NodeOutcome, NodeOutput, Wait},
    store::rows::{ExecutionStatus, NodeRunStatus},
    tool::OnCrash,
};

/// The longest delay that the other side may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// What every record of one attempt shares.
struct Attempt {
    key: RunKey,
    started_at: DateTime<Utc>,
    finished_at: DateTime<Utc>,
}

impl Execution {
    /// Takes an event; says what to save and what to do. An event that no longer applies gives an empty decision.
    pub fn decide(&mut self, event: Event) -> Decision {
        let mut out = Decision::default();
        if self.ended.is_some() {
            return out;
        }
        let at = match event {
            Event::Started { items, at } => self.start(items, at, &mut out),
            Event::NodeRunFinished {
                key,
                attempt,
                outcome,
                started_at,
                finished_at,
                random,
                child_id,
            } => {
                if !self.is_current(key, attempt) {
                    return out;
                }
                self.node_run_finished(
                    &Attempt {
                        key,
                        started_at,
                        finished_at,
                    },
                    outcome,
                    random,
                    child_id,
                    &mut out,
                );
                finished_at
            }
            Event::MapExpanded { key, elements, at } => {
                self.map_expanded(key, elements, at, &mut out)
            }
            Event::DelayOver { key } => {
                self.delay_over(key);
                self.pump(&mut out);
                return out;
            }
            Event::WaitEnded { key, with, at } => self.wait_ended(key, with, at, &mut out),
            Event::CancelRequested { at } => {
                self.cancel_requested = true;
                at
            }
            Event::TimedOut { at } => {
                self.fail_root(json!({"code": "timeout", "message": "the execution took longer than its timeout", "step": null}));
                at
            }
        };
        self.settle(at, &mut out);
        self.pump(&mut out);
        out
    }

    /// What a folded execution still owes: everything its journal says should be going on.
    pub fn owed(&mut self, at: DateTime<Utc>) -> Decision {
        let mut out = Decision::default();
        let keys: Vec<RunKey> = self.runs.keys().copied().collect();
        for key in keys {
            if self.fail_if_unknown_after_crash(key, at, &mut out) {
                continue;
            }
            match &self.runs[&key].state {
                RunState::Delayed(until) => out.effects.push(Effect::Delay(key, *until)),
                RunState::Waiting(Waiting {
                    for_what: WaitFor::Time(until),
                    ..
                }) => out.effects.push(Effect::WakeAt(key, *until)),
                RunState::Waiting(Waiting {
                    for_what: WaitFor::Child(child),
                    ..
                }) => {
                    out.effects.push(Effect::StartChild(key, child.clone()));
                }
                RunState::Ready | RunState::Running | RunState::Mapping(_) => {}
            }
        }
        self.restored.clear();
        self.settle(at, &mut out);
        self.pump(&mut out);
        out
    }

    fn start(&mut self, items: Vec<Item>, at: DateTime<Utc>, out: &mut Decision) -> DateTime<Utc> {
        if self.next_seq > 0 {
            return at;
        }
        let entry = &self.graph.body.steps[0];
        let record = RunRecord {
            key: RunKey {
                frame: 0,
                step: 0,
                visit: 0,
            },
            attempt: 1,
            status: NodeRunStatus::Succeeded,
            bytes: weight(&items),
            ports: vec![(MAIN.into(), Arc::new(items))],
            error: None,
            retry_at: None,
            seq: 0,
            parent_seq: None,
            started_at: self.started_at,
            finished_at: at,
            step: entry.id.clone(),
            uses: entry.uses.clone(),
            scope: "".into(),
            item_index: None,
        };
        self.record(record, out);
        at
    }

    fn node_run_finished(
        &mut self,
        attempt: &Attempt,
        outcome: Result<NodeOutcome, NodeError>,
        random: f64,
        child_id: ExecutionId,
        out: &mut Decision,
    ) {
        self.close_started_mark(attempt.key, out);
        match outcome {
            Ok(NodeOutcome::Output(output)) => self.succeeded(attempt, output, out),
            Ok(NodeOutcome::Wait(wait)) => self.begin_wait(attempt, wait, child_id, out),
            Err(error) => self.failed(attempt, error, random, out),
        }
    }

    fn succeeded(&mut self, attempt: &Attempt, output: NodeOutput, out: &mut Decision) {
        let bytes = match self.bounded(&output) {
            Ok(bytes) => bytes,
            Err(excess) => return self.failed(attempt, excess, 0.0, out),
        };
        if let Some(response) = output.response {
            out.effects.push(Effect::Respond(response));
        }
        let ports = output
            .ports
            .into_iter()
            .map(|(port, items)| (port, Arc::new(items)))
            .collect();
        let mut record = self.ended_attempt(attempt, NodeRunStatus::Succeeded, ports, None);
        record.bytes = bytes;
        self.record(record, out);
    }

    /// What an output takes, unless that is too much.
    fn bounded(&self, output: &NodeOutput) -> Result<usize, NodeError> {
        let mut meter = Meter::output();
        for (_, items) in &output.ports {
            meter.take_items(items)?;
        }
        let bytes = meter.bytes();
        if let Some(response) = &output.response {
            Meter::output().take(&response.body)?;
        }
        if !self.has_room(bytes) {
            let message = format!(
                "the steps of this execution gave more than {EXECUTION_BYTES_MAX} bytes of JSON together"
            );
            return Err(NodeError::permanent("output_too_large", message));
        }
        Ok(bytes)
    }

    fn begin_wait(
        &mut self,
        attempt: &Attempt,
        wait: Wait,
        child_id: ExecutionId,
        out: &mut Decision,
    ) {
        if let Wait::Child { input, .. } = &wait
            && let Err(excess) = Meter::output().take(input)
        {
            return self.failed(attempt, excess.into(), 0.0, out);
        }
        let (for_what, kind, effect) = match wait {
            Wait::Until(until) => (
                WaitFor::Time(until),
                WaitKind::Timer(until),
                Effect::WakeAt(attempt.key, until),
            ),
            Wait::Child {
                workflow,
                version,
                input,
                wait,
            } => {
                let child = Box::new(Child {
                    id: child_id,
                    workflow,
                    version,
                    input,
                    wait,
                });
                (
                    WaitFor::Child(child.clone()),
                    WaitKind::Child(child.clone()),
                    Effect::StartChild(attempt.key, child),
                )
            }
        };
        let key = self.wait_key(attempt.key);
        out.records.push(Record::WaitOpened(WaitRecord {
            key,
            kind,
            started_at: attempt.started_at,
        }));
        out.effects.push(effect);
        self.running -= 1;
        let run = self
            .runs
            .get_mut(&attempt.key)
            .expect("checked by is_current");
        run.state = RunState::Waiting(Waiting {
            started_at: attempt.started_at,
            for_what,
        });
    }

    fn failed(&mut self, attempt: &Attempt, error: NodeError, random: f64, out: &mut Decision) {
        let Some((mut code_and_message, retry_after)) = describe(&error) else {
            // Only a kill makes a node report `Cancelled`, and a killed run is no longer current.
            return self.failed(
                attempt,
                NodeError::transient("cancelled", "the node stopped by itself"),
                random,
                out,
            );
        };
        let step = self.step(attempt.key);
        let run = &self.runs[&attempt.key];
        if let Some(after) = retry_after
            && run.attempt < step.retry.max_attempts
        {
            let delay = delay(&step.retry, run.attempt, random).max(after);
            let mut record = self.ended_attempt(
                attempt,
                NodeRunStatus::Failed,
                Vec::new(),
                Some(Value::Object(code_and_message)),
            );
            let retry_at = attempt.finished_at + delay;
            record.retry_at = Some(retry_at);
            self.record(record, out);
            out.effects.push(Effect::Delay(attempt.key, retry_at));
            return;
        }
        let on_error = step.on_error;
        let row_error = Value::Object(code_and_message.clone());
        code_and_message.insert("step".to_owned(), Value::String(step.id.to_string()));
        let port = match on_error {
            OnError::Fail => None,
            OnError::Continue => Some(MAIN),
            OnError::Route => Some(ERROR),
        };
        let items = port.map(|_| error_items(&run.inputs[0].items, code_and_message));
        let mut record = self.ended_attempt(attempt, NodeRunStatus::Failed, Vec::new(), None);
        record.error = Some(row_error);
        match (port, items) {
            (Some(port), Some(Ok((items, bytes)))) if self.has_room(bytes) => {
                record.bytes = bytes;
                record.ports = vec![(port.into(), items)];
            }
            (None, _) => {}
            // With its error beside each item, what came in is too much to go on with.
            _ => {
                let excess = NodeError::from(Excess::Bytes(OUTPUT_BYTES_MAX));
                record.error = describe(&excess).map(|(error, _)| Value::Object(error));
            }
        }
        self.record(record, out);
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.bytes.saturating_add(bytes) <= EXECUTION_BYTES_MAX
    }

    fn wait_ended(
        &mut self,
        key: RunKey,
        with: WaitEnd,
        at: DateTime<Utc>,
        out: &mut Decision,
    ) -> DateTime<Utc> {
        let Some(Run {
            state: RunState::Waiting(waiting),
            inputs,
            ..
        }) = self.runs.get(&key)
        else {
            return at;
        };
        let attempt = Attempt {
            key,
            started_at: waiting.started_at,
            finished_at: at,
        };
        let outcome = match (&waiting.for_what, with) {
            (WaitFor::Time(until), WaitEnd::Due) if at >= *until => Ok(pass_on(&inputs[0].items)),
            (WaitFor::Child(child), WaitEnd::ChildStarted) if !child.wait => {
                Ok(NodeOutput::main(vec![
                    Item::new(json!({"execution_id": child.id.to_string()})).paired(0),
                ]))
            }
            (
                WaitFor::Child(child),
                WaitEnd::ChildEnded {
                    status,
                    output,
                    error,
                },
            ) if child.wait => child_result(status, output, error),
            (WaitFor::Child(_), WaitEnd::ChildRefused(error)) => Err(error),
            _ => return at,
        };
        let wait_key = self.wait_key(key);
        out.records.push(Record::WaitClosed(wait_key));
        match outcome {
            Ok(output) => self.succeeded(&attempt, output, out),
            Err(error) => self.failed(&attempt, error, 0.5, out),
        }
        at
    }

    fn delay_over(&mut self, key: RunKey) {
        if let Some(run) = self.runs.get_mut(&key)
            && matches!(run.state, RunState::Delayed(_))
        {
            run.state = RunState::Ready;
            self.ready.push_back(key);
        }
    }

    /// Starts what is ready, as far as `max_parallel` allows.
    fn pump(&mut self, out: &mut Decision) {
        if self.ended.is_some() {
            return;
        }
        let max_parallel = self.graph.settings.max_parallel.max(1);
        while self.running < max_parallel {
            let Some(key) = self.ready.pop_front() else {
                return;
            };
            let Some(Run {
                state: RunState::Ready,
                attempt,
                inputs,
                ..
            }) = self.runs.get(&key)
            else {
                continue;
            };
            let attempt = *attempt;
            let step = self.step(key);
            let after_effect = inputs
                .iter()
                .flat_map(|input| &input.segments)
                .any(|delivery| delivery.from.effectful);
            if matches!(step.action, Action::Map(_)) {
                out.effects.push(Effect::Expand {
                    key,
                    barrier: after_effect,
                });
                continue;
            }
            let marked = step.on_crash != OnCrash::Retry;
            let barrier = after_effect || marked || step.effect == EffectClass::Effectful;
            if marked {
                let kind = WaitKind::Started(attempt);
                out.records.push(Record::WaitOpened(WaitRecord {
                    key: self.started_key(key),
                    kind,
                    started_at: self.started_at,
                }));
            }
            self.running += 1;
            self.runs.get_mut(&key).expect("looked up above").state = RunState::Running;
            out.effects.push(Effect::Start {
                key,
                attempt,
                barrier,
            });
        }
    }

    /// Derives what follows from the state by itself, until nothing more does.
    fn settle(&mut self, at: DateTime<Utc>, out: &mut Decision) {
        loop {
            if let Some(mut skip) = self.skips.pop() {
                skip.seq = self.next_seq;
                (skip.started_at, skip.finished_at) = (at, at);
                self.record(skip, out);
            } else if let Some(key) = self.settled_maps.pop() {
                self.finish_map(key, at, out);
            } else if let Some(frame) = self.failing.pop() {
                self.cancel_runs_of(frame, at, out);
            } else {
                break;
            }
        }
        if self.next_seq == 0 && !self.cancel_requested {
            return;
        }
        let root_failure = self
            .frames
            .first()
            .and_then(|root| root.as_ref())
            .and_then(|root| root.failure.clone());
        if self.cancel_requested || root_failure.is_some() {
            self.cancel_all(at, out);
        }
        if !self.runs.is_empty() {
            return;
        }
        let last = self
            .frames
            .first()
            .and_then(|root| root.as_ref())
            .and_then(|root| root.last.clone());
        let output = last.map(|last| last.items()).unwrap_or_default();
        let end = if self.cancel_requested {
            End {
                status: ExecutionStatus::Cancelled,
                output: Items::default(),
                error: None,
                at,
            }
        } else if root_failure.is_some() {
            End {
                status: ExecutionStatus::Failed,
                output: Items::default(),
                error: root_failure,
                at,
            }
        } else {
            End {
                status: ExecutionStatus::Succeeded,
                output,
                error: None,
                at,
            }
        };
        self.ended = Some(end.clone());
        out.records.push(Record::Ended(end));
    }

    /// Cancels every run, those inside maps before the maps that hold them.
    fn cancel_all(&mut self, at: DateTime<Utc>, out: &mut Decision) {
        if let Some(Some(root)) = self.frames.first_mut() {
            root.failure.get_or_insert(Value::Null);
        }
        while let Some(key) = self.runs.keys().next_back().copied() {
            self.cancel_run(key, at, out);
        }
        self.settled_maps.clear();
    }

    /// Cancels the runs of a frame that failed, and of the frames inside it.
    fn cancel_runs_of(&mut self, frame: usize, at: DateTime<Utc>, out: &mut Decision) {
        let keys: Vec<RunKey> = self
            .runs
            .keys()
            .rev()
            .filter(|key| self.is_within(key.frame, frame))
            .copied()
            .collect();
        for key in keys {
            self.cancel_run(key, at, out);
        }
    }

    fn cancel_run(&mut self, key: RunKey, at: DateTime<Utc>, out: &mut Decision) {
        let Some(run) = self.runs.get(&key) else {
            return;
        };
        let mut started_at = at;
        match &run.state {
            RunState::Running => {
                out.effects.push(Effect::Kill(key));
                self.close_started_mark(key, out);
            }
            RunState::Waiting(waiting) => {
                started_at = waiting.started_at;
                if let WaitFor::Child(child) = &waiting.for_what
                    && child.wait
                {
                    out.effects.push(Effect::CancelChild(child.id));
                }
                out.records.push(Record::WaitClosed(self.wait_key(key)));
            }
            RunState::Mapping(mapping) => {
                started_at = mapping.started_at;
                out.records.push(Record::WaitClosed(self.wait_key(key)));
            }
            RunState::Ready | RunState::Delayed(_) => {}
        }
        let attempt = Attempt {
            key,
            started_at,
            finished_at: at,
        };
        let record = self.ended_attempt(&attempt, NodeRunStatus::Cancelled, Vec::new(), None);
        self.record(record, out);
    }

    /// Fails a run whose attempt was in progress when its host died, if its step must not run twice. The mark of the
    /// attempt tells: the run itself folds as ready or, from the second attempt on, as delayed.
    fn fail_if_unknown_after_crash(
        &mut self,
        key: RunKey,
        at: DateTime<Utc>,
        out: &mut Decision,
    ) -> bool {
        let started_key = self.started_key(key);
        let Some(Restored::Started) = self.restored.remove(&started_key) else {
            return false;
        };
        out.records.push(Record::WaitClosed(started_key));
        let message = "the host died while the step ran; whether it took effect is not known, and it must not run twice";
        let attempt = Attempt {
            key,
            started_at: at,
            finished_at: at,
        };
        let error = NodeError::permanent("unknown_after_crash", message);
        self.failed(&attempt, error, 0.0, out);
        true
    }

    fn close_started_mark(&self, key: RunKey, out: &mut Decision) {
        if self.step(key).on_crash != OnCrash::Retry {
            out.records.push(Record::WaitClosed(self.started_key(key)));
        }
    }

    pub(super) fn wait_key(&self, key: RunKey) -> String {
        format!("{}/{}", self.key_text(key), self.runs[&key].attempt)
    }

    pub(super) fn started_key(&self, key: RunKey) -> String {
        format!("{}/started", self.wait_key(key))
    }

    pub(super) fn fail_root(&mut self, error: Value) {
        if let Some(Some(root)) = self.frames.first_mut() {
            root.failure.get_or_insert(error);
        }
    }

    /// The record of a map whose elements could not be found out.
    pub(super) fn map_refused(
        &mut self,
        key: RunKey,
        error: NodeError,
        at: DateTime<Utc>,
        out: &mut Decision,
    ) {
        self.failed(
            &Attempt {
                key,
                started_at: at,
                finished_at: at,
            },
            error,
            0.0,
            out,
        );
    }

    /// A finished map's own record.
    pub(super) fn map_ended(
        &mut self,
        key: RunKey,
        started_at: DateTime<Utc>,
        at: DateTime<Utc>,
        result: Result<Vec<Item>, Value>,
        out: &mut Decision,
    ) {
        out.records.push(Record::WaitClosed(self.wait_key(key)));
        let attempt = Attempt {
            key,
            started_at,
            finished_at: at,
        };
        match result {
            Ok(items) => self.succeeded(&attempt, NodeOutput::main(items), out),
            Err(error) => {
                let text = |name: &str| {
                    error
                        .get(name)
                        .and_then(Value::as_str)
                        .unwrap_or("failed")
                        .to_owned()
                };
                let details = Some(Box::new(json!({"inner_step": error.get("step")})));
                let error = NodeError::Permanent {
                    code: text("code"),
                    message: text("message"),
                    details,
                };
                self.failed(&attempt, error, 0.0, out);
            }
        }
    }

    fn ended_attempt(
        &self,
        attempt: &Attempt,
        status: NodeRunStatus,
        ports: Vec<(Arc<str>, Items)>,
        error: Option<Value>,
    ) -> RunRecord {
        let run = &self.runs[&attempt.key];
        let step: &Step = self.step(attempt.key);
        let frame = self.frame(attempt.key.frame);
        RunRecord {
            key: attempt.key,
            attempt: run.attempt,
            status,
            ports,
            bytes: 0,
            error,
            retry_at: None,
            seq: self.next_seq,
            parent_seq: run.parent_seq,
            started_at: attempt.started_at,
            finished_at: attempt.finished_at,
            step: step.id.clone(),
            uses: step.uses.clone(),
            scope: frame.scope.clone(),
            item_index: frame.parent.map(|(_, index)| index),
        }
    }

    fn record(&mut self, record: RunRecord, out: &mut Decision) {
        self.apply(&record);
        out.records.push(Record::Run(Arc::new(record)));
    }
}

/// `{code, message, …details}` of a failure, and for one that may be retried the least delay.
fn describe(error: &NodeError) -> Option<(Map<String, Value>, Option<TimeDelta>)> {
    let (code, message, details, retry_after) = match error {
        NodeError::Transient {
            code,
            message,
            retry_after,
            details,
        } => {
            let after = retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
            let after = TimeDelta::from_std(after).unwrap_or_default();
            (code, message, details, Some(after))
        }
        NodeError::Permanent {
            code,
            message,
            details,
        } => (code, message, details, None),
        NodeError::Cancelled => return None,
    };
    let mut object = Map::new();
    object.insert("code".to_owned(), Value::String(code.clone()));
    object.insert("message".to_owned(), Value::String(shortened(message)));
    let details = details.as_deref().filter(|details| {
        let mut meter = Meter::new(DETAILS_BYTES_MAX);
        meter.take(details).is_ok()
    });
    if let Some(Value::Object(details)) = details {
        for (name, value) in details.iter().filter(|(_, value)| !value.is_null()) {
            object.entry(name.clone()).or_insert_with(|| value.clone());
        }
    }
    Some((object, retry_after))
}

fn shortened(message: &str) -> String {
    match message.char_indices().nth(MESSAGE_CHARS_MAX) {
        None => message.to_owned(),
        Some((end, _)) => format!("{}…", &message[..end]),
    }
}

/// The delay after attempt number `attempt`: full jitter below the bound that the policy gives.
fn delay(retry: &Retry, attempt: u32, random: f64) -> TimeDelta {
    let factor = if retry.exponential {
        2f64.powi(attempt.saturating_sub(1).min(60) as i32)
    } else {
        1.0
    };
    let bound = (retry.initial.as_secs_f64() * factor).min(retry.max.as_secs_f64());
    TimeDelta::milliseconds((bound * random.clamp(0.0, 1.0) * 1000.0) as i64)
}

/// The input's items with the error beside what they held, and how much that is; one item when there was none.
fn error_items(input: &Items, error: Map<String, Value>) -> Result<(Items, usize), NodeError> {
    let with_error = |json: &Value| {
        let mut json = json.as_object().cloned().unwrap_or_default();
        json.insert("error".to_owned(), Value::Object(error.clone()));
        Item::new(Value::Object(json))
    };
    let mut meter = Meter::output();
    let items = if input.is_empty() {
        vec![meter.passing(with_error(&Value::Null))?]
    } else {
        let items = input.iter().enumerate();
        items
            .map(|(index, item)| meter.passing(with_error(&item.json).paired(index)))
            .collect::<Result<_, _>>()?
    };
    Ok((Arc::new(items), meter.bytes()))
}

fn weight(items: &[Item]) -> usize {
    let mut meter = Meter::new(usize::MAX);
    // Whoever starts an execution has bounded what it starts with.
    let _ = meter.take_items(items);
    meter.bytes()
}

fn pass_on(items: &Items) -> NodeOutput {
    NodeOutput::main(
        items
            .iter()
            .enumerate()
            .map(|(index, item)| item.clone().paired(index))
            .collect(),
    )
}

fn child_result(
    status: ExecutionStatus,
    output: Value,
    error: Option<Value>,
) -> Result<NodeOutput, NodeError> {
    if status == ExecutionStatus::Succeeded {
        let items = Item::from_body(output)
            .into_iter()
            .map(|item| item.paired(0))
            .collect();
        return Ok(NodeOutput::main(items));
    }
    let message = error
        .as_ref()
        .and_then(|error| error.get("message"))
        .and_then(Value::as_str);
    Err(NodeError::Permanent {
        code: "child_failed".to_owned(),
        message: format!(
            "the workflow it called {}{}",
            if status == ExecutionStatus::Cancelled {
                "was cancelled"
            } else {
                "failed"
            },
            message
                .map(|message| format!(": {message}"))
                .unwrap_or_default()
        ),
        details: error.map(|error| Box::new(json!({"child": error}))),
    })
}
