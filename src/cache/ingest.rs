//! A layer that streams into the cache for the first time.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::bitmap;
use super::directory::Directory;
use super::layers::{BLOCKS, Frame, INDEX, INDEX_BYTES_MAX, PAGES, SOLE, StoredLayer};
use super::lock::Lock;
use super::pages::{ADDRESS_BYTES_MAX, PAGE_BYTES};
use super::staging::{self, Staging};
use super::trio::{DATA, PRESENT, SUMS, Trio};
use super::{CacheError, Root, whole};
use crate::oci::Digest;

/// Bytes between two looks at the free space: far below what is kept free, and rare.
const LOOK_BYTES: u64 = 16 << 20;

/// Collects small writes.
const BUFFER_BYTES: usize = 256 << 10;

/// What [`Cache::begin`](super::Cache::begin) found.
#[derive(Debug)]
pub enum Begin {
    /// Nobody has the layer: the caller streams it.
    New(NewLayer),
    /// It is stored.
    Known(StoredLayer),
}

/// A layer on its way into the cache. Others see it after [`NewLayer::commit`]; dropped before, it
/// leaves nothing behind. While it lives, nobody else can begin the same layer.
#[derive(Debug)]
pub struct NewLayer {
    root: Arc<Root>,
    blob: Digest,
    staging: Staging,
    directory: Directory,
    pages: Directory,
    data: BufWriter<File>,
    sums: BufWriter<File>,
    present: File,
    length: u64,
    /// CRC32C of the page that is not full yet.
    sum: u32,
    look_at: u64,
    /// Whether its bytes will be nowhere else.
    sole: bool,
    /// Whether its bytes are kept, and not the index alone.
    keeps: bool,
    /// Held until this is dropped.
    _ingest: Lock,
}

impl NewLayer {
    /// Starts a layer for which the caller holds the ingest lock.
    pub(super) fn new(root: &Arc<Root>, blob: &Digest, lock: Lock) -> Result<NewLayer, CacheError> {
        let (staging, directory) = Staging::directory(root)?;
        let pages = directory.ensure(PAGES)?;
        let Trio {
            data,
            sums,
            present,
        } = Trio::create(&pages)?;
        Ok(NewLayer {
            root: root.clone(),
            blob: blob.clone(),
            staging,
            directory,
            pages,
            data: BufWriter::with_capacity(BUFFER_BYTES, data),
            sums: BufWriter::with_capacity(BUFFER_BYTES / 8, sums),
            present,
            length: 0,
            sum: 0,
            look_at: LOOK_BYTES,
            sole: false,
            keeps: true,
            _ingest: lock,
        })
    }

    /// Digest of the blob.
    pub fn blob(&self) -> &Digest {
        &self.blob
    }

    /// Says that this will be the only copy of its bytes: they are on the disk when it appears, and are
    /// dropped with the layer, never alone.
    pub fn set_sole(&mut self) {
        self.sole = true;
    }

    /// Keeps the index, and no bytes: for who has no room for them. To be said before the first one.
    pub fn keep_index_only(&mut self) {
        self.keeps = false;
    }

    /// Adds the next bytes of the address space.
    ///
    /// # Errors
    ///
    /// [`CacheError::Full`] when less than [`FREE_BYTES_RESERVED`](super::FREE_BYTES_RESERVED) would stay free.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), CacheError> {
        let size = self.length.saturating_add(bytes.len() as u64);
        if size > ADDRESS_BYTES_MAX {
            return Err(CacheError::Range {
                start: self.length,
                end: size,
                size: ADDRESS_BYTES_MAX,
            });
        }
        if !self.keeps {
            self.length = size;
            return Ok(());
        }
        if size >= self.look_at {
            self.root.check_free(LOOK_BYTES)?;
            self.look_at = size + LOOK_BYTES;
        }
        let failed = |e, name| CacheError::io("write", &self.pages.path_of(name), e);
        self.data.write_all(bytes).map_err(|e| failed(e, "data"))?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = PAGE_BYTES - self.length % PAGE_BYTES;
            let (now, later) = rest.split_at(rest.len().min(room as usize));
            self.sum = crc32c::crc32c_append(self.sum, now);
            self.length += now.len() as u64;
            if self.length.is_multiple_of(PAGE_BYTES) {
                let sum = std::mem::take(&mut self.sum).to_le_bytes();
                self.sums.write_all(&sum).map_err(|e| failed(e, "sums"))?;
            }
            rest = later;
        }
        Ok(())
    }

    /// Keeps beside the index what later helps to cut it anew.
    pub fn put_blocks(&self, blocks: &[u8]) -> Result<(), CacheError> {
        staging::write_synced(&self.directory, BLOCKS, blocks).map(drop)
    }

    /// Makes the layer visible, whole, with its index. The caller has verified all bytes, and evicts
    /// ([`Cache::keep_within_budget`](super::Cache::keep_within_budget)) when it needs them no longer.
    pub fn commit(mut self, index: &[u8]) -> Result<StoredLayer, CacheError> {
        if index.len() > INDEX_BYTES_MAX {
            let (digest, bytes) = (self.blob.clone(), index.len());
            return Err(CacheError::TooLarge {
                digest,
                bytes,
                max: INDEX_BYTES_MAX,
            });
        }
        let size = self.length;
        let padding = (size.next_multiple_of(PAGE_BYTES) - size) as usize;
        self.write(&[0; PAGE_BYTES as usize][..padding])?;
        let pages = size.div_ceil(PAGE_BYTES);
        let bits: Vec<u8> = (0..pages.div_ceil(64))
            .flat_map(|word| bitmap::mask(word, &(0..pages)).to_le_bytes())
            .collect();
        let path = self.pages.path_of("");
        let failed = |e| CacheError::io("write", Path::new(&path), e);
        self.data.flush().map_err(failed)?;
        self.sums.flush().map_err(failed)?;
        if self.keeps {
            self.present.write_all_at(&bits, 0).map_err(failed)?;
            // The caller has seen the digest of the whole as well.
            whole::mark(&self.present, size).map_err(failed)?;
        } else {
            self.directory.remove(PAGES)?;
        }
        if self.sole {
            let files = [self.data.get_ref(), self.sums.get_ref(), &self.present];
            for (file, name) in files.into_iter().zip([DATA, SUMS, PRESENT]) {
                let synced = file.sync_all();
                synced.map_err(|e| CacheError::io("sync", &self.pages.path_of(name), e))?;
            }
            self.pages.sync()?;
            // Empty: its name comes to the disk with the directory.
            self.directory.create(SOLE)?;
        }
        let framed = [&Frame::make(&self.blob, size, index), index].concat();
        staging::write_synced(&self.directory, INDEX, &framed)?;
        self.directory.sync()?;
        let layers = self.root.layers(&self.blob)?;
        // What stands there has no usable index, or `begin` would have found it.
        Staging::discard(&self.root, &layers, self.blob.hex())?;
        self.staging.place(&layers, self.blob.hex())?;
        layers.sync()?;
        // By the name that messages should have.
        let placed = layers.directory(self.blob.hex())?;
        let directory = placed.unwrap_or(self.directory);
        StoredLayer::open(&self.root, directory, &self.blob)?.ok_or(CacheError::Gone(self.blob))
    }
}
