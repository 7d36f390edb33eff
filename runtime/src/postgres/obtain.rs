//! Obtains Postgres binaries where none are installed, through package clients that the machine has.
//!
//! Everything is unpacked into a directory of ours without any right beyond writing there, tried as the account
//! that will run the database, and only then given its name. What fails leaves nothing behind but a reason.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Component, Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{Context, PostgresError, account::Account, binaries::Binaries, command, place::Place};

/// A step may download some ten megabytes.
const STEP_MAX: Duration = Duration::from_secs(300);
/// Debian packages whose names start so are needed only by what is switched off, and are large.
const UNNEEDED: [&str; 4] = ["libllvm", "libz3", "libperl", "libc6"];

/// Why a way of obtaining did not work.
type Reason = String;

/// Obtains binaries, of the given major version if there is one.
pub fn obtain(place: &Place, major: Option<u32>) -> Result<Binaries, PostgresError> {
    let dist = place.dist();
    fs::create_dir_all(&dist).context(|| format!("creating {}", dist.display()))?;
    open_for_reading(&dist);
    let mut tried = Vec::new();
    let ways: [(&str, fn(&Path, Option<u32>) -> Result<(), Reason>); 2] =
        [("npm", from_npm), ("apt", from_apt)];
    for (name, way) in ways {
        let (unpacked, kept) = (dist.join("new"), dist.join(name));
        let outcome = empty(&unpacked)
            .and_then(|()| way(&unpacked, major))
            .and_then(|()| settle(&unpacked, &kept, place.account(), major));
        match outcome {
            Ok(binaries) => {
                tracing::info!(major = binaries.major, from = name, "obtained PostgreSQL");
                return Ok(binaries);
            }
            Err(reason) => tried.push(format!("{name}: {reason}")),
        }
        if let Err(error) = fs::remove_dir_all(&unpacked) {
            tracing::debug!(%error, "a failed attempt was not removed");
        }
    }
    Err(PostgresError::NoBinaries {
        major,
        tried: tried.join("; "),
    })
}

/// What earlier starts obtained.
pub fn earlier(place: &Place) -> Vec<Binaries> {
    ["npm", "apt"]
        .iter()
        .filter_map(|name| probe_unpacked(&place.dist().join(name), place.account()))
        .collect()
}

fn empty(directory: &Path) -> Result<(), Reason> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => fs::create_dir(directory),
    }
    .map_err(|error| format!("{}: {error}", directory.display()))
}

/// Tries the binaries, then gives them their name.
fn settle(
    unpacked: &Path,
    kept: &Path,
    account: &Account,
    wanted: Option<u32>,
) -> Result<Binaries, Reason> {
    open_for_reading(unpacked);
    let binaries = probe_unpacked(unpacked, account).ok_or("what came does not run here")?;
    if wanted.is_some_and(|major| binaries.major != major) {
        return Err(format!("only PostgreSQL {} was to be had", binaries.major));
    }
    if kept.exists() {
        fs::remove_dir_all(kept).map_err(|error| error.to_string())?;
    }
    fs::rename(unpacked, kept).map_err(|error| error.to_string())?;
    probe_unpacked(kept, account)
        .ok_or_else(|| "what came does not run where it is kept".to_owned())
}

fn probe_unpacked(root: &Path, account: &Account) -> Option<Binaries> {
    let debian = root.join("usr/lib");
    let libraries = debian_libraries(&debian);
    let debian_folders = fs::read_dir(debian.join("postgresql"))
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| entry.path().join("bin"));
    std::iter::once(root.join("package/native/bin"))
        .chain(debian_folders)
        .filter(|folder| folder.is_dir())
        .find_map(|folder| {
            let libraries = folder
                .starts_with(&debian)
                .then(|| libraries.clone())
                .flatten();
            Binaries::probe(&folder, libraries, account)
        })
}

/// `usr/lib/<architecture>-linux-gnu`, where Debian's packages put libraries.
fn debian_libraries(usr_lib: &Path) -> Option<PathBuf> {
    fs::read_dir(usr_lib)
        .ok()?
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().to_string_lossy().contains("-linux-gnu"))
        .map(|entry| entry.path())
}

