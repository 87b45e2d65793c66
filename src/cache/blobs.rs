//! Blobs as registries have them, of layers that no registry has: they were made here.
//!
//! `blobs/sha256-HEX`. The cache holds no other compressed bytes: what a registry has is fetched
//! again.

use std::fs::File;
use std::io::Write;

use super::directory::Directory;
use super::staging::Staging;
use super::{Cache, CacheError};
use crate::oci::Digest;

/// Bytes between two looks at the free space.
const LOOK_BYTES: u64 = 16 << 20;

/// Name of the file until its digest is known.
const UNNAMED: &str = "blob";

/// A blob that is being written; dropped before [`NewBlob::keep`], it leaves nothing behind.
#[derive(Debug)]
pub struct NewBlob {
    cache: Cache,
    _staging: Staging,
    directory: Directory,
    file: File,
    length: u64,
    look_at: u64,
}

impl NewBlob {
    /// Adds bytes.
    ///
    /// # Errors
    ///
    /// [`CacheError::Full`] when less than [`FREE_BYTES_RESERVED`](super::FREE_BYTES_RESERVED) would stay free.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), CacheError> {
        self.length += bytes.len() as u64;
        if self.length >= self.look_at {
            self.cache.root.check_free(LOOK_BYTES)?;
            self.look_at = self.length + LOOK_BYTES;
        }
        let written = self.file.write_all(bytes);
        written.map_err(|e| CacheError::io("write", &self.directory.path_of(UNNAMED), e))
    }

    /// What was written so far.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Makes the blob visible. The caller knows that the bytes have this digest.
    pub fn keep(self, digest: &Digest) -> Result<(), CacheError> {
        let path = self.directory.path_of(UNNAMED);
        let synced = self.file.sync_all();
        synced.map_err(|e| CacheError::io("sync", &path, e))?;
        let blobs = &self.cache.root.blobs;
        self.directory.rename(UNNAMED, blobs, &name(digest))?;
        blobs.sync()
    }
}

impl Cache {
    /// Starts a blob.
    pub fn new_blob(&self) -> Result<NewBlob, CacheError> {
        self.root.check_free(LOOK_BYTES)?;
        let (staging, directory) = Staging::directory(&self.root)?;
        let file = directory.create(UNNAMED)?;
        Ok(NewBlob {
            cache: self.clone(),
            _staging: staging,
            directory,
            file,
            length: 0,
            look_at: LOOK_BYTES,
        })
    }

    /// A blob that was made here; whoever reads it verifies it.
    pub fn blob(&self, digest: &Digest) -> Result<Option<File>, CacheError> {
        self.root.blobs.file(&name(digest), false)
    }

    /// Removes a blob. Missing is fine.
    pub fn remove_blob(&self, digest: &Digest) -> Result<(), CacheError> {
        self.root.blobs.remove(&name(digest))
    }
}

fn name(digest: &Digest) -> String {
    format!("{}-{}", digest.algorithm().as_str(), digest.hex())
}
