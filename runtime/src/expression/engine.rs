//! QuickJS: one engine per thread, functions compiled once, limits on time, memory and stack.
//!
//! An engine's realm is frozen before the first evaluation, so evaluations leave nothing behind in it. One that hit a
//! limit is thrown away with everything in it.

use std::{cell::RefCell, collections::HashMap, rc::Rc, sync::Arc, time::Duration};

use rquickjs::{
    Context, Ctx, Error, Function, Persistent, Runtime, Value,
    context::{EvalOptions, intrinsic},
};

use super::{
    EXPRESSION_TIME_MAX, MEMORY_BYTES_MAX, SCRIPT_TIME_MAX, Scope, TEXT_BYTES_MAX, check,
    host::{self, Frame, State},
    program::Program,
    value::{Failure, Val},
};

/// Native stack that scripts may use. Threads have 2 MiB, part of which is in use already.
const STACK_BYTES_MAX: usize = 512 * 1024;
/// Compiled functions kept per thread.
const FUNCTIONS_MAX: usize = 512;
/// Bytes of source of compiled functions kept per thread; they take several times as much of the engine's memory.
const FUNCTION_BYTES_MAX: usize = 1024 * 1024;
/// Characters of an exception's message that are passed on.
const MESSAGE_CHARS_MAX: usize = 1000;

/// The parts of the language that expressions have. No proxies, no typed arrays and shared memory, no weak references.
type Intrinsics = (
    intrinsic::Date,
    intrinsic::Eval,
    intrinsic::RegExpCompiler,
    intrinsic::RegExp,
    intrinsic::Json,
    intrinsic::MapSet,
    intrinsic::Promise,
);

/// Sets up the realm from the scripts below, with `host`.
const PRELUDE: &str = concat!(
    "(function(host){'use strict';host.reflect=Reflect;(",
    include_str!("js/guards.js"),
    ")(host);const DateTime=(",
    include_str!("js/datetime.js"),
    ")(host);return (",
    include_str!("js/scope.js"),
    ")(host,DateTime,(",
    include_str!("js/extensions.js"),
    ")(DateTime));})"
);

thread_local! {
    static ENGINE: RefCell<Option<Engine>> = const { RefCell::new(None) };
}

/// Why there is no value, and where in the source, if that is known.
#[derive(Debug)]
pub(super) struct Thrown {
    pub message: Failure,
    /// Line of a script, from 1.
    pub line: Option<usize>,
}

impl From<Failure> for Thrown {
    fn from(message: Failure) -> Self {
        Self {
            message,
            line: None,
        }
    }
}

/// The value of a program for item `index`. Takes at most [`EXPRESSION_TIME_MAX`].
pub(super) fn evaluate(
    program: &Arc<Program>,
    scope: Rc<Scope>,
    index: usize,
) -> Result<Val<'static>, Thrown> {
    let frame = Frame::new(scope, index, Some(Arc::clone(program)));
    with_engine(frame, EXPRESSION_TIME_MAX, |engine, ctx| {
        let function = engine.functions.get(ctx, &program.function, "expression")?;
        let run = engine.run.clone().restore(ctx)?;
        run.call((function,))
    })
}

/// What a script returns. `function` makes the script of a scope; `body` is the script as written. Takes at most
/// [`SCRIPT_TIME_MAX`].
pub(super) fn run(
    function: &Arc<str>,
    body: &str,
    waits: bool,
    scope: Rc<Scope>,
    index: usize,
) -> Result<Val<'static>, Thrown> {
    with_engine(
        Frame::new(scope, index, None),
        SCRIPT_TIME_MAX,
        |engine, ctx| {
            if !engine.functions.has(function)
                && let Err(error) = check::body(body, waits)
            {
                return Err(rquickjs::Exception::throw_syntax(ctx, &error.message));
            }
            let function = engine.functions.get(ctx, function, "script")?;
            let script = engine.script.clone().restore(ctx)?;
            let returned: Value<'_> = script.call((function,))?;
            match returned.as_promise() {
                // Runs what waits: there is nothing outside that could be waited for.
                Some(promise) => promise.finish(),
                None => Ok(returned),
            }
        },
    )
}

/// The names the realm defines.
#[cfg(test)]
pub(super) fn global_names() -> Vec<String> {
    Engine::new()
        .unwrap()
        .context
        .with(|ctx| ctx.eval("Object.getOwnPropertyNames(globalThis)"))
        .unwrap()
}

/// A runtime with the limits set.
pub(super) fn new_runtime() -> rquickjs::Result<Runtime> {
    let runtime = Runtime::new()?;
    runtime.set_memory_limit(MEMORY_BYTES_MAX);
    runtime.set_max_stack_size(STACK_BYTES_MAX);
    Ok(runtime)
}

/// The order of members matters: what lives in the context goes before it.
struct Engine {
    functions: Functions,
    run: Persistent<Function<'static>>,
    script: Persistent<Function<'static>>,
    well_formed_text: Persistent<Function<'static>>,
    well_formed_json: Persistent<Function<'static>>,
    state: Rc<State>,
    context: Context,
}

