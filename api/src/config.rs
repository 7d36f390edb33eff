//! What `serve` is told: flags, environment, defaults. Read once, checked as a whole, then passed down as a value.

use std::{
    collections::BTreeMap,
    fmt,
    net::{SocketAddr, ToSocketAddrs},
    path::PathBuf,
    slice,
    time::Duration,
};

use callboard_runtime::{duration, outbound::OutboundPolicy};
use clap::{Args, ValueEnum, builder::FalseyValueParser};

/// The environment variable that gives the admin key instead of a generated one.
pub const ADMIN_KEY_ENV: &str = "CALLBOARD_ADMIN_KEY";
/// The shortest admin key that is accepted.
const ADMIN_KEY_CHARS_MIN: usize = 16;
/// The longest lease and the shortest, as the store accepts them.
const LEASE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// The longest time a stopping host may take over what is running.
const DRAIN_MAX: Duration = Duration::from_secs(3_600);
/// Request bodies may be limited to no less and no more than this many bytes.
const BODY_BYTES: (u64, u64) = (1 << 10, 1 << 30);
/// The most executions a host may be told to run at once.
const RUNNING_MAX: usize = 1_000_000;

/// Flags of `serve` as written. Nothing is checked here beyond what a flag is: [`Config::read`] finds all faults at once.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Address to listen on; port 0 takes a free one
    #[arg(
        long,
        env = "CALLBOARD_LISTEN",
        value_name = "ADDR",
        default_value = "127.0.0.1:8080"
    )]
    pub listen: String,
    /// Postgres to use (else `DATABASE_URL`); without one a private Postgres runs in the data directory
    #[arg(
        long,
        env = "CALLBOARD_DATABASE_URL",
        value_name = "URL",
        hide_env_values = true
    )]
    pub database_url: Option<String>,
    /// Directory or file of documents to apply at start; repeatable
    #[arg(
        long,
        env = "CALLBOARD_LOAD",
        value_name = "DIR",
        value_delimiter = ','
    )]
    pub load: Vec<PathBuf>,
    /// Label of this host, for placement; repeatable
    #[arg(
        long,
        env = "CALLBOARD_HOST_LABEL",
        value_name = "K=V",
        value_delimiter = ','
    )]
    pub host_label: Vec<String>,
    /// Ask for no keys. Refused unless the address is a loopback one
    #[arg(long, env = "CALLBOARD_NO_AUTH", value_parser = FalseyValueParser::new())]
    pub no_auth: bool,
    /// Network or host name that nodes, tools and providers may reach besides public addresses; repeatable
    #[arg(
        long,
        env = "CALLBOARD_ALLOW_OUTBOUND",
        value_name = "CIDR|HOST",
        value_delimiter = ','
    )]
    pub allow_outbound: Vec<String>,
    /// Environment variable that expressions may read as `$env.NAME`; repeatable
    #[arg(
        long,
        env = "CALLBOARD_ALLOW_ENV",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub allow_env: Vec<String>,
    /// Longest request body
    #[arg(
        long,
        env = "CALLBOARD_MAX_BODY",
        value_name = "SIZE",
        default_value = "16MiB"
    )]
    pub max_body: String,
    /// Executions that may run here at once; further starts are answered 429
    #[arg(
        long,
        env = "CALLBOARD_MAX_RUNNING",
        value_name = "N",
        default_value = "4096"
    )]
    pub max_running: String,
    /// How long a stopping host waits for what is running
    #[arg(
        long,
        env = "CALLBOARD_DRAIN_TIMEOUT",
        value_name = "TIME",
        default_value = "30s"
    )]
    pub drain_timeout: String,
    /// Form of the log on standard error
    #[arg(
        long,
        env = "CALLBOARD_LOG_FORMAT",
        value_name = "text|json",
        default_value = "text",
        hide_possible_values = true
    )]
    pub log_format: LogFormat,
    /// How long this host may write without renewing its lease
    #[arg(
        long,
        env = "CALLBOARD_LEASE",
        value_name = "TIME",
        default_value = "5s"
    )]
    pub lease: String,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object per line.
    Json,
}

