// What an evaluation sees, then the lock: everything reachable is frozen, so no evaluation can change the next one.
(function (host, DateTime, extensions) {
    'use strict';
    const { empty, average } = extensions;
    const { ownKeys } = host.reflect;
    delete host.reflect;
    const define = Object.defineProperty;
    const unavailable = (what) => {
        throw new Error(`\`${what}\` is not available here`);
    };
    const latest = (branch, run) => {
        if (branch || run) throw new Error('only the first output of the latest run can be read');
    };

    class Step {
        #name;
        #items = [];
        #all;
        #index;

        constructor(name, index) {
            host.stepCount(name);
            this.#name = name;
            this.#index = index;
        }
        #at(index) { return (this.#items[index] ??= host.stepItem(this.#name, index)); }
        get item() { return this.#at(host.stepPaired(this.#name, this.#index())); }
        get isExecuted() { return true; }
        get params() { return unavailable(`$('${this.#name}').params`); }
        get context() { return unavailable(`$('${this.#name}').context`); }
        itemMatching(index) { return this.#at(host.stepPaired(this.#name, Number(index))); }
        pairedItem(index = this.#index()) { return this.itemMatching(index); }
        first(branch, run) { latest(branch, run); return this.#at(0); }
        last(branch, run) { latest(branch, run); return this.#at(host.stepCount(this.#name) - 1); }
        all(branch, run) {
            latest(branch, run);
            return (this.#all ??= Array.from({ length: host.stepCount(this.#name) }, (_, at) => this.#at(at)));
        }
    }

    class Input {
        #scope;
        constructor(scope) { this.#scope = scope; }
        get item() { return this.#scope.item; }
        get params() { return unavailable('$input.params'); }
        get context() { return unavailable('$input.context'); }
        first(branch, run) { latest(branch, run); return this.#scope.at(0); }
        last(branch, run) { latest(branch, run); return this.#scope.at(host.inputCount() - 1); }
        all(branch, run) { latest(branch, run); return this.#scope.items; }
    }

    class Scope {
        #input = [];
        #items;
        #steps = new Map();
        #values = new Map();

        at(index) { return (this.#input[index] ??= host.inputItem(index)); }
        #value(name) {
            if (!this.#values.has(name)) this.#values.set(name, host.value(name));
            return this.#values.get(name);
        }
        #step(name) {
            name = String(name);
            if (!this.#steps.has(name)) this.#steps.set(name, new Step(name, host.itemIndex));
            return this.#steps.get(name);
        }
        #date(name) {
            if (!this.#values.has(name)) {
                const now = DateTime.now();
                this.#values.set(name, name === '$now' ? now : now.startOf('day'));
            }
            return this.#values.get(name);
        }
        get items() {
            return (this.#items ??= Array.from({ length: host.inputCount() }, (_, at) => this.at(at)));
        }
        get item() { return this.at(host.itemIndex()); }
        get $item() { return this.item; }
        get $json() { return this.item?.json; }
        get $binary() { return this.item?.binary; }
        get $input() { return new Input(this); }
        get $items() { return (name) => (name === undefined ? this.items : this.#step(name).all()); }
        get $() {
            return (name) => (host.hasStep(String(name)) ? this.#step(name) : {
                isExecuted: false,
                get item() { return host.stepCount(String(name)); },
                first() { return host.stepCount(String(name)); },
                last() { return host.stepCount(String(name)); },
                all() { return host.stepCount(String(name)); },
            });
        }
        get $node() {
            const steps = {};
            const same = (name) => {
                const step = this.#step(name);
                try {
                    return step.item;
                } catch {
                    return step.all()[host.itemIndex()];
                }
            };
            for (const name of host.stepNames()) {
                define(steps, name, { enumerable: true, value: Object.freeze({
                    get json() { return same(name)?.json; },
                    get binary() { return same(name)?.binary; },
                }) });
            }
            return steps;
        }
        get $now() { return this.#date('$now'); }
        get $today() { return this.#date('$today'); }
        get $itemIndex() { return host.itemIndex(); }
        get $runIndex() { return this.#value('$runIndex'); }
        get $trigger() { return this.#value('$trigger'); }
        get $execution() { return this.#value('$execution'); }
        get $workflow() { return this.#value('$workflow'); }
        get $vars() { return this.#value('$vars'); }
        get $env() { return this.#value('$env'); }
        isEmpty(value) { return empty(value); }
        isNotEmpty(value) { return !empty(value); }
    }

    const numbers = (given) => given.flat().map(Number);
    const globals = {
        DateTime,
        $if: (condition, yes, no) => (condition ? yes : no),
        $ifEmpty: (value, instead) => (empty(value) ? instead : value),
        $min: (...given) => Math.min(...numbers(given)),
        $max: (...given) => Math.max(...numbers(given)),
        $average: (...given) => average(given.flat()),
        $not: (value) => !value,
        console: Object.fromEntries(['log', 'info', 'warn', 'error', 'debug', 'trace'].map((level) => [level,
            (...given) => host.log(given.slice(0, 20).map((part) => {
                const text = typeof part === 'string' ? part : JSON.stringify(part) ?? String(part);
                return text.slice(0, 1000);
            }).join(' '))])),
    };
    for (const name of Object.keys(globals)) {
        define(globalThis, name, { value: globals[name], writable: true, configurable: true });
    }
    for (const name of [
        '$agentInfo', '$evaluateExpression', '$fromAI', '$getPairedItem', '$getWorkflowStaticData', '$jmespath',
        '$parameter', '$prevNode', '$secrets', '$self', '$tool',
    ]) {
        define(globalThis, name, { get: () => unavailable(name), set: undefined, configurable: true });
    }

    // A frozen member hides behind it even an object's own member of that name when that is assigned. These names are
    // likely enough in data to be worth a way around.
    const assignable = (target, names) => {
        for (const name of names) {
            const { value } = Object.getOwnPropertyDescriptor(target, name);
            define(target, name, {
                get() { return value; },
                set(own) {
                    if (this === target) throw new TypeError(`'${name}' is read-only`);
                    define(this, name, { value: own, writable: true, enumerable: true, configurable: true });
                },
                enumerable: false,
                configurable: true,
            });
        }
    };
    assignable(Object.prototype, [
        'constructor', 'hasOwnProperty', 'isPrototypeOf', 'propertyIsEnumerable', 'toLocaleString', 'toString', 'valueOf',
    ]);
    assignable(Error.prototype, ['name', 'message', 'toString']);

    const seen = new Set();
    const freeze = (root) => {
        const left = [root];
        while (left.length) {
            const object = left.pop();
            if ((typeof object !== 'object' && typeof object !== 'function') || object === null || seen.has(object)) {
                continue;
            }
            seen.add(object);
            left.push(Object.getPrototypeOf(object));
            for (const name of ownKeys(object)) {
                const { value, get, set } = Object.getOwnPropertyDescriptor(object, name);
                left.push(value, get, set);
                if (get) {
                    // Some getters give the same object every time.
                    try {
                        left.push(object[name]);
                    } catch {
                        // The others want an instance.
                    }
                }
            }
            Object.freeze(object);
        }
    };
    const hidden = [
        function () {}, function* () {}, async function () {}, async function* () {}, (function* () {})(),
        (async function* () {})(), [][Symbol.iterator](), ''[Symbol.iterator](), new Map()[Symbol.iterator](),
        new Set()[Symbol.iterator](), ''.matchAll(/./g), Scope, Input, Step,
    ];
    const iterators = Object.getPrototypeOf(Object.getPrototypeOf([][Symbol.iterator]()));
    if (iterators.map) hidden.push([].values().map((value) => value));
    hidden.forEach(freeze);
    freeze(host);
    freeze(globalThis);

    return {
        // One expression. A look-up is converted once, so that it is the same object every time.
        run(expression) {
            const memo = [];
            return expression((at) => (at in memo ? memo[at] : (memo[at] = host.lookup(at, memo))), new Scope());
        },
        script: (script) => script(new Scope())(),
        // Text and JSON without halves of surrogate pairs, which are no Unicode.
        wellFormedText: (text) => text.toWellFormed(),
        wellFormedJson: (value) => JSON.stringify(value, (_, part) =>
            (typeof part === 'string' ? part.toWellFormed() : part)),
    };
})
