//! Giving the file of a layer to the kernel, which then reads it without asking anybody.
//!
//! Before the first time it is marked for ever, on the file itself and beside the index: from then on
//! the file is only unlinked, never punched or truncated, because that would read as zeros even after
//! all our processes are gone. When every page has then been seen to have its sum (and, if that was never
//! looked at, all of them to be the layer), the boot's number is written among the pages, where it goes with them: only what was checked in this boot is given away.
//!
//! *Rejected:* naming the checked file by its inode number in the mark. Inode numbers are used again,
//! and an empty store was taken for the whole one that had been pruned.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use rustix::fs::Mode;
use rustix::io::Errno;

use super::directory::Directory;
use super::layers::{LENT, PAGES, StoredLayer};
use super::trio::{DATA, Trio};
use super::{ByteRange, CacheError, Pages, Whole, staging};
use crate::oci::Digest;

/// Beside `data`: the boot in which it was checked whole.
const CHECKED: &str = "checked";

/// Longest number of a boot.
const BOOT_BYTES_MAX: usize = 256;

impl StoredLayer {
    /// The file of the layer, if it was checked whole in this boot and still is; `boot` is the boot's
    /// number.
    pub fn lendable(&self, boot: &str) -> Option<File> {
        let store = self.directory.directory(PAGES).ok().flatten()?;
        let checked = store.read(CHECKED, BOOT_BYTES_MAX).ok().flatten()?;
        if checked != boot.as_bytes() {
            return None;
        }
        // A page that was found damaged since has lost its bit.
        let trio = Trio::open(&store).ok().flatten()?;
        let pages = Pages::new(&store, trio, self.address_size());
        if !pages.is_present(ByteRange::new(0, pages.size())) {
            return None;
        }
        store.file(DATA, false).ok().flatten()
    }

    /// Makes the file lendable in this boot: checks every page of it, as [`Pages::verify_whole`] does.
    /// `pages` is the open store of the layer, `diff_id` the digest of its uncompressed tar.
    pub fn make_lendable(
        &self,
        boot: &str,
        pages: &Pages,
        diff_id: &Digest,
    ) -> Result<Whole, CacheError> {
        let Some(store) = self.directory.directory(PAGES)? else {
            return Ok(Whole::Incomplete);
        };
        // What is lent is never evicted, so a cache that is above its budget lends no more.
        if !pages.is_complete() || pages.room() == 0 || !is_of(&store, pages)? {
            return Ok(Whole::Incomplete);
        }
        let failed = |e| CacheError::io("mark", &store.path_of(DATA), e);
        pages.locked(keep)?.map_err(failed)?;
        // Not under the lock: it may take long, and who answers the kernel may want the lock.
        let data = store
            .file(DATA, false)?
            .ok_or_else(|| failed(Errno::NOENT.into()))?;
        data.sync_all().map_err(failed)?;
        staging::write_file(&self.root, &self.directory, LENT, b"")?;
        let whole = pages.verify_whole(diff_id)?;
        if whole == Whole::Verified {
            staging::write_file(&self.root, &store, CHECKED, boot.as_bytes())?;
        }
        Ok(whole)
    }
}

/// Whether `pages` is what `store` holds, and not what was there before.
fn is_of(store: &Directory, pages: &Pages) -> Result<bool, CacheError> {
    let id = |file: &File| file.metadata().ok().map(|m| (m.dev(), m.ino()));
    let Some(held) = store.file(DATA, false)? else {
        return Ok(false);
    };
    // Both are open, so that neither number can have been used again.
    pages.locked(|own| id(own).is_some() && id(own) == id(&held))
}

/// Says on the file itself, by a bit of its mode that means nothing else there, that it may be lent:
/// from then on nobody punches it, also who has looked for candidates before.
fn keep(data: &File) -> io::Result<()> {
    Ok(rustix::fs::fchmod(
        data,
        Mode::RUSR | Mode::WUSR | Mode::SVTX,
    )?)
}

/// Whether the file may be lent, so that it has to stay as it is; who cannot tell, lets it stay.
pub(super) fn is_kept(data: &File) -> bool {
    let kept = |meta: std::fs::Metadata| meta.mode() & Mode::SVTX.as_raw_mode() != 0;
    data.metadata().map_or(true, kept)
}

/// The same of the file in `store`.
pub(super) fn is_marked(store: &Directory) -> Result<bool, CacheError> {
    let stat = store.stat(DATA)?;
    Ok(stat.is_some_and(|stat| stat.st_mode & Mode::SVTX.as_raw_mode() != 0))
}
