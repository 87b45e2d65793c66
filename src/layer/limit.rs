//! How much an index may hold. A layer comes from strangers: without limits a few kilobytes of
//! gzip could ask for all the memory there is.

use std::mem::size_of;

use crate::layer::entry::{Entry, EntryKind, Extent, Whiteout, Xattr};

/// Most entries and whiteouts of one layer. The largest images in use (whole distributions with
/// all their sources) have fewer than a million files.
pub const ENTRIES_MAX: usize = 1 << 21;
/// Most memory that the entries and whiteouts of one layer may take, in bytes: about 256 for each
/// of [`ENTRIES_MAX`].
pub const INDEX_BYTES_MAX: u64 = 512 << 20;
/// Most bytes of one PAX header, as Go's `archive/tar` has it: what docker could never unpack is
/// not worth reading.
pub const PAX_BYTES_MAX: u64 = 1 << 20;
/// Most bytes of a GNU long name or long link: sixteen times the kernel's PATH_MAX.
pub const LONG_NAME_BYTES_MAX: u64 = 64 << 10;
/// Longest value of an extended attribute, `XATTR_SIZE_MAX` of Linux.
pub const XATTR_BYTES_MAX: usize = 64 << 10;
/// Longest name of an extended attribute, `XATTR_NAME_MAX` of Linux.
pub const XATTR_NAME_BYTES_MAX: usize = 255;
/// Most extended attributes of one entry: `XATTR_LIST_MAX` of Linux is 64 KiB for all names, which
/// is this many names of 64 bytes. Together they may have [`PAX_BYTES_MAX`] bytes, also when they
/// come from several global headers.
pub const XATTRS_MAX: usize = 1024;
/// Longest target of a symbolic link: PATH_MAX of Linux without its NUL.
pub const SYMLINK_BYTES_MAX: usize = 4095;
/// Most pieces of one sparse file. A disk image of 1 GiB whose every other page is a hole has half
/// as many.
pub const SPARSE_EXTENTS_MAX: usize = 1 << 18;
/// Longest file: `loff_t` of Linux is signed.
pub const FILE_BYTES_MAX: u64 = i64::MAX as u64;
/// Longest span that is decoded: a span is held in memory until its SHA-256 has matched.
pub const SPAN_BYTES_MAX: u64 = 64 << 20;
/// Most bytes of address space that one layer may have unless the caller says otherwise: deflate
/// packs zeros 1:1032, so a 1 GiB blob can claim a terabyte.
pub const ADDRESS_BYTES_MAX: u64 = 256 << 30;

/// What is left of [`ENTRIES_MAX`] and [`INDEX_BYTES_MAX`].
#[derive(Debug)]
pub(crate) struct Budget {
    entries: usize,
    bytes: u64,
}

/// The budget is spent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// More than [`ENTRIES_MAX`].
    #[error("more than {ENTRIES_MAX} entries")]
    Entries,
    /// More than [`INDEX_BYTES_MAX`].
    #[error("names, attributes and extents take more than {INDEX_BYTES_MAX} bytes of memory")]
    Memory,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget {
            entries: ENTRIES_MAX,
            bytes: INDEX_BYTES_MAX,
        }
    }
}

impl Budget {
    pub(crate) fn entry(&mut self, entry: &Entry) -> Result<(), LimitError> {
        let kind = match &entry.kind {
            EntryKind::Regular { extents, .. } => extents.capacity() * size_of::<Extent>(),
            EntryKind::HardLink { target } => target.as_bytes().len(),
            EntryKind::Symlink { target } => target.len(),
            _ => 0,
        };
        let xattr = |x: &Xattr| size_of::<Xattr>() + x.name.len() + x.value.len();
        let xattrs: usize = entry.xattrs.iter().map(xattr).sum();
        self.spend(size_of::<Entry>() + entry.path.as_bytes().len() + kind + xattrs)
    }

    pub(crate) fn whiteout(&mut self, whiteout: &Whiteout) -> Result<(), LimitError> {
        let (Whiteout::Path(path) | Whiteout::Opaque(path)) = whiteout;
        self.spend(size_of::<Whiteout>() + path.as_bytes().len())
    }

    /// Something that is passed over: it takes no memory, but time.
    pub(crate) fn ignored(&mut self) -> Result<(), LimitError> {
        self.spend(0)
    }

    fn spend(&mut self, bytes: usize) -> Result<(), LimitError> {
        self.entries = self.entries.checked_sub(1).ok_or(LimitError::Entries)?;
        self.bytes = self
            .bytes
            .checked_sub(bytes as u64)
            .ok_or(LimitError::Memory)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::LayerPath;

    #[test]
    fn budgets_end() {
        let whiteout = Whiteout::Path(LayerPath::parse(b"a").unwrap());
        let mut budget = Budget {
            entries: 1,
            bytes: 1000,
        };
        assert_eq!(budget.whiteout(&whiteout), Ok(()));
        assert_eq!(budget.whiteout(&whiteout), Err(LimitError::Entries));
        let mut budget = Budget {
            entries: 9,
            bytes: 30,
        };
        assert_eq!(budget.whiteout(&whiteout), Ok(()));
        assert_eq!(budget.whiteout(&whiteout), Err(LimitError::Memory));
    }
}
