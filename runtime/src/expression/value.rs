//! Values while an expression is evaluated natively, with JavaScript's rules for operators, conversions and text.

use std::{borrow::Cow, cmp::Ordering, fmt::Write as _};

use serde_json::{Map, Number, Value};

use crate::item::{Item, PairedItem};

use super::TEXT_BYTES_MAX;

/// Why an operation gave no value, for people.
pub(super) type Failure = String;

/// The largest integer up to which every integer is a JavaScript number.
const EXACT_MAX: u64 = 1 << 53;

/// A value, borrowed from the scope as far as possible.
#[derive(Clone, Debug)]
pub(super) enum Val<'s> {
    Undefined,
    Null,
    Bool(bool),
    Number(f64),
    /// An integer that a JavaScript number cannot hold. Untouched unless it is computed with.
    Large(&'s Number),
    Text(Cow<'s, str>),
    List(&'s Vec<Value>),
    Map(&'s Map<String, Value>),
    Item(&'s Item),
    Items(&'s Vec<Item>),
    Pair(&'s PairedItem),
    /// What a script gave: an object or a list, or a number too large for a float.
    Owned(Value),
}

impl<'s> From<&'s Value> for Val<'s> {
    fn from(value: &'s Value) -> Self {
        match value {
            Value::Null => Val::Null,
            Value::Bool(truth) => Val::Bool(*truth),
            Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(n), _) if n > EXACT_MAX => Val::Large(number),
                (_, Some(n)) if n.unsigned_abs() > EXACT_MAX => Val::Large(number),
                _ => Val::Number(number.as_f64().unwrap_or(f64::NAN)),
            },
            Value::String(text) => Val::Text(Cow::Borrowed(text)),
            Value::Array(list) => Val::List(list),
            Value::Object(map) => Val::Map(map),
        }
    }
}

impl<'s> Val<'s> {
    /// Member `key`. Missing members are undefined, also of undefined and null. Nothing is inherited.
    pub fn member(&self, key: &str) -> Val<'s> {
        let index = || {
            // Only canonical indexes are indexes: neither `01` nor `+1`.
            let canonical = key == "0" || key.starts_with(|c: char| ('1'..='9').contains(&c));
            canonical.then(|| key.parse::<usize>().ok()).flatten()
        };
        let length = |length: usize| Val::Number(length as f64);
        match self {
            Val::Map(map) => map.get(key).map_or(Val::Undefined, Val::from),
            Val::List(list) if key == "length" => length(list.len()),
            Val::List(list) => index()
                .and_then(|at| list.get(at))
                .map_or(Val::Undefined, Val::from),
            Val::Items(items) if key == "length" => length(items.len()),
            Val::Items(items) => index()
                .and_then(|at| items.get(at))
                .map_or(Val::Undefined, Val::Item),
            Val::Text(text) if key == "length" => length(text.encode_utf16().count()),
            Val::Text(text) => index()
                .and_then(|at| text.encode_utf16().nth(at))
                .map_or(Val::Undefined, |unit| {
                    Val::Text(String::from_utf16_lossy(&[unit]).into())
                }),
            Val::Item(item) => match key {
                "json" => Val::from(item.json.as_ref()),
                "binary" => item.binary.as_deref().map_or(Val::Undefined, Val::Map),
                "pairedItem" => item.paired_item.as_ref().map_or(Val::Undefined, Val::Pair),
                _ => Val::Undefined,
            },
            Val::Pair(pair) => match key {
                "item" => Val::Number(pair.item.into()),
                "input" => Val::Number(pair.input.into()),
                _ => Val::Undefined,
            },
            _ => Val::Undefined,
        }
    }

    pub fn is_nullish(&self) -> bool {
        matches!(self, Val::Undefined | Val::Null)
    }

    pub fn truthy(&self) -> bool {
        match self {
            Val::Undefined | Val::Null => false,
            Val::Bool(truth) => *truth,
            Val::Number(number) => *number != 0.0 && !number.is_nan(),
            Val::Text(text) => !text.is_empty(),
            _ => true,
        }
    }

    /// `isEmpty()`: nothing, `""`, `[]` or `{}`.
    pub fn is_empty(&self) -> bool {
        match self {
            Val::Undefined | Val::Null => true,
            Val::Text(text) => text.is_empty(),
            Val::List(list) => list.is_empty(),
            Val::Map(map) => map.is_empty(),
            Val::Items(items) => items.is_empty(),
            _ => false,
        }
    }

    pub fn type_of(&self) -> &'static str {
        match self {
            Val::Undefined => "undefined",
            Val::Bool(_) => "boolean",
            Val::Number(_) | Val::Large(_) => "number",
            Val::Text(_) => "string",
            _ => "object",
        }
    }

    fn is_object(&self) -> bool {
        self.type_of() == "object" && !matches!(self, Val::Null)
    }

    /// Which object it is: the same for the same object, however it was reached. The kind is part of it, because a
    /// list may start where its first element does.
    pub fn identity(&self) -> Option<(char, usize)> {
        match self {
            Val::List(list) => Some(('l', std::ptr::from_ref(*list).addr())),
            Val::Map(map) => Some(('m', std::ptr::from_ref(*map).addr())),
            Val::Item(item) => Some(('i', std::ptr::from_ref(*item).addr())),
            Val::Items(items) => Some(('s', std::ptr::from_ref(*items).addr())),
            Val::Pair(pair) => Some(('p', std::ptr::from_ref(*pair).addr())),
            _ => None,
        }
    }

    /// The JSON value; `None` for undefined.
    pub fn into_value(self) -> Option<Value> {
        Some(match self {
            Val::Undefined => return None,
            Val::Null => Value::Null,
            Val::Bool(truth) => Value::Bool(truth),
            Val::Number(number) => number_value(number),
            Val::Large(number) => Value::Number(number.clone()),
            Val::Text(text) => Value::String(text.into_owned()),
            Val::List(list) => Value::Array(list.to_vec()),
            Val::Map(map) => Value::Object(map.clone()),
            Val::Item(item) => item_value(item),
            Val::Items(items) => Value::Array(items.iter().map(item_value).collect()),
            Val::Pair(pair) => pair_value(pair),
            Val::Owned(value) => value,
        })
    }

    /// Appends how it reads inside a text: nothing for undefined and null, JSON for objects and lists.
    pub fn render(self, text: &mut String) -> Result<(), Failure> {
        match self {
            Val::Undefined | Val::Null => {}
            Val::Bool(_) | Val::Number(_) | Val::Large(_) | Val::Text(_) => {
                text.push_str(&self.to_text()?);
            }
            Val::List(list) => text.push_str(&json_text(list)?),
            Val::Map(map) => text.push_str(&json_text(map)?),
            Val::Owned(Value::String(string)) => text.push_str(&string),
            other => text.push_str(&json_text(&other.into_value())?),
        }
        bounded(text.len())
    }

    /// `String(x)`.
    pub fn to_text(&self) -> Result<Cow<'_, str>, Failure> {
        Ok(match self {
            Val::Undefined => "undefined".into(),
            Val::Null => "null".into(),
            Val::Bool(true) => "true".into(),
            Val::Bool(false) => "false".into(),
            Val::Number(number) => number_text(*number).into(),
            Val::Large(number) => number.to_string().into(),
            Val::Text(text) => Cow::Borrowed(text),
            object => {
                let mut text = String::new();
                object.object_text(&mut text)?;
                text.into()
            }
        })
    }

    /// What `Object.prototype.toString` and `Array.prototype.join` give.
    fn object_text(&self, text: &mut String) -> Result<(), Failure> {
        let mut join = |parts: &mut dyn Iterator<Item = Val<'_>>| {
            for (at, part) in parts.enumerate() {
                if at > 0 {
                    text.push(',');
                }
                match part {
                    Val::Undefined | Val::Null => {}
                    part if part.is_object() => part.object_text(text)?,
                    part => text.push_str(&part.to_text()?),
                }
                bounded(text.len())?;
            }
            Ok(())
        };
        match self {
            Val::List(list) => join(&mut list.iter().map(Val::from)),
            Val::Items(items) => join(&mut items.iter().map(Val::Item)),
            // A member of that name hides the inherited method, and data is no method.
            Val::Map(map) if map.contains_key("toString") => {
                Err("TypeError: toPrimitive".to_owned())
            }
            _ => {
                text.push_str("[object Object]");
                Ok(())
            }
        }
    }

    fn to_primitive(&self) -> Result<Val<'_>, Failure> {
        if self.is_object() {
            return Ok(Val::Text(self.to_text()?));
        }
        Ok(self.clone())
    }

    /// `Number(x)`.
    pub fn to_number(&self) -> Result<f64, Failure> {
        Ok(match self {
            Val::Undefined => f64::NAN,
            Val::Null => 0.0,
            Val::Bool(truth) => f64::from(u8::from(*truth)),
            Val::Number(number) => *number,
            Val::Large(number) => number.as_f64().unwrap_or(f64::NAN),
            Val::Text(text) => text_number(text),
            object => text_number(&object.to_text()?),
        })
    }

    /// `===`. Objects are equal to themselves only.
    pub fn strictly_equals(&self, other: &Val<'_>) -> bool {
        match (self, other) {
            (Val::Undefined, Val::Undefined) | (Val::Null, Val::Null) => true,
            (Val::Bool(left), Val::Bool(right)) => left == right,
            (Val::Text(left), Val::Text(right)) => left == right,
            (Val::Number(_) | Val::Large(_), Val::Number(_) | Val::Large(_)) => {
                matches!((self.to_number(), other.to_number()), (Ok(left), Ok(right)) if left == right)
            }
            _ => self.identity().is_some() && self.identity() == other.identity(),
        }
    }

    /// `==`.
    pub fn loosely_equals(&self, other: &Val<'_>) -> Result<bool, Failure> {
        if self.is_nullish() || other.is_nullish() {
            return Ok(self.is_nullish() && other.is_nullish());
        }
        if self.type_of() == other.type_of() {
            return Ok(self.strictly_equals(other));
        }
        // Where only one is an object it becomes text, and text meets anything but text as a number.
        let (left, right) = (self.to_primitive()?, other.to_primitive()?);
        if let (Val::Text(left), Val::Text(right)) = (&left, &right) {
            return Ok(left == right);
        }
        Ok(left.to_number()? == right.to_number()?)
    }

    /// How `<` and its kin see two values; `None` when one is not a number.
    pub fn compare(&self, other: &Val<'_>) -> Result<Option<Ordering>, Failure> {
        let (left, right) = (self.to_primitive()?, other.to_primitive()?);
        if let (Val::Text(left), Val::Text(right)) = (&left, &right) {
            return Ok(Some(left.encode_utf16().cmp(right.encode_utf16())));
        }
        Ok(left.to_number()?.partial_cmp(&right.to_number()?))
    }

    /// `+`.
    pub fn plus(&self, other: &Val<'_>) -> Result<Val<'static>, Failure> {
        let (left, right) = (self.to_primitive()?, other.to_primitive()?);
        if !matches!(left, Val::Text(_)) && !matches!(right, Val::Text(_)) {
            return Ok(Val::Number(left.to_number()? + right.to_number()?));
        }
        let mut text = left.to_text()?.into_owned();
        text.push_str(&right.to_text()?);
        bounded(text.len())?;
        Ok(Val::Text(text.into()))
    }
}

