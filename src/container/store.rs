//! The containers of one user: a directory each, below the cache's.
//!
//! ```text
//! CACHE/containers/ID/lock            locked by the process that watches the container
//!                    /container.json  what is known of it (see `record`)
//!                    /config.json     what the runtime was told; the directory is its bundle
//!                    /rootfs/         where the image is mounted while the container runs
//!                    /changes/        the upper directory of that mount
//!                    /volumes/N/      anonymous volumes
//!                    /log             what it printed (see `log`)
//!                    /hosts, hostname, resolv.conf
//! CACHE/containers/lock               held while one is made or looked after
//!                 /removed-ID/        on its way out
//! ```
//!
//! Who holds the lock of a container is alive and takes care of it; a container that says that it
//! runs and is not locked has lost its watcher, and is ended by whoever finds it. The lock is made with
//! the container and never by who asks for it: that could make it again in a directory that is just
//! being removed. The exit code is written into it, for those who wait when all else is gone.
//!
//! A record that is there and cannot be read (a disk's error, another version's format) is never a
//! reason to remove anything: only a directory without a record is what a claim has left half done.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::cache::Cache;
use crate::container::error::Error;
use crate::container::record::{Overrides, Record, Status, VERSION, now};
use crate::container::rootfs::Rootfs;
use crate::mount::{mountpoint, record};

/// Between two looks at a lock that somebody is about to let go.
const GLANCE: Duration = Duration::from_millis(10);

/// Digits of an id that are enough for people.
const SHORT: usize = 12;

/// How the name of a container begins that is being removed.
const REMOVED: &str = "removed-";

/// Exit code of a container that had to be killed: 128 + SIGKILL.
const KILLED: u8 = 137;

/// All containers of one cache.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    damaged: Vec<Damaged>,
}

/// A container whose record cannot be read: it is left as it is.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "container {}: its record cannot be read ({why}); it is left as it is: mend it, or remove the \
     directory", dir.display()
)]
pub struct Damaged {
    dir: PathBuf,
    why: String,
}

/// A container that is on disk.
#[derive(Debug, Clone)]
pub struct Container {
    dir: PathBuf,
    /// What is known of it.
    pub record: Record,
}

/// A new container, locked.
#[derive(Debug)]
pub struct Claimed {
    /// Where it is, and what is known.
    pub container: Container,
    /// Held by whoever watches it.
    pub lock: File,
}

