//! The layers of an image as files, for a kernel that knows the tree by itself (an EROFS image): each
//! file is the address space of a layer, filled up with zeros to whole pages.
//!
//! Behind a layer's own bytes may follow files of the tree that had to be put together
//! ([`Composed`]): they are read through the tree. Every read is answered in
//! full or not at all: a short answer would be zeros to an older kernel.

use std::sync::Arc;

use crate::blob::ByteRange;
use crate::cache::Presence;
use crate::erofs::{Composed, Device};
use crate::fs::read::{Absent, Outcome, ReadBuffer};
use crate::fs::{Error, ImageFs};

/// The layers of one image.
#[derive(Debug)]
pub struct LayerFiles {
    fs: Arc<ImageFs>,
    /// Base first.
    files: Vec<File>,
}

#[derive(Debug)]
struct File {
    /// With all that is put together behind the layer.
    bytes: u64,
    /// Length of the layer itself.
    address_size: u64,
    /// Sorted by start.
    composed: Vec<Composed>,
}

impl LayerFiles {
    /// The layers of `fs`, as `devices` and `composed` of their EROFS image want them. A device
    /// without a layer is a file of zeros.
    pub fn new(fs: Arc<ImageFs>, devices: &[Device], composed: &[Composed]) -> LayerFiles {
        let sizes: Vec<u64> = fs.content().address_sizes().collect();
        let file = |(n, device): (u32, &Device)| File {
            bytes: device.bytes,
            address_size: sizes.get(n as usize).copied().unwrap_or(0),
            composed: composed.iter().filter(|c| c.layer == n).copied().collect(),
        };
        LayerFiles {
            files: (0..).zip(devices).map(file).collect(),
            fs,
        }
    }

    /// The image whose layers they are.
    pub fn image(&self) -> &Arc<ImageFs> {
        &self.fs
    }

    /// How many files there are.
    pub fn count(&self) -> usize {
        self.files.len()
    }

    /// Length of file `n` in bytes; `None` when there is no such file.
    pub fn bytes(&self, n: u32) -> Option<u64> {
        self.files.get(n as usize).map(|file| file.bytes)
    }

    /// What of file `n` will probably be read, in order of first use.
    pub fn foreseen(&self, n: u32) -> Vec<ByteRange> {
        self.fs.foreseen_addresses(n)
    }

    /// [`ImageFs::read_foreseen`] of file `n`.
    pub fn read_foreseen(
        &self,
        n: u32,
        range: ByteRange,
        buffer: &mut ReadBuffer,
    ) -> Result<Presence, Error> {
        let found = self
            .fs
            .content()
            .read_foreseen(n, range, &mut buffer.scratch);
        Ok(buffer.in_place(found.map_err(|_| Error::Io)?))
    }

    /// Reads up to `size` bytes at `offset` of file `n` into `buffer`; fewer only at the end of the
    /// file. Never waits.
    pub fn read(
        &self,
        n: u32,
        offset: u64,
        size: u32,
        buffer: &mut ReadBuffer,
    ) -> Result<Outcome, Error> {
        let file = self.files.get(n as usize).ok_or(Error::NotFound)?;
        let wanted = ByteRange::new(
            offset.min(file.bytes),
            file.bytes.min(offset.saturating_add(u64::from(size))),
        );
        if wanted.end() <= file.address_size {
            let found = self.fs.content().read_in(n, wanted, &mut buffer.scratch);
            if buffer.in_place(found.map_err(|_| Error::Io)?) == Presence::Read {
                self.fs.counters().count_read_bytes(wanted.len());
                return Ok(Outcome::Read);
            }
        }
        let (bytes, scratch) = buffer.join(wanted.len());
        if let Some(part) = ByteRange::new(0, file.address_size).intersect(wanted) {
            let out = &mut bytes[..part.len() as usize];
            match self.fs.content().read(n, part, out, scratch) {
                Ok(Presence::Read) => {}
                Ok(Presence::Absent) => {
                    let absent = Absent {
                        layer: n,
                        range: part,
                    };
                    return Ok(Outcome::Absent(absent));
                }
                Err(_) => return Err(Error::Io),
            }
        }
        let first = |c: &Composed| c.start + c.bytes <= wanted.start();
        let first = file.composed.partition_point(first);
        for composed in &file.composed[first..] {
            if composed.start >= wanted.end() {
                break;
            }
            let of = ByteRange::at(composed.start, composed.bytes).ok_or(Error::Io)?;
            let Some(part) = of.intersect(wanted) else {
                continue;
            };
            let at = (part.start() - wanted.start()) as usize;
            let out = &mut bytes[at..at + part.len() as usize];
            let from = part.start() - composed.start;
            match self.fs.read_piece(composed.ino.get(), from, out, scratch)? {
                Outcome::Read => {}
                absent @ Outcome::Absent(_) => return Ok(absent),
            }
        }
        self.fs.counters().count_read_bytes(wanted.len());
        Ok(Outcome::Read)
    }
}
