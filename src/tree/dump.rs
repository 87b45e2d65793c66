//! The tree as text, one line a name, in an order that depends on the names alone: for golden
//! tests, for comparing two trees, for people.
//!
//! ```text
//! path type mode uid gid size mtime nlink rdev target xattrs [ino]
//! ```
//!
//! Fields are separated by one space and `-` when there is nothing to say. `type` is the letter of
//! `ls -l`. Bytes that are not printable ASCII, and spaces, backslashes, commas and `=`, are written
//! `\xNN`. `target` is what a symbolic link holds, or `=PATH` for a further name of the inode that
//! PATH was the first name of. `xattrs` is `name=value` joined by commas, the hidden ones included.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io;

use crate::tree::Tree;
use crate::tree::node::{Ino, Node, NodeKind};

/// Writes the whole tree. `numbers` adds inode numbers.
pub fn dump(tree: &Tree, numbers: bool, out: &mut dyn io::Write) -> io::Result<()> {
    dump_below(tree, Ino::ROOT, numbers, out)
}

/// The same for `top` and what is below it. A further name refers to the first one below `top`.
pub fn dump_below(tree: &Tree, top: Ino, numbers: bool, out: &mut dyn io::Write) -> io::Result<()> {
    let mut first_names: HashMap<Ino, String> = HashMap::new();
    let mut path = String::new();
    escape(&tree.path(top).unwrap_or_default(), &mut path);
    if let Some(node) = tree.node(top) {
        out.write_all(line(tree, (top, &node), &path, None, numbers).as_bytes())?;
    }
    if path == "/" {
        path.clear();
    }
    // Directory, next child, and the length of `path` up to the directory.
    let mut open = vec![(top, 0, path.len())];
    while let Some((dir, next, len)) = open.last_mut() {
        path.truncate(*len);
        let Some((name, ino)) = tree.children_from(*dir, *next).next() else {
            open.pop();
            continue;
        };
        *next += 1;
        path.push('/');
        escape(name, &mut path);
        let Some(node) = tree.node(ino) else { continue };
        let first = first_names.get(&ino).map(String::as_str);
        out.write_all(line(tree, (ino, &node), &path, first, numbers).as_bytes())?;
        if node.kind == NodeKind::Directory {
            open.push((ino, 0, path.len()));
        } else if node.nlink > 1 && first.is_none() {
            first_names.insert(ino, path.clone());
        }
    }
    Ok(())
}

/// [`dump`] without numbers, as a string.
pub fn dump_string(tree: &Tree) -> String {
    let mut out = Vec::new();
    match dump(tree, false, &mut out) {
        Ok(()) => String::from_utf8_lossy(&out).into_owned(),
        // Writing to memory does not fail.
        Err(_) => String::new(),
    }
}

fn line(
    tree: &Tree,
    (ino, node): (Ino, &Node),
    path: &str,
    first: Option<&str>,
    numbers: bool,
) -> String {
    let mut line = format!(
        "{path} {} {:04o} {} {}",
        letter(node.kind),
        node.mode,
        node.uid,
        node.gid
    );
    let (seconds, nanoseconds) = (node.mtime.seconds, node.mtime.nanoseconds);
    // Writing to a string does not fail.
    let _ = write!(
        line,
        " {} {seconds}.{nanoseconds:09} {}",
        node.size, node.nlink
    );
    match node.kind {
        NodeKind::CharDevice | NodeKind::BlockDevice => {
            let _ = write!(line, " {}:{} ", node.rdev.0, node.rdev.1);
        }
        _ => line.push_str(" - "),
    }
    match (first, tree.symlink_target(ino)) {
        (Some(first), _) => {
            line.push('=');
            line.push_str(first);
        }
        (None, Some(target)) => escape(target, &mut line),
        (None, None) => line.push('-'),
    }
    line.push(' ');
    for (n, xattr) in tree.xattrs(ino).iter().enumerate() {
        if n > 0 {
            line.push(',');
        }
        escape(&xattr.name, &mut line);
        line.push('=');
        escape(&xattr.value, &mut line);
    }
    if tree.xattrs(ino).is_empty() {
        line.push('-');
    }
    if numbers {
        let _ = write!(line, " {}", ino.get());
    }
    line.push('\n');
    line
}

fn letter(kind: NodeKind) -> char {
    match kind {
        NodeKind::Directory => 'd',
        NodeKind::Regular => '-',
        NodeKind::Symlink => 'l',
        NodeKind::CharDevice => 'c',
        NodeKind::BlockDevice => 'b',
        NodeKind::Fifo => 'p',
    }
}

/// Adds `raw` so that it has no space and can be read back.
pub(super) fn escape(raw: &[u8], out: &mut String) {
    for byte in raw {
        match byte {
            b'\\' | b',' | b'=' => {
                let _ = write!(out, "\\x{byte:02x}");
            }
            b'!'..=b'~' => out.push(char::from(*byte)),
            _ => {
                let _ = write!(out, "\\x{byte:02x}");
            }
        }
    }
}