/// Another account will read what this one unpacked. Best effort: the trial that follows tells.
fn open_for_reading(path: &Path) {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return;
    };
    if metadata.is_symlink() {
        return;
    }
    let mode = metadata.permissions().mode();
    let wanted = if metadata.is_dir() || mode & 0o100 != 0 {
        0o755
    } else {
        0o644
    };
    if let Err(error) = fs::set_permissions(path, Permissions::from_mode(wanted)) {
        tracing::debug!(%error, path = %path.display(), "permissions were not set");
    }
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        open_for_reading(&entry.path());
    }
}

fn step(command: &mut Command) -> Result<String, Reason> {
    let name = command.get_program().to_string_lossy().into_owned();
    match command::run(command, STEP_MAX) {
        Ok(outcome) if outcome.ok => Ok(outcome.stdout),
        Ok(outcome) => Err(format!("{name} said: {}", outcome.complaint())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(format!("`{name}` is not installed"))
        }
        Err(error) => Err(format!("{name}: {error}")),
    }
}

/// The packages `@embedded-postgres/<platform>`: relocatable builds with their libraries.
fn from_npm(directory: &Path, major: Option<u32>) -> Result<(), Reason> {
    let npm = || {
        let mut command = Command::new("npm");
        command
            .current_dir(directory)
            .env("npm_config_cache", directory.join("cache"))
            .env("npm_config_update_notifier", "false");
        command
    };
    let package = format!("@embedded-postgres/{}", npm_platform()?);
    let package = match major {
        None => package,
        Some(major) => {
            let listed = step(npm().args(["view", &package, "versions", "--json"]))?;
            let version = newest_of(&listed, major)
                .ok_or_else(|| format!("{package} has no version {major}"))?;
            format!("{package}@{version}")
        }
    };
    step(npm().args(["pack", "--silent", "--ignore-scripts", &package]))?;
    let archive = file_with_extension(directory, "tgz").ok_or("npm left no archive")?;
    step(
        Command::new("tar")
            .current_dir(directory)
            .args(["--no-same-owner", "-xzf"])
            .arg(&archive),
    )?;
    restore_links(&directory.join("package"))?;
    for leftover in [archive, directory.join("cache")] {
        if let Err(error) = fs::remove_file(&leftover).or_else(|_| fs::remove_dir_all(&leftover)) {
            tracing::debug!(%error, path = %leftover.display(), "a download was not removed");
        }
    }
    Ok(())
}

fn npm_platform() -> Result<&'static str, Reason> {
    match (std::env::consts::OS, std::env::consts::ARCH) {
        ("linux", "x86_64") => Ok("linux-x64"),
        ("linux", "aarch64") => Ok("linux-arm64"),
        ("linux", "arm") => Ok("linux-arm"),
        ("linux", "x86") => Ok("linux-ia32"),
        ("macos", "x86_64") => Ok("darwin-x64"),
        ("macos", "aarch64") => Ok("darwin-arm64"),
        (os, arch) => Err(format!("there is no package for {os} on {arch}")),
    }
}

/// The last version of a major one in npm's list, which is in order.
fn newest_of(listed: &str, major: u32) -> Option<String> {
    let versions: Vec<String> = serde_json::from_str(listed).ok()?;
    let prefix = format!("{major}.");
    versions
        .into_iter()
        .rev()
        .find(|version| version.starts_with(&prefix))
}

/// Archives of npm hold no symbolic links; a list beside them says which there should be.
fn restore_links(package: &Path) -> Result<(), Reason> {
    #[derive(serde::Deserialize)]
    struct Link {
        source: PathBuf,
        target: PathBuf,
    }
    let list = package.join("native/pg-symlinks.json");
    let Ok(text) = fs::read(&list) else {
        return Ok(());
    };
    let links: Vec<Link> = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    for Link { source, target } in links {
        if !(stays_inside(&source) && stays_inside(&target)) {
            return Err(format!("a link leads outside: {}", target.display()));
        }
        let target = package.join(target);
        if target.symlink_metadata().is_err() {
            link(&package.join(source), &target)
                .map_err(|error| format!("{}: {error}", target.display()))?;
        }
    }
    Ok(())
}

/// A relative link, which stays right when the whole directory is renamed; else a copy.
fn link(source: &Path, target: &Path) -> std::io::Result<()> {
    match source.file_name() {
        Some(name) if source.parent() == target.parent() => symlink(name, target),
        _ => fs::copy(source, target).map(drop),
    }
}

fn stays_inside(path: &Path) -> bool {
    path.components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

fn file_with_extension(directory: &Path, extension: &str) -> Option<PathBuf> {
    fs::read_dir(directory)
        .ok()?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|found| found == extension))
}

