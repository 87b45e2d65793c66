//! From headers to entries: which header wins, what a type means, what is a whiteout.

use crate::layer::entry::{Entry, EntryKind, Extent, Timestamp, Whiteout, Xattr};
use crate::layer::limit::{Budget, SYMLINK_BYTES_MAX};
use crate::layer::path::LayerPath;
use crate::layer::tar::TarError;
use crate::layer::tar::header::Header;
use crate::layer::tar::pax::{Pax, Sparse};

/// Marks a whiteout (OCI image-spec, `layer.md`, "Whiteouts").
const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// Marks names that AUFS kept for itself; only the opaque marker means anything to others.
const WHITEOUT_META_PREFIX: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What headers before an entry have said about it.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) long_name: Option<Vec<u8>>,
    pub(crate) long_link: Option<Vec<u8>>,
    local: Option<Pax>,
    global: Pax,
}

/// An entry before it is known where its data stands.
#[derive(Debug)]
pub(crate) struct Node {
    name: Vec<u8>,
    kind: Kind,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Timestamp,
    xattrs: Vec<Xattr>,
    /// How many bytes of data follow the header.
    pub(crate) data_len: u64,
    /// What PAX says about holes.
    pub(crate) sparse: Option<Sparse>,
}

#[derive(Debug)]
enum Kind {
    Regular,
    Directory,
    HardLink(Vec<u8>),
    Symlink(Vec<u8>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
    /// Not a file: volume labels and the like.
    Ignored,
}

impl Node {
    pub(crate) fn is_regular(&self) -> bool {
        matches!(self.kind, Kind::Regular)
    }
}

impl Said {
    /// A PAX header about the next entry. A second one takes the place of the first.
    pub(crate) fn local(&mut self, records: &[u8]) -> Result<(), TarError> {
        let mut local = self.global.clone();
        local.apply(records)?;
        self.local = Some(local);
        Ok(())
    }

    /// A PAX header about all entries from here on.
    pub(crate) fn global(&mut self, records: &[u8]) -> Result<(), TarError> {
        self.global.apply_global(records)
    }

    /// The entry of `header`. What was said about it is used up. GNU long names win over PAX, as Go
    /// has it (GNU tar has it the other way round; no tool writes both).
    pub(crate) fn node(&mut self, header: Header<'_>) -> Result<Node, TarError> {
        let pax = self.local.take().unwrap_or_else(|| self.global.clone());
        let (long_name, long_link) = (self.long_name.take(), self.long_link.take());
        let sparse = pax.sparse.map_in_data || pax.sparse.pieces.is_some();
        let name = pax
            .sparse
            .name
            .clone()
            .filter(|_| sparse)
            .or(long_name)
            .or(pax.path);
        let name = name.unwrap_or_else(|| header.name());
        let link = || {
            long_link
                .or(pax.link)
                .unwrap_or_else(|| header.link().to_vec())
        };
        let size = match pax.size {
            Some(size) => size,
            None => header.size()?,
        };
        // Go's archive/tar, `isHeaderOnlyType`: no data follows these, whatever their size says.
        let (kind, data_len) = match header.typeflag() {
            b'1' => (Kind::HardLink(link()), 0),
            b'2' => (Kind::Symlink(link()), 0),
            b'3' => (
                header
                    .device()
                    .map(|(major, minor)| Kind::CharDevice(major, minor))?,
                0,
            ),
            b'4' => (
                header
                    .device()
                    .map(|(major, minor)| Kind::BlockDevice(major, minor))?,
                0,
            ),
            b'5' => (Kind::Directory, 0),
            b'6' => (Kind::Fifo, 0),
            // Before ustar a directory was a file whose name ends in a slash.
            b'0' | b'\0' if name.ends_with(b"/") => (Kind::Directory, size),
            // GNU's dump of a directory: its data lists names.
            b'D' => (Kind::Directory, size),
            b'S' => (Kind::Regular, size),
            // POSIX leaves capitals to vendors: labels, continuations, access lists.
            b'A'..=b'Z' => (Kind::Ignored, size),
            // Contiguous files, and by POSIX whatever else there may be.
            _ => (Kind::Regular, size),
        };
        Ok(Node {
            name,
            kind,
            data_len,
            mode: header.mode()?,
            uid: owner(pax.uid.map_or_else(|| header.uid(), Ok)?)?,
            gid: owner(pax.gid.map_or_else(|| header.gid(), Ok)?)?,
            mtime: match pax.mtime {
                Some(mtime) => mtime,
                None => Timestamp {
                    seconds: header.mtime()?,
                    nanoseconds: 0,
                },
            },
            xattrs: pax.xattrs,
            sparse: sparse.then_some(pax.sparse),
        })
    }
}

/// Owners are 32 bits; some tars write `nobody` as -2.
fn owner(id: i64) -> Result<u32, TarError> {
    let signed = i32::try_from(id).map(|id| id as u32);
    signed
        .or_else(|_| u32::try_from(id))
        .map_err(|_| TarError::Number("owner"))
}

/// Everything that was found so far.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) budget: Budget,
    pub(crate) entries: Vec<Entry>,
    pub(crate) whiteouts: Vec<Whiteout>,
}

