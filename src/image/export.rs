//! A file or directory of an image as a tar: POSIX pax format, with times to the nanosecond, hard
//! links and extended attributes.

use std::collections::HashMap;
use std::io::{self, Write};

use tar::{EntryType, Header};

use crate::image::error::Error;
use crate::image::view::{Stream, View};
use crate::tree::{Ino, Node, NodeKind};

/// Unit of a tar, in bytes.
const BLOCK_BYTES: u64 = 512;
/// Longest name in a header, in bytes.
const NAME_BYTES: usize = 100;
/// Largest number that octal digits can say in a header's id fields.
const ID_MAX: u32 = 0o777_7777;
/// The same of the length.
const SIZE_MAX: u64 = 0o777_7777_7777;

/// Writes `ino` and what is below it; `name` is what it is called in the tar.
pub fn export(view: &View, ino: Ino, name: &[u8], out: &mut dyn Write) -> Result<(), Error> {
    let steps = view.walk(ino);
    view.bring(steps.iter().map(|step| step.ino))?;
    let mut first_names: HashMap<Ino, Vec<u8>> = HashMap::new();
    for step in &steps {
        let path = match step.path.is_empty() {
            true => name.to_vec(),
            false => super::list::joined(name, &step.path),
        };
        let node = view.node(step.ino)?;
        let known = first_names.get(&step.ino).map(Vec::as_slice);
        head(view, step.ino, &path, known, out).map_err(Error::Output)?;
        if node.kind == NodeKind::Regular && known.is_none() {
            view.read(step.ino, &mut Stream(&mut *out))?;
            let padding = node.size.next_multiple_of(BLOCK_BYTES) - node.size;
            let zeros = [0; BLOCK_BYTES as usize];
            out.write_all(&zeros[..padding as usize])
                .map_err(Error::Output)?;
        }
        if node.kind != NodeKind::Directory && node.nlink > 1 && known.is_none() {
            first_names.insert(step.ino, path);
        }
    }
    let end = [0; 2 * BLOCK_BYTES as usize];
    out.write_all(&end)
        .and_then(|()| out.flush())
        .map_err(Error::Output)
}

fn head(
    view: &View,
    ino: Ino,
    path: &[u8],
    known: Option<&[u8]>,
    out: &mut dyn Write,
) -> io::Result<()> {
    let Some(node) = view.tree().node(ino) else {
        return Ok(());
    };
    let mut path = path.to_vec();
    if node.kind == NodeKind::Directory {
        path.push(b'/');
    }
    let target = known.or_else(|| view.tree().symlink_target(ino));
    let mut records = records(view, ino, &node);
    if path.len() > NAME_BYTES {
        record(&mut records, b"path", &path);
    }
    if let Some(target) = target.filter(|t| t.len() > NAME_BYTES) {
        record(&mut records, b"linkpath", target);
    }
    if !records.is_empty() {
        let size = records.len() as u64;
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        set_name(&mut header.as_old_mut().name, b"pax");
        header.set_mode(0o644);
        header.set_size(size);
        header.set_cksum();
        out.write_all(header.as_bytes())?;
        records.resize(size.next_multiple_of(BLOCK_BYTES) as usize, 0);
        out.write_all(&records)?;
    }
    let mut header = Header::new_ustar();
    fill(&mut header, &node, known.is_some())?;
    set_name(&mut header.as_old_mut().name, &path);
    if let Some(target) = target {
        set_name(&mut header.as_old_mut().linkname, target);
    }
    header.set_cksum();
    out.write_all(header.as_bytes())
}

