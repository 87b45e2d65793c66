//! Mounts, tested by mounting: what programs see, what the kernel is spared, how mounts end.
//! Needs root and `/dev/fuse`; says so loudly where it is skipped.
#![allow(
    clippy::unwrap_used,
    clippy::type_complexity,
    clippy::print_stderr,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    reason = "a test"
)]

#[path = "support/all.rs"]
mod support;

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use support::layout::{self, DIR, FILE, Layer, Meta, Pack};
use support::place::{Mounted, Place, can_mount, skip};
use support::registry::Registry;

/// A small image with every kind of node.
fn sample() -> Vec<Vec<u8>> {
    let base = Layer::new()
        .dir("etc", DIR)
        .file("etc/motd", FILE, b"hello\n")
        .file(
            "etc/shadow",
            Meta {
                mode: 0o600,
                ..FILE
            },
            b"secret\n",
        )
        .file("etc/gone", FILE, b"gone\n")
        .file(
            "bin/su",
            Meta {
                mode: 0o4755,
                ..FILE
            },
            b"#!/bin/sh\n",
        )
        .hard_link("bin/su2", "bin/su")
        .symlink("bin/link", "../etc/motd")
        .device("dev/null", 1, 3)
        .file_with_xattrs(
            "capable",
            FILE,
            &[("user.note", b"n"), ("trusted.overlay.opaque", b"y")],
        )
        .file(
            "data/large",
            Meta {
                uid: 5,
                gid: 6,
                ..FILE
            },
            &large(),
        );
    let top = Layer::new()
        .whiteout("etc/gone")
        .file("etc/new", FILE, b"new\n");
    vec![base.tar(), top.tar()]
}

const LARGE_BYTES: u64 = 16 << 20;

/// Bytes that do not compress to nothing.
fn large() -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 59) as u8 + b'a'
    };
    (0..LARGE_BYTES).map(|_| next()).collect()
}

fn place_with(tars: &[Vec<u8>], pack: Pack) -> Place {
    let place = Place::new();
    layout::write(&place.path("image"), tars, pack);
    place
}

#[test]
fn a_log_that_cannot_be_written_keeps_nothing_from_being_mounted() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    layout::write(&place.path("image"), &sample(), Pack::Gzip);
    std::fs::write(place.path("file"), "").unwrap();
    let image = format!("oci:{}", place.path("image").display());
    let mut mount = place.rsmount();
    mount.env("RSMOUNT_LOG_FILE", place.path("file/below/log"));
    let output = mount
        .args(["-q", &image])
        .arg(place.mnt())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let mounted = Mounted::adopt(&place);
    assert_eq!(std::fs::read(mounted.path("etc/new")).unwrap(), b"new\n");
}

#[test]
fn every_kind_of_node_is_right_in_every_compression() {
    if !can_mount() {
        return;
    }
    for pack in [Pack::Gzip, Pack::Zstd, Pack::Plain] {
        let place = place_with(&sample(), pack);
        let mount = place.mount("image", &[]);
        let meta = |name: &str| mount.path(name).symlink_metadata().unwrap();
        assert_eq!(std::fs::read(mount.path("etc/motd")).unwrap(), b"hello\n");
        assert_eq!(std::fs::read(mount.path("etc/new")).unwrap(), b"new\n");
        assert!(!mount.path("etc/gone").exists());
        assert_eq!(meta("bin/su").nlink(), 2);
        assert_eq!(meta("bin/su").ino(), meta("bin/su2").ino());
        assert_eq!(meta("bin/su").mode(), 0o104_755);
        assert_eq!(
            std::fs::read_link(mount.path("bin/link")).unwrap(),
            Path::new("../etc/motd")
        );
        assert!(meta("dev/null").file_type().is_char_device());
        assert_eq!(meta("dev/null").rdev(), 0x103);
        assert_eq!((meta("data/large").uid(), meta("data/large").gid()), (5, 6));
        assert_eq!(meta("data/large").blocks(), LARGE_BYTES / 512);
        assert_eq!(meta("etc").mtime(), 1_700_000_000);
        assert_eq!(meta("").nlink(), 2 + 4);
        assert!(std::fs::read(mount.path("data/large")).unwrap() == large());
    }
}

