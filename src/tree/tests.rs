//! One table row for each rule of the merge (`rules`) and each limit of it (`bounds`); `model`
//! compares it with a naive one.

mod bounds;
mod damaged;
mod model;
mod rules;

use std::sync::Arc;

use crate::layer::{Entry, EntryKind, Extent, LayerIndex, LayerPath, Timestamp, Whiteout, Xattr};
use crate::oci::{Compression, Digest};
use crate::tree::Tree;
use crate::tree::dump::dump_string;

pub(super) fn path(text: &str) -> LayerPath {
    LayerPath::parse(text.as_bytes()).unwrap()
}

/// An entry owned by `uid`, which is how tests tell entries apart.
pub(super) fn entry(at: &str, uid: u32, kind: EntryKind) -> Entry {
    Entry {
        path: path(at),
        kind,
        mode: 0o640,
        uid,
        gid: uid + 1,
        mtime: Timestamp {
            seconds: i64::from(uid),
            nanoseconds: 5,
        },
        xattrs: Vec::new(),
    }
}

pub(super) fn dir(at: &str, uid: u32) -> Entry {
    entry(at, uid, EntryKind::Directory)
}

pub(super) fn file(at: &str, uid: u32) -> Entry {
    let extents = vec![Extent {
        file_offset: 0,
        address: 512,
        len: 10,
    }];
    entry(at, uid, EntryKind::Regular { size: 10, extents })
}

pub(super) fn symlink(at: &str, uid: u32, target: &str) -> Entry {
    entry(
        at,
        uid,
        EntryKind::Symlink {
            target: target.as_bytes().into(),
        },
    )
}

pub(super) fn link(at: &str, target: &str) -> Entry {
    entry(
        at,
        999,
        EntryKind::HardLink {
            target: path(target),
        },
    )
}

pub(super) fn xattr(name: &str, value: &str) -> Xattr {
    Xattr {
        name: name.as_bytes().into(),
        value: value.as_bytes().into(),
    }
}

pub(super) fn layer(whiteouts: Vec<Whiteout>, entries: Vec<Entry>) -> Arc<LayerIndex> {
    Arc::new(LayerIndex {
        blob: Digest::of(b"blob"),
        diff_id: Digest::of(b"diff"),
        compressed_size: 0,
        address_size: 0,
        compression: Compression::Gzip,
        whiteouts,
        entries,
        spans: Vec::new(),
    })
}

pub(super) fn hide(at: &str) -> Whiteout {
    Whiteout::Path(path(at))
}

pub(super) fn opaque(at: &str) -> Whiteout {
    Whiteout::Opaque(path(at))
}

/// `path`, type and owner of each name below the root, and where links lead.
pub(super) fn brief(tree: &Tree) -> String {
    let dump = dump_string(tree);
    let line = |line: &str| {
        let f: Vec<&str> = line.split(' ').collect();
        let target = if f[9] == "-" {
            String::new()
        } else {
            format!(">{}", f[9])
        };
        format!("{}{}{}{}", &f[0][1..], f[1].replace('-', "f"), f[3], target)
    };
    dump.lines().skip(1).map(line).collect::<Vec<_>>().join(" ")
}

pub(super) fn merged(layers: &[Arc<LayerIndex>]) -> Tree {
    Tree::merge(layers).unwrap()
}

pub(super) fn adds(entries: Vec<Entry>) -> Arc<LayerIndex> {
    layer(Vec::new(), entries)
}
