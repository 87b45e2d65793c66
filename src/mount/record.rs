//! Records of running mounts: one file a worker in the runtime directory, locked as long as the
//! worker lives, so that a record whose lock can be had belongs to nobody.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::mount::engine::Choice;
use crate::mount::privilege;
use crate::mount::sandbox::Walls;
use crate::mount::{mounting, mountpoint};

/// How long a worker may take to end after its mount has.
const GOODBYE: Duration = Duration::from_secs(5);

/// Between two looks whether it has.
const GLANCE: Duration = Duration::from_millis(2);

/// How a mount is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Serving.
    Ready,
    /// Readers wait: for the network, or for another process to take over.
    Stalled,
    /// The process that served it is gone; the mountpoint answers errors until it is unmounted.
    Dead,
    /// It was ended because a pack that it used was found to lie. The record stays until `umount`
    /// or the next mount in its place.
    Poisoned,
}

/// What `ps` shows of a mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Where.
    pub mountpoint: PathBuf,
    /// What was asked for.
    pub image: String,
    /// Digest of the image manifest.
    pub digest: String,
    /// `os/arch[/variant]`.
    pub platform: String,
    /// The process that serves it.
    pub pid: u32,
    /// The process that has another one serve it should that die.
    #[serde(default)]
    pub keeper: Option<u32>,
    /// How it is doing.
    pub state: State,
    /// When it was mounted, RFC 3339.
    pub since: String,
    /// Which engine serves it, and why.
    #[serde(flatten)]
    pub engine: Option<Choice>,
    /// What of the sandbox is on.
    #[serde(default)]
    pub sandbox: Option<Walls>,
    /// The upper directory of a writable mount.
    pub upper: Option<PathBuf>,
    /// Digest of the image that the tag stands for now, when it is known not to be this one.
    #[serde(default)]
    pub newer: Option<String>,
}

/// A record of this process, removed when dropped.
#[derive(Debug)]
pub struct OwnRecord {
    path: PathBuf,
    locked: File,
    stays: bool,
}

/// The directory of the records: `RSMOUNT_RUN_DIR`, else `/run/rsmount` for root, else below
/// `XDG_RUNTIME_DIR`, else `/tmp/rsmount-UID`. Refused when somebody else owns it.
pub fn directory() -> io::Result<PathBuf> {
    let uid = rustix::process::geteuid();
    let path = if let Some(dir) = std::env::var_os("RSMOUNT_RUN_DIR") {
        PathBuf::from(dir)
    } else if privilege::is_system_root() {
        PathBuf::from("/run/rsmount")
    } else if let Some(dir) = std::env::var_os("XDG_RUNTIME_DIR").filter(|d| !d.is_empty()) {
        Path::new(&dir).join("rsmount")
    } else {
        PathBuf::from(format!("/tmp/rsmount-{}", uid.as_raw()))
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&path)?;
    let found = path.symlink_metadata()?;
    if !found.is_dir() || found.uid() != uid.as_raw() || found.mode() & 0o022 != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "{} must be a directory that only you can write",
                path.display()
            ),
        ));
    }
    Ok(path)
}

/// Path of the control socket of worker `pid`.
pub fn socket_path(pid: u32) -> io::Result<PathBuf> {
    Ok(directory()?.join(format!("{pid}.sock")))
}

impl OwnRecord {
    /// Writes the record of this process.
    pub fn create(record: &Record) -> io::Result<OwnRecord> {
        let dir = directory()?;
        let path = dir.join(format!("{}.json", record.pid));
        let partial = dir.join(format!("{}.json.new", record.pid));
        let _left_over = std::fs::remove_file(&partial);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&partial)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        file.write_all(&serde_json::to_vec(record)?)?;
        std::fs::rename(&partial, &path)?;
        Ok(OwnRecord {
            path,
            locked: file,
            stays: false,
        })
    }
}

impl OwnRecord {
    /// Writes it anew; one that says [`State::Poisoned`] outlives the process.
    pub fn update(&mut self, record: &Record) -> io::Result<()> {
        self.stays = record.state == State::Poisoned;
        let mut bytes = serde_json::to_vec(record)?;
        // In place, because the lock is the open file's; in one write and never shorter, so that no
        // reader finds half of it. Spaces behind JSON mean nothing.
        let before = self.locked.metadata()?.len();
        let before = usize::try_from(before).unwrap_or_default();
        bytes.resize(bytes.len().max(before), b' ');
        self.locked.write_all_at(&bytes, 0)
    }
}

impl Drop for OwnRecord {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        let _gone = std::fs::remove_file(&self.path);
    }
}

/// Whether some record says that a writable mount is at `mountpoint`.
pub(super) fn is_writable(mountpoint: &Path) -> bool {
    let entries = directory().and_then(std::fs::read_dir);
    let mut records = entries.into_iter().flatten().flatten().filter_map(|entry| {
        let file = File::open(entry.path()).ok()?;
        serde_json::from_reader::<_, Record>(&file).ok()
    });
    records.any(|r| r.upper.is_some() && r.mountpoint == mountpoint)
}

