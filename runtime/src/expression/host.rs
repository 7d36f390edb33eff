//! What scripts may ask of the program: data of the current evaluation, the clock, and nothing else.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use rquickjs::{Ctx, Exception, Function, Object, Value, function::IntoJsFunc};
use serde::Serialize;
use serde_json::Map;

use super::{
    Scope, lookup,
    program::Program,
    time,
    value::{Failure, Val},
};
use crate::item::Item;

/// Data of one evaluation.
pub(super) struct Frame {
    pub scope: Rc<Scope>,
    pub index: usize,
    /// Absent for a script of a `code` step.
    pub program: Option<Arc<Program>>,
    /// Objects that were converted already, and by which look-up.
    seen: RefCell<Vec<((char, usize), u32)>>,
}

impl Frame {
    pub fn new(scope: Rc<Scope>, index: usize, program: Option<Arc<Program>>) -> Self {
        Self {
            scope,
            index,
            program,
            seen: RefCell::default(),
        }
    }
}

/// What an engine's functions and its interrupt handler share.
#[derive(Default)]
pub(super) struct State {
    frame: RefCell<Option<Rc<Frame>>>,
    deadline: Cell<Option<Instant>>,
    expired: Cell<bool>,
}

impl State {
    pub fn begin(&self, frame: Frame, limit: Duration) {
        *self.frame.borrow_mut() = Some(Rc::new(frame));
        self.expired.set(false);
        self.deadline.set(Some(Instant::now() + limit));
    }

    pub fn end(&self) {
        *self.frame.borrow_mut() = None;
        self.deadline.set(None);
    }

    /// Whether `is_late` was ever true since `begin`, and so whether anything was told to stop.
    pub fn was_stopped(&self) -> bool {
        self.expired.get()
    }

    /// Whether the time is up. Stays so until the next `begin`.
    pub fn is_late(&self) -> bool {
        if self.deadline.get().is_some_and(|end| Instant::now() >= end) {
            self.expired.set(true);
        }
        self.expired.get()
    }

    fn frame(&self) -> Result<Rc<Frame>, Failure> {
        self.frame
            .borrow()
            .clone()
            .ok_or_else(|| "there is no evaluation".to_owned())
    }
}

/// The object that the engine's own scripts call `host`.
pub(super) fn install<'js>(ctx: &Ctx<'js>, state: &Rc<State>) -> rquickjs::Result<Object<'js>> {
    let host = Object::new(ctx.clone())?;
    let frame = |state: &State, ctx: &Ctx<'js>| raise(ctx, state.frame());
    let shared = Rc::clone;

    let s = shared(state);
    set(
        ctx,
        &host,
        "lookup",
        move |ctx: Ctx<'js>, number: u32, memo: Object<'js>| {
            follow(&ctx, &*frame(&s, &ctx)?, number, &memo)
        },
    )?;
    let s = shared(state);
    set(ctx, &host, "value", move |ctx: Ctx<'js>, name: String| {
        value(&ctx, &*frame(&s, &ctx)?, &name)
    })?;
    let s = shared(state);
    set(ctx, &host, "inputCount", move |ctx: Ctx<'js>| {
        Ok::<_, rquickjs::Error>(frame(&s, &ctx)?.scope.input.len() as f64)
    })?;
    let s = shared(state);
    set(ctx, &host, "inputItem", move |ctx: Ctx<'js>, index: f64| {
        convert_item(&ctx, nth(&frame(&s, &ctx)?.scope.input, index))
    })?;
    let s = shared(state);
    set(ctx, &host, "itemIndex", move |ctx: Ctx<'js>| {
        Ok::<_, rquickjs::Error>(frame(&s, &ctx)?.index as f64)
    })?;
    let s = shared(state);
    set(ctx, &host, "hasStep", move |ctx: Ctx<'js>, name: String| {
        Ok::<_, rquickjs::Error>(frame(&s, &ctx)?.scope.steps.contains_key(name.as_str()))
    })?;
    let s = shared(state);
    set(ctx, &host, "stepNames", move |ctx: Ctx<'js>| {
        let frame = frame(&s, &ctx)?;
        let names = frame.scope.steps.keys().map(|name| name.to_string());
        Ok::<_, rquickjs::Error>(names.collect::<Vec<_>>())
    })?;
    let s = shared(state);
    set(
        ctx,
        &host,
        "stepCount",
        move |ctx: Ctx<'js>, name: String| {
            let frame = frame(&s, &ctx)?;
            raise(
                &ctx,
                lookup::ran(&frame.scope, &name).map(|step| step.items.len() as f64),
            )
        },
    )?;
    let s = shared(state);
    set(
        ctx,
        &host,
        "stepItem",
        move |ctx: Ctx<'js>, name: String, index: f64| {
            let frame = frame(&s, &ctx)?;
            let step = raise(&ctx, lookup::ran(&frame.scope, &name))?;
            convert_item(&ctx, nth(&step.items, index))
        },
    )?;
    let s = shared(state);
    set(
        ctx,
        &host,
        "stepPaired",
        move |ctx: Ctx<'js>, name: String, index: f64| {
            let frame = frame(&s, &ctx)?;
            let step = raise(&ctx, lookup::ran(&frame.scope, &name))?;
            raise(
                &ctx,
                lookup::paired(step, &name, index as usize).map(|at| at as f64),
            )
        },
    )?;
    clock(ctx, &host, state)?;
    Ok(host)
}

