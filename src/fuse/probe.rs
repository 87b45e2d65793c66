//! Two files for a test of the kernel: file 0 is answered as it should be, file 1 with half of what
//! was asked for.

use std::ffi::OsStr;

use fuser::{
    Errno, FileAttr, FileHandle, Filesystem, Generation, INodeNo, LockOwner, OpenFlags, ReplyAttr,
    ReplyData, ReplyEntry, ReplyOpen, Request,
};

use crate::fuse::init::FOR_EVER;
use crate::fuse::layers::{FIRST, ROOT, directory, file, number};

/// Length of each file in bytes.
pub const PROBE_BYTES: u64 = 16 << 10;
/// What every byte of them is.
pub const PROBE_BYTE: u8 = 0x5a;

/// Answers one file rightly and one short.
#[derive(Debug)]
pub(crate) struct Probe;

fn attr(ino: u64) -> Option<FileAttr> {
    match ino.checked_sub(FIRST) {
        Some(0 | 1) => Some(file(ino, PROBE_BYTES)),
        _ => (ino == ROOT).then(directory),
    }
}

impl Filesystem for Probe {
    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match number(name).and_then(attr) {
            Some(attr) => reply.entry(&FOR_EVER, &attr, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match attr(ino.0) {
            Some(attr) => reply.attr(&FOR_EVER, &attr),
            None => reply.error(Errno::ESTALE),
        }
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let whole = PROBE_BYTES.saturating_sub(offset).min(u64::from(size));
        let answered = if ino.0 == FIRST { whole } else { whole / 2 };
        reply.data(&vec![PROBE_BYTE; answered as usize]);
    }
}
