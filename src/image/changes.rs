//! What a container has changed: an upper directory read against the image below it.
//!
//! The walk is in the order of the names, directories before what is in them, and holds one open
//! directory a level. Nothing is followed, nothing is looked up by path: the container may still be
//! writing.

mod dialect;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use serde::Serialize;

use crate::image::compare::Kind;
use crate::layer::LayerPath;
use crate::mount::privilege;
use crate::mount::upper::Dialect;
use crate::tree::{Ino, NodeKind, Tree};
use dialect::{Marks, Name, Shape, Xattrs};

/// Longest list of names, and longest value, of extended attributes (`XATTR_LIST_MAX`,
/// `XATTR_SIZE_MAX` in linux/limits.h).
const XATTR_BYTES_MAX: usize = 64 << 10;

/// Why changes cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ChangesError {
    /// A file means something only together with the image's bytes.
    #[error(
        "{path}: it was moved or copied by reference to the image ({mark}), which no layer can \
         say; copy it to another name in the container and remove the first"
    )]
    Depends {
        /// In the container.
        path: LayerPath,
        /// The mark.
        mark: String,
    },
    /// A file whose name means something else in a layer.
    #[error("{0}: a layer cannot hold names that begin with `.wh.`; rename it in the container")]
    Reserved(LayerPath),
    /// Something that no layer can hold.
    #[error("{0}: its name is too long or too deep for a layer")]
    Path(String),
    /// The marks are root's.
    #[error("{}: the changes were made as root and can be read by root only", .0.display())]
    NeedsRoot(PathBuf),
    /// A file changed while it was read.
    #[error("{0}: changed while it was read; stop what writes to it, and try again")]
    Moving(LayerPath),
    /// Anything else.
    #[error("{path}: {source}")]
    Io {
        /// In the container.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What there is now.
#[derive(Debug)]
pub(crate) struct Present {
    pub(crate) stat: Stat,
    /// Without the overlay's own.
    pub(crate) xattrs: Xattrs,
    /// A directory that hides one of the image.
    pub(crate) opaque: bool,
    /// Of a symbolic link.
    pub(crate) target: Vec<u8>,
}

/// What happened to one path.
#[derive(Debug)]
pub(crate) enum What {
    /// It is gone, with all that was below it.
    Deleted,
    /// It is new or another one.
    Present(Box<Present>),
}

/// One path that was changed.
pub(crate) struct Change<'a> {
    pub(crate) path: &'a LayerPath,
    pub(crate) what: What,
    /// What the image has there.
    pub(crate) below: Option<Ino>,
    /// The directory that holds it; of the root the root itself.
    dir: BorrowedFd<'a>,
    name: &'a [u8],
}

impl Change<'_> {
    /// Opens a regular file to read it.
    pub(crate) fn open(&self) -> Result<OwnedFd, ChangesError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        rustix::fs::openat(self.dir, self.name, flags, Mode::empty()).map_err(|e| match e {
            Errno::NOENT | Errno::LOOP => ChangesError::Moving(self.path.clone()),
            e => io_at(self.path, e),
        })
    }
}

/// The upper directory of a container.
#[derive(Debug)]
pub(crate) struct Upper<'a> {
    /// `DIR/upper`.
    pub(crate) dir: &'a Path,
    pub(crate) dialect: Dialect,
    /// What is below.
    pub(crate) tree: &'a Tree,
    /// Where a container's runtime had to make something, to mount something else over it: no change as
    /// long as it is empty.
    pub(crate) stubs: &'a BTreeSet<LayerPath>,
}

/// A directory that is being walked.
struct Open {
    fd: Rc<OwnedFd>,
    path: LayerPath,
    /// The image's directory at the same place, unless it is hidden.
    below: Option<Ino>,
    /// Names still to come, last one first.
    names: Vec<Vec<u8>>,
}

