//! The cache: what was fetched and verified, shared by all processes of one user.
//!
//! ```text
//! ROOT/v1/layers/sha256/HEX/index     immutable, framed (see `layers`)
//!                          /lent      the kernel was given `data`: it may be unlinked, not punched
//!                          /pages/    data, sums, present (see `pages`, `whole`), checked (see `lend`);
//!                                     may be dropped at any time
//!                                     used: when each part of it was (see `recency`)
//!        /documents/sha256-HEX        manifests and configurations
//!        /tags/HEX.json               what a tag last stood for
//!        /profiles/HEX[-HEX]          what earlier starts touched, by the list of layers and by command
//!        /packs/HEX/N/                pages of layer N as a pack has them (see `packs`)
//!        /pins/HEX.json               images that are neither evicted nor pruned
//!        /uppers/HEX.json             whose images have been changed, and where (see `uppers`)
//!        /denied/HEX                  packs that were found to lie
//!        /blobs/sha256-HEX            blobs that no registry has (see `blobs`)
//!        /uploads/HEX.json            where a broken push goes on
//!        /derived/sha256-HEX.KIND     merged trees and EROFS images, by manifest (see `derived`)
//!        /notes/NAME                  what was found out about the machine in this boot
//!        /tmp/PID-RANDOM/             things on their way in or out (see `staging`)
//!        /locks/                      lock files, never removed
//! ```
//!
//! The version is in the directory's name; nobody writes into another version's. Everything that
//! has more than one file is made under `tmp` and appears by rename, and disappears by rename, so
//! that it is whole or not there. The cache knows no formats: indexes and documents are bytes.
//!
//! # Rejected: mmap
//!
//! The bitmap of a layer could be mapped and shared, which saves the look into the file on a miss.
//! But a mapped file that somebody truncates, or a disk that fails, is a SIGBUS in the middle of a
//! mount, and mapping needs `unsafe`. Each process keeps its own copy of the bits instead; they are
//! written to the file with pwrite under the store's flock, and looked at again on a miss, because
//! another process may have filled them. A stale bit is harmless: every page read is checked
//! against its CRC32C.

mod bitmap;
mod blobs;
mod boot;
mod budget;
mod derived;
mod directory;
mod documents;
mod error;
mod evict;
mod fetching;
mod ingest;
mod layers;
mod lend;
mod lock;
mod mapped;
mod packs;
mod pages;
mod pins;
mod profiles;
mod recency;
mod staging;
mod stores;
mod trio;
mod uploads;
mod uppers;
mod usage;
mod verify;
mod whole;

use std::path::Path;
use std::sync::Arc;

pub use blobs::NewBlob;
pub use derived::Derived;
pub use documents::{DOCUMENT_BYTES_MAX, RememberedTag};
pub use error::CacheError;
pub use fetching::FetchRight;
pub use ingest::{Begin, NewLayer};
pub use layers::{HeldIndex, INDEX_BYTES_MAX, StoredLayer};
pub use mapped::Mapped;
pub use pages::{ADDRESS_BYTES_MAX, PAGE_BYTES, Pages, Presence};
pub use pins::Pin;
pub use usage::{Held, LayerUsage, Pruned, Usage};
pub use verify::{Verified, VerifiedLayer};
pub use whole::Whole;

use crate::blob::ByteRange;
use crate::oci::Digest;
use directory::Directory;
use evict::Evictor;
use lock::Lock;
use staging::Staging;

/// Name of the directory below the root: the version of everything in it.
const VERSION: &str = "v1";

/// Disk space that a layer's first stream leaves free, in bytes: a full disk hurts everybody.
pub const FREE_BYTES_RESERVED: u64 = 64 << 20;

/// The cache of one user. Clones share it.
#[derive(Debug, Clone)]
pub struct Cache {
    root: Arc<Root>,
}

/// The open directories.
#[derive(Debug)]
struct Root {
    layers: Directory,
    documents: Directory,
    tags: Directory,
    profiles: Directory,
    packs: Directory,
    pins: Directory,
    uppers: Directory,
    denied: Directory,
    blobs: Directory,
    uploads: Directory,
    derived: Directory,
    notes: Directory,
    tmp: Directory,
    locks: Directory,
    /// Present when the page stores have a budget.
    evictor: Option<Evictor>,
}

impl Root {
    /// The directory that holds the directory of `blob`.
    fn layers(&self, blob: &Digest) -> Result<Directory, CacheError> {
        self.layers.ensure(blob.algorithm().as_str())
    }

