//! Draws an execution as its events arrive: lines that stay, and on a terminal a few below them that show what runs
//! now. Drawing is pure: events and times go in, lines come out.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use super::{
    Failure,
    client::{Client, EventStream, Tail},
    output::{Output, Paint, duration_ms, member, one_line, shorten},
    sse::Event,
};

/// How often what runs now is drawn again.
const REDRAW: Duration = Duration::from_millis(120);
/// How long a step is in progress before that is worth a line, where nothing can be drawn.
const ANNOUNCED_AFTER: TimeDelta = TimeDelta::milliseconds(250);
/// How many running steps are shown one by one.
const LIVE_LINES_MAX: usize = 8;
/// From how many runs of one step on, as in a `map`, they are shown as one line.
const GROUPED_FROM: usize = 3;
/// How many waits are shown one by one.
const WAITS_SHOWN: usize = 3;
/// Width that names of steps are padded to.
const STEP_WIDTH: usize = 18;
/// Width that times are padded to.
const TIME_WIDTH: usize = 8;
/// The longest message that is shown of an error, in characters.
const ERROR_CHARS_SHOWN: usize = 200;

/// Follows an execution to its end, draws or prints what happens, and gives its final status.
pub async fn follow(
    client: &Client,
    id: &str,
    stream: Option<EventStream>,
    output: &Output,
) -> Result<String, Failure> {
    let mut tail = Tail::new(client, &["v1", "executions", id, "events"], "", stream);
    let mut drawing = Drawing::new(output.paint, output.terminal);
    let mut screen = Screen {
        output: *output,
        drawn: 0,
    };
    let mut redraw = tokio::time::interval(REDRAW);
    let draws = !output.is_json();
    loop {
        let event = {
            // One wait for one event: a reconnection must not begin anew at each tick.
            let next = tail.next();
            tokio::pin!(next);
            loop {
                tokio::select! {
                    event = &mut next => break event?,
                    _ = redraw.tick(), if draws => screen.show(&drawing.overdue(Utc::now()), &drawing.live(Utc::now())),
                }
            }
        };
        if output.is_json() {
            output.json_line(&json!({"id": event.id, "event": event.name, "data": event.data}));
            drawing.apply(&event, Utc::now());
        } else {
            let lines = drawing.apply(&event, Utc::now());
            screen.show(&lines, &drawing.live(Utc::now()));
        }
        if let Some(status) = drawing.ended() {
            return Ok(status.to_owned());
        }
    }
}

/// The end of standard output: lines that stay, with drawn ones below that are replaced each time.
struct Screen {
    output: Output,
    drawn: usize,
}

impl Screen {
    fn show(&mut self, lines: &[String], live: &[String]) {
        let mut text = String::new();
        if self.drawn > 0 {
            // Back to the first drawn line, and clear from there.
            text.push_str(&format!("\x1b[{}A\r\x1b[J", self.drawn));
        }
        for line in lines {
            text.push_str(line);
            text.push('\n');
        }
        self.drawn = 0;
        if self.output.terminal {
            let width = super::output::terminal_width();
            for line in live {
                // A line that wraps would be two when it is drawn over.
                text.push_str(
                    &self
                        .output
                        .paint
                        .dim(&shorten(line, width.saturating_sub(1))),
                );
                text.push('\n');
            }
            self.drawn = live.len();
        }
        if !text.is_empty() {
            self.output.text(&text);
        }
    }
}

/// What is known of an execution so far.
pub struct Drawing {
    paint: Paint,
    terminal: bool,
    started_at: Option<DateTime<Utc>>,
    running: Vec<Running>,
    waits: Option<String>,
    ended: Option<String>,
}

/// A node run in progress.
struct Running {
    step: String,
    item: Option<i64>,
    kind: String,
    attempt: i64,
    since: DateTime<Utc>,
    arrived: DateTime<Utc>,
    announced: bool,
}

