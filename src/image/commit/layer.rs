//! The layer of an upper directory: each change as an entry of a tar.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{FileType, SeekFrom, Stat};
use rustix::io::Errno;

use super::CommitError;
use super::tarball::{Head, Kind, TarWriter};
use crate::image::changes::{Change, ChangesError, Present, Upper, What};
use crate::layer::LayerPath;
use crate::mount::upper::Dialect;

/// Bytes that are read at once.
const PIECE_BYTES: usize = 256 << 10;

/// What was written.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// Entries and whiteouts.
    pub(super) entries: u64,
    /// Sockets, which no layer holds.
    pub(super) left_out: Vec<LayerPath>,
}

/// Writes all changes of `upper` to `out`.
pub(super) fn write<W: Write>(upper: &Upper<'_>, out: W) -> Result<(W, Written), CommitError> {
    let mut writer = Writer {
        tar: TarWriter::new(out),
        upper,
        links: HashMap::new(),
        written: Written::default(),
        buffer: vec![0; PIECE_BYTES],
        // To somebody who could give no file away, all files look like their own.
        squashed: upper.dialect == Dialect::Fuse && !rustix::process::geteuid().is_root(),
    };
    upper.walk(&mut |change| writer.change(change))?;
    let out = writer.tar.finish().map_err(CommitError::Write)?;
    Ok((out, writer.written))
}

struct Writer<'a, W> {
    tar: TarWriter<W>,
    upper: &'a Upper<'a>,
    /// The first path of each file that has several, by device and number.
    links: HashMap<(u64, u64), Vec<u8>>,
    written: Written,
    buffer: Vec<u8>,
    squashed: bool,
}

