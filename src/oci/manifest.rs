//! Manifests and indexes, in OCI's words and in Docker's.
//!
//! Shapes: OCI image-spec `manifest.md` and `image-index.md`; Docker's "Image Manifest Version 2,
//! Schema 2". The two differ in media types only. Serde structs of our own instead of `oci-spec`'s:
//! an unknown digest algorithm, a negative size or a missing media type has to become a message
//! that names it.

use serde::Deserialize;

use crate::oci::descriptor::Descriptor;
use crate::oci::platform::{self, Platform};
use crate::oci::shown::shown;

mod document;

/// Longest manifest in bytes: what the registries themselves accept (OCI distribution-spec,
/// "Pushing Manifests": at least 4 MiB; Docker's registry refuses more).
pub const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// Most layers of an image: the kernel's overlayfs stacks at most 500 (`OVL_MAX_STACK`), so no
/// image with more was ever run.
pub const LAYERS_MAX: usize = 500;

const SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+";

/// An image manifest: one platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageManifest {
    /// The configuration blob.
    pub config: Descriptor,
    /// Layers, base first.
    pub layers: Vec<Descriptor>,
}

/// An image index or Docker manifest list: many platforms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageIndex {
    /// One descriptor a manifest.
    pub manifests: Vec<Descriptor>,
}

/// Either.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manifest {
    /// One platform.
    Image(ImageManifest),
    /// Many platforms.
    Index(ImageIndex),
}

/// Why a document is not a manifest that can be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Too long.
    #[error("the manifest has {0} bytes ({MANIFEST_BYTES_MAX} at most)")]
    TooLong(usize),
    /// Not JSON, or not with the members of a manifest.
    #[error("the manifest cannot be read: {}", shown(&.0.to_string()))]
    Json(#[from] serde_json::Error),
    /// Docker's format before 2015.
    #[error(
        "the manifest has the old Docker schema 1, which names no layer sizes: pull and push the \
         image once with a current Docker to convert it"
    )]
    Schema1,
    /// Neither an image nor an index.
    #[error("`{0}` is neither an image manifest nor an image index")]
    Kind(String),
    /// It reads as an image and as an index (CVE-2021-41190), or its own media type contradicts
    /// the one that it was announced with.
    #[error("the manifest is ambiguous: {0}")]
    Ambiguous(String),
    /// A size below zero.
    #[error("the manifest gives {digest} the size {size}")]
    Size {
        /// The blob.
        digest: String,
        /// What the manifest says.
        size: i64,
    },
    /// All layers together are longer than 64 bits can say.
    #[error("the sizes of the layers do not add up to a number of 64 bits")]
    TotalSize,
    /// Too many layers.
    #[error("the image has {0} layers ({LAYERS_MAX} at most)")]
    Layers(usize),
    /// Something else than an image: a Helm chart, a signature, …
    #[error("this is not a container image: its {part} has the type `{media_type}`")]
    NotAnImage {
        /// `configuration` or `layer 3`.
        part: String,
        /// The media type.
        media_type: String,
    },
    /// No manifest fits.
    #[error("the image has no manifest for {wanted}; it has {have} (choose with --platform)")]
    NoPlatform {
        /// The wanted platform.
        wanted: Platform,
        /// What there is, as a list for people.
        have: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Image,
    Index,
}

impl Manifest {
    /// Reads a manifest. `media_type_hint` is the media type that it came with (a Content-Type or
    /// a descriptor's); one that says nothing about manifests is ignored, one that contradicts the
    /// document is an error.
    pub fn parse(bytes: &[u8], media_type_hint: Option<&str>) -> Result<Manifest, ManifestError> {
        if bytes.len() as u64 > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLong(bytes.len()));
        }
        let document: document::Document = serde_json::from_slice(bytes)?;
        match kind(&document, media_type_hint)? {
            Kind::Image => image(document).map(Manifest::Image),
            Kind::Index => index(document).map(Manifest::Index),
        }
    }
}

impl ImageManifest {
    /// Length of all layers together, in bytes, as stored by the registry.
    pub fn layers_size(&self) -> u64 {
        self.layers
            .iter()
            .fold(0, |sum, layer| sum.saturating_add(layer.size))
    }

