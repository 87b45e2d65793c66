//! EROFS images of merged trees, without the product around them: mounted by the kernel directly over
//! the plain tars, against the naive model (`tests/support/model.rs`), and checked by `fsck.erofs`.
//!
//! The mounts need root and a kernel that mounts EROFS from a file; the check needs erofs-utils of
//! 1.8 or later, which `RSMOUNT_TEST_EROFS_UTILS` may name a directory of (Debian 12 has 1.5, which
//! knows no blocks of 512 bytes). Both say so loudly where they are skipped.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "a test")]

#[path = "support/all.rs"]
mod support;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rsmount::erofs::{Device, Image};
use rsmount::layer::{AddressSink, Ingest, IngestOptions, LayerIndex};
use rsmount::oci::Digest;
use rsmount::tree::Tree;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags};
use support::edge::{self, Layer};
use support::model::{self, Says};
use support::place::skip;
use support::seen;
use tempfile::TempDir;

struct Nowhere;

impl AddressSink for Nowhere {
    fn write(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

fn index(tar: &[u8]) -> Arc<LayerIndex> {
    let options = IngestOptions::new(Digest::of(tar), tar.len() as u64);
    let mut ingest = Ingest::new(options, Nowhere).unwrap();
    ingest.push(tar).unwrap();
    Arc::new(ingest.finish().unwrap().0)
}

/// An image and its devices, as files.
struct Written {
    dir: TempDir,
    devices: Vec<PathBuf>,
}

impl Written {
    fn new(layers: &[Layer]) -> Written {
        let dir = TempDir::with_prefix_in("rsmount-test.", "/var/tmp").unwrap();
        let tars: Vec<_> = layers.iter().map(Layer::tar).collect();
        let indexes: Vec<_> = tars.iter().map(|tar| index(tar)).collect();
        let tree = Tree::merge(&indexes).unwrap();
        let device = |index: &Arc<LayerIndex>| Device {
            tag: index.diff_id.to_string(),
            bytes: index.address_size,
        };
        let image = Image::plan(&tree, indexes.iter().map(device).collect()).unwrap();
        let mut file = File::create(dir.path().join("image")).unwrap();
        image.write(&mut file).unwrap();
        let mut devices = Vec::new();
        for (n, (tar, device)) in tars.iter().zip(image.devices()).enumerate() {
            let path = dir.path().join(n.to_string());
            let file = File::create(&path).unwrap();
            file.write_all_at(tar, 0).unwrap();
            file.set_len(device.bytes).unwrap();
            for composed in image.composed().iter().filter(|c| c.layer as usize == n) {
                for e in tree.extents(composed.ino).1.iter() {
                    let from = usize::try_from(e.address).unwrap();
                    let piece = &tar[from..from + usize::try_from(e.len).unwrap()];
                    let at = composed.start + e.file_offset;
                    file.write_all_at(piece, at).unwrap();
                }
            }
            devices.push(path);
        }
        Written { dir, devices }
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    /// Mounts it with a device a layer.
    fn mount(&self) -> rustix::io::Result<PathBuf> {
        let context = rustix::mount::fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_set_string(&context, "source", self.image())?;
        for device in &self.devices {
            rustix::mount::fsconfig_set_string(&context, "device", device)?;
        }
        rustix::mount::fsconfig_set_flag(&context, "ro")?;
        rustix::mount::fsconfig_create(&context)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
        let mount = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        let at = self.dir.path().join("mnt");
        std::fs::create_dir(&at).unwrap();
        let here = rustix::fs::CWD;
        let from_fd = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(&mount, "", here, &at, from_fd)?;
        Ok(at)
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        let at = self.dir.path().join("mnt");
        let _not_mounted = rustix::mount::unmount(&at, UnmountFlags::DETACH);
    }
}

fn can_mount() -> bool {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let can = rustix::process::geteuid().is_root() && known.contains("\terofs\n");
    if !can {
        skip("needs root and a kernel with EROFS");
    }
    can
}

/// `fsck.erofs` of a version that can read these images; says loudly when there is none.
fn fsck() -> Option<PathBuf> {
    let dir = std::env::var_os("RSMOUNT_TEST_EROFS_UTILS").unwrap_or_default();
    let program = Path::new(&dir).join("fsck.erofs");
    let said = match Command::new(&program).arg("-V").output() {
        Ok(out) => String::from_utf8_lossy(&out.stdout).into_owned(),
        Err(e) => e.to_string(),
    };
    let version = said.split_whitespace().find_map(|word| {
        let (major, minor) = word.split_once('.')?;
        let minor = minor.split(|c: char| !c.is_ascii_digit()).next()?;
        Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
    });
    if version.is_some_and(|version| version >= (1, 8)) {
        return Some(program);
    }
    skip(&format!("needs erofs-utils 1.8 or later: {}", said.trim()));
    None
}

fn assert_mounts_as_the_model(what: &str, layers: &[Layer]) {
    let written = Written::new(layers);
    let says: Vec<Vec<Says>> = layers.iter().map(|layer| layer.says.clone()).collect();
    let at = written.mount().unwrap_or_else(|e| panic!("{what}: {e}"));
    seen::assert_same(what, &model::merged(&says), &seen::look(&at));
}

fn many_layers(count: usize) -> Vec<Layer> {
    let mut layers: Vec<Layer> = (0..count).map(|_| Layer::default()).collect();
    for (n, layer) in layers.iter_mut().enumerate() {
        edge::step(layer, n);
    }
    layers
}

#[test]
fn every_edge_case_is_what_the_model_says() {
    if can_mount() {
        assert_mounts_as_the_model("all", &edge::image(|_| true));
    }
}

/// More devices than the options of mount(2) have room for.
#[test]
fn a_hundred_and_thirty_layers_are_what_the_model_says() {
    if can_mount() {
        assert_mounts_as_the_model("130 layers", &many_layers(130));
    }
}

#[test]
fn fsck_finds_nothing_wrong() {
    let Some(fsck) = fsck() else { return };
    let mut images = vec![many_layers(12)];
    images.extend(edge::GROUPS.map(|(group, _)| edge::image(|name| name == group).to_vec()));
    images.push(edge::image(|_| true).to_vec());
    for layers in images {
        let written = Written::new(&layers);
        let mut command = Command::new(&fsck);
        for device in &written.devices {
            let mut option = std::ffi::OsString::from("--device=");
            option.push(device);
            command.arg(option);
        }
        let out = command.arg(written.image()).output().unwrap();
        assert!(out.status.success(), "{out:?}");
    }
}
