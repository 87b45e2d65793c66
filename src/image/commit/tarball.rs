//! Writing a layer's tar: POSIX headers, with PAX records for what these cannot say (IEEE Std
//! 1003.1, "pax"; extended attributes as `SCHILY.xattr.*`; sparse files as GNU.sparse 1.0, GNU tar
//! manual, "PAX Format"). The bytes depend on nothing but what is written: no clock, no names of
//! users.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write};

/// Length of a block, of which all is made.
const BLOCK_BYTES: usize = 512;
/// Longest name and longest target that fit a header.
const NAME_BYTES_MAX: usize = 100;

/// What kind of entry: the type flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Regular,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

impl Kind {
    fn flag(self) -> u8 {
        match self {
            Kind::Regular => b'0',
            Kind::HardLink => b'1',
            Kind::Symlink => b'2',
            Kind::CharDevice => b'3',
            Kind::BlockDevice => b'4',
            Kind::Directory => b'5',
            Kind::Fifo => b'6',
        }
    }
}

/// What a header says.
#[derive(Debug, Clone)]
pub(super) struct Head {
    /// Without a leading slash; the root is empty.
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    /// Permission, set-id and sticky bits.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds and nanoseconds.
    pub(super) mtime: (i64, u32),
    /// Of links.
    pub(super) target: Vec<u8>,
    /// Of devices.
    pub(super) device: (u32, u32),
    /// Sorted by name.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Pieces of a file that hold data: offset and length, in order.
pub(super) type Pieces = [(u64, u64)];

/// Writes entries to `out`.
#[derive(Debug)]
pub(super) struct TarWriter<W> {
    out: W,
}

impl<W: Write> TarWriter<W> {
    pub(super) fn new(out: W) -> TarWriter<W> {
        TarWriter { out }
    }

    /// An entry without data.
    pub(super) fn entry(&mut self, head: &Head) -> io::Result<()> {
        self.head(head, 0, BTreeMap::new())
    }

    /// The beginning of a file of `size` bytes. Exactly that many have to be written to
    /// [`TarWriter::data`], then [`TarWriter::pad`].
    pub(super) fn file(&mut self, head: &Head, size: u64) -> io::Result<()> {
        self.head(head, size, BTreeMap::new())
    }

    /// The beginning of a file of `size` bytes with holes. The bytes of all `pieces` have to follow.
    pub(super) fn sparse(&mut self, head: &Head, size: u64, pieces: &Pieces) -> io::Result<()> {
        let mut map = format!("{}\n", pieces.len());
        for (offset, len) in pieces {
            // Writing to a string does not fail.
            let _ = write!(map, "{offset}\n{len}\n");
        }
        let mut map = map.into_bytes();
        map.resize(map.len().next_multiple_of(BLOCK_BYTES), 0);
        let records = BTreeMap::from([
            (b"GNU.sparse.major".to_vec(), b"1".to_vec()),
            (b"GNU.sparse.minor".to_vec(), b"0".to_vec()),
            (b"GNU.sparse.name".to_vec(), head.path.clone()),
            (
                b"GNU.sparse.realsize".to_vec(),
                size.to_string().into_bytes(),
            ),
        ]);
        let name = head.path.rsplit(|b| *b == b'/').next().unwrap_or_default();
        let head = Head {
            path: [b"GNUSparseFile.0/", &name[..name.len().min(80)]].concat(),
            ..head.clone()
        };
        let data: u64 = pieces.iter().map(|(_, len)| len).sum();
        self.head(&head, map.len() as u64 + data, records)?;
        self.out.write_all(&map)
    }

    /// Bytes of a file.
    pub(super) fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }

    /// The end of a file's `written` bytes of data.
    pub(super) fn pad(&mut self, written: u64) -> io::Result<()> {
        let rest = written.next_multiple_of(BLOCK_BYTES as u64) - written;
        self.out.write_all(&[0; BLOCK_BYTES][..rest as usize])
    }

    /// The end of the tar.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK_BYTES])?;
        Ok(self.out)
    }

    fn head(
        &mut self,
        head: &Head,
        size: u64,
        mut records: BTreeMap<Vec<u8>, Vec<u8>>,
    ) -> io::Result<()> {
        let mut path = match head.path.is_empty() {
            true => b"./".to_vec(),
            false => head.path.clone(),
        };
        if head.kind == Kind::Directory && !path.ends_with(b"/") {
            path.push(b'/');
        }
        let mut block = Block::new(head.kind.flag());
        let mut record = |key: &str, value: Vec<u8>| {
            records.insert(key.as_bytes().to_vec(), value);
        };
        if !block.text(0, NAME_BYTES_MAX, &path) {
            record("path", path);
        }
        if !block.text(157, NAME_BYTES_MAX, &head.target) {
            record("linkpath", head.target.clone());
        }
        block.number(100, 8, u64::from(head.mode));
        for (at, key, id) in [(108, "uid", head.uid), (116, "gid", head.gid)] {
            if !block.number(at, 8, u64::from(id)) {
                record(key, id.to_string().into_bytes());
            }
        }
        if !block.number(124, 12, size) {
            record("size", size.to_string().into_bytes());
        }
        let (seconds, nanoseconds) = head.mtime;
        let fits = u64::try_from(seconds).is_ok_and(|s| block.number(136, 12, s));
        if !fits || nanoseconds > 0 {
            record("mtime", time(seconds, nanoseconds).into_bytes());
        }
        block.number(329, 8, u64::from(head.device.0));
        block.number(337, 8, u64::from(head.device.1));
        for (name, value) in &head.xattrs {
            records.insert([b"SCHILY.xattr.", &name[..]].concat(), value.clone());
        }
        if !records.is_empty() {
            self.records(&records)?;
        }
        self.out.write_all(&block.summed())
    }

    /// A PAX header for the next entry.
    fn records(&mut self, records: &BTreeMap<Vec<u8>, Vec<u8>>) -> io::Result<()> {
        let mut body = Vec::new();
        for (key, value) in records {
            // The length counts its own digits: blank, `=` and line end are the other three bytes.
            let rest = key.len() + value.len() + 3;
            let mut len = rest + 1;
            while len != rest + len.to_string().len() {
                len = rest + len.to_string().len();
            }
            body.extend_from_slice(format!("{len} ").as_bytes());
            body.extend_from_slice(key);
            body.push(b'=');
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        let mut block = Block::new(b'x');
        block.text(0, NAME_BYTES_MAX, b"PaxHeaders.0/entry");
        block.number(100, 8, 0o644);
        for at in [108, 116, 329, 337] {
            block.number(at, 8, 0);
        }
        block.number(124, 12, body.len() as u64);
        block.number(136, 12, 0);
        self.out.write_all(&block.summed())?;
        self.out.write_all(&body)?;
        self.pad(body.len() as u64)
    }
}

