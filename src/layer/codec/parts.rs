//! Whiteouts and entries in the index format.

use crate::layer::codec::CodecError;
use crate::layer::codec::wire::{Source, Target};
use crate::layer::entry::{Entry, EntryKind, Extent, Timestamp, Whiteout, Xattr};
use crate::layer::limit::{
    Budget, FILE_BYTES_MAX, SYMLINK_BYTES_MAX, XATTR_BYTES_MAX, XATTR_NAME_BYTES_MAX,
};
use crate::layer::path::LayerPath;

const DIRECTORY: u8 = 0;
/// Size only: empty, or one hole.
const NO_DATA: u8 = 1;
/// One extent, as long as the file.
const WHOLE: u8 = 2;
const EXTENTS: u8 = 3;
const HARD_LINK: u8 = 4;
const SYMLINK: u8 = 5;
const CHAR_DEVICE: u8 = 6;
const BLOCK_DEVICE: u8 = 7;
const FIFO: u8 = 8;

/// Fewest bytes of an entry: path 2, kind, mode, uid, gid, mtime 2, xattrs.
const ENTRY_BYTES_MIN: usize = 9;
/// Fewest bytes of a whiteout: kind, path 2.
const WHITEOUT_BYTES_MIN: usize = 3;
/// Fewest bytes of an extent.
const EXTENT_BYTES_MIN: usize = 3;

/// What numbers are written as differences to.
#[derive(Debug, Default)]
struct Before {
    path: LayerPath,
    seconds: i64,
    /// End of the data of the file before.
    address: u64,
}

pub(super) fn write_parts(to: &mut Target, whiteouts: &[Whiteout], entries: &[Entry]) {
    to.varint(whiteouts.len() as u64);
    let mut before = Before::default();
    for whiteout in whiteouts {
        let (kind, path) = match whiteout {
            Whiteout::Path(path) => (0, path),
            Whiteout::Opaque(path) => (1, path),
        };
        to.byte(kind);
        to.path(path, before.path.as_bytes());
        before.path = path.clone();
    }
    to.varint(entries.len() as u64);
    let mut before = Before::default();
    for entry in entries {
        write_entry(to, entry, &mut before);
    }
}

fn write_entry(to: &mut Target, entry: &Entry, before: &mut Before) {
    to.path(&entry.path, before.path.as_bytes());
    before.path = entry.path.clone();
    write_kind(to, entry, before);
    to.varint(entry.mode.into());
    to.varint(entry.uid.into());
    to.varint(entry.gid.into());
    to.signed(entry.mtime.seconds.wrapping_sub(before.seconds));
    before.seconds = entry.mtime.seconds;
    to.varint(entry.mtime.nanoseconds.into());
    to.varint(entry.xattrs.len() as u64);
    for xattr in &entry.xattrs {
        to.bytes(&xattr.name);
        to.bytes(&xattr.value);
    }
}

fn write_kind(to: &mut Target, entry: &Entry, before: &mut Before) {
    match &entry.kind {
        EntryKind::Directory => to.byte(DIRECTORY),
        EntryKind::Fifo => to.byte(FIFO),
        EntryKind::HardLink { target } => {
            to.byte(HARD_LINK);
            to.path(target, entry.path.as_bytes());
        }
        EntryKind::Symlink { target } => {
            to.byte(SYMLINK);
            to.bytes(target);
        }
        EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } => {
            let char = matches!(entry.kind, EntryKind::CharDevice { .. });
            to.byte(if char { CHAR_DEVICE } else { BLOCK_DEVICE });
            to.varint((*major).into());
            to.varint((*minor).into());
        }
        EntryKind::Regular { size, extents } => {
            let whole = matches!(extents[..], [e] if e.file_offset == 0 && e.len == *size);
            to.byte(if extents.is_empty() {
                NO_DATA
            } else if whole {
                WHOLE
            } else {
                EXTENTS
            });
            to.varint(*size);
            if !whole && !extents.is_empty() {
                to.varint(extents.len() as u64);
            }
            let mut end = 0;
            for extent in extents {
                if !whole {
                    to.varint(extent.file_offset.wrapping_sub(end));
                    to.varint(extent.len);
                    end = extent.file_offset.wrapping_add(extent.len);
                }
                to.signed(extent.address.wrapping_sub(before.address) as i64);
                before.address = extent.address.wrapping_add(extent.len);
            }
        }
    }
}

