//! Why a tree cannot be an EROFS image. Each is a limit of the format.

use crate::tree::Ino;

/// Why a tree cannot be an EROFS image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ErofsError {
    /// The root's number has 16 bits, and the device slots stand before it.
    #[error("an EROFS image cannot have {0} layers")]
    Layers(usize),
    /// Block numbers have 32 bits.
    #[error("layer {layer} is {bytes} bytes long; an EROFS image can refer to 2 TiB of a layer")]
    LayerTooLong {
        /// Position in the manifest.
        layer: usize,
        /// Length of its address space.
        bytes: u64,
    },
    /// Lengths of values have 16 bits, and so has their sum in words.
    #[error("the extended attributes of inode {} are longer than EROFS can hold", .0.get())]
    Xattrs(Ino),
    /// More metadata than 32-bit numbers reach.
    #[error("the image has too many files for EROFS")]
    TooLarge,
}
