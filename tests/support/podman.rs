//! podman with a store of its own, to compare with. What it needs here that is no default: runc, because
//! crun refuses some hosts' cgroups; limits that a host may not have; no daemon's log.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// A store of podman's; its containers, images and mounts end with it.
pub struct Podman {
    root: PathBuf,
    /// Podman takes no run directory whose path has more than 50 characters.
    run: TempDir,
}

impl Podman {
    /// A store below `dir`, which is better no tmpfs; `None`, loudly, when podman or runc is missing.
    pub fn new(dir: &Path) -> Option<Podman> {
        for program in ["podman", "runc"] {
            if Command::new(program).arg("--version").output().is_err() {
                super::place::skip(&format!("needs {program}"));
                return None;
            }
        }
        let root = dir.join("podman");
        let run = tempfile::tempdir_in("/run").unwrap();
        Some(Podman { root, run })
    }

    /// `podman` in this store.
    pub fn command(&self) -> Command {
        let mut command = Command::new("podman");
        command.arg("--root").arg(&self.root);
        command.arg("--runroot").arg(self.run.path());
        command.args(["--storage-driver", "overlay", "--events-backend", "none"]);
        command.args(["--runtime", "runc", "--cgroup-manager", "cgroupfs"]);
        command
    }

    /// `podman run` as far as it is the same for all containers.
    pub fn run(&self) -> Command {
        let mut command = self.command();
        command.args(["run", "--network", "host"]);
        command.args(["--ulimit", "nofile=1024:4096"]);
        command.args(["--ulimit", "nproc=4096:8192"]);
        command
    }

    /// Runs and expects success; gives standard output.
    pub fn ok(&self, words: &[&str]) -> String {
        let mut command = self.command();
        let output = command.args(words).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "podman {words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Pulls from a registry that speaks plain HTTP.
    pub fn pull(&self, image: &str) {
        self.ok(&["pull", "-q", "--tls-verify=false", image]);
    }

    fn quietly(command: &mut Command) -> Option<Output> {
        command.stdin(Stdio::null()).output().ok()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        Self::quietly(self.command().args(["rm", "-a", "-f", "-t", "0"]));
        Self::quietly(self.command().args(["image", "umount", "-a"]));
        Self::quietly(self.command().args(["rmi", "-a", "-f"]));
        // Podman keeps bind mounts of its store upon itself.
        for dir in [self.root.join("overlay"), self.run.path().join("overlay")] {
            Self::quietly(Command::new("umount").arg(dir));
        }
    }
}
