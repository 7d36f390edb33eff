//! Provider documents: checked as a whole and compiled.
//!
//! `${NAME}` and `${NAME:default}` in a provider's settings stand for variables of the environment. They are read when
//! the provider is built, on the host that uses it; what is stored and shown is the text as written.

use std::time::Duration;

use callboard_runtime::{
    document::{Document, Fault, reader::Reader},
    expression::Template,
    outbound::parse_url,
    provider::{FinishReason, ModelErrorKind, Usage},
};
use serde_json::{Map, Value};

/// How long a server may take to begin its answer, unless its document says otherwise.
const TIMEOUT: Duration = Duration::from_secs(60);
const REPLIES_MAX: usize = 500;
const STEPS_MAX: usize = 100;
const DELAY_MAX: Duration = Duration::from_secs(60);

/// One version of a provider, compiled.
#[derive(Debug)]
pub enum ProviderDefinition {
    /// `type: openai`: any server that speaks OpenAI's chat completions.
    OpenAi(OpenAiDefinition),
    /// `type: scripted`: answers written down in the document.
    Scripted(Script),
}

/// How to reach a server. Texts may hold `${NAME:default}`.
#[derive(Clone)]
pub struct OpenAiDefinition {
    /// Such as `https://api.openai.com/v1`.
    pub base_url: String,
    /// Empty for servers that want none.
    pub api_key: String,
    /// How long the first event may take.
    pub timeout: Duration,
    /// How long any later event may take.
    pub idle_timeout: Duration,
}

impl std::fmt::Debug for OpenAiDefinition {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OpenAiDefinition({})", self.base_url)
    }
}

/// What a scripted provider says. See [`crate::provider::scripted`].
#[derive(Debug)]
pub struct Script {
    /// Characters per delta.
    pub chunk: usize,
    /// Before each delta.
    pub delay: Duration,
    /// The first that fits answers.
    pub replies: Vec<Reply>,
}

/// What is said to some messages.
#[derive(Debug)]
pub struct Reply {
    /// Only for this model.
    pub model: Option<String>,
    /// Only when the message holds one of these; in lower case. Empty: always.
    pub when: Vec<String>,
    /// One answer after the other; the last one again and again.
    pub steps: Vec<Step>,
}

/// One answer.
#[derive(Debug)]
pub struct Step {
    /// `{text, data, tool_calls, reasoning}` as written.
    pub content: Template,
    /// Before the first delta.
    pub wait: Duration,
    /// What it claims to cost; computed from the length of the texts when absent.
    pub usage: Option<Usage>,
    /// Why it says it stopped; by its calls when absent.
    pub finish: Option<FinishReason>,
    /// It fails like this, after its text.
    pub error: Option<ModelErrorKind>,
    /// What the failure asks to wait.
    pub retry_after: Option<Duration>,
    /// The stream ends after its text without a finish reason.
    pub cut: bool,
}

/// Compiles a provider. Finds all faults. Variables are not looked up: they belong to the host that uses it.
pub fn compile(document: &Document) -> Result<ProviderDefinition, Vec<Fault>> {
    let faults = document.faults();
    let definition = read(&document.spec(&faults));
    faults.into_result(definition)
}

#[derive(Clone, Copy)]
enum Kind {
    OpenAi,
    Scripted,
}

