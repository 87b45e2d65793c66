//! Layers: from the compressed tar of one layer to a [`LayerIndex`], and from spans of the
//! compressed blob back to verified bytes. Sans-IO: bytes are pushed in, values come out.
//!
//! A layer is an *address space*: its bytes are the uncompressed tar, address 0 to size. Every
//! format becomes [`Span`]s of it; above this room nobody asks which format it was.

pub mod blocks;
pub mod codec;
pub mod decode;
pub mod entry;
pub mod error;
pub mod gzip;
pub mod index;
mod inflate;
pub mod ingest;
pub mod limit;
pub mod narrow;
mod outlet;
pub mod path;
pub mod tar;
mod unpack;
mod window;
pub mod zstd;

#[cfg(test)]
mod tests;

pub use blocks::Place;
pub use decode::SpanDecoder;
pub use entry::{Entry, EntryKind, Extent, Timestamp, Whiteout, Xattr};
pub use error::{LayerError, LayerErrorKind};
pub use index::{Geometry, LayerIndex, Span, SpanId, SpanStart};
pub use ingest::{AddressSink, Ingest, IngestOptions};
pub use path::LayerPath;
