//! A tree as bytes: the flat arrays one after the other, so that reading it is one pass. Numbers are
//! little endian. Whether the bytes are what was written is for a checksum around them to say; what
//! cannot be a tree is refused, and no number in it can lead outside.
//!
//! ```text
//! nodes u64 | dentries u64 | names u64 | extents u64 | xattr sets u64 | total bytes u64 | flags u64
//! | 76 bytes each node | 12 bytes each dentry | names | 24 bytes each extent
//! | each set: count u32, then each attribute: lengths u32 u32, name, value
//! ```

use std::io::{self, Write};

use crate::layer::{Extent, Timestamp, Xattr};
use crate::tree::node::{Ino, LayerId, Node, NodeKind};
use crate::tree::{Dentry, Tree};

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

impl Tree {
    /// Writes the tree.
    pub fn store(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut out = io::BufWriter::with_capacity(256 << 10, out);
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
            out.write_all(&number.to_le_bytes())?;
        }
        for node in &self.nodes {
            out.write_all(&node_bytes(node))?;
        }
        for dentry in &self.dentries {
            for number in [dentry.name_start, dentry.name_len, dentry.ino.get() as u32] {
                out.write_all(&number.to_le_bytes())?;
            }
        }
        out.write_all(&self.names)?;
        for extent in &self.extents {
            for number in [extent.file_offset, extent.address, extent.len] {
                out.write_all(&number.to_le_bytes())?;
            }
        }
        for set in &self.xattrs {
            out.write_all(&(set.len() as u32).to_le_bytes())?;
            for xattr in set {
                out.write_all(&(xattr.name.len() as u32).to_le_bytes())?;
                out.write_all(&(xattr.value.len() as u32).to_le_bytes())?;
                out.write_all(&xattr.name)?;
                out.write_all(&xattr.value)?;
            }
        }
        out.flush()
    }

    /// The tree that [`Tree::store`] has written; `None` for anything else.
    pub fn restore(bytes: &[u8]) -> Option<Tree> {
        let mut left = Left(bytes);
        let mut header = Left(left.take(HEADER_BYTES)?);
        let mut number = || Some(u64::from_le_bytes(*header.array()?));
        let counts: [usize; 5] = [number()?, number()?, number()?, number()?, number()?]
            .map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        let [nodes, dentries, names, extents, sets] = counts;
        let (total_bytes, flags) = (number()?, number()?);
        let nodes = left.records::<NODE_BYTES>(nodes)?;
        let dentries = left.records::<DENTRY_BYTES>(dentries)?;
        let names = left.take(names)?.to_vec();
        let extents = left.records::<EXTENT_BYTES>(extents)?;
        let mut xattrs = Vec::new();
        for _ in 0..sets {
            xattrs.push(left.xattrs()?);
        }
        let tree = Tree {
            nodes: nodes.iter().map(node).collect::<Option<_>>()?,
            dentries: dentries.iter().map(dentry).collect::<Option<_>>()?,
            names,
            extents: extents.iter().map(extent).collect(),
            xattrs,
            total_bytes,
            has_xattrs: flags & HAS_XATTRS != 0,
            has_acls: flags & HAS_ACLS != 0,
        };
        (left.0.is_empty() && !tree.nodes.is_empty()).then_some(tree)
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

fn node(bytes: &[u8; NODE_BYTES]) -> Option<Node> {
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

fn dentry(bytes: &[u8; DENTRY_BYTES]) -> Option<Dentry> {
    let short = |n: usize| u32::from_le_bytes(std::array::from_fn(|b| bytes[n * 4 + b]));
    Some(Dentry {
        name_start: short(0),
        name_len: short(1),
        ino: Ino::from_raw(short(2).into())?,
    })
}

fn extent(bytes: &[u8; EXTENT_BYTES]) -> Extent {
    let long = |n: usize| u64::from_le_bytes(std::array::from_fn(|b| bytes[n * 8 + b]));
    Extent {
        file_offset: long(0),
        address: long(1),
        len: long(2),
    }
}

/// What has not been read yet.
struct Left<'a>(&'a [u8]);

impl<'a> Left<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, left) = self.0.split_at_checked(len)?;
        self.0 = left;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (taken, left) = self.0.split_first_chunk()?;
        self.0 = left;
        Some(taken)
    }

    fn records<const N: usize>(&mut self, count: usize) -> Option<&'a [[u8; N]]> {
        Some(self.take(count.checked_mul(N)?)?.as_chunks().0)
    }

    fn short(&mut self) -> Option<usize> {
        Some(u32::from_le_bytes(*self.array()?) as usize)
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
        let again = Tree::restore(&stored(&tree)).unwrap();
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
            assert!(Tree::restore(&bytes[..len]).is_none(), "{len}");
        }
        assert!(Tree::restore(&[&bytes[..], b"x"].concat()).is_none());
    }
}