    /// Refuses artifacts that are packed as images (Helm charts, signatures): their layers are no
    /// file systems.
    pub fn check_is_image(&self) -> Result<(), ManifestError> {
        let error = |part: String, media_type: &str| ManifestError::NotAnImage {
            part,
            media_type: shown(media_type),
        };
        for (number, layer) in self.layers.iter().enumerate() {
            if layer.layer_compression().is_none() {
                return Err(error(format!("layer {}", number + 1), &layer.media_type));
            }
        }
        if self.config.media_type == "application/vnd.oci.empty.v1+json" {
            return Err(error("configuration".into(), &self.config.media_type));
        }
        Ok(())
    }
}

impl ImageIndex {
    /// The manifest (or nested index) that fits `wanted` best, see [`platform::select`].
    pub fn select(&self, wanted: &Platform) -> Result<&Descriptor, ManifestError> {
        platform::select(wanted, self.manifests.iter()).ok_or_else(|| ManifestError::NoPlatform {
            wanted: wanted.clone(),
            have: self.platforms(),
        })
    }

    fn platforms(&self) -> String {
        let images = self
            .manifests
            .iter()
            .filter(|d| !platform::is_attestation(d));
        let mut names: Vec<String> = images
            .filter_map(|d| d.platform.as_ref())
            .map(|p| shown(&p.to_string()))
            .collect();
        names.dedup();
        let more = names.len().saturating_sub(20);
        names.truncate(20);
        match (names.is_empty(), more) {
            (true, _) => "none".into(),
            (false, 0) => names.join(", "),
            (false, more) => format!("{} and {more} more", names.join(", ")),
        }
    }
}

fn kind(document: &document::Document, hint: Option<&str>) -> Result<Kind, ManifestError> {
    let own = document.media_type.as_deref();
    // A Content-Type may carry parameters (RFC 9110, section 8.3.1).
    let hint = hint.map(|h| h.split(';').next().unwrap_or(h).trim());
    let is_schema1 = |t: Option<&str>| t.is_some_and(|t| t.starts_with(SCHEMA1));
    if document.schema_version == Some(1) || is_schema1(own) || is_schema1(hint) {
        return Err(ManifestError::Schema1);
    }
    let shape = match (document.layers.is_some(), document.manifests.is_some()) {
        (true, true) => {
            return Err(ManifestError::Ambiguous(
                "it has both layers and manifests".into(),
            ));
        }
        (true, false) => Kind::Image,
        (false, true) => Kind::Index,
        (false, false) => {
            let named = own.or(hint).unwrap_or("the document");
            return Err(ManifestError::Kind(shown(named)));
        }
    };
    for (media_type, origin) in [(own, "calls itself"), (hint, "was announced as")] {
        match media_type.and_then(kind_of_type) {
            Some(kind) if kind != shape => {
                let (says, is) = (media_type.unwrap_or_default(), members(shape));
                return Err(ManifestError::Ambiguous(format!(
                    "it {origin} {says} but has {is}"
                )));
            }
            _ => {}
        }
    }
    Ok(shape)
}

fn members(kind: Kind) -> &'static str {
    match kind {
        Kind::Image => "layers",
        Kind::Index => "manifests",
    }
}

fn kind_of_type(media_type: &str) -> Option<Kind> {
    match media_type {
        "application/vnd.oci.image.index.v1+json"
        | "application/vnd.docker.distribution.manifest.list.v2+json" => Some(Kind::Index),
        "application/vnd.oci.image.manifest.v1+json"
        | "application/vnd.docker.distribution.manifest.v2+json" => Some(Kind::Image),
        _ => None,
    }
}

fn image(document: document::Document) -> Result<ImageManifest, ManifestError> {
    let layers = document.layers.unwrap_or_default();
    if layers.len() > LAYERS_MAX {
        return Err(ManifestError::Layers(layers.len()));
    }
    let config = document.config.ok_or_else(|| {
        ManifestError::Json(serde::de::Error::custom(
            "an image manifest without `config`",
        ))
    })?;
    let layers: Vec<Descriptor> = layers
        .into_iter()
        .map(document::Descriptor::check)
        .collect::<Result<_, _>>()?;
    let total = layers
        .iter()
        .try_fold(0u64, |sum, layer| sum.checked_add(layer.size));
    total
        .filter(|total| *total <= i64::MAX as u64)
        .ok_or(ManifestError::TotalSize)?;
    Ok(ImageManifest {
        config: config.check()?,
        layers,
    })
}

fn index(document: document::Document) -> Result<ImageIndex, ManifestError> {
    let manifests = document.manifests.unwrap_or_default();
    let manifests = manifests
        .into_iter()
        .map(document::Descriptor::check)
        .collect::<Result<_, _>>()?;
    Ok(ImageIndex { manifests })
}

/// `null` is what Go writes for an empty list or map; it reads as the default.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests;
