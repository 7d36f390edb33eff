use super::*;

fn at(ms: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(1_767_225_600_000 + ms).unwrap_or_default()
}

fn stamp(ms: i64) -> String {
    at(ms).to_rfc3339()
}

fn event(name: &str, data: Value) -> Event {
    Event {
        id: String::new(),
        name: name.to_owned(),
        data,
    }
}

fn started() -> Event {
    event(
        "execution.started",
        json!({"workflow": "lead-intake", "version": 2, "started_at": stamp(0)}),
    )
}

fn node(name: &str, step: &str, ms: i64, more: Value) -> Event {
    let mut data = json!({"step": step, "type": "http.request", "attempt": 1, "started_at": stamp(ms), "finished_at": stamp(ms)});
    if let (Some(data), Value::Object(more)) = (data.as_object_mut(), more) {
        data.extend(more);
    }
    event(name, data)
}

fn draw(terminal: bool, events: &[Event]) -> (Drawing, Vec<String>) {
    let mut drawing = Drawing::new(Paint(false), terminal);
    let lines = events
        .iter()
        .flat_map(|event| drawing.apply(event, at(5_000)))
        .collect();
    (drawing, lines)
}

#[test]
fn a_plain_run_with_a_retry_and_parallel_branches_reads_line_by_line() {
    let mut drawing = Drawing::new(Paint(false), false);
    let mut lines = Vec::new();
    let busy = json!({"code": "http_status", "message": "503\nbusy"});
    for (ms, event) in [
        (0, started()),
        (
            0,
            node(
                "node.finished",
                "trigger",
                0,
                json!({"status": "succeeded", "duration_ms": 0}),
            ),
        ),
        (2, node("node.started", "quick", 2, json!({}))),
        (
            3,
            node(
                "node.finished",
                "quick",
                3,
                json!({"status": "succeeded", "duration_ms": 1}),
            ),
        ),
        (4, node("node.started", "swift", 4, json!({}))),
        (4, node("node.started", "steady", 4, json!({}))),
        (
            40,
            node(
                "node.finished",
                "swift",
                40,
                json!({"status": "failed", "duration_ms": 36, "retry_at": stamp(540), "error": busy}),
            ),
        ),
        (
            550,
            node("node.started", "swift", 550, json!({"attempt": 2})),
        ),
        (
            900,
            node(
                "node.finished",
                "steady",
                900,
                json!({"status": "succeeded", "duration_ms": 896, "port": "main"}),
            ),
        ),
        (
            1_240,
            node(
                "node.finished",
                "swift",
                1_240,
                json!({"status": "succeeded", "duration_ms": 690, "attempt": 2, "port": "true"}),
            ),
        ),
        (
            1_250,
            event(
                "execution.finished",
                json!({"status": "succeeded", "finished_at": stamp(1_250)}),
            ),
        ),
    ] {
        lines.extend(drawing.overdue(at(ms)));
        lines.extend(drawing.apply(&event, at(ms)));
    }
    assert_eq!(
        lines,
        [
            "lead-intake version 2",
            "    +0ms ✓ trigger            0ms",
            "    +3ms ✓ quick              1ms",
            "   +40ms ✗ swift              36ms  attempt 1  http_status: 503 busy  again in 500ms",
            "    +4ms ▸ steady             http.request",
            "  +550ms ↻ swift              http.request  attempt 2  beside steady",
            "  +900ms ✓ steady             896ms",
            "  +1.24s ✓ swift              690ms  → true  attempt 2",
            "● succeeded in 1.25s",
        ]
    );
    assert_eq!(drawing.ended(), Some("succeeded"));
    assert!(drawing.live(at(2_000)).is_empty());
}

#[test]
fn on_a_terminal_what_runs_is_shown_below_and_beginnings_leave_no_line() {
    let (drawing, lines) = draw(
        true,
        &[
            started(),
            node("node.started", "swift", 100, json!({})),
            node("node.started", "steady", 200, json!({"attempt": 3})),
        ],
    );
    assert_eq!(lines, ["lead-intake version 2"]);
    assert_eq!(
        drawing.live(at(1_300)),
        [
            "         ◌ swift              1.20s  http.request",
            "         ◌ steady             1.10s  http.request  attempt 3",
        ]
    );
}

#[test]
fn many_elements_of_a_map_are_one_line_and_each_has_its_place() {
    let mut events = vec![started()];
    events
        .extend((0..5).map(|index| node("node.started", "stock", 1, json!({"item_index": index}))));
    events.push(node(
        "node.finished",
        "stock",
        9,
        json!({"item_index": 3, "status": "succeeded", "duration_ms": 8}),
    ));
    let (drawing, lines) = draw(true, &events);
    assert_eq!(lines[1], "    +9ms ✓ stock[3]           8ms");
    assert_eq!(
        drawing.live(at(10)),
        ["         ◌ stock              4 at once"]
    );
}

#[test]
fn a_wait_is_shown_once_until_something_goes_on() {
    let wait = |step: &str, item: Option<i64>| json!({"step": step, "item_index": item, "wake_at": stamp(60_000)});
    let tomorrow = json!({"step": "child", "wake_at": stamp(90_000_000)});
    let waiting = event(
        "execution.waiting",
        json!({"waits": [wait("pause", None), wait("nap", Some(2)), tomorrow, wait("x", None)]}),
    );
    let (mut drawing, lines) = draw(true, &[started(), waiting.clone(), waiting.clone()]);
    assert_eq!(
        lines[1..],
        [
            "  +5.00s ⏸ waiting: pause until 00:01:00 UTC, nap[2] until 00:01:00 UTC, child until 2026-01-02 01:00:00 UTC, 1 more"
        ]
    );
    assert_eq!(drawing.live(at(0)).len(), 1);
    drawing.apply(&node("node.started", "next", 60_001, json!({})), at(60_001));
    assert!(drawing.live(at(60_002))[0].contains("next"));
    assert_eq!(drawing.apply(&waiting, at(60_003)).len(), 1);
}

#[test]
fn a_failed_run_names_the_step_and_the_reason() {
    let error = json!({"code": "http_status", "message": "404", "step": "enrich"});
    let (drawing, lines) = draw(
        false,
        &[
            started(),
            event(
                "execution.finished",
                json!({"status": "failed", "finished_at": stamp(10), "error": error}),
            ),
        ],
    );
    assert_eq!(
        &lines[1..],
        ["● failed in 10ms", "  in step enrich: http_status: 404"]
    );
    assert_eq!(drawing.ended(), Some("failed"));
}

#[test]
fn a_resumed_stream_that_begins_in_the_middle_is_drawn_all_the_same() {
    let (_, lines) = draw(
        false,
        &[
            node("node.finished", "x", 5, json!({"status": "skipped"})),
            event("something.new", json!({})),
        ],
    );
    assert_eq!(lines, ["         – x                  skipped"]);
}
