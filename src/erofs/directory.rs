//! Directories: blocks of 12-byte entries followed by their names, sorted by bytes, `.` and `..`
//! among them. A name never crosses a block, so lookups are two binary searches.

use crate::erofs::BLOCK_BYTES;
use crate::erofs::inode::file_type;
use crate::tree::{Ino, Tree};

const ENTRY_BYTES: usize = 12;
const BLOCK: usize = BLOCK_BYTES as usize;

/// The names of `dir` in the order of the image, with what they name.
fn entries(tree: &Tree, dir: Ino) -> impl Iterator<Item = (&[u8], Ino)> {
    let dots = [(&b"."[..], dir), (&b".."[..], tree.parent(dir))];
    let mut dots = dots.into_iter().peekable();
    let mut names = tree.children(dir).peekable();
    std::iter::from_fn(move || match (dots.peek(), names.peek()) {
        (Some(dot), Some(name)) if dot.0 < name.0 => dots.next(),
        (Some(_), None) => dots.next(),
        _ => names.next(),
    })
}

/// Length of the directory in bytes (`i_size`): whole blocks, but the last one only as far as used.
pub(super) fn bytes(tree: &Tree, dir: Ino) -> u64 {
    let (mut blocks, mut used) = (0, 0);
    for (name, _) in entries(tree, dir) {
        let needed = ENTRY_BYTES + name.len();
        if used + needed > BLOCK {
            blocks += 1;
            used = 0;
        }
        used += needed;
    }
    blocks * BLOCK_BYTES + used as u64
}

/// Adds the blocks of the directory to `out`, which ends with a block before and afterwards.
pub(super) fn write(tree: &Tree, dir: Ino, nid: impl Fn(Ino) -> u64, out: &mut Vec<u8>) {
    let mut block: Vec<(&[u8], Ino)> = Vec::new();
    let mut used = 0;
    for (name, ino) in entries(tree, dir) {
        let needed = ENTRY_BYTES + name.len();
        if used + needed > BLOCK {
            write_block(tree, &block, &nid, out);
            block.clear();
            used = 0;
        }
        block.push((name, ino));
        used += needed;
    }
    write_block(tree, &block, &nid, out);
}

fn write_block(tree: &Tree, block: &[(&[u8], Ino)], nid: impl Fn(Ino) -> u64, out: &mut Vec<u8>) {
    let start = out.len();
    let mut name_at = block.len() * ENTRY_BYTES;
    for (name, ino) in block {
        let kind = tree.node(*ino).map_or(0, |node| file_type(node.kind));
        out.extend_from_slice(&nid(*ino).to_le_bytes());
        out.extend_from_slice(&(name_at as u16).to_le_bytes());
        out.extend_from_slice(&[kind, 0]);
        name_at += name.len();
    }
    for (name, _) in block {
        out.extend_from_slice(name);
    }
    out.resize(start + BLOCK, 0);
}
