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
//! ```
//!
//! Who holds the lock of a container is alive and takes care of it; a container that says that it
//! runs and is not locked has lost its watcher, and is ended by whoever finds it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::container::error::Error;
use crate::container::record::{Record, Status, VERSION, now};
use crate::container::rootfs::Rootfs;
use crate::mount::{mountpoint, record};

/// Between two looks at a lock that somebody is about to let go.
const GLANCE: Duration = Duration::from_millis(10);

/// Digits of an id that are enough for people.
const SHORT: usize = 12;

/// Exit code of a container that had to be killed: 128 + SIGKILL.
const KILLED: u8 = 137;

/// All containers of one cache.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
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
    /// The containers below `cache_dir`. What died with its watcher is ended on the way.
    pub fn open(cache_dir: &Path) -> Result<Store, Error> {
        let root = cache_dir.join("containers");
        let failed = |e| Error::at(&root, e);
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(&root).map_err(failed)?;
        let store = Store { root };
        let _held = store.lock()?;
        for dir in store.directories()? {
            store.look_after(&dir);
        }
        Ok(store)
    }

    /// The same, unless nobody has made a container there yet.
    pub fn existing(cache_dir: &Path) -> Result<Option<Store>, Error> {
        match cache_dir.join("containers").exists() {
            true => Store::open(cache_dir).map(Some),
            false => Ok(None),
        }
    }

    fn lock(&self) -> Result<File, Error> {
        let path = self.root.join("lock");
        let file = open_lock(&path).map_err(|e| Error::at(&path, e))?;
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
        Ok(found)
    }

    /// Ends a container whose watcher has died.
    fn look_after(&self, dir: &Path) {
        let Ok(lock) = open_lock(&dir.join("lock")) else {
            return;
        };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return;
        }
        let record = Record::read(dir);
        if record
            .as_ref()
            .is_some_and(|r| r.status == Status::Exited && !r.remove)
        {
            return;
        }
        let Some(record) = record else {
            let _still_busy = remove(dir);
            return;
        };
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
        let lock = open_lock(&dir.join("lock")).map_err(failed)?;
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
        };
        record.write(&dir).map_err(failed)?;
        let container = Container { dir, record };
        Ok(Claimed { container, lock })
    }

    /// All of them, oldest first.
    pub fn list(&self) -> Result<Vec<Container>, Error> {
        let read = |dir: PathBuf| Record::read(&dir).map(|record| Container { dir, record });
        let mut all: Vec<Container> = self.directories()?.into_iter().filter_map(read).collect();
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
        if self.record.remove {
            return remove(&self.dir);
        }
        self.record.status = Status::Exited;
        self.record.pid = None;
        self.record.exit_code.get_or_insert(exit_code);
        self.record.finished.get_or_insert_with(now);
        self.save()
    }

    /// Takes empty files out of what was changed that are only there because something was mounted
    /// over them.
    fn tidy(&self, rootfs: &Path) -> Result<(), Error> {
        if self.record.mounted_over.is_empty() || !mountpoint::is_mounted(rootfs) {
            return Ok(());
        }
        let opened = Rootfs::open(rootfs).map_err(|e| Error::at(rootfs, e))?;
        for path in &self.record.mounted_over {
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
    pub fn wait(&self, patience: Option<Duration>) -> Result<Option<File>, Error> {
        let deadline = patience.map(|p| Instant::now() + p);
        let lock = match open_lock(&self.dir.join("lock")) {
            Ok(lock) => lock,
            // Removed by its watcher: as free as can be.
            Err(_) => return Ok(File::open("/dev/null").ok()),
        };
        while flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            if deadline.is_some_and(|d| Instant::now() >= d) {
                return Ok(None);
            }
            std::thread::sleep(GLANCE);
        }
        Ok(Some(lock))
    }

    /// Whether somebody watches it.
    pub fn is_watched(&self) -> bool {
        matches!(self.wait(Some(Duration::ZERO)), Ok(None))
    }
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
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed(e)),
        _ => Ok(()),
    }
}

fn open_lock(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
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
