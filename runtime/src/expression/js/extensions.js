// The most used of n8n's extension methods. What is not here says so when it is called.
(function (DateTime) {
    'use strict';
    const define = (target, methods) => {
        for (const name of Object.keys(methods)) {
            Object.defineProperty(target, name, {
                value: methods[name], writable: true, enumerable: false, configurable: true,
            });
        }
    };
    const plain = (value) => typeof value === 'object' && value !== null && !Array.isArray(value);
    const empty = (value) => {
        if (value === undefined || value === null) return true;
        if (typeof value === 'string' || Array.isArray(value)) return value.length === 0;
        const proto = plain(value) && Object.getPrototypeOf(value);
        return (proto === Object.prototype || proto === null) && Object.keys(value).length === 0;
    };
    // Equal as data. Lists and objects are compared by their JSON with sorted members.
    const key = (value) => {
        if (typeof value !== 'object' || value === null) return value;
        const sorted = (_, part) => (plain(part) && !part.toJSON
            ? Object.fromEntries(Object.entries(part).sort(([a], [b]) => (a < b ? -1 : 1))) : part);
        return `\0${JSON.stringify(value, sorted)}`;
    };
    const unique = (list, by = key) => {
        const seen = new Set();
        return list.filter((value) => {
            const mark = by(value);
            return !seen.has(mark) && seen.add(mark);
        });
    };
    const number = (value, what) => {
        const result = Number(value);
        if (Number.isNaN(result)) throw new Error(`${what}: \`${String(value).slice(0, 100)}\` is no number`);
        return result;
    };
    const sum = (list) => list.reduce((total, value) => total + number(value, 'sum'), 0);
    const average = (list) => (list.length ? sum(list) / list.length : 0);
    const words = (text) => text.match(/[\p{Lu}]+(?![\p{Ll}])|[\p{Lu}]?[\p{Ll}]+|[\p{Lo}]+|\d+/gu) ?? [];
    const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1).toLowerCase();
    const bytes = (text) => Array.from(encodeURIComponent(text).matchAll(/%(..)|./g), ([all, hex]) =>
        (hex ? parseInt(hex, 16) : all.charCodeAt(0)));
    const ALPHABET = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/';
    const base64Encode = (text) => {
        const from = bytes(text);
        let out = '';
        for (let at = 0; at < from.length; at += 3) {
            const bits = (from[at] << 16) | ((from[at + 1] ?? 0) << 8) | (from[at + 2] ?? 0);
            out += ALPHABET[bits >> 18] + ALPHABET[(bits >> 12) & 63]
                + (at + 1 < from.length ? ALPHABET[(bits >> 6) & 63] : '=')
                + (at + 2 < from.length ? ALPHABET[bits & 63] : '=');
        }
        return out;
    };
    const base64Decode = (text) => {
        let bits = 0;
        let count = 0;
        let out = '';
        for (const char of text.replace(/[\s=]/g, '').replace(/-/g, '+').replace(/_/g, '/')) {
            const value = ALPHABET.indexOf(char);
            if (value < 0) throw new Error('base64Decode: this is no base64');
            bits = ((bits << 6) | value) & 0xffffff;
            count += 6;
            if (count >= 8) {
                count -= 8;
                out += `%${((bits >> count) & 255).toString(16).padStart(2, '0')}`;
            }
        }
        return decodeURIComponent(out);
    };
    const EMAIL = /[^\s@<>()",;:]+@[^\s@<>()",;:]+\.[a-z]{2,}/i;
    const DOMAIN = /^(?:[a-z][a-z0-9+.-]*:\/\/)?(?:[^\s/@]*@)?((?:[a-z0-9-]+\.)+[a-z]{2,}|\d{1,3}(?:\.\d{1,3}){3}|localhost)(?::\d+)?(?:[/?#].*)?$/i;
    const URL = /^[a-z][a-z0-9+.-]*:\/\/[^\s/?#]+\S*$/i;
    const query = (object) => Object.entries(object)
        .map(([name, value]) => `${encodeURIComponent(name)}=${encodeURIComponent(String(value))}`).join('&');

    define(String.prototype, {
        toNumber() { return number(this.valueOf(), 'toNumber'); },
        toInt(radix = 10) { return parseInt(this.valueOf(), radix); },
        toWholeNumber(radix = 10) { return parseInt(this.valueOf(), radix); },
        toFloat() { return parseFloat(this.valueOf()); },
        toDecimalNumber() { return parseFloat(this.valueOf()); },
        toBoolean() { return !['', 'false', 'no', '0'].includes(this.trim().toLowerCase()); },
        toDateTime() { return DateTime.fromISO(this.valueOf()); },
        toTitleCase() { return this.replace(/\p{L}[\p{L}\p{M}\p{N}'’]*/gu, capital); },
        toSentenceCase() { return this.toLowerCase().replace(/(^|[.!?]\s+)(\p{Ll})/gu, (_, a, b) => a + b.toUpperCase()); },
        toSnakeCase() { return words(this.valueOf()).map((word) => word.toLowerCase()).join('_'); },
        toCamelCase() {
            return words(this.valueOf()).map((word, at) => (at ? capital(word) : word.toLowerCase())).join('');
        },
        isEmpty() { return this.length === 0; },
        isNotEmpty() { return this.length > 0; },
        isEmail() { return EMAIL.exec(this)?.[0] === this.valueOf(); },
        isDomain() { return !this.includes('/') && DOMAIN.test(this); },
        isUrl() { return URL.test(this); },
        isNumeric() { return this.trim() !== '' && !Number.isNaN(Number(this)); },
        extractEmail() { return EMAIL.exec(this)?.[0]; },
        extractDomain() { return DOMAIN.exec(EMAIL.exec(this)?.[0].split('@')[1] ?? this.trim())?.[1]; },
        extractUrl() { return /[a-z][a-z0-9+.-]*:\/\/[^\s<>"']+/i.exec(this)?.[0]; },
        extractUrlPath() { return /^[a-z][a-z0-9+.-]*:\/\/[^\s/?#]+([^\s?#]*)/i.exec(this)?.slice(1).map((path) => path || '/')[0]; },
        parseJson() {
            try {
                return JSON.parse(this.valueOf());
            } catch (fault) {
                throw new Error(`parseJson: ${fault.message}`);
            }
        },
        quote(mark = '"') { return mark + this.replaceAll('\\', '\\\\').replaceAll(mark, `\\${mark}`) + mark; },
        removeTags() { return this.replace(/<[^>]*>/g, ''); },
        stripTags() { return this.replace(/<[^>]*>/g, ''); },
        urlEncode(whole = false) { return whole ? encodeURI(this.valueOf()) : encodeURIComponent(this.valueOf()); },
        urlDecode(whole = false) { return whole ? decodeURI(this.valueOf()) : decodeURIComponent(this.valueOf()); },
        base64Encode() { return base64Encode(this.valueOf()); },
        base64Decode() { return base64Decode(this.valueOf()); },
    });

    define(Array.prototype, {
        first() { return this[0]; },
        last() { return this[this.length - 1]; },
        pluck(...names) {
            if (names.length === 1) {
                return this.map((item) => item?.[names[0]]).filter((value) => value !== undefined);
            }
            return this.map((item) => Object.fromEntries(names.filter((name) => name in Object(item))
                .map((name) => [name, item[name]])));
        },
        unique(...names) {
            return names.length ? unique(this, (item) => key(names.map((name) => item?.[name]))) : unique(this);
        },
        removeDuplicates(...names) { return this.unique(...names); },
        chunk(size) {
            if (!(size >= 1)) throw new Error('chunk: the size must be at least 1');
            const chunks = [];
            for (let at = 0; at < this.length; at += Math.trunc(size)) chunks.push(this.slice(at, at + Math.trunc(size)));
            return chunks;
        },
        sum() { return sum(this); },
        average() { return average(this); },
        min() { return this.length ? this.map((value) => number(value, 'min')).reduce((a, b) => (b < a ? b : a)) : undefined; },
        max() { return this.length ? this.map((value) => number(value, 'max')).reduce((a, b) => (b > a ? b : a)) : undefined; },
        compact() { return this.filter((value) => !empty(value) && value !== 'nil'); },
        isEmpty() { return this.length === 0; },
        isNotEmpty() { return this.length > 0; },
        append(...values) { return [...this, ...values]; },
        union(other) { return unique([...this, ...other]); },
        difference(other) {
            const others = new Set(other.map(key));
            return unique(this.filter((value) => !others.has(key(value))));
        },
        intersection(other) {
            const others = new Set(other.map(key));
            return unique(this.filter((value) => others.has(key(value))));
        },
        smartJoin(name, value) { return Object.fromEntries(this.map((item) => [item[name], item[value]])); },
        renameKeys(...names) {
            const renamed = new Map();
            for (let at = 0; at + 1 < names.length; at += 2) renamed.set(names[at], names[at + 1]);
            return this.map((item) => (plain(item) ? Object.fromEntries(Object.entries(item)
                .map(([name, value]) => [renamed.get(name) ?? name, value])) : item));
        },
        randomItem() { return this[Math.floor(Math.random() * this.length)]; },
        toJsonString() { return JSON.stringify(this); },
    });

    define(Number.prototype, {
        round(digits = 0) {
            const factor = 10 ** digits;
            return Math.round((this + Number.EPSILON) * factor) / factor;
        },
        floor() { return Math.floor(this); },
        ceil() { return Math.ceil(this); },
        abs() { return Math.abs(this); },
        isEven() { return this % 2 === 0; },
        isOdd() { return Math.abs(this % 2) === 1; },
        isInteger() { return Number.isInteger(this.valueOf()); },
        isEmpty() { return false; },
        isNotEmpty() { return true; },
        toBoolean() { return this.valueOf() !== 0; },
        toInt() { return Math.trunc(this); },
        toNumber() { return this.valueOf(); },
        toFloat() { return this.valueOf(); },
        toDateTime(unit = 'ms') {
            const factor = { ms: 1, s: 1000, us: 0.001 }[unit];
            if (!factor) throw new Error(`toDateTime: \`${unit}\` is none of ms, s and us`);
            return DateTime.fromMillis(this * factor);
        },
    });

    define(Boolean.prototype, {
        isEmpty() { return false; },
        isNotEmpty() { return true; },
        toInt() { return Number(this); },
        toNumber() { return Number(this); },
        toBoolean() { return this.valueOf(); },
    });

    define(Date.prototype, {
        toDateTime() { return DateTime.fromJSDate(this); },
        format(pattern) { return DateTime.fromJSDate(this).toFormat(pattern); },
        plus(amount, unit) { return DateTime.fromJSDate(this).plus(amount, unit); },
        minus(amount, unit) { return DateTime.fromJSDate(this).minus(amount, unit); },
        isEmpty() { return false; },
        isNotEmpty() { return true; },
    });

    const objects = {
        keys: (object) => Object.keys(object),
        values: (object) => Object.values(object),
        isEmpty: (object) => empty(object),
        isNotEmpty: (object) => !empty(object),
        hasField: (object, name) => Object.hasOwn(object, name),
        removeField: (object, name) => Object.fromEntries(Object.entries(object).filter(([key]) => key !== name)),
        removeFieldsContaining: (object, text) => Object.fromEntries(Object.entries(object)
            .filter(([, value]) => !(typeof value === 'string' && value.includes(text)))),
        keepFieldsContaining: (object, text) => Object.fromEntries(Object.entries(object)
            .filter(([, value]) => typeof value === 'string' && value.includes(text))),
        compact: (object) => Object.fromEntries(Object.entries(object).filter(([, value]) => !empty(value))),
        merge: (object, other) => ({ ...other, ...object }),
        toJsonString: (object) => JSON.stringify(object),
        urlEncode: (object) => query(object),
    };
    // Calls are rewritten to these names, so that data does not seem to have members it has not.
    for (const name of Object.keys(objects)) {
        define(Object.prototype, { [`@${name}`](...given) {
            const own = this[name];
            if (typeof own === 'function') return own.call(this, ...given);
            if (typeof this !== 'object') throw new TypeError(`${name} is not a method of a ${typeof this}`);
            return objects[name](this, ...given);
        } });
    }

    const later = (target, type, names) => {
        for (const name of names) {
            if (name in target) continue;
            define(target, { [name]() {
                throw new Error(`the method \`${name}\` of a ${type} is not supported`);
            } });
        }
    };
    later(String.prototype, 'text', ['hash', 'replaceSpecialChars', 'transliterate', 'isDate', 'toDate', 'encrypt', 'sayHi']);
    later(Array.prototype, 'list', ['merge', 'mergeIntoObject', 'toSpreadsheet', 'random']);
    later(Number.prototype, 'number', ['format']);
    later(Date.prototype, 'date', [
        'beginningOf', 'endOfMonth', 'extract', 'isBetween', 'isDst', 'isInLast', 'isWeekend', 'diffTo', 'diffToNow',
    ]);
    return { empty, sum, average };
})
