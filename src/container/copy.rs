//! Copies a directory with all that is in it: owners, modes, times, extended attributes, links,
//! devices. For the contents that an image has where a volume goes.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
    chmodat, chownat, fchmod, fstat, futimens, mkdirat, mknodat, openat, readlinkat, statat,
    symlinkat,
};

/// Longest list of extended attributes, and longest value (xattr(7)).
const XATTR_BYTES_MAX: usize = 64 << 10;

/// A directory, by the names on the way to it.
type Way = Vec<CString>;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Makes `to`, an empty directory, equal to `from`. Hard links become files of their own, as in
/// Docker.
pub(super) fn directory(from: OwnedFd, to: OwnedFd) -> io::Result<()> {
    // A list instead of recursion, and names instead of open directories: depth and width are the
    // image's, and descriptors are few.
    let mut rest: Vec<Way> = vec![Vec::new()];
    while let Some(way) = rest.pop() {
        let (from, to) = (walk(&from, &way)?, walk(&to, &way)?);
        for entry in Dir::read_from(&from)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if one(&from, &to, name)? == FileType::Directory {
                rest.push([&way[..], &[name.to_owned()]].concat());
            }
        }
        finish(&from, &to, &fstat(&from)?)?;
    }
    Ok(())
}

/// Opens the directory at the end of `way`, never through a symbolic link.
fn walk(root: &OwnedFd, way: &Way) -> io::Result<OwnedFd> {
    let mut at = openat(root, c".", DIRECTORY, Mode::empty())?;
    for name in way {
        at = openat(&at, name, DIRECTORY, Mode::empty())?;
    }
    Ok(at)
}

/// Copies one entry, a directory without what is in it; gives its kind.
fn one(from: &OwnedFd, to: &OwnedFd, name: &CStr) -> io::Result<FileType> {
    let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    match kind {
        FileType::Directory => mkdirat(to, name, Mode::from_raw_mode(0o700))?,
        FileType::RegularFile => {
            let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let source = openat(from, name, OFlags::RDONLY | flags, Mode::empty())?;
            let new = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | flags;
            let mut target = File::from(openat(to, name, new, Mode::from_raw_mode(0o600))?);
            io::copy(&mut File::from(source.try_clone()?), &mut target)?;
            finish(&source, &target.into(), &stat)?;
        }
        FileType::Symlink => {
            let target = readlinkat(from, name, Vec::new())?;
            symlinkat(&target, to, name)?;
            own(to, name, &stat)?;
        }
        other => {
            mknodat(to, name, other, mode, stat.st_rdev)?;
            own(to, name, &stat)?;
            // Past the caller's umask, and past what a change of owner takes away.
            chmodat(to, name, mode, AtFlags::empty())?;
        }
    }
    Ok(kind)
}

fn own(dir: &OwnedFd, name: &CStr, stat: &Stat) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

/// Owner first, because a change of it takes set-id bits away; times last.
fn finish(from: &OwnedFd, to: &OwnedFd, stat: &Stat) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::fchown(to, Some(uid), Some(gid))?;
    fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    attributes(from, to)?;
    futimens(
        to,
        &Timestamps {
            last_access: time(stat.st_atime, stat.st_atime_nsec),
            last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
        },
    )?;
    Ok(())
}

/// The nanoseconds of a `Stat` are signed or not, as rustix calls the kernel or the C library.
fn time(seconds: i64, nanoseconds: impl TryInto<i64>) -> Timespec {
    Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.try_into().unwrap_or_default(),
    }
}

fn attributes(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    let mut names = vec![0_u8; XATTR_BYTES_MAX];
    let length = match rustix::fs::flistxattr(&from, &mut names) {
        Ok(length) => length,
        Err(rustix::io::Errno::NOTSUP) => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    let mut value = vec![0_u8; XATTR_BYTES_MAX];
    for name in names[..length].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let name = CString::new(name)?;
        let length = rustix::fs::fgetxattr(&from, &name, &mut value)?;
        rustix::fs::fsetxattr(&to, &name, &value[..length], XattrFlags::empty())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn depth_and_width_are_the_image_s() {
        let place = tempfile::tempdir().unwrap();
        let (from, to) = (place.path().join("from"), place.path().join("to"));
        std::fs::create_dir_all(&to).unwrap();
        // More of either than a process may have open by default.
        for n in 0..1100 {
            std::fs::create_dir_all(from.join(format!("wide/{n}"))).unwrap();
        }
        std::fs::create_dir_all(from.join("d/".repeat(1100))).unwrap();
        let opened = |path| OwnedFd::from(File::open(path).unwrap());
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let soft = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        assert!(open() < 200 && soft.current.is_none_or(|n| n > 200));
        // The limit is the process's, which other tests share: nobody else opens that many.
        let most = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::SeqCst) {
                    most.fetch_max(open(), std::sync::atomic::Ordering::SeqCst);
                }
            });
            directory(opened(&from), opened(&to)).unwrap();
            done.store(true, std::sync::atomic::Ordering::SeqCst);
        });
        assert!(most.load(std::sync::atomic::Ordering::SeqCst) < 500);
        assert!(to.join("wide/1099").is_dir());
        assert!(to.join("d/".repeat(1100)).is_dir());
    }

    #[test]
    fn a_copy_is_equal() {
        let place = tempfile::tempdir().unwrap();
        let (from, to) = (place.path().join("from"), place.path().join("to"));
        std::fs::create_dir_all(from.join("a/b")).unwrap();
        std::fs::create_dir(&to).unwrap();
        std::fs::write(from.join("a/b/file"), "text").unwrap();
        symlink("nowhere", from.join("a/link")).unwrap();
        let open = PermissionsExt::from_mode(0o4751);
        std::fs::set_permissions(from.join("a/b/file"), open).unwrap();
        std::fs::set_permissions(&from, PermissionsExt::from_mode(0o750)).unwrap();
        let fifo = CString::new("fifo").unwrap();
        let dir = File::open(&from).unwrap();
        mknodat(&dir, &fifo, FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
        let opened = |path| OwnedFd::from(File::open(path).unwrap());
        directory(opened(&from), opened(&to)).unwrap();
        for name in ["", "a", "a/b", "a/b/file", "a/link", "fifo"] {
            let (a, b) = (from.join(name), to.join(name));
            let (a, b) = (a.symlink_metadata().unwrap(), b.symlink_metadata().unwrap());
            assert_eq!(
                (a.mode(), a.uid(), a.gid()),
                (b.mode(), b.uid(), b.gid()),
                "{name}"
            );
            if !a.is_symlink() && name != "fifo" {
                assert_eq!(
                    (a.mtime(), a.mtime_nsec()),
                    (b.mtime(), b.mtime_nsec()),
                    "{name}"
                );
            }
        }
        assert_eq!(std::fs::read(to.join("a/b/file")).unwrap(), b"text");
        assert_eq!(
            std::fs::read_link(to.join("a/link")).unwrap().to_str(),
            Some("nowhere")
        );
    }
}
