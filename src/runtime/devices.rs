//! Which devices a container may use (OCI runtime-spec `config-linux.md`, "Allowed Device list"). The
//! nodes themselves (`/dev/null` and its kin) are made by every runtime.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

/// Any number.
const ANY: Option<i64> = None;

/// Character devices that may be read and written: null, zero, full, random, urandom, tty, console,
/// ptmx, and what `devpts` holds.
const USABLE: [(Option<i64>, Option<i64>); 9] = [
    (Some(1), Some(3)),
    (Some(1), Some(5)),
    (Some(1), Some(7)),
    (Some(1), Some(8)),
    (Some(1), Some(9)),
    (Some(5), Some(0)),
    (Some(5), Some(1)),
    (Some(5), Some(2)),
    (Some(136), ANY),
];

/// Docker's rules: nodes of any kind may be made, only harmless ones opened.
pub(super) fn rules() -> Vec<LinuxDeviceCgroup> {
    let mut rules = vec![
        rule(false, None, (ANY, ANY), "rwm"),
        rule(true, Some(LinuxDeviceType::C), (ANY, ANY), "m"),
        rule(true, Some(LinuxDeviceType::B), (ANY, ANY), "m"),
    ];
    let usable = |number| rule(true, Some(LinuxDeviceType::C), number, "rwm");
    rules.extend(USABLE.into_iter().map(usable));
    rules
}

fn rule(
    allow: bool,
    kind: Option<LinuxDeviceType>,
    (major, minor): (Option<i64>, Option<i64>),
    access: &str,
) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow);
    rule.set_typ(kind);
    rule.set_major(major);
    rule.set_minor(minor);
    rule.set_access(Some(access.to_owned()));
    rule
}
