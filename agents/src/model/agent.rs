//! Agent documents: checked as a whole and compiled.
//!
//! What belongs to later versions (`toolset`, `model` and `agent` tools, approvals, guardrails, prices, long-term memory)
//! is refused by name, never ignored.

use std::{collections::HashSet, sync::Arc, time::Duration};

use callboard_runtime::{
    document::{
        Document, Fault,
        reader::{Fields, Reader},
    },
    expression::Template,
    node::{AnyNode, NodeRegistry},
    schema::Schema,
    tool::OnCrash,
};
use serde_json::Value;

mod node_tool;

use super::spec::{Budgets, DoubleTexting, ModelName, OutputSchema};

/// How many tools an agent may have.
const TOOLS_MAX: usize = 64;
/// How many fallbacks and models an agent may name.
const MODELS_MAX: usize = 8;
/// The longest instructions, in characters.
const INSTRUCTIONS_CHARS_MAX: usize = 100_000;
/// The longest description of a tool, in characters.
const DESCRIPTION_CHARS_MAX: usize = 4_000;
/// Members of tools that belong to later versions.
const LATER_TOOLS: [&str; 5] = ["model", "toolset", "agent", "as", "operations"];
/// How long a node may take as a tool, unless its document says otherwise.
const NODE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a workflow may take as a tool, unless its document says otherwise.
const WORKFLOW_TIMEOUT: Duration = Duration::from_secs(300);

/// One version of an agent, compiled.
#[derive(Clone, Debug)]
pub struct AgentDefinition {
    /// `metadata.name`.
    pub name: String,
    /// The model, then its fallbacks. At least one.
    pub models: Vec<ModelName>,
    /// The system message; none when empty.
    pub instructions: String,
    /// In the order of the document.
    pub tools: Vec<ToolSource>,
    /// The shape of the answer, when it must be data.
    pub output: Option<OutputSchema>,
    /// What one turn may use.
    pub budgets: Budgets,
    /// How many messages the model sees at most.
    pub window: Option<usize>,
    /// What happens to a message that comes during a turn.
    pub double_texting: DoubleTexting,
}

/// A tool as its agent's document declares it.
#[derive(Clone, Debug)]
pub struct ToolSource {
    /// What the model calls it by; unique in the agent.
    pub name: String,
    /// For the model; absent where the tool's own description serves.
    pub description: Option<String>,
    /// What is called.
    pub target: ToolTarget,
    /// After a crash in mid-call.
    pub on_crash: OnCrash,
    /// Never runs beside another call of the same turn.
    pub exclusive: bool,
    /// A call that takes longer has failed.
    pub timeout: Duration,
}

/// What a tool calls.
#[derive(Clone, Debug)]
pub enum ToolTarget {
    /// A node.
    Node(NodeTarget),
    /// A workflow, by name. Its input schema is the tool's.
    Workflow(String),
}

/// A node as a tool.
#[derive(Clone)]
pub struct NodeTarget {
    /// The node.
    pub node: AnyNode,
    /// Its parameters: those that are fixed, and for each that the model gives an expression that passes it on.
    pub with: Arc<Value>,
    /// The same, compiled. `$json` is the model's arguments.
    pub template: Arc<Template>,
    /// JSON Schema of the arguments.
    pub parameters: Value,
}

impl std::fmt::Debug for NodeTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.node.node().node_type().name, self.with)
    }
}

/// Compiles an agent. Finds all faults. Whether workflows and providers that it names exist is seen when it runs: they
/// may come later.
pub fn compile(document: &Document, nodes: &NodeRegistry) -> Result<AgentDefinition, Vec<Fault>> {
    let faults = document.faults();
    let definition = read(&document.spec(&faults), &document.name, nodes);
    faults.into_result(definition)
}

