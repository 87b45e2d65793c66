//! `oci-archive`: an OCI layout inside a tar file (what `skopeo` and `podman save --format
//! oci-archive` write).

use std::path::Path;

use crate::archive::layout::{Files, Layout};
use crate::archive::tarball::Tarball;
use crate::archive::{Archive, ArchiveSource};
use crate::blob::Error;

/// Opens the image `tag` of the OCI archive `file`; the only one without a tag.
pub fn open_oci(file: &Path, tag: Option<&str>) -> Result<Archive, Error> {
    let files = Files::Tarball(Tarball::open(file)?);
    Ok(Archive(ArchiveSource::Layout(Layout::open(files, tag)?)))
}
