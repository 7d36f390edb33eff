//! The one thing here that needs `unsafe`: code between `fork` and `exec`.

use std::process::Command;

/// Has the kernel send `SIGINT` (stop cleanly) to the child when the *thread* that spawns it ends, as it does when
/// this process is killed. Where the system has no such thing this does nothing, and the next start stops what is
/// left over.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
pub fn stop_with_parent(command: &mut Command) {
    use std::os::unix::process::CommandExt;

    use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};

    let parent = getpid();
    let between_fork_and_exec = move || {
        set_parent_process_death_signal(Some(Signal::INT))?;
        // The parent may have died before the line above.
        match getppid() == Some(parent) {
            true => Ok(()),
            false => Err(rustix::io::Errno::SRCH.into()),
        }
    };
    // SAFETY: after `fork` in a process with threads only async-signal-safe functions may be called. The closure
    // makes two system calls and neither allocates nor takes a lock. It runs after the change of user, which
    // would reset the setting.
    unsafe {
        command.pre_exec(between_fork_and_exec);
    }
}

/// See the Linux version.
#[cfg(not(target_os = "linux"))]
pub fn stop_with_parent(command: &mut Command) {
    let _ = command;
}
