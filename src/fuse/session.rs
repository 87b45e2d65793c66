//! A mounted session: options, device, threads, end.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use fuser::{Config, MountOption, SessionACL};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags as MountFlagBits, UnmountFlags,
};

use crate::fs::{ImageFs, LayerFiles};
use crate::fuse::adapter::Adapter;
use crate::fuse::layers::Layers;
use crate::fuse::probe::Probe;
use crate::fuse::push::{Foresight, Open, Pusher};

/// Threads that answer requests. Two: one keeps answering while the other copies a large read;
/// more gain nothing on a path that never waits.
const THREADS: usize = 2;

/// Longest source name shown in `/proc/mounts`; fusermount3 refuses very long option strings.
const SOURCE_BYTES_MAX: usize = 200;

/// Mount flags that a person may choose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MountFlags {
    /// Honour set-id bits.
    pub suid: bool,
    /// Honour device nodes.
    pub dev: bool,
    /// Refuse execution.
    pub noexec: bool,
    /// Let other users in (subject to the files' permissions).
    pub allow_other: bool,
}

/// A mounted file system that is not yet served.
#[derive(Debug)]
pub struct Session {
    served: Served,
    mountpoint: PathBuf,
    helped: bool,
    /// Whether pages are pushed.
    pushing: Open,
}

/// What answers.
#[derive(Debug)]
enum Served {
    Image(fuser::Session<Adapter>),
    Layers(fuser::Session<Layers>),
    Probe(fuser::Session<Probe>),
}

/// A mount that is at no place in the tree of mounts, and its session. It ends when the last
/// descriptor of it and of its files is closed.
#[derive(Debug)]
pub struct Detached {
    /// Has to be served before anybody looks into the mount.
    pub session: Session,
    /// The mount.
    pub mount: OwnedFd,
}

/// Ends a session from another thread.
#[derive(Debug)]
pub struct Unmounter {
    way: Way,
}

#[derive(Debug)]
enum Way {
    /// By umount(2).
    Directly(PathBuf),
    /// By fusermount3, as it was mounted.
    Helped(fuser::SessionUnmounter),
}

impl Unmounter {
    /// Ends the mount at `path`, whatever it is, by umount(2).
    pub fn directly(path: &Path) -> Unmounter {
        Unmounter {
            way: Way::Directly(path.to_owned()),
        }
    }

    /// Unmounts. When something on the mount is busy this fails, and nothing has changed.
    pub fn unmount(&mut self) -> io::Result<()> {
        match &mut self.way {
            Way::Directly(path) => Ok(rustix::mount::unmount(&*path, UnmountFlags::NOFOLLOW)?),
            Way::Helped(unmounter) => unmounter.unmount(),
        }
    }
}

/// Makes the kernel forget pages, listings, link targets and attributes.
#[derive(Debug)]
pub struct Eraser {
    notifier: fuser::Notifier,
    inodes: u64,
    pushing: Open,
}

impl Eraser {
    /// Does it, also for files that are open or mapped. Works after the connection was aborted, and
    /// should be called then: before, a read that is under way could put pages back.
    pub fn erase(&self) {
        // Nothing is under way once this can be said, and nothing follows.
        *self.pushing.lock().unwrap_or_else(PoisonError::into_inner) = false;
        for ino in 1..=self.inodes {
            // Of most inodes the kernel knows nothing.
            let _unknown = self.notifier.inval_inode(fuser::INodeNo(ino), 0, 0);
        }
    }
}