#[test]
fn absent_bytes_come_back_by_span_and_only_those() {
    if !can_mount() {
        return;
    }
    for pack in [Pack::Gzip, Pack::Zstd, Pack::Plain] {
        let place = place_with(&sample(), pack);
        drop(place.mount("image", &[]));
        place.ok(&["cache", "prune", "--data"]);
        let mount = place.mount("image", &[]);
        let listed = Command::new("ls")
            .arg("-lR")
            .arg(place.mnt())
            .output()
            .unwrap();
        assert!(listed.status.success());
        assert_eq!(place.stats()["fetched_bytes"], 0, "listing fetches nothing");
        let mut file = File::open(mount.path("data/large")).unwrap();
        let mut head = [0; 100];
        file.read_exact(&mut head).unwrap();
        assert_eq!(head, large()[..100]);
        let stats = place.stats();
        let fetched = stats["fetched_bytes"].as_u64().unwrap();
        let size = stats["layers"][0]["size"].as_u64().unwrap();
        assert!(
            fetched > 0 && fetched < size * 3 / 4,
            "{pack:?}: {fetched} of {size}"
        );
        assert!(std::fs::read(mount.path("data/large")).unwrap() == large());
        assert_eq!(place.stats()["verify_failures"], 0);
    }
}

#[test]
fn the_kernel_answers_what_it_has_seen() {
    if !can_mount() {
        return;
    }
    let place = place_with(&sample(), Pack::Gzip);
    let mount = place.mount("image", &["--engine", "fuse"]);
    let find = || {
        let output = Command::new("find")
            .arg(place.mnt())
            .args(["-printf", "%p %s\n"])
            .output();
        assert!(output.unwrap().status.success());
    };
    find();
    // statfs(2), which find calls by itself, is the one question that the kernel never answers.
    let asked = || {
        let mut requests = mount.requests();
        requests["statfs"] = 0.into();
        requests
    };
    let before = asked();
    find();
    assert_eq!(asked(), before, "a second find sends no request");
    let read = || std::fs::read(mount.path("etc/motd")).unwrap();
    read();
    let before = mount.requests();
    read();
    assert!(!mount.path("etc/nothing").exists());
    let after_negative = mount.requests();
    assert!(!mount.path("etc/nothing").exists());
    assert_eq!(
        before["open"].as_u64().unwrap(),
        1,
        "OPEN is answered once per mount"
    );
    assert_eq!(
        before["read"], after_negative["read"],
        "a warm open+read+close sends none"
    );
    assert_eq!(before["open"], after_negative["open"]);
    assert_eq!(
        mount.requests(),
        after_negative,
        "a negative lookup is remembered"
    );
}

#[test]
fn permissions_hold_for_other_users() {
    if !can_mount() {
        return;
    }
    let place = place_with(&sample(), Pack::Gzip);
    // The test's own directory must let the other user through.
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(place.dir.path(), open).unwrap();
    let mount = place.mount("image", &[]);
    let cat = |name: &str| {
        Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "cat"])
            .arg(mount.path(name))
            .output()
            .unwrap()
    };
    assert_eq!(cat("etc/motd").stdout, b"hello\n");
    let refused = cat("etc/shadow");
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("Permission denied"));
}

#[test]
fn set_id_and_devices_count_only_when_asked_for() {
    if !can_mount() {
        return;
    }
    let place = place_with(&sample(), Pack::Gzip);
    let options = |place: &Place| {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let at = format!(" {} ", place.mnt().display());
        table.lines().find(|l| l.contains(&at)).unwrap().to_owned()
    };
    let mount = place.mount("image", &[]);
    let line = options(&place);
    assert!(
        line.contains("nosuid") && line.contains("nodev") && line.contains("ro,"),
        "{line}"
    );
    let fuse = place.stats()["engine"] == "fuse";
    assert!(
        !fuse || line.contains("default_permissions") && line.contains("allow_other"),
        "{line}"
    );
    assert!(File::open(mount.path("dev/null")).is_err());
    drop(mount);
    let mount = place.mount("image", &["-o", "suid,dev,noexec"]);
    let line = options(&place);
    assert!(
        !line.contains("nosuid") && !line.contains("nodev"),
        "{line}"
    );
    assert!(line.contains("noexec"), "{line}");
    assert!(File::open(mount.path("dev/null")).is_ok());
    assert!(Command::new(mount.path("bin/su")).status().is_err());
}

