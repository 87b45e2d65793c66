//! A user namespace with many ids, and a mount namespace, held open by a process of its own.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// A user namespace with all ids that the changes need, and a mount namespace, held open.
pub struct Namespace(Child);

impl Namespace {
    pub fn new() -> Option<Namespace> {
        let mut child = Command::new("unshare")
            .args(["-U", "-m"])
            .args(["sh", "-c", "echo ready; read -r _"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        let mut said = String::new();
        let stdout = child.stdout.take()?;
        BufReader::new(stdout).read_line(&mut said).ok()?;
        // By its parent, which may: the child itself could take one id only.
        for map in ["uid_map", "gid_map"] {
            let path = format!("/proc/{}/{map}", child.id());
            std::fs::write(path, "0 0 65536").ok()?;
        }
        (said == "ready\n").then_some(Namespace(child))
    }

    /// Runs a program in it, as its root, and expects success.
    pub fn run(&self, command: &Command) -> Output {
        let mut inside = Command::new("nsenter");
        inside.arg(format!("--target={}", self.0.id()));
        inside.args(["--user", "--mount", "-S", "0", "-G", "0", "--"]);
        inside.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        let output = inside.output().unwrap();
        assert!(output.status.success(), "{inside:?}: {output:?}");
        output
    }

    /// A path of the namespace, seen from outside.
    pub fn path(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.0.id()));
        root.join(path.strip_prefix("/").unwrap())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _gone = self.0.wait();
    }
}