impl Drawing {
    /// Nothing known yet. On a terminal what runs is shown below instead of by lines of its own.
    pub fn new(paint: Paint, terminal: bool) -> Self {
        Self {
            paint,
            terminal,
            started_at: None,
            running: Vec::new(),
            waits: None,
            ended: None,
        }
    }

    /// The final status, once there is one.
    pub fn ended(&self) -> Option<&str> {
        self.ended.as_deref()
    }

    /// Takes the next event, which arrived at `now`; gives the lines that stay.
    pub fn apply(&mut self, event: &Event, now: DateTime<Utc>) -> Vec<String> {
        let data = &event.data;
        match event.name.as_str() {
            "execution.started" => self.started(data, now),
            "node.started" => self.node_started(data, now),
            "node.finished" => self.node_finished(data, now),
            "execution.waiting" => self.waiting(data, now),
            "execution.finished" => self.finished(data, now),
            // Servers of later versions may say more.
            _ => Vec::new(),
        }
    }

    fn started(&mut self, data: &Value, now: DateTime<Utc>) -> Vec<String> {
        self.started_at = Some(time(data, "started_at").unwrap_or(now));
        let version = data
            .get("version")
            .map(|version| format!(" version {version}"))
            .unwrap_or_default();
        let name = member(data, "workflow");
        vec![format!(
            "{}{}",
            self.paint.bold(&one_line(&name)),
            self.paint.dim(&version)
        )]
    }

    fn node_started(&mut self, data: &Value, now: DateTime<Utc>) -> Vec<String> {
        self.waits = None;
        let run = Running {
            step: one_line(&member(data, "step")),
            item: data.get("item_index").and_then(Value::as_i64),
            kind: one_line(&member(data, "type")),
            attempt: attempt(data),
            since: time(data, "started_at").unwrap_or(now),
            arrived: now,
            announced: false,
        };
        self.running.push(run);
        Vec::new()
    }

    /// Lines for node runs that have been in progress for a while at `now`, where they are not shown below. What is
    /// over at once has its one line when it ends.
    pub fn overdue(&mut self, now: DateTime<Utc>) -> Vec<String> {
        if self.terminal {
            return Vec::new();
        }
        let mut lines = Vec::new();
        for place in 0..self.running.len() {
            let run = &self.running[place];
            if !run.announced && now - run.arrived >= ANNOUNCED_AFTER {
                lines.push(self.begun(run));
                self.running[place].announced = true;
            }
        }
        lines
    }

    fn begun(&self, run: &Running) -> String {
        let again = run.attempt > 1;
        let tries = if again {
            format!("attempt {}", run.attempt)
        } else {
            String::new()
        };
        let notes = [run.kind.clone(), tries, self.beside(run)];
        let notes: Vec<String> = notes.into_iter().filter(|note| !note.is_empty()).collect();
        let mark = if again {
            self.paint.yellow("↻")
        } else {
            self.paint.cyan("▸")
        };
        self.line(
            run.since,
            &mark,
            &run.step,
            run.item,
            &self.paint.dim(&notes.join("  ")),
        )
    }

    /// Which other steps are in progress, each once.
    fn beside(&self, run: &Running) -> String {
        let others = self.running.iter().map(|other| other.step.as_str());
        let mut names: Vec<&str> = others.filter(|step| *step != run.step).collect();
        names.sort_unstable();
        names.dedup();
        match names.len() {
            0 => String::new(),
            1..=3 => format!("beside {}", names.join(", ")),
            more => format!("beside {more} others"),
        }
    }

