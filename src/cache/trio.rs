//! The files of a page store as they lie in its directory: made, opened, sized, made durable. What is
//! in them is the business of `pages`.

use std::fs::File;

use super::CacheError;
use super::bitmap::WORD_BYTES;
use super::directory::Directory;
use super::pages::{ADDRESS_BYTES_MAX, PAGE_BYTES, SUM_BYTES};

pub(super) const DATA: &str = "data";
pub(super) const SUMS: &str = "sums";
pub(super) const PRESENT: &str = "present";

/// The three files of a store, just made or just found.
#[derive(Debug)]
pub(super) struct Trio {
    pub(super) data: File,
    pub(super) sums: File,
    pub(super) present: File,
}

impl Trio {
    /// Makes the files in an empty directory.
    pub(super) fn create(directory: &Directory) -> Result<Trio, CacheError> {
        let make = |name| directory.create(name);
        Ok(Trio {
            data: make(DATA)?,
            sums: make(SUMS)?,
            present: make(PRESENT)?,
        })
    }

    /// Opens the files; `None` when one is missing because the store is being removed.
    pub(super) fn open(directory: &Directory) -> Result<Option<Trio>, CacheError> {
        let open = |name| directory.file(name, true);
        let (Some(data), Some(sums), Some(present)) = (open(DATA)?, open(SUMS)?, open(PRESENT)?)
        else {
            return Ok(None);
        };
        Ok(Some(Trio {
            data,
            sums,
            present,
        }))
    }

    /// Length of `data` in bytes.
    pub(super) fn data_bytes(&self) -> u64 {
        let len = self.data.metadata().map_or(0, |meta| meta.len());
        len.min(ADDRESS_BYTES_MAX) / PAGE_BYTES * PAGE_BYTES
    }

    /// Makes what was written survive a power cut.
    pub(super) fn sync(&self, directory: &Directory) -> Result<(), CacheError> {
        for (file, name) in [
            (&self.data, DATA),
            (&self.sums, SUMS),
            (&self.present, PRESENT),
        ] {
            let synced = file.sync_all();
            synced.map_err(|e| CacheError::io("sync", &directory.path_of(name), e))?;
        }
        directory.sync()
    }

    /// Gives the files the lengths that an address space of `size` bytes needs.
    pub(super) fn set_size(&self, directory: &Directory, size: u64) -> Result<(), CacheError> {
        let pages = size.div_ceil(PAGE_BYTES);
        for (file, name, bytes) in [
            (&self.data, DATA, pages * PAGE_BYTES),
            (&self.sums, SUMS, pages * SUM_BYTES),
            (&self.present, PRESENT, pages.div_ceil(64) * WORD_BYTES),
        ] {
            file.set_len(bytes)
                .map_err(|e| CacheError::io("resize", &directory.path_of(name), e))?;
        }
        Ok(())
    }
}
