//! EROFS images of merged trees, without the product around them: mounted by the kernel directly over
//! the plain tars, against the naive model (`tests/support/model.rs`) and what `mkfs.erofs --tar` makes
//! of the same tars, and checked by `fsck.erofs`.
//!
//! The mounts need root and a kernel that mounts EROFS from a file; the rest needs erofs-utils of 1.9
//! or later. `RSMOUNT_TEST_EROFS_UTILS` may name their directory; `contrib/install-erofs-utils` builds
//! them, which is done by itself when `RSMOUNT_TEST_LONG` is set (1.5 knows no blocks of 512 bytes, the `fsck.erofs` of 1.8
//! ends by a signal on them). Both say so loudly where they are skipped.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "a test")]

#[path = "support/images.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod images;
#[path = "support/all.rs"]
mod support;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use rsmount::erofs::{Device, Image};
use rsmount::layer::{AddressSink, Ingest, IngestOptions, LayerIndex};
use rsmount::oci::Digest;
use rsmount::tree::Tree;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags};
use support::edge::{self, Layer};
use support::model::{self, Says};
use support::place::{Place, long, skip};
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

    fn mount(&self) -> rustix::io::Result<Mounted> {
        Mounted::new(&self.image(), &self.devices, self.dir.path().join("mnt"))
    }
}

/// A mount for as long as this lives.
struct Mounted(PathBuf);

