//! Small things by digest (manifests, configurations, trees), and what tags last stood for.

use serde::{Deserialize, Serialize};

use super::{Cache, CacheError, staging};
use crate::oci::Digest;

/// The largest document: registries refuse manifests over 4 MiB, and configurations stay far below
/// that; the rest is room for what is derived from them.
pub const DOCUMENT_BYTES_MAX: usize = 64 << 20;

/// The largest file that remembers a tag: two names and a digest.
const TAG_BYTES_MAX: usize = 64 << 10;

/// What a tag stood for when it was last asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RememberedTag {
    /// Media type of the manifest or index.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Names of the images whose sources have the bytes, when that is not the tag's own name: the
    /// tag was given here, or the image was made or loaded here.
    pub sources: Vec<String>,
}

/// The file: it repeats the key, because its name is only the key's hash.
#[derive(Serialize, Deserialize)]
struct StoredTag {
    key: String,
    media_type: String,
    digest: Digest,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    sources: Vec<String>,
}

impl Cache {
    /// Stores a document under its digest.
    ///
    /// # Errors
    ///
    /// [`CacheError::Digest`] when the bytes do not have it.
    pub fn put_document(&self, digest: &Digest, bytes: &[u8]) -> Result<(), CacheError> {
        if bytes.len() > DOCUMENT_BYTES_MAX {
            let (digest, bytes) = (digest.clone(), bytes.len());
            return Err(CacheError::TooLarge {
                digest,
                bytes,
                max: DOCUMENT_BYTES_MAX,
            });
        }
        digest.verify(bytes)?;
        staging::write_file(
            &self.root,
            &self.root.documents,
            &document_name(digest),
            bytes,
        )
    }

    /// A document, verified by its digest; one that does not have it (any more) is removed.
    pub fn document(&self, digest: &Digest) -> Option<Vec<u8>> {
        let name = document_name(digest);
        let bytes = self
            .root
            .documents
            .read(&name, DOCUMENT_BYTES_MAX)
            .ok()
            .flatten()?;
        if digest.verify(&bytes).is_ok() {
            return Some(bytes);
        }
        // Best effort: it is looked at again, and refused again, next time.
        let _ = self.root.documents.remove(&name);
        None
    }

    /// Remembers what `key` (a tag's full name, and whatever else the answer depends on) stands for.
    pub fn remember_tag(
        &self,
        key: &str,
        media_type: &str,
        digest: &Digest,
    ) -> Result<(), CacheError> {
        let (media_type, digest) = (media_type.to_owned(), digest.clone());
        let tag = RememberedTag {
            media_type,
            digest,
            sources: Vec::new(),
        };
        self.remember(key, tag)
    }

    /// Like [`Cache::remember_tag`], for a tag whose bytes are elsewhere than its name says.
    pub fn remember(&self, key: &str, tag: RememberedTag) -> Result<(), CacheError> {
        let (name, path) = (tag_name(key), self.root.tags.path_of(&tag_name(key)));
        let RememberedTag {
            media_type,
            digest,
            sources,
        } = tag;
        let stored = StoredTag {
            key: key.to_owned(),
            media_type,
            digest,
            sources,
        };
        let bytes = serde_json::to_vec(&stored).map_err(|e| CacheError::io("write", &path, e))?;
        staging::write_file(&self.root, &self.root.tags, &name, &bytes)
    }

    /// What `key` last stood for.
    pub fn tag(&self, key: &str) -> Option<RememberedTag> {
        let (found, tag) = self.read_tag(&tag_name(key))?;
        (found == key).then_some(tag)
    }

    /// What the file `name` of a tag says; `None` when that makes no sense.
    pub(super) fn tag_in(&self, name: &str) -> Option<RememberedTag> {
        let (key, tag) = self.read_tag(name)?;
        (tag_name(&key) == name).then_some(tag)
    }

    /// All that is remembered, with its keys, in the order of these.
    pub fn tags(&self) -> Result<Vec<(String, RememberedTag)>, CacheError> {
        let names = self.root.tags.names()?;
        let mut tags: Vec<_> = names.iter().filter_map(|n| self.read_tag(n)).collect();
        tags.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(tags)
    }

    /// Forgets `key`; whether it was remembered.
    pub fn forget_tag(&self, key: &str) -> Result<bool, CacheError> {
        let known = self.tag(key).is_some();
        if known {
            self.root.tags.remove(&tag_name(key))?;
        }
        Ok(known)
    }

    /// Removes a document. Missing is fine.
    pub fn remove_document(&self, digest: &Digest) -> Result<(), CacheError> {
        self.root.documents.remove(&document_name(digest))
    }

    fn read_tag(&self, name: &str) -> Option<(String, RememberedTag)> {
        let bytes = self.root.tags.read(name, TAG_BYTES_MAX).ok().flatten()?;
        let stored: StoredTag = serde_json::from_slice(&bytes).ok()?;
        let tag = RememberedTag {
            media_type: stored.media_type,
            digest: stored.digest,
            sources: stored.sources,
        };
        Some((stored.key, tag))
    }
}

pub(super) fn document_name(digest: &Digest) -> String {
    format!("{}-{}", digest.algorithm().as_str(), digest.hex())
}

fn tag_name(key: &str) -> String {
    format!("{}.json", Digest::of(key.as_bytes()).hex())
}
