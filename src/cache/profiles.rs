//! What earlier starts of an image touched, by a key that stands for its list of layers. A profile
//! is a hint: one that is missing or damaged costs speed, nothing else.

use super::{Cache, CacheError, staging};
use crate::oci::Digest;

/// The largest profile that is read.
const PROFILE_BYTES_MAX: usize = 8 << 20;

impl Cache {
    /// Stores the profile of `key`.
    pub fn put_profile(&self, key: &Digest, bytes: &[u8]) -> Result<(), CacheError> {
        staging::write_file(&self.root, &self.root.profiles, key.hex(), bytes)
    }

    /// The profile of `key`, as it was stored.
    pub fn profile(&self, key: &Digest) -> Option<Vec<u8>> {
        let read = self.root.profiles.read(key.hex(), PROFILE_BYTES_MAX);
        read.ok().flatten()
    }

    /// Removes all profiles: the next starts have nothing to go by.
    pub fn forget_profiles(&self) -> Result<(), CacheError> {
        let names = self.root.profiles.names()?;
        names
            .iter()
            .try_for_each(|name| self.root.profiles.remove(name))
    }
}
