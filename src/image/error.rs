//! Why something could not be done with an image.

use crate::oci::Digest;

/// Why something could not be done with an image; each is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image could not be had.
    #[error(transparent)]
    Mount(#[from] crate::mount::Error),
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] crate::cache::CacheError),
    /// The source of the image failed.
    #[error(transparent)]
    Blob(#[from] crate::blob::Error),
    /// A login cannot be kept or forgotten.
    #[error(transparent)]
    Credentials(#[from] crate::registry::credentials::CredentialsError),
    /// The bytes of a layer could not be had.
    #[error(transparent)]
    Content(#[from] crate::content::Error),
    /// The bytes of a file could not be had.
    #[error("{0}")]
    Fetch(#[source] std::sync::Arc<crate::content::Error>),
    /// What was asked of a path is not possible.
    #[error("{image}:{path}: {what}")]
    Path {
        /// As typed.
        image: String,
        /// Inside the image.
        path: String,
        /// What is wrong.
        what: &'static str,
    },
    /// A file on this machine.
    #[error("{}: {what}", .path.display())]
    File {
        /// Which.
        path: std::path::PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Where the bytes should go.
    #[error("cannot write: {0}")]
    Output(#[source] std::io::Error),
    /// A manifest or configuration that was there a moment ago.
    #[error("{0} was removed from the cache meanwhile; try again")]
    Gone(Digest),
    /// A configuration is not usable.
    #[error("{image}: {source}")]
    Config {
        /// As typed.
        image: String,
        /// What is wrong.
        source: crate::oci::config::ConfigError,
    },
    /// A layer as its registry has it cannot be had.
    #[error("{image}: the original of layer {layer} is not kept here, and cannot be had: {source}")]
    Original {
        /// As typed.
        image: String,
        /// Blob digest.
        layer: Digest,
        /// Why not.
        source: crate::blob::Error,
    },
    /// A name that makes no sense here.
    #[error("{0}")]
    Name(String),
    /// An image that is not in the store.
    #[error("{0} is not known here (`rsmount images` lists what is; `rsmount pull` brings it)")]
    Unknown(String),
    /// The beginning of several IDs.
    #[error("{0} is how the IDs of several images begin; give more digits, or a name")]
    ManyImages(String),
    /// An image that a mount needs.
    #[error("{image} is mounted at {at}: unmount it first, or give -f to forget its name alone")]
    InUse {
        /// As typed.
        image: String,
        /// The mountpoint.
        at: String,
    },
    /// An image that was changed.
    #[error(
        "{image} is what the changes in {} were made on: remove those first, or give -f to forget its \
         name alone",
        .dir.display()
    )]
    Changed {
        /// As typed.
        image: String,
        /// The upper directory.
        dir: std::path::PathBuf,
    },
    /// An image that shall stay.
    #[error("{0} is pinned: `rsmount cache unpin` it first, or give -f to forget its name alone")]
    Pinned(String),
    /// An ID that several names have.
    #[error("{0} has {1} names: give the name, or -f for all of them")]
    ManyNames(String, usize),
    /// The records of mounts.
    #[error("cannot look at the mounts that run: {0}")]
    Runtime(String),
    /// `--format` makes no sense.
    #[error("--format: {0}")]
    Template(String),
}

impl Error {
    /// What the kernel said about a file on this machine.
    pub(super) fn file(path: &std::path::Path, error: impl Into<std::io::Error>) -> Error {
        let error = error.into().to_string();
        let what = error
            .split(" (os error")
            .next()
            .unwrap_or(&error)
            .to_owned();
        Error::File {
            path: path.to_owned(),
            what,
        }
    }
}
