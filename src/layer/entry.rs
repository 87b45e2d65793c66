//! What a layer says about one path: an entry that it adds, or a whiteout that it puts on the
//! layers below.

use crate::layer::path::LayerPath;

/// A time as the tar has it: seconds may be negative, nanoseconds count upwards from them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timestamp {
    /// Seconds since 1970-01-01 00:00 UTC.
    pub seconds: i64,
    /// `0..1_000_000_000`.
    pub nanoseconds: u32,
}

/// An extended attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Xattr {
    /// Full name with its namespace, as in `security.capability`.
    pub name: Box<[u8]>,
    /// Raw value.
    pub value: Box<[u8]>,
}

/// Bytes of a file that stand in the layer. What no extent covers reads as zeros (sparse files).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where in the file, in bytes.
    pub file_offset: u64,
    /// Where in the layer's address space, in bytes.
    pub address: u64,
    /// How many bytes; never 0.
    pub len: u64,
}

/// What kind of node an entry makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file.
    Regular {
        /// Length in bytes, holes included.
        size: u64,
        /// Where its data stands: sorted by `file_offset`, not overlapping, inside `size`.
        /// One for an ordinary file, none for an empty one.
        extents: Vec<Extent>,
    },
    /// Another name for what `target` names when the entry is read.
    HardLink {
        /// Path of the other name.
        target: LayerPath,
    },
    /// A symbolic link; the target is bytes, never interpreted here.
    Symlink {
        /// What readlink gives.
        target: Box<[u8]>,
    },
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// One entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it goes.
    pub path: LayerPath,
    /// What it makes.
    pub kind: EntryKind,
    /// Permission, set-id and sticky bits: `0..=0o7777`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Timestamp,
    /// Extended attributes, sorted by name.
    pub xattrs: Vec<Xattr>,
}

/// What a layer hides of the layers below it (OCI image-spec, `layer.md`, "Whiteouts"). Whiteouts
/// are a list of their own because they act on lower layers only, wherever they stand in the tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whiteout {
    /// `.wh.NAME`: the path and everything below it.
    Path(LayerPath),
    /// `.wh..wh..opq`: everything in the directory, not the directory itself.
    Opaque(LayerPath),
}
