//! The documents of a new image: those of the image below, with one layer and one step of history
//! more (OCI image-spec, `config.md` and `manifest.md`).
//!
//! They are changed as JSON, not as structs: what an image says and nobody here knows of stays.

use std::time::SystemTime;

use serde_json::{Map, Value, json};

use super::instruction::{Changer, InstructionError};
use super::{Commit, CommitError, Overrides};
use crate::cache::Cache;
use crate::mount::upper::About;
use crate::oci::{Compression, Digest, Manifest};

/// Media type of the new manifest.
pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Members of Docker's configurations that speak of one container or one build.
const OF_THE_BUILD: [&str; 6] = [
    "container",
    "container_config",
    "docker_version",
    "id",
    "parent",
    "throwaway",
];

/// The documents of the image below.
pub(super) struct Base {
    image: String,
    digest: Digest,
    manifest: Map<String, Value>,
    config: Map<String, Value>,
}

/// The new layer.
pub(super) struct Layer {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) diff_id: Digest,
    pub(super) compression: Compression,
}

/// The new documents.
pub(super) struct Documents {
    pub(super) manifest: Vec<u8>,
    pub(super) digest: Digest,
    pub(super) config: Vec<u8>,
    pub(super) config_digest: Digest,
}

impl Base {
    pub(super) fn read(cache: &Cache, about: &About) -> Result<Base, CommitError> {
        let manifest = object(cache, &about.digest)?;
        let named = manifest.get("config").and_then(|c| c["digest"].as_str());
        let named: Option<Digest> = named.and_then(|d| d.parse().ok());
        let config =
            named.ok_or_else(|| CommitError::Document("it names no configuration".into()))?;
        Ok(Base {
            image: about.image.clone(),
            digest: about.digest.clone(),
            config: object(cache, &config)?,
            manifest,
        })
    }

    /// The configuration after what was `given` and after `instructions`.
    pub(super) fn changed(
        &self,
        given: &Overrides,
        instructions: &[String],
    ) -> Result<Map<String, Value>, InstructionError> {
        let mut config = self.config.clone();
        let mut inner = match config.remove("config") {
            Some(Value::Object(inner)) => inner,
            _ => Map::new(),
        };
        given.apply(&mut inner);
        let mut changer = Changer::new(&mut inner);
        instructions.iter().try_for_each(|i| changer.apply(i))?;
        config.insert("config".to_owned(), Value::Object(inner));
        Ok(config)
    }

    /// The new documents: `config` and the manifest with `layer` on top, if there is one.
    pub(super) fn extended(
        &self,
        mut config: Map<String, Value>,
        commit: &Commit,
        layer: Option<&Layer>,
    ) -> Result<Documents, CommitError> {
        for name in OF_THE_BUILD {
            config.remove(name);
        }
        let created = rfc3339(commit.created);
        let mut step = json!({ "created": created, "created_by": commit.created_by });
        config.insert("created".to_owned(), json!(created));
        for (name, value) in [("author", &commit.author), ("comment", &commit.message)] {
            match value {
                Some(value) => {
                    config.insert(name.to_owned(), json!(value));
                    step[name] = json!(value);
                }
                None => drop(config.remove(name)),
            }
        }
        match layer {
            Some(layer) => push(&mut config, &["rootfs", "diff_ids"], json!(layer.diff_id))?,
            None => step["empty_layer"] = json!(true),
        }
        push(&mut config, &["history"], step)?;
        let config = to_bytes(&Value::Object(config))?;
        let config_digest = Digest::of(&config);
        let mut layers = self.layers();
        layers.extend(layer.map(descriptor));
        let manifest = to_bytes(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": { "mediaType": CONFIG, "digest": config_digest, "size": config.len() },
            "layers": layers,
            "annotations": {
                "org.opencontainers.image.base.digest": self.digest,
                "org.opencontainers.image.base.name": self.image,
            },
        }))?;
        Manifest::parse(&manifest, Some(MANIFEST))?;
        Ok(Documents {
            digest: Digest::of(&manifest),
            manifest,
            config,
            config_digest,
        })
    }

    /// The descriptors of the layers below, in OCI's words.
    fn layers(&self) -> Vec<Value> {
        let layers = self.manifest.get("layers").and_then(Value::as_array);
        let mut layers = layers.cloned().unwrap_or_default();
        for layer in &mut layers {
            if let Some(media_type) = layer["mediaType"].as_str() {
                layer["mediaType"] = json!(in_oci_words(media_type));
            }
        }
        layers
    }
}

fn object(cache: &Cache, digest: &Digest) -> Result<Map<String, Value>, CommitError> {
    let bytes = cache.document(digest);
    let bytes = bytes.ok_or_else(|| CommitError::Gone(digest.clone()))?;
    let parsed = serde_json::from_slice(&bytes);
    parsed.map_err(|e| CommitError::Document(e.to_string()))
}

