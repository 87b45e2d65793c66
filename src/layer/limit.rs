//! How much an index may hold. A layer comes from strangers: without limits a few kilobytes of
//! gzip could ask for all the memory there is.

use std::mem::size_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::layer::entry::{Entry, EntryKind, Extent, Whiteout, Xattr};
use crate::layer::index::LayerIndex;

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

/// Most memory that the entries and whiteouts of all layers of an image may take, in bytes: they are
/// made at the same time, and are all there while its tree is made. As many as two of the largest
/// layers have; the largest images in use need a quarter of it.
pub const IMAGE_INDEX_BYTES_MAX: u64 = 2 * INDEX_BYTES_MAX;

/// What is left of [`IMAGE_INDEX_BYTES_MAX`]; clones are the same budget.
#[derive(Debug, Clone)]
pub struct ImageBudget(Arc<AtomicU64>);

impl Default for ImageBudget {
    fn default() -> ImageBudget {
        ImageBudget::of(IMAGE_INDEX_BYTES_MAX)
    }
}

impl ImageBudget {
    pub(crate) fn of(bytes: u64) -> ImageBudget {
        ImageBudget(Arc::new(AtomicU64::new(bytes)))
    }

    #[cfg(test)]
    pub(crate) fn left(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// For one more layer, which has taken nothing yet.
    pub fn share(&self) -> Share {
        Share(Arc::new(Taken {
            of: self.clone(),
            bytes: AtomicU64::new(0),
        }))
    }

    fn take(&self, bytes: u64) -> Result<(), LimitError> {
        let less = |left: u64| left.checked_sub(bytes);
        let taken = self.0.fetch_update(Relaxed, Relaxed, less);
        taken.map(drop).map_err(|_too_little| LimitError::Image)
    }

    /// Takes what the index of one more layer needs.
    pub fn layer(&self, index: &LayerIndex) -> Result<(), LimitError> {
        let whiteouts: usize = index.whiteouts.iter().map(bytes_of_whiteout).sum();
        let entries: usize = index.entries.iter().map(bytes_of_entry).sum();
        self.take((whiteouts + entries) as u64)
    }
}

/// What a layer has taken of the [`ImageBudget`] while it is indexed. It is given back when the last
/// clone is dropped, so whoever keeps the index keeps one.
#[derive(Debug, Clone)]
pub struct Share(Arc<Taken>);

#[derive(Debug)]
struct Taken {
    of: ImageBudget,
    bytes: AtomicU64,
}

impl Share {
    fn take(&self, bytes: u64) -> Result<(), LimitError> {
        self.0.of.take(bytes)?;
        self.0.bytes.fetch_add(bytes, Relaxed);
        Ok(())
    }
}

impl Default for Share {
    /// Of a budget that nobody else takes of.
    fn default() -> Share {
        ImageBudget::default().share()
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.of.0.fetch_add(*self.bytes.get_mut(), Relaxed);
    }
}

/// What is left of [`ENTRIES_MAX`] and [`INDEX_BYTES_MAX`].
#[derive(Debug)]
pub(crate) struct Budget {
    entries: usize,
    bytes: u64,
    /// Absent for an index that is only read: whoever reads several counts them.
    share: Option<Share>,
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
    /// More than [`IMAGE_INDEX_BYTES_MAX`].
    #[error(
        "names, attributes and extents of all layers take more than {IMAGE_INDEX_BYTES_MAX} bytes of \
         memory"
    )]
    Image,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget {
            entries: ENTRIES_MAX,
            bytes: INDEX_BYTES_MAX,
            share: None,
        }
    }
}

impl Budget {
    /// Takes from `share` as well.
    pub(crate) fn sharing(share: Share) -> Budget {
        Budget {
            share: Some(share),
            ..Budget::default()
        }
    }

    pub(crate) fn entry(&mut self, entry: &Entry) -> Result<(), LimitError> {
        self.spend(bytes_of_entry(entry))
    }

