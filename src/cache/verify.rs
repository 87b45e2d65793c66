//! Looking at everything that the cache holds, and mending it: what is damaged is forgotten, so that
//! it is fetched again when somebody wants it.

use std::io::Read;

use super::layers::{INDEX, StoredLayer};
use super::stores::{self, Owner};
use super::{Cache, CacheError};
use crate::oci::Digest;
use crate::oci::digest::Verifier;

/// Bytes of a blob that are read at once.
const PIECE_BYTES: usize = 256 << 10;

/// What was looked at, and what was found damaged and forgotten.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verified {
    /// Each layer.
    pub layers: Vec<VerifiedLayer>,
    /// Pages that came from packs.
    pub pack_pages: u64,
    /// Those of them that did not have their sum.
    pub pack_pages_damaged: u64,
    /// Manifests, configurations, tags, pins, and blobs that no registry has.
    pub documents: u64,
    /// Those of them that were not what their name says.
    pub documents_damaged: u64,
}

/// What was found of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedLayer {
    /// Digest of the blob.
    pub blob: Digest,
    /// Pages that are present.
    pub pages: u64,
    /// Those of them that did not have their sum.
    pub pages_damaged: u64,
    /// Whether the index could not be used: then the whole layer was forgotten.
    pub index_damaged: bool,
}

impl Verified {
    /// How many things were damaged.
    pub fn damaged(&self) -> u64 {
        let layer = |l: &VerifiedLayer| l.pages_damaged + u64::from(l.index_damaged);
        let layers: u64 = self.layers.iter().map(layer).sum();
        layers + self.pack_pages_damaged + self.documents_damaged
    }
}

impl Cache {
    /// Looks at every sum and every digest. What mounts do meanwhile does no harm.
    pub fn verify(&self) -> Result<Verified, CacheError> {
        let mut verified = Verified::default();
        self.verify_indexes(&mut verified)?;
        self.verify_pages(&mut verified)?;
        self.verify_documents(&mut verified)?;
        verified.layers.sort_by(|a, b| a.blob.cmp(&b.blob));
        Ok(verified)
    }

    fn verify_indexes(&self, verified: &mut Verified) -> Result<(), CacheError> {
        stores::each_layer(&self.root, |parent, layer, blob| {
            let mut index_damaged = layer.stat(INDEX)?.is_some();
            if let Some(directory) = parent.directory(blob.hex())?
                && let Some(stored) = StoredLayer::open(&self.root, directory, blob)?
            {
                // Reading a damaged index forgets the layer.
                index_damaged = match stored.index() {
                    Ok(_) => false,
                    Err(CacheError::Damaged { .. }) => true,
                    Err(CacheError::Gone(_)) => return Ok(()),
                    Err(other) => return Err(other),
                };
            } else {
                super::Staging::discard(&self.root, parent, blob.hex())?;
            }
            verified.layers.push(VerifiedLayer {
                blob: blob.clone(),
                pages: 0,
                pages_damaged: 0,
                index_damaged,
            });
            Ok(())
        })
    }

    fn verify_pages(&self, verified: &mut Verified) -> Result<(), CacheError> {
        stores::each(&self.root, |store| {
            let Some(pages) = store.pages(&self.root)? else {
                return Ok(());
            };
            let found = pages.verify(!store.lent)?;
            match &store.owner {
                Owner::Pack { .. } => {
                    verified.pack_pages += found.pages;
                    verified.pack_pages_damaged += found.damaged;
                }
                Owner::Layer(blob) => {
                    let of = verified.layers.iter_mut().find(|l| l.blob == *blob);
                    if let Some(layer) = of {
                        layer.pages = found.pages;
                        layer.pages_damaged = found.damaged;
                    }
                }
            }
            Ok(())
        })
    }

    /// Whether the blob in the file `name` has the digest that it is called by.
    fn is_whole_blob(&self, name: &str) -> Result<bool, CacheError> {
        let Ok(digest) = name.replacen('-', ":", 1).parse::<Digest>() else {
            return Ok(false);
        };
        let Some(mut file) = self.root.blobs.file(name, false)? else {
            return Ok(true);
        };
        let mut verifier = Verifier::new(digest);
        let mut piece = vec![0; PIECE_BYTES];
        let failed = |e| CacheError::io("read", &self.root.blobs.path_of(name), e);
        loop {
            match file.read(&mut piece).map_err(failed)? {
                0 => return Ok(verifier.finish().is_ok()),
                read => verifier.update(&piece[..read]),
            }
        }
    }

    fn verify_documents(&self, verified: &mut Verified) -> Result<(), CacheError> {
        let root = &self.root;
        for name in root.blobs.names()? {
            verified.documents += 1;
            if !self.is_whole_blob(&name)? {
                verified.documents_damaged += 1;
                root.blobs.remove(&name)?;
            }
        }
        for name in root.documents.names()? {
            verified.documents += 1;
            // One that does not have its digest is removed by looking at it.
            let named = name.replacen('-', ":", 1).parse::<Digest>().ok();
            if named.is_none_or(|digest| self.document(&digest).is_none()) {
                verified.documents_damaged += 1;
                root.documents.remove(&name)?;
            }
        }
        for name in root.tags.names()? {
            verified.documents += 1;
            if self.tag_in(&name).is_none() {
                verified.documents_damaged += 1;
                root.tags.remove(&name)?;
            }
        }
        for name in root.pins.names()? {
            verified.documents += 1;
            if root.read_pin(&name)?.is_none() {
                verified.documents_damaged += 1;
                root.pins.remove(&name)?;
            }
        }
        Ok(())
    }
}
