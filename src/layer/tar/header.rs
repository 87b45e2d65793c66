//! The 512-byte header: field positions and number formats (POSIX.1-1988 `ustar`, GNU tar manual
//! "Basic Tar Format", star's extension of the prefix).

use crate::layer::tar::TarError;

/// Size of a header, and the unit that everything is padded to.
pub(crate) const BLOCK: usize = 512;

/// A header block.
pub(crate) type Block = [u8; BLOCK];

/// Which dialect the magic announces. It decides what stands behind the link name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    V7,
    Ustar,
    /// Ustar with a shorter prefix, followed by times.
    Star,
    Gnu,
}

/// A header whose checksum has matched.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header<'a> {
    block: &'a Block,
    dialect: Dialect,
}

impl<'a> Header<'a> {
    /// Checks the checksum: the sum of all bytes, the checksum field taken as spaces. Old tars
    /// summed them as signed.
    pub(crate) fn parse(block: &'a Block) -> Result<Header<'a>, TarError> {
        let spaces = 8 * i64::from(b' ');
        let field = &block[148..156];
        let sum = |value: fn(u8) -> i64| -> i64 {
            let all: i64 = block.iter().map(|b| value(*b)).sum();
            let own: i64 = field.iter().map(|b| value(*b)).sum();
            all - own + spaces
        };
        let expected = number(field, "checksum")?;
        if expected != sum(i64::from) && expected != sum(|b| i64::from(b as i8)) {
            return Err(TarError::Checksum);
        }
        let dialect = match &block[257..265] {
            b"ustar\x0000" if &block[508..512] == b"tar\0" => Dialect::Star,
            b"ustar  \0" => Dialect::Gnu,
            // Some writers leave the version out.
            magic if magic.starts_with(b"ustar\0") => Dialect::Ustar,
            _ => Dialect::V7,
        };
        Ok(Header { block, dialect })
    }

    pub(crate) fn typeflag(self) -> u8 {
        self.block[156]
    }

    /// The name with its prefix.
    pub(crate) fn name(self) -> Vec<u8> {
        let prefix = match self.dialect {
            Dialect::Ustar => text(&self.block[345..500]),
            Dialect::Star => text(&self.block[345..476]),
            Dialect::V7 | Dialect::Gnu => b"",
        };
        let name = text(&self.block[..100]);
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, b"/", name].concat()
        }
    }

    pub(crate) fn link(self) -> &'a [u8] {
        text(&self.block[157..257])
    }

    pub(crate) fn mode(self) -> Result<u32, TarError> {
        Ok((number(&self.block[100..108], "mode")? & 0o7777) as u32)
    }

    pub(crate) fn uid(self) -> Result<i64, TarError> {
        number(&self.block[108..116], "uid")
    }

    pub(crate) fn gid(self) -> Result<i64, TarError> {
        number(&self.block[116..124], "gid")
    }

    pub(crate) fn size(self) -> Result<u64, TarError> {
        length(&self.block[124..136], "size")
    }

    pub(crate) fn mtime(self) -> Result<i64, TarError> {
        number(&self.block[136..148], "mtime")
    }

    /// Major and minor number of a device.
    pub(crate) fn device(self) -> Result<(u32, u32), TarError> {
        if self.dialect == Dialect::V7 {
            return Ok((0, 0));
        }
        let part = |range: std::ops::Range<usize>| {
            u32::try_from(number(&self.block[range], "device number")?)
                .map_err(|_| TarError::Number("device number"))
        };
        Ok((part(329..337)?, part(337..345)?))
    }

    /// The first four pieces of an old GNU sparse file, the whole length, and whether a further
    /// block of pieces follows. `None` when this is not GNU's dialect.
    pub(crate) fn gnu_sparse(self) -> Result<Option<GnuSparse>, TarError> {
        if self.dialect != Dialect::Gnu {
            return Ok(None);
        }
        let real_size = length(&self.block[483..495], "real size")?;
        let pieces = sparse_pieces(&self.block[386..482])?;
        Ok(Some(GnuSparse {
            pieces,
            real_size,
            extended: self.block[482] != 0,
        }))
    }
}