    pub(crate) fn whiteout(&mut self, whiteout: &Whiteout) -> Result<(), LimitError> {
        self.spend(bytes_of_whiteout(whiteout))
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
        match &self.share {
            Some(share) => share.take(bytes as u64),
            None => Ok(()),
        }
    }
}

fn bytes_of_entry(entry: &Entry) -> usize {
    let kind = match &entry.kind {
        EntryKind::Regular { extents, .. } => extents.capacity() * size_of::<Extent>(),
        EntryKind::HardLink { target } => target.as_bytes().len(),
        EntryKind::Symlink { target } => target.len(),
        _ => 0,
    };
    let xattr = |x: &Xattr| size_of::<Xattr>() + x.name.len() + x.value.len();
    let xattrs: usize = entry.xattrs.iter().map(xattr).sum();
    size_of::<Entry>() + entry.path.as_bytes().len() + kind + xattrs
}

fn bytes_of_whiteout(whiteout: &Whiteout) -> usize {
    let (Whiteout::Path(path) | Whiteout::Opaque(path)) = whiteout;
    size_of::<Whiteout>() + path.as_bytes().len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::LayerPath;
    use crate::oci::{Compression, Digest};

    #[test]
    fn budgets_end() {
        let whiteout = Whiteout::Path(LayerPath::parse(b"a").unwrap());
        let mut budget = Budget {
            entries: 1,
            bytes: 1000,
            share: None,
        };
        assert_eq!(budget.whiteout(&whiteout), Ok(()));
        assert_eq!(budget.whiteout(&whiteout), Err(LimitError::Entries));
        let mut budget = Budget {
            entries: 9,
            bytes: 30,
            share: None,
        };
        assert_eq!(budget.whiteout(&whiteout), Ok(()));
        assert_eq!(budget.whiteout(&whiteout), Err(LimitError::Memory));
    }

    #[test]
    fn layers_share_what_an_image_may_take() {
        let path = LayerPath::parse(b"a").unwrap();
        let index = LayerIndex {
            blob: Digest::of(b""),
            diff_id: Digest::of(b""),
            compressed_size: 0,
            address_size: 0,
            compression: Compression::None,
            whiteouts: vec![Whiteout::Path(path); 3],
            entries: Vec::new(),
            spans: Vec::new(),
        };
        let needs = 3 * (size_of::<Whiteout>() as u64 + 1);
        let budget = ImageBudget::of(2 * needs + 1);
        assert_eq!(budget.layer(&index), Ok(()));
        assert_eq!(budget.layer(&index), Ok(()));
        assert_eq!(budget.layer(&index), Err(LimitError::Image));
    }

    #[test]
    fn layers_that_are_indexed_together_share_what_an_image_may_take() {
        let whiteout = Whiteout::Path(LayerPath::parse(b"a").unwrap());
        let image = ImageBudget::of(3 * bytes_of_whiteout(&whiteout) as u64);
        let shares = [image.share(), image.share()];
        let [mut one, mut other] = shares.clone().map(Budget::sharing);
        assert_eq!(one.whiteout(&whiteout), Ok(()));
        assert_eq!(one.whiteout(&whiteout), Ok(()));
        assert_eq!(other.whiteout(&whiteout), Ok(()));
        assert_eq!(other.whiteout(&whiteout), Err(LimitError::Image));
        // Whoever still has the index still has the share.
        drop(one);
        assert_eq!(other.whiteout(&whiteout), Err(LimitError::Image));
        let [of_one, of_other] = shares;
        drop(of_one);
        assert_eq!(other.whiteout(&whiteout), Ok(()));
        assert_eq!(other.whiteout(&whiteout), Ok(()));
        assert_eq!(other.whiteout(&whiteout), Err(LimitError::Image));
        drop((other, of_other));
        assert_eq!(image.left(), 3 * bytes_of_whiteout(&whiteout) as u64);
    }
}
