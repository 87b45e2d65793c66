//! Which engine serves a mount, and getting it going: FUSE for the whole tree, or the kernel's EROFS
//! for the tree and FUSE for the bytes of layers that are not whole.
//!
//! Either way the outcome is a mount in its place and a thread that serves it until whoever unmounts
//! it. With the kernel engine the chain is: the mount holds the EROFS file system, that holds the
//! files of the layers, these hold the FUSE file system, and its end ends the session. So nothing has
//! to be cleaned up, whoever dies first.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::mount::MountAttrFlags;
use serde::{Deserialize, Serialize};

use crate::cache::{Cache, StoredLayer};
use crate::erofs::Device;
use crate::fs::{ImageFs, LayerFiles};
use crate::fuse::{Detached, Eraser, MountFlags, Session, Unmounter};
use crate::mount::erofs_mount::Erofs;
use crate::mount::error::Error;
use crate::mount::image_file::ImageFile;
use crate::mount::readahead::{self, ReadAhead};
use crate::mount::request::{Engine, MountRequest};
use crate::mount::{erofs_mount, mountpoint, refused, selftest};
use crate::oci::Digest;

/// A mount in its place.
pub(crate) struct Mounted {
    pub(crate) answerer: Answerer,
    pub(crate) unmounter: Option<Unmounter>,
    pub(crate) choice: Choice,
    pub(crate) behind: Behind,
}

/// What answers the kernel's requests.
#[derive(Debug)]
pub(crate) enum Answerer {
    /// Not yet; it tells the kernel of so many inodes.
    Later(Box<Session>, u64),
    /// Already.
    Now(Answering),
}

/// What answers.
#[derive(Debug)]
pub(crate) struct Answering {
    /// Ends when the mount does.
    pub(crate) thread: JoinHandle<io::Result<()>>,
    /// The device, for the keeper.
    pub(crate) fuse: OwnedFd,
    pub(crate) eraser: Eraser,
}

impl Answerer {
    /// Answers from now on at the latest.
    pub(crate) fn answer(self) -> io::Result<Answering> {
        let (session, inodes) = match self {
            Answerer::Now(answering) => return Ok(answering),
            Answerer::Later(session, inodes) => (session, inodes),
        };
        let (fuse, eraser) = (session.device()?, session.eraser(inodes));
        let thread = std::thread::Builder::new()
            .name("serve".into())
            .spawn(|| session.serve())?;
        Ok(Answering {
            thread,
            fuse,
            eraser,
        })
    }
}

/// The file systems of a mount, which may have others laid over them.
#[derive(Debug, Clone)]
pub(crate) struct Behind {
    /// `MAJOR:MINOR` of the FUSE file system.
    pub(crate) connection: Option<String>,
    /// Present with the kernel engine.
    pub(crate) kernel: Option<Devices>,
    /// Of bytes that are local.
    read_ahead: ReadAhead,
}

impl Behind {
    /// Also what another worker has handed over.
    pub(super) fn of(
        read_ahead: ReadAhead,
        connection: Option<String>,
        kernel: Option<Devices>,
    ) -> Behind {
        Behind {
            connection,
            kernel,
            read_ahead,
        }
    }

    /// Where reading ahead costs nothing any more.
    pub(crate) fn raise_read_ahead(&self) {
        let kernel = self.kernel.as_ref();
        let backing = kernel.and_then(|kernel| kernel.backing.as_ref());
        for device in self.connection.iter().chain(backing) {
            self.read_ahead.raise(device);
        }
    }
}

/// What the kernel engine of a mount has begun with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Devices {
    /// `MAJOR:MINOR` of the EROFS file system.
    pub(crate) erofs: Option<String>,
    /// The name of its backing device, where it could be told.
    #[serde(default)]
    pub(crate) backing: Option<String>,
    /// Digest of where everything is in the devices: who goes on with them must serve the same.
    pub(crate) plan: Digest,
}

/// Which engine serves, and why it is that one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// `fuse` or `kernel`.
    pub engine: String,
    /// For people.
    pub engine_why: String,
}

impl Choice {
    pub(crate) fn is_kernel(&self) -> bool {
        self.engine == "kernel"
    }

    fn new(engine: &str, why: impl Into<String>) -> Choice {
        Choice {
            engine: engine.to_owned(),
            engine_why: why.into(),
        }
    }
}

