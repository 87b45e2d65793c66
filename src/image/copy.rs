//! Copies of files and directories of an image onto this machine.
//!
//! The image's names are hostile input: below the destination nothing is opened through a symbolic
//! link, each file appears under its name when it is whole, and set-id bits, owners and devices are
//! given only when they were asked for (`archive`).

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use rustix::io::Errno;

use crate::image::error::Error;
use crate::image::view::{FileSink, View};
use crate::tree::{Ino, Node, NodeKind};

const OPEN_DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// What a copy keeps besides contents, permissions and modification times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Keep {
    /// Owners, set-id bits, extended attributes and devices.
    pub archive: bool,
}

/// What was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Copied {
    /// Names that were made.
    pub names: u64,
    /// Bytes of regular files, holes included.
    pub bytes: u64,
    /// Devices that were left out.
    pub devices: u64,
}

/// Copies `ino`, which the image calls `name`, to `to`, as `docker cp` does: into `to` when that is a
/// directory, else as `to`. With `contents`, what is in the directory `ino` goes into `to`.
pub fn copy(
    view: &View,
    (ino, name): (Ino, &[u8]),
    to: &Path,
    contents: bool,
    keep: Keep,
) -> Result<Copied, Error> {
    let node = view.node(ino)?;
    let is_directory = node.kind == NodeKind::Directory;
    let (parent, base) = destination(to, name, is_directory, contents)?;
    let steps = view.walk(ino);
    view.bring(steps.iter().map(|step| step.ino))?;
    let flags = OPEN_DIRECTORY.difference(OFlags::NOFOLLOW);
    let root =
        rustix::fs::open(&parent, flags, Mode::empty()).map_err(|e| Error::file(&parent, e))?;
    let mut copier = Copier {
        view,
        keep,
        base: &base,
        root,
        parent: &parent,
        open: Vec::new(),
        first_names: HashMap::new(),
        copied: Copied::default(),
    };
    for step in &steps {
        copier.step(step.ino, &step.path)?;
    }
    copier.close_to(0)?;
    Ok(copier.copied)
}

/// The directory in which to make a name, and the name; no name when the directory is `to` itself.
fn destination(
    to: &Path,
    name: &[u8],
    is_directory: bool,
    contents: bool,
) -> Result<(PathBuf, Option<Vec<u8>>), Error> {
    let refuse = |what: &str| {
        let (path, what) = (to.to_owned(), what.to_owned());
        Err(Error::File { path, what })
    };
    let metadata = std::fs::metadata(to);
    match metadata {
        Ok(found) if found.is_dir() => {
            let inside = (!contents && !name.is_empty()).then(|| name.to_vec());
            Ok((to.to_owned(), inside))
        }
        Ok(_) if is_directory => {
            refuse("exists and is no directory, so a directory cannot go there")
        }
        Err(e) if e.kind() != io::ErrorKind::NotFound => refuse(&e.to_string()),
        Err(_) if !is_directory && to.as_os_str().as_bytes().ends_with(b"/") => {
            refuse("no such directory")
        }
        _ => {
            let Some(base) = to.file_name() else {
                return refuse("is no name that a copy could have");
            };
            let parent = to.parent().filter(|p| !p.as_os_str().is_empty());
            let parent = parent.unwrap_or(Path::new(".")).to_owned();
            Ok((parent, Some(base.as_bytes().to_vec())))
        }
    }
}

/// A directory whose copy is being filled.
struct Open {
    /// Its path below where the copy began.
    path: Vec<u8>,
    fd: OwnedFd,
    ino: Ino,
    /// Whether it was made here: one that was there keeps its own attributes.
    made: bool,
}

struct Copier<'a> {
    view: &'a View,
    keep: Keep,
    /// The name of what is copied; `None` when its contents go into `root`.
    base: &'a Option<Vec<u8>>,
    /// The open directory in which it is made.
    root: OwnedFd,
    parent: &'a Path,
    /// From the outermost to the innermost.
    open: Vec<Open>,
    /// Where a file of several names has its first one.
    first_names: HashMap<Ino, Vec<u8>>,
    copied: Copied,
}

