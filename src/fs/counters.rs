//! Counts of what was asked. A request that the kernel answers itself never arrives here, so
//! these numbers show what the kernel's caches leave over.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// One count for each kind of request.
#[derive(Debug, Default)]
pub struct Counters {
    requests: [AtomicU64; Request::ALL.len()],
    read_bytes: AtomicU64,
    pushed_bytes: AtomicU64,
    usable: OnceLock<Instant>,
    first_byte: OnceLock<Instant>,
}

/// Kinds of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Request {
    /// LOOKUP.
    Lookup,
    /// GETATTR.
    Getattr,
    /// READLINK.
    Readlink,
    /// OPEN (answered once per mount).
    Open,
    /// READ.
    Read,
    /// OPENDIR (answered once per mount).
    Opendir,
    /// READDIR and READDIRPLUS.
    Readdir,
    /// GETXATTR.
    Getxattr,
    /// LISTXATTR.
    Listxattr,
    /// STATFS.
    Statfs,
    /// Anything else.
    Other,
}

impl Request {
    const ALL: [Request; 11] = [
        Request::Lookup,
        Request::Getattr,
        Request::Readlink,
        Request::Open,
        Request::Read,
        Request::Opendir,
        Request::Readdir,
        Request::Getxattr,
        Request::Listxattr,
        Request::Statfs,
        Request::Other,
    ];
}

/// The counts at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    missing_docs,
    reason = "each field is the count of the FUSE request of that name"
)]
pub struct Requests {
    pub lookup: u64,
    pub getattr: u64,
    pub readlink: u64,
    pub open: u64,
    pub read: u64,
    pub opendir: u64,
    pub readdir: u64,
    pub getxattr: u64,
    pub listxattr: u64,
    pub statfs: u64,
    pub other: u64,
}

impl Counters {
    /// One more of `request`.
    pub fn count(&self, request: Request) {
        self.requests[request as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// `bytes` more were read.
    pub fn count_read_bytes(&self, bytes: u64) {
        let before = self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before == 0 && bytes > 0 {
            self.first_byte.get_or_init(Instant::now);
        }
    }

    /// `bytes` more were given to the kernel before anybody asked.
    pub fn count_pushed_bytes(&self, bytes: u64) {
        self.pushed_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes given to the kernel before anybody asked.
    pub fn pushed_bytes(&self) -> u64 {
        self.pushed_bytes.load(Ordering::Relaxed)
    }

    /// The file system can be used from now on.
    pub fn is_usable(&self) {
        self.usable.get_or_init(Instant::now);
    }

    /// How long it took from when the file system could be used until the first bytes of a file were
    /// handed to a reader; `None` before that.
    pub fn first_byte(&self) -> Option<Duration> {
        let (usable, first) = (self.usable.get()?, self.first_byte.get()?);
        Some(first.saturating_duration_since(*usable))
    }

    /// Bytes handed to readers so far.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Ordering::Relaxed)
    }

    /// All counts.
    pub fn requests(&self) -> Requests {
        let of = |r: Request| self.requests[r as usize].load(Ordering::Relaxed);
        Requests {
            lookup: of(Request::Lookup),
            getattr: of(Request::Getattr),
            readlink: of(Request::Readlink),
            open: of(Request::Open),
            read: of(Request::Read),
            opendir: of(Request::Opendir),
            readdir: of(Request::Readdir),
            getxattr: of(Request::Getxattr),
            listxattr: of(Request::Listxattr),
            statfs: of(Request::Statfs),
            other: of(Request::Other),
        }
    }
}
