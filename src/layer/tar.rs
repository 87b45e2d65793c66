//! Reads a tar that is pushed in pieces of any size: entries and whiteouts come out, file data is
//! passed over and never kept.
//!
//! Why an own reader: a layer needs negative and sub-second times, global PAX headers that hold,
//! and absolute addresses of the pieces of sparse files, over input that is split anywhere. Where
//! dialects are ambiguous this reads as Go's `archive/tar` does, because that is what the layers'
//! builders and other readers use.

pub(crate) mod entry;
pub(crate) mod header;
pub(crate) mod pax;
pub(crate) mod sparse;
#[cfg(test)]
mod tests;

use crate::layer::entry::{Entry, Extent, Whiteout};
use crate::layer::limit::{
    Budget, FILE_BYTES_MAX, LONG_NAME_BYTES_MAX, LimitError, PAX_BYTES_MAX, SPARSE_EXTENTS_MAX,
    SYMLINK_BYTES_MAX, Share, XATTR_BYTES_MAX, XATTR_NAME_BYTES_MAX, XATTRS_MAX,
};
use crate::layer::path::{LayerPath, PathError};
use crate::layer::tar::entry::{Found, Node, Said};
use crate::layer::tar::header::{BLOCK, Block, Header, sparse_extension};
use crate::layer::tar::sparse::{DataMap, lay_out};

/// Why a tar cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TarError {
    /// A header's checksum is wrong: this is not a tar, or it is damaged.
    #[error("not a tar header (its checksum does not match)")]
    Checksum,
    /// A number that is malformed or out of range.
    #[error("a header has an invalid {0}")]
    Number(&'static str),
    /// A PAX record is malformed.
    #[error("a PAX header has a malformed record")]
    PaxRecord,
    /// A PAX header is longer than [`PAX_BYTES_MAX`].
    #[error("a PAX header has {0} bytes ({PAX_BYTES_MAX} at most)")]
    PaxTooLong(u64),
    /// A GNU long name is longer than [`LONG_NAME_BYTES_MAX`].
    #[error("a long name has {0} bytes ({LONG_NAME_BYTES_MAX} at most)")]
    NameTooLong(u64),
    /// The value of an extended attribute is longer than [`XATTR_BYTES_MAX`].
    #[error("an extended attribute has {0} bytes ({XATTR_BYTES_MAX} at most)")]
    XattrValue(usize),
    /// The name of an extended attribute is empty, holds a NUL, or is too long.
    #[error("an extended attribute has a bad name of {0} bytes ({XATTR_NAME_BYTES_MAX} at most)")]
    XattrName(usize),
    /// More extended attributes than [`XATTRS_MAX`], or more bytes than [`PAX_BYTES_MAX`].
    #[error("an entry has more than {XATTRS_MAX} extended attributes or {PAX_BYTES_MAX} bytes")]
    Xattrs,
    /// A name that is not a path.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The target of a symbolic link is empty, holds a NUL, or is too long.
    #[error("`{0}` links to a target that no Linux can hold ({SYMLINK_BYTES_MAX} bytes at most)")]
    SymlinkTarget(LayerPath),
    /// The root is something else than a directory.
    #[error("the root of the layer is not a directory")]
    Root,
    /// `.wh.` with nothing that could be a name after it.
    #[error("`{0}` is not a whiteout of anything")]
    Whiteout(LayerPath),
    /// The map of a sparse file is inconsistent.
    #[error("the map of a sparse file is malformed or does not fit its data")]
    SparseMap,
    /// More pieces than [`SPARSE_EXTENTS_MAX`].
    #[error("a sparse file has more than {SPARSE_EXTENTS_MAX} pieces")]
    SparseExtents,
    /// A file longer than any Linux file can be.
    #[error("a file has {0} bytes ({FILE_BYTES_MAX} at most)")]
    FileTooLong(u64),
    /// Something follows a single block of zeros.
    #[error("a header follows a block of zeros")]
    LoneZeroBlock,
    /// The end is missing.
    #[error("the tar ends in the middle of an entry")]
    Truncated,
    /// The layer has too much in it.
    #[error(transparent)]
    Limit(#[from] LimitError),
}

/// Headers whose content is about the next entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meta {
    LongName,
    LongLink,
    Local,
    Global,
}