fn clock<'js>(ctx: &Ctx<'js>, host: &Object<'js>, state: &Rc<State>) -> rquickjs::Result<()> {
    let s = Rc::clone(state);
    set(ctx, host, "now", move |ctx: Ctx<'js>| {
        raise(
            &ctx,
            s.frame()
                .map(|frame| frame.scope.now.timestamp_millis() as f64),
        )
    })?;
    let s = Rc::clone(state);
    set(ctx, host, "zone", move |ctx: Ctx<'js>| {
        raise(
            &ctx,
            s.frame().map(|frame| frame.scope.timezone.to_string()),
        )
    })?;
    set(
        ctx,
        host,
        "offset",
        |ctx: Ctx<'js>, zone: String, millis: f64| raise(&ctx, time::offset(&zone, millis as i64)),
    )?;
    set(
        ctx,
        host,
        "fromLocal",
        |ctx: Ctx<'js>, zone: String, local: f64| {
            raise(
                &ctx,
                time::from_local(&zone, local as i64).map(|millis| millis as f64),
            )
        },
    )?;
    set(ctx, host, "log", |text: String| {
        tracing::debug!(target: "callboard::script", "{text}");
    })?;
    let s = Rc::clone(state);
    set(ctx, host, "tick", move |ctx: Ctx<'js>| {
        let in_time = if s.is_late() {
            Err("the time is up".to_owned())
        } else {
            Ok(())
        };
        raise(&ctx, in_time)
    })
}

fn set<'js, P>(
    ctx: &Ctx<'js>,
    host: &Object<'js>,
    name: &str,
    function: impl IntoJsFunc<'js, P> + 'js,
) -> rquickjs::Result<()> {
    host.set(name, Function::new(ctx.clone(), function)?)
}

/// A failure becomes an exception, which the script may catch.
fn raise<T>(ctx: &Ctx<'_>, result: Result<T, Failure>) -> rquickjs::Result<T> {
    result.map_err(|message| Exception::throw_message(ctx, &message))
}

fn nth(items: &[Item], index: f64) -> Option<&Item> {
    let whole = index >= 0.0 && index.fract() == 0.0;
    whole.then(|| items.get(index as usize)).flatten()
}

