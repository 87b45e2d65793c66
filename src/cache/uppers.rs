//! Upper directories: `uppers/HEX.json`, by the digest of the directory's path. What was changed in one
//! means something only above the image that is named here, whether or not it is mounted now. The
//! directory itself has the last word (`rsmount.json` in it): an entry may be out of date.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Cache, CacheError, staging};
use crate::oci::Digest;

/// The largest entry that is read: a path and a digest.
const ENTRY_BYTES_MAX: usize = 64 << 10;

#[derive(Serialize, Deserialize)]
struct Entry {
    dir: PathBuf,
    digest: Digest,
}

impl Cache {
    /// Remembers that `dir` holds changes to the image whose manifest has the digest.
    pub fn remember_upper(&self, dir: &Path, digest: &Digest) -> Result<(), CacheError> {
        let name = file_name(dir);
        let entry = Entry {
            dir: dir.to_owned(),
            digest: digest.clone(),
        };
        let bytes = serde_json::to_vec(&entry)
            .map_err(|e| CacheError::io("write", &self.root.uppers.path_of(&name), e))?;
        if self.root.uppers.read(&name, ENTRY_BYTES_MAX)?.as_ref() == Some(&bytes) {
            return Ok(());
        }
        staging::write_file(&self.root, &self.root.uppers, &name, &bytes)
    }

    /// The directories that are remembered, and what they hold changes to.
    pub fn uppers(&self) -> Result<Vec<(PathBuf, Digest)>, CacheError> {
        let mut found = Vec::new();
        for name in self.root.uppers.names()? {
            let bytes = self.root.uppers.read(&name, ENTRY_BYTES_MAX)?;
            let entry: Option<Entry> = bytes.and_then(|b| serde_json::from_slice(&b).ok());
            match entry.filter(|entry| file_name(&entry.dir) == name) {
                Some(entry) => found.push((entry.dir, entry.digest)),
                None => self.root.uppers.remove(&name)?,
            }
        }
        found.sort();
        Ok(found)
    }

    /// Forgets a directory that is not there any more. Missing is fine.
    pub fn forget_upper(&self, dir: &Path) -> Result<(), CacheError> {
        self.root.uppers.remove(&file_name(dir))
    }
}

fn file_name(dir: &Path) -> String {
    format!("{}.json", Digest::of(dir.as_os_str().as_bytes()).hex())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_remembered_until_they_are_forgotten() {
        let place = tempfile::tempdir().unwrap();
        let cache = Cache::open(&place.path().join("cache")).unwrap();
        let (one, two) = (Path::new("/a/one"), Path::new("/a/two"));
        let (first, second) = (Digest::of(b"1"), Digest::of(b"2"));
        cache.remember_upper(two, &first).unwrap();
        cache.remember_upper(one, &first).unwrap();
        cache.remember_upper(two, &second).unwrap();
        let known = cache.uppers().unwrap();
        assert_eq!(known, [(one.to_owned(), first), (two.to_owned(), second)]);
        cache.forget_upper(one).unwrap();
        cache.forget_upper(one).unwrap();
        let path = cache.root.uppers.path_of("nonsense");
        std::fs::write(&path, "x").unwrap();
        assert_eq!(cache.uppers().unwrap().len(), 1);
        assert!(!path.exists());
    }
}
