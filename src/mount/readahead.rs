//! Read-ahead of a mount that is in use: raised once all bytes are local.
//!
//! At INIT it is small while bytes are absent, because every page that nobody asked for may cost a
//! range request, and during the first start of an image, because what is read ahead then would be
//! taken for hot by all later starts. Once they are local it is that of the disk under the cache, at least
//! 1 MiB, and 1 MiB where the cache lies on no single disk: with less, a mount waits for the disk where
//! a directory on it does not. The kernel's setting of a mount (its "backing device") can be written by
//! root; without that it stays as it is, which costs speed only.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The least that the kernel may read ahead once nothing has to be fetched any more: the longest READ.
const READ_AHEAD_KIB_MIN: u32 = 1024;

/// The most, whatever the disk has: so much memory may be waited for at once.
const READ_AHEAD_KIB_MAX: u32 = 16 << 10;

/// What it may read ahead while bytes are absent.
const READ_AHEAD_LAZY_KIB: u32 = 16;

/// How far is read ahead of what is local, in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReadAhead(u32);

impl ReadAhead {
    /// As far as the disk is read on which `cache` lies. Has to be asked before the worker is shut in.
    pub(super) fn beside(cache: &Path) -> ReadAhead {
        let device = std::fs::metadata(cache).ok().map(|meta| meta.dev());
        ReadAhead::bounded(device.and_then(|device| of_disk(device, Path::new("/sys"))))
    }

    fn bounded(disk: Option<u32>) -> ReadAhead {
        let kib = disk.unwrap_or(READ_AHEAD_KIB_MIN);
        ReadAhead(kib.clamp(READ_AHEAD_KIB_MIN, READ_AHEAD_KIB_MAX))
    }

    /// Raises the read-ahead of the backing device of this name (`MAJOR:MINOR`, or `erofs-N`). Files that are
    /// open keep what they have.
    pub(super) fn raise(self, device: &str) {
        set(device, self.0);
    }
}

/// Lowers the read-ahead of a backing device that begins with the kernel's 128 KiB.
pub(super) fn lower(device: &str) {
    set(device, READ_AHEAD_LAZY_KIB);
}

/// The setting of a block device, or of the disk that it is a part of, as sysfs at `sys` has it; in KiB.
fn of_disk(device: u64, sys: &Path) -> Option<u32> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let block = sys.join("dev/block").join(format!("{major}:{minor}"));
    let settings = ["queue/read_ahead_kb", "../queue/read_ahead_kb"];
    let mut texts = settings
        .iter()
        .filter_map(|setting| std::fs::read_to_string(block.join(setting)).ok());
    texts.next()?.trim().parse().ok()
}

fn set(device: &str, kib: u32) {
    let setting = format!("/sys/class/bdi/{device}/read_ahead_kb");
    match std::fs::write(&setting, kib.to_string()) {
        Ok(()) => tracing::debug!(setting, kib, "read-ahead set"),
        Err(error) => tracing::debug!(%error, setting, "read-ahead stays as it is"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_says_how_far_within_bounds() {
        assert_eq!(ReadAhead::bounded(None), ReadAhead(1024));
        assert_eq!(ReadAhead::bounded(Some(128)), ReadAhead(1024));
        assert_eq!(ReadAhead::bounded(Some(4096)), ReadAhead(4096));
        assert_eq!(ReadAhead::bounded(Some(u32::MAX)), ReadAhead(16384));
    }

    /// sysfs(5): what is below `dev/block` are links to the devices, and a part lies below its disk.
    #[test]
    fn a_disk_and_its_parts_have_the_setting_of_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let (sys, disk) = (dir.path(), dir.path().join("devices/pci0/block/sda"));
        std::fs::create_dir_all(disk.join("queue")).unwrap();
        std::fs::create_dir(disk.join("sda1")).unwrap();
        std::fs::write(disk.join("queue/read_ahead_kb"), "4096\n").unwrap();
        std::fs::create_dir_all(sys.join("dev/block")).unwrap();
        for (number, device) in [("8:0", "sda"), ("8:1", "sda/sda1")] {
            let target = Path::new("../../devices/pci0/block").join(device);
            std::os::unix::fs::symlink(target, sys.join("dev/block").join(number)).unwrap();
        }
        let of = |minor| of_disk(rustix::fs::makedev(8, minor), sys);
        assert_eq!((of(0), of(1)), (Some(4096), Some(4096)));
        assert_eq!(of(2), None, "a file system without a disk");
        std::fs::write(disk.join("queue/read_ahead_kb"), "much\n").unwrap();
        assert_eq!(of(1), None);
    }
}
