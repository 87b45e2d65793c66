//! The rules, one by one.
#![allow(
    clippy::too_many_lines,
    clippy::type_complexity,
    reason = "tables of cases"
)]

use super::*;
use crate::tree::dump::{dump, dump_string};
use crate::tree::{Ino, NodeKind};

#[test]
fn entries_and_whiteouts() {
    let base = || adds(vec![dir("a", 1), file("a/x", 2), file("a/y", 3)]);
    let rows: Vec<(&str, Arc<LayerIndex>, &str)> = vec![
        (
            "directory on directory",
            adds(vec![dir("a", 9)]),
            "ad9 a/xf2 a/yf3",
        ),
        ("file on directory", adds(vec![file("a", 9)]), "af9"),
        (
            "symlink on directory",
            adds(vec![symlink("a", 9, "b")]),
            "al9>b",
        ),
        (
            "directory on file",
            adds(vec![dir("a/x", 9)]),
            "ad1 a/xd9 a/yf3",
        ),
        (
            "file on file",
            adds(vec![file("a/x", 9)]),
            "ad1 a/xf9 a/yf3",
        ),
        (
            "file in the way of a parent",
            adds(vec![file("a/x/z", 9)]),
            "ad1 a/xd0 a/x/zf9 a/yf3",
        ),
        (
            "missing parents",
            adds(vec![file("p/q/r", 9)]),
            "ad1 a/xf2 a/yf3 pd0 p/qd0 p/q/rf9",
        ),
        (
            "later duplicate wins",
            adds(vec![file("b", 8), file("b", 9)]),
            "ad1 a/xf2 a/yf3 bf9",
        ),
        ("whiteout", layer(vec![hide("a/x")], vec![]), "ad1 a/yf3"),
        (
            "whiteout of a directory",
            layer(vec![hide("a")], vec![]),
            "",
        ),
        (
            "whiteout spares its own layer",
            layer(vec![hide("a")], vec![file("a/x", 9)]),
            "ad0 a/xf9",
        ),
        (
            "whiteout of nothing",
            layer(vec![hide("q/r"), hide("a/x/y")], vec![]),
            "ad1 a/xf2 a/yf3",
        ),
        (
            "opaque",
            layer(vec![opaque("a")], vec![file("a/z", 9)]),
            "ad1 a/zf9",
        ),
        (
            "opaque without entries",
            layer(vec![opaque("a")], vec![]),
            "ad1",
        ),
        (
            "opaque root",
            layer(vec![opaque("")], vec![file("z", 9)]),
            "zf9",
        ),
        (
            "opaque file",
            layer(vec![opaque("a/x")], vec![]),
            "ad1 a/xf2 a/yf3",
        ),
        (
            "opaque nothing",
            layer(vec![opaque("q")], vec![]),
            "ad1 a/xf2 a/yf3",
        ),
        (
            "file then directory",
            adds(vec![file("a", 8), dir("a", 9)]),
            "ad9",
        ),
    ];
    for (rule, top, expected) in rows {
        assert_eq!(brief(&merged(&[base(), top])), expected, "{rule}");
    }
}

