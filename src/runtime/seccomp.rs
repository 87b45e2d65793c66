//! System call filters: profiles in Docker's format, resolved for one machine and one set of
//! capabilities into what `config.json` takes.
//!
//! The default profile, `src/runtime/seccomp.json`, is the one of podman and buildah: `seccomp.json`
//! of github.com/containers/common 0.50.1 as Debian ships it, byte for byte, under the Apache License
//! 2.0. It follows Docker's, and answers ENOSYS to calls that it does not know, so that programs
//! made for newer kernels fall back.

use std::collections::BTreeSet;

use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSyscall};
use serde::Deserialize;
use serde_json::{Map, Value};

/// The default profile.
const DEFAULT: &str = include_str!("seccomp.json");

/// Longest profile that is read from a file; the default one has 20 KiB.
pub const PROFILE_BYTES_MAX: u64 = 1 << 20;

/// Which filter a container gets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Seccomp {
    /// The default profile.
    #[default]
    Default,
    /// None.
    Unconfined,
    /// This profile, JSON in Docker's format.
    Profile(String),
}

/// The profile cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the seccomp profile cannot be read: {0}")]
pub struct BadProfile(#[from] serde_json::Error);

/// A profile file (Docker's "Seccomp security profiles for Docker").
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: Value,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Vec<Arch>,
    #[serde(default)]
    arch_map: Vec<SubArches>,
    #[serde(default)]
    flags: Vec<Value>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SubArches {
    architecture: Arch,
    #[serde(default)]
    sub_architectures: Vec<Arch>,
}

/// Calls, and when the rule counts; members that only people read are passed over.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    names: Vec<String>,
    action: Value,
    errno_ret: Option<u32>,
    args: Option<Value>,
    #[serde(default)]
    includes: When,
    #[serde(default)]
    excludes: When,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct When {
    arches: Vec<String>,
    caps: Vec<String>,
    min_kernel: Option<String>,
}

/// What a profile is resolved for.
struct Setting {
    /// Name in profiles: `amd64`.
    arch: &'static str,
    native: Option<Arch>,
    caps: BTreeSet<String>,
    /// `(6, 1)`.
    kernel: (u32, u32),
}

impl Seccomp {
    /// The filter for a container with these capabilities (`CAP_CHOWN`) on this machine. `None` when
    /// there is to be none.
    pub(super) fn resolve(&self, caps: &[String]) -> Result<Option<LinuxSeccomp>, BadProfile> {
        let text = match self {
            Seccomp::Unconfined => return Ok(None),
            Seccomp::Default => DEFAULT,
            Seccomp::Profile(text) => text,
        };
        let setting = Setting {
            arch: arch_word(),
            native: native(),
            caps: caps.iter().cloned().collect(),
            kernel: kernel(),
        };
        resolve(text, &setting).map(Some)
    }
}

fn resolve(text: &str, setting: &Setting) -> Result<LinuxSeccomp, BadProfile> {
    let profile: Profile = serde_json::from_str(text)?;
    let counts = |rule: &Rule| setting.meets(&rule.includes) && !setting.is_named(&rule.excludes);
    let rules = profile.syscalls.iter().filter(|rule| counts(rule));
    let syscalls: Vec<LinuxSyscall> = rules.map(syscall).collect::<Result<_, _>>()?;
    let mut members = Map::new();
    members.insert("defaultAction".into(), profile.default_action);
    members.insert("flags".into(), profile.flags.into());
    let mut filter: LinuxSeccomp = serde_json::from_value(members.into())?;
    filter.set_default_errno_ret(profile.default_errno_ret);
    filter.set_syscalls(Some(syscalls));
    let of_native = profile
        .arch_map
        .into_iter()
        .find(|m| Some(m.architecture) == setting.native);
    let architectures = match of_native {
        Some(map) => [vec![map.architecture], map.sub_architectures].concat(),
        None => profile.architectures,
    };
    // None at all means the native one.
    filter.set_architectures((!architectures.is_empty()).then_some(architectures));
    Ok(filter)
}

fn syscall(rule: &Rule) -> Result<LinuxSyscall, serde_json::Error> {
    let mut members = Map::new();
    members.insert("names".into(), rule.names.clone().into());
    members.insert("action".into(), rule.action.clone());
    let args = rule
        .args
        .clone()
        .filter(|a| !matches!(a, Value::Array(list) if list.is_empty()));
    members.insert("args".into(), args.unwrap_or(Value::Null));
    members.insert("errnoRet".into(), rule.errno_ret.into());
    serde_json::from_value(members.into())
}

impl Setting {
    /// Whether everything that `includes` asks for holds; nothing asked for always does.
    fn meets(&self, includes: &When) -> bool {
        let arch = includes.arches.is_empty() || includes.arches.iter().any(|a| a == self.arch);
        let caps = includes.caps.iter().all(|cap| self.caps.contains(cap));
        arch && caps
            && includes
                .min_kernel
                .as_deref()
                .is_none_or(|k| self.reaches(k))
    }

    /// Whether anything in `excludes` holds.
    fn is_named(&self, excludes: &When) -> bool {
        excludes.arches.iter().any(|a| a == self.arch)
            || excludes.caps.iter().any(|cap| self.caps.contains(cap))
            || excludes
                .min_kernel
                .as_deref()
                .is_some_and(|k| self.reaches(k))
    }

    fn reaches(&self, wanted: &str) -> bool {
        version(wanted).is_some_and(|wanted| self.kernel >= wanted)
    }
}

/// The first two numbers of `6.1.0-28-amd64`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn kernel() -> (u32, u32) {
    let uname = rustix::system::uname();
    version(&uname.release().to_string_lossy()).unwrap_or_default()
}

