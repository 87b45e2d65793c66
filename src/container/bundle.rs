//! An OCI bundle for any runtime: a directory with `config.json` and the image mounted beside it.
//!
//! ```text
//! DIR/config.json
//!    /rootfs/                      the mount
//!    /hosts, hostname, resolv.conf mounted over the image's
//!    /volumes/N/                   the image's own volumes
//! ```

use std::io;
use std::path::{Path, PathBuf};

use crate::container::error::Error;
use crate::container::prepare::{self, Wishes};
use crate::mount::record;

/// A bundle's directory in the making: as it was before when this is dropped unfinished.
#[derive(Debug)]
pub struct Bundle {
    dir: PathBuf,
    made: bool,
    finished: bool,
}

impl Bundle {
    /// Takes `dir`, which has to be new or empty.
    pub fn begin(dir: &Path) -> Result<Bundle, Error> {
        let failed = |e| Error::at(dir, e);
        let made = match std::fs::create_dir(dir) {
            Ok(()) => true,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => false,
            Err(e) => return Err(failed(e)),
        };
        let mut bundle = Bundle {
            dir: dir.canonicalize().map_err(failed)?,
            made,
            finished: true,
        };
        if std::fs::read_dir(&bundle.dir)
            .map_err(failed)?
            .next()
            .is_some()
        {
            return Err(Error::BundleInTheWay(dir.to_owned()));
        }
        bundle.finished = false;
        std::fs::create_dir(bundle.rootfs()).map_err(failed)?;
        Ok(bundle)
    }

    /// Where the image is to be mounted.
    pub fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    /// Writes what the runtime reads; the image is mounted as `mounted` says.
    pub fn finish(
        mut self,
        wishes: &Wishes,
        cache_dir: &Path,
        mounted: &record::Record,
    ) -> Result<PathBuf, Error> {
        prepare::bundle(&self.dir, wishes, cache_dir, mounted)?;
        self.finished = true;
        Ok(self.dir.clone())
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let rootfs = self.rootfs();
        if crate::mount::mountpoint::is_mounted(&rootfs) {
            let _stays = crate::mount::mountpoint::unmount(&rootfs, true);
        }
        // A mount that stays must not be walked into.
        if std::fs::remove_dir(&rootfs).is_err() {
            return;
        }
        for name in ["config.json", "hosts", "hostname", "resolv.conf"] {
            let _none = std::fs::remove_file(self.dir.join(name));
        }
        let _none = std::fs::remove_dir_all(self.dir.join("volumes"));
        if self.made {
            let _not_empty = std::fs::remove_dir(&self.dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_finished_leaves_nothing() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("bundle");
        let bundle = Bundle::begin(&dir).unwrap();
        assert!(bundle.rootfs().is_dir());
        drop(bundle);
        assert!(!dir.exists());
        std::fs::create_dir(&dir).unwrap();
        drop(Bundle::begin(&dir).unwrap());
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        std::fs::write(dir.join("mine"), "").unwrap();
        assert!(matches!(Bundle::begin(&dir), Err(Error::BundleInTheWay(_))));
        assert!(dir.join("mine").exists());
    }
}