fn to_bytes(value: &Value) -> Result<Vec<u8>, CommitError> {
    serde_json::to_vec(value).map_err(|e| CommitError::Document(e.to_string()))
}

fn descriptor(layer: &Layer) -> Value {
    let suffix = match layer.compression {
        Compression::None => "",
        Compression::Gzip => "+gzip",
        Compression::Zstd => "+zstd",
    };
    let media_type = format!("{LAYER}{suffix}");
    json!({ "mediaType": media_type, "digest": layer.digest, "size": layer.size })
}

/// Docker's media types of layers, as OCI calls them.
fn in_oci_words(media_type: &str) -> String {
    const DOCKER: &str = "application/vnd.docker.image.rootfs.diff.tar";
    const FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar";
    const NONDISTRIBUTABLE: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar";
    let (base, rest) = match media_type.strip_prefix(DOCKER) {
        Some(rest) => (LAYER, rest),
        None => match media_type.strip_prefix(FOREIGN) {
            Some(rest) => (NONDISTRIBUTABLE, rest),
            None => return media_type.to_owned(),
        },
    };
    format!("{base}{}", rest.replacen('.', "+", 1))
}

/// Adds `value` to the array at `path`, which is made if it is missing.
fn push(config: &mut Map<String, Value>, path: &[&str], value: Value) -> Result<(), CommitError> {
    let bad = || CommitError::Document(format!("`{}` is no list", path.join(".")));
    let (last, above) = path.split_last().ok_or_else(bad)?;
    let mut at = config;
    for name in above {
        let inner = at.entry(*name).or_insert_with(|| json!({}));
        at = inner.as_object_mut().ok_or_else(bad)?;
    }
    let list = at.entry(*last).or_insert_with(|| json!([]));
    if list.is_null() {
        *list = json!([]);
    }
    list.as_array_mut().ok_or_else(bad)?.push(value);
    Ok(())
}

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_words_become_ocis() {
        for (docker, oci) in [
            ("application/vnd.docker.image.rootfs.diff.tar", LAYER),
            (
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
                "application/vnd.oci.image.layer.v1.tar+gzip",
            ),
            (
                "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
                "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            ),
            ("x/y", "x/y"),
        ] {
            assert_eq!(in_oci_words(docker), oci);
        }
    }

    #[test]
    fn a_step_and_a_layer_are_added_and_the_rest_stays() {
        let base = Base {
            image: "a:1".to_owned(),
            digest: Digest::of(b"base"),
            manifest: json!({ "layers": [{ "mediaType": "x", "digest": Digest::of(b"l"),
                "size": 1, "annotations": { "k": "v" } }] })
            .as_object()
            .cloned()
            .unwrap(),
            config: json!({ "author": "old", "container": "c", "os.features": ["f"],
                "config": { "User": "u" }, "history": null,
                "rootfs": { "type": "layers", "diff_ids": [Digest::of(b"t")] } })
            .as_object()
            .cloned()
            .unwrap(),
        };
        let commit = Commit {
            changed: crate::image::commit::Changed::default(),
            name: "b:1".to_owned(),
            author: None,
            message: Some("why".to_owned()),
            given: Overrides::default(),
            changes: vec!["USER v".to_owned()],
            compression: Compression::Zstd,
            created_by: "sh".to_owned(),
            created: SystemTime::UNIX_EPOCH,
        };
        let layer = Layer {
            digest: Digest::of(b"new"),
            size: 7,
            diff_id: Digest::of(b"new tar"),
            compression: Compression::Zstd,
        };
        let config = base.changed(&commit.given, &commit.changes).unwrap();
        let made = base
            .extended(config.clone(), &commit, Some(&layer))
            .unwrap();
        let config_now: Value = serde_json::from_slice(&made.config).unwrap();
        assert_eq!(config_now["os.features"], json!(["f"]));
        assert_eq!(config_now["config"]["User"], "v");
        assert_eq!(config_now["rootfs"]["diff_ids"][1], json!(layer.diff_id));
        let step =
            json!({ "created": "1970-01-01T00:00:00Z", "created_by": "sh", "comment": "why" });
        assert_eq!(config_now["history"], json!([step]));
        assert!(config_now.get("author").is_none() && config_now.get("container").is_none());
        let manifest: Value = serde_json::from_slice(&made.manifest).unwrap();
        assert_eq!(manifest["layers"][0]["annotations"]["k"], "v");
        let media_type = "application/vnd.oci.image.layer.v1.tar+zstd";
        assert_eq!(manifest["layers"][1]["mediaType"], media_type);
        let made = base.extended(config, &commit, None).unwrap();
        let config_now: Value = serde_json::from_slice(&made.config).unwrap();
        assert_eq!(config_now["history"][0]["empty_layer"], true);
        assert_eq!(
            config_now["rootfs"]["diff_ids"].as_array().unwrap().len(),
            1
        );
    }
}