/// Refuses texts that have grown out of proportion.
pub(super) fn bounded(length: usize) -> Result<(), Failure> {
    if length > TEXT_BYTES_MAX {
        return Err(format!("the text is longer than {TEXT_BYTES_MAX} bytes"));
    }
    Ok(())
}

fn json_text(value: &impl serde::Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|fault| fault.to_string())
}

/// An item as expressions and scripts see it.
pub(super) fn item_value(item: &Item) -> Value {
    let mut map = Map::new();
    map.insert("json".to_owned(), item.json.as_ref().clone());
    if let Some(binary) = &item.binary {
        map.insert("binary".to_owned(), Value::Object(binary.as_ref().clone()));
    }
    if let Some(pair) = &item.paired_item {
        map.insert("pairedItem".to_owned(), pair_value(pair));
    }
    Value::Object(map)
}

fn pair_value(pair: &PairedItem) -> Value {
    serde_json::json!({"item": pair.item, "input": pair.input})
}

/// A number as `JSON.stringify` writes it: an integer where it is one, null for what JSON has no word for.
pub(super) fn number_value(number: f64) -> Value {
    if !number.is_finite() {
        return Value::Null;
    }
    if number.trunc() == number && number.abs() <= EXACT_MAX as f64 {
        return Value::from(number as i64);
    }
    serde_json::from_str(&number_text(number)).unwrap_or(Value::Null)
}

