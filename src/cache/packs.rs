//! What came from packs: `packs/HEX/N/` is the page store of layer N of the pack with that digest.
//!
//! Never under a layer's key: a pack says what layers hold, and until that has been proven only
//! mounts whose trust rule admits the pack may see it. A pack that was found to lie is remembered
//! by an empty file in `denied/`.

use super::layers::open_or_make;
use super::staging::{self, Staging};
use super::{Cache, CacheError, Pages};
use crate::oci::Digest;

impl Cache {
    /// The page store of layer `layer`, `size` bytes long, of `pack`.
    pub fn pack_pages(&self, pack: &Digest, layer: u32, size: u64) -> Result<Pages, CacheError> {
        let directory = self.root.packs.ensure(pack.hex())?;
        let pages = open_or_make(&self.root, &directory, &layer.to_string(), size)?;
        pages.ok_or_else(|| CacheError::Gone(pack.clone()))
    }

    /// Removes what came from `pack`. Who has it open keeps it.
    pub fn remove_pack_pages(&self, pack: &Digest) -> Result<(), CacheError> {
        Staging::discard(&self.root, &self.root.packs, pack.hex()).map(drop)
    }

    /// Never to use `pack` again.
    pub fn deny_pack(&self, pack: &Digest) -> Result<(), CacheError> {
        staging::write_file(&self.root, &self.root.denied, pack.hex(), b"")
    }

    /// Whether `pack` was found to lie.
    pub fn is_denied(&self, pack: &Digest) -> bool {
        // What cannot be looked up is treated as denied: a pack only saves time.
        self.root
            .denied
            .stat(pack.hex())
            .map_or(true, |found| found.is_some())
    }
}
