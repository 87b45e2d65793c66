//! Packs of an image: finding one, deciding whether to use it, and mounting by it.
//!
//! What was typed decides: a tag is the registry's word, so a pack of the same repository is as
//! good; a digest promises exact bytes, which no unsigned pack can. What comes from a pack is kept
//! apart ([`Cache::pack_pages`]) and proven behind the mount, by streaming the layers.

use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::blob::{self, Blob, ByteRange};
use crate::cache::{Cache, Pages, Presence};
use crate::content::first_contact::{self, Wanted};
use crate::content::{self, LayerSource};
use crate::layer::{LayerIndex, codec};
use crate::monitor::{Event, Monitor};
use crate::mount::hot::{Coming, Early};
use crate::mount::request::TrustIndex;
use crate::mount::resolve::Image;
use crate::mount::source::{LateSource, Source};
use crate::oci::{Descriptor, Digest, ImageManifest, ImageName};
use crate::pack::meta::{META_BYTES_MAX, without_windows};
use crate::pack::{HotRange, Meta, PackError, PackManifest, windows};

/// A pack that may be used.
#[derive(Debug, Clone)]
pub(crate) struct Pack {
    /// Of its manifest.
    pub(crate) digest: Digest,
    pub(crate) manifest: PackManifest,
    pub(crate) meta: Arc<Meta>,
    /// Hot pages that were asked for already.
    pub(crate) coming: Coming,
}

/// Why a pack is used or not, for people.
#[derive(Debug, Clone)]
pub(crate) enum Finding {
    /// It is used.
    Used(Box<Pack>),
    /// There is none, or it may not be used.
    Not(String),
}

/// Whether the rule admits unsigned packs for an image that was named so; the error says why not.
pub(crate) fn admits(rule: TrustIndex, name: &ImageName) -> Result<(), String> {
    let ImageName::Registry(reference) = name else {
        return Err("an archive has no packs".to_owned());
    };
    match rule {
        TrustIndex::Registry => Ok(()),
        TrustIndex::Tag if reference.digest().is_none() => Ok(()),
        TrustIndex::Tag => Err(
            "the image was named by digest, which promises exact bytes; \
             --trust-index registry admits its packs"
                .to_owned(),
        ),
        TrustIndex::Signed => Err("only signed packs are admitted, and none is".to_owned()),
        TrustIndex::Local => Err("--trust-index local admits none".to_owned()),
    }
}

/// The key under which the cache remembers the pack of an image in one repository: another
/// repository's word is not this one's.
fn key(name: &ImageName, image: &Digest) -> String {
    let repository = match name {
        ImageName::Registry(r) => format!("{}/{}", r.registry(), r.repository()),
        other => other.to_string(),
    };
    format!("pack of {image} in {repository}")
}

/// The pack that an earlier mount of the same repository's image has used.
pub(crate) fn remembered(
    cache: &Cache,
    rule: TrustIndex,
    name: &ImageName,
    image: &Image,
) -> Option<Pack> {
    admits(rule, name).ok()?;
    let digest = cache.tag(&key(name, &image.digest))?.digest;
    let bytes = cache.document(&digest)?;
    let manifest = PackManifest::decode(&bytes, &image.digest).ok()?;
    let meta = cache.document(&manifest.meta.digest)?;
    check(cache, digest, manifest, &meta, image).ok()
}

/// Whether an earlier mount has used a pack of `image`.
pub(crate) fn is_remembered(cache: &Cache, name: &ImageName, image: &Digest) -> bool {
    cache.tag(&key(name, image)).is_some()
}

/// Asks the source for a pack of `image`; nothing that is wrong with one keeps anybody from
/// mounting.
pub(crate) async fn find(source: &Source, image: &Digest, early: Early) -> Option<Found> {
    let Source::Registry { registry, .. } = source else {
        return None;
    };
    let by_tag = registry.resolve(&PackManifest::tag(image)).await;
    let document = match by_tag {
        Ok(fetched) => fetched,
        Err(_) => {
            let referrers = registry.referrers(image).await.ok()??;
            let ours = |r: &&crate::registry::Referrer| {
                r.artifact_type.as_deref() == Some(crate::pack::ARTIFACT_TYPE)
            };
            let newest = referrers.iter().rev().find(ours)?;
            registry.resolve(&newest.digest.to_string()).await.ok()?
        }
    };
    let manifest = PackManifest::decode(&document.bytes, image);
    let manifest = manifest
        .inspect_err(|error| tracing::warn!(%error, "a pack is not used"))
        .ok()?;
    let coming = match early {
        Early::HotPages => Coming::ask(source, &manifest.hot),
        Early::Never => Coming::default(),
    };
    let meta = match &manifest.inline {
        Some(meta) => meta.clone(),
        None => {
            let fetched = registry.blob_bytes(&manifest.meta, META_BYTES_MAX as u64);
            fetched.await.ok()?.to_vec()
        }
    };
    Some(Found {
        digest: document.digest,
        bytes: document.bytes.to_vec(),
        manifest,
        meta,
        coming,
    })
}

/// A pack as it was found.
#[derive(Debug)]
pub(crate) struct Found {
    digest: Digest,
    bytes: Vec<u8>,
    manifest: PackManifest,
    meta: Vec<u8>,
    coming: Coming,
}

impl Found {
    /// Compares it with the image and keeps it.
    pub(crate) fn accept(self, cache: &Cache, name: &ImageName, image: &Image) -> Finding {
        let Found {
            digest,
            bytes,
            manifest,
            meta,
            coming,
        } = self;
        let keep = || {
            cache.put_document(&digest, &bytes)?;
            cache.put_document(&manifest.meta.digest, &meta)?;
            let media_type = crate::pack::manifest::MANIFEST;
            cache.remember_tag(&key(name, &image.digest), media_type, &digest)
        };
        match check(cache, digest.clone(), manifest.clone(), &meta, image) {
            Ok(pack) => {
                if let Err(error) = keep() {
                    tracing::warn!(%error, "a pack is not remembered");
                }
                Finding::Used(Box::new(Pack { coming, ..pack }))
            }
            Err(why) => Finding::Not(why),
        }
    }
}

fn check(
    cache: &Cache,
    digest: Digest,
    manifest: PackManifest,
    meta: &[u8],
    image: &Image,
) -> Result<Pack, String> {
    if cache.is_denied(&digest) {
        return Err(format!("{digest} was found to lie earlier"));
    }
    let meta = Meta::decode(meta).map_err(|e| e.to_string())?;
    let layers = &image.manifest.layers;
    let count = layers.len();
    if meta.layers.len() != count || manifest.windows.len() != count {
        return Err("the pack has another number of layers".to_owned());
    }
    let is_of = |((index, layer), diff_id): ((&LayerIndex, &Descriptor), &Digest)| {
        index.blob == layer.digest
            && index.compressed_size == layer.size
            && index.diff_id == *diff_id
    };
    let pairs = meta.layers.iter().zip(layers).zip(&image.config.diff_ids);
    if !pairs.into_iter().all(is_of) {
        return Err("the pack is about other layers".to_owned());
    }
    Ok(Pack {
        digest,
        manifest,
        meta: Arc::new(meta),
        coming: Coming::default(),
    })
}

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
        index,
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
    let bytes = blob::collect(blob).await?;
    match blob.digest().verify(&bytes) {
        Ok(()) => Ok(bytes),
        Err(mismatch) => Err(content::Error::Pack(format!(
            "the pack's windows: {mismatch}"
        ))),
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