impl Store {
    /// The containers below `cache_dir`, which is checked as every cache is: whoever else could
    /// write there would have a say in what root runs. What died with its watcher is ended on the
    /// way.
    pub fn open(cache_dir: &Path) -> Result<Store, Error> {
        drop(Cache::open(cache_dir)?);
        let root = cache_dir.join("containers");
        let failed = |e| Error::at(&root, e);
        match DirBuilder::new().mode(0o700).create(&root) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(e)),
            _ => {}
        }
        // Mounts are looked for in the kernel's table, which knows no symbolic links.
        let root = root.canonicalize().map_err(failed)?;
        let damaged = Vec::new();
        let mut store = Store { root, damaged };
        let _held = store.lock()?;
        for dir in store.directories()? {
            if let Err(why) = store.look_after(&dir) {
                let why = why.to_string();
                store.damaged.push(Damaged { dir, why });
            }
        }
        Ok(store)
    }

    /// Those whose records cannot be read, and which are therefore in no list.
    pub fn damaged(&self) -> &[Damaged] {
        &self.damaged
    }

    /// Whether somebody has made a container there yet.
    pub fn exists(cache_dir: &Path) -> bool {
        cache_dir.join("containers").exists()
    }

    fn lock(&self) -> Result<File, Error> {
        let path = self.root.join("lock");
        let file = open_lock(&path, true).map_err(|e| Error::at(&path, e))?;
        flock(&file, FlockOperation::LockExclusive).map_err(|e| Error::at(&path, e.into()))?;
        Ok(file)
    }

    fn directories(&self) -> Result<Vec<PathBuf>, Error> {
        let failed = |e| Error::at(&self.root, e);
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.root).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                found.push(entry.path());
            }
        }
        found.sort();
        Ok(found)
    }

    /// Ends a container whose watcher has died. The error is why its record cannot be read.
    fn look_after(&self, dir: &Path) -> io::Result<()> {
        if is_removed(dir) {
            if let Err(error) = std::fs::remove_dir_all(dir) {
                tracing::warn!(%error, "a removed container still takes room");
            }
            return Ok(());
        }
        let lock = match open_lock(&dir.join("lock"), false) {
            Ok(lock) => Some(lock),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        let free = |lock| flock(lock, FlockOperation::NonBlockingLockExclusive).is_ok();
        if lock.as_ref().is_some_and(|lock| !free(lock)) {
            return Ok(());
        }
        let Some(record) = Record::read(dir)? else {
            // Nothing is changed before there is a record, which claiming writes under our lock.
            if dir.join("changes").exists() {
                return Err(io::Error::other("container.json is missing"));
            }
            let _still_busy = remove(dir);
            return Ok(());
        };
        if record.status == Status::Exited && !record.remove {
            return Ok(());
        }
        let mut container = Container {
            dir: dir.to_owned(),
            record,
        };
        tracing::debug!(id = container.record.id, "its watcher has died");
        // What never began to run has nothing worth keeping.
        container.record.remove |= container.record.started.is_none();
        if let Err(error) = container.finish(KILLED) {
            tracing::warn!(%error, "a dead container is left as it is");
        }
        Ok(())
    }

    /// Makes a container of this name, or of one that is made up from `image`.
    pub fn claim(&self, name: Option<&str>, image: &str) -> Result<Claimed, Error> {
        let _held = self.lock()?;
        let known = self.list()?;
        let id = new_id();
        let name = match name {
            Some(name) => {
                check_name(name)?;
                if let Some(other) = known.iter().find(|c| c.record.name == name) {
                    return Err(Error::NameTaken(
                        name.to_owned(),
                        other.short_id().to_owned(),
                    ));
                }
                name.to_owned()
            }
            None => made_up(image, &id),
        };
        let dir = self.root.join(&id);
        let failed = |e| Error::at(&dir, e);
        DirBuilder::new().mode(0o700).create(&dir).map_err(failed)?;
        let lock = open_lock(&dir.join("lock"), true).map_err(failed)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|e| failed(e.into()))?;
        std::fs::create_dir(dir.join("rootfs")).map_err(failed)?;
        let record = Record {
            version: VERSION,
            id,
            name,
            image: image.to_owned(),
            digest: String::new(),
            platform: String::new(),
            created: now(),
            status: Status::Created,
            pid: None,
            started: None,
            finished: None,
            exit_code: None,
            stop_signal: rustix::process::Signal::TERM.as_raw(),
            remove: false,
            mounted_over: Vec::new(),
            process: None,
            runtime: None,
            given: Overrides::default(),
        };
        record.write(&dir).map_err(failed)?;
        let container = Container { dir, record };
        Ok(Claimed { container, lock })
    }

    /// All of them, oldest first.
    pub fn list(&self) -> Result<Vec<Container>, Error> {
        // What cannot be read is told when the store is opened.
        let read = |dir: PathBuf| {
            let record = Record::read(&dir).ok().flatten()?;
            Some(Container { dir, record })
        };
        let mut all: Vec<Container> = self
            .directories()?
            .into_iter()
            .filter(|dir| !is_removed(dir))
            .filter_map(read)
            .collect();
        all.sort_by(|a, b| {
            (&a.record.created, &a.record.id).cmp(&(&b.record.created, &b.record.id))
        });
        Ok(all)
    }

    /// The container of that name, id, or beginning of an id that only one has.
    pub fn find(&self, wanted: &str) -> Result<Container, Error> {
        let all = self.list()?;
        let named = |c: &&Container| c.record.name == wanted || c.record.id == wanted;
        if let Some(found) = all.iter().find(named) {
            return Ok(found.clone());
        }
        let mut begun = all
            .iter()
            .filter(|c| !wanted.is_empty() && c.record.id.starts_with(wanted));
        match (begun.next(), begun.next()) {
            (Some(found), None) => Ok(found.clone()),
            (Some(_), Some(_)) => Err(Error::Ambiguous(wanted.to_owned())),
            _ => Err(Error::NoSuchContainer(wanted.to_owned())),
        }
    }
}

