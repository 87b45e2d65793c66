//! What the names that are remembered lead to: documents and layers, and which of them nobody needs
//! any more.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::cache::{Cache, CacheError, RememberedTag};
use crate::image::error::Error;
use crate::mount::record;
use crate::mount::upper::{self, UpperError};
use crate::oci::{About, Digest, ImageConfig, ImageManifest, ImageName, Manifest, platform};
use crate::pack::PackManifest;

/// How the cache's key of a pack begins; the image's digest follows.
const PACK_KEY: &str = "pack of ";

/// How that of a signed one begins.
const SIGNED: &str = "signed ";

/// An image of one platform whose documents are all here.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    /// Digest of the image manifest.
    pub(super) digest: Digest,
    pub(super) manifest: ImageManifest,
    pub(super) config: ImageConfig,
    pub(super) about: About,
}

/// The images that `tag` stands for, as far as they are known here: one, or one a platform.
pub(super) fn stored(cache: &Cache, tag: &RememberedTag) -> Vec<Stored> {
    let media_type = Some(tag.media_type.as_str()).filter(|t| !t.is_empty());
    let Some(bytes) = cache.document(&tag.digest) else {
        return Vec::new();
    };
    match Manifest::parse(&bytes, media_type) {
        Ok(Manifest::Image(manifest)) => {
            let image = with_config(cache, tag.digest.clone(), manifest);
            image.into_iter().collect()
        }
        Ok(Manifest::Index(index)) => {
            let images = index.manifests.iter();
            let images = images.filter(|of| !platform::is_attestation(of));
            let image = |digest: &Digest| {
                let bytes = cache.document(digest)?;
                match Manifest::parse(&bytes, None) {
                    Ok(Manifest::Image(manifest)) => with_config(cache, digest.clone(), manifest),
                    _ => None,
                }
            };
            images.filter_map(|of| image(&of.digest)).collect()
        }
        Err(_) => Vec::new(),
    }
}

fn with_config(cache: &Cache, digest: Digest, manifest: ImageManifest) -> Option<Stored> {
    let bytes = cache.document(&manifest.config.digest)?;
    Some(Stored {
        digest,
        manifest,
        config: ImageConfig::parse(&bytes).ok()?,
        about: About::parse(&bytes).ok()?,
    })
}

/// The names of registry images that are remembered.
pub(super) fn names(cache: &Cache) -> Result<Vec<(String, RememberedTag)>, CacheError> {
    let mut tags = cache.tags()?;
    tags.retain(|(key, _)| matches!(key.parse(), Ok(ImageName::Registry(_))));
    Ok(tags)
}

/// Digests of documents and of layers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Reach {
    pub(super) documents: BTreeSet<Digest>,
    pub(super) layers: BTreeSet<Digest>,
}

impl Reach {
    /// Adds what `tag` leads to.
    pub(super) fn add(&mut self, cache: &Cache, tag: &RememberedTag) {
        self.documents.insert(tag.digest.clone());
        for image in stored(cache, tag) {
            self.documents.insert(image.digest);
            self.documents.insert(image.manifest.config.digest);
            let layers = image.manifest.layers.into_iter();
            self.layers.extend(layers.map(|layer| layer.digest));
        }
    }
}

/// What names that are remembered, pins, and mounts that run lead to.
fn live(cache: &Cache) -> Result<Reach, Error> {
    let mut live = Reach::default();
    for (key, tag) in cache.tags()? {
        if !key.trim_start_matches(SIGNED).starts_with(PACK_KEY) {
            live.add(cache, &tag);
        }
    }
    let mounted = mounted()?.into_iter().map(|(digest, _)| digest);
    let changed = changed(cache)?.into_iter().map(|(digest, _)| digest);
    for digest in mounted.chain(changed) {
        let media_type = String::new();
        let tag = RememberedTag {
            media_type,
            digest,
            sources: Vec::new(),
        };
        live.add(cache, &tag);
    }
    for pin in cache.pins()? {
        live.documents.extend(pin.documents);
        live.layers.extend(pin.layers);
    }
    Ok(live)
}

/// Digests of the image manifests that are mounted, and where.
pub(super) fn mounted() -> Result<Vec<(Digest, String)>, Error> {
    let records = record::list().map_err(|e| Error::Runtime(e.to_string()))?;
    let running = records.into_iter().filter(|r| {
        // Who has ended reads nothing any more.
        matches!(r.state, record::State::Ready | record::State::Stalled)
    });
    let digest = |r: record::Record| Some((r.digest.parse().ok()?, r.mountpoint));
    let mounted = running.filter_map(digest);
    Ok(mounted
        .map(|(digest, at)| (digest, at.display().to_string()))
        .collect())
}

/// Digests of the image manifests that upper directories hold changes to, mounted or not, and where
/// those are: directories of the user, and of containers.
pub(super) fn changed(cache: &Cache) -> Result<Vec<(Digest, PathBuf)>, Error> {
    let mut changed = Vec::new();
    for (dir, digest) in cache.uppers()? {
        match upper::read_about(&dir) {
            Ok(about) if about.digest == digest => changed.push((digest, dir)),
            // Nobody can say; removing is what cannot be undone.
            Err(UpperError::Io(..) | UpperError::Damaged { .. }) => changed.push((digest, dir)),
            Ok(_) | Err(_) => cache.forget_upper(&dir)?,
        }
    }
    Ok(changed)
}

/// What was removed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dropped {
    /// Image manifests, and indexes.
    pub documents: u64,
    /// Layers.
    pub layers: Vec<Digest>,
    /// Bytes of layers that were present.
    pub bytes: u64,
}

/// Removes what is among `candidates` and nothing leads to.
pub(super) fn drop_unreachable(cache: &Cache, candidates: &Reach) -> Result<Dropped, Error> {
    let live = live(cache)?;
    let mut dropped = Dropped::default();
    for digest in candidates.layers.difference(&live.layers) {
        cache.remove_blob(digest)?;
        let Some(layer) = cache.layer(digest)? else {
            continue;
        };
        dropped.bytes += layer.pages()?.present_bytes();
        layer.forget()?;
        dropped.layers.push(digest.clone());
    }
    for digest in candidates.documents.difference(&live.documents) {
        drop_packs(cache, digest)?;
        cache.remove_document(digest)?;
        dropped.documents += 1;
    }
    Ok(dropped)
}

/// Forgets the packs of the image `digest`.
fn drop_packs(cache: &Cache, digest: &Digest) -> Result<(), Error> {
    let of = format!("{PACK_KEY}{digest} in ");
    for (key, tag) in cache.tags()? {
        if key.trim_start_matches(SIGNED).starts_with(&of) {
            cache.forget_tag(&key)?;
            let bytes = cache.document(&tag.digest);
            if let Some(pack) = bytes.and_then(|b| PackManifest::decode(&b, digest).ok()) {
                cache.remove_document(&pack.meta.digest)?;
            }
            cache.remove_document(&tag.digest)?;
            cache.remove_pack_pages(&tag.digest)?;
        }
    }
    Ok(())
}