/// A checked configuration. Holds secrets, so it cannot be printed.
#[derive(Clone)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The given Postgres; `None`: a private one.
    pub database_url: Option<String>,
    /// Where the private Postgres, the admin key and the server's address are kept.
    pub data_dir: PathBuf,
    /// Documents to apply at start.
    pub load: Vec<PathBuf>,
    /// Labels for placement.
    pub labels: BTreeMap<String, String>,
    /// Whether keys are asked for.
    pub auth: bool,
    /// The admin key, when the operator chose it.
    pub admin_key: Option<String>,
    /// Networks and host names that may be reached besides public addresses.
    pub allow_outbound: Vec<String>,
    /// Environment variables that expressions may read.
    pub allow_env: Vec<String>,
    /// Longest request body in bytes.
    pub body_bytes_max: usize,
    /// Executions that may run at once.
    pub running_max: usize,
    /// How long a stopping host waits for what is running.
    pub drain_timeout: Duration,
    /// How long this host may write without renewing.
    pub lease: Duration,
    /// Form of the log.
    pub log_format: LogFormat,
}

/// Everything that is wrong with a configuration, one sentence each. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl Config {
    /// Checks the flags; `env` gives the variables that are not flags (`DATABASE_URL`, the admin key). An empty value
    /// counts as absent, so that a variable can be switched off by emptying it. Finds all problems.
    pub fn read(
        args: &ServeArgs,
        data_dir: PathBuf,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Problems> {
        let mut faults = Faults::default();
        let env = |name: &str| env(name).filter(|value| !value.is_empty());
        let database_url = args
            .database_url
            .clone()
            .filter(|url| !url.is_empty())
            .or_else(|| env("DATABASE_URL"));
        let listen = faults.take("--listen", address(&args.listen));
        let load: Vec<_> = present(&args.load, |path| path.as_os_str().is_empty());
        let labels = present(&args.host_label, String::is_empty);
        let config = Self {
            listen: listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0))),
            labels: faults.all("--host-label", labels.iter().map(|text| label(text))),
            auth: !args.no_auth,
            admin_key: env(ADMIN_KEY_ENV),
            allow_outbound: present(&args.allow_outbound, String::is_empty),
            allow_env: present(&args.allow_env, String::is_empty),
            body_bytes_max: faults
                .take("--max-body", body_bytes(&args.max_body))
                .unwrap_or(0),
            running_max: faults
                .take("--max-running", running(&args.max_running))
                .unwrap_or(0),
            drain_timeout: faults
                .take(
                    "--drain-timeout",
                    within(&args.drain_timeout, Duration::ZERO, DRAIN_MAX),
                )
                .unwrap_or_default(),
            lease: faults
                .take("--lease", within(&args.lease, LEASE.0, LEASE.1))
                .unwrap_or_default(),
            log_format: args.log_format,
            database_url,
            data_dir,
            load,
        };
        config.check(listen.is_some(), &mut faults);
        if faults.0.is_empty() {
            Ok(config)
        } else {
            Err(Problems(faults.0))
        }
    }

    /// What can only be said of values that are read, and of values together.
    fn check(&self, listen_known: bool, faults: &mut Faults) {
        if !self.auth && listen_known && !self.listen.ip().is_loopback() {
            faults.add(
                "--no-auth",
                format!(
                    "only a loopback address may go without keys, and {} is none",
                    self.listen
                ),
            );
        }
        if let Some(url) = &self.database_url
            && !(url.starts_with("postgres://") || url.starts_with("postgresql://"))
        {
            faults.add(
                "--database-url",
                "expected a URL that begins with postgres://",
            );
        }
        for path in &self.load {
            if !path.exists() {
                faults.add(
                    "--load",
                    format!("there is no file or directory {}", path.display()),
                );
            }
        }
        for target in &self.allow_outbound {
            faults.take(
                "--allow-outbound",
                OutboundPolicy::parse(slice::from_ref(target)),
            );
        }
        for name in &self.allow_env {
            faults.take("--allow-env", variable_name(name));
        }
        if let Some(key) = &self.admin_key
            && (key.chars().count() < ADMIN_KEY_CHARS_MIN
                || !key.chars().all(|c| c.is_ascii_graphic()))
        {
            faults.add(
                ADMIN_KEY_ENV,
                format!("expected at least {ADMIN_KEY_CHARS_MIN} visible ASCII characters"),
            );
        }
    }
}

