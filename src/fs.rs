//! The file system without FUSE: lookups, attributes, directories, links, extended attributes and
//! reads over an immutable merged tree.
//!
//! Invariants: nothing here waits for the network ([`ImageFs::read`] says what is absent, the
//! caller decides what to do), and nothing here needs a lock on the way to an answer.

pub mod counters;
pub mod errno;
mod foreseen;
pub mod layers;
pub mod origin;
pub mod read;

use std::fmt;
use std::sync::{Arc, LazyLock};

pub use counters::Counters;
pub use errno::Error;
pub use layers::LayerFiles;
pub use origin::FilePart;
pub use read::{Absent, Outcome, ReadBuffer};

use crate::content::Content;
use crate::fs::foreseen::Foreseen;
use crate::layer::Timestamp;
use crate::tree::{Ino, Node, NodeKind, Tree};

/// Unit of `f_bsize`, of `st_blksize` and of the page cache, in bytes.
pub const BLOCK_BYTES: u64 = 4096;

/// What `stat` says about a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Inode number.
    pub ino: u64,
    /// Kind of node.
    pub kind: NodeKind,
    /// Permission, set-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length in bytes.
    pub size: u64,
    /// Allocated length in units of 512 bytes, as `st_blocks`.
    pub blocks: u64,
    /// Number of names; for a directory 2 and one a subdirectory.
    pub nlink: u32,
    /// Device numbers of a device node, else 0.
    pub rdev: (u32, u32),
    /// Modification time; access and change time are the same, as a tar has no other.
    pub mtime: Timestamp,
}

/// What `statfs` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Blocks of [`BLOCK_BYTES`] in all; none is free.
    pub blocks: u64,
    /// Inodes in all; none is free.
    pub files: u64,
}

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
pub struct DirectoryEntry<'a> {
    /// The name.
    pub name: &'a [u8],
    /// What it names.
    pub attributes: Attributes,
    /// Where to go on after this entry.
    pub next: u64,
}

/// Gives a merged tree.
pub type LoadTree = Box<dyn FnOnce() -> Tree + Send>;

/// A read-only file system: a merged tree over lazily fetched content.
pub struct ImageFs {
    tree: LazyLock<Tree, LoadTree>,
    content: Arc<Content>,
    counters: Counters,
    foreseen: Foreseen,
}

impl fmt::Debug for ImageFs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageFs")
            .field("content", &self.content)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

impl ImageFs {
    /// The file system of `tree`, whose bytes come from `content`.
    pub fn new(tree: Tree, content: Arc<Content>) -> ImageFs {
        ImageFs::late(Box::new(move || tree), content)
    }

    /// The same with a tree that the first who needs it loads: where the kernel knows the tree,
    /// perhaps nobody.
    pub fn late(load: LoadTree, content: Arc<Content>) -> ImageFs {
        ImageFs {
            tree: LazyLock::new(load),
            content,
            counters: Counters::default(),
            foreseen: Foreseen::default(),
        }
    }

    /// The names and the metadata.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The bytes behind the files.
    pub fn content(&self) -> &Arc<Content> {
        &self.content
    }

    /// What was asked so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Whether any node has an extended attribute that a mount shows.
    pub fn has_xattrs(&self) -> bool {
        self.tree.has_xattrs()
    }

    /// Whether any node has a POSIX ACL.
    pub fn has_acls(&self) -> bool {
        self.tree.has_acls()
    }

    fn node(&self, ino: u64) -> Result<(Ino, Node), Error> {
        let ino = Ino::from_raw(ino).ok_or(Error::StaleInode(ino))?;
        let node = self.tree.node(ino).ok_or(Error::StaleInode(ino.get()))?;
        Ok((ino, node))
    }

    fn directory(&self, ino: u64) -> Result<Ino, Error> {
        let (ino, node) = self.node(ino)?;
        match node.kind {
            NodeKind::Directory => Ok(ino),
            _ => Err(Error::NotADirectory),
        }
    }

    /// What `name` names in directory `parent`.
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Result<Attributes, Error> {
        let dir = self.directory(parent)?;
        let ino = self.tree.lookup(dir, name).ok_or(Error::NotFound)?;
        self.attributes(ino.get())
    }

    /// What `stat` says about `ino`.
    pub fn attributes(&self, ino: u64) -> Result<Attributes, Error> {
        let (ino, node) = self.node(ino)?;
        Ok(Attributes {
            ino: ino.get(),
            kind: node.kind,
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            size: node.size,
            blocks: node.allocated.div_ceil(512),
            nlink: node.nlink,
            rdev: node.rdev,
            mtime: node.mtime,
        })
    }

    /// Entries of directory `ino` from position `from` on: `.`, `..`, then the names in byte order.
    pub fn entries(
        &self,
        ino: u64,
        from: u64,
    ) -> Result<impl Iterator<Item = Result<DirectoryEntry<'_>, Error>>, Error> {
        let dir = self.directory(ino)?;
        let dots = [(&b"."[..], dir), (&b".."[..], self.tree.parent(dir))];
        let skip = usize::try_from(from.saturating_sub(2)).unwrap_or(usize::MAX);
        let dots = dots.into_iter().skip(from.min(2) as usize);
        let names = self.tree.children_from(dir, skip);
        Ok(dots
            .chain(names)
            .zip(from + 1..)
            .map(|((name, ino), next)| {
                Ok(DirectoryEntry {
                    name,
                    attributes: self.attributes(ino.get())?,
                    next,
                })
            }))
    }

    /// Target of the symbolic link `ino`.
    pub fn readlink(&self, ino: u64) -> Result<&[u8], Error> {
        let (ino, _) = self.node(ino)?;
        self.tree.symlink_target(ino).ok_or(Error::NotALink)
    }

    /// Value of an extended attribute. Names that would subvert a file system stacked above
    /// (`trusted.overlay.*` and their like) are never shown.
    pub fn xattr(&self, ino: u64, name: &[u8]) -> Result<&[u8], Error> {
        let (ino, _) = self.node(ino)?;
        let found = self.tree.visible_xattrs(ino).find(|x| *x.name == *name);
        found.map(|x| &*x.value).ok_or(Error::NoXattr)
    }

    /// Names of all extended attributes of `ino`, each followed by NUL.
    pub fn xattr_names(&self, ino: u64) -> Result<Vec<u8>, Error> {
        let (ino, _) = self.node(ino)?;
        let mut names = Vec::new();
        for xattr in self.tree.visible_xattrs(ino) {
            names.extend_from_slice(&xattr.name);
            names.push(0);
        }
        Ok(names)
    }

    /// What `statfs` says.
    pub fn totals(&self) -> Totals {
        Totals {
            blocks: self.tree.total_bytes().div_ceil(BLOCK_BYTES),
            files: self.tree.len() as u64,
        }
    }
}