impl Upper<'_> {
    /// Calls `visit` with each change; of the root first, if there is any change at all.
    pub(crate) fn walk<E: From<ChangesError>>(
        &self,
        visit: &mut dyn FnMut(&Change<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let root = LayerPath::root();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(self.dir, flags, Mode::empty()).map_err(|e| io_at(&root, e))?;
        if self.dialect == Dialect::Trusted && !reads_trusted() {
            return Err(ChangesError::NeedsRoot(self.dir.to_owned()).into());
        }
        let (mut change, opened) = self.look(&fd, b".", &root, Some(Ino::ROOT))?;
        let Some(opened) = opened.filter(|open| !open.names.is_empty()) else {
            return Ok(());
        };
        // Nothing is below the root of the image that it could hide.
        if let What::Present(present) = &mut change.what {
            present.opaque = false;
        }
        visit(&change)?;
        let mut stack = vec![opened];
        while let Some(top) = stack.last_mut() {
            let Some(name) = top.names.pop() else {
                stack.pop();
                continue;
            };
            let (fd, below) = (top.fd.clone(), top.below);
            let found = child(&top.path, &name)?;
            let below = below.and_then(|dir| self.tree.lookup(dir, self.own_name(&name)));
            let path = match dialect::name(self.dialect, &name) {
                Name::Whiteout(deleted) => child(&top.path, deleted)?,
                _ => found,
            };
            let (change, opened) = self.look(&fd, &name, &path, below)?;
            if self.is_stub(&change, opened.as_ref()) {
                continue;
            }
            visit(&change)?;
            stack.extend(opened);
        }
        Ok(())
    }

    fn is_stub(&self, change: &Change<'_>, opened: Option<&Open>) -> bool {
        let What::Present(present) = &change.what else {
            return false;
        };
        let is_empty = match opened {
            Some(open) => open.names.is_empty(),
            None => shape(&present.stat).is_empty_file,
        };
        is_empty && change.below.is_none() && self.stubs.contains(change.path)
    }

    /// The name that a name in the upper directory is about.
    fn own_name<'n>(&self, name: &'n [u8]) -> &'n [u8] {
        match dialect::name(self.dialect, name) {
            Name::Whiteout(deleted) => deleted,
            _ => name,
        }
    }

    /// Looks at one name, and opens it if it is a directory.
    fn look<'a>(
        &self,
        dir: &'a OwnedFd,
        name: &'a [u8],
        path: &'a LayerPath,
        below: Option<Ino>,
    ) -> Result<(Change<'a>, Option<Open>), ChangesError> {
        let change = |what| Change {
            path,
            what,
            below,
            dir: dir.as_fd(),
            name,
        };
        if matches!(dialect::name(self.dialect, name), Name::Whiteout(_)) {
            return Ok((change(What::Deleted), None));
        }
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| gone_or(path, e))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let mut xattrs = xattrs(dir, name).map_err(|e| gone_or(path, e))?;
        let marks = dialect::read(self.dialect, shape(&stat), &mut xattrs);
        let Marks {
            whiteout,
            mut opaque,
            depends,
        } = marks;
        if let Some(mark) = depends {
            let path = path.clone();
            return Err(ChangesError::Depends { path, mark });
        }
        if whiteout {
            return Ok((change(What::Deleted), None));
        }
        if dialect::is_reserved(name) {
            return Err(ChangesError::Reserved(path.clone()));
        }
        let target = match kind {
            FileType::Symlink => rustix::fs::readlinkat(dir, name, Vec::new())
                .map_err(|e| gone_or(path, e))?
                .into_bytes(),
            _ => Vec::new(),
        };
        let mut opened = None;
        if kind == FileType::Directory {
            let (mut open, says_opaque) = self.open(dir, name, path)?;
            let replaced = below.filter(|ino| self.is_directory(*ino));
            // What it hides is of no interest where the image has no directory.
            opaque = (opaque || says_opaque) && replaced.is_some();
            open.below = replaced.filter(|_| !opaque);
            opened = Some(open);
        }
        let present = Present {
            stat,
            xattrs,
            opaque,
            target,
        };
        Ok((change(What::Present(Box::new(present))), opened))
    }

    fn is_directory(&self, ino: Ino) -> bool {
        let node = self.tree.node(ino);
        node.is_some_and(|node| node.kind == NodeKind::Directory)
    }

    /// Opens a directory; whether a name in it says that it is opaque.
    fn open(
        &self,
        dir: &OwnedFd,
        name: &[u8],
        path: &LayerPath,
    ) -> Result<(Open, bool), ChangesError> {
        let failed = |e| gone_or(path, e);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(failed)?;
        let mut names = BTreeSet::new();
        for entry in Dir::read_from(&fd).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.insert(name.to_vec());
            }
        }
        let is_opaque = |name: &Vec<u8>| dialect::name(self.dialect, name) == Name::Opaque;
        let opaque = names.iter().any(is_opaque);
        let all = names.clone();
        // A file that is there again is not deleted.
        names.retain(|name| match dialect::name(self.dialect, name) {
            Name::Plain => true,
            Name::Opaque => false,
            Name::Whiteout(deleted) => !all.contains(deleted),
        });
        let open = Open {
            fd: Rc::new(fd),
            path: path.clone(),
            below: None,
            names: names.into_iter().rev().collect(),
        };
        Ok((open, opaque))
    }

    /// The names of the image that an opaque directory hides.
    pub(crate) fn hidden_by(&self, change: &Change<'_>) -> Vec<Vec<u8>> {
        let names = change.below.map(|dir| self.tree.children(dir));
        let names = names.into_iter().flatten();
        names.map(|(name, _)| name.to_vec()).collect()
    }
}