    fn node_finished(&mut self, data: &Value, now: DateTime<Utc>) -> Vec<String> {
        self.waits = None;
        let step = one_line(&member(data, "step"));
        let item = data.get("item_index").and_then(Value::as_i64);
        self.forget(&step, item);
        let at = time(data, "finished_at").unwrap_or(now);
        let status = member(data, "status");
        let took = data
            .get("duration_ms")
            .and_then(Value::as_f64)
            .map(duration_ms)
            .unwrap_or_default();
        let port = member(data, "port");
        let port = if port.is_empty() || port == "main" {
            String::new()
        } else {
            format!("  → {}", one_line(&port))
        };
        let tries = if attempt(data) > 1 || status == "failed" {
            format!("  attempt {}", attempt(data))
        } else {
            String::new()
        };
        let (mark, note) = match status.as_str() {
            "succeeded" => (
                self.paint.green("✓"),
                format!("{}{port}{tries}", self.paint.dim(&took)),
            ),
            "failed" => {
                let error = self.paint.red(&error_words(data.get("error")));
                let again = time(data, "retry_at").map(|retry| {
                    let pause = duration_ms((retry - at).num_milliseconds() as f64);
                    self.paint.yellow(&format!("  again in {pause}"))
                });
                let again = again.unwrap_or_default();
                let note = format!("{}{tries}  {error}{again}{port}", self.paint.dim(&took));
                (self.paint.red("✗"), note)
            }
            other => (self.paint.yellow("–"), self.paint.yellow(&one_line(other))),
        };
        vec![self.line(at, &mark, &step, item, &note)]
    }

    fn waiting(&mut self, data: &Value, now: DateTime<Utc>) -> Vec<String> {
        let words = wait_words(data, now);
        if self.waits.as_ref() == Some(&words) {
            // A stream that was opened again, or a host that took over, says so once more.
            return Vec::new();
        }
        let offset = self.offset(now);
        let line = format!(
            "{offset} {} {}",
            self.paint.yellow("⏸"),
            self.paint.yellow(&words)
        );
        self.waits = Some(words);
        vec![line]
    }

    fn finished(&mut self, data: &Value, now: DateTime<Utc>) -> Vec<String> {
        let status = member(data, "status");
        let at = time(data, "finished_at").unwrap_or(now);
        let took = data
            .get("duration_ms")
            .and_then(Value::as_f64)
            .or_else(|| self.since_start(at));
        let took = took
            .map(|ms| format!(" in {}", duration_ms(ms)))
            .unwrap_or_default();
        let mark = if status == "succeeded" {
            self.paint.green("●")
        } else {
            self.paint.red("●")
        };
        let mut lines = vec![format!(
            "{mark} {}{took}",
            self.paint.status(&one_line(&status))
        )];
        if data.get("error").is_some_and(|error| !error.is_null()) {
            let step = data
                .get("error")
                .map(|error| member(error, "step"))
                .unwrap_or_default();
            let place = if step.is_empty() {
                String::new()
            } else {
                format!("in step {}: ", one_line(&step))
            };
            lines.push(format!(
                "  {place}{}",
                self.paint.red(&error_words(data.get("error")))
            ));
        }
        self.running.clear();
        self.waits = None;
        self.ended = Some(status);
        lines
    }

    /// Forgets a run that ended. Where a server does not say which element of a `map` began, any of the step will do.
    fn forget(&mut self, step: &str, item: Option<i64>) {
        let place = |item| {
            self.running
                .iter()
                .position(|run| run.step == step && run.item == item)
        };
        if let Some(place) = place(item).or_else(|| place(None)) {
            self.running.remove(place);
        }
    }

    fn since_start(&self, at: DateTime<Utc>) -> Option<f64> {
        let elapsed = at - self.started_at?;
        Some(elapsed.num_microseconds()? as f64 / 1_000.0)
    }

    /// The time since the start, as wide as all of them.
    fn offset(&self, at: DateTime<Utc>) -> String {
        let offset = self
            .since_start(at)
            .map(|ms| format!("+{}", duration_ms(ms)));
        self.paint
            .dim(&format!("{:>TIME_WIDTH$}", offset.unwrap_or_default()))
    }

    fn line(
        &self,
        at: DateTime<Utc>,
        mark: &str,
        step: &str,
        item: Option<i64>,
        note: &str,
    ) -> String {
        // Padded before it is coloured: colours have length, but no width.
        let name = format!("{:<STEP_WIDTH$}", label(step, item));
        format!("{} {mark} {name} {note}", self.offset(at))
            .trim_end()
            .to_owned()
    }

