//! Mountpoints: what may be mounted on, what is mounted there, and how to unmount it.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::UnmountFlags;

use crate::mount::erofs_mount::SOURCE_END;
use crate::mount::notify;
use crate::mount::record;

/// File system type in `/proc/self/mountinfo`.
const FS_TYPE: &[u8] = b"fuse.rsmount";

/// How the source of an overlay of ours begins there.
pub(super) const OVERLAY_SOURCE: &str = "rsmount:";

/// Type of the overlays that fuse-overlayfs makes. It lets nobody choose their source, so ours are
/// known by their records.
const OVERLAY_PROGRAM: &[u8] = b"fuse.fuse-overlayfs";

/// As many links as the kernel follows (path_resolution(7)).
const LINKS_MAX: usize = 40;

/// Why a path cannot be mounted on or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountpointError {
    /// Nothing there.
    #[error("{0}: no such directory; create it first (mkdir -p)")]
    Missing(PathBuf),
    /// Something else there.
    #[error("{0}: not a directory; an image can be mounted on a directory only")]
    NotADirectory(PathBuf),
    /// Already ours.
    #[error("{0}: an image is mounted here already; unmount it first (rsmount umount {0})")]
    AlreadyMounted(PathBuf),
    /// Another process is about to mount there.
    #[error(
        "{0}: another rsmount is mounting an image here just now; wait for it, or choose another \
         directory"
    )]
    BeingMounted(PathBuf),
    /// The server of what is mounted there has died.
    #[error("{0}: a dead mount is in the way; clean it up first (rsmount umount {0})")]
    Dead(PathBuf),
    /// Nothing to unmount.
    #[error("{0}: no image is mounted here (rsmount ps lists what is)")]
    NotMounted(PathBuf),
    /// Mounted, but not by this user.
    #[error("{0}: another user mounted this image; ask them (root may unmount it)")]
    NotYours(PathBuf),
    /// Somebody uses it.
    #[error("{0}: busy; a process has its working directory or a file there (fuser -vm {0})")]
    Busy(PathBuf),
    /// Anything else.
    #[error("{0}: {1}")]
    Io(PathBuf, #[source] io::Error),
}

/// What was found out about a usable mountpoint.
#[derive(Debug)]
pub struct Checked {
    /// Absolute, without links.
    pub path: PathBuf,
    /// Whether something will be hidden.
    pub not_empty: bool,
}

/// Checks that an image can be mounted on `path`.
pub fn check(path: &Path) -> Result<Checked, MountpointError> {
    use MountpointError as E;
    let meta = path.metadata().map_err(|e| match e.raw_os_error() {
        Some(code) if code == rustix::io::Errno::NOENT.raw_os_error() => E::Missing(path.into()),
        Some(code) if code == rustix::io::Errno::NOTDIR.raw_os_error() => {
            E::NotADirectory(path.into())
        }
        Some(code) if code == rustix::io::Errno::NOTCONN.raw_os_error() => E::Dead(path.into()),
        _ => E::Io(path.into(), e),
    })?;
    if !meta.is_dir() {
        return Err(E::NotADirectory(path.into()));
    }
    let path = path.canonicalize().map_err(|e| E::Io(path.into(), e))?;
    if is_mounted(&path) {
        return Err(E::AlreadyMounted(path));
    }
    let not_empty = std::fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_some());
    Ok(Checked { path, not_empty })
}

/// Whether any user gets into the absolute `path`: it and all directories above let everybody through.
pub fn is_reachable(path: &Path) -> bool {
    let lets_through = |dir: &Path| dir.metadata().is_ok_and(|m| m.mode() & 0o001 != 0);
    path.ancestors().all(lets_through)
}

/// Whether one of our file systems is mounted exactly at `path` (absolute, without links).
pub fn is_mounted(path: &Path) -> bool {
    device(path).is_some()
}

/// `MAJOR:MINOR` of our file system that is mounted exactly at `path`, the newest when several are
/// stacked there. From the mount table (proc(5), mountinfo), because stat(2) would ask the mount.
pub(super) fn device(path: &Path) -> Option<String> {
    let table = std::fs::read("/proc/self/mountinfo").ok()?;
    table.rsplit(|b| *b == b'\n').find_map(|line| {
        let mut fields = line.split(|b| *b == b' ');
        let device = fields.nth(2)?;
        let at = fields.nth(1)?;
        let mut fields = fields.skip_while(|f| *f != b"-");
        let (kind, source) = (fields.nth(1)?, fields.next()?);
        let ours = |path| match kind {
            FS_TYPE => true,
            b"erofs" => source.ends_with(SOURCE_END.as_bytes()),
            b"overlay" => source.starts_with(OVERLAY_SOURCE.as_bytes()),
            OVERLAY_PROGRAM => record::is_writable(path),
            _ => false,
        };
        (unescape(at) == path.as_os_str().as_bytes() && ours(path))
            .then(|| String::from_utf8_lossy(device).into_owned())
    })
}