/// `Number.prototype.toString`.
pub(super) fn number_text(number: f64) -> String {
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        }
        .to_owned();
    }
    if number == 0.0 {
        return "0".to_owned();
    }
    if number.trunc() == number && number.abs() < EXACT_MAX as f64 {
        return (number as i64).to_string();
    }
    // The shortest digits that read back as this number, and where the point goes.
    let scientific = format!("{:e}", number.abs());
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    let point = exponent.parse::<i32>().unwrap_or(0) + 1;
    let count = digits.len() as i32;
    let mut text = String::from(if number < 0.0 { "-" } else { "" });
    if (count..=21).contains(&point) {
        text.push_str(&digits);
        text.extend(std::iter::repeat_n('0', (point - count) as usize));
    } else if (1..=21).contains(&point) {
        let (whole, rest) = digits.split_at(point as usize);
        let _ = write!(text, "{whole}.{rest}");
    } else if (-5..=0).contains(&point) {
        text.push_str("0.");
        text.extend(std::iter::repeat_n('0', point.unsigned_abs() as usize));
        text.push_str(&digits);
    } else {
        let (first, rest) = digits.split_at(1);
        let dot = if rest.is_empty() { "" } else { "." };
        let _ = write!(text, "{first}{dot}{rest}e{:+}", point - 1);
    }
    text
}