/// What the header of an old GNU sparse file says.
#[derive(Debug)]
pub(crate) struct GnuSparse {
    pub(crate) pieces: Vec<(u64, u64)>,
    pub(crate) real_size: u64,
    pub(crate) extended: bool,
}

/// A further block of an old GNU sparse file: 21 pieces and whether another one follows.
pub(crate) fn sparse_extension(block: &Block) -> Result<(Vec<(u64, u64)>, bool), TarError> {
    Ok((sparse_pieces(&block[..504])?, block[504] != 0))
}

/// Pairs of offset and length, 12 bytes each; an empty offset ends them.
fn sparse_pieces(bytes: &[u8]) -> Result<Vec<(u64, u64)>, TarError> {
    let pair = |raw: &[u8]| {
        Ok((
            length(&raw[..12], "sparse offset")?,
            length(&raw[12..], "sparse length")?,
        ))
    };
    bytes
        .chunks_exact(24)
        .take_while(|raw| raw[0] != 0)
        .map(pair)
        .collect()
}

/// The bytes up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|b| *b == 0).unwrap_or(field.len())]
}

fn length(field: &[u8], name: &'static str) -> Result<u64, TarError> {
    u64::try_from(number(field, name)?).map_err(|_| TarError::Number(name))
}

/// Octal digits with spaces or NULs around them, or, when the highest bit is set, a big-endian
/// two's complement number in the remaining bits (GNU's base 256).
fn number(field: &[u8], name: &'static str) -> Result<i64, TarError> {
    let error = TarError::Number(name);
    let first = *field.first().ok_or(error.clone())?;
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (at, byte) in field.iter().enumerate() {
            // Bit 7 of the first byte is the mark; with bit 6 set the number is negative.
            let byte = if at == 0 && !negative {
                byte & 0x7f
            } else {
                *byte
            };
            value = value << 8 | i128::from(byte);
        }
        return i64::try_from(value).map_err(|_| error);
    }
    let start = field
        .iter()
        .position(|b| *b != b' ' && *b != 0)
        .unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits
        .iter()
        .position(|b| *b == b' ' || *b == 0)
        .unwrap_or(digits.len());
    // Twelve octal digits are 36 bits.
    digits[..end]
        .iter()
        .try_fold(0_i64, |value, digit| match digit {
            b'0'..=b'7' => Ok(value << 3 | i64::from(digit - b'0')),
            _ => Err(error.clone()),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        let n = |field: &[u8]| number(field, "x").ok();
        assert_eq!(n(b"0000644\0"), Some(0o644));
        assert_eq!(n(b"   644 \0"), Some(0o644));
        assert_eq!(n(b"77777777"), Some(0o77777777));
        assert_eq!(n(b"\0\0\0\0"), Some(0));
        assert_eq!(n(b"00x8"), None);
        assert_eq!(n(b"-001"), None);
        assert_eq!(n(&[0x80, 0, 0, 0, 0, 0, 1, 0]), Some(256));
        assert_eq!(n(&[0xff; 12]), Some(-1));
        let mut field = [0xff; 12];
        field[11] = 0x9c;
        assert_eq!(n(&field), Some(-100));
        assert_eq!(n(&[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(
            n(&[0x80, 0, 0, 0, 0x7f, 0, 0, 0, 0, 0, 0, 0]),
            Some(0x7f << 56)
        );
    }

    #[test]
    fn damaged_headers_are_refused() {
        let mut block = [0; BLOCK];
        block[0] = b'a';
        block[148..155].copy_from_slice(b"000541 ");
        assert!(Header::parse(&block).is_ok());
        block[0] = b'b';
        assert_eq!(Header::parse(&block).err(), Some(TarError::Checksum));
    }
}
