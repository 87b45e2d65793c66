//! Pinned images: `pins/HEX.json`, by the digest of the image's manifest. What a pin names is neither
//! evicted nor pruned. A pin that cannot be read pins nothing, and `verify` says so.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::{Cache, CacheError, Root, staging};
use crate::oci::Digest;

/// The largest pin that is read: a digest of 71 bytes for each of some thousand layers.
const PIN_BYTES_MAX: usize = 1 << 20;

/// What is held of one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// As it was named.
    pub image: String,
    /// Digest of the image manifest.
    pub digest: Digest,
    /// Digests of the documents without which it cannot be mounted.
    pub documents: Vec<Digest>,
    /// Digests of the layers' blobs, base first.
    pub layers: Vec<Digest>,
}

impl Cache {
    /// Holds what `pin` names, for any mount of any process.
    pub fn pin(&self, pin: &Pin) -> Result<(), CacheError> {
        let name = file_name(&pin.digest);
        let bytes = serde_json::to_vec(pin)
            .map_err(|e| CacheError::io("write", &self.root.pins.path_of(&name), e))?;
        staging::write_file(&self.root, &self.root.pins, &name, &bytes)
    }

    /// Lets go of the image of that manifest; whether it was pinned.
    pub fn unpin(&self, digest: &Digest) -> Result<bool, CacheError> {
        let name = file_name(digest);
        let pinned = self.root.pins.stat(&name)?.is_some();
        self.root.pins.remove(&name)?;
        Ok(pinned)
    }

    /// All pins, by name.
    pub fn pins(&self) -> Result<Vec<Pin>, CacheError> {
        self.root.pins()
    }
}

impl Root {
    pub(super) fn pins(&self) -> Result<Vec<Pin>, CacheError> {
        let mut pins = Vec::new();
        for name in self.pins.names()? {
            pins.extend(self.read_pin(&name)?);
        }
        pins.sort_by(|a: &Pin, b| (&a.image, &a.digest).cmp(&(&b.image, &b.digest)));
        Ok(pins)
    }

    /// The pin in file `name`; `None` when it makes no sense.
    pub(super) fn read_pin(&self, name: &str) -> Result<Option<Pin>, CacheError> {
        let bytes = self.pins.read(name, PIN_BYTES_MAX)?;
        let pin: Option<Pin> = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Ok(pin.filter(|pin| file_name(&pin.digest) == name))
    }

    /// Blobs of the layers that are pinned.
    pub(super) fn pinned_layers(&self) -> Result<HashSet<Digest>, CacheError> {
        Ok(self
            .pins()?
            .into_iter()
            .flat_map(|pin| pin.layers)
            .collect())
    }
}

fn file_name(digest: &Digest) -> String {
    format!("{}.json", digest.hex())
}