impl Engine {
    fn new() -> Result<Self, Failure> {
        Self::start().map_err(|fault| format!("the script engine did not start: {fault}"))
    }

    fn start() -> Result<Self, Failure> {
        let plain = |error: Error| error.to_string();
        let runtime = new_runtime().map_err(plain)?;
        let state = Rc::new(State::default());
        let clock = Rc::clone(&state);
        runtime.set_interrupt_handler(Some(Box::new(move || clock.is_late())));
        let context = Context::custom::<Intrinsics>(&runtime).map_err(plain)?;
        let [run, script, well_formed_text, well_formed_json] = context
            .with(|ctx| prelude(&ctx, &state).map_err(|error| describe(&ctx, error).0.message))?;
        Ok(Self {
            functions: Functions::default(),
            run,
            script,
            well_formed_text,
            well_formed_json,
            state,
            context,
        })
    }
}

/// Sets the realm up and locks it. Gives the functions the program calls.
fn prelude(
    ctx: &Ctx<'_>,
    state: &Rc<State>,
) -> rquickjs::Result<[Persistent<Function<'static>>; 4]> {
    let host = host::install(ctx, state)?;
    let prelude: Function<'_> = compile(ctx, PRELUDE, "prelude")?;
    let made: rquickjs::Object<'_> = prelude.call((host,))?;
    let keep = |name: &str| {
        let function: Function<'_> = made.get(name)?;
        Ok::<_, Error>(Persistent::save(ctx, function))
    };
    Ok([
        keep("run")?,
        keep("script")?,
        keep("wellFormedText")?,
        keep("wellFormedJson")?,
    ])
}

/// Runs `call` in this thread's engine. The engine is kept unless a limit was hit or something was left to do.
fn with_engine(
    frame: Frame,
    limit: Duration,
    call: impl for<'js> FnOnce(&mut Engine, &Ctx<'js>) -> rquickjs::Result<Value<'js>>,
) -> Result<Val<'static>, Thrown> {
    let kept = ENGINE.with_borrow_mut(Option::take);
    let mut engine = match kept {
        Some(engine) => engine,
        None => Engine::new()?,
    };
    engine.state.begin(frame, limit);
    let context = engine.context.clone();
    let mut spoiled = false;
    let mut result = context.with(|ctx| {
        let returned = call(&mut engine, &ctx);
        returned
            .and_then(|value| read(&engine, &ctx, value))
            .unwrap_or_else(|error| {
                let (thrown, out_of_memory) = describe(&ctx, error);
                spoiled = out_of_memory;
                Err(thrown)
            })
    });
    // A value that came late but was not stopped is a value: the machine may just be busy.
    if engine.state.was_stopped() {
        spoiled = true;
        let line = result.err().and_then(|thrown| thrown.line);
        let message = format!("took longer than {} ms", limit.as_millis());
        result = Err(Thrown { message, line });
    }
    engine.state.end();
    if !spoiled && !context.runtime().is_job_pending() {
        drop(context);
        ENGINE.with_borrow_mut(|kept| *kept = Some(engine));
    }
    result
}

fn compile<'js>(ctx: &Ctx<'js>, source: &str, name: &str) -> rquickjs::Result<Function<'js>> {
    let mut options = EvalOptions::default();
    options.filename = Some(name.to_owned());
    ctx.eval_with_options(source, options)
}

/// The value outside the engine. The inner error is for what a result cannot be.
fn read<'js>(
    engine: &Engine,
    ctx: &Ctx<'js>,
    value: Value<'js>,
) -> rquickjs::Result<Result<Val<'static>, Thrown>> {
    use rquickjs::Type;
    let refused = |message: &str| Ok(Err(Failure::from(message).into()));
    Ok(Ok(match value.type_of() {
        Type::Undefined => Val::Undefined,
        Type::Null => Val::Null,
        Type::Bool => Val::Bool(value.as_bool().unwrap_or_default()),
        Type::Int | Type::Float => Val::Number(value.as_number().unwrap_or(f64::NAN)),
        Type::String => {
            let text = read_text(engine, ctx, value)?;
            if text.len() > TEXT_BYTES_MAX {
                return refused(&format!("the text is longer than {TEXT_BYTES_MAX} bytes"));
            }
            Val::Text(text.into())
        }
        Type::BigInt => {
            let text = value.get::<rquickjs::Coerced<String>>()?.0;
            match serde_json::from_str(&text) {
                Ok(number @ serde_json::Value::Number(_)) => Val::Owned(number),
                _ => Val::Text(text.into()),
            }
        }
        Type::Function | Type::Constructor => {
            return refused("gives a function: was it meant to be called?");
        }
        Type::Promise => return refused("gives a promise, which nothing waits for"),
        Type::Symbol => return refused("gives a symbol"),
        _ => return read_object(engine, ctx, value),
    }))
}

fn read_text<'js>(engine: &Engine, ctx: &Ctx<'js>, value: Value<'js>) -> rquickjs::Result<String> {
    if let Ok(text) = value.get::<String>() {
        return Ok(text);
    }
    let well_formed = engine.well_formed_text.clone().restore(ctx)?;
    well_formed.call((value,))
}

