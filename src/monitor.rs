//! What the library tells whoever watches: counters and progress. The library never prints.
//!
//! Two implementations exist: [`Silent`] and the worker's, which sends every [`Event`] to the
//! command that started it, where `cli` draws bars or lines.

use serde::{Deserialize, Serialize};

use crate::oci::Digest;

/// Something worth showing while an image becomes usable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Event {
    /// The reference was resolved to this manifest.
    Resolved {
        /// Digest of the image manifest.
        digest: Digest,
        /// Number of layers.
        layers: usize,
    },
    /// A layer starts to stream; `size` is its compressed size in bytes.
    LayerStarted {
        /// Blob digest.
        layer: Digest,
        /// Compressed bytes in all.
        size: u64,
    },
    /// Compressed bytes of the layer that have arrived so far.
    LayerProgress {
        /// Blob digest.
        layer: Digest,
        /// Compressed bytes so far.
        bytes: u64,
    },
    /// The layer is indexed, and its blob digest and diffID have matched.
    LayerDone {
        /// Blob digest.
        layer: Digest,
    },
    /// A blob starts to be pushed; `size` is its length in bytes.
    PushStarted {
        /// Blob digest.
        blob: Digest,
        /// Bytes in all.
        size: u64,
    },
    /// Bytes of the blob that the registry has so far.
    PushProgress {
        /// Blob digest.
        blob: Digest,
        /// Bytes so far.
        bytes: u64,
    },
    /// The registry has the blob.
    Pushed {
        /// Blob digest.
        blob: Digest,
        /// How it came there, for people: `pushed`, `mounted from …`, `there already`.
        how: String,
    },
    /// Something that a person should know and that does not stop the work.
    Warning {
        /// One line.
        message: String,
    },
}

/// Receives events. Implementations must be cheap: they are called from hot loops.
pub trait Monitor: Send + Sync + std::fmt::Debug {
    /// One event happened.
    fn event(&self, event: Event);
}

/// A monitor that hears nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Monitor for Silent {
    fn event(&self, _event: Event) {}
}