/// What an image is mounted from.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) fs: Arc<ImageFs>,
    pub(crate) cache: Cache,
    /// The layers whose index was made here, base first.
    pub(crate) stored: Vec<Option<StoredLayer>>,
    /// Names of the layers' address spaces.
    pub(crate) diff_ids: Vec<Digest>,
    /// Digest of the manifest, when all of the tree was made here.
    pub(crate) key: Option<Digest>,
}

impl Parts {
    pub(crate) fn new(
        fs: &Arc<ImageFs>,
        cache: &Cache,
        stored: &[Option<StoredLayer>],
        manifest: &Digest,
        diff_ids: Vec<Digest>,
    ) -> Parts {
        let all_own = stored.iter().all(Option::is_some);
        Parts {
            fs: fs.clone(),
            cache: cache.clone(),
            stored: stored.to_vec(),
            diff_ids,
            key: all_own.then(|| manifest.clone()),
        }
    }
}

/// Mounts the image at `place`, by the engine that was asked for or that is possible.
pub(crate) fn mount(request: &MountRequest, place: &Path, parts: &Parts) -> Result<Mounted, Error> {
    let read_ahead = ReadAhead::beside(&request.cache_dir);
    let why = match request.engine {
        Engine::Fuse => "it was asked for".to_owned(),
        wanted => match by_kernel(request, place, parts, read_ahead) {
            Ok(mounted) => return Ok(mounted),
            Err(why) if wanted == Engine::Kernel => return Err(Error::Engine(why)),
            Err(why) => why,
        },
    };
    tracing::info!(why, "the fuse engine serves");
    by_fuse(request, place, &parts.fs, (why, read_ahead))
}

/// What the image's own mount lets its files do.
struct Shown {
    suid: bool,
    dev: bool,
    noexec: bool,
}

impl Shown {
    /// Below an overlay nobody but the overlay sees the image.
    fn of(request: &MountRequest) -> Shown {
        let shown = request.upper.is_none();
        Shown {
            suid: shown && request.suid.unwrap_or(false),
            dev: shown && request.dev.unwrap_or(false),
            noexec: shown && request.noexec,
        }
    }
}

fn by_fuse(
    request: &MountRequest,
    place: &Path,
    fs: &Arc<ImageFs>,
    (why, read_ahead): (String, ReadAhead),
) -> Result<Mounted, Error> {
    let root = rustix::process::geteuid().is_root();
    let Shown { suid, dev, noexec } = Shown::of(request);
    let flags = MountFlags {
        suid,
        dev,
        noexec,
        allow_other: request.allow_other.unwrap_or(root),
    };
    let mounted = Session::mount(fs.clone(), place, &request.image, flags);
    let mut session = mounted.map_err(|source| Error::Fuse {
        mountpoint: request.mountpoint.clone(),
        hint: refused::hint(&source),
        source,
    })?;
    let unmounter = session.unmounter();
    let behind = Behind::of(read_ahead, mountpoint::device(place), None);
    if fs.content().allows_read_ahead() {
        // What is agreed at INIT is bounded by the kernel's 128 KiB.
        behind.raise_read_ahead();
    }
    Ok(Mounted {
        answerer: Answerer::Later(Box::new(session), fs.totals().files),
        unmounter: Some(unmounter),
        choice: Choice::new("fuse", why),
        behind,
    })
}

/// The error says why it cannot be, for people.
fn by_kernel(
    request: &MountRequest,
    place: &Path,
    parts: &Parts,
    read_ahead: ReadAhead,
) -> Result<Mounted, String> {
    if !rustix::process::geteuid().is_root() {
        return Err("only root may mount EROFS".to_owned());
    }
    if request.allow_other == Some(false) {
        return Err("EROFS cannot keep other users out (noallow_other)".to_owned());
    }
    if parts.key.is_none() {
        // Should the pack lie, what EROFS remembers for who has it open could not be taken back.
        return Err("the image is known by a pack that is not proven yet".to_owned());
    }
    selftest::run(&parts.cache)?;
    let image = image_file(parts)?;
    let files = LayerFiles::new(parts.fs.clone(), &image.devices, &image.composed);
    let Detached { session, mount } = Session::layers(Arc::new(files))
        .map_err(|e| format!("FUSE cannot be mounted for the layers: {e}"))?;
    // EROFS looks at its devices while it is mounted.
    let answerer = Answerer::Later(Box::new(session), image.inodes());
    let answering = answerer.answer().map_err(|e| format!("no thread: {e}"))?;
    let attached = attach((request, place), parts, &image, &mount, read_ahead);
    let connection = device_of(&mount);
    drop(mount);
    let devices = match attached {
        Ok(devices) => devices,
        Err(why) => {
            // Nothing holds the FUSE file system any more, so its session ends.
            drop(answering.fuse);
            let _ended = answering.thread.join();
            return Err(why);
        }
    };
    Ok(Mounted {
        answerer: Answerer::Now(answering),
        unmounter: Some(Unmounter::directly(place)),
        choice: Choice::new("kernel", "the kernel has passed the self-test"),
        behind: Behind::of(read_ahead, connection, Some(devices)),
    })
}

