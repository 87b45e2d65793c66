//! What is known about an image without looking into it: manifests and configuration, nothing else
//! is ever fetched for it.

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::cache::Cache;
use crate::image::error::Error;
use crate::mount::resolve::Image;
use crate::mount::{MountRequest, lookup, source};
use crate::oci::{About, Descriptor, Digest, ImageName, Manifest, platform};

/// Which document is wanted as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Raw {
    /// What the name stands for: an index when it has many platforms, else the image manifest.
    Top,
    /// The manifest of one platform.
    Manifest,
    /// Its configuration.
    Config,
}

/// A platform of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlatformOf {
    /// Operating system.
    pub os: String,
    /// GOARCH name.
    pub architecture: String,
    /// CPU variant.
    pub variant: Option<String>,
    /// Version of the operating system.
    #[serde(rename = "os.version")]
    pub os_version: Option<String>,
    /// Digest of its manifest.
    pub digest: Digest,
    /// Length of its manifest in bytes.
    pub size: u64,
}

/// A step that made an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HistoryLine {
    /// When, RFC 3339.
    pub created: Option<String>,
    /// The command.
    pub created_by: Option<String>,
    /// A comment.
    pub comment: Option<String>,
    /// The layer that it made.
    pub layer: Option<Digest>,
    /// Compressed length of the layer in bytes; 0 without one.
    pub size: u64,
}

/// An image and its documents.
struct Looked {
    image: Image,
    about: About,
    name: ImageName,
}

fn look(request: &MountRequest, cache: &Cache) -> Result<Looked, Error> {
    let image = lookup(request, cache)?;
    let bytes = document(cache, &image.manifest.config.digest)?;
    let about = About::parse(&bytes).map_err(|source| Error::Config {
        image: request.image.clone(),
        source,
    })?;
    let name = source::access(request)?.name;
    Ok(Looked { image, about, name })
}

fn document(cache: &Cache, digest: &Digest) -> Result<Vec<u8>, Error> {
    let found = cache.document(digest);
    found.ok_or_else(|| Error::Gone(digest.clone()))
}

/// Everything about the image of `request`, in the words of `docker inspect`, with the layers as the
/// registry has them in addition.
pub fn inspect(request: &MountRequest) -> Result<Value, Error> {
    let cache = Cache::open_within(&request.cache_dir, request.cache_size)?;
    let looked = look(request, &cache)?;
    let Looked { image, about, name } = &looked;
    let manifest = &image.manifest;
    let (tags, digests) = match name {
        ImageName::Registry(r) => {
            let familiar = r.familiar();
            let (tagged, _) = familiar.split_once('@').unwrap_or((&familiar, ""));
            let repository = match r.tag() {
                Some(tag) => tagged.trim_end_matches(&format!(":{tag}")),
                None => tagged,
            };
            let tags = r.tag().map(|_| tagged.to_owned());
            let by_digest = format!("{repository}@{}", image.digest);
            (tags.into_iter().collect(), vec![by_digest])
        }
        _ => (Vec::new(), Vec::new()),
    };
    let diff_ids = &image.config.diff_ids;
    Ok(json!({
        "Id": manifest.config.digest,
        "RepoTags": tags,
        "RepoDigests": digests,
        "Digest": image.digest,
        "Created": about.created,
        "Author": about.author.as_deref().unwrap_or_default(),
        "Comment": about.comment.as_deref().unwrap_or_default(),
        "Platform": image.platform.to_string(),
        "Os": image.platform.os,
        "Architecture": image.platform.architecture,
        "Variant": image.platform.variant.as_deref().unwrap_or_default(),
        "OsVersion": image.platform.os_version.as_deref().unwrap_or_default(),
        "Config": filled(&about.config),
        "Size": manifest.layers_size(),
        "RootFS": { "Type": "layers", "Layers": diff_ids },
        "Layers": layers(&looked),
    }))
}

