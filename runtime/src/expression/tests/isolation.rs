//! One evaluation cannot be seen by the next, and nothing outside can be reached.

use super::*;
use crate::expression::script::Script;

#[test]
fn shared_objects_cannot_be_changed() {
    for attempt in [
        "Object.prototype.x = 1",
        "({}).__proto__.x = 1",
        "Object.getPrototypeOf({}).x = 1",
        "[].constructor.prototype.x = 1",
        "Array.prototype.map = 1",
        "String.prototype.trim = 1",
        "globalThis.x = 1",
        "globalThis.Math = 1",
        "Math.max = 1",
        "JSON.parse = 1",
        "delete Math.max",
        "Object.defineProperty(globalThis, 'x', {value: 1})",
        "Object.defineProperty(Array.prototype, 0, {value: 1})",
        "Object.setPrototypeOf(Array.prototype, {x: 1})",
        "Object.setPrototypeOf(globalThis, {x: 1})",
        "Object.assign(Date.prototype, {x: 1})",
        "Object.assign(Object.getPrototypeOf(function* () {}).prototype, {x: 1})",
        "Object.assign(Object.getPrototypeOf([].values()), {x: 1})",
        "Object.assign(Object.getPrototypeOf(async () => 1), {x: 1})",
        "Object.assign(DateTime, {x: 1})",
        "Object.assign(Object.getPrototypeOf($now), {x: 1})",
        "Object.assign(console, {x: 1})",
        "Object.assign($if, {x: 1})",
        "Object.assign(Object.getPrototypeOf($input['all']), {x: 1})",
        "RegExp.prototype.exec = () => null",
        "Error.prototype.name = 'x'",
        "Object.prototype.toString = 1",
        "Symbol.prototype.x = 1",
        "(() => 1).constructor.x = 1",
    ] {
        for source in [
            format!("return ({attempt})"),
            format!("{attempt}; return 1"),
        ] {
            let result = Script::new(&source).run(&scope(), None);
            assert!(result.is_err(), "{attempt}: {result:?}");
        }
    }
    // Quietly refused or not there at all.
    for attempt in [
        "Error.prepareStackTrace",
        "Error.stackTraceLimit",
        "globalThis.x",
        "({}).x",
        "[].x",
    ] {
        assert_eq!(
            value(&format!("[typeof ({attempt})][0]")).unwrap(),
            json!("undefined"),
            "{attempt}"
        );
    }
    assert_eq!(
        value("[Math.max(1, 2), [1].map(x => x)[0], ' a '.trim()]").unwrap(),
        json!([2, 1, "a"])
    );
}

#[test]
fn assignments_do_not_survive() {
    assert_eq!(value("(leak = 5, leak)").unwrap(), json!(5));
    assert_eq!(value("[leak]").unwrap(), json!([null]));
    assert!(
        Script::new("leak = 5; return 1")
            .run(&scope(), None)
            .is_err()
    );
    assert!(Script::new("return leak").run(&scope(), None).is_err());
    assert_eq!(
        Script::new("var x = 1; function f() {} return this === undefined")
            .run(&scope(), None)
            .unwrap(),
        json!(true)
    );
}

#[test]
fn data_changed_in_one_expression_is_whole_in_the_next() {
    let template = Template::compile(
        &json!([
            "{{ $json.list.reverse() && $json.list }}",
            "{{ $json.list.push(9) }}",
            "{{ (() => { const all = $input.all(); all[0].json = 0; return all === $input.all() && $input.all().map(i => i.json)[0] })() }}",
            "{{ $json.list.map(x => x) }}",
            "{{ $input.all()[0].json.name.trim() }}"
        ]),
        &[],
    )
    .unwrap();
    let shared = scope();
    for _ in 0..2 {
        assert_eq!(
            template.resolve(&shared, 0).unwrap(),
            json!([[3, 2, 1], 4, 0, [1, 2, 3], "Ada"])
        );
    }
}

#[test]
fn code_cannot_be_made_from_text() {
    for attempt in [
        "eval('1')",
        "globalThis.eval('1')",
        "(0, eval)('1')",
        "Function('return 1')()",
        "new Function('return 1')",
        "(() => 1).constructor('return 1')()",
        "(function* () {}).constructor('yield 1')",
        "(async () => 1).constructor('return 1')",
        "(async function* () {}).constructor('return 1')",
        "Object.getPrototypeOf(async function* () {}).constructor('return 1')",
        "[].map.constructor('return 1')",
        "Math.max.constructor('return 1')",
        "''.trim.constructor.constructor('return 1')",
        "$if.constructor('return 1')",
        "$now.plus.constructor('return 1')",
        "$input['all'].constructor('return 1')",
        "new ((() => 1).constructor)('return 1')",
    ] {
        let result = value(attempt);
        assert!(result.is_err(), "{attempt}: {result:?}");
    }
    assert_eq!(value("(() => 1) instanceof Function").unwrap(), json!(true));
}

