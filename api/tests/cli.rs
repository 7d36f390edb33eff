//! The program as a person or a script meets it, as far as no server is needed.

use std::{
    fs, io,
    io::{Read, Write},
    net::TcpListener,
    path::Path,
    process::{Command, Output, Stdio},
    thread,
};

use serde_json::Value;

type TestResult = Result<(), Box<dyn std::error::Error>>;

/// The program in an empty directory, with nothing of the caller's environment that it would read.
fn callboard(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_callboard"));
    command.current_dir(directory);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("CALLBOARD_") || name == "DATABASE_URL" || name == "NO_COLOR" {
            command.env_remove(name);
        }
    }
    command
}

fn run(directory: &Path, arguments: &[&str]) -> io::Result<Output> {
    callboard(directory).args(arguments).output()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const GOOD: &str = "\
kind: Workflow
metadata: { name: good }
spec:
  steps:
    - id: a
      uses: noop
";

const FAULTY: &str = "\
kind: Workflow
metadata: { name: faulty }
spec:
  steps:
    - id: a
      usess: noop
    - id: b
      uses: no.such.node
";

#[test]
fn validate_says_that_good_documents_are_good() -> TestResult {
    let directory = tempfile::tempdir()?;
    fs::write(directory.path().join("good.yaml"), GOOD)?;
    let output = run(directory.path(), &["validate", "good.yaml"])?;
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}{}",
        stdout(&output),
        stderr(&output)
    );
    assert_eq!(stdout(&output), "1 document, no faults\n");
    Ok(())
}

#[test]
fn validate_names_the_place_path_and_reason_of_every_fault() -> TestResult {
    let directory = tempfile::tempdir()?;
    fs::create_dir(directory.path().join("flows"))?;
    fs::write(directory.path().join("flows/faulty.yaml"), FAULTY)?;
    fs::write(directory.path().join("flows/good.yml"), GOOD)?;
    let output = run(directory.path(), &["validate", "flows"])?;
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(1), "{text}{}", stderr(&output));
    let line = |start: &str| text.lines().any(|line| line.starts_with(start));
    assert!(
        line("flows/faulty.yaml:6:7: spec.steps.0.usess: "),
        "{text}"
    );
    assert!(
        line("flows/faulty.yaml:8:13: spec.steps.1.uses: "),
        "{text}"
    );
    assert!(
        text.contains("uses"),
        "the closest known name is missing: {text}"
    );
    assert!(!text.contains("good.yml"), "{text}");
    Ok(())
}

#[test]
fn validate_can_be_read_by_a_program() -> TestResult {
    let directory = tempfile::tempdir()?;
    fs::write(directory.path().join("faulty.yaml"), FAULTY)?;
    let output = run(
        directory.path(),
        &["validate", "faulty.yaml", "--format", "json"],
    )?;
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_str(&stdout(&output))?;
    assert_eq!(report["valid"], false);
    let path = serde_json::json!(["spec", "steps", 0, "usess"]);
    let faults = report["faults"].as_array().ok_or("no list of faults")?;
    let fault = faults
        .iter()
        .find(|fault| fault["path"] == path)
        .ok_or("the fault is missing")?;
    assert_eq!(fault["file"], "faulty.yaml");
    assert_eq!((&fault["line"], &fault["column"]), (&6.into(), &7.into()));
    assert!(
        fault["message"].is_string() && fault["type"].is_string(),
        "{fault}"
    );
    Ok(())
}

#[test]
fn validate_reads_standard_input() -> TestResult {
    let directory = tempfile::tempdir()?;
    let mut child = callboard(directory.path())
        .args(["validate", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child
        .stdin
        .take()
        .ok_or("no standard input")?
        .write_all(b"kind: Nonsense\n")?;
    let output = child.wait_with_output()?;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stdout(&output).starts_with("<stdin>:1:"),
        "{}",
        stdout(&output)
    );
    Ok(())
}

#[test]
fn wrong_usage_exits_with_2_and_says_what_is_wrong() -> TestResult {
    let directory = tempfile::tempdir()?;
    for (arguments, expected) in [
        (&["no-such-command"][..], "no-such-command"),
        (&["validate"][..], "DIR|FILE"),
        (&["validate", "missing.yaml"][..], "missing.yaml"),
        (
            &["run", "x", "--input", "{", "--server", "http://127.0.0.1:1"][..],
            "--input is not JSON",
        ),
        (&["keys", "list", "--server", "ftp://x"][..], "--server"),
        (&["executions", "list", "--limit", "0"][..], "--limit"),
        (&["migrate"][..], "--database-url"),
    ] {
        let output = run(directory.path(), arguments)?;
        assert_eq!(
            output.status.code(),
            Some(2),
            "{arguments:?}: {}",
            stderr(&output)
        );
        assert!(
            stderr(&output).contains(expected),
            "{arguments:?}: {}",
            stderr(&output)
        );
        assert!(
            output.stdout.is_empty(),
            "{arguments:?}: {}",
            stdout(&output)
        );
    }
    Ok(())
}

#[test]
fn serve_lists_everything_that_is_wrong_before_it_starts_anything() -> TestResult {
    let directory = tempfile::tempdir()?;
    let output = callboard(directory.path())
        .args([
            "serve",
            "--listen",
            "0.0.0.0:0",
            "--no-auth",
            "--max-body",
            "much",
        ])
        .env("CALLBOARD_LEASE", "1s")
        .output()?;
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    for setting in ["--no-auth", "--max-body", "--lease"] {
        assert!(text.contains(setting), "{setting}: {text}");
    }
    assert_eq!(
        fs::read_dir(directory.path())?.count(),
        0,
        "something was written"
    );
    Ok(())
}

#[test]
fn serve_says_clearly_that_its_port_is_taken() -> TestResult {
    let directory = tempfile::tempdir()?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let output = run(directory.path(), &["serve", "--listen", &address])?;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("is in use"), "{}", stderr(&output));
    assert_eq!(
        fs::read_dir(directory.path())?.count(),
        0,
        "a database was begun"
    );
    Ok(())
}