/// Follows look-up `number`. What another look-up reached already is the same object.
fn follow<'js>(
    ctx: &Ctx<'js>,
    frame: &Frame,
    number: u32,
    memo: &Object<'js>,
) -> rquickjs::Result<Value<'js>> {
    let lookup = frame
        .program
        .as_ref()
        .and_then(|program| program.lookups.get(number as usize))
        .ok_or_else(|| Exception::throw_message(ctx, "there is no such look-up"))?;
    let found = raise(ctx, lookup.evaluate(&frame.scope, frame.index))?;
    if let Some(identity) = found.identity() {
        let known = frame
            .seen
            .borrow()
            .iter()
            .find(|(of, _)| *of == identity)
            .map(|(_, by)| *by);
        if let Some(known) = known {
            return memo.get(known);
        }
        frame.seen.borrow_mut().push((identity, number));
    }
    convert(ctx, &found)
}

fn value<'js>(ctx: &Ctx<'js>, frame: &Frame, name: &str) -> rquickjs::Result<Value<'js>> {
    let scope = &frame.scope;
    let data = match name {
        "$runIndex" => return Ok(Value::new_number(ctx.clone(), scope.run_index.into())),
        "$trigger" => &scope.trigger,
        "$execution" => &scope.execution,
        "$workflow" => &scope.workflow,
        "$vars" => &scope.vars,
        "$env" => &scope.env,
        _ => return Ok(Value::new_undefined(ctx.clone())),
    };
    convert(ctx, &Val::from(data.as_ref()))
}

/// An item as scripts see it.
#[derive(Serialize)]
struct Seen<'a> {
    json: &'a serde_json::Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    binary: Option<&'a Map<String, serde_json::Value>>,
    #[serde(rename = "pairedItem", skip_serializing_if = "Option::is_none")]
    paired: Option<Pair>,
}

#[derive(Serialize)]
struct Pair {
    item: u32,
    input: u32,
}

impl<'a> From<&'a Item> for Seen<'a> {
    fn from(item: &'a Item) -> Self {
        Self {
            json: &item.json,
            binary: item.binary.as_deref(),
            paired: item.paired_item.map(|pair| Pair {
                item: pair.item,
                input: pair.input,
            }),
        }
    }
}

fn convert_item<'js>(ctx: &Ctx<'js>, item: Option<&Item>) -> rquickjs::Result<Value<'js>> {
    convert(ctx, &item.map_or(Val::Undefined, Val::Item))
}

/// The value in the engine. Objects go through JSON, whose reader defines members and inherits nothing.
fn convert<'js>(ctx: &Ctx<'js>, value: &Val<'_>) -> rquickjs::Result<Value<'js>> {
    match value {
        Val::Undefined => Ok(Value::new_undefined(ctx.clone())),
        Val::Null => Ok(Value::new_null(ctx.clone())),
        Val::Bool(truth) => Ok(Value::new_bool(ctx.clone(), *truth)),
        Val::Number(number) => Ok(Value::new_number(ctx.clone(), *number)),
        Val::Large(number) => {
            let nearest = number.as_f64().unwrap_or(f64::NAN);
            Ok(Value::new_float(ctx.clone(), nearest))
        }
        Val::Text(text) => {
            rquickjs::String::from_str(ctx.clone(), text).map(rquickjs::String::into_value)
        }
        Val::List(list) => parse(ctx, list),
        Val::Map(map) => parse(ctx, map),
        Val::Item(item) => parse(ctx, &Seen::from(*item)),
        Val::Items(items) => parse(ctx, &items.iter().map(Seen::from).collect::<Vec<_>>()),
        Val::Pair(pair) => parse(
            ctx,
            &Pair {
                item: pair.item,
                input: pair.input,
            },
        ),
        Val::Owned(value) => parse(ctx, value),
    }
}

fn parse<'js>(ctx: &Ctx<'js>, value: &impl Serialize) -> rquickjs::Result<Value<'js>> {
    let text = raise(
        ctx,
        serde_json::to_vec(value).map_err(|fault| fault.to_string()),
    )?;
    ctx.json_parse(text)
}
