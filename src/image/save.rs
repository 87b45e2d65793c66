//! Archives of images: what `docker save` and `skopeo copy … oci-archive:` write, with the layers as
//! the registry has them.
//!
//! Compressed originals are not kept here, and nothing is ever compressed again: layers stream from
//! where the image came from. Layers that were never compressed are their own originals, and come from
//! the cache when they are here whole. The archive appears under its name when all of it has been
//! written and every digest has matched.
//!
//! A `docker-archive` is an OCI layout as well, as `docker save` makes it since version 25, so that
//! whoever reads it finds the manifest with its digest.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::StreamExt;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use serde_json::{Value, json};
use tar::{EntryType, Header};

use crate::blob::{Blob, ByteRange};
use crate::cache::{Cache, Pages, Presence};
use crate::content::Content;
use crate::image::error::Error;
use crate::layer::codec;
use crate::monitor::{Event, Monitor};
use crate::mount::resolve::Image;
use crate::mount::source::{Here, LateSource};
use crate::mount::{MountRequest, lookup, source};
use crate::oci::digest::Verifier;
use crate::oci::{Compression, Descriptor, Digest, ImageName};

/// Unit of a tar, in bytes.
const BLOCK_BYTES: u64 = 512;
/// Bytes that are read from the cache at once.
const PIECE_BYTES: u64 = 1 << 20;
/// Progress is reported each time this many bytes have come.
const PROGRESS_BYTES: u64 = 1 << 20;
/// The media type of a manifest that does not say its own.
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Which kind of archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// What `docker load` takes.
    Docker,
    /// An OCI layout in a tar.
    Oci,
}

/// An image on its way out.
struct Saved {
    typed: String,
    name: Option<String>,
    tag: Option<String>,
    image: Image,
    manifest: Vec<u8>,
    config: Vec<u8>,
    layers: Vec<Arc<dyn Blob>>,
}

/// Writes the images of `requests` to `out`.
pub fn save(
    requests: &[MountRequest],
    format: Format,
    out: &mut dyn Write,
    monitor: &dyn Monitor,
) -> Result<(), Error> {
    let mut images = Vec::new();
    for request in requests {
        images.push(saved(request)?);
    }
    let mut archive = Archive {
        out,
        written: BTreeSet::new(),
        monitor,
    };
    archive.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    archive.file("index.json", index(&images).to_string().as_bytes())?;
    if format == Format::Docker {
        let listed: Vec<Value> = images.iter().map(listed).collect();
        archive.file("manifest.json", Value::Array(listed).to_string().as_bytes())?;
    }
    let runtime = Content::new_runtime()
        .map_err(crate::mount::Error::io("cannot start the network threads"))?;
    for (request, image) in requests.iter().zip(&images) {
        archive.document(&image.image.digest, &image.manifest)?;
        archive.document(&image.image.manifest.config.digest, &image.config)?;
        let cache = Cache::open_within(&request.cache_dir, request.cache_size)?;
        for (layer, blob) in image.image.manifest.layers.iter().zip(&image.layers) {
            if !archive.written.insert(layer.digest.clone()) {
                continue;
            }
            let written = match here(&cache, layer)? {
                Some(pages) => archive.copy_cached(layer, &pages),
                None => runtime.block_on(archive.stream(layer, &**blob)),
            };
            written.map_err(|error| error.about(&image.typed, layer))?;
        }
    }
    archive.end()
}

