//! What a crash, a cancel or a late message must not break, one case each.

use super::*;

fn failing_as(code: &'static str) -> NodeError {
    NodeError::transient(code, "as asked")
}

/// The only run in progress of this step.
fn key_of(execution: &Execution, step: &str) -> RunKey {
    let mut keys = execution
        .runs
        .keys()
        .filter(|key| &*execution.step(**key).id == step);
    *keys.next().expect("it is in progress")
}

#[test]
fn a_later_attempt_that_must_not_run_twice_is_not_repeated_after_a_crash() {
    let mut steps = vec![step("trigger", Action::Entry), node("once")];
    steps[0].edges.push(edge(MAIN, 1));
    steps[1].on_crash = OnCrash::Fail;
    steps[1].retry.max_attempts = 3;
    let behaviour = |_: &str, _: u32| Err(failing_as("flaky"));
    let mut world = World::new(graph(steps, Settings::default()), &behaviour);
    let rng = &mut StdRng::seed_from_u64(1);
    world.perform(rng);
    world.perform(rng);
    assert!(
        world.waits.contains_key("once/0/2/started"),
        "the second attempt has begun"
    );
    world.save();
    world.crash(rng);
    let end = world.end.clone().expect("there is nothing left to do");
    assert_eq!(end.error.expect("it failed")["code"], "unknown_after_crash");
}

#[test]
fn a_join_skipped_in_the_last_moment_of_a_map_is_recorded_once() {
    let mut inner = vec![step("", Action::Entry), node("a"), node("two")];
    inner[0].edges.push(edge(MAIN, 1));
    join(&mut inner, 2, Some(2), &[(1, MAIN), (1, "other")]);
    let mut steps = vec![
        step("trigger", Action::Entry),
        map("each", inner, 2, false),
        node("after"),
    ];
    steps[0].edges.push(edge(MAIN, 1));
    steps[1].edges.push(edge(MAIN, 2));
    let graph = graph(steps, Settings::default());
    for seed in 0..20 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let mut world = World::new(graph.clone(), &passes);
        let end = world.play(rng, 0.5);
        assert_eq!(end.status, ExecutionStatus::Succeeded);
        let skipped = world.rows.iter().filter(|row| row.step == "two");
        assert_eq!(skipped.count(), 4, "seed {seed}: once per element");
    }
}

#[test]
fn a_join_of_any_fires_again_in_the_next_round_of_a_loop_whichever_branch_it_takes() {
    let mut steps = vec![
        step("trigger", Action::Entry),
        node("if"),
        node("yes"),
        node("no"),
        node("join"),
    ];
    steps[0].edges.push(edge(MAIN, 1));
    steps[1].edges.extend([edge("true", 2), edge("false", 3)]);
    join(&mut steps, 4, Some(1), &[(2, MAIN), (3, MAIN)]);
    steps[4].edges.push(edge("again", 1));
    let graph = graph(steps, Settings::default());
    let behaviour = |key: &str, attempt: u32| match key {
        "if/0" | "if/2" => on_port("true"),
        "if/1" | "if/3" => on_port("false"),
        "join/0" | "join/1" | "join/2" => on_port("again"),
        _ => passes(key, attempt),
    };
    for seed in 0..10 {
        let mut world = World::new(graph.clone(), &behaviour);
        let end = world.play(&mut StdRng::seed_from_u64(seed), 0.2);
        assert_eq!(end.status, ExecutionStatus::Succeeded);
        let joined = world.rows.iter().filter(|row| row.step == "join");
        assert_eq!(joined.count(), 4, "seed {seed}");
    }
}

/// A workflow that waits an hour, `around` being what the wait stands in.
fn waiting_an_hour(uses: &str, around: impl FnOnce(Step) -> Step) -> Arc<Graph> {
    let mut nap = node("nap");
    nap.uses = uses.into();
    let mut steps = vec![
        step("trigger", Action::Entry),
        around(nap),
        node("after"),
        node("beside"),
    ];
    steps[0].edges.extend([edge(MAIN, 1), edge(MAIN, 3)]);
    steps[1].edges.push(edge(MAIN, 2));
    let settings = Settings {
        timeout: Some(Duration::from_secs(60)),
        ..Settings::default()
    };
    graph(steps, settings)
}

fn in_a_map(nap: Step) -> Step {
    let mut inner = vec![step("", Action::Entry), nap];
    inner[0].edges.push(edge(MAIN, 1));
    map("each", inner, 4, false)
}

