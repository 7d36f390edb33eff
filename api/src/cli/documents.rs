//! Documents in files: finding them, reading them with the places of their parts, checking them without a server.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use callboard_runtime::{
    document::{self, Document, Fault},
    node::NodeRegistry,
    outbound::{OutboundClient, OutboundPolicy},
};
use serde_json::{Value, json};

use super::Failure;

/// The most files that one command reads.
const FILES_MAX: usize = 10_000;
/// The largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// How deep directories are followed; a loop of links ends here.
const DEPTH_MAX: usize = 16;
/// Kinds in the order in which they can be applied, and where the API keeps them.
const KINDS: [(&str, &str); 3] = [
    ("Provider", "providers"),
    ("Agent", "agents"),
    ("Workflow", "workflows"),
];

/// What files hold.
#[derive(Debug, Default)]
pub struct Loaded {
    /// In the order in which they can be applied. While there are `faults`, what could be read in spite of them.
    pub documents: Vec<Document>,
    /// Faults of form.
    pub faults: Vec<Fault>,
}

/// Reads files and directories; `-` is standard input. Only reading itself can fail: faults in documents are a result.
pub fn read_paths(paths: &[PathBuf]) -> Result<Loaded, Failure> {
    let mut loaded = Loaded::default();
    for file in find_files(paths)? {
        let (text, name) = if file == Path::new("-") {
            (read_stdin()?, "<stdin>".to_owned())
        } else {
            (read_file(&file)?, file.display().to_string())
        };
        loaded.add(&text, &name);
    }
    if loaded.documents.is_empty() && loaded.faults.is_empty() {
        return Err(Failure::Usage(
            "there are no documents in what was named".to_owned(),
        ));
    }
    loaded.sort();
    Ok(loaded)
}

impl Loaded {
    /// Reads the text of one file.
    pub fn add(&mut self, text: &str, file: &str) {
        let (documents, faults) = document::read_all(text, Some(file));
        self.documents.extend(documents);
        self.faults.extend(faults);
    }

    /// Puts documents in the order in which they can be applied.
    pub fn sort(&mut self) {
        self.documents.sort_by_key(|document| rank(&document.kind));
    }
}

fn rank(kind: &str) -> usize {
    KINDS
        .iter()
        .position(|(known, _)| *known == kind)
        .unwrap_or(KINDS.len())
}

/// Where the API keeps documents of a kind, such as `workflows`.
pub fn collection(kind: &str) -> Option<&'static str> {
    KINDS
        .iter()
        .find(|(known, _)| *known == kind)
        .map(|(_, collection)| *collection)
}

fn find_files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            let before = files.len();
            walk(path, 0, &mut files)?;
            if files.len() == before {
                return Err(Failure::Usage(format!(
                    "there is no .yaml, .yml or .json file in {}",
                    path.display()
                )));
            }
        } else if path == Path::new("-") || path.exists() {
            files.push(path.clone());
        } else {
            return Err(Failure::Usage(format!(
                "there is no file or directory {}",
                path.display()
            )));
        }
    }
    Ok(files)
}

/// Adds the documents below a directory by name, hidden ones left out.
fn walk(directory: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<(), Failure> {
    if depth >= DEPTH_MAX {
        return Err(Failure::Failed(format!(
            "{} is nested too deep",
            directory.display()
        )));
    }
    let unreadable =
        |error| Failure::Failed(format!("cannot read {}: {error}", directory.display()));
    let entries = fs::read_dir(directory).map_err(unreadable)?;
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| Ok(entry.map_err(unreadable)?.path()))
        .collect::<Result<_, Failure>>()?;
    paths.sort();
    for path in paths {
        let hidden = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with('.'));
        let extension = path.extension().and_then(|extension| extension.to_str());
        if hidden {
            continue;
        } else if path.is_dir() {
            walk(&path, depth + 1, files)?;
        } else if matches!(extension, Some("yaml" | "yml" | "json")) {
            if files.len() >= FILES_MAX {
                return Err(Failure::Failed(format!(
                    "there are more than {FILES_MAX} files"
                )));
            }
            files.push(path);
        }
    }
    Ok(())
}

fn read_file(path: &Path) -> Result<String, Failure> {
    let failed = |error| Failure::Failed(format!("cannot read {}: {error}", path.display()));
    read_text(
        fs::File::open(path).map_err(failed)?,
        &path.display().to_string(),
    )
}

fn read_stdin() -> Result<String, Failure> {
    read_text(std::io::stdin().lock(), "standard input")
}

/// Reads text of bounded length; `name` is for the failure.
pub fn read_text(source: impl Read, name: &str) -> Result<String, Failure> {
    let mut text = String::new();
    let read = source.take(FILE_BYTES_MAX + 1).read_to_string(&mut text);
    match read {
        Ok(bytes) if bytes as u64 > FILE_BYTES_MAX => Err(Failure::Failed(format!(
            "{name} is longer than {} MiB",
            FILE_BYTES_MAX >> 20
        ))),
        Ok(_) => Ok(text),
        Err(error) => Err(Failure::Failed(format!("cannot read {name}: {error}"))),
    }
}

/// The node types that this program knows, for checks without a server: nothing is ever run with them.
pub fn node_types() -> Result<NodeRegistry, Failure> {
    let mut nodes = NodeRegistry::default();
    let outbound = OutboundClient::new(OutboundPolicy::default()).map_err(Failure::Failed)?;
    callboard_nodes::register(&mut nodes, outbound);
    let _ = callboard_agents::node::register(&mut nodes);
    Ok(nodes)
}

/// What is wrong with documents as far as that can be said without a server.
pub fn check(documents: &[Document], nodes: &NodeRegistry) -> Vec<Fault> {
    let mut faults = document::check_all(documents, nodes);
    faults.extend(
        documents
            .iter()
            .flat_map(|document| check_one(document, nodes)),
    );
    faults
}

/// Faults of kinds that [`document::check_all`] leaves to those who own them.
fn check_one(document: &Document, nodes: &NodeRegistry) -> Vec<Fault> {
    match document.kind.as_str() {
        "Agent" => callboard_agents::model::agent::compile(document, nodes).err(),
        "Provider" => callboard_agents::model::provider::compile(document).err(),
        _ => None,
    }
    .unwrap_or_default()
}

/// A fault as `--format json` shows it.
pub fn fault_json(fault: &Fault) -> Value {
    json!({
        "file": fault.file,
        "line": fault.position.map(|(line, _)| line),
        "column": fault.position.map(|(_, column)| column),
        // As in the `loc` of a 422, which has `body` before it.
        "path": document::loc(&fault.path).split_off(1),
        "message": fault.message,
        "type": fault.kind,
    })
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, sync::Arc};

    use callboard_runtime::document::Source;

    use super::*;

    fn named(kind: &str, name: &str, line: usize) -> Document {
        Document {
            kind: kind.to_owned(),
            name: name.to_owned(),
            body: json!({}),
            source: Arc::new(Source {
                file: Some("a.yaml".to_owned()),
                positions: HashMap::from([("metadata/name".to_owned(), (line, 3))]),
            }),
        }
    }

    #[test]
    fn providers_come_before_agents_and_these_before_workflows() {
        let mut loaded = Loaded {
            documents: vec![
                named("Workflow", "w", 1),
                named("Agent", "a", 2),
                named("Provider", "p", 3),
            ],
            faults: vec![],
        };
        loaded.sort();
        let kinds: Vec<&str> = loaded
            .documents
            .iter()
            .map(|document| document.kind.as_str())
            .collect();
        assert_eq!(kinds, ["Provider", "Agent", "Workflow"]);
    }
}