impl Session {
    /// Mounts `fs` on `mountpoint`; `source` is what `/proc/mounts` shows as its device. Needs
    /// `CAP_SYS_ADMIN`, or else `fusermount3`.
    pub fn mount(
        fs: Arc<ImageFs>,
        mountpoint: &Path,
        source: &str,
        flags: MountFlags,
    ) -> io::Result<Session> {
        let mut config = config(flags.allow_other);
        let source = shown_source(source);
        let pusher = Arc::new(Pusher::default());
        let adapter = Adapter::new(fs.clone(), pusher.clone());
        let (session, helped) = match mount_directly(mountpoint, &source, flags) {
            Ok(device) => {
                let acl = config.acl;
                let session = fuser::Session::from_fd(adapter, device, acl, config);
                let undo = |_: &io::Error| {
                    let _gone = rustix::mount::unmount(mountpoint, UnmountFlags::DETACH);
                };
                (session.inspect_err(undo)?, false)
            }
            // fusermount3 would ignore them, and the mount be another one than was asked for.
            Err(rustix::io::Errno::PERM) if flags.suid || flags.dev => {
                return Err(io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    "only root may use the options suid and dev; leave them out",
                ));
            }
            Err(rustix::io::Errno::PERM) => {
                config.mount_options = mount_options(source, flags.noexec);
                (fuser::Session::new(adapter, mountpoint, &config)?, true)
            }
            Err(e) => return Err(e.into()),
        };
        let pushing = push(&pusher, &fs, session.as_fd());
        Ok(Session {
            served: Served::Image(session),
            mountpoint: mountpoint.to_owned(),
            helped,
            pushing,
        })
    }

    /// Goes on with a session that another process has begun on `device`: what the two sides agreed on
    /// then holds. The library reads the kernel's first request anew, so it gets one from a socket,
    /// in whose place the device is then put.
    pub fn resume(
        fs: Arc<ImageFs>,
        device: &OwnedFd,
        mountpoint: &Path,
        allow_other: bool,
    ) -> io::Result<Session> {
        let pusher = Arc::new(Pusher::default());
        let adapter = Adapter::new(fs.clone(), pusher.clone());
        let session = resumed(adapter, device, config(allow_other))?;
        Ok(Session {
            pushing: push(&pusher, &fs, session.as_fd()),
            served: Served::Image(session),
            mountpoint: mountpoint.to_owned(),
            helped: false,
        })
    }

    /// The same with [`Session::layers`].
    pub fn resume_layers(files: Arc<LayerFiles>, device: &OwnedFd) -> io::Result<Session> {
        let pusher = Arc::new(Pusher::default());
        let layers = Layers::new(files.clone(), pusher.clone());
        let session = resumed(layers, device, config(false))?;
        Ok(Session {
            pushing: push(&pusher, &files, session.as_fd()),
            served: Served::Layers(session),
            mountpoint: PathBuf::new(),
            helped: false,
        })
    }

    /// Another descriptor of the device, to be kept by somebody else.
    pub fn device(&self) -> io::Result<OwnedFd> {
        let device = match &self.served {
            Served::Image(session) => session.as_fd(),
            Served::Layers(session) => session.as_fd(),
            Served::Probe(session) => session.as_fd(),
        };
        device.try_clone_to_owned()
    }

    /// Mounts the files of layers out of sight, for nobody but this user. Needs `CAP_SYS_ADMIN`.
    pub fn layers(files: Arc<LayerFiles>) -> io::Result<Detached> {
        let pusher = Arc::new(Pusher::default());
        let layers = Layers::new(files.clone(), pusher.clone());
        let mut detached = detached(layers, Served::Layers)?;
        if let Served::Layers(session) = &detached.session.served {
            detached.session.pushing = push(&pusher, &files, session.as_fd());
        }
        Ok(detached)
    }

    /// Mounts the files of [`probe`](crate::fuse::probe) out of sight.
    pub fn probe() -> io::Result<Detached> {
        detached(Probe, Served::Probe)
    }

    /// A handle that ends this session.
    pub fn unmounter(&mut self) -> Unmounter {
        let way = if self.helped {
            Way::Helped(match &mut self.served {
                Served::Image(session) => session.unmount_callable(),
                Served::Layers(session) => session.unmount_callable(),
                Served::Probe(session) => session.unmount_callable(),
            })
        } else {
            Way::Directly(self.mountpoint.clone())
        };
        Unmounter { way }
    }

    /// A handle that makes the kernel forget what it knows of inodes 1 to `inodes`.
    pub fn eraser(&self, inodes: u64) -> Eraser {
        Eraser {
            notifier: match &self.served {
                Served::Image(session) => session.notifier(),
                Served::Layers(session) => session.notifier(),
                Served::Probe(session) => session.notifier(),
            },
            inodes,
            pushing: self.pushing.clone(),
        }
    }

    /// Answers requests until the file system is unmounted by whomever.
    pub fn serve(self) -> io::Result<()> {
        match self.served {
            Served::Image(session) => session.run(),
            Served::Layers(session) => session.run(),
            Served::Probe(session) => session.run(),
        }
    }
}

/// Starts to push; without it everything is asked for.
fn push<F: Foresight>(pusher: &Pusher, source: &Arc<F>, device: BorrowedFd<'_>) -> Open {
    let started = device
        .try_clone_to_owned()
        .and_then(|device| pusher.start(source.clone(), device));
    if let Err(error) = started {
        tracing::debug!(%error, "nothing is pushed");
    }
    pusher.open()
}

fn config(allow_other: bool) -> Config {
    let mut config = Config::default();
    config.acl = if allow_other {
        SessionACL::All
    } else {
        SessionACL::Owner
    };
    config.n_threads = Some(THREADS);
    config
}

