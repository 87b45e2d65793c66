//! A writable mount: the kernel's overlayfs, or fuse-overlayfs, above an image that is mounted out of
//! sight.
//!
//! Every option is spelled out, never left to the kernel's defaults: an upper directory with
//! redirects or metadata-only copies could not be committed without the image's bytes. The overlay
//! holds the image's mount by itself once it is there, so that the image can be taken out of sight,
//! and ends with the overlay.
//!
//! Who may do what: the kernel's overlayfs wants `CAP_SYS_ADMIN` in the user namespace of the mounts
//! (root, or `unshare -Ur -m`, where the changes are marked in `user.overlay.*` instead of
//! `trusted.overlay.*`); who has only `fusermount3` gets fuse-overlayfs.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags};

use crate::fuse;
use crate::mount::mountpoint::OVERLAY_SOURCE;
use crate::mount::privilege;
use crate::mount::request::MountRequest;
use crate::mount::upper::{Dialect, UpperDir};

/// Longest message that is read from the kernel's log of one mount.
const LOG_BYTES_MAX: usize = 8 << 10;

/// Why there is no writable mount.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// The kernel's overlayfs said no.
    #[error(
        "cannot mount overlayfs above the image: {said} (does the file system of {dir} allow it? \
         overlays, NFS and FUSE do not)"
    )]
    Kernel {
        /// The upper directory.
        dir: PathBuf,
        /// The kernel's words.
        said: String,
    },
    /// fuse-overlayfs said no.
    #[error("cannot mount fuse-overlayfs above the image: {0}")]
    Fuse(String),
    /// None of the three ways is open.
    #[error(
        "a writable mount needs one of three: root (this is user {user}); a user namespace with \
         its own mounts (this is none: unshare -Ur -m rsmount …); or fuse-overlayfs ({fuse})"
    )]
    NoWay {
        /// Who asked.
        user: u32,
        /// What is wrong with fuse-overlayfs.
        fuse: String,
    },
    /// The changes were made by somebody with other rights.
    #[error(
        "{0}: its changes were made as root, whose marks cannot be read here; mount it as root"
    )]
    NeedsRoot(PathBuf),
    /// Something of this machine.
    #[error("{0}: {1}")]
    Io(PathBuf, #[source] io::Error),
}

/// Puts an overlay at the request's mountpoint: above the image at [`UpperDir::lower`], whose mount
/// must be served by now.
pub(super) fn mount(request: &MountRequest, upper: &UpperDir) -> Result<(), OverlayError> {
    if upper.is_fresh() {
        copy_root(&upper.lower(), &upper.upper())
            .map_err(|e| OverlayError::Io(upper.upper(), e))?;
    }
    let source = format!("{OVERLAY_SOURCE}{}", fuse::shown_source(&request.image));
    let refused = |said: String| OverlayError::Kernel {
        dir: upper.dir().to_owned(),
        said,
    };
    let user_xattr = match upper.about().map(|about| about.dialect) {
        Some(Dialect::Fuse) | None => return mount_by_program(request, upper),
        Some(Dialect::User) => true,
        Some(Dialect::Trusted) => false,
    };
    let context = open_overlayfs().map_err(|e| match e {
        Errno::NODEV => refused("this kernel has no overlayfs (modprobe overlay)".to_owned()),
        e => refused(e.to_string()),
    })?;
    configure(&context, upper, &source, user_xattr)
        .and_then(|()| attach(&context, request))
        .map_err(|e| refused(said_by_kernel(context).unwrap_or_else(|| e.to_string())))
}

/// Who will write the changes, or has done so before.
pub(super) fn dialect(upper: &UpperDir) -> Result<Dialect, OverlayError> {
    let here = match (open_overlayfs(), privilege::in_user_namespace()) {
        (Err(Errno::PERM), _) => Dialect::Fuse,
        (_, true) => Dialect::User,
        (_, false) => Dialect::Trusted,
    };
    match (upper.about().map(|about| about.dialect), here) {
        (None, here) => Ok(here),
        (Some(Dialect::Trusted), Dialect::User | Dialect::Fuse) => {
            Err(OverlayError::NeedsRoot(upper.dir().to_owned()))
        }
        (Some(known), _) => Ok(known),
    }
}

fn open_overlayfs() -> rustix::io::Result<OwnedFd> {
    rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
}