fn saved(request: &MountRequest) -> Result<Saved, Error> {
    let cache = Cache::open_within(&request.cache_dir, request.cache_size)?;
    let image = lookup(request, &cache)?;
    let document = |digest: &Digest| {
        let found = cache.document(digest);
        found.ok_or_else(|| Error::Gone(digest.clone()))
    };
    let access = source::access(request)?;
    let (name, tag) = match &access.name {
        ImageName::Registry(name) => (name.tag().map(|_| name.familiar()), name.tag()),
        _ => (None, None),
    };
    // A name with a digest as well is not one that an archive can have.
    let name = name.map(|n| n.split('@').next().unwrap_or(&n).to_owned());
    let tag = tag.map(String::from);
    let here = Here {
        cache: cache.clone(),
        offline: request.offline,
    };
    let late = LateSource::new(access.clone(), &image.sources, None, here);
    let layers = image.manifest.layers.iter();
    Ok(Saved {
        typed: request.image.clone(),
        name,
        tag,
        manifest: document(&image.digest)?,
        config: document(&image.manifest.config.digest)?,
        layers: layers.map(|layer| late.blob(layer.clone())).collect(),
        image,
    })
}

/// `index.json`, where containerd, podman and skopeo look for names.
fn index(images: &[Saved]) -> Value {
    let descriptor = |saved: &Saved| {
        let own: Option<Value> = serde_json::from_slice(&saved.manifest).ok();
        let own = own.as_ref().and_then(|m| m["mediaType"].as_str());
        let mut annotations = serde_json::Map::new();
        if let Some(name) = &saved.name {
            let full = name.parse::<ImageName>().map(|n| n.to_string());
            let full = full.unwrap_or_else(|_| name.clone());
            annotations.insert("io.containerd.image.name".to_owned(), full.into());
        }
        if let Some(tag) = &saved.tag {
            let key = "org.opencontainers.image.ref.name".to_owned();
            annotations.insert(key, tag.clone().into());
        }
        json!({
            "mediaType": own.unwrap_or(OCI_MANIFEST),
            "digest": saved.image.digest,
            "size": saved.manifest.len(),
            "annotations": annotations,
        })
    };
    let manifests: Vec<Value> = images.iter().map(descriptor).collect();
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    })
}

/// An image in Docker's `manifest.json`.
fn listed(saved: &Saved) -> Value {
    let layers = saved.image.manifest.layers.iter();
    let layers: Vec<String> = layers.map(|layer| place(&layer.digest)).collect();
    json!({
        "Config": place(&saved.image.manifest.config.digest),
        "RepoTags": saved.name.iter().collect::<Vec<_>>(),
        "Layers": layers,
    })
}

fn place(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

/// The pages of a layer that is its own original and here whole.
fn here(cache: &Cache, layer: &Descriptor) -> Result<Option<Pages>, Error> {
    let Some(stored) = cache.layer(&layer.digest)? else {
        return Ok(None);
    };
    let plain = codec::decode(&stored.index()?).is_ok_and(|i| i.compression == Compression::None);
    let pages = stored.pages()?;
    let whole = pages.is_present(ByteRange::new(0, pages.size()));
    Ok((plain && whole && pages.size() == layer.size).then_some(pages))
}

/// A tar that is written.
struct Archive<'a> {
    out: &'a mut dyn Write,
    /// Blobs that are in it.
    written: BTreeSet<Digest>,
    monitor: &'a dyn Monitor,
}