#[test]
fn serve_refuses_faulty_documents_before_it_starts_anything() -> TestResult {
    let directory = tempfile::tempdir()?;
    fs::create_dir(directory.path().join("flows"))?;
    fs::write(directory.path().join("flows/faulty.yaml"), FAULTY)?;
    let output = run(
        directory.path(),
        &["serve", "--listen", "127.0.0.1:0", "--load", "flows"],
    )?;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("flows/faulty.yaml:6:7: "),
        "{}",
        stderr(&output)
    );
    assert_eq!(
        fs::read_dir(directory.path())?.count(),
        1,
        "something was written"
    );
    Ok(())
}

#[test]
fn a_server_that_is_not_there_exits_with_3() -> TestResult {
    let directory = tempfile::tempdir()?;
    let free = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let server = format!("http://{free}");
    fs::write(directory.path().join("good.yaml"), GOOD)?;
    for arguments in [
        &["executions", "list"][..],
        &["run", "x"],
        &["apply", "good.yaml"],
        &["chat", "x"],
        &["sessions", "list"],
        &["keys", "list"],
    ] {
        let output = callboard(directory.path())
            .args(arguments)
            .env("CALLBOARD_SERVER", &server)
            .stdin(Stdio::null())
            .output()?;
        assert_eq!(
            output.status.code(),
            Some(3),
            "{arguments:?}: {}",
            stderr(&output)
        );
        assert!(
            stderr(&output).contains(&server),
            "{arguments:?}: {}",
            stderr(&output)
        );
    }
    let output = run(
        directory.path(),
        &[
            "executions",
            "list",
            "--format",
            "json",
            "--server",
            &server,
        ],
    )?;
    let told: Value = serde_json::from_str(&stderr(&output))?;
    assert!(told["error"]["message"].is_string(), "{told}");
    Ok(())
}

/// Answers one request with this status and JSON, and gives the request back.
fn answer_once(
    status: &str,
    body: &str,
) -> io::Result<(String, thread::JoinHandle<io::Result<String>>)> {
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let served = thread::spawn(move || {
        let (mut socket, _) = listener.accept()?;
        let mut request = Vec::new();
        let mut piece = [0; 1024];
        while !request.windows(4).any(|window| window == b"\r\n\r\n") {
            let read = socket.read(&mut piece)?;
            if read == 0 {
                break;
            }
            request.extend_from_slice(&piece[..read]);
        }
        socket.write_all(answer.as_bytes())?;
        Ok(String::from_utf8_lossy(&request).to_lowercase())
    });
    Ok((address.to_string(), served))
}

#[test]
fn a_client_on_the_serving_machine_finds_the_server_and_its_key() -> TestResult {
    let directory = tempfile::tempdir()?;
    let (address, served) = answer_once("200 OK", r#"{"data": [], "next_cursor": null}"#)?;
    let data = directory.path().join(".callboard");
    fs::create_dir(&data)?;
    fs::write(
        data.join("server.json"),
        format!("{{\"url\": \"http://{address}\"}}"),
    )?;
    fs::write(data.join("admin.key"), "the-key\n")?;
    let output = run(directory.path(), &["executions", "list"])?;
    let request = served.join().map_err(|_| "the server thread failed")??;
    assert!(
        request.contains("authorization: bearer the-key"),
        "{request}"
    );
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).starts_with("ID"), "{}", stdout(&output));
    Ok(())
}

#[test]
fn a_refusal_exits_with_1_and_says_why() -> TestResult {
    let directory = tempfile::tempdir()?;
    let (address, served) = answer_once(
        "404 Not Found",
        r#"{"detail": "there is no such one", "code": "absent"}"#,
    )?;
    let output = run(
        directory.path(),
        &[
            "executions",
            "show",
            "x",
            "--server",
            &address,
            "--key",
            "k",
        ],
    )?;
    served.join().map_err(|_| "the server thread failed")??;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("there is no such one (404, absent)"),
        "{}",
        stderr(&output)
    );
    Ok(())
}

#[test]
fn completions_are_printed_for_every_shell() -> TestResult {
    let directory = tempfile::tempdir()?;
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(directory.path(), &["completions", shell])?;
        assert_eq!(output.status.code(), Some(0), "{shell}");
        assert!(stdout(&output).contains("executions"), "{shell}");
    }
    Ok(())
}

#[test]
fn help_and_version_are_there() -> TestResult {
    let directory = tempfile::tempdir()?;
    let help = run(directory.path(), &["--help"])?;
    assert_eq!(help.status.code(), Some(0));
    assert!(
        !stdout(&help).contains("example-service"),
        "hidden commands stay hidden"
    );
    let version = run(directory.path(), &["--version"])?;
    assert_eq!(
        stdout(&version),
        format!("callboard {}\n", env!("CARGO_PKG_VERSION"))
    );
    Ok(())
}
