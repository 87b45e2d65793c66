//! What a tree of files looks like to a program, node by node, and how two of them differ.

use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Write as _};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rsmount::oci::Digest;

/// Longer files are compared by their length only; a test reads them where it knows what they hold.
pub const SUMMED_BYTES_MAX: u64 = 64 << 20;

/// Nodes by their path without a leading slash; the root is the empty path.
pub type Seen = BTreeMap<Vec<u8>, Node>;

/// Extended attributes by name.
pub type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// One name in a tree, and all that stat(2) and its kin tell of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// As `ls -l` begins its lines: `-`, `d`, `l`, `c`, `b`, `p`.
    pub kind: char,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
    pub nlink: u64,
    /// Not of directories, where it means nothing.
    pub size: Option<u64>,
    /// Of devices: major and minor.
    pub rdev: Option<(u32, u32)>,
    /// Of symbolic links.
    pub target: Option<Vec<u8>>,
    /// Of regular files up to [`SUMMED_BYTES_MAX`].
    pub sum: Option<Digest>,
    pub xattrs: Xattrs,
    /// The first path (by bytes) of the same inode; not of directories.
    pub first_path: Option<Vec<u8>>,
}

impl Node {
    /// Everything by name, as text.
    fn fields(&self) -> Vec<(&'static str, String)> {
        let xattrs = self.xattrs.iter().fold(String::new(), |mut all, (n, v)| {
            let _ = write!(all, "{}={} ", shown(n), shown(v));
            all
        });
        let bytes = |b: &Option<Vec<u8>>| b.as_ref().map(|b| shown(b));
        vec![
            ("type", self.kind.to_string()),
            ("mode", format!("{:04o}", self.mode)),
            ("uid", self.uid.to_string()),
            ("gid", self.gid.to_string()),
            ("mtime", format!("{}+{:09}", self.mtime.0, self.mtime.1)),
            ("nlink", self.nlink.to_string()),
            ("size", format!("{:?}", self.size)),
            ("device", format!("{:?}", self.rdev)),
            ("target", format!("{:?}", bytes(&self.target))),
            (
                "content",
                format!("{:?}", self.sum.as_ref().map(Digest::to_string)),
            ),
            ("xattrs", xattrs),
            ("inode", format!("{:?}", bytes(&self.first_path))),
        ]
    }
}

/// Bytes on one line.
pub fn shown(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// One field of one path that is not the same in two trees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub path: Vec<u8>,
    /// As in [`Node`], or `entry` when one of them lacks the path.
    pub field: &'static str,
    pub left: String,
    pub right: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, field) = (shown(&self.path), self.field);
        write!(f, "/{path}: {field}: {} != {}", self.left, self.right)
    }
}

/// All differences, by path.
pub fn differences(left: &Seen, right: &Seen) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut differs = |path: &[u8], field, left: String, right: String| {
        found.push(Difference {
            path: path.to_vec(),
            field,
            left,
            right,
        });
    };
    for (path, node) in left {
        let Some(other) = right.get(path) else {
            differs(path, "entry", "there".into(), "missing".into());
            continue;
        };
        for ((field, l), (_, r)) in node.fields().into_iter().zip(other.fields()) {
            if l != r {
                differs(path, field, l, r);
            }
        }
    }
    for path in right.keys().filter(|p| !left.contains_key(*p)) {
        differs(path, "entry", "missing".into(), "there".into());
    }
    found
}

/// Fails with every difference, a line each.
pub fn assert_same(what: &str, expected: &Seen, found: &Seen) {
    let all = differences(expected, found);
    let lines: Vec<_> = all.iter().map(Difference::to_string).collect();
    assert!(all.is_empty(), "{what}:\n{}", lines.join("\n"));
}

/// Looks at a whole tree.
pub fn look(root: &Path) -> Seen {
    let mut inodes = HashMap::new();
    let mut seen = Seen::new();
    let mut waiting = vec![Vec::new()];
    while let Some(path) = waiting.pop() {
        let at = absolute(root, &path);
        let (node, ino) = node(&at);
        if node.kind == 'd' {
            for entry in std::fs::read_dir(&at).unwrap() {
                let name = entry.unwrap().file_name().into_vec();
                waiting.push(match path.is_empty() {
                    true => name,
                    false => [&path[..], b"/", &name].concat(),
                });
            }
        }
        inodes.insert(path.clone(), ino);
        seen.insert(path, node);
    }
    let mut first = HashMap::new();
    for (path, node) in seen.iter_mut().filter(|(_, node)| node.kind != 'd') {
        let known = first.entry(inodes[path]).or_insert_with(|| path.clone());
        node.first_path = Some(known.clone());
    }
    seen
}

/// `path` below `root`; the root itself without a slash at its end.
pub fn absolute(root: &Path, path: &[u8]) -> PathBuf {
    match path {
        b"" => root.to_owned(),
        _ => root.join(std::ffi::OsStr::from_bytes(path)),
    }
}

fn node(at: &Path) -> (Node, (u64, u64)) {
    let meta = at.symlink_metadata().unwrap();
    let kind = match meta.file_type() {
        t if t.is_dir() => 'd',
        t if t.is_file() => '-',
        t if t.is_symlink() => 'l',
        t if t.is_char_device() => 'c',
        t if t.is_block_device() => 'b',
        t if t.is_fifo() => 'p',
        other => panic!("{}: {other:?}", at.display()),
    };
    let rdev = meta.rdev();
    let sum = (kind == '-' && meta.len() <= SUMMED_BYTES_MAX).then(|| {
        let bytes = std::fs::read(at).unwrap_or_else(|e| panic!("{}: {e}", at.display()));
        Digest::of(&bytes)
    });
    let node = Node {
        kind,
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        mtime: (meta.mtime(), u32::try_from(meta.mtime_nsec()).unwrap()),
        nlink: meta.nlink(),
        size: (kind != 'd').then_some(meta.len()),
        rdev: matches!(kind, 'c' | 'b').then(|| (rustix::fs::major(rdev), rustix::fs::minor(rdev))),
        target: (kind == 'l').then(|| std::fs::read_link(at).unwrap().into_os_string().into_vec()),
        sum,
        xattrs: xattrs(at),
        first_path: None,
    };
    (node, (meta.dev(), meta.ino()))
}

fn xattrs(at: &Path) -> Xattrs {
    let mut names = vec![0; 64 << 10];
    let len = rustix::fs::llistxattr(at, &mut names[..])
        .unwrap_or_else(|e| panic!("{}: listxattr: {e}", at.display()));
    let mut value = vec![0; 64 << 10];
    let mut found = Xattrs::new();
    for name in names[..len].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let read = match rustix::fs::lgetxattr(at, name, &mut value[..]) {
            Ok(len) => value[..len].to_vec(),
            Err(e) => format!("(listed, but {e})").into_bytes(),
        };
        found.insert(name.to_vec(), read);
    }
    found
}
