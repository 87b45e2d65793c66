//! The JSON of manifests and indexes as it stands in the document, before it is believed.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{ManifestError, null_is_default};
use crate::oci::descriptor;
use crate::oci::digest::Digest;
use crate::oci::platform;

/// A manifest or an index: their members do not clash, so one struct reads both.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    pub(super) schema_version: Option<u64>,
    pub(super) media_type: Option<String>,
    pub(super) config: Option<Descriptor>,
    pub(super) layers: Option<Vec<Descriptor>>,
    pub(super) manifests: Option<Vec<Descriptor>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    size: i64,
    #[serde(default, deserialize_with = "null_is_default")]
    urls: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    annotations: BTreeMap<String, String>,
    platform: Option<Platform>,
}

#[derive(Debug, Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    variant: Option<String>,
    #[serde(rename = "os.version")]
    os_version: Option<String>,
}

impl Descriptor {
    pub(super) fn check(self) -> Result<descriptor::Descriptor, ManifestError> {
        let size = u64::try_from(self.size).map_err(|_| ManifestError::Size {
            digest: self.digest.to_string(),
            size: self.size,
        })?;
        Ok(descriptor::Descriptor {
            media_type: self.media_type,
            digest: self.digest,
            size,
            urls: self.urls,
            annotations: self.annotations,
            platform: self.platform.map(|p| platform::Platform {
                os: p.os,
                architecture: p.architecture,
                variant: p.variant.filter(|v| !v.is_empty()),
                os_version: p.os_version.filter(|v| !v.is_empty()),
            }),
        })
    }
}
