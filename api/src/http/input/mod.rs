//! Reads what a request says and collects everything that is wrong with it, so that all faults are answered at once.

use poem::http::HeaderMap;

mod fields;
mod param;

pub use self::{
    fields::{Body, BodyType, FieldType, Fields, missing},
    param::{Cursor, IdempotencyKey, Limit, Param, ParamType, Wrong, no_nul, one_of},
};
use super::problem::{ApiError, ApiResult, Fault};

/// The faults found so far.
#[derive(Default)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// Adds one.
    pub fn push(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    /// The value of a path parameter; a fault otherwise.
    pub fn path<T>(&mut self, name: &'static str, param: Param<T>) -> Option<T> {
        self.take("path", name, param)
    }

    /// The value of a query parameter, if there is one; a fault when it is wrong.
    pub fn query<T>(&mut self, name: &'static str, param: Option<Param<T>>) -> Option<T> {
        self.take("query", name, param?)
    }

    /// The value of a header, if there is one; a fault when it is wrong. `name` is in lower case. Unlike the extractor of
    /// headers it does not pass over a value that is no text: a key that is silently ignored is worse than none.
    pub fn header<T: ParamType>(&mut self, name: &'static str, headers: &HeaderMap) -> Option<T> {
        let value = headers.get(name)?;
        let parsed = match value.to_str() {
            Ok(text) => T::parse(text),
            Err(_) => Err(Wrong::new(
                "string_unicode",
                "Input should be a valid string",
            )),
        };
        self.take("header", name, Param(parsed))
    }

    /// As [`Faults::header`], for one that was read already.
    pub fn parsed_header<T>(&mut self, name: &'static str, param: Option<Param<T>>) -> Option<T> {
        self.take("header", name, param?)
    }

    /// A body that was read as `T`.
    pub fn body<T>(&mut self, body: Body<T>) -> Option<T> {
        match body.0 {
            Ok(value) => Some(value),
            Err(faults) => {
                self.0.extend(faults);
                None
            }
        }
    }

    fn take<T>(&mut self, part: &'static str, name: &'static str, param: Param<T>) -> Option<T> {
        match param.0 {
            Ok(value) => Some(value),
            Err(wrong) => {
                self.push(Fault::new([part, name], wrong.kind, wrong.msg));
                None
            }
        }
    }

    /// `value` when nothing was wrong. It is only `None` when something was.
    pub fn check<T>(self, value: Option<T>) -> ApiResult<T> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(ApiError::invalid(self.0)),
        }
    }
}