    /// What is in progress at `now`, one line each, for below the lines that stay.
    pub fn live(&self, now: DateTime<Utc>) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        let mut done: Vec<&str> = Vec::new();
        for run in &self.running {
            let same: Vec<&Running> = self
                .running
                .iter()
                .filter(|other| other.step == run.step)
                .collect();
            if same.len() >= GROUPED_FROM {
                if !done.contains(&run.step.as_str()) {
                    done.push(&run.step);
                    lines.push(format!(
                        "{:TIME_WIDTH$} ◌ {:<STEP_WIDTH$} {} at once",
                        "",
                        run.step,
                        same.len()
                    ));
                }
                continue;
            }
            let took = duration_ms((now - run.since).num_milliseconds() as f64);
            let tries = if run.attempt > 1 {
                format!("  attempt {}", run.attempt)
            } else {
                String::new()
            };
            let name = label(&run.step, run.item);
            lines.push(format!(
                "{:TIME_WIDTH$} ◌ {name:<STEP_WIDTH$} {took}  {}{tries}",
                "", run.kind
            ));
        }
        if lines.len() > LIVE_LINES_MAX {
            let more = lines.len() - LIVE_LINES_MAX + 1;
            lines.truncate(LIVE_LINES_MAX - 1);
            lines.push(format!("{:TIME_WIDTH$} … and {more} more", ""));
        }
        if lines.is_empty() {
            lines.extend(
                self.waits
                    .iter()
                    .map(|words| format!("{:TIME_WIDTH$} ⏸ {words}", "")),
            );
        }
        lines
    }
}

/// A step's name, with the place of the element within a `map`.
fn label(step: &str, item: Option<i64>) -> String {
    item.map_or_else(|| step.to_owned(), |item| format!("{step}[{item}]"))
}

/// What an execution waits for: the first few waits, each with its end where that is known.
fn wait_words(data: &Value, now: DateTime<Utc>) -> String {
    let waits = data.get("waits").and_then(Value::as_array);
    let waits = waits.map_or(&[][..], Vec::as_slice);
    let one = |wait: &Value| {
        let item = wait.get("item_index").and_then(Value::as_i64);
        let until = time(wait, "wake_at").map(|time| {
            let is_today = time.date_naive() == now.date_naive();
            let form = if is_today {
                "%H:%M:%S UTC"
            } else {
                "%Y-%m-%d %H:%M:%S UTC"
            };
            format!(" until {}", time.format(form))
        });
        let name = label(&one_line(&member(wait, "step")), item);
        format!("{name}{}", until.unwrap_or_default())
    };
    let mut words: Vec<String> = waits.iter().take(WAITS_SHOWN).map(one).collect();
    if waits.len() > WAITS_SHOWN {
        words.push(format!("{} more", waits.len() - WAITS_SHOWN));
    }
    if words.is_empty() {
        return "waiting".to_owned();
    }
    format!("waiting: {}", words.join(", "))
}

fn attempt(data: &Value) -> i64 {
    data.get("attempt").and_then(Value::as_i64).unwrap_or(1)
}

fn time(data: &Value, name: &str) -> Option<DateTime<Utc>> {
    let text = data.get(name)?.as_str()?;
    DateTime::parse_from_rfc3339(text)
        .ok()
        .map(|time| time.to_utc())
}

/// `code: message` of an error.
pub fn error_words(error: Option<&Value>) -> String {
    let Some(error) = error.filter(|error| !error.is_null()) else {
        return "no reason given".to_owned();
    };
    let words = match (member(error, "code"), member(error, "message")) {
        (code, message) if code.is_empty() && message.is_empty() => error.to_string(),
        (code, message) if code.is_empty() || message.is_empty() => format!("{code}{message}"),
        (code, message) => format!("{code}: {message}"),
    };
    shorten(&one_line(&words), ERROR_CHARS_SHOWN)
}

#[cfg(test)]
mod tests;
