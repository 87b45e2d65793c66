//! Read-ahead of a mount that is in use: raised once all bytes are local.
//!
//! At INIT it is small while bytes are absent, because every page that nobody asked for may cost a
//! range request, and during the first start of an image, because what is read ahead then would be
//! taken for hot by all later starts. The kernel's setting of the mount (its "backing device") can be
//! written by root; without that it stays as it is, which costs speed only.

/// What the kernel may read ahead once nothing has to be fetched any more.
const READ_AHEAD_KIB: &str = "1024";

/// Raises the read-ahead of the image's own mount on `device` (`MAJOR:MINOR`). Files that are open
/// keep what they have.
pub(super) fn raise(device: &str) {
    let setting = format!("/sys/class/bdi/{device}/read_ahead_kb");
    match std::fs::write(&setting, READ_AHEAD_KIB) {
        Ok(()) => tracing::debug!(setting, "read-ahead raised"),
        Err(error) => tracing::debug!(%error, setting, "read-ahead stays small"),
    }
}