pub(super) fn read_parts(
    from: &mut Source<'_>,
    address_size: u64,
) -> Result<(Vec<Whiteout>, Vec<Entry>), CodecError> {
    let mut budget = Budget::default();
    let count = from.count(WHITEOUT_BYTES_MIN)?;
    let mut whiteouts = Vec::with_capacity(count);
    let mut before = Before::default();
    for _ in 0..count {
        let kind = from.byte()?;
        let path = from.path(before.path.as_bytes())?;
        before.path = path.clone();
        let whiteout = match kind {
            0 if !path.is_root() => Whiteout::Path(path),
            1 => Whiteout::Opaque(path),
            _ => return Err(CodecError::Invalid("whiteout")),
        };
        budget.whiteout(&whiteout)?;
        whiteouts.push(whiteout);
    }
    let count = from.count(ENTRY_BYTES_MIN)?;
    // A body may claim more entries than a budget admits, so not all are reserved at once.
    let mut entries = Vec::with_capacity(count.min(1 << 16));
    let mut before = Before::default();
    for _ in 0..count {
        let entry = read_entry(from, &mut before, address_size)?;
        budget.entry(&entry)?;
        entries.push(entry);
    }
    Ok((whiteouts, entries))
}

fn read_entry(
    from: &mut Source<'_>,
    before: &mut Before,
    address_size: u64,
) -> Result<Entry, CodecError> {
    let path = from.path(before.path.as_bytes())?;
    before.path = path.clone();
    let kind = read_kind(from, &path, before, address_size)?;
    if path.is_root() && kind != EntryKind::Directory {
        return Err(CodecError::Invalid("root"));
    }
    let mode = from.u32()?;
    let (uid, gid) = (from.u32()?, from.u32()?);
    let seconds = before.seconds.wrapping_add(from.signed()?);
    before.seconds = seconds;
    let nanoseconds = from.u32()?;
    if mode > 0o7777 || nanoseconds >= 1_000_000_000 {
        return Err(CodecError::Invalid("mode or time"));
    }
    let xattrs = read_xattrs(from)?;
    Ok(Entry {
        path,
        kind,
        mode,
        uid,
        gid,
        mtime: Timestamp {
            seconds,
            nanoseconds,
        },
        xattrs,
    })
}

fn read_kind(
    from: &mut Source<'_>,
    path: &LayerPath,
    before: &mut Before,
    address_size: u64,
) -> Result<EntryKind, CodecError> {
    Ok(match from.byte()? {
        DIRECTORY => EntryKind::Directory,
        kind @ (NO_DATA | WHOLE | EXTENTS) => read_regular(from, kind, before, address_size)?,
        HARD_LINK => EntryKind::HardLink {
            target: from.path(path.as_bytes())?,
        },
        SYMLINK => {
            let target = from.bytes()?;
            if target.is_empty() || target.len() > SYMLINK_BYTES_MAX || target.contains(&0) {
                return Err(CodecError::Invalid("symbolic link"));
            }
            EntryKind::Symlink {
                target: target.into(),
            }
        }
        CHAR_DEVICE => EntryKind::CharDevice {
            major: from.u32()?,
            minor: from.u32()?,
        },
        BLOCK_DEVICE => EntryKind::BlockDevice {
            major: from.u32()?,
            minor: from.u32()?,
        },
        FIFO => EntryKind::Fifo,
        _ => return Err(CodecError::Invalid("kind of entry")),
    })
}

fn read_regular(
    from: &mut Source<'_>,
    kind: u8,
    before: &mut Before,
    address_size: u64,
) -> Result<EntryKind, CodecError> {
    let invalid = CodecError::Invalid("extent");
    let size = from.varint()?;
    if size > FILE_BYTES_MAX {
        return Err(CodecError::Invalid("file size"));
    }
    let count = match kind {
        NO_DATA => 0,
        WHOLE => 1,
        _ => from.count(EXTENT_BYTES_MIN)?,
    };
    let mut extents = Vec::with_capacity(count);
    let mut end = 0_u64;
    for _ in 0..count {
        let (gap, len) = if kind == WHOLE {
            (0, size)
        } else {
            (from.varint()?, from.varint()?)
        };
        let address = before.address.wrapping_add(from.signed()? as u64);
        let file_offset = end.checked_add(gap).ok_or(invalid.clone())?;
        end = file_offset.checked_add(len).ok_or(invalid.clone())?;
        let address_end = address.checked_add(len).ok_or(invalid.clone())?;
        if len == 0 || end > size || address_end > address_size {
            return Err(invalid);
        }
        before.address = address_end;
        extents.push(Extent {
            file_offset,
            address,
            len,
        });
    }
    Ok(EntryKind::Regular { size, extents })
}

fn read_xattrs(from: &mut Source<'_>) -> Result<Vec<Xattr>, CodecError> {
    let count = from.count(2)?;
    let mut xattrs: Vec<Xattr> = Vec::new();
    for _ in 0..count {
        let (name, value) = (from.bytes()?, from.bytes()?);
        let bad = name.is_empty()
            || name.len() > XATTR_NAME_BYTES_MAX
            || name.contains(&0)
            || value.len() > XATTR_BYTES_MAX
            || xattrs.last().is_some_and(|last| *last.name >= *name);
        if bad {
            return Err(CodecError::Invalid("extended attribute"));
        }
        xattrs.push(Xattr {
            name: name.into(),
            value: value.into(),
        });
    }
    Ok(xattrs)
}
