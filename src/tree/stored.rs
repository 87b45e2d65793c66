//! A tree as bytes: the flat arrays one after the other, which are used as they are. Numbers are little
//! endian. Whether the bytes are what was written is for a checksum around them to say; what cannot be a
//! tree is refused, and no number in it can lead outside.
//!
//! ```text
//! nodes u64 | dentries u64 | names u64 | extents u64 | xattr sets u64 | total bytes u64 | flags u64
//! | 76 bytes each node | 12 bytes each dentry | names | 24 bytes each extent
//! | each set: count u32, then each attribute: lengths u32 u32, name, value
//! ```

use std::io::{self, Write};
use std::ops::Range;

use crate::layer::{Extent, Timestamp, Xattr};
use crate::tree::node::{Ino, LayerId, Node, NodeKind};
use crate::tree::{Dentry, Memory, Tree};

/// Version of the format and of the rules that a tree is made by: goes up with either.
pub const VERSION: u32 = 1;

const HEADER_BYTES: usize = 7 * 8;
const NODE_BYTES: usize = 76;
const DENTRY_BYTES: usize = 12;
const EXTENT_BYTES: usize = 24;
const HAS_XATTRS: u64 = 1;
const HAS_ACLS: u64 = 2;
/// Kinds by their number.
const KINDS: [NodeKind; 6] = [
    NodeKind::Directory,
    NodeKind::Regular,
    NodeKind::Symlink,
    NodeKind::CharDevice,
    NodeKind::BlockDevice,
    NodeKind::Fifo,
];

/// A node as it is stored.
pub(super) type StoredNode = [u8; NODE_BYTES];
/// A name in a directory as it is stored.
pub(super) type StoredDentry = [u8; DENTRY_BYTES];
/// An extent as it is stored.
pub(super) type StoredExtent = [u8; EXTENT_BYTES];

/// Where the arrays are.
#[derive(Debug, Default)]
pub(super) struct Places {
    pub(super) nodes: Range<usize>,
    pub(super) dentries: Range<usize>,
    pub(super) names: Range<usize>,
    pub(super) extents: Range<usize>,
}

/// What a tree is made of, before it is one.
#[derive(Default)]
pub(super) struct Arrays {
    /// Ino 1 is at position 0.
    pub(super) nodes: Vec<Node>,
    /// Children of all directories; those of one directory stand together, sorted by name.
    pub(super) dentries: Vec<Dentry>,
    /// Names of dentries and targets of symbolic links.
    pub(super) names: Vec<u8>,
    pub(super) extents: Vec<Extent>,
    /// Distinct sets; position 0 is the empty one.
    pub(super) xattrs: Vec<Box<[Xattr]>>,
    pub(super) total_bytes: u64,
    pub(super) has_xattrs: bool,
    pub(super) has_acls: bool,
}

impl Arrays {
    /// The tree.
    pub(super) fn into_tree(self) -> Tree {
        let arrays = self.nodes.len() * NODE_BYTES
            + self.dentries.len() * DENTRY_BYTES
            + self.names.len()
            + self.extents.len() * EXTENT_BYTES;
        let mut out = Vec::with_capacity(HEADER_BYTES + arrays);
        let flags =
            (u64::from(self.has_xattrs) * HAS_XATTRS) | (u64::from(self.has_acls) * HAS_ACLS);
        for number in [
            self.nodes.len() as u64,
            self.dentries.len() as u64,
            self.names.len() as u64,
            self.extents.len() as u64,
            self.xattrs.len() as u64,
            self.total_bytes,
            flags,
        ] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let mut places = Places::default();
        let place = |out: &[u8], start: usize| start..out.len();
        let start = out.len();
        self.nodes.iter().for_each(|n| out.extend(node_bytes(n)));
        places.nodes = place(&out, start);
        let start = out.len();
        for dentry in &self.dentries {
            for number in [dentry.name_start, dentry.name_len, dentry.ino.get() as u32] {
                out.extend_from_slice(&number.to_le_bytes());
            }
        }
        places.dentries = place(&out, start);
        let start = out.len();
        out.extend_from_slice(&self.names);
        places.names = place(&out, start);
        let start = out.len();
        for extent in &self.extents {
            for number in [extent.file_offset, extent.address, extent.len] {
                out.extend_from_slice(&number.to_le_bytes());
            }
        }
        places.extents = place(&out, start);
        for set in &self.xattrs {
            out.extend_from_slice(&(set.len() as u32).to_le_bytes());
            for xattr in set {
                out.extend_from_slice(&(xattr.name.len() as u32).to_le_bytes());
                out.extend_from_slice(&(xattr.value.len() as u32).to_le_bytes());
                out.extend_from_slice(&xattr.name);
                out.extend_from_slice(&xattr.value);
            }
        }
        out.shrink_to_fit();
        Tree {
            bytes: Box::new(out),
            places,
            xattrs: self.xattrs,
            total_bytes: self.total_bytes,
            has_xattrs: self.has_xattrs,
            has_acls: self.has_acls,
        }
    }
}

impl Tree {
    /// Writes the tree.
    pub fn store(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&self.bytes)
    }

    /// The tree that [`Tree::store`] has written, used from where it is; `None` for anything else.
    pub fn restore(bytes: Memory) -> Option<Tree> {
        let mut left = Left {
            bytes: &bytes,
            at: 0,
        };
        let mut header = [0; 7];
        for number in &mut header {
            *number = left.long()?;
        }
        let [nodes, dentries, names, extents, sets, total_bytes, flags] = header;
        let places = Places {
            nodes: left.records::<NODE_BYTES>(nodes)?,
            dentries: left.records::<DENTRY_BYTES>(dentries)?,
            names: left.records::<1>(names)?,
            extents: left.records::<EXTENT_BYTES>(extents)?,
        };
        let mut xattrs = Vec::new();
        for _ in 0..sets {
            xattrs.push(left.xattrs()?);
        }
        let is_all = left.at == bytes.len() && nodes > 0;
        let tree = Tree {
            places,
            xattrs,
            total_bytes,
            has_xattrs: flags & HAS_XATTRS != 0,
            has_acls: flags & HAS_ACLS != 0,
            bytes,
        };
        is_all.then_some(tree)
    }
}

