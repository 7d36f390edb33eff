//! The binary itself. A test here also makes Cargo build it whenever the workspace is tested, and the scenarios in
//! `tests` need it.

use std::process::Command;

#[test]
fn the_binary_knows_its_name_and_version() {
    let output = Command::new(env!("CARGO_BIN_EXE_callboard"))
        .arg("--version")
        .output()
        .expect("the binary can be started");
    assert!(output.status.success());
    let expected = concat!("callboard ", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), expected);
}
