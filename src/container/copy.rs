//! Copies a directory with all that is in it: owners, modes, times, extended attributes, links,
//! devices. For the contents that an image has where a volume goes.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
    chownat, fchmod, fstat, futimens, mkdirat, mknodat, openat, readlinkat, statat, symlinkat,
};

/// Longest list of extended attributes, and longest value (xattr(7)).
const XATTR_BYTES_MAX: usize = 64 << 10;

/// Makes `to`, an empty directory, equal to `from`. Hard links become files of their own, as in
/// Docker.
pub(super) fn directory(from: OwnedFd, to: OwnedFd) -> io::Result<()> {
    // A list instead of recursion: the depth is the image's.
    let mut rest = vec![(from, to)];
    while let Some((from, to)) = rest.pop() {
        for entry in Dir::read_from(&from)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            rest.extend(one(&from, &to, name)?);
        }
        finish(&from, &to, &fstat(&from)?)?;
    }
    Ok(())
}

/// Copies one entry; a directory is made and given back to be filled.
fn one(from: &OwnedFd, to: &OwnedFd, name: &CStr) -> io::Result<Option<(OwnedFd, OwnedFd)>> {
    let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    match kind {
        FileType::Directory => {
            mkdirat(to, name, Mode::from_raw_mode(0o700))?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let pair = (
                openat(from, name, flags, Mode::empty())?,
                openat(to, name, flags, Mode::empty())?,
            );
            return Ok(Some(pair));
        }
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
        }
    }
    Ok(None)
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
    let time = |seconds: i64, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or_default(),
    };
    futimens(
        to,
        &Timestamps {
            last_access: time(stat.st_atime, stat.st_atime_nsec),
            last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
        },
    )?;
    Ok(())
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
