//! Tars byte by byte, so that a test can have headers that no library writes. What is right and what
//! is odd is the caller's: nothing here checks anything but that a field is long enough.
//!
//! Fields: POSIX.1-1988 `ustar`; GNU tar manual, "Basic Tar Format"; POSIX.1-2001 `pax`.

use std::ops::Range;

/// A field of the header.
pub type Field = Range<usize>;

pub const BLOCK: usize = 512;
pub const NAME: Field = 0..100;
pub const MODE: Field = 100..108;
pub const UID: Field = 108..116;
pub const GID: Field = 116..124;
pub const SIZE: Field = 124..136;
pub const MTIME: Field = 136..148;
const CHECKSUM: Field = 148..156;
const TYPE: usize = 156;
pub const LINK: Field = 157..257;
pub const MAGIC: Field = 257..265;
pub const MAJOR: Field = 329..337;
pub const MINOR: Field = 337..345;
pub const PREFIX: Field = 345..500;

pub const USTAR: &[u8] = b"ustar\x0000";
pub const GNU: &[u8] = b"ustar  \0";

/// Pairs of offset and length.
pub type Map = [(u64, u64)];

/// A header and what follows it.
#[derive(Debug, Clone)]
pub struct Member {
    block: [u8; BLOCK],
    data: Vec<u8>,
    signed: bool,
}

impl Member {
    /// A ustar header of this type, all numbers 0 but the mode, which is 0644.
    pub fn new(kind: u8, name: &[u8]) -> Member {
        let member = Member {
            block: [0; BLOCK],
            data: Vec::new(),
            signed: false,
        };
        member
            .kind(kind)
            .text(NAME, name)
            .text(MAGIC, USTAR)
            .octal(MODE, 0o644)
            .octal(UID, 0)
            .octal(GID, 0)
            .octal(SIZE, 0)
            .octal(MTIME, 0)
    }

    pub fn kind(mut self, kind: u8) -> Member {
        self.block[TYPE] = kind;
        self
    }

    /// Bytes from the start of the field on; what is left of it becomes NUL.
    pub fn text(mut self, field: Field, text: &[u8]) -> Member {
        let field = &mut self.block[field];
        field.fill(0);
        field[..text.len()].copy_from_slice(text);
        self
    }

    /// Octal digits that fill the field but for a NUL.
    pub fn octal(self, field: Field, value: u64) -> Member {
        let digits = field.len() - 1;
        let text = format!("{value:0digits$o}");
        self.text(field, text.as_bytes())
    }

    /// GNU's base 256: two's complement, big-endian, the highest bit set.
    pub fn base256(mut self, field: Field, value: i64) -> Member {
        let field = &mut self.block[field];
        field.fill(if value < 0 { 0xff } else { 0 });
        let (start, bytes) = (field.len().saturating_sub(8), value.to_be_bytes());
        let from = 8 - field.len().min(8);
        field[start..].copy_from_slice(&bytes[from..]);
        field[0] |= 0x80;
        self
    }

    /// What follows the header, and its length in the header.
    pub fn data(self, data: &[u8]) -> Member {
        let member = self.octal(SIZE, data.len() as u64);
        member.only_data(data)
    }

    /// What follows the header; the length in the header stays.
    pub fn only_data(mut self, data: &[u8]) -> Member {
        self.data = data.to_vec();
        self
    }

    /// Sums the header's bytes up as signed, as some old tars did.
    pub fn signed_checksum(mut self) -> Member {
        self.signed = true;
        self
    }

    /// The bytes, padded to whole blocks.
    pub fn bytes(mut self) -> Vec<u8> {
        self.block[CHECKSUM].fill(b' ');
        let value = |b: &u8| match self.signed {
            true => i64::from(b.cast_signed()),
            false => i64::from(*b),
        };
        let sum: i64 = self.block.iter().map(value).sum();
        let text = format!("{sum:06o}\0 ");
        self.block[CHECKSUM].copy_from_slice(text.as_bytes());
        padded([&self.block[..], &self.data].concat())
    }
}

/// A file of GNU's old sparse format. The first four pieces stand in the header, the others 21 in a
/// block behind it.
pub fn old_gnu_sparse(head: Member, size: u64, map: &Map, data: &[u8]) -> Vec<u8> {
    const FIRST: Field = 386..482;
    const EXTENDED: usize = 482;
    const REAL_SIZE: Field = 483..495;
    let (first, more) = map.split_at(map.len().min(4));
    let mut head = head
        .only_data(&[])
        .kind(b'S')
        .text(MAGIC, GNU)
        .octal(SIZE, data.len() as u64)
        .text(FIRST, &sparse_pieces(first));
    head = match size >> 33 {
        0 => head.octal(REAL_SIZE, size),
        _ => head.base256(REAL_SIZE, size.cast_signed()),
    };
    head.block[EXTENDED] = u8::from(!more.is_empty());
    let mut bytes = head.bytes();
    let blocks = more.len().div_ceil(21);
    for (n, pieces) in more.chunks(21).enumerate() {
        let mut block = sparse_pieces(pieces);
        block.resize(BLOCK, 0);
        block[504] = u8::from(n + 1 < blocks);
        bytes.extend(block);
    }
    bytes.extend_from_slice(data);
    padded(bytes)
}

fn sparse_pieces(map: &Map) -> Vec<u8> {
    let number = |n: u64| match n >> 33 {
        0 => format!("{n:011o}\0").into_bytes(),
        _ => [&[0x80, 0, 0, 0], &n.to_be_bytes()[..]].concat(),
    };
    map.iter()
        .flat_map(|(offset, len)| [number(*offset), number(*len)].concat())
        .collect()
}

/// A PAX header: `x` for the next entry, `g` for all that follow.
pub fn pax(kind: u8, records: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in records {
        let rest = [b" ", *key, b"=", *value, b"\n"].concat();
        let mut len = rest.len() + 1;
        while len != rest.len() + len.to_string().len() {
            len = rest.len() + len.to_string().len();
        }
        body.extend_from_slice(len.to_string().as_bytes());
        body.extend_from_slice(&rest);
    }
    Member::new(kind, b"PaxHeaders/x").data(&body).bytes()
}

/// A GNU long name (`L`) or long link (`K`).
pub fn gnu_long(kind: u8, text: &[u8]) -> Vec<u8> {
    let head = Member::new(kind, b"././@LongLink").text(MAGIC, GNU);
    head.data(&[text, b"\0"].concat()).bytes()
}

/// The two blocks of zeros that end a tar.
pub fn end() -> Vec<u8> {
    vec![0; 2 * BLOCK]
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}