#[test]
fn overlay_xattrs_of_the_image_are_hidden() {
    if !can_mount() {
        return;
    }
    let place = place_with(&sample(), Pack::Gzip);
    let mount = place.mount("image", &[]);
    let mut buffer = [0; 256];
    let path = mount.path("capable");
    let n = rustix::fs::listxattr(&path, &mut buffer[..]).unwrap();
    assert_eq!(&buffer[..n], b"user.note\0");
    assert_eq!(
        rustix::fs::getxattr(&path, "user.note", &mut buffer[..]).unwrap(),
        1
    );
    let hidden = rustix::fs::getxattr(&path, "trusted.overlay.opaque", &mut buffer[..]);
    assert_eq!(hidden, Err(rustix::io::Errno::NODATA));
}

#[test]
fn every_way_to_unmount_ends_the_worker_and_leaves_nothing() {
    if !can_mount() {
        return;
    }
    let ways: [fn(&Place, u64); 4] = [
        |place, _| drop(place.ok(&["umount", place.mnt().to_str().unwrap()])),
        |place, _| {
            assert!(
                Command::new("umount")
                    .arg(place.mnt())
                    .status()
                    .unwrap()
                    .success()
            )
        },
        |place, _| {
            let fusermount = Command::new("fusermount3")
                .arg("-u")
                .arg(place.mnt())
                .status();
            assert!(fusermount.unwrap().success());
        },
        |_, pid| {
            assert!(
                Command::new("kill")
                    .arg(pid.to_string())
                    .status()
                    .unwrap()
                    .success()
            )
        },
    ];
    for (n, end) in ways.into_iter().enumerate() {
        let place = place_with(&sample(), Pack::Gzip);
        let mount = place.mount("image", &[]);
        let listed: serde_json::Value = serde_json::from_str(&place.ok(&["ps", "--json"])).unwrap();
        assert_eq!(listed[0]["state"], "ready");
        assert_eq!(listed[0]["mountpoint"], place.mnt().to_str().unwrap());
        let pid = listed[0]["pid"].as_u64().unwrap();
        end(&place, pid);
        let deadline = Instant::now() + Duration::from_secs(5);
        while (place.is_mounted() || place.leftovers() > 0) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(!place.is_mounted(), "way {n}");
        assert_eq!(place.leftovers(), 0, "way {n}");
        assert_eq!(place.ok(&["ps", "--json"]).trim(), "[]");
        drop(mount);
    }
}

#[test]
fn the_worker_holds_nothing_of_the_caller() {
    if !can_mount() {
        return;
    }
    let place = place_with(&sample(), Pack::Gzip);
    let image = format!("oci:{}", place.path("image").display());
    // The shell waits for the end of its pipe: were it inherited, this would never return.
    let mut command = place.rsmount();
    let program = command.get_program().to_owned();
    command = {
        let mut shell = Command::new("timeout");
        shell.args([
            "20",
            "bash",
            "-c",
            r#"exec 7>"$4"; x=$("$1" "$2" "$3" 2>&1); echo "done:$x""#,
        ]);
        shell
            .arg("sh")
            .arg(program)
            .arg(&image)
            .arg(place.mnt())
            .arg(place.path("held"));
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                shell.env(name, value);
            }
        }
        shell
    };
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let listed: serde_json::Value = serde_json::from_str(&place.ok(&["ps", "--json"])).unwrap();
    let pid = listed[0]["pid"].as_u64().unwrap();
    for fd in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let target = std::fs::read_link(fd.unwrap().path()).unwrap();
        assert!(
            target != place.path("held"),
            "the caller's descriptor was inherited"
        );
    }
    assert_eq!(
        std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap(),
        Path::new("/")
    );
    place.ok(&["umount", place.mnt().to_str().unwrap()]);
}

#[test]
fn a_foreground_mount_ends_with_its_signal() {
    if !can_mount() {
        return;
    }
    let place = place_with(&sample(), Pack::Gzip);
    let image = format!("oci:{}", place.path("image").display());
    let mut child = place
        .rsmount()
        .args(["-f", "-q", &image])
        .arg(place.mnt())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !place.mnt().join("etc/motd").exists() {
        assert!(Instant::now() < deadline, "not mounted");
        std::thread::sleep(Duration::from_millis(10));
    }
    // It can be read a moment before the command has heard of it; until then a signal gives up.
    std::thread::sleep(Duration::from_millis(500));
    assert!(child.try_wait().unwrap().is_none());
    Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(child.wait().unwrap().success());
    assert!(!place.is_mounted());
}

