//! Whether this kernel can be trusted with EROFS over FUSE: a tiny image is mounted over two files, one
//! of which is answered short. A kernel that makes zeros of what is missing (before 7.0 and the stable
//! releases that have its fix, "erofs: set fileio bio failed in short read case") must not serve
//! anybody. Asked once per boot, kernel and program, because neither changes in between.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use crate::cache::Cache;
use crate::erofs::{BLOCK_BYTES, Device, Image};
use crate::fuse::probe::{PROBE_BYTE, PROBE_BYTES};
use crate::fuse::{Detached, Session};
use crate::layer::{Entry, EntryKind, Extent, LayerIndex, LayerPath, Timestamp};
use crate::mount::erofs_mount;
use crate::oci::{Compression, Digest};
use crate::tree::Tree;

/// Name of the note in the cache.
const NOTE: &str = "kernel-engine";
/// What it says when all is well; else it says what is wrong.
const PASSED: &str = "passed";
/// Length of the test's files: more than a page, less than a device.
const FILE_BYTES: u64 = 8 << 10;

/// The number of this boot.
pub(super) fn boot() -> io::Result<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(text.trim().to_owned())
}

/// Says what is wrong with this kernel, if anything is.
pub(super) fn run(cache: &Cache) -> Result<(), String> {
    let key = key().map_err(|e| format!("the self-test cannot tell kernels apart: {e}"))?;
    let noted = cache.note(NOTE, &key);
    let said = noted.unwrap_or_else(|| {
        let said = match test(cache) {
            Ok(()) => PASSED.to_owned(),
            Err(said) => said,
        };
        tracing::info!(said, "the kernel engine's self-test");
        if is_transient(&said) {
            return said;
        }
        if let Err(error) = cache.put_note(NOTE, &key, &said) {
            tracing::warn!(%error, "the self-test will be made again");
        }
        said
    });
    match &*said {
        PASSED => Ok(()),
        _ => Err(said),
    }
}

/// Whether the test could not be made for want of something that may be there next time.
fn is_transient(said: &str) -> bool {
    let wants = [
        Errno::NOSPC,
        Errno::DQUOT,
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOMEM,
        Errno::AGAIN,
        Errno::INTR,
    ];
    let of = |errno: &Errno| format!("(os error {})", errno.raw_os_error());
    wants.iter().any(|errno| said.contains(&of(errno)))
}

/// The boot, the kernel, and the program as a file.
fn key() -> io::Result<String> {
    let (boot, kernel) = (boot()?, rustix::system::uname());
    let program = std::fs::metadata("/proc/self/exe")?;
    Ok(format!(
        "{boot} {} {}:{}:{}.{}",
        kernel.release().to_string_lossy(),
        program.dev(),
        program.ino(),
        program.mtime(),
        program.mtime_nsec(),
    ))
}

fn test(cache: &Cache) -> Result<(), String> {
    let failed = |what: &'static str| move |e: io::Error| format!("{what}: {e}");
    let (tree, devices) = tiny().map_err(|e| e.to_string())?;
    let image = Image::plan(&tree, devices).map_err(|e| e.to_string())?;
    let derived = cache.derive(None, NOTE, &mut |out| image.write(out));
    let image = derived.map_err(|e| e.to_string())?.file;
    let probe = Session::probe().map_err(failed("FUSE cannot be mounted"))?;
    let Detached { session, mount } = probe;
    let thread = std::thread::Builder::new()
        .name("probe".into())
        .spawn(|| session.serve())
        .map_err(failed("no thread"))?;
    let outcome = (|| {
        let files = erofs_mount::path_of(&mount);
        let devices = ["0", "1"].map(|n| files.join(n));
        let erofs = erofs_mount::mount(&image, &devices, MountAttrFlags::empty())
            .map_err(failed("EROFS cannot be mounted over FUSE"))?;
        check(&erofs.mount)
    })();
    drop(mount);
    let _ended = thread.join();
    outcome
}

fn check(erofs: &std::os::fd::OwnedFd) -> Result<(), String> {
    let read = |name: &str| -> io::Result<Vec<u8>> {
        let file = rustix::fs::openat(erofs, name, OFlags::RDONLY, Mode::empty())?;
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut File::from(file), &mut bytes)?;
        Ok(bytes)
    };
    match read("whole") {
        Ok(bytes) if bytes == vec![PROBE_BYTE; FILE_BYTES as usize] => {}
        Ok(_) => return Err("EROFS over FUSE reads wrong bytes".to_owned()),
        Err(e) => return Err(format!("EROFS over FUSE cannot be read: {e}")),
    }
    match read("short") {
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => Ok(()),
        Err(e) => Err(format!("EROFS answers a short read with {e}")),
        Ok(_) => Err("EROFS of this kernel takes what a short read lacks for zeros".to_owned()),
    }
}

/// A file of each of two layers.
fn tiny() -> Result<(Tree, Vec<Device>), crate::tree::MergeError> {
    let layer = |name: &str| {
        let digest = Digest::of(name.as_bytes());
        let extent = Extent {
            file_offset: 0,
            address: BLOCK_BYTES,
            len: FILE_BYTES,
        };
        let file = Entry {
            path: LayerPath::parse(name.as_bytes()).unwrap_or_default(),
            kind: EntryKind::Regular {
                size: FILE_BYTES,
                extents: vec![extent],
            },
            mode: 0o400,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            xattrs: Vec::new(),
        };
        Arc::new(LayerIndex {
            blob: digest.clone(),
            diff_id: digest,
            compressed_size: 0,
            address_size: PROBE_BYTES,
            compression: Compression::None,
            whiteouts: Vec::new(),
            entries: vec![file],
            spans: Vec::new(),
        })
    };
    let layers = ["whole", "short"].map(layer);
    let device = |layer: &Arc<LayerIndex>| Device {
        tag: layer.diff_id.to_string(),
        bytes: layer.address_size,
    };
    Ok((Tree::merge(&layers)?, layers.iter().map(device).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_is_not_noted() {
        let said = |errno: Errno| format!("no thread: {}", io::Error::from(errno));
        assert!(is_transient(&said(Errno::MFILE)) && is_transient(&said(Errno::NOSPC)));
        assert!(!is_transient(&said(Errno::NODEV)) && !is_transient(&said(Errno::IO)));
        assert!(!is_transient("EROFS over FUSE reads wrong bytes"));
    }
}