#[test]
fn symbolic_links_in_paths() {
    let base = |target| adds(vec![dir("d", 1), file("d/x", 2), symlink("s", 3, target)]);
    let through = |entries| (vec![], entries);
    let rows: Vec<(&str, &str, (Vec<Whiteout>, Vec<Entry>), &str)> = vec![
        (
            "parent",
            "d",
            through(vec![file("s/y", 9)]),
            "dd1 d/xf2 d/yf9 sl3>d",
        ),
        (
            "absolute",
            "/d",
            through(vec![file("s/y", 9)]),
            "dd1 d/xf2 d/yf9 sl3>/d",
        ),
        (
            "above the root",
            "../../d",
            through(vec![file("s/y", 9)]),
            "dd1 d/xf2 d/yf9 sl3>../../d",
        ),
        (
            "to the root",
            "/",
            through(vec![file("s/y", 9)]),
            "dd1 d/xf2 sl3>/ yf9",
        ),
        (
            "dangling",
            "m/n/../o",
            through(vec![file("s/y", 9)]),
            "dd1 d/xf2 md0 m/od0 m/o/yf9 sl3>m/n/../o",
        ),
        (
            "to a file",
            "d/x",
            through(vec![file("s/y", 9)]),
            "dd1 d/xd0 d/x/yf9 sl3>d/x",
        ),
        (
            "whiteout through",
            "d",
            (vec![hide("s/x")], vec![]),
            "dd1 sl3>d",
        ),
        (
            "whiteout of the link",
            "d",
            (vec![hide("s")], vec![]),
            "dd1 d/xf2",
        ),
        (
            "opaque through",
            "d",
            (vec![opaque("s")], vec![]),
            "dd1 sl3>d",
        ),
        (
            "directory on link to directory",
            "d",
            through(vec![dir("s", 9)]),
            "dd1 d/xf2 sl9>d",
        ),
        (
            "directory on link to root",
            "/",
            through(vec![dir("s", 9)]),
            "dd1 d/xf2 sl9>/",
        ),
        (
            "directory on link to file",
            "d/x",
            through(vec![dir("s", 9)]),
            "dd1 d/xf2 sd9",
        ),
        (
            "directory on dangling link",
            "q",
            through(vec![dir("s", 9)]),
            "dd1 d/xf2 sd9",
        ),
        (
            "directory on a loop",
            "s",
            through(vec![dir("s", 9)]),
            "dd1 d/xf2 sd9",
        ),
        (
            "file on link",
            "d",
            through(vec![file("s", 9)]),
            "dd1 d/xf2 sf9",
        ),
        (
            "hard link through",
            "d",
            through(vec![link("h", "s/x")]),
            "dd1 d/xf2 hf2>=/d/x sl3>d",
        ),
        (
            "hard link to the link",
            "d",
            through(vec![link("h", "s")]),
            "dd1 d/xf2 hl3>d sl3>=/h",
        ),
    ];
    for (rule, target, (whiteouts, entries), expected) in rows {
        let tree = merged(&[base(target), layer(whiteouts, entries)]);
        assert_eq!(brief(&tree), expected, "{rule}");
    }
}

/// Observed with umoci 0.4.7: lchown, lutimes and lsetxattr go to the link itself, chmod to nobody.
#[test]
fn a_kept_link_gets_the_metadata_that_a_link_can_have() {
    let mut over = dir("s", 9);
    over.mode = 0o700;
    over.xattrs = vec![
        xattr("system.posix_acl_access", "1"),
        xattr("trusted.k", "v"),
        xattr("user.k", "v"),
    ];
    let tree = merged(&[
        adds(vec![dir("d", 1), symlink("s", 2, "d")]),
        adds(vec![over]),
    ]);
    let s = tree.lookup(Ino::ROOT, b"s").unwrap();
    assert_eq!(tree.node(s).unwrap().mode, 0o777);
    assert_eq!(tree.node(s).unwrap().uid, 9);
    assert_eq!(tree.xattrs(s), [xattr("trusted.k", "v")]);
    assert!(tree.has_xattrs() && !tree.has_acls());
}

#[test]
fn hard_links() {
    let rows: Vec<(&str, Vec<Vec<Entry>>, &str)> = vec![
        (
            "in a layer",
            vec![vec![file("a", 1), link("b", "a")]],
            "af1 bf1>=/a",
        ),
        (
            "to a lower layer",
            vec![vec![file("a", 1)], vec![link("b", "a")]],
            "af1 bf1>=/a",
        ),
        (
            "target replaced later",
            vec![vec![file("a", 1), link("b", "a")], vec![file("a", 2)]],
            "af2 bf1",
        ),
        (
            "target replaced later in the same layer",
            vec![vec![file("a", 1)], vec![link("b", "a"), file("a", 2)]],
            "af2 bf1",
        ),
        (
            "before its target",
            vec![vec![link("a", "b"), file("b", 1)]],
            "af1 bf1>=/a",
        ),
        (
            "chain, backwards",
            vec![vec![
                link("a", "b"),
                link("b", "c"),
                link("c", "d"),
                file("d", 1),
            ]],
            "af1 bf1>=/a cf1>=/a df1>=/a",
        ),
        (
            "through a link that is a link",
            vec![vec![
                link("a", "s/x"),
                link("s", "t"),
                symlink("t", 3, "d"),
                dir("d", 1),
                file("d/x", 2),
            ]],
            "af2 dd1 d/xf2>=/a sl3>d tl3>=/s",
        ),
        (
            "replaced before it is settled",
            vec![vec![link("a", "q"), file("a", 1)]],
            "af1",
        ),
        (
            "hides what it replaces",
            vec![
                vec![dir("a", 1), file("a/x", 2)],
                vec![link("a", "b"), file("b", 3)],
            ],
            "af3 bf3>=/a",
        ),
        (
            "to itself",
            vec![vec![file("a", 1)], vec![link("a", "a")]],
            "af1",
        ),
        (
            "over the directory of its target",
            vec![vec![dir("a", 1), file("a/x", 2)], vec![link("a", "a/x")]],
            "af2",
        ),
    ];
    for (rule, layers, expected) in rows {
        let layers: Vec<_> = layers.into_iter().map(adds).collect();
        assert_eq!(brief(&merged(&layers)), expected, "{rule}");
    }
}

