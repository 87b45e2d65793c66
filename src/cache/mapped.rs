//! A file that is never changed once it has its name, as memory.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags};

/// The beginning of a file. A read of a part that the file does not have any more ends the process
/// (SIGBUS).
#[derive(Debug)]
pub struct Mapped {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is only ever read, and belongs to nobody but this.
#[allow(unsafe_code)]
unsafe impl Send for Mapped {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Mapped {}

impl Mapped {
    /// The first `bytes` bytes of `file`, which must be as many at least.
    #[allow(unsafe_code)]
    pub(super) fn new(file: &File, bytes: u64) -> io::Result<Mapped> {
        let too_long = |_| io::Error::from(io::ErrorKind::FileTooLarge);
        let len = usize::try_from(bytes).map_err(too_long)?;
        if len == 0 {
            return Ok(Mapped {
                start: NonNull::dangling(),
                len,
            });
        }
        let (read, shared) = (ProtFlags::READ, MapFlags::SHARED);
        // SAFETY: a new mapping at a place that the kernel chooses; it takes nothing from anybody.
        let start = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, read, shared, file, 0) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Mapped { start, len })
    }
}

impl Deref for Mapped {
    type Target = [u8];

    #[allow(unsafe_code)]
    fn deref(&self) -> &[u8] {
        // SAFETY: `len` bytes from `start` are mapped and readable as long as `self` lives. Files
        // with a name in the cache are not written again, so nobody changes what is borrowed.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Mapped {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: what `new` has mapped, and nobody borrows it any more.
            let _cannot_fail = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
        }
    }
}