    /// Fails when `bytes` more would leave too little free.
    fn check_free(&self, bytes: u64) -> Result<(), CacheError> {
        if self.tmp.free_bytes()? < bytes.saturating_add(FREE_BYTES_RESERVED) {
            return Err(CacheError::Full {
                path: self.layers.path_of(""),
            });
        }
        Ok(())
    }
}

impl Cache {
    /// Opens the cache in `root`, which is made with mode 0700 if it is missing, and removes what
    /// dead processes left unfinished.
    ///
    /// # Errors
    ///
    /// [`CacheError::Foreign`] and [`CacheError::Writable`] when others could change what is in it.
    pub fn open(root: &Path) -> Result<Cache, CacheError> {
        Cache::open_within(root, None)
    }

    /// The same, where page stores may hold no more than `budget` bytes on disk: what this process
    /// stores above that makes it evict what was used least recently, whoever stored it. Indexes and
    /// documents do not count, and stay.
    pub fn open_within(root: &Path, budget: Option<u64>) -> Result<Cache, CacheError> {
        let version = Directory::open_root(root)?.ensure(VERSION)?;
        let root = Root {
            layers: version.ensure("layers")?,
            documents: version.ensure("documents")?,
            tags: version.ensure("tags")?,
            profiles: version.ensure("profiles")?,
            packs: version.ensure("packs")?,
            pins: version.ensure("pins")?,
            uppers: version.ensure("uppers")?,
            denied: version.ensure("denied")?,
            blobs: version.ensure("blobs")?,
            uploads: version.ensure("uploads")?,
            derived: version.ensure("derived")?,
            notes: version.ensure("notes")?,
            tmp: version.ensure("tmp")?,
            locks: version.ensure("locks")?,
            evictor: budget.map(Evictor::new),
        };
        match staging::remove_leftovers(&root) {
            // What is in it can still be read.
            Err(error) if error.is_read_only() => {}
            removed => removed?,
        }
        Ok(Cache {
            root: Arc::new(root),
        })
    }

    /// Evicts if more is held than the budget allows: an earlier process may have had a larger one.
    /// Returns at once.
    pub fn trim(&self) {
        evict::soon(&self.root);
    }

    /// The same, now: for who has stored a lot at once and needs it no longer.
    pub fn keep_within_budget(&self) {
        evict::now(&self.root);
    }

    /// A layer whose index is stored; `None` for one that has to be streamed first.
    pub fn layer(&self, blob: &Digest) -> Result<Option<StoredLayer>, CacheError> {
        let Some(directory) = self.root.layers(blob)?.directory(blob.hex())? else {
            return Ok(None);
        };
        StoredLayer::open(&self.root, directory, blob)
    }

    /// Starts to store a layer, unless it is stored. `address_hint` is how many bytes it will have
    /// at least (its compressed size), to fail early on a full disk. Blocks while another process
    /// or thread streams the same layer.
    pub fn begin(&self, blob: &Digest, address_hint: u64) -> Result<Begin, CacheError> {
        let (file, name) = self.ingest_lock(blob)?;
        let lock = Lock::wait(file, true)
            .map_err(|e| CacheError::io("lock", &self.root.locks.path_of(&name), e))?;
        self.begin_locked(blob, address_hint, lock)
    }

    /// Like [`Cache::begin`], but `None` at once while somebody else streams the layer.
    pub fn try_begin(&self, blob: &Digest, address_hint: u64) -> Result<Option<Begin>, CacheError> {
        let (file, name) = self.ingest_lock(blob)?;
        let lock = Lock::attempt(file)
            .map_err(|e| CacheError::io("lock", &self.root.locks.path_of(&name), e))?;
        lock.map(|lock| self.begin_locked(blob, address_hint, lock))
            .transpose()
    }

    /// Free disk space that layers may use, in bytes.
    pub fn free_bytes(&self) -> Result<u64, CacheError> {
        Ok(self
            .root
            .tmp
            .free_bytes()?
            .saturating_sub(FREE_BYTES_RESERVED))
    }

    fn ingest_lock(&self, blob: &Digest) -> Result<(std::fs::File, String), CacheError> {
        let name = format!("layer-{}-{}", blob.algorithm().as_str(), blob.hex());
        Ok((self.root.locks.ensure_file(&name)?, name))
    }

    fn begin_locked(&self, blob: &Digest, hint: u64, lock: Lock) -> Result<Begin, CacheError> {
        if let Some(known) = self.layer(blob)? {
            return Ok(Begin::Known(known));
        }
        self.root.check_free(hint)?;
        NewLayer::new(&self.root, blob, lock).map(Begin::New)
    }
}

#[cfg(test)]
mod tests;
