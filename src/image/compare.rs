//! What differs between two images: added, changed and deleted paths.
//!
//! The rules are those of `docker diff`: of what was added everything is named, of what was deleted
//! the top alone; a directory in which names came or went is changed, one with another time alone is
//! not. Contents are compared when nothing else tells two files apart: files that stand at the same
//! place of the same layer are equal; others of the same length are read.

use serde::Serialize;

use crate::image::error::Error;
use crate::image::list::joined;
use crate::image::view::{FileSink, View, shown};
use crate::oci::digest::{Algorithm, Hasher};
use crate::tree::{Ino, Node, NodeKind};

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Kind {
    /// Only the second image has it.
    #[serde(rename = "A")]
    Added,
    /// Both have it, not alike.
    #[serde(rename = "C")]
    Changed,
    /// Only the first image has it.
    #[serde(rename = "D")]
    Deleted,
}

impl Kind {
    /// How `docker diff` calls it.
    pub fn letter(self) -> char {
        match self {
            Kind::Added => 'A',
            Kind::Changed => 'C',
            Kind::Deleted => 'D',
        }
    }
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What happened.
    pub kind: Kind,
    /// To which path.
    pub path: String,
    /// What changed: `type`, `content`, `mode`, `owner`, `mtime`, `device`, `target`, `xattrs`, `names`
    /// (of a directory).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub what: Vec<&'static str>,
}

/// A path that both images have, still to be compared.
struct Pair {
    path: Vec<u8>,
    old: Ino,
    new: Ino,
}

/// What is different in `new`, in the order of the paths.
pub fn compare(old: &View, new: &View) -> Result<Vec<Difference>, Error> {
    let (pairs, mut found) = pairs(old, new);
    let doubtful: Vec<&Pair> = pairs.iter().filter(|p| is_doubtful(old, new, p)).collect();
    old.bring(doubtful.iter().map(|p| p.old))?;
    new.bring(doubtful.iter().map(|p| p.new))?;
    for pair in &pairs {
        let mut what = changes(old, new, pair)?;
        if names_differ(old, new, pair) {
            what.push("names");
        }
        if !what.is_empty() {
            let (kind, path) = (Kind::Changed, pair.path.clone());
            found.push((path, kind, what));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    let difference = |(path, kind, what): (Vec<u8>, Kind, Vec<&'static str>)| Difference {
        kind,
        path: shown(&path),
        what,
    };
    Ok(found.into_iter().map(difference).collect())
}

type Found = Vec<(Vec<u8>, Kind, Vec<&'static str>)>;

/// Walks both trees at once.
fn pairs(old: &View, new: &View) -> (Vec<Pair>, Found) {
    let (mut pairs, mut found) = (Vec::new(), Vec::new());
    let mut open = vec![Pair {
        path: b"/".to_vec(),
        old: Ino::ROOT,
        new: Ino::ROOT,
    }];
    while let Some(pair) = open.pop() {
        let is_directory = |view: &View, ino| kind(view, ino) == Some(NodeKind::Directory);
        let (was, is) = (is_directory(old, pair.old), is_directory(new, pair.new));
        if was && is {
            for (name, child) in old.tree().children(pair.old) {
                let path = joined(&pair.path, name);
                match new.tree().lookup(pair.new, name) {
                    Some(other) => open.push(Pair {
                        path,
                        old: child,
                        new: other,
                    }),
                    None => found.push((path, Kind::Deleted, Vec::new())),
                }
            }
        }
        if is {
            let names = new.tree().children(pair.new);
            let fresh = names.filter(|(n, _)| !was || old.tree().lookup(pair.old, n).is_none());
            for (name, child) in fresh {
                let top = joined(&pair.path, name);
                for step in new.walk(child) {
                    let path = match step.path.is_empty() {
                        true => top.clone(),
                        false => joined(&top, &step.path),
                    };
                    found.push((path, Kind::Added, Vec::new()));
                }
            }
        }
        pairs.push(pair);
    }
    (pairs, found)
}

fn kind(view: &View, ino: Ino) -> Option<NodeKind> {
    view.tree().node(ino).map(|n| n.kind)
}

fn names_differ(old: &View, new: &View, pair: &Pair) -> bool {
    let directories = [(old, pair.old), (new, pair.new)];
    let both = directories
        .iter()
        .all(|(v, i)| kind(v, *i) == Some(NodeKind::Directory));
    let mut before = old.tree().children(pair.old).map(|(name, _)| name);
    let mut after = new.tree().children(pair.new).map(|(name, _)| name);
    both && !(before.by_ref().eq(after.by_ref()))
}

fn changes(old: &View, new: &View, pair: &Pair) -> Result<Vec<&'static str>, Error> {
    let (was, is) = (old.node(pair.old)?, new.node(pair.new)?);
    let mut what = Vec::new();
    if was.kind != is.kind {
        what.push("type");
    } else if was.kind == NodeKind::Regular {
        let same = was.size == is.size
            && (same_place(old, new, pair) || content(old, pair.old)? == content(new, pair.new)?);
        if !same {
            what.push("content");
        }
    }
    let differs = |what: &mut Vec<_>, differ: bool, name| {
        if differ {
            what.push(name);
        }
    };
    differs(&mut what, was.mode != is.mode, "mode");
    differs(&mut what, (was.uid, was.gid) != (is.uid, is.gid), "owner");
    let timed = |n: &Node| (n.kind != NodeKind::Directory).then_some(n.mtime);
    differs(
        &mut what,
        was.kind == is.kind && timed(&was) != timed(&is),
        "mtime",
    );
    differs(&mut what, was.rdev != is.rdev, "device");
    let target = |view: &View, ino| view.tree().symlink_target(ino).map(<[u8]>::to_vec);
    let targets = (target(old, pair.old), target(new, pair.new));
    differs(
        &mut what,
        was.kind == is.kind && targets.0 != targets.1,
        "target",
    );
    let xattrs = old.tree().xattrs(pair.old) != new.tree().xattrs(pair.new);
    differs(&mut what, xattrs, "xattrs");
    Ok(what)
}

/// Whether two files have to be read to tell them apart.
fn is_doubtful(old: &View, new: &View, pair: &Pair) -> bool {
    let (Some(was), Some(is)) = (old.tree().node(pair.old), new.tree().node(pair.new)) else {
        return false;
    };
    was.kind == NodeKind::Regular
        && is.kind == NodeKind::Regular
        && was.size == is.size
        && !same_place(old, new, pair)
}

/// Whether both files are the same bytes of the same layer.
fn same_place(old: &View, new: &View, pair: &Pair) -> bool {
    let ((was, before), (is, after)) = (old.tree().extents(pair.old), new.tree().extents(pair.new));
    let no_bytes = before.is_empty() && after.is_empty();
    no_bytes || old.layer(was.0).is_some() && old.layer(was.0) == new.layer(is.0) && before == after
}

struct Sum(Hasher);

impl FileSink for Sum {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.update(bytes);
        Ok(())
    }

    fn skip(&mut self, zeros: u64) -> std::io::Result<()> {
        let (block, mut left) = ([0; 4096], zeros);
        while left > 0 {
            let now = left.min(block.len() as u64);
            self.0.update(&block[..now as usize]);
            left -= now;
        }
        Ok(())
    }
}

fn content(view: &View, ino: Ino) -> Result<crate::oci::Digest, Error> {
    let mut sum = Sum(Hasher::new(Algorithm::Sha256));
    view.read(ino, &mut sum)?;
    Ok(sum.0.finish())
}
