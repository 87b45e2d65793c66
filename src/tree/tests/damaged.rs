//! Trees whose bytes are not what was stored.

use crate::tree::node::{Ino, NodeKind};
use crate::tree::stored::Arrays;
use crate::tree::{Dentry, freeze};

#[test]
fn directories_that_are_in_each_other_have_no_path() {
    let ino = |n| Ino::from_raw(n).unwrap();
    let mut arrays = Arrays {
        xattrs: vec![Box::new([])],
        names: b"ab".to_vec(),
        ..Arrays::default()
    };
    // The root is empty; 2 holds 3 as `a`, and 3 holds 2 as `b`.
    for (parent, body) in [(1, 0..0), (3, 0..1), (2, 1..2)] {
        let mut node = freeze::blank(ino(parent), crate::tree::LayerId(0));
        assert_eq!(node.kind, NodeKind::Directory);
        (node.body_start, node.body_len) = (body.start, body.len() as u32);
        arrays.nodes.push(node);
    }
    for (name_start, child) in [(0, 3), (1, 2)] {
        arrays.dentries.push(Dentry {
            name_start,
            name_len: 1,
            ino: ino(child),
        });
    }
    let tree = arrays.into_tree();
    assert_eq!(tree.lookup(ino(2), b"a"), Some(ino(3)));
    assert_eq!(tree.path(ino(2)), None);
    assert_eq!(tree.path(ino(1)).as_deref(), Some(&b"/"[..]));
}
