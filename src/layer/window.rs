//! Windows of checkpoints: the 32 KiB before a deflate block, reduced to the bytes that the block
//! and its successors refer to, and packed.
//!
//! Which bytes those are is found without an own deflate decoder. The stretch after the checkpoint
//! is decoded twice more, with two made-up windows: one whose byte at `i` is the low half of `i`,
//! one whose byte is the high half with the top bit set. An output byte that differs between the
//! two came from the window, and the two values say from where. Deflate reaches back 32 KiB, so
//! only the first 32 KiB of output can refer to the window at all.

use crate::layer::gzip::GzipError;
use crate::layer::inflate::{Inflate, Stop, WINDOW_BYTES};

/// Level of zstd for windows: measured on Debian layers, 9 saves 2 % against 3 and costs three
/// times as long; more saves nothing.
const LEVEL: i32 = 3;

/// Level of zstd for whole windows: there are few, and they are larger.
const WHOLE_LEVEL: i32 = 16;

/// Longest compressed stretch that is kept to reduce a window. 32 KiB of output take little more
/// than as much input, except when somebody adds empty blocks; then the window stays whole.
const PROBE_BYTES_MAX: usize = 128 << 10;

/// A window that waits for the stretch behind its checkpoint.
#[derive(Debug)]
pub(crate) struct Probe {
    bits: u8,
    byte: u8,
    window: Vec<u8>,
    input: Vec<u8>,
    output: usize,
}

impl Probe {
    /// A checkpoint at the high `bits` bits of `byte`, with `window` before it.
    pub(crate) fn new(bits: u8, byte: u8, window: Vec<u8>) -> Probe {
        Probe {
            bits,
            byte,
            window,
            input: Vec::new(),
            output: 0,
        }
    }

    /// Takes compressed bytes that were decoded to `output` bytes; whether they are enough.
    pub(crate) fn push(&mut self, input: &[u8], output: usize) -> bool {
        self.output += output;
        let room = (PROBE_BYTES_MAX + 1).saturating_sub(self.input.len());
        self.input
            .extend_from_slice(&input[..input.len().min(room)]);
        self.output >= WINDOW_BYTES || self.input.len() > PROBE_BYTES_MAX
    }

    /// How much output is still wanted.
    pub(crate) fn wants(&self) -> usize {
        WINDOW_BYTES.saturating_sub(self.output).max(1)
    }
}

/// Reduces and packs windows.
pub(crate) struct Packer {
    inflate: Inflate,
    compressor: zstd::bulk::Compressor<'static>,
    low: Vec<u8>,
    high: Vec<u8>,
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer").finish_non_exhaustive()
    }
}

impl Packer {
    pub(crate) fn new() -> Result<Packer, GzipError> {
        let compressor = zstd::bulk::Compressor::new(LEVEL).map_err(|_| GzipError::Window)?;
        let (low, high) = (vec![0; WINDOW_BYTES], vec![0; WINDOW_BYTES]);
        Ok(Packer {
            inflate: Inflate::new()?,
            compressor,
            low,
            high,
        })
    }

    /// The packed window of `probe`, empty when nothing refers to it. A window that begins with
    /// bytes that nothing refers to is shortened.
    pub(crate) fn pack(&mut self, mut probe: Probe) -> Result<Box<[u8]>, GzipError> {
        let used = self.used(&probe)?;
        let first = used.iter().position(|used| *used).unwrap_or(used.len());
        for (byte, _) in probe
            .window
            .iter_mut()
            .zip(&used)
            .filter(|(_, used)| !**used)
        {
            *byte = 0;
        }
        if first == used.len() {
            return Ok(Box::default());
        }
        let packed = self.compressor.compress(&probe.window[first..]);
        Ok(packed.map_err(|_| GzipError::Window)?.into())
    }

    /// Which bytes of the window are referred to.
    fn used(&mut self, probe: &Probe) -> Result<Vec<bool>, GzipError> {
        let len = probe.window.len();
        if probe.input.len() > PROBE_BYTES_MAX {
            return Ok(vec![true; len]);
        }
        let low: Vec<u8> = (0..len).map(|i| i as u8).collect();
        let high: Vec<u8> = (0..len).map(|i| (i >> 8) as u8 | 0x80).collect();
        let n = run(&mut self.inflate, probe, &low, &mut self.low)?;
        let m = run(&mut self.inflate, probe, &high, &mut self.high)?;
        let mut used = vec![false; len];
        for (&low, &high) in self.low[..n].iter().zip(&self.high[..m]) {
            // Equal values below 0x80 are literals. Others may be, or come from the one place
            // where both halves agree; keeping that place is never wrong.
            if low != high || high >= 0x80 {
                let at = usize::from(high & 0x7f) << 8 | usize::from(low);
                if let Some(used) = used.get_mut(at) {
                    *used = true;
                }
            }
        }
        Ok(used)
    }
}

