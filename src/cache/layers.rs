//! Stored layers: the directory `layers/ALGORITHM/HEX` with an immutable `index` and a page store
//! that may come and go.
//!
//! `index` is framed, because the cache has to know the length of the address space without
//! knowing the index's format: the magic, the address size (u64), the length of what follows the
//! frame (u64), and CRC32C (u32) of the blob's hex digest, both numbers and the index; all little endian.
//!
//! Beside it may lie `blocks`, from which the index can be cut anew, and `narrow`, the index as it
//! was cut anew, behind a key that says for what. Both are hints: damaged, they are as good as not
//! there (what is in them carries its own checksum).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::directory::Directory;
use super::pages::ADDRESS_BYTES_MAX;
use super::staging::{self, Staging};
use super::trio::Trio;
use super::{CacheError, Pages, Root};
use crate::oci::Digest;

pub(super) const INDEX: &str = "index";
pub(super) const PAGES: &str = "pages";
/// An empty file: the bytes of the layer are nowhere else, so nobody may drop them.
pub(super) const SOLE: &str = "sole";
pub(super) const BLOCKS: &str = "blocks";
const NARROW: &str = "narrow";

/// Bytes of the key before an index that was cut anew.
const KEY_BYTES: usize = 32;

/// A mark beside the index: the file `data` itself was given to the kernel. It is never taken away.
pub(super) const LENT: &str = "lent";

const MAGIC: &[u8; 8] = b"rsmidx\0\x02";
const FRAME_BYTES: usize = 28;

/// The largest index that is stored or read: a layer with a million entries has about 100 MiB.
pub const INDEX_BYTES_MAX: usize = 1 << 30;

/// How often a page store is opened anew because somebody removes it at the same time.
const OPEN_TRIES_MAX: usize = 100;

/// A layer whose index is stored.
#[derive(Debug, Clone)]
pub struct StoredLayer {
    pub(super) root: Arc<Root>,
    pub(super) directory: Arc<Directory>,
    blob: Digest,
    address_size: u64,
}

impl StoredLayer {
    /// The layer in `directory`; `None` when no index that can be read is in it.
    pub(super) fn open(
        root: &Arc<Root>,
        directory: Directory,
        blob: &Digest,
    ) -> Result<Option<StoredLayer>, CacheError> {
        let Some(file) = directory.file(INDEX, false)? else {
            return Ok(None);
        };
        let mut frame = [0; FRAME_BYTES];
        if file.read_exact_at(&mut frame, 0).is_err() {
            return Ok(None);
        }
        let Some(Frame { address_size, .. }) = Frame::parse(&frame) else {
            return Ok(None);
        };
        let (root, directory, blob) = (root.clone(), Arc::new(directory), blob.clone());
        Ok(Some(StoredLayer {
            root,
            directory,
            blob,
            address_size,
        }))
    }

    /// Digest of the blob.
    pub fn blob(&self) -> &Digest {
        &self.blob
    }

    /// Length of the address space in bytes.
    pub fn address_size(&self) -> u64 {
        self.address_size
    }

    /// The index, as it was given to [`NewLayer::commit`](super::NewLayer::commit).
    ///
    /// # Errors
    ///
    /// [`CacheError::Damaged`] when it is not: the layer is then forgotten, so that the next
    /// [`Cache::begin`](super::Cache::begin) makes it anew. [`CacheError::Gone`] when somebody
    /// removed it.
    pub fn index(&self) -> Result<Vec<u8>, CacheError> {
        self.hold_index()?.read()
    }

    /// Opens the index, to be read later whoever removes the layer meanwhile.
    pub fn hold_index(&self) -> Result<HeldIndex, CacheError> {
        let file = self.directory.file(INDEX, false)?;
        let file = file.ok_or_else(|| CacheError::Gone(self.blob.clone()))?;
        Ok(HeldIndex {
            layer: self.clone(),
            file,
        })
    }

    fn checked_index(&self, mut stored: Vec<u8>) -> Result<Vec<u8>, CacheError> {
        if !Frame::matches(&self.blob, &stored) {
            self.forget()?;
            let reason = "its checksum does not match";
            return Err(CacheError::Damaged {
                path: self.directory.path_of(INDEX),
                reason,
            });
        }
        stored.drain(..FRAME_BYTES);
        Ok(stored)
    }

    /// What was kept to cut the index anew.
    pub fn blocks(&self) -> Option<Vec<u8>> {
        self.directory.read(BLOCKS, INDEX_BYTES_MAX).ok().flatten()
    }

    /// The index as it was last cut anew, and for what.
    pub fn narrow(&self) -> Option<([u8; KEY_BYTES], Vec<u8>)> {
        let stored = self.directory.read(NARROW, KEY_BYTES + INDEX_BYTES_MAX);
        let stored = stored.ok().flatten()?;
        let (key, index) = stored.split_first_chunk::<KEY_BYTES>()?;
        Some((*key, index.to_vec()))
    }

    /// Keeps an index that was cut anew; whoever has read the one before keeps that.
    pub fn put_narrow(&self, key: &[u8; KEY_BYTES], index: &[u8]) -> Result<(), CacheError> {
        let bytes = [&key[..], index].concat();
        staging::write_file(&self.root, &self.directory, NARROW, &bytes)
    }

