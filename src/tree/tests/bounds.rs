//! What is refused, and how far what is not may go.
#![allow(
    clippy::too_many_lines,
    clippy::type_complexity,
    reason = "tables of cases"
)]

use super::*;
use crate::layer::path::{NAME_BYTES_MAX, PATH_DEPTH_MAX};
use crate::tree::draft::Draft;
use crate::tree::dump::dump_string;
use crate::tree::error::WalkError;
use crate::tree::merge::Apply;
use crate::tree::walk::{EXPANDED_BYTES_MAX, LINKS_MAX};
use crate::tree::{Ino, LayerId, MergeError, Tree};

#[test]
fn what_cannot_be_merged() {
    let p = path;
    let at = |layer, path, reason| MergeError::Path {
        layer: LayerId(layer),
        path,
        reason,
    };
    let bad_name = "n".repeat(NAME_BYTES_MAX + 1);
    let deep = "d/".repeat(PATH_DEPTH_MAX);
    let layer0 = LayerId(0);
    let rows: Vec<(Vec<Entry>, MergeError)> = vec![
        (
            vec![link("a", "b")],
            MergeError::LinkMissing {
                layer: layer0,
                path: p("a"),
                target: p("b"),
            },
        ),
        (
            vec![link("a", "b"), link("b", "a")],
            MergeError::LinkLoop {
                layer: layer0,
                path: p("a"),
                target: p("b"),
            },
        ),
        (
            vec![dir("d", 1), link("a", "d")],
            MergeError::LinkDirectory {
                layer: layer0,
                path: p("a"),
                target: p("d"),
            },
        ),
        (
            vec![link("a", "d"), dir("d", 1)],
            MergeError::LinkDirectory {
                layer: layer0,
                path: p("a"),
                target: p("d"),
            },
        ),
        (vec![file("", 1)], MergeError::Root { layer: layer0 }),
        (
            vec![file("a", 1), link("", "a")],
            MergeError::Root { layer: layer0 },
        ),
        (
            vec![symlink("s", 1, "s"), file("s/x", 1)],
            at(0, p("s/x"), WalkError::Loop),
        ),
        (
            vec![symlink("s", 1, &bad_name), file("s/x", 1)],
            at(0, p("s/x"), WalkError::Name),
        ),
        (
            vec![symlink("s", 1, "a\0b"), file("s/x", 1)],
            at(0, p("s/x"), WalkError::Name),
        ),
        (
            vec![symlink("s", 1, &deep), file("s/x/y", 1)],
            at(0, p("s/x/y"), WalkError::TooDeep),
        ),
    ];
    for (entries, expected) in rows {
        let error = Tree::merge(&[adds(entries)]).unwrap_err();
        // Which of a loop's links is named does not matter.
        match (&error, &expected) {
            (MergeError::LinkLoop { .. }, MergeError::LinkLoop { .. }) => {}
            _ => assert_eq!(error, expected),
        }
        assert_eq!(error.to_string().lines().count(), 1);
    }
    let size = 1 << 63;
    let long = entry(
        "a",
        1,
        EntryKind::Regular {
            size,
            extents: Vec::new(),
        },
    );
    let error = Tree::merge(&[adds(vec![long])]).unwrap_err();
    assert_eq!(
        error,
        MergeError::FileTooLong {
            layer: layer0,
            path: p("a"),
            size
        }
    );
}

#[test]
fn as_many_links_are_followed_as_umoci_follows() {
    let chain = |n: usize| {
        let mut entries: Vec<Entry> = (0..n)
            .map(|i| symlink(&format!("l{i}"), 1, &format!("l{}", i + 1)))
            .collect();
        entries.push(file("l0/x", 2));
        Tree::merge(&[adds(entries)])
    };
    assert!(chain(LINKS_MAX).is_ok());
    assert!(matches!(
        chain(LINKS_MAX + 1),
        Err(MergeError::Path {
            reason: WalkError::Loop,
            ..
        })
    ));
}

#[test]
fn work_through_links_is_bounded() {
    let target = format!("{}d", "./".repeat(1 << 20));
    let mut entries = vec![dir("d", 1), symlink("s", 1, &target)];
    let walks = EXPANDED_BYTES_MAX as usize / target.len();
    // Every second entry goes elsewhere, so that no walk is spared.
    let pairs = |n| (0..n).flat_map(|_| [file("s/x", 1), file("q", 1)]);
    entries.extend(pairs(walks));
    assert!(Tree::merge(&[adds(entries.clone())]).is_ok());
    entries.extend(pairs(1));
    let error = Tree::merge(&[adds(entries)]).unwrap_err();
    assert!(
        matches!(
            error,
            MergeError::Path {
                reason: WalkError::TooMuchWork,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn nodes_and_names_are_bounded() {
    let run = |limit, entries| {
        let mut draft = Draft::with_limit(limit);
        let index = adds(entries);
        let apply = Apply {
            draft: &mut draft,
            layer: LayerId(0),
            waiting: Vec::new(),
        };
        apply.layer(&index)
    };
    // The root counts as a node.
    assert!(run(4, vec![file("a/b/c", 1)]).is_ok());
    let full = MergeError::TooManyNodes { layer: LayerId(0) };
    assert_eq!(run(3, vec![file("a/b/c", 1)]).unwrap_err(), full);
    let links = |n| (0..n).map(|i| link(&format!("l{i}"), "a"));
    let names = |n| std::iter::once(file("a", 1)).chain(links(n)).collect();
    assert!(run(4, names(3)).is_ok());
    assert_eq!(run(4, names(4)).unwrap_err(), full);
}

#[test]
fn many_layers() {
    let number = |n: u32| {
        let mut entries = vec![
            dir("d", n),
            file("d/top", n),
            file(&format!("d/f{n:03}"), n),
        ];
        if n > 0 {
            entries.push(link(&format!("d/l{n:03}"), &format!("d/f{:03}", n - 1)));
        }
        let gone = if n > 1 {
            vec![hide(&format!("d/f{:03}", n - 2))]
        } else {
            Vec::new()
        };
        layer(gone, entries)
    };
    let layers: Vec<_> = (0..127).map(number).collect();
    let tree = merged(&layers);
    let d = tree.lookup(Ino::ROOT, b"d").unwrap();
    assert_eq!(tree.child_count(d), 1 + 126 + 2);
    let top = tree.lookup(d, b"top").unwrap();
    assert_eq!(tree.extents(top).0, LayerId(126));
    let kept = tree.lookup(d, b"l001").unwrap();
    assert_eq!(
        (tree.extents(kept).0, tree.node(kept).unwrap().nlink),
        (LayerId(0), 1)
    );
}

#[test]
fn deep_trees_need_no_stack() {
    let deep = "d/".repeat(PATH_DEPTH_MAX);
    let tree = merged(&[adds(vec![dir(&deep, 1)]), layer(vec![opaque("d")], vec![])]);
    assert_eq!(tree.len(), 2);
    let tree = merged(&[adds(vec![dir(&deep, 1)])]);
    assert_eq!(tree.len(), PATH_DEPTH_MAX + 1);
    assert_eq!(
        tree.resolve(&path(&deep)).unwrap().get(),
        PATH_DEPTH_MAX as u64 + 1
    );
    assert_eq!(dump_string(&tree).lines().count(), PATH_DEPTH_MAX + 1);
}
