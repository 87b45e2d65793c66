//! Uploads that were begun and not ended: where each goes on.
//!
//! `uploads/HEX.json`, by what is uploaded where. A place is good for as long as the registry keeps
//! it; one that it forgot costs a question.

use serde::{Deserialize, Serialize};

use super::{Cache, CacheError, staging};
use crate::oci::Digest;

/// The largest such file: a URL, in which a registry may keep some state.
const UPLOAD_BYTES_MAX: usize = 64 << 10;

/// The file: it repeats the key, because its name is only the key's hash.
#[derive(Serialize, Deserialize)]
struct Stored {
    key: String,
    place: String,
}

impl Cache {
    /// Remembers where the upload `key` goes on.
    pub fn remember_upload(&self, key: &str, place: &str) -> Result<(), CacheError> {
        let path = self.root.uploads.path_of(&name(key));
        let stored = Stored {
            key: key.to_owned(),
            place: place.to_owned(),
        };
        let bytes = serde_json::to_vec(&stored).map_err(|e| CacheError::io("write", &path, e))?;
        staging::write_file(&self.root, &self.root.uploads, &name(key), &bytes)
    }

    /// Where the upload `key` goes on.
    pub fn upload(&self, key: &str) -> Option<String> {
        let bytes = self.root.uploads.read(&name(key), UPLOAD_BYTES_MAX);
        let stored: Stored = serde_json::from_slice(&bytes.ok().flatten()?).ok()?;
        (stored.key == key).then_some(stored.place)
    }

    /// Forgets the upload `key`. Missing is fine.
    pub fn forget_upload(&self, key: &str) -> Result<(), CacheError> {
        self.root.uploads.remove(&name(key))
    }
}

fn name(key: &str) -> String {
    format!("{}.json", Digest::of(key.as_bytes()).hex())
}