/// Collects what is wrong, each with the name of its setting.
#[derive(Default)]
struct Faults(Vec<String>);

impl Faults {
    fn add(&mut self, setting: &str, message: impl fmt::Display) {
        self.0.push(format!("{setting}: {message}"));
    }

    fn take<T>(&mut self, setting: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|message| self.add(setting, message)).ok()
    }

    fn all<T, C: FromIterator<T>>(
        &mut self,
        setting: &str,
        results: impl Iterator<Item = Result<T, String>>,
    ) -> C {
        results
            .filter_map(|result| self.take(setting, result))
            .collect()
    }
}

fn present<T: Clone>(values: &[T], is_empty: impl Fn(&T) -> bool) -> Vec<T> {
    values
        .iter()
        .filter(|value| !is_empty(value))
        .cloned()
        .collect()
}

/// `HOST:PORT`; of a host with several addresses the first one counts.
pub(crate) fn address(text: &str) -> Result<SocketAddr, String> {
    let expected = || format!("expected ADDRESS:PORT such as 127.0.0.1:8080, not `{text}`");
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    text.to_socket_addrs()
        .map_err(|_| expected())?
        .next()
        .ok_or_else(expected)
}

fn label(text: &str) -> Result<(String, String), String> {
    let is_word = |word: &str| {
        (1..=63).contains(&word.len())
            && word
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c))
    };
    match text.split_once('=') {
        Some((key, value)) if is_word(key) && is_word(value) => {
            Ok((key.to_owned(), value.to_owned()))
        }
        _ => Err(format!(
            "expected NAME=VALUE such as gpu=true, not `{text}`"
        )),
    }
}

/// Reads `512`, `64KiB`, `16MiB`, `1GiB`, or the decimal units `kB MB GB`. The error says what was expected.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let expected = || format!("expected a size such as 64KiB or 16MiB, not `{text}`");
    let trimmed = text.trim();
    let digits = trimmed
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(trimmed.len());
    let number: u64 = trimmed[..digits].parse().map_err(|_| expected())?;
    let unit = match trimmed[digits..].trim() {
        "" | "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(expected()),
    };
    number.checked_mul(unit).ok_or_else(expected)
}

fn body_bytes(text: &str) -> Result<usize, String> {
    let bytes = parse_size(text)?;
    if (BODY_BYTES.0..=BODY_BYTES.1).contains(&bytes) {
        usize::try_from(bytes).map_err(|_| "is too large for this machine".to_owned())
    } else {
        Err(format!("expected 1KiB to 1GiB, not `{text}`"))
    }
}

fn running(text: &str) -> Result<usize, String> {
    match text.trim().parse() {
        Ok(number) if (1..=RUNNING_MAX).contains(&number) => Ok(number),
        _ => Err(format!(
            "expected a number from 1 to {RUNNING_MAX}, not `{text}`"
        )),
    }
}

fn within(text: &str, min: Duration, max: Duration) -> Result<Duration, String> {
    let value = duration::parse(text)?;
    if (min..=max).contains(&value) {
        Ok(value)
    } else {
        Err(format!(
            "expected {}s to {}s, not `{text}`",
            min.as_secs(),
            max.as_secs()
        ))
    }
}

