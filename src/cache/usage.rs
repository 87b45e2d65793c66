//! How much the cache holds, and giving it back.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use super::layers::INDEX;
use super::staging::{self, Staging};
use super::stores::{self, Owner, Store, disk_bytes};
use super::{Cache, CacheError, recency};
use crate::oci::Digest;

/// What was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pruned {
    /// Layers that lost their pages.
    pub layers: u64,
    /// Disk space in bytes; what a running mount holds open comes free when it ends.
    pub bytes: u64,
    /// Layers that were left because they are pinned.
    pub pinned: u64,
    /// Layers that kept their pages because these are nowhere else.
    pub kept: u64,
}

/// What the cache holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Usage {
    /// Each stored layer, by digest.
    pub layers: Vec<LayerUsage>,
    /// Disk space of pages that came from packs, in bytes.
    pub pack_bytes: u64,
    /// Disk space of blobs that no registry has, in bytes.
    pub blob_bytes: u64,
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
    /// Why it stays.
    pub held: Held,
    /// Whether all of it is here and was seen to be the layer.
    pub verified: bool,
    /// When its bytes were last read or stored, as far as that is known.
    pub used: Option<SystemTime>,
}

/// Why a layer stays when space is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// An image that has it is pinned: it is neither evicted nor pruned.
    pub pinned: bool,
    /// Its bytes are nowhere else: it is neither evicted nor pruned, unless that is forced.
    pub sole: bool,
    /// The kernel reads the file itself: it is not evicted, and its space comes free only when all
    /// mounts of it have ended.
    pub lent: bool,
    /// A mount has it open: it may be evicted, and is not pruned for its age.
    pub in_use: bool,
}

impl Cache {
    /// Drops all page stores that are not pinned and keeps the indexes: mounts stay possible, bytes
    /// are fetched again. Running mounts keep the stores that they have open. Layers whose only copy
    /// is here keep theirs, unless `force`.
    pub fn prune_data(&self, force: bool) -> Result<Pruned, CacheError> {
        self.prune_stores(force, |_| true)
    }

    /// Drops the page stores of layers that nobody has used for as long as `age`, and that are
    /// neither pinned nor in use.
    pub fn prune_older(&self, age: Duration) -> Result<Pruned, CacheError> {
        let since = SystemTime::now().checked_sub(age);
        self.prune_stores(false, |store| {
            let old = since.zip(store.last_use()).is_none_or(|(s, used)| used < s);
            old && !store.in_use()
        })
    }

    fn prune_stores(
        &self,
        force: bool,
        wanted: impl Fn(&Store) -> bool,
    ) -> Result<Pruned, CacheError> {
        let mut pruned = Pruned::default();
        stores::each(&self.root, |store| {
            if !wanted(&store) {
                return Ok(());
            }
            if store.pinned {
                pruned.pinned += 1;
                return Ok(());
            }
            if store.sole && !force {
                pruned.kept += 1;
                return Ok(());
            }
            let bytes = store.disk_bytes()?;
            let moved = match &store.owner {
                Owner::Layer(blob) => match self.root.layers(blob)?.directory(blob.hex())? {
                    Some(layer) => Staging::discard(&self.root, &layer, super::layers::PAGES)?,
                    None => false,
                },
                Owner::Pack { pack, layer } => match self.root.packs.directory(pack)? {
                    Some(of) => Staging::discard(&self.root, &of, layer)?,
                    None => false,
                },
            };
            if moved {
                pruned.bytes += bytes;
                pruned.layers += u64::from(matches!(store.owner, Owner::Layer(_)));
            }
            Ok(())
        })?;
        Ok(pruned)
    }

    /// Drops everything that is not pinned: layers, documents, tags. Layers that are being streamed
    /// right now stay.
    pub fn prune_all(&self) -> Result<Pruned, CacheError> {
        let pins = self.root.pins()?;
        let layers: HashSet<&Digest> = pins.iter().flat_map(|pin| &pin.layers).collect();
        let documents: HashSet<String> = pins
            .iter()
            .flat_map(|pin| &pin.documents)
            .map(super::documents::document_name)
            .collect();
        let mut pruned = self.prune_stores(true, |_| true)?;
        stores::each_layer(&self.root, |parent, layer, blob| {
            if layers.contains(blob) {
                return Ok(());
            }
            let bytes = disk_bytes(layer)?;
            if Staging::discard(&self.root, parent, blob.hex())? {
                pruned.bytes += bytes;
            }
            Ok(())
        })?;
        let kept = |name: &String| {
            let mut pinned = layers.iter().map(|d| super::documents::document_name(d));
            pinned.any(|pinned| pinned == *name)
        };
        let blob_bytes = disk_bytes(&self.root.blobs)?;
        for name in self.root.blobs.names()? {
            if !kept(&name) {
                self.root.blobs.remove(&name)?;
            }
        }
        pruned.bytes += blob_bytes.saturating_sub(disk_bytes(&self.root.blobs)?);
        for directory in [&self.root.documents, &self.root.tags, &self.root.profiles] {
            let before = disk_bytes(directory)?;
            for name in directory.names()? {
                let tag = || {
                    self.tag_in(&name).is_some_and(|tag| {
                        documents.contains(&super::documents::document_name(&tag.digest))
                    })
                };
                if !documents.contains(&name) && !tag() {
                    directory.remove(&name)?;
                }
            }
            pruned.bytes += before.saturating_sub(disk_bytes(directory)?);
        }
        pruned.bytes += disk_bytes(&self.root.derived)?;
        for name in self.root.derived.names()? {
            self.root.derived.remove(&name)?;
        }
        for name in self.root.packs.names()? {
            Staging::discard(&self.root, &self.root.packs, &name)?;
        }
        staging::remove_leftovers(&self.root)?;
        Ok(pruned)
    }

    /// What the cache holds now.
    pub fn usage(&self) -> Result<Usage, CacheError> {
        let mut usage = Usage::default();
        let mut of_layers = HashMap::new();
        stores::each(&self.root, |store| {
            let bytes = store.disk_bytes()?;
            match store.owner.clone() {
                Owner::Pack { .. } => usage.pack_bytes += bytes,
                Owner::Layer(blob) => {
                    let used = recency::last_use(&store.directory);
                    // What cannot be opened is shown all the same.
                    let pages = store.pages(&self.root).ok().flatten();
                    let verified = pages.is_some_and(|pages| pages.is_verified());
                    of_layers.insert(blob, (bytes, Held::of(&store), verified, used));
                }
            }
            Ok(())
        })?;
        stores::each_layer(&self.root, |_, layer, blob| {
            let index = layer.stat(INDEX)?;
            let (data_bytes, held, verified, used) = of_layers.remove(blob).unwrap_or_default();
            usage.layers.push(LayerUsage {
                blob: blob.clone(),
                index_bytes: index.map_or(0, |s| u64::try_from(s.st_size).unwrap_or(0)),
                data_bytes,
                held,
                verified,
                used,
            });
            Ok(())
        })?;
        usage.layers.sort_by(|a, b| a.blob.cmp(&b.blob));
        usage.blob_bytes = disk_bytes(&self.root.blobs)?;
        usage.documents = self.root.documents.names()?.len() as u64;
        usage.document_bytes = disk_bytes(&self.root.documents)?;
        Ok(usage)
    }
}

impl Held {
    fn of(store: &Store) -> Held {
        Held {
            pinned: store.pinned,
            sole: store.sole,
            lent: store.lent,
            in_use: store.in_use(),
        }
    }
}
