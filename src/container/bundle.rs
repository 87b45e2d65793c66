//! An OCI bundle for any runtime: a directory with `config.json` and the image mounted beside it.
//!
//! ```text
//! DIR/                              0700: what is in it may be set-id, or a device
//!    /config.json
//!    /rootfs/                      the mount
//!    /hosts, hostname, resolv.conf mounted over the image's
//!    /volumes/N/                   the image's own volumes
//! ```

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::container::error::Error;
use crate::container::prepare::{self, Wishes};
use crate::mount::record;

/// A bundle's directory in the making: as it was before when this is dropped unfinished.
#[derive(Debug)]
pub struct Bundle {
    dir: PathBuf,
    made: bool,
    /// What the directory allowed before.
    mode_before: Option<u32>,
    finished: bool,
}

impl Bundle {
    /// Takes `dir`, which has to be new or empty. It becomes the caller's alone: other users of this
    /// machine would otherwise reach the image's set-id programs and devices through it.
    pub fn begin(dir: &Path) -> Result<Bundle, Error> {
        let failed = |e| Error::at(dir, e);
        let made = match DirBuilder::new().mode(0o700).create(dir) {
            Ok(()) => true,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => false,
            Err(e) => return Err(failed(e)),
        };
        let mut bundle = Bundle {
            dir: dir.canonicalize().map_err(failed)?,
            made,
            mode_before: None,
            finished: true,
        };
        if std::fs::read_dir(&bundle.dir)
            .map_err(failed)?
            .next()
            .is_some()
        {
            return Err(Error::BundleInTheWay(dir.to_owned()));
        }
        let before = bundle.dir.metadata().map_err(failed)?;
        if before.uid() != rustix::process::geteuid().as_raw() {
            return Err(Error::BundleOfAnother(dir.to_owned()));
        }
        bundle.mode_before = Some(before.mode() & 0o7777);
        bundle.finished = false;
        bundle.set_mode(0o700).map_err(failed)?;
        std::fs::create_dir(bundle.rootfs()).map_err(failed)?;
        Ok(bundle)
    }

    fn set_mode(&self, mode: u32) -> io::Result<()> {
        std::fs::set_permissions(&self.dir, PermissionsExt::from_mode(mode))
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
        if let Some(mode) = self.mode_before {
            let _not_ours = self.set_mode(mode);
        }
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
        let mode = || dir.metadata().unwrap().mode() & 0o7777;
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o755)).unwrap();
        let bundle = Bundle::begin(&dir).unwrap();
        assert_eq!(mode(), 0o700);
        drop(bundle);
        assert_eq!(mode(), 0o755);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        std::fs::write(dir.join("mine"), "").unwrap();
        assert!(matches!(Bundle::begin(&dir), Err(Error::BundleInTheWay(_))));
        assert!(dir.join("mine").exists());
    }
}
