//! What an ordinary user can do: mount through fusermount3, read, look, unmount, and be told plainly
//! what is not allowed.
//!
//! Needs root (to become somebody else), `/dev/fuse`, fuse3 and util-linux; says so loudly where it is
//! skipped.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "a test")]

#[path = "support/all.rs"]
mod support;

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::layout::{self, DIR, FILE, Layer, Meta, Pack};
use support::ordinary::{Machine, Ordinary, UID, USUAL, can_be_ordinary};

/// Somebody who has mounted nothing.
const OTHER: u32 = 65_534;

/// A machine with a small image, and the image's name.
fn with_image(machine: Machine) -> (Ordinary, String) {
    let user = Ordinary::on(machine);
    let secret = Meta {
        mode: 0o600,
        ..FILE
    };
    let layer = Layer::new()
        .dir("etc", DIR)
        .file("etc/motd", FILE, b"hello\n")
        .file("etc/shadow", secret, b"secret\n");
    layout::write(&user.place.path("image"), &[layer.tar()], Pack::Gzip);
    let image = format!("oci:{}", user.place.path("image").display());
    (user, image)
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn mountpoint(user: &Ordinary) -> String {
    text(&user.place.mnt())
}

/// What a program printed, or `None` when it failed.
fn cat(user: &Ordinary, uid: u32, name: &str) -> Option<Vec<u8>> {
    let mut command = user.command(uid, "cat");
    let out = command.arg(user.place.mnt().join(name)).output().unwrap();
    out.status.success().then_some(out.stdout)
}

fn listed(user: &Ordinary) -> Value {
    serde_json::from_str(&user.ok(&["ps", "--json"])).unwrap()
}

/// Waits until nothing is left of a mount: not in the table, no process, no record.
fn assert_ended(user: &Ordinary, how: &str) {
    let records = || {
        std::fs::read_dir(user.home().join("run/rsmount"))
            .unwrap()
            .count()
    };
    let deadline = Instant::now() + Duration::from_secs(5);
    while (user.mounted().is_some() || records() > 0) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(user.mounted(), None, "{how}");
    assert_eq!(records(), 0, "{how}");
    assert_eq!(listed(user), Value::Array(vec![]), "{how}");
}

#[test]
fn an_ordinary_user_mounts_reads_looks_and_unmounts() {
    if !can_be_ordinary() {
        return;
    }
    let (user, image) = with_image(USUAL);
    let mnt = mountpoint(&user);
    let before = std::fs::read_dir(user.place.dir.path()).unwrap().count();
    for how in ["fusermount3 -u", "rsmount umount", "SIGTERM"] {
        user.ok(&["-q", &image, &mnt]);
        let line = user.mounted().expect("it is mounted");
        for option in ["ro,nosuid,nodev", "fuse.rsmount", "default_permissions"] {
            assert!(line.contains(option), "{line}");
        }
        assert!(line.contains(&format!("user_id={UID}")), "{line}");
        assert!(!line.contains("allow_other"), "{line}");
        assert_eq!(cat(&user, UID, "etc/motd").unwrap(), b"hello\n");
        assert_eq!(cat(&user, UID, "etc/shadow"), None, "root's file");
        assert_eq!(cat(&user, 0, "etc/motd"), None, "root is somebody else");
        let pid = assert_looks_right(&user, &image);
        match how {
            "fusermount3 -u" => {
                let out = user.run("fusermount3", &["-u", &mnt]);
                assert!(out.status.success(), "{out:?}");
            }
            "rsmount umount" => drop(user.ok(&["umount", &mnt])),
            _ => {
                let out = user.run("kill", &[&pid.to_string()]);
                assert!(out.status.success(), "{out:?}");
            }
        }
        assert_ended(&user, how);
        user.ok(&["cache", "prune", "--data"]);
    }
    let cache = user.home().join(".cache/rsmount").metadata().unwrap();
    assert_eq!((cache.uid(), cache.mode() & 0o777), (UID, 0o700));
    let after = std::fs::read_dir(user.place.dir.path()).unwrap().count();
    assert_eq!(after, before, "everything is in the user's home");
}

/// `ps` and `stats` tell of the mount; gives the process that serves it.
fn assert_looks_right(user: &Ordinary, image: &str) -> u64 {
    let mnt = mountpoint(user);
    let mounts = listed(user);
    assert_eq!(mounts.as_array().unwrap().len(), 1, "{mounts}");
    assert_eq!(mounts[0]["mountpoint"], *mnt);
    assert_eq!(mounts[0]["image"], image);
    assert_eq!(mounts[0]["state"], "ready");
    let pid = mounts[0]["pid"].as_u64().unwrap();
    let process = std::fs::metadata(format!("/proc/{pid}")).unwrap();
    assert_eq!(process.uid(), UID, "the worker is the user's");
    let stats: Value = serde_json::from_str(&user.ok(&["stats", &mnt, "--json"])).unwrap();
    assert_eq!(stats["digest"], mounts[0]["digest"]);
    assert_eq!(stats["state"], "ready");
    // From the second mount on the file may be pushed before it is read.
    let (read, pushed) = (&stats["read_bytes"], &stats["pushed_bytes"]);
    assert!(*read == 6 || pushed.as_u64() > Some(0), "{stats}");
    assert_eq!(stats["layers"].as_array().unwrap().len(), 1);
    pid
}

#[test]
fn others_come_in_where_the_machine_allows_it() {
    if !can_be_ordinary() {
        return;
    }
    let (user, image) = with_image(Machine {
        fuse_conf: "user_allow_other",
        ..USUAL
    });
    user.ok(&["-q", "-o", "allow_other", &image, &mountpoint(&user)]);
    assert_eq!(cat(&user, OTHER, "etc/motd").unwrap(), b"hello\n");
    assert_eq!(cat(&user, OTHER, "etc/shadow"), None);
    assert_eq!(cat(&user, 0, "etc/shadow").unwrap(), b"secret\n");
    // Root may end any mount.
    let umount = user.command(0, "umount").arg(user.place.mnt()).status();
    assert!(umount.unwrap().success());
    assert_ended(&user, "umount by root");
}

/// Fails, says these words in one line, and leaves nothing.
fn assert_refused(user: &Ordinary, arguments: &[&str], words: &str) {
    let said = user.refused(&[&["-q"], arguments].concat());
    assert!(said.contains(words), "{arguments:?}: {said}");
    assert_ended(user, words);
}

#[test]
fn what_is_not_the_users_is_refused_in_one_line() {
    if !can_be_ordinary() {
        return;
    }
    let (user, image) = with_image(USUAL);
    let mnt = mountpoint(&user);
    user.ok(&["-q", &image, &mnt]);
    user.ok(&["umount", &mnt]);
    let roots = text(&user.place.path("roots"));
    std::fs::create_dir(&roots).unwrap();
    let words = "belongs to user 0, not to user 54321: choose another --cache-dir";
    assert_refused(&user, &["--cache-dir", &roots, &image, &mnt], words);
    assert_eq!(std::fs::read_dir(&roots).unwrap().count(), 0);
    let open = text(&user.home().join("open"));
    std::fs::create_dir(&open).unwrap();
    chown(&open, Some(UID), Some(UID)).unwrap();
    std::fs::set_permissions(&open, PermissionsExt::from_mode(0o777)).unwrap();
    let words = "may be written by others";
    assert_refused(&user, &["--cache-dir", &open, &image, &mnt], words);
    assert_refused(&user, &[&image, &roots], "choose one that you own");
    let words = "user_allow_other added to /etc/fuse.conf";
    assert_refused(&user, &["-o", "allow_other", &image, &mnt], words);
    for option in ["suid", "dev"] {
        let words = "only root may use the options suid and dev";
        assert_refused(&user, &["-o", option, &image, &mnt], words);
    }
    let mut command = user.command(UID, &text(&user.place.path("rsmount")));
    let command = command.env("RSMOUNT_RUN_DIR", &roots).args(["ps"]);
    let said = String::from_utf8(command.output().unwrap().stderr).unwrap();
    assert!(
        said.contains("must be a directory that only you can write"),
        "{said}"
    );
}

#[test]
fn what_the_machine_lacks_is_told_in_one_line() {
    if !can_be_ordinary() {
        return;
    }
    for (machine, words) in [
        (
            Machine {
                device_mode: "0600",
                ..USUAL
            },
            "/dev/fuse cannot be opened (Permission denied (os error 13)); its mode is usually 0666",
        ),
        (
            Machine {
                passwd: "",
                ..USUAL
            },
            "user 54321 has none",
        ),
    ] {
        let (user, image) = with_image(machine);
        user.ok(&["ps"]);
        assert_refused(&user, &[&image, &mountpoint(&user)], words);
    }
}

#[test]
fn the_mounts_of_others_are_told_apart_from_none() {
    if !can_be_ordinary() {
        return;
    }
    let (user, image) = with_image(USUAL);
    let mnt = mountpoint(&user);
    for command in ["umount", "stats"] {
        let said = user.refused(&[command, &mnt]);
        assert!(said.contains("no image is mounted here"), "{said}");
    }
    let as_root = |arguments: &[&str]| {
        let mut command = user.command(0, &text(&user.place.path("rsmount")));
        command.env("RSMOUNT_CACHE_DIR", user.place.path("cache"));
        command.env("RSMOUNT_RUN_DIR", user.place.path("run"));
        let command = command.env("RSMOUNT_LOG_FILE", user.place.path("log"));
        let out = command.args(arguments).output().unwrap();
        assert!(out.status.success(), "{arguments:?}: {out:?}");
    };
    as_root(&["-q", &image, &mnt]);
    assert_eq!(cat(&user, UID, "etc/motd").unwrap(), b"hello\n");
    for command in ["umount", "stats"] {
        let said = user.refused(&[command, &mnt]);
        assert!(said.contains("another user mounted this image"), "{said}");
    }
    let said = user.refused(&["-q", &image, &mnt]);
    assert!(said.contains("an image is mounted here already"), "{said}");
    as_root(&["umount", &mnt]);
    assert_eq!(user.mounted(), None);
}
