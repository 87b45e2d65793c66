//! The scanner against archives of GNU tar and of the `tar` crate.

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::*;

/// A directory with one of everything that an unprivileged user can make.
fn plant(root: &Path) -> Vec<u8> {
    let long = "long-name-".repeat(9);
    fs::create_dir_all(root.join(&long).join(&long)).unwrap();
    fs::write(root.join(&long).join(&long).join("deep"), "deep").unwrap();
    fs::write(root.join("file"), "some text").unwrap();
    fs::set_permissions(root.join("file"), fs::Permissions::from_mode(0o4711)).unwrap();
    fs::hard_link(root.join("file"), root.join("gile")).unwrap();
    std::os::unix::fs::symlink(format!("{long}/{long}/deep"), root.join("soft")).unwrap();
    fs::write(root.join("empty"), "").unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    // More holes than one header and one extension block hold.
    for piece in 0..40_u64 {
        sparse
            .write_all_at(format!("piece {piece}").as_bytes(), piece << 17)
            .unwrap();
    }
    sparse.set_len(6 << 20).unwrap();
    fs::read(root.join("sparse")).unwrap()
}

/// Runs GNU tar; `None` when there is none.
fn gnu_tar(root: &Path, args: &[&str]) -> Option<Vec<u8>> {
    let output = Command::new("tar")
        .arg("-C")
        .arg(root)
        .args(["-cf", "-", "--sort=name"])
        .args(args)
        .arg(".")
        .output()
        .ok()?;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(output.stdout)
}

#[test]
fn every_format_of_gnu_tar_reads_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let data = plant(dir.path());
    let formats: [&[&str]; 6] = [
        &["--format=gnu", "-S"],
        &["--format=oldgnu", "-S"],
        &["--format=posix"],
        &["--format=posix", "-S", "--sparse-version=0.0"],
        &["--format=posix", "-S", "--sparse-version=0.1"],
        &["--format=posix", "-S", "--sparse-version=1.0"],
    ];
    for format in formats {
        let args = [format, &["--mtime=@-100.5"]].concat();
        let Some(tar) = gnu_tar(dir.path(), &args) else {
            return;
        };
        let found = entries(&tar);
        assert_eq!(found.len(), 9, "{format:?}");
        let names: Vec<_> = found.iter().map(shown).collect();
        let find = |name: &str| &found[names.iter().position(|n| n == name).unwrap()];
        let sparse = find("/sparse");
        assert!(content(&tar, sparse) == data, "{format:?}");
        if format.contains(&"-S") {
            assert!(tar.len() < data.len() / 2, "{format:?} is sparse");
        }
        assert_eq!(content(&tar, find("/file")), b"some text");
        assert_eq!(find("/file").mode, 0o4711);
        let link = EntryKind::HardLink {
            target: LayerPath::parse(b"file").unwrap(),
        };
        assert_eq!(find("/gile").kind, link);
        let EntryKind::Symlink { target } = &find("/soft").kind else {
            panic!()
        };
        assert_eq!(target.len(), 186);
        let (seconds, nanoseconds) = match format[0] {
            "--format=posix" => (-101, 500_000_000),
            _ => (find("/file").mtime.seconds, 0),
        };
        assert!(seconds < -99);
        assert!(found.iter().all(|e| e.mtime
            == Timestamp {
                seconds,
                nanoseconds
            }));
    }
}

/// What the `tar` crate says of an archive, in the words of [`plainly`].
fn crate_says(tar: &[u8]) -> Vec<String> {
    let mut archive = ::tar::Archive::new(tar);
    let mut lines = Vec::new();
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        let header = entry.header();
        let path = LayerPath::parse(&entry.path_bytes()).unwrap();
        let at = if entry.size() == 0 || !header.entry_type().is_file() {
            String::new()
        } else {
            format!("{}+{}", entry.raw_file_position(), entry.size())
        };
        let (mode, mtime) = (header.mode().unwrap() & 0o7777, header.mtime().unwrap());
        lines.push(format!(
            "{path} {mode:o} {} {mtime} {at}",
            header.uid().unwrap()
        ));
    }
    lines
}

fn plainly(found: &[Entry]) -> Vec<String> {
    let line = |e: &Entry| {
        let at = match &e.kind {
            EntryKind::Regular { extents, .. } => extents
                .iter()
                .map(|e| format!("{}+{}", e.address, e.len))
                .collect(),
            _ => String::new(),
        };
        format!("{} {:o} {} {} {at}", e.path, e.mode, e.uid, e.mtime.seconds)
    };
    found.iter().map(line).collect()
}

#[test]
fn the_tar_crate_agrees() {
    let dir = tempfile::tempdir().unwrap();
    plant(dir.path());
    fs::remove_file(dir.path().join("sparse")).unwrap();
    fs::create_dir(dir.path().join("empty-dir")).unwrap();
    for args in [["--format=gnu"], ["--format=posix"]] {
        if let Some(tar) = gnu_tar(dir.path(), &args) {
            assert_eq!(plainly(&entries(&tar)), crate_says(&tar), "{args:?}");
        }
    }
    let mut builder = ::tar::Builder::new(Vec::new());
    builder.append_dir_all("x", dir.path()).unwrap();
    let tar = builder.into_inner().unwrap();
    assert_eq!(plainly(&entries(&tar)), crate_says(&tar));
}

proptest! {
    #[test]
    fn noise_is_never_a_panic(
        fields in prop::collection::vec((0..BLOCK, any::<u8>()), 0..6),
        flag in prop::sample::select(&b"0125SxgLKD\0"[..]),
        data in prop::collection::vec(any::<u8>(), 0..1500),
        step in 1..600_usize,
    ) {
        let bad = header(b"n", flag, data.len() as u64, |block| {
            gnu(block);
            for (at, value) in &fields {
                block[*at] = *value;
            }
        });
        let tar = [&bad[..], &data, &member(b"after", b'0', b"x")].concat();
        prop_assert_eq!(scan_by(&tar, step), scan_by(&tar, usize::MAX));
        let _ = scan_by(&data, step);
    }

    #[test]
    fn pax_noise_is_never_a_panic(
        key in prop::sample::select(&["path", "size", "mtime", "uid", "GNU.sparse.map",
            "GNU.sparse.major", "GNU.sparse.offset", "GNU.sparse.numbytes", "GNU.sparse.size",
            "SCHILY.xattr.a"][..]),
        value in "[-0-9.,a\u{0}]{0,12}",
        map in "[0-9\n]{0,40}",
    ) {
        let real = ("GNU.sparse.realsize", "100");
        let tar = [
            pax(b'x', &[real, ("GNU.sparse.major", "1"), (key, &value)]),
            member(b"f", b'0', map.as_bytes()),
        ]
        .concat();
        prop_assert_eq!(scan_by(&tar, 7), scan_by(&tar, usize::MAX));
    }
}
