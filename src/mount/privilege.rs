//! Whose this process is: the system's root, root in a user namespace, or an ordinary user.

use rustix::fs::Access;

/// Whether this is not the first user namespace, whose map is the identity over all ids
/// (user_namespaces(7)).
pub fn in_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    !map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Whether files belong where root's do. Somebody who has become root in a namespace of their own
/// (`unshare -Ur`) still has no say below `/var` and `/run`.
pub fn is_system_root() -> bool {
    rustix::process::geteuid().is_root()
        && (!in_user_namespace() || rustix::fs::access("/var/lib", Access::WRITE_OK).is_ok())
}