fn read(spec: &Reader<'_>, name: &str, nodes: &NodeRegistry) -> Option<AgentDefinition> {
    let mut fields = spec.fields()?;
    fields.later(&["approvals", "guardrails", "expose"]);
    let models = fields
        .required("model")
        .and_then(|model| read_models(&model));
    let instructions = match fields.optional("instructions") {
        Some(text) => text.text(0..=INSTRUCTIONS_CHARS_MAX),
        None => Some(""),
    };
    let on_crash = match fields.optional("on_crash") {
        Some(policy) => read_on_crash(&policy),
        None => Some(OnCrash::Retry),
    };
    let tools = match fields.optional("tools") {
        Some(tools) => read_tools(&tools, on_crash.unwrap_or_default(), nodes),
        None => Some(Vec::new()),
    };
    let output = match fields.optional("output_schema") {
        Some(schema) => read_output(&schema).map(Some),
        None => Some(None),
    };
    let budgets = match fields.optional("budgets") {
        Some(budgets) => read_budgets(&budgets),
        None => Some(Budgets::default()),
    };
    let window = match fields.optional("memory") {
        Some(memory) => read_memory(&memory),
        None => Some(None),
    };
    let double_texting = match fields.optional("double_texting") {
        Some(policy) => read_double_texting(&policy),
        None => Some(DoubleTexting::Enqueue),
    };
    fields.finish();
    on_crash?;
    Some(AgentDefinition {
        name: name.to_owned(),
        models: models?,
        instructions: instructions?.to_owned(),
        tools: tools?,
        output: output?,
        budgets: budgets?,
        window: window?,
        double_texting: double_texting?,
    })
}

fn read_models(model: &Reader<'_>) -> Option<Vec<ModelName>> {
    let names = match model.value() {
        Value::Array(_) => model.list_not_empty(MODELS_MAX)?,
        _ => vec![model.clone()],
    };
    let read: Vec<_> = names.iter().map(read_model).collect();
    read.into_iter().collect()
}

fn read_model(model: &Reader<'_>) -> Option<ModelName> {
    let text = model.text(1..=300)?;
    match text.split_once('/') {
        Some((provider, name)) if !provider.is_empty() && !name.is_empty() => Some(ModelName {
            provider: provider.to_owned(),
            model: name.to_owned(),
        }),
        _ => {
            model.fault(
                "value_error",
                "A model is written `provider/model`, with the name of a Provider document",
            );
            None
        }
    }
}

fn read_on_crash(policy: &Reader<'_>) -> Option<OnCrash> {
    if policy.value() == "ask" {
        policy.unsupported("`ask` is");
        return None;
    }
    policy.choice(&[("retry", OnCrash::Retry), ("fail", OnCrash::Fail)])
}

fn read_double_texting(policy: &Reader<'_>) -> Option<DoubleTexting> {
    if let Some(later @ ("interrupt" | "steer")) = policy.value().as_str() {
        policy.unsupported(&format!("`{later}` is"));
        return None;
    }
    policy.choice(&[
        ("enqueue", DoubleTexting::Enqueue),
        ("reject", DoubleTexting::Reject),
    ])
}

fn read_output(schema: &Reader<'_>) -> Option<OutputSchema> {
    let written = schema.schema()?;
    let compiled = compiled(schema, &written)?;
    Some(OutputSchema {
        written,
        schema: compiled,
    })
}

fn compiled(reader: &Reader<'_>, schema: &Value) -> Option<Arc<Schema>> {
    match Schema::compile(schema) {
        Ok(schema) => Some(Arc::new(schema)),
        Err(fault) => {
            reader.fault("value_error", fault);
            None
        }
    }
}

fn read_budgets(budgets: &Reader<'_>) -> Option<Budgets> {
    let all = Budgets::default();
    let mut fields = budgets.fields()?;
    fields.later(&["cost_usd", "depth"]);
    let mut count = |name: &'static str, default: u64, max: i64| match fields.optional(name) {
        Some(number) => number.integer(1..=max),
        None => Some(default),
    };
    let model_calls = count("model_calls", all.model_calls, 1_000);
    let tool_calls = match fields.optional("tool_calls") {
        Some(number) => number.integer(0..=10_000),
        None => Some(all.tool_calls),
    };
    let tokens = match fields.optional("tokens") {
        Some(number) => number.integer(1..=1_000_000_000).map(Some),
        None => Some(None),
    };
    let wall = match fields.optional("wall") {
        Some(wall) => wall.duration(),
        None => Some(all.wall),
    };
    fields.finish();
    Some(Budgets {
        model_calls: model_calls?,
        tool_calls: tool_calls?,
        tokens: tokens?,
        wall: wall?,
    })
}

