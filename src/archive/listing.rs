//! Which images an archive holds, and under which names.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::archive::blob::corrupt;
use crate::archive::docker::DockerImages;
use crate::archive::layout::{CONTAINERD_NAME, REF_NAME, annotation, parse};
use crate::archive::tarball::Tarball;
use crate::blob::{Error, ErrorKind};
use crate::oci::ImageName;

/// An image of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedImage {
    /// What the archive calls it: whole names, or a tag alone. Empty when it has no name.
    pub names: Vec<String>,
    /// The name that opens it.
    pub image: ImageName,
}

/// The images of the archive `file`, in its own order. One that is both an OCI layout and a `docker
/// save` archive is read as the former, because that has the manifests.
pub fn list(file: &Path) -> Result<Vec<ListedImage>, Error> {
    let tarball = Tarball::open(file)?;
    if let (Ok(_), Ok(index)) = (tarball.member("oci-layout"), tarball.member("index.json")) {
        let index: Value = parse(&index)?;
        let Some(manifests) = index.get("manifests").and_then(Value::as_array) else {
            return Err(corrupt(tarball.name(), "index.json: it names no manifests"));
        };
        return layout(file, tarball.name(), manifests);
    }
    match tarball.member("manifest.json") {
        Ok(listed) => docker(file, &parse(&listed)?),
        Err(error) => {
            let what = "neither an OCI archive nor a `docker save` archive";
            let message = format!("{}: {what}", tarball.name());
            Err(Error::new(ErrorKind::NotFound, message).with_source(error))
        }
    }
}

fn layout(file: &Path, name: &str, manifests: &[Value]) -> Result<Vec<ListedImage>, Error> {
    // Descriptors with one tag are the platforms of one image.
    let mut tags: BTreeMap<&str, usize> = BTreeMap::new();
    for tag in manifests.iter().filter_map(|m| annotation(m, REF_NAME)) {
        *tags.entry(tag).or_default() += 1;
    }
    let mut images: Vec<ListedImage> = Vec::new();
    for manifest in manifests {
        let tag = annotation(manifest, REF_NAME);
        let digest = manifest.get("digest").and_then(Value::as_str);
        let digest =
            digest.ok_or_else(|| corrupt(name, "index.json: a manifest without digest"))?;
        let shared = tag.filter(|tag| tags.get(tag).is_some_and(|count| *count > 1));
        let image = ImageName::OciArchive {
            file: file.to_owned(),
            tag: Some(shared.unwrap_or(digest).to_owned()),
        };
        let names = annotation(manifest, CONTAINERD_NAME).or(tag);
        let names: Vec<String> = names.into_iter().map(String::from).collect();
        match images.iter_mut().find(|known| known.image == image) {
            Some(known) => known.names.extend(names),
            None => images.push(ListedImage { names, image }),
        }
    }
    for image in &mut images {
        image.names.dedup();
    }
    Ok(images)
}

fn docker(file: &Path, images: &DockerImages) -> Result<Vec<ListedImage>, Error> {
    let one = |names: Vec<String>| ListedImage {
        image: ImageName::DockerArchive {
            file: file.to_owned(),
            // Without a name the only image is meant.
            name: names.first().cloned(),
        },
        names,
    };
    Ok(images.names().into_iter().map(one).collect())
}
