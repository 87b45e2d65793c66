//! What was made of an image's layers (its merged tree, its EROFS image), kept so that the next mount
//! makes nothing.
//!
//! ```text
//! content | "rsmtree\x01" | length of the content u64 | CRC32C of name and content u32 | 0 u32
//! ```
//!
//! The content comes first so that the kernel can mount the file. Numbers are little endian. A name
//! has the version of what is in it: nobody reads another version's. It is checked whole each time;
//! what is damaged, or was made for another image, is made anew.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use super::mapped::Mapped;
use super::staging::Staging;
use super::{Cache, CacheError};
use crate::oci::Digest;

const MAGIC: &[u8; 8] = b"rsmtree\x01";
const TRAILER_BYTES: u64 = 24;

/// Read at once when a file is checked.
const PIECE_BYTES: usize = 256 << 10;

/// A file that was checked.
#[derive(Debug)]
pub struct Derived {
    /// Its content comes first; what follows is the cache's.
    pub file: File,
    /// Length of the content.
    pub bytes: u64,
}

impl Derived {
    /// The content, in the file's own pages: memory that everybody shares who does this.
    pub fn map(&self) -> io::Result<Mapped> {
        Mapped::new(&self.file, self.bytes)
    }
}

/// Counts and sums what is written.
struct Summed<'a> {
    file: &'a File,
    bytes: u64,
    sum: u32,
}

impl Write for Summed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write_at(bytes, self.bytes)?;
        self.sum = crc32c::crc32c_append(self.sum, &bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Cache {
    /// What `kind` (a word with a version in it) was made of the image `key`, if it is here and
    /// whole. `visit` sees the content, a piece after the other.
    pub fn derived(
        &self,
        key: &Digest,
        kind: &str,
        visit: &mut dyn FnMut(&[u8]),
    ) -> Option<Derived> {
        let name = name(key, kind);
        let file = self.root.derived.file(&name, false).ok().flatten()?;
        match check(&name, &file, visit) {
            Some(bytes) => Some(Derived { file, bytes }),
            None => {
                tracing::warn!(name, "a stored tree is damaged, and is made anew");
                // Best effort: it is looked at again, and refused again, next time.
                let _ = self.root.derived.remove(&name);
                None
            }
        }
    }

    /// Whether there is such a file, whole or not.
    pub fn has_derived(&self, key: &Digest, kind: &str) -> bool {
        matches!(self.root.derived.stat(&name(key, kind)), Ok(Some(_)))
    }

    /// Makes the file; with a `key` it is kept for the next who asks.
    pub fn derive(
        &self,
        key: Option<&Digest>,
        kind: &str,
        write: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
    ) -> Result<Derived, CacheError> {
        let name = key.map_or_else(|| kind.to_owned(), |key| name(key, kind));
        let (_staging, directory) = Staging::directory(&self.root)?;
        let file = directory.create(kind)?;
        let failed = |e| CacheError::io("write", &directory.path_of(kind), e);
        let mut out = Summed {
            file: &file,
            bytes: 0,
            sum: crc32c::crc32c(name.as_bytes()),
        };
        write(&mut out).map_err(failed)?;
        let (bytes, sum) = (out.bytes, out.sum);
        let mut trailer = Vec::from(MAGIC);
        trailer.extend_from_slice(&bytes.to_le_bytes());
        trailer.extend_from_slice(&sum.to_le_bytes());
        trailer.extend_from_slice(&[0; 4]);
        file.write_all_at(&trailer, bytes).map_err(failed)?;
        // Not synced: what a power cut leaves does not have its sum.
        if key.is_some() {
            directory.rename(kind, &self.root.derived, &name)?;
        }
        Ok(Derived { file, bytes })
    }
}

/// The length of the content, if the file is whole.
fn check(name: &str, file: &File, visit: &mut dyn FnMut(&[u8])) -> Option<u64> {
    let mut left = file.metadata().ok()?.len().checked_sub(TRAILER_BYTES)?;
    let mut trailer = [0; TRAILER_BYTES as usize];
    file.read_exact_at(&mut trailer, left).ok()?;
    let (magic, numbers) = trailer.split_first_chunk::<8>()?;
    let (bytes, numbers) = numbers.split_first_chunk::<8>()?;
    let sum = u32::from_le_bytes(*numbers.first_chunk::<4>()?);
    if magic != MAGIC || u64::from_le_bytes(*bytes) != left {
        return None;
    }
    let (mut piece, mut at) = (vec![0; PIECE_BYTES], 0);
    let mut found = crc32c::crc32c(name.as_bytes());
    while left > 0 {
        let len = (PIECE_BYTES as u64).min(left) as usize;
        file.read_exact_at(&mut piece[..len], at).ok()?;
        found = crc32c::crc32c_append(found, &piece[..len]);
        visit(&piece[..len]);
        at += len as u64;
        left -= len as u64;
    }
    (found == sum).then_some(at)
}

fn name(key: &Digest, kind: &str) -> String {
    format!("{}-{}.{kind}", key.algorithm().as_str(), key.hex())
}
