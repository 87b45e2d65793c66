//! Where a mount and `umoci unpack --keep-dirlinks` differ, for the image of edge cases. Everything
//! that is not in this table is the same, entry by entry; everything in it is seen to be so.
//!
//! | what | umoci 0.4.7 | rsmount, and why |
//! |---|---|---|
//! | layers in zstd | refuses the image | mounts it: OCI image-spec 1.1 has the media type |
//! | a global PAX header | refuses the image | applies it: POSIX says so, and GNU tar can write it |
//! | old GNU sparse files | refuses the image | reads them: `tar --sparse` writes them by default |
//! | a link before its target | refuses the image | links when the layer is complete: what is meant is clear |
//! | contiguous files | refuses the image | regular files: POSIX says so for systems without them |
//! | types beyond POSIX | refuses the image | vendors' capitals are no files, unknown types regular files: POSIX |
//! | a file where a parent has to be | refuses the image | the file makes way, as for an entry of that very path |
//! | attributes that Linux refuses | refuses the image | the node without them: the rest is good |
//! | directories that no layer names | time of unpacking | time 0: the same tree on every machine |
//! | directories in which one of those was made | time of unpacking | the time that the layer says |
//! | directories of which something was hidden | time of unpacking | the time that the layer says |
//! | times beyond 64 bits of nanoseconds | wrap around | as they are: a mount has 64 bits of seconds |
//! | attributes without a value | dropped, as Go's reader does | shown: Linux has such attributes, and tars say so |
//! | attributes that steer overlays | written | hidden: an image could subvert what is stacked above |
//! | names that AUFS kept for itself | written | skipped: Docker skips them |
//!
//! Needs root, `/dev/fuse` and umoci 0.4.7; says so loudly where it is skipped.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "a test")]

#[path = "support/all.rs"]
mod support;

use std::collections::BTreeSet;
use std::process::{Command, Output};
use std::time::SystemTime;

use support::edge::{self, Layer};
use support::layout::{self, Pack};
use support::place::{self, Place, can_mount};
use support::seen::{self, Difference};
use tempfile::TempDir;

const VERSION: &str = "0.4.7";