impl Container {
    /// Its directory, which is the runtime's bundle.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What people type instead of the id.
    pub fn short_id(&self) -> &str {
        &self.record.id[..self.record.id.len().min(SHORT)]
    }

    /// Where the image is mounted while it runs.
    pub fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    /// The upper directory of that mount: what `commit` makes a layer of.
    pub fn changes(&self) -> PathBuf {
        self.dir.join("changes")
    }

    /// Where what it prints is kept.
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Keeps what is known of it.
    pub fn save(&self) -> Result<(), Error> {
        self.record
            .write(&self.dir)
            .map_err(|e| Error::at(&self.dir, e))
    }

    /// Takes down what is left of a run: processes, the mount, and with `--rm` everything.
    pub fn finish(&mut self, exit_code: u8) -> Result<(), Error> {
        if let Some(program) = self.record.program()
            && let Err(error) = program.delete(&self.record.id)
        {
            tracing::debug!(%error, "the runtime has nothing to forget");
        }
        let rootfs = self.rootfs();
        if let Err(error) = self.tidy(&rootfs) {
            tracing::debug!(%error, "the changes are not tidied");
        }
        if mountpoint::is_mounted(&rootfs)
            && let Err(error) = unmount(&rootfs)
        {
            tracing::warn!(%error, "the container's root file system stays mounted");
        }
        let code = *self.record.exit_code.get_or_insert(exit_code);
        if let Err(error) = say_last(&self.dir, code) {
            tracing::debug!(%error, "who waits for the container gets no exit code");
        }
        if self.record.remove {
            return remove(&self.dir);
        }
        self.record.status = Status::Exited;
        self.record.pid = None;
        self.record.finished.get_or_insert_with(now);
        self.save()
    }

    /// Takes out of what was changed what is empty, and only there because something was mounted over
    /// it.
    fn tidy(&self, rootfs: &Path) -> Result<(), Error> {
        if self.record.mounted_over.is_empty() || !mountpoint::is_mounted(rootfs) {
            return Ok(());
        }
        let opened = Rootfs::open(rootfs).map_err(|e| Error::at(rootfs, e))?;
        // What was made in another one goes before it.
        for path in self.record.mounted_over.iter().rev() {
            if let Err(error) = opened.remove_empty(path) {
                tracing::debug!(%error, path = %path.display(), "not tidied");
            }
        }
        Ok(())
    }

    /// Removes all of a container that does not run.
    pub fn remove(&self) -> Result<(), Error> {
        remove(&self.dir)
    }

    /// Waits until nobody watches it any more; gives its lock, or nothing after `patience`.
    pub fn wait(&self, patience: Option<Duration>) -> Result<Option<Ended>, Error> {
        let deadline = patience.map(|p| Instant::now() + p);
        let path = self.dir.join("lock");
        let lock = match open_lock(&path, false) {
            Ok(lock) => lock,
            // Removed by its watcher: as free as can be.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Some(Ended(None))),
            Err(e) => return Err(Error::at(&path, e)),
        };
        while flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            if deadline.is_some_and(|d| Instant::now() >= d) {
                return Ok(None);
            }
            std::thread::sleep(GLANCE);
        }
        Ok(Some(Ended(Some(lock))))
    }

    /// Whether somebody watches it.
    pub fn is_watched(&self) -> bool {
        matches!(self.wait(Some(Duration::ZERO)), Ok(None))
    }
}

/// A container that nobody watches; nobody else does while this is held.
#[derive(Debug)]
pub struct Ended(Option<File>);

impl Ended {
    /// The exit code that its watcher has left, also of a container that is gone by now.
    pub fn exit_code(self) -> Option<u8> {
        let mut text = String::new();
        let mut file = self.0?;
        file.rewind().ok()?;
        file.take(8).read_to_string(&mut text).ok()?;
        text.trim().parse().ok()
    }
}

/// Leaves the exit code where those find it who wait for the lock.
fn say_last(dir: &Path, code: u8) -> io::Result<()> {
    let mut file = open_lock(&dir.join("lock"), false)?;
    file.set_len(0)?;
    writeln!(file, "{code}")
}

