//! Numbers and byte strings from a buffer that may end anywhere.

use crate::pack::PackError;

/// What is left of a buffer.
#[derive(Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], PackError> {
        let (taken, rest) = self
            .0
            .split_at_checked(len)
            .ok_or(PackError("it is cut off"))?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], PackError> {
        let taken = self.take(N)?;
        taken.try_into().map_err(|_| PackError("it is cut off"))
    }

    pub(super) fn u32(&mut self) -> Result<u32, PackError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, PackError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A length (u32) and as many bytes.
    pub(super) fn bytes(&mut self) -> Result<&'a [u8], PackError> {
        let len = self.u32()?;
        self.take(len as usize)
    }

    pub(super) fn end(&self) -> Result<(), PackError> {
        match self.0 {
            [] => Ok(()),
            _ => Err(PackError("something follows its end")),
        }
    }
}

/// Appends a length (u32) and the bytes.
pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(bytes);
}
