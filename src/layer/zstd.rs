//! Zstandard (RFC 8878): any number of frames, skippable ones among them.

use zstd::zstd_safe::{self, DCtx, DParameter, InBuffer, OutBuffer, ResetDirective};

/// Largest window that a frame may ask for, as a power of two: 128 MiB, what the reference decoder
/// admits without being told otherwise. More would let a few bytes claim gigabytes of memory.
pub const WINDOW_LOG_MAX: u32 = 27;

/// Why bytes are not Zstandard.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ZstdError {
    /// What the decoder says: damage, a checksum that does not match, a window too large.
    #[error("not valid zstd data: {0}")]
    Decode(&'static str),
    /// The end is missing.
    #[error("the zstd data ends in the middle of a frame")]
    Truncated,
}

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) consumed: usize,
    pub(crate) written: usize,
    /// Whether a frame ended after these bytes.
    pub(crate) frame_end: bool,
}

/// A decoder of frames.
pub(crate) struct ZstdStream {
    context: DCtx<'static>,
    complete: bool,
}

impl std::fmt::Debug for ZstdStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ZstdStream")
            .field("complete", &self.complete)
            .finish_non_exhaustive()
    }
}

impl ZstdStream {
    /// A decoder that expects a frame.
    pub(crate) fn new() -> Result<ZstdStream, ZstdError> {
        let mut context = DCtx::try_create().ok_or(ZstdError::Decode("out of memory"))?;
        context
            .set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))
            .map_err(error)?;
        Ok(ZstdStream {
            context,
            complete: true,
        })
    }

    /// Expects a frame from here on.
    pub(crate) fn restart(&mut self) -> Result<(), ZstdError> {
        self.complete = true;
        self.context
            .reset(ResetDirective::SessionOnly)
            .map_err(error)?;
        Ok(())
    }

    /// Whether the data may end here.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Does a piece of work. There is more to do unless all of `input` was consumed and `output`
    /// has room left.
    pub(crate) fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, ZstdError> {
        let (mut from, mut to) = (InBuffer::around(input), OutBuffer::around(output));
        let hint = self
            .context
            .decompress_stream(&mut to, &mut from)
            .map_err(error)?;
        let (consumed, written) = (from.pos(), to.pos());
        if consumed > 0 || written > 0 {
            self.complete = hint == 0;
        }
        Ok(Step {
            consumed,
            written,
            frame_end: self.complete && consumed + written > 0,
        })
    }
}

fn error(code: usize) -> ZstdError {
    ZstdError::Decode(zstd_safe::get_error_name(code))
}