impl Archive<'_> {
    fn head(&mut self, name: &str, size: u64) -> Result<(), Error> {
        let mut header = Header::new_gnu();
        header.set_path(name).map_err(Error::Output)?;
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        header.set_cksum();
        self.write(header.as_bytes())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.out.write_all(bytes).map_err(Error::Output)
    }

    fn pad(&mut self, size: u64) -> Result<(), Error> {
        let padding = size.next_multiple_of(BLOCK_BYTES) - size;
        self.write(&[0; BLOCK_BYTES as usize][..padding as usize])
    }

    fn file(&mut self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        self.head(name, bytes.len() as u64)?;
        self.write(bytes)?;
        self.pad(bytes.len() as u64)
    }

    fn document(&mut self, digest: &Digest, bytes: &[u8]) -> Result<(), Error> {
        match self.written.insert(digest.clone()) {
            true => self.file(&place(digest), bytes),
            false => Ok(()),
        }
    }

    fn copy_cached(&mut self, layer: &Descriptor, pages: &Pages) -> Result<(), Error> {
        self.head(&place(&layer.digest), layer.size)?;
        let mut verifier = Verifier::new(layer.digest.clone());
        let (mut at, mut scratch) = (0, Vec::new());
        while at < layer.size {
            let range = ByteRange::new(at, layer.size.min(at + PIECE_BYTES));
            let mut bytes = vec![0; range.len() as usize];
            if pages.read(range, &mut bytes, &mut scratch)? != Presence::Read {
                return Err(Error::Gone(layer.digest.clone()));
            }
            verifier.update(&bytes);
            self.write(&bytes)?;
            at = range.end();
        }
        self.finish(layer, verifier)
    }

    async fn stream(&mut self, layer: &Descriptor, blob: &dyn Blob) -> Result<(), Error> {
        let mut stream = blob.open(ByteRange::new(0, layer.size)).await?;
        self.head(&place(&layer.digest), layer.size)?;
        self.monitor.event(Event::LayerStarted {
            layer: layer.digest.clone(),
            size: layer.size,
        });
        let mut verifier = Verifier::new(layer.digest.clone());
        let (mut arrived, mut reported) = (0, 0);
        while let Some(bytes) = stream.next().await {
            let bytes = bytes?;
            verifier.update(&bytes);
            self.write(&bytes)?;
            arrived += bytes.len() as u64;
            if arrived - reported >= PROGRESS_BYTES {
                reported = arrived;
                let layer = layer.digest.clone();
                let bytes = arrived;
                self.monitor.event(Event::LayerProgress { layer, bytes });
            }
        }
        self.finish(layer, verifier)?;
        let layer = layer.digest.clone();
        self.monitor.event(Event::LayerDone { layer });
        Ok(())
    }

    fn finish(&mut self, layer: &Descriptor, verifier: Verifier) -> Result<(), Error> {
        verifier.finish().map_err(|mismatch| {
            let what = format!("layer {}: {mismatch}", layer.digest);
            crate::blob::Error::new(crate::blob::ErrorKind::Corrupt, what)
        })?;
        self.pad(layer.size)
    }

    fn end(mut self) -> Result<(), Error> {
        self.write(&[0; 2 * BLOCK_BYTES as usize])?;
        self.out.flush().map_err(Error::Output)
    }
}

impl Error {
    /// Says which original is missing.
    fn about(self, image: &str, layer: &Descriptor) -> Error {
        match self {
            Error::Blob(source) => Error::Original {
                image: image.to_owned(),
                layer: layer.digest.clone(),
                source,
            },
            other => other,
        }
    }
}

/// A file that appears under its name when it is whole. Until then it has none, so that nothing is
/// left of one that is never finished, however that ends; where the file system cannot do that, it
/// has a hidden one.
///
/// A name that stands for a pipe, a terminal or `/dev/null` goes on doing so: it is written into. Of a
/// symbolic link to a file the file is replaced.
#[derive(Debug)]
pub struct WholeFile {
    path: PathBuf,
    partial: PathBuf,
    nameless: bool,
    /// Whether `path` itself is written into.
    direct: bool,
    file: io::BufWriter<File>,
}