impl Copier<'_> {
    fn step(&mut self, ino: Ino, path: &[u8]) -> Result<(), Error> {
        let view = self.view;
        let node = view.node(ino)?;
        let target = self.target(path);
        let depth = self.depth_of(path);
        self.close_to(depth)?;
        let name = target.rsplit(|b| *b == b'/').next().unwrap_or_default();
        if node.kind == NodeKind::Directory {
            let opened = self.directory(name, ino, path);
            return opened.map_err(|e| self.failed(&target, e));
        }
        let made = match self.first_names.get(&ino) {
            Some(first) if node.nlink > 1 => self.link(first, name),
            _ => self.node(ino, &node, name),
        };
        match made {
            Ok(true) => {
                self.copied.names += 1;
                if node.nlink > 1 {
                    self.first_names.entry(ino).or_insert(target);
                }
                Ok(())
            }
            Ok(false) => {
                self.copied.devices += 1;
                Ok(())
            }
            Err(Made::Source(error)) => Err(error),
            Err(Made::Target(error)) => Err(self.failed(&target, error)),
        }
    }

    /// The path below `root`.
    fn target(&self, path: &[u8]) -> Vec<u8> {
        match (self.base, path.is_empty()) {
            (None, _) => path.to_vec(),
            (Some(base), true) => base.clone(),
            (Some(base), false) => super::list::joined(base, path),
        }
    }

    /// How many of the open directories are above `path`.
    fn depth_of(&self, path: &[u8]) -> usize {
        let above = |open: &Open| match open.path.is_empty() {
            true => !path.is_empty(),
            false => path
                .strip_prefix(&open.path[..])
                .is_some_and(|r| r.starts_with(b"/")),
        };
        self.open.iter().take_while(|open| above(open)).count()
    }

    fn current(&self) -> &OwnedFd {
        self.open.last().map_or(&self.root, |open| &open.fd)
    }

    fn directory(&mut self, name: &[u8], ino: Ino, path: &[u8]) -> io::Result<()> {
        let (fd, made) = if name.is_empty() {
            (self.root.try_clone()?, false)
        } else {
            let made = match rustix::fs::mkdirat(self.current(), name, Mode::RWXU) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(e) => return Err(e.into()),
            };
            let fd = rustix::fs::openat(self.current(), name, OPEN_DIRECTORY, Mode::empty());
            (fd?, made)
        };
        self.copied.names += u64::from(made);
        let path = path.to_vec();
        self.open.push(Open {
            path,
            fd,
            ino,
            made,
        });
        Ok(())
    }

    /// Gives finished directories their attributes: what was made in them has changed their times,
    /// and what they may forbid had to be possible.
    fn close_to(&mut self, depth: usize) -> Result<(), Error> {
        while self.open.len() > depth {
            let Some(open) = self.open.pop() else { break };
            if !open.made {
                continue;
            }
            let node = self.view.node(open.ino)?;
            let finished = self.finish(&open.fd, open.ino, &node);
            finished.map_err(|e| self.failed(&self.target(&open.path), e))?;
        }
        Ok(())
    }

    /// Makes anything but a directory under another name, and gives it its own; false for a device
    /// that may not be made.
    fn node(&self, ino: Ino, node: &Node, name: &[u8]) -> Result<bool, Made> {
        let partial = format!(".rsmount-{}-{:08x}", std::process::id(), fastrand::u32(..));
        let partial = partial.as_bytes();
        let made = self.make(ino, node, partial);
        if !matches!(made, Ok(true)) {
            let _nothing_there = rustix::fs::unlinkat(self.current(), partial, AtFlags::empty());
            return made;
        }
        let placed = rustix::fs::renameat(self.current(), partial, self.current(), name);
        if placed.is_err() {
            let _left = rustix::fs::unlinkat(self.current(), partial, AtFlags::empty());
        }
        placed?;
        Ok(true)
    }

    fn make(&self, ino: Ino, node: &Node, name: &[u8]) -> Result<bool, Made> {
        let at = self.current();
        match node.kind {
            NodeKind::Regular => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let fd = rustix::fs::openat(at, name, flags, Mode::RUSR | Mode::WUSR)?;
                let mut file = SparseFile {
                    file: File::from(fd),
                    at: 0,
                };
                self.view.read(ino, &mut file).map_err(Made::Source)?;
                file.file.set_len(file.at)?;
                self.finish(&OwnedFd::from(file.file), ino, node)?;
                return Ok(true);
            }
            NodeKind::Symlink => {
                let target = self.view.tree().symlink_target(ino).unwrap_or_default();
                rustix::fs::symlinkat(OsStr::from_bytes(target), at, name)?;
            }
            NodeKind::Fifo => {
                let kind = rustix::fs::FileType::Fifo;
                rustix::fs::mknodat(at, name, kind, Mode::RUSR | Mode::WUSR, 0)?;
            }
            NodeKind::CharDevice | NodeKind::BlockDevice => {
                let kind = match node.kind {
                    NodeKind::CharDevice => rustix::fs::FileType::CharacterDevice,
                    _ => rustix::fs::FileType::BlockDevice,
                };
                if !self.keep.archive {
                    return Ok(false);
                }
                let device = rustix::fs::makedev(node.rdev.0, node.rdev.1);
                match rustix::fs::mknodat(at, name, kind, Mode::RUSR | Mode::WUSR, device) {
                    Err(Errno::PERM) => return Ok(false),
                    made => made?,
                }
            }
            NodeKind::Directory => return Ok(false),
        }
        self.finish_by_name(ino, node, name)?;
        Ok(true)
    }

    /// Owner first: changing it takes set-id bits away.
    fn finish(&self, fd: &OwnedFd, ino: Ino, node: &Node) -> io::Result<()> {
        if self.keep.archive {
            let (uid, gid) = owner(node);
            rustix::fs::fchown(fd, Some(uid), Some(gid))?;
            for xattr in self.view.tree().visible_xattrs(ino) {
                let flags = rustix::fs::XattrFlags::empty();
                rustix::fs::fsetxattr(fd, &*xattr.name, &xattr.value, flags)?;
            }
        }
        rustix::fs::fchmod(fd, self.mode(node))?;
        Ok(rustix::fs::futimens(fd, &times(node))?)
    }

    fn finish_by_name(&self, ino: Ino, node: &Node, name: &[u8]) -> io::Result<()> {
        let (at, itself) = (self.current(), AtFlags::SYMLINK_NOFOLLOW);
        if self.keep.archive {
            let (uid, gid) = owner(node);
            rustix::fs::chownat(at, name, Some(uid), Some(gid), itself)?;
            // There is no way to set an attribute relative to a directory; this name is one.
            let path = PathBuf::from(format!("/proc/self/fd/{}", at.as_raw_fd()));
            let path = path.join(OsStr::from_bytes(name));
            for xattr in self.view.tree().visible_xattrs(ino) {
                let flags = rustix::fs::XattrFlags::empty();
                rustix::fs::lsetxattr(&path, &*xattr.name, &xattr.value, flags)?;
            }
        }
        if node.kind != NodeKind::Symlink {
            rustix::fs::chmodat(at, name, self.mode(node), AtFlags::empty())?;
        }
        Ok(rustix::fs::utimensat(at, name, &times(node), itself)?)
    }

    fn mode(&self, node: &Node) -> Mode {
        let kept = if self.keep.archive { 0o7777 } else { 0o777 };
        Mode::from_raw_mode(node.mode & kept)
    }

    /// Another name for what was copied as `first`, found again without following links.
    fn link(&self, first: &[u8], name: &[u8]) -> Result<bool, Made> {
        let cut = first.iter().rposition(|b| *b == b'/');
        let (directory, file) = match cut {
            Some(cut) => (&first[..cut], &first[cut + 1..]),
            None => (&b"."[..], first),
        };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat2(&self.root, directory, flags, Mode::empty(), resolve)?;
        match rustix::fs::unlinkat(self.current(), name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
        rustix::fs::linkat(&directory, file, self.current(), name, AtFlags::empty())?;
        Ok(true)
    }

    fn failed(&self, target: &[u8], error: impl Into<io::Error>) -> Error {
        let path = self.parent.join(OsStr::from_bytes(target));
        Error::file(&path, error)
    }
}

fn owner(node: &Node) -> (rustix::fs::Uid, rustix::fs::Gid) {
    (
        rustix::fs::Uid::from_raw(node.uid),
        rustix::fs::Gid::from_raw(node.gid),
    )
}

fn times(node: &Node) -> Timestamps {
    let time = Timespec {
        tv_sec: node.mtime.seconds,
        tv_nsec: i64::from(node.mtime.nanoseconds),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// Whose fault it is that something was not made.
enum Made {
    /// The image's bytes could not be had.
    Source(Error),
    /// The destination refused.
    Target(io::Error),
}

impl From<Errno> for Made {
    fn from(error: Errno) -> Made {
        Made::Target(error.into())
    }
}

impl From<io::Error> for Made {
    fn from(error: io::Error) -> Made {
        Made::Target(error)
    }
}

/// A file in which what is skipped stays a hole.
struct SparseFile {
    file: File,
    at: u64,
}

impl FileSink for SparseFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.at)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn skip(&mut self, zeros: u64) -> io::Result<()> {
        self.at += zeros;
        Ok(())
    }
}
