//! What can go wrong with the cache, each naming the object concerned.

use std::io;
use std::path::{Path, PathBuf};

use crate::oci::Digest;
use crate::oci::digest::DigestMismatch;

/// An error of the cache. One line for people; the chain of causes is in `source`.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The cache directory belongs to somebody else, who could put anything into it.
    #[error("cache {} belongs to user {owner}, not to user {user}: choose another --cache-dir", path.display())]
    Foreign {
        /// The cache directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who we are.
        user: u32,
    },
    /// Others may write into the cache directory.
    #[error("cache {} may be written by others (mode {mode:04o}): run chmod go-w on it", path.display())]
    Writable {
        /// The cache directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The disk (or the quota) is full. The caller may go on without the cache.
    #[error("no space left in cache {}: free some, or run `rsmount cache prune`", path.display())]
    Full {
        /// What could not be written.
        path: PathBuf,
    },
    /// What is stored is not what was once written.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file concerned.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The layer was removed by somebody else in the meantime.
    #[error("layer {0} was removed from the cache")]
    Gone(Digest),
    /// A read or write that the layer's address space cannot have.
    #[error("bytes {start}..{end} cannot be asked of a layer of {size} bytes")]
    Range {
        /// First byte.
        start: u64,
        /// One past the last byte.
        end: u64,
        /// Length of the address space.
        size: u64,
    },
    /// A document is larger than any document may be.
    #[error("document {digest} has {bytes} bytes ({max} at most)")]
    TooLarge {
        /// The document.
        digest: Digest,
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// A document does not have the digest that it is stored under.
    #[error("document not stored")]
    Digest(#[from] DigestMismatch),
    /// Anything else that the operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// A verb.
        action: &'static str,
        /// The file or directory concerned.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl CacheError {
    /// An operating system error while doing `action` to `path`; a full disk or quota is
    /// [`CacheError::Full`].
    pub(super) fn io(
        action: &'static str,
        path: &Path,
        source: impl Into<io::Error>,
    ) -> CacheError {
        let (path, source) = (path.to_owned(), source.into());
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => CacheError::Full { path },
            _ => CacheError::Io {
                action,
                path,
                source,
            },
        }
    }

    /// Whether the cache has no room for more: whoever holds the bytes can go on without it.
    pub fn is_full(&self) -> bool {
        matches!(self, CacheError::Full { .. })
    }

    /// Whether the cache cannot be written at all.
    pub fn is_read_only(&self) -> bool {
        let of = io::ErrorKind::ReadOnlyFilesystem;
        matches!(self, CacheError::Io { source, .. } if source.kind() == of)
    }
}
