//! A container's root file system seen from the host: paths are resolved inside of it (openat2(2),
//! `RESOLVE_IN_ROOT`), so that no link of an image leads out.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, chmodat,
    fstat, mkdirat, openat2, statat, unlinkat, utimensat,
};
use rustix::io::Errno;

/// An opened root.
#[derive(Debug)]
pub struct Rootfs {
    dir: OwnedFd,
}

impl Rootfs {
    /// Opens the root at `path`.
    pub fn open(path: &Path) -> io::Result<Rootfs> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Rootfs { dir })
    }

    fn at(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC;
        openat2(&self.dir, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)
    }

    /// The file at `path`, at most `max` bytes of it; nothing when there is no such file.
    pub fn read(&self, path: &str, max: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let found = match self.at(Path::new(path), OFlags::PATH) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(bytes),
            Err(e) => return Err(e.into()),
        };
        // Opening a device can have an effect by itself: nothing is opened before its kind is known.
        let stat = rustix::fs::fstat(&found)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
            let same = format!("/proc/self/fd/{}", found.as_raw_fd());
            File::open(same)?.take(max).read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    }

    /// Whether there is something at `path`.
    pub fn has(&self, path: &Path) -> bool {
        self.at(path, OFlags::PATH).is_ok()
    }

    /// The directory at `path`, for reading.
    pub fn directory(&self, path: &Path) -> io::Result<Option<OwnedFd>> {
        match self.at(path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Removes the file or directory at `path` if it is empty; the directory that held it is as old as
    /// before, as if it had never been there.
    pub fn remove_empty(&self, path: &Path) -> io::Result<()> {
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(());
        };
        let above = self.at(above, OFlags::PATH | OFlags::DIRECTORY)?;
        let before = fstat(&above)?;
        let stat = statat(&above, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile if stat.st_size == 0 => {
                unlinkat(&above, name, AtFlags::empty())?;
            }
            FileType::Directory => match unlinkat(&above, name, AtFlags::REMOVEDIR) {
                Ok(()) => {}
                Err(Errno::NOTEMPTY) => return Ok(()),
                Err(e) => return Err(e.into()),
            },
            _ => return Ok(()),
        }
        let modified = Timespec {
            tv_sec: before.st_mtime,
            tv_nsec: i64::try_from(before.st_mtime_nsec).unwrap_or_default(),
        };
        let times = Timestamps {
            last_access: Timespec {
                tv_sec: 0,
                tv_nsec: UTIME_OMIT,
            },
            last_modification: modified,
        };
        Ok(utimensat(&above, c".", &times, AtFlags::empty())?)
    }

    /// Makes the directory at `path` and those above it, as far as they are missing.
    pub fn make_directories(&self, path: &Path) -> io::Result<()> {
        let mut at = PathBuf::from("/");
        for component in path.components() {
            let Component::Normal(name) = component else {
                continue;
            };
            let above = at.clone();
            at.push(name);
            match self.at(&at, OFlags::PATH | OFlags::DIRECTORY) {
                Ok(_) => {}
                Err(Errno::NOENT) => {
                    let above = self.at(&above, OFlags::PATH | OFlags::DIRECTORY)?;
                    mkdirat(&above, name, Mode::RWXU)?;
                    // Past the caller's umask.
                    chmodat(&above, name, Mode::from_raw_mode(0o755), AtFlags::empty())?;
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::write(dir.path().join("passwd"), "outside").unwrap();
        std::fs::write(root.join("passwd"), "inside").unwrap();
        symlink("../../passwd", root.join("etc/passwd")).unwrap();
        symlink("/var/real", root.join("srv")).unwrap();
        std::fs::create_dir_all(root.join("var/real")).unwrap();
        let opened = Rootfs::open(&root).unwrap();
        assert_eq!(opened.read("/etc/passwd", 100).unwrap(), b"inside");
        assert_eq!(opened.read("/etc/passwd", 2).unwrap(), b"in");
        assert_eq!(opened.read("/etc", 100).unwrap(), b"");
        assert_eq!(opened.read("/etc/none", 100).unwrap(), b"");
        opened.make_directories(Path::new("/srv/a/b")).unwrap();
        assert!(root.join("var/real/a/b").is_dir());
        opened.make_directories(Path::new("/srv/a/b")).unwrap();
        assert!(opened.make_directories(Path::new("/passwd/x")).is_err());
        assert!(opened.directory(Path::new("/srv")).unwrap().is_some());
        assert!(opened.directory(Path::new("/none")).unwrap().is_none());
    }

    #[test]
    fn what_is_empty_goes_without_a_trace() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("root");
        std::fs::create_dir_all(root.join("etc/dir")).unwrap();
        std::fs::create_dir_all(root.join("etc/full/x")).unwrap();
        std::fs::write(root.join("etc/hosts"), "").unwrap();
        std::fs::write(root.join("etc/passwd"), "x").unwrap();
        let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(1_000, 7);
        let etc = File::open(root.join("etc")).unwrap();
        let modified = || etc.metadata().unwrap().modified().unwrap();
        etc.set_modified(old).unwrap();
        let opened = Rootfs::open(&root).unwrap();
        for name in ["dir", "hosts", "full", "passwd"] {
            opened.remove_empty(&Path::new("/etc").join(name)).unwrap();
            assert_eq!(modified(), old, "{name}");
        }
        assert!(opened.remove_empty(Path::new("/etc/none")).is_err());
        let left = std::fs::read_dir(root.join("etc")).unwrap().count();
        assert_eq!(left, 2);
    }
}