/// All mounts of this user, oldest first. Records of dead workers whose mount is gone as well are
/// removed on the way, and so is what killed processes left while they mounted.
pub fn list() -> io::Result<Vec<Record>> {
    let (mut records, dir) = (Vec::new(), directory()?);
    mounting::clear(&dir);
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "json") {
            records.extend(read(&path));
        }
    }
    records.sort_by(|a, b| (&a.since, a.pid).cmp(&(&b.since, b.pid)));
    Ok(records)
}

fn read(path: &Path) -> Option<Record> {
    let file = File::open(path).ok()?;
    let mut record: Record = serde_json::from_reader(&file).ok()?;
    if is_locked(&file) || record.state == State::Poisoned {
        return Some(record);
    }
    if mountpoint::is_mounted(&record.mountpoint) {
        record.state = match record.keeper.is_some_and(lives) {
            true => State::Stalled,
            false => State::Dead,
        };
        return Some(record);
    }
    forget(&record);
    None
}

/// Whether a process lives: a keeper, so that another worker will take over. One that has ended and was not
/// waited for (state `Z` or `X` of proc(5), `stat`) does not.
fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    let state = stat
        .ok()
        .and_then(|s| Some(s.rsplit_once(") ")?.1.to_owned()));
    state.is_some_and(|state| !state.starts_with(['Z', 'X']))
}

/// Removes what a dead worker left.
pub fn forget(record: &Record) {
    if let Ok(dir) = directory() {
        let _gone = std::fs::remove_file(dir.join(format!("{}.json", record.pid)));
        let _gone = std::fs::remove_file(dir.join(format!("{}.sock", record.pid)));
    }
}

/// The records of other processes for `mountpoint`, with their files.
fn of_others(mountpoint: &Path) -> impl Iterator<Item = (Record, File)> {
    let entries = directory().and_then(std::fs::read_dir);
    let found = entries.into_iter().flatten().flatten().filter_map(|entry| {
        let file = File::open(entry.path()).ok()?;
        let record = serde_json::from_reader::<_, Record>(&file).ok()?;
        Some((record, file))
    });
    found.filter(move |(record, _)| {
        record.mountpoint == mountpoint && record.pid != std::process::id()
    })
}

/// Whether the process that has this record lives.
fn is_locked(record: &File) -> bool {
    flock(record, FlockOperation::NonBlockingLockShared).is_err()
}

/// Removes what dead workers left of a mount that this process serves: one may have died, and its keeper
/// as well, before anybody knew of it.
pub(super) fn forget_others(mountpoint: &Path) {
    for (record, _) in of_others(mountpoint).filter(|(_, file)| !is_locked(file)) {
        forget(&record);
    }
}

/// Kills workers of this service that serve `mountpoint` and have outlived their keeper, which was `keeper`
/// or is dead, and waits until they are gone. A worker writes its record itself: whatever that says, nobody
/// dies of it who is not of this service.
pub(super) fn end_workers(mountpoint: &Path, keeper: Option<u32>) {
    // The number of a dead keeper may be another process's by now, even this one's.
    let is_dead = |of: u32| [keeper, Some(std::process::id())].contains(&Some(of)) || !lives(of);
    let orphans = of_others(mountpoint).filter(|(record, _)| record.keeper.is_some_and(is_dead));
    for (record, file) in orphans {
        let deadline = Instant::now() + GOODBYE;
        // As long as it is locked, the number is that of the worker.
        while is_locked(&file) && Instant::now() < deadline {
            if is_of_this_service(record.pid)
                && let Some(pid) = Pid::from_raw(record.pid.cast_signed())
            {
                let _gone = kill_process(pid, Signal::KILL);
            } else if lives(record.pid) {
                break;
            }
            std::thread::sleep(GLANCE);
        }
    }
}

/// Whether a process is in the control group of this one (cgroups(7)), as all of one service are, and nobody
/// else is.
fn is_of_this_service(pid: u32) -> bool {
    let group = |of: &str| std::fs::read(format!("/proc/{of}/cgroup")).ok();
    group("self").is_some_and(|own| group(&pid.to_string()) == Some(own))
}

/// Waits until the worker of the mount on `mountpoint`, which was unmounted, has ended: so that a
/// script may remove the cache or mount again at once.
pub fn wait_until_gone(mountpoint: &Path) {
    let deadline = Instant::now() + GOODBYE;
    while matches!(find(mountpoint), Ok(Some(_))) && Instant::now() < deadline {
        std::thread::sleep(GLANCE);
    }
}

/// The mount on `mountpoint`, the newest when several are stacked there.
pub fn find(mountpoint: &Path) -> io::Result<Option<Record>> {
    Ok(list()?.into_iter().rfind(|r| r.mountpoint == mountpoint))
}