/// The root directory of the mount is the upper directory itself: it has to look like the image's.
fn copy_root(from: &Path, to: &Path) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let meta = from.metadata()?;
    // An ordinary user cannot give it away; then it stays theirs, as all that they make.
    let _not_ours_to_give = std::os::unix::fs::chown(to, Some(meta.uid()), Some(meta.gid()));
    std::fs::set_permissions(to, meta.permissions())?;
    let mut names = vec![0; 64 << 10];
    let len = rustix::fs::llistxattr(from, &mut names[..])?;
    let mut value = vec![0; 64 << 10];
    for name in names[..len].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let len = rustix::fs::lgetxattr(from, name, &mut value[..])?;
        let flags = rustix::fs::XattrFlags::empty();
        if let Err(error) = rustix::fs::lsetxattr(to, name, &value[..len], flags) {
            tracing::debug!(%error, "an extended attribute of the root is not shown");
        }
    }
    let times = std::fs::FileTimes::new()
        .set_accessed(meta.accessed()?)
        .set_modified(meta.modified()?);
    File::open(to)?.set_times(times)
}

fn configure(
    context: &OwnedFd,
    upper: &UpperDir,
    source: &str,
    user_xattr: bool,
) -> rustix::io::Result<()> {
    let fs = context.as_fd();
    let set = |key: &str, value: &str| rustix::mount::fsconfig_set_string(fs, key, value);
    set("source", source)?;
    set_directory(fs, "lowerdir", &upper.lower())?;
    set_directory(fs, "upperdir", &upper.upper())?;
    set_directory(fs, "workdir", &upper.work())?;
    set("redirect_dir", "nofollow")?;
    set("metacopy", "off")?;
    set("index", "off")?;
    set("xino", "on")?;
    if user_xattr {
        rustix::mount::fsconfig_set_flag(fs, "userxattr")?;
    }
    rustix::mount::fsconfig_create(fs)
}

fn attach(context: &OwnedFd, request: &MountRequest) -> rustix::io::Result<()> {
    let mut attributes = MountAttrFlags::empty();
    attributes.set(
        MountAttrFlags::MOUNT_ATTR_NOSUID,
        request.suid == Some(false),
    );
    attributes.set(MountAttrFlags::MOUNT_ATTR_NODEV, request.dev == Some(false));
    attributes.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, request.noexec);
    let mount = rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&mount, "", CWD, &request.mountpoint, flags)
}

/// By descriptor where the kernel takes one (6.13), which knows no odd characters and no longest
/// path; else by name.
fn set_directory(
    fs: std::os::fd::BorrowedFd<'_>,
    key: &str,
    path: &Path,
) -> rustix::io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty())?;
    let key_of_one = if key == "lowerdir" { "lowerdir+" } else { key };
    if rustix::mount::fsconfig_set_fd(fs, key_of_one, &directory).is_ok() {
        return Ok(());
    }
    // Overlayfs splits at colons and takes a backslash off before each byte.
    let mut escaped = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        if matches!(byte, b':' | b'\\' | b',') {
            escaped.push(b'\\');
        }
        escaped.push(byte);
    }
    rustix::mount::fsconfig_set_string(fs, key, escaped)
}

/// What the kernel has to say about a context that it refused (fsopen(2): read gives lines that
/// begin with `e `, `w ` or `i `); the first error.
fn said_by_kernel(context: OwnedFd) -> Option<String> {
    let mut line = vec![0; LOG_BYTES_MAX];
    loop {
        // One message a read; ENODATA at the end.
        let len = rustix::io::read(&context, &mut line[..]).ok()?;
        if let Some(said) = line[..len].strip_prefix(b"e ") {
            return Some(String::from_utf8_lossy(said).trim().to_owned());
        }
    }
}

/// fuse-overlayfs serves from the background until it is unmounted. It runs in the upper directory,
/// so that no path has to be escaped for it.
fn mount_by_program(request: &MountRequest, upper: &UpperDir) -> Result<(), OverlayError> {
    if request.suid == Some(true) || request.dev == Some(true) {
        return Err(OverlayError::Fuse(
            "only root may use the options suid and dev; leave them out".to_owned(),
        ));
    }
    // Writes are not held back: what is read from the upper directory is what the mount shows.
    let mut options =
        "lowerdir=lower,upperdir=upper,workdir=work,redirect_dir=off,writeback=0".to_owned();
    if request.noexec {
        options.push_str(",noexec");
    }
    if request.allow_other == Some(true) {
        options.push_str(",allow_other");
    }
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    if !user.is_root() {
        // Who cannot give a file away could change nothing that the image says is root's.
        let (user, group) = (user.as_raw(), group.as_raw());
        options.push_str(&format!(",squash_to_uid={user},squash_to_gid={group}"));
    }
    let run = Command::new("fuse-overlayfs")
        .current_dir(upper.dir())
        .arg("-o")
        .arg(options)
        .arg(&request.mountpoint)
        .output();
    let no_way = |fuse: String| OverlayError::NoWay {
        user: user.as_raw(),
        fuse,
    };
    match run {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let mut lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
            let said = lines.next_back().unwrap_or("it said nothing");
            Err(no_way(said.to_owned()))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(no_way(
            "not found; install it, Debian's package is fuse-overlayfs".to_owned(),
        )),
        Err(e) => Err(no_way(e.to_string())),
    }
}