/// Debian's own packages and the libraries they lack, unpacked without installing. Lists and archives are kept in
/// a directory of ours: the machine's own may be missing or out of date, and only root may refresh them.
fn from_apt(directory: &Path, major: Option<u32>) -> Result<(), Reason> {
    let state = directory.join("apt");
    for part in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(state.join(part)).map_err(|error| error.to_string())?;
    }
    let apt = |program: &str| {
        let mut command = Command::new(program);
        command
            .current_dir(directory)
            .env("LC_ALL", "C")
            .args([
                "-o".to_owned(),
                format!("Dir::State::lists={}", state.join("lists").display()),
            ])
            .args([
                "-o".to_owned(),
                format!("Dir::Cache={}", state.join("cache").display()),
            ])
            .args(["-o", "APT::Sandbox::User=", "-o", "Debug::NoLocking=1"]);
        command
    };
    step(apt("apt-get").arg("update"))?;
    let found = step(apt("apt-cache").args(["search", "--names-only", "^postgresql-[0-9]+$"]))?;
    let major = newest_package(&found, major).ok_or("its archive has no such version")?;
    let package = format!("postgresql-{major}");
    let plan =
        step(apt("apt-get").args(["--simulate", "--no-install-recommends", "install", &package]))?;
    step(apt("apt-get").arg("download").args(needed(&plan, &package)))?;
    while let Some(archive) = file_with_extension(directory, "deb") {
        step(Command::new("dpkg").arg("-x").arg(&archive).arg(directory))?;
        fs::remove_file(&archive).map_err(|error| error.to_string())?;
    }
    fs::remove_dir_all(&state).map_err(|error| error.to_string())
}

fn newest_package(found: &str, wanted: Option<u32>) -> Option<u32> {
    found
        .lines()
        .filter_map(|line| {
            line.split_whitespace()
                .next()?
                .strip_prefix("postgresql-")?
                .parse()
                .ok()
        })
        .filter(|major| wanted.is_none_or(|wanted| *major == wanted))
        .max()
}

/// The server and the libraries that an installation would bring. Nothing else of the plan is needed to run it.
fn needed(plan: &str, package: &str) -> Vec<String> {
    let mut names: Vec<String> = plan
        .lines()
        .filter_map(|line| line.strip_prefix("Inst ")?.split_whitespace().next())
        .filter(|name| {
            name.starts_with("lib") && !UNNEEDED.iter().any(|skip| name.starts_with(skip))
        })
        .map(str::to_owned)
        .collect();
    names.push(package.to_owned());
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_installation_plan_gives_the_libraries_it_lacks() {
        let plan = "NOTE: only a simulation\nInst perl (5)\nInst libpq5 (15.18 Debian [amd64])\n\
                    Inst libllvm14 (1:14)\nInst postgresql-15 (15.18)\nConf libpq5 (15.18)\n";
        assert_eq!(needed(plan, "postgresql-15"), ["libpq5", "postgresql-15"]);
    }

    #[test]
    fn the_newest_package_is_chosen_unless_data_demands_another() {
        let found = "postgresql-15 - the database\npostgresql-17 - the database\n";
        assert_eq!(newest_package(found, None), Some(17));
        assert_eq!(newest_package(found, Some(15)), Some(15));
        assert_eq!(newest_package(found, Some(16)), None);
        assert_eq!(
            newest_of(r#"["15.1.0-b","15.2.0-b","16.0.0"]"#, 15).as_deref(),
            Some("15.2.0-b")
        );
    }

    #[test]
    fn links_of_an_archive_stay_inside_it() {
        let package = tempfile::tempdir().unwrap();
        fs::create_dir_all(package.path().join("native/lib")).unwrap();
        fs::write(package.path().join("native/lib/liba.so.1.2"), "library").unwrap();
        let list = package.path().join("native/pg-symlinks.json");
        fs::write(
            &list,
            r#"[{"source":"native/lib/liba.so.1.2","target":"native/lib/liba.so.1"}]"#,
        )
        .unwrap();
        restore_links(package.path()).unwrap();
        assert_eq!(
            fs::read_to_string(package.path().join("native/lib/liba.so.1")).unwrap(),
            "library"
        );
        fs::write(
            &list,
            r#"[{"source":"native/lib/liba.so.1.2","target":"../../x"}]"#,
        )
        .unwrap();
        assert!(restore_links(package.path()).is_err());
    }
}
