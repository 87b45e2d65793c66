//! The EROFS image of a mount, made of the merged tree or found in the cache: the image, then what is
//! needed to serve its devices (JSON), then the length of that.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

use crate::cache::{Cache, CacheError};
use crate::erofs::{Composed, Device, ErofsError, Image};
use crate::oci::Digest;
use crate::tree::{Ino, Tree};

/// What is stored: this program's version, and one of the format that goes up with every change of
/// what the same tree gives.
const KIND: &str = concat!("erofs-1-", env!("CARGO_PKG_VERSION"));

/// Longest description of devices: some hundred bytes a composed file.
const ABOUT_BYTES_MAX: u64 = 64 << 20;

/// Tag of the device behind the layers' devices. It has no bytes: the kernel holds its file open as
/// long as the mount lives, also when all layers are lent, so that the worker hears of the end.
const END: &str = "rsmount";

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageFileError {
    /// The tree does not fit the format.
    #[error(transparent)]
    Erofs(#[from] ErofsError),
    /// It cannot be stored.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// An image that can be mounted.
#[derive(Debug)]
pub(super) struct ImageFile {
    pub(super) file: File,
    /// Base first; behind the layers' one more.
    pub(super) devices: Vec<Device>,
    pub(super) composed: Vec<Composed>,
}

/// What is stored behind an image.
#[derive(Serialize, Deserialize)]
struct About {
    /// Tag and length of each device.
    devices: Vec<(String, u64)>,
    /// Layer, start, inode and length of each composed file.
    composed: Vec<(u32, u64, u64, u64)>,
}

impl ImageFile {
    /// The image that was stored for `key`, checked.
    pub(super) fn stored(cache: &Cache, key: &Digest) -> Option<ImageFile> {
        let derived = cache.derived(key, KIND, &mut |_| {})?;
        let mut len = [0; 8];
        let about_end = derived.bytes.checked_sub(8)?;
        derived.file.read_exact_at(&mut len, about_end).ok()?;
        let len = Some(u64::from_le_bytes(len)).filter(|len| *len <= ABOUT_BYTES_MAX)?;
        let mut about = vec![0; len as usize];
        let start = about_end.checked_sub(len)?;
        derived.file.read_exact_at(&mut about, start).ok()?;
        ImageFile::new(derived.file, serde_json::from_slice(&about).ok()?)
    }

    /// Makes the image of `tree`, whose layers have these tags and lengths; kept when there is a
    /// `key`.
    pub(super) fn make(
        cache: &Cache,
        key: Option<&Digest>,
        tree: &Tree,
        mut layers: Vec<Device>,
    ) -> Result<ImageFile, ImageFileError> {
        layers.push(Device {
            tag: END.to_owned(),
            bytes: 0,
        });
        let image = Image::plan(tree, layers)?;
        let devices = image.devices().iter().cloned();
        let composed = image.composed().iter();
        let about = About {
            devices: devices.map(|d| (d.tag, d.bytes)).collect(),
            composed: composed
                .map(|c| (c.layer, c.start, c.ino.get(), c.bytes))
                .collect(),
        };
        let derived = cache.derive(key, KIND, &mut |out| write(&image, &about, out))?;
        let made = ImageFile::new(derived.file, about);
        made.ok_or(ImageFileError::Erofs(ErofsError::TooLarge))
    }

    fn new(file: File, about: About) -> Option<ImageFile> {
        let composed = |(layer, start, ino, bytes)| {
            Some(Composed {
                layer,
                start,
                ino: Ino::from_raw(ino)?,
                bytes,
            })
        };
        let devices = about.devices.into_iter();
        Some(ImageFile {
            file,
            devices: devices.map(|(tag, bytes)| Device { tag, bytes }).collect(),
            composed: about
                .composed
                .into_iter()
                .map(composed)
                .collect::<Option<_>>()?,
        })
    }

    /// How many inodes the file system of its devices has: a directory and the files.
    pub(super) fn inodes(&self) -> u64 {
        1 + self.devices.len() as u64
    }

    /// Says where everything is in the devices.
    pub(super) fn plan(&self) -> Digest {
        let composed =
            |c: &Composed| format!("{} {} {} {}", c.layer, c.start, c.ino.get(), c.bytes);
        let devices = self
            .devices
            .iter()
            .map(|d| format!("{} {}", d.tag, d.bytes));
        let lines: Vec<String> = devices.chain(self.composed.iter().map(composed)).collect();
        Digest::of(lines.join("\n").as_bytes())
    }

    /// Whether the device of layer `n` is nothing but the layer.
    pub(super) fn is_plain(&self, n: usize) -> bool {
        self.composed.iter().all(|c| c.layer as usize != n)
    }
}

fn write(image: &Image<'_>, about: &About, out: &mut dyn Write) -> io::Result<()> {
    image.write(out)?;
    let about = serde_json::to_vec(about)?;
    out.write_all(&about)?;
    out.write_all(&(about.len() as u64).to_le_bytes())
}
