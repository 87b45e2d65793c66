//! What every container has mounted besides its root file system (Docker's defaults).

use std::path::Path;

use oci_spec::runtime::Mount;

use crate::runtime::config::{Bind, Plan, Tmpfs};

/// Mounts in the order in which they have to be made: `/proc`, `/dev` and its kin, `/sys`, then what
/// the user asked for, which takes the place of any of the former; what lies deeper comes later, or it
/// would be hidden (as in Docker).
pub(super) fn mounts(plan: &Plan) -> Vec<Mount> {
    let shm = format!("size={}", plan.shm_bytes);
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", "ro"],
        ),
        mount(
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", &shm],
        ),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", "ro"],
        ),
    ];
    let mut wanted: Vec<Mount> = plan.binds.iter().map(bind).collect();
    wanted.extend(plan.tmpfs.iter().map(tmpfs));
    wanted.sort_by_key(|m| m.destination().components().count());
    let taken = |path: &Path| wanted.iter().any(|m| m.destination() == path);
    mounts.retain(|m| {
        let at = m.destination();
        // Whoever brings a /dev brings all of it.
        let brought = at.starts_with("/dev") && taken(Path::new("/dev"));
        !taken(at) && !brought
    });
    mounts.extend(wanted);
    mounts
}

fn tmpfs(tmpfs: &Tmpfs) -> Mount {
    let mut options = vec!["nosuid", "nodev", "noexec"];
    options.extend(tmpfs.options.iter().map(String::as_str));
    let mut mount = mount("/", "tmpfs", "tmpfs", &options);
    mount.set_destination(tmpfs.destination.clone());
    mount
}

fn bind(bind: &Bind) -> Mount {
    let mode = if bind.read_only { "ro" } else { "rw" };
    let mut mount = mount("/", "bind", "/", &["rbind", "rprivate", mode]);
    mount.set_destination(bind.destination.clone());
    mount.set_source(Some(bind.source.clone()));
    mount
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount.set_destination(destination.into());
    mount.set_typ(Some(kind.to_owned()));
    mount.set_source(Some(Path::new(source).to_owned()));
    mount.set_options(Some(options.iter().map(|o| (*o).to_owned()).collect()));
    mount
}
