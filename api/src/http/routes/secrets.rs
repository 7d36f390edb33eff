//! Secrets in documents: they can be written, never read.

use serde_json::{Map, Value};

/// What stands for a secret in answers.
const HIDDEN: &str = "***";

/// Members whose text is a secret, wherever they are below `spec`.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace('-', "_");
    [
        "api_key",
        "apikey",
        "secret",
        "token",
        "password",
        "authorization",
    ]
    .iter()
    .any(|word| name.contains(word))
        && !name.contains("max_")
        && !name.contains("_tokens")
}

/// A reference to the environment without a default: says where the secret is, not what it is.
fn is_reference(text: &str) -> bool {
    text.strip_prefix("${")
        .and_then(|rest| rest.strip_suffix('}'))
        .is_some_and(|name| {
            let name = name.strip_suffix(':').unwrap_or(name);
            !name.is_empty()
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        })
}

/// Replaces secrets by [`HIDDEN`].
pub fn hide_secrets(value: &mut Value) {
    each_member(value, &mut |name, value| {
        if is_secret(name)
            && value
                .as_str()
                .is_some_and(|text| !text.is_empty() && !is_reference(text))
        {
            *value = HIDDEN.into();
        }
    });
}

/// Puts back the secrets of `stored` where `value` has [`HIDDEN`]: a client may send back what it was shown.
pub fn keep_secrets(value: &mut Value, stored: &Value) {
    match (value, stored) {
        (Value::Object(members), Value::Object(stored)) => {
            for (name, value) in members {
                let Some(stored) = stored.get(name) else {
                    continue;
                };
                if is_secret(name) && value == HIDDEN {
                    *value = stored.clone();
                } else {
                    keep_secrets(value, stored);
                }
            }
        }
        (Value::Array(elements), Value::Array(stored)) => {
            for (value, stored) in elements.iter_mut().zip(stored) {
                keep_secrets(value, stored);
            }
        }
        _ => {}
    }
}

fn each_member(value: &mut Value, visit: &mut impl FnMut(&str, &mut Value)) {
    fn members(members: &mut Map<String, Value>, visit: &mut impl FnMut(&str, &mut Value)) {
        for (name, value) in members {
            visit(name, value);
            each_member(value, visit);
        }
    }
    match value {
        Value::Object(object) => members(object, visit),
        Value::Array(elements) => elements
            .iter_mut()
            .for_each(|value| each_member(value, visit)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_are_hidden_and_references_are_not() {
        let mut spec = json!({
            "api_key": "sk-1", "base_url": "https://x", "max_tokens": 5,
            "headers": { "Authorization": "Bearer y", "X-Api-Key": "${KEY}", "X-Token": "${KEY:sk-2}", "X": "z" },
        });
        hide_secrets(&mut spec);
        assert_eq!(
            spec,
            json!({
                "api_key": "***", "base_url": "https://x", "max_tokens": 5,
                "headers": { "Authorization": "***", "X-Api-Key": "${KEY}", "X-Token": "***", "X": "z" },
            })
        );
    }

    #[test]
    fn what_was_shown_hidden_may_be_sent_back() {
        let stored = json!({ "spec": { "api_key": "sk-1", "base_url": "a" } });
        let mut sent = json!({ "spec": { "api_key": "***", "base_url": "b" } });
        keep_secrets(&mut sent, &stored);
        assert_eq!(
            sent,
            json!({ "spec": { "api_key": "sk-1", "base_url": "b" } })
        );
    }
}
