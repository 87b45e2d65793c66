//! Requests that are on their way are given to another process than the one that has taken them
//! (`FUSE_NOTIFY_RESEND`).

use std::io;
use std::os::fd::AsFd;

/// The first kernel that knows it.
const SINCE: (u32, u32) = (6, 9);

/// `struct fuse_out_header` (include/uapi/linux/fuse.h) with no request, the code of the
/// notification `FUSE_NOTIFY_RESEND`, and no payload.
fn notification() -> [u8; 16] {
    const FUSE_NOTIFY_RESEND: i32 = 7;
    let mut header = [0; 16];
    header[..4].copy_from_slice(&16_u32.to_ne_bytes());
    header[4..8].copy_from_slice(&FUSE_NOTIFY_RESEND.to_ne_bytes());
    header
}

/// Has the kernel put all requests of `device` that nobody has answered before those that nobody has
/// taken. A connection that has ended meanwhile is no error: the next worker will see that.
///
/// # Errors
///
/// When the kernel is older than Linux 6.9.
pub(super) fn resend(device: impl AsFd) -> io::Result<()> {
    match rustix::io::write(device, &notification()) {
        Ok(_) | Err(rustix::io::Errno::NODEV | rustix::io::Errno::PERM) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Why this kernel cannot; `None` when it can, or when that cannot be told.
pub(super) fn cannot() -> Option<String> {
    cannot_of(&rustix::system::uname().release().to_string_lossy())
}

fn cannot_of(release: &str) -> Option<String> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next()?.parse::<u32>().ok();
    let (major, minor) = (number()?, number()?);
    ((major, minor) < SINCE).then(|| {
        format!(
            "this kernel ({release}) cannot go on with a mount in another process, Linux 6.9 can; \
             unmount and mount again"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_that_cannot_send_again_are_told_apart() {
        for old in [
            "5.15.0-91-generic",
            "6.8.12",
            "6.1.0-18-amd64",
            "4.18.0-553.el8",
        ] {
            assert!(cannot_of(old).is_some_and(|why| why.contains(old)));
        }
        for new in ["6.9.0", "6.18.44-x", "7.0", "strange"] {
            assert_eq!(cannot_of(new), None, "{new}");
        }
    }

    #[test]
    fn the_notification_is_a_bare_header() {
        let header = notification();
        assert_eq!(u32::from_ne_bytes(*header[..4].first_chunk().unwrap()), 16);
        assert_eq!(header[4], 7);
        assert!(header[5..].iter().all(|byte| *byte == 0));
    }
}
