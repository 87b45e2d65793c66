//! Finding a pack of an image, and deciding whether to use it: by [`Trust`], and by comparing it with
//! the image.

use std::sync::Arc;

use crate::cache::{ADDRESS_BYTES_MAX, Cache, CacheError};
use crate::layer::LayerIndex;
use crate::mount::hot::{Coming, Early};
use crate::mount::resolve::Image;
use crate::mount::source::Source;
use crate::mount::trust::{Admitted, Trust};
use crate::oci::{Compression, Descriptor, Digest, ImageName};
use crate::pack::meta::META_BYTES_MAX;
use crate::pack::windows::Places;
use crate::pack::{Meta, PackManifest};
use crate::registry::{Fetched, Referrer, Registry};

/// Most packs that are looked at among those that refer to an image: anybody who may push can add
/// one.
const REFERRERS_MAX: usize = 8;

/// A pack that may be used.
#[derive(Debug, Clone)]
pub(crate) struct Pack {
    /// Of its manifest.
    pub(crate) digest: Digest,
    pub(crate) manifest: PackManifest,
    pub(crate) meta: Arc<Meta>,
    pub(crate) admitted: Admitted,
    /// Hot pages that were asked for already.
    pub(crate) coming: Coming,
}

/// Why no pack is used.
#[derive(Debug, Clone)]
pub(crate) struct Refused {
    /// The one that was found, if any.
    pub(crate) digest: Option<Digest>,
    /// Fingerprints of the keys that it says have signed it.
    pub(crate) signers: Vec<String>,
    /// For people.
    pub(crate) why: String,
}

impl Refused {
    /// None was found, or none was looked for.
    pub(crate) fn all(why: impl Into<String>) -> Refused {
        Refused {
            digest: None,
            signers: Vec::new(),
            why: why.into(),
        }
    }
}

/// Why a pack is used or not, for people.
#[derive(Debug, Clone)]
pub(crate) enum Finding {
    /// It is used.
    Used(Box<Pack>),
    /// There is none, or it may not be used.
    Not(Refused),
}

/// The keys under which the cache remembers the pack of an image in one repository: another
/// repository's word is not this one's. Signed ones are remembered apart, so that a mount that
/// takes any pack does not make one forget the pack that a stricter mount needs.
fn key(name: &ImageName, image: &Digest, signed: bool) -> String {
    let repository = match name {
        ImageName::Registry(r) => format!("{}/{}", r.registry(), r.repository()),
        other => other.to_string(),
    };
    let signed = if signed { "signed " } else { "" };
    format!("{signed}pack of {image} in {repository}")
}

/// The pack that an earlier mount of the same repository's image has used.
pub(crate) fn remembered(cache: &Cache, trust: Trust<'_>, image: &Image) -> Option<Pack> {
    trust.admits_any().ok()?;
    let recall = |signed: bool| {
        let digest = cache.tag(&key(trust.name, &image.digest, signed))?.digest;
        recall(cache, trust, digest, image).ok()
    };
    recall(true).or_else(|| recall(false))
}

/// The pack `digest`, which an earlier mount has used; the error says why it cannot be used again.
pub(crate) fn recall(
    cache: &Cache,
    trust: Trust<'_>,
    digest: Digest,
    image: &Image,
) -> Result<Pack, String> {
    let gone = || format!("the pack {} is not in the cache any more", digest.short());
    let bytes = cache.document(&digest).ok_or_else(gone)?;
    let manifest = PackManifest::decode(&bytes, &image.digest).map_err(|e| e.to_string())?;
    let admitted = trust.admit(&manifest)?;
    let meta = cache.document(&manifest.meta.digest).ok_or_else(gone)?;
    let candidate = Candidate {
        digest,
        manifest,
        admitted,
    };
    check(cache, candidate, &meta, image)
}

/// Whether an earlier mount has used a pack of `image`.
pub(crate) fn is_remembered(cache: &Cache, name: &ImageName, image: &Digest) -> bool {
    let is = |signed| cache.tag(&key(name, image, signed)).is_some();
    is(false) || is(true)
}

