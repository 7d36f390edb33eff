//! Structured answers: reading them, and telling the model what is wrong with them.

use callboard_runtime::schema::Violation;
use serde_json::Value;

use crate::model::spec::OutputSchema;

/// How many violations are told.
const VIOLATIONS_MAX: usize = 10;

/// Why an answer is not the data that was asked for.
pub(super) struct Fault {
    /// One sentence, for people.
    pub summary: String,
    /// The message that asks the model to mend it.
    pub for_model: String,
}

/// Reads an answer as the data its agent must give. A fence around the JSON is tolerated.
pub(super) fn read(text: &str, output: &OutputSchema) -> Result<Value, Fault> {
    let summary = match serde_json::from_str::<Value>(unfenced(text)) {
        Ok(data) => {
            let violations = output.schema.violations(&data);
            if violations.is_empty() {
                return Ok(data);
            }
            format!(
                "the answer does not fit the output schema: {}",
                describe(&violations, "answer")
            )
        }
        Err(fault) => format!("the answer is not JSON: {fault}"),
    };
    Err(Fault {
        for_model: format!(
            "Your answer was not accepted: {summary}. Answer again with nothing but JSON that fits this \
             JSON Schema: {}",
            output.written
        ),
        summary,
    })
}

fn unfenced(text: &str) -> &str {
    let text = text.trim();
    let Some(rest) = text.strip_prefix("```") else {
        return text;
    };
    let rest = rest.strip_prefix("json").unwrap_or(rest);
    rest.strip_suffix("```").unwrap_or(rest).trim()
}

/// Violations as one line: `price: Input should be a valid number; …`.
pub(super) fn describe(violations: &[Violation], whole: &str) -> String {
    let mut parts: Vec<_> = violations
        .iter()
        .take(VIOLATIONS_MAX)
        .map(|violation| {
            let at = if violation.path.is_empty() {
                whole.to_owned()
            } else {
                violation.path.join(".")
            };
            format!("{at}: {}", violation.message)
        })
        .collect();
    if violations.len() > VIOLATIONS_MAX {
        parts.push(format!("and {} more", violations.len() - VIOLATIONS_MAX));
    }
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::unfenced;

    #[test]
    fn a_fence_is_taken_off() {
        for text in [
            "{\"a\":1}",
            " ```json\n{\"a\":1}\n```",
            "```\n{\"a\":1}```\n",
        ] {
            assert_eq!(unfenced(text), "{\"a\":1}", "{text}");
        }
    }
}
