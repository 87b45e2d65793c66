//! Why layers do not make a tree.

use crate::layer::LayerPath;
use crate::tree::NODES_MAX;
use crate::tree::node::LayerId;
use crate::tree::walk::{EXPANDED_BYTES_MAX, LINKS_MAX};

/// Why layers do not make a tree. Each names the place in the image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// A path of one layer does not lead anywhere.
    #[error("layer {}: `{path}`: {reason}", layer.0)]
    Path {
        /// Whose.
        layer: LayerId,
        /// Which.
        path: LayerPath,
        /// Why not.
        reason: WalkError,
    },
    /// Something other than a directory wants to be the root.
    #[error("layer {}: the root of the image must be a directory", layer.0)]
    Root {
        /// Whose.
        layer: LayerId,
    },
    /// A hard link to nothing.
    #[error("layer {}: hard link `{path}` names `{target}`, which does not exist", layer.0)]
    LinkMissing {
        /// Whose.
        layer: LayerId,
        /// The link.
        path: LayerPath,
        /// What it names.
        target: LayerPath,
    },
    /// Hard links that name each other.
    #[error("layer {}: hard link `{path}` names `{target}`, which leads back to it", layer.0)]
    LinkLoop {
        /// Whose.
        layer: LayerId,
        /// The link.
        path: LayerPath,
        /// What it names.
        target: LayerPath,
    },
    /// A hard link to a directory.
    #[error("layer {}: hard link `{path}` names the directory `{target}`", layer.0)]
    LinkDirectory {
        /// Whose.
        layer: LayerId,
        /// The link.
        path: LayerPath,
        /// What it names.
        target: LayerPath,
    },
    /// A file longer than any file can be.
    #[error("layer {}: `{path}` is {size} bytes long (at most {} are possible)", layer.0, i64::MAX)]
    FileTooLong {
        /// Whose.
        layer: LayerId,
        /// Which.
        path: LayerPath,
        /// How long it says it is.
        size: u64,
    },
    /// See [`NODES_MAX`].
    #[error("layer {}: the image has more than {NODES_MAX} files", layer.0)]
    TooManyNodes {
        /// The layer that went over.
        layer: LayerId,
    },
    /// Names, link targets or extents do not fit their 32-bit places.
    #[error("the names, link targets or extents of the image need more than 4 GiB")]
    TooMuchText,
}

/// Why a path does not lead anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WalkError {
    /// See `LINKS_MAX`.
    #[error("more than {LINKS_MAX} symbolic links on the way (a loop?)")]
    Loop,
    /// See `EXPANDED_BYTES_MAX`.
    #[error("the layers' paths go through more than {EXPANDED_BYTES_MAX} bytes of symbolic links")]
    TooMuchWork,
    /// See [`crate::layer::path::PATH_DEPTH_MAX`].
    #[error("symbolic links lead it too deep")]
    TooDeep,
    /// A symbolic link leads through a name that no directory can hold.
    #[error("a symbolic link leads it through a name that no directory can hold")]
    Name,
}
