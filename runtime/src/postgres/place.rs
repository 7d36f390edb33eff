//! Where the database's files are, who owns them, and the lock that keeps others off.

use std::{
    fs::{self, File, OpenOptions, Permissions, TryLockError},
    io::{Read, Seek, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{
    Context, PostgresError,
    account::{self, Account},
    cluster::Cluster,
};

/// A log larger than this is set aside at the next start; one older log is kept.
const LOG_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// In the data directory: where the database is, when it is elsewhere. Without it a database would seem lost
/// when the data directory moves or becomes reachable.
const POINTER: &str = "postgres.path";

/// The directory that holds everything of one private Postgres, locked for this process.
#[derive(Debug)]
pub struct Place {
    data_dir: PathBuf,
    root: PathBuf,
    account: Account,
    cluster: Cluster,
    // Unlocked when closed.
    _lock: File,
}

impl Place {
    /// Chooses the account and the directory, creates it and locks it.
    pub fn choose(data_dir: &Path, fallback_root: &Path) -> Result<Self, PostgresError> {
        create_directory(data_dir)?;
        let data_dir = data_dir
            .canonicalize()
            .context(|| format!("finding {}", data_dir.display()))?;
        let (root, account) = if account::is_root() {
            choose_as_root(&data_dir, fallback_root)?
        } else {
            (choose_as_user(&data_dir)?, Account::own())
        };
        let lock = lock(&root, &data_dir, &account)?;
        let mut cluster = Cluster::new(root.join("postgres"));
        cluster.shorten_socket(&account)?;
        Ok(Self {
            cluster,
            data_dir,
            root,
            account,
            _lock: lock,
        })
    }

    /// Who runs the database.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// The database's own directory.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Where a new database is made before it gets its name.
    pub fn new_cluster_directory(&self) -> PathBuf {
        self.root.join("postgres.new")
    }

    /// Where binaries go that had to be obtained.
    pub fn dist(&self) -> PathBuf {
        self.root.join("postgres-dist")
    }

    /// What the server writes to its standard error.
    pub fn log_file(&self) -> PathBuf {
        self.root.join("postgres.log")
    }

    /// Opens the log at its end.
    pub fn open_log(&self) -> Result<File, PostgresError> {
        let path = self.log_file();
        if fs::metadata(&path).is_ok_and(|metadata| metadata.len() > LOG_BYTES_MAX) {
            fs::rename(&path, path.with_extension("log.1"))
                .context(|| format!("setting {} aside", path.display()))?;
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .context(|| format!("opening {}", path.display()))?;
        self.account.give(&path)?;
        Ok(file)
    }

    /// A sentence for the user when the data is not where they would look.
    pub fn note(&self) -> Option<String> {
        (self.root != self.data_dir).then(|| {
            format!(
                "the database of {} is kept in {}, because the account `{}` that runs it cannot enter the former",
                self.data_dir.display(),
                self.root.display(),
                self.account.name
            )
        })
    }
}

/// Creates a directory that strangers may pass through (the database may run as one) but not list.
fn create_directory(path: &Path) -> Result<(), PostgresError> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path).context(|| format!("creating {}", path.display()))?;
    fs::set_permissions(path, Permissions::from_mode(0o711))
        .context(|| format!("setting the permissions of {}", path.display()))
}

fn choose_as_user(data_dir: &Path) -> Result<PathBuf, PostgresError> {
    let root = pointed_to(data_dir)?.unwrap_or_else(|| data_dir.to_owned());
    let directory = root.join("postgres");
    match fs::metadata(&directory) {
        Ok(metadata) if !Account::own().owns(&metadata) => Err(PostgresError::ForeignOwner {
            directory,
            owner: metadata.uid(),
        }),
        _ => Ok(root),
    }
}

fn choose_as_root(
    data_dir: &Path,
    fallback_root: &Path,
) -> Result<(PathBuf, Account), PostgresError> {
    if let Some(root) = pointed_to(data_dir)? {
        let account = owner_of_data(&root)?
            .or_else(|| Account::unprivileged().into_iter().next())
            .unwrap_or_else(Account::own);
        return reachable(&root, &account).map(|()| (root, account));
    }
    let candidates = match owner_of_data(data_dir)? {
        Some(owner) => vec![owner],
        None => Account::unprivileged(),
    };
    let mut first_failure = None;
    for account in candidates {
        match reachable(data_dir, &account) {
            Ok(()) => return Ok((data_dir.to_owned(), account)),
            Err(failure) => first_failure = first_failure.or(Some((account, failure))),
        }
    }
    let Some((account, failure)) = first_failure else {
        return Ok((data_dir.to_owned(), Account::own()));
    };
    // Data that is there already stays where it is: a second database elsewhere would look like a loss.
    if data_dir.join("postgres/PG_VERSION").exists() {
        return Err(failure);
    }
    match create_fallback(data_dir, fallback_root, &account) {
        Ok(root) => Ok((root, account)),
        Err(error) => {
            tracing::warn!(%error, "no other place for the database");
            Err(failure)
        }
    }
}

/// The owner of the database's files, else of the directory around them, unless that is root.
fn owner_of_data(root: &Path) -> Result<Option<Account>, PostgresError> {
    for path in [&root.join("postgres"), root] {
        match fs::metadata(path) {
            Ok(metadata) if metadata.uid() != 0 => {
                return Ok(Some(Account::other(metadata.uid(), metadata.gid())));
            }
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).context(|| format!("looking at {}", path.display())),
        }
    }
    Ok(None)
}

