//! POSIX semantics of writable mounts: no call fails on one that does not fail on plain overlayfs above
//! ext4 (or whatever `/var/tmp` is on).
//!
//! Needs root, `/dev/fuse` and what `contrib/install-posix-tests` installs; that is done by itself when
//! `RSMOUNT_TEST_LONG` is set. Without it a part of the tests is run, if the programs are there. Says so
//! loudly where something is skipped.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub,
    reason = "a test"
)]

#[path = "support/all.rs"]
mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::layout::{self, DIR, FILE, Layer, Pack};
use support::namespace::Namespace;
use support::place::{Place, can_mount, skip};

/// What pjdfstest may become. It naps where a time must have gone on: for much longer than the kernel's
/// coarse clock stands still, even where a timer's tick is late.
const SETTINGS: &str = r#"
[features]
[settings]
naptime = 0.1
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"], ["bin", "bin"]]
"#;

/// What fails on plain overlayfs above ext4: root may not make `::char`, since pjdfstest makes it with
/// the device number 0:0, which is an overlay's whiteout.
const PLAIN_FAILS: [&str; 39] = [
    "chmod::change_perm",
    "chmod::enotdir_component",
    "chmod::failed_chmod_unchanged_ctime",
    "chmod::update_ctime",
    "chown::enotdir_component",
    "chown::lchown::enotdir_component",
    "link::changed_ctime_success",
    "link::eexist_dest_exists",
    "link::enotdir_component_either",
    "link::remove_link",
    "link::share_metadata",
    "link::unchanged_ctime_fails",
    "mkdir::eexist_file_exists",
    "mkdir::enotdir_component",
    "mkfifo::eexist_file_exists",
    "mkfifo::enotdir_component",
    "mknod::eexist_file_exists",
    "mknod::enotdir_comp_char_block",
    "mknod::enotdir_component",
    "mknod::privileged::eexist_file_exists",
    "open::eexist_file_exists",
    "rename::eexist_enotempty_to_non_empty",
    "rename::eisdir_to_dir_from_not_dir",
    "rename::enotdir_component_either",
    "rename::enotdir_from_dir_to_not_dir",
    "rename::preserve_metadata",
    "rename::to_multiply_linked",
    "rename::unchanged_ctime_failed",
    "rmdir::eexist_enotempty_non_empty_dir",
    "rmdir::enotdir_component",
    "symlink::create_symlink",
    "symlink::eexist_file_exists",
    "symlink::enotdir_component",
    "truncate::enotdir_component",
    "unlink::enotdir_component",
    "unlink::remove_type",
    "unlink::unchanged_ctime_failed",
    "unlink::update_ctime_success",
    "unlink::update_mtime_ctime_success_folder",
];

/// What fails besides in a user namespace, whose root may make no device at all (mknod(2)).
const PLAIN_FAILS_INSIDE: [&str; 2] = ["mknod::changed_times_success", "mknod::device_files"];

/// The tests that fail on plain overlayfs above ext4.
fn listed(inside: bool) -> BTreeSet<String> {
    let of = |kind: &str, tests: &[&str]| -> Vec<String> {
        tests.iter().map(|test| format!("{test}::{kind}")).collect()
    };
    let mut all = of("char", &PLAIN_FAILS);
    if inside {
        all.extend(of("block", &PLAIN_FAILS));
        all.extend(of("block", &PLAIN_FAILS_INSIDE));
        all.extend(of("char", &PLAIN_FAILS_INSIDE));
    }
    all.into_iter().collect()
}

/// Whether `directory` is on ext4.
fn is_on_ext4(directory: &Path) -> bool {
    const EXT4: i64 = 0xef53;
    rustix::fs::statfs(directory).unwrap().f_type as i64 == EXT4
}

/// What is run when there is little time.
const PART: [&str; 4] = ["rename", "unlink", "link", "chmod"];

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn is_long() -> bool {
    std::env::var_os("RSMOUNT_TEST_LONG").is_some()
}

/// The directory with the programs.
fn programs() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let directory = cache.or_else(home)?.join("rsmount-posix-tests/bin");
    if is_long() {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/install-posix-tests");
        let installed = Command::new(script).status().unwrap();
        assert!(installed.success(), "contrib/install-posix-tests failed");
    }
    if ["pjdfstest", "fsx"]
        .iter()
        .all(|p| directory.join(p).exists())
    {
        return Some(directory);
    }
    skip("needs pjdfstest and fsx (contrib/install-posix-tests)");
    None
}

