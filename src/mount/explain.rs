//! What a mount of an image would start from: which layers are known here, what earlier starts
//! touched, and which pack was found and is used, and why. Mounts nothing, streams no layer.

use serde::Serialize;

use crate::cache::{Cache, PAGE_BYTES};
use crate::content::Content;
use crate::mount::error::Error;
use crate::mount::hot::Early;
use crate::mount::learn::Learner;
use crate::mount::pack::{self, Finding};
use crate::mount::request::MountRequest;
use crate::mount::resolve::{Image, Resolver};
use crate::mount::source;

/// What is known of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// As typed.
    pub image: String,
    /// Digest of the image manifest.
    pub digest: String,
    /// Which platform's.
    pub platform: String,
    /// Base first.
    pub layers: Vec<Layer>,
    /// Uncompressed bytes that the profile of earlier starts names; 0 without one.
    pub profile_bytes: u64,
    /// The pack.
    pub pack: Pack,
}

/// What is known of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Layer {
    /// Blob digest.
    pub digest: String,
    /// Compressed size in bytes.
    pub size: u64,
    /// `index`: made here. `pack`: somebody else's. `stream`: a mount streams it whole first.
    pub by: &'static str,
    /// Uncompressed bytes present here.
    pub present_bytes: u64,
    /// Uncompressed bytes in all; absent when nothing is known.
    pub address_bytes: Option<u64>,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pack {
    /// Digest of its manifest, when it is used.
    pub digest: Option<String>,
    /// Whether a mount would use it.
    pub used: bool,
    /// Why, or why not.
    pub why: String,
    /// Compressed bytes of its hot pages.
    pub hot_bytes: u64,
}

/// Explains the image of `request`.
pub fn explain(request: &MountRequest) -> Result<Explanation, Error> {
    let cache = Cache::open_within(&request.cache_dir, request.cache_size)?;
    let access = source::access(request)?;
    let resolver = Resolver::new(request, &access, &cache)?;
    let admitted = pack::admits(request.trust_index, &access.name);
    let runtime = Content::new_runtime().map_err(Error::io("cannot start the network threads"))?;
    let (image, finding) = runtime.block_on(async {
        let source = access.open()?;
        let image = match resolver.cached()? {
            Some(image) => image,
            None if request.offline => return Err(Error::Offline(request.image.clone())),
            None => {
                let top = resolver.top(&source).await?;
                resolver.image_of(&source, &top).await?
            }
        };
        let finding = match admitted {
            Err(why) => Finding::Not(why),
            Ok(()) if request.offline => {
                let known = pack::remembered(&cache, request.trust_index, &access.name, &image);
                known.map_or_else(none, |pack| Finding::Used(Box::new(pack)))
            }
            Ok(()) => match pack::find(&source, &image.digest, Early::Never).await {
                Some(found) => found.accept(&cache, &access.name, &image),
                None => none(),
            },
        };
        Ok((image, finding))
    })?;
    describe(request, &cache, &image, finding)
}

fn none() -> Finding {
    Finding::Not("none was found; `rsmount publish` makes one".to_owned())
}

fn describe(
    request: &MountRequest,
    cache: &Cache,
    image: &Image,
    finding: Finding,
) -> Result<Explanation, Error> {
    let found = match &finding {
        Finding::Used(pack) => Some(pack),
        Finding::Not(_) => None,
    };
    let mut layers = Vec::new();
    for (at, layer) in image.manifest.layers.iter().enumerate() {
        let stored = cache.layer(&layer.digest)?;
        let (by, present_bytes, address_bytes) = match (&stored, found) {
            (Some(stored), _) => {
                let present = stored.pages()?.present_bytes();
                ("index", present, Some(stored.address_size()))
            }
            (None, Some(pack)) => ("pack", 0, Some(pack.meta.layers[at].address_size)),
            (None, None) => ("stream", 0, None),
        };
        layers.push(Layer {
            digest: layer.digest.to_string(),
            size: layer.size,
            by,
            present_bytes,
            address_bytes,
        });
    }
    let needed = layers.iter().any(|l| l.by != "index");
    let profile = Learner::new(cache.clone(), &image.manifest).earlier();
    let pages: u64 = profile.touches.iter().map(|t| t.pages).sum();
    Ok(Explanation {
        image: request.image.clone(),
        digest: image.digest.to_string(),
        platform: image.platform.to_string(),
        layers,
        profile_bytes: pages * PAGE_BYTES,
        pack: match finding {
            Finding::Used(pack) => Pack {
                digest: Some(pack.digest.to_string()),
                used: needed,
                why: match needed {
                    true => "it is of the same repository".to_owned(),
                    false => "not needed: every layer was indexed here".to_owned(),
                },
                hot_bytes: pack.manifest.hot.size,
            },
            Finding::Not(why) => Pack {
                digest: None,
                used: false,
                why,
                hot_bytes: 0,
            },
        },
    })
}
