//! The header of a gzip member (RFC 1952, section 2.3), byte by byte.

use crate::layer::gzip::GzipError;
use crate::layer::inflate::crc32;

const FHCRC: u8 = 2;
const FEXTRA: u8 = 4;
const FNAME: u8 = 8;
const FCOMMENT: u8 = 16;
const RESERVED: u8 = 0xe0;

/// Reads a header; nothing of it is kept but its checksum.
#[derive(Debug, Default)]
pub(crate) struct Header {
    part: Part,
    /// Bytes of the part that were read.
    have: usize,
    flags: u8,
    /// The number that is being read: XLEN or the header's CRC-16.
    number: u16,
    crc: u32,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Part {
    #[default]
    Fixed,
    ExtraLen,
    Extra,
    Name,
    Comment,
    Crc,
    Done,
}

impl Header {
    /// Reads from `input`; the number of bytes consumed and whether the header is complete.
    pub(crate) fn push(&mut self, input: &[u8]) -> Result<(usize, bool), GzipError> {
        for (at, byte) in input.iter().enumerate() {
            self.byte(*byte)?;
            if self.part == Part::Done {
                return Ok((at + 1, true));
            }
        }
        Ok((input.len(), false))
    }

    fn byte(&mut self, byte: u8) -> Result<(), GzipError> {
        let at = self.have;
        self.have += 1;
        if self.part != Part::Crc {
            self.crc = crc32(self.crc, &[byte]);
        }
        match self.part {
            Part::Fixed => {
                match (at, byte) {
                    (0, 0x1f) | (1, 0x8b) | (2, 8) | (4..=9, _) => {}
                    (3, flags) if flags & RESERVED == 0 => self.flags = flags,
                    (0 | 1, _) => return Err(GzipError::Magic),
                    _ => return Err(GzipError::Header),
                }
                if at == 9 {
                    self.next(Part::ExtraLen);
                }
            }
            Part::ExtraLen => {
                self.number |= u16::from(byte) << (8 * at);
                if at == 1 {
                    self.next(if self.number == 0 {
                        Part::Name
                    } else {
                        Part::Extra
                    });
                }
            }
            Part::Extra if at + 1 == usize::from(self.number) => self.next(Part::Name),
            Part::Name if byte == 0 => self.next(Part::Comment),
            Part::Comment if byte == 0 => self.next(Part::Crc),
            Part::Extra | Part::Name | Part::Comment => {}
            Part::Crc => {
                self.number |= u16::from(byte) << (8 * at);
                if at == 1 {
                    if self.number != (self.crc & 0xffff) as u16 {
                        return Err(GzipError::HeaderChecksum);
                    }
                    self.next(Part::Done);
                }
            }
            Part::Done => {}
        }
        Ok(())
    }

    /// Goes to `part`, or past it when the flags say that it is absent.
    fn next(&mut self, part: Part) {
        let absent = |flag| self.flags & flag == 0;
        let part = match part {
            Part::ExtraLen if absent(FEXTRA) => return self.next(Part::Name),
            Part::Name if absent(FNAME) => return self.next(Part::Comment),
            Part::Comment if absent(FCOMMENT) => return self.next(Part::Crc),
            Part::Crc if absent(FHCRC) => Part::Done,
            part => part,
        };
        self.part = part;
        self.have = 0;
        if part != Part::Extra {
            self.number = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(flags: u8, rest: &[u8]) -> Vec<u8> {
        [&[0x1f, 0x8b, 8, flags, 0, 0, 0, 0, 0, 3][..], rest].concat()
    }

    fn read(bytes: &[u8]) -> Result<(usize, bool), GzipError> {
        let whole = Header::default().push(bytes);
        let mut split = Header::default();
        let mut at = 0;
        for byte in bytes {
            match split.push(&[*byte]) {
                Ok((n, done)) => {
                    at += n;
                    if done {
                        assert_eq!(whole, Ok((at, true)));
                        return whole;
                    }
                }
                error => assert_eq!(error, whole),
            }
        }
        whole
    }

    #[test]
    fn every_field_is_passed() {
        assert_eq!(read(&header(0, b"x")), Ok((10, true)));
        assert_eq!(read(&header(FNAME, b"abc\0x")), Ok((14, true)));
        assert_eq!(read(&header(FEXTRA, &[3, 0, 1, 2, 3, 9])), Ok((15, true)));
        assert_eq!(read(&header(FEXTRA, &[0, 0, 9])), Ok((12, true)));
        let mut all = header(0x1f, b"\x02\0ABname\0comment\0");
        let crc = crc32(0, &all) as u16;
        all.extend(crc.to_le_bytes());
        assert_eq!(read(&all), Ok((all.len(), true)));
        assert_eq!(read(&all[..all.len() - 1]), Ok((all.len() - 1, false)));
        *all.last_mut().unwrap() ^= 1;
        assert_eq!(Header::default().push(&all), Err(GzipError::HeaderChecksum));
    }

    #[test]
    fn what_is_not_a_header_is_refused() {
        assert_eq!(Header::default().push(b"PK"), Err(GzipError::Magic));
        assert_eq!(
            Header::default().push(&header(0x20, b"")),
            Err(GzipError::Header)
        );
        assert_eq!(
            Header::default().push(&[0x1f, 0x8b, 7]),
            Err(GzipError::Header)
        );
    }
}
