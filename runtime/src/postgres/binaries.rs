//! Finds installed Postgres binaries.

use std::{
    cmp::Reverse,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{account::Account, command, place::Place};

/// Older ones are no longer maintained.
const MAJOR_MIN: u32 = 14;
const VERSION_MAX: Duration = Duration::from_secs(20);

/// Folders that packages install into. A `*` stands for every entry whose name starts and ends so.
const FOLDERS: [&str; 9] = [
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/libexec/postgresql*",
    "/opt/homebrew/opt/postgresql*/bin",
    "/usr/local/opt/postgresql*/bin",
    "/home/linuxbrew/.linuxbrew/opt/postgresql*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
    "/usr/local/pgsql/bin",
    "/usr/bin",
];

/// A folder with `postgres` and `initdb` of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binaries {
    /// The folder.
    pub folder: PathBuf,
    /// Of which major version.
    pub major: u32,
    /// Where their libraries are, when the system's loader would not find them.
    pub libraries: Option<PathBuf>,
}

impl Binaries {
    /// One of the programs, with an environment that holds nothing of ours: variables such as `PGDATA` would
    /// reach the server, and secrets have no business in it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.folder.join(program));
        command
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("LC_ALL", "C");
        if let Some(libraries) = &self.libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        command
    }

    /// Looks whether the account can run what is in this folder, and which version it is.
    pub fn probe(folder: &Path, libraries: Option<PathBuf>, account: &Account) -> Option<Self> {
        if !(folder.join("postgres").is_file() && folder.join("initdb").is_file()) {
            return None;
        }
        let mut binaries = Self {
            folder: folder.to_owned(),
            major: 0,
            libraries,
        };
        let mut version = binaries.command("postgres");
        version.arg("--version").current_dir("/");
        account.apply(&mut version);
        let outcome = command::run(&mut version, VERSION_MAX).ok()?;
        binaries.major = outcome.ok.then(|| major(&outcome.stdout)).flatten()?;
        (binaries.major >= MAJOR_MIN).then_some(binaries)
    }
}

/// The newest binaries, or those of the major version that existing data demands: installed ones first, then what
/// was obtained earlier.
pub fn find(place: &Place, wanted: Option<u32>) -> Option<Binaries> {
    let installed = installed_folders()
        .into_iter()
        .filter_map(|folder| Binaries::probe(&folder, None, place.account()));
    newest(installed, wanted).or_else(|| {
        let obtained = super::obtain::earlier(place).into_iter();
        newest(obtained, wanted)
    })
}

fn newest(found: impl Iterator<Item = Binaries>, wanted: Option<u32>) -> Option<Binaries> {
    let mut found: Vec<Binaries> = found
        .filter(|binaries| wanted.is_none_or(|major| binaries.major == major))
        .collect();
    // Stable: of one version, the first found stays first.
    found.sort_by_key(|binaries| Reverse(binaries.major));
    found.into_iter().next()
}

fn installed_folders() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(OsString::new);
    let mut folders: Vec<PathBuf> = Vec::new();
    let on_path = std::env::split_paths(&path).filter_map(|folder| {
        // A link in `PATH` leads to the folder that has `initdb` and the libraries too.
        Some(
            folder
                .join("postgres")
                .canonicalize()
                .ok()?
                .parent()?
                .to_owned(),
        )
    });
    let usual = FOLDERS.iter().flat_map(|pattern| expand(pattern));
    for folder in on_path.chain(usual) {
        if folder.join("postgres").is_file() && !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    folders
}

fn expand(pattern: &str) -> Vec<PathBuf> {
    let Some((before, after)) = pattern.split_once('*') else {
        return vec![PathBuf::from(pattern)];
    };
    let (parent, prefix) = before.rsplit_once('/').unwrap_or(("", before));
    let rest = after.trim_start_matches('/');
    let mut found: Vec<PathBuf> = fs::read_dir(parent)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path().join(rest))
        .collect();
    found.sort();
    found
}

/// `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`
fn major(version: &str) -> Option<u32> {
    let (_, number) = version.split_once("(PostgreSQL) ")?;
    let digits = number.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_packages_print_them() {
        assert_eq!(
            major("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"),
            Some(15)
        );
        assert_eq!(major("postgres (PostgreSQL) 19beta2\n"), Some(19));
        assert_eq!(major("sh: not found\n"), None);
    }

    #[test]
    fn the_newest_wins_unless_data_demands_another() {
        let binaries = |major| Binaries {
            folder: PathBuf::from(format!("/{major}")),
            major,
            libraries: None,
        };
        let found = [15, 18, 16].map(binaries);
        let choose = |wanted| newest(found.clone().into_iter(), wanted).map(|found| found.major);
        assert_eq!(choose(None), Some(18));
        assert_eq!(choose(Some(16)), Some(16));
        assert_eq!(choose(Some(17)), None);
    }

    #[test]
    fn folders_of_all_versions_are_looked_into() {
        let root = tempfile::tempdir().unwrap();
        for name in ["pgsql-16", "pgsql-17", "other"] {
            fs::create_dir_all(root.path().join(name).join("bin")).unwrap();
        }
        let found = expand(&format!("{}/pgsql-*/bin", root.path().display()));
        let expected = ["pgsql-16/bin", "pgsql-17/bin"].map(|end| root.path().join(end));
        assert_eq!(found, expected);
    }
}
