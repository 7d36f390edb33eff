//! What commands print: colours only where a person sees them, tables, and nothing at all into a closed pipe.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use serde_json::Value;

/// The widest a cell may become before it is cut.
const CELL_CHARS_MAX: usize = 60;

/// Form of what a command prints on standard output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON value, or one per line where things arrive one by one.
    Json,
}

/// Where and how a command prints.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// Form.
    pub format: Format,
    /// Colours.
    pub paint: Paint,
    /// Standard output is a terminal, so lines may be drawn over.
    pub terminal: bool,
}

impl Output {
    /// For standard output as it is.
    pub fn new(format: Format) -> Self {
        let terminal = io::stdout().is_terminal();
        Self {
            format,
            paint: Paint(terminal && colours_wanted()),
            terminal,
        }
    }

    /// Whether a program reads it.
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// One line of text.
    pub fn line(&self, text: impl AsRef<str>) {
        write_out(&format!("{}\n", text.as_ref()));
    }

    /// Text without an end of line, shown at once.
    pub fn text(&self, text: &str) {
        write_out(text);
    }

    /// A JSON value: on one line, or indented for a person who asked for JSON on a terminal.
    pub fn json(&self, value: &Value) {
        let indented = self
            .terminal
            .then(|| serde_json::to_string_pretty(value).ok())
            .flatten();
        self.line(indented.unwrap_or_else(|| value.to_string()));
    }

    /// A JSON value on a line of its own, for streams of them.
    pub fn json_line(&self, value: &Value) {
        self.line(value.to_string());
    }
}

/// Whether the environment allows colours.
fn colours_wanted() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Writes to standard output. A reader that has gone (`| head`) ends the command quietly: there is nobody to tell.
fn write_out(text: &str) {
    let mut out = io::stdout().lock();
    if out
        .write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .is_err()
    {
        std::process::exit(1);
    }
}

/// A remark beside the output, on standard error.
pub fn remark(text: impl AsRef<str>) {
    // Nobody reads it: nothing to be done.
    let _ = writeln!(io::stderr().lock(), "{}", text.as_ref());
}

/// The last words of a command that failed.
pub fn error(text: impl AsRef<str>) {
    let paint = Paint(io::stderr().is_terminal() && colours_wanted());
    remark(format!("{} {}", paint.red("error:"), text.as_ref()));
}

/// Columns of the terminal; 80 where that is not known.
pub fn terminal_width() -> usize {
    match rustix::termios::tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_col > 0 => usize::from(size.ws_col),
        _ => 80,
    }
}

/// Colours text, or leaves it as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Paint(pub bool);

