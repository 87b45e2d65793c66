//! What `ls` shows of a path in an image.

use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::image::error::Error;
use crate::image::view::{View, shown};
use crate::layer::Timestamp;
use crate::tree::{Ino, NodeKind};

/// What `ls -l` says of a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// The whole path. Bytes that are no UTF-8 are shown as `\u{fffd}`.
    pub path: String,
    /// The last name; of the root `/`.
    pub name: String,
    /// The letter of `ls -l`: `d`, `-`, `l`, `c`, `b`, `p`.
    #[serde(rename = "type")]
    pub kind: char,
    /// Permission, set-id and sticky bits.
    pub mode: u32,
    /// Number of names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length in bytes.
    pub size: u64,
    /// Major and minor number of a device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rdev: Option<(u32, u32)>,
    /// Modification time, RFC 3339.
    pub mtime: String,
    /// What a symbolic link holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// A directory and what is in it, or a single name without one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listing {
    /// The directory; absent when a name that is no directory was asked for.
    pub directory: Option<String>,
    /// In the order of the names' bytes. All names: there are no hidden ones.
    pub entries: Vec<Listed>,
}

/// How to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// A symbolic link that was named is shown itself, as `ls -l` does.
    pub long: bool,
    /// Directories below as well.
    pub recursive: bool,
    /// A directory that was named is shown itself.
    pub directory: bool,
}

/// Lists `path`.
pub fn list(view: &View, path: &[u8], options: Options) -> Result<Vec<Listing>, Error> {
    let ino = view.find(path, !options.long && !options.directory)?;
    let named = with_slash(path);
    if options.directory || view.node(ino)?.kind != NodeKind::Directory {
        let entries = vec![listed(view, &named, ino)?];
        let directory = None;
        return Ok(vec![Listing { directory, entries }]);
    }
    let mut directories = vec![(named, ino)];
    let mut listings = Vec::new();
    while let Some((directory, ino)) = directories.pop() {
        let mut entries = Vec::new();
        let mut below = Vec::new();
        for (name, child) in view.tree().children(ino) {
            let path = joined(&directory, name);
            entries.push(listed(view, &path, child)?);
            if view.node(child)?.kind == NodeKind::Directory {
                below.push((path, child));
            }
        }
        let directory = Some(shown(&directory));
        listings.push(Listing { directory, entries });
        if options.recursive {
            directories.extend(below.into_iter().rev());
        }
    }
    Ok(listings)
}

fn with_slash(path: &[u8]) -> Vec<u8> {
    let trimmed = path.len() - path.iter().rev().take_while(|b| **b == b'/').count();
    match trimmed {
        0 => b"/".to_vec(),
        _ => path[..trimmed].to_vec(),
    }
}

pub(super) fn joined(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = directory.to_vec();
    if path.last().is_some_and(|b| *b != b'/') {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

fn listed(view: &View, path: &[u8], ino: Ino) -> Result<Listed, Error> {
    let node = view.node(ino)?;
    let name = path.rsplit(|b| *b == b'/').next().filter(|n| !n.is_empty());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let is_device = matches!(node.kind, NodeKind::CharDevice | NodeKind::BlockDevice);
    Ok(Listed {
        path: text(path),
        name: text(name.unwrap_or(b"/")),
        kind: letter(node.kind),
        mode: node.mode,
        nlink: node.nlink,
        uid: node.uid,
        gid: node.gid,
        size: node.size,
        rdev: is_device.then_some(node.rdev),
        mtime: time(node.mtime),
        target: view.tree().symlink_target(ino).map(text),
    })
}

/// The letter of `ls -l`.
pub fn letter(kind: NodeKind) -> char {
    match kind {
        NodeKind::Directory => 'd',
        NodeKind::Regular => '-',
        NodeKind::Symlink => 'l',
        NodeKind::CharDevice => 'c',
        NodeKind::BlockDevice => 'b',
        NodeKind::Fifo => 'p',
    }
}

/// A time as RFC 3339; one before 1970 as seconds.
pub fn time(at: Timestamp) -> String {
    let since = u64::try_from(at.seconds).ok().map(Duration::from_secs);
    // The last second that the format can say (year 9999).
    let since = since.filter(|s| s.as_secs() <= 253_402_300_799);
    match since.and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since)) {
        Some(time) => humantime::format_rfc3339_seconds(time).to_string(),
        None => at.seconds.to_string(),
    }
}

/// `drwxr-xr-x`, as `ls -l` writes it.
pub fn mode_letters(kind: char, mode: u32) -> String {
    let mut text = String::from(kind);
    for (shift, special, letters) in [(6, 0o4000, "sS"), (3, 0o2000, "sS"), (0, 0o1000, "tT")] {
        let bits = mode >> shift & 7;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, true) => char::from(letters.as_bytes()[0]),
            (false, true) => char::from(letters.as_bytes()[1]),
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_and_times_are_written_as_ls_does() {
        assert_eq!(mode_letters('d', 0o1777), "drwxrwxrwt");
        assert_eq!(mode_letters('-', 0o4755), "-rwsr-xr-x");
        assert_eq!(mode_letters('-', 0o6640), "-rwSr-S---");
        let time = |seconds| {
            time(Timestamp {
                seconds,
                nanoseconds: 0,
            })
        };
        assert_eq!(time(1_700_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(
            (time(-5), time(i64::MAX)),
            ("-5".into(), i64::MAX.to_string())
        );
    }

    #[test]
    fn paths_are_joined_and_trimmed() {
        assert_eq!(joined(b"/", b"a"), b"/a");
        assert_eq!(joined(b"/a", b"b"), b"/a/b");
        assert_eq!(
            (with_slash(b"//"), with_slash(b"/a//")),
            (b"/".to_vec(), b"/a".to_vec())
        );
    }
}