    /// Removes the layer, because its index is of no use (damaged, or of another version). Who has
    /// its pages open keeps them.
    pub fn forget(&self) -> Result<(), CacheError> {
        let layers = self.root.layers(&self.blob)?;
        Staging::discard(&self.root, &layers, self.blob.hex())?;
        Ok(())
    }

    /// Opens the page store, or makes an empty one after it was pruned.
    pub fn pages(&self) -> Result<Pages, CacheError> {
        open_or_make(&self.root, &self.directory, PAGES, self.address_size)?
            .ok_or_else(|| CacheError::Gone(self.blob.clone()))
    }

    /// Says whether this is the only copy of the layer (of an image that was loaded or made here):
    /// its data is then on the disk, and is dropped with the layer, never alone.
    pub fn set_sole(&self, sole: bool) -> Result<(), CacheError> {
        if !sole {
            return self.directory.remove(SOLE);
        }
        if self.is_sole()? {
            return Ok(());
        }
        // Marked first: what is evicted before is missed by who looks after, and nothing goes later.
        self.directory.ensure_file(SOLE)?;
        if let Some(store) = self.directory.directory(PAGES)?
            && let Some(trio) = Trio::open(&store)?
        {
            trio.sync(&store)?;
        }
        self.directory.sync()
    }

    /// Whether this is the only copy.
    pub fn is_sole(&self) -> Result<bool, CacheError> {
        Ok(self.directory.stat(SOLE)?.is_some())
    }

    /// Where the layer lies, for messages.
    pub fn path(&self) -> PathBuf {
        self.directory.path_of("")
    }
}

/// The index of a layer that is open.
#[derive(Debug)]
pub struct HeldIndex {
    layer: StoredLayer,
    file: File,
}

impl HeldIndex {
    /// Its bytes, as [`StoredLayer::index`] gives them.
    pub fn read(&self) -> Result<Vec<u8>, CacheError> {
        let path = || self.layer.directory.path_of(INDEX);
        let failed = |e| CacheError::io("read", &path(), e);
        let length = self.file.metadata().map_err(failed)?.len();
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let mut stored = vec![0; length.min(FRAME_BYTES + INDEX_BYTES_MAX)];
        self.file.read_exact_at(&mut stored, 0).map_err(failed)?;
        self.layer.checked_index(stored)
    }
}

/// The page store `name` in `directory`, made empty if it is missing; `None` when `directory` itself
/// was removed.
pub(super) fn open_or_make(
    root: &Arc<Root>,
    directory: &Directory,
    name: &str,
    size: u64,
) -> Result<Option<Pages>, CacheError> {
    for _ in 0..OPEN_TRIES_MAX {
        if let Some(store) = directory.directory(name)? {
            if let Some(trio) = Trio::open(&store)? {
                return Ok(Some(Pages::new(&store, trio, size).in_use(root)));
            }
            // A store is made whole and removed by moving it away first: if one of its files is
            // missing and the store is still in its place, it was not the cache that did it.
            if directory.stat(name)?.is_some() {
                Staging::discard(root, directory, name)?;
            }
        }
        let (staging, store) = Staging::directory(root)?;
        let trio = Trio::create(&store)?;
        trio.set_size(&store, size)?;
        // Another process may be first: then its store is the one.
        match staging.place(directory, name) {
            Err(CacheError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(None);
            }
            placed => placed?,
        };
    }
    Ok(None)
}

/// The head of an `index` file.
pub(super) struct Frame {
    address_size: u64,
    index_bytes: u64,
    sum: u32,
}

impl Frame {
    /// The frame of `index` for a layer of `address_size` bytes.
    pub(super) fn make(blob: &Digest, address_size: u64, index: &[u8]) -> [u8; FRAME_BYTES] {
        let mut frame = [0; FRAME_BYTES];
        frame[..8].copy_from_slice(MAGIC);
        frame[8..16].copy_from_slice(&address_size.to_le_bytes());
        frame[16..24].copy_from_slice(&(index.len() as u64).to_le_bytes());
        let sum = sum(blob, &frame[8..24], index);
        frame[24..].copy_from_slice(&sum.to_le_bytes());
        frame
    }

    fn parse(frame: &[u8; FRAME_BYTES]) -> Option<Frame> {
        let (magic, numbers) = frame.split_first_chunk::<8>()?;
        let (address_size, numbers) = numbers.split_first_chunk::<8>()?;
        let (index_bytes, numbers) = numbers.split_first_chunk::<8>()?;
        let sum = u32::from_le_bytes(*numbers.first_chunk::<4>()?);
        let address_size = u64::from_le_bytes(*address_size);
        let valid = magic == MAGIC && address_size <= ADDRESS_BYTES_MAX;
        let index_bytes = u64::from_le_bytes(*index_bytes);
        valid.then_some(Frame {
            address_size,
            index_bytes,
            sum,
        })
    }

    fn matches(blob: &Digest, stored: &[u8]) -> bool {
        let Some((frame, index)) = stored.split_first_chunk::<FRAME_BYTES>() else {
            return false;
        };
        Frame::parse(frame).is_some_and(|f| {
            f.index_bytes == index.len() as u64 && f.sum == sum(blob, &frame[8..24], index)
        })
    }
}

/// With the digest in it, so that the index of another layer does not pass.
fn sum(blob: &Digest, numbers: &[u8], index: &[u8]) -> u32 {
    let sum = crc32c::crc32c_append(crc32c::crc32c(blob.hex().as_bytes()), numbers);
    crc32c::crc32c_append(sum, index)
}