/// Decodes the stretch with a made-up window; how many bytes came out.
fn run(
    inflate: &mut Inflate,
    probe: &Probe,
    window: &[u8],
    output: &mut [u8],
) -> Result<usize, GzipError> {
    inflate.reset()?;
    inflate.resume(probe.bits, probe.byte, window)?;
    let (mut input, mut filled) = (&probe.input[..], 0);
    while filled < output.len() {
        let step = inflate.run(input, &mut output[filled..], false)?;
        input = &input[step.consumed..];
        filled += step.written;
        if step.stop == Stop::End || (step.consumed == 0 && step.written == 0) {
            break;
        }
    }
    Ok(filled)
}

/// A packed window of which every byte is kept.
pub(crate) fn pack_whole(window: &[u8]) -> Option<Box<[u8]>> {
    Some(zstd::bulk::compress(window, WHOLE_LEVEL).ok()?.into())
}

/// Undoes [`Packer::pack`]; `None` when the bytes are not a packed window.
pub(crate) fn unpack(packed: &[u8]) -> Option<Vec<u8>> {
    if packed.is_empty() {
        return Some(Vec::new());
    }
    zstd::bulk::decompress(packed, WINDOW_BYTES).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A deflate stream, split at its first block boundary after `after` bytes of output.
    fn probe_at(packed: &[u8], after: usize) -> (Probe, Vec<u8>) {
        let mut inflate = Inflate::new().unwrap();
        let mut out = vec![0; 1 << 20];
        let (mut at, mut filled) = (0, 0);
        loop {
            let step = inflate
                .run(&packed[at..], &mut out[filled..], true)
                .unwrap();
            (at, filled) = (at + step.consumed, filled + step.written);
            assert_ne!(step.stop, Stop::End, "no boundary");
            if let Stop::Block { bits } = step.stop
                && filled >= after
            {
                let window = inflate.window().unwrap();
                let mut probe = Probe::new(bits, packed[at - 1], window);
                let rest = inflate
                    .run(&packed[at..], &mut out[filled..], false)
                    .unwrap();
                probe.push(&packed[at..at + rest.consumed], rest.written);
                return (probe, out[filled..filled + rest.written].to_vec());
            }
        }
    }

    fn deflate(bytes: &[u8]) -> Vec<u8> {
        use std::io::Write as _;
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), Default::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn a_reduced_window_decodes_the_same() {
        let mut random = fastrand::Rng::with_seed(7);
        let words: Vec<Vec<u8>> = (0..500)
            .map(|_| (0..9).map(|_| random.u8(..)).collect())
            .collect();
        let text: Vec<u8> = (0..60_000)
            .flat_map(|_| words[random.usize(..words.len())].clone())
            .collect();
        let (probe, rest) = probe_at(&deflate(&text), 100_000);
        let whole = probe.window.clone();
        let (bits, byte, input) = (probe.bits, probe.byte, probe.input.clone());
        let mut packer = Packer::new().unwrap();
        let window = unpack(&packer.pack(probe).unwrap()).unwrap();
        assert!(
            window.iter().filter(|b| **b == 0).count() > whole.len() / 10,
            "is sparse"
        );

        let mut inflate = Inflate::new().unwrap();
        inflate.resume(bits, byte, &window).unwrap();
        let mut out = vec![0; rest.len()];
        let step = inflate.run(&input, &mut out, false).unwrap();
        assert_eq!(step.written, rest.len());
        assert!(out == rest);
    }

    #[test]
    fn a_stretch_that_is_too_long_keeps_the_window() {
        let mut probe = Probe::new(0, 0, vec![7; WINDOW_BYTES]);
        assert!(!probe.push(&[0; 1000], 0));
        assert!(probe.push(&vec![0; PROBE_BYTES_MAX], 0));
        assert!(probe.input.len() <= PROBE_BYTES_MAX + 1);
        let packed = Packer::new().unwrap().pack(probe).unwrap();
        assert_eq!(unpack(&packed).unwrap(), vec![7; WINDOW_BYTES]);
        assert_eq!(unpack(b"x"), None);
    }
}
