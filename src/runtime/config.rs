//! From what a container is to be to its `config.json`.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime as oci;
use oci_spec::runtime::{LinuxNamespaceType, get_default_maskedpaths, get_default_readonly_paths};
use serde::{Deserialize, Serialize};

use crate::runtime::seccomp::{BadProfile, Seccomp};
use crate::runtime::{capabilities, devices, mounts};

/// Period of `--cpus` in microseconds, as Docker sets it.
const CPU_PERIOD: u64 = 100_000;

/// The version of the specification that all three runtimes know.
const SPEC_VERSION: &str = "1.0.2";

/// Its presence at the top of the cgroup mount means a pure version 2 host (`cgroups(7)`).
const CGROUP2_MARK: &str = "/sys/fs/cgroup/cgroup.controllers";

/// What a container is to be.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Its cgroup, from the top of each tree; the runtime's choice when absent.
    pub cgroup: Option<PathBuf>,
    /// Its root file system, absolute or relative to the bundle.
    pub root: PathBuf,
    /// Whether its processes may not write to the root.
    pub read_only: bool,
    /// Its first process.
    pub process: Process,
    /// Of its UTS namespace.
    pub hostname: String,
    /// What it can reach.
    pub network: Network,
    /// Directories and files of the host that it sees.
    pub binds: Vec<Bind>,
    /// File systems in memory that it gets.
    pub tmpfs: Vec<Tmpfs>,
    /// Size of `/dev/shm` in bytes.
    pub shm_bytes: u64,
    /// What it may use.
    pub limits: Limits,
    /// Which system calls it may make.
    pub seccomp: Seccomp,
}

impl Plan {
    /// Where something is mounted in the container: what is missing there the runtime makes.
    pub fn mountpoints(&self) -> Vec<PathBuf> {
        let mounts = mounts::mounts(self).into_iter();
        mounts.map(|mount| mount.destination().clone()).collect()
    }
}

/// A process in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Program and arguments; the program is looked for along the container's `PATH`.
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Absolute.
    pub cwd: PathBuf,
    /// Whom it runs as.
    pub user: Identity,
    /// Names as `CAP_CHOWN`. Without user 0 they are only what set-id programs may get.
    pub capabilities: Vec<String>,
    /// Whether set-id programs gain nothing.
    pub no_new_privileges: bool,
    /// Whether it gets a terminal.
    pub terminal: bool,
}

/// Numbers of a user and groups.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// What network a container sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// The host's.
    Host,
    /// Loopback only, its own.
    None,
}

/// A directory or file of the host in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// On the host, absolute.
    pub source: PathBuf,
    /// In the container, absolute.
    pub destination: PathBuf,
    /// Whether it may not be written.
    pub read_only: bool,
}

/// A file system in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tmpfs {
    /// In the container, absolute.
    pub destination: PathBuf,
    /// As in mount(8), besides `nosuid,nodev,noexec`.
    pub options: Vec<String>,
}

/// What a container may use; nothing set means no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes.
    pub memory: Option<u64>,
    /// Thousandths of a CPU.
    pub millicpus: Option<u64>,
    /// Processes and threads.
    pub pids: Option<i64>,
}