/// Does not use the pack of `image` again that earlier mounts have used.
pub(crate) fn forget(cache: &Cache, name: &ImageName, image: &Digest) -> Result<(), CacheError> {
    for signed in [false, true] {
        cache.forget_tag(&key(name, image, signed))?;
    }
    Ok(())
}

/// A pack that may be used, of which only the manifest is known.
#[derive(Debug)]
struct Candidate {
    digest: Digest,
    manifest: PackManifest,
    admitted: Admitted,
}

/// Judges the manifest of a pack.
fn judge(
    cache: &Cache,
    trust: Trust<'_>,
    image: &Digest,
    fetched: &Fetched,
) -> Result<Candidate, Refused> {
    let refused = |signers: Vec<String>, why: String| Refused {
        digest: Some(fetched.digest.clone()),
        signers,
        why,
    };
    let manifest = PackManifest::decode(&fetched.bytes, image)
        .map_err(|error| refused(Vec::new(), error.to_string()))?;
    let signers = || manifest.signatures.keys().cloned().collect();
    if cache.is_denied(&fetched.digest) {
        let why = "it was found to lie earlier".to_owned();
        return Err(refused(signers(), why));
    }
    match trust.admit(&manifest) {
        Ok(admitted) => Ok(Candidate {
            digest: fetched.digest.clone(),
            manifest,
            admitted,
        }),
        Err(why) => Err(refused(signers(), why)),
    }
}

/// Asks the source for a pack of `image`: first for the one that the tag leads to, then, if that may
/// not be used, for the others that refer to the image, newest first. Nothing that is wrong with one
/// keeps anybody from mounting.
pub(crate) async fn find(
    cache: &Cache,
    trust: Trust<'_>,
    (source, image): (&Source, &Digest),
    early: Early,
) -> Result<Found, Refused> {
    let Source::Registry { registry, .. } = source else {
        return Err(Refused::all("an archive has no packs"));
    };
    let complete = async |candidate: Candidate, fetched: &Fetched| {
        let coming = match early {
            Early::HotPages => Coming::ask(source, &candidate.manifest.hot),
            Early::Never => Coming::default(),
        };
        let meta = fetch_meta(registry, &candidate).await?;
        Ok(Found {
            candidate,
            bytes: fetched.bytes.to_vec(),
            meta,
            coming,
        })
    };
    let mut first_refused = None;
    if let Ok(fetched) = registry.resolve(&PackManifest::tag(image)).await {
        match judge(cache, trust, image, &fetched) {
            Ok(candidate) => return complete(candidate, &fetched).await,
            Err(refused) => first_refused = Some(refused),
        }
    }
    let referrers = registry.referrers(image).await.ok().flatten();
    let ours = |r: &Referrer| {
        r.artifact_type.as_deref() == Some(crate::pack::ARTIFACT_TYPE)
            && first_refused.as_ref().and_then(|f| f.digest.as_ref()) != Some(&r.digest)
    };
    let mut list: Vec<_> = referrers.unwrap_or_default();
    list.retain(ours);
    for referrer in list.iter().rev().take(REFERRERS_MAX) {
        let Ok(fetched) = registry.resolve(&referrer.digest.to_string()).await else {
            continue;
        };
        match judge(cache, trust, image, &fetched) {
            Ok(candidate) => return complete(candidate, &fetched).await,
            Err(refused) => drop(first_refused.get_or_insert(refused)),
        }
    }
    Err(first_refused
        .unwrap_or_else(|| Refused::all("none was found; `rsmount publish` makes one")))
}

async fn fetch_meta(registry: &Registry, candidate: &Candidate) -> Result<Vec<u8>, Refused> {
    let manifest = &candidate.manifest;
    if let Some(meta) = &manifest.inline {
        return Ok(meta.clone());
    }
    let meta = registry.blob_bytes(&manifest.meta, META_BYTES_MAX as u64);
    let meta = meta.await.map_err(|error| Refused {
        digest: Some(candidate.digest.clone()),
        signers: manifest.signatures.keys().cloned().collect(),
        why: error.to_string(),
    })?;
    Ok(meta.to_vec())
}

