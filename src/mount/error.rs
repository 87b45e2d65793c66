//! Why an image could not be mounted.

use std::path::PathBuf;

use crate::mount::mountpoint::MountpointError;
use crate::oci::config::ConfigError;
use crate::oci::manifest::ManifestError;

/// Why an image could not be mounted; each is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image's name makes no sense.
    #[error("{0}")]
    Name(String),
    /// The registry or archive did not give what was needed.
    #[error(transparent)]
    Blob(#[from] crate::blob::Error),
    /// A manifest or configuration is not usable.
    #[error("{image}: {source}")]
    Manifest {
        /// As typed.
        image: String,
        /// What is wrong.
        source: ManifestError,
    },
    /// An image configuration is not usable.
    #[error("{image}: {source}")]
    Config {
        /// As typed.
        image: String,
        /// What is wrong.
        source: ConfigError,
    },
    /// An index in an index.
    #[error(
        "{0}: its index names another index for this platform, which is not supported; give \
             the digest of the image itself"
    )]
    NestedIndex(String),
    /// The sandbox that was asked for cannot be had.
    #[error("no complete sandbox here: {0}; --sandbox auto takes what there is")]
    Sandbox(String),
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] crate::cache::CacheError),
    /// A layer could not be indexed or verified.
    #[error(transparent)]
    Content(#[from] crate::content::Error),
    /// A stored index is damaged.
    #[error("the index of layer {layer} is damaged: {source}")]
    Index {
        /// Blob digest.
        layer: crate::oci::Digest,
        /// What is wrong.
        source: crate::layer::codec::CodecError,
    },
    /// The layers do not make a tree.
    #[error("{image}: {source}")]
    Merge {
        /// As typed.
        image: String,
        /// What is wrong.
        source: crate::tree::MergeError,
    },
    /// The layers have more in them than is taken into memory.
    #[error("{image}: {source}")]
    Limit {
        /// As typed.
        image: String,
        /// Which limit.
        source: crate::layer::limit::LimitError,
    },
    /// The mountpoint cannot be used.
    #[error(transparent)]
    Mountpoint(#[from] MountpointError),
    /// The upper directory cannot be used.
    #[error(transparent)]
    Upper(#[from] crate::mount::upper::UpperError),
    /// There is no overlay above the image.
    #[error(transparent)]
    Overlay(#[from] crate::mount::overlay::OverlayError),
    /// FUSE said no.
    #[error("{}: cannot mount: {hint}", .mountpoint.display())]
    Fuse {
        /// Where.
        mountpoint: PathBuf,
        /// What to do.
        hint: String,
        /// What the kernel or fusermount3 said.
        source: std::io::Error,
    },
    /// The kernel engine was asked for, and cannot be.
    #[error("--engine kernel is not possible here: {0}; --engine auto takes what is")]
    Engine(String),
    /// Another process cannot go on with the mount.
    #[error("cannot go on with this mount: {0}")]
    Resume(String),
    /// Not in the cache, and the network may not be used.
    #[error("{0} is not in the cache and --offline was given; mount it once without --offline")]
    Offline(String),
    /// A pack could not be made or stored.
    #[error("cannot publish: {0}")]
    Publish(String),
    /// An image cannot be pinned, or is not.
    #[error("{0}")]
    Pin(String),
    /// The caller went away, or a signal came.
    #[error("interrupted; nothing was mounted")]
    Interrupted,
    /// Something of this machine.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: std::io::Error,
    },
}

impl Error {
    /// Puts a word on an I/O error.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
        let what = what.into();
        move |source| Error::Io { what, source }
    }
}
