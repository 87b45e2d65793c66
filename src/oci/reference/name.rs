//! Whatever the user may type for an image: a name in a registry, or a path to a local copy.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::{Reference, ReferenceError};

/// Whatever the user may type for an image.
///
/// A colon inside a path is part of the path when a `/` follows it; otherwise the last colon
/// splits. Names in `docker save` archives hold colons themselves (`ubuntu:latest`), so there the
/// split is after the file's `.tar`, `.tgz` or `.gz`, else at the first colon that no `/` follows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ImageName {
    /// A registry reference, `ubuntu:latest`; `docker://` in front of it is accepted.
    Registry(Reference),
    /// `oci:DIR[:TAG]`, an OCI image layout.
    Layout {
        /// The directory that holds `oci-layout`.
        dir: PathBuf,
        /// `org.opencontainers.image.ref.name` of the wanted manifest.
        tag: Option<String>,
    },
    /// `docker-archive:FILE[:NAME]`, as `docker save` writes it.
    DockerArchive {
        /// The tar file.
        file: PathBuf,
        /// One of the `RepoTags`.
        name: Option<String>,
    },
    /// `oci-archive:FILE[:TAG]`, a tar of an OCI image layout.
    OciArchive {
        /// The tar file.
        file: PathBuf,
        /// `org.opencontainers.image.ref.name` of the wanted manifest.
        tag: Option<String>,
    },
}

impl FromStr for ImageName {
    type Err = ReferenceError;

    fn from_str(s: &str) -> Result<ImageName, ReferenceError> {
        let local = |rest, split: fn(&str) -> (&str, Option<&str>), expected| {
            let (path, name) = split(rest);
            let name = name.filter(|n| !n.is_empty()).map(String::from);
            if path.is_empty() || path.contains('\0') {
                return Err(ReferenceError::NoPath(super::shown(s), expected));
            }
            Ok((PathBuf::from(path), name))
        };
        if let Some(rest) = s.strip_prefix("oci:") {
            let (dir, tag) = local(rest, split_last, "oci:DIR[:TAG]")?;
            return Ok(ImageName::Layout { dir, tag });
        }
        if let Some(rest) = s.strip_prefix("oci-archive:") {
            let (file, tag) = local(rest, split_last, "oci-archive:FILE[:TAG]")?;
            return Ok(ImageName::OciArchive { file, tag });
        }
        if let Some(rest) = s.strip_prefix("docker-archive:") {
            let (file, name) = local(rest, split_archive, "docker-archive:FILE[:NAME]")?;
            return Ok(ImageName::DockerArchive { file, name });
        }
        s.strip_prefix("docker://")
            .unwrap_or(s)
            .parse()
            .map(ImageName::Registry)
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, path, name, split): (_, _, _, Split) = match self {
            ImageName::Registry(reference) => {
                // A host by the name of a scheme, `oci:5000`, would be taken for the scheme.
                if LOCAL_SCHEMES.contains(&reference.registry().split(':').next().unwrap_or("")) {
                    f.write_str("docker://")?;
                }
                return reference.fmt(f);
            }
            ImageName::Layout { dir, tag } => ("oci", dir, tag, split_last),
            ImageName::DockerArchive { file, name } => {
                ("docker-archive", file, name, split_archive)
            }
            ImageName::OciArchive { file, tag } => ("oci-archive", file, tag, split_last),
        };
        let path = path.display().to_string();
        write!(f, "{scheme}:{path}")?;
        match name {
            Some(name) => write!(f, ":{name}"),
            // A colon of the path's own would be taken for the tag's.
            None if split(&path).1.is_some() => f.write_str(":"),
            None => Ok(()),
        }
    }
}

/// The schemes of copies on this machine.
const LOCAL_SCHEMES: [&str; 3] = ["oci", "oci-archive", "docker-archive"];

/// Path and what follows its colon.
type Split = fn(&str) -> (&str, Option<&str>);

fn split_last(rest: &str) -> (&str, Option<&str>) {
    match rest.rsplit_once(':') {
        Some((path, after)) if !after.contains('/') => (path, Some(after)),
        _ => (rest, None),
    }
}

fn split_archive(rest: &str) -> (&str, Option<&str>) {
    for end in [".tar:", ".tgz:", ".gz:"] {
        if let Some(at) = rest.find(end) {
            let colon = at + end.len() - 1;
            return (&rest[..colon], Some(&rest[colon + 1..]));
        }
    }
    let path_end = rest.rfind('/').unwrap_or(0);
    match rest[path_end..].find(':') {
        Some(colon) => (
            &rest[..path_end + colon],
            Some(&rest[path_end + colon + 1..]),
        ),
        None => (rest, None),
    }
}
