//! The words of faults. Types and messages are those of Pydantic 2 where it has some, so that clients that know
//! them need no second table.

use std::fmt::Write as _;

use serde_json::Value;

/// What a value should have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    String,
    Integer,
    Number,
    Bool,
    List,
    Object,
    Null,
}

/// `Field required`.
pub(crate) const MISSING: (&str, &str) = ("missing", "Field required");

/// Kind and message for a value of the wrong type. As Pydantic's lax mode does, it tells text that reads as nothing
/// of the kind apart from a value that could not be meant so.
pub(crate) fn wrong_type(expected: Expected, value: &Value) -> (&'static str, String) {
    let (kind, message) = match (expected, value) {
        (Expected::String, _) => ("string_type", "Input should be a valid string"),
        (Expected::Integer, Value::Number(_)) => (
            "int_from_float",
            "Input should be a valid integer, got a number with a fractional part",
        ),
        (Expected::Integer, Value::String(text)) if text.trim().parse::<i64>().is_err() => (
            "int_parsing",
            "Input should be a valid integer, unable to parse string as an integer",
        ),
        (Expected::Integer, _) => ("int_type", "Input should be a valid integer"),
        (Expected::Number, Value::String(text)) if text.trim().parse::<f64>().is_err() => (
            "float_parsing",
            "Input should be a valid number, unable to parse string as a number",
        ),
        (Expected::Number, _) => ("float_type", "Input should be a valid number"),
        (Expected::Bool, Value::String(text))
            if !matches!(text.to_ascii_lowercase().as_str(), "true" | "false") =>
        {
            (
                "bool_parsing",
                "Input should be a valid boolean, unable to interpret input",
            )
        }
        (Expected::Bool, _) => ("bool_type", "Input should be a valid boolean"),
        (Expected::List, _) => ("list_type", "Input should be a valid list"),
        (Expected::Object, _) => ("dict_type", "Input should be a valid dictionary"),
        (Expected::Null, _) => ("none_required", "Input should be None"),
    };
    (kind, message.to_owned())
}

/// `Input should be 'a', 'b' or 'c'`.
pub(crate) fn one_of<'a>(choices: impl IntoIterator<Item = &'a Value>) -> String {
    let choices = choices.into_iter().map(|choice| match choice {
        Value::String(text) => format!("'{text}'"),
        other => other.to_string(),
    });
    format!("Input should be {}", join(choices, "or"))
}

/// `a, b or c`, at most 20 of them.
pub(crate) fn join(words: impl IntoIterator<Item = String>, last: &str) -> String {
    const SHOWN_MAX: usize = 20;
    let mut words: Vec<String> = words.into_iter().collect();
    if words.len() > SHOWN_MAX {
        words.truncate(SHOWN_MAX);
        return format!("{}, …", words.join(", "));
    }
    match words.split_last() {
        None => String::new(),
        Some((only, [])) => only.clone(),
        Some((end, rest)) => format!("{} {last} {end}", rest.join(", ")),
    }
}

/// `1 character`, `3 characters`.
pub(crate) fn counted(count: u64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// `; did you mean `x`?`, or what there is to choose from when nothing known is close.
pub(crate) fn hint<'a>(
    name: &str,
    known: impl IntoIterator<Item = &'a str>,
    what_they_are: &str,
) -> String {
    let mut known: Vec<&str> = known.into_iter().collect();
    known.dedup();
    let mut hint = String::new();
    if let Some(closest) = closest(name, known.iter().copied()) {
        let _ = write!(hint, "; did you mean `{closest}`?");
    } else if !known.is_empty() {
        let quoted = known.iter().map(|name| format!("`{name}`"));
        let _ = write!(hint, "; {what_they_are}: {}", join(quoted, "and"));
    }
    hint
}

/// The known name that was probably meant: the same but for case, a slip of a letter or two, or a beginning.
pub fn closest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A name is compared in full by a quadratic measure: nobody slips on a word of hundreds of letters.
    const NAME_MAX: usize = 200;
    if name.len() > NAME_MAX {
        return None;
    }
    let fold = |text: &str| text.to_lowercase().replace(['-', ' ', '.'], "_");
    let folded = fold(name);
    known
        .into_iter()
        .filter_map(|candidate| {
            let other = fold(candidate);
            let distance = strsim::damerau_levenshtein(&folded, &other);
            let shorter = folded.chars().count().min(other.chars().count());
            let begins = shorter >= 3 && (other.starts_with(&folded) || folded.starts_with(&other));
            (distance <= (shorter / 3).max(1) || begins).then_some((distance, candidate))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_slip_finds_the_known_name_and_a_stranger_does_not() {
        let known = [
            "timeout",
            "retry",
            "on_error",
            "description",
            "http.request",
        ];
        for (name, expected) in [
            ("tiemout", Some("timeout")),
            ("Retry", Some("retry")),
            ("onError", Some("on_error")),
            ("on-error", Some("on_error")),
            ("desc", Some("description")),
            ("http.requst", Some("http.request")),
            ("http_request", Some("http.request")),
            ("zebra", None),
        ] {
            assert_eq!(closest(name, known), expected, "{name}");
        }
    }

    #[test]
    fn without_a_close_name_the_hint_lists_what_there_is() {
        assert_eq!(
            hint("zebra", ["a", "bc"], "known here"),
            "; known here: `a` and `bc`"
        );
        assert_eq!(hint("zebra", [], "known here"), "");
    }

    #[test]
    fn types_are_worded_as_pydantic_words_them() {
        for (expected, value, kind) in [
            (Expected::String, json!(5), "string_type"),
            (Expected::Integer, json!("x"), "int_parsing"),
            (Expected::Integer, json!("5"), "int_type"),
            (Expected::Integer, json!([]), "int_type"),
            (Expected::Integer, json!(1.5), "int_from_float"),
            (Expected::Number, json!("x"), "float_parsing"),
            (Expected::Number, json!({}), "float_type"),
            (Expected::Bool, json!("x"), "bool_parsing"),
            (Expected::Bool, json!(null), "bool_type"),
            (Expected::List, json!({}), "list_type"),
            (Expected::Object, json!([]), "dict_type"),
        ] {
            assert_eq!(wrong_type(expected, &value).0, kind, "{value}");
        }
    }
}
