//! Which members a tar file has and where their bytes stand. Only headers are read.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use tar::EntryType;

use crate::archive::blob::{Member, corrupt, io_error};
use crate::blob::{ByteRange, Error, ErrorKind};

/// Most members that an archive may have; an image has a few for each layer.
pub const MEMBERS_MAX: usize = 100_000;
/// Bytes of headers that may be read: 512 for each of [`MEMBERS_MAX`] and room for long names. The
/// headers of a hostile archive could otherwise ask for any amount of memory.
pub const HEADER_BYTES_MAX: u64 = 128 << 20;

/// Beginnings of compressed files, and what makes a tar of them.
const COMPRESSED: [(&[u8], &str); 4] = [
    (&[0x1f, 0x8b], "gunzip"),
    (&[0x28, 0xb5, 0x2f, 0xfd], "zstd -d"),
    (b"BZh", "bunzip2"),
    (&[0xfd, b'7', b'z', b'X', b'Z'], "unxz"),
];

/// The index of a tar file.
#[derive(Debug)]
pub(super) struct Tarball {
    whole: Member,
    members: HashMap<Vec<u8>, Place>,
}

#[derive(Debug)]
enum Place {
    Data { offset: u64, len: u64 },
    Link(Vec<u8>),
}

impl Tarball {
    /// Reads all headers.
    pub(super) fn open(path: &Path) -> Result<Tarball, Error> {
        let whole = Member::open(path)?;
        let head = whole.read_at(ByteRange::new(0, whole.len.min(6)))?;
        if let Some((_, tool)) = COMPRESSED.iter().find(|(magic, _)| head.starts_with(magic)) {
            let message = format!(
                "{}: the archive is compressed; decompress it first ({tool})",
                whole.name
            );
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let members = scan(&whole)?;
        if members.is_empty() {
            return Err(corrupt(&whole.name, "not a tar archive, or an empty one"));
        }
        Ok(Tarball { whole, members })
    }

    /// How messages call the archive.
    pub(super) fn name(&self) -> &str {
        &self.whole.name
    }

    /// The member `name`. A link is followed once: `docker save` used to link equal layers.
    pub(super) fn member(&self, name: &str) -> Result<Member, Error> {
        let key = normal(b"", name.as_bytes());
        let mut place = key.as_ref().and_then(|key| self.members.get(key));
        if let Some(Place::Link(target)) = place {
            place = self.members.get(target);
        }
        let Some(Place::Data { offset, len }) = place else {
            let message = format!("{}: has no file `{}`", self.name(), name.escape_debug());
            return Err(Error::new(ErrorKind::NotFound, message));
        };
        let label = format!("{}:{}", self.name(), name.escape_debug());
        let file = self.whole.file.clone();
        Ok(Member {
            file,
            name: label.into(),
            offset: *offset,
            len: *len,
        })
    }
}

fn scan(whole: &Member) -> Result<HashMap<Vec<u8>, Place>, Error> {
    let broken = |e: io::Error| match e.get_ref().is_some_and(|e| e.is::<TooManyHeaders>()) {
        true => corrupt(&whole.name, e),
        false => corrupt(&whole.name, "not a tar archive, or a damaged one").with_source(e),
    };
    let file = whole
        .file
        .try_clone()
        .map_err(|e| io_error(&whole.name, e))?;
    let mut archive = tar::Archive::new(Headers { file, read: 0 });
    let mut members = HashMap::new();
    let start = archive.entries_with_seek().map_err(broken)?;
    for entry in start {
        let entry = entry.map_err(broken)?;
        let path = entry.path_bytes();
        let dir = &path[..path.iter().rposition(|b| *b == b'/').unwrap_or(0)];
        let link = |base: &[u8]| {
            entry
                .link_name_bytes()
                .and_then(|l| normal(base, &l))
                .map(Place::Link)
        };
        let place = match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => {
                let (offset, len) = (entry.raw_file_position(), entry.size());
                if offset.checked_add(len).is_none_or(|end| end > whole.len) {
                    return Err(corrupt(&whole.name, "the archive is cut off"));
                }
                Some(Place::Data { offset, len })
            }
            EntryType::Symlink => link(dir),
            EntryType::Link => link(b""),
            _ => None,
        };
        if let (Some(name), Some(place)) = (normal(b"", &path), place) {
            members.insert(name, place);
        }
        if members.len() > MEMBERS_MAX {
            return Err(corrupt(
                &whole.name,
                format!("more than {MEMBERS_MAX} files in it"),
            ));
        }
    }
    Ok(members)
}

/// `name` seen from the directory `base`, without `.`, `..` and doubled slashes; `None` when it
/// leaves the archive.
fn normal(base: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in base.split(|b| *b == b'/').chain(name.split(|b| *b == b'/')) {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()?),
            _ => parts.push(part),
        }
    }
    Some(parts.join(&b'/'))
}

/// A file that gives at most [`HEADER_BYTES_MAX`].
struct Headers {
    file: File,
    read: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("its headers are longer than {HEADER_BYTES_MAX} bytes")]
struct TooManyHeaders;

impl Read for Headers {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.read += n as u64;
        if self.read > HEADER_BYTES_MAX {
            return Err(io::Error::other(TooManyHeaders));
        }
        Ok(n)
    }
}

impl Seek for Headers {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}