/// A regular file whose map is not complete.
#[derive(Debug)]
struct Pending {
    node: Node,
    real_size: u64,
    /// Bytes of data that are left, in old GNU form after the extension blocks.
    data_len: u64,
}

#[derive(Debug)]
enum State {
    Header,
    /// One block of zeros was seen.
    Zeros,
    Meta {
        kind: Meta,
        left: u64,
        padding: u64,
    },
    SparseBlock {
        file: Box<Pending>,
        pieces: Vec<(u64, u64)>,
    },
    SparseMap {
        file: Box<Pending>,
        map: DataMap,
    },
    /// Data of a file; its padding may be missing at the very end, as Go and GNU tar have it.
    Skip {
        left: u64,
        padding: u64,
    },
    End,
}

/// Reads a tar. Push all bytes, then [`Scanner::finish`].
#[derive(Debug)]
pub struct Scanner {
    state: State,
    /// Address of the next byte.
    address: u64,
    block: Block,
    filled: usize,
    /// Content of the [`State::Meta`] header that is being read.
    content: Vec<u8>,
    said: Said,
    found: Found,
}

impl Default for Scanner {
    fn default() -> Scanner {
        Scanner::new(Share::default())
    }
}

impl Scanner {
    /// One that has read nothing; what it finds is taken from `share`.
    pub fn new(share: Share) -> Scanner {
        Scanner {
            state: State::Header,
            address: 0,
            block: [0; BLOCK],
            filled: 0,
            content: Vec::new(),
            said: Said::default(),
            found: Found {
                budget: Budget::sharing(share),
                entries: vec![],
                whiteouts: vec![],
            },
        }
    }

