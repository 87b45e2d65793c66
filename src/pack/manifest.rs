//! The artifact's manifest (OCI image-spec 1.1, "Guidelines for Artifact Usage").

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::oci::{Descriptor, Digest};
use crate::pack::PackError;
use crate::pack::key::{PublicKey, SecretKey};
use crate::pack::signature::{self, ANNOTATION, SIGNATURES_MAX, Signatures, Signed};

/// What the artifact is.
pub const ARTIFACT_TYPE: &str = "application/vnd.rsmount.pack.v1";

/// Media type of the manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

const META: &str = "application/vnd.rsmount.pack.meta.v1+zstd";
const HOT: &str = "application/vnd.rsmount.pack.hot.v1+zstd";
const WINDOWS: &str = "application/vnd.rsmount.pack.windows.v1";

/// The empty configuration that artifacts have.
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// Its bytes.
pub const EMPTY_BYTES: &[u8] = b"{}";

/// Longest meta that is put into the manifest as well, in bytes: docker-registry refuses manifests
/// over 4 MiB, and base64 adds a third.
pub const INLINE_BYTES_MAX: usize = 2_000_000;

/// Longest part that is written and fetched, in bytes: what a manifest says of lengths is not believed
/// further.
pub(super) const PART_BYTES_MAX: u64 = 1 << 30;

/// Longest part that can only be the frame of no pages, in bytes: an empty zstd frame with its
/// checksum (RFC 8878, 3.1.1) takes at most 6 + 4 + 3 + 4.
const NO_PAGES_BYTES_MAX: u64 = 17;

/// A pack's manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackManifest {
    /// The image manifest that it is about.
    pub subject: Descriptor,
    /// Meta.
    pub meta: Descriptor,
    /// Meta's bytes, when they are inline; verified.
    pub inline: Option<Vec<u8>>,
    /// Hot pages.
    pub hot: Descriptor,
    /// Windows, one a layer, base first.
    pub windows: Vec<Descriptor>,
    /// Signatures; not judged yet.
    pub signatures: Signatures,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: u32,
    media_type: String,
    artifact_type: String,
    config: Part,
    layers: Vec<Part>,
    subject: Part,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Part {
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data: Option<String>,
}

impl Part {
    fn of(descriptor: &Descriptor) -> Part {
        Part {
            media_type: descriptor.media_type.clone(),
            digest: descriptor.digest.clone(),
            size: descriptor.size,
            data: None,
        }
    }

    fn inline(bytes: &[u8], media_type: &str) -> Part {
        Part {
            data: Some(STANDARD.encode(bytes)),
            ..Part::of(&describe(bytes, media_type))
        }
    }

    fn descriptor(&self, media_type: &str) -> Result<Descriptor, PackError> {
        if self.media_type != media_type {
            return Err(PackError("a part is of another kind"));
        }
        if self.size > PART_BYTES_MAX {
            return Err(PackError("a part is too long"));
        }
        let digest = self.digest.clone();
        Ok(Descriptor::new(media_type, digest, self.size))
    }
}

fn describe(bytes: &[u8], media_type: &str) -> Descriptor {
    Descriptor::new(media_type, Digest::of(bytes), bytes.len() as u64)
}

impl PackManifest {
    /// The manifest of a pack with these parts.
    pub fn new(subject: Descriptor, meta: &[u8], hot: &[u8], windows: &[Vec<u8>]) -> PackManifest {
        PackManifest {
            subject,
            meta: describe(meta, META),
            inline: (meta.len() <= INLINE_BYTES_MAX).then(|| meta.to_vec()),
            hot: describe(hot, HOT),
            windows: windows.iter().map(|w| describe(w, WINDOWS)).collect(),
            signatures: Signatures::new(),
        }
    }

    /// Signs it with one more key.
    pub fn sign(&mut self, key: &SecretKey) {
        let message = self.message();
        signature::sign(&mut self.signatures, key, &message);
    }

