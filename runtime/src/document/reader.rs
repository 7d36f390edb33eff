//! Reads documents and request bodies field by field and finds all their faults, in the words of [`Fault`].
//!
//! A [`Reader`] is a value and its path; a [`Fields`] hands out the members of an object and, at the end, reports the
//! ones nobody asked for. Both put faults into a [`Faults`] and go on: a method that finds a fault records it and gives
//! `None`, so code reads everything first and asks [`Faults::into_result`] last.
//!
//! ```
//! use std::time::Duration;
//!
//! use callboard_runtime::document::reader::{Faults, Reader};
//! use serde_json::json;
//!
//! struct Limits {
//!     calls: u32,
//!     wall: Option<Duration>,
//! }
//!
//! fn limits(reader: &Reader<'_>) -> Option<Limits> {
//!     let mut fields = reader.fields()?;
//!     let calls = fields.required("calls").and_then(|calls| calls.integer(1..=1000));
//!     let wall = fields.optional("wall").and_then(|wall| wall.duration());
//!     fields.finish(); // reports unknown fields; forgetting it would accept them
//!     Some(Limits { calls: calls?, wall })
//! }
//!
//! let body = json!({"calls": 0, "wal": "5m"});
//! let faults = Faults::default(); // for a document: `document.faults()`, which knows its positions
//! let read = limits(&Reader::new(&body, &faults));
//! let faults = faults.into_result(read).err().unwrap_or_default();
//! assert_eq!(faults[0].message, "Input should be greater than or equal to 1");
//! assert_eq!(faults[1].message, "Extra inputs are not permitted; did you mean `wall`?");
//! assert_eq!(faults[1].loc(), ["body", "wal"]);
//! ```

use std::{cell::RefCell, fmt, ops::RangeInclusive, sync::Arc, time::Duration};

use serde_json::{Map, Value};

use super::{
    Fault, NAME_CHARS_MAX, Source,
    wording::{self, Expected},
};
use crate::{duration, schema::Schema};

/// The most faults that one [`Faults`] keeps; more than that nobody reads.
pub const FAULTS_MAX: usize = 500;

/// Collects faults. Readers share it, so it is for one thread: read first, await later.
#[derive(Debug, Default)]
pub struct Faults {
    source: Arc<Source>,
    list: RefCell<Vec<Fault>>,
}

impl Faults {
    /// An empty list; the source gives each fault its file and position. For a request body use [`Faults::default`].
    pub fn new(source: Arc<Source>) -> Self {
        Self {
            source,
            list: RefCell::default(),
        }
    }

    /// Adds a fault of the value at `path`. Beyond [`FAULTS_MAX`] it is dropped.
    pub fn add<S: AsRef<str>>(&self, path: &[S], kind: &'static str, message: impl Into<String>) {
        let path = owned(path);
        // What is wrong with these is that there is a name, or that there is none.
        let position = match kind {
            "extra_forbidden" => self.source.name_position(&path),
            _ => self.source.position(&path),
        };
        self.push(path, position, kind, message.into());
    }

    /// Adds a fault of byte `offset` of `text`, which stands at `path`.
    pub fn add_at_offset<S: AsRef<str>>(
        &self,
        path: &[S],
        text: &str,
        offset: usize,
        kind: &'static str,
        message: impl Into<String>,
    ) {
        let path = owned(path);
        let position = self.source.offset_position(&path, text, offset);
        self.push(path, position, kind, message.into());
    }

    fn push(
        &self,
        path: Vec<String>,
        position: Option<(usize, usize)>,
        kind: &'static str,
        message: String,
    ) {
        let mut list = self.list.borrow_mut();
        if list.len() < FAULTS_MAX {
            list.push(Fault {
                file: self.source.file.clone(),
                position,
                path,
                message,
                kind,
            });
        }
    }

    /// How many there are so far; compare before and after to learn whether a part was sound.
    pub fn len(&self) -> usize {
        self.list.borrow().len()
    }

    /// Whether there are none so far.
    pub fn is_empty(&self) -> bool {
        self.list.borrow().is_empty()
    }

    /// All faults, in the order of the file where positions are known, else as they were found.
    pub fn into_vec(self) -> Vec<Fault> {
        let mut list = self.list.into_inner();
        list.sort_by_key(|fault| fault.position);
        list
    }

