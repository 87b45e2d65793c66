//! A merged tree as an EROFS image: tree in, bytes out. The image has the names and the metadata;
//! the data stays where it is, in the address spaces of the layers, one device each.
//!
//! # The format
//!
//! From `erofs_fs.h` of Linux and of erofs-utils. Blocks have 512 bytes, as tars do, so that the
//! data of a member begins with a block. All numbers are little endian.
//!
//! ```text
//! 1024   superblock, 128 bytes
//! 1152   device slots, 128 bytes each: number N + 1 is layer N
//!        inodes, in the order of the tree; an inode's number (nid) is its offset / 32
//!        blocks: directories, and symbolic links that do not fit behind their inode
//! ```
//!
//! - Inodes are extended ones (64 bytes: 32-bit owners, nanoseconds). Behind an inode stand its
//!   attributes, and behind them chunk indexes or the target of a link.
//! - A file is chunks: a power of two of blocks, each with a device and a block in it. One chunk
//!   covers an ordinary file up to 1 TiB; a hole is a chunk without an address.
//! - A file whose pieces stand where no block begins (some tars of sparse files have such) is
//!   *composed*: it gets addresses behind the end of its layer's tar, and whoever serves the layer
//!   has to put the pieces together there ([`Composed`]).
//!
//! The same tree gives the same bytes, so inode numbers of a mount depend on the layers alone.
//!
//! # Rejected
//!
//! Compact inodes (16-bit owners, no nanoseconds), shared attributes (a few kilobytes of an image),
//! directory tails behind the inode (0.5 MB of 13,000 inodes; then every directory needs two
//! layouts).

mod directory;
mod error;
mod inode;
mod plan;
mod superblock;
#[cfg(test)]
mod tests;
mod xattr;

pub use error::ErofsError;
pub use plan::{Composed, Device, Image};

/// Bytes of a block: the unit of tars.
pub const BLOCK_BYTES: u64 = 512;

/// What a device's length is a multiple of, in bytes: a page, so that no page of it is half there.
pub const DEVICE_ALIGN_BYTES: u64 = 4096;

/// The block number that says that there is none.
const NO_BLOCK: u32 = u32::MAX;
