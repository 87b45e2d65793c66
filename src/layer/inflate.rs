//! Raw deflate (RFC 1951) by zlib-rs, through its C interface: the only one that stops at block
//! boundaries and takes a window, which is what checkpoints are made of.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_int};
use std::fmt;

use libz_rs_sys as z;

/// How far back deflate can refer, in bytes.
pub(crate) const WINDOW_BYTES: usize = 32 << 10;

/// A raw deflate decoder.
pub(crate) struct Inflate {
    stream: Box<z::z_stream>,
}

/// What one call did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inflated {
    /// Bytes taken from the input.
    pub(crate) consumed: usize,
    /// Bytes put into the output.
    pub(crate) written: usize,
    /// Why it returned.
    pub(crate) stop: Stop,
}

/// Why decoding paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The input is used up or the output is full.
    Buffer,
    /// Before a block. The last `bits` bits of the consumed input belong to it already.
    Block {
        /// Number of bits.
        bits: u8,
    },
    /// After the last block; the input is consumed up to a whole byte.
    End,
}

/// The compressed data is not deflate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not valid deflate data: {0}")]
pub struct InflateError(String);

// SAFETY: the stream owns its state (allocated by Rust's allocator, freed in `drop`); its
// `next_in` and `next_out` are set at each call and not read between calls, so nothing in it is
// tied to a thread.
unsafe impl Send for Inflate {}

impl fmt::Debug for Inflate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inflate")
            .field("total_out", &self.stream.total_out)
            .finish()
    }
}

impl Inflate {
    /// A decoder at the start of a deflate stream.
    pub(crate) fn new() -> Result<Inflate, InflateError> {
        let mut stream = Box::new(z::z_stream::default());
        let size = size_of::<z::z_stream>() as c_int;
        // SAFETY: `stream` is a valid, exclusively borrowed z_stream whose allocator functions
        // were set by `default`; the version string is the library's own.
        let code = unsafe { z::inflateInit2_(&mut *stream, -15, z::zlibVersion(), size) };
        let inflate = Inflate { stream };
        inflate.check(code)?;
        Ok(inflate)
    }

    /// Back to the start of a stream, without history.
    pub(crate) fn reset(&mut self) -> Result<(), InflateError> {
        // SAFETY: `stream` was initialized by `inflateInit2_`.
        let code = unsafe { z::inflateReset(&mut *self.stream) };
        self.check(code)
    }

    /// After [`Self::reset`]: starts in the middle of a stream, at the high `bits` bits (0..8) of
    /// `byte`, with `window` as the output before that.
    pub(crate) fn resume(&mut self, bits: u8, byte: u8, window: &[u8]) -> Result<(), InflateError> {
        let window = &window[window.len().saturating_sub(WINDOW_BYTES)..];
        if bits > 0 {
            let value = i32::from(byte >> (8 - bits.min(8)));
            // SAFETY: `stream` was initialized by `inflateInit2_`.
            let code = unsafe { z::inflatePrime(&mut *self.stream, i32::from(bits), value) };
            self.check(code)?;
        }
        // SAFETY: `stream` was initialized; pointer and length are those of a live slice, of
        // 32 KiB at most.
        let code = unsafe {
            z::inflateSetDictionary(&mut *self.stream, window.as_ptr(), window.len() as u32)
        };
        self.check(code)
    }

    /// The last output, 32 KiB or as much as there was since the start of the stream.
    pub(crate) fn window(&self) -> Result<Vec<u8>, InflateError> {
        let mut window = vec![0; WINDOW_BYTES];
        let mut len = 0;
        // SAFETY: `stream` was initialized; `window` has the 32768 bytes that are always enough.
        let code = unsafe { z::inflateGetDictionary(&*self.stream, window.as_mut_ptr(), &mut len) };
        self.check(code)?;
        window.truncate(len as usize);
        Ok(window)
    }

