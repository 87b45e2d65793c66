//! What a person can do about a mount that the kernel or fusermount3 has refused, in one line.
//!
//! What fusermount3 says is in English whatever the locale (libfuse, `util/fusermount.c`), and it is
//! not always enough to go on with.

use std::fs::File;
use std::io;
use std::path::Path;

/// Reads what is wrong from the error and from the device.
pub(super) fn hint(error: &io::Error) -> String {
    let device = Path::new("/dev/fuse");
    if !device.exists() {
        return "/dev/fuse is missing; load the module (modprobe fuse), or in a container add \
                --device /dev/fuse"
            .to_owned();
    }
    if let Err(e) = File::options().read(true).write(true).open(device) {
        return format!("/dev/fuse cannot be opened ({e}); its mode is usually 0666");
    }
    if error.kind() == io::ErrorKind::NotFound {
        return "fusermount3 was not found; install fuse3, or mount as root".to_owned();
    }
    explain(&error.to_string(), rustix::process::geteuid().as_raw())
}

/// The last thing that was said is why; before it fusermount3 says what it ignores.
fn explain(said: &str, uid: u32) -> String {
    let lines = said.lines().map(str::trim);
    let reason = lines.rev().find(|line| !line.is_empty()).unwrap_or(said);
    if reason.contains("user_allow_other") {
        return "only root may use allow_other; leave it out, or have the line user_allow_other \
                added to /etc/fuse.conf"
            .to_owned();
    }
    if reason.contains("could not determine username") {
        return format!(
            "fusermount3 mounts for users with a name only, and user {uid} has none; add one to \
             /etc/passwd, or mount as root"
        );
    }
    if reason.contains("no write access to mountpoint") || reason.contains("not owned by") {
        return "the directory is not yours; choose one that you own".to_owned();
    }
    reason.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fusermount_says_becomes_one_line() {
        for (said, expected) in [
            (
                "fusermount3: option allow_other only allowed if 'user_allow_other' is set in \
                 /etc/fuse.conf\n",
                "leave it out",
            ),
            (
                "fusermount3: unsafe option suid ignored\nfusermount3: could not determine \
                 username\n\n",
                "user 7 has none",
            ),
            (
                "fusermount3: mountpoint /tmp not owned by user",
                "choose one",
            ),
            (
                "fusermount3: too many FUSE filesystems mounted; mount_max=N can be set\n",
                "mount_max=N can be set",
            ),
            ("Operation not permitted (os error 1)", "not permitted"),
        ] {
            let hint = explain(said, 7);
            assert!(hint.contains(expected), "{hint}");
            assert_eq!(hint.lines().count(), 1, "{hint}");
        }
    }
}
