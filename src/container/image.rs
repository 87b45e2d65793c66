//! What an image says of the containers that are made from it (OCI image-spec `config.md`, `config`).

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::cache::{Cache, CacheError};
use crate::oci::{Digest, Manifest};

/// The members that running needs; builders write null for what is not set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Defaults {
    /// `user[:group]`, names or numbers.
    pub user: Option<String>,
    /// `NAME=value`.
    pub env: Option<Vec<String>>,
    /// What is always run.
    pub entrypoint: Option<Vec<String>>,
    /// What is run, or given to the entrypoint, unless the user says something else.
    pub cmd: Option<Vec<String>>,
    /// Directories whose contents are not part of the container.
    pub volumes: Option<BTreeMap<String, serde_json::Value>>,
    /// Where the process starts.
    pub working_dir: Option<String>,
    /// The signal that asks it to end.
    pub stop_signal: Option<String>,
}

#[derive(Deserialize)]
struct Document {
    config: Option<Defaults>,
}

/// Why nothing is known.
#[derive(Debug, thiserror::Error)]
pub enum DefaultsError {
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A document is not there (any more).
    #[error("{0} is not in the cache any more; run the command again")]
    Missing(Digest),
    /// It makes no sense.
    #[error("the image configuration cannot be read: {0}; the image has to be built anew")]
    Config(#[from] serde_json::Error),
    /// The manifest makes no sense.
    #[error(transparent)]
    Manifest(#[from] crate::oci::manifest::ManifestError),
    /// It is an index.
    #[error("{0} is an index of many platforms; choose one with --platform")]
    Index(Digest),
}

impl Defaults {
    /// Those of the image whose manifest has the digest, from the documents that its mount has left
    /// in the cache.
    pub fn load(cache_dir: &Path, manifest: &Digest) -> Result<Defaults, DefaultsError> {
        let cache = Cache::open(cache_dir)?;
        let document = |digest: &Digest| {
            let found = cache.document(digest);
            found.ok_or_else(|| DefaultsError::Missing(digest.clone()))
        };
        let Manifest::Image(image) = Manifest::parse(&document(manifest)?, None)? else {
            return Err(DefaultsError::Index(manifest.clone()));
        };
        Defaults::parse(&document(&image.config.digest)?)
    }

    fn parse(config: &[u8]) -> Result<Defaults, DefaultsError> {
        let document: Document = serde_json::from_slice(config)?;
        Ok(document.config.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_is_nothing() {
        for text in [
            r#"{}"#,
            r#"{"config": null}"#,
            r#"{"config": {"Cmd": null, "Env": null, "Volumes": null}}"#,
        ] {
            assert_eq!(
                Defaults::parse(text.as_bytes()).unwrap(),
                Defaults::default()
            );
        }
        let some = r#"{"config": {"Cmd": ["a"], "Volumes": {"/v": {}}, "Healthcheck": {}}}"#;
        let some = Defaults::parse(some.as_bytes()).unwrap();
        assert_eq!(some.cmd, Some(vec!["a".into()]));
        assert_eq!(some.volumes.unwrap().keys().collect::<Vec<_>>(), ["/v"]);
    }
}
