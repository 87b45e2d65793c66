//! Layers whose index was made here: from the cache to a source of content.

use std::sync::Arc;

use crate::cache::StoredLayer;
use crate::content::{LateIndex, LayerSource};
use crate::layer::LayerIndex;
use crate::layer::codec::{self, CodecError};
use crate::mount::error::Error;
use crate::mount::narrow;
use crate::mount::source::LateSource;
use crate::oci::{Compression, Descriptor};

fn decode(stored: &StoredLayer, descriptor: &Descriptor) -> Result<LayerIndex, Error> {
    let index = codec::decode(&stored.index()?).map_err(damaged(descriptor))?;
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
        return Ok(LateIndex::from(Arc::new(decode(stored, descriptor)?)));
    }
    codec::check(&stored.index()?).map_err(damaged(descriptor))?;
    Ok(late_index(stored.clone(), descriptor.clone()))
}

/// The index of a layer that is part of a known tree, which nobody may need.
fn late_index(stored: StoredLayer, descriptor: Descriptor) -> LateIndex {
    LateIndex::new(move || {
        let decoded = decode(&stored, &descriptor);
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
