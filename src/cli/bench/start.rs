//! One start: mount in a fresh process, run the command, look at the numbers, unmount. And the same
//! by another tool.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::cli::bench::numbers::Start;
use crate::cli::bench::stop::Stop;
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
# Only now: the programs above are this machine's.
exec env -i -- "$@"
"#;

/// What is run, and with which environment.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) command: Vec<String>,
    /// `NAME=VALUE`.
    pub(super) environment: Vec<String>,
}

/// A mount that ends with this, and the keeper that ends with the mount: whoever comes after finds
/// nobody at work in the cache.
struct Mounted<'a> {
    mountpoint: &'a Path,
    keeper: Child,
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _gone_already = mountpoint::unmount(self.mountpoint, true);
        let _ended = self.keeper.wait();
    }
}

/// Mounts as `request` says and runs `job` in it; without a job nothing is run.
pub(super) fn mounted(
    request: &MountRequest,
    job: Option<&Job>,
    stop: &Stop,
) -> Result<Start, Failure> {
    let began = Instant::now();
    let mut resolved = None;
    let on_event = |event: Event| {
        if matches!(event, Event::Resolved { .. }) {
            resolved.get_or_insert(began.elapsed());
        }
    };
    let launched = launch::launch_unless(request, &[], on_event, Some(stop.fd()));
    let launched = launched.map_err(|e| match e {
        LaunchError::Failed { message, causes } => Failure::new(message).with_causes(causes),
        other => Failure::of(&other),
    })?;
    let usable = began.elapsed();
    let mounted = Mounted {
        mountpoint: &request.mountpoint,
        keeper: launched.child,
    };
    if let Some(job) = job {
        let mut command = enter(&request.mountpoint, job);
        // `unshare` waits for what it has started whatever it is asked.
        succeed(&mut command, &job.command[0], stop, Signal::KILL)?;
    }
    let ready = began.elapsed();
    let stats = record::socket_path(launched.record.pid)
        .and_then(|socket| control::ask_stats(&socket))
        .map_err(|e| Failure::new(format!("the mount does not answer: {e}")))?;
    mountpoint::unmount(&request.mountpoint, false).map_err(|e| Failure::of(&e))?;
    drop(mounted);
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
        .args(job.environment.iter().filter(|e| e.contains('=')))
        .arg(chroot())
        .arg(root)
        .args(&job.command);
    command
}

/// This machine's program, by its path: the image's `PATH` holds where it is looked for.
fn chroot() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let mut programs = dirs.map(|dir| dir.join("chroot"));
    let found = programs.find(|path| path.is_absolute() && path.is_file());
    found.unwrap_or_else(|| "chroot".into())
}

/// Runs a program, which gets `ask` when it is time to stop.
fn succeed(command: &mut Command, name: &str, stop: &Stop, ask: Signal) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::new(format!("{name}: {e}"));
    let mut log = tempfile().map_err(failed)?;
    let theirs = log.try_clone().map_err(failed)?;
    let spawned = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(theirs)
        .spawn();
    let status = stop.wait(&mut spawned.map_err(failed)?, ask)?;
    if status.success() {
        return Ok(());
    }
    let mut said = Vec::new();
    log.rewind().map_err(failed)?;
    log.read_to_end(&mut said).map_err(failed)?;
    let said = String::from_utf8_lossy(&said).into_owned();
    let last = said.lines().rev().find(|line| !line.trim().is_empty());
    let last = last.map_or_else(String::new, |line| format!(": {line}"));
    Err(Failure::new(format!("{name} failed ({status}){last}")))
}

/// A file in memory.
fn tempfile() -> std::io::Result<File> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    Ok(rustix::fs::memfd_create("stderr", flags)?.into())
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
    pub(super) fn start(&self, job: &Job, stop: &Stop) -> Result<Start, Failure> {
        let insecure = self.plain.then_some("--tls-verify=false");
        let began = Instant::now();
        let mut pull = self.command();
        pull.args(["pull", "--quiet"])
            .args(insecure)
            .arg(&self.image);
        succeed(&mut pull, "podman pull", stop, Signal::TERM)?;
        let usable = began.elapsed();
        let mut run = self.command();
        run.args(["run", "--rm", "--network=none", "--user=0:0"]);
        run.arg(format!("--entrypoint={}", job.command[0]));
        run.arg(&self.image).args(&job.command[1..]);
        succeed(&mut run, "podman run", stop, Signal::TERM)?;
        let ready = began.elapsed();
        let mut remove = self.command();
        remove.args(["rmi", "--force", &self.image]);
        succeed(&mut remove, "podman rmi", stop, Signal::TERM)?;
        Ok(Start {
            usable,
            ready,
            ..Start::default()
        })
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        if !self.root.exists() {
            return;
        }
        // A container goes on when who has started it is ended.
        let mut remove = self.command();
        remove.args(["rm", "--all", "--force", "--time", "0"]);
        let _nothing_left = remove.stdin(Stdio::null()).output();
        // What podman leaves mounted would keep the directory.
        for path in [self.root.join("overlay"), self.root.clone()] {
            let flags = rustix::mount::UnmountFlags::DETACH;
            let _not_mounted = rustix::mount::unmount(&path, flags);
        }
        let _never_made = std::fs::remove_dir_all(&self.run);
    }
}