fn node_bytes(node: &Node) -> [u8; NODE_BYTES] {
    let mut bytes = [0; NODE_BYTES];
    let mut at = 0;
    let mut put = |part: &[u8]| {
        bytes[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    };
    put(&node.mtime.seconds.to_le_bytes());
    put(&node.size.to_le_bytes());
    put(&node.allocated.to_le_bytes());
    // Modes have 12 bits.
    let kind = KINDS
        .iter()
        .position(|kind| *kind == node.kind)
        .unwrap_or(0) as u32;
    for number in [
        kind << 16 | node.mode,
        node.uid,
        node.gid,
        node.mtime.nanoseconds,
        node.nlink,
        node.rdev.0,
        node.rdev.1,
        node.parent.get() as u32,
        node.layer.0,
        node.xattrs,
        node.body_start,
        node.body_len,
    ] {
        put(&number.to_le_bytes());
    }
    put(&[0; 4]);
    bytes
}

pub(super) fn node(bytes: &StoredNode) -> Option<Node> {
    let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| bytes[at + n]));
    let short = |n: usize| u32::from_le_bytes(std::array::from_fn(|b| bytes[24 + n * 4 + b]));
    Some(Node {
        kind: *KINDS.get((short(0) >> 16) as usize)?,
        mode: short(0) & 0o7777,
        uid: short(1),
        gid: short(2),
        mtime: Timestamp {
            seconds: long(0).cast_signed(),
            nanoseconds: short(3),
        },
        size: long(8),
        allocated: long(16),
        nlink: short(4),
        rdev: (short(5), short(6)),
        parent: Ino::from_raw(short(7).into())?,
        layer: LayerId(short(8)),
        xattrs: short(9),
        body_start: short(10),
        body_len: short(11),
    })
}

pub(super) fn dentry(bytes: &StoredDentry) -> Option<Dentry> {
    let short = |n: usize| u32::from_le_bytes(std::array::from_fn(|b| bytes[n * 4 + b]));
    Some(Dentry {
        name_start: short(0),
        name_len: short(1),
        ino: Ino::from_raw(short(2).into())?,
    })
}

pub(super) fn extent(bytes: &StoredExtent) -> Extent {
    let long = |n: usize| u64::from_le_bytes(std::array::from_fn(|b| bytes[n * 8 + b]));
    Extent {
        file_offset: long(0),
        address: long(1),
        len: long(2),
    }
}

/// What has not been read yet: what follows `at`.
struct Left<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Left<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(len)?)?;
        self.at += len;
        Some(taken)
    }

    /// Where `count` records of `N` bytes are.
    fn records<const N: usize>(&mut self, count: u64) -> Option<Range<usize>> {
        let start = self.at;
        let len = usize::try_from(count).ok()?.checked_mul(N)?;
        self.take(len)?;
        Some(start..self.at)
    }

    fn long(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(*self.take(8)?.first_chunk()?))
    }

    fn short(&mut self) -> Option<usize> {
        Some(u32::from_le_bytes(*self.take(4)?.first_chunk()?) as usize)
    }

    fn xattrs(&mut self) -> Option<Box<[Xattr]>> {
        let count = self.short()?;
        let mut set = Vec::new();
        for _ in 0..count {
            let (name, value) = (self.short()?, self.short()?);
            set.push(Xattr {
                name: self.take(name)?.into(),
                value: self.take(value)?.into(),
            });
        }
        Some(set.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::dump;
    use crate::tree::tests::{adds, dir, file, link, merged, symlink, xattr};

    fn sample() -> Tree {
        let mut told = file("d/told", 3);
        told.xattrs = vec![xattr("user.x", "1"), xattr("user.y", "")];
        let base = vec![dir("d", 1), file("d/a", 2), told, symlink("l", 4, "d/a")];
        merged(&[adds(base), adds(vec![link("d/b", "d/a")])])
    }

    fn stored(tree: &Tree) -> Vec<u8> {
        let mut bytes = Vec::new();
        tree.store(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn what_was_stored_comes_back() {
        let tree = sample();
        let again = Tree::restore(Box::new(stored(&tree))).unwrap();
        assert_eq!(dump::dump_string(&tree), dump::dump_string(&again));
        for ino in (1..=tree.len() as u64).filter_map(Ino::from_raw) {
            assert_eq!(tree.node(ino), again.node(ino));
            assert_eq!(tree.extents(ino), again.extents(ino));
            assert_eq!(tree.path(ino), again.path(ino));
        }
        assert_eq!(tree.total_bytes(), again.total_bytes());
        assert_eq!(
            (tree.has_xattrs(), tree.has_acls()),
            (again.has_xattrs(), again.has_acls())
        );
    }

    #[test]
    fn what_was_cut_or_made_longer_is_refused() {
        let bytes = stored(&sample());
        for len in 0..bytes.len() {
            assert!(
                Tree::restore(Box::new(bytes[..len].to_vec())).is_none(),
                "{len}"
            );
        }
        assert!(Tree::restore(Box::new([&bytes[..], b"x"].concat())).is_none());
    }
}