    /// The value, if there were no faults.
    ///
    /// # Panics
    /// When there is neither a value nor a fault: whoever gave `None` must have said why.
    pub fn into_result<T>(self, value: Option<T>) -> Result<T, Vec<Fault>> {
        match value {
            Some(value) if self.is_empty() => Ok(value),
            value => {
                let faults = self.into_vec();
                assert!(
                    value.is_some() || !faults.is_empty(),
                    "a reader gave nothing and recorded no fault"
                );
                Err(faults)
            }
        }
    }
}

fn owned<S: AsRef<str>>(path: &[S]) -> Vec<String> {
    path.iter()
        .map(|segment| segment.as_ref().to_owned())
        .collect()
}

/// A value within a document or body, and where it stands. Methods record a fault and give `None` when the value is
/// not what they read.
#[derive(Clone)]
pub struct Reader<'a> {
    value: &'a Value,
    path: Vec<String>,
    faults: &'a Faults,
}

impl fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.join("."), self.value)
    }
}

impl<'a> Reader<'a> {
    /// The whole of a body.
    pub fn new(value: &'a Value, faults: &'a Faults) -> Self {
        Self::at(value, &[], faults)
    }

    /// A value that stands at `path`.
    pub fn at(value: &'a Value, path: &[&str], faults: &'a Faults) -> Self {
        Self {
            value,
            path: owned(path),
            faults,
        }
    }

    fn child(&self, name: impl Into<String>, value: &'a Value) -> Self {
        let mut path = Vec::with_capacity(self.path.len() + 1);
        path.extend_from_slice(&self.path);
        path.push(name.into());
        Self {
            value,
            path,
            faults: self.faults,
        }
    }

