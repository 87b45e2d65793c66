//! Mounting an EROFS image by fsopen(2): hundreds of devices do not fit the one page of mount(2)'s
//! options. The mount comes into being at no place; who wants it moves it to one.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags};

use crate::mount::record;

/// How the source of our mounts ends in the mount table, where it is all that tells them from others.
pub(super) const SOURCE_END: &str = ".rsmount";

/// Longest message that is read from the kernel's log of one mount.
const LOG_BYTES_MAX: usize = 8 << 10;

/// Mounts `image` with `devices`, base layer first. Needs `CAP_SYS_ADMIN` in the first user namespace.
pub(super) fn mount(
    image: &File,
    devices: &[PathBuf],
    attributes: MountAttrFlags,
) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let source = Source::new(image)?;
    rustix::mount::fsconfig_set_string(&context, "source", &source.path)?;
    for device in devices {
        rustix::mount::fsconfig_set_string(&context, "device", device)?;
    }
    rustix::mount::fsconfig_set_flag(&context, "ro")?;
    if let Err(e) = rustix::mount::fsconfig_create(&context) {
        return Err(match said_by_kernel(&context) {
            Some(said) => io::Error::new(io::Error::from(e).kind(), said),
            None => e.into(),
        });
    }
    let attributes = attributes | MountAttrFlags::MOUNT_ATTR_RDONLY;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    Ok(rustix::mount::fsmount(&context, flags, attributes)?)
}

/// Moves a mount that is at no place to `place`.
pub(super) fn attach(mount: impl AsFd, place: &Path) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, "", CWD, place, flags)?)
}

/// The path by which this process, and the kernel for it, finds an open file.
pub(super) fn path_of(file: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()))
}

/// A name for the image that says in the mount table whose it is; gone when the mount is made.
struct Source {
    path: PathBuf,
}

impl Source {
    fn new(image: &File) -> io::Result<Source> {
        let name = format!("{}{SOURCE_END}", std::process::id());
        let path = record::directory()?.join(name);
        let _left_by_another_of_this_number = std::fs::remove_file(&path);
        symlink(path_of(image), &path)?;
        Ok(Source { path })
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.path);
    }
}

/// The first error that the kernel has to tell about a context that it refused (fsopen(2): each read
/// gives a line that begins with `e `, `w ` or `i `).
fn said_by_kernel(context: &OwnedFd) -> Option<String> {
    let mut line = vec![0; LOG_BYTES_MAX];
    loop {
        // ENODATA at the end.
        let len = rustix::io::read(context, &mut line[..]).ok()?;
        if let Some(said) = line[..len].strip_prefix(b"e ") {
            return Some(String::from_utf8_lossy(said).trim().to_owned());
        }
    }
}
