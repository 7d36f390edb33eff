//! `demo`: a server with the examples loaded, and a first conversation with it.
//!
//! Everything that is shown was asked of the server over HTTP, as any client would.

use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Failure, Global,
    client::Client,
    documents::Loaded,
    example_service::ExampleService,
    examples, executions,
    output::{Output, harmless, member, one_line, remark},
    read_config, sessions, start_log,
};
use crate::{config::ServeArgs, serve::Host};

/// What nodes may reach besides public addresses: the example service is on this machine.
const LOOPBACK: &str = "127.0.0.0/8";
/// How long an example may take.
const EXAMPLE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(120);

/// Flags of `demo`: those of `serve`, and one more.
#[derive(clap::Args)]
pub struct DemoArgs {
    #[command(flatten)]
    serve: ServeArgs,
    /// Stop after the examples; the exit code says whether they went well
    #[arg(long)]
    once: bool,
}

/// Serves with the examples, runs them, prints what happened, and goes on serving.
pub async fn demo(args: &DemoArgs, global: &Global, output: &Output) -> Result<(), Failure> {
    let mut config = read_config(&args.serve, global)?;
    start_log(config.log_format);
    config.allow_outbound.push(LOOPBACK.to_owned());
    let service = example_service().await?;
    let loaded: Loaded = examples::load(&service.address);
    let service_url = format!("http://{}", service.address);
    tokio::spawn(service.serve());

    let host = Host::start(config, loaded).await?;
    host.announce(output);
    let client = Client::at(&host.url, Some(host.admin_key.clone()))?;
    let shown = tokio::select! {
        shown = show(&client, output) => shown,
        () = host.stop_wished() => return host.stop().await,
    };
    if !output.is_json() {
        if let Err(failure) = &shown {
            remark(format!("the examples did not go well: {failure}"));
        }
        if !args.once {
            print_pointers(&host, &service_url, output);
        }
    }
    if args.once {
        host.stop().await?;
        return shown;
    }
    if !output.is_json() {
        output.line("\nserving; Ctrl-C stops");
    }
    host.run().await
}

/// The example service where the examples expect it, or at a free port that the documents are then changed to.
async fn example_service() -> Result<ExampleService, Failure> {
    match ExampleService::bind(examples::SERVICE).await {
        Ok(service) => Ok(service),
        Err(_) => {
            let service = ExampleService::bind("127.0.0.1:0").await;
            let service = service.map_err(|error| {
                Failure::Failed(format!("cannot start the example service: {error}"))
            })?;
            remark(format!(
                "{} is in use: the example service is on {}, and the examples are changed to that",
                examples::SERVICE,
                service.address
            ));
            Ok(service)
        }
    }
}

/// Runs the examples one after the other and shows each.
async fn show(client: &Client, output: &Output) -> Result<(), Failure> {
    let lead = json!({"email": "ada@analytical.example", "name": "Ada", "message": "We need 40 brass gears a month."});
    let quote = json!({"lines": [{"sku": "gear", "quantity": 12}, {"sku": "card", "quantity": 500}, {"sku": "bell", "quantity": 1}]});
    let hooks = [
        (
            "A lead arrives: it is checked, looked up, scored by an agent, answered",
            "leads",
            "lead-intake",
            lead,
        ),
        (
            "An order is priced: three lines at once, two carriers side by side, one of them busy at first",
            "quotes",
            "order-quote",
            quote,
        ),
    ];
    let mut failed = false;
    for (title, path, workflow, body) in hooks {
        failed |= !show_webhook(client, title, path, workflow, &body, output).await?;
    }
    failed |= !show_agent(client, output).await?;
    if failed {
        Err(Failure::Failed("an example failed".to_owned()))
    } else {
        Ok(())
    }
}

