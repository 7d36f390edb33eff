//! Nothing a script does takes more than its share of time, memory or stack.

use super::*;
use crate::expression::script::Script;

fn message(expression: &str) -> String {
    match value(expression) {
        Err(error) => error.message,
        Ok(value) => panic!("{expression}: {value}"),
    }
}

#[test]
fn loops_are_stopped() {
    for expression in [
        "(() => { while (true) {} })()",
        "(() => { while (true) { try { while (true) {} } catch {} finally { continue } } })()",
        "(() => { for (;;) try { throw 1 } catch { } })()",
        "[...(function* () { for (;;) yield 1 })()].length + new Set((function* () { for (;;) yield 1 })()).size",
        "new Array(2 ** 32 - 1).indexOf(1)",
        "new Set(new Array(2 ** 32 - 1)).size",
        "Array.prototype.includes.call({length: 2 ** 53 - 1}, 1)",
        "({toJSON() { for (;;); }})",
        "(() => { throw {toJSON() { for (;;); }} })()",
        "(() => { const e = new Error(); Object.defineProperty(e, 'message', {get() { for (;;); }}); throw e })()",
    ] {
        let message = message(expression);
        let stopped =
            message == "took longer than 250 ms" || message == "needs more than 64 MiB of memory";
        assert!(stopped, "{expression}: {message}");
    }
    assert_eq!(value("1 + [1][0]").unwrap(), json!(2));
}

#[test]
fn catastrophic_regular_expressions_are_stopped() {
    for expression in [
        "/(a+)+$/.test('a'.repeat(40) + 'b')",
        "'a'.repeat(40).concat('b').match(/(.*a){25}$x/)",
        "'x'.repeat(30).replace(/(x|x|x)*y/, '')",
        "(() => { try { return /^(\\w+\\s?)*$/.test('word '.repeat(50) + '!') } catch { return 0 } })()",
    ] {
        assert_eq!(
            message(expression),
            "took longer than 250 ms",
            "{expression}"
        );
    }
}

#[test]
fn memory_is_bounded() {
    for expression in [
        "(() => { const a = []; for (;;) a.push(new Array(1000).fill(a.length)) })()",
        "'x'.repeat(1e9)",
        "(() => { let s = 'x'; for (;;) s += s })()",
        "Array.from({length: 2 ** 32 - 1})",
        "[...new Array(2 ** 30)]",
        "(() => { const m = new Map(); for (let i = 0; ; i++) m.set(i, {i}) })()",
    ] {
        let message = message(expression);
        let stopped = [
            "took longer than 250 ms",
            "needs more than 64 MiB of memory",
        ]
        .contains(&message.as_str())
            || message.contains("string too long")
            || message.contains("invalid string length")
            || message.contains("repeat");
        assert!(stopped, "{expression}: {message}");
    }
    assert_eq!(value("[1].length").unwrap(), json!(1));
}

#[test]
fn recursion_is_bounded() {
    for expression in [
        "(function f() { return f() + 1 })()",
        "(function f() { try { return f() + 1 } catch (e) { throw e } })()",
        "[1].map(function f() { return [1].map(f) })",
        "(() => { let a = []; for (let i = 0; i < 1e5; i++) a = [a]; return a })()",
        "(() => { const a = []; a.push(a); return a })()",
        "(() => { const a = []; a.push(a); return a.flat(Infinity) })()",
        "(() => { const o = {toString() { return `${this}` }}; return `${o}` })()",
    ] {
        let message = message(expression);
        let stopped = message.contains("call stack")
            || message.contains("circular")
            || message.contains("64 MiB")
            || message.contains("ms");
        assert!(stopped, "{expression}: {message}");
    }
    assert!(
        message("(() => { let a = []; for (let i = 0; i < 200; i++) a = [a]; return a })()")
            .contains("recursion limit")
    );
}

#[test]
fn long_running_built_ins_are_refused_or_stopped() {
    for expression in [
        "new Array(2 ** 32 - 1).reverse()",
        "new Array(2 ** 31).sort()",
        "new Array(2 ** 31).join()",
        "'' + new Array(2 ** 31)",
        "[].concat(new Array(2 ** 31))",
        "[new Array(2 ** 31)].flat()",
        "Array.prototype.fill.call({length: 2 ** 53 - 1}, 1)",
        "Array.prototype.splice.call({length: 2 ** 53 - 1}, 1, 1)",
        "'a'.repeat(2e7).indexOf('a'.repeat(1e7) + 'b')",
        "'a'.repeat(2e7).split('a'.repeat(1e7) + 'b')",
        "'a'.repeat(2e7).replaceAll({toString() { return 'a'.repeat(1e7) + 'b' }}, '')",
        "[].values().drop?.(1) ?? new Array(2 ** 32 - 1).lastIndexOf(1)",
    ] {
        message(expression);
    }
}

#[test]
fn a_script_has_more_time_than_an_expression_but_no_more_memory() {
    let script = Script::new(
        "let n = 0; const end = Date.now() + 300; while (Date.now() < end) n++; return {done: n > 0}",
    );
    assert_eq!(script.run(&scope(), None).unwrap(), json!({"done": true}));
    let script = Script::new("const a = []; for (;;) a.push(new Array(1000).fill(a.length))");
    assert_eq!(
        script.run(&scope(), None).unwrap_err().message,
        "needs more than 64 MiB of memory"
    );
}

#[test]
fn native_texts_are_bounded() {
    let mut wide = scope();
    wide.vars = Arc::new(json!({"x": "x".repeat(5 << 20)}));
    for template in [
        "{{ $vars.x + $vars.x + $vars.x + $vars.x }}",
        "{{ `${$vars.x}${$vars.x}${$vars.x}${$vars.x}` }}",
        "{{ $vars.x }}{{ $vars.x }}{{ $vars.x }}{{ $vars.x }}",
        "{{ $vars.x.repeat(4) }}",
    ] {
        let error = Template::compile(&json!(template), &[])
            .unwrap()
            .resolve(&wide, 0)
            .unwrap_err();
        assert_eq!(
            error.message, "the text is longer than 16777216 bytes",
            "{template}"
        );
    }
}

#[test]
fn many_different_expressions_do_not_fill_the_engine() {
    for number in 0..3000 {
        let expression = format!("[{number}, '{}'][0]", "x".repeat(500));
        assert_eq!(value(&expression).unwrap(), json!(number));
    }
}

#[test]
fn garbage_of_one_evaluation_is_no_burden_for_the_next() {
    // About 20 MB that refer to each other, and so are not freed at once.
    let cycles = "(() => { const a = []; for (let i = 0; i < 100000; i++) a.push({a, i}); return a.length })()";
    let script = Script::new(&format!("return {cycles}"));
    for _ in 0..10 {
        assert_eq!(script.run(&scope(), None).unwrap(), json!(100_000));
    }
}
