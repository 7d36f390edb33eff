//! Files of a test process, removed when it has ended, and the processes it must not leave running.
//!
//! The test runner ends without running destructors of statics, and may itself be killed. So a small shell waits
//! for the end of its standard input, which comes when this process is gone however it went, and clears up.

use std::{
    fs,
    io::Write,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, OnceLock},
};

/// `$1` is the directory of the process. Servers are named by files in `pids`; a database by its own pid file.
const CLEAR_UP: &str = r#"
cat > /dev/null
for file in "$1"/pids/*; do [ -e "$file" ] && kill -9 "${file##*/}" 2> /dev/null; done
for round in 1 2 3 4 5 6 7 8 9 10; do
    found=
    for file in $(find "$1" -name postmaster.pid 2> /dev/null); do
        found=yes
        kill -INT "$(head -n 1 "$file" 2> /dev/null)" 2> /dev/null
    done
    [ -z "$found" ] && break
    sleep 1
done
rm -rf "$1"
"#;

struct Scratch {
    root: PathBuf,
    // Held open until the process ends.
    _clearing: Mutex<Child>,
}

fn scratch() -> &'static Scratch {
    static SCRATCH: OnceLock<Scratch> = OnceLock::new();
    SCRATCH.get_or_init(|| {
        let root = tempfile::Builder::new()
            .prefix("callboard-tests-")
            // Other accounts pass through: a database of root runs as one.
            .permissions(fs::Permissions::from_mode(0o711))
            .tempdir()
            .expect("a temporary directory can be made")
            .keep();
        let root = root.canonicalize().expect("it was just made");
        fs::create_dir(root.join("pids")).expect("a directory can be made in it");
        let clearing = Command::new("sh")
            .args(["-c", CLEAR_UP, "sh"])
            .arg(&root)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C ends the tests; this must outlive them.
            .process_group(0)
            .spawn()
            .expect("`sh` can be started");
        Scratch {
            root,
            _clearing: Mutex::new(clearing),
        }
    })
}

/// A new directory that any account may pass through and that is removed after the tests.
///
/// # Panics
/// When the disk refuses.
pub fn open_directory(name: &str) -> PathBuf {
    let directory = tempfile::Builder::new()
        .prefix(&format!("{name}-"))
        .permissions(fs::Permissions::from_mode(0o711))
        .tempdir_in(&scratch().root)
        .expect("a directory can be made");
    directory.keep()
}

/// Remembers a process that must not outlive the tests.
pub fn remember(pid: u32) {
    let path = pid_path(pid);
    let mut file = fs::File::create(&path).expect("a pid can be noted");
    file.write_all(b"\n").expect("a pid can be noted");
}

/// Forgets a process that has ended.
pub fn forget(pid: u32) {
    // It may have been forgotten before.
    let _ = fs::remove_file(pid_path(pid));
}

fn pid_path(pid: u32) -> PathBuf {
    scratch().root.join("pids").join(pid.to_string())
}

/// Removes a directory made here before its time: databases are large.
pub fn remove(directory: &Path) {
    // The clearing at the end has another try.
    let _ = fs::remove_dir_all(directory);
}

/// Whether this process may become another user.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// User and group of an account without rights, for tests that must not run as root.
pub fn account_that_is_not_root() -> (u32, u32) {
    (65534, 65534)
}
