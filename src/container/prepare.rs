//! From a mounted image and the user's wishes to a bundle that a runtime takes.

use std::path::{Path, PathBuf};

use crate::container::command::{self, arguments, entrypoint, environment};
use crate::container::error::Error;
use crate::container::etc::{self, Names};
use crate::container::image::Defaults;
use crate::container::record::Overrides;
use crate::container::rootfs::Rootfs;
use crate::container::signal;
use crate::container::store::Container;
use crate::container::user::{DATABASE_BYTES_MAX, Database, User};
use crate::container::volume::{self, Volume};
use crate::mount::request::Upper;
use crate::mount::{MountRequest, record};
use crate::oci::Digest;
use crate::oci::command::Given;
use crate::runtime::seccomp::Seccomp;
use crate::runtime::{
    Limits, Network, Plan, Process, Program, Tmpfs, capabilities, config, program,
};

/// Size of `/dev/shm` when nobody says, as in Docker.
pub const SHM_BYTES: u64 = 64 << 20;

/// What the user wishes; nothing set means what the image says.
#[derive(Debug, Clone)]
pub struct Wishes {
    /// What runs instead of the image's entrypoint, as `--entrypoint` is written.
    pub entrypoint: Option<String>,
    /// What runs instead of the image's command.
    pub command: Vec<String>,
    /// `NAME=value`; a name alone takes a variable away.
    pub env: Vec<String>,
    /// Where the process starts.
    pub working_dir: Option<String>,
    /// `user[:group]`.
    pub user: Option<String>,
    /// Further groups.
    pub groups: Vec<String>,
    /// Name of the container's machine.
    pub hostname: Option<String>,
    /// `NAME:ADDRESS`, for `/etc/hosts`.
    pub hosts: Vec<String>,
    /// What it can reach.
    pub network: Network,
    /// Directories and files that it sees.
    pub volumes: Vec<Volume>,
    /// File systems in memory.
    pub tmpfs: Vec<Tmpfs>,
    /// Whether it may not write to its root.
    pub read_only: bool,
    /// What it may use.
    pub limits: Limits,
    /// Size of `/dev/shm` in bytes.
    pub shm_bytes: u64,
    /// Capabilities more than Docker's.
    pub cap_add: Vec<String>,
    /// Capabilities less than Docker's.
    pub cap_drop: Vec<String>,
    /// Whether set-id programs gain nothing.
    pub no_new_privileges: bool,
    /// Which system calls it may make.
    pub seccomp: Seccomp,
    /// The signal that asks it to end.
    pub stop_signal: Option<String>,
    /// Whether it gets a terminal.
    pub terminal: bool,
}

/// Longest command that a mount is told of, in bytes: a request has a bound.
const COMMAND_BYTES_MAX: usize = 16 << 10;

/// What there is to mount for a container that `wishes` describe: as `base` says how to reach the
/// image.
pub fn mount_request(container: &Container, wishes: &Wishes, base: MountRequest) -> MountRequest {
    let given = Given {
        entrypoint: wishes.entrypoint.as_deref().map(entrypoint),
        command: wishes.command.clone(),
    };
    MountRequest {
        command: Some(given).filter(|given| given.len() <= COMMAND_BYTES_MAX),
        mountpoint: container.rootfs(),
        upper: Some(Upper::Directory(container.changes())),
        foreground: false,
        ..base
    }
}

/// The runtimes that may be used. Containers need root.
pub fn runtimes(wanted: Option<&str>) -> Result<Vec<Program>, Error> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    let root = record::directory().map_err(|e| Error::at(Path::new("the run directory"), e))?;
    let found = program::find(wanted, &root.join("runtimes"));
    match (found.is_empty(), wanted) {
        (false, _) => Ok(found),
        (true, Some(name)) => Err(Error::NoSuchRuntime(name.to_owned())),
        (true, None) => Err(Error::NoRuntime),
    }
}

/// Where things are when a plan is made.
struct Site<'a> {
    /// The image as typed.
    image: &'a str,
    defaults: Defaults,
    rootfs: Rootfs,
    /// Where generated files and volumes go.
    dir: &'a Path,
    /// What the machine is called when nobody says.
    short_id: &'a str,
}

/// Writes the bundle of a container whose image is mounted as `mounted` says.
pub fn prepare(
    container: &mut Container,
    wishes: &Wishes,
    cache_dir: &Path,
    mounted: &record::Record,
) -> Result<(), Error> {
    let defaults = Defaults::load(cache_dir, &mounted.digest.parse::<Digest>()?)?;
    let root = container.rootfs();
    let site = Site {
        image: &mounted.image,
        rootfs: Rootfs::open(&root).map_err(|e| Error::at(&root, e))?,
        defaults,
        dir: container.dir(),
        short_id: container.short_id(),
    };
    let stop_signal = wishes.stop_signal.as_deref();
    let stop_signal = stop_signal.or(site.defaults.stop_signal.as_deref());
    let stop_signal = signal::parse(stop_signal.unwrap_or("TERM"))?;
    let mut plan = site.plan(wishes, root.clone())?;
    plan.cgroup = Some(Path::new("/rsmount").join(&container.record.id));
    let cwd = &plan.process.cwd;
    let made = site.rootfs.make_directories(cwd);
    made.map_err(|e| Error::WorkingDirectory(cwd.clone(), e))?;
    config::write(&plan, site.dir)?;
    let mut missing = plan.mountpoints();
    missing.retain(|path| !site.rootfs.has(path));
    container.record.digest.clone_from(&mounted.digest);
    container.record.platform.clone_from(&mounted.platform);
    container.record.stop_signal = stop_signal;
    container.record.mounted_over = missing;
    container.record.process = Some(plan.process);
    container.record.given = Overrides {
        env: wishes.env.clone(),
        entrypoint: wishes.entrypoint.as_deref().map(entrypoint),
        command: wishes.command.clone(),
        working_dir: wishes.working_dir.clone(),
        user: wishes.user.clone(),
        stop_signal: wishes.stop_signal.clone(),
    };
    container.save()
}

