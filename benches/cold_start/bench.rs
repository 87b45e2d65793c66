//! One image behind one link: caches in the states that starts begin from, and starts.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::FAST;
use crate::link::{Crossed, Link};
use crate::programs::{PROGRAMS, Program, run_in};

/// One start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start {
    /// When it was known what the name stands for; 0 when nobody had to be asked.
    pub(crate) resolved: Duration,
    /// When the image could be used; for podman when it was pulled.
    pub(crate) usable: Duration,
    /// When the program had ended.
    pub(crate) ready: Duration,
    pub(crate) crossed: Crossed,
}

/// Not /tmp, which may be in memory.
fn scratch_parent() -> &'static Path {
    Path::new("/var/tmp")
}

pub(crate) struct Bench {
    scratch: TempDir,
    pub(crate) link: Link,
    /// `HOST:PORT` of the registry itself.
    pub(crate) registry: String,
    /// `NAME:TAG`.
    pub(crate) name: String,
    pub(crate) program: &'static Program,
}

impl Drop for Bench {
    fn drop(&mut self) {
        for dir in ["podman", "podman/overlay"] {
            let _not_mounted = Command::new("umount").arg(self.path(dir)).output();
        }
    }
}

impl Bench {
    pub(crate) fn new(registry: &str, image: &str) -> Bench {
        let program = PROGRAMS.iter().find(|p| p.image == image);
        Bench {
            scratch: TempDir::with_prefix_in("rsmount-bench.", scratch_parent()).unwrap(),
            link: Link::new(registry, FAST.0, FAST.1),
            registry: registry.to_owned(),
            name: image.to_owned(),
            program: program.unwrap_or_else(|| panic!("no program is known for {image}")),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// The image's name through the link.
    pub(crate) fn image(&self) -> String {
        format!("{}/library/{}", self.link.address(), self.name)
    }

    pub(crate) fn rsmount(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rsmount"));
        command
            .env("RSMOUNT_CACHE_DIR", self.path("cache"))
            .env("RSMOUNT_RUN_DIR", self.path("run"))
            .env("RSMOUNT_LOG_FILE", self.path("log"));
        command
    }

    pub(crate) fn forget(&self) {
        let _none_yet = std::fs::remove_dir_all(self.path("cache"));
    }

    /// Makes the cache what it was when it was kept as `state`.
    pub(crate) fn restore(&self, state: &str) {
        self.forget();
        copy(&self.path(state), &self.path("cache"));
    }

    /// Keeps the cache as `state`.
    pub(crate) fn keep(&self, state: &str) {
        let _none_yet = std::fs::remove_dir_all(self.path(state));
        copy(&self.path("cache"), &self.path(state));
    }

    pub(crate) fn mount(&self, image: &str, options: &[&str]) -> PathBuf {
        let mnt = self.path("mnt");
        std::fs::create_dir_all(&mnt).unwrap();
        ok(self.rsmount().arg("-q").args(options).arg(image).arg(&mnt));
        mnt
    }

    /// Unmounts, and waits for the end of what the mount does behind.
    pub(crate) fn umount(&self) {
        let mounts: serde_json::Value =
            serde_json::from_str(&ok(self.rsmount().args(["ps", "--json"]))).unwrap();
        ok(self.rsmount().arg("umount").arg(self.path("mnt")));
        let worker = PathBuf::from(format!("/proc/{}", mounts[0]["pid"]));
        while worker.exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The states that starts begin from, and the pack. `whole`: all bytes and no start; `indexed`:
    /// the same without bytes; `profiled`: that, after one start.
    pub(crate) fn prepare(&self) {
        self.link.tune(FAST.0, FAST.1);
        self.forget();
        self.mount(&self.image(), &["--trust-index", "local"]);
        self.umount();
        self.keep("whole");
        let mnt = self.mount(&self.image(), &["--trust-index", "local"]);
        run_in(&mnt, self.program);
        self.umount();
        ok(self.rsmount().args(["-q", "publish"]).arg(self.image()));
        ok(self.rsmount().args(["cache", "prune", "--data"]));
        self.keep("profiled");
        self.restore("whole");
        ok(self.rsmount().args(["cache", "prune", "--data"]));
        self.keep("indexed");
    }

    /// A start by `image` with the cache as it is.
    pub(crate) fn start(&self, image: &str, options: &[&str]) -> Start {
        let _earlier = (self.link.crossed(), self.link.manifest_at());
        let began = Instant::now();
        let mnt = self.mount(image, options);
        let usable = began.elapsed();
        let printed = run_in(&mnt, self.program);
        let ready = began.elapsed();
        assert_eq!(printed.lines().last(), Some(self.program.says));
        let crossed = self.link.crossed();
        let resolved = self
            .link
            .manifest_at()
            .map_or(Duration::ZERO, |at| at - began);
        self.umount();
        Start {
            resolved,
            usable,
            ready,
            crossed,
        }
    }

    /// The manifest as the registry has it.
    pub(crate) fn manifest(&self) -> serde_json::Value {
        let url = format!("docker://{}/library/{}", self.registry, self.name);
        let raw = ok(Command::new("skopeo").args(["inspect", "--raw", "--tls-verify=false", &url]));
        serde_json::from_str(&raw).unwrap()
    }

    /// Digests and compressed sizes of the layers.
    pub(crate) fn layers(&self) -> Vec<(String, u64)> {
        let manifest = self.manifest();
        let layer = |l: &serde_json::Value| {
            let digest = l["digest"].as_str().unwrap().to_owned();
            (digest, l["size"].as_u64().unwrap())
        };
        manifest["layers"]
            .as_array()
            .unwrap()
            .iter()
            .map(layer)
            .collect()
    }

    pub(crate) fn compressed(&self) -> u64 {
        self.layers().iter().map(|(_, size)| size).sum()
    }
}

fn copy(from: &Path, to: &Path) {
    ok(Command::new("cp")
        .args(["-a", "--sparse=always"])
        .args([from, to]));
}

/// Runs a command that has to succeed; gives what it printed.
pub(crate) fn ok(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {complained}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn drop_caches() {
    let _not_allowed = std::fs::write("/proc/sys/vm/drop_caches", "3");
}

pub(crate) fn median<T: Ord + Copy>(values: impl Iterator<Item = T>) -> T {
    let mut values: Vec<T> = values.collect();
    values.sort();
    values[values.len() / 2]
}

pub(crate) fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}