impl<W: Write> Writer<'_, W> {
    fn change(&mut self, change: &Change<'_>) -> Result<(), CommitError> {
        match &change.what {
            // It was never in the image.
            What::Deleted if change.below.is_none() => Ok(()),
            What::Deleted => self.whiteout(change.path),
            What::Present(present) => self.present(change, present),
        }
    }

    /// `.wh.NAME` beside what is deleted (OCI image-spec, `layer.md`, "Whiteouts").
    fn whiteout(&mut self, path: &LayerPath) -> Result<(), CommitError> {
        let dir = path.parent().unwrap_or_default();
        let name = [b".wh.", path.file_name().unwrap_or_default()].concat();
        self.mark(&dir, &name)
    }

    fn mark(&mut self, dir: &LayerPath, name: &[u8]) -> Result<(), CommitError> {
        let path = match dir.join(name) {
            Ok(path) => path,
            Err(_) => return Err(ChangesError::Path(dir.to_string()).into()),
        };
        self.written.entries += 1;
        let head = Head {
            path: path.as_bytes().to_vec(),
            kind: Kind::Regular,
            mode: 0o600,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            target: Vec::new(),
            device: (0, 0),
            xattrs: Vec::new(),
        };
        self.tar.entry(&head).map_err(CommitError::Write)
    }

    fn present(&mut self, change: &Change<'_>, present: &Present) -> Result<(), CommitError> {
        let Some(kind) = kind(&present.stat) else {
            self.written.left_out.push(change.path.clone());
            // What it has replaced is gone all the same.
            return match change.below {
                Some(_) => self.whiteout(change.path),
                None => Ok(()),
            };
        };
        let mut head = self.head(change, present, kind);
        self.written.entries += 1;
        if kind != Kind::Directory && present.stat.st_nlink > 1 {
            let inode = (present.stat.st_dev, present.stat.st_ino);
            if let Some(first) = self.links.get(&inode) {
                head.kind = Kind::HardLink;
                head.target = first.clone();
                return self.tar.entry(&head).map_err(CommitError::Write);
            }
            self.links.insert(inode, head.path.clone());
        }
        match kind {
            Kind::Regular => self.file(change, present, &head),
            _ => self.tar.entry(&head).map_err(CommitError::Write),
        }?;
        match present.opaque {
            true => self.mark(change.path, b".wh..wh..opq"),
            false => Ok(()),
        }
    }

    fn head(&self, change: &Change<'_>, present: &Present, kind: Kind) -> Head {
        let stat = &present.stat;
        let node = change.below.and_then(|ino| self.upper.tree.node(ino));
        let (uid, gid) = match self.squashed {
            true => node.map_or((0, 0), |node| (node.uid, node.gid)),
            false => (stat.st_uid, stat.st_gid),
        };
        let device = match kind {
            Kind::CharDevice | Kind::BlockDevice => {
                let number = stat.st_rdev;
                (rustix::fs::major(number), rustix::fs::minor(number))
            }
            _ => (0, 0),
        };
        Head {
            path: change.path.as_bytes().to_vec(),
            kind,
            mode: stat.st_mode & 0o7777,
            uid,
            gid,
            mtime: (
                stat.st_mtime,
                u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
            ),
            target: present.target.clone(),
            device,
            xattrs: present.xattrs.clone(),
        }
    }

    fn file(
        &mut self,
        change: &Change<'_>,
        present: &Present,
        head: &Head,
    ) -> Result<(), CommitError> {
        let moving = || ChangesError::Moving(change.path.clone());
        let fd = change.open()?;
        check_same(&fd, &present.stat).ok_or_else(moving)?;
        let size = u64::try_from(present.stat.st_size).unwrap_or(0);
        let pieces = pieces(&fd, size).ok_or_else(moving)?;
        let whole = pieces == [(0, size)] || size == 0;
        match whole {
            true => self.tar.file(head, size),
            false => self.tar.sparse(head, size, &pieces),
        }
        .map_err(CommitError::Write)?;
        let file = File::from(fd);
        let mut written = 0;
        for (start, len) in pieces {
            let (mut at, end) = (start, start + len);
            while at < end {
                let want = self
                    .buffer
                    .len()
                    .min(usize::try_from(end - at).unwrap_or(usize::MAX));
                let read = file.read_at(&mut self.buffer[..want], at);
                let read = read.map_err(|source| ChangesError::Io {
                    path: change.path.to_string(),
                    source,
                })?;
                if read == 0 {
                    return Err(moving().into());
                }
                self.tar
                    .data(&self.buffer[..read])
                    .map_err(CommitError::Write)?;
                at += read as u64;
            }
            written += len;
        }
        check_same(&OwnedFd::from(file), &present.stat).ok_or_else(moving)?;
        self.tar.pad(written).map_err(CommitError::Write)
    }
}

/// The kind of entry; `None` for a socket.
fn kind(stat: &Stat) -> Option<Kind> {
    Some(match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Kind::Regular,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::CharacterDevice => Kind::CharDevice,
        FileType::BlockDevice => Kind::BlockDevice,
        _ => return None,
    })
}

/// Whether nobody has written to the file since `before`.
fn check_same(file: &OwnedFd, before: &Stat) -> Option<()> {
    let now = rustix::fs::fstat(file).ok()?;
    let state = |s: &Stat| {
        let times = (s.st_mtime, s.st_mtime_nsec, s.st_ctime, s.st_ctime_nsec);
        (s.st_dev, s.st_ino, s.st_size, times)
    };
    (state(&now) == state(before)).then_some(())
}

/// The pieces that hold data, and a last one of no length behind a hole at the end, as GNU tar writes
/// it. `None` when the file was cut meanwhile.
fn pieces(file: &OwnedFd, size: u64) -> Option<Vec<(u64, u64)>> {
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole from here on.
            Err(Errno::NXIO) => break,
            // A file system that does not know.
            Err(_) => return Some(vec![(0, size)]),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start))
            .ok()?
            .min(size);
        if end <= start {
            return None;
        }
        pieces.push((start, end - start));
        at = end;
    }
    let end = pieces.last().map_or(0, |(start, len)| start + len);
    if end < size {
        pieces.push((size, 0));
    }
    Some(pieces)
}