impl Found {
    /// Adds an entry, or the whiteout that its name makes of it.
    pub(crate) fn add(
        &mut self,
        node: Node,
        size: u64,
        extents: Vec<Extent>,
    ) -> Result<(), TarError> {
        if matches!(node.kind, Kind::Ignored) {
            return Ok(self.budget.ignored()?);
        }
        let path = LayerPath::parse(&node.name)?;
        match sort(&path)? {
            Sorted::Ignored => return Ok(self.budget.ignored()?),
            Sorted::Whiteout(whiteout) => {
                self.budget.whiteout(&whiteout)?;
                self.whiteouts.push(whiteout);
                return Ok(());
            }
            Sorted::Entry => {}
        }
        let kind = match node.kind {
            Kind::Regular => EntryKind::Regular { size, extents },
            Kind::Directory | Kind::Ignored => EntryKind::Directory,
            Kind::HardLink(target) => EntryKind::HardLink {
                target: LayerPath::parse(&target)?,
            },
            Kind::Symlink(target) => EntryKind::Symlink {
                target: symlink(&path, target)?,
            },
            Kind::CharDevice(major, minor) => EntryKind::CharDevice { major, minor },
            Kind::BlockDevice(major, minor) => EntryKind::BlockDevice { major, minor },
            Kind::Fifo => EntryKind::Fifo,
        };
        if path.is_root() && kind != EntryKind::Directory {
            return Err(TarError::Root);
        }
        let Node {
            mode,
            uid,
            gid,
            mtime,
            xattrs,
            ..
        } = node;
        let entry = Entry {
            path,
            kind,
            mode,
            uid,
            gid,
            mtime,
            xattrs,
        };
        self.budget.entry(&entry)?;
        self.entries.push(entry);
        Ok(())
    }
}

fn symlink(path: &LayerPath, target: Vec<u8>) -> Result<Box<[u8]>, TarError> {
    if target.is_empty() || target.len() > SYMLINK_BYTES_MAX || target.contains(&0) {
        return Err(TarError::SymlinkTarget(path.clone()));
    }
    Ok(target.into())
}

enum Sorted {
    Entry,
    Whiteout(Whiteout),
    Ignored,
}

fn sort(path: &LayerPath) -> Result<Sorted, TarError> {
    let (Some(name), Some(parent)) = (path.file_name(), path.parent()) else {
        return Ok(Sorted::Entry);
    };
    if parent
        .components()
        .any(|name| name.starts_with(WHITEOUT_META_PREFIX))
    {
        return Ok(Sorted::Ignored);
    }
    if name == OPAQUE {
        return Ok(Sorted::Whiteout(Whiteout::Opaque(parent)));
    }
    if name.starts_with(WHITEOUT_META_PREFIX) {
        return Ok(Sorted::Ignored);
    }
    match name.strip_prefix(WHITEOUT_PREFIX) {
        None => Ok(Sorted::Entry),
        // `.wh..` would hide the directory that it stands in.
        Some(b"" | b"." | b"..") => Err(TarError::Whiteout(path.clone())),
        Some(hidden) => Ok(Sorted::Whiteout(Whiteout::Path(parent.join(hidden)?))),
    }
}
