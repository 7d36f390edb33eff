//! The command line: what may be said, and who does it.
//!
//! Everything but `serve`, `demo`, `validate`, `migrate` and `completions` is a client of the HTTP API and knows
//! nothing that another client could not know.

use std::{fmt, path::PathBuf, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};

use crate::config::{Config, LogFormat, Problems, ServeArgs};

mod apply;
mod chat;
pub mod client;
mod demo;
pub mod documents;
mod example_service;
mod examples;
mod executions;
mod follow;
mod keys;
pub mod output;
mod run;
mod sessions;
pub mod sse;
mod validate;

use client::Client;
use output::{Format, Output};

/// Workflows and AI agents that survive the death of any process.
#[derive(Parser)]
#[command(name = "callboard", version, max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(clap::Args, Clone)]
#[command(next_help_heading = "Common options")]
pub struct Global {
    /// Server to speak to [default: the one of the data directory, else http://127.0.0.1:8080]
    #[arg(long, global = true, env = "CALLBOARD_SERVER", value_name = "URL")]
    pub server: Option<String>,
    /// API key [default: the one of the data directory, for a server on this machine]
    #[arg(
        long,
        global = true,
        env = "CALLBOARD_KEY",
        value_name = "KEY",
        hide_env_values = true
    )]
    pub key: Option<String>,
    /// Form of what is printed on standard output
    #[arg(
        long,
        global = true,
        env = "CALLBOARD_FORMAT",
        hide_env = true,
        value_name = "text|json",
        default_value = "text",
        hide_possible_values = true
    )]
    pub format: Format,
    /// Where `serve` keeps its database, the admin key and its address
    #[arg(
        long,
        global = true,
        env = "CALLBOARD_DATA_DIR",
        value_name = "DIR",
        default_value = ".callboard"
    )]
    pub data_dir: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Run a host: the HTTP API, workflows and agents
    Serve(Box<ServeArgs>),
    /// Serve with the examples loaded, start some of them and print what happened
    Demo(Box<demo::DemoArgs>),
    /// Create or update documents on a server; repeating it changes nothing
    Apply(apply::ApplyArgs),
    /// Check documents without a server
    Validate(validate::ValidateArgs),
    /// Start an execution of a workflow
    Run(run::RunArgs),
    /// Talk to an agent
    Chat(chat::ChatArgs),
    /// List, show, cancel or watch executions
    #[command(subcommand)]
    Executions(executions::ExecutionsCommand),
    /// List, show or watch sessions of agents
    #[command(subcommand)]
    Sessions(sessions::SessionsCommand),
    /// Create, list or revoke API keys
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Bring a database to this version's schema; `serve` does the same at its start
    Migrate(MigrateArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Run the small HTTP service that the examples call
    #[command(hide = true)]
    ExampleService(example_service::ExampleServiceArgs),
}

#[derive(clap::Args)]
struct MigrateArgs {
    /// Postgres to migrate (else `DATABASE_URL`)
    #[arg(
        long,
        env = "CALLBOARD_DATABASE_URL",
        value_name = "URL",
        hide_env_values = true
    )]
    database_url: Option<String>,
}

#[derive(clap::Args)]
struct CompletionsArgs {
    /// Shell to complete for
    shell: clap_complete::Shell,
}

/// Why a command did not do what it was asked; each kind has its exit code.
#[derive(Clone, Debug)]
pub enum Failure {
    /// The thing itself failed: exit code 1.
    Failed(String),
    /// It failed, and everything has been said about it already: exit code 1.
    Told,
    /// The server refused: exit code 1.
    Refused(Box<client::Refusal>),
    /// The command makes no sense: exit code 2.
    Usage(String),
    /// The server was not reached: exit code 3.
    Unreachable(String),
}

impl Failure {
    /// 1, 2 or 3.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) | Self::Told | Self::Refused(_) => 1,
            Self::Usage(_) => 2,
            Self::Unreachable(_) => 3,
        }
    }

    /// Whether the same request may succeed a little later: the server is away, busy or draining.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Refused(refusal) => matches!(refusal.status, 429 | 502 | 503 | 504),
            _ => false,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(text) | Self::Usage(text) | Self::Unreachable(text) => f.write_str(text),
            Self::Refused(refusal) => f.write_str(&refusal.message),
            Self::Told => Ok(()),
        }
    }
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        Self::Usage(problems.to_string())
    }
}

