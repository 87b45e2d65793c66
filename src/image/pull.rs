//! Whole images: everything that is not here comes, and is verified.
//!
//! Layers that nobody here has seen stream, all at once; of the others only what is absent is fetched,
//! by its spans. What an interrupted pull has finished stays, so that the next one goes on.

use std::collections::HashSet;
use std::sync::Arc;

use serde::Serialize;

use crate::cache::Cache;
use crate::image::error::Error;
use crate::image::view::View;
use crate::monitor::Monitor;
use crate::mount::resolve::Image;
use crate::mount::{MountRequest, Pull, TrustIndex, lookup, lookup_top, source};
use crate::oci::{Digest, ImageName, Manifest, platform};

/// What a pull did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pulled {
    /// The image's whole name.
    pub name: String,
    /// Digest of what the name stands for.
    pub digest: Digest,
    /// Whether the name stood for something else, or for nothing, before.
    pub newer: bool,
    /// Each platform's image.
    pub images: Vec<PulledImage>,
}

/// One platform's image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PulledImage {
    /// `os/arch[/variant]`.
    pub platform: String,
    /// Digest of the image manifest.
    pub digest: Digest,
    /// Number of layers.
    pub layers: usize,
    /// Layers that streamed.
    pub streamed: usize,
    /// Compressed bytes that were fetched.
    pub fetched_bytes: u64,
    /// Uncompressed bytes that were here already.
    pub present_bytes: u64,
}

/// Brings the image of `request` here; `all` for every platform. The registry is asked what the name
/// stands for.
pub fn pull(
    request: &MountRequest,
    all: bool,
    monitor: &Arc<dyn Monitor>,
) -> Result<Pulled, Error> {
    let cache = Cache::open_within(&request.cache_dir, request.cache_size)?;
    let name = source::access(request)?.name;
    let ImageName::Registry(_) = &name else {
        let what = format!(
            "{} is a copy on this machine: `rsmount load` takes it",
            request.image
        );
        return Err(Error::Name(what));
    };
    let before = cache.tag(&name.to_string()).map(|tag| tag.digest);
    let mut ask = request.clone();
    (ask.pull, ask.trust_index) = (Pull::Always, TrustIndex::Local);
    let mut images = Vec::new();
    for platform in platforms(&ask, &cache, all)? {
        let mut one = ask.clone();
        one.platform = platform;
        images.push(pull_one(&one, &cache, monitor)?);
    }
    let known = cache.tag(&name.to_string()).map(|tag| tag.digest);
    let digest = match (&name, known) {
        (ImageName::Registry(reference), None) => reference.digest().cloned(),
        (_, known) => known,
    };
    let digest = digest.ok_or_else(|| Error::Unknown(request.image.clone()))?;
    Ok(Pulled {
        name: name.to_string(),
        newer: before.as_ref() != Some(&digest),
        digest,
        images,
    })
}

/// The platforms to pull: what was asked for, or every one that the index names.
fn platforms(
    request: &MountRequest,
    cache: &Cache,
    all: bool,
) -> Result<Vec<Option<String>>, Error> {
    if !all {
        return Ok(vec![request.platform.clone()]);
    }
    let top = lookup_top(request, cache)?;
    let bytes = cache.document(&top).ok_or(Error::Gone(top))?;
    let Ok(Manifest::Index(index)) = Manifest::parse(&bytes, None) else {
        return Ok(vec![None]);
    };
    let mut seen = HashSet::new();
    let images = index
        .manifests
        .iter()
        .filter(|d| !platform::is_attestation(d));
    let named = images
        .filter_map(|d| d.platform.as_ref())
        .map(ToString::to_string);
    let mut all: Vec<_> = named.filter(|p| seen.insert(p.clone())).map(Some).collect();
    if all.is_empty() {
        // An index that says nothing of platforms: the one that a mount would take.
        all.push(request.platform.clone());
    }
    Ok(all)
}

fn pull_one(
    request: &MountRequest,
    cache: &Cache,
    monitor: &Arc<dyn Monitor>,
) -> Result<PulledImage, Error> {
    let image = lookup(request, cache)?;
    let missing = missing(cache, &image)?;
    let mut known = request.clone();
    known.pull = Pull::Missing;
    let view = View::open(&known, monitor.clone())?;
    let present_bytes = match missing.layers {
        0 => view.present_bytes(),
        _ => missing.present_bytes,
    };
    let fetched_bytes = view.bring_all(&**monitor)?;
    for layer in &image.manifest.layers {
        // The registry has them, so this is not the only copy.
        if let Some(stored) = cache.layer(&layer.digest)? {
            stored.set_sole(false)?;
        }
    }
    Ok(PulledImage {
        platform: image.platform.to_string(),
        digest: image.digest,
        layers: image.manifest.layers.len(),
        streamed: missing.layers,
        fetched_bytes,
        present_bytes,
    })
}

/// What nobody here has seen.
struct Missing {
    layers: usize,
    bytes: u64,
    /// What is here of the others.
    present_bytes: u64,
}

fn missing(cache: &Cache, image: &Image) -> Result<Missing, Error> {
    let (mut seen, mut missing) = (
        HashSet::new(),
        Missing {
            layers: 0,
            bytes: 0,
            present_bytes: 0,
        },
    );
    for layer in &image.manifest.layers {
        if !seen.insert(&layer.digest) {
            continue;
        }
        match cache.layer(&layer.digest)? {
            Some(known) => missing.present_bytes += known.pages()?.present_bytes(),
            None => {
                missing.layers += 1;
                missing.bytes += layer.size;
            }
        }
    }
    Ok(missing)
}
