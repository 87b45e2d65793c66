//! The sandbox of a worker: once its mount is served, it drops what serving does not need.
//!
//! What it works on comes from strangers: layers, indexes, answers of registries. Should one of them
//! get the better of it, it is not to get at the rest of the machine:
//!
//! - *Landlock*: files are the cache, the runtime directory, and to read what names and certificates
//!   are looked up in (`reach`). No TCP port can be opened, no process outside be signalled.
//! - *Capabilities*: none, but to remove a container's files where an upper directory goes with the
//!   mount.
//! - *seccomp*: no program can be executed, nothing mounted, nobody traced (`calls`).
//!
//! What needs more is asked of the keeper, which stays outside: it unmounts, aborts, starts the next
//! worker, and has credentials looked up by a process of their own (`super::handover::Keeper`).
//!
//! All three hold for one thread each, and by then there are several, because mounting needs somebody
//! who answers: `threads` has every one of them shut itself in. Rejected: to be shut in from the
//! beginning, with the keeper mounting for us; it would have to know engines, overlays and EROFS.

use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, Scope,
};
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

mod calls;
mod reach;
mod threads;

pub(super) use reach::{Reach, Ways, outside};

/// The newest version of Landlock that is asked for; of an older kernel's all that it has.
const NEWEST: ABI = ABI::V6;

/// Whether a worker is shut in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Sandbox {
    /// With all that this kernel has.
    #[default]
    Auto,
    /// Not at all.
    Off,
    /// Completely, or there is no mount.
    Required,
}

/// What is on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Walls {
    /// Which of `landlock`, `capabilities` and `seccomp` are on.
    pub on: Vec<String>,
    /// What is missing, and why; absent when nothing is.
    pub missing: Option<String>,
}

impl Walls {
    /// None, for a reason.
    pub(super) fn none(why: &str) -> Walls {
        Walls {
            on: Vec::new(),
            missing: Some(why.to_owned()),
        }
    }
}

/// What this kernel lacks of a complete sandbox; `None` when it has everything.
pub fn lacking() -> Option<String> {
    let mut lacking = Vec::new();
    if let Err(why) = ruleset(&Reach::default()) {
        lacking.push(why);
    }
    lacking.extend(calls::filter().err());
    lacking.extend(calls::unsupported());
    (!lacking.is_empty()).then(|| lacking.join("; "))
}

/// Shuts this process in for ever. What this kernel lacks is left out and told.
pub(super) fn enter(reach: &Reach, keeps: CapabilitySet) -> Walls {
    let (mut on, mut missing) = (Vec::new(), Vec::new());
    let rules = match ruleset(reach) {
        Ok(rules) => Some(rules),
        Err(why) => {
            missing.push(why);
            None
        }
    };
    let landlocked = rules.is_some();
    match threads::shut_in(rules, keeps) {
        Ok(()) => {
            on.push("capabilities".to_owned());
            if landlocked {
                on.push("landlock".to_owned());
            }
        }
        Err(why) => missing.push(why),
    }
    match calls::filter().and_then(|filter| calls::install(&filter)) {
        Ok(()) => on.push("seccomp".to_owned()),
        Err(why) => missing.push(why),
    }
    Walls {
        on,
        missing: (!missing.is_empty()).then(|| missing.join("; ")),
    }
}

/// The descriptor of the rules.
fn ruleset(reach: &Reach) -> Result<std::os::fd::OwnedFd, String> {
    let created = create(reach).map_err(|e| format!("Landlock: {e}"))?;
    // Absent when the kernel knows nothing of Landlock, which is no error in the best of efforts.
    Option::from(created).ok_or_else(|| {
        "this kernel has no Landlock (5.13 and later, CONFIG_SECURITY_LANDLOCK, `landlock` in lsm=)"
            .to_owned()
    })
}

fn create(reach: &Reach) -> Result<RulesetCreated, landlock::RulesetError> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let change = read
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::MakeSym
        | AccessFs::MakeSock
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::Refer;
    let write = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate;
    for (paths, access) in [
        (&reach.read, read),
        (&reach.change, change),
        (&reach.write, write),
        (&reach.empty, AccessFs::RemoveDir.into()),
    ] {
        rules = add(rules, paths, access)?;
    }
    Ok(rules)
}

/// What is not there cannot be reached later either.
fn add(
    mut rules: RulesetCreated,
    paths: &[PathBuf],
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, landlock::RulesetError> {
    for path in paths {
        let Ok(opened) = PathFd::new(path) else {
            continue;
        };
        let access = match path.is_dir() {
            true => access,
            false => access & AccessFs::from_file(NEWEST),
        };
        rules = rules.add_rule(PathBeneath::new(opened, access))?;
    }
    Ok(rules)
}
