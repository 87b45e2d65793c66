//! How much the cache holds, and giving it back.

use std::sync::Arc;

use super::directory::Directory;
use super::layers::{INDEX, PAGES};
use super::staging::{self, Staging};
use super::{Cache, CacheError};
use crate::oci::Digest;

/// Unit of `st_blocks` (stat(2)).
const BLOCK_BYTES: u64 = 512;

/// What was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pruned {
    /// Layers that lost their pages.
    pub layers: u64,
    /// Disk space in bytes; what a running mount holds open comes free when it ends.
    pub bytes: u64,
}

/// What the cache holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Usage {
    /// Each stored layer, by digest.
    pub layers: Vec<LayerUsage>,
    /// Number of documents.
    pub documents: u64,
    /// Their disk space in bytes.
    pub document_bytes: u64,
}

/// What one layer holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerUsage {
    /// Digest of the blob.
    pub blob: Digest,
    /// Length of the index in bytes.
    pub index_bytes: u64,
    /// Disk space of the page store in bytes.
    pub data_bytes: u64,
}

impl Cache {
    /// Drops all page stores and keeps the indexes: mounts stay possible, bytes are fetched again.
    /// Running mounts keep the stores that they have open.
    pub fn prune_data(&self) -> Result<Pruned, CacheError> {
        let mut pruned = self.each_layer(|_, layer, _| {
            let Some(pages) = layer.directory(PAGES)? else {
                return Ok(None);
            };
            let bytes = disk_bytes(&pages)?;
            let moved = Staging::discard(&self.root, layer, PAGES)?;
            Ok(moved.then_some(bytes))
        })?;
        pruned.bytes += self.prune_packs()?;
        Ok(pruned)
    }

    /// Drops what came from packs; the disk space in bytes.
    fn prune_packs(&self) -> Result<u64, CacheError> {
        let mut bytes = 0;
        for name in self.root.packs.names()? {
            if let Some(pack) = self.root.packs.directory(&name)? {
                for layer in pack.names()? {
                    bytes += pack.directory(&layer)?.map_or(Ok(0), |l| disk_bytes(&l))?;
                }
            }
            Staging::discard(&self.root, &self.root.packs, &name)?;
        }
        Ok(bytes)
    }

    /// Drops everything: layers, documents, tags. Layers that are being streamed right now stay.
    pub fn prune_all(&self) -> Result<Pruned, CacheError> {
        let mut pruned = self.each_layer(|layers, layer, blob| {
            let pages = layer.directory(PAGES)?;
            let bytes = pages.map_or(Ok(0), |p| disk_bytes(&p))? + disk_bytes(layer)?;
            let moved = Staging::discard(&self.root, layers, blob.hex())?;
            Ok(moved.then_some(bytes))
        })?;
        pruned.bytes += self.prune_packs()?;
        for directory in [&self.root.documents, &self.root.tags, &self.root.profiles] {
            pruned.bytes += disk_bytes(directory)?;
            for name in directory.names()? {
                directory.remove(&name)?;
            }
        }
        staging::remove_leftovers(&self.root)?;
        Ok(pruned)
    }

    /// What the cache holds now.
    pub fn usage(&self) -> Result<Usage, CacheError> {
        let mut layers = Vec::new();
        self.each_layer(|_, layer, blob| {
            let index = layer
                .stat(INDEX)?
                .map_or(0, |s| u64::try_from(s.st_size).unwrap_or(0));
            let data_bytes = layer.directory(PAGES)?.map_or(Ok(0), |p| disk_bytes(&p))?;
            layers.push(LayerUsage {
                blob: blob.clone(),
                index_bytes: index,
                data_bytes,
            });
            Ok(None)
        })?;
        layers.sort_by(|a, b| a.blob.cmp(&b.blob));
        let documents = self.root.documents.names()?.len() as u64;
        Ok(Usage {
            layers,
            documents,
            document_bytes: disk_bytes(&self.root.documents)?,
        })
    }

    /// Calls `visit` with each layer's parent, directory and digest; counts what it says it freed.
    fn each_layer(
        &self,
        mut visit: impl FnMut(&Directory, &Directory, &Digest) -> Result<Option<u64>, CacheError>,
    ) -> Result<Pruned, CacheError> {
        let root = Arc::clone(&self.root);
        let mut pruned = Pruned::default();
        for algorithm in root.layers.names()? {
            let Some(layers) = root.layers.directory(&algorithm)? else {
                continue;
            };
            for hex in layers.names()? {
                // What has no digest's name is not ours to touch.
                let Ok(blob) = format!("{algorithm}:{hex}").parse::<Digest>() else {
                    continue;
                };
                let Some(layer) = layers.directory(&hex)? else {
                    continue;
                };
                if let Some(bytes) = visit(&layers, &layer, &blob)? {
                    pruned.layers += 1;
                    pruned.bytes += bytes;
                }
            }
        }
        Ok(pruned)
    }
}

/// Disk space of the files directly in `directory`.
fn disk_bytes(directory: &Directory) -> Result<u64, CacheError> {
    directory.names()?.iter().try_fold(0, |sum, name| {
        let blocks = directory
            .stat(name)?
            .map_or(0, |s| u64::try_from(s.st_blocks).unwrap_or(0));
        Ok(sum + blocks * BLOCK_BYTES)
    })
}
