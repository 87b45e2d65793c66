//! What a worker that is shut in may reach of the file system.

use std::fs::File;
use std::io::ErrorKind;
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

/// The real place of a program, unless workers with that cache may have made it: it is started before it is shut
/// in, and who has taken over a worker must not get out by that.
pub(crate) fn outside(program: &Path, cache_dir: &Path) -> Result<PathBuf, String> {
    let real = program.canonicalize();
    let real = real.map_err(|e| format!("{}: {e}", program.display()))?;
    let changed = std::iter::once(cache_dir.to_owned()).chain(record::directory());
    let mut changed = changed.filter_map(|dir| dir.canonicalize().ok());
    match changed.find(|dir| real.starts_with(dir)) {
        Some(dir) => Err(format!(
            "{} lies in {}, where workers may write: put it elsewhere",
            real.display(),
            dir.display()
        )),
        None => Ok(real),
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

    /// Whether sources may be reached in another way than `since`, by a worker that can use it. Hosts that
    /// are not yet written whole would end reads that wait now. What this one may not read it cannot
    /// judge, a directory that came later for one: that is no reason, and does not stand in the way of
    /// other names.
    pub(crate) fn are_others(&self, since: &Stamp) -> bool {
        let now = self.stamp();
        let other_names = now.names != since.names;
        match now.hosts == since.hosts {
            true => other_names,
            false => self.are_usable() || other_names && self.are_hidden(),
        }
    }

    fn are_usable(&self) -> bool {
        let usable = |registry| hosts::files(registry, &self.hosts).is_ok();
        self.registries.iter().all(usable)
    }

    /// Whether this process may not read what is said of the hosts.
    fn are_hidden(&self) -> bool {
        let registries = self.registries.iter();
        let mut places = registries.flat_map(|registry| hosts::places(registry, &self.hosts));
        places.any(|place| {
            let opened = File::open(place);
            opened.is_err_and(|e| e.kind() == ErrorKind::PermissionDenied)
        })
    }
}

#[cfg(test)]
mod tests {
    use rustix::thread::{CapabilitySet, CapabilitySets};

    use super::*;

    /// Ways of an image whose `hosts.toml` would lie in the directory.
    fn ways(dir: &Path) -> (Ways, PathBuf) {
        let registry: Reference = "registry.test/image".parse().unwrap();
        let hosts = HostsDirs {
            dirs: vec![dir.to_owned()],
            strict: true,
        };
        let file = dir.join("registry.test/hosts.toml");
        std::fs::create_dir(dir.join("registry.test")).unwrap();
        let registries = vec![registry];
        (Ways { registries, hosts }, file)
    }

    /// The same with the names of another time.
    fn other_names(of: &Stamp) -> Stamp {
        let mut stamp = of.clone();
        stamp.names[0] = Some((0, 0));
        stamp
    }

    #[test]
    fn there_is_another_way_when_names_or_hosts_are_others() {
        let temp = tempfile::tempdir().unwrap();
        let (ways, file) = ways(temp.path());
        let since = ways.stamp();
        assert!(!ways.are_others(&since));
        assert!(ways.are_others(&other_names(&since)));
        std::fs::write(&file, "[host.").unwrap();
        assert!(!ways.are_others(&since), "not written whole");
        assert!(!ways.are_others(&other_names(&since)));
        // What this worker has begun with it can go on with.
        assert!(ways.are_others(&other_names(&ways.stamp())));
        std::fs::write(&file, "[host.'http://mirror.test']\n").unwrap();
        assert!(ways.are_others(&since));
        assert!(!ways.are_others(&ways.stamp()));
    }

    #[test]
    fn hosts_that_may_not_be_read_do_not_hide_other_names() {
        let temp = tempfile::tempdir().unwrap();
        let (ways, file) = ways(temp.path());
        let since = ways.stamp();
        std::fs::write(&file, "[host.'http://mirror.test']\n").unwrap();
        let nobody = std::os::unix::fs::PermissionsExt::from_mode(0o0);
        std::fs::set_permissions(&file, nobody).unwrap();
        // Capabilities belong to a thread: this one may read no more than its user.
        let thread = std::thread::spawn(move || {
            let none = CapabilitySets {
                effective: CapabilitySet::empty(),
                permitted: CapabilitySet::empty(),
                inheritable: CapabilitySet::empty(),
            };
            rustix::thread::set_capabilities(None, none).unwrap();
            assert!(ways.are_hidden());
            assert!(!ways.are_others(&since), "another worker may find the same");
            assert!(ways.are_others(&other_names(&since)));
        });
        thread.join().unwrap();
    }
}