/// `FUSE_INIT` as a kernel sends it (include/uapi/linux/fuse.h: `fuse_in_header`, `fuse_init_in`), of
/// one that can do everything: the real one was answered long ago.
fn init_request() -> [u8; 104] {
    const FUSE_INIT: u32 = 26;
    const VERSION: [u32; 2] = [7, 40];
    const READAHEAD_BYTES: u32 = 1 << 20;
    let mut request = [0; 104];
    let words = [
        (0, 104),
        (4, FUSE_INIT),
        (8, 1),
        (40, VERSION[0]),
        (44, VERSION[1]),
        (48, READAHEAD_BYTES),
        (52, u32::MAX),
        (56, u32::MAX),
    ];
    for (at, word) in words {
        request[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    }
    request
}

/// Makes the descriptor number of `place` one of `device`.
#[allow(unsafe_code)]
fn put_in_place_of(place: BorrowedFd<'_>, device: &OwnedFd) -> io::Result<()> {
    // SAFETY: the number belongs to whoever lent `place`, who goes on owning it: it is open before
    // and after, nothing else uses it meanwhile (no thread serves yet), and it is not closed here.
    let mut place = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(place.as_raw_fd()) });
    rustix::io::dup3(device, &mut place, rustix::io::DupFlags::CLOEXEC)?;
    Ok(())
}

fn resumed<F: fuser::Filesystem>(
    fs: F,
    device: &OwnedFd,
    config: Config,
) -> io::Result<fuser::Session<F>> {
    let (kernel, place) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::io::write(&kernel, &init_request())?;
    let acl = config.acl;
    let session = fuser::Session::from_fd(fs, place, acl, config)?;
    put_in_place_of(session.as_fd(), device)?;
    Ok(session)
}

fn detached<F: fuser::Filesystem>(
    fs: F,
    served: fn(fuser::Session<F>) -> Served,
) -> io::Result<Detached> {
    let device = open_device()?;
    let context = rustix::mount::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let set = |key: &str, value: &str| rustix::mount::fsconfig_set_string(&context, key, value);
    set("source", "rsmount")?;
    set("subtype", "rsmount")?;
    set("fd", &device.as_raw_fd().to_string())?;
    set("rootmode", "40000")?;
    set("user_id", &rustix::process::geteuid().as_raw().to_string())?;
    set("group_id", &rustix::process::getegid().as_raw().to_string())?;
    rustix::mount::fsconfig_set_flag(&context, "default_permissions")?;
    rustix::mount::fsconfig_set_flag(&context, "ro")?;
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let session = fuser::Session::from_fd(fs, device, SessionACL::Owner, config(false))?;
    let session = Session {
        served: served(session),
        mountpoint: PathBuf::new(),
        helped: false,
        pushing: Open::default(),
    };
    Ok(Detached { session, mount })
}

fn open_device() -> Result<OwnedFd, rustix::io::Errno> {
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open("/dev/fuse", flags, rustix::fs::Mode::empty())
}

/// What stands in `/proc/mounts` as the device: no control characters, no option separator.
pub fn shown_source(source: &str) -> String {
    let source: String = source
        .chars()
        .filter(|c| !c.is_control() && *c != ',')
        .collect();
    source[..source.floor_char_boundary(SOURCE_BYTES_MAX)].to_owned()
}

/// mount(2) by ourselves: so that the type says `fuse.rsmount`, which is how other tools and
/// `rsmount umount` know our mounts (`fuser` would mount the bare type `fuse`).
fn mount_directly(
    mountpoint: &Path,
    source: &str,
    flags: MountFlags,
) -> Result<OwnedFd, rustix::io::Errno> {
    let device = open_device()?;
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
        device.as_raw_fd(),
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    if flags.allow_other {
        data.push_str(",allow_other");
    }
    let mut mount_flags = MountFlagBits::RDONLY;
    mount_flags.set(MountFlagBits::NOSUID, !flags.suid);
    mount_flags.set(MountFlagBits::NODEV, !flags.dev);
    mount_flags.set(MountFlagBits::NOEXEC, flags.noexec);
    let data = std::ffi::CString::new(data).map_err(|_| rustix::io::Errno::INVAL)?;
    rustix::mount::mount(
        source,
        mountpoint,
        "fuse.rsmount",
        mount_flags,
        Some(&*data),
    )?;
    Ok(device)
}

/// For fusermount3, which grants neither set-id bits nor devices.
fn mount_options(source: String, noexec: bool) -> Vec<MountOption> {
    let mut options = vec![
        MountOption::RO,
        MountOption::DefaultPermissions,
        MountOption::FSName(source),
        MountOption::Subtype("rsmount".to_owned()),
        MountOption::NoSuid,
        MountOption::NoDev,
    ];
    if noexec {
        options.push(MountOption::NoExec);
    }
    options
}