/// `Number("…")`.
pub(super) fn text_number(text: &str) -> f64 {
    let text = text.trim_matches(|c: char| {
        // `char::is_whitespace` also counts U+0085, which JavaScript does not.
        (c.is_whitespace() && c != '\u{85}') || c == '\u{feff}'
    });
    let radix = |digits: &str, radix: u32| {
        let valid = !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix));
        if !valid {
            return f64::NAN;
        }
        digits.chars().fold(0.0, |sum, c| {
            sum * f64::from(radix) + f64::from(c.to_digit(radix).unwrap_or(0))
        })
    };
    let prefix = |lower: &str, upper: &str| {
        text.strip_prefix(lower)
            .or_else(|| text.strip_prefix(upper))
    };
    if let Some(digits) = prefix("0x", "0X") {
        return radix(digits, 16);
    }
    if let Some(digits) = prefix("0o", "0O") {
        return radix(digits, 8);
    }
    if let Some(digits) = prefix("0b", "0B") {
        return radix(digits, 2);
    }
    match text {
        "" => 0.0,
        "Infinity" | "+Infinity" => f64::INFINITY,
        "-Infinity" => f64::NEG_INFINITY,
        // Rust also reads words such as `inf` and `nan`.
        _ if text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte)) =>
        {
            text.parse().unwrap_or(f64::NAN)
        }
        _ => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_print_as_javascript_prints_them() {
        for (number, text) in [
            (0.0, "0"),
            (-0.0, "0"),
            (1.0, "1"),
            (-1.5, "-1.5"),
            (0.1 + 0.2, "0.30000000000000004"),
            (1e21, "1e+21"),
            (123456789012345680000.0, "123456789012345680000"),
            (1e-6, "0.000001"),
            (1e-7, "1e-7"),
            (1.5e-7, "1.5e-7"),
            (1.7976931348623157e308, "1.7976931348623157e+308"),
            (5e-324, "5e-324"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
            (9007199254740993.0, "9007199254740992"),
            (123.456, "123.456"),
        ] {
            assert_eq!(number_text(number), text);
        }
    }

    #[test]
    fn text_becomes_a_number_as_in_javascript() {
        for (text, number) in [
            ("", 0.0),
            (" 12\n", 12.0),
            ("+.5", 0.5),
            ("5.", 5.0),
            ("1e3", 1000.0),
            ("0x1F", 31.0),
            ("0b101", 5.0),
            ("-Infinity", f64::NEG_INFINITY),
        ] {
            assert_eq!(text_number(text), number, "{text}");
        }
        for text in [
            "1px", "inf", "nan", "infinity", "-0x1", "1_000", ".", "e5", "\u{85}1",
        ] {
            assert!(text_number(text).is_nan(), "{text}");
        }
    }

    #[test]
    fn data_that_hides_to_string_is_no_text() {
        let value = serde_json::json!({"toString": 1});
        assert!(Val::from(&value).to_text().is_err());
        let list = serde_json::json!([1, [2, null, "x"], {"a": 1}]);
        assert_eq!(
            Val::from(&list).to_text().unwrap(),
            "1,2,,x,[object Object]"
        );
    }
}