/// Seconds with a fraction; the nanoseconds count upwards from the seconds, below zero as well.
fn time(seconds: i64, nanoseconds: u32) -> String {
    if seconds >= 0 || nanoseconds == 0 {
        let text = format!("{seconds}.{nanoseconds:09}");
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    let (whole, fraction) = (seconds + 1, 1_000_000_000 - nanoseconds);
    let text = format!("-{}.{fraction:09}", whole.unsigned_abs());
    text.trim_end_matches('0').to_owned()
}

/// A header block in the making.
struct Block([u8; BLOCK_BYTES]);

impl Block {
    fn new(flag: u8) -> Block {
        let mut block = [0; BLOCK_BYTES];
        block[156] = flag;
        block[257..265].copy_from_slice(b"ustar\x0000");
        Block(block)
    }

    /// Whether `bytes` fit; what does not is cut, for those who read no PAX records.
    fn text(&mut self, at: usize, max: usize, bytes: &[u8]) -> bool {
        let len = bytes.len().min(max);
        self.0[at..at + len].copy_from_slice(&bytes[..len]);
        bytes.len() <= max
    }

    /// Octal digits and a NUL in `len` bytes; whether the number fits. One that does not is 0.
    fn number(&mut self, at: usize, len: usize, number: u64) -> bool {
        let digits = len - 1;
        let fits = number >> (3 * digits).min(63) == 0;
        let text = format!("{:0digits$o}", if fits { number } else { 0 });
        self.0[at..at + digits].copy_from_slice(text.as_bytes());
        fits
    }

    fn summed(mut self) -> [u8; BLOCK_BYTES] {
        self.0[148..156].fill(b' ');
        let sum: u32 = self.0.iter().map(|b| u32::from(*b)).sum();
        self.0[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(path: &[u8], kind: Kind) -> Head {
        Head {
            path: path.to_vec(),
            kind,
            mode: 0o4755,
            uid: 3_000_000,
            gid: 7,
            mtime: (-2, 500_000_000),
            target: Vec::new(),
            device: (0, 0),
            xattrs: vec![(b"user.a".to_vec(), b"b\0=".to_vec())],
        }
    }

    #[test]
    fn the_tar_crate_reads_what_is_written() {
        let mut tar = TarWriter::new(Vec::new());
        let long = b"d/".repeat(80);
        tar.entry(&head(&long, Kind::Directory)).unwrap();
        let mut link = head(b"l", Kind::Symlink);
        link.target = vec![b't'; 150];
        tar.entry(&link).unwrap();
        let name = [&long[..], b"\xff"].concat();
        tar.file(&head(&name, Kind::Regular), 3).unwrap();
        tar.data(b"abc").unwrap();
        tar.pad(3).unwrap();
        let mut device = head(b"c", Kind::CharDevice);
        (device.device, device.xattrs) = ((259, 1_048_575), Vec::new());
        tar.entry(&device).unwrap();
        let bytes = tar.finish().unwrap();
        assert!(bytes.len().is_multiple_of(BLOCK_BYTES));
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut found = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let records: Vec<_> = entry
                .pax_extensions()
                .unwrap()
                .into_iter()
                .flatten()
                .map(|r| r.unwrap())
                .map(|r| (r.key_bytes().to_vec(), r.value_bytes().to_vec()))
                .collect();
            assert_eq!(entry.header().mode().unwrap(), 0o4755);
            assert!(records.contains(&(b"uid".to_vec(), b"3000000".to_vec())));
            assert!(records.contains(&(b"mtime".to_vec(), b"-1.5".to_vec())));
            found.push((
                entry.path_bytes().to_vec(),
                entry.link_name_bytes().map(|n| n.to_vec()),
            ));
        }
        assert_eq!(found.len(), 4);
        assert_eq!(found[0].0, long);
        assert_eq!(found[1].1.as_deref(), Some(&[b't'; 150][..]));
        assert_eq!(found[2].0, name);
    }

    #[test]
    fn times_are_decimal_numbers() {
        for (seconds, nanoseconds, text) in [
            (0, 0, "0"),
            (12, 0, "12"),
            (1, 20, "1.00000002"),
            (100, 500_000_000, "100.5"),
            (-1, 0, "-1"),
            (-10, 0, "-10"),
            (-1, 250_000_000, "-0.75"),
        ] {
            assert_eq!(time(seconds, nanoseconds), text);
        }
    }
}
