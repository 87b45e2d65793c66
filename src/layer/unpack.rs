//! The decompressing half of first contact: compressed bytes in, address bytes and the places
//! where spans can begin out.

use crate::layer::blocks::{DISTANCE_MIN, MIDST_BYTES};
use crate::layer::error::LayerErrorKind;
use crate::layer::gzip::{At, GzipError, GzipStream};
use crate::layer::index::{Geometry, SpanStart};
use crate::layer::outlet::{Downstream, Outlet};
use crate::layer::window::{Packer, Probe};
use crate::layer::zstd::{ZstdError, ZstdStream};
use crate::oci::Compression;

/// Members and frames are places to begin from an eighth of the target distance on: they cost no
/// window.
const ORIGIN_SHARE: u64 = 8;

/// Says what a blob is from its first four bytes (or fewer, when it has fewer): RFC 1952 section
/// 2.3.1, RFC 8878 sections 3.1.1 and 3.1.2.
pub(crate) fn sniff(first: &[u8]) -> Compression {
    match first {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
        _ => Compression::None,
    }
}

/// Decompresses one blob.
#[derive(Debug)]
pub(crate) enum Unpacker {
    Plain { span_bytes: u64 },
    Gzip(Box<Gzip>),
    Zstd(Box<Zstd>),
}

impl Unpacker {
    pub(crate) fn new(
        compression: Compression,
        geometry: Geometry,
    ) -> Result<Unpacker, LayerErrorKind> {
        let Geometry {
            entry_bytes,
            span_bytes,
        } = geometry;
        Ok(match compression {
            Compression::None => Unpacker::Plain { span_bytes },
            Compression::Gzip => Unpacker::Gzip(Box::new(Gzip::new(entry_bytes, span_bytes)?)),
            Compression::Zstd => Unpacker::Zstd(Box::new(Zstd {
                stream: ZstdStream::new()?,
                consumed: 0,
                entry_bytes,
                span_bytes,
            })),
        })
    }

    pub(crate) fn push<D: Downstream>(
        &mut self,
        input: &[u8],
        out: &mut Outlet<D>,
    ) -> Result<(), LayerErrorKind> {
        match self {
            Unpacker::Plain { span_bytes } => plain(*span_bytes, input, out),
            Unpacker::Gzip(gzip) => gzip.push(input, out),
            Unpacker::Zstd(zstd) => zstd.push(input, out),
        }
    }

    /// Says that there is no more.
    pub(crate) fn finish<D: Downstream>(self, out: &mut Outlet<D>) -> Result<(), LayerErrorKind> {
        match self {
            Unpacker::Plain { .. } => Ok(()),
            Unpacker::Gzip(mut gzip) if gzip.stream.is_complete() => gzip.settle(out),
            Unpacker::Gzip(_) => Err(GzipError::Truncated.into()),
            Unpacker::Zstd(zstd) if zstd.stream.is_complete() => Ok(()),
            Unpacker::Zstd(_) => Err(ZstdError::Truncated.into()),
        }
    }
}

fn plain<D: Downstream>(
    span_bytes: u64,
    mut input: &[u8],
    out: &mut Outlet<D>,
) -> Result<(), LayerErrorKind> {
    while !input.is_empty() {
        if out.span_len() >= span_bytes {
            out.cut(out.address, SpanStart::Origin);
        }
        let room = out.room(span_bytes - out.span_len())?;
        let n = room.len().min(input.len());
        room[..n].copy_from_slice(&input[..n]);
        out.wrote(n)?;
        input = &input[n..];
    }
    Ok(())
}

/// Bytes until `len` has come to `wanted`; where it has, there is no bound.
fn left(wanted: u64, len: u64) -> u64 {
    match wanted.saturating_sub(len) {
        0 => u64::MAX,
        left => left,
    }
}

#[derive(Debug)]
pub(crate) struct Zstd {
    stream: ZstdStream,
    consumed: u64,
    entry_bytes: u64,
    span_bytes: u64,
}

impl Zstd {
    fn push<D: Downstream>(
        &mut self,
        mut input: &[u8],
        out: &mut Outlet<D>,
    ) -> Result<(), LayerErrorKind> {
        loop {
            if out.span_len() >= self.span_bytes {
                // zstd leaves a frame's last byte in the input until all output is taken, but
                // wants to see it before. This is not a frame's end, so there is a byte.
                out.cut(self.consumed + 1, SpanStart::Continue);
            }
            let room = out.room(self.span_bytes - out.span_len())?;
            let len = room.len();
            let step = self.stream.step(input, room)?;
            self.consumed += step.consumed as u64;
            input = &input[step.consumed..];
            out.wrote(step.written)?;
            if step.frame_end {
                out.cut_origin(self.consumed, self.entry_bytes / ORIGIN_SHARE);
            }
            if input.is_empty() && step.written < len {
                return Ok(());
            }
        }
    }
}