#[test]
fn nothing_outside_the_language_is_there() {
    for name in [
        "require",
        "process",
        "fetch",
        "std",
        "os",
        "setTimeout",
        "setInterval",
        "queueMicrotask",
        "Proxy",
        "Reflect",
        "WebAssembly",
        "SharedArrayBuffer",
        "Atomics",
        "WeakRef",
        "FinalizationRegistry",
        "performance",
        "Buffer",
        "print",
        "scriptArgs",
        "host",
        "Uint8Array",
        "navigator",
        "Iterator",
        "eval",
    ] {
        let source = format!("return typeof {name}");
        assert_eq!(
            Script::new(&source).run(&scope(), None).unwrap(),
            json!("undefined"),
            "{name}"
        );
    }
    assert!(Script::check("import x from 'y'").is_err());
    assert!(Script::check("export default 1").is_err());
    assert!(Script::check("return import.meta").is_err());
    assert!(
        Script::new("return await import('std')")
            .run(&scope(), None)
            .is_err()
    );
}

#[test]
fn a_caught_error_is_no_way_out() {
    let script = Script::new(
        "try { null.x } catch (e) { return [e.constructor.name, Object.isFrozen(e.constructor), typeof e.constructor.constructor] }",
    );
    assert_eq!(
        script.run(&scope(), None).unwrap(),
        json!(["TypeError", true, "function"])
    );
    let script = Script::new(
        "try { $('never') .first() } catch (e) { return e.constructor.constructor('return 1')() }",
    );
    assert!(script.run(&scope(), None).is_err());
}

#[test]
fn jobs_left_behind_do_not_run_later() {
    let script = Script::new(
        "const log = []; Promise.resolve().then(() => { for (;;); }); return {ok: true}",
    );
    assert_eq!(script.run(&scope(), None).unwrap(), json!({"ok": true}));
    assert_eq!(
        Script::new("await 1; return 2")
            .run(&scope(), None)
            .unwrap(),
        json!(2)
    );
    assert_eq!(
        value("[Promise.resolve(1).then(x => x), 1].length").unwrap(),
        json!(2)
    );
    assert_eq!(value("[1].length").unwrap(), json!(1));
}

#[test]
fn an_engine_that_hit_a_limit_is_replaced() {
    assert!(value("(() => { for (;;); })()").is_err());
    assert_eq!(
        value("$input.all().map(i => i.json.name)").unwrap(),
        json!(["Ada", "Bob"])
    );
    assert!(value("(() => { const a = []; for (;;) a.push([a]) })()").is_err());
    assert_eq!(
        value("$input.all().map(i => i.json.name)").unwrap(),
        json!(["Ada", "Bob"])
    );
}

#[test]
fn everything_that_outlives_an_evaluation_is_frozen() {
    let script = Script::new(
        r"
        const samples = [
            globalThis, [], {}, '', 1, true, 1n, Symbol(), /x/, new Date(), new Error(), new Map(), new Set(), new WeakMap(), $now, $,
            $input, $input.all, $node, $items, console, DateTime, () => 1, function () {}, function* () {}, async () => 1, async function* () {},
            Object.getPrototypeOf((function* () {})()), Object.getPrototypeOf((async function* () {})()), [].values(), ''[Symbol.iterator](), new Map().entries(), new Set().values(),
            'a'.matchAll(/a/g), [1].values().map(x => x), Promise.resolve(), (function () { return arguments })(), $('First Step'),
        ];
        const loose = [];
        const seen = new Set(samples);
        const visit = (value, path) => {
            if (value === null || (typeof value !== 'object' && typeof value !== 'function') || seen.has(value)) return;
            seen.add(value);
            if (!Object.isFrozen(value)) loose.push(path);
            left.push([value, path]);
        };
        const left = [];
        // The samples themselves are made anew each time; what they inherit and hold in common is not.
        samples.forEach((sample, at) => {
            let proto = Object(sample) === sample ? Object.getPrototypeOf(sample) : Object.getPrototypeOf(Object(sample));
            visit(proto, `prototype of ${at}`);
        });
        left.push([globalThis, 'globalThis']);
        for (const [object, path] of left) {
            visit(Object.getPrototypeOf(object), `${path}.[proto]`);
            for (const name of [...Object.getOwnPropertyNames(object), ...Object.getOwnPropertySymbols(object)]) {
                const found = Object.getOwnPropertyDescriptor(object, name);
                const at = `${path}.${String(name)}`;
                visit(found.get, `${at} get`);
                visit(found.set, `${at} set`);
                try { visit(object[name], at) } catch {}
            }
            if (!Object.isFrozen(object)) loose.push(path);
        }
        return {loose: loose.slice(0, 50), seen: seen.size > 500};
        ",
    );
    assert_eq!(
        script.run(&scope(), None).unwrap(),
        json!({"loose": [], "seen": true})
    );
}
