//! `docker-archive`: what `docker save` writes. `manifest.json` names a configuration and layers,
//! all of them members of the same tar (moby, `image/tarexport`); old versions link equal layers
//! with symbolic links, new ones have an OCI layout beside it.
//!
//! There are no digests of the layers as they stand there. A plain member has the configuration's
//! diffID; a compressed one is read once.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::archive::blob::{Member, PIECE_BYTES, corrupt};
use crate::archive::layout::parse;
use crate::archive::tarball::Tarball;
use crate::archive::{Archive, ArchiveSource, DOCUMENT_BYTES_MAX};
use crate::blob::{ByteRange, Error, ErrorKind};
use crate::oci::Digest;
use crate::oci::digest::{Algorithm, Hasher};

const MANIFEST_MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_MEDIA_TYPE: &str = "application/vnd.oci.image.config.v1+json";

/// Opens the image `name` of the archive `file`; the only one without a name. A name is compared
/// with `RepoTags` in Docker's way: `debian` is `docker.io/library/debian:latest`.
pub fn open_docker(file: &Path, name: Option<&str>) -> Result<Archive, Error> {
    let tarball = Tarball::open(file)?;
    let listed = tarball.member("manifest.json").map_err(|e| match e.kind {
        ErrorKind::NotFound => {
            let message = format!("{}: not a `docker save` archive", tarball.name());
            Error::new(ErrorKind::NotFound, message).with_source(e)
        }
        _ => e,
    })?;
    let images: Vec<Listed> = parse(&listed)?;
    let image = choose(tarball.name(), &images, name)?;
    Ok(Archive(ArchiveSource::Docker(DockerImage::open(
        &tarball, image,
    )?)))
}

/// One image of a `docker save` archive.
#[derive(Debug)]
pub(super) struct DockerImage {
    /// How messages call the archive.
    name: String,
    manifest: Vec<u8>,
    /// The configuration and the layers.
    members: HashMap<Digest, Member>,
}

/// All of `manifest.json`.
#[derive(Deserialize)]
pub(super) struct DockerImages(Vec<Listed>);

impl DockerImages {
    /// The names of each image.
    pub(super) fn names(&self) -> Vec<Vec<String>> {
        let names = |image: &Listed| image.repo_tags.clone().unwrap_or_default();
        self.0.iter().map(names).collect()
    }
}

/// An image in `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

/// The manifest that an OCI registry would have. The order of the fields is the order in the bytes.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Made {
    schema_version: u32,
    media_type: &'static str,
    config: MadeDescriptor,
    layers: Vec<MadeDescriptor>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MadeDescriptor {
    media_type: &'static str,
    digest: Digest,
    size: u64,
}

impl DockerImage {
    fn open(tarball: &Tarball, listed: &Listed) -> Result<DockerImage, Error> {
        let name = tarball.name().to_owned();
        let config = tarball.member(&listed.config)?;
        let bytes = config.read(DOCUMENT_BYTES_MAX)?;
        let digest = Digest::of(&bytes);
        let diff_ids = serde_json::from_slice::<Config>(&bytes)
            .map_err(|e| corrupt(&config.name, format!("not as expected: {e}")).with_source(e))?
            .rootfs
            .diff_ids;
        if diff_ids.len() != listed.layers.len() {
            let (layers, ids) = (listed.layers.len(), diff_ids.len());
            let what = format!("{layers} layers, but the configuration has {ids} diffIDs");
            return Err(corrupt(&name, what));
        }
        let config_descriptor = MadeDescriptor {
            media_type: CONFIG_MEDIA_TYPE,
            digest: digest.clone(),
            size: config.len,
        };
        let mut members = HashMap::from([(digest, config)]);
        let mut layers = Vec::new();
        for (layer, diff_id) in listed.layers.iter().zip(diff_ids) {
            let member = tarball.member(layer)?;
            let descriptor = describe(&member, diff_id)?;
            members.insert(descriptor.digest.clone(), member);
            layers.push(descriptor);
        }
        let made = Made {
            schema_version: 2,
            media_type: MANIFEST_MEDIA_TYPE,
            config: config_descriptor,
            layers,
        };
        let manifest =
            serde_json::to_vec(&made).map_err(|e| corrupt(&name, "no manifest").with_source(e))?;
        Ok(DockerImage {
            name,
            manifest,
            members,
        })
    }

