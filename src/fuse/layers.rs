//! The kernel engine's side: a directory with a file for each layer, named by its number. EROFS opens
//! them when it is mounted, so LOOKUP and GETATTR come once, and READ is all that comes later.

use std::ffi::OsStr;
use std::io;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen, Request,
};

use crate::blob::ByteRange;
use crate::fs::LayerFiles;
use crate::fs::counters::Request as Counted;
use crate::fuse::init;
use crate::fuse::pending::PendingRead;
use crate::fuse::push::Pusher;

/// Inode number of the directory (`FUSE_ROOT_ID`).
pub(super) const ROOT: u64 = 1;
/// Inode number of file 0; the others follow.
pub(super) const FIRST: u64 = 2;

/// Answers the kernel from [`LayerFiles`].
#[derive(Debug)]
pub(crate) struct Layers {
    files: Arc<LayerFiles>,
    pusher: Arc<Pusher>,
}

impl Layers {
    pub(crate) fn new(files: Arc<LayerFiles>, pusher: Arc<Pusher>) -> Layers {
        Layers { files, pusher }
    }

    fn attr(&self, ino: u64) -> Option<FileAttr> {
        if ino == ROOT {
            return Some(directory());
        }
        let n = u32::try_from(ino.checked_sub(FIRST)?).ok()?;
        Some(file(ino, self.files.bytes(n)?))
    }
}

impl Filesystem for Layers {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        init::negotiate(config, self.files.image().content().allows_read_ahead());
        Ok(())
    }

    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.files.image().counters().count(Counted::Lookup);
        match number(name).and_then(|n| self.attr(n)) {
            Some(attr) => {
                reply.entry(&init::FOR_EVER, &attr, Generation(0));
                self.pusher
                    .used(&*self.files, attr.ino.0, ByteRange::new(0, 0));
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.files.image().counters().count(Counted::Getattr);
        match self.attr(ino.0) {
            Some(attr) => reply.attr(&init::FOR_EVER, &attr),
            None => reply.error(Errno::ESTALE),
        }
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.files.image().counters().count(Counted::Open);
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
        self.files.image().counters().count(Counted::Read);
        let Some(n) = ino.0.checked_sub(FIRST) else {
            return reply.error(Errno::EISDIR);
        };
        let pending = PendingRead::new(self.files.clone(), n, offset, size);
        pending.begin(ino.0, &self.pusher, reply);
        let read = ByteRange::new(offset, offset.saturating_add(size.into()));
        self.pusher.used(&*self.files, ino.0, read);
    }
}

/// The inode number of the file with this name.
pub(super) fn number(name: &OsStr) -> Option<u64> {
    let n: u32 = name.to_str()?.parse().ok()?;
    Some(u64::from(n) + FIRST)
}

pub(super) fn directory() -> FileAttr {
    attr(ROOT, FileType::Directory, 0)
}

/// Nobody but root has a business here; EROFS reads on behalf of whom the tree lets in.
pub(super) fn file(ino: u64, bytes: u64) -> FileAttr {
    attr(ino, FileType::RegularFile, bytes)
}

fn attr(ino: u64, kind: FileType, size: u64) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: size.div_ceil(512),
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: if kind == FileType::Directory {
            0o500
        } else {
            0o400
        },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}
