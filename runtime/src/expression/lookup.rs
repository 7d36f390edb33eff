//! Look-ups: paths that start at one of the variables and are followed without a script engine.

use std::{borrow::Cow, sync::Arc};

use super::{
    Scope, StepOutput,
    native::Node,
    time,
    value::{Failure, Val},
};

/// Where a look-up starts.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Root {
    /// `$input.item`, `$item`; `$json` is its member `json`.
    Item,
    First,
    Last,
    /// `$input.all()`, `$items`.
    All,
    Trigger,
    Execution,
    Workflow,
    Vars,
    Env,
    ItemIndex,
    RunIndex,
    /// `$now`, as text.
    Now,
    /// `$today`, as text.
    Today,
    /// `$('step').item`
    StepItem(Arc<str>),
    /// `$node["step"]`: the paired item, or where lineage is lost the one at the same index.
    StepSame(Arc<str>),
    StepFirst(Arc<str>),
    StepLast(Arc<str>),
    StepAll(Arc<str>),
    /// `$('step').isExecuted`
    StepRan(Arc<str>),
}

/// One part of the path.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Part {
    Key(Arc<str>),
    Computed(Node),
}

/// A path from a variable.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Lookup {
    pub root: Root,
    pub path: Vec<Part>,
}

impl Lookup {
    /// What is there for item `index` of the scope's input. Missing members are undefined; fails for a step that
    /// has not run and where lineage is lost.
    pub fn evaluate<'s>(&'s self, scope: &'s Scope, index: usize) -> Result<Val<'s>, Failure> {
        let mut value = self.root.evaluate(scope, index)?;
        for part in &self.path {
            value = match part {
                Part::Key(key) => value.member(key),
                Part::Computed(node) => {
                    let key = node.evaluate(scope, index)?;
                    value.member(&key.to_text()?)
                }
            };
        }
        Ok(value)
    }
}

impl Root {
    fn evaluate<'s>(&self, scope: &'s Scope, index: usize) -> Result<Val<'s>, Failure> {
        let item = |at: Option<&'s crate::item::Item>| at.map_or(Val::Undefined, Val::Item);
        Ok(match self {
            Root::Item => item(scope.input.get(index)),
            Root::First => item(scope.input.first()),
            Root::Last => item(scope.input.last()),
            Root::All => Val::Items(&scope.input),
            Root::Trigger => Val::from(scope.trigger.as_ref()),
            Root::Execution => Val::from(scope.execution.as_ref()),
            Root::Workflow => Val::from(scope.workflow.as_ref()),
            Root::Vars => Val::from(scope.vars.as_ref()),
            Root::Env => Val::from(scope.env.as_ref()),
            Root::ItemIndex => Val::Number(index as f64),
            Root::RunIndex => Val::Number(scope.run_index.into()),
            Root::Now => Val::Text(Cow::Owned(time::now(scope)?)),
            Root::Today => Val::Text(Cow::Owned(time::today(scope)?)),
            Root::StepItem(name) => {
                let step = ran(scope, name)?;
                item(step.items.get(paired(step, name, index)?))
            }
            Root::StepSame(name) => {
                let step = ran(scope, name)?;
                item(step.items.get(paired(step, name, index).unwrap_or(index)))
            }
            Root::StepFirst(name) => item(ran(scope, name)?.items.first()),
            Root::StepLast(name) => item(ran(scope, name)?.items.last()),
            Root::StepAll(name) => Val::Items(&ran(scope, name)?.items),
            Root::StepRan(name) => Val::Bool(scope.steps.contains_key(name)),
        })
    }
}

/// What step `name` left.
pub(super) fn ran<'s>(scope: &'s Scope, name: &str) -> Result<&'s StepOutput, Failure> {
    scope
        .steps
        .get(name)
        .ok_or_else(|| format!("step `{name}` has not run"))
}

/// Which item of `step` input item `index` descends from.
pub(super) fn paired(step: &StepOutput, name: &str, index: usize) -> Result<usize, Failure> {
    step.paired
        .get(index)
        .copied()
        .flatten()
        .map(|at| at as usize)
        .ok_or_else(|| {
            format!(
                "which item of step `{name}` belongs to item {index} is not known: a step between them lost the \
                 lineage; use `$('{name}').first()` or `$('{name}').all()`"
            )
        })
}
