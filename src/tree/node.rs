//! What a node of the merged tree is: its number, its kind, its metadata.

use std::num::NonZeroU32;
use std::ops::Range;

use crate::layer::Timestamp;

/// Position of a layer in the manifest; 0 is the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayerId(pub u32);

/// An inode number. Depends on the layers alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(NonZeroU32);

impl Ino {
    /// The root; also the number that FUSE gives it (`FUSE_ROOT_ID`).
    pub const ROOT: Ino = Ino(NonZeroU32::MIN);

    /// The number as the kernel sees it.
    pub fn get(self) -> u64 {
        u64::from(self.0.get())
    }

    /// The inode with this number; `None` for 0 and what does not fit 32 bits.
    pub fn from_raw(raw: u64) -> Option<Ino> {
        NonZeroU32::new(u32::try_from(raw).ok()?).map(Ino)
    }

    /// Position in the array of nodes.
    pub(super) fn index(self) -> usize {
        self.0.get() as usize - 1
    }

    /// The inode at a position in the array of nodes.
    pub(super) fn at(index: usize) -> Option<Ino> {
        Ino::from_raw(index as u64 + 1)
    }
}

/// What kind of file a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeKind {
    /// A directory.
    Directory,
    /// A regular file.
    Regular,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
}

/// A node, by value what stat(2) wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: NodeKind,
    /// Permission, set-id and sticky bits: `0..=0o7777`. 0777 for symbolic links, as Linux has it.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Timestamp,
    /// Length in bytes: of a regular file with its holes, of a link's target, 4096 for a directory,
    /// else 0.
    pub size: u64,
    /// Bytes that have a place in the layer, rounded up to 4096: what `st_blocks` counts in 512s.
    pub allocated: u64,
    /// Names; for a directory 2 and the number of its subdirectories.
    pub nlink: u32,
    /// Major and minor number of a device, else zeros.
    pub rdev: (u32, u32),
    /// The directory that holds the (first) name.
    pub(super) parent: Ino,
    /// Where the data stands.
    pub(super) layer: LayerId,
    /// Position of the set of extended attributes.
    pub(super) xattrs: u32,
    /// Children, target or extents, in the array of their own.
    pub(super) body_start: u32,
    /// How many of them.
    pub(super) body_len: u32,
}

impl Node {
    pub(super) fn body(self) -> Range<usize> {
        let start = self.body_start as usize;
        start..start + self.body_len as usize
    }
}
