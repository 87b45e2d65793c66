//! Publishing: what this node learned of an image goes back to its repository, as a pack.

use std::sync::{Arc, mpsc};

use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::runtime::Runtime;
use tokio::sync::Notify;

use crate::blob::{self, ByteRange};
use crate::cache::{Cache, Presence};
use crate::content::{Content, LateIndex, Profile};
use crate::layer::{LayerIndex, codec};
use crate::monitor::Monitor;
use crate::mount::assemble::{self, Assembled};
use crate::mount::error::Error;
use crate::mount::request::{MountRequest, TrustIndex};
use crate::mount::source::{self, Source};
use crate::oci::{Descriptor, Digest};
use crate::pack::hot::{HotWriter, RANGE_PAGES_MAX};
use crate::pack::manifest::{EMPTY_BYTES, MANIFEST};
use crate::pack::meta::{HOT_MAX, without_windows};
use crate::pack::{HotRange, Meta, PackManifest, SecretKey, windows};
use crate::registry::Registry;

/// How often a range is fetched whose bytes are evicted before they were read, or that cannot come.
const FETCHES_MAX: u32 = 10;

/// What was published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Published {
    /// Digest of the image manifest.
    pub image: String,
    /// Digest of the pack's manifest.
    pub pack: String,
    /// The tag that leads to it.
    pub tag: String,
    /// Fingerprint of the key that signed it.
    pub signer: Option<String>,
    /// Compressed bytes of indexes and profile.
    pub meta_bytes: u64,
    /// Compressed bytes of hot pages.
    pub hot_bytes: u64,
    /// Bytes of hot pages when unpacked.
    pub hot_address_bytes: u64,
    /// Bytes of windows.
    pub window_bytes: u64,
}

/// Publishes a pack of the image of `request`, signed by `key` if there is one. Layers that are not
/// known here are streamed first. A pack that others can start from better than from this one is
/// replaced only with `force`.
pub fn publish(
    mut request: MountRequest,
    key: Option<&SecretKey>,
    force: bool,
    monitor: Arc<dyn Monitor>,
) -> Result<Published, Error> {
    if request.offline {
        let what = "a registry is needed for this; leave --offline out";
        return Err(Error::Publish(what.to_owned()));
    }
    // A pack is made of what was seen here, not of other packs.
    request.trust_index = TrustIndex::Local;
    let Assembled {
        fs,
        image,
        indexes,
        learner,
        ..
    } = assemble::assemble(&request, monitor, &Notify::new())?;
    let profile = learner.earlier();
    let indexes = as_made(learner.cache(), indexes);
    let (hot, pages, hot_address_bytes) = hot_part(fs.content(), &indexes, &profile)?;
    let meta = Meta {
        layers: indexes.iter().map(|index| without_windows(index)).collect(),
        windows: indexes
            .iter()
            .map(|index| windows::lengths(index))
            .collect(),
        profile,
        hot,
    };
    let meta = meta.encode().map_err(|e| Error::Publish(e.to_string()))?;
    // What nobody could use is not sent.
    Meta::decode(&meta).map_err(|e| Error::Publish(e.to_string()))?;
    let windows: Vec<Vec<u8>> = indexes.iter().map(|index| windows::encode(index)).collect();
    let subject = subject(learner.cache(), &image.digest)?;
    let mut manifest = PackManifest::new(subject, &meta, &pages, &windows);
    if let Some(key) = key {
        manifest.sign(key);
    }
    // Nor one that readers would refuse.
    PackManifest::decode(&manifest.encode(), &manifest.subject.digest)
        .map_err(|e| Error::Publish(e.to_string()))?;
    let mut published = Published {
        image: image.digest.to_string(),
        pack: String::new(),
        tag: PackManifest::tag(&image.digest),
        signer: key.map(|key| key.public().fingerprint()),
        meta_bytes: meta.len() as u64,
        hot_bytes: pages.len() as u64,
        hot_address_bytes,
        window_bytes: windows.iter().map(|w| w.len() as u64).sum(),
    };
    let mut blobs = vec![EMPTY_BYTES.to_vec(), meta, pages];
    blobs.extend(windows);
    let digest = push(&request, &manifest, &published.tag, blobs, force)?;
    published.pack = digest.to_string();
    Ok(published)
}

/// Indexes as first contact made them: what is hot comes with the pack as pages, so that one that is
/// narrow there would only be longer.
fn as_made(cache: &Cache, indexes: Vec<LateIndex>) -> Vec<Arc<LayerIndex>> {
    let made = |index: LateIndex| {
        let stored = cache.layer(&index.blob).ok().flatten();
        let bytes = stored.and_then(|stored| stored.index().ok());
        let made = bytes.and_then(|bytes| codec::decode(&bytes).ok());
        made.map_or_else(|| index.get().clone(), Arc::new)
    };
    indexes.into_iter().map(made).collect()
}

