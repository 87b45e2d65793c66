//! OCI image layouts (image-spec, `image-layout.md`): `oci-layout`, `index.json`,
//! `blobs/ALGORITHM/HEX`; in a directory or in a tar.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use crate::archive::blob::{Member, corrupt};
use crate::archive::tarball::Tarball;
use crate::archive::{Archive, ArchiveSource, DOCUMENT_BYTES_MAX};
use crate::blob::{Error, ErrorKind};
use crate::oci::Digest;

/// The annotation that holds the tag (image-spec, `annotations.md`).
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Where containerd puts the full name.
pub(super) const CONTAINERD_NAME: &str = "io.containerd.image.name";
const INDEX_MEDIA_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// Opens the image `tag` of the OCI layout in the directory `dir`; the only one without a tag.
/// `tag` is compared with the annotation `org.opencontainers.image.ref.name`; a digest works too.
pub fn open_layout(dir: &Path, tag: Option<&str>) -> Result<Archive, Error> {
    let layout = Layout::open(Files::Directory(dir.to_owned()), tag)?;
    Ok(Archive(ArchiveSource::Layout(layout)))
}

/// Where the files of a layout are.
#[derive(Debug)]
pub(super) enum Files {
    Directory(PathBuf),
    Tarball(Tarball),
}

impl Files {
    fn member(&self, name: &str) -> Result<Member, Error> {
        match self {
            Files::Directory(dir) => Member::open(&dir.join(name)),
            Files::Tarball(tarball) => tarball.member(name),
        }
    }

    fn name(&self) -> String {
        match self {
            Files::Directory(dir) => dir.display().to_string(),
            Files::Tarball(tarball) => tarball.name().to_owned(),
        }
    }
}

/// A layout with one of its images chosen.
#[derive(Debug)]
pub(super) struct Layout {
    files: Files,
    chosen: Chosen,
}

#[derive(Debug)]
enum Chosen {
    /// One manifest or index among the blobs.
    Blob {
        digest: Digest,
        media_type: Option<String>,
    },
    /// Several descriptors that make an index: one image for several platforms.
    Index(Vec<u8>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    image_layout_version: String,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Value>,
}

/// The part of a descriptor that choosing needs; the rest stays JSON.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    digest: Digest,
    media_type: Option<String>,
}

impl Layout {
    pub(super) fn open(files: Files, tag: Option<&str>) -> Result<Layout, Error> {
        let name = files.name();
        let version = files.member("oci-layout").map_err(|e| match e.kind {
            ErrorKind::NotFound => {
                let message = format!("{name}: not an OCI layout (no readable `oci-layout` in it)");
                Error::new(ErrorKind::NotFound, message).with_source(e)
            }
            _ => e,
        })?;
        let version: Version = parse(&version)?;
        if !version.image_layout_version.starts_with("1.") {
            let message = format!(
                "{name}: OCI layout version `{}` is not supported (1.x is)",
                version.image_layout_version.escape_debug()
            );
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let index: Index = parse(&files.member("index.json")?)?;
        let chosen = choose(&name, index.manifests, tag)?;
        Ok(Layout { files, chosen })
    }

    pub(super) fn manifest(&self) -> Result<(Vec<u8>, Option<String>), Error> {
        match &self.chosen {
            Chosen::Index(bytes) => Ok((bytes.clone(), Some(INDEX_MEDIA_TYPE.to_owned()))),
            Chosen::Blob { digest, media_type } => Ok((
                self.document(digest, DOCUMENT_BYTES_MAX)?,
                media_type.clone(),
            )),
        }
    }

    pub(super) fn document(&self, digest: &Digest, max: u64) -> Result<Vec<u8>, Error> {
        let member = self.member(digest)?;
        let bytes = member.read(max)?;
        digest
            .verify(&bytes)
            .map_err(|e| corrupt(&member.name, &e))?;
        Ok(bytes)
    }

    pub(super) fn member(&self, digest: &Digest) -> Result<Member, Error> {
        self.files.member(&format!(
            "blobs/{}/{}",
            digest.algorithm().as_str(),
            digest.hex()
        ))
    }
}

/// Reads a small JSON file.
pub(super) fn parse<T: serde::de::DeserializeOwned>(member: &Member) -> Result<T, Error> {
    let bytes = member.read(DOCUMENT_BYTES_MAX)?;
    serde_json::from_slice(&bytes)
        .map_err(|e| corrupt(&member.name, format!("not as expected: {e}")).with_source(e))
}

fn choose(name: &str, manifests: Vec<Value>, tag: Option<&str>) -> Result<Chosen, Error> {
    let tags: Vec<&str> = manifests
        .iter()
        .filter_map(|m| annotation(m, REF_NAME))
        .collect();
    let tags = tags.join(", ");
    let matching: Vec<&Value> = match tag {
        Some(tag) => manifests.iter().filter(|m| is_called(m, tag)).collect(),
        None => manifests.iter().collect(),
    };
    match (matching.as_slice(), tag) {
        ([], Some(tag)) => {
            let message = format!("{name}: no image `{tag}` in it (it has: {tags})");
            Err(Error::new(ErrorKind::NotFound, message))
        }
        ([], None) => Err(Error::new(
            ErrorKind::NotFound,
            format!("{name}: no image in it"),
        )),
        ([one, others @ ..], _) if others.iter().all(|m| m.get("digest") == one.get("digest")) => {
            let listed = Listed::deserialize(*one)
                .map_err(|e| corrupt(name, format!("index.json: {e}")).with_source(e))?;
            Ok(Chosen::Blob {
                digest: listed.digest,
                media_type: listed.media_type,
            })
        }
        (many, _) if platforms_of_one(many) => {
            let index = serde_json::json!({
                "schemaVersion": 2, "mediaType": INDEX_MEDIA_TYPE, "manifests": many,
            });
            Ok(Chosen::Index(index.to_string().into_bytes()))
        }
        (many, _) => {
            let message = format!(
                "{name}: {} images in it; name one (it has: {tags})",
                many.len()
            );
            Err(Error::new(ErrorKind::Unsupported, message))
        }
    }
}

/// Whether descriptors are the platforms of one image: each has one, and all have the same tag.
fn platforms_of_one(manifests: &[&Value]) -> bool {
    let tag = |m: &Value| annotation(m, REF_NAME).map(str::to_owned);
    manifests
        .iter()
        .all(|m| m.get("platform").is_some() && tag(m) == tag(manifests[0]))
}

fn is_called(manifest: &Value, tag: &str) -> bool {
    let named = [REF_NAME, CONTAINERD_NAME]
        .iter()
        .any(|a| annotation(manifest, a) == Some(tag));
    // Some tools write the whole reference where the tag belongs.
    let ends = || {
        annotation(manifest, REF_NAME)
            .and_then(|name| name.strip_suffix(tag))
            .is_some_and(|rest| rest.ends_with(':'))
    };
    let digest = || manifest.get("digest").and_then(Value::as_str) == Some(tag);
    named || ends() || digest()
}

pub(super) fn annotation<'m>(manifest: &'m Value, name: &str) -> Option<&'m str> {
    manifest.get("annotations")?.get(name)?.as_str()
}
