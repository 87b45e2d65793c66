//! The merged tree: what the layers of an image look like on top of each other. Immutable, in flat
//! arrays as they are stored ([`stored`]), about 100 bytes a node; no I/O and no lock anywhere. So a
//! tree that is kept in a file is used where it is, and all mounts of an image share its memory.
//!
//! # How it is made
//!
//! [`Tree::merge`] applies the layers, base first, to a draft that refers to their entries, and then
//! numbers what is left and copies it out ([`merge`] has the rules). Inode numbers are given
//! depth-first in the order of the names, so they depend on the layers alone; hard links share one.
//! They stay below 2^32 because overlayfs (`xino`) needs the upper half of the number.
//!
//! # Architecture invariants
//!
//! - Nothing here recurses on the depth of a path: depth comes from remote input.
//! - A node never changes after the merge, so everyone above may cache it for ever.

pub mod dump;
pub mod error;
mod identity;
pub mod merge;
pub mod node;
pub mod stored;
pub mod xattr;

mod draft;
mod extents;
mod freeze;
mod links;
mod walk;

#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::Deref;

pub use error::MergeError;
pub use extents::Extents;
pub use node::{Ino, LayerId, Node, NodeKind};

use crate::layer::{LayerPath, Xattr};
use crate::tree::stored::{Places, StoredDentry, StoredExtent, StoredNode};

/// Most nodes and names that a tree may have while layers are applied. The largest images have one
/// to two million files; eight million cost about 1 GiB, and a hostile layer of a few megabytes
/// could ask for far more (every entry may imply 2,048 directories).
pub const NODES_MAX: usize = 8 << 20;
/// Symbolic links followed to reach one path inside a mounted image, as in the kernel (path_resolution(7)).
pub const FOLLOW_MAX: usize = 40;

/// Bytes that a tree is used from: its own, or a file's.
pub type Memory = Box<dyn Deref<Target = [u8]> + Send + Sync>;

/// One immutable merged tree.
pub struct Tree {
    bytes: Memory,
    /// Where each array is in `bytes`.
    places: Places,
    /// Distinct sets; position 0 is the empty one.
    xattrs: Vec<Box<[Xattr]>>,
    total_bytes: u64,
    has_xattrs: bool,
    has_acls: bool,
}

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
struct Dentry {
    name_start: u32,
    name_len: u32,
    ino: Ino,
}

impl Tree {
    /// A tree of nothing but its root.
    pub fn bare() -> Tree {
        freeze::bare()
    }

    /// The node of `ino`; `None` when there is no such inode.
    pub fn node(&self, ino: Ino) -> Option<Node> {
        stored::node(self.nodes().get(ino.index())?)
    }

    /// What `name` means in the directory `dir`. `.` and `..` are not names here.
    pub fn lookup(&self, dir: Ino, name: &[u8]) -> Option<Ino> {
        let dentries = self.dentries(dir);
        let order = |d: &StoredDentry| {
            stored::dentry(d)
                .map_or(&[][..], |d| self.name(d))
                .cmp(name)
        };
        let at = dentries.binary_search_by(order).ok()?;
        Some(stored::dentry(&dentries[at])?.ino)
    }

    /// The names in a directory, sorted by bytes; nothing when `dir` is not a directory.
    pub fn children(&self, dir: Ino) -> impl Iterator<Item = (&[u8], Ino)> {
        self.children_from(dir, 0)
    }

    /// The names in a directory from position `n` on.
    pub fn children_from(&self, dir: Ino, n: usize) -> impl Iterator<Item = (&[u8], Ino)> {
        let dentries = self.dentries(dir).iter().skip(n);
        dentries
            .filter_map(stored::dentry)
            .map(|d| (self.name(d), d.ino))
    }

    /// How many names a directory has.
    pub fn child_count(&self, dir: Ino) -> usize {
        self.dentries(dir).len()
    }

    /// The directory above: for a directory the one; for anything else the one that holds its first
    /// name; for the root (and what does not exist) the root.
    pub fn parent(&self, ino: Ino) -> Ino {
        self.node(ino).map_or(Ino::ROOT, |n| n.parent)
    }

    /// What readlink gives; `None` when it is not a symbolic link.
    pub fn symlink_target(&self, ino: Ino) -> Option<&[u8]> {
        let node = self.node(ino).filter(|n| n.kind == NodeKind::Symlink)?;
        self.names().get(node.body())
    }

    /// All extended attributes that the layers give, sorted by name. A mount shows
    /// [`Self::visible_xattrs`].
    pub fn xattrs(&self, ino: Ino) -> &[Xattr] {
        self.node(ino)
            .and_then(|n| self.xattrs.get(n.xattrs as usize))
            .map_or(&[], |x| x)
    }