fn is_removed(dir: &Path) -> bool {
    let name = dir.file_name().and_then(|n| n.to_str());
    name.is_some_and(|n| n.starts_with(REMOVED))
}

fn unmount(rootfs: &Path) -> Result<(), mountpoint::MountpointError> {
    match mountpoint::unmount(rootfs, false) {
        Ok(()) => record::wait_until_gone(rootfs),
        Err(mountpoint::MountpointError::Busy(_)) => mountpoint::unmount(rootfs, true)?,
        Err(other) => return Err(other),
    }
    Ok(())
}

/// Never walks into a mount: what is still mounted keeps its directory.
fn remove(dir: &Path) -> Result<(), Error> {
    let rootfs = dir.join("rootfs");
    if mountpoint::is_mounted(&rootfs) {
        unmount(&rootfs)?;
    }
    let failed = |e| Error::at(dir, e);
    match std::fs::remove_dir(&rootfs) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed(e)),
    }
    // Gone at once for everybody, and for good should this be the last that we do.
    let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else {
        return Ok(());
    };
    let mut removed = std::ffi::OsString::from(REMOVED);
    removed.push(name);
    let removed = parent.join(removed);
    match std::fs::rename(dir, &removed) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
    }
    match std::fs::remove_dir_all(&removed) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed(e)),
        _ => Ok(()),
    }
}

fn open_lock(path: &Path, create: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(create)
        .truncate(false);
    options.mode(0o600).open(path)
}

fn new_id() -> String {
    (0..4)
        .map(|_| format!("{:016x}", fastrand::u64(..)))
        .collect()
}

/// Docker's rule for names.
fn check_name(name: &str) -> Result<(), Error> {
    let first = name
        .chars()
        .next()
        .is_some_and(|c| c.is_ascii_alphanumeric());
    let rest = name
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    if first && rest {
        Ok(())
    } else {
        Err(Error::BadName(name.to_owned()))
    }
}

