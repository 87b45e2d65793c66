//! The layers of an image as sources of bytes: by the indexes that were made here, else by a pack.

use std::sync::Arc;

use crate::cache::{Cache, StoredLayer};
use crate::content::LayerSource;
use crate::layer::limit::ImageBudget;
use crate::mount::discover::Pack;
use crate::mount::error::Error;
use crate::mount::own_layer::own_layer;
use crate::mount::pack;
use crate::mount::request::MountRequest;
use crate::mount::source::LateSource;
use crate::oci::ImageManifest;

/// One a layer, base first. Unless the image's tree `is_known`, all indexes are in memory from then on;
/// they are refused before they take more of it than those of an image may.
pub(super) fn sources(
    request: &MountRequest,
    cache: &Cache,
    (layers, pack): (Vec<Option<StoredLayer>>, Option<&Pack>),
    (late, manifest): (&Arc<LateSource>, &ImageManifest),
    is_known: bool,
) -> Result<Vec<LayerSource>, Error> {
    let mut sources = Vec::with_capacity(layers.len());
    let budget = ImageBudget::default();
    for (at, stored) in layers.into_iter().enumerate() {
        let source = match (stored, pack) {
            (Some(stored), _) => own_layer(&stored, &manifest.layers[at], late, is_known)?,
            (None, Some(pack)) => pack::layer(pack, at, cache, late, manifest)?,
            (None, None) => return Err(Error::Content(crate::content::Error::Abandoned)),
        };
        if !is_known {
            let fits = budget.layer(&source.index);
            fits.map_err(|source| Error::Limit {
                image: request.image.clone(),
                source,
            })?;
        }
        sources.push(source);
    }
    Ok(sources)
}
