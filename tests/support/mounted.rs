//! A mount made by the `rsmount` binary, and its end.

use crate::images::scratch;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// The binary under test.
pub(crate) const RSMOUNT: &str = env!("CARGO_BIN_EXE_rsmount");

/// A mounted image; unmounted when dropped.
#[derive(Debug)]
pub(crate) struct Mounted {
    scratch: Option<TempDir>,
    mountpoint: PathBuf,
}

impl Mounted {
    /// Runs `rsmount --cache-dir CACHE IMAGE MOUNTPOINT`, which returns when the mount is usable.
    pub(crate) fn new(image: &str, cache: &Path) -> Mounted {
        let scratch = scratch();
        let mountpoint = scratch.path().join("mnt");
        std::fs::create_dir(&mountpoint).expect("a mountpoint");
        let mounted = Mounted {
            scratch: Some(scratch),
            mountpoint,
        };
        let out = Command::new(RSMOUNT)
            .args(["-q", "--cache-dir"])
            .args([cache, Path::new(image), &mounted.mountpoint])
            .stdin(Stdio::null())
            .output()
            .expect("rsmount starts");
        assert!(
            out.status.success(),
            "rsmount {image}: {}: {}",
            out.status,
            String::from_utf8_lossy(&out.stderr)
        );
        assert!(
            mounted.is_mounted(),
            "rsmount {image} returned before the mount was there"
        );
        mounted
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.mountpoint
    }

    /// What `rsmount stats --json` says now.
    #[allow(dead_code, reason = "not every test binary asks")]
    pub(crate) fn stats(&self) -> serde_json::Value {
        let out = Command::new(RSMOUNT)
            .arg("stats")
            .arg(&self.mountpoint)
            .arg("--json")
            .output()
            .expect("rsmount starts");
        assert!(
            out.status.success(),
            "stats: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        serde_json::from_slice(&out.stdout).expect("stats prints JSON")
    }

    fn is_mounted(&self) -> bool {
        let table = std::fs::read_to_string("/proc/self/mounts").expect("the mount table");
        let mountpoint = self
            .mountpoint
            .to_str()
            .expect("a mountpoint of plain characters");
        table
            .lines()
            .any(|line| line.split(' ').nth(1) == Some(mountpoint))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let quietly = |command: &mut Command| {
            let _ = command.stdin(Stdio::null()).stderr(Stdio::null()).status();
        };
        quietly(Command::new(RSMOUNT).arg("umount").arg(&self.mountpoint));
        if self.is_mounted() {
            quietly(Command::new("umount").arg("-l").arg(&self.mountpoint));
        }
        // Removing the scratch directory would walk into a mount that is still there.
        if self.is_mounted()
            && let Some(scratch) = self.scratch.take()
        {
            let _ = scratch.keep();
        }
    }
}
