//! A layer on its way out: uncompressed bytes in, the blob and both digests out.
//!
//! gzip is one ordinary member. zstd is cut into frames, because a frame is the only place where
//! decoding of zstd can begin: a single one could be read from its start only.

use std::io::{self, Write};

use flate2::Compression as Level;
use flate2::write::GzEncoder;

use crate::cache::NewBlob;
use crate::layer::index::ENTRY_BYTES;
use crate::oci::digest::{Algorithm, Hasher};
use crate::oci::{Compression, Digest};

/// What zlib and docker use.
const GZIP_LEVEL: u32 = 6;
/// What the zstd program uses.
const ZSTD_LEVEL: i32 = 3;

/// Takes the compressed bytes.
struct Out {
    blob: NewBlob,
    digest: Hasher,
    size: u64,
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.blob.write(bytes).map_err(io::Error::other)?;
        self.digest.update(bytes);
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Encoder {
    Gzip(Box<GzEncoder<Out>>),
    Zstd { out: Out, frame: Vec<u8> },
}

/// Compresses what is written.
pub(super) struct Packer {
    diff_id: Hasher,
    encoder: Encoder,
}

/// A finished layer that is not in the cache yet.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) blob: NewBlob,
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) diff_id: Digest,
}

impl Packer {
    pub(super) fn new(blob: NewBlob, compression: Compression) -> Packer {
        let out = Out {
            blob,
            digest: Hasher::new(Algorithm::Sha256),
            size: 0,
        };
        let encoder = match compression {
            Compression::Zstd => Encoder::Zstd {
                out,
                frame: Vec::new(),
            },
            _ => Encoder::Gzip(Box::new(GzEncoder::new(out, Level::new(GZIP_LEVEL)))),
        };
        Packer {
            diff_id: Hasher::new(Algorithm::Sha256),
            encoder,
        }
    }

    pub(super) fn finish(self) -> io::Result<Packed> {
        let out = match self.encoder {
            Encoder::Gzip(encoder) => encoder.finish()?,
            Encoder::Zstd { mut out, frame } => {
                write_frame(&mut out, &frame)?;
                out
            }
        };
        Ok(Packed {
            blob: out.blob,
            digest: out.digest.finish(),
            size: out.size,
            diff_id: self.diff_id.finish(),
        })
    }
}

impl Write for Packer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = match &mut self.encoder {
            Encoder::Gzip(encoder) => encoder.write(bytes)?,
            Encoder::Zstd { out, frame } => {
                let room = ENTRY_BYTES as usize - frame.len();
                let taken = bytes.len().min(room);
                frame.extend_from_slice(&bytes[..taken]);
                if frame.len() as u64 == ENTRY_BYTES {
                    write_frame(out, frame)?;
                    frame.clear();
                }
                taken
            }
        };
        self.diff_id.update(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_frame(out: &mut Out, bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() && out.size > 0 {
        return Ok(());
    }
    out.write_all(&zstd::bulk::compress(bytes, ZSTD_LEVEL)?)
}
