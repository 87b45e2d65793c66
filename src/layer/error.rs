//! What can be wrong with a layer, with the layer's name on it.

use crate::layer::gzip::GzipError;
use crate::layer::tar::TarError;
use crate::layer::zstd::ZstdError;
use crate::oci::Digest;
use crate::oci::digest::DigestMismatch;

/// A layer that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("layer {layer}: {kind}")]
pub struct LayerError {
    /// Digest of the blob.
    pub layer: Digest,
    /// What is wrong.
    #[source]
    pub kind: LayerErrorKind,
}

/// What is wrong with a layer.
#[derive(Debug, thiserror::Error)]
pub enum LayerErrorKind {
    /// The gzip data is damaged.
    #[error(transparent)]
    Gzip(#[from] GzipError),
    /// The zstd data is damaged.
    #[error(transparent)]
    Zstd(#[from] ZstdError),
    /// The tar is damaged, or asks for too much.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The blob is not the one that the manifest names.
    #[error("{0}")]
    Blob(DigestMismatch),
    /// The uncompressed tar is not the one that the image configuration names.
    #[error("its uncompressed bytes do not have the diffID of the image configuration: {0}")]
    DiffId(DigestMismatch),
    /// The blob has another length than the manifest says.
    #[error("the blob has {actual} bytes or more where the manifest says {expected}")]
    Size {
        /// Bytes announced.
        expected: u64,
        /// Bytes seen.
        actual: u64,
    },
    /// The uncompressed tar is longer than the caller admits.
    #[error("uncompressed it is longer than {0} bytes")]
    TooLong(u64),
    /// The uncompressed bytes could not be stored.
    #[error("storing it failed: {0}")]
    Sink(#[source] std::io::Error),
    /// The thread that works on the uncompressed bytes could not be started, or has died.
    #[error("its indexing thread failed: {0}")]
    Thread(#[source] std::io::Error),
    /// It was pushed on after an error.
    #[error("reading it has failed before")]
    Ended,
    /// No decoding can begin at this span, or there is no such span.
    #[error("spans {0}..{1} cannot be decoded on their own")]
    Spans(usize, usize),
    /// A span is longer than may be held in memory.
    #[error("span {0} is too long to be decoded")]
    SpanTooLong(usize),
    /// A span's compressed bytes end before its address bytes are complete, or more were pushed
    /// than its range has.
    #[error("the compressed bytes of span {0} do not give its {1} bytes")]
    SpanLength(usize, u64),
    /// A span's bytes are not the ones that were indexed.
    #[error("span {0} does not match its SHA-256")]
    SpanDigest(usize),
    /// The window of a span is damaged.
    #[error("the window of span {0} is damaged")]
    Window(usize),
}

impl LayerErrorKind {
    /// Puts the layer's name on it.
    pub(crate) fn of(self, layer: &Digest) -> LayerError {
        LayerError {
            layer: layer.clone(),
            kind: self,
        }
    }
}
