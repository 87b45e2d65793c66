//! Advisory locks between processes (flock): they end with the process, however it ends.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

/// A held lock; dropping it unlocks, because the description that holds it is closed.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "held, never used")] File);

impl Lock {
    /// Waits for the lock on `file`, shared or exclusive.
    pub(super) fn wait(file: File, exclusive: bool) -> rustix::io::Result<Lock> {
        let operation = match exclusive {
            true => FlockOperation::LockExclusive,
            false => FlockOperation::LockShared,
        };
        rustix::io::retry_on_intr(|| rustix::fs::flock(&file, operation))?;
        Ok(Lock(file))
    }

    /// The exclusive lock on `file`, if nobody holds it.
    pub(super) fn attempt(file: File) -> rustix::io::Result<Option<Lock>> {
        Ok(try_exclusive(&file)?.then_some(Lock(file)))
    }
}

/// Takes the exclusive lock on whatever `fd` is, if nobody holds it.
pub(super) fn try_exclusive(fd: impl AsFd) -> rustix::io::Result<bool> {
    match rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Takes a shared lock on whatever `fd` is, for as long as it is open.
pub(super) fn shared(fd: impl AsFd) -> rustix::io::Result<()> {
    rustix::io::retry_on_intr(|| rustix::fs::flock(&fd, FlockOperation::LockShared))
}

/// An exclusive lock on a description that stays open afterwards.
#[derive(Debug)]
pub(super) struct Borrowed<'a>(BorrowedFd<'a>);

impl<'a> Borrowed<'a> {
    /// Waits for the lock.
    pub(super) fn wait(fd: &'a impl AsFd) -> rustix::io::Result<Borrowed<'a>> {
        let fd = fd.as_fd();
        rustix::io::retry_on_intr(|| rustix::fs::flock(fd, FlockOperation::LockExclusive))?;
        Ok(Borrowed(fd))
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        // Unlocking a valid descriptor cannot fail; if it did, closing it would unlock.
        let _ = rustix::fs::flock(self.0, FlockOperation::Unlock);
    }
}
