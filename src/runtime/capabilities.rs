//! Which capabilities a container's processes have: Docker's default set, and what is added and
//! dropped.

use std::collections::BTreeSet;
use std::str::FromStr;

use oci_spec::runtime::{Capabilities, Capability};

/// Docker's default set ("Runtime privilege and Linux capabilities" in its reference of `run`).
const DEFAULT: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// All that `capabilities(7)` names.
const ALL: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

/// No capability of that name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no capability `{0}` (capabilities(7) lists them; ALL stands for every one)")]
pub struct UnknownCapability(String);

/// The names (`CAP_CHOWN`) that a container gets with `--cap-add` and `--cap-drop`, sorted. `ALL` in
/// `add` begins from all, in `drop` from none; what is named besides is then added and dropped.
pub fn chosen(add: &[String], drop: &[String]) -> Result<Vec<String>, UnknownCapability> {
    let mut set: BTreeSet<String> = if has_all(add) {
        ALL.iter().map(|name| format!("CAP_{name}")).collect()
    } else if has_all(drop) {
        BTreeSet::new()
    } else {
        DEFAULT.iter().map(spelled).collect()
    };
    for name in add.iter().filter(|n| !is_all(n)) {
        set.insert(parsed(name)?);
    }
    for name in drop.iter().filter(|n| !is_all(n)) {
        set.remove(&parsed(name)?);
    }
    Ok(set.into_iter().collect())
}

/// Names as the runtime-spec's set; unknown ones are left out.
pub(super) fn set_of(names: &[String]) -> Capabilities {
    let parse = |name: &String| Capability::from_str(name.trim_start_matches("CAP_")).ok();
    names.iter().filter_map(parse).collect()
}

fn has_all(names: &[String]) -> bool {
    names.iter().any(|name| is_all(name))
}

fn is_all(name: &str) -> bool {
    name.eq_ignore_ascii_case("ALL")
}

fn spelled(capability: &Capability) -> String {
    format!("CAP_{capability}")
}

fn parsed(name: &str) -> Result<String, UnknownCapability> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    match Capability::from_str(bare) {
        Ok(capability) => Ok(spelled(&capability)),
        Err(_) => Err(UnknownCapability(name.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(add: &[&str], drop: &[&str]) -> Vec<String> {
        let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        chosen(&owned(add), &owned(drop)).unwrap()
    }

    #[test]
    fn docker_s_set_is_the_default() {
        let set = of(&[], &[]);
        assert_eq!(set.len(), 14);
        assert!(set.contains(&"CAP_NET_RAW".to_owned()));
        assert!(!set.contains(&"CAP_SYS_ADMIN".to_owned()));
    }

    #[test]
    fn some_are_added_and_dropped() {
        assert!(of(&["net_admin"], &[]).contains(&"CAP_NET_ADMIN".to_owned()));
        assert!(!of(&[], &["CAP_MKNOD"]).contains(&"CAP_MKNOD".to_owned()));
        assert_eq!(of(&["chown"], &["all"]), ["CAP_CHOWN"]);
        assert_eq!(of(&["ALL"], &["SYS_ADMIN"]).len(), ALL.len() - 1);
        assert_eq!(set_of(&of(&["ALL"], &[])).len(), ALL.len());
    }

    #[test]
    fn a_name_that_is_none_is_refused() {
        let wrong = vec!["FLY".to_owned()];
        assert_eq!(chosen(&wrong, &[]), Err(UnknownCapability("FLY".into())));
    }
}
