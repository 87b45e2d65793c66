//! The indexes of an image's layers: made without mounting, and shown.

use std::sync::Arc;

use serde::Serialize;
use tokio::sync::Notify;

use crate::cache::{Cache, StoredLayer};
use crate::content::Content;
use crate::layer::{LayerIndex, SpanStart, codec};
use crate::monitor::Monitor;
use crate::mount::assemble;
use crate::mount::error::Error;
use crate::mount::request::{MountRequest, TrustIndex};
use crate::mount::resolve::{Image, Resolver};
use crate::mount::source;
use crate::oci::Descriptor;

/// The indexes of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Indexes {
    /// As typed.
    pub image: String,
    /// Digest of the image manifest.
    pub digest: String,
    /// Which platform's.
    pub platform: String,
    /// Base first.
    pub layers: Vec<Layer>,
}

/// A layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Layer {
    /// Blob digest.
    pub digest: String,
    /// Compressed size in bytes.
    pub size: u64,
    /// Its index; absent when there is none here.
    pub index: Option<Index>,
}

/// An index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Index {
    /// `gzip`, `zstd` or `none`: what the blob's bytes turned out to be.
    pub compression: &'static str,
    /// Uncompressed size of the layer in bytes.
    pub address_bytes: u64,
    /// Pieces that are fetched, decoded and verified as one.
    pub spans: u64,
    /// Spans where decoding can begin.
    pub checkpoints: u64,
    /// Names that the layer adds.
    pub entries: u64,
    /// Names that it hides of lower layers.
    pub whiteouts: u64,
    /// Size of the index in bytes, as it is stored.
    pub index_bytes: u64,
}

impl Index {
    fn of(index: &LayerIndex, stored: u64) -> Index {
        let begins = |span: &&crate::layer::Span| span.start != SpanStart::Continue;
        Index {
            compression: index.compression.as_str(),
            address_bytes: index.address_size,
            spans: index.spans.len() as u64,
            checkpoints: index.spans.iter().filter(begins).count() as u64,
            entries: index.entries.len() as u64,
            whiteouts: index.whiteouts.len() as u64,
            index_bytes: stored,
        }
    }
}

/// Streams the layers that have no index here, and shows all.
pub fn build(mut request: MountRequest, monitor: Arc<dyn Monitor>) -> Result<Indexes, Error> {
    // What a pack says of a layer is no index of ours.
    request.trust_index = TrustIndex::Local;
    drop(assemble::assemble(&request, monitor, &Notify::new())?);
    show(&request)
}

/// Shows what is here. The image is asked for if it is not known.
pub fn show(request: &MountRequest) -> Result<Indexes, Error> {
    let cache = Cache::open(&request.cache_dir)?;
    let image = resolve(request, &cache)?;
    let layers = image.manifest.layers.iter();
    let shown = |layer: &Descriptor| -> Result<Layer, Error> {
        let stored = cache.layer(&layer.digest)?;
        Ok(Layer {
            digest: layer.digest.to_string(),
            size: layer.size,
            index: stored.map(|stored| read(&stored, layer)).transpose()?,
        })
    };
    Ok(Indexes {
        image: request.image.clone(),
        digest: image.digest.to_string(),
        platform: image.platform.to_string(),
        layers: layers.map(shown).collect::<Result<_, _>>()?,
    })
}

fn read(stored: &StoredLayer, layer: &Descriptor) -> Result<Index, Error> {
    let bytes = stored.index()?;
    let index = codec::decode(&bytes).map_err(|source| Error::Index {
        layer: layer.digest.clone(),
        source,
    })?;
    Ok(Index::of(&index, bytes.len() as u64))
}

/// The image, from the cache or asked for.
pub(crate) fn resolve(request: &MountRequest, cache: &Cache) -> Result<Image, Error> {
    let access = source::access(request)?;
    let resolver = Resolver::new(request, &access, cache)?;
    if let Some(image) = resolver.cached()? {
        return Ok(image);
    }
    if request.offline {
        return Err(Error::Offline(request.image.clone()));
    }
    let runtime = Content::new_runtime().map_err(Error::io("cannot start the network threads"))?;
    runtime.block_on(async {
        let source = access.open()?;
        let top = resolver.top(&source).await?;
        resolver.image_of(&source, &top).await
    })
}
