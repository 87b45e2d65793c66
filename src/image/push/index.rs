//! One platform's entry in the index of a multi-platform image (OCI image-spec, `image-index.md`).
//!
//! The index is changed as JSON: whatever else it says stays.

use serde_json::{Map, Value, json};

use crate::oci::{Digest, Platform};

/// Media type of what is written.
pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Says which manifest an attestation is about (`BuildKit`'s attestation storage).
const ATTESTED: &str = "vnd.docker.reference.digest";

/// An image of one platform.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) media_type: String,
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) platform: Platform,
}

impl Entry {
    fn to_json(&self) -> Value {
        let (os, architecture) = (&self.platform.os, &self.platform.architecture);
        let mut platform = json!({ "os": os, "architecture": architecture });
        if let Some(variant) = &self.platform.variant {
            platform["variant"] = json!(variant);
        }
        if let Some(version) = &self.platform.os_version {
            platform["os.version"] = json!(version);
        }
        json!({
            "mediaType": self.media_type, "digest": self.digest, "size": self.size,
            "platform": platform,
        })
    }
}

/// A new index of `entries`.
pub(super) fn of(entries: &[&Entry]) -> Value {
    let manifests: Vec<Value> = entries.iter().map(|e| e.to_json()).collect();
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests })
}

/// Puts `entry` in the place of the one for the same platform, or behind all others. What attested the
/// one that goes, goes with it. `None` when `index` is none.
pub(super) fn with(index: &[u8], entry: &Entry) -> Option<Value> {
    let mut index: Map<String, Value> = serde_json::from_slice(index).ok()?;
    let mut manifests = match index.remove("manifests")? {
        Value::Array(manifests) => manifests,
        _ => return None,
    };
    let new = entry.to_json();
    let at = manifests.iter().position(|m| is_for(m, &new["platform"]));
    let gone: Vec<Value> = manifests
        .iter()
        .filter(|m| is_for(m, &new["platform"]) && m["digest"] != new["digest"])
        .map(|m| m["digest"].clone())
        .collect();
    let at = match at {
        Some(at) => {
            manifests[at] = new.clone();
            at
        }
        None => {
            manifests.push(new.clone());
            manifests.len() - 1
        }
    };
    let mut position = 0;
    manifests.retain(|m| {
        let first = position == at;
        position += 1;
        first || (!is_for(m, &new["platform"]) && !gone.contains(&m["annotations"][ATTESTED]))
    });
    index.insert("manifests".to_owned(), Value::Array(manifests));
    index.insert("mediaType".to_owned(), json!(INDEX));
    index.insert("schemaVersion".to_owned(), json!(2));
    Some(Value::Object(index))
}

/// Whether a descriptor is for exactly this platform.
fn is_for(descriptor: &Value, platform: &Value) -> bool {
    let of = |name: &str| {
        let normal = |p: &Value| p[name].as_str().unwrap_or_default().to_owned();
        (normal(&descriptor["platform"]), normal(platform))
    };
    // The variant that every arm64 has is often left out.
    let variant = |(found, wanted): (String, String)| {
        let plain = |v: String| if v == "v8" { String::new() } else { v };
        match platform["architecture"].as_str() {
            Some("arm64") => plain(found) == plain(wanted),
            _ => found == wanted,
        }
    };
    let same = |(found, wanted): (String, String)| found == wanted;
    descriptor["annotations"][ATTESTED].is_null()
        && same(of("os"))
        && same(of("architecture"))
        && variant(of("variant"))
        && same(of("os.version"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(platform: &str, of: &[u8]) -> Entry {
        Entry {
            media_type: "m".to_owned(),
            digest: Digest::of(of),
            size: 1,
            platform: platform.parse().unwrap(),
        }
    }

    fn digests(index: &Value) -> Vec<String> {
        let list = index["manifests"].as_array().unwrap();
        let digest = |m: &Value| m["digest"].as_str().unwrap().to_owned();
        list.iter().map(digest).collect()
    }

    #[test]
    fn an_entry_is_replaced_with_its_attestation_and_the_rest_stays() {
        let (old, arm) = (entry("linux/amd64", b"old"), entry("linux/arm64", b"arm"));
        let mut index = of(&[&old, &arm]);
        index["annotations"] = json!({ "kept": "yes" });
        index["mediaType"] = json!("application/vnd.docker.distribution.manifest.list.v2+json");
        let attest = |of: &Entry| {
            json!({ "mediaType": "m", "digest": Digest::of(of.digest.hex().as_bytes()), "size": 2,
                "platform": { "os": "unknown", "architecture": "unknown" },
                "annotations": { ATTESTED: of.digest } })
        };
        let list = index["manifests"].as_array_mut().unwrap();
        list.extend([attest(&old), attest(&arm)]);
        let new = entry("linux/amd64", b"new");
        let bytes = index.to_string();
        let changed = with(bytes.as_bytes(), &new).unwrap();
        assert_eq!(changed["annotations"]["kept"], "yes");
        assert_eq!(changed["mediaType"], INDEX);
        let expected = [
            new.digest.to_string(),
            arm.digest.to_string(),
            attest(&arm)["digest"].as_str().unwrap().to_owned(),
        ];
        assert_eq!(digests(&changed), expected);
        // Twice is once.
        let again = with(changed.to_string().as_bytes(), &new).unwrap();
        assert_eq!(again, changed);
    }

    #[test]
    fn variants_are_platforms_of_their_own_but_arm64s_default_is_none() {
        let v7 = entry("linux/arm/v7", b"v7");
        let with_v6 = with(
            of(&[&v7]).to_string().as_bytes(),
            &entry("linux/arm/v6", b"v6"),
        );
        assert_eq!(digests(&with_v6.unwrap()).len(), 2);
        let mut named = of(&[&entry("linux/arm64", b"a")]);
        named["manifests"][0]["platform"]["variant"] = json!("v8");
        let changed = with(named.to_string().as_bytes(), &entry("linux/arm64", b"b")).unwrap();
        assert_eq!(digests(&changed), [Digest::of(b"b").to_string()]);
        assert!(with(b"{}", &v7).is_none() && with(b"[", &v7).is_none());
    }
}