/// Whether the account can get to `root`. The directory itself is ours to open for passing through; what leads to
/// it is not.
fn reachable(root: &Path, account: &Account) -> Result<(), PostgresError> {
    if account.obstacle(root).as_deref() == Some(root) {
        let mode = fs::metadata(root)
            .context(|| format!("looking at {}", root.display()))?
            .mode();
        fs::set_permissions(root, Permissions::from_mode((mode & 0o7777) | 0o011))
            .context(|| format!("setting the permissions of {}", root.display()))?;
    }
    match account.obstacle(root) {
        None => Ok(()),
        Some(directory) => Err(PostgresError::Unreachable {
            account: account.name.clone(),
            directory,
        }),
    }
}

fn create_fallback(
    data_dir: &Path,
    fallback_root: &Path,
    account: &Account,
) -> Result<PathBuf, PostgresError> {
    create_directory(fallback_root)?;
    let digest = Sha256::digest(data_dir.as_os_str().as_encoded_bytes());
    let name: String = digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let root = fallback_root.join(name);
    create_directory(&root)?;
    let root = root
        .canonicalize()
        .context(|| format!("finding {}", root.display()))?;
    reachable(&root, account)?;
    let pointer = data_dir.join(POINTER);
    fs::write(&pointer, format!("{}\n", root.display()))
        .context(|| format!("writing {}", pointer.display()))?;
    Ok(root)
}

fn pointed_to(data_dir: &Path) -> Result<Option<PathBuf>, PostgresError> {
    let pointer = data_dir.join(POINTER);
    match fs::read_to_string(&pointer) {
        Ok(text) => {
            let root = PathBuf::from(text.trim());
            root.canonicalize()
                .map(Some)
                .context(|| format!("finding the database in {}", root.display()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(|| format!("reading {}", pointer.display())),
    }
}

/// Takes the lock, which the kernel gives up when this process ends, and leaves our pid in it for others to show.
fn lock(root: &Path, data_dir: &Path, account: &Account) -> Result<File, PostgresError> {
    let path = root.join("postgres.lock");
    let opening = || format!("locking {}", path.display());
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        // Whoever can read it can lock it.
        .mode(0o600)
        .open(&path)
        .context(opening)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let pid = file
                .read_to_string(&mut text)
                .ok()
                .and_then(|_| text.trim().parse().ok());
            return Err(PostgresError::Locked {
                directory: data_dir.to_owned(),
                pid,
            });
        }
        Err(TryLockError::Error(error)) => return Err(error).context(opening),
    }
    account.give(&path)?;
    file.set_len(0).context(opening)?;
    file.rewind().context(opening)?;
    write!(file, "{}", std::process::id()).context(opening)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_directory() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), Permissions::from_mode(0o711)).unwrap();
        directory
    }

    #[test]
    fn a_locked_place_is_refused_with_directory_and_pid() {
        let directory = open_directory();
        let place = Place::choose(directory.path(), directory.path()).unwrap();
        let refusal = Place::choose(directory.path(), directory.path())
            .unwrap_err()
            .to_string();
        assert!(
            refusal.contains(&format!("pid {}", std::process::id())),
            "{refusal}"
        );
        assert!(
            refusal.contains(&*directory.path().canonicalize().unwrap().to_string_lossy()),
            "{refusal}"
        );
        drop(place);
        Place::choose(directory.path(), directory.path()).unwrap();
    }

    #[test]
    fn a_closed_data_directory_of_root_is_opened_for_passing_through() {
        if !account::is_root() {
            return; // Only root ever runs the database as somebody else.
        }
        let directory = open_directory();
        let data_dir = directory.path().join("data");
        fs::create_dir(&data_dir).unwrap();
        fs::set_permissions(&data_dir, Permissions::from_mode(0o700)).unwrap();
        let place = Place::choose(&data_dir, directory.path()).unwrap();
        assert_eq!(place.note(), None);
        assert_eq!(fs::metadata(&data_dir).unwrap().mode() & 0o777, 0o711);
    }

    #[test]
    fn a_place_behind_a_closed_door_moves_and_stays_where_it_went() {
        if !account::is_root() {
            return; // As above.
        }
        let (closed, fallback) = (tempfile::tempdir().unwrap(), open_directory());
        fs::set_permissions(closed.path(), Permissions::from_mode(0o700)).unwrap();
        let data_dir = closed.path().join("data");
        let first = Place::choose(&data_dir, fallback.path()).unwrap();
        assert!(
            first
                .root
                .starts_with(fallback.path().canonicalize().unwrap())
        );
        assert!(first.note().is_some());
        let root = first.root.clone();
        drop(first);
        fs::set_permissions(closed.path(), Permissions::from_mode(0o711)).unwrap();
        assert_eq!(
            Place::choose(&data_dir, fallback.path()).unwrap().root,
            root
        );
    }
}