fn variable_name(text: &str) -> Result<(), String> {
    let mut chars = text.chars();
    let first = chars
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    if first && chars.all(|c| c.is_ascii_alphanumeric() || c == '_') {
        Ok(())
    } else {
        Err(format!(
            "expected the name of an environment variable, not `{text}`"
        ))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Wrapper {
        #[command(flatten)]
        serve: ServeArgs,
    }

    fn read(flags: &[&str], env: &[(&str, &str)]) -> Result<Config, Vec<String>> {
        let args = Wrapper::parse_from(std::iter::once("serve").chain(flags.iter().copied())).serve;
        let env: BTreeMap<_, _> = env.iter().copied().collect();
        Config::read(&args, PathBuf::from("data"), |name| {
            env.get(name).map(|value| (*value).to_owned())
        })
        .map_err(|problems| problems.0)
    }

    fn problems(flags: &[&str], env: &[(&str, &str)]) -> Vec<String> {
        read(flags, env).err().unwrap_or_default()
    }

    #[test]
    fn nothing_given_means_the_documented_defaults() {
        let config = read(&[], &[]).unwrap_or_else(|problems| panic!("{problems:?}"));
        assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
        assert_eq!(config.body_bytes_max, 16 << 20);
        assert_eq!(config.drain_timeout, Duration::from_secs(30));
        assert_eq!(config.lease, Duration::from_secs(5));
        assert!(config.auth);
        assert!(config.database_url.is_none() && config.admin_key.is_none());
        assert!(config.load.is_empty() && config.labels.is_empty());
    }

    #[test]
    fn all_problems_are_listed_at_once() {
        let found = problems(
            &[
                "--listen=nowhere",
                "--max-body=much",
                "--max-running=0",
                "--drain-timeout=30",
                "--lease=1s",
                "--host-label=gpu",
                "--allow-outbound=http://x",
                "--allow-env=A B",
                "--load=/no/such/place",
                "--database-url=mysql://x",
            ],
            &[(ADMIN_KEY_ENV, "short")],
        );
        for setting in [
            "--listen",
            "--max-body",
            "--max-running",
            "--drain-timeout",
            "--lease",
            "--host-label",
            "--allow-outbound",
            "--allow-env",
            "--load",
            "--database-url",
            ADMIN_KEY_ENV,
        ] {
            assert_eq!(
                found.iter().filter(|p| p.starts_with(setting)).count(),
                1,
                "{setting}: {found:?}"
            );
        }
    }

    #[test]
    fn no_auth_is_refused_unless_on_loopback() {
        assert!(read(&["--no-auth", "--listen=127.0.0.1:0"], &[]).is_ok());
        assert!(read(&["--no-auth", "--listen=[::1]:0"], &[]).is_ok());
        let found = problems(&["--no-auth", "--listen=0.0.0.0:8080"], &[]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("only a loopback address"), "{found:?}");
    }

    #[test]
    fn the_flag_wins_over_database_url_and_an_empty_one_counts_as_absent() {
        let ambient = [("DATABASE_URL", "postgres://ambient/db")];
        let url = |flags: &[&str], env: &[(&str, &str)]| {
            read(flags, env).ok().and_then(|c| c.database_url)
        };
        assert_eq!(url(&[], &ambient).as_deref(), Some("postgres://ambient/db"));
        assert_eq!(
            url(&["--database-url="], &ambient).as_deref(),
            Some("postgres://ambient/db")
        );
        assert_eq!(
            url(&["--database-url=postgresql://flag/db"], &ambient).as_deref(),
            Some("postgresql://flag/db")
        );
        assert_eq!(url(&[], &[("DATABASE_URL", "")]), None);
    }

    #[test]
    fn repeatable_flags_take_commas_too() {
        let config = read(
            &[
                "--allow-outbound=127.0.0.0/8,crm.internal",
                "--allow-outbound=::1",
                "--host-label=gpu=true,zone=a",
            ],
            &[],
        )
        .unwrap_or_else(|problems| panic!("{problems:?}"));
        assert_eq!(
            config.allow_outbound,
            ["127.0.0.0/8", "crm.internal", "::1"]
        );
        assert_eq!(config.labels.get("zone").map(String::as_str), Some("a"));
    }

    #[test]
    fn sizes_are_read_in_every_unit() {
        for (text, bytes) in [
            ("512", 512),
            ("1KiB", 1024),
            ("16MiB", 16 << 20),
            ("1GiB", 1 << 30),
            ("2 MB", 2_000_000),
            ("3kB", 3_000),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "MiB",
            "-1",
            "1.5MiB",
            "1TiB",
            "99999999999999999999",
            "18446744073709551615GiB",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
