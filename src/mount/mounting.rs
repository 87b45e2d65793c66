//! The lock of a mountpoint while an image is being mounted on it: of two commands that do so at the same
//! time one is refused, rather than its image be stacked on the other's.
//!
//! A file beside the records, not the directory itself: that may be the lock of a script that mounts there
//! (`flock DIR rsmount IMAGE DIR`). It is as much as one user's mounts need of each other; another user's
//! directory is nobody's mountpoint but root's.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use crate::mount::error::Error;
use crate::mount::mountpoint::{self, MountpointError};
use crate::mount::record;
use crate::oci::Digest;

/// How the files are named behind their dot.
const EXTENSION: &str = "mounting";

/// Who clears up holds a lock for an instant. Who mounts may be done before all these looks are over:
/// then the mount itself is what is found.
const LOOKS: u32 = 10;
const LOOKS_APART: Duration = Duration::from_millis(5);

/// Who clears up leaves a file alone that is as young as this: it is most probably of somebody who is
/// about to lock it.
const YOUNG: Duration = Duration::from_secs(60);

/// Held until what is mounted has its record; the lock ends with the process, however it ends.
#[derive(Debug)]
pub(super) struct Mounting {
    path: PathBuf,
    _locked: File,
}

impl Mounting {
    /// Says that this process mounts on `mountpoint` (absolute, without links).
    ///
    /// # Errors
    ///
    /// When another process is at it, or has been since the command looked.
    pub(super) fn begin(mountpoint: &Path) -> Result<Mounting, Error> {
        // The same path is another directory in another mount namespace (mount_namespaces(7)).
        let namespace = std::fs::read_link("/proc/self/ns/mnt").unwrap_or_default();
        let named = [namespace.as_path(), mountpoint].map(|path| path.as_os_str().as_bytes());
        let name = Digest::of(&named.join(&0));
        let lock = record::directory().and_then(|dir| {
            clear(&dir);
            let path = dir.join(format!("{}.{EXTENSION}", name.hex()));
            let locked = lock_soon(&path, || std::thread::sleep(LOOKS_APART))?;
            Ok(locked.map(|file| Mounting {
                path,
                _locked: file,
            }))
        });
        let lock = lock.map_err(Error::io("cannot lock the mountpoint"))?;
        let lock = lock.ok_or_else(|| MountpointError::BeingMounted(mountpoint.into()))?;
        if mountpoint::is_mounted(mountpoint) {
            return Err(MountpointError::AlreadyMounted(mountpoint.into()).into());
        }
        Ok(lock)
    }
}

impl Drop for Mounting {
    fn drop(&mut self) {
        // While it is locked: whoever has it open already finds that it is not the one with this name.
        let _gone = std::fs::remove_file(&self.path);
    }
}

/// Removes from `dir` what processes that were killed while they mounted have left.
pub(super) fn clear(dir: &Path) {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    let ours = paths.filter(|path| path.extension().is_some_and(|e| e == EXTENSION));
    for path in ours.filter(|path| !is_young(path)) {
        if let Ok(Some(locked)) = lock(&path) {
            drop(Mounting {
                path,
                _locked: locked,
            });
        }
    }
}

fn is_young(path: &Path) -> bool {
    match path.metadata().and_then(|meta| meta.modified()) {
        Ok(made) => made.elapsed().is_ok_and(|age| age < YOUNG),
        // To lock it would make it anew.
        Err(_gone) => true,
    }
}

/// As [`lock`], but looks [`LOOKS`] times while somebody holds it, with a `pause` between.
fn lock_soon(path: &Path, mut pause: impl FnMut()) -> io::Result<Option<File>> {
    for _ in 1..LOOKS {
        if let Some(file) = lock(path)? {
            return Ok(Some(file));
        }
        pause();
    }
    lock(path)
}

/// The file at `path`, locked; `None` when another has it.
fn lock(path: &Path) -> io::Result<Option<File>> {
    loop {
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(false);
        let file = options.mode(0o600).open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(e) => return Err(e.into()),
        }
        let number = file.metadata()?.ino();
        if path.metadata().is_ok_and(|found| found.ino() == number) {
            return Ok(Some(file));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn one_has_it_and_its_end_makes_room_for_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.mounting");
        let mounting = Mounting {
            _locked: lock(&path).unwrap().unwrap(),
            path: path.clone(),
        };
        assert!(lock(&path).unwrap().is_none());
        drop(mounting);
        assert!(!path.exists(), "nothing is left behind");
        assert!(lock(&path).unwrap().is_some());
    }

    #[test]
    fn what_dead_processes_left_is_cleared_and_what_is_held_stays() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["left.mounting", "held.mounting", "new.mounting", "1.json"];
        let files @ [left, held, new, other] = &names.map(|name| dir.path().join(name));
        for path in files {
            let file = File::create(path).unwrap();
            let made = SystemTime::now() - if path == new { YOUNG / 2 } else { YOUNG };
            file.set_modified(made).unwrap();
        }
        let locked = lock(held).unwrap().unwrap();
        clear(dir.path());
        assert!(!left.exists() && held.exists() && new.exists() && other.exists());
        drop(locked);
        clear(dir.path());
        assert!(!held.exists());
    }

    #[test]
    fn who_clears_up_keeps_nobody_from_mounting() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.mounting");
        // Done before the second look, and before the last one.
        for looks in [2, LOOKS] {
            let mut clearing = lock(&path).unwrap();
            let mut pauses = 0;
            let locked = lock_soon(&path, || {
                pauses += 1;
                clearing.take_if(|_| pauses == looks - 1);
            });
            assert!(locked.unwrap().is_some());
            assert_eq!(pauses, looks - 1);
        }
    }

    #[test]
    fn who_mounts_is_waited_for_no_longer_than_who_clears_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.mounting");
        let _mounting = lock(&path).unwrap().unwrap();
        let mut pauses = 0;
        assert!(lock_soon(&path, || pauses += 1).unwrap().is_none());
        assert_eq!(pauses, LOOKS - 1);
    }
}
