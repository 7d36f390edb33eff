//! The examples of the repository, inside the program, so that `demo` works wherever it is started.

use super::documents::Loaded;

/// Where the examples expect the example service.
pub const SERVICE: &str = "127.0.0.1:4010";

/// Every document of `examples/`: its name and text.
const FILES: [(&str, &str); 4] = [
    (
        "examples/scripted-model.yaml",
        include_str!("../../../examples/scripted-model.yaml"),
    ),
    (
        "examples/lead-intake.yaml",
        include_str!("../../../examples/lead-intake.yaml"),
    ),
    (
        "examples/order-quote.yaml",
        include_str!("../../../examples/order-quote.yaml"),
    ),
    (
        "examples/support-desk.yaml",
        include_str!("../../../examples/support-desk.yaml"),
    ),
];

/// The examples as documents that call the example service at `service`.
pub fn load(service: &str) -> Loaded {
    let mut loaded = Loaded::default();
    for (name, text) in FILES {
        loaded.add(&text.replace(SERVICE, service), name);
    }
    loaded.sort();
    loaded
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::cli::{Failure, documents};

    #[test]
    fn the_examples_have_no_faults() -> Result<(), Failure> {
        let nodes = documents::node_types()?;
        let loaded = load(SERVICE);
        let faults: Vec<String> = loaded
            .faults
            .into_iter()
            .chain(documents::check(&loaded.documents, &nodes))
            .map(|fault| fault.to_string())
            .collect();
        assert!(faults.is_empty(), "{}", faults.join("\n"));
        Ok(())
    }

    #[test]
    fn every_example_in_the_repository_is_in_the_program() {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
        let mut found: Vec<String> = fs::read_dir(directory)
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.ends_with(".yaml"))
            .map(|name| format!("examples/{name}"))
            .collect();
        found.sort();
        let mut embedded = FILES.map(|(name, _)| name.to_owned()).to_vec();
        embedded.sort();
        assert_eq!(found, embedded);
    }
}