/// Writes a bundle into `dir`, whose image is mounted as `mounted` says, in a directory of it.
pub(super) fn bundle(
    dir: &Path,
    wishes: &Wishes,
    cache_dir: &Path,
    mounted: &record::Record,
) -> Result<(), Error> {
    let root = &mounted.mountpoint;
    let name = dir.file_name().map(|n| n.to_string_lossy().into_owned());
    let site = Site {
        image: &mounted.image,
        defaults: Defaults::load(cache_dir, &mounted.digest.parse::<Digest>()?)?,
        rootfs: Rootfs::open(root).map_err(|e| Error::at(root, e))?,
        dir,
        short_id: name.as_deref().unwrap_or("bundle"),
    };
    let relative = root.strip_prefix(dir).unwrap_or(root).to_owned();
    let mut plan = site.plan(wishes, relative)?;
    if mounted.upper.is_some() {
        let cwd = &plan.process.cwd;
        let made = site.rootfs.make_directories(cwd);
        made.map_err(|e| Error::WorkingDirectory(cwd.clone(), e))?;
    } else {
        // Nothing can be made in it: neither files to mount on, nor directories.
        plan.read_only = true;
        plan.binds.retain(|bind| site.rootfs.has(&bind.destination));
    }
    Ok(config::write(&plan, dir)?)
}

impl Site<'_> {
    fn plan(&self, wishes: &Wishes, root: PathBuf) -> Result<Plan, Error> {
        let hostname = self.hostname(wishes);
        let names = Names {
            hostname: &hostname,
            network: wishes.network,
            hosts: &wishes.hosts,
        };
        let process = self.process(wishes, &hostname)?;
        let mut binds = etc::write(self.dir, &names).map_err(|e| Error::at(self.dir, e))?;
        let of_image: Vec<String> = self
            .defaults
            .volumes
            .iter()
            .flatten()
            .map(|v| v.0.clone())
            .collect();
        let volumes = volume::binds(
            &wishes.volumes,
            &of_image,
            &wishes.tmpfs,
            &self.rootfs,
            &self.dir.join("volumes"),
        )?;
        binds.retain(|b| volumes.iter().all(|v| v.destination != b.destination));
        binds.extend(volumes);
        Ok(Plan {
            cgroup: None,
            root,
            read_only: wishes.read_only,
            process,
            hostname,
            network: wishes.network,
            binds,
            tmpfs: wishes.tmpfs.clone(),
            shm_bytes: wishes.shm_bytes,
            limits: wishes.limits,
            seccomp: wishes.seccomp.clone(),
        })
    }

    /// With the host's network its name as well, as in Docker.
    fn hostname(&self, wishes: &Wishes) -> String {
        match (&wishes.hostname, wishes.network) {
            (Some(name), _) => name.clone(),
            (None, Network::Host) => rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned(),
            (None, Network::None) => self.short_id.to_owned(),
        }
    }

    fn process(&self, wishes: &Wishes, hostname: &str) -> Result<Process, Error> {
        let given = wishes.entrypoint.as_deref().map(entrypoint);
        let args = arguments(
            self.image,
            &self.defaults,
            given.as_deref(),
            &wishes.command,
        )?;
        let wanted = wishes.user.as_deref().or(self.defaults.user.as_deref());
        let user = find_user(&self.rootfs, wanted.unwrap_or_default(), &wishes.groups)?;
        let mut env = environment(&self.defaults, hostname, wishes.terminal, &wishes.env);
        command::set_default(&mut env, "HOME", &user.home);
        let cwd = wishes
            .working_dir
            .as_deref()
            .or(self.defaults.working_dir.as_deref());
        Ok(Process {
            args,
            env,
            cwd: working_directory(cwd.unwrap_or_default()),
            user: user.identity,
            capabilities: capabilities::chosen(&wishes.cap_add, &wishes.cap_drop)?,
            no_new_privileges: wishes.no_new_privileges,
            terminal: wishes.terminal,
        })
    }
}

/// Always absolute, as runtimes want it.
pub(super) fn working_directory(text: &str) -> PathBuf {
    Path::new("/").join(text)
}

/// Looks `wanted` up in the container's own files.
pub(super) fn find_user(rootfs: &Rootfs, wanted: &str, groups: &[String]) -> Result<User, Error> {
    let read = |path: &str| {
        let bytes = rootfs.read(path, DATABASE_BYTES_MAX);
        bytes.map_err(|e| Error::at(Path::new(path), e))
    };
    let database = Database {
        passwd: read("/etc/passwd")?,
        group: read("/etc/group")?,
    };
    Ok(database.find(wanted, groups)?)
}