fn read_memory(memory: &Reader<'_>) -> Option<Option<usize>> {
    let mut fields = memory.fields()?;
    fields.later(&["summarize", "long_term"]);
    let window = match fields.optional("window") {
        Some(window) => window.integer(1..=10_000).map(Some),
        None => Some(None),
    };
    fields.finish();
    window
}

fn read_tools(
    tools: &Reader<'_>,
    on_crash: OnCrash,
    nodes: &NodeRegistry,
) -> Option<Vec<ToolSource>> {
    let mut names = HashSet::new();
    let read: Vec<_> = tools
        .list(TOOLS_MAX)?
        .iter()
        .map(|tool| {
            let source = read_tool(tool, on_crash, nodes)?;
            if !names.insert(source.name.clone()) {
                let message = format!(
                    "Another tool is called `{}`; give this one a `name`",
                    source.name
                );
                tool.fault("value_error", message);
                return None;
            }
            Some(source)
        })
        .collect();
    read.into_iter().collect()
}

/// A tool's members besides its target.
struct Common {
    name: Option<String>,
    description: Option<String>,
    on_crash: OnCrash,
    exclusive: bool,
    timeout: Option<Duration>,
}

fn read_tool(tool: &Reader<'_>, on_crash: OnCrash, nodes: &NodeRegistry) -> Option<ToolSource> {
    let mut fields = tool.fields()?;
    fields.later(&LATER_TOOLS);
    let common = read_common(&mut fields, on_crash);
    let target = match (fields.optional("node"), fields.optional("workflow")) {
        (Some(node), None) => {
            let target = node_tool::read(&node, &mut fields, nodes);
            target.map(|target| (ToolTarget::Node(target), node, NODE_TIMEOUT))
        }
        (None, Some(workflow)) => {
            let target = workflow
                .name()
                .map(|name| ToolTarget::Workflow(name.to_owned()));
            target.map(|target| (target, workflow, WORKFLOW_TIMEOUT))
        }
        (Some(_), Some(_)) => {
            tool.fault(
                "value_error",
                "A tool is a `node` or a `workflow`, not both",
            );
            None
        }
        (None, None) => {
            if !LATER_TOOLS
                .iter()
                .any(|name| tool.value().get(name).is_some())
            {
                tool.fault("value_error", "A tool names a `node` or a `workflow`");
            }
            None
        }
    };
    fields.finish();
    let ((target, called, default_timeout), common) = (target?, common?);
    let name = match common.name {
        Some(name) => name,
        None => default_name(tool, called.string()?)?,
    };
    Some(ToolSource {
        name,
        description: common.description,
        target,
        on_crash: common.on_crash,
        exclusive: common.exclusive,
        timeout: common.timeout.unwrap_or(default_timeout),
    })
}

fn read_common(fields: &mut Fields<'_>, on_crash: OnCrash) -> Option<Common> {
    let name = match fields.optional("name") {
        Some(name) => read_tool_name(&name).map(Some),
        None => Some(None),
    };
    let description = match fields.optional("description") {
        Some(text) => text
            .text(0..=DESCRIPTION_CHARS_MAX)
            .map(|text| Some(text.to_owned())),
        None => Some(None),
    };
    let on_crash = match fields.optional("on_crash") {
        Some(policy) => read_on_crash(&policy),
        None => Some(on_crash),
    };
    let exclusive = match fields.optional("exclusive") {
        Some(exclusive) => exclusive.bool(),
        None => Some(false),
    };
    let timeout = match fields.optional("timeout") {
        Some(timeout) => timeout.duration().map(Some),
        None => Some(None),
    };
    Some(Common {
        name: name?,
        description: description?,
        on_crash: on_crash?,
        exclusive: exclusive?,
        timeout: timeout?,
    })
}

