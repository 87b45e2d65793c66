//! `push`: an image goes to a registry: what is missing there, and the manifest last, so that a name
//! never stands for something that is not whole.
//!
//! A blob that the repository has is not sent; one that a neighbour in the same registry has is taken
//! over by the registry itself; any other streams from where it is: a layer that was made here from the
//! cache, all others from the registry or archive that they came from, because compressed originals are
//! not kept.

mod blob;
mod index;

use std::sync::Arc;
use std::time::Duration;

use futures_util::{TryStreamExt, stream};
use serde::Serialize;

use crate::cache::{Cache, CacheError};
use crate::content::Content;
use crate::image::error::Error;
use crate::monitor::Monitor;
use crate::mount::resolve::Image;
use crate::mount::source::{self, Access, Here, LateSource};
use crate::mount::{MountRequest, lookup};
use crate::oci::config::CONFIG_BYTES_MAX;
use crate::oci::reference::ReferenceError;
use crate::oci::{Digest, ImageConfig, ImageName, Manifest, Reference};
use crate::registry::{Registry, Settings};
use blob::Target;
use index::Entry;

/// Blobs that are on their way at the same time.
const BLOBS_AT_ONCE: usize = 3;

/// How often an index is updated that others update as well.
const UPDATES: u32 = 5;

/// How long after an update it is looked for again: what another push may take between reading an
/// index and writing it.
const LOOK_AGAIN: Duration = Duration::from_millis(400);

/// Media type of a manifest that does not say its own.
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Why an image was not pushed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// Where to.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A name that nothing can be pushed to.
    #[error("`{0}`: an image is pushed to a name with a tag (registry.example.com/app:2)")]
    Name(String),
    /// The image could not be had.
    #[error(transparent)]
    Image(#[from] Error),
    /// A registry, one or the other.
    #[error(transparent)]
    Blob(#[from] crate::blob::Error),
    /// What stands at the name is nothing that could have one more platform.
    #[error("{0}: what it stands for is neither an image nor an index; push to another name")]
    NoIndex(String),
    /// Others change it as well.
    #[error("{0}: others update the same index all the time; push again later")]
    Contended(String),
}

impl From<CacheError> for PushError {
    fn from(error: CacheError) -> PushError {
        PushError::Image(error.into())
    }
}

impl From<crate::mount::Error> for PushError {
    fn from(error: crate::mount::Error) -> PushError {
        PushError::Image(error.into())
    }
}

/// What was pushed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pushed {
    /// The name, whole.
    pub image: String,
    /// Digest of the image manifest.
    pub digest: Digest,
    /// Digest of the index that the name stands for, when one was updated.
    pub index: Option<Digest>,
}

/// Pushes the image of `request` to `to` (to its own name when there is none). With `update_index` the
/// name goes on standing for the other platforms that it has.
pub fn push(
    request: &MountRequest,
    to: Option<&str>,
    update_index: bool,
    monitor: Arc<dyn Monitor>,
) -> Result<Pushed, PushError> {
    let reference: Reference = to.unwrap_or(&request.image).parse()?;
    if reference.digest().is_some() {
        return Err(PushError::Name(reference.to_string()));
    }
    let cache = Cache::open(&request.cache_dir)?;
    let mut access = source::access(request)?;
    // The one that the command is about: where it comes from may be another's.
    access.own_registry = Some(reference.registry().to_owned());
    let image = lookup(request, &cache)?;
    let manifest = cache.document(&image.digest);
    let push = Push {
        target: target(&access, &image, &reference, &cache, monitor)?,
        manifest: manifest.ok_or_else(|| Error::Gone(image.digest.clone()))?,
        reference,
        image,
    };
    let own_name = access.name.to_string();
    let here = Here {
        cache,
        offline: request.offline,
    };
    let late = LateSource::new(access, &push.image.sources, None, here);
    let runtime = Content::new_runtime().map_err(Error::Output)?;
    runtime.block_on(async {
        push.blobs(&late).await?;
        let pushed = push.name(update_index).await?;
        if pushed.image == own_name {
            push.fetched_again_from_here_on()?;
        }
        Ok(pushed)
    })
}

fn target(
    access: &Access,
    image: &Image,
    to: &Reference,
    cache: &Cache,
    monitor: Arc<dyn Monitor>,
) -> Result<Target, PushError> {
    let settings = Settings {
        insecure_hosts: access.insecure_registries.clone(),
        ca_files: access.ca_files.clone(),
        hosts: access.hosts.clone(),
        credentials: access.credentials(),
        ..Settings::default()
    };
    let own = std::slice::from_ref(&access.name);
    let sources = if image.sources.is_empty() {
        own
    } else {
        &image.sources
    };
    let neighbour = |name: &ImageName| match name {
        ImageName::Registry(r) if r.registry() == to.registry() => Some(r.repository().to_owned()),
        _ => None,
    };
    let mut neighbours: Vec<String> = sources.iter().filter_map(neighbour).collect();
    neighbours.retain(|name| name != to.repository());
    neighbours.dedup();
    Ok(Target {
        registry: Registry::new(to, settings)?,
        name: format!("{}/{}", to.registry(), to.repository()),
        neighbours,
        cache: cache.clone(),
        monitor,
    })
}

/// One push.
struct Push {
    target: Target,
    reference: Reference,
    image: Image,
    manifest: Vec<u8>,
}

