//! Read-ahead of a mount that is in use: raised once all bytes are local.
//!
//! At INIT it is small while bytes are absent, because every page that nobody asked for may cost a
//! range request, and during the first start of an image, because what is read ahead then would be
//! taken for hot by all later starts. The kernel's setting of the mount (its "backing device") can be
//! written by root; without that it stays as it is, which costs speed only.

/// What the kernel may read ahead once nothing has to be fetched any more.
const READ_AHEAD_KIB: &str = "1024";

/// What it may read ahead while bytes are absent.
const READ_AHEAD_LAZY_KIB: &str = "16";

/// Raises the read-ahead of the file system `device` (`MAJOR:MINOR`). Files that are open keep what
/// they have.
pub(super) fn raise(device: &str) {
    set(device, READ_AHEAD_KIB);
}

/// Lowers the read-ahead of a file system that begins with the kernel's 128 KiB.
pub(super) fn lower(device: &str) {
    set(device, READ_AHEAD_LAZY_KIB);
}

fn set(device: &str, kib: &str) {
    let setting = format!("/sys/class/bdi/{device}/read_ahead_kb");
    match std::fs::write(&setting, kib) {
        Ok(()) => tracing::debug!(setting, kib, "read-ahead set"),
        Err(error) => tracing::debug!(%error, setting, "read-ahead stays as it is"),
    }
}
