//! Cutting indexes anew after a start: narrow where its readers touched, so that the next start
//! fetches less. Done from what is here, while nobody waits; the bytes that it needs are those of a
//! layer that has streamed past.

use sha2::{Digest as _, Sha256};

use crate::blob::ByteRange;
use crate::cache::{Cache, Pages, Presence, StoredLayer};
use crate::content::Profile;
use crate::layer::{LayerIndex, blocks, codec, narrow};
use crate::oci::{Compression, ImageManifest};

/// Changes when indexes are cut differently.
const VERSION: u8 = 2;

/// Cuts the index of each layer of `manifest` anew for `profile`, as far as that can be done.
pub(crate) fn narrow_all(cache: &Cache, manifest: &ImageManifest, profile: &Profile) {
    for (number, layer) in (0..).zip(&manifest.layers) {
        let Ok(Some(stored)) = cache.layer(&layer.digest) else {
            continue;
        };
        let of_layer = |t: &&crate::content::profile::Touch| t.layer == number;
        let touches = profile.touches.iter().filter(of_layer);
        let hot: Vec<_> = touches.map(|t| t.range(stored.address_size())).collect();
        if hot.is_empty() {
            continue;
        }
        let cut = one(&stored, hot);
        tracing::debug!(layer = %layer.digest, cut, "an index for what is hot");
    }
}

/// The index to mount a layer by: the one that was cut for what is hot, else the one of first
/// contact.
pub(crate) fn best(stored: &StoredLayer, base: LayerIndex) -> LayerIndex {
    let narrow = stored
        .narrow()
        .and_then(|(_, index)| codec::decode(&index).ok());
    let same = |index: &LayerIndex| index.blob == base.blob && index.diff_id == base.diff_id;
    narrow.filter(same).unwrap_or(base)
}

fn one(stored: &StoredLayer, mut hot: Vec<ByteRange>) -> bool {
    hot.sort_unstable();
    let key = key(&hot);
    if stored.narrow().is_some_and(|(known, _)| known == key) {
        return false;
    }
    let (Ok(bytes), Ok(pages)) = (stored.index(), stored.pages()) else {
        return false;
    };
    let Ok(base) = codec::decode(&bytes) else {
        return false;
    };
    let places = match base.compression {
        Compression::Gzip => stored.blocks().and_then(|bytes| blocks::decode(&bytes)),
        _ => Some(Vec::new()),
    };
    let mut scratch = Vec::new();
    let mut read = |range| read(&pages, range, &mut scratch);
    let index = places.and_then(|places| narrow::narrow(&base, &places, &hot, &mut read));
    let Some(index) = index else {
        return false;
    };
    let kept = stored.put_narrow(&key, &codec::encode(&index));
    kept.inspect_err(|error| tracing::debug!(%error, "not kept"))
        .is_ok()
}

fn key(hot: &[ByteRange]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update([VERSION]);
    for range in hot {
        hasher.update(range.start().to_le_bytes());
        hasher.update(range.end().to_le_bytes());
    }
    hasher.finalize().into()
}

fn read(pages: &Pages, range: ByteRange, scratch: &mut Vec<u8>) -> Option<Vec<u8>> {
    let mut bytes = vec![0; range.len() as usize];
    match pages.read(range, &mut bytes, scratch) {
        Ok(Presence::Read) => Some(bytes),
        _ => None,
    }
}