#[test]
fn a_stored_image_mounts_without_its_source_bytes() {
    if !can_mount() {
        return;
    }
    let place = place_with(&sample(), Pack::Gzip);
    drop(place.mount("image", &[]));
    for entry in std::fs::read_dir(place.path("image/blobs/sha256")).unwrap() {
        let path = entry.unwrap().path();
        if path.metadata().unwrap().len() > 4096 {
            std::fs::remove_file(path).unwrap();
        }
    }
    let mount = place.mount("image", &[]);
    assert!(std::fs::read(mount.path("data/large")).unwrap() == large());
    assert_eq!(place.stats()["fetched_bytes"], 0);
    drop(mount);
    // Whole and known, it is read ahead at least as far as the disk.
    let _mount = place.mount("image", &["--engine", "fuse"]);
    let Some(mounts) = read_ahead_kib(&place.mnt()) else {
        return skip("nobody may set a read-ahead here");
    };
    let disks = read_ahead_kib(&place.path("cache")).unwrap_or(0);
    assert!(mounts >= disks.clamp(1024, 16384), "{mounts}, not {disks}");
}

/// Read-ahead of the file system that `path` is on; `None` where it has no setting that may be written.
fn read_ahead_kib(path: &Path) -> Option<u64> {
    let device = path.metadata().unwrap().dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let setting = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    File::options().write(true).open(&setting).ok()?;
    let text = std::fs::read_to_string(setting).ok()?;
    Some(text.trim().parse().unwrap())
}

fn begin(place: &Place, image: &str) -> std::process::Child {
    let mut mount = place.rsmount();
    mount.args(["-q", image]).arg(place.mnt());
    mount.stdout(Stdio::null()).stderr(Stdio::piped());
    mount.spawn().unwrap()
}

/// It failed, and said one of these in one line.
fn assert_refused(output: &std::process::Output, expected: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(expected.iter().any(|e| said.contains(e)), "{said}");
}

/// What is said to who comes second: while the first is mounting, and after it.
const SECOND: [&str; 2] = ["is mounting an image here", "mounted here already"];

fn until_asked(registry: &Registry) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while registry.control.requests.load(SeqCst) == 0 {
        assert!(Instant::now() < deadline, "nobody asks");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn of_two_mounts_in_one_place_one_is_refused() {
    if !can_mount() {
        return;
    }
    let place = place_with(&sample(), Pack::Gzip);
    let registry = Registry::serve(place.path("image"));
    let begin = || begin(&place, &registry.image());
    // The first waits for its registry.
    registry.control.held.store(true, SeqCst);
    let first = begin();
    until_asked(&registry);
    let second = begin().wait_with_output().unwrap();
    assert_refused(&second, &SECOND[..1]);
    registry.control.held.store(false, SeqCst);
    let first = first.wait_with_output().unwrap();
    assert!(first.status.success(), "{first:?}");
    let third = begin().wait_with_output().unwrap();
    assert_refused(&third, &SECOND[1..]);
    drop(Mounted::adopt(&place));
    // And when both come at once.
    for _ in 0..10 {
        let both = [begin(), begin()].map(|child| child.wait_with_output().unwrap());
        let (mounted, others): (Vec<_>, Vec<_>) =
            both.into_iter().partition(|output| output.status.success());
        assert_eq!(mounted.len(), 1, "{mounted:?} {others:?}");
        others
            .iter()
            .for_each(|other| assert_refused(other, &SECOND));
        drop(Mounted::adopt(&place));
        assert!(!place.is_mounted(), "one below the other");
    }
    assert_eq!(place.leftovers(), 0);
}

#[test]
fn one_that_dies_while_it_mounts_is_in_nobodys_way() {
    if !can_mount() {
        return;
    }
    let place = place_with(&sample(), Pack::Gzip);
    let registry = Registry::serve(place.path("image"));
    let begin = || begin(&place, &registry.image());
    registry.control.held.store(true, SeqCst);
    let mut dies = begin();
    until_asked(&registry);
    dies.kill().unwrap();
    dies.wait().unwrap();
    registry.control.held.store(false, SeqCst);
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut again = begin().wait_with_output().unwrap();
    while !again.status.success() && Instant::now() < deadline {
        assert_refused(&again, &SECOND);
        std::thread::sleep(Duration::from_millis(50));
        again = begin().wait_with_output().unwrap();
    }
    assert!(again.status.success(), "{again:?}");
    drop(Mounted::adopt(&place));
    assert_eq!(place.leftovers(), 0);
}
