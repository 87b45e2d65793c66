//! All page stores of the cache: those of layers and those of packs, and why some are held.

use std::sync::Arc;
use std::time::SystemTime;

use super::directory::Directory;
use super::layers::{LENT, PAGES, SOLE, StoredLayer};
use super::recency;
use super::trio::{DATA, Trio};
use super::{CacheError, Pages, Root, lend, lock};
use crate::oci::Digest;

/// Unit of `st_blocks` (stat(2)).
const BLOCK_BYTES: u64 = 512;

/// Whose pages a store has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Owner {
    /// A layer, by the digest of its blob.
    Layer(Digest),
    /// A layer as a pack has it: the names of both directories.
    Pack { pack: String, layer: String },
}

/// One page store.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) owner: Owner,
    pub(super) directory: Directory,
    /// An image that has it was pinned.
    pub(super) pinned: bool,
    /// Its bytes are nowhere else.
    pub(super) sole: bool,
    /// The kernel was given the file itself: it may be unlinked, and never punched or truncated.
    pub(super) lent: bool,
}

impl Store {
    /// Disk space in bytes.
    pub(super) fn disk_bytes(&self) -> Result<u64, CacheError> {
        disk_bytes(&self.directory)
    }

    /// Whether nothing of it may go alone.
    pub(super) fn is_held(&self) -> bool {
        self.pinned || self.sole || self.lent
    }

    /// Whether a running mount has it open.
    pub(super) fn in_use(&self) -> bool {
        let data = self.directory.file(DATA, false).ok().flatten();
        data.is_some_and(|data| matches!(lock::try_exclusive(&data), Ok(false)))
    }

    /// When it was last used, as far as that is known.
    pub(super) fn last_use(&self) -> Option<SystemTime> {
        recency::last_use(&self.directory)
    }

    /// Its pages; `None` when one of its files is missing. Without an index the length is known to
    /// the page only, which is enough for who looks at whole pages.
    pub(super) fn pages(&self, root: &Arc<Root>) -> Result<Option<Pages>, CacheError> {
        let Some(trio) = Trio::open(&self.directory)? else {
            return Ok(None);
        };
        let stored = match &self.owner {
            Owner::Layer(blob) => match root.layers(blob)?.directory(blob.hex())? {
                Some(layer) => StoredLayer::open(root, layer, blob)?,
                None => None,
            },
            Owner::Pack { .. } => None,
        };
        let size = match stored {
            Some(layer) => layer.address_size(),
            None => trio.data_bytes(),
        };
        Ok(Some(Pages::new(&self.directory, trio, size)))
    }
}

/// Every store that there is now, to `visit`, which keeps open what it has to: there may be more
/// stores than a process may have descriptors.
pub(super) fn each(
    root: &Root,
    mut visit: impl FnMut(Store) -> Result<(), CacheError>,
) -> Result<(), CacheError> {
    let pinned = root.pinned_layers()?;
    each_layer(root, |_, layer, blob| {
        match of_layer(layer, blob, pinned.contains(blob))? {
            Some(store) => visit(store),
            None => Ok(()),
        }
    })?;
    for pack in root.packs.names()? {
        let Some(of) = root.packs.directory(&pack)? else {
            continue;
        };
        for layer in of.names()? {
            if let Some(store) = of_pack(&of, &pack, &layer)? {
                visit(store)?;
            }
        }
    }
    Ok(())
}

/// The store of `owner`, as it is now.
pub(super) fn find(root: &Root, owner: &Owner) -> Result<Option<Store>, CacheError> {
    match owner {
        Owner::Layer(blob) => match root.layers(blob)?.directory(blob.hex())? {
            Some(layer) => of_layer(&layer, blob, root.pinned_layers()?.contains(blob)),
            None => Ok(None),
        },
        Owner::Pack { pack, layer } => match root.packs.directory(pack)? {
            Some(of) => of_pack(&of, pack, layer),
            None => Ok(None),
        },
    }
}

fn of_layer(layer: &Directory, blob: &Digest, pinned: bool) -> Result<Option<Store>, CacheError> {
    let Some(directory) = layer.directory(PAGES)? else {
        return Ok(None);
    };
    Ok(Some(Store {
        owner: Owner::Layer(blob.clone()),
        pinned,
        sole: layer.stat(SOLE)?.is_some(),
        // The file is marked first.
        lent: layer.stat(LENT)?.is_some() || lend::is_marked(&directory)?,
        directory,
    }))
}

fn of_pack(of: &Directory, pack: &str, layer: &str) -> Result<Option<Store>, CacheError> {
    let Some(directory) = of.directory(layer)? else {
        return Ok(None);
    };
    let (pack, layer) = (pack.to_owned(), layer.to_owned());
    Ok(Some(Store {
        owner: Owner::Pack { pack, layer },
        directory,
        pinned: false,
        sole: false,
        lent: false,
    }))
}

/// Calls `visit` with each layer's parent, directory and digest.
pub(super) fn each_layer(
    root: &Root,
    mut visit: impl FnMut(&Directory, &Directory, &Digest) -> Result<(), CacheError>,
) -> Result<(), CacheError> {
    for algorithm in root.layers.names()? {
        let Some(layers) = root.layers.directory(&algorithm)? else {
            continue;
        };
        for hex in layers.names()? {
            // What has no digest's name is not ours to touch.
            let Ok(blob) = format!("{algorithm}:{hex}").parse::<Digest>() else {
                continue;
            };
            if let Some(layer) = layers.directory(&hex)? {
                visit(&layers, &layer, &blob)?;
            }
        }
    }
    Ok(())
}

/// Disk space of the files directly in `directory`.
pub(super) fn disk_bytes(directory: &Directory) -> Result<u64, CacheError> {
    directory.names()?.iter().try_fold(0, |sum, name| {
        let blocks = directory
            .stat(name)?
            .map_or(0, |s| u64::try_from(s.st_blocks).unwrap_or(0));
        Ok(sum + blocks * BLOCK_BYTES)
    })
}
