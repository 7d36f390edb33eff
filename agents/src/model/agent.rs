//! Agent documents: checked as a whole and compiled.
//!
//! What belongs to later versions (`toolset`, `model` and `agent` tools, approvals, guardrails, prices, long-term memory)
//! is refused by name, never ignored.

use std::{collections::HashSet, sync::Arc, time::Duration};

use callboard_runtime::{
    document::{
        Document, Fault, closest,
        reader::{Fields, Reader},
    },
    expression::Template,
    node::{AnyNode, NodeRegistry},
    schema::Schema,
    tool::OnCrash,
};
use serde_json::{Map, Value, json};

use super::spec::{Budgets, DoubleTexting, ModelName, OutputSchema};

/// How many tools an agent may have.
const TOOLS_MAX: usize = 64;
/// How many fallbacks and models an agent may name.
const MODELS_MAX: usize = 8;
/// The longest instructions, in characters.
const INSTRUCTIONS_CHARS_MAX: usize = 100_000;
/// The longest description of a tool, in characters.
const DESCRIPTION_CHARS_MAX: usize = 4_000;
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

fn read_tool(tool: &Reader<'_>, on_crash: OnCrash, nodes: &NodeRegistry) -> Option<ToolSource> {
    let mut fields = tool.fields()?;
    fields.later(&["model", "toolset", "agent", "as", "operations"]);
    let (node, workflow) = (fields.optional("node"), fields.optional("workflow"));
    let name = match fields.optional("name") {
        Some(name) => read_tool_name(&name).map(Some),
        None => Some(None),
    };
    let description = match fields.optional("description") {
        Some(text) => text.text(0..=DESCRIPTION_CHARS_MAX).map(Some),
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
    let (target, default_name, default_timeout) = match (node, workflow) {
        (Some(node), None) => {
            let target = read_node(&node, &mut fields, nodes);
            fields.finish();
            let name = node.string()?.replace('.', "_");
            (ToolTarget::Node(target?), name, NODE_TIMEOUT)
        }
        (None, Some(workflow)) => {
            fields.finish();
            let name = workflow.name()?.to_owned();
            (ToolTarget::Workflow(name.clone()), name, WORKFLOW_TIMEOUT)
        }
        (Some(_), Some(_)) => {
            tool.fault(
                "value_error",
                "A tool is a `node` or a `workflow`, not both",
            );
            return None;
        }
        (None, None) => {
            let later = ["model", "toolset", "agent"];
            if !later.iter().any(|name| tool.value().get(name).is_some()) {
                tool.fault("value_error", "A tool names a `node` or a `workflow`");
            }
            fields.finish();
            return None;
        }
    };
    let name = match name? {
        Some(name) => name,
        None if is_tool_name(&default_name) => default_name,
        None => {
            tool.fault(
                "value_error",
                format!("`{default_name}` cannot be the name of a tool; give it a `name`"),
            );
            return None;
        }
    };
    Some(ToolSource {
        name,
        description: description?.map(str::to_owned),
        target,
        on_crash: on_crash?,
        exclusive: exclusive?,
        timeout: timeout?.unwrap_or(default_timeout),
    })
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

fn read_node(
    name: &Reader<'_>,
    fields: &mut Fields<'_>,
    nodes: &NodeRegistry,
) -> Option<NodeTarget> {
    let with = fields.optional("with");
    let parameters = fields.optional("parameters");
    let text = name.string()?;
    if text == "agent" {
        name.unsupported("An agent as a tool is");
        return None;
    }
    let Some(node) = nodes.find(text) else {
        let hint = closest(text, nodes.names())
            .map(|meant| format!("; did you mean `{meant}`?"))
            .unwrap_or_default();
        name.fault(
            "value_error",
            format!("There is no node type `{text}`{hint}"),
        );
        return None;
    };
    let node_type = node.node().node_type();
    let own = node_type.parameters["properties"]
        .as_object()
        .cloned()
        .unwrap_or_default();
    let fixed = match &with {
        Some(with) => read_with(with, &own)?,
        None => Map::new(),
    };
    let verbatim = node.node().verbatim();
    let taken: HashSet<String> = fixed.keys().cloned().collect();
    let open =
        |name: &str| own.contains_key(name) && !taken.contains(name) && !verbatim.contains(&name);
    let parameters = match parameters {
        Some(reader) => {
            let schema = reader.schema()?;
            if schema["type"] != "object" {
                reader.fault("value_error", "The schema of arguments has `type: object`");
                return None;
            }
            schema
        }
        None => default_parameters(&node_type.parameters, &own, open),
    };
    compiled(fields.reader(), &parameters)?;
    let at = with.as_ref().unwrap_or(name);
    compile_node(node.clone(), at, fixed, parameters, open)
}

/// The parameters that the document fixes: names that the node has.
fn read_with(with: &Reader<'_>, own: &Map<String, Value>) -> Option<Map<String, Value>> {
    let mut fixed = Map::new();
    let before = with.faults().len();
    for (name, value) in with.entries()? {
        if !own.contains_key(name) {
            let hint = closest(name, own.keys().map(String::as_str))
                .map(|meant| format!("; did you mean `{meant}`?"))
                .unwrap_or_default();
            let message = format!("Extra inputs are not permitted{hint}");
            with.fault_below(&[name], "extra_forbidden", message);
        }
        fixed.insert(name.to_owned(), value.value().clone());
    }
    (with.faults().len() == before).then_some(fixed)
}

/// The node's own parameters that are not fixed.
fn default_parameters(
    schema: &Value,
    own: &Map<String, Value>,
    open: impl Fn(&str) -> bool,
) -> Value {
    let properties: Map<_, _> = own
        .iter()
        .filter(|(name, _)| open(name))
        .map(|(name, schema)| (name.clone(), schema.clone()))
        .collect();
    let required: Vec<_> = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|name| name.as_str().is_some_and(&open))
        .cloned()
        .collect();
    let mut parameters =
        json!({"type": "object", "properties": properties, "additionalProperties": false});
    if !required.is_empty() {
        parameters["required"] = Value::Array(required);
    }
    for name in ["$defs", "definitions"] {
        if let Some(definitions) = schema.get(name) {
            parameters[name] = definitions.clone();
        }
    }
    parameters
}

/// What the model gives reaches a parameter of the same name by an expression, so that it is data, never a template.
fn compile_node(
    node: AnyNode,
    at: &Reader<'_>,
    mut with: Map<String, Value>,
    parameters: Value,
    open: impl Fn(&str) -> bool,
) -> Option<NodeTarget> {
    let given = parameters["properties"].as_object();
    for name in given
        .into_iter()
        .flat_map(Map::keys)
        .filter(|name| open(name))
    {
        with.insert(
            name.clone(),
            json!(format!("{{{{ $json[{}] }}}}", json!(name))),
        );
    }
    let node_type = node.node().node_type();
    let required = node_type.parameters["required"].as_array();
    let before = at.faults().len();
    for name in required.into_iter().flatten().filter_map(Value::as_str) {
        if !with.contains_key(name) {
            let message = format!(
                "`{}` needs the parameter `{name}`: fix it in `with`, or name it in `parameters` for the model to give",
                node_type.name
            );
            at.fault("missing", message);
        }
    }
    let with = Value::Object(with);
    for fault in node.node().check(&with) {
        at.fault_below(&fault.path, "value_error", fault.message);
    }
    let template = Template::compile(&with, node.node().verbatim()).map_err(|faults| {
        for fault in faults {
            at.fault_below(&fault.path, "value_error", fault.message);
        }
    });
    (at.faults().len() == before).then_some(())?;
    Some(NodeTarget {
        node,
        with: Arc::new(with),
        template: Arc::new(template.ok()?),
        parameters,
    })
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
}
