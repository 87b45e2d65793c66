//! What a worker that is shut in may reach of the file system.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::mount::record;
use crate::mount::request::{MountRequest, Upper};
use crate::oci::{ImageName, Reference};
use crate::registry::{HostsDirs, hosts};

/// What names are looked up with: nss(5), resolv.conf(5), gai.conf(5), and what the C library loads
/// for it. Files, because their directory holds secrets as well.
const NAMES: &[&str] = &[
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/protocols",
    "/etc/networks",
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/etc/localtime",
];

/// Directories that anybody may read: where `resolv.conf` is a link to, certificates, libraries.
const PUBLIC: &[&str] = &[
    "/run/systemd/resolve",
    "/run/NetworkManager",
    "/run/resolvconf",
    "/run/connman",
    "/etc/ssl",
    "/etc/pki",
    "/etc/ca-certificates",
    "/usr",
    "/lib",
    "/lib64",
    "/nix/store",
    "/gnu/store",
    "/proc",
    "/dev/urandom",
    "/dev/random",
];

/// What is set through files: read-ahead, and the end of a connection.
const SWITCHES: &[&str] = &["/dev/null", "/sys/devices/virtual/bdi", "/sys/fs/fuse"];

/// The ways that are open; a directory stands for all below it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Reach {
    pub(super) read: Vec<PathBuf>,
    /// Files that are there may be written.
    pub(super) write: Vec<PathBuf>,
    /// Files may be made and removed.
    pub(super) change: Vec<PathBuf>,
    /// Empty directories may be removed.
    pub(super) empty: Vec<PathBuf>,
}

impl Reach {
    /// What a worker needs that serves `request`; `sources` are images whose registries have the
    /// bytes instead, `upper` the upper directory.
    pub(crate) fn of(request: &MountRequest, sources: &[ImageName], upper: Option<&Path>) -> Reach {
        let mut reach = Reach::default();
        reach
            .read
            .extend(NAMES.iter().chain(PUBLIC).map(PathBuf::from));
        for name in ["SSL_CERT_FILE", "SSL_CERT_DIR"] {
            let paths = std::env::var_os(name).unwrap_or_default();
            reach.read.extend(std::env::split_paths(&paths));
        }
        reach.read.extend(request.ca_files.iter().cloned());
        reach.read.extend(request.hosts.dirs.iter().cloned());
        let named = request.image.parse().ok();
        for name in sources.iter().chain(&named) {
            reach.add_source(name, request);
        }
        reach.write.extend(SWITCHES.iter().map(PathBuf::from));
        reach.change.push(request.cache_dir.clone());
        reach.change.extend(record::directory());
        if let (Some(Upper::Directory(_)), Some(upper)) = (&request.upper, upper) {
            reach.empty.push(upper.to_owned());
        }
        reach
    }

    fn add_source(&mut self, name: &ImageName, request: &MountRequest) {
        match name {
            ImageName::Registry(reference) => {
                // A file that cannot be used is told when the registry is asked.
                let files = hosts::files(reference, &request.hosts);
                self.read.extend(files.into_iter().flatten());
            }
            ImageName::Layout { dir: path, .. }
            | ImageName::DockerArchive { file: path, .. }
            | ImageName::OciArchive { file: path, .. } => self.read.push(path.clone()),
        }
    }
}

/// What says how sources are reached.
#[derive(Debug)]
pub(crate) struct Ways {
    registries: Vec<Reference>,
    hosts: HostsDirs,
}

/// How that is now. Another worker is needed when it has changed:
///
/// - Some programs put a new `resolv.conf` in the place of the old one, and what is in a sandbox sees
///   neither then.
/// - Which hosts are asked for a registry is read once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stamp {
    names: Vec<Option<(u64, u64)>>,
    hosts: Vec<Option<(u64, i64, i64)>>,
}

impl Ways {
    /// To the sources of a mount.
    pub(crate) fn to(sources: Vec<ImageName>, request: &MountRequest) -> Ways {
        let registry = |name| match name {
            ImageName::Registry(reference) => Some(reference),
            _ => None,
        };
        Ways {
            registries: sources.into_iter().filter_map(registry).collect(),
            hosts: request.hosts.clone(),
        }
    }

    pub(crate) fn stamp(&self) -> Stamp {
        let of_name = |path: &&str| {
            let found = std::fs::metadata(path).ok()?;
            Some((found.dev(), found.ino()))
        };
        let of_hosts = |path: PathBuf| {
            let found = path.metadata().ok()?;
            Some((found.ino(), found.mtime(), found.mtime_nsec()))
        };
        let registries = self.registries.iter();
        let hosts = registries.flat_map(|registry| hosts::places(registry, &self.hosts));
        Stamp {
            names: NAMES.iter().map(of_name).collect(),
            hosts: hosts.map(of_hosts).collect(),
        }
    }

    /// Whether another worker could use what is said of the hosts: one that is not yet written whole
    /// would end reads that wait now.
    pub(crate) fn are_usable(&self) -> bool {
        let usable = |registry| hosts::files(registry, &self.hosts).is_ok();
        self.registries.iter().all(usable)
    }
}
