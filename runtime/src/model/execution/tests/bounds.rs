//! What is too much: long loops, large outputs, deep values.

use super::*;
use crate::bounds::{DEPTH_MAX, ITEMS_MAX, OUTPUT_BYTES_MAX};

/// The trigger, and a step that leads to itself.
fn endless(node_runs: u32) -> Arc<Graph> {
    let mut steps = vec![node("trigger"), node("again")];
    steps[0].edges.push(edge(MAIN, 1));
    steps[1].edges.push(edge(MAIN, 1));
    let settings = Settings {
        max_node_runs: node_runs,
        ..Settings::default()
    };
    graph(steps, settings)
}

/// The trigger, then one step.
fn single(on_error: OnError) -> Arc<Graph> {
    let mut steps = vec![node("trigger"), node("a")];
    steps[0].edges.push(edge(MAIN, 1));
    steps[1].on_error = on_error;
    graph(steps, Settings::default())
}

fn started(graph: Arc<Graph>, items: Vec<Item>) -> (Execution, Decision) {
    let at = DateTime::from_timestamp(1_700_000_000, 0).expect("in range");
    let mut execution = Execution::new(ExecutionId::new(), graph, at);
    let decision = execution.decide(Event::Started { items, at });
    (execution, decision)
}

fn finish(execution: &mut Execution, key: RunKey, outcome: NodeOutcome) -> Decision {
    let at = execution.started_at();
    execution.decide(Event::NodeRunFinished {
        key,
        attempt: 1,
        outcome: Ok(outcome),
        started_at: at,
        finished_at: at,
        random: 0.5,
        child_id: ExecutionId::new(),
    })
}

fn key(visit: u32) -> RunKey {
    RunKey {
        frame: 0,
        step: 1,
        visit,
    }
}

/// What becomes of a run of one step that gives this.
fn given(items: Vec<Item>) -> End {
    let (mut execution, _) = started(single(OnError::Fail), vec![Item::new(json!({}))]);
    finish(&mut execution, key(0), NodeOutput::main(items).into());
    execution.ended().expect("it has one step").clone()
}

fn nested(depth: usize) -> Value {
    (1..depth).fold(json!({}), |inner, _| json!({"x": inner}))
}

fn code(end: &End) -> Option<&str> {
    end.error.as_ref()?.get("code")?.as_str()
}

#[test]
fn an_execution_that_ran_long_is_taken_down_on_a_small_stack() {
    let run = || {
        let (mut execution, _) = started(endless(50_000), vec![Item::new(json!({"n": 1}))]);
        for visit in 0.. {
            if execution.ended().is_some() {
                break;
            }
            let items = vec![Item::new(json!({"n": visit})).paired(0)];
            finish(&mut execution, key(visit), NodeOutput::main(items).into());
        }
        assert_eq!(
            code(execution.ended().expect("it ends")),
            Some("max_node_runs")
        );
    };
    let thread = std::thread::Builder::new()
        .stack_size(256 * 1024)
        .spawn(run);
    let thread = thread.expect("a thread can be started");
    thread.join().expect("nothing panics");
}

#[test]
fn an_output_within_the_bounds_is_kept() {
    assert_eq!(
        given(vec![Item::new(nested(DEPTH_MAX))]).status,
        ExecutionStatus::Succeeded
    );
    assert_eq!(
        given(vec![Item::new(json!({})); ITEMS_MAX]).status,
        ExecutionStatus::Succeeded
    );
    let text = "x".repeat(OUTPUT_BYTES_MAX - 1024);
    assert_eq!(
        given(vec![Item::new(json!({"text": text}))]).status,
        ExecutionStatus::Succeeded
    );
}

#[test]
fn an_output_that_is_too_large_too_long_or_too_deep_fails_its_step() {
    let text = "x".repeat(OUTPUT_BYTES_MAX);
    for items in [
        vec![Item::new(json!({"text": text}))],
        vec![Item::new(json!({})); ITEMS_MAX + 1],
        vec![Item::new(nested(DEPTH_MAX + 1))],
    ] {
        assert_eq!(code(&given(items)), Some("output_too_large"));
    }
}

#[test]
fn what_all_steps_give_together_is_bounded() {
    let (mut execution, _) = started(endless(1_000), vec![Item::new(json!({}))]);
    // Shared, so the test itself needs no such memory.
    let large = Item::new(json!({"text": "x".repeat(OUTPUT_BYTES_MAX / 2)}));
    for visit in 0.. {
        if execution.ended().is_some() {
            break;
        }
        finish(
            &mut execution,
            key(visit),
            NodeOutput::main(vec![large.clone()]).into(),
        );
    }
    let end = execution.ended().expect("it ends");
    assert_eq!(code(end), Some("output_too_large"));
    assert!(execution.last_seq() < 100, "{}", execution.last_seq());
}

#[test]
fn an_error_beside_many_items_is_no_way_around_the_bound() {
    let items = vec![Item::new(json!({})); ITEMS_MAX];
    let (mut execution, _) = started(single(OnError::Continue), items);
    let at = execution.started_at();
    execution.decide(Event::NodeRunFinished {
        key: key(0),
        attempt: 1,
        outcome: Err(NodeError::permanent("failed", "x".repeat(100_000))),
        started_at: at,
        finished_at: at,
        random: 0.5,
        child_id: ExecutionId::new(),
    });
    assert_eq!(
        code(execution.ended().expect("it ends")),
        Some("output_too_large")
    );
}

#[test]
fn a_childs_input_and_a_maps_elements_are_bounded_too() {
    let (mut execution, _) = started(single(OnError::Fail), vec![Item::new(json!({}))]);
    let wait = Wait::Child {
        workflow: "other".to_owned(),
        version: None,
        input: nested(DEPTH_MAX + 1),
        wait: true,
    };
    finish(&mut execution, key(0), NodeOutcome::Wait(wait));
    assert_eq!(
        code(execution.ended().expect("it ends")),
        Some("output_too_large")
    );

    let mut steps = vec![
        node("trigger"),
        map_step("m", &mut StdRng::seed_from_u64(1)),
    ];
    steps[0].edges.push(edge(MAIN, 1));
    let (mut execution, _) = started(
        graph(steps, Settings::default()),
        vec![Item::new(json!({}))],
    );
    let at = execution.started_at();
    let elements = Ok(vec![Item::new(json!({})); ITEMS_MAX + 1]);
    execution.decide(Event::MapExpanded {
        key: key(0),
        elements,
        at,
    });
    assert_eq!(
        code(execution.ended().expect("it ends")),
        Some("output_too_large")
    );
}

#[test]
fn a_long_message_is_shortened_and_large_details_are_left_out() {
    let (mut execution, _) = started(single(OnError::Fail), vec![Item::new(json!({}))]);
    let at = execution.started_at();
    execution.decide(Event::NodeRunFinished {
        key: key(0),
        attempt: 1,
        outcome: Err(NodeError::Permanent {
            code: "failed".to_owned(),
            message: "ä".repeat(100_000),
            details: Some(Box::new(json!({"body": "x".repeat(1_000_000)}))),
        }),
        started_at: at,
        finished_at: at,
        random: 0.5,
        child_id: ExecutionId::new(),
    });
    let end = execution.ended().expect("it ends");
    assert!(end.error.as_ref().expect("it failed").to_string().len() < 10_000);
}