/// A pack as it was found, and may be used if it is about the image.
#[derive(Debug)]
pub(crate) struct Found {
    candidate: Candidate,
    bytes: Vec<u8>,
    meta: Vec<u8>,
    coming: Coming,
}

impl Found {
    /// Compares it with the image and keeps it.
    pub(crate) fn accept(self, cache: &Cache, name: &ImageName, image: &Image) -> Finding {
        let Found {
            candidate,
            bytes,
            meta,
            coming,
        } = self;
        let (digest, described) = (
            candidate.digest.clone(),
            candidate.manifest.meta.digest.clone(),
        );
        let signers = candidate.manifest.signatures.keys().cloned().collect();
        let signed = matches!(candidate.admitted, Admitted::Key(_));
        let keep = || {
            cache.put_document(&digest, &bytes)?;
            cache.put_document(&described, &meta)?;
            let media_type = crate::pack::manifest::MANIFEST;
            cache.remember_tag(&key(name, &image.digest, signed), media_type, &digest)
        };
        match check(cache, candidate, &meta, image) {
            Ok(pack) => {
                if let Err(error) = keep() {
                    tracing::warn!(%error, "a pack is not remembered");
                }
                Finding::Used(Box::new(Pack { coming, ..pack }))
            }
            Err(why) => Finding::Not(Refused {
                digest: Some(digest),
                signers,
                why,
            }),
        }
    }
}

/// Most bytes that a byte of gzip becomes (RFC 1951: a match of 258 bytes in two bits).
const GZIP_RATIO_MAX: u64 = 1032;

/// The same of zstd (RFC 8878: a block of 128 KiB in four bytes).
const ZSTD_RATIO_MAX: u64 = 32 << 10;

/// Whether a blob of that length can hold so many bytes: memory and disk space follow from it before
/// anything of it was seen.
fn has_possible_size(index: &LayerIndex) -> bool {
    let ratio = match index.compression {
        Compression::None => 1,
        Compression::Gzip => GZIP_RATIO_MAX,
        Compression::Zstd => ZSTD_RATIO_MAX,
    };
    let most = index.compressed_size.saturating_mul(ratio);
    index.address_size <= most.min(ADDRESS_BYTES_MAX)
}

/// Whether the parts with the windows are as long as windows can be: how many of them are fetched, and
/// held in memory, follows from it. Packs of earlier versions do not say where each one is.
fn has_possible_windows(meta: &Meta, manifest: &PackManifest) -> bool {
    let mut layers = meta.layers.iter().zip(&manifest.windows).enumerate();
    layers.all(|(at, (layer, part))| match meta.windows.get(at) {
        Some(lengths) => Places::new(layer, lengths, part.size).is_some(),
        None => Places::can_be(layer, part.size),
    })
}

fn check(cache: &Cache, candidate: Candidate, meta: &[u8], image: &Image) -> Result<Pack, String> {
    let Candidate {
        digest,
        manifest,
        admitted,
    } = candidate;
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
    if !meta.layers.iter().all(has_possible_size) {
        return Err("the pack is about layers that no blob of their size can hold".to_owned());
    }
    if !has_possible_windows(&meta, &manifest) {
        return Err("the pack's windows are not as long as it says".to_owned());
    }
    Ok(Pack {
        digest,
        manifest,
        meta: Arc::new(meta),
        admitted,
        coming: Coming::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_blob_can_hold_is_refused() {
        let of = |compression, compressed_size, address_size| {
            has_possible_size(&LayerIndex {
                blob: Digest::of(b"blob"),
                diff_id: Digest::of(b"tar"),
                compressed_size,
                address_size,
                compression,
                whiteouts: Vec::new(),
                entries: Vec::new(),
                spans: Vec::new(),
            })
        };
        assert!(of(Compression::Gzip, 1000, 1_000_000) && !of(Compression::Gzip, 1000, 1 << 21));
        assert!(of(Compression::Zstd, 1000, 1 << 21) && !of(Compression::Zstd, 1000, 1 << 30));
        assert!(of(Compression::None, 1024, 1024) && !of(Compression::None, 1024, 1025));
        assert!(!of(Compression::Zstd, 1 << 50, 1 << 62));
    }
}