impl WholeFile {
    /// Starts to write what will be `path`.
    pub fn create(path: &Path) -> Result<WholeFile, Error> {
        let refused = |what: &str| Error::File {
            path: path.to_owned(),
            what: what.to_owned(),
        };
        let kind = path.metadata().map(|meta| meta.file_type()).ok();
        let real = match kind {
            Some(kind) if kind.is_dir() => return Err(refused("is a directory")),
            Some(kind) if kind.is_fifo() || kind.is_char_device() => {
                return WholeFile::into_stream(path);
            }
            Some(kind) if kind.is_file() => path.canonicalize(),
            Some(_) => return Err(refused("is neither a file nor a pipe; name another")),
            None => Ok(path.to_owned()),
        };
        let path = &real.map_err(|e| Error::file(path, e))?;
        let mut name = OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(format!(".{}-{:08x}", std::process::id(), fastrand::u32(..)));
        let partial = path.with_file_name(name);
        let directory = path.parent().filter(|p| !p.as_os_str().is_empty());
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let nameless = rustix::fs::open(
            directory.unwrap_or(Path::new(".")),
            flags,
            Mode::from_raw_mode(0o666),
        );
        let (file, nameless) = match nameless {
            Ok(fd) => (File::from(fd), true),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
                let file = File::create_new(&partial).map_err(|e| Error::file(path, e))?;
                (file, false)
            }
            Err(e) => return Err(Error::file(path, e)),
        };
        Ok(WholeFile {
            path: path.to_owned(),
            partial,
            nameless,
            direct: false,
            file: io::BufWriter::with_capacity(PIECE_BYTES as usize, file),
        })
    }

    fn into_stream(path: &Path) -> Result<WholeFile, Error> {
        let file = File::options().write(true).open(path);
        let file = file.map_err(|e| Error::file(path, e))?;
        Ok(WholeFile {
            path: path.to_owned(),
            partial: PathBuf::new(),
            nameless: false,
            direct: true,
            file: io::BufWriter::with_capacity(PIECE_BYTES as usize, file),
        })
    }

    /// Gives it its name, in place of what had it.
    pub fn finish(mut self) -> Result<(), Error> {
        let failed = |e| Error::file(&self.path, e);
        self.file.flush().map_err(failed)?;
        if self.direct {
            return Ok(());
        }
        if self.nameless {
            // linkat(2): the way for who may not link an empty path.
            let descriptor = format!("/proc/self/fd/{}", self.file.get_ref().as_raw_fd());
            let (from, to) = (rustix::fs::CWD, &self.partial);
            rustix::fs::linkat(from, descriptor, from, to, AtFlags::SYMLINK_FOLLOW)
                .map_err(|e| failed(e.into()))?;
        }
        std::fs::rename(&self.partial, &self.path).map_err(failed)
    }
}

impl Write for WholeFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for WholeFile {
    fn drop(&mut self) {
        // Nothing is there once it has its name; an empty path is nobody's.
        let _gone = std::fs::remove_file(&self.partial);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn write(path: &Path) -> Result<(), Error> {
        let mut file = WholeFile::create(path)?;
        file.write_all(b"archive").unwrap();
        file.finish()
    }

    #[test]
    fn what_is_no_file_is_written_into() {
        let place = tempfile::tempdir().unwrap();
        let (pipe, target, link) = (
            place.path().join("pipe"),
            place.path().join("target"),
            place.path().join("link"),
        );
        let mode = Mode::from_raw_mode(0o600);
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, fifo, mode, 0).unwrap();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| std::fs::read(&pipe).unwrap());
            write(&pipe).unwrap();
            assert_eq!(reader.join().unwrap(), b"archive");
        });
        assert!(pipe.metadata().unwrap().file_type().is_fifo());
        let null = place.path().join("null");
        let device = rustix::fs::FileType::CharacterDevice;
        let (mode, number) = (Mode::from_raw_mode(0o666), rustix::fs::makedev(1, 3));
        // Making one needs root.
        if rustix::fs::mknodat(rustix::fs::CWD, &null, device, mode, number).is_ok() {
            write(&null).unwrap();
            assert!(null.metadata().unwrap().file_type().is_char_device());
        }
        std::fs::write(&target, b"before").unwrap();
        symlink("target", &link).unwrap();
        write(&link).unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read(&target).unwrap(), b"archive");
        let socket = place.path().join("socket");
        let _bound = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(write(&socket).is_err());
        assert!(socket.metadata().unwrap().file_type().is_socket());
    }
}