/// gzip, with checkpoints.
#[derive(Debug)]
pub(crate) struct Gzip {
    stream: GzipStream,
    packer: Packer,
    entry_bytes: u64,
    span_bytes: u64,
    /// Whether places are noted: not when nothing is cut at all.
    places: bool,
    consumed: u64,
    last_byte: u8,
    /// The window of the newest checkpoint, until it can be reduced.
    probe: Option<(usize, Probe)>,
}

impl Gzip {
    fn new(entry_bytes: u64, span_bytes: u64) -> Result<Gzip, GzipError> {
        let (stream, packer) = (GzipStream::new()?, Packer::new()?);
        Ok(Gzip {
            stream,
            packer,
            entry_bytes,
            span_bytes,
            places: entry_bytes < u64::MAX,
            consumed: 0,
            last_byte: 0,
            probe: None,
        })
    }

    fn push<D: Downstream>(
        &mut self,
        mut input: &[u8],
        out: &mut Outlet<D>,
    ) -> Result<(), LayerErrorKind> {
        loop {
            if out.span_len() >= self.span_bytes {
                out.cut(self.consumed, SpanStart::Continue);
            }
            let due = out.entry_len() >= self.entry_bytes;
            let places = self.places && out.has_places();
            // Boundaries are looked for only when one is due: stopping at each costs time.
            let look = due || places && out.block_len() >= DISTANCE_MIN;
            let mut most = self.probe_wants().min(self.span_bytes - out.span_len());
            most = most.min(left(self.entry_bytes, out.entry_len()));
            if places {
                most = most.min(left(MIDST_BYTES, out.place_len()));
            }
            let room = out.room(most)?;
            let len = room.len();
            let step = self.stream.step(input, room, look)?;
            out.wrote(step.written)?;
            let (taken, rest) = input.split_at(step.consumed);
            input = rest;
            self.took(taken, step.written, step.at, out)?;
            match step.at {
                At::Block { bits } => {
                    if places {
                        out.block(self.consumed, bits);
                    }
                    if due {
                        self.checkpoint(bits, out)?;
                    }
                }
                At::Member => out.cut_origin(self.consumed, self.entry_bytes / ORIGIN_SHARE),
                At::Midst if places => out.midst(self.consumed),
                At::DataEnd | At::Midst => {}
            }
            if input.is_empty() && step.written < len {
                return Ok(());
            }
        }
    }

    fn probe_wants(&self) -> u64 {
        self.probe
            .as_ref()
            .map_or(u64::MAX, |(_, probe)| probe.wants() as u64)
    }

    fn took<D: Downstream>(
        &mut self,
        taken: &[u8],
        written: usize,
        at: At,
        out: &mut Outlet<D>,
    ) -> Result<(), LayerErrorKind> {
        self.consumed += taken.len() as u64;
        self.last_byte = taken.last().copied().unwrap_or(self.last_byte);
        if let Some((_, probe)) = &mut self.probe
            && (probe.push(taken, written) || at == At::DataEnd)
        {
            self.settle(out)?;
        }
        Ok(())
    }

    /// Begins a span before a block. Called only where the span so far is long enough.
    fn checkpoint<D: Downstream>(
        &mut self,
        bits: u8,
        out: &mut Outlet<D>,
    ) -> Result<(), LayerErrorKind> {
        self.settle(out)?;
        let window = self.stream.window()?;
        let start = SpanStart::Window {
            bits,
            window: Box::default(),
        };
        out.cut(self.consumed - u64::from(bits > 0), start);
        self.probe = Some((
            out.heads.len() - 1,
            Probe::new(bits, self.last_byte, window),
        ));
        Ok(())
    }

    /// Reduces the window that waits and stores it in its span's head.
    fn settle<D: Downstream>(&mut self, out: &mut Outlet<D>) -> Result<(), LayerErrorKind> {
        if let Some((head, probe)) = self.probe.take() {
            let packed = self.packer.pack(probe)?;
            if let Some(SpanStart::Window { window, .. }) =
                out.heads.get_mut(head).map(|head| &mut head.start)
            {
                *window = packed;
            }
        }
        Ok(())
    }
}