    /// What its signatures are worth to who trusts `keys`.
    pub fn signed(&self, keys: &[PublicKey]) -> Signed {
        signature::judge(&self.signatures, keys, &self.message())
    }

    fn message(&self) -> Vec<u8> {
        let parts = [&self.meta, &self.hot].into_iter().chain(&self.windows);
        signature::message(&self.subject.digest, parts)
    }

    /// Whether it has no hot pages: nobody saw a start where it was made.
    pub fn has_no_pages(&self) -> bool {
        self.hot.size <= NO_PAGES_BYTES_MAX
    }

    /// The tag that leads to the pack of an image manifest where the registry has no referrers API.
    pub fn tag(subject: &Digest) -> String {
        format!("{}-{}.rsmount", subject.algorithm().as_str(), subject.hex())
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let meta = match &self.inline {
            Some(bytes) => Part::inline(bytes, META),
            None => Part::of(&self.meta),
        };
        let windows = self.windows.iter().map(Part::of);
        let document = Document {
            schema_version: 2,
            media_type: MANIFEST.to_owned(),
            artifact_type: ARTIFACT_TYPE.to_owned(),
            config: Part::inline(EMPTY_BYTES, EMPTY),
            layers: [meta, Part::of(&self.hot)]
                .into_iter()
                .chain(windows)
                .collect(),
            subject: Part::of(&self.subject),
            annotations: annotations(&self.signatures),
        };
        // Strings and numbers cannot fail to be JSON.
        serde_json::to_vec(&document).unwrap_or_default()
    }

    /// From bytes; errors: not a pack, not about `subject`, or nonsense.
    pub fn decode(bytes: &[u8], subject: &Digest) -> Result<PackManifest, PackError> {
        let document: Document = serde_json::from_slice(bytes)
            .map_err(|_| PackError("its manifest is not one of an artifact"))?;
        if document.artifact_type != ARTIFACT_TYPE {
            return Err(PackError("it is another kind of artifact"));
        }
        if document.subject.digest != *subject {
            return Err(PackError("it is about another image"));
        }
        let [meta, hot, windows @ ..] = &document.layers[..] else {
            return Err(PackError("parts are missing"));
        };
        let descriptor = meta.descriptor(META)?;
        let inline = meta.data.as_ref().map(|data| {
            let bytes = STANDARD.decode(data);
            let bytes = bytes.map_err(|_| PackError("its inline part is not base64"))?;
            match descriptor.digest.verify(&bytes) {
                Ok(()) if bytes.len() as u64 == descriptor.size => Ok(bytes),
                Ok(()) => Err(PackError("its inline part does not have its length")),
                Err(_) => Err(PackError("its inline part does not have its digest")),
            }
        });
        let windows = windows.iter().map(|w| w.descriptor(WINDOWS));
        let subject = &document.subject;
        Ok(PackManifest {
            subject: Descriptor::new(
                subject.media_type.clone(),
                subject.digest.clone(),
                subject.size,
            ),
            meta: descriptor,
            inline: inline.transpose()?,
            hot: hot.descriptor(HOT)?,
            windows: windows.collect::<Result<_, _>>()?,
            signatures: signatures(&document.annotations),
        })
    }
}

fn annotations(signatures: &Signatures) -> BTreeMap<String, String> {
    let named = |(key, bytes): (&String, &Vec<u8>)| {
        let name = format!("{ANNOTATION}{key}");
        (name, STANDARD.encode(bytes))
    };
    signatures.iter().map(named).collect()
}

