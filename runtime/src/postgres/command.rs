//! Helper programs: run with a deadline, their last words kept.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

/// How much of what a program said is looked at.
const OUTPUT_BYTES_MAX: u64 = 1024 * 1024;

/// What a program said and how it ended.
#[derive(Debug)]
pub struct Outcome {
    /// Whether it ended well.
    pub ok: bool,
    /// Standard output, cut at a mebibyte.
    pub stdout: String,
    /// Standard error, cut likewise.
    pub stderr: String,
}

impl Outcome {
    /// The last line that says something, for a message.
    pub fn complaint(&self) -> String {
        last_line(&self.stderr)
            .or_else(|| last_line(&self.stdout))
            .unwrap_or_else(|| "it failed without a word".to_owned())
    }
}

/// Runs a program to its end, or kills it at the deadline. Output goes through files: a full pipe would block it.
pub fn run(command: &mut Command, deadline: Duration) -> std::io::Result<Outcome> {
    let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?)
        .spawn()?;
    let status = wait(&mut child, deadline)?;
    Ok(Outcome {
        ok: status.is_some_and(|status| status.success()),
        stdout: read_start(&mut stdout)?,
        stderr: match status {
            Some(_) => read_start(&mut stderr)?,
            None => format!("it took longer than {} s", deadline.as_secs()),
        },
    })
}

fn wait(
    child: &mut std::process::Child,
    deadline: Duration,
) -> std::io::Result<Option<ExitStatus>> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if started.elapsed() > deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn read_start(file: &mut File) -> std::io::Result<String> {
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn last_line(text: &str) -> Option<String> {
    text.lines()
        .rev()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .map(str::to_owned)
}

/// The last fatal message of a server's log, else its last line.
pub fn last_complaint(log: &Path) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(16 * 1024)))
        .ok()?;
    let mut bytes = Vec::new();
    file.take(16 * 1024).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    text.lines()
        .rev()
        .find_map(|line| {
            line.split_once("FATAL:")
                .map(|(_, reason)| reason.trim().to_owned())
        })
        .or_else(|| last_line(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_hangs_is_killed() {
        let outcome = run(Command::new("sleep").arg("600"), Duration::from_millis(20)).unwrap();
        assert!(!outcome.ok);
        assert!(outcome.complaint().contains("longer than"));
    }

    #[test]
    fn the_last_fatal_line_of_a_log_is_the_reason() {
        let log = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            log.path(),
            "LOG:  starting\n2026 [1] FATAL:  no room left\nLOG:  shut down\n",
        )
        .unwrap();
        assert_eq!(last_complaint(log.path()).as_deref(), Some("no room left"));
    }
}