/// Goes on with the devices of a mount whose worker has died: the session, and how many inodes it has.
pub(super) fn resume(
    parts: &Parts,
    devices: &Devices,
    fuse: &OwnedFd,
) -> Result<(Session, u64), Error> {
    let image = image_file(parts).map_err(Error::Engine)?;
    if image.plan() != devices.plan {
        let why = "the layers would not be where the mount has them".to_owned();
        return Err(Error::Engine(why));
    }
    let files = LayerFiles::new(parts.fs.clone(), &image.devices, &image.composed);
    let session = Session::resume_layers(Arc::new(files), fuse)
        .map_err(Error::io("cannot go on with the device"))?;
    Ok((session, image.inodes()))
}

fn image_file(parts: &Parts) -> Result<ImageFile, String> {
    let stored = parts.key.as_ref();
    if let Some(image) = stored.and_then(|key| ImageFile::stored(&parts.cache, key)) {
        return Ok(image);
    }
    let sizes = parts.fs.content().address_sizes();
    let device = |(diff_id, bytes): (&Digest, u64)| Device {
        tag: diff_id.to_string(),
        bytes,
    };
    let layers = parts.diff_ids.iter().zip(sizes).map(device).collect();
    ImageFile::make(&parts.cache, stored, parts.fs.tree(), layers).map_err(|e| e.to_string())
}

/// Mounts EROFS over the files of the layers.
fn attach(
    (request, place): (&MountRequest, &Path),
    parts: &Parts,
    image: &ImageFile,
    files: &OwnedFd,
    read_ahead: ReadAhead,
) -> Result<Devices, String> {
    let reads_ahead = parts.fs.content().allows_read_ahead();
    if reads_ahead && let Some(device) = device_of(files) {
        // What EROFS opens keeps the read-ahead that there is now.
        read_ahead.raise(&device);
    }
    let lent = lent(parts, image);
    let own = erofs_mount::path_of(files);
    let device = |n: usize| match lent.get(n) {
        Some(Some(file)) => erofs_mount::path_of(file),
        _ => own.join(n.to_string()),
    };
    let devices: Vec<PathBuf> = (0..image.devices.len()).map(device).collect();
    let shown = Shown::of(request);
    let mut attributes = MountAttrFlags::empty();
    attributes.set(MountAttrFlags::MOUNT_ATTR_NOSUID, !shown.suid);
    attributes.set(MountAttrFlags::MOUNT_ATTR_NODEV, !shown.dev);
    attributes.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, shown.noexec);
    let Erofs { mount, backing } = erofs_mount::mount(&image.file, &devices, attributes)
        .map_err(|e| format!("EROFS cannot be mounted: {e}"))?;
    if let Some(device) = &backing {
        match reads_ahead {
            true => read_ahead.raise(device),
            false => readahead::lower(device),
        }
    }
    erofs_mount::attach(&mount, place)
        .map_err(|e| format!("EROFS cannot be put in its place: {e}"))?;
    Ok(Devices {
        erofs: device_of(&mount),
        backing,
        plan: image.plan(),
    })
}

/// The files of layers that were checked whole in this boot.
fn lent(parts: &Parts, image: &ImageFile) -> Vec<Option<std::fs::File>> {
    let Ok(boot) = selftest::boot() else {
        return Vec::new();
    };
    // Nobody hears what is read of a lent file.
    if parts.fs.content().is_learning() {
        return Vec::new();
    }
    let lent = |(n, stored): (usize, &Option<StoredLayer>)| {
        let stored = stored.as_ref().filter(|_| image.is_plain(n))?;
        let file = stored.lendable(&boot)?;
        tracing::debug!(layer = %stored.blob(), "the kernel reads the cache's file itself");
        Some(file)
    };
    parts.stored.iter().enumerate().map(lent).collect()
}

/// `MAJOR:MINOR` of the file system that `of` is on.
fn device_of(of: impl AsFd) -> Option<String> {
    let device = rustix::fs::fstat(of).ok()?.st_dev;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    Some(format!("{major}:{minor}"))
}
