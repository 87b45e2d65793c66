//! Layers whose index was made here: from the cache to a source of content.

use std::sync::Arc;

use crate::cache::{HeldIndex, StoredLayer};
use crate::content::{LateIndex, LayerSource};
use crate::layer::LayerIndex;
use crate::layer::codec::{self, CodecError};
use crate::mount::error::Error;
use crate::mount::narrow;
use crate::mount::source::LateSource;
use crate::oci::{Compression, Descriptor};

fn decode(
    stored: &StoredLayer,
    held: &HeldIndex,
    descriptor: &Descriptor,
) -> Result<LayerIndex, Error> {
    let index = codec::decode(&held.read()?).map_err(damaged(descriptor))?;
    Ok(narrow::best(stored, index))
}

fn damaged(descriptor: &Descriptor) -> impl FnOnce(CodecError) -> Error {
    let layer = descriptor.digest.clone();
    |source| Error::Index { layer, source }
}

/// The index of a layer; where the tree `is_known`, it is checked whole, but not looked into yet.
fn sound_index(
    stored: &StoredLayer,
    descriptor: &Descriptor,
    is_known: bool,
) -> Result<LateIndex, Error> {
    if !is_known {
        let index = decode(stored, &stored.hold_index()?, descriptor)?;
        return Ok(LateIndex::from(Arc::new(index)));
    }
    let held = stored.hold_index()?;
    codec::check(&held.read()?).map_err(damaged(descriptor))?;
    Ok(late_index(stored.clone(), held, descriptor.clone()))
}

/// The index of a layer that is part of a known tree, which nobody may need. It is `held`: the cache may
/// be pruned while it is mounted.
fn late_index(stored: StoredLayer, held: HeldIndex, descriptor: Descriptor) -> LateIndex {
    LateIndex::new(move || {
        let decoded = decode(&stored, &held, &descriptor);
        Arc::new(decoded.unwrap_or_else(|error| {
            tracing::error!(%error, "what is absent of a layer cannot be fetched");
            LayerIndex {
                blob: descriptor.digest.clone(),
                diff_id: descriptor.digest.clone(),
                compressed_size: descriptor.size,
                address_size: stored.address_size(),
                compression: Compression::None,
                whiteouts: Vec::new(),
                entries: Vec::new(),
                spans: Vec::new(),
            }
        }))
    })
}

/// A layer whose index was made here. Where the image's tree `is_known`, the index is not needed before
/// something is fetched.
pub(super) fn own_layer(
    stored: &StoredLayer,
    descriptor: &Descriptor,
    late: &Arc<LateSource>,
    is_known: bool,
) -> Result<LayerSource, Error> {
    let index = match sound_index(stored, descriptor, is_known) {
        Ok(index) => index,
        Err(error) => {
            if matches!(error, Error::Index { .. }) {
                // Whoever hears of it has the layer streamed anew.
                stored.forget()?;
            }
            return Err(error);
        }
    };
    Ok(LayerSource {
        index,
        pages: Arc::new(stored.pages()?),
        blob: late.blob(descriptor.clone()),
        windows: None,
        prove: None,
    })
}
