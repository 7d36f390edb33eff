//! Variables, helpers, dates and extension methods in the script engine.

use super::*;

fn assert_all(table: &[(&str, Value)]) {
    for (expression, expected) in table {
        let found = value(expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
        assert_eq!(&found, expected, "{expression}");
    }
}

#[test]
fn scripts_see_the_variables() {
    assert_all(&[
        (
            "$input.all().map(item => item.json.name).join()",
            json!("Ada,Bob"),
        ),
        ("$input['all']().length", json!(2)),
        ("Object.keys($json.obj)", json!(["a"])),
        (
            "$('First Step').all().map(i => i.json.v)",
            json!(["one", "two", "three"]),
        ),
        ("$('First Step').itemMatching(1).json.v", json!("one")),
        ("$('First Step').all(0, 0).length", json!(3)),
        (
            "((name) => $(name).item.json.v)('First Step')",
            json!("three"),
        ),
        ("$node['First' + ' Step'].json.v", json!("three")),
        ("$items('First' + ' Step').length", json!(3)),
        (
            "[$itemIndex, $runIndex, $vars.x, $env.HOME, $workflow.name]",
            json!([0, 2, "var", "/", "flow"]),
        ),
        (
            "Object.keys($trigger)",
            json!(["body", "query", "headers", "method"]),
        ),
        ("$json.list.map(x => x * $json.n)", json!([42, 84, 126])),
        ("({$json}).$json.name", json!("Ada")),
        ("$json.list[$json.list.length - 1]", json!(3)),
        ("$json.obj[['x'][0]].y.z", Value::Null),
        ("[unknown, typeof unknown]", json!([null, "undefined"])),
        ("((x = unknown) => x ?? 'd')()", json!("d")),
        (
            "$json.list.sort((a, b) => b - a).concat($json.list)",
            json!([3, 2, 1, 3, 2, 1]),
        ),
        ("$json.list === $input.first().json.list", json!(true)),
    ]);
}

#[test]
fn unavailable_names_say_so() {
    for (expression, message) in [
        ("$jmespath($json, 'a')", "`$jmespath` is not available here"),
        ("$prevNode.name", "`$prevNode` is not available here"),
        ("$input.params.x", "`$input.params` is not available here"),
        (
            "$('First Step').all(1)",
            "only the first output of the latest run can be read",
        ),
        (
            "'x'.hash('md5')",
            "the method `hash` of a text is not supported",
        ),
        (
            "DateTime.fromFormat('1', 'd')",
            "`DateTime.fromFormat` is not supported",
        ),
    ] {
        assert_eq!(
            value(expression).unwrap_err().message,
            message,
            "{expression}"
        );
    }
}

#[test]
fn helpers_work() {
    assert_all(&[
        ("$if($json.n > 1, 'a', 'b')", json!("a")),
        ("$ifEmpty($json.empty, 'b')", json!("b")),
        ("$ifEmpty($json.n, 'b')", json!(42)),
        ("$min(3, [1, 2])", json!(1)),
        ("$max(3, '7')", json!(7)),
        ("$average([1, 2, 3])", json!(2)),
        ("$not(1)", json!(false)),
    ]);
}

#[test]
fn dates_are_in_the_zone_of_the_workflow() {
    assert_all(&[
        ("$now.toISO()", json!("2024-05-06T09:08:09.123+02:00")),
        ("$now.toISODate()", json!("2024-05-06")),
        ("$now.toMillis()", json!(1_714_979_289_123_i64)),
        (
            "[$now.year, $now.month, $now.day, $now.hour, $now.minute, $now.second, $now.weekday]",
            json!([2024, 5, 6, 9, 8, 9, 1]),
        ),
        ("$today.toISO()", json!("2024-05-06T00:00:00.000+02:00")),
        (
            "$now.plus({days: 1, hours: 2}).toISO()",
            json!("2024-05-07T11:08:09.123+02:00"),
        ),
        ("$now.plus(3, 'days').toISODate()", json!("2024-05-09")),
        (
            "$now.minus({months: 3}).toISO()",
            json!("2024-02-06T09:08:09.123+01:00"),
        ),
        (
            "$now.minus({weeks: 1}).format('yyyy-MM-dd')",
            json!("2024-04-29"),
        ),
        (
            "$now.toFormat(\"EEEE, d MMMM yyyy 'at' h:mm a ZZ\")",
            json!("Monday, 6 May 2024 at 9:08 AM +02:00"),
        ),
        (
            "$now.toFormat('HHmmssSSS kkkk-WW ooo q X')",
            json!("090809123 2024-19 127 2 1714979289"),
        ),
        (
            "$now.startOf('month').toISO()",
            json!("2024-05-01T00:00:00.000+02:00"),
        ),
        (
            "$now.endOf('week').toISO()",
            json!("2024-05-12T23:59:59.999+02:00"),
        ),
        (
            "$now.setZone('America/New_York').toISO()",
            json!("2024-05-06T03:08:09.123-04:00"),
        ),
        ("$now.toUTC().toISO()", json!("2024-05-06T07:08:09.123Z")),
        (
            "$now.set({hour: 1, day: 31}).toISO()",
            json!("2024-05-31T01:08:09.123+02:00"),
        ),
        (
            "DateTime.fromISO('2024-01-31').plus({months: 1}).toISODate()",
            json!("2024-02-29"),
        ),
        (
            "DateTime.fromISO('2024-03-30T02:30:00').plus({days: 1}).toISO()",
            json!("2024-03-31T03:30:00.000+02:00"),
        ),
        (
            "DateTime.fromISO('2024-03-30T02:30:00').plus({hours: 24}).toISO()",
            json!("2024-03-31T03:30:00.000+02:00"),
        ),
        (
            "DateTime.fromISO($json.date).toISO()",
            json!("2024-02-28T11:00:00.000+01:00"),
        ),
        (
            "$json.date.toDateTime().plus({days: 2}).diff($json.date.toDateTime(), 'hours').hours",
            json!(48),
        ),
        (
            "DateTime.fromISO('2024-03-01').diffTo('2024-05-16', ['months', 'days'])",
            json!({"months": 2, "days": 15}),
        ),
        (
            "DateTime.fromISO('2024-01-01').diff(DateTime.fromISO('2023-01-01'), 'years').years",
            json!(1),
        ),
        ("DateTime.fromISO('2024-05-07') > $now", json!(true)),
        ("$now < $now.plus({seconds: 1})", json!(true)),
        (
            "[$now, {at: $today}]",
            json!(["2024-05-06T09:08:09.123+02:00", {"at": "2024-05-06T00:00:00.000+02:00"}]),
        ),
        (
            "DateTime.fromObject({year: 2024, month: 2}).toISODate()",
            json!("2024-02-01"),
        ),
        (
            "DateTime.utc(2024, 2, 3, 4).toISO()",
            json!("2024-02-03T04:00:00.000Z"),
        ),
        (
            "DateTime.fromMillis(0, {zone: 'UTC+2'}).toISO()",
            json!("1970-01-01T02:00:00.000+02:00"),
        ),
        (
            "DateTime.fromSeconds(86400, {zone: 'utc'}).toISO()",
            json!("1970-01-02T00:00:00.000Z"),
        ),
    ]);
    assert!(
        value("DateTime.fromISO('soon')")
            .unwrap_err()
            .message
            .contains("no ISO date")
    );
    assert!(
        value("DateTime.fromISO('2024-02-30')")
            .unwrap_err()
            .message
            .contains("no ISO date")
    );
    assert!(
        value("$now.setZone('Mars/Base')")
            .unwrap_err()
            .message
            .contains("no time zone")
    );
    assert!(
        value("$now.plus({parsecs: 1})")
            .unwrap_err()
            .message
            .contains("no unit of time")
    );
}

#[test]
fn extension_methods_work() {
    assert_all(&[
        ("'42'.toNumber() + 1", json!(43)),
        ("'hello wORLD'.toTitleCase()", json!("Hello World")),
        ("'fooBar baz'.toSnakeCase()", json!("foo_bar_baz")),
        ("'foo bar_baz'.toCamelCase()", json!("fooBarBaz")),
        ("'false'.toBoolean()", json!(false)),
        (
            "'mail me@x.example now'.extractEmail()",
            json!("me@x.example"),
        ),
        (
            "'https://a.example/p?q'.extractDomain()",
            json!("a.example"),
        ),
        ("'me@x.example'.isEmail()", json!(true)),
        ("'{\"a\":1}'.parseJson().a", json!(1)),
        ("'a b&c'.urlEncode()", json!("a%20b%26c")),
        ("'Grüße 😀'.base64Encode()", json!("R3LDvMOfZSDwn5iA")),
        ("'R3LDvMOfZSDwn5iA'.base64Decode()", json!("Grüße 😀")),
        ("'<b>x</b>'.removeTags()", json!("x")),
        ("'a\"b'.quote()", json!("\"a\\\"b\"")),
        ("$json.list.first() + $json.list.last()", json!(4)),
        ("$json.list.sum()", json!(6)),
        ("$json.list.average()", json!(2)),
        ("$json.list.max()", json!(3)),
        ("$json.items.pluck('k').unique()", json!([1, 2])),
        ("$json.items.unique('k')", json!([{"k": 1}, {"k": 2}])),
        ("$json.items.removeDuplicates().length", json!(2)),
        ("$json.list.chunk(2)", json!([[1, 2], [3]])),
        ("[1, null, '', [], {}, 'x'].compact()", json!([1, "x"])),
        ("$json.list.union([3, 4])", json!([1, 2, 3, 4])),
        ("$json.list.difference([3, 4])", json!([1, 2])),
        ("$json.list.intersection([3, 4])", json!([3])),
        ("$json.items.smartJoin('k', 'k')", json!({"1": 1, "2": 2})),
        ("[{a: 1}].renameKeys('a', 'b')", json!([{"b": 1}])),
        ("(2.71659).round(2)", json!(2.72)),
        ("(4).isEven() && (3).isOdd()", json!(true)),
        ("$json.obj.keys()", json!(["a"])),
        ("$json.nothing.isEmpty()", json!(true)),
        ("[{}][0].isEmpty()", json!(true)),
        ("$json.obj.hasField('a')", json!(true)),
        ("({a: 1, b: 2}).removeField('a')", json!({"b": 2})),
        ("({a: 1}).merge({a: 2, b: 3})", json!({"a": 1, "b": 3})),
        ("({a: null, b: 1}).compact()", json!({"b": 1})),
        ("({a: 'x y', b: 1}).urlEncode()", json!("a=x%20y&b=1")),
        ("({a: 1}).toJsonString()", json!("{\"a\":1}")),
        ("Object.values({a: 1})", json!([1])),
        ("[...new Map([['a', 1]]).keys()]", json!(["a"])),
        ("[{a: 1}].map(x => x.keys)", json!([null])),
    ]);
    let error = value("[{}].map(x => x.missing.keys())").unwrap_err();
    assert_eq!(
        error.message,
        "TypeError: cannot read property 'keys' of undefined"
    );
}

#[test]
fn the_language_works() {
    assert_all(&[
        (
            "new Date(0).toISOString()",
            json!("1970-01-01T00:00:00.000Z"),
        ),
        (
            "JSON.parse('[1]')[0] + JSON.stringify({a: 1})",
            json!("1{\"a\":1}"),
        ),
        ("'a-b'.replace(/(\\w)-(\\w)/, '$2-$1')", json!("b-a")),
        (
            "'a,b'.split(',').concat(['c'], 'd').reverse()",
            json!(["d", "c", "b", "a"]),
        ),
        (
            "'aXbX'.replaceAll('X', x => x.toLowerCase())",
            json!("axbx"),
        ),
        ("[[1, [2]], 3].flat()", json!([1, [2], 3])),
        ("[3, 1, 2].toSorted()", json!([1, 2, 3])),
        ("[10, 9, 1].sort()", json!([1, 10, 9])),
        (
            "Object.entries({a: 1}).flatMap(([k, v]) => [k, v])",
            json!(["a", 1]),
        ),
        ("[...'a😀'].length", json!(2)),
        ("'ß'.normalize().toUpperCase()", json!("SS")),
        ("2 ** 10", json!(1024)),
        (
            "12345678901234567890n",
            json!(12_345_678_901_234_567_890_u64),
        ),
        ("'\\ud83d' + 'x'", json!("\u{fffd}x")),
        ("['\\ud83d']", json!(["\u{fffd}"])),
        (
            "(function () { return [...arguments].length })(1, 2)",
            json!(2),
        ),
        (
            "(function () { return Array.prototype.slice.call(arguments, 1) })(1, 2)",
            json!([2]),
        ),
        (
            "(() => { const o = {}; o.constructor = 1; o.toString = 2; return o })()",
            json!({"constructor": 1, "toString": 2}),
        ),
        (
            "(() => { class E extends Error { constructor() { super('m'); this.name = 'E' } } return new E().name })()",
            json!("E"),
        ),
        ("new Set([1, 2]).union(new Set([3])).size", json!(3)),
        ("[1, 2].with(0, 5)", json!([5, 2])),
        (
            "String([1, [2, 3]]) + [].concat([1]) + ({} + '')",
            json!("1,2,31[object Object]"),
        ),
    ]);
}