impl Push {
    /// All layers, and then the configuration, which is short.
    async fn blobs(&self, late: &Arc<LateSource>) -> Result<(), PushError> {
        let mut layers = self.image.manifest.layers.clone();
        // A layer may stand in an image twice.
        layers.sort_by(|a, b| a.digest.cmp(&b.digest));
        layers.dedup_by(|a, b| a.digest == b.digest);
        stream::iter(layers.into_iter().map(Ok))
            .try_for_each_concurrent(BLOBS_AT_ONCE, async |layer| {
                self.target.push(&*late.blob(layer)).await
            })
            .await?;
        let digest = &self.image.manifest.config.digest;
        let config = self.target.cache.document(digest);
        let config = config.ok_or_else(|| Error::Gone(digest.clone()))?;
        self.target
            .registry
            .push_blob(digest, config.into())
            .await?;
        Ok(())
    }

    /// What the image's own name leads to has the layers now: those of an image that was loaded are not
    /// the only copies any more, and may be evicted.
    fn fetched_again_from_here_on(&self) -> Result<(), PushError> {
        for layer in &self.image.manifest.layers {
            if let Some(stored) = self.target.cache.layer(&layer.digest)? {
                stored.set_sole(false)?;
            }
        }
        Ok(())
    }

    /// The manifest, and what the name stands for from now on.
    async fn name(&self, update_index: bool) -> Result<Pushed, PushError> {
        let (registry, digest) = (&self.target.registry, &self.image.digest);
        let media_type = media_type(&self.manifest);
        let tag = self.reference.tag_or_digest();
        let name = ImageName::Registry(self.reference.clone()).to_string();
        let mut pushed = Pushed {
            image: name.clone(),
            digest: digest.clone(),
            index: None,
        };
        let cache = &self.target.cache;
        let bytes = self.manifest.clone();
        if !update_index {
            registry
                .push_manifest(&tag, &media_type, bytes.into())
                .await?;
            cache.remember_tag(&name, &media_type, digest)?;
            return Ok(pushed);
        }
        registry
            .push_manifest(&digest.to_string(), &media_type, bytes.into())
            .await?;
        let (of, index) = self.update(&tag, &media_type).await?;
        cache.put_document(&of, index.as_bytes())?;
        cache.remember_tag(&name, index::INDEX, &of)?;
        pushed.index = Some(of);
        Ok(pushed)
    }

    /// Puts this image into the index that the tag stands for. Registries know no conditional
    /// requests, so somebody else who does the same at the same time may undo it: it is looked for
    /// afterwards, at once and after a pause of uneven length, and put there again.
    async fn update(&self, tag: &str, media_type: &str) -> Result<(Digest, String), PushError> {
        let registry = &self.target.registry;
        for _ in 0..UPDATES {
            let index = self.index(tag, media_type).await?.to_string();
            let of = Digest::of(index.as_bytes());
            registry
                .push_manifest(tag, index::INDEX, index.clone().into())
                .await?;
            if self.holds(tag).await? {
                let uneven = LOOK_AGAIN.mul_f64(0.5 + fastrand::f64());
                tokio::time::sleep(uneven).await;
                if self.holds(tag).await? {
                    return Ok((of, index));
                }
            }
            tracing::debug!(tag, "somebody else has undone the update");
        }
        Err(PushError::Contended(self.reference.to_string()))
    }

    /// Whether the tag stands for something with this image in it.
    async fn holds(&self, tag: &str) -> Result<bool, PushError> {
        let found = self.target.registry.resolve(tag).await?;
        let parsed = Manifest::parse(&found.bytes, found.media_type.as_deref());
        let digest = &self.image.digest;
        Ok(matches!(parsed, Ok(Manifest::Index(index))
            if index.manifests.iter().any(|m| m.digest == *digest)))
    }

    /// The index that the tag stands for, with this image in it.
    async fn index(&self, tag: &str, media_type: &str) -> Result<serde_json::Value, PushError> {
        let entry = Entry {
            media_type: media_type.to_owned(),
            digest: self.image.digest.clone(),
            size: self.manifest.len() as u64,
            platform: self.image.platform.clone(),
        };
        let registry = &self.target.registry;
        let found = match registry.resolve(tag).await {
            Ok(found) => found,
            Err(e) if e.kind == crate::blob::ErrorKind::NotFound => {
                return Ok(index::of(&[&entry]));
            }
            Err(e) => return Err(e.into()),
        };
        let no_index = || PushError::NoIndex(self.reference.to_string());
        match Manifest::parse(&found.bytes, found.media_type.as_deref()) {
            Ok(Manifest::Index(_)) => index::with(&found.bytes, &entry).ok_or_else(no_index),
            // One platform so far: it stays beside the new one, unless it is the same platform.
            Ok(Manifest::Image(manifest)) => {
                let config = registry
                    .blob_bytes(&manifest.config, CONFIG_BYTES_MAX)
                    .await?;
                let config = ImageConfig::parse(&config).map_err(|_| no_index())?;
                let before = Entry {
                    media_type: self::media_type(&found.bytes),
                    digest: found.digest,
                    size: found.bytes.len() as u64,
                    platform: config.platform,
                };
                let alone = index::of(&[&before]).to_string();
                index::with(alone.as_bytes(), &entry).ok_or_else(no_index)
            }
            Err(_) => Err(no_index()),
        }
    }
}

/// What a manifest calls itself.
fn media_type(manifest: &[u8]) -> String {
    let parsed: Option<serde_json::Value> = serde_json::from_slice(manifest).ok();
    let named = parsed.as_ref().and_then(|m| m["mediaType"].as_str());
    named.unwrap_or(MANIFEST).to_owned()
}
