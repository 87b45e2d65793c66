//! Things on their way into the cache: made under `tmp/`, moved into place when they are whole.
//! What is abandoned is removed: by its owner, or, when that died, by the next one who opens the
//! cache (each entry is locked by its living owner, and the lock ends with the process).

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use super::directory::Directory;
use super::lock::{self, Lock};
use super::{CacheError, Root};

/// Lock file: shared while an entry is made and not yet locked, exclusive while leftovers go.
const LOCK_NAME: &str = "tmp";

/// A directory or file under `tmp/` that vanishes on drop unless it was moved away.
#[derive(Debug)]
pub(super) struct Staging {
    root: Arc<Root>,
    name: String,
    /// Keeps the entry's own lock.
    _held: Directory,
}

impl Staging {
    /// An empty directory, and a handle to it.
    pub(super) fn directory(root: &Arc<Root>) -> Result<(Staging, Directory), CacheError> {
        let _making = making(root)?;
        let name = loop {
            let name = fresh_name();
            if root.tmp.make(&name)? {
                break name;
            }
        };
        let gone = || CacheError::io("open", &root.tmp.path_of(&name), rustix::io::Errno::NOENT);
        let (held, directory) = match (root.tmp.directory(&name)?, root.tmp.directory(&name)?) {
            (Some(held), Some(directory)) => (held, directory),
            _ => return Err(gone()),
        };
        lock::try_exclusive(&held)
            .map_err(|e| CacheError::io("lock", &root.tmp.path_of(&name), e))?;
        Ok((
            Staging {
                root: root.clone(),
                name,
                _held: held,
            },
            directory,
        ))
    }

    /// Moves something out of `from` to here, to be removed.
    pub(super) fn discard(
        root: &Arc<Root>,
        from: &Directory,
        name: &str,
    ) -> Result<bool, CacheError> {
        let (_doomed, directory) = Staging::directory(root)?;
        from.rename(name, &directory, "doomed")
    }

    /// Moves it into place as `to`/`new`, unless that exists; whether it was moved.
    pub(super) fn place(self, to: &Directory, new: &str) -> Result<bool, CacheError> {
        // Drop then finds nothing under the old name, or removes what was not moved.
        self.root.tmp.rename_new(&self.name, to, new)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Best effort: what stays is removed when the cache is opened next.
        let _ = self.root.tmp.remove(&self.name);
    }
}

/// Writes `bytes` to `to`/`name` so that either the old or the new content is there, even after a
/// power cut.
pub(super) fn write_file(
    root: &Arc<Root>,
    to: &Directory,
    name: &str,
    bytes: &[u8],
) -> Result<(), CacheError> {
    let (_staging, directory) = Staging::directory(root)?;
    write_synced(&directory, name, bytes)?;
    directory.rename(name, to, name)?;
    to.sync()
}

/// Makes a file with `bytes` that are on the disk when this returns.
pub(super) fn write_synced(
    directory: &Directory,
    name: &str,
    bytes: &[u8],
) -> Result<File, CacheError> {
    let mut file = directory.create(name)?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(|e| CacheError::io("write", &directory.path_of(name), e))?;
    Ok(file)
}

/// Removes what dead processes left behind.
pub(super) fn remove_leftovers(root: &Root) -> Result<(), CacheError> {
    let guard = root.locks.ensure_file(LOCK_NAME)?;
    // Somebody is making an entry right now: the next one who opens the cache will clean up.
    let failed = |e| CacheError::io("lock", &root.locks.path_of(LOCK_NAME), e);
    let Some(_cleaning) = Lock::attempt(guard).map_err(failed)? else {
        return Ok(());
    };
    for name in root.tmp.names()? {
        // What cannot be opened as a directory was not made by us; `remove` unlinks it.
        if let Ok(Some(entry)) = root.tmp.directory(&name)
            && !lock::try_exclusive(&entry).map_err(failed)?
        {
            continue;
        }
        root.tmp.remove(&name)?;
    }
    Ok(())
}

fn making(root: &Root) -> Result<Lock, CacheError> {
    Lock::wait(root.locks.ensure_file(LOCK_NAME)?, false)
        .map_err(|e| CacheError::io("lock", &root.locks.path_of(LOCK_NAME), e))
}

fn fresh_name() -> String {
    format!("{}-{:016x}", std::process::id(), fastrand::u64(..))
}
