//! The translation itself, one method a request.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};

use crate::blob::ByteRange;
use crate::fs::counters::Request as Counted;
use crate::fs::{Attributes, BLOCK_BYTES, Error, ImageFs};
use crate::fuse::init;
use crate::fuse::pending::PendingRead;
use crate::fuse::push::Pusher;
use crate::layer::Timestamp;
use crate::tree::NodeKind;

/// Answers the kernel from an [`ImageFs`].
#[derive(Debug)]
pub(crate) struct Adapter {
    fs: Arc<ImageFs>,
    pusher: Arc<Pusher>,
}

impl Adapter {
    pub(crate) fn new(fs: Arc<ImageFs>, pusher: Arc<Pusher>) -> Adapter {
        Adapter { fs, pusher }
    }

    fn count(&self, request: Counted) {
        self.fs.counters().count(request);
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        init::negotiate(config, self.fs.content().allows_read_ahead());
        // With it, the kernel asks for the ACL of every inode whose permission it checks.
        if self.fs.has_acls() {
            let _unsupported = config.add_capabilities(InitFlags::FUSE_POSIX_ACL);
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.count(Counted::Lookup);
        match self.fs.lookup(parent.0, name.as_bytes()) {
            Ok(found) => {
                reply.entry(&init::FOR_EVER, &attr(&found), Generation(0));
                if found.kind == NodeKind::Regular {
                    self.pusher.used(&*self.fs, found.ino, ByteRange::new(0, 0));
                }
            }
            Err(Error::NotFound) => reply.entry(&init::FOR_EVER, &negative(), Generation(0)),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.count(Counted::Getattr);
        match self.fs.attributes(ino.0) {
            Ok(found) => reply.attr(&init::FOR_EVER, &attr(&found)),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        self.count(Counted::Readlink);
        match self.fs.readlink(ino.0) {
            Ok(target) => reply.data(target),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.count(Counted::Open);
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.count(Counted::Opendir);
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
        self.count(Counted::Read);
        let pending = PendingRead::new(self.fs.clone(), ino.0, offset, size);
        pending.begin(ino.0, &self.pusher, reply);
        let read = ByteRange::new(offset, offset.saturating_add(size.into()));
        self.pusher.used(&*self.fs, ino.0, read);
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.count(Counted::Readdir);
        let outcome = self.fs.entries(ino.0, offset).and_then(|entries| {
            for entry in entries {
                let entry = entry?;
                let attributes = &entry.attributes;
                let name = OsStr::from_bytes(entry.name);
                if reply.add(
                    INodeNo(attributes.ino),
                    entry.next,
                    kind(attributes.kind),
                    name,
                ) {
                    break;
                }
            }
            Ok(())
        });
        match outcome {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.count(Counted::Readdir);
        let outcome = self.fs.entries(ino.0, offset).and_then(|entries| {
            for entry in entries {
                let entry = entry?;
                let attr = attr(&entry.attributes);
                let name = OsStr::from_bytes(entry.name);
                if reply.add(
                    attr.ino,
                    entry.next,
                    name,
                    &init::FOR_EVER,
                    &attr,
                    Generation(0),
                ) {
                    break;
                }
            }
            Ok(())
        });
        match outcome {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.count(Counted::Statfs);
        let totals = self.fs.totals();
        let bsize = BLOCK_BYTES as u32;
        reply.statfs(totals.blocks, 0, 0, totals.files, 0, bsize, 255, bsize);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.count(Counted::Getxattr);
        // Without a single attribute in the image the kernel need never ask again.
        if !self.fs.has_xattrs() {
            return reply.error(Errno::ENOSYS);
        }
        match self.fs.xattr(ino.0, name.as_bytes()) {
            Ok(value) => reply_sized(value, size, reply),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.count(Counted::Listxattr);
        match self.fs.xattr_names(ino.0) {
            Ok(names) => reply_sized(&names, size, reply),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn access(&self, _: &Request, _: INodeNo, _: fuser::AccessFlags, reply: ReplyEmpty) {
        self.count(Counted::Other);
        // `default_permissions`: the kernel checks by itself and need not ask.
        reply.error(Errno::ENOSYS);
    }

    fn destroy(&mut self) {}
}

fn reply_sized(value: &[u8], size: u32, reply: ReplyXattr) {
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => reply.size(len),
        Ok(len) if len <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}

fn errno(e: Error) -> Errno {
    Errno::from_i32(e.errno().raw_os_error())
}

fn kind(kind: NodeKind) -> FileType {
    match kind {
        NodeKind::Directory => FileType::Directory,
        NodeKind::Regular => FileType::RegularFile,
        NodeKind::Symlink => FileType::Symlink,
        NodeKind::CharDevice => FileType::CharDevice,
        NodeKind::BlockDevice => FileType::BlockDevice,
        NodeKind::Fifo => FileType::NamedPipe,
    }
}

/// Inode 0 with a timeout: the kernel remembers that the name does not exist.
fn negative() -> FileAttr {
    attr(&Attributes {
        ino: 0,
        kind: NodeKind::Regular,
        mode: 0,
        uid: 0,
        gid: 0,
        size: 0,
        blocks: 0,
        nlink: 0,
        rdev: (0, 0),
        mtime: Timestamp::default(),
    })
}

fn attr(a: &Attributes) -> FileAttr {
    let time = system_time(a.mtime);
    FileAttr {
        ino: INodeNo(a.ino),
        size: a.size,
        blocks: a.blocks,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: UNIX_EPOCH,
        kind: kind(a.kind),
        perm: (a.mode & 0o7777) as u16,
        nlink: a.nlink,
        uid: a.uid,
        gid: a.gid,
        rdev: encode_rdev(a.rdev),
        blksize: BLOCK_BYTES as u32,
        flags: 0,
    }
}

/// The kernel's 32-bit device encoding (`new_encode_dev`): 12 bits major, 20 bits minor.
fn encode_rdev((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

fn system_time(t: Timestamp) -> SystemTime {
    let seconds = Duration::from_secs(t.seconds.unsigned_abs());
    let whole = if t.seconds < 0 {
        UNIX_EPOCH.checked_sub(seconds)
    } else {
        UNIX_EPOCH.checked_add(seconds)
    };
    whole
        .and_then(|w| w.checked_add(Duration::from_nanos(t.nanoseconds.into())))
        .unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_packed_as_the_kernel_does() {
        assert_eq!(encode_rdev((1, 3)), 0x103);
        assert_eq!(encode_rdev((0x123, 0x4_5678)), 0x4561_2378);
    }

    #[test]
    fn times_before_1970_keep_their_fraction() {
        let t = system_time(Timestamp {
            seconds: -2,
            nanoseconds: 250_000_000,
        });
        assert_eq!(
            UNIX_EPOCH.duration_since(t).unwrap(),
            Duration::from_millis(1750)
        );
    }
}
