//! One open directory of the cache. Everything below the root is named relative to an open
//! descriptor and never through a symbolic link, so nobody can move the cache under our feet.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use super::CacheError;

/// Directories of the cache nest five deep; more was not made by us, and is not walked.
const DEPTH_MAX: usize = 8;

const OPEN_DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
const OPEN_FILE: OFlags = OFlags::NOFOLLOW
    .union(OFlags::CLOEXEC)
    .union(OFlags::NONBLOCK);

/// An open directory, with its path for messages only.
#[derive(Debug)]
pub(super) struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

impl Directory {
    /// Opens the cache root, made with mode 0700 if it is missing. A root that another user owns or
    /// may write is refused. The path itself may lead through symbolic links: the user chose it.
    pub(super) fn open_root(path: &Path) -> Result<Directory, CacheError> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|e| CacheError::io("create", parent, e))?;
        }
        match std::fs::DirBuilder::new().mode(0o700).create(path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(CacheError::io("create", path, e));
            }
            _ => {}
        }
        let flags = OPEN_DIRECTORY.difference(OFlags::NOFOLLOW);
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|e| CacheError::io("open", path, e))?;
        let stat = rustix::fs::fstat(&fd).map_err(|e| CacheError::io("examine", path, e))?;
        let user = rustix::process::geteuid().as_raw();
        check_root(path, stat.st_uid, user, stat.st_mode)?;
        Ok(Directory {
            fd,
            path: path.to_owned(),
        })
    }

    /// The path of `name` in here, for messages.
    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Free bytes of the file system for users like us.
    pub(super) fn free_bytes(&self) -> Result<u64, CacheError> {
        let stat =
            rustix::fs::fstatvfs(&self.fd).map_err(|e| CacheError::io("examine", &self.path, e))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Opens a directory; `None` when there is none of that name.
    pub(super) fn directory(&self, name: &str) -> Result<Option<Directory>, CacheError> {
        let path = self.path_of(name);
        match rustix::fs::openat(&self.fd, name, OPEN_DIRECTORY, Mode::empty()) {
            Ok(fd) => Ok(Some(Directory { fd, path })),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(CacheError::io("open", &path, e)),
        }
    }

    /// Makes a directory; whether it is new.
    pub(super) fn make(&self, name: &str) -> Result<bool, CacheError> {
        match rustix::fs::mkdirat(&self.fd, name, Mode::RWXU) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(e) => Err(CacheError::io("create", &self.path_of(name), e)),
        }
    }

    /// Opens a directory that is made if it is missing.
    pub(super) fn ensure(&self, name: &str) -> Result<Directory, CacheError> {
        self.make(name)?;
        self.directory(name)?
            .ok_or_else(|| CacheError::io("open", &self.path_of(name), Errno::NOENT))
    }

    /// Opens a file for reading, or reading and writing; `None` when there is none of that name. On
    /// a read-only file system what is there can still be read, and writing fails later.
    pub(super) fn file(&self, name: &str, write: bool) -> Result<Option<File>, CacheError> {
        let open = |access| {
            let flags = OPEN_FILE.union(access);
            rustix::fs::openat(&self.fd, name, flags, Mode::empty())
        };
        let opened = match write {
            true => open(OFlags::RDWR).or_else(|e| match e {
                Errno::ROFS => open(OFlags::RDONLY),
                e => Err(e),
            }),
            false => open(OFlags::RDONLY),
        };
        match opened {
            Ok(fd) => Ok(Some(File::from(fd))),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(CacheError::io("open", &self.path_of(name), e)),
        }
    }

    /// Makes a file that must not exist.
    pub(super) fn create(&self, name: &str) -> Result<File, CacheError> {
        self.open_created(name, OFlags::EXCL)
    }

    /// Opens a file for writing that is made if it is missing (lock files).
    pub(super) fn ensure_file(&self, name: &str) -> Result<File, CacheError> {
        self.open_created(name, OFlags::empty())
    }

    fn open_created(&self, name: &str, how: OFlags) -> Result<File, CacheError> {
        let flags = OPEN_FILE
            .union(OFlags::RDWR)
            .union(OFlags::CREATE)
            .union(how);
        rustix::fs::openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR)
            .map(File::from)
            .map_err(|e| CacheError::io("create", &self.path_of(name), e))
    }

    /// Reads a whole file of at most `max` bytes; `None` when it is missing or longer.
    pub(super) fn read(&self, name: &str, max: usize) -> Result<Option<Vec<u8>>, CacheError> {
        let Some(file) = self.file(name, false)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        file.take(max as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| CacheError::io("read", &self.path_of(name), e))?;
        Ok((bytes.len() <= max).then_some(bytes))
    }

    /// What is in here.
    pub(super) fn names(&self) -> Result<Vec<String>, CacheError> {
        let failed = |e: Errno| CacheError::io("list", &self.path, e);
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.fd).map_err(failed)? {
            // Our own names are ASCII; what is not was put there by somebody else and is left.
            if let Ok(name) = entry.map_err(failed)?.file_name().to_str()
                && name != "."
                && name != ".."
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Attributes of `name` itself; `None` when it is missing.
    pub(super) fn stat(&self, name: &str) -> Result<Option<Stat>, CacheError> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(CacheError::io("examine", &self.path_of(name), e)),
        }
    }

    /// Moves `name` to `to`/`new`, replacing a file of that name; false when `name` is missing.
    pub(super) fn rename(&self, name: &str, to: &Directory, new: &str) -> Result<bool, CacheError> {
        match rustix::fs::renameat(&self.fd, name, &to.fd, new) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(CacheError::io("move", &self.path_of(name), e)),
        }
    }

    /// Moves `name` to `to`/`new` unless that exists; whether it was moved.
    pub(super) fn rename_new(
        &self,
        name: &str,
        to: &Directory,
        new: &str,
    ) -> Result<bool, CacheError> {
        match rustix::fs::renameat_with(&self.fd, name, &to.fd, new, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST | Errno::NOTEMPTY) => Ok(false),
            Err(e) => Err(CacheError::io("move", &self.path_of(name), e)),
        }
    }

    /// Removes a file, or a directory with all that is in it. Missing is fine.
    pub(super) fn remove(&self, name: &str) -> Result<(), CacheError> {
        self.remove_to(name, DEPTH_MAX)
    }

    fn remove_to(&self, name: &str, depth: usize) -> Result<(), CacheError> {
        let failed = |e: Errno| CacheError::io("remove", &self.path_of(name), e);
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR | Errno::PERM) if depth > 0 => {}
            Err(e) => return Err(failed(e)),
        }
        let Some(directory) = self.directory(name)? else {
            return Ok(());
        };
        for inner in directory.names()? {
            directory.remove_to(&inner, depth - 1)?;
        }
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(failed(e)),
        }
    }

    /// Makes names that were moved in or out survive a power cut.
    pub(super) fn sync(&self) -> Result<(), CacheError> {
        rustix::fs::fsync(&self.fd).map_err(|e| CacheError::io("sync", &self.path, e))
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whoever may write the root could replace anything below it.
fn check_root(path: &Path, owner: u32, user: u32, mode: u32) -> Result<(), CacheError> {
    if owner != user {
        return Err(CacheError::Foreign {
            path: path.to_owned(),
            owner,
            user,
        });
    }
    if mode & 0o022 != 0 {
        return Err(CacheError::Writable {
            path: path.to_owned(),
            mode: mode & 0o7777,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_of_somebody_else_is_refused() {
        let path = Path::new("cache");
        assert!(check_root(path, 7, 7, 0o40700).is_ok());
        assert!(matches!(
            check_root(path, 8, 7, 0o40700),
            Err(CacheError::Foreign { .. })
        ));
        assert!(matches!(
            check_root(path, 0, 7, 0o40700),
            Err(CacheError::Foreign { .. })
        ));
        for mode in [0o40770, 0o40702, 0o41777] {
            assert!(matches!(
                check_root(path, 7, 7, mode),
                Err(CacheError::Writable { .. })
            ));
        }
    }

    #[test]
    fn links_below_the_root_are_not_followed() {
        let temp = tempfile::tempdir().unwrap();
        let outside = temp.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("kept"), b"x").unwrap();
        let root = Directory::open_root(&temp.path().join("root")).unwrap();
        std::os::unix::fs::symlink(&outside, temp.path().join("root/link")).unwrap();
        std::os::unix::fs::symlink(outside.join("kept"), temp.path().join("root/file")).unwrap();
        assert!(root.directory("link").is_err());
        assert!(root.ensure("link").is_err());
        assert!(root.file("file", false).is_err());
        assert!(root.ensure_file("file").is_err());
        root.remove("link").unwrap();
        assert!(outside.join("kept").exists());
    }
}