    /// Decodes `input` into `output` until one of them ends; with `blocks`, also at the next block
    /// boundary.
    pub(crate) fn run(
        &mut self,
        input: &[u8],
        output: &mut [u8],
        blocks: bool,
    ) -> Result<Inflated, InflateError> {
        // Longer slices are worked off by the next call.
        let (avail_in, avail_out) = (input.len().min(1 << 30), output.len().min(1 << 30));
        self.stream.next_in = input.as_ptr();
        self.stream.avail_in = avail_in as u32;
        self.stream.next_out = output.as_mut_ptr();
        self.stream.avail_out = avail_out as u32;
        let flush = if blocks { z::Z_BLOCK } else { z::Z_NO_FLUSH };
        // SAFETY: `stream` was initialized; its pointers and lengths were just set to those of
        // slices that live through this call, one shared and one exclusive.
        let code = unsafe { z::inflate(&mut *self.stream, flush) };
        let stop = match code {
            z::Z_STREAM_END => Stop::End,
            // No progress was possible.
            z::Z_BUF_ERROR => Stop::Buffer,
            // zlib.h, inflate(): bit 7 is "at a block boundary", bit 6 "in the last block", the
            // low five count the unused bits of what was consumed.
            z::Z_OK if blocks && self.stream.data_type & 0xc0 == 0x80 => Stop::Block {
                bits: (self.stream.data_type & 0x1f) as u8,
            },
            z::Z_OK => Stop::Buffer,
            z::Z_NEED_DICT => return Err(InflateError("a preset dictionary is asked for".into())),
            _ => return Err(self.error(code)),
        };
        Ok(Inflated {
            consumed: avail_in - self.stream.avail_in as usize,
            written: avail_out - self.stream.avail_out as usize,
            stop,
        })
    }

    fn check(&self, code: c_int) -> Result<(), InflateError> {
        if code == z::Z_OK {
            Ok(())
        } else {
            Err(self.error(code))
        }
    }

    fn error(&self, code: c_int) -> InflateError {
        if self.stream.msg.is_null() {
            return InflateError(format!("zlib code {code}"));
        }
        // SAFETY: zlib's `msg` is NULL or a static string that ends with NUL.
        let text = unsafe { CStr::from_ptr(self.stream.msg) };
        InflateError(text.to_string_lossy().into_owned())
    }
}

impl Drop for Inflate {
    fn drop(&mut self) {
        // SAFETY: `stream` was handed to `inflateInit2_` and is not used after this.
        unsafe { z::inflateEnd(&mut *self.stream) };
    }
}

/// CRC-32 of RFC 1952 over `bytes`, continuing from `crc` (0 at the start).
pub(crate) fn crc32(crc: u32, bytes: &[u8]) -> u32 {
    // SAFETY: pointer and length are those of a live slice.
    unsafe { z::crc32_z(crc.into(), bytes.as_ptr(), bytes.len()) as u32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_all(inflate: &mut Inflate, mut input: &[u8]) -> Result<Vec<u8>, InflateError> {
        let (mut all, mut out) = (Vec::new(), [0; 1000]);
        loop {
            let step = inflate.run(input, &mut out, false)?;
            all.extend_from_slice(&out[..step.written]);
            input = &input[step.consumed..];
            if step.stop == Stop::End || (step.consumed == 0 && step.written == 0) {
                return Ok(all);
            }
        }
    }

    fn deflate(bytes: &[u8]) -> Vec<u8> {
        use std::io::Write as _;
        let mut encoder =
            flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn streams_are_inflated_and_reset() {
        let text: Vec<u8> = (0..50_000_u32)
            .flat_map(|i| (i / 7).to_le_bytes())
            .collect();
        let packed = deflate(&text);
        let mut inflate = Inflate::new().unwrap();
        for _ in 0..2 {
            assert_eq!(run_all(&mut inflate, &packed).unwrap(), text);
            assert_eq!(inflate.window().unwrap(), text[text.len() - WINDOW_BYTES..]);
            inflate.reset().unwrap();
        }
        assert!(run_all(&mut inflate, &[7; 40]).is_err());
    }

    #[test]
    fn a_block_boundary_is_a_place_to_resume() {
        let text: Vec<u8> = (0..80_000_u32)
            .flat_map(|i| (i % 9000).to_le_bytes())
            .collect();
        let packed = deflate(&text);
        let mut inflate = Inflate::new().unwrap();
        let (mut at, mut address, mut out) = (0, 0, vec![0; text.len()]);
        let mut boundaries = 0;
        loop {
            let step = inflate
                .run(&packed[at..], &mut out[address..], true)
                .unwrap();
            at += step.consumed;
            address += step.written;
            match step.stop {
                Stop::End => break,
                Stop::Block { bits } => {
                    let mut again = Inflate::new().unwrap();
                    let byte = if at > 0 { packed[at - 1] } else { 0 };
                    again
                        .resume(bits, byte, &inflate.window().unwrap())
                        .unwrap();
                    assert_eq!(run_all(&mut again, &packed[at..]).unwrap(), text[address..]);
                    boundaries += 1;
                }
                Stop::Buffer => {}
            }
        }
        assert!(boundaries > 0);
        assert_eq!(crc32(0, b"123456789"), 0xcbf4_3926);
    }
}
