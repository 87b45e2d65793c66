//! Entries by a word, and their plain spelling.

use crate::support::model::{Entry, Kind, Meta};
use crate::support::raw_tar::{self, GID, LINK, MAJOR, MINOR, MODE, MTIME, Member, UID};
use crate::support::seen::Xattrs;

/// When an entry was changed unless it says otherwise.
const USUAL_TIME: i64 = 1_700_000_000;
/// The largest number of an owner, and of a time, that fits the octal field.
const OWNER_MAX: u32 = 0o7_777_777;
const TIME_MAX: i64 = 0o77_777_777_777;

fn entry(path: impl AsRef<[u8]>, kind: Kind, mode: u32) -> Entry {
    let meta = Meta {
        mode,
        uid: 0,
        gid: 0,
        mtime: (USUAL_TIME, 0),
        xattrs: Xattrs::new(),
    };
    let path = path.as_ref().to_vec();
    Entry { path, kind, meta }
}

pub(super) fn dir(path: impl AsRef<[u8]>) -> Entry {
    entry(path, Kind::Directory, 0o755)
}

pub(super) fn file(path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Entry {
    let content = content.as_ref().to_vec();
    let pieces = vec![(0, content)];
    entry(path, Kind::File(pieces[0].1.len() as u64, pieces), 0o644)
}

/// A file with holes.
pub(super) fn holey(path: &str, size: u64, pieces: &[(u64, Vec<u8>)]) -> Entry {
    entry(path, Kind::File(size, pieces.to_vec()), 0o644)
}

pub(super) fn symlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
    entry(path, Kind::Symlink(target.as_ref().to_vec()), 0o777)
}

pub(super) fn link(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
    entry(path, Kind::Link(target.as_ref().to_vec()), 0o644)
}

pub(super) fn char_device(path: &str, major: u32, minor: u32) -> Entry {
    entry(path, Kind::Char(major, minor), 0o600)
}

pub(super) fn block_device(path: &str, major: u32, minor: u32) -> Entry {
    entry(path, Kind::Block(major, minor), 0o660)
}

pub(super) fn fifo(path: &str) -> Entry {
    entry(path, Kind::Fifo, 0o622)
}

impl Entry {
    pub(super) fn mode(mut self, mode: u32) -> Entry {
        self.meta.mode = mode;
        self
    }

    pub(super) fn own(mut self, uid: u32, gid: u32) -> Entry {
        (self.meta.uid, self.meta.gid) = (uid, gid);
        self
    }

    pub(super) fn at(mut self, seconds: i64, nanoseconds: u32) -> Entry {
        self.meta.mtime = (seconds, nanoseconds);
        self
    }

    pub(super) fn xattr(mut self, name: &str, value: &[u8]) -> Entry {
        let name = name.as_bytes().to_vec();
        self.meta.xattrs.insert(name, value.to_vec());
        self
    }

    /// The content, the holes left out.
    pub(super) fn data(&self) -> Vec<u8> {
        match &self.kind {
            Kind::File(_, pieces) => pieces.iter().flat_map(|(_, p)| p.clone()).collect(),
            _ => Vec::new(),
        }
    }

    /// Offset and length of each piece.
    pub(super) fn map(&self) -> Vec<(u64, u64)> {
        let pieces = match &self.kind {
            Kind::File(_, pieces) => &pieces[..],
            _ => &[],
        };
        pieces.iter().map(|(at, p)| (*at, p.len() as u64)).collect()
    }

    /// The header with all that fits it, and the data.
    pub(super) fn head(&self) -> Member {
        self.head_named(&self.path)
    }

    /// The same with another name in the header.
    pub(super) fn head_named(&self, name: &[u8]) -> Member {
        let mut name = name[..name.len().min(100)].to_vec();
        let (kind, target, device) = match &self.kind {
            Kind::Directory => (b'5', None, None),
            Kind::File(..) => (b'0', None, None),
            Kind::Symlink(target) => (b'2', Some(target), None),
            Kind::Link(target) => (b'1', Some(target), None),
            Kind::Char(major, minor) => (b'3', None, Some((*major, *minor))),
            Kind::Block(major, minor) => (b'4', None, Some((*major, *minor))),
            Kind::Fifo => (b'6', None, None),
        };
        if kind == b'5' && name.len() < 100 && !name.ends_with(b"/") {
            name.push(b'/');
        }
        let mut head = Member::new(kind, &name).octal(MODE, self.meta.mode.into());
        if let Some(target) = target {
            head = head.text(LINK, &target[..target.len().min(100)]);
        }
        if let Some((major, minor)) = device {
            head = head.octal(MAJOR, major.into()).octal(MINOR, minor.into());
        }
        for (field, owner) in [(UID, self.meta.uid), (GID, self.meta.gid)] {
            head = head.octal(field, owner.min(OWNER_MAX).into());
        }
        let seconds = self.meta.mtime.0.clamp(0, TIME_MAX);
        head = head.octal(MTIME, seconds.cast_unsigned());
        head.data(&self.data())
    }

    /// Ustar, and a PAX header for what that cannot hold.
    pub(super) fn plain(&self) -> Vec<u8> {
        let mut records: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let mut record = |key: &str, value: &[u8]| records.push((key.into(), value.to_vec()));
        if self.path.len() >= 100 {
            record("path", &self.path);
        }
        if let Kind::Symlink(target) | Kind::Link(target) = &self.kind
            && target.len() > 100
        {
            record("linkpath", target);
        }
        for (key, owner) in [("uid", self.meta.uid), ("gid", self.meta.gid)] {
            if owner > OWNER_MAX {
                record(key, owner.to_string().as_bytes());
            }
        }
        let (seconds, nanoseconds) = self.meta.mtime;
        if nanoseconds > 0 || !(0..=TIME_MAX).contains(&seconds) {
            record("mtime", decimal_time(seconds, nanoseconds).as_bytes());
        }
        for (name, value) in &self.meta.xattrs {
            let key = [b"SCHILY.xattr.", &name[..]].concat();
            records.push((key, value.clone()));
        }
        let head = self.head().bytes();
        if records.is_empty() {
            return head;
        }
        let records: Vec<_> = records.iter().map(|(k, v)| (&k[..], &v[..])).collect();
        [raw_tar::pax(b'x', &records), head].concat()
    }
}

/// As PAX has it: the fraction counts away from 0, so -2 s + 0.75 s is -1.25.
fn decimal_time(seconds: i64, nanoseconds: u32) -> String {
    if seconds < 0 && nanoseconds > 0 {
        return format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds);
    }
    format!("{seconds}.{nanoseconds:09}")
}
