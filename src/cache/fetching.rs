//! Who fetches what: one process of those that share a store. The right to fetch some pages is a
//! record lock (fcntl, of the open file description) on the bytes of `present` whose numbers are
//! those of the pages: it says nothing about these bytes, and ends with the process.

use std::sync::Arc;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::pages::{PAGE_BYTES, Pages};
use crate::blob::ByteRange;

/// The right to fetch some pages, until it is dropped.
#[derive(Debug)]
pub struct FetchRight {
    pages: Arc<Pages>,
    start: u64,
    len: u64,
}

impl Pages {
    /// Takes the right to fetch the pages of `range`, unless another store of the same layer, in this
    /// process or in another, has that of one of them. A file system without such locks refuses
    /// nobody.
    pub fn try_fetch(self: &Arc<Self>, range: ByteRange) -> Option<FetchRight> {
        let start = range.start() / PAGE_BYTES;
        let len = range.end().div_ceil(PAGE_BYTES).saturating_sub(start);
        // Length 0 would be everything from there on.
        let len = len.max(1);
        match lock(self, start, len, libc::F_WRLCK) {
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => None,
            _ => Some(FetchRight {
                pages: self.clone(),
                start,
                len,
            }),
        }
    }
}

fn lock(pages: &Pages, start: u64, len: u64, kind: libc::c_int) -> nix::Result<libc::c_int> {
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: libc::off_t::try_from(start).unwrap_or(libc::off_t::MAX),
        l_len: libc::off_t::try_from(len).unwrap_or(0),
        l_pid: 0,
    };
    fcntl(&pages.present, FcntlArg::F_OFD_SETLK(&lock))
}

impl Drop for FetchRight {
    fn drop(&mut self) {
        // What cannot be unlocked is unlocked when the file is closed.
        let _ = lock(&self.pages, self.start, self.len, libc::F_UNLCK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Begin, Cache};
    use crate::oci::Digest;

    #[test]
    fn one_store_has_the_right_at_a_time() {
        let place = tempfile::tempdir().unwrap();
        let cache = Cache::open(&place.path().join("cache")).unwrap();
        let blob = Digest::of(b"blob");
        let Begin::New(mut new) = cache.begin(&blob, 0).unwrap() else {
            panic!("known already");
        };
        new.write(&[1; 10 * PAGE_BYTES as usize]).unwrap();
        let stored = new.commit(b"index").unwrap();
        let (one, two) = (
            Arc::new(stored.pages().unwrap()),
            Arc::new(stored.pages().unwrap()),
        );
        let first = ByteRange::new(100, 5000);
        let second = ByteRange::new(2 * PAGE_BYTES, 9 * PAGE_BYTES);
        let right = one.try_fetch(first).unwrap();
        assert!(two.try_fetch(ByteRange::new(0, 1)).is_none());
        assert!(two.try_fetch(first).is_none());
        let other = two.try_fetch(second).unwrap();
        assert!(one.try_fetch(second).is_none());
        drop(right);
        // A refusal has not taken away what others have.
        assert!(one.try_fetch(second).is_none());
        let right = two.try_fetch(first).unwrap();
        assert!(one.try_fetch(first).is_none());
        drop((other, right));
        assert!(one.try_fetch(ByteRange::new(0, 10 * PAGE_BYTES)).is_some());
    }
}