fn subject(cache: &Cache, image: &Digest) -> Result<Descriptor, Error> {
    let gone = || Error::Publish(format!("the manifest {image} is not in the cache any more"));
    let bytes = cache.document(image).ok_or_else(gone)?;
    let named: Option<String> = serde_json::from_slice::<serde_json::Value>(&bytes)
        .ok()
        .and_then(|m| m["mediaType"].as_str().map(String::from));
    let media_type = named.unwrap_or_else(|| MANIFEST.to_owned());
    Ok(Descriptor::new(
        media_type,
        image.clone(),
        bytes.len() as u64,
    ))
}

/// The hot ranges of `profile`, their compressed bytes, and how many they are when unpacked. Those that
/// are used first, where not all may be in one part.
fn hot_part(
    content: &Arc<Content>,
    indexes: &[Arc<LayerIndex>],
    profile: &Profile,
) -> Result<(Vec<HotRange>, Vec<u8>, u64), Error> {
    let (mut hot, mut writer, mut total) = (Vec::new(), HotWriter::default(), 0);
    'touches: for touch in &profile.touches {
        let Some(index) = indexes.get(touch.layer as usize) else {
            continue;
        };
        let mut page = touch.page;
        let end = touch.page.saturating_add(touch.pages);
        while page < end && hot.len() < HOT_MAX as usize {
            let mut range = HotRange {
                layer: touch.layer,
                page,
                pages: (end - page).min(RANGE_PAGES_MAX),
                sha256: [0; 32],
            };
            page += range.pages;
            let addresses = range.range(index.address_size);
            if addresses.is_empty() {
                continue;
            }
            let bytes = read(content, touch.layer, addresses)?;
            range.sha256 = Sha256::digest(&bytes).into();
            let added = writer.add(&bytes);
            if !added.map_err(|e| Error::Publish(e.to_string()))? {
                tracing::warn!(
                    ranges = hot.len(),
                    "the hot part is as long as readers take"
                );
                break 'touches;
            }
            total += bytes.len() as u64;
            hot.push(range);
        }
    }
    let pages = writer.finish().map_err(|e| Error::Publish(e.to_string()))?;
    Ok((hot, pages, total))
}

/// Reads, and waits for what is absent.
fn read(content: &Arc<Content>, layer: u32, range: ByteRange) -> Result<Vec<u8>, Error> {
    let (mut bytes, mut scratch) = (vec![0; range.len() as usize], Vec::new());
    let mut fetches = 0;
    loop {
        if content.read(layer, range, &mut bytes, &mut scratch)? == Presence::Read {
            return Ok(bytes);
        }
        let (sender, receiver) = mpsc::channel();
        let done = Box::new(move |fetched| drop(sender.send(fetched)));
        content.fetch(layer, range, done);
        fetches += 1;
        match receiver.recv() {
            Ok(Ok(())) if fetches <= FETCHES_MAX => {}
            Ok(Ok(())) => {
                let why = "bytes that were fetched are gone again; the cache may be too small";
                return Err(Error::Publish(why.to_owned()));
            }
            Ok(Err(error)) => return Err(Error::Publish(error.to_string())),
            Err(_) => return Err(Error::Publish("a fetch was abandoned".to_owned())),
        }
    }
}

/// Fails when the pack that is published already has what `manifest` has not: a signature, or hot
/// pages at all. Other machines' starts rely on both.
async fn check_better(
    registry: &Registry,
    manifest: &PackManifest,
    tag: &str,
) -> Result<(), Error> {
    let published = match registry.resolve(tag).await {
        Ok(found) => PackManifest::decode(&found.bytes, &manifest.subject.digest),
        Err(e) if e.kind == blob::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    // What cannot be read helps nobody.
    let Ok(published) = published else {
        return Ok(());
    };
    let lost = match () {
        () if manifest.signatures.is_empty() && !published.signatures.is_empty() => {
            "is signed, and this one is not: give --key"
        }
        () if manifest.has_no_pages() && !published.has_no_pages() => {
            "has hot pages, and this one has none: mount the image and run what it is for first"
        }
        () => return Ok(()),
    };
    Err(Error::Publish(format!(
        "the pack that is published already {lost}, or replace it with --force"
    )))
}

fn push(
    request: &MountRequest,
    manifest: &PackManifest,
    tag: &str,
    blobs: Vec<Vec<u8>>,
    force: bool,
) -> Result<Digest, Error> {
    let Source::Registry { registry, .. } = source::access(request)?.open()? else {
        let what = "packs live in registries; give an image of one";
        return Err(Error::Publish(what.to_owned()));
    };
    let bytes = manifest.encode();
    let digest = Digest::of(&bytes);
    let runtime = Runtime::new().map_err(Error::io("cannot start the network threads"))?;
    if !force {
        runtime.block_on(check_better(&registry, manifest, tag))?;
    }
    let pushed: Result<(), blob::Error> = runtime.block_on(async {
        for blob in blobs {
            registry.push_blob(&Digest::of(&blob), blob.into()).await?;
        }
        // By digest for those who ask what refers to the image, by tag for those who cannot.
        let by_digest = digest.to_string();
        registry
            .push_manifest(&by_digest, MANIFEST, bytes.clone().into())
            .await?;
        registry.push_manifest(tag, MANIFEST, bytes.into()).await
    });
    pushed?;
    Ok(digest)
}