    /// The extended attributes that a mount shows (see [`xattr::visible`]).
    pub fn visible_xattrs(&self, ino: Ino) -> impl Iterator<Item = &Xattr> {
        let kind = self.node(ino).map_or(NodeKind::Regular, |n| n.kind);
        let visible = move |x: &&Xattr| xattr::visible(&x.name, kind);
        self.xattrs(ino).iter().filter(visible)
    }

    /// The layer that gives the node, and for a regular file where its data stands there, sorted by
    /// offset in the file. What no extent covers reads as zeros.
    pub fn extents(&self, ino: Ino) -> (LayerId, Extents<'_>) {
        let node = self.node(ino);
        node.map_or((LayerId(0), Extents::default()), |node| {
            (node.layer, self.extents_of(&node))
        })
    }

    /// The extents of a node of this tree.
    pub fn extents_of(&self, node: &Node) -> Extents<'_> {
        match node.kind {
            NodeKind::Regular => Extents(self.all_extents().get(node.body()).unwrap_or(&[])),
            _ => Extents::default(),
        }
    }

    /// How many inodes there are; the numbers are `1..=len()`.
    #[expect(clippy::len_without_is_empty, reason = "a tree has at least its root")]
    pub fn len(&self) -> usize {
        self.nodes().len()
    }

    /// Whether any node has an extended attribute that a mount might show.
    pub fn has_xattrs(&self) -> bool {
        self.has_xattrs
    }

    /// Whether any node has a POSIX ACL (`system.posix_acl_access` or `system.posix_acl_default`).
    pub fn has_acls(&self) -> bool {
        self.has_acls
    }

    /// Lengths of all regular files in bytes, holes included, each inode once.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// The inode at `path`, as lstat(2) in a chroot finds it: links on the way are followed, one at
    /// the end is not. `None` when there is nothing, or after [`FOLLOW_MAX`] links.
    pub fn resolve(&self, path: &LayerPath) -> Option<Ino> {
        let Some(name) = path.file_name() else {
            return Some(Ino::ROOT);
        };
        let bytes = path.as_bytes();
        let dir = self.follow(Ino::ROOT, &bytes[..bytes.len() - name.len()])?;
        self.lookup(dir, name)
    }

    /// The inode at `path` seen from the directory `dir`, as stat(2) in a chroot finds it: every
    /// link is followed.
    pub fn follow(&self, dir: Ino, path: &[u8]) -> Option<Ino> {
        let (mut at, mut followed) = (dir, 0);
        let mut rest = vec![path];
        while let Some(text) = rest.pop() {
            let (name, tail) = walk::split_first(text);
            if !tail.is_empty() {
                rest.push(tail);
            }
            if self.node(at)?.kind != NodeKind::Directory {
                return None;
            }
            match name {
                b"" | b"." => continue,
                b".." => at = self.parent(at),
                _ => {
                    let child = self.lookup(at, name)?;
                    let Some(target) = self.symlink_target(child) else {
                        at = child;
                        continue;
                    };
                    followed += 1;
                    if followed > FOLLOW_MAX || target.is_empty() {
                        return None;
                    }
                    if target.starts_with(b"/") {
                        at = Ino::ROOT;
                    }
                    rest.push(target);
                }
            }
        }
        Some(at)
    }

    /// A path of the node, with a leading slash: for messages. `None` when there is no such inode.
    pub fn path(&self, ino: Ino) -> Option<Vec<u8>> {
        self.node(ino)?;
        let (mut names, mut at) = (Vec::new(), ino);
        while at != Ino::ROOT {
            // Directories that are in each other: the bytes are not what was stored.
            if names.len() > self.len() {
                return None;
            }
            let above = self.parent(at);
            let (name, _) = self.children(above).find(|(_, ino)| *ino == at)?;
            names.push(name);
            at = above;
        }
        let mut path = Vec::new();
        for name in names.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        if path.is_empty() {
            path.push(b'/');
        }
        Some(path)
    }

    fn nodes(&self) -> &[StoredNode] {
        self.bytes[self.places.nodes.clone()].as_chunks().0
    }

    fn names(&self) -> &[u8] {
        &self.bytes[self.places.names.clone()]
    }

    fn all_extents(&self) -> &[StoredExtent] {
        self.bytes[self.places.extents.clone()].as_chunks().0
    }

    fn dentries(&self, dir: Ino) -> &[StoredDentry] {
        let all = self.bytes[self.places.dentries.clone()].as_chunks().0;
        self.node(dir)
            .filter(|n| n.kind == NodeKind::Directory)
            .and_then(|n| all.get(n.body()))
            .unwrap_or(&[])
    }

    fn name(&self, dentry: Dentry) -> &[u8] {
        let start = dentry.name_start as usize;
        self.names()
            .get(start..start + dentry.name_len as usize)
            .unwrap_or(&[])
    }
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tree")
            .field("nodes", &self.len())
            .field("total_bytes", &self.total_bytes)
            .finish_non_exhaustive()
    }
}
