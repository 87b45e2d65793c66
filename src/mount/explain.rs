//! What a mount of an image would start from: which layers are known here, what earlier starts
//! touched, and which pack was found and is used, and why. Mounts nothing, streams no layer.

use serde::Serialize;

use crate::cache::{Cache, PAGE_BYTES};
use crate::content::{Content, Profile};
use crate::layer::{LayerIndex, SpanStart, codec};
use crate::mount::discover::{self, Finding, Found, Refused};
use crate::mount::error::Error;
use crate::mount::hot::Early;
use crate::mount::learn::Learner;
use crate::mount::request::{MountRequest, TrustIndex};
use crate::mount::resolve::{Image, Resolver};
use crate::mount::source;
use crate::mount::trust::Trust;
use crate::registry::HostUse;

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
    /// The hosts that stand for the registry, in the order in which they are asked, and what they
    /// have answered just now.
    pub hosts: Vec<HostUse>,
    /// Uncompressed bytes that the profile of earlier starts names; 0 without one.
    pub profile_bytes: u64,
    /// The commands that `run` has started, each with a profile of its own.
    pub commands: Vec<Command>,
    /// The pack.
    pub pack: Pack,
}

/// A command that was run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Command {
    /// Its words; the last ones of a very long one are missing.
    pub command: Vec<String>,
    /// Uncompressed bytes that its profile names.
    pub profile_bytes: u64,
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
    /// What its bytes turned out to be: `gzip`, `zstd` or `none`; absent when nothing is known.
    pub compression: Option<&'static str>,
    /// Whether its index was cut anew for what earlier starts touched; one of zstd frames cannot be.
    pub narrow: bool,
    /// Whether it is one zstd frame, so that a read that no pack's hot pages answer decodes it from
    /// its start.
    pub from_start: bool,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pack {
    /// The rule that was applied: `tag`, `registry`, `signed` or `local`.
    pub rule: TrustIndex,
    /// Digest of its manifest, when there is one.
    pub digest: Option<String>,
    /// Whether the rule admits it.
    pub trusted: bool,
    /// Whether a mount would use it.
    pub used: bool,
    /// Why, or why not.
    pub why: String,
    /// Fingerprints of the keys that it says have signed it.
    pub signers: Vec<String>,
    /// Compressed bytes of its hot pages; 0 when it is not trusted, for nobody has looked.
    pub hot_bytes: u64,
}

/// Explains the image of `request`.
pub fn explain(request: &MountRequest) -> Result<Explanation, Error> {
    let cache = Cache::open_within(&request.cache_dir, request.cache_size)?;
    let access = source::access(request)?;
    let resolver = Resolver::new(request, &access, &cache)?;
    // A name that was given here is not known where it points to, and is nobody's word.
    let place = |image: &Image| image.sources.first().unwrap_or(&access.name).clone();
    let runtime = Content::new_runtime().map_err(Error::io("cannot start the network threads"))?;
    let (image, finding, hosts) = runtime.block_on(async {
        let source = access.open()?;
        let image = match resolver.cached()? {
            Some(image) => image,
            None if request.offline => return Err(Error::Offline(request.image.clone())),
            None => {
                let top = resolver.top(&source).await?;
                resolver.image_of(&source, &top).await?
            }
        };
        let place = place(&image);
        let trust = Trust::of(request, &place);
        let source = match place == access.name {
            true => source,
            false => access.of(&place).open()?,
        };
        let finding = if request.offline {
            let why = trust.admits_any().err();
            let why = why.unwrap_or_else(|| "no mount here has used one before".to_owned());
            discover::remembered(&cache, trust, &image).map_or_else(
                || Finding::Not(Refused::all(why)),
                |pack| Finding::Used(Box::new(pack)),
            )
        } else {
            // Also when the rule admits none: then it is shown what there would be.
            let found = discover::find(&cache, trust, (&source, &image.digest), Early::Never).await;
            let accept = |found: Found| found.accept(&cache, &place, &image);
            found.map_or_else(Finding::Not, accept)
        };
        Ok((image, finding, source.hosts()))
    })?;
    let mut explained = describe(request, &cache, &image, finding)?;
    explained.hosts = hosts;
    Ok(explained)
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
        let (by, present_bytes, index) = match (&stored, found) {
            (Some(stored), _) => {
                let index = stored.index()?;
                let present = stored.pages()?.present_bytes();
                ("index", present, codec::decode(&index).ok())
            }
            (None, Some(pack)) => ("pack", 0, pack.meta.layers.get(at).cloned()),
            (None, None) => ("stream", 0, None),
        };
        layers.push(Layer {
            digest: layer.digest.to_string(),
            size: layer.size,
            by,
            present_bytes,
            address_bytes: index.as_ref().map(|index| index.address_size),
            compression: index.as_ref().map(|index| index.compression.as_str()),
            narrow: stored.as_ref().is_some_and(|s| s.narrow().is_some()),
            from_start: index.as_ref().is_some_and(is_one_frame),
        });
    }
    let needed = layers.iter().any(|l| l.by != "index");
    let learner = Learner::new(cache.clone(), &image.manifest);
    let bytes = |profile: &Profile| {
        let pages: u64 = profile.touches.iter().map(|t| t.pages).sum();
        pages * PAGE_BYTES
    };
    let mut commands = learner.commands();
    commands.sort_by(|a, b| a.command.cmp(&b.command));
    let command = |profile: Profile| Command {
        profile_bytes: bytes(&profile),
        command: profile.command,
    };
    Ok(Explanation {
        image: request.image.clone(),
        digest: image.digest.to_string(),
        platform: image.platform.to_string(),
        layers,
        hosts: Vec::new(),
        profile_bytes: bytes(&learner.earlier()),
        commands: commands.into_iter().map(command).collect(),
        pack: shown(request.trust_index, finding, needed),
    })
}

fn shown(rule: TrustIndex, finding: Finding, needed: bool) -> Pack {
    match finding {
        Finding::Used(pack) => Pack {
            rule,
            digest: Some(pack.digest.to_string()),
            trusted: true,
            used: needed,
            why: match needed {
                true => pack.admitted.to_string(),
                false => format!("{}; but every layer was indexed here", pack.admitted),
            },
            signers: pack.manifest.signatures.keys().cloned().collect(),
            hot_bytes: pack.manifest.hot.size,
        },
        Finding::Not(refused) => Pack {
            rule,
            digest: refused.digest.map(|digest| digest.to_string()),
            trusted: false,
            used: false,
            why: refused.why,
            signers: refused.signers,
            hot_bytes: 0,
        },
    }
}

/// Whether a layer can only be decoded from its beginning: one long zstd frame.
fn is_one_frame(index: &LayerIndex) -> bool {
    let mut later = index.spans.iter().skip(1);
    index.spans.len() > 1 && later.all(|span| span.start == SpanStart::Continue)
}
