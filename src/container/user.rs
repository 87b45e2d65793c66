//! Whom a process runs as: Docker's reading of `user[:group]` against the container's own
//! `/etc/passwd` and `/etc/group` (passwd(5), group(5)).

use crate::runtime::Identity;

/// Longest passwd or group file that is read.
pub const DATABASE_BYTES_MAX: u64 = 4 << 20;

/// The container's user database: the contents of its two files, empty when they are missing.
#[derive(Debug, Clone, Default)]
pub struct Database {
    /// `/etc/passwd`.
    pub passwd: Vec<u8>,
    /// `/etc/group`.
    pub group: Vec<u8>,
}

/// A user, and what belongs to them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The numbers.
    pub identity: Identity,
    /// Their directory; `/` when nobody says.
    pub home: String,
}

/// The image or the user names somebody who is not there.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// No such user.
    #[error(
        "there is no user `{0}` in the image's /etc/passwd; give a number, or a name that is there"
    )]
    User(String),
    /// No such group.
    #[error(
        "there is no group `{0}` in the image's /etc/group; give a number, or a name that is there"
    )]
    Group(String),
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: Vec<&'a str>,
}

impl Database {
    /// Reads `user[:group]`; nothing means user 0. `more` are further groups. Without a group the
    /// primary one of the user counts, and all that list them as a member.
    pub fn find(&self, wanted: &str, more: &[String]) -> Result<User, UserError> {
        let (user, group) = wanted.split_once(':').unwrap_or((wanted, ""));
        let user = if user.is_empty() { "0" } else { user };
        let number: Option<u32> = user.parse().ok();
        let entry = self.entries().find(|e| match number {
            Some(uid) => e.uid == uid,
            None => e.name == user,
        });
        let (uid, mut gid, home) = match (&entry, number) {
            (Some(e), _) => (e.uid, e.gid, e.home),
            (None, Some(uid)) => (uid, 0, ""),
            (None, None) => return Err(UserError::User(user.to_owned())),
        };
        let mut groups = Vec::new();
        if !group.is_empty() {
            gid = self.group(group)?;
        } else if let Some(entry) = &entry {
            let of = |g: &Group<'_>| g.members.contains(&entry.name);
            groups.extend(self.groups().filter(of).map(|g| g.gid));
        }
        for name in more {
            groups.push(self.group(name)?);
        }
        // The primary group is in the list as well, or dropping it would lift what it forbids.
        groups.insert(0, gid);
        let mut seen = std::collections::BTreeSet::new();
        groups.retain(|gid| seen.insert(*gid));
        let home = if home.is_empty() { "/" } else { home }.to_owned();
        let identity = Identity { uid, gid, groups };
        Ok(User { identity, home })
    }

    fn group(&self, wanted: &str) -> Result<u32, UserError> {
        if let Ok(gid) = wanted.parse() {
            return Ok(gid);
        }
        let found = self.groups().find(|g| g.name == wanted);
        found
            .map(|g| g.gid)
            .ok_or_else(|| UserError::Group(wanted.to_owned()))
    }

    fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        lines(&self.passwd).filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            let home = fields.nth(1).unwrap_or_default();
            Some(Entry {
                name,
                uid,
                gid,
                home,
            })
        })
    }

    fn groups(&self) -> impl Iterator<Item = Group<'_>> {
        lines(&self.group).filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let gid = fields.nth(1)?.parse().ok()?;
            let members = fields.next().unwrap_or_default().split(',').collect();
            Some(Group { name, gid, members })
        })
    }
}

fn lines(file: &[u8]) -> impl Iterator<Item = &str> {
    let lines = file.split(|b| *b == b'\n');
    lines.filter_map(|line| std::str::from_utf8(line).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database() -> Database {
        Database {
            passwd: b"root:x:0:0:root:/root:/bin/sh\nbad line\nweb:x:33:34::/srv:/bin/sh\n"
                .to_vec(),
            group: b"root:x:0:\nweb:x:34:\nlog:x:40:adm,web\nssl:x:41:web\n".to_vec(),
        }
    }

    fn find(wanted: &str) -> (u32, u32, Vec<u32>, String) {
        let user = database().find(wanted, &[]).unwrap();
        let Identity { uid, gid, groups } = user.identity;
        (uid, gid, groups, user.home)
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        assert_eq!(find(""), (0, 0, vec![0], "/root".into()));
        assert_eq!(find("web"), (33, 34, vec![34, 40, 41], "/srv".into()));
        assert_eq!(find("33"), find("web"));
        assert_eq!(find("web:log"), (33, 40, vec![40], "/srv".into()));
        assert_eq!(find("1000"), (1000, 0, vec![0], "/".into()));
        assert_eq!(find("1000:1001"), (1000, 1001, vec![1001], "/".into()));
        assert_eq!(find(":40"), (0, 40, vec![40], "/root".into()));
    }

    #[test]
    fn further_groups_are_added() {
        let user = database()
            .find("web:web", &["ssl".into(), "7".into()])
            .unwrap();
        assert_eq!(user.identity.groups, [34, 41, 7]);
    }

    #[test]
    fn who_is_not_there_is_refused() {
        let none = Database::default();
        assert_eq!(none.find("web", &[]), Err(UserError::User("web".into())));
        assert_eq!(
            database().find("web:x", &[]),
            Err(UserError::Group("x".into()))
        );
        assert_eq!(none.find("", &[]).unwrap().home, "/");
    }
}
