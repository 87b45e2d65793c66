//! Mounts against GNU tar: tars that it writes, and tars with odd headers that it reads.
//!
//! Left out is what GNU tar reads otherwise than POSIX or Go, or not at all: numbers that are taken
//! back by an empty value (`Malformed extended header`), a second global PAX header (it forgets all of
//! the first), two kinds of headers about one name (PAX wins over the GNU long name), owners of -2,
//! links before their targets, a file over a directory that is not empty.
//!
//! Needs root, `/dev/fuse` and GNU tar; says so loudly where it is skipped.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "a test")]

#[path = "support/all.rs"]
mod support;

use std::ffi::OsStr;
use std::fs::{File, FileTimes};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use support::edge;
use support::layout::{self, Pack};
use support::place::{self, Place, can_mount};
use support::seen::{self, Seen};
use tempfile::TempDir;

/// Whether there is GNU tar; says loudly when not.
fn can_compare() -> bool {
    let version = Command::new("tar").arg("--version").output();
    let can = version.is_ok_and(|out| out.stdout.starts_with(b"tar (GNU tar)"));
    if !can {
        place::skip("needs GNU tar");
    }
    can && can_mount()
}

/// Not in /tmp, which may be a tmpfs: those lack user xattrs in older kernels, and some lack holes.
fn scratch() -> TempDir {
    let parent = std::env::var_os("RSMOUNT_TEST_SCRATCH").unwrap_or_else(|| "/var/tmp".into());
    TempDir::with_prefix_in("rsmount-test.", parent).unwrap()
}

fn tar(arguments: &[&str]) {
    let out = Command::new("tar").args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "tar {arguments:?}: {said}");
}

/// What GNU tar makes of a tar. It leaves directories that it came back to with the time of unpacking;
/// these get the time that `mounted` has.
fn extracted(archive: &Path, mounted: &Seen) -> Seen {
    let scratch = scratch();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let [archive, into] = [archive, scratch.path()].map(|path| path.to_str().unwrap());
    let keep = ["-xp", "--numeric-owner", "--xattrs", "--xattrs-include=*"];
    tar(&[&keep[..], &["-f", archive, "-C", into]].concat());
    let mut found = seen::look(scratch.path());
    let directories = found.iter_mut().filter(|(_, node)| node.kind == 'd');
    for (path, node) in directories.filter(|(_, node)| node.mtime.0 >= now.as_secs().cast_signed())
    {
        node.mtime = mounted.get(path).map_or(node.mtime, |m| m.mtime);
    }
    found
}

/// Mounts an image of this one layer, at first contact and when its bytes have to be fetched.
fn assert_mounts_as_extracted(what: &str, bytes: &[u8]) {
    let place = Place::new();
    let archive = place.path("layer.tar");
    std::fs::write(&archive, bytes).unwrap();
    layout::write(&place.path("image"), &[bytes.to_vec()], Pack::Gzip);
    let mut right = None;
    for _ in ["first contact", "absent"] {
        let mount = place.mount("image", &[]);
        let mounted = seen::look(&mount.path(""));
        let right = right.get_or_insert_with(|| extracted(&archive, &mounted));
        seen::assert_same(what, right, &mounted);
        drop(mount);
        place.ok(&["cache", "prune", "--data"]);
    }
}

/// Length of each holey file, and more than a tar of the source has when it leaves the holes out.
const HOLEY_BYTES: u64 = 2 << 20;

