//! Images of small trees, taken apart. What Linux and fsck.erofs say of them is in `tests/erofs.rs`.

use std::sync::Arc;

use crate::erofs::{Device, ErofsError, Image};
use crate::layer::{Entry, EntryKind, Extent, LayerIndex, LayerPath, Timestamp, Xattr};
use crate::oci::{Compression, Digest};
use crate::tree::{Ino, Tree};

fn entry(path: &str, kind: EntryKind) -> Entry {
    Entry {
        path: LayerPath::parse(path.as_bytes()).unwrap(),
        kind,
        mode: 0o640,
        uid: 70_000,
        gid: 2,
        mtime: Timestamp {
            seconds: -3,
            nanoseconds: 7,
        },
        xattrs: Vec::new(),
    }
}

fn regular(size: u64, extents: &[(u64, u64, u64)]) -> EntryKind {
    let extent = |&(file_offset, address, len): &(u64, u64, u64)| Extent {
        file_offset,
        address,
        len,
    };
    EntryKind::Regular {
        size,
        extents: extents.iter().map(extent).collect(),
    }
}

fn symlink(len: usize) -> EntryKind {
    EntryKind::Symlink {
        target: vec![b't'; len].into(),
    }
}

fn tree(entries: Vec<Entry>) -> Tree {
    let index = LayerIndex {
        blob: Digest::of(b"blob"),
        diff_id: Digest::of(b"diff"),
        compressed_size: 0,
        address_size: 1 << 20,
        compression: Compression::Gzip,
        whiteouts: Vec::new(),
        entries,
        spans: Vec::new(),
    };
    Tree::merge(&[Arc::new(index)]).unwrap()
}

fn device(bytes: u64) -> Device {
    Device {
        tag: "sha256:tag".to_owned(),
        bytes,
    }
}

fn written(image: &Image<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    image.write(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, image.bytes());
    bytes
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn name(tree: &Tree, name: &str) -> Ino {
    tree.lookup(Ino::ROOT, name.as_bytes()).unwrap()
}

#[test]
fn the_same_tree_gives_the_same_bytes() {
    let entries = vec![
        entry("file", regular(5000, &[(0, 512, 5000)])),
        entry("link", symlink(10)),
        entry("dir", EntryKind::Directory),
    ];
    let (one, two) = (tree(entries.clone()), tree(entries));
    let one = written(&Image::plan(&one, vec![device(1 << 20)]).unwrap());
    let two = written(&Image::plan(&two, vec![device(1 << 20)]).unwrap());
    assert_eq!(one, two);
    assert_eq!(u32_at(&one, 1024), 0xE0F5_E1E2);
    assert_eq!(u16_at(&one, 1024 + 86), 1, "one device");
    assert_eq!(&one[1152..1162], b"sha256:tag");
}

#[test]
fn an_inode_says_what_the_tree_says() {
    let tree = tree(vec![entry("file", regular(5000, &[(0, 512, 5000)]))]);
    let image = Image::plan(&tree, vec![device(1 << 20)]).unwrap();
    let bytes = written(&image);
    let at = image.nid(name(&tree, "file")) as usize * 32;
    let inode = &bytes[at..at + 72];
    assert_eq!(u16_at(inode, 0), 1 | 4 << 1, "extended, in chunks");
    assert_eq!(u16_at(inode, 4), 0o100_640);
    assert_eq!(u32_at(inode, 8), 5000);
    assert_eq!(u32_at(inode, 16), 0x20 | 4, "one chunk of 16 blocks");
    assert_eq!(u32_at(inode, 24), 70_000);
    assert_eq!(i64::from_le_bytes(inode[32..40].try_into().unwrap()), -3);
    assert_eq!((u32_at(inode, 40), u32_at(inode, 44)), (7, 1));
    assert_eq!(inode[64..72], [0, 0, 1, 0, 1, 0, 0, 0], "layer 0, block 1");
}

/// Whatever its length: a target that stands behind its inode ends in the same block.
#[test]
fn no_target_crosses_a_block() {
    for len in [1, 63, 64, 200, 447, 448, 449, 4095] {
        let entries = (0..9).map(|n| entry(&n.to_string(), symlink(len)));
        let tree = tree(entries.collect());
        let image = Image::plan(&tree, vec![device(0)]).unwrap();
        let bytes = written(&image);
        for (_, ino) in tree.children(Ino::ROOT) {
            let at = image.nid(ino) as usize * 32;
            let start = match u16_at(&bytes, at) >> 1 {
                2 => {
                    assert!(at % 512 + 64 + len <= 512, "{len} bytes at {at}");
                    at + 64
                }
                0 => u32_at(&bytes, at + 16) as usize * 512,
                other => panic!("layout {other}"),
            };
            assert!(bytes[start..start + len].iter().all(|b| *b == b't'));
        }
    }
}

#[test]
fn pieces_where_no_block_begins_are_composed() {
    let tree = tree(vec![
        entry("a", regular(9000, &[(100, 512, 50), (8000, 562, 1000)])),
        entry("b", regular(100, &[(0, 700, 100)])),
    ]);
    let image = Image::plan(&tree, vec![device(10_000)]).unwrap();
    let found: Vec<_> = image.composed().iter().map(|c| (c.ino, c.start)).collect();
    let expected = [(name(&tree, "a"), 12_288), (name(&tree, "b"), 24_576)];
    assert_eq!(found, expected);
    assert_eq!(image.devices()[0].bytes, 28_672);
    let at = image.nid(name(&tree, "a")) as usize * 32;
    assert_eq!(u32_at(&written(&image), at + 68), 24, "block of the device");
}

#[test]
fn what_the_format_cannot_hold_is_refused() {
    let plain = tree(vec![entry("file", regular(10, &[(0, 512, 10)]))]);
    let layers = vec![device(0); 20_000];
    let refused = Image::plan(&plain, layers).err();
    assert_eq!(refused, Some(ErofsError::Layers(20_000)));
    let refused = Image::plan(&plain, vec![device(3 << 40)]).err();
    assert!(matches!(refused, Some(ErofsError::LayerTooLong { .. })));
    let mut long = entry("long", EntryKind::Fifo);
    long.xattrs.push(Xattr {
        name: b"security.long"[..].into(),
        value: vec![0; 64 << 10].into(),
    });
    let long = tree(vec![long]);
    let refused = Image::plan(&long, vec![device(0)]).err();
    assert_eq!(refused, Some(ErofsError::Xattrs(name(&long, "long"))));
}