fn read(spec: &Reader<'_>) -> Option<ProviderDefinition> {
    let mut fields = spec.fields()?;
    let kind = fields
        .required("type")?
        .choice(&[("openai", Kind::OpenAi), ("scripted", Kind::Scripted)]);
    match kind? {
        Kind::OpenAi => {
            let base_url = match fields.optional("base_url") {
                Some(url) => {
                    setting(&url).filter(|text| without_password(&url) && is_url(text, &url))
                }
                None => Some("https://api.openai.com/v1".to_owned()),
            };
            let api_key = match fields.optional("api_key") {
                Some(key) => setting(&key),
                None => Some(String::new()),
            };
            let mut duration = |name: &'static str| match fields.optional(name) {
                Some(duration) => duration.duration(),
                None => Some(TIMEOUT),
            };
            let (timeout, idle_timeout) = (duration("timeout"), duration("idle_timeout"));
            fields.finish();
            Some(ProviderDefinition::OpenAi(OpenAiDefinition {
                base_url: base_url?,
                api_key: api_key?,
                timeout: timeout?,
                idle_timeout: idle_timeout?,
            }))
        }
        Kind::Scripted => {
            let chunk = match fields.optional("chunk") {
                Some(chunk) => chunk.integer(1..=10_000),
                None => Some(16),
            };
            let delay = read_delay(fields.optional("delay"));
            let replies = fields.required("replies").and_then(|replies| {
                let read: Vec<_> = replies
                    .list_not_empty(REPLIES_MAX)?
                    .iter()
                    .map(read_reply)
                    .collect();
                read.into_iter().collect()
            });
            fields.finish();
            Some(ProviderDefinition::Scripted(Script {
                chunk: chunk?,
                delay: delay?,
                replies: replies?,
            }))
        }
    }
}

/// A text whose `${…}` are well formed.
fn setting(reader: &Reader<'_>) -> Option<String> {
    let text = reader.text(0..=10_000)?;
    match expand(text, &|_| Some(String::new())) {
        Ok(_) => Some(text.to_owned()),
        Err(fault) => {
            reader.fault("value_error", fault);
            None
        }
    }
}

/// Whether a text is a URL as far as that can be said: where variables have no default, it is up to the host.
fn is_url(text: &str, reader: &Reader<'_>) -> bool {
    match expand(text, &|_| None).map(|url| parse_url(&url)) {
        Err(_) | Ok(Ok(_)) => true,
        Ok(Err(fault)) => {
            reader.fault(
                "url_parsing",
                format!("Input should be a valid URL: {fault}"),
            );
            false
        }
    }
}

/// A URL is shown to whoever may see the provider.
fn without_password(reader: &Reader<'_>) -> bool {
    let host = reader.value().as_str().unwrap_or_default();
    let host = host.split_once("://").map_or(host, |(_, rest)| rest);
    if host
        .split(['/', '?', '#'])
        .next()
        .is_some_and(|host| host.contains('@'))
    {
        reader.fault(
            "value_error",
            "A URL here cannot hold a user or password: give `api_key`",
        );
        return false;
    }
    true
}

