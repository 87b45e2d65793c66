//! Counts of what was asked. A request that the kernel answers itself never arrives here, so
//! these numbers show what the kernel's caches leave over.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// One count for each kind of request.
#[derive(Debug, Default)]
pub struct Counters([AtomicU64; Request::ALL.len()], AtomicU64);

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
        self.0[request as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// `bytes` more were read.
    pub fn count_read_bytes(&self, bytes: u64) {
        self.1.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes handed to readers so far.
    pub fn read_bytes(&self) -> u64 {
        self.1.load(Ordering::Relaxed)
    }

    /// All counts.
    pub fn requests(&self) -> Requests {
        let of = |r: Request| self.0[r as usize].load(Ordering::Relaxed);
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