impl Mounted {
    /// Mounts `image` with a device a layer at `at`, which is made.
    fn new(image: &Path, devices: &[PathBuf], at: PathBuf) -> rustix::io::Result<Mounted> {
        let context = rustix::mount::fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_set_string(&context, "source", image)?;
        for device in devices {
            rustix::mount::fsconfig_set_string(&context, "device", device)?;
        }
        rustix::mount::fsconfig_set_flag(&context, "ro")?;
        rustix::mount::fsconfig_create(&context)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
        let mount = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        std::fs::create_dir(&at).unwrap();
        let here = rustix::fs::CWD;
        let from_fd = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(&mount, "", here, &at, from_fd)?;
        Ok(Mounted(at))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _gone = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
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

/// Where they are: built in a long run or earlier, or else where the shell finds them.
fn utilities() -> PathBuf {
    static INSTALLING: Mutex<()> = Mutex::new(());
    if let Some(named) = std::env::var_os("RSMOUNT_TEST_EROFS_UTILS") {
        return named.into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    let cache = cache.unwrap_or_else(|| home().join(".cache"));
    let built = cache.join("rsmount-erofs-utils/bin");
    if built.join("mkfs.erofs").exists() {
        return built;
    }
    if !long() {
        return PathBuf::new();
    }
    let _one_at_a_time = INSTALLING.lock();
    let script = images::in_repository("contrib/install-erofs-utils");
    let printed = images::run(script.to_str().unwrap(), &[]);
    PathBuf::from(printed.trim())
}

/// A program of erofs-utils of a version that can read these images; says loudly when there is none.
fn utility(name: &str) -> Option<PathBuf> {
    let program = utilities().join(name);
    let said = match Command::new(&program).arg("-V").output() {
        Ok(out) => String::from_utf8_lossy(&out.stdout).into_owned(),
        Err(e) => e.to_string(),
    };
    let version = said.split_whitespace().find_map(|word| {
        let (major, minor) = word.split_once('.')?;
        let minor = minor.split(|c: char| !c.is_ascii_digit()).next()?;
        Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
    });
    if version.is_some_and(|version| version >= (1, 9)) {
        return Some(program);
    }
    skip(&format!(
        "needs erofs-utils 1.9 or later (contrib/install-erofs-utils): {}",
        said.trim()
    ));
    None
}

fn assert_mounts_as_the_model(what: &str, layers: &[Layer]) {
    let written = Written::new(layers);
    let says: Vec<Vec<Says>> = layers.iter().map(|layer| layer.says.clone()).collect();
    let mounted = written.mount().unwrap_or_else(|e| panic!("{what}: {e}"));
    seen::assert_same(what, &model::merged(&says), &seen::look(&mounted.0));
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
    let Some(fsck) = utility("fsck.erofs") else {
        return;
    };
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

/// What erofs-utils make of tars: an index of each, and one image that merges these. The tars are
/// its devices.
fn stock(mkfs: &Path, dir: &Path, tars: &[PathBuf]) -> Mounted {
    let make = |options: &[&str], image: &Path, from: &[PathBuf]| {
        let mut command = Command::new(mkfs);
        let out = command.args(options).arg(image).args(from).output();
        let out = out.unwrap();
        assert!(out.status.success(), "{command:?}: {out:?}");
    };
    let mut indexes = Vec::new();
    for (n, tar) in tars.iter().enumerate() {
        let index = dir.join(format!("index-{n}"));
        make(&["--tar=i", "--aufs"], &index, std::slice::from_ref(tar));
        indexes.push(index);
    }
    let image = dir.join("merged");
    // Base first: the other way round it makes another tree and says nothing.
    make(&["--ovlfs-strip=1"], &image, &indexes);
    Mounted::new(&image, tars, dir.join("stock")).unwrap()
}

/// But for what `mkfs` makes up: the root, and other directories that no tar names, get mode 0777 and
/// the time of now.
fn assert_same_as_stock(what: &str, ours: &Path, stock: &Path) {
    let (ours, mut stock) = (seen::look(ours), seen::look(stock));
    for (path, node) in &mut stock {
        if let Some(own) = ours.get(path)
            && (node.kind, own.kind) == ('d', 'd')
            && node.mode == 0o777
        {
            (node.mode, node.mtime) = (own.mode, own.mtime);
            (node.uid, node.gid) = (own.uid, own.gid);
        }
    }
    seen::assert_same(what, &stock, &ours);
}

/// The headers that it reads as everybody does. Where it does not (numbers in base 256, sparse files,
/// old headers, hard links in another layer), umoci and the model are the oracle.
#[test]
fn plain_tars_are_what_mkfs_makes_of_them() {
    let Some(mkfs) = utility("mkfs.erofs") else {
        return;
    };
    if !can_mount() {
        return;
    }
    for group in [
        "names",
        "contiguous files",
        "far times",
        "pax",
        "empty xattrs",
        "duplicates",
        "parents",
        "files as parents",
    ] {
        let layers = edge::image(|name| name == group);
        let written = Written::new(&layers);
        let ours = written.mount().unwrap();
        let dir = images::scratch();
        // Of a tar without entries `mkfs` makes nothing.
        let filled = layers.iter().filter(|layer| !layer.says.is_empty());
        let tars = filled.enumerate().map(|(n, layer)| {
            let tar = dir.path().join(format!("{n}.tar"));
            std::fs::write(&tar, layer.tar()).unwrap();
            tar
        });
        let tars: Vec<_> = tars.collect();
        assert!(!tars.is_empty(), "{group}");
        let stock = stock(&mkfs, dir.path(), &tars);
        assert_same_as_stock(group, &ours.0, &stock.0);
    }
}

#[test]
fn real_images_are_what_mkfs_makes_of_their_layers() {
    let test = "real_images_are_what_mkfs_makes_of_their_layers";
    let Some(registry) = images::registry(test) else {
        return;
    };
    let Some(mkfs) = utility("mkfs.erofs") else {
        return;
    };
    if !can_mount() {
        return;
    }
    for name in images::wanted() {
        let image = format!("{registry}/library/{name}");
        let (place, dir) = (Place::new(), images::scratch());
        let tars = images::tars(&image, dir.path());
        let options = ["--engine", "kernel", "--trust-index", "local"];
        let _ours = place.mount_image(&image, &options);
        let stock = stock(&mkfs, dir.path(), &tars);
        assert_same_as_stock(&name, &place.mnt(), &stock.0);
    }
}
