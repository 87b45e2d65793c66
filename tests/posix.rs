//! POSIX semantics of writable mounts: no call fails on one that does not fail on plain overlayfs above
//! ext4 (or whatever `/var/tmp` is on).
//!
//! Needs root, `/dev/fuse` and what `contrib/install-posix-tests` installs; that is done by itself when
//! `RSMOUNT_TEST_LONG` is set. Without it a part of the tests is run, if the programs are there. Says so
//! loudly where something is skipped.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "a test")]

#[path = "support/all.rs"]
mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::layout::{self, DIR, FILE, Layer, Pack};
use support::namespace::Namespace;
use support::place::{Place, can_mount, skip};

/// What pjdfstest may become.
const SETTINGS: &str = r#"
[features]
[settings]
naptime = 0.02
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"], ["bin", "bin"]]
"#;

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
    (named("FAILED"), passed)
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