/// The members that `docker inspect` has always had, with their empty values, so that a template may
/// name them whatever the image says.
fn filled(config: &Value) -> Value {
    let mut all = Map::new();
    for (name, empty) in [
        ("User", json!("")),
        ("Env", json!([])),
        ("Entrypoint", json!([])),
        ("Cmd", json!([])),
        ("WorkingDir", json!("")),
        ("Volumes", json!({})),
        ("ExposedPorts", json!({})),
        ("Labels", json!({})),
        ("StopSignal", json!("")),
        ("Healthcheck", Value::Null),
    ] {
        all.insert(name.to_owned(), empty);
    }
    for (name, value) in config.as_object().into_iter().flatten() {
        if !value.is_null() {
            all.insert(name.clone(), value.clone());
        }
    }
    Value::Object(all)
}

fn layers(of: &Looked) -> Vec<Value> {
    let layers = &of.image.manifest.layers;
    let steps = of.about.steps_with_layers(layers.len());
    let describe = |(at, layer): (usize, &Descriptor)| {
        let step = steps.iter().find(|(_, made)| *made == Some(at));
        let step = step.map(|(step, _)| (*step).clone()).unwrap_or_default();
        json!({
            "Digest": layer.digest,
            "MediaType": layer.media_type,
            "Size": layer.size,
            "DiffID": of.image.config.diff_ids.get(at),
            "Created": step.created,
            "CreatedBy": step.created_by,
            "Comment": step.comment,
        })
    };
    layers.iter().enumerate().map(describe).collect()
}

/// The steps that made the image of `request`, last one first.
pub fn history(request: &MountRequest) -> Result<Vec<HistoryLine>, Error> {
    let cache = Cache::open_within(&request.cache_dir, request.cache_size)?;
    let Looked { image, about, .. } = look(request, &cache)?;
    let layers = &image.manifest.layers;
    let mut steps = about.steps_with_layers(layers.len());
    let nameless = crate::oci::Step::default();
    let claimed = steps.iter().filter(|(_, at)| at.is_some()).count();
    steps.extend((claimed..layers.len()).map(|at| (&nameless, Some(at))));
    let line = |(step, at): &(&crate::oci::Step, Option<usize>)| {
        let layer = at.and_then(|at| layers.get(at));
        HistoryLine {
            created: step.created.clone(),
            created_by: step.created_by.clone(),
            comment: step.comment.clone(),
            layer: layer.map(|l| l.digest.clone()),
            size: layer.map_or(0, |l| l.size),
        }
    };
    Ok(steps.iter().rev().map(line).collect())
}

/// The platforms that the name of `request` stands for, in the order of the index.
pub fn platforms(request: &MountRequest) -> Result<Vec<PlatformOf>, Error> {
    let cache = Cache::open_within(&request.cache_dir, request.cache_size)?;
    let (digest, bytes) = top(request, &cache)?;
    let of = |p: &platform::Platform, digest: &Digest, size| PlatformOf {
        os: p.os.clone(),
        architecture: p.architecture.clone(),
        variant: p.variant.clone(),
        os_version: p.os_version.clone(),
        digest: digest.clone(),
        size,
    };
    match Manifest::parse(&bytes, None) {
        Ok(Manifest::Index(index)) => {
            let images = index.manifests.iter();
            let images = images.filter(|d| !platform::is_attestation(d));
            let unknown = platform::Platform::default();
            let line =
                |d: &Descriptor| of(d.platform.as_ref().unwrap_or(&unknown), &d.digest, d.size);
            Ok(images.map(line).collect())
        }
        _ => {
            let image = lookup(request, &cache)?;
            Ok(vec![of(&image.platform, &digest, bytes.len() as u64)])
        }
    }
}

/// What the name stands for. Only that is asked for: an image that has nothing for this machine's
/// platform can still be looked at.
fn top(request: &MountRequest, cache: &Cache) -> Result<(Digest, Vec<u8>), Error> {
    let digest = crate::mount::lookup_top(request, cache)?;
    let bytes = document(cache, &digest)?;
    Ok((digest, bytes))
}

/// The exact bytes of a document of the image of `request`.
pub fn raw(request: &MountRequest, which: Raw) -> Result<Vec<u8>, Error> {
    let cache = Cache::open_within(&request.cache_dir, request.cache_size)?;
    match which {
        Raw::Top => Ok(top(request, &cache)?.1),
        Raw::Manifest => document(&cache, &lookup(request, &cache)?.digest),
        Raw::Config => document(&cache, &lookup(request, &cache)?.manifest.config.digest),
    }
}
