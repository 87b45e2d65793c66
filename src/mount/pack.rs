//! Mounting by a pack. What comes from it is kept apart ([`Cache::pack_pages`]) and proven behind the
//! mount, by streaming the layers.

use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::blob::{self, Blob, ByteRange};
use crate::cache::{Cache, Pages, Presence};
use crate::content::first_contact::{self, Wanted};
use crate::content::{self, LayerSource};
use crate::layer::{LayerIndex, codec};
use crate::monitor::{Event, Monitor};
use crate::mount::discover::Pack;
use crate::mount::source::LateSource;
use crate::oci::{Digest, ImageManifest};
use crate::pack::meta::without_windows;
use crate::pack::{HotRange, PackError, windows};

/// One layer as the pack has it.
pub(crate) fn layer(
    pack: &Pack,
    at: usize,
    cache: &Cache,
    late: &Arc<LateSource>,
    manifest: &ImageManifest,
) -> Result<LayerSource, crate::cache::CacheError> {
    let index = Arc::new(pack.meta.layers[at].clone());
    let number = u32::try_from(at).unwrap_or(u32::MAX);
    let pages = Arc::new(cache.pack_pages(&pack.digest, number, index.address_size)?);
    let blob = late.blob(manifest.layers[at].clone());
    let part = late.blob(pack.manifest.windows[at].clone());
    let bare = index.clone();
    let complete = move || -> crate::blob::BoxFuture<'static, _> {
        let (part, bare) = (part.clone(), bare.clone());
        Box::pin(async move {
            let bytes = whole(&*part).await?;
            let restored = windows::restore(&bare, &bytes).map_err(refused)?;
            Ok(Arc::new(restored))
        })
    };
    let proof = Proof {
        cache: cache.clone(),
        pack: pack.digest.clone(),
        index: index.clone(),
        hot: of_layer(&pack.meta.hot, number),
        wanted: Wanted {
            descriptor: manifest.layers[at].clone(),
            diff_id: index.diff_id.clone(),
            blob: blob.clone(),
        },
    };
    Ok(LayerSource {
        index: index.into(),
        pages,
        blob,
        complete: Some(Arc::new(complete)),
        prove: Some(Arc::new(move || {
            let proof = proof.clone();
            Box::pin(proof.run())
        })),
    })
}

fn of_layer(hot: &[HotRange], number: u32) -> Vec<HotRange> {
    hot.iter().filter(|h| h.layer == number).copied().collect()
}

pub(crate) fn refused(error: PackError) -> content::Error {
    content::Error::Pack(error.to_string())
}

/// All bytes of a small blob, verified.
async fn whole(blob: &dyn Blob) -> Result<Bytes, content::Error> {
    match blob::collect_verified(blob).await {
        Err(e) if e.kind == blob::ErrorKind::Corrupt => {
            Err(content::Error::Pack(format!("the pack's windows: {e}")))
        }
        collected => Ok(collected?),
    }
}

/// What compares a pack with a layer.
#[derive(Clone)]
struct Proof {
    cache: Cache,
    pack: Digest,
    index: Arc<LayerIndex>,
    hot: Vec<HotRange>,
    wanted: Wanted,
}

/// A proof is not progress that anybody looks at.
#[derive(Debug)]
struct Unheard;

impl Monitor for Unheard {
    fn event(&self, _event: Event) {}
}

impl Proof {
    async fn run(self) -> Result<Pages, content::Error> {
        let wanted = vec![self.wanted.clone()];
        let mut stored = first_contact::ingest(&self.cache, wanted, Arc::new(Unheard)).await?;
        let stored = stored.pop().ok_or(content::Error::Abandoned)?;
        let own = codec::decode(&stored.index()?);
        let own = own.map_err(|_| content::Error::Abandoned)?;
        let pages = stored.pages()?;
        let compare = move || {
            let same = self.is_true(&own, &pages);
            (self, pages, same)
        };
        let (proof, pages, same) = tokio::task::spawn_blocking(compare)
            .await
            .map_err(|_panicked| content::Error::Abandoned)?;
        if same {
            return Ok(pages);
        }
        if let Err(error) = proof.cache.deny_pack(&proof.pack) {
            tracing::error!(%error, "a lying pack is not remembered");
        }
        Err(content::Error::Lie(proof.index.blob.clone()))
    }

    /// Whether what the pack says is what the layer holds. How a layer is cut into spans is the
    /// publisher's choice; what they hold is not.
    fn is_true(&self, own: &LayerIndex, pages: &Pages) -> bool {
        let theirs = &*self.index;
        let same_spans = without_windows(own).spans == theirs.spans;
        let holds = |range: ByteRange, sha256: &[u8; 32]| {
            let (mut bytes, mut scratch) = (vec![0; range.len() as usize], Vec::new());
            let read = pages.read(range, &mut bytes, &mut scratch);
            matches!(read, Ok(Presence::Read)) && Sha256::digest(&bytes)[..] == *sha256
        };
        own.entries == theirs.entries
            && own.whiteouts == theirs.whiteouts
            && own.address_size == theirs.address_size
            && (same_spans || theirs.spans.iter().all(|s| holds(s.address, &s.sha256)))
            && self
                .hot
                .iter()
                .all(|h| holds(h.range(own.address_size), &h.sha256))
    }
}
