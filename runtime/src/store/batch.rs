//! A batch: what several owners saved at about the same time, written by one statement.
//!
//! One statement is one round trip and one transaction. It begins by locking the row that says whether this host
//! may write; when the host is fenced the lock gives no row, every part joins with nothing, and nothing is
//! written. The parts of one statement see the same snapshot, so two writes to one row are merged here first.

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::Entry},
    sync::Arc,
};

use sqlx::{
    Arguments, AssertSqlSafe, Encode, PgConnection, Postgres, Type, error::BoxDynError,
    postgres::PgArguments,
};

use super::{
    executions::{self, StartedExecution},
    hosts, node_runs,
    rows::{
        ExecutionChange, NewSession, NodeRunRow, SessionChange, SessionEventRow, WaitRow, Write,
    },
    session_events,
    sessions::{self, OpenedSession},
    waits::{self, OpenedWait},
};
use crate::id::{ExecutionId, HostId, SessionId};

/// One table's share of the statement: its text, with `$?` for each argument, and how its arguments are made.
pub(super) struct Part {
    name: &'static str,
    sql: &'static str,
    is_empty: fn(&Batch<'_>) -> bool,
    bind: fn(&Batch<'_>, &mut PgArguments) -> Result<(), BoxDynError>,
}

/// All parts. `$1` is the host in each of them.
const PARTS: [Part; 10] = [
    Part {
        name: "executions_started",
        sql: executions::START,
        is_empty: |batch| batch.executions_started.is_empty(),
        bind: |batch, args| executions::bind_start(&batch.executions_started, args),
    },
    Part {
        name: "executions_changed",
        sql: executions::CHANGE,
        is_empty: |batch| batch.executions_changed.is_empty(),
        bind: |batch, args| executions::bind_change(&batch.executions_changed, args),
    },
    Part {
        name: "node_runs_ended",
        sql: node_runs::APPEND,
        is_empty: |batch| batch.node_runs.is_empty(),
        bind: |batch, args| node_runs::bind_append(&batch.node_runs, args),
    },
    Part {
        name: "waits_opened",
        sql: waits::OPEN,
        is_empty: |batch| batch.waits_opened.is_empty(),
        bind: |batch, args| waits::bind_open(&batch.waits_opened, args),
    },
    Part {
        name: "waits_closed",
        sql: waits::CLOSE,
        is_empty: |batch| batch.waits_closed.is_empty(),
        bind: |batch, args| waits::bind_keys(&batch.waits_closed, args),
    },
    Part {
        name: "waits_ended",
        sql: waits::END,
        is_empty: |batch| batch.ended.is_empty(),
        bind: |batch, args| column(args, &batch.ended, |id| id.0),
    },
    Part {
        name: "waits_woken",
        sql: waits::WAKE,
        is_empty: |batch| batch.ended_children.is_empty(),
        bind: |batch, args| {
            column(args, &batch.ended_children, |id| id.0)?;
            column(args, &batch.ended, |id| id.0)?;
            waits::bind_keys(&batch.waits_of_woken, args)
        },
    },
    Part {
        name: "sessions_opened",
        sql: sessions::OPEN,
        is_empty: |batch| batch.sessions_opened.is_empty(),
        bind: |batch, args| sessions::bind_open(&batch.sessions_opened, args),
    },
    Part {
        name: "sessions_changed",
        sql: sessions::CHANGE,
        is_empty: |batch| batch.sessions_changed.is_empty(),
        bind: |batch, args| sessions::bind_change(&batch.sessions_changed, args),
    },
    Part {
        name: "session_events_added",
        sql: session_events::APPEND,
        is_empty: |batch| batch.session_events.is_empty(),
        bind: |batch, args| session_events::bind_append(&batch.session_events, args),
    },
];

/// Writes, merged so that no row is written twice.
#[derive(Default)]
pub(crate) struct Batch<'a> {
    executions_started: Vec<StartedExecution<'a>>,
    executions_changed: Vec<&'a ExecutionChange>,
    node_runs: Vec<&'a NodeRunRow>,
    waits_opened: Vec<OpenedWait<'a>>,
    waits_closed: Vec<(ExecutionId, &'a str)>,
    /// Executions that began in an earlier batch and end in this one: their waits go with them.
    ended: Vec<ExecutionId>,
    /// Executions that end in this batch and have a parent.
    ended_children: Vec<ExecutionId>,
    /// The waits that this batch writes of the parents it wakes: a row can be written by one part only.
    waits_of_woken: Vec<(ExecutionId, &'a str)>,
    sessions_opened: Vec<OpenedSession<'a>>,
    sessions_changed: Vec<&'a SessionChange>,
    session_events: Vec<&'a SessionEventRow>,
}

impl<'a> Batch<'a> {
    /// Merges `writes`, which come in the order in which they were appended.
    pub(crate) fn merge(writes: impl IntoIterator<Item = &'a Write>) -> Self {
        let mut merge = Merge::default();
        for write in writes {
            merge.add(write);
        }
        merge.finish()
    }

    /// Writes all of it, or nothing when the host is fenced: then the answer is `false`. Repeating it is harmless
    /// as long as no later batch of the same shard was written in between.
    pub(crate) async fn write(
        &self,
        db: &mut PgConnection,
        statements: &mut Statements,
        host: HostId,
        shard: i16,
    ) -> Result<bool, sqlx::Error> {
        let mut args = PgArguments::default();
        self.bind(&mut args, host, shard)
            .map_err(sqlx::Error::Encode)?;
        let text = statements.text(self);
        sqlx::query_scalar_with(AssertSqlSafe(text), args)
            .fetch_one(db)
            .await
    }

    fn bind(&self, args: &mut PgArguments, host: HostId, shard: i16) -> Result<(), BoxDynError> {
        args.add(host.0)?;
        args.add(shard)?;
        for part in PARTS.iter().filter(|part| !(part.is_empty)(self)) {
            (part.bind)(self, args)?;
        }
        Ok(())
    }
}

/// Adds one array argument: a column of `rows`.
pub(super) fn column<'r, R, T>(
    args: &mut PgArguments,
    rows: &'r [R],
    get: impl Fn(&'r R) -> T,
) -> Result<(), BoxDynError>
where
    Vec<T>: Encode<'r, Postgres> + Type<Postgres>,
{
    args.add(rows.iter().map(get).collect::<Vec<T>>())
}

/// The texts of the statements in use, one for each set of parts that occurred, so that a batch pays only for the
/// parts it has.
#[derive(Default)]
pub(crate) struct Statements {
    texts: HashMap<u16, Arc<str>>,
}

impl Statements {
    fn text(&mut self, batch: &Batch<'_>) -> Arc<str> {
        let parts = PARTS.iter().enumerate();
        let set = parts
            .filter(|(_, part)| !(part.is_empty)(batch))
            .fold(0, |set, (bit, _)| set | 1 << bit);
        self.texts
            .entry(set)
            .or_insert_with(|| statement(set).into())
            .clone()
    }
}

/// The statement of a set of parts.
fn statement(set: u16) -> String {
    let mut text = format!("WITH fence AS MATERIALIZED ({})", hosts::LOCK_LIVE);
    let mut argument = 2;
    for (bit, part) in PARTS.iter().enumerate() {
        if set & (1 << bit) == 0 {
            continue;
        }
        text.push_str(&format!(",\n{} AS (", part.name));
        for (index, piece) in part.sql.split("$?").enumerate() {
            if index > 0 {
                argument += 1;
                text.push_str(&format!("${argument}"));
            }
            text.push_str(piece);
        }
        text.push(')');
    }
    text.push_str("\nSELECT EXISTS (SELECT FROM fence)");
    text
}

/// The statement with every part, and how many arguments it takes.
#[cfg(test)]
pub(crate) fn whole_statement() -> (String, usize) {
    let parts = PARTS.iter();
    let arguments = parts
        .map(|part| part.sql.matches("$?").count())
        .sum::<usize>();
    (statement((1 << PARTS.len()) - 1), arguments + 2)
}

/// A batch in the making.
#[derive(Default)]
struct Merge<'a> {
    batch: Batch<'a>,
    started: HashMap<ExecutionId, usize>,
    changed: HashMap<ExecutionId, usize>,
    /// The last word on each wait; `None` is closed. Ordered, so that batches lock rows in one order.
    waits: BTreeMap<(ExecutionId, &'a str), Option<&'a WaitRow>>,
    opened: HashMap<SessionId, usize>,
    sessions: HashMap<SessionId, usize>,
}

impl<'a> Merge<'a> {
    fn add(&mut self, write: &'a Write) {
        match write {
            Write::ExecutionStarted(new) => {
                if let Entry::Vacant(place) = self.started.entry(new.id) {
                    place.insert(self.batch.executions_started.len());
                    self.batch
                        .executions_started
                        .push(StartedExecution { new, change: None });
                }
            }
            Write::ExecutionChanged(change) => self.change_execution(change),
            Write::NodeRun(row) => self.batch.node_runs.push(row),
            Write::WaitOpened(row) => {
                self.waits.insert((row.execution_id, &row.key), Some(row));
            }
            Write::WaitClosed { execution_id, key } => {
                self.waits.insert((*execution_id, key), None);
            }
            Write::SessionOpened(new) => self.open_session(new),
            Write::SessionChanged(change) => self.change_session(change),
            Write::SessionEvent(row) => self.batch.session_events.push(row),
        }
    }

    /// The last change counts, but nothing comes after a final one.
    fn change_execution(&mut self, change: &'a ExecutionChange) {
        if let Some(&place) = self.started.get(&change.id) {
            let kept = &mut self.batch.executions_started[place].change;
            if kept.is_none_or(|kept| !kept.status.is_final()) {
                *kept = Some(change);
            }
            return;
        }
        match self.changed.entry(change.id) {
            Entry::Vacant(place) => {
                place.insert(self.batch.executions_changed.len());
                self.batch.executions_changed.push(change);
            }
            Entry::Occupied(place) => {
                let kept = &mut self.batch.executions_changed[*place.get()];
                if !kept.status.is_final() {
                    *kept = change;
                }
            }
        }
    }

    fn open_session(&mut self, new: &'a NewSession) {
        if let Entry::Vacant(place) = self.opened.entry(new.id) {
            place.insert(self.batch.sessions_opened.len());
            self.batch
                .sessions_opened
                .push(OpenedSession { new, change: None });
        }
    }

    fn change_session(&mut self, change: &'a SessionChange) {
        if let Some(&place) = self.opened.get(&change.id) {
            self.batch.sessions_opened[place].change = Some(change);
            return;
        }
        match self.sessions.entry(change.id) {
            Entry::Vacant(place) => {
                place.insert(self.batch.sessions_changed.len());
                self.batch.sessions_changed.push(change);
            }
            Entry::Occupied(place) => self.batch.sessions_changed[*place.get()] = change,
        }
    }

    fn finish(self) -> Batch<'a> {
        let Self {
            mut batch, waits, ..
        } = self;
        let changes = batch.executions_changed.iter().copied();
        batch.ended = changes
            .filter(|change| change.status.is_final())
            .map(|change| change.id)
            .collect();
        let all_ended: HashSet<ExecutionId> = batch.endings().map(|change| change.id).collect();
        let woken: HashSet<ExecutionId> = batch
            .endings()
            .filter_map(|change| change.parent_id)
            .collect();
        batch.ended_children = batch
            .endings()
            .filter(|change| change.parent_id.is_some())
            .map(|change| change.id)
            .collect();
        for ((execution_id, key), row) in waits {
            if all_ended.contains(&execution_id) {
                continue; // goes with its execution
            }
            if woken.contains(&execution_id) {
                batch.waits_of_woken.push((execution_id, key));
            }
            match row {
                Some(row) => batch.waits_opened.push(OpenedWait {
                    row,
                    due: row.child_id.is_some_and(|child| all_ended.contains(&child)),
                }),
                None => batch.waits_closed.push((execution_id, key)),
            }
        }
        // One order of locking for all batches, on whatever shard or host: rows by id, keys by key.
        batch.executions_changed.sort_by_key(|change| change.id);
        batch.sessions_changed.sort_by_key(|change| change.id);
        batch.executions_started.sort_by(|a, b| {
            let key = |started: &StartedExecution<'a>| {
                let new = started.new;
                (new.idempotency_key.as_deref(), new.workflow.as_str())
            };
            key(a).cmp(&key(b))
        });
        batch
            .sessions_opened
            .sort_by(|a, b| a.new.idempotency_key.cmp(&b.new.idempotency_key));
        batch
    }
}

impl<'a> Batch<'a> {
    /// The changes by which executions end in this batch.
    fn endings(&self) -> impl Iterator<Item = &'a ExecutionChange> {
        let started = self
            .executions_started
            .iter()
            .filter_map(|started| started.change);
        started
            .chain(self.executions_changed.iter().copied())
            .filter(|change| change.status.is_final())
    }
}

/// About how many bytes a write takes on its way to the database: for bounds, not for accounts.
pub(crate) fn bytes(write: &Write) -> usize {
    const ROW: usize = 128;
    let len = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    ROW + match write {
        Write::ExecutionStarted(new) => {
            new.input.len()
                + len(&new.trigger_data)
                + new.workflow.len()
                + len(&new.idempotency_key)
        }
        Write::ExecutionChanged(change) => len(&change.output) + len(&change.error),
        Write::NodeRun(row) => {
            len(&row.output) + len(&row.error) + row.step.len() + row.scope.len()
        }
        Write::WaitOpened(row) => row.key.len() + len(&row.data),
        Write::WaitClosed { key, .. } => key.len(),
        Write::SessionOpened(new) => new.agent.len() + len(&new.idempotency_key),
        Write::SessionChanged(change) => change.usage.len(),
        Write::SessionEvent(row) => row.payload.len() + row.kind.len(),
    }
}