/// What umoci makes of a row of the table.
enum Umoci {
    /// Refuses an image that has the group, in these words.
    Refuses(&'static [(&'static str, &'static str)]),
    /// Gives these paths the time of unpacking.
    Now(&'static [&'static str]),
    /// Has something else in these fields of these paths.
    Differs(&'static [(&'static str, &'static str)]),
    /// Refuses any image of this compression, in these words.
    RefusesPack(Pack, &'static str),
}
use Umoci::{Differs, Now, Refuses, RefusesPack};

const TABLE: &[(&str, Umoci)] = &[
    (
        "layers in zstd",
        RefusesPack(Pack::Zstd, "blob is not correct mediatype"),
    ),
    (
        "a global PAX header",
        Refuses(&[
            ("pax, global", r"unknown typeflag '\x67'"),
            ("pax, global again", r"unknown typeflag '\x67'"),
        ]),
    ),
    (
        "old GNU sparse files",
        Refuses(&[
            ("sparse, old gnu", r"unknown typeflag '\x53'"),
            ("sparse, old gnu, 9 GiB", r"unknown typeflag '\x53'"),
        ]),
    ),
    (
        "a link before its target",
        Refuses(&[("links before their targets", "no such file or directory")]),
    ),
    (
        "contiguous files",
        Refuses(&[("contiguous files", r"unknown typeflag '\x37'")]),
    ),
    (
        "types beyond POSIX",
        Refuses(&[("other types", r"unknown typeflag '\x56'")]),
    ),
    (
        "a file where a parent has to be",
        Refuses(&[("files as parents", "not a directory")]),
    ),
    (
        "attributes that Linux refuses",
        Refuses(&[("impossible xattrs", "operation not permitted")]),
    ),
    (
        "directories that no layer names",
        Now(&[
            "implied",
            "implied/a",
            "implied/a/b/c",
            "opaque/between/sub",
            "opaque/nested/sub",
            "usr/missing",
            "white/dir",
        ]),
    ),
    (
        "directories in which one of those was made",
        Now(&["usr", "white", "opaque/nested"]),
    ),
    (
        "directories of which something was hidden",
        Now(&[
            "opaque/first",
            "opaque/last",
            "opaque/twice",
            "opaque/unnamed",
            "white/deep",
        ]),
    ),
    (
        "times beyond 64 bits of nanoseconds",
        Differs(&[
            ("far/binary", "mtime"),
            ("far/future", "mtime"),
            ("far/past", "mtime"),
        ]),
    ),
    (
        "attributes without a value",
        Differs(&[("empty-xattr", "xattrs")]),
    ),
    (
        "attributes that steer overlays",
        Differs(&[("hidden/fuse", "xattrs"), ("hidden/overlay", "xattrs")]),
    ),
    (
        "names that AUFS kept for itself",
        Differs(&[
            ("", "nlink"),
            (".wh..wh.plnk", "entry"),
            (".wh..wh.plnk/1.2", "entry"),
        ]),
    ),
];

/// Whether the umoci that the table is about is here; says loudly when not.
fn can_compare() -> bool {
    let version = Command::new("umoci").arg("--version").output();
    let said = version.map_or_else(
        |e| e.to_string(),
        |out| String::from_utf8_lossy(&out.stdout).trim().to_owned(),
    );
    let can = said.contains(VERSION);
    if !can {
        let why = format!("the table is about umoci {VERSION}, here is: {said}");
        place::skip(&why);
    }
    can && can_mount()
}

fn written(layers: &[Layer], pack: Pack) -> Place {
    let place = Place::new();
    let tars: Vec<_> = layers.iter().map(Layer::tar).collect();
    layout::write(&place.path("image"), &tars, pack);
    place
}

/// Unpacks the image of a place to `rootfs` in a new directory. That is not in /tmp, which may be a
/// tmpfs, and those have no user xattrs in older kernels.
fn unpack(place: &Place) -> (Output, TempDir) {
    let parent = std::env::var_os("RSMOUNT_TEST_SCRATCH").unwrap_or_else(|| "/var/tmp".into());
    let scratch = TempDir::with_prefix_in("rsmount-test.", parent).unwrap();
    let mut command = Command::new("umoci");
    command.args(["unpack", "--keep-dirlinks", "--image"]);
    command.arg(format!("{}:latest", place.path("image").display()));
    let out = command.arg(scratch.path().join("bundle")).output();
    (out.unwrap(), scratch)
}

fn assert_refused(place: &Place, words: &str) {
    let (out, _scratch) = unpack(place);
    let said = String::from_utf8_lossy(&out.stderr);
    let refused = !out.status.success() && said.contains(words);
    assert!(refused, "not `{words}`, but {}: {said}", out.status);
    // And a mount shows it, which the model checks elsewhere.
    drop(place.mount("image", &[]));
}

/// Groups of the image that umoci refuses, and its words.
fn refused() -> impl Iterator<Item = (&'static str, &'static str)> {
    let rows = TABLE.iter().map(|(_, umoci)| match umoci {
        Refuses(groups) => *groups,
        _ => &[],
    });
    rows.flatten().copied()
}

#[test]
fn what_umoci_refuses_is_mounted() {
    if !can_compare() {
        return;
    }
    for (group, words) in refused() {
        let layers = edge::image(|name| name == group);
        assert_refused(&written(&layers, Pack::Gzip), words);
    }
    for (_, umoci) in TABLE {
        if let RefusesPack(pack, words) = umoci {
            let layers = edge::image(|name| name == "nodes");
            assert_refused(&written(&layers, *pack), words);
        }
    }
}

/// Seconds of a time as [`seen::Difference`] shows it.
fn seconds(shown: &str) -> i64 {
    shown.split('+').next().unwrap().parse().unwrap()
}

#[test]
fn all_else_is_the_same_but_for_the_table() {
    if !can_compare() {
        return;
    }
    let refused: BTreeSet<_> = refused().map(|(group, _)| group).collect();
    let place = written(&edge::image(|name| !refused.contains(name)), Pack::Gzip);
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let began = since_1970.unwrap().as_secs().cast_signed();
    let (out, scratch) = unpack(&place);
    assert!(out.status.success(), "{out:?}");
    let mount = place.mount("image", &[]);
    let unpacked = seen::look(&scratch.path().join("bundle/rootfs"));
    let found = seen::differences(&unpacked, &seen::look(&mount.path("")));
    let is =
        |d: &Difference, path: &str, field: &str| d.path == *path.as_bytes() && d.field == field;
    let mut unknown = found.clone();
    for (what, umoci) in TABLE {
        let now = |d: &Difference, path: &str| is(d, path, "mtime") && seconds(&d.left) >= began;
        match umoci {
            Now(paths) => {
                for path in *paths {
                    assert!(found.iter().any(|d| now(d, path)), "{what}: not of {path}");
                    unknown.retain(|d| !now(d, path));
                }
            }
            Differs(places) => {
                for (path, field) in *places {
                    let seen = found.iter().any(|d| is(d, path, field));
                    assert!(seen, "{what}: not the {field} of {path}");
                    unknown.retain(|d| !is(d, path, field));
                }
            }
            Refuses(_) | RefusesPack(..) => {}
        }
    }
    let lines: Vec<_> = unknown.iter().map(Difference::to_string).collect();
    assert!(lines.is_empty(), "not in the table:\n{}", lines.join("\n"));
}

/// The table that people read is the one that is verified.
#[test]
fn the_table_in_the_documentation_is_this_one() {
    let rows = include_str!("umoci.rs").lines();
    let rows = rows.filter_map(|line| line.strip_prefix("//! | "));
    let documented: Vec<_> = rows.skip(1).filter_map(|r| r.split(" |").next()).collect();
    let verified: Vec<_> = TABLE.iter().map(|(what, _)| *what).collect();
    assert_eq!(documented, verified);
}
