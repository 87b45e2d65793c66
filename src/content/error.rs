//! Why bytes could not be had.

use crate::blob;
use crate::cache::CacheError;
use crate::layer::LayerError;

/// Why bytes could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source did not give them.
    #[error(transparent)]
    Blob(#[from] blob::Error),
    /// They are not what the manifest or the index promised.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The caller asked for a layer that the image does not have.
    #[error("the image has no layer {0}")]
    NoSuchLayer(u32),
    /// Threads could not be started.
    #[error("the network threads could not be started: {0}")]
    Runtime(String),
    /// A pack was wrong about this image.
    #[error("the pack that this mount uses is not true to the layers; unmount and mount again")]
    Poisoned,
    /// What a pack says of a layer is not what the layer holds.
    #[error("the pack is not true to layer {0}")]
    Lie(crate::oci::Digest),
    /// A part of a pack could not be used.
    #[error("{0}")]
    Pack(String),
    /// A task ended without an answer.
    #[error("a fetch was abandoned")]
    Abandoned,
}
