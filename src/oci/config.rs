//! Image configurations.

use serde::Deserialize;

use crate::oci::digest::Digest;
use crate::oci::manifest::{ImageManifest, LAYERS_MAX};
use crate::oci::platform::Platform;
use crate::oci::shown::shown;

/// Longest configuration in bytes. Real ones have some KiB; the history of a thousand steps with
/// long command lines stays below a megabyte.
pub const CONFIG_BYTES_MAX: u64 = 8 << 20;

/// The part of an image configuration that mounting needs (OCI image-spec, `config.md`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageConfig {
    /// What it runs on.
    pub platform: Platform,
    /// Digest of each layer's uncompressed tar, base first.
    pub diff_ids: Vec<Digest>,
    /// What containers always run.
    pub entrypoint: Vec<String>,
    /// What is run, or given to the entrypoint, unless the user says something else.
    pub command: Vec<String>,
}

/// Why a blob is not a configuration that can be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Too long.
    #[error("the image configuration has {0} bytes ({CONFIG_BYTES_MAX} at most)")]
    TooLong(usize),
    /// Not JSON, or not with the members of a configuration.
    #[error("the image configuration cannot be read: {}", shown(&.0.to_string()))]
    Json(#[from] serde_json::Error),
    /// The root file system is not made of layers.
    #[error("the image configuration has a root file system of type `{0}` (expected `layers`)")]
    RootType(String),
    /// Too many layers.
    #[error("the image configuration names {0} layers ({LAYERS_MAX} at most)")]
    Layers(usize),
    /// The manifest has another number of layers.
    #[error("the manifest has {layers} layers, the image configuration {diff_ids}")]
    LayerCount {
        /// Layers of the manifest.
        layers: usize,
        /// diffIDs of the configuration.
        diff_ids: usize,
    },
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    variant: Option<String>,
    #[serde(rename = "os.version")]
    os_version: Option<String>,
    rootfs: RootFs,
    #[serde(default)]
    config: serde_json::Value,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: String,
    diff_ids: Option<Vec<Digest>>,
}

impl ImageConfig {
    /// Reads a configuration. A missing platform is left empty: some builders write none.
    pub fn parse(bytes: &[u8]) -> Result<ImageConfig, ConfigError> {
        if bytes.len() as u64 > CONFIG_BYTES_MAX {
            return Err(ConfigError::TooLong(bytes.len()));
        }
        let document: Document = serde_json::from_slice(bytes)?;
        if document.rootfs.kind != "layers" {
            return Err(ConfigError::RootType(shown(&document.rootfs.kind)));
        }
        let diff_ids = document.rootfs.diff_ids.unwrap_or_default();
        if diff_ids.len() > LAYERS_MAX {
            return Err(ConfigError::Layers(diff_ids.len()));
        }
        let variant = document.variant.as_deref().filter(|v| !v.is_empty());
        let platform = Platform::new(&document.os, &document.architecture, variant);
        let os_version = document.os_version.filter(|v| !v.is_empty());
        Ok(ImageConfig {
            platform: Platform {
                os_version,
                ..platform
            },
            diff_ids,
            entrypoint: words(&document.config["Entrypoint"]),
            command: words(&document.config["Cmd"]),
        })
    }

    /// Checks that every layer of `manifest` has its diffID.
    pub fn check_layers(&self, manifest: &ImageManifest) -> Result<(), ConfigError> {
        let (layers, diff_ids) = (manifest.layers.len(), self.diff_ids.len());
        if layers == diff_ids {
            Ok(())
        } else {
            Err(ConfigError::LayerCount { layers, diff_ids })
        }
    }
}

/// A list of words; none where there is something else: nobody needs it to mount.
fn words(list: &serde_json::Value) -> Vec<String> {
    let words = list.as_array().into_iter().flatten();
    words.filter_map(|w| w.as_str().map(String::from)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::oci::Descriptor;

    #[test]
    fn a_configuration_is_read_and_counted() {
        let id = Digest::of(b"tar");
        let document = json!({
            "os": "linux", "architecture": "arm64", "variant": "v8",
            "config": {"Entrypoint": null, "Cmd": ["sh", "-c"]},
            "rootfs": {"type": "layers", "diff_ids": [id.to_string()]},
        });
        let config = ImageConfig::parse(document.to_string().as_bytes()).unwrap();
        assert_eq!(config.platform.to_string(), "linux/arm64");
        assert_eq!((config.entrypoint.len(), &*config.command[1]), (0, "-c"));
        let blob = Descriptor::new("x", id, 1);
        let mut manifest = ImageManifest {
            config: blob.clone(),
            layers: vec![blob.clone()],
        };
        config.check_layers(&manifest).unwrap();
        manifest.layers.push(blob);
        assert!(matches!(
            config.check_layers(&manifest),
            Err(ConfigError::LayerCount {
                layers: 2,
                diff_ids: 1
            })
        ));
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        let parse = |v: serde_json::Value| ImageConfig::parse(v.to_string().as_bytes());
        assert!(matches!(parse(json!({})), Err(ConfigError::Json(_))));
        let disk = json!({"rootfs": {"type": "disk"}});
        assert!(matches!(parse(disk), Err(ConfigError::RootType(_))));
        let ids = vec![Digest::of(b"").to_string(); LAYERS_MAX + 1];
        let many = json!({"rootfs": {"type": "layers", "diff_ids": ids}});
        assert!(matches!(parse(many), Err(ConfigError::Layers(501))));
        let long = vec![b' '; CONFIG_BYTES_MAX as usize + 1];
        assert!(matches!(
            ImageConfig::parse(&long),
            Err(ConfigError::TooLong(_))
        ));
    }
}