/// Whether some overlay in the mount table writes to `path` (absolute, without links), whoever
/// mounted it.
pub(super) fn is_upper_of_a_mount(path: &Path) -> bool {
    let Ok(table) = std::fs::read("/proc/self/mountinfo") else {
        return false;
    };
    let option = [b"upperdir=", path.as_os_str().as_bytes()].concat();
    let options_of = |line: &[u8]| line.rsplit(|b| *b == b' ').next().map(<[u8]>::to_vec);
    let mut all = table.split(|b| *b == b'\n').filter_map(options_of);
    // A comma in a path is escaped, so that this splits at options only.
    all.any(|options| options.split(|b| *b == b',').any(|o| unescape(o) == option))
}

/// Why there is no record of a mount at `path`.
pub fn unknown(path: &Path) -> MountpointError {
    if is_mounted(path) {
        MountpointError::NotYours(path.into())
    } else {
        MountpointError::NotMounted(path.into())
    }
}

/// Undoes the octal escapes of mountinfo (proc(5)).
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let code = (byte == b'\\').then(|| tail.get(..3)).flatten();
        let code = code.and_then(|d| std::str::from_utf8(d).ok());
        match code.and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(escaped) => {
                out.push(escaped);
                rest = &tail[3..];
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

/// An absolute form of `path` without links that never asks the file system that is mounted there,
/// whose server may be dead: links are read one by one.
pub fn absolute(path: &Path) -> io::Result<PathBuf> {
    let mut path = std::path::absolute(path)?;
    for _ in 0..LINKS_MAX {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            break;
        };
        let Ok(parent) = parent.canonicalize() else {
            break;
        };
        let here = parent.join(name);
        match std::fs::read_link(&here) {
            Ok(target) => path = parent.join(target),
            Err(_) => return Ok(here),
        }
    }
    Ok(path)
}

/// Unmounts what is mounted at `path`, as root directly, else through fusermount3. With `lazy`, a
/// busy mount is detached and ends when its last user does.
pub fn unmount(path: &Path, lazy: bool) -> Result<(), MountpointError> {
    use MountpointError as E;
    if !is_mounted(path) {
        return Err(E::NotMounted(path.into()));
    }
    let flags = if lazy {
        UnmountFlags::DETACH
    } else {
        UnmountFlags::empty()
    };
    match rustix::mount::unmount(path, flags | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::BUSY) => Err(E::Busy(path.into())),
        Err(rustix::io::Errno::PERM) => fusermount(path, lazy),
        Err(e) => Err(E::Io(path.into(), e.into())),
    }
}

/// Ends the mount at `path` at once, whoever uses it: every request fails from now on. `device` is the
/// image's own (`MAJOR:MINOR`), which may lie below the overlay of a writable mount.
pub(crate) fn abort(path: &Path, device: Option<&str>) {
    if let Some(device) = device
        && let Err(error) = abort_connection(device)
    {
        tracing::warn!(%error, "whoever has a file open may go on reading");
    }
    let flags = UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    if let Err(error) = rustix::mount::unmount(path, flags)
        && let Err(also) = fusermount(path, true)
    {
        tracing::error!(%error, %also, "the mount could not be ended");
    }
}

/// By the control file system of FUSE (the kernel's Documentation/filesystems/fuse), which needs no
/// place to be mounted at. The connection's number is the minor one of its device.
fn abort_connection(device: &str) -> io::Result<()> {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
    let minor = device.split(':').nth(1).unwrap_or_default();
    // Where it is mounted, as on most systems, an ordinary user may abort their own connections.
    let shown = format!("/sys/fs/fuse/connections/{minor}/abort");
    if std::fs::write(shown, "1").is_ok() {
        return Ok(());
    }
    let fs = rustix::mount::fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&fs)?;
    let attributes = MountAttrFlags::empty();
    let mount = rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let file = rustix::fs::openat(
        &mount,
        format!("{minor}/abort"),
        rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    rustix::io::write(&file, b"1")?;
    Ok(())
}

fn fusermount(path: &Path, lazy: bool) -> Result<(), MountpointError> {
    let flag = if lazy { "-uz" } else { "-u" };
    let mut command = Command::new("fusermount3");
    notify::keep_from(&mut command);
    let output = command.arg(flag).arg("--").arg(path).output();
    let output = output.map_err(|e| MountpointError::Io(path.into(), e))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    // fusermount3 looks only for entries of its caller.
    if said.contains("not found in") {
        return Err(MountpointError::NotYours(path.into()));
    }
    if said.contains("busy") {
        return Err(MountpointError::Busy(path.into()));
    }
    Err(MountpointError::Io(path.into(), io::Error::other(said)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_escapes_are_undone() {
        assert_eq!(unescape(b"/a\\040b\\134"), b"/a b\\");
        assert_eq!(unescape(b"/plain\\"), b"/plain\\");
    }

    #[test]
    fn what_cannot_be_mounted_on_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            check(&dir.path().join("x")),
            Err(MountpointError::Missing(_))
        ));
        std::fs::write(dir.path().join("f"), "").unwrap();
        assert!(matches!(
            check(&dir.path().join("f")),
            Err(MountpointError::NotADirectory(_))
        ));
        assert!(check(dir.path()).unwrap().not_empty);
    }
}