/// Reads the command line, does it, and says how it went. Wrong usage exits with code 2 before anything starts.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let json = cli.global.format == Format::Json;
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            match &failure {
                Failure::Told => {}
                other if json => output::remark(client::failure_json(other).to_string()),
                other => output::error(other.to_string()),
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let Cli { global, command } = cli;
    if let Command::Completions(args) = command {
        let mut script = Vec::new();
        clap_complete::generate(args.shell, &mut Cli::command(), "callboard", &mut script);
        Output::new(Format::Text).text(&String::from_utf8_lossy(&script));
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("cannot start threads: {error}")))?;
    let result = runtime.block_on(dispatch(global, command));
    // A thread that waits for standard input never ends by itself.
    runtime.shutdown_background();
    result
}

async fn dispatch(global: Global, command: Command) -> Result<(), Failure> {
    let output = Output::new(global.format);
    match command {
        Command::Serve(args) => {
            let config = read_config(&args, &global)?;
            start_log(config.log_format);
            crate::serve::serve(config, &output).await
        }
        Command::Demo(args) => demo::demo(&args, &global, &output).await,
        Command::Apply(args) => apply::apply(&Client::new(&global)?, &args, &output).await,
        Command::Validate(args) => validate::validate(&args, &output),
        Command::Run(args) => run::run(&Client::new(&global)?, &args, &output).await,
        Command::Chat(args) => chat::chat(&Client::new(&global)?, &args, &output).await,
        Command::Executions(command) => {
            executions::run(&Client::new(&global)?, &command, &output).await
        }
        Command::Sessions(command) => {
            sessions::run(&Client::new(&global)?, &command, &output).await
        }
        Command::Keys(command) => keys::run(&Client::new(&global)?, &command, &output).await,
        Command::Migrate(args) => migrate(args, &output).await,
        Command::ExampleService(args) => example_service::run(&args, &output).await,
        Command::Completions(_) => Ok(()),
    }
}

/// The configuration that these flags and the environment make.
fn read_config(args: &ServeArgs, global: &Global) -> Result<Config, Failure> {
    let env = |name: &str| std::env::var(name).ok();
    Ok(Config::read(args, global.data_dir.clone(), env)?)
}

async fn migrate(args: MigrateArgs, output: &Output) -> Result<(), Failure> {
    let url = args
        .database_url
        .filter(|url| !url.is_empty())
        .or_else(|| {
            std::env::var("DATABASE_URL")
                .ok()
                .filter(|url| !url.is_empty())
        })
        .ok_or_else(|| {
            Failure::Usage("name the database with --database-url or DATABASE_URL".to_owned())
        })?;
    crate::serve::migrate(&url).await?;
    match output.format {
        Format::Text => output.line("the database has this version's schema"),
        Format::Json => output.json(&serde_json::json!({"migrated": true})),
    }
    Ok(())
}

/// Sends the log to standard error. `RUST_LOG` decides what is logged.
fn start_log(format: LogFormat) {
    use std::io::IsTerminal;
    use tracing_subscriber::EnvFilter;

    let mut filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("info,poem=warn,ractor=warn,sqlx=warn"));
    // The model client logs requests and answers whole, which nobody should read in a log, whatever is asked for.
    if let Ok(silence) = "async_openai=off".parse() {
        filter = filter.add_directive(silence);
    }
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(
            std::io::stderr().is_terminal()
                && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
        );
    // It fails only when a log is set already, and one is as good as the other.
    let _ = match format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().try_init(),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_of_serve_has_its_variable() {
        let command = Cli::command();
        let serve = command.find_subcommand("serve").unwrap_or(&command);
        for argument in serve
            .get_arguments()
            .filter(|a| !["help", "version"].contains(&a.get_id().as_str()))
        {
            let flag = argument.get_long().unwrap_or_default();
            let expected = format!("CALLBOARD_{}", flag.to_uppercase().replace('-', "_"));
            assert_eq!(
                argument.get_env().and_then(|name| name.to_str()),
                Some(expected.as_str()),
                "--{flag}"
            );
        }
    }

    #[test]
    fn what_may_pass_is_told_from_what_will_not() {
        let refused = |status| {
            Failure::Refused(Box::new(client::Refusal {
                status,
                message: String::new(),
                retry_after: None,
                body: serde_json::Value::Null,
            }))
        };
        assert!(refused(503).may_pass() && refused(429).may_pass());
        assert!(!refused(404).may_pass() && !refused(401).may_pass());
        assert_eq!(refused(503).exit_code(), 1);
        assert_eq!(Failure::Unreachable(String::new()).exit_code(), 3);
    }
}