    /// The value as it is.
    pub fn value(&self) -> &'a Value {
        self.value
    }

    /// Where it stands: names and indexes.
    pub fn path(&self) -> &[String] {
        &self.path
    }

    /// Where faults go.
    pub fn faults(&self) -> &'a Faults {
        self.faults
    }

    /// Records a fault of this value.
    pub fn fault(&self, kind: &'static str, message: impl Into<String>) {
        self.faults.add(&self.path, kind, message);
    }

    /// Records a fault of something below this value.
    pub fn fault_below<S: AsRef<str>>(
        &self,
        path: &[S],
        kind: &'static str,
        message: impl Into<String>,
    ) {
        self.faults.add(&self.below(path), kind, message);
    }

    /// The path of something below this value.
    pub fn below<S: AsRef<str>>(&self, path: &[S]) -> Vec<String> {
        let mut whole = self.path.clone();
        whole.extend(path.iter().map(|segment| segment.as_ref().to_owned()));
        whole
    }

    /// Records what a schema finds in this value. Says whether it fits.
    pub fn fits(&self, schema: &Schema) -> bool {
        let found = schema.find(self.value);
        for fault in &found {
            self.fault_below(&fault.path, fault.kind, fault.message.as_str());
        }
        found.is_empty()
    }

    /// Records that what `subject` (with its verb, as in "`loop` is") speaks of belongs to a later version.
    pub fn unsupported(&self, subject: &str) {
        self.fault(
            "value_error",
            format!("{subject} not supported by this version"),
        );
    }

    fn wrong_type<T>(&self, expected: Expected) -> Option<T> {
        let (kind, message) = wording::wrong_type(expected, self.value);
        self.fault(kind, message);
        None
    }

    /// A text of any length.
    pub fn string(&self) -> Option<&'a str> {
        self.value
            .as_str()
            .or_else(|| self.wrong_type(Expected::String))
    }

    /// A text of so many characters.
    pub fn text(&self, chars: RangeInclusive<usize>) -> Option<&'a str> {
        let text = self.string()?;
        let count = text.chars().count();
        if count < *chars.start() {
            let least = wording::counted(*chars.start() as u64, "character");
            self.fault(
                "string_too_short",
                format!("String should have at least {least}"),
            );
        } else if count > *chars.end() {
            let most = wording::counted(*chars.end() as u64, "character");
            self.fault(
                "string_too_long",
                format!("String should have at most {most}"),
            );
        } else {
            return Some(text);
        }
        None
    }

    /// `true` or `false`.
    pub fn bool(&self) -> Option<bool> {
        self.value
            .as_bool()
            .or_else(|| self.wrong_type(Expected::Bool))
    }

    /// A whole number in `range`, as the type that is asked for. `3.0` is whole.
    ///
    /// # Panics
    /// When the range allows what the type cannot hold.
    pub fn integer<T: TryFrom<i64>>(&self, range: RangeInclusive<i64>) -> Option<T> {
        let whole =
            |number: f64| (number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i64);
        let number = self
            .value
            .as_i64()
            .or_else(|| self.value.as_f64().and_then(whole));
        let Some(number) = number else {
            return self.wrong_type(Expected::Integer);
        };
        if !self.in_range(&number, (range.start(), range.end())) {
            return None;
        }
        let number = T::try_from(number).ok();
        Some(number.expect("the range must fit the type"))
    }

    /// A number in `range`.
    pub fn number(&self, range: RangeInclusive<f64>) -> Option<f64> {
        let Some(number) = self.value.as_f64() else {
            return self.wrong_type(Expected::Number);
        };
        self.in_range(&number, (range.start(), range.end()))
            .then_some(number)
    }

    fn in_range<T: PartialOrd + fmt::Display>(&self, number: &T, (least, most): (&T, &T)) -> bool {
        if number < least {
            let message = format!("Input should be greater than or equal to {least}");
            self.fault("greater_than_equal", message);
        } else if number > most {
            let message = format!("Input should be less than or equal to {most}");
            self.fault("less_than_equal", message);
        } else {
            return true;
        }
        false
    }

    /// A duration such as `30s`, longer than 0 and at most [`duration::DURATION_MAX`].
    pub fn duration(&self) -> Option<Duration> {
        let text = match self.value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        match duration::parse(&text) {
            Ok(Duration::ZERO) => self.fault("value_error", "Input should be longer than 0"),
            Ok(duration) => return Some(duration),
            Err(message) => self.fault("value_error", capitalised(&message)),
        }
        None
    }

    /// One of these names, as what it stands for.
    pub fn choice<T: Clone>(&self, choices: &[(&str, T)]) -> Option<T> {
        let Some(name) = self.value.as_str() else {
            self.not_one_of(choices, String::new());
            return None;
        };
        let found = choices.iter().find(|(choice, _)| *choice == name);
        if found.is_none() {
            let names = choices.iter().map(|(choice, _)| *choice);
            let hint =
                wording::closest(name, names).map(|closest| format!("; did you mean `{closest}`?"));
            self.not_one_of(choices, hint.unwrap_or_default());
        }
        found.map(|(_, meaning)| meaning.clone())
    }

    fn not_one_of<T>(&self, choices: &[(&str, T)], hint: String) {
        let names: Vec<Value> = choices.iter().map(|(name, _)| Value::from(*name)).collect();
        self.fault("literal_error", wording::one_of(&names) + &hint);
    }

    /// The name of a document: ASCII letters, digits, `-` and `_`, a letter or digit first, at most
    /// [`NAME_CHARS_MAX`] characters. Case matters and is kept: models are `PascalCase`, the rest mostly is not.
    pub fn name(&self) -> Option<&'a str> {
        let name = self.text(1..=NAME_CHARS_MAX)?;
        let fits = name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            && name.as_bytes()[0].is_ascii_alphanumeric();
        if !fits {
            let message = "A name should be made of letters, digits, `-` and `_`, and begin with a letter or digit";
            self.fault("string_pattern_mismatch", message);
        }
        fits.then_some(name)
    }

    /// The elements of a list of at most `max`.
    pub fn list(&self, max: usize) -> Option<Vec<Self>> {
        let Value::Array(elements) = self.value else {
            return self.wrong_type(Expected::List);
        };
        if elements.len() > max {
            let (most, len) = (wording::counted(max as u64, "item"), elements.len());
            let message = format!("List should have at most {most} after validation, not {len}");
            self.fault("too_long", message);
            return None;
        }
        let readers = elements.iter().enumerate();
        Some(
            readers
                .map(|(index, value)| self.child(index.to_string(), value))
                .collect(),
        )
    }

    /// As [`Reader::list`], with at least one element.
    pub fn list_not_empty(&self, max: usize) -> Option<Vec<Self>> {
        let elements = self.list(max)?;
        if elements.is_empty() {
            self.fault(
                "too_short",
                "List should have at least 1 item after validation, not 0",
            );
            return None;
        }
        Some(elements)
    }

    /// A list of at most `max` texts.
    pub fn strings(&self, max: usize) -> Option<Vec<&'a str>> {
        let elements = self.list(max)?;
        let texts: Vec<_> = elements.iter().map(Self::string).collect();
        texts.into_iter().collect()
    }

    /// The elements of a list of at most `max`, or the value itself when it is no list.
    pub fn one_or_many(&self, max: usize) -> Option<Vec<Self>> {
        match self.value {
            Value::Array(_) => self.list(max),
            _ => Some(vec![self.clone()]),
        }
    }

    /// The members of an object whose names are free, in the order written.
    pub fn entries(&self) -> Option<Vec<(&'a str, Self)>> {
        let Value::Object(members) = self.value else {
            return self.wrong_type(Expected::Object);
        };
        let readers = members.iter();
        Some(
            readers
                .map(|(name, value)| (name.as_str(), self.child(name, value)))
                .collect(),
        )
    }

    /// The members of an object whose names are fixed.
    pub fn fields(&self) -> Option<Fields<'a>> {
        let Value::Object(members) = self.value else {
            return self.wrong_type(Expected::Object);
        };
        Some(Fields {
            reader: self.clone(),
            members,
            known: Vec::new(),
            later: Vec::new(),
        })
    }

    /// A JSON Schema, checked. The faults are those of the schema itself.
    pub fn schema(&self) -> Option<Value> {
        if !self.value.is_object() {
            return self.wrong_type(Expected::Object);
        }
        match Schema::check(self.value) {
            Ok(_) => Some(self.value.clone()),
            Err(found) => {
                self.fault_below(&found.path, found.kind, found.message);
                None
            }
        }
    }
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().chain(chars).collect(),
        None => String::new(),
    }
}