impl Paint {
    fn with(self, code: &str, text: &str) -> String {
        if self.0 {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// What went wrong.
    pub fn red(self, text: &str) -> String {
        self.with("31", text)
    }

    /// What went well.
    pub fn green(self, text: &str) -> String {
        self.with("32", text)
    }

    /// What waits or is tried again.
    pub fn yellow(self, text: &str) -> String {
        self.with("33", text)
    }

    /// Names.
    pub fn cyan(self, text: &str) -> String {
        self.with("36", text)
    }

    /// What may be overlooked.
    pub fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    /// Headings.
    pub fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    /// A status in its colour.
    pub fn status(self, status: &str) -> String {
        match status {
            "succeeded" | "completed" | "created" => self.green(status),
            "failed" | "limited" => self.red(status),
            "cancelled" | "waiting" | "queued" | "skipped" | "changed" => self.yellow(status),
            "running" => self.cyan(status),
            _ => status.to_owned(),
        }
    }
}

/// Lines of a table: a heading, then rows; columns as wide as their widest cell, the last one not padded.
pub fn table(paint: Paint, heading: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            row.iter()
                .map(|cell| shorten(&one_line(cell), CELL_CHARS_MAX))
                .collect()
        })
        .collect();
    let widths: Vec<usize> = heading
        .iter()
        .enumerate()
        .map(|(column, name)| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells
                .map(|cell| cell.chars().count())
                .chain([name.len()])
                .max()
                .unwrap_or(0)
        })
        .collect();
    let render = |cells: &[String], colour: &dyn Fn(&str) -> String| {
        let last = cells.len().saturating_sub(1);
        let padded = cells.iter().enumerate().map(|(column, cell)| {
            let gap = if column == last {
                0
            } else {
                widths[column].saturating_sub(cell.chars().count())
            };
            format!("{}{}", colour(cell), " ".repeat(gap))
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let names: Vec<String> = heading.iter().map(|name| (*name).to_owned()).collect();
    std::iter::once(render(&names, &|text| paint.bold(text)))
        .chain(
            rows.iter()
                .map(|row| render(row, &|text| paint.status(text))),
        )
        .collect()
}

/// The text on one line, without control characters: what a server sends must not steer the terminal.
pub fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// The text without control characters other than ends of lines and tabs.
pub fn harmless(text: &str) -> String {
    text.chars()
        .filter(|&c| !c.is_control() || c == '\n' || c == '\t')
        .collect()
}

/// At most `max` characters, the last one an ellipsis when something was cut.
pub fn shorten(text: &str, max: usize) -> String {
    if text.chars().count() <= max {
        return text.to_owned();
    }
    text.chars()
        .take(max.saturating_sub(1))
        .chain(['…'])
        .collect()
}

/// A number of milliseconds as a person says it: `8ms`, `1.24s`, `3m 20s`, `2h 05m`.
pub fn duration_ms(ms: f64) -> String {
    let ms = ms.max(0.0);
    if ms < 10.0 {
        format!("{:.1}ms", ms).replace(".0ms", "ms")
    } else if ms < 1_000.0 {
        format!("{ms:.0}ms")
    } else if ms < 60_000.0 {
        format!("{:.2}s", ms / 1_000.0)
    } else {
        let seconds = (ms / 1_000.0) as u64;
        if seconds < 3_600 {
            format!("{}m {:02}s", seconds / 60, seconds % 60)
        } else {
            format!("{}h {:02}m", seconds / 3_600, seconds % 3_600 / 60)
        }
    }
}

/// `1 fault`, `2 faults`.
pub fn count(number: usize, noun: &str) -> String {
    if number == 1 {
        format!("1 {noun}")
    } else {
        format!("{number} {noun}s")
    }
}

/// A member as text: strings as they are, `null` and absent as nothing, everything else as JSON.
pub fn member(value: &Value, name: &str) -> String {
    match value.get(name) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// A member as text, where one whose name ends in `_at` is a time.
pub fn member_shown(value: &Value, name: &str) -> String {
    match member_time(value, name) {
        time if time.is_empty() || !name.ends_with("_at") => member(value, name),
        time => format!("{time} UTC"),
    }
}

/// A member that is a time, in UTC and to the second: `2026-03-01 12:00:05`.
pub fn member_time(value: &Value, name: &str) -> String {
    let text = member(value, name);
    match chrono::DateTime::parse_from_rfc3339(&text) {
        Ok(time) => time.naive_utc().format("%Y-%m-%d %H:%M:%S").to_string(),
        Err(_) => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_is_as_wide_as_its_widest_cells() {
        let rows = [
            vec!["1".to_owned(), "succeeded".to_owned(), "x".to_owned()],
            vec!["22".to_owned(), "failed".to_owned(), String::new()],
        ];
        let lines = table(Paint(false), &["ID", "STATUS", "NOTE"], &rows);
        assert_eq!(
            lines,
            ["ID  STATUS     NOTE", "1   succeeded  x", "22  failed"]
        );
    }

    #[test]
    fn durations_read_as_people_say_them() {
        for (ms, text) in [
            (0.0, "0ms"),
            (0.42, "0.4ms"),
            (8.0, "8ms"),
            (940.4, "940ms"),
            (1_240.0, "1.24s"),
            (200_000.0, "3m 20s"),
            (7_500_000.0, "2h 05m"),
        ] {
            assert_eq!(duration_ms(ms), text);
        }
    }

    #[test]
    fn text_from_a_server_cannot_steer_the_terminal() {
        assert_eq!(one_line("a\n\x1b[31mb"), "a  [31mb");
        assert_eq!(harmless("a\n\x1b[31mb\x07"), "a\n[31mb");
    }

    #[test]
    fn members_read_as_text() {
        let value = json!({"a": "x", "b": 5, "c": null, "t": "2026-03-01T12:00:05.123Z"});
        assert_eq!(
            [
                member(&value, "a"),
                member(&value, "b"),
                member(&value, "c"),
                member(&value, "d")
            ],
            ["x", "5", "", ""]
        );
        assert_eq!(member_time(&value, "t"), "2026-03-01 12:00:05");
        let value = json!({"started_at": "2026-03-01T12:00:05Z", "finished_at": null, "id": "x"});
        assert_eq!(
            ["started_at", "finished_at", "id"].map(|name| member_shown(&value, name)),
            ["2026-03-01 12:00:05 UTC", "", "x"]
        );
    }

    #[test]
    fn cut_text_ends_in_an_ellipsis() {
        assert_eq!(shorten("abcdef", 4), "abc…");
        assert_eq!(shorten("abcd", 4), "abcd");
    }
}
