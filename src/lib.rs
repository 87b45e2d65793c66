//! Mount a container image as a file system: lazily, verified, exactly as it was pushed.
//!
//! # The way of the data
//!
//! ```text
//! reference -> registry -> manifest -> layer index -> merged tree -> FUSE
//!                                          |                          |
//!                                     spans, digests  <-  content  <- read(ino, offset, len)
//!                                          |                 |
//!                                     blob ranges  ->  cache (sparse file + bitmap)
//! ```
//!
//! # Rooms and ranks
//!
//! A room may use only rooms of lower rank; `tests/architecture.rs` holds it.
//!
//! | rank | room | what lives there |
//! |---|---|---|
//! | 0 | [`oci`] | nouns of the OCI specifications, no I/O |
//! | 1 | [`monitor`] | progress events; the library never prints |
//! | 1 | [`blob`] | bytes by range from somewhere else: the trait, retry, limit |
//! | 2 | [`cache`] | sparse data + bitmap + sums per layer, documents, tags; knows no formats |
//! | 2 | [`registry`] | the distribution protocol: HTTP, auth, redirects |
//! | 2 | [`archive`] | OCI layouts and `docker save` archives as sources of blobs |
//! | 2 | [`layer`] | tar, gzip, zstd to an index, and spans back to bytes; sans-IO |
//! | 3 | [`tree`] | merge of layer indexes into one immutable tree |
//! | 4 | [`content`] | read(layer, range): cache, blob, decode, verify; first contact |
//! | 4 | [`erofs`] | a merged tree as an EROFS image: tree in, bytes out |
//! | 5 | [`fs`] | the file system without FUSE; the one place that knows errno |
//! | 5 | [`pack`] | what one node learned of an image, as an artifact beside it: pure codecs |
//! | 6 | [`fuse`] | translates FUSE requests to `fs`; decides nothing |
//! | 7 | [`mount`] | composition root and daemon |
//! | 7 | [`runtime`] | OCI runtimes: `config.json`, and crun, runc, youki as processes |
//! | 8 | [`image`] | images as docker users know them: what they are, what is in them, the store |
//! | 8 | [`container`] | from an image's configuration to a process in its mount, and its life |
//! | 9 | [`cli`] | arguments, output; the only room that prints |
//!
//! # Invariants
//!
//! - Bytes reach a reader only after their SHA-256 has matched the manifest, or an index made from
//!   verified bytes, or a pack that the mount's trust rule admits and that is compared with the layers
//!   behind the mount; and, when they come from our own disk, after their page's CRC32C has matched. The
//!   kernel is lent files of which every page was seen to have its sum in the same boot.
//! - Whiteouts act on lower layers only: they are a list of their own ([`layer::LayerIndex`]).
//! - The merged tree is immutable; inode numbers depend on the layers alone.
//! - FUSE threads never wait for the network.

pub mod archive;
pub mod blob;
pub mod cache;
pub mod cli;
pub mod container;
pub mod content;
pub mod erofs;
pub mod fs;
pub mod fuse;
pub mod image;
pub mod layer;
pub mod monitor;
pub mod mount;
pub mod oci;
pub mod pack;
pub mod registry;
pub mod runtime;
pub mod tree;
