//! Images that are files: OCI layouts and what `docker save` writes, as sources of blobs with the
//! same face as a registry.
//!
//! | what | opened by | layers |
//! |---|---|---|
//! | OCI layout, a directory | [`open_layout`] | `blobs/ALGORITHM/HEX` |
//! | the same in a tar (`oci-archive`) | [`open_oci`] | members of the tar |
//! | `docker save` (`docker-archive`) | [`open_docker`] | members of the tar, named by `manifest.json` |
//!
//! [`list`] says what an archive holds. Nothing is unpacked: a layer is a range of a file. Names inside an archive are looked up, never
//! written. Opening and [`Archive::document`] read files and block; blobs do not.

mod blob;
mod docker;
mod layout;
mod listing;
mod oci;
mod tarball;

#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use blob::{FileBlob, PIECE_BYTES, file_blob};
pub use docker::open_docker;
pub use layout::open_layout;
pub use listing::{ListedImage, list};
pub use oci::open_oci;
pub use tarball::{HEADER_BYTES_MAX, MEMBERS_MAX};

use crate::archive::docker::DockerImage;
use crate::archive::layout::Layout;
use crate::blob::{Blob, Error};
use crate::oci::{Descriptor, Digest};

/// Longest document of an archive (an index, a manifest, a configuration, `manifest.json`) in bytes.
/// Registries refuse manifests over 4 MiB; configurations with a long history reach hundreds of KiB.
pub const DOCUMENT_BYTES_MAX: u64 = 4 << 20;

/// One image of an archive.
#[derive(Debug)]
pub struct Archive(ArchiveSource);

#[derive(Debug)]
enum ArchiveSource {
    Layout(Layout),
    Docker(DockerImage),
}

impl Archive {
    /// The manifest or index of the chosen image, and its media type where the archive gives one.
    /// For `docker save` archives it is made from `manifest.json`: an OCI image manifest whose
    /// layers are the members as they stand there.
    pub fn manifest(&self) -> Result<(Vec<u8>, Option<String>), Error> {
        match &self.0 {
            ArchiveSource::Layout(layout) => layout.manifest(),
            ArchiveSource::Docker(image) => Ok(image.manifest()),
        }
    }

    /// A manifest or configuration of at most `max` bytes, with the digest checked.
    pub fn document(&self, digest: &Digest, max: u64) -> Result<Vec<u8>, Error> {
        match &self.0 {
            ArchiveSource::Layout(layout) => layout.document(digest, max),
            ArchiveSource::Docker(image) => image.document(digest, max),
        }
    }

    /// A layer. Its length is compared with the descriptor's; its bytes are not verified.
    pub fn blob(&self, descriptor: &Descriptor) -> Result<Arc<dyn Blob>, Error> {
        let member = match &self.0 {
            ArchiveSource::Layout(layout) => layout.member(&descriptor.digest)?,
            ArchiveSource::Docker(image) => image.member(&descriptor.digest)?,
        };
        Ok(Arc::new(member.into_blob(descriptor)?))
    }
}
