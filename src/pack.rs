//! Packs: what one node learned of an image, as an artifact that refers to it in the registry.
//!
//! ```text
//! manifest   subject: the image manifest; artifactType: ARTIFACT_TYPE; signatures as annotations
//!   layer 0  meta: indexes of all layers without windows, profile, list of hot ranges (zstd)
//!   layer 1  hot: the pages of the profile, first use first (zstd frames)
//!   layer 2… windows of the checkpoints, one blob a layer of the image
//! ```
//!
//! Meta is also inline (`data`) while it is short, so that one request brings all that a mount
//! needs before it is usable. Everything here is pure: bytes in, bytes out.
//!
//! Invariant: nothing of a pack is believed further than the trust rule of the mount allows. The
//! digests make sure that it is what its publisher wrote; whether that is what the layers hold is
//! proven by streaming them.

pub mod hot;
pub mod key;
pub mod manifest;
pub mod meta;
mod reader;
pub mod signature;
pub mod windows;

pub use hot::{HotRange, HotReader};
pub use key::{PublicKey, SecretKey};
pub use manifest::{ARTIFACT_TYPE, PackManifest};
pub use meta::Meta;
pub use signature::Signed;

/// Why bytes are not a part of a pack.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the pack is damaged: {0}")]
pub struct PackError(pub &'static str);