/// `text` with every `${NAME}` and `${NAME:default}` replaced by what `variable` gives. A variable that is empty counts
/// as absent. The error is a sentence that names the variable and holds no value.
pub fn expand(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        expanded.push_str(before);
        let (inside, behind) = after
            .split_once('}')
            .ok_or_else(|| "A `${` is not closed by a `}`".to_owned())?;
        let (name, default) = match inside.split_once(':') {
            Some((name, default)) => (name, Some(default)),
            None => (inside, None),
        };
        if !is_variable(name) {
            return Err(format!("`{name}` is not the name of a variable"));
        }
        if is_ours(name) {
            return Err(format!("The variable {name} is not for documents to read"));
        }
        let value = variable(name).filter(|value| !value.is_empty());
        match value.or(default.map(str::to_owned)) {
            Some(value) => expanded.push_str(&value),
            None if variable(name).is_some() => {}
            None => return Err(format!("The variable {name} is not set")),
        }
        rest = behind;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

fn is_variable(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Settings of this program hold keys to everything; whoever may write a document may not have them sent somewhere.
fn is_ours(name: &str) -> bool {
    name.starts_with("CALLBOARD_") || name == "DATABASE_URL" || name.starts_with("PG")
}

fn read_delay(delay: Option<Reader<'_>>) -> Option<Duration> {
    let Some(delay) = delay else {
        return Some(Duration::ZERO);
    };
    let duration = delay.duration()?;
    if duration > DELAY_MAX {
        delay.fault("less_than_equal", "Input should be at most 60s");
        return None;
    }
    Some(duration)
}

fn read_reply(reply: &Reader<'_>) -> Option<Reply> {
    let mut fields = reply.fields()?;
    let model = match fields.optional("model") {
        Some(model) => model.text(1..=300).map(|model| Some(model.to_owned())),
        None => Some(None),
    };
    let when = match fields.optional("when") {
        Some(when) => {
            let texts: Vec<_> = when
                .one_or_many(100)?
                .iter()
                .map(|text| text.text(1..=1_000).map(str::to_lowercase))
                .collect();
            texts.into_iter().collect()
        }
        None => Some(Vec::new()),
    };
    let steps = match fields.optional("steps") {
        Some(steps) => {
            fields.finish();
            let read: Vec<_> = steps
                .list_not_empty(STEPS_MAX)?
                .iter()
                .map(|step| read_step(step, &[]))
                .collect();
            read.into_iter().collect()
        }
        // A reply of one step may be written without the list.
        None => read_step(reply, &["model", "when"]).map(|step| vec![step]),
    };
    Some(Reply {
        model: model?,
        when: when?,
        steps: steps?,
    })
}

fn read_step(step: &Reader<'_>, besides: &[&'static str]) -> Option<Step> {
    let mut fields = step.fields()?;
    for name in besides {
        let _ = fields.optional(name);
    }
    let mut content = Map::new();
    for name in ["text", "data", "tool_calls", "reasoning"] {
        if let Some(part) = fields.optional(name) {
            content.insert(name.to_owned(), part.value().clone());
        }
    }
    let calls = fields
        .optional("tool_calls")
        .map(|calls| read_calls(&calls));
    let text = fields.optional("text").map(|text| text.string().is_some());
    let both = content.contains_key("text") && content.contains_key("data");
    if both {
        step.fault("value_error", "An answer is `text` or `data`, not both");
    }
    let wait = read_delay(fields.optional("wait"));
    let usage = match fields.optional("usage") {
        Some(usage) => read_usage(&usage).map(Some),
        None => Some(None),
    };
    let finish = match fields.optional("finish") {
        Some(finish) => finish
            .choice(&[
                ("stop", FinishReason::Stop),
                ("length", FinishReason::Length),
                ("content_filter", FinishReason::ContentFilter),
            ])
            .map(Some),
        None => Some(None),
    };
    let error = match fields.optional("error") {
        Some(error) => error.choice(&error_names()).map(Some),
        None => Some(None),
    };
    let retry_after = match fields.optional("retry_after") {
        Some(wait) => wait.duration().map(Some),
        None => Some(None),
    };
    let cut = match fields.optional("cut") {
        Some(cut) => cut.bool(),
        None => Some(false),
    };
    fields.finish();
    let template = Template::compile(&Value::Object(content), &[]).map_err(|faults| {
        for fault in faults {
            step.fault_below(&fault.path, "value_error", fault.message);
        }
    });
    if both || calls == Some(false) || text == Some(false) {
        return None;
    }
    Some(Step {
        content: template.ok()?,
        wait: wait?,
        usage: usage?,
        finish: finish?,
        error: error?,
        retry_after: retry_after?,
        cut: cut?,
    })
}

fn read_calls(calls: &Reader<'_>) -> bool {
    let Some(calls) = calls.list(64) else {
        return false;
    };
    let sound: Vec<_> = calls
        .iter()
        .map(|call| {
            let mut fields = call.fields()?;
            let name = fields.required("name").and_then(|name| name.text(1..=64));
            let _ = fields.optional("arguments");
            fields.finish();
            name.map(drop)
        })
        .collect();
    sound.iter().all(Option::is_some)
}

fn read_usage(usage: &Reader<'_>) -> Option<Usage> {
    let mut fields = usage.fields()?;
    let mut count = |name: &'static str| match fields.optional(name) {
        Some(number) => number.integer(0..=1_000_000_000),
        None => Some(0),
    };
    let (input_tokens, output_tokens) = (count("input_tokens"), count("output_tokens"));
    fields.finish();
    Some(Usage {
        input_tokens: input_tokens?,
        output_tokens: output_tokens?,
        ..Usage::default()
    })
}