    pub(super) fn manifest(&self) -> (Vec<u8>, Option<String>) {
        (self.manifest.clone(), Some(MANIFEST_MEDIA_TYPE.to_owned()))
    }

    pub(super) fn document(&self, digest: &Digest, max: u64) -> Result<Vec<u8>, Error> {
        if *digest == Digest::of(&self.manifest) {
            return Ok(self.manifest.clone());
        }
        let member = self.member(digest)?;
        let bytes = member.read(max)?;
        digest
            .verify(&bytes)
            .map_err(|e| corrupt(&member.name, &e))?;
        Ok(bytes)
    }

    pub(super) fn member(&self, digest: &Digest) -> Result<Member, Error> {
        self.members.get(digest).cloned().ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("{}: no blob {digest} in it", self.name),
            )
        })
    }
}

/// The descriptor of a layer, from its first bytes and, if it is compressed, all of them.
fn describe(member: &Member, diff_id: Digest) -> Result<MadeDescriptor, Error> {
    let head = member.read_at(ByteRange::new(0, member.len.min(4)))?;
    let (media_type, digest) = match head.as_slice() {
        [0x1f, 0x8b, ..] => ("application/vnd.oci.image.layer.v1.tar+gzip", hash(member)?),
        [0x28, 0xb5, 0x2f, 0xfd] => ("application/vnd.oci.image.layer.v1.tar+zstd", hash(member)?),
        _ => ("application/vnd.oci.image.layer.v1.tar", diff_id),
    };
    Ok(MadeDescriptor {
        media_type,
        digest,
        size: member.len,
    })
}

fn hash(member: &Member) -> Result<Digest, Error> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut at = 0;
    while at < member.len {
        let end = member.len.min(at + PIECE_BYTES);
        hasher.update(&member.read_at(ByteRange::new(at, end))?);
        at = end;
    }
    Ok(hasher.finish())
}

fn choose<'i>(
    archive: &str,
    images: &'i [Listed],
    name: Option<&str>,
) -> Result<&'i Listed, Error> {
    let tags = |image: &'i Listed| image.repo_tags.iter().flatten();
    let all = || {
        let all: Vec<&str> = images.iter().flat_map(tags).map(String::as_str).collect();
        all.join(", ")
    };
    if let Some(name) = name {
        let wanted = full_name(name);
        let found = images
            .iter()
            .find(|i| tags(i).any(|tag| full_name(tag) == wanted));
        return found.ok_or_else(|| {
            let message = format!("{archive}: no image `{name}` in it (it has: {})", all());
            Error::new(ErrorKind::NotFound, message)
        });
    }
    match images {
        [] => Err(Error::new(
            ErrorKind::NotFound,
            format!("{archive}: no image in it"),
        )),
        [one] => Ok(one),
        many => {
            let message = format!(
                "{archive}: {} images in it; name one (it has: {})",
                many.len(),
                all()
            );
            Err(Error::new(ErrorKind::Unsupported, message))
        }
    }
}

/// A name as Docker means it, without the parts that it leaves out.
fn full_name(name: &str) -> String {
    let name = ["docker.io/", "index.docker.io/"]
        .iter()
        .find_map(|host| name.strip_prefix(host))
        .unwrap_or(name);
    let name = name.strip_prefix("library/").unwrap_or(name);
    let last = name.rsplit('/').next().unwrap_or(name);
    match last.contains(':') {
        true => name.to_owned(),
        false => format!("{name}:latest"),
    }
}
