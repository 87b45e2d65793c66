//! Starting a keeper, and by it a worker: fresh processes that hold none of the caller's descriptors,
//! so that `x=$(rsmount IMAGE MNT)` returns, and that say on a pipe how they get on.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cache::Cache;
use crate::monitor::Event;
use crate::mount::errands;
use crate::mount::notify;
use crate::mount::privilege;
use crate::mount::record::Record;
use crate::mount::request::MountRequest;
use crate::oci::ImageName;
use crate::registry::hosts;

/// One line from the worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// Progress.
    Event(Event),
    /// The mount can be used.
    Ready(Record),
    /// It cannot be mounted. The first line is for everybody, the rest for `-v`.
    Failed {
        /// What is wrong and what to do.
        message: String,
        /// Causes, outermost first.
        causes: Vec<String>,
    },
}

/// A worker that serves.
#[derive(Debug)]
pub struct Launched {
    /// What it serves.
    pub record: Record,
    /// Its keeper, which ends with the mount.
    pub child: Child,
}

/// Why no worker serves.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The worker said why.
    #[error("{message}")]
    Failed {
        /// What is wrong and what to do.
        message: String,
        /// Causes, outermost first.
        causes: Vec<String>,
    },
    /// The worker ended without a word.
    #[error("the worker ended unexpectedly ({status}); see {}", .log.display())]
    Died {
        /// How it ended.
        status: String,
        /// Where it may have said more.
        log: PathBuf,
    },
    /// The caller does not want it any more.
    #[error("stopped")]
    Stopped,
    /// It could not be started.
    #[error("cannot start the worker: {0}")]
    Io(#[from] io::Error),
}

/// Starts a keeper and a worker for `request` and waits until its mount can be used; `on_event` hears about the
/// progress; `words` are options for its log. Must be called before the process has threads.
pub fn launch(
    request: &MountRequest,
    words: &[String],
    on_event: impl FnMut(Event),
) -> Result<Launched, LaunchError> {
    launch_unless(request, words, on_event, None)
}

/// The same, given up as soon as `stop` can be read; then nothing of the mount is left.
pub fn launch_unless(
    request: &MountRequest,
    words: &[String],
    mut on_event: impl FnMut(Event),
    stop: Option<BorrowedFd<'_>>,
) -> Result<Launched, LaunchError> {
    let log = log_path();
    inherit_nothing()?;
    let mut child = keeper(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(stderr_of_worker(request, &log)?)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(for_keeper(request)?.to_string().as_bytes())?;
    }
    let stdout = child
        .stdout
        .take()
        .ok_or_else(|| io::Error::other("no pipe"))?;
    let mut said = BufReader::new(stdout);
    loop {
        if said.buffer().is_empty() && is_stopped(said.get_ref().as_fd(), stop) {
            end(&mut child);
            return Err(LaunchError::Stopped);
        }
        let mut line = String::new();
        if said.read_line(&mut line)? == 0 {
            break;
        }
        match serde_json::from_str(&line).map_err(io::Error::other)? {
            Message::Event(event) => on_event(event),
            Message::Ready(record) => return Ok(Launched { record, child }),
            Message::Failed { message, causes } => {
                let _status = child.wait();
                return Err(LaunchError::Failed { message, causes });
            }
        }
    }
    let status = child.wait()?.to_string();
    Err(LaunchError::Died { status, log })
}

/// The command that runs a keeper.
fn keeper(words: &[String]) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("rsmount").arg("keeper").args(words);
    command.envs(allocator()).current_dir("/");
    notify::keep_from(&mut command);
    command
}

/// Puts a keeper in the place of this process, which keeps its number and its service manager; what to
/// keep is said at `stdin`. Its workers have nobody to speak to but the log.
pub(super) fn become_keeper(stdin: OwnedFd, words: &[String]) -> io::Result<Infallible> {
    inherit_nothing()?;
    let mut keeper = keeper(words);
    notify::leave_to(&mut keeper);
    Err(keeper.stdin(stdin).stdout(Stdio::null()).exec())
}

/// The request with what only the keeper reads of it: whose credentials its workers may ask for. A worker
/// that reads what strangers have made has no say in that.
pub(super) fn for_keeper(request: &MountRequest) -> io::Result<Value> {
    let mut json = serde_json::to_value(request)?;
    json[errands::REGISTRIES] = registries(request).into_iter().collect();
    Ok(json)
}