/// Whether this process sees attributes of the namespace `trusted` (xattr(7)).
fn reads_trusted() -> bool {
    rustix::process::geteuid().is_root() && !privilege::in_user_namespace()
}

fn shape(stat: &Stat) -> Shape {
    let kind = FileType::from_raw_mode(stat.st_mode);
    Shape {
        is_zero_device: kind == FileType::CharacterDevice && stat.st_rdev == 0,
        is_empty_file: kind == FileType::RegularFile && stat.st_size == 0,
    }
}

fn child(dir: &LayerPath, name: &[u8]) -> Result<LayerPath, ChangesError> {
    let shown = || format!("{dir}/{}", String::from_utf8_lossy(name));
    dir.join(name).map_err(|_| ChangesError::Path(shown()))
}

fn io_at(path: &LayerPath, error: Errno) -> ChangesError {
    ChangesError::Io {
        path: path.to_string(),
        source: error.into(),
    }
}

/// An error about a name that was there a moment ago.
fn gone_or(path: &LayerPath, error: Errno) -> ChangesError {
    match error {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP => ChangesError::Moving(path.clone()),
        e => io_at(path, e),
    }
}

/// All extended attributes of `name` itself, sorted. By way of `/proc`, because a symbolic link or a
/// device cannot be opened for that.
fn xattrs(dir: &OwnedFd, name: &[u8]) -> Result<Xattrs, Errno> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    let mut names = vec![0; XATTR_BYTES_MAX];
    let len = match rustix::fs::llistxattr(&*path, &mut names[..]) {
        Err(Errno::OPNOTSUPP) => 0,
        listed => listed?,
    };
    let mut found = Xattrs::new();
    let mut value = vec![0; XATTR_BYTES_MAX];
    for name in names[..len].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        match rustix::fs::lgetxattr(&*path, name, &mut value[..]) {
            Ok(len) => found.push((name.to_vec(), value[..len].to_vec())),
            Err(Errno::NODATA) => {}
            Err(e) => return Err(e),
        }
    }
    found.sort();
    Ok(found)
}

/// One line of `diff`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// What happened.
    pub kind: Kind,
    /// To which path; bytes that are no UTF-8 are replaced.
    pub path: String,
}

impl Upper<'_> {
    /// What was changed, in the order of the paths. What the image never had, and has not now, is not
    /// named.
    pub(crate) fn lines(&self) -> Result<Vec<Line>, ChangesError> {
        let mut all: Vec<(LayerPath, Kind)> = Vec::new();
        let mut hidden = BTreeSet::new();
        let mut present = BTreeSet::new();
        self.walk::<ChangesError>(&mut |change| {
            let path = change.path.clone();
            let known = change.below.is_some() || hidden.contains(&path);
            match &change.what {
                _ if path.is_root() => {}
                What::Deleted if known => all.push((path, Kind::Deleted)),
                What::Deleted => {}
                What::Present(now) => {
                    if now.opaque {
                        for name in self.hidden_by(change) {
                            hidden.insert(child(&path, &name)?);
                        }
                    }
                    present.insert(path.clone());
                    let kind = if known { Kind::Changed } else { Kind::Added };
                    all.push((path, kind));
                }
            }
            Ok(())
        })?;
        let gone = hidden.into_iter().filter(|path| !present.contains(path));
        all.extend(gone.map(|path| (path, Kind::Deleted)));
        all.sort_by(|a, b| a.0.components().cmp(b.0.components()));
        let line = |(path, kind): (LayerPath, Kind)| Line {
            kind,
            path: path.to_string(),
        };
        Ok(all.into_iter().map(line).collect())
    }
}
