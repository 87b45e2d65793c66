//! A mount of ours as the root file system of other programs: what they run in it finds what it needs.
//!
//! Needs root, the registry that `contrib/test` starts, and of crun, runc, bubblewrap, systemd-nspawn and
//! podman those that are there; says so loudly where one is skipped.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "a test")]

#[allow(dead_code, reason = "each test uses its own part")]
#[path = "support/images.rs"]
mod images;
#[path = "support/all.rs"]
mod support;

use std::path::Path;
use std::process::{Command, Stdio};

use support::place::{Place, skip};
use support::podman::Podman;

/// Compares what is installed with what Debian says it is: reads, hashes, walks.
const SCRIPT: &str = ". /etc/os-release; dpkg --verify base-files && echo $ID $VERSION_ID";
const SAYS: &str = "debian 12";

fn is_there(program: &&str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}

/// A place and the image; `None`, loudly, when there is no registry or `program` is missing.
fn place(program: &str) -> Option<(Place, String)> {
    let thread = std::thread::current();
    let registry = images::registry(thread.name().unwrap())?;
    if !is_there(&program) {
        skip(&format!("needs {program}"));
        return None;
    }
    Some((Place::new(), format!("{registry}/library/debian:12")))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs `command`, which has to print [`SAYS`], unless it says one of `unable`: then the test is skipped.
fn check(command: &mut Command, unable: &[&str]) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    if let Some(why) = unable.iter().find(|words| err.contains(**words)) {
        return skip(&format!(
            "{:?} cannot work here: {why}",
            command.get_program()
        ));
    }
    assert!(output.status.success(), "{command:?}: {out}{err}");
    assert_eq!(out.lines().last(), Some(SAYS), "{command:?}: {err}");
}

#[test]
fn chroot() {
    let Some((place, image)) = place("chroot") else {
        return;
    };
    let _mounted = place.mount_image(&image, &["--tmp"]);
    let mut chroot = Command::new("chroot");
    check(chroot.arg(place.mnt()).args(["sh", "-c", SCRIPT]), &[]);
}

/// By the runtime's own command, on a bundle that stands for itself.
fn runtime(program: &str, unable: &[&str]) {
    let Some((place, image)) = place(program) else {
        return;
    };
    let dir = place.path("bundle");
    // Without --tmp the root cannot be written, and needs not to be.
    for (number, writable) in [&["--tmp"][..], &[]].into_iter().enumerate() {
        let mut words = vec!["bundle"];
        words.extend_from_slice(writable);
        words.extend([&*image, text(&dir), "sh", "-c", SCRIPT]);
        let bundled = place.run(&words);
        assert!(bundled.status.success(), "{bundled:?}");
        let said = String::from_utf8_lossy(&bundled.stderr).into_owned();
        let found = ["crun", "runc", "youki"].into_iter().find(is_there);
        let run = format!("run it: {} run --bundle {}", found.unwrap(), text(&dir));
        assert!(said.contains(&run), "{said}");
        let name = format!("rsmount-test-{}-{number}", std::process::id());
        let mut run = Command::new(program);
        check(run.args(["run", "--bundle"]).arg(&dir).arg(&name), unable);
        let _never_made = Command::new(program).args(["delete", "-f", &name]).output();
        place.ok(&["umount", text(&dir.join("rootfs"))]);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

#[test]
fn runc_run() {
    runtime("runc", &[]);
}

#[test]
fn crun_run() {
    runtime("crun", &["cgroups in hybrid mode not supported"]);
}

#[test]
fn bubblewrap() {
    let Some((place, image)) = place("bwrap") else {
        return;
    };
    let _mounted = place.mount_image(&image, &[]);
    let mut bwrap = Command::new("bwrap");
    bwrap.arg("--ro-bind").arg(place.mnt()).arg("/");
    bwrap.args(["--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"]);
    check(bwrap.args(["sh", "-c", SCRIPT]), &[]);
}

#[test]
fn systemd_nspawn() {
    let Some((place, image)) = place("systemd-nspawn") else {
        return;
    };
    // Not without a system manager's bus: nobody is told of the container.
    let alone = ["--quiet", "--register=no", "--keep-unit", "-D"];
    for (mount, nspawn) in [(&["--tmp"][..], &[][..]), (&[], &["--read-only"])] {
        let _mounted = place.mount_image(&image, mount);
        let mut command = Command::new("systemd-nspawn");
        command.args(nspawn).args(alone).arg(place.mnt());
        check(
            command.args(["sh", "-c", SCRIPT]),
            &["Operation not permitted", "Failed to mount"],
        );
    }
}

#[test]
fn podman_rootfs() {
    let Some((place, image)) = place("podman") else {
        return;
    };
    let scratch = images::scratch();
    let Some(podman) = Podman::new(scratch.path()) else {
        return;
    };
    let _mounted = place.mount_image(&image, &[]);
    let root = format!("{}:O", place.mnt().display());
    let script = format!("echo new >/etc/new; {SCRIPT}");
    let mut run = podman.run();
    run.args(["--rm", "--rootfs", &root]);
    check(run.args(["sh", "-c", &script]), &[]);
    assert!(
        !place.mnt().join("etc/new").exists(),
        "what podman's container writes is podman's"
    );
}
