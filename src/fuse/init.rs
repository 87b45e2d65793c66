//! What is agreed with the kernel when a session begins, and holds for every file system here.

use std::time::Duration;

use fuser::{InitFlags, KernelConfig};

/// Entries and attributes never change. The kernel computes in jiffies: a very large number of
/// seconds means "for ever" without an overflow.
pub(super) const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

/// A waiting fetch holds its background slot, so there must be as many slots as readers.
const BACKGROUND_MAX: u16 = u16::MAX;

/// Read-ahead while bytes are absent: every page that nobody asked for may cost a range request.
const READAHEAD_LAZY_BYTES: u32 = 16 << 10;

/// Read-ahead once all bytes are local. The kernel caps what it is asked for at INIT.
const READAHEAD_LOCAL_BYTES: u32 = 1 << 20;

/// Asks for all that saves round trips: a kernel without one of them still works.
pub(super) fn negotiate(config: &mut KernelConfig, reads_ahead: bool) {
    for wanted in [
        InitFlags::FUSE_ASYNC_READ,
        InitFlags::FUSE_PARALLEL_DIROPS,
        InitFlags::FUSE_DO_READDIRPLUS,
        InitFlags::FUSE_CACHE_SYMLINKS,
        InitFlags::FUSE_NO_OPEN_SUPPORT,
        InitFlags::FUSE_NO_OPENDIR_SUPPORT,
        InitFlags::FUSE_EXPLICIT_INVAL_DATA,
    ] {
        if let Err(missing) = config.add_capabilities(wanted) {
            tracing::debug!(?missing, "this kernel lacks a FUSE capability");
        }
    }
    let _at_least_one = config.set_max_background(BACKGROUND_MAX);
    let _at_least_one = config.set_congestion_threshold(BACKGROUND_MAX / 4 * 3);
    let readahead = if reads_ahead {
        READAHEAD_LOCAL_BYTES
    } else {
        READAHEAD_LAZY_BYTES
    };
    if let Err(most) = config.set_max_readahead(readahead) {
        let _smaller = config.set_max_readahead(most);
    }
}
