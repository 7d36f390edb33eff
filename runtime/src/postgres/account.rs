//! The account that runs the database: Postgres refuses to run as root.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
};

use super::{Context, PostgresError};

/// Who runs the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// For messages.
    pub name: String,
    /// User and group to change to; none when this process is an ordinary user and stays itself.
    switch: Option<(u32, u32)>,
}

/// Whether this process may change its user.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

impl Account {
    /// This process's own user.
    pub fn own() -> Self {
        Self {
            name: format!("user id {}", rustix::process::geteuid().as_raw()),
            switch: None,
        }
    }

    /// Another user. Only root may use it.
    pub fn other(uid: u32, gid: u32) -> Self {
        let name = users()
            .into_iter()
            .find(|user| user.uid == uid)
            .map_or_else(|| format!("user id {uid}"), |user| user.name);
        Self {
            name,
            switch: Some((uid, gid)),
        }
    }

    /// The accounts that may run the database on files of root, best first.
    pub fn unprivileged() -> Vec<Self> {
        let users = users();
        let mut accounts: Vec<Self> = ["postgres", "nobody"]
            .into_iter()
            .filter_map(|name| users.iter().find(|user| user.name == name))
            .map(|user| Self {
                name: user.name.clone(),
                switch: Some((user.uid, user.gid)),
            })
            .collect();
        if accounts.is_empty() {
            accounts.push(Self::other(65534, 65534));
        }
        accounts
    }

    /// Makes a command run as this account. The standard library drops supplementary groups along with root.
    pub fn apply(&self, command: &mut Command) {
        if let Some((uid, gid)) = self.switch {
            command.uid(uid).gid(gid);
        }
    }

    /// Hands a file or directory to this account.
    pub fn give(&self, path: &Path) -> Result<(), PostgresError> {
        match self.switch {
            Some((uid, gid)) => chown(path, Some(uid), Some(gid))
                .context(|| format!("giving {} to {}", path.display(), self.name)),
            None => Ok(()),
        }
    }

    /// Whether the account owns it.
    pub fn owns(&self, metadata: &fs::Metadata) -> bool {
        let uid = self
            .switch
            .map_or_else(|| rustix::process::geteuid().as_raw(), |(uid, _)| uid);
        metadata.uid() == uid
    }

    /// The first directory on the way to (and including) `path` that the account may not enter.
    pub fn obstacle(&self, path: &Path) -> Option<PathBuf> {
        let (uid, gid) = self.switch?;
        let mut way: Vec<&Path> = path.ancestors().collect();
        way.reverse();
        way.into_iter()
            .find(|directory| {
                fs::metadata(directory).map_or(true, |metadata| !may_enter(&metadata, uid, gid))
            })
            .map(Path::to_owned)
    }
}

fn may_enter(directory: &fs::Metadata, uid: u32, gid: u32) -> bool {
    let bit = if directory.uid() == uid {
        0o100
    } else if directory.gid() == gid {
        0o010
    } else {
        0o001
    };
    directory.mode() & bit != 0
}

struct User {
    name: String,
    uid: u32,
    gid: u32,
}

/// The accounts of the machine. Those that only a directory service knows are not needed here.
fn users() -> Vec<User> {
    parse_users(&fs::read_to_string("/etc/passwd").unwrap_or_default())
}

fn parse_users(passwd: &str) -> Vec<User> {
    passwd
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            Some(User {
                name: fields.next()?.to_owned(),
                uid: fields.nth(1)?.parse().ok()?,
                gid: fields.next()?.parse().ok()?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn accounts_are_read_from_the_password_file() {
        let users = parse_users(
            "root:x:0:0:root:/root:/bin/sh\n# comment\npostgres:x:101:104::/:/bin/sh\n",
        );
        assert_eq!(users.len(), 2);
        assert_eq!(
            (users[1].name.as_str(), users[1].uid, users[1].gid),
            ("postgres", 101, 104)
        );
    }

    #[test]
    fn the_first_closed_directory_on_the_way_is_named() {
        let root = tempfile::tempdir().unwrap();
        let outer = root.path().join("outer");
        let inner = outer.join("inner");
        fs::create_dir_all(&inner).unwrap();
        for (path, mode) in [(root.path(), 0o711), (&*outer, 0o700), (&*inner, 0o755)] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let stranger = Account {
            name: "stranger".to_owned(),
            switch: Some((4_000_000, 4_000_000)),
        };
        assert_eq!(stranger.obstacle(&inner), Some(outer.clone()));
        fs::set_permissions(&outer, fs::Permissions::from_mode(0o711)).unwrap();
        assert_eq!(stranger.obstacle(&inner), None);
    }
}