/// Names of the tests that fail in `directory`, and how many do not.
fn failures(
    pjdfstest: &Path,
    place: &Place,
    directory: &Path,
    inside: Option<&Namespace>,
) -> (BTreeSet<String>, usize) {
    let settings = place.path("pjdfstest.toml");
    std::fs::write(&settings, SETTINGS).unwrap();
    // It fails as soon as one test does.
    let script = "mkdir -m 0755 \"$3\" && { \"$1\" -c \"$2\" -p \"$@\" 2>&1 || true; }";
    let script = script.replace("\"$@\"", "\"$3\" $4");
    let part = if is_long() {
        String::new()
    } else {
        PART.join(" ")
    };
    let mut command = Command::new("sh");
    command.args([
        "-c",
        &script,
        "sh",
        text(pjdfstest),
        text(&settings),
        text(directory),
        &part,
    ]);
    let output = match inside {
        Some(namespace) => namespace.run(&command),
        None => command.output().unwrap(),
    };
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let named = |end: &str| {
        let lines = said.lines().filter_map(|line| line.strip_suffix(end));
        lines
            .map(|line| line.trim().to_owned())
            .collect::<BTreeSet<_>>()
    };
    let passed = named(" ok").len();
    assert!(passed > 100, "{said}");
    let failed = named("FAILED");
    let (at, failing) = (directory.display(), failed.len());
    eprintln!("{at}: {passed} pass, {failing} fail");
    (failed, passed)
}

/// Overlayfs above an empty directory of the same file system as the upper one.
const PLAIN: &str = r#"
set -eu
mkdir -p "$1/lower" "$1/upper" "$1/work" "$1/plain"
mount -t overlay overlay -o "lowerdir=$1/lower,upperdir=$1/upper,workdir=$1/work,redirect_dir=nofollow,metacopy=off,index=off$2" "$1/plain"
"#;

fn compare(options: &str, namespace: Option<&Namespace>) {
    let Some(programs) = programs() else {
        return;
    };
    // Where neither overlays nor tmpfs are, and where everybody may pass through.
    let scratch = tempfile::tempdir_in("/var/tmp").unwrap();
    let open = || std::os::unix::fs::PermissionsExt::from_mode(0o755);
    let place = Place::new();
    for directory in [scratch.path(), place.dir.path()] {
        std::fs::set_permissions(directory, open()).unwrap();
    }
    let layer = Layer::new()
        .dir("etc", DIR)
        .file("etc/motd", FILE, b"hello\n");
    layout::write(&place.path("image"), &[layer.tar()], Pack::Gzip);
    let run = |command: &mut Command| match namespace {
        Some(namespace) => drop(namespace.run(command)),
        None => assert!(command.status().unwrap().success(), "{command:?}"),
    };
    run(Command::new("sh").args(["-c", PLAIN, "sh", text(scratch.path()), options]));
    let image = format!("oci:{}", place.path("image").display());
    let (mnt, upper) = (place.mnt(), scratch.path().join("changes"));
    run(place
        .rsmount()
        .args(["-q", &image, text(&mnt), "--upper", text(&upper)]));
    let pjdfstest = programs.join("pjdfstest");
    let plain = scratch.path().join("plain");
    let (expected, of) = failures(&pjdfstest, &place, &plain.join("t"), namespace);
    let operations = if is_long() { "20000" } else { "500" };
    for seed in ["1", "2", "3"] {
        let file = mnt.join(format!("fsx-{seed}"));
        let mut fsx = Command::new(programs.join("fsx"));
        fsx.args([
            "-q",
            "-N",
            operations,
            "-S",
            seed,
            "-P",
            "/tmp",
            text(&file),
        ]);
        run(&mut fsx);
    }
    let (found, passed) = failures(&pjdfstest, &place, &mnt.join("t"), namespace);
    run(place.rsmount().args(["umount", text(&mnt)]));
    run(Command::new("umount").arg(&plain));
    if is_on_ext4(scratch.path()) {
        let listed = listed(namespace.is_some());
        let unlisted: Vec<_> = found.difference(&listed).collect();
        assert!(
            unlisted.is_empty(),
            "fail and are not in the list: {unlisted:?}"
        );
    }
    let more: Vec<_> = found.difference(&expected).collect();
    assert!(
        more.is_empty(),
        "fail here, and not on plain overlayfs: {more:?}"
    );
    assert!(passed >= of, "{passed} pass here, {of} on plain overlayfs");
}

#[test]
fn nothing_fails_as_root_that_plain_overlayfs_can_do() {
    if can_mount() {
        compare("", None);
    }
}

#[test]
fn nothing_fails_in_a_user_namespace_that_plain_overlayfs_can_do() {
    if !can_mount() {
        return;
    }
    match Namespace::new() {
        Some(namespace) => compare(",userxattr", Some(&namespace)),
        None => skip("this kernel lets nobody make user namespaces"),
    }
}