/// Go's name of this architecture, which profiles use.
fn arch_word() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

fn native() -> Option<Arch> {
    match std::env::consts::ARCH {
        "x86_64" => Some(Arch::ScmpArchX86_64),
        "aarch64" => Some(Arch::ScmpArchAarch64),
        "riscv64" => Some(Arch::ScmpArchRiscv64),
        "s390x" => Some(Arch::ScmpArchS390x),
        "loongarch64" => Some(Arch::ScmpArchLoongarch64),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxSeccompAction;

    use super::*;

    fn setting(caps: &[&str]) -> Setting {
        Setting {
            arch: "amd64",
            native: Some(Arch::ScmpArchX86_64),
            caps: caps.iter().map(|c| (*c).to_owned()).collect(),
            kernel: (6, 1),
        }
    }

    fn allows(filter: &LinuxSeccomp, call: &str) -> bool {
        let rules = filter.syscalls().iter().flatten();
        rules
            .filter(|r| r.names().iter().any(|n| n == call))
            .any(|r| r.action() == LinuxSeccompAction::ScmpActAllow)
    }

    #[test]
    fn the_default_profile_follows_the_capabilities() {
        let filter = resolve(DEFAULT, &setting(&[])).unwrap();
        assert_eq!(filter.default_errno_ret(), Some(38));
        assert!(allows(&filter, "openat") && allows(&filter, "arch_prctl"));
        for call in [
            "bpf",
            "init_module",
            "chroot",
            "sync_file_range2",
            "kexec_load",
        ] {
            assert!(!allows(&filter, call), "{call}");
        }
        let more = resolve(DEFAULT, &setting(&["CAP_SYS_ADMIN", "CAP_SYS_CHROOT"])).unwrap();
        assert!(allows(&more, "bpf") && allows(&more, "chroot"));
        let arches = filter.architectures().clone().unwrap();
        assert_eq!(arches.len(), 3, "{arches:?}");
    }

    #[test]
    fn rules_can_ask_for_a_kernel() {
        let profile = r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
            {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
            {"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "6.12"}},
            {"names": ["kcmp"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["amd64"]}}]}"#;
        let filter = resolve(profile, &setting(&[])).unwrap();
        assert!(allows(&filter, "ptrace"));
        assert!(!allows(&filter, "bpf") && !allows(&filter, "kcmp"));
        assert!(filter.architectures().is_none());
    }

    #[test]
    fn what_is_no_profile_is_refused() {
        for text in ["", "[]", r#"{"defaultAction": "SCMP_ACT_DANCE"}"#] {
            assert!(resolve(text, &setting(&[])).is_err(), "{text}");
        }
        assert!(Seccomp::Unconfined.resolve(&[]).unwrap().is_none());
    }
}
