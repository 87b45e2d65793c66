//! The binary under test, and mounts that end with the test.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::layout::{self, Layer, Pack};

/// A place of its own for one test: cache, runtime directory, mountpoint, log.
pub struct Place {
    pub dir: TempDir,
}

/// Whether this machine lets the test mount; says loudly when not.
pub fn can_mount() -> bool {
    let can = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !can {
        skip("needs root and /dev/fuse");
    }
    can
}

/// Whether this kernel passes the self-test; says loudly when not.
pub fn can_use_kernel() -> bool {
    if !can_mount() {
        return false;
    }
    let place = Place::new();
    layout::write(&place.path("image"), &[Layer::new().tar()], Pack::Plain);
    let image = format!("oci:{}", place.path("image").display());
    let mnt = place.mnt();
    let out = place.run(&["-q", "--engine", "kernel", &image, mnt.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&out.stderr);
    if said.contains("--engine kernel is not possible here") {
        skip(said.trim());
        return false;
    }
    assert!(out.status.success(), "{said}");
    true
}

/// Whether tests take their full length (`contrib/test --full`), or a short one of the same.
pub fn long() -> bool {
    std::env::var_os("RSMOUNT_TEST_LONG").is_some_and(|v| v == "1")
}

/// Whether the binary under test has a sanitizer in it (`contrib/sanitize`).
pub fn sanitized() -> bool {
    std::env::var_os("ASAN_OPTIONS").is_some()
}

/// Private memory of a process in KiB (proc(5), smaps_rollup). A process that is gone, or has none,
/// is not one whose memory is small: it ends the test.
pub fn private_kib(pid: u64) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let private = rollup.lines().filter(|line| line.starts_with("Private_"));
    let sizes = private.map(|line| {
        let size = line.split_whitespace().nth(1);
        size.unwrap().parse::<u64>().unwrap()
    });
    let sum = sizes.sum();
    assert!(sum > 0, "process {pid} has no memory: {rollup:?}");
    sum
}

/// Says why a test has nothing to do here, past libtest's capture of what tests print.
pub fn skip(why: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
}

impl Place {
    pub fn new() -> Place {
        Place::in_directory(tempfile::tempdir().unwrap())
    }

    /// One in `dir`, where that matters.
    pub fn in_directory(dir: TempDir) -> Place {
        std::fs::create_dir(dir.path().join("mnt")).unwrap();
        Place { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn mnt(&self) -> PathBuf {
        self.path("mnt")
    }

    /// The command with everything it writes inside this place.
    pub fn rsmount(&self) -> Command {
        self.rsmount_at(Path::new(env!("CARGO_BIN_EXE_rsmount")))
    }

    /// Another copy of the program.
    pub fn rsmount_at(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env("RSMOUNT_CACHE_DIR", self.path("cache"))
            .env("RSMOUNT_RUN_DIR", self.path("run"))
            .env("RSMOUNT_LOG_FILE", self.path("log"))
            .env_remove("RSMOUNT_LOG");
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.rsmount().args(args).output().unwrap()
    }

    /// Runs and expects success; gives standard output.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
        assert!(output.status.success(), "{args:?}: {output:?}\n{log}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Mounts the layout `image` of this place.
    pub fn mount(&self, image: &str, options: &[&str]) -> Mounted<'_> {
        self.mount_image(&format!("oci:{}", self.path(image).display()), options)
    }

    /// Mounts `image`, named as on the command line.
    pub fn mount_image(&self, image: &str, options: &[&str]) -> Mounted<'_> {
        let mnt = self.mnt();
        let mut args = vec!["-q"];
        args.extend_from_slice(options);
        args.extend_from_slice(&[image, mnt.to_str().unwrap()]);
        self.ok(&args);
        Mounted { place: self }
    }

    pub fn stats(&self) -> Value {
        let text = self.ok(&["stats", self.mnt().to_str().unwrap(), "--json"]);
        serde_json::from_str(&text).unwrap()
    }

    /// Waits until every layer is whole and was checked.
    pub fn until_verified(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let stats = self.stats();
            let layers = stats["layers"].as_array().unwrap();
            if layers.iter().all(|layer| layer["verified"] == true) {
                return;
            }
            assert!(Instant::now() < deadline, "{stats}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn is_mounted(&self) -> bool {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        table.contains(&format!(" {} ", self.mnt().display()))
    }

    /// Files that are left of a mount in the runtime directory.
    pub fn leftovers(&self) -> usize {
        std::fs::read_dir(self.path("run")).map_or(0, Iterator::count)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.is_mounted() {
            let _failed = self.run(&["umount", "--lazy", self.mnt().to_str().unwrap()]);
        }
        // A worker that a sanitizer ends is replaced, and nobody would notice (contrib/sanitize).
        let log = std::fs::read(self.path("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        if log.contains("AddressSanitizer") && !std::thread::panicking() {
            panic!("a sanitizer's report in the log:\n{log}");
        }
    }
}

/// A mount that is unmounted when dropped.
pub struct Mounted<'a> {
    place: &'a Place,
}

impl<'a> Mounted<'a> {
    /// Takes over what a test has mounted in its place.
    pub fn adopt(place: &'a Place) -> Mounted<'a> {
        Mounted { place }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.place.mnt().join(name)
    }

    /// Requests that the kernel sent so far, by kind.
    pub fn requests(&self) -> Value {
        self.place.stats()["fuse"].clone()
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if self.place.is_mounted() {
            let mnt = self.place.mnt();
            let umount = || self.place.run(&["umount", mnt.to_str().unwrap()]);
            let mut output = umount();
            // What another test has just started holds our open files until it runs its program.
            for _ in 0..100 {
                let busy = String::from_utf8_lossy(&output.stderr).contains("busy");
                if !busy || std::thread::panicking() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
                output = umount();
            }
            if !std::thread::panicking() {
                assert!(output.status.success(), "{output:?}");
            }
        }
    }
}