/// What a tool is called by when its document does not say: as what it calls.
fn default_name(tool: &Reader<'_>, called: &str) -> Option<String> {
    let name = called.replace('.', "_");
    if is_tool_name(&name) {
        return Some(name);
    }
    let message = format!("`{name}` cannot be the name of a tool; give it a `name`");
    tool.fault("value_error", message);
    None
}

fn read_tool_name(name: &Reader<'_>) -> Option<String> {
    let text = name.string()?;
    if !is_tool_name(text) {
        name.fault(
            "string_pattern_mismatch",
            "A tool's name has 1 to 64 letters, digits, `_` and `-`",
        );
        return None;
    }
    Some(text.to_owned())
}

fn is_tool_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use callboard_runtime::document;

    use super::*;

    fn faults(spec: &str) -> Vec<String> {
        let text = format!("kind: Agent\nmetadata: {{ name: a }}\nspec:\n{spec}");
        let documents = document::read(&text, None).expect("the form is right");
        match compile(&documents[0], &NodeRegistry::default()) {
            Ok(_) => Vec::new(),
            Err(faults) => faults
                .into_iter()
                .map(|fault| format!("{}: {}", fault.path.join("."), fault.message))
                .collect(),
        }
    }

    fn agent(spec: &str) -> AgentDefinition {
        let text = format!("kind: Agent\nmetadata: {{ name: a }}\nspec:\n{spec}");
        let documents = document::read(&text, None).expect("the form is right");
        compile(&documents[0], &NodeRegistry::default()).expect("the agent is sound")
    }

    #[test]
    fn a_small_agent_has_the_defaults() {
        let agent = agent("  model: openai/gpt-5-mini\n  instructions: be kind\n");
        assert_eq!(agent.models[0].to_string(), "openai/gpt-5-mini");
        assert_eq!(agent.budgets, Budgets::default());
        assert_eq!(agent.double_texting, DoubleTexting::Enqueue);
    }

    #[test]
    fn models_may_hold_slashes_and_have_fallbacks() {
        let agent = agent("  model: [local/org/model:7b, openai/x]\n");
        assert_eq!(agent.models[0].model, "org/model:7b");
        assert_eq!(agent.models.len(), 2);
    }

    #[test]
    fn every_fault_is_found_at_once() {
        let found = faults(
            "  model: gpt\n  budgets: { model_calls: 0, cost_usd: 1 }\n  double_texting: steer\n  \
             tools: [{ agent: x, as: tool }, { node: htp.request }, {}]\n  instruction: x\n",
        );
        for expected in [
            "spec.model:",
            "spec.budgets.model_calls:",
            "spec.budgets.cost_usd: `cost_usd` is not supported",
            "spec.double_texting: `steer` is not supported",
            "spec.tools.0.agent: `agent` is not supported",
            "spec.tools.1.node: There is no node type `htp.request`",
            "spec.tools.2: A tool names",
            "did you mean `instructions`?",
        ] {
            assert!(
                found.iter().any(|fault| fault.contains(expected)),
                "{expected}: {found:#?}"
            );
        }
    }

    #[test]
    fn what_comes_later_is_refused_by_name() {
        for spec in [
            "  model: a/b\n  approvals: []\n",
            "  model: a/b\n  guardrails: {}\n",
            "  model: a/b\n  memory: { summarize: true }\n",
            "  model: a/b\n  on_crash: ask\n",
            "  model: a/b\n  tools: [{ node: agent }]\n",
        ] {
            let found = faults(spec);
            assert!(
                found[0].contains("not supported by this version"),
                "{found:?}"
            );
        }
    }

    #[test]
    fn tools_have_names_of_their_own() {
        let found = faults("  model: a/b\n  tools: [{ workflow: x }, { workflow: y, name: x }]\n");
        assert!(found[0].contains("Another tool is called `x`"), "{found:?}");
        let agent = agent(
            "  model: a/b\n  tools: [{ workflow: look-up, on_crash: fail, timeout: 5s, exclusive: true }]\n",
        );
        assert_eq!(agent.tools[0].name, "look-up");
        assert_eq!(agent.tools[0].on_crash, OnCrash::Fail);
        assert_eq!(agent.tools[0].timeout, Duration::from_secs(5));
    }

    struct Fake;

    impl callboard_runtime::node::Node for Fake {
        fn node_type(&self) -> callboard_runtime::node::NodeType {
            callboard_runtime::node::NodeType {
                name: "fake.node",
                version: 1,
                summary: "Is not real.",
                effect: callboard_runtime::node::EffectClass::Pure,
                parameters: serde_json::json!({"type": "object", "required": ["to", "text"], "properties": {
                    "to": {"type": "string"}, "text": {"type": "string"}, "code": {"type": "string"}}}),
                several_inputs: false,
            }
        }

        fn verbatim(&self) -> &'static [&'static str] {
            &["code"]
        }
    }

    impl callboard_runtime::node::PureNode for Fake {
        fn run(
            &self,
            _: &callboard_runtime::node::NodeInput,
        ) -> Result<callboard_runtime::node::NodeOutcome, callboard_runtime::node::NodeError>
        {
            Ok(callboard_runtime::node::NodeOutput::main(Vec::new()).into())
        }
    }

    fn with_fake(tool: &str) -> Result<AgentDefinition, Vec<Fault>> {
        let text = format!(
            "kind: Agent\nmetadata: {{ name: a }}\nspec:\n  model: a/b\n  tools: [{tool}]\n"
        );
        let documents = document::read(&text, None).expect("the form is right");
        let mut nodes = NodeRegistry::default();
        nodes.pure(Fake);
        compile(&documents[0], &nodes)
    }

    fn target(tool: &str) -> NodeTarget {
        let mut agent = with_fake(tool).expect("the agent is sound");
        match agent.tools.remove(0).target {
            ToolTarget::Node(target) => target,
            ToolTarget::Workflow(name) => panic!("{name} is no node"),
        }
    }

    #[test]
    fn the_model_gives_what_is_not_fixed_and_never_a_program() {
        let target = target("{ node: fake.node, with: { to: me } }");
        let parameters = &target.parameters;
        assert_eq!(
            parameters["properties"],
            serde_json::json!({"text": {"type": "string"}})
        );
        assert_eq!(parameters["required"], serde_json::json!(["text"]));
        assert_eq!(parameters["additionalProperties"], false);
        assert_eq!(target.with["to"], "me");
        assert_eq!(target.with["text"], "{{ $json[\"text\"] }}");
        assert!(target.with.get("code").is_none());
    }

    #[test]
    fn parameters_of_the_same_name_reach_the_node() {
        let target = target(
            "{ node: fake.node, with: { to: \"{{ $json.who }}\" }, \
             parameters: { type: object, properties: { who: {}, text: {}, code: {} } } }",
        );
        assert_eq!(target.with["to"], "{{ $json.who }}");
        assert_eq!(target.with["text"], "{{ $json[\"text\"] }}");
        assert!(target.with.get("code").is_none());
    }

    #[test]
    fn what_a_node_lacks_or_does_not_know_is_found() {
        let of = |tool: &str| {
            let faults = with_fake(tool).expect_err("there are faults");
            faults
                .into_iter()
                .map(|fault| fault.message)
                .collect::<Vec<_>>()
                .join("; ")
        };
        let schema = "parameters: { type: object, properties: { who: {} } }";
        assert!(
            of(&format!("{{ node: fake.node, {schema} }}")).contains("needs the parameter `to`")
        );
        assert!(of("{ node: fake.node, with: { too: x } }").contains("did you mean `to`?"));
        assert!(of("{ node: fake.nod }").contains("did you mean `fake.node`?"));
        assert!(of("{ node: fake.node, with: { to: \"{{ 1 + }}\" } }").len() > 1);
    }
}