/// What is not base64 is no signature that anybody has made; it stays, and is found to be wrong.
fn signatures(annotations: &BTreeMap<String, String>) -> Signatures {
    let of = |(name, value): (&String, &String)| {
        let key = name.strip_prefix(ANNOTATION)?;
        // Anybody may write annotations, and these are shown.
        let is_fingerprint = key.len() == 16 && key.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_fingerprint {
            return None;
        }
        Some((key.to_owned(), STANDARD.decode(value).unwrap_or_default()))
    };
    let all = annotations.iter().filter_map(of);
    all.take(SIGNATURES_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_only_about_its_subject() {
        let image = describe(b"image manifest", MANIFEST);
        let pack = PackManifest::new(image.clone(), b"meta", b"hot", &[b"w".to_vec()]);
        let bytes = pack.encode();
        assert_eq!(PackManifest::decode(&bytes, &image.digest), Ok(pack));
        assert!(PackManifest::decode(&bytes, &Digest::of(b"other")).is_err());
        let text = String::from_utf8(bytes).unwrap();
        let wrong = text.replace(&STANDARD.encode(b"meta"), &STANDARD.encode(b"mesa"));
        assert!(PackManifest::decode(wrong.as_bytes(), &image.digest).is_err());
        let longer = text.replace(r#""size":4,"data""#, r#""size":5,"data""#);
        let lies = PackManifest::decode(longer.as_bytes(), &image.digest);
        let expected = PackError("its inline part does not have its length");
        assert_eq!(lies, Err(expected));
        let other = text.replace(ARTIFACT_TYPE, "application/other");
        assert!(PackManifest::decode(other.as_bytes(), &image.digest).is_err());
        assert!(PackManifest::decode(b"{}", &image.digest).is_err());
    }

    #[test]
    fn a_signature_holds_for_one_image_and_these_bytes() {
        let (key, _) = SecretKey::generate().unwrap();
        let (other, _) = SecretKey::generate().unwrap();
        let keys = [key.public()];
        let image = describe(b"image manifest", MANIFEST);
        let mut pack = PackManifest::new(image.clone(), b"meta", b"hot", &[b"w".to_vec()]);
        assert_eq!(pack.signed(&keys), Signed::No);
        pack.sign(&other);
        let fingerprint = other.public().fingerprint();
        assert_eq!(pack.signed(&keys), Signed::ByOthers(vec![fingerprint]));
        pack.sign(&key);
        let read = PackManifest::decode(&pack.encode(), &image.digest).unwrap();
        assert_eq!(read, pack);
        assert_eq!(read.signed(&keys), Signed::By(key.public()));
        assert_eq!(read.signed(&[other.public()]), Signed::By(other.public()));

        type Spoil = fn(&mut PackManifest);
        let spoils: [Spoil; 5] = [
            |p| p.subject.digest = Digest::of(b"another image"),
            |p| p.meta = describe(b"mesa", META),
            |p| p.hot.size += 1,
            |p| p.windows.clear(),
            |p| p.signatures.values_mut().for_each(|s| s[3] ^= 1),
        ];
        for (n, spoil) in spoils.iter().enumerate() {
            let mut spoilt = pack.clone();
            spoil(&mut spoilt);
            assert_eq!(spoilt.signed(&keys), Signed::Wrong(key.public()), "{n}");
        }
    }

    #[test]
    fn only_fingerprints_name_keys() {
        let image = describe(b"image manifest", MANIFEST);
        let mut pack = PackManifest::new(image.clone(), b"meta", b"hot", &[b"w".to_vec()]);
        let key = "0123456789abcdef".to_owned();
        for name in [&key, "short", "\u{1b}[2Jtrusted by you", "0123456789abcdeg"] {
            pack.signatures.insert(name.to_owned(), vec![1]);
        }
        let read = PackManifest::decode(&pack.encode(), &image.digest).unwrap();
        assert_eq!(read.signatures.into_keys().collect::<Vec<_>>(), [key]);
    }

    #[test]
    fn the_tag_is_within_the_limits_of_tags() {
        let tag = PackManifest::tag(&Digest::of(b"x"));
        assert!(tag.starts_with("sha256-") && tag.ends_with(".rsmount") && tag.len() < 128);
    }
}
