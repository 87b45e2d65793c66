//! Programs run from a mount: chroot'ed into it, with a tmpfs where they have to write; and in containers.
//!
//! Needs root and the registry that `contrib/test` starts. `RSMOUNT_TEST_IMAGES` says which images.

#[allow(dead_code, reason = "each test uses its own part")]
#[path = "support/images.rs"]
mod images;
#[path = "support/mounted.rs"]
mod mounted;
#[path = "support/programs.rs"]
mod programs;

use std::process::{Command, Stdio};

use mounted::{Mounted, RSMOUNT};
use programs::{PROGRAMS, Program, run_in};

/// The programs of the images that are wanted, each with its image.
fn wanted(registry: &str) -> impl Iterator<Item = (String, &'static Program)> {
    let wanted = images::wanted();
    let programs = PROGRAMS.iter();
    let programs = programs.filter(move |program| wanted.iter().any(|name| name == program.image));
    programs.map(move |program| (format!("{registry}/library/{}", program.image), program))
}

#[test]
fn programs_run_from_a_mount() {
    let Some(registry) = images::registry("programs_run_from_a_mount") else {
        return;
    };
    for (image, program) in wanted(&registry) {
        let cache = images::scratch();
        let mounted = Mounted::new(&image, cache.path());
        let printed = run_in(mounted.path(), program);
        assert_eq!(printed.lines().last(), Some(program.says), "{image}");
    }
}

/// Nothing is mounted for them: a container has what they need.
#[test]
fn programs_run_in_containers() {
    let Some(registry) = images::registry("programs_run_in_containers") else {
        return;
    };
    for (image, program) in wanted(&registry) {
        let cache = images::scratch();
        let script = format!("cd /tmp\n{}", program.script);
        let out = Command::new(RSMOUNT)
            // The scripts begin as root, whoever the image's user is.
            .args(["run", "-q", "--rm", "-u", "root", "--cache-dir"])
            .arg(cache.path())
            .args([&*image, "/bin/sh", "-euc", &script])
            .stdin(Stdio::null())
            .output()
            .expect("rsmount starts");
        let printed = String::from_utf8_lossy(&out.stdout);
        let complained = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{image}: {printed}{complained}");
        assert_eq!(printed.lines().last(), Some(program.says), "{image}");
        let left = std::fs::read_dir(cache.path().join("containers")).expect("the containers");
        let left: Vec<_> = left.flatten().map(|e| e.file_name()).collect();
        assert_eq!(left, ["lock"], "{image}");
    }
}