    /// Reads on.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), TarError> {
        while !bytes.is_empty() {
            let taken = match &mut self.state {
                State::End => bytes.len(),
                State::Skip { left, padding } => {
                    let taken = take(left, bytes.len());
                    let taken = taken + take(padding, bytes.len() - taken);
                    if *left == 0 && *padding == 0 {
                        self.state = State::Header;
                    }
                    taken
                }
                State::Meta { left, padding, .. } => {
                    let content = take(left, bytes.len());
                    self.content.extend_from_slice(&bytes[..content]);
                    let taken = content + take(padding, bytes.len() - content);
                    if *left == 0 && *padding == 0 {
                        self.meta()?;
                    }
                    taken
                }
                _ => {
                    let taken = bytes.len().min(BLOCK - self.filled);
                    let end = self.filled + taken;
                    self.block[self.filled..end].copy_from_slice(&bytes[..taken]);
                    self.filled = end;
                    taken
                }
            };
            self.address += taken as u64;
            bytes = &bytes[taken..];
            if self.filled == BLOCK {
                self.filled = 0;
                self.block()?;
            }
        }
        Ok(())
    }

    /// Says that there is no more, and gives what was found: entries in tar order, whiteouts.
    pub fn finish(self) -> Result<(Vec<Entry>, Vec<Whiteout>), TarError> {
        match self.state {
            State::End => {}
            State::Header | State::Zeros if self.filled == 0 => {}
            State::Skip { left: 0, .. } => {}
            _ => return Err(TarError::Truncated),
        }
        Ok((self.found.entries, self.found.whiteouts))
    }

    /// Works off a full block.
    fn block(&mut self) -> Result<(), TarError> {
        let block = self.block;
        match std::mem::replace(&mut self.state, State::Header) {
            State::Zeros if block == [0; BLOCK] => self.state = State::End,
            State::Zeros => return Err(TarError::LoneZeroBlock),
            State::SparseBlock { file, mut pieces } => {
                let (more, extended) = sparse_extension(&block)?;
                pieces.extend(more);
                if pieces.len() > SPARSE_EXTENTS_MAX {
                    return Err(TarError::SparseExtents);
                }
                if extended {
                    self.state = State::SparseBlock { file, pieces };
                } else {
                    self.sparse(*file, &pieces)?;
                }
            }
            State::SparseMap { mut file, mut map } => {
                let left = file.data_len.checked_sub(BLOCK as u64);
                file.data_len = left.ok_or(TarError::SparseMap)?;
                if map.push(&block)? {
                    self.sparse(*file, &map.into_pieces())?;
                } else {
                    self.state = State::SparseMap { file, map };
                }
            }
            _ if block == [0; BLOCK] => self.state = State::Zeros,
            _ => self.header(Header::parse(&block)?)?,
        }
        Ok(())
    }

    fn header(&mut self, header: Header<'_>) -> Result<(), TarError> {
        let (kind, limit) = match header.typeflag() {
            b'L' => (Meta::LongName, LONG_NAME_BYTES_MAX),
            b'K' => (Meta::LongLink, LONG_NAME_BYTES_MAX),
            // 'X' is how Solaris wrote PAX headers before POSIX had them.
            b'x' | b'X' => (Meta::Local, PAX_BYTES_MAX),
            b'g' => (Meta::Global, PAX_BYTES_MAX),
            _ => return self.entry(header),
        };
        let left = header.size()?;
        if left > limit {
            return Err(match kind {
                Meta::LongName | Meta::LongLink => TarError::NameTooLong(left),
                Meta::Local | Meta::Global => TarError::PaxTooLong(left),
            });
        }
        self.content.clear();
        if left == 0 {
            // Nothing follows: it only takes back what another one said before.
            if kind == Meta::Local {
                self.said.local(&[])?;
            }
            return Ok(());
        }
        self.state = State::Meta {
            kind,
            left,
            padding: padding(left),
        };
        Ok(())
    }

    /// Works off the content of a header about the next entry.
    fn meta(&mut self) -> Result<(), TarError> {
        if let State::Meta { kind, .. } = std::mem::replace(&mut self.state, State::Header) {
            let content = std::mem::take(&mut self.content);
            let text = || {
                let end = content
                    .iter()
                    .position(|b| *b == 0)
                    .unwrap_or(content.len());
                (end > 0).then(|| content[..end].to_vec())
            };
            match kind {
                Meta::LongName => self.said.long_name = text(),
                Meta::LongLink => self.said.long_link = text(),
                Meta::Local => self.said.local(&content)?,
                Meta::Global => self.said.global(&content)?,
            }
        }
        Ok(())
    }

    fn entry(&mut self, header: Header<'_>) -> Result<(), TarError> {
        let mut node = self.said.node(header)?;
        let size = node.data_len;
        let sparse = node.sparse.take();
        if node.is_regular() {
            if let b'S' = header.typeflag() {
                let map = header.gnu_sparse()?.ok_or(TarError::SparseMap)?;
                let file = Box::new(Pending {
                    node,
                    real_size: map.real_size,
                    data_len: size,
                });
                if !map.extended {
                    return self.sparse(*file, &map.pieces);
                }
                self.state = State::SparseBlock {
                    file,
                    pieces: map.pieces,
                };
                return Ok(());
            }
            if let Some(sparse) = sparse {
                let real_size = sparse.real_size.ok_or(TarError::SparseMap)?;
                let file = Box::new(Pending {
                    node,
                    real_size,
                    data_len: size,
                });
                if let Some(pieces) = sparse.pieces {
                    return self.sparse(*file, &pieces);
                }
                self.state = State::SparseMap {
                    file,
                    map: DataMap::default(),
                };
                return Ok(());
            }
        }
        if size > FILE_BYTES_MAX - self.address.min(FILE_BYTES_MAX) {
            return Err(TarError::FileTooLong(size));
        }
        let address = self.address;
        let extents = Some(Extent {
            file_offset: 0,
            address,
            len: size,
        })
        .filter(|e| e.len > 0);
        self.skip(size);
        self.found.add(node, size, extents.into_iter().collect())
    }

    /// A sparse file whose map is complete; its data begins here.
    fn sparse(&mut self, file: Pending, pieces: &[(u64, u64)]) -> Result<(), TarError> {
        let extents = lay_out(pieces, file.real_size, self.address, file.data_len)?;
        self.skip(file.data_len);
        self.found.add(file.node, file.real_size, extents)
    }

    fn skip(&mut self, len: u64) {
        if len > 0 {
            self.state = State::Skip {
                left: len,
                padding: padding(len),
            };
        }
    }
}

/// Takes at most `available` off `left`.
fn take(left: &mut u64, available: usize) -> usize {
    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(available);
    *left -= taken as u64;
    taken
}

/// Bytes from the end of `len` bytes to the next block.
fn padding(len: u64) -> u64 {
    len.wrapping_neg() % BLOCK as u64
}
