//! Mounting an EROFS image by fsopen(2): hundreds of devices do not fit the one page of mount(2)'s
//! options. The mount comes into being at no place; who wants it moves it to one.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, FlockOperation};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags};

use crate::mount::record;

/// How the source of our mounts ends in the mount table, where it is all that tells them from others.
pub(super) const SOURCE_END: &str = ".rsmount";

/// Longest message that is read from the kernel's log of one mount.
const LOG_BYTES_MAX: usize = 8 << 10;

/// Where the kernel has the settings of backing devices (Documentation/ABI/testing/sysfs-class-bdi).
const BACKING_DEVICES: &str = "/sys/class/bdi";

/// How often is looked whether another mount is being made, and how long is waited in between: making one takes
/// a few milliseconds.
const ALONE_TRIES: u32 = 50;
const ALONE_PAUSE: Duration = Duration::from_millis(2);

/// An EROFS that is mounted at no place yet.
pub(super) struct Erofs {
    pub(super) mount: OwnedFd,
    /// The name of its backing device, where it can be told.
    pub(super) backing: Option<String>,
}

/// Mounts `image` with `devices`, base layer first. Needs `CAP_SYS_ADMIN` in the first user namespace.
pub(super) fn mount(
    image: &File,
    devices: &[PathBuf],
    attributes: MountAttrFlags,
) -> io::Result<Erofs> {
    let context = rustix::mount::fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let source = Source::new(image)?;
    rustix::mount::fsconfig_set_string(&context, "source", &source.path)?;
    for device in devices {
        rustix::mount::fsconfig_set_string(&context, "device", device)?;
    }
    rustix::mount::fsconfig_set_flag(&context, "ro")?;
    let (created, backing) = backed(|| rustix::mount::fsconfig_create(&context));
    if let Err(e) = created {
        return Err(match said_by_kernel(&context) {
            Some(said) => io::Error::new(io::Error::from(e).kind(), said),
            None => e.into(),
        });
    }
    let attributes = attributes | MountAttrFlags::MOUNT_ATTR_RDONLY;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    let mount = rustix::mount::fsmount(&context, flags, attributes)?;
    Ok(Erofs { mount, backing })
}

/// Makes one EROFS, and tells what its backing device is called: not by its number, as those of other file
/// systems, but `erofs-N` with a number that counts up (`super_setup_bdi` in fs/super.c), and nothing leads
/// from the mount to it. So it is the one that is new; where somebody else mounted at the same time, none is.
fn backed<T>(create: impl FnOnce() -> T) -> (T, Option<String>) {
    let lock = alone();
    let before = of_erofs();
    let created = create();
    let mut new = of_erofs();
    drop(lock);
    new.retain(|name| !before.contains(name));
    let backing = new.pop().filter(|_| new.is_empty());
    (created, backing)
}

/// Keeps others of the same user from mounting EROFS meanwhile. Who does not get the lock soon mounts without
/// it, and at worst cannot tell: a process that was stopped must hold up nobody.
fn alone() -> Option<File> {
    let directory = File::open(record::directory().ok()?).ok()?;
    let lock = || rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok();
    for _ in 0..ALONE_TRIES {
        if lock() {
            return Some(directory);
        }
        std::thread::sleep(ALONE_PAUSE);
    }
    None
}

fn of_erofs() -> Vec<String> {
    let devices = std::fs::read_dir(BACKING_DEVICES).into_iter().flatten();
    let names = devices.filter_map(|device| device.ok()?.file_name().into_string().ok());
    names.filter(|name| name.starts_with("erofs-")).collect()
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
