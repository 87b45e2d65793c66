//! What an image is, as far as whoever runs a command in it has to know beforehand.

use serde::Deserialize;

use crate::cache::Cache;
use crate::mount::error::Error;
use crate::mount::indexes::resolve;
use crate::mount::request::MountRequest;

/// Some facts of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    /// Digest of the image manifest.
    pub digest: String,
    /// `os/arch[/variant]`.
    pub platform: String,
    /// Compressed bytes of all layers.
    pub compressed_bytes: u64,
    /// `NAME=VALUE` of its configuration (OCI image-spec, "Image Configuration", `config.Env`).
    pub environment: Vec<String>,
}

#[derive(Deserialize, Default)]
struct Document {
    #[serde(default)]
    config: Option<Process>,
}

#[derive(Deserialize, Default)]
struct Process {
    #[serde(rename = "Env", default)]
    environment: Option<Vec<String>>,
}

/// The facts of the image of `request`, which is asked for if it is not known.
pub fn defaults(request: &MountRequest) -> Result<Defaults, Error> {
    let cache = Cache::open(&request.cache_dir)?;
    let image = resolve(request, &cache)?;
    let config = cache.document(&image.manifest.config.digest);
    let document: Option<Document> = config.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let process = document.unwrap_or_default().config.unwrap_or_default();
    Ok(Defaults {
        digest: image.digest.to_string(),
        platform: image.platform.to_string(),
        compressed_bytes: image.manifest.layers.iter().map(|l| l.size).sum(),
        environment: process.environment.unwrap_or_default(),
    })
}
