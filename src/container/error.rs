//! Why a container could not be made, reached or ended.

use std::io;
use std::path::{Path, PathBuf};

use crate::container::command::NoCommand;
use crate::container::image::DefaultsError;
use crate::container::signal::NoSignal;
use crate::container::user::UserError;
use crate::container::volume::VolumeError;
use crate::mount::mountpoint::MountpointError;
use crate::runtime::Refusal;
use crate::runtime::capabilities::UnknownCapability;
use crate::runtime::config::ConfigError;

/// Why a container could not be made, reached or ended; each is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something of this machine.
    #[error("{path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Two containers of one name.
    #[error(
        "the name `{0}` is taken by container {1}; remove that (rsmount rm {0}) or give another"
    )]
    NameTaken(String, String),
    /// Not a name.
    #[error("`{0}` cannot be a name; take letters and digits, and _ . - behind the first")]
    BadName(String),
    /// No such container.
    #[error("there is no container `{0}` (rsmount ps -a lists them)")]
    NoSuchContainer(String),
    /// More than one id begins so.
    #[error("more than one container begins with `{0}`; give more of its id")]
    Ambiguous(String),
    /// It would have to run.
    #[error("container `{0}` does not run (rsmount ps lists those that do)")]
    NotRunning(String),
    /// It may not run.
    #[error("container `{0}` runs; stop it first (rsmount stop {0}), or use rm -f")]
    Running(String),
    /// It does not end.
    #[error(
        "container `{0}` does not end although it was killed; it may wait for a disk or a network \
         file system: look at it (ps -o stat,wchan), and try again"
    )]
    Undying(String),
    /// No runtime program.
    #[error("no container runtime is installed; install crun, runc or youki")]
    NoRuntime,
    /// The runtime that was asked for is not there.
    #[error("the runtime `{0}` is not installed; leave --runtime out, or name crun, runc or youki")]
    NoSuchRuntime(String),
    /// Containers want more than an ordinary user has.
    #[error(
        "running containers needs root here (an ordinary user can mount the image, and hand the \
         mount to podman run --rootfs MOUNTPOINT:O)"
    )]
    NotRoot,
    /// The runtime said no.
    #[error(transparent)]
    Refusal(#[from] Refusal),
    /// There is nothing to run.
    #[error(transparent)]
    NoCommand(#[from] NoCommand),
    /// Nobody of that name.
    #[error(transparent)]
    User(#[from] UserError),
    /// A volume is wrong.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A capability is wrong.
    #[error(transparent)]
    Capability(#[from] UnknownCapability),
    /// A signal is wrong.
    #[error(transparent)]
    Signal(#[from] NoSignal),
    /// The runtime's configuration cannot be made.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] crate::cache::CacheError),
    /// The image's configuration cannot be used.
    #[error(transparent)]
    Defaults(#[from] DefaultsError),
    /// The mount is in the way.
    #[error(transparent)]
    Mountpoint(#[from] MountpointError),
    /// The digest of the mount makes no sense.
    #[error("{0}")]
    Digest(#[from] crate::oci::digest::DigestError),
    /// The working directory cannot be made.
    #[error("working directory {0}: {1}; give another one (-w DIR)")]
    WorkingDirectory(PathBuf, #[source] io::Error),
    /// The bundle's directory is somebody else's.
    #[error("{0}: belongs to another user, who could reach the image through it; give a new one")]
    BundleOfAnother(PathBuf),
    /// The bundle's directory is in use.
    #[error("{0}: exists already and is not empty; give a new directory")]
    BundleInTheWay(PathBuf),
}

impl Error {
    /// Puts a path on an I/O error.
    pub(crate) fn at(path: &Path, source: io::Error) -> Error {
        Error::Io {
            path: path.to_owned(),
            source,
        }
    }

    /// The exit code of Docker's `run` for it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Refusal(refusal) => refusal.exit_code(),
            _ => 125,
        }
    }
}
