// Takes away what could reach beyond one evaluation, and bounds built-ins that may run long without giving the engine
// a chance to look at the clock. Runs first, on an untouched realm.
(function (host) {
    'use strict';
    const { apply } = Reflect;
    const { isArray } = Array;

    // More elements than fit into the memory limit: such an array has holes, and walking them is all it does.
    const LENGTH_MAX = 4194304;
    // Characters of the text times characters of what is searched: the worst case of a naive search.
    const SEARCH_MAX = 2 ** 31;
    // From this size on a single call counts: the clock is looked at before it.
    const LARGE = 65536;

    const method = (target, name, replacement) =>
        Object.defineProperty(target, name, {
            value: replacement,
            writable: true,
            enumerable: false,
            configurable: true,
        });

    for (const name of [
        'eval', 'queueMicrotask', 'Reflect', 'Iterator', 'DisposableStack', 'AsyncDisposableStack', 'SuppressedError',
    ]) {
        delete globalThis[name];
    }
    delete Object.prototype.__proto__;
    for (const name of ['__defineGetter__', '__defineSetter__', '__lookupGetter__', '__lookupSetter__']) {
        delete Object.prototype[name];
    }
    // These two write to the realm itself, frozen or not.
    for (const name of ['prepareStackTrace', 'stackTraceLimit', 'captureStackTrace']) {
        delete Error[name];
    }
    const iterator = Object.getPrototypeOf(Object.getPrototypeOf([][Symbol.iterator]()));
    delete iterator.drop;
    Object.defineProperty(iterator, 'constructor', { value: undefined });

    // Code is what was compiled and nothing else.
    const noCode = function () {
        throw new TypeError('code cannot be made from text here');
    };
    for (const sample of [function () {}, function* () {}, async function () {}, async function* () {}]) {
        Object.defineProperty(Object.getPrototypeOf(sample), 'constructor', { value: noCode });
    }
    Object.defineProperty(noCode, 'prototype', { value: Object.getPrototypeOf(noCode) });
    method(globalThis, 'Function', noCode);

    const bounded = (list) => {
        if (list.length > LENGTH_MAX) throw new RangeError(`the array is longer than ${LENGTH_MAX}`);
        if (list.length > LARGE) host.tick();
        return list;
    };
    // What looks like an array, as an array. The length is read once: a getter may answer otherwise the next time.
    const snapshot = (like) => {
        const length = Math.min(Math.max(Math.trunc(Number(like.length)) || 0, 0), LENGTH_MAX);
        const list = [];
        for (let at = 0; at < length; at++) list[at] = like[at];
        return list;
    };
    const text = (value) => (typeof value === 'string' ? value : String(value));
    const byText = (left, right) => {
        left = text(left);
        right = text(right);
        return left < right ? -1 : left > right ? 1 : 0;
    };

    const list = Array.prototype;
    for (const name of ['reverse', 'copyWithin', 'splice', 'shift', 'unshift', 'fill']) {
        const original = list[name];
        method(list, name, { [name](...given) {
            if (!isArray(this)) throw new TypeError(`${name} needs an array`);
            return apply(original, bounded(this), given);
        } }[name]);
    }
    for (const name of ['slice', 'join', 'toLocaleString', 'toReversed', 'toSpliced', 'with']) {
        const original = list[name];
        method(list, name, { [name](...given) {
            return apply(original, bounded(isArray(this) ? this : snapshot(this)), given);
        } }[name]);
    }
    const { concat, join, sort, toSorted } = list;
    method(list, 'concat', { concat(...given) {
        // What is no array is an element, whatever it says: by `Symbol.isConcatSpreadable` it could be a list of any
        // length.
        const spread = (part) => (isArray(part) ? bounded(part) : [part]);
        return apply(concat, spread(this), given.map(spread));
    } }.concat);
    method(list, 'toString', { toString() {
        if (!isArray(this)) return apply(Object.prototype.toString, this, []);
        return apply(join, bounded(this), []);
    } }.toString);
    method(list, 'sort', { sort(order) {
        if (!isArray(this)) throw new TypeError('sort needs an array');
        bounded(this);
        return apply(sort, this, [order === undefined && this.length > 10000 ? byText : order]);
    } }.sort);
    method(list, 'toSorted', { toSorted(order) {
        const from = bounded(isArray(this) ? this : snapshot(this));
        return apply(toSorted, from, [order === undefined && from.length > 10000 ? byText : order]);
    } }.toSorted);
    method(list, 'flat', { flat(depth = 1) {
        const flattened = [];
        const walk = (from, left) => {
            for (let at = 0; at < from.length; at++) {
                if (!(at in from)) continue;
                if (left > 0 && isArray(from[at])) walk(from[at], left - 1);
                else flattened[flattened.length] = from[at];
            }
        };
        walk(this, Math.trunc(Number(depth)) || 0);
        return flattened;
    } }.flat);

    const string = String.prototype;
    const subject = (value, name) => {
        if (value === undefined || value === null) throw new TypeError(`${name} needs a text`);
        value = text(value);
        if (value.length > LARGE) host.tick();
        return value;
    };
    const searched = (within, wanted) => {
        if (within.length * wanted.length > SEARCH_MAX) {
            throw new RangeError('the texts are too long to search one in the other');
        }
        return wanted;
    };
    for (const name of ['indexOf', 'lastIndexOf', 'includes']) {
        const original = string[name];
        method(string, name, { [name](wanted, ...given) {
            const within = subject(this, name);
            if (wanted instanceof RegExp) return apply(original, within, [wanted, ...given]);
            return apply(original, within, [searched(within, text(wanted)), ...given]);
        } }[name]);
    }
    for (const [name, symbol] of [
        ['split', Symbol.split], ['replace', Symbol.replace], ['replaceAll', Symbol.replace],
    ]) {
        const original = string[name];
        method(string, name, { [name](wanted, ...given) {
            const within = subject(this, name);
            if (wanted === undefined) return apply(original, within, [wanted, ...given]);
            if (wanted !== null && typeof wanted === 'object' && typeof wanted[symbol] === 'function') {
                return apply(original, within, [wanted, ...given]);
            }
            return apply(original, within, [searched(within, text(wanted)), ...given]);
        } }[name]);
    }
    for (const name of ['repeat', 'padStart', 'padEnd']) {
        const original = string[name];
        method(string, name, { [name](count, ...given) {
            const times = Number(count);
            if (times > LARGE || times * this?.length > LARGE) host.tick();
            return apply(original, this, [times, ...given]);
        } }[name]);
    }
    for (const name of ['toUpperCase', 'toLowerCase', 'normalize', 'trim']) {
        const original = string[name];
        method(string, name, { [name](...given) {
            return apply(original, subject(this, name), given);
        } }[name]);
    }

    const { parse, stringify } = JSON;
    method(JSON, 'parse', { parse(source, reviver) {
        return parse(subject(source ?? `${source}`, 'parse'), reviver);
    } }.parse);
    method(JSON, 'stringify', { stringify(value, replacer, space) {
        if (typeof value === 'object') host.tick();
        return stringify(value, replacer, space);
    } }.stringify);

    // Called for every element, so that filling a set from an endless list of holes meets the clock.
    const { add } = Set.prototype;
    method(Set.prototype, 'add', { add(value) {
        return apply(add, this, [value]);
    } }.add);
    for (const name of [
        'union', 'intersection', 'difference', 'symmetricDifference', 'isSubsetOf', 'isSupersetOf', 'isDisjointFrom',
    ]) {
        const original = Set.prototype[name];
        if (!original) continue;
        method(Set.prototype, name, { [name](other) {
            if (!(other instanceof Set)) throw new TypeError(`${name} needs a set`);
            const copy = new Set();
            for (const value of other) copy.add(value);
            return apply(original, this, [copy]);
        } }[name]);
    }
})