#[test]
fn nodes_say_what_stat_wants() {
    let mut root = dir("", 7);
    root.mode = 0o1777;
    let sparse = EntryKind::Regular {
        size: 1 << 30,
        extents: vec![
            Extent {
                file_offset: 4096,
                address: 512,
                len: 4000,
            },
            Extent {
                file_offset: 1 << 20,
                address: 4512,
                len: 200,
            },
        ],
    };
    let mut acl = entry("big", 1, sparse);
    acl.xattrs = vec![xattr("system.posix_acl_access", "x")];
    let mut hidden = file("f", 1);
    hidden.xattrs = vec![xattr("security.selinux", "t"), xattr("user.a b", "=")];
    let entries = vec![
        root,
        acl,
        entry("c", 1, EntryKind::CharDevice { major: 1, minor: 3 }),
        dir("d", 1),
        dir("d/e", 1),
        hidden,
        entry("p", 1, EntryKind::Fifo),
        symlink("s", 1, "d/e"),
    ];
    let tree = merged(&[adds(entries)]);
    let mut text = Vec::new();
    dump(&tree, true, &mut text).unwrap();
    assert_eq!(
        String::from_utf8(text).unwrap(),
        "\
/ d 1777 7 8 4096 7.000000005 3 - - - 1
/big - 0640 1 2 1073741824 1.000000005 1 - - system.posix_acl_access=x 2
/c c 0640 1 2 0 1.000000005 1 1:3 - - 3
/d d 0640 1 2 4096 1.000000005 3 - - - 4
/d/e d 0640 1 2 4096 1.000000005 2 - - - 5
/f - 0640 1 2 10 1.000000005 1 - - security.selinux=t,user.a\\x20b=\\x3d 6
/p p 0640 1 2 0 1.000000005 1 - - - 7
/s l 0777 1 2 3 1.000000005 1 - d/e - 8
"
    );
    let at = |p: &str| tree.resolve(&path(p)).unwrap();
    assert_eq!(tree.node(at("big")).unwrap().allocated, 8192);
    assert_eq!(tree.total_bytes(), (1 << 30) + 10);
    assert!(tree.has_acls() && tree.has_xattrs());
    assert_eq!(tree.visible_xattrs(at("f")).count(), 1);
    assert!(tree.resolve(&path("s/e")).is_none());
    assert_eq!(tree.resolve(&path("s")), Some(at("s")));
    assert_eq!(tree.follow(Ino::ROOT, b"s/.."), Some(at("d")));
    assert_eq!(tree.follow(at("d"), b"../../s/."), Some(at("d/e")));
    assert_eq!(tree.follow(Ino::ROOT, b"f/"), Some(at("f")));
    assert_eq!(tree.path(at("d/e")).unwrap(), b"/d/e");
    assert_eq!(tree.node(Ino::from_raw(9).unwrap()), None);
    assert_eq!(tree.children(at("f")).count(), 0);
    assert_eq!(tree.node(at("p")).unwrap().kind, NodeKind::Fifo);
}

#[test]
fn an_image_without_layers_is_an_empty_root() {
    let tree = merged(&[]);
    assert_eq!(
        dump_string(&tree),
        "/ d 0755 0 0 4096 0.000000000 2 - - -\n"
    );
    assert_eq!(tree.parent(Ino::ROOT), Ino::ROOT);
    assert!(Ino::from_raw(0).is_none() && Ino::from_raw(1 << 32).is_none());
}
