//! One start: mount in a fresh process, run the command, look at the numbers, unmount. And the same
//! by another tool.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::cli::bench::numbers::Start;
use crate::cli::output::Failure;
use crate::monitor::Event;
use crate::mount::launch::{self, LaunchError};
use crate::mount::{MountRequest, control, mountpoint, record};

/// Enters the tree at `$1` and runs the rest, in namespaces of its own, so that what is mounted and
/// started here ends with it.
const ENTER: &str = r#"
set -eu
root=$1
shift
if [ -d "$root/dev" ]; then mount --rbind /dev "$root/dev"; fi
if [ -d "$root/proc" ]; then mount -t proc proc "$root/proc"; fi
for directory in /tmp /run; do
    if [ -d "$root$directory" ]; then mount -t tmpfs -o mode=1777 tmpfs "$root$directory"; fi
done
exec chroot "$root" "$@"
"#;

/// What is run, and with which environment.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) command: Vec<String>,
    /// `NAME=VALUE`.
    pub(super) environment: Vec<String>,
}

/// Unmounts when something went wrong in between.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _gone_already = mountpoint::unmount(self.0, true);
    }
}

/// Mounts as `request` says and runs `job` in it; without a job nothing is run.
pub(super) fn mounted(request: &MountRequest, job: Option<&Job>) -> Result<Start, Failure> {
    let began = Instant::now();
    let mut resolved = None;
    let on_event = |event: Event| {
        if matches!(event, Event::Resolved { .. }) {
            resolved.get_or_insert(began.elapsed());
        }
    };
    let launched = launch::launch(request, &[], on_event).map_err(|e| match e {
        LaunchError::Failed { message, causes } => Failure::new(message).with_causes(causes),
        other => Failure::of(&other),
    })?;
    let usable = began.elapsed();
    let mounted = Mounted(&request.mountpoint);
    let mut child = launched.child;
    if let Some(job) = job {
        succeed(&mut enter(&request.mountpoint, job), &job.command[0])?;
    }
    let ready = began.elapsed();
    let stats = record::socket_path(launched.record.pid)
        .and_then(|socket| control::ask_stats(&socket))
        .map_err(|e| Failure::new(format!("the mount does not answer: {e}")))?;
    mountpoint::unmount(&request.mountpoint, false).map_err(|e| Failure::of(&e))?;
    drop(mounted);
    let _ended = child.wait();
    Ok(Start {
        resolved,
        usable,
        first_byte: stats
            .first_byte_us
            .map(|us| usable + Duration::from_micros(us))
            .filter(|first| *first <= ready),
        ready,
        fetched_bytes: Some(stats.fetched_bytes),
        requests: Some(stats.requests),
    })
}

fn enter(root: &Path, job: &Job) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child"]);
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command
        .args(["sh", "-c", ENTER, "sh"])
        .arg(root)
        .args(&job.command);
    command
        .env_clear()
        .envs(job.environment.iter().filter_map(|e| e.split_once('=')));
    command
}

fn succeed(command: &mut Command, name: &str) -> Result<(), Failure> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|e| Failure::new(format!("{name}: {e}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = said.lines().rev().find(|line| !line.trim().is_empty());
    let last = last.map_or_else(String::new, |line| format!(": {line}"));
    Err(Failure::new(format!(
        "{name} failed ({}){last}",
        output.status
    )))
}

/// podman with a storage of its own.
#[derive(Debug)]
pub(super) struct Podman {
    root: PathBuf,
    /// podman takes no path longer than 50 characters here.
    run: PathBuf,
    image: String,
    plain: bool,
}

impl Podman {
    /// `plain` says that the registry may speak plain HTTP.
    pub(super) fn new(scratch: &Path, image: &str, plain: bool) -> Podman {
        Podman {
            root: scratch.join("podman"),
            run: std::env::temp_dir().join(format!("rsmount-bench.{}", std::process::id())),
            image: image.to_owned(),
            plain,
        }
    }

    /// Whether it is there; the error says why not.
    pub(super) fn version() -> Result<(), String> {
        let output = Command::new("podman").arg("--version").output();
        match output {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => Err(format!("podman --version fails ({})", output.status)),
            Err(_) => Err("podman is not installed".to_owned()),
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new("podman");
        command.arg("--root").arg(&self.root);
        command.arg("--runroot").arg(&self.run);
        command
    }

    /// Pulls and runs, and removes the image again.
    pub(super) fn start(&self, job: &Job) -> Result<Start, Failure> {
        let insecure = self.plain.then_some("--tls-verify=false");
        let began = Instant::now();
        let mut pull = self.command();
        pull.args(["pull", "--quiet"])
            .args(insecure)
            .arg(&self.image);
        succeed(&mut pull, "podman pull")?;
        let usable = began.elapsed();
        let mut run = self.command();
        run.args(["run", "--rm", "--network=none", "--user=0:0"]);
        run.arg(format!("--entrypoint={}", job.command[0]));
        run.arg(&self.image).args(&job.command[1..]);
        succeed(&mut run, "podman run")?;
        let ready = began.elapsed();
        let mut remove = self.command();
        succeed(remove.args(["rmi", "--force", &self.image]), "podman rmi")?;
        Ok(Start {
            usable,
            ready,
            ..Start::default()
        })
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // What podman leaves mounted would keep the directory.
        for path in [self.root.join("overlay"), self.root.clone()] {
            let flags = rustix::mount::UnmountFlags::DETACH;
            let _not_mounted = rustix::mount::unmount(&path, flags);
        }
        let _never_made = std::fs::remove_dir_all(&self.run);
    }
}