/// Files with holes, and every kind of node, name and link.
fn source() -> TempDir {
    let source = scratch();
    let path = |name: &str| source.path().join(name);
    let holey = |name: &str, size: u64, pieces: &[u64]| {
        let file = File::create(path(name)).unwrap();
        for (n, at) in pieces.iter().enumerate() {
            let piece = vec![u8::try_from(n % 255).unwrap() + 1; 5000];
            file.write_all_at(&piece, *at).unwrap();
        }
        file.set_len(size).unwrap();
    };
    holey("hole-first", HOLEY_BYTES, &[HOLEY_BYTES - 5000]);
    holey("hole-last", HOLEY_BYTES, &[0]);
    holey("only-a-hole", HOLEY_BYTES, &[]);
    // The last hole ends in the middle of a block.
    let many: Vec<u64> = (0..100).map(|n| n << 15).collect();
    holey("many", (100 << 15) + 77, &many);
    std::fs::write(path("no-hole"), [7; 5000]).unwrap();
    std::fs::write(path("empty"), "").unwrap();
    std::fs::create_dir(path("dir")).unwrap();
    std::fs::create_dir(path("d".repeat(200).as_str())).unwrap();
    std::fs::write(path(&format!("dir/{}", "n".repeat(255))), "long").unwrap();
    let bytes = source.path().join(OsStr::from_bytes(b"\xff\xfe\n"));
    std::fs::write(&bytes, "bytes").unwrap();
    symlink("t/".repeat(500), path("long-link")).unwrap();
    symlink("nowhere", path("link")).unwrap();
    std::fs::hard_link(path("link"), path("link-too")).unwrap();
    std::fs::hard_link(path("many"), path("dir/many-too")).unwrap();
    std::fs::hard_link(bytes, path(&"h".repeat(150))).unwrap();
    for (name, seconds) in [("dir", 1_500_000_000.125), ("no-hole", 1.000_000_5)] {
        let time = UNIX_EPOCH + Duration::from_secs_f64(seconds);
        let file = File::open(path(name)).unwrap();
        file.set_times(FileTimes::new().set_modified(time)).unwrap();
    }
    source
}

/// The ways in which GNU tar writes.
const WAYS: &[(&str, &[&str])] = &[
    ("GNU", &["--format=gnu", "--sparse"]),
    ("old GNU", &["--format=oldgnu", "--sparse"]),
    (
        "PAX 0.0",
        &["--format=pax", "--sparse-version=0.0", "--sparse"],
    ),
    (
        "PAX 0.1",
        &["--format=pax", "--sparse-version=0.1", "--sparse"],
    ),
    (
        "PAX 1.0",
        &["--format=pax", "--sparse-version=1.0", "--sparse"],
    ),
    (
        "a global header",
        &[
            "--format=pax",
            "--sparse",
            "--pax-option=globexthdr.name=all,globexthdr.mtime=5,uid=4711,comment=x",
        ],
    ),
    (
        "a global header that replaces times",
        &[
            "--format=pax",
            "--sparse",
            "--pax-option=delete=mtime,mtime=1234567890.123456789,gid=5000000",
        ],
    ),
];

fn written_by_gnu_tar(source: &Path, archive: PathBuf, way: &[&str]) -> Vec<u8> {
    let [from, to] = [source, &archive].map(|path| path.to_str().unwrap());
    let what = ["--sort=name", "-C", from, "-cf", to, "."];
    tar(&[way, &what].concat());
    std::fs::read(archive).unwrap()
}

#[test]
fn what_gnu_tar_writes_is_mounted_as_it_extracts_it() {
    if !can_compare() {
        return;
    }
    let source = source();
    let scratch = scratch();
    for (what, way) in WAYS {
        let bytes = written_by_gnu_tar(source.path(), scratch.path().join("tar"), way);
        let left_out = (bytes.len() as u64) < HOLEY_BYTES;
        assert!(left_out, "{what}: {} bytes, with holes", bytes.len());
        assert_mounts_as_extracted(what, &bytes);
    }
}

/// Groups of the image of edge cases that GNU tar reads, in the base layer and in the second.
const BASE: &[&str] = &[
    "root",
    "names",
    "gnu long names",
    "old headers",
    "contiguous files",
    "numbers",
    "times",
    "pax",
    "sparse, old gnu",
    "sparse, old gnu, 9 GiB",
    "links",
    "nodes",
    "xattrs",
    "empty xattrs",
];
const SECOND: &[&str] = &[
    "sparse, pax 0.0",
    "sparse, pax 0.1",
    "sparse, pax 1.0",
    "pax, global",
];

#[test]
fn odd_headers_are_mounted_as_gnu_tar_extracts_them() {
    if !can_compare() {
        return;
    }
    for (groups, layer) in [(BASE, 0), (SECOND, 1)] {
        for group in groups {
            assert!(
                edge::GROUPS.iter().any(|(name, _)| name == group),
                "{group}"
            );
        }
        let layers = edge::image(|name| groups.contains(&name));
        assert_mounts_as_extracted(&format!("{groups:?}"), &layers[layer].tar());
    }
}
