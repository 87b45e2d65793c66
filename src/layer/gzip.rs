//! gzip (RFC 1952): any number of members, each a header, a deflate stream and a trailer.
//!
//! `GzipStream` decodes from the start of a member or from a checkpoint inside one. It is used
//! by first contact, which looks for places to make checkpoints, and by the decoder of spans.

pub(crate) mod header;

use crate::layer::gzip::header::Header;
use crate::layer::inflate::{Inflate, InflateError, Stop, crc32};

/// Why bytes are not gzip.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GzipError {
    /// Something follows a member that is neither a member nor zeros.
    #[error("no gzip member begins where one should")]
    Magic,
    /// Unknown method or reserved flags.
    #[error("a gzip header has an unknown method or reserved flags")]
    Header,
    /// FHCRC does not match.
    #[error("a gzip header does not match its checksum")]
    HeaderChecksum,
    /// The deflate data is damaged.
    #[error(transparent)]
    Inflate(#[from] InflateError),
    /// CRC32 or ISIZE do not match.
    #[error("a gzip member does not match its checksum or length")]
    Checksum,
    /// Not zeros after padding.
    #[error("data follows the last gzip member")]
    Trailing,
    /// A window could not be compressed, for want of memory.
    #[error("the window of a checkpoint could not be compressed")]
    Window,
    /// The end is missing.
    #[error("the gzip data ends in the middle of a member")]
    Truncated,
}

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) consumed: usize,
    pub(crate) written: usize,
    pub(crate) at: At,
}

/// Where a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    /// Nowhere in particular.
    Midst,
    /// Before a block; the last `bits` bits of the consumed input belong to it.
    Block { bits: u8 },
    /// After a member's last block.
    DataEnd,
    /// Before the first byte of a further member.
    Member,
}

#[derive(Debug)]
enum State {
    Header(Header),
    Data,
    Trailer { bytes: [u8; 8], have: usize },
    Between,
    Padding,
}

/// A decoder of gzip members.
#[derive(Debug)]
pub(crate) struct GzipStream {
    state: State,
    inflate: Inflate,
    /// CRC32 and length so far; `None` when the member's start was not seen.
    sum: Option<(u32, u32)>,
}

impl GzipStream {
    /// A decoder that expects a member's header.
    pub(crate) fn new() -> Result<GzipStream, GzipError> {
        let state = State::Header(Header::default());
        Ok(GzipStream {
            state,
            inflate: Inflate::new()?,
            sum: Some((0, 0)),
        })
    }

    /// Expects a member's header from here on.
    pub(crate) fn restart(&mut self) -> Result<(), GzipError> {
        self.state = State::Header(Header::default());
        self.sum = Some((0, 0));
        Ok(self.inflate.reset()?)
    }

    /// Expects a deflate block from here on: see [`Inflate::resume`].
    pub(crate) fn resume(&mut self, bits: u8, byte: u8, window: &[u8]) -> Result<(), GzipError> {
        self.state = State::Data;
        self.sum = None;
        self.inflate.reset()?;
        Ok(self.inflate.resume(bits, byte, window)?)
    }

    /// The last 32 KiB of output of this member.
    pub(crate) fn window(&self) -> Result<Vec<u8>, GzipError> {
        Ok(self.inflate.window()?)
    }

    /// Whether the data may end here.
    pub(crate) fn is_complete(&self) -> bool {
        matches!(self.state, State::Between | State::Padding)
    }

    /// Does a piece of work. There is more to do unless all of `input` was consumed and `output`
    /// has room left. With `blocks`, stops before every block but a member's first.
    pub(crate) fn step(
        &mut self,
        input: &[u8],
        output: &mut [u8],
        blocks: bool,
    ) -> Result<Step, GzipError> {
        let step = |consumed, at| {
            Ok(Step {
                consumed,
                written: 0,
                at,
            })
        };
        match &mut self.state {
            State::Header(header) => {
                let (consumed, done) = header.push(input)?;
                if done {
                    self.state = State::Data;
                }
                step(consumed, At::Midst)
            }
            State::Data => self.data(input, output, blocks),
            State::Trailer { bytes, have } => {
                let n = input.len().min(8 - *have);
                bytes[*have..*have + n].copy_from_slice(&input[..n]);
                *have += n;
                if *have == 8 {
                    let bytes = *bytes;
                    self.trailer(bytes)?;
                }
                step(n, At::Midst)
            }
            State::Between => match input.first() {
                None => step(0, At::Midst),
                Some(0) => {
                    self.state = State::Padding;
                    step(0, At::Midst)
                }
                Some(_) => {
                    self.restart()?;
                    step(0, At::Member)
                }
            },
            State::Padding if input.iter().all(|b| *b == 0) => step(input.len(), At::Midst),
            State::Padding => Err(GzipError::Trailing),
        }
    }

    fn data(&mut self, input: &[u8], output: &mut [u8], blocks: bool) -> Result<Step, GzipError> {
        let done = self.inflate.run(input, output, blocks)?;
        if let Some((crc, len)) = &mut self.sum {
            *crc = crc32(*crc, &output[..done.written]);
            // ISIZE is the length modulo 2^32.
            *len = len.wrapping_add(done.written as u32);
        }
        let at = match done.stop {
            Stop::Buffer => At::Midst,
            Stop::Block { bits } => At::Block { bits },
            Stop::End => {
                self.state = State::Trailer {
                    bytes: [0; 8],
                    have: 0,
                };
                At::DataEnd
            }
        };
        Ok(Step {
            consumed: done.consumed,
            written: done.written,
            at,
        })
    }

    fn trailer(&mut self, bytes: [u8; 8]) -> Result<(), GzipError> {
        let value = u64::from_le_bytes(bytes);
        if self
            .sum
            .is_some_and(|(crc, len)| value != u64::from(crc) | u64::from(len) << 32)
        {
            return Err(GzipError::Checksum);
        }
        self.state = State::Between;
        Ok(())
    }
}