/// The members of an object, taken by name. End with [`Fields::finish`].
#[derive(Debug)]
pub struct Fields<'a> {
    reader: Reader<'a>,
    members: &'a Map<String, Value>,
    known: Vec<&'static str>,
    /// Names that have had their fault already.
    later: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// The object itself.
    pub fn reader(&self) -> &Reader<'a> {
        &self.reader
    }

    /// A member that must be there. `null` is there, and no reading of it will take it.
    pub fn required(&mut self, name: &'static str) -> Option<Reader<'a>> {
        self.known.push(name);
        let member = self.members.get(name);
        if member.is_none() {
            let (kind, message) = wording::MISSING;
            self.reader.fault_below(&[name], kind, message);
        }
        member.map(|value| self.reader.child(name, value))
    }

    /// A member that may be absent. `null` is absent, as YAML writes a name with nothing behind it.
    pub fn optional(&mut self, name: &'static str) -> Option<Reader<'a>> {
        self.known.push(name);
        let member = self.members.get(name).filter(|value| !value.is_null());
        member.map(|value| self.reader.child(name, value))
    }

    /// Members that the language has and this version does not: a fault where one is present. They are never named
    /// as what was probably meant.
    pub fn later(&mut self, names: &[&'static str]) {
        for name in names {
            if let Some(value) = self.members.get(*name) {
                self.reader
                    .child(*name, value)
                    .unsupported(&format!("`{name}` is"));
            }
        }
        self.later.extend(names);
    }

    /// Reports every member that nobody took, with the known name that was probably meant.
    pub fn finish(self) {
        let unknown = self.members.iter().filter(|(name, _)| {
            !self.known.contains(&name.as_str()) && !self.later.contains(&name.as_str())
        });
        for (name, _) in unknown {
            self.reader
                .fault_below(&[name], "extra_forbidden", unknown_field(name, &self.known));
        }
    }
}

fn unknown_field(name: &str, known: &[&'static str]) -> String {
    let hint = wording::hint(name, known.iter().copied(), "known here");
    format!("Extra inputs are not permitted{hint}")
}
