//! Numbers, bytes, digests and paths of the index format, one after the other.

use data_encoding::HEXLOWER;

use crate::layer::codec::CodecError;
use crate::layer::path::LayerPath;
use crate::oci::Digest;
use crate::oci::digest::Algorithm;

/// Collects a body.
#[derive(Debug, Default)]
pub(super) struct Target(Vec<u8>);

impl Target {
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    pub(super) fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// LEB128.
    pub(super) fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// A signed number: small values of either sign are short.
    pub(super) fn signed(&mut self, value: i64) {
        self.varint((value << 1 ^ value >> 63) as u64);
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.varint(bytes.len() as u64);
        self.raw(bytes);
    }

    pub(super) fn digest(&mut self, digest: &Digest) {
        self.byte(u8::from(digest.algorithm() == Algorithm::Sha512));
        // Digests are lower-case hex by construction.
        self.raw(&HEXLOWER.decode(digest.hex().as_bytes()).unwrap_or_default());
    }

    /// A path, as what differs from the one before.
    pub(super) fn path(&mut self, path: &LayerPath, before: &[u8]) {
        let path = path.as_bytes();
        let shared = path.iter().zip(before).take_while(|(a, b)| a == b).count();
        self.varint(shared as u64);
        self.bytes(&path[shared..]);
    }
}

/// Takes a body apart.
#[derive(Debug)]
pub(super) struct Source<'a>(&'a [u8]);

impl<'a> Source<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Source<'a> {
        Source(bytes)
    }

    /// Says that nothing may follow.
    pub(super) fn end(&self) -> Result<(), CodecError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(CodecError::Length)
        }
    }

    pub(super) fn byte(&mut self) -> Result<u8, CodecError> {
        let (first, rest) = self.0.split_first().ok_or(CodecError::Length)?;
        self.0 = rest;
        Ok(*first)
    }

    pub(super) fn raw(&mut self, len: usize) -> Result<&'a [u8], CodecError> {
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(CodecError::Length)?;
        self.0 = rest;
        Ok(bytes)
    }

    pub(super) fn varint(&mut self) -> Result<u64, CodecError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(CodecError::Invalid("number"))
    }

    pub(super) fn signed(&mut self) -> Result<i64, CodecError> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    pub(super) fn u32(&mut self) -> Result<u32, CodecError> {
        u32::try_from(self.varint()?).map_err(|_| CodecError::Invalid("number"))
    }

    pub(super) fn len(&mut self) -> Result<usize, CodecError> {
        usize::try_from(self.varint()?).map_err(|_| CodecError::Length)
    }

    /// How many things follow, of which each takes at least `least` bytes.
    pub(super) fn count(&mut self, least: usize) -> Result<usize, CodecError> {
        let count = self.len()?;
        if count > self.0.len() / least {
            Err(CodecError::Length)
        } else {
            Ok(count)
        }
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], CodecError> {
        let len = self.len()?;
        self.raw(len)
    }

    pub(super) fn digest(&mut self) -> Result<Digest, CodecError> {
        let (name, len) = match self.byte()? {
            0 => ("sha256", 32),
            1 => ("sha512", 64),
            _ => return Err(CodecError::Invalid("digest")),
        };
        let text = format!("{name}:{}", HEXLOWER.encode(self.raw(len)?));
        text.parse().map_err(|_| CodecError::Invalid("digest"))
    }

    /// A path, as what differs from the one before.
    pub(super) fn path(&mut self, before: &[u8]) -> Result<LayerPath, CodecError> {
        let shared = self.len()?;
        let shared = before.get(..shared).ok_or(CodecError::Invalid("path"))?;
        let raw = [shared, self.bytes()?].concat();
        let path = LayerPath::parse(&raw)?;
        if path.as_bytes() == raw {
            Ok(path)
        } else {
            Err(CodecError::Invalid("path"))
        }
    }
}