/// Calls a webhook and shows the answer and the journal of the execution behind it. Says whether it succeeded.
async fn show_webhook(
    client: &Client,
    title: &str,
    path: &str,
    workflow: &str,
    body: &Value,
    output: &Output,
) -> Result<bool, Failure> {
    // Found again by its key, whatever else this server is doing.
    let key = format!("demo-{}", uuid::Uuid::now_v7());
    let request = client
        .request(Method::POST, &["hooks", path])
        .header("idempotency-key", &key)
        .json(body);
    let (status, answer) = match client.send_and_wait(request, EXAMPLE_TIMEOUT).await {
        Ok(answer) => (answer.status, answer.body),
        // Its execution says more.
        Err(Failure::Refused(refusal)) => (refusal.status, refusal.body),
        Err(failure) => return Err(failure),
    };
    let query = [
        ("workflow", workflow.to_owned()),
        ("limit", "100".to_owned()),
    ];
    let page = client.get(&["v1", "executions"], &query).await?;
    let execution = executions::data(&page)
        .iter()
        .find(|execution| member(execution, "idempotency_key") == key)
        .or_else(|| executions::data(&page).first())
        .cloned()
        .ok_or_else(|| Failure::Failed(format!("there is no execution of {workflow}")))?;
    let runs = executions::node_runs(client, &member(&execution, "id")).await?;
    let succeeded = status < 300;
    if output.is_json() {
        output.json_line(&json!({
            "webhook": path, "request": body, "status": status, "answer": answer,
            "execution": execution, "node_runs": runs,
        }));
        return Ok(succeeded);
    }
    output.line(format!("\n{}", output.paint.bold(title)));
    output.line(format!("POST /hooks/{path} {body}"));
    output.line(format!("{} {}", status, harmless(&answer.to_string())));
    output.line(format!("execution {}", member(&execution, "id")));
    executions::print_node_runs(&runs, output);
    Ok(succeeded)
}

/// Talks to the support desk and shows the transcript. Says whether the turn completed.
async fn show_agent(client: &Client, output: &Output) -> Result<bool, Failure> {
    let session = client
        .with_body(
            Method::POST,
            &["v1", "agents", "support-desk", "sessions"],
            &json!({}),
        )
        .await?;
    let id = member(&session, "id");
    let message = json!({"content": "Where is my order A-1001, what else did ada@analytical.example order, and do you have bells?"});
    let request = client
        .request(Method::POST, &["v1", "sessions", &id, "messages"])
        .json(&message);
    let answer = client.send_and_wait(request, EXAMPLE_TIMEOUT).await?.body;
    let rows = sessions::transcript(client, &id).await?;
    let status = member(&answer, "status");
    if output.is_json() {
        output.json_line(&json!({"agent": "support-desk", "session": session, "answer": answer, "messages": rows}));
        return Ok(status == "completed");
    }
    output.line(format!(
        "\n{}",
        output
            .paint
            .bold("Somebody asks the support desk: an agent with three tools, on a scripted model")
    ));
    output.line(format!("session {id}"));
    for line in rows
        .iter()
        .flat_map(|row| sessions::transcript_lines(row, output))
    {
        output.line(line);
    }
    output.line(format!("turn {}", output.paint.status(&one_line(&status))));
    Ok(status == "completed")
}

/// Where to look, and what to try, ready to paste.
fn print_pointers(host: &Host, service_url: &str, output: &Output) {
    let url = &host.url;
    let key = host.key_file.display();
    output.line(format!("\n{}", output.paint.bold("Look around")));
    for (what, place) in [
        ("API documentation", format!("{url}/docs")),
        ("OpenAPI document", format!("{url}/openapi.json")),
        ("health", format!("{url}/health/ready")),
        ("example service", format!("{service_url}/orders/A-1001")),
    ] {
        output.line(format!("  {what:<18} {place}"));
    }
    output.line(format!("\n{}", output.paint.bold("Try")));
    output.line(format!(
        "  export CALLBOARD_SERVER={url} CALLBOARD_KEY=$(cat {key})"
    ));
    output
        .line("  curl -H \"Authorization: Bearer $CALLBOARD_KEY\" $CALLBOARD_SERVER/v1/executions");
    output.line(
        "  curl -H \"Authorization: Bearer $CALLBOARD_KEY\" -H 'Content-Type: application/json' \\\n       \
         -d '{\"email\": \"emil@kiosk.example\", \"name\": \"Emil\"}' $CALLBOARD_SERVER/hooks/leads",
    );
    let program = program();
    output.line(format!(
        "  {program} run order-quote --follow --input '{{\"lines\": [{{\"sku\": \"gear\", \"quantity\": 3}}]}}'"
    ));
    output.line(format!("  {program} chat support-desk"));
}

/// How to call this program from the current directory.
fn program() -> String {
    let called = std::env::args().next().unwrap_or_default();
    if !called.is_empty() && !called.contains('/') {
        return called;
    }
    let path = std::env::current_exe().unwrap_or_else(|_| called.into());
    let directory = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&directory)
        .unwrap_or(&path)
        .display()
        .to_string()
}