/// The image's last word and some digits of the id: `python-3fa9c2`.
fn made_up(image: &str, id: &str) -> String {
    let bare = image.split('@').next().unwrap_or_default();
    let last = bare.rsplit('/').next().unwrap_or_default();
    let word = last.split(':').next().unwrap_or_default();
    let kept: String = word
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(20)
        .collect();
    let word = if kept.is_empty() { "container" } else { &kept };
    format!("{word}-{}", &id[..6])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ids_find_a_container() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::open(place.path()).unwrap();
        let one = store.claim(Some("one"), "debian:12").unwrap();
        let two = store
            .claim(None, "127.0.0.1:5000/library/python:3")
            .unwrap();
        assert!(two.container.record.name.starts_with("python-"));
        assert!(matches!(
            store.claim(Some("one"), "x"),
            Err(Error::NameTaken(..))
        ));
        assert!(matches!(
            store.claim(Some("-x"), "x"),
            Err(Error::BadName(_))
        ));
        let id = &one.container.record.id;
        for wanted in ["one", id, &id[..12]] {
            assert_eq!(store.find(wanted).unwrap().record.id, *id);
        }
        assert!(matches!(store.find("none"), Err(Error::NoSuchContainer(_))));
        assert!(matches!(store.find(""), Err(Error::NoSuchContainer(_))));
        assert_eq!(store.list().unwrap().len(), 2);
    }

    #[test]
    fn what_cannot_be_read_is_left() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::open(place.path()).unwrap();
        let claim = |name| store.claim(Some(name), "x").unwrap().container.dir;
        let (newer, garbage, lost, half) = (
            claim("newer"),
            claim("garbage"),
            claim("lost"),
            claim("half"),
        );
        let record = |dir: &Path| dir.join("container.json");
        let text = std::fs::read_to_string(record(&newer)).unwrap();
        let later = text.replacen(&format!("\"version\": {VERSION}"), "\"version\": 99", 1);
        assert_ne!(text, later);
        std::fs::write(record(&newer), later).unwrap();
        std::fs::write(record(&garbage), "{").unwrap();
        for dir in [&lost, &half] {
            std::fs::remove_file(record(dir)).unwrap();
        }
        std::fs::create_dir(lost.join("changes")).unwrap();
        let store = Store::open(place.path()).unwrap();
        let told: Vec<String> = store.damaged().iter().map(Damaged::to_string).collect();
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(
            told.iter().any(|t| t.contains("another rsmount")),
            "{told:?}"
        );
        assert!(newer.exists() && garbage.exists() && lost.exists());
        assert!(!half.exists(), "nobody has made anything of it yet");
        assert_eq!(store.list().unwrap().len(), 0);
    }

    #[test]
    fn records_without_later_members_are_read() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::open(place.path()).unwrap();
        let made = store.claim(Some("old"), "x").unwrap();
        let path = made.container.dir.join("container.json");
        let mut json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let members = json.as_object_mut().unwrap();
        for later in ["mounted_over", "remove", "runtime", "process"] {
            assert!(members.remove(later).is_some(), "{later}");
        }
        std::fs::write(&path, json.to_string()).unwrap();
        assert_eq!(store.find("old").unwrap().record, made.container.record);
    }

    #[test]
    fn asking_for_a_lock_makes_none() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::open(place.path()).unwrap();
        let container = store.claim(None, "x").unwrap().container;
        container.remove().unwrap();
        std::fs::create_dir(&container.dir).unwrap();
        assert!(!container.is_watched());
        assert!(!container.dir.join("lock").exists());
    }

    #[test]
    fn who_waits_gets_the_code_of_what_is_gone() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::open(place.path()).unwrap();
        let mut claimed = store.claim(None, "x").unwrap();
        let waiting = claimed.container.clone();
        claimed.container.record.remove = true;
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| waiting.wait(None).unwrap());
            // The lock is open by the time that it is asked for.
            let fds = || std::fs::read_dir("/proc/self/fd").unwrap().flatten();
            let path = waiting.dir.join("lock");
            let open = || fds().filter(|e| std::fs::read_link(e.path()).is_ok_and(|l| l == path));
            while open().count() < 2 {
                std::thread::yield_now();
            }
            claimed.container.finish(7).unwrap();
            drop(claimed.lock);
            assert_eq!(waits.join().unwrap().unwrap().exit_code(), Some(7));
        });
        assert!(!waiting.dir.exists());
    }

    #[test]
    fn a_cache_that_others_may_write_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let place = tempfile::tempdir().unwrap();
        let open = PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(place.path(), open).unwrap();
        assert!(matches!(Store::open(place.path()), Err(Error::Cache(_))));
    }

    #[test]
    fn paths_are_without_symbolic_links() {
        let place = tempfile::tempdir().unwrap();
        std::fs::create_dir(place.path().join("real")).unwrap();
        let link = place.path().join("link");
        std::os::unix::fs::symlink("real", &link).unwrap();
        let store = Store::open(&link).unwrap();
        let dir = store.claim(None, "x").unwrap().container.dir;
        assert_eq!(dir, dir.canonicalize().unwrap());
    }

    #[test]
    fn a_container_without_a_watcher_is_ended() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::open(place.path()).unwrap();
        let mut stays = store.claim(Some("stays"), "x").unwrap().container;
        let mut goes = store.claim(Some("goes"), "x").unwrap();
        let watched = store.claim(Some("watched"), "x").unwrap();
        stays.record.status = Status::Running;
        stays.record.started = Some(now());
        stays.save().unwrap();
        goes.container.record.remove = true;
        goes.container.save().unwrap();
        drop(goes.lock);
        let store = Store::open(place.path()).unwrap();
        let names: Vec<String> = store
            .list()
            .unwrap()
            .into_iter()
            .map(|c| c.record.name)
            .collect();
        assert_eq!(names.len(), 2, "{names:?}");
        let stays = store.find("stays").unwrap().record;
        assert_eq!(
            (stays.status, stays.exit_code),
            (Status::Exited, Some(KILLED))
        );
        let watched = store.find(&watched.container.record.id).unwrap();
        assert_eq!(watched.record.status, Status::Created);
        assert!(watched.is_watched());
    }
}