#[test]
fn no_kind_of_waiting_counts_against_the_timeout() {
    let hour = DateTime::from_timestamp(1_700_003_600, 0).expect("in range");
    let timer = |key: &str, attempt: u32| match key.contains("nap/") {
        true => Ok(NodeOutcome::Wait(Wait::Until(hour))),
        false => passes(key, attempt),
    };
    for graph in [
        waiting_an_hour("wait.timer", |nap| nap),
        waiting_an_hour("wait.timer", in_a_map),
    ] {
        let mut world = World::new(graph, &timer);
        let rng = &mut StdRng::seed_from_u64(1);
        while world.execution.is_waiting().is_none() {
            world.perform(rng);
        }
        while world.output("after").is_none() {
            let deadline = world.execution.deadline().expect("it has a timeout");
            assert!(world.execution.is_waiting().is_some() || deadline > world.now);
            assert!(world.perform(rng));
        }
        let folded = world.fold().deadline().expect("it has a timeout");
        assert_eq!(Some(folded), world.execution.deadline());
    }
}

#[test]
fn waiting_for_a_child_does_not_count_against_the_timeout() {
    let child = |key: &str, attempt: u32| match key {
        "nap/0" => Ok(NodeOutcome::Wait(Wait::Child {
            workflow: "child".to_owned(),
            version: None,
            input: Value::Null,
            wait: true,
        })),
        _ => passes(key, attempt),
    };
    let mut world = World::new(waiting_an_hour("workflow.execute", |nap| nap), &child);
    let rng = &mut StdRng::seed_from_u64(1);
    while world.execution.is_waiting().is_none() {
        world.perform(rng);
    }
    world.now += TimeDelta::hours(1);
    world.perform(rng);
    assert!(world.execution.deadline().expect("it has a timeout") > world.now);
    assert!(world.fold().deadline().expect("it has a timeout") > world.now);
}

#[test]
fn waits_beside_each_other_count_once() {
    let mut steps = vec![step("trigger", Action::Entry), node("one"), node("two")];
    steps[0].edges.extend([edge(MAIN, 1), edge(MAIN, 2)]);
    for step in &mut steps[1..] {
        step.uses = "wait.timer".into();
    }
    let settings = Settings {
        timeout: Some(Duration::from_secs(60)),
        ..Settings::default()
    };
    let start = DateTime::from_timestamp(1_700_000_000, 0).expect("in range");
    let until = |key: &str, _: u32| {
        let hours = if key == "one/0" { 1 } else { 2 };
        Ok(NodeOutcome::Wait(Wait::Until(
            start + TimeDelta::hours(hours),
        )))
    };
    let mut world = World::new(graph(steps, settings), &until);
    for step in ["one", "two"] {
        world.start(key_of(&world.execution, step), 1, None);
    }
    assert!(world.execution.is_waiting().is_some());
    for (step, hours) in [("one", 1), ("two", 2)] {
        let key = key_of(&world.execution, step);
        let at = start + TimeDelta::hours(hours);
        world.decide(Event::WaitEnded {
            key,
            with: WaitEnd::Due,
            at,
        });
        let left = world.execution.deadline().expect("it has a timeout") - at;
        assert!(
            left > TimeDelta::seconds(50) && left <= TimeDelta::seconds(60),
            "{left} after {step}"
        );
    }
}

#[test]
fn a_map_that_was_cancelled_before_it_began_is_not_expanded() {
    let mut inner = vec![step("", Action::Entry), node("work")];
    inner[0].edges.push(edge(MAIN, 1));
    let mut outer = vec![step("", Action::Entry), map("inner", inner, 2, false)];
    outer[0].edges.push(edge(MAIN, 1));
    let mut steps = vec![
        step("trigger", Action::Entry),
        map("outer", outer, 2, false),
    ];
    steps[0].edges.push(edge(MAIN, 1));
    let mut world = World::new(graph(steps, Settings::default()), &passes);
    world.perform(&mut StdRng::seed_from_u64(1));
    let key = key_of(&world.execution, "inner");
    assert!(world.execution.may_expand(key));
    world.decide(Event::CancelRequested { at: world.now });
    assert!(!world.execution.may_expand(key));
}

#[test]
fn a_delay_that_another_side_asks_for_is_bounded() {
    let mut steps = vec![step("trigger", Action::Entry), node("call")];
    steps[0].edges.push(edge(MAIN, 1));
    steps[1].retry.max_attempts = 2;
    let behaviour = |_: &str, _: u32| {
        Err(NodeError::Transient {
            code: "busy".to_owned(),
            message: "come back in a while".to_owned(),
            retry_after: Some(Duration::from_secs(i64::MAX as u64 / 1000)),
            details: None,
        })
    };
    let mut world = World::new(graph(steps, Settings::default()), &behaviour);
    world.perform(&mut StdRng::seed_from_u64(1));
    let retry_at = world.rows[1].retry_at.expect("it is tried again");
    assert!(retry_at <= world.now + TimeDelta::days(1));
}
