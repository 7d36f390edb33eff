//! JSON values as JavaScript would judge them.

use std::{cmp::Ordering, fmt::Write as _};

use serde_json::Value;

/// JavaScript's truthiness.
pub(crate) fn truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(_) | Value::Object(_) => true,
    }
}

/// How a value reads inside text: nothing for null, JSON for lists and objects.
pub(crate) fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Equality that takes `1` and `1.0` for the same, at any depth.
pub(crate) fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len()
                && a.iter()
                    .all(|(key, value)| b.get(key).is_some_and(|other| same(value, other)))
        }
        _ => a == b,
    }
}

/// Text that two values share exactly when they are [`same`]. `fuzzy` also takes `1` and `"1"` for the same, and
/// null and `""`.
pub(crate) fn key(value: &Value, fuzzy: bool) -> String {
    let mut out = String::new();
    write_key(value, fuzzy, &mut out);
    out
}

fn write_key(value: &Value, fuzzy: bool, out: &mut String) {
    match value {
        Value::Null if fuzzy => out.push_str("\"\""),
        Value::Bool(_) if fuzzy => write_text(&value.to_string(), out),
        Value::Number(number) => {
            let mut plain = number.to_string();
            if let Some(float) = number.as_f64().filter(|_| number.is_f64()) {
                plain = float.to_string();
            }
            if fuzzy {
                write_text(&plain, out)
            } else {
                out.push_str(&plain)
            }
        }
        Value::String(text) => write_text(text, out),
        Value::Array(elements) => {
            out.push('[');
            for element in elements {
                write_key(element, fuzzy, out);
                out.push(',');
            }
            out.push(']');
        }
        Value::Object(members) => {
            let mut names: Vec<_> = members.iter().collect();
            names.sort_unstable_by_key(|(name, _)| *name);
            out.push('{');
            for (name, member) in names {
                write_text(name, out);
                out.push(':');
                write_key(member, fuzzy, out);
                out.push(',');
            }
            out.push('}');
        }
        plain => {
            // Writing to a string cannot fail.
            let _ = write!(out, "{plain}");
        }
    }
}

fn write_text(text: &str, out: &mut String) {
    let _ = write!(out, "{}", Value::from(text));
}

/// A total order: numbers, then text without regard to case, then booleans, then everything else by its JSON.
pub(crate) fn compare(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a
            .as_f64()
            .unwrap_or_default()
            .total_cmp(&b.as_f64().unwrap_or_default()),
        (Value::String(a), Value::String(b)) => a.to_lowercase().cmp(&b.to_lowercase()),
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        _ if rank(a) == rank(b) => a.to_string().cmp(&b.to_string()),
        _ => rank(a).cmp(&rank(b)),
    }
}

fn rank(value: &Value) -> u8 {
    match value {
        Value::Number(_) => 0,
        Value::String(_) => 1,
        Value::Bool(_) => 2,
        Value::Null | Value::Array(_) | Value::Object(_) => 3,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn truth_is_javascripts() {
        for value in [json!(null), json!(false), json!(0), json!(-0.0), json!("")] {
            assert!(!truthy(&value), "{value}");
        }
        for value in [
            json!(true),
            json!(1),
            json!(-0.5),
            json!("false"),
            json!([]),
            json!({}),
        ] {
            assert!(truthy(&value), "{value}");
        }
    }

    #[test]
    fn equal_values_have_equal_keys_and_others_have_not() {
        let values = [
            json!(null),
            json!(true),
            json!(1),
            json!(2.5),
            json!("1"),
            json!("true"),
            json!(""),
            json!("null"),
            json!([1]),
            json!(["1"]),
            json!([[1], 2]),
            json!([[1, 2]]),
            json!({"a": 1, "b": 2}),
            json!({"a": "1,b:2"}),
        ];
        for (i, a) in values.iter().enumerate() {
            for (k, b) in values.iter().enumerate() {
                assert_eq!(same(a, b), i == k, "{a} {b}");
                assert_eq!(key(a, false) == key(b, false), i == k, "{a} {b}");
            }
        }
        assert_eq!(
            key(&json!({"b": 2, "a": 1.0}), false),
            key(&json!({"a": 1, "b": 2}), false)
        );
        assert!(same(&json!({"a": [1.0]}), &json!({"a": [1]})));
        for (a, b) in [
            (json!(1), json!("1")),
            (json!(null), json!("")),
            (json!(true), json!("true")),
        ] {
            assert_eq!(key(&a, true), key(&b, true));
        }
    }

    #[test]
    fn the_order_is_total() {
        let sorted = [
            json!(-1),
            json!(2),
            json!(10.5),
            json!("a"),
            json!("B"),
            json!("c"),
            json!(false),
            json!(true),
            json!([1]),
        ];
        for (i, a) in sorted.iter().enumerate() {
            for (k, b) in sorted.iter().enumerate() {
                assert_eq!(compare(a, b), i.cmp(&k), "{a} {b}");
            }
        }
    }
}
