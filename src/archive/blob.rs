//! A range of a local file as a blob, and as a small document.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;

use crate::blob::{Blob, BoxFuture, ByteRange, ByteStream, Error, ErrorKind};
use crate::oci::{Descriptor, Digest};

/// Longest piece of a stream in bytes: long enough that handing it between threads costs nothing,
/// short enough that a few hundred streams fit in memory.
pub const PIECE_BYTES: u64 = 256 << 10;

/// Some bytes of a file, without a digest yet.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) file: Arc<File>,
    /// How messages call it.
    pub(super) name: Arc<str>,
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl Member {
    /// A whole file.
    pub(super) fn open(path: &Path) -> Result<Member, Error> {
        let name: Arc<str> = path.display().to_string().into();
        let open = || {
            // A named pipe would block for ever, and opening a device can have an effect by itself:
            // nothing is opened before its kind is known.
            let flags = rustix::fs::OFlags::PATH.bits().cast_signed();
            let found = File::options().read(true).custom_flags(flags).open(path)?;
            let metadata = found.metadata()?;
            if !metadata.is_file() {
                return Ok((found, metadata));
            }
            let same = format!("/proc/self/fd/{}", found.as_raw_fd());
            Ok((File::open(same)?, metadata))
        };
        let (file, metadata) = open().map_err(|e| io_error(&name, e))?;
        if !metadata.is_file() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{name}: not a regular file"),
            ));
        }
        Ok(Member {
            file: Arc::new(file),
            name,
            offset: 0,
            len: metadata.len(),
        })
    }

    /// All bytes, when there are at most `max`.
    pub(super) fn read(&self, max: u64) -> Result<Vec<u8>, Error> {
        if self.len > max {
            let message = format!("{}: {} bytes long (at most {max})", self.name, self.len);
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        self.read_at(ByteRange::new(0, self.len))
    }

    /// The bytes of `range`, which is short and lies inside.
    pub(super) fn read_at(&self, range: ByteRange) -> Result<Vec<u8>, Error> {
        let len = usize::try_from(range.len()).map_err(|_| self.outside(range))?;
        let start = self
            .offset
            .checked_add(range.start())
            .ok_or_else(|| self.outside(range))?;
        let mut bytes = vec![0; len];
        self.file
            .read_exact_at(&mut bytes, start)
            .map_err(|e| io_error(&self.name, e))?;
        Ok(bytes)
    }

    /// The blob that `descriptor` describes.
    pub(super) fn into_blob(self, descriptor: &Descriptor) -> Result<FileBlob, Error> {
        if self.len != descriptor.size {
            let message = format!(
                "{}: {} bytes long, but its descriptor says {}",
                self.name, self.len, descriptor.size
            );
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        Ok(FileBlob {
            member: self,
            digest: descriptor.digest.clone(),
        })
    }

    fn outside(&self, range: ByteRange) -> Error {
        let message = format!(
            "{}: {range} is outside of its {} bytes",
            self.name, self.len
        );
        Error::new(ErrorKind::Unsupported, message)
    }
}

/// The whole of an open file as the blob that `descriptor` describes; `name` is for messages.
pub fn file_blob(file: File, name: &str, descriptor: &Descriptor) -> Result<FileBlob, Error> {
    let len = file.metadata().map_err(|e| io_error(name, e))?.len();
    let member = Member {
        file: Arc::new(file),
        name: name.into(),
        offset: 0,
        len,
    };
    member.into_blob(descriptor)
}

/// A blob that is a range of a local file. Reads are positioned, so any number may go on at once.
#[derive(Debug)]
pub struct FileBlob {
    member: Member,
    digest: Digest,
}

impl Blob for FileBlob {
    fn digest(&self) -> &Digest {
        &self.digest
    }

    fn size(&self) -> u64 {
        self.member.len
    }

    fn open(&self, range: ByteRange) -> BoxFuture<'_, Result<ByteStream, Error>> {
        Box::pin(async move {
            if range.end() > self.member.len {
                return Err(self.member.outside(range));
            }
            let pieces = stream::unfold(Some((self.member.clone(), range)), next_piece);
            Ok(Box::pin(pieces) as ByteStream)
        })
    }
}

type State = Option<(Member, ByteRange)>;

/// Reads the first piece of what is left. After an error there is no more.
async fn next_piece(state: State) -> Option<(Result<Bytes, Error>, State)> {
    let (member, left) = state?;
    if left.is_empty() {
        return None;
    }
    let cut = left.end().min(left.start().saturating_add(PIECE_BYTES));
    let piece = ByteRange::new(left.start(), cut);
    let read = tokio::task::spawn_blocking(move || (member.read_at(piece), member)).await;
    Some(match read {
        Ok((Ok(bytes), member)) => (
            Ok(bytes.into()),
            Some((member, ByteRange::new(cut, left.end()))),
        ),
        Ok((Err(error), _)) => (Err(error), None),
        Err(join) => {
            let error = Error::new(ErrorKind::Transient, "reading an archive was cancelled");
            (Err(error.with_source(join)), None)
        }
    })
}

/// An I/O error of the file called `name`.
pub(super) fn io_error(name: &str, error: io::Error) -> Error {
    let (kind, what) = match error.kind() {
        io::ErrorKind::NotFound => (ErrorKind::NotFound, "no such file".to_owned()),
        io::ErrorKind::PermissionDenied => (ErrorKind::Denied, "permission denied".to_owned()),
        io::ErrorKind::UnexpectedEof => (ErrorKind::Corrupt, "shorter than expected".to_owned()),
        _ => (ErrorKind::Corrupt, error.to_string()),
    };
    Error::new(kind, format!("{name}: {what}")).with_source(error)
}

/// A document that is not what it should be.
pub(super) fn corrupt(name: &str, what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Corrupt, format!("{name}: {what}"))
}