/// The registries that have the image, and their mirrors.
fn registries(request: &MountRequest) -> BTreeSet<String> {
    let mut names: Vec<ImageName> = request.image.parse().into_iter().collect();
    // A name that was given here stands for images that others have.
    if let Ok(cache) = Cache::open(&request.cache_dir)
        && let Some(name) = names.first()
        && let Some(tag) = cache.tag(&name.to_string())
    {
        names.extend(tag.sources.iter().filter_map(|name| name.parse().ok()));
    }
    let mut registries = BTreeSet::new();
    for name in &names {
        if let ImageName::Registry(reference) = name {
            registries.insert(reference.registry().to_owned());
            // What is wrong with the configuration is for the worker to say.
            let mirrors = hosts::names(reference, &request.hosts);
            registries.extend(mirrors.unwrap_or_default());
        }
    }
    registries
}

/// Waits until the worker says something; true when it is time to stop instead.
fn is_stopped(said: BorrowedFd<'_>, stop: Option<BorrowedFd<'_>>) -> bool {
    let Some(stop) = stop else { return false };
    let mut fds = [
        PollFd::new(&stop, PollFlags::IN),
        PollFd::new(&said, PollFlags::IN),
    ];
    while poll(&mut fds, None) == Err(rustix::io::Errno::INTR) {}
    !fds[0].revents().is_empty()
}

/// Ends a keeper, and with it what its worker has made so far.
fn end(child: &mut Child) {
    if let Some(pid) = Pid::from_raw(child.id().cast_signed()) {
        let _gone = kill_process(pid, Signal::TERM);
    }
    let _status = child.wait();
}

/// How glibc's malloc should behave in a worker that may be one of hundreds: large buffers (the FUSE
/// library's are 16 MiB a thread, of which a page is used) come from mmap and go back to the kernel,
/// and not every thread has an arena of its own. Whoever has set it knows better.
fn allocator() -> Option<(&'static str, &'static str)> {
    const NAME: &str = "GLIBC_TUNABLES";
    const TUNABLES: &str = "glibc.malloc.arena_max=2:glibc.malloc.mmap_threshold=262144:\
                            glibc.malloc.trim_threshold=262144";
    std::env::var_os(NAME).is_none().then_some((NAME, TUNABLES))
}

/// Where workers in the background write their log: `RSMOUNT_LOG_FILE`, else `/var/log/rsmount.log`
/// for root, else below `XDG_STATE_HOME`.
pub fn log_path() -> PathBuf {
    if let Some(path) = std::env::var_os("RSMOUNT_LOG_FILE") {
        return path.into();
    }
    if privilege::is_system_root() {
        return "/var/log/rsmount.log".into();
    }
    let home = || std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".local/state"));
    let state = std::env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        .or_else(home);
    state
        .unwrap_or_else(std::env::temp_dir)
        .join("rsmount/rsmount.log")
}

fn stderr_of_worker(request: &MountRequest, log: &PathBuf) -> io::Result<Stdio> {
    if request.foreground {
        return Ok(Stdio::inherit());
    }
    if let Some(dir) = log.parent()
        && let Err(error) = std::fs::create_dir_all(dir)
    {
        tracing::debug!(%error, dir = %dir.display(), "no directory for the log");
    }
    let opened = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(log);
    // A log that cannot be written must not keep an image from being mounted.
    Ok(opened.map_or_else(|_| Stdio::null(), |file: File| file.into()))
}

/// Marks every descriptor above stderr close-on-exec: whatever the caller left open for us (a
/// lock, a pipe that a script waits on) is not for the worker.
fn inherit_nothing() -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let Some(fd) = name
            .to_str()
            .and_then(|n| n.parse::<i32>().ok())
            .filter(|n| *n > 2)
        else {
            continue;
        };
        let _gone = close_on_exec(fd);
    }
    Ok(())
}

/// Whether it is open.
#[allow(unsafe_code)]
fn close_on_exec(fd: RawFd) -> bool {
    // SAFETY: the descriptor is only borrowed for one fcntl that changes a flag. Should it have
    // been closed since the directory was read (the directory's own has), fcntl says EBADF.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC).is_ok()
}

/// Takes the descriptors that a service manager has given this process, by their numbers. They can be
/// had once.
#[allow(unsafe_code)]
pub(super) fn adopt(given: Vec<(RawFd, String)>) -> Vec<(String, OwnedFd)> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Vec::new();
    }
    let open = given.into_iter().filter(|(fd, _)| close_on_exec(*fd));
    open.map(|(fd, name)| {
        // SAFETY: it is open, and the manager opened it for this very process (LISTEN_PID) before that
        // began, so that nothing in here has been given its number; and it is taken once.
        (name, unsafe { OwnedFd::from_raw_fd(fd) })
    })
    .collect()
}
