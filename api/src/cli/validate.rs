//! `validate`: checks documents without a server.

use std::path::PathBuf;

use callboard_runtime::document::Fault;
use serde_json::json;

use super::{
    Failure, documents,
    output::{Output, harmless},
};

/// Flags of `validate`.
#[derive(clap::Args)]
pub struct ValidateArgs {
    /// Directories or files; `-` is standard input
    #[arg(required = true, value_name = "DIR|FILE")]
    paths: Vec<PathBuf>,
}

/// Prints every fault as `file:line:column: path: reason`.
pub fn validate(args: &ValidateArgs, output: &Output) -> Result<(), Failure> {
    let loaded = documents::read_paths(&args.paths)?;
    let mut faults = loaded.faults;
    faults.extend(documents::check(&loaded.documents, &documents::node_types()));
    report(&faults, loaded.documents.len(), output)
}

/// Prints faults, sorted by place. Fails when there are any.
pub fn report(faults: &[Fault], documents: usize, output: &Output) -> Result<(), Failure> {
    let mut faults: Vec<&Fault> = faults.iter().collect();
    faults.sort_by_key(|fault| (fault.file.as_deref(), fault.position));
    if output.is_json() {
        let shown: Vec<_> = faults.iter().map(|fault| documents::fault_json(fault)).collect();
        output.json(&json!({"valid": faults.is_empty(), "documents": documents, "faults": shown}));
    } else {
        for fault in &faults {
            output.line(harmless(&fault.to_string()));
        }
        if faults.is_empty() {
            output.line(output.paint.green(&format!("{}, no faults", count(documents, "document"))));
        } else {
            output.line(output.paint.red(&count(faults.len(), "fault")));
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(Failure::Told) }
}

/// `1 fault`, `2 faults`.
pub fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}