fn read_object<'js>(
    engine: &Engine,
    ctx: &Ctx<'js>,
    value: Value<'js>,
) -> rquickjs::Result<Result<Val<'static>, Thrown>> {
    let Some(json) = ctx.json_stringify(value.clone())? else {
        return Ok(Ok(Val::Undefined));
    };
    let text = json.to_string().unwrap_or_default();
    if text.len() > TEXT_BYTES_MAX {
        let message = format!("the value is larger than {TEXT_BYTES_MAX} bytes of JSON");
        return Ok(Err(message.into()));
    }
    let parsed = match serde_json::from_str(&text) {
        Ok(parsed) => Ok(parsed),
        Err(_) => {
            let well_formed = engine.well_formed_json.clone().restore(ctx)?;
            let text: String = well_formed.call((value,))?;
            serde_json::from_str(&text)
        }
    };
    Ok(match parsed {
        Ok(serde_json::Value::String(text)) => Ok(Val::Text(text.into())),
        Ok(serde_json::Value::Null) => Ok(Val::Null),
        Ok(value) => Ok(Val::Owned(value)),
        Err(fault) => Err(format!("the value is no JSON: {fault}").into()),
    })
}

/// What went wrong, for people, and whether it was for want of memory.
fn describe(ctx: &Ctx<'_>, error: Error) -> (Thrown, bool) {
    let failure = |message: &str| Thrown::from(message.to_owned());
    let no_memory = || {
        failure(&format!(
            "needs more than {} MiB of memory",
            MEMORY_BYTES_MAX >> 20
        ))
    };
    match error {
        Error::Exception => {}
        Error::Allocation => return (no_memory(), true),
        Error::WouldBlock => return (failure("waits for something that cannot happen"), true),
        other => return (failure(&other.to_string()), true),
    }
    let thrown = ctx.catch();
    let Some(exception) = thrown.as_exception() else {
        // An engine without the memory for an exception throws null.
        let spoiled = thrown.is_null();
        let kind = thrown.type_name();
        let message = match ctx.json_stringify(thrown) {
            _ if spoiled => format!(
                "threw null, as a script does that needs more than {} MiB of memory",
                MEMORY_BYTES_MAX >> 20
            ),
            Ok(Some(text)) => format!("threw {}", text.to_string().unwrap_or_default()),
            Ok(None) => format!("threw a value of type {kind}"),
            Err(_) => return (no_memory(), true),
        };
        return (failure(&shortened(&message)), spoiled);
    };
    let name = exception
        .get::<_, String>("name")
        .unwrap_or_else(|_| "Error".to_owned());
    let message = exception.message().unwrap_or_default().replace("'@", "'");
    if message == "out of memory" {
        return (no_memory(), true);
    }
    let message = match name.as_str() {
        "Error" => shortened(&message),
        name => shortened(&format!("{name}: {message}")),
    };
    let line = exception.stack().as_deref().and_then(line);
    (Thrown { message, line }, false)
}

fn shortened(text: &str) -> String {
    text.chars().take(MESSAGE_CHARS_MAX).collect()
}

/// The innermost line of the script in a trace of lines such as `at f (script:3:14)`.
fn line(stack: &str) -> Option<usize> {
    let (_, rest) = stack.split_once("script:")?;
    rest.split(':').next()?.parse().ok()
}

/// Compiled functions by their text.
#[derive(Default)]
struct Functions {
    kept: HashMap<Arc<str>, (Persistent<Function<'static>>, u64)>,
    bytes: usize,
    uses: u64,
}

impl Functions {
    fn has(&self, source: &str) -> bool {
        self.kept.contains_key(source)
    }

    /// The function that `source` evaluates to.
    fn get<'js>(
        &mut self,
        ctx: &Ctx<'js>,
        source: &Arc<str>,
        name: &str,
    ) -> rquickjs::Result<Function<'js>> {
        self.uses += 1;
        if let Some((function, used)) = self.kept.get_mut(source) {
            *used = self.uses;
            return function.clone().restore(ctx);
        }
        let function = compile(ctx, source, name)?;
        self.make_room(source.len());
        self.bytes += source.len();
        let saved = Persistent::save(ctx, function.clone());
        self.kept.insert(Arc::clone(source), (saved, self.uses));
        Ok(function)
    }

    /// Drops what was not used for longest, a quarter at a time, so that it does not happen often.
    fn make_room(&mut self, bytes: usize) {
        if self.kept.len() < FUNCTIONS_MAX && self.bytes + bytes <= FUNCTION_BYTES_MAX {
            return;
        }
        let mut by_age: Vec<(u64, Arc<str>)> = self
            .kept
            .iter()
            .map(|(source, (_, used))| (*used, Arc::clone(source)))
            .collect();
        by_age.sort_unstable();
        for (_, source) in by_age {
            let roomy = self.kept.len() <= FUNCTIONS_MAX / 4 * 3
                && self.bytes + bytes <= FUNCTION_BYTES_MAX / 4 * 3;
            if roomy {
                break;
            }
            self.kept.remove(&source);
            self.bytes -= source.len();
        }
    }
}