fn fill(header: &mut Header, node: &Node, linked: bool) -> io::Result<()> {
    header.set_entry_type(match node.kind {
        _ if linked => EntryType::Link,
        NodeKind::Directory => EntryType::Directory,
        NodeKind::Regular => EntryType::Regular,
        NodeKind::Symlink => EntryType::Symlink,
        NodeKind::CharDevice => EntryType::Char,
        NodeKind::BlockDevice => EntryType::Block,
        NodeKind::Fifo => EntryType::Fifo,
    });
    header.set_mode(node.mode);
    header.set_uid(u64::from(node.uid.min(ID_MAX)));
    header.set_gid(u64::from(node.gid.min(ID_MAX)));
    header.set_mtime(u64::try_from(node.mtime.seconds).unwrap_or(0));
    let has_bytes = node.kind == NodeKind::Regular && !linked;
    header.set_size(if has_bytes {
        node.size.min(SIZE_MAX)
    } else {
        0
    });
    if matches!(node.kind, NodeKind::CharDevice | NodeKind::BlockDevice) {
        header.set_device_major(node.rdev.0)?;
        header.set_device_minor(node.rdev.1)?;
    }
    Ok(())
}

/// What a plain header cannot say.
fn records(view: &View, ino: Ino, node: &Node) -> Vec<u8> {
    let mut all = Vec::new();
    let (seconds, nanoseconds) = (node.mtime.seconds, node.mtime.nanoseconds);
    if nanoseconds != 0 || seconds < 0 {
        record(&mut all, b"mtime", decimal(seconds, nanoseconds).as_bytes());
    }
    for (key, id) in [(&b"uid"[..], node.uid), (b"gid", node.gid)] {
        if id > ID_MAX {
            record(&mut all, key, id.to_string().as_bytes());
        }
    }
    if node.kind == NodeKind::Regular && node.size > SIZE_MAX {
        record(&mut all, b"size", node.size.to_string().as_bytes());
    }
    for xattr in view.tree().visible_xattrs(ino) {
        record(
            &mut all,
            &[b"SCHILY.xattr.", &*xattr.name].concat(),
            &xattr.value,
        );
    }
    all
}

/// Seconds with their fraction; a negative time counts down from its own second.
fn decimal(seconds: i64, nanoseconds: u32) -> String {
    match (seconds, nanoseconds) {
        (seconds, 0) => seconds.to_string(),
        (0.., _) => format!("{seconds}.{nanoseconds:09}"),
        (-1, _) => format!("-0.{:09}", 1_000_000_000 - nanoseconds),
        _ => format!("{}.{:09}", seconds + 1, 1_000_000_000 - nanoseconds),
    }
}

/// `LENGTH KEY=VALUE\n`, where the length counts its own digits (pax(1), "Extended Header").
fn record(all: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut digits = 1;
    while (rest + digits).to_string().len() > digits {
        digits += 1;
    }
    all.extend_from_slice((rest + digits).to_string().as_bytes());
    all.push(b' ');
    all.extend_from_slice(key);
    all.push(b'=');
    all.extend_from_slice(value);
    all.push(b'\n');
}

/// As much as fits; a longer name is in a record.
fn set_name(field: &mut [u8; NAME_BYTES], name: &[u8]) {
    let len = name.len().min(NAME_BYTES);
    field[..len].copy_from_slice(&name[..len]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_count_their_own_length() {
        let text = |key: &[u8], value: &[u8]| {
            let mut all = Vec::new();
            record(&mut all, key, value);
            let end = all.iter().position(|b| *b == b' ').unwrap();
            let length: usize = std::str::from_utf8(&all[..end]).unwrap().parse().unwrap();
            assert_eq!(length, all.len());
            all
        };
        assert_eq!(text(b"a", b"b"), b"6 a=b\n");
        for len in [
            0, 1, 2, 3, 4, 5, 90, 91, 92, 93, 94, 990, 991, 992, 993, 994,
        ] {
            text(b"k", &vec![b'x'; len]);
        }
    }

    #[test]
    fn times_are_decimal() {
        assert_eq!(decimal(5, 0), "5");
        assert_eq!(decimal(5, 1), "5.000000001");
        assert_eq!(decimal(-1, 250_000_000), "-0.750000000");
        assert_eq!(decimal(-3, 250_000_000), "-2.750000000");
    }
}