/// Why there is no `config.json`.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The seccomp profile is wrong.
    #[error(transparent)]
    Seccomp(#[from] BadProfile),
    /// The document cannot be put together.
    #[error("the runtime's configuration cannot be made: {0}")]
    Spec(#[from] OciSpecError),
    /// It cannot be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// Writes `config.json` into the directory `bundle`.
pub fn write(plan: &Plan, bundle: &Path) -> Result<(), ConfigError> {
    let spec = spec(plan)?;
    write_json(&bundle.join("config.json"), &spec)
}

/// Writes the document that `exec` takes.
pub fn write_process(process: &Process, path: &Path) -> Result<(), ConfigError> {
    write_json(path, &self::process(process)?)
}

fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), ConfigError> {
    let failed = |source| ConfigError::Write {
        path: path.to_owned(),
        source,
    };
    let bytes = serde_json::to_vec_pretty(value).map_err(|e| failed(e.into()))?;
    // The environment in it may be secret.
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(path).map_err(failed)?;
    file.write_all(&bytes).map_err(failed)
}

fn spec(plan: &Plan) -> Result<oci::Spec, ConfigError> {
    let root = oci::RootBuilder::default()
        .path(plan.root.clone())
        .readonly(plan.read_only)
        .build()?;
    let spec = oci::SpecBuilder::default()
        .version(SPEC_VERSION)
        .root(root)
        .process(process(&plan.process)?)
        .hostname(plan.hostname.clone())
        .mounts(mounts::mounts(plan))
        .linux(linux(plan)?)
        .build()?;
    Ok(spec)
}

fn process(process: &Process) -> Result<oci::Process, ConfigError> {
    let user = oci::UserBuilder::default()
        .uid(process.user.uid)
        .gid(process.user.gid)
        .umask(0o022_u32)
        .additional_gids(process.user.groups.clone())
        .build()?;
    let all = capabilities::set_of(&process.capabilities);
    let now = if process.user.uid == 0 {
        all.clone()
    } else {
        oci::Capabilities::new()
    };
    let capabilities = oci::LinuxCapabilitiesBuilder::default()
        .bounding(all)
        .effective(now.clone())
        .permitted(now)
        .inheritable(oci::Capabilities::new())
        .ambient(oci::Capabilities::new())
        .build()?;
    // The builder's default holds limits of its own; without any the caller's are inherited.
    let mut built = oci::ProcessBuilder::default()
        .terminal(process.terminal)
        .user(user)
        .args(process.args.clone())
        .env(process.env.clone())
        .cwd(process.cwd.clone())
        .capabilities(capabilities)
        .no_new_privileges(process.no_new_privileges)
        .build()?;
    built.set_rlimits(None);
    Ok(built)
}

fn linux(plan: &Plan) -> Result<oci::Linux, ConfigError> {
    let mut masked = get_default_maskedpaths();
    masked.push("/sys/devices/virtual/powercap".to_owned());
    let mut linux = oci::LinuxBuilder::default()
        .namespaces(namespaces(plan.network)?)
        .resources(resources(&plan.limits)?)
        .masked_paths(masked)
        .readonly_paths(get_default_readonly_paths())
        .build()?;
    linux.set_cgroups_path(plan.cgroup.clone());
    linux.set_seccomp(plan.seccomp.resolve(&plan.process.capabilities)?);
    Ok(linux)
}

/// A cgroup namespace hides the host's tree where there is only one tree; elsewhere Docker makes
/// none either.
fn namespaces(network: Network) -> Result<Vec<oci::LinuxNamespace>, ConfigError> {
    let mut kinds = vec![
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Mount,
    ];
    if network == Network::None {
        kinds.push(LinuxNamespaceType::Network);
    }
    if Path::new(CGROUP2_MARK).exists() {
        kinds.push(LinuxNamespaceType::Cgroup);
    }
    let namespace = |kind| Ok(oci::LinuxNamespaceBuilder::default().typ(kind).build()?);
    kinds.into_iter().map(namespace).collect()
}

fn resources(limits: &Limits) -> Result<oci::LinuxResources, ConfigError> {
    let mut resources = oci::LinuxResourcesBuilder::default()
        .devices(devices::rules())
        .build()?;
    if let Some(bytes) = limits.memory {
        let limit = i64::try_from(bytes).unwrap_or(i64::MAX);
        let memory = oci::LinuxMemoryBuilder::default().limit(limit).build()?;
        resources.set_memory(Some(memory));
    }
    if let Some(thousandths) = limits.millicpus {
        let quota = thousandths.saturating_mul(CPU_PERIOD) / 1000;
        let cpu = oci::LinuxCpuBuilder::default()
            .period(CPU_PERIOD)
            .quota(i64::try_from(quota).unwrap_or(i64::MAX))
            .build()?;
        resources.set_cpu(Some(cpu));
    }
    if let Some(most) = limits.pids {
        let pids = oci::LinuxPidsBuilder::default().limit(most).build()?;
        resources.set_pids(Some(pids));
    }
    Ok(resources)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            cgroup: Some("/rsmount/c0ffee".into()),
            root: "rootfs".into(),
            read_only: false,
            process: Process {
                args: vec!["sh".into()],
                env: vec!["A=1".into()],
                cwd: "/".into(),
                user: Identity::default(),
                capabilities: capabilities::chosen(&[], &[]).unwrap(),
                no_new_privileges: false,
                terminal: false,
            },
            hostname: "host".into(),
            network: Network::Host,
            binds: Vec::new(),
            tmpfs: Vec::new(),
            shm_bytes: 64 << 20,
            limits: Limits::default(),
            seccomp: Seccomp::Default,
        }
    }

    fn json(plan: &Plan) -> serde_json::Value {
        serde_json::to_value(spec(plan).unwrap()).unwrap()
    }

    #[test]
    fn a_plain_container_is_spelled_out() {
        let spec = json(&plan());
        assert_eq!(spec["root"]["path"], "rootfs");
        assert_eq!(spec["process"]["args"][0], "sh");
        assert!(spec["process"]["rlimits"].is_null());
        let effective = &spec["process"]["capabilities"]["effective"];
        assert_eq!(effective.as_array().unwrap().len(), 14);
        assert_eq!(spec["linux"]["cgroupsPath"], "/rsmount/c0ffee");
        assert!(spec["linux"]["resources"]["memory"].is_null());
        let kinds = spec["linux"]["namespaces"].to_string();
        assert!(kinds.contains("\"mount\"") && !kinds.contains("\"network\""));
        assert!(spec["linux"]["seccomp"]["syscalls"].is_array());
    }

    #[test]
    fn another_user_holds_no_capabilities() {
        let mut plan = plan();
        plan.process.user.uid = 1000;
        let capabilities = &json(&plan)["process"]["capabilities"];
        assert_eq!(capabilities["effective"], serde_json::json!([]));
        assert_eq!(capabilities["bounding"].as_array().unwrap().len(), 14);
    }

    #[test]
    fn what_lies_deeper_is_mounted_later() {
        let mut plan = plan();
        let bind = |destination: &str| Bind {
            source: "/srv".into(),
            destination: destination.into(),
            read_only: false,
        };
        plan.binds = vec![
            bind("/etc/hosts"),
            bind("/data/a/b"),
            bind("/etc"),
            bind("/dev/shm"),
        ];
        plan.tmpfs = vec![Tmpfs {
            destination: "/data/a".into(),
            options: Vec::new(),
        }];
        let places = |plan: &Plan| -> Vec<String> {
            let spec = json(plan);
            let mounts = spec["mounts"].as_array().unwrap().clone();
            let place = |m: &serde_json::Value| m["destination"].as_str().unwrap().to_owned();
            mounts.iter().map(place).collect()
        };
        let all = places(&plan);
        let at = |path: &str| all.iter().position(|p| p == path).unwrap();
        assert!(
            at("/etc") < at("/etc/hosts") && at("/data/a") < at("/data/a/b"),
            "{all:?}"
        );
        let shm = all.iter().filter(|p| *p == "/dev/shm");
        assert_eq!(shm.count(), 1, "the user's takes its place: {all:?}");
        plan.binds = vec![bind("/dev")];
        assert!(!places(&plan).iter().any(|p| p.starts_with("/dev/")));
    }

    #[test]
    fn limits_and_mounts_are_passed_on() {
        let mut plan = plan();
        plan.limits = Limits {
            memory: Some(64 << 20),
            millicpus: Some(1500),
            pids: Some(10),
        };
        plan.network = Network::None;
        plan.binds.push(Bind {
            source: "/src".into(),
            destination: "/dst".into(),
            read_only: true,
        });
        let spec = json(&plan);
        let resources = &spec["linux"]["resources"];
        assert_eq!(resources["memory"]["limit"], 64 << 20);
        assert_eq!(resources["cpu"]["quota"], 150_000);
        assert_eq!(resources["pids"]["limit"], 10);
        assert!(
            spec["linux"]["namespaces"]
                .to_string()
                .contains("\"network\"")
        );
        let bind = spec["mounts"].as_array().unwrap().last().unwrap().clone();
        assert_eq!(
            bind["options"],
            serde_json::json!(["rbind", "rprivate", "ro"])
        );
    }
}