fn error_names() -> [(&'static str, ModelErrorKind); 12] {
    use ModelErrorKind as K;
    [
        ("rate_limited", K::RateLimited),
        ("quota_exhausted", K::QuotaExhausted),
        ("unavailable", K::Unavailable),
        ("auth", K::Auth),
        ("not_found", K::NotFound),
        ("rejected", K::Rejected),
        ("context_overflow", K::ContextOverflow),
        ("content_filtered", K::ContentFiltered),
        ("timeout", K::Timeout),
        ("connection", K::Connection),
        ("stream_truncated", K::StreamTruncated),
        ("malformed", K::Malformed),
    ]
}

#[cfg(test)]
mod tests {
    use callboard_runtime::document;

    use super::*;

    fn compile_spec(spec: &str) -> Result<ProviderDefinition, Vec<String>> {
        let text = format!("kind: Provider\nmetadata: {{ name: p }}\nspec:\n{spec}");
        let documents = document::read(&text, None).expect("the form is right");
        compile(&documents[0]).map_err(|faults| {
            faults
                .into_iter()
                .map(|fault| format!("{}: {}", fault.path.join("."), fault.message))
                .collect()
        })
    }

    #[test]
    fn variables_are_replaced_when_asked_for() {
        let env = |name: &str| match name {
            "KEY" => Some("secret".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        let expand = |text: &str| expand(text, &env);
        assert_eq!(expand("a-${KEY}-b"), Ok("a-secret-b".into()));
        assert_eq!(expand("${NONE:http://x:1/y}"), Ok("http://x:1/y".into()));
        assert_eq!(expand("${EMPTY:d}"), Ok("d".into()));
        assert_eq!(expand("${EMPTY}"), Ok(String::new()));
        assert_eq!(expand("${NONE:}"), Ok(String::new()));
        assert!(expand("${NONE}").is_err());
        assert!(expand("${KEY").is_err());
        assert!(expand("${1X}").is_err());
        assert!(expand("${CALLBOARD_MASTER_KEY}").is_err());
        assert!(expand("${DATABASE_URL:x}").is_err());
    }

    #[test]
    fn a_server_is_read_as_written() {
        let Ok(ProviderDefinition::OpenAi(openai)) = compile_spec(
            "  type: openai\n  base_url: \"${URL:https://x/v1}\"\n  api_key: \"${KEY:}\"\n  timeout: 5s\n",
        ) else {
            panic!("the provider is sound");
        };
        assert_eq!(openai.base_url, "${URL:https://x/v1}");
        assert_eq!(openai.timeout, Duration::from_secs(5));
    }

    #[test]
    fn a_url_holds_no_password() {
        let faults =
            |url: &str| compile_spec(&format!("  type: openai\n  base_url: \"{url}\"\n")).err();
        assert!(
            faults("http://user:secret@host/v1")
                .is_some_and(|faults| faults[0].contains("api_key"))
        );
        assert!(faults("https://host/v1/a@b").is_none());
    }

    #[test]
    fn faults_of_providers_are_found() {
        let faults = compile_spec("  type: openai\n  base_ur: x\n  api_key: \"${\"\n").err();
        let faults = faults.expect("there are faults");
        assert!(
            faults
                .iter()
                .any(|f| f.contains("did you mean `base_url`?")),
            "{faults:?}"
        );
        assert!(
            faults.iter().any(|f| f.contains("spec.api_key")),
            "{faults:?}"
        );
        assert!(compile_spec("  type: other\n").is_err());
        for (url, sound) in [
            ("${URL}", true),
            ("${URL:http://127.0.0.1:1/v1}", true),
            ("${SCHEME}://x", true),
            ("models.example/v1", false),
            ("ftp://models.example", false),
            ("${URL:}", false),
        ] {
            let spec = format!("  type: openai\n  base_url: \"{url}\"\n");
            assert_eq!(compile_spec(&spec).is_ok(), sound, "{url}");
        }
    }
}
