//! Images out of archives: their layers into the cache, verified, and a name for each.
//!
//! A loaded image has no registry, so its layers' data stays in the cache (it is marked as the only
//! copy), unless another name says where it can be fetched. The archive is remembered as a source: as
//! long as it is there, damaged bytes are read from it again.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use crate::archive::{self, ListedImage};
use crate::blob::ByteRange;
use crate::cache::{Cache, RememberedTag};
use crate::content::Content;
use crate::content::first_contact::{self, Wanted};
use crate::image::error::Error;
use crate::image::reach::{self, Reach};
use crate::image::store;
use crate::monitor::Monitor;
use crate::mount::MountRequest;
use crate::mount::resolve::{Image, Resolver};
use crate::mount::source::{Access, Source};
use crate::oci::{Digest, ImageName};
use crate::registry::HostsDirs;

/// An image that was loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Loaded {
    /// As people type it.
    pub name: String,
    /// Digest of what the name stands for.
    pub digest: Digest,
    /// `os/arch[/variant]`.
    pub platform: String,
}

/// Bytes of an archive that come from a pipe, in a file that has no name.
#[derive(Debug)]
pub struct Spooled(File);

impl Spooled {
    /// Takes everything that `input` gives.
    pub fn new(input: &mut dyn io::Read) -> io::Result<Spooled> {
        let flags = rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR;
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        let fd = rustix::fs::open(std::env::temp_dir(), flags, mode)?;
        let mut file = File::from(fd);
        io::copy(input, &mut file)?;
        Ok(Spooled(file))
    }

    /// A path that leads to it as long as this lives.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

/// Loads every image of the archive `file`; `name` is for one that has none. `request` says which
/// cache, which platform of an image that has several, and in its `image` what the archive is called.
/// An image that cannot be loaded leaves nothing; those before it stay.
pub fn load(
    request: &MountRequest,
    file: &Path,
    name: Option<&str>,
    monitor: &Arc<dyn Monitor>,
) -> Result<Vec<Loaded>, Error> {
    let cache = Cache::open_within(&request.cache_dir, request.cache_size)?;
    let listed = archive::list(file)?;
    let mut names = Vec::new();
    for image in &listed {
        names.push(names_of(image, name, listed.len(), file)?);
    }
    let mut loaded = Vec::new();
    for (image, names) in listed.iter().zip(names) {
        let one = Loading {
            request,
            cache: &cache,
            access: Access {
                name: image.image.clone(),
                insecure_registries: Vec::new(),
                ca_files: Vec::new(),
                hosts: HostsDirs::default(),
                own_registry: None,
            },
        };
        loaded.extend(one.run(&names, image, monitor)?);
    }
    Ok(loaded)
}

/// Whole names under which an image will be known.
fn names_of(
    image: &ListedImage,
    given: Option<&str>,
    images: usize,
    file: &Path,
) -> Result<Vec<String>, Error> {
    let whole = |name: &String| {
        let has_tag = name.contains([':', '/']);
        let parsed = name.parse::<ImageName>();
        matches!(&parsed, Ok(ImageName::Registry(_)) if has_tag).then(|| name.clone())
    };
    let names: Vec<String> = image.names.iter().filter_map(whole).collect();
    if let Some(given) = given {
        store::name(given)?;
        if images > 1 {
            let what = format!(
                "{}: {images} images in it, so --name is not clear",
                file.display()
            );
            return Err(Error::Name(what));
        }
        return Ok(vec![given.to_owned()]);
    }
    if names.is_empty() {
        let what = "an image without a name in it: give it one with --name";
        return Err(Error::File {
            path: file.to_owned(),
            what: what.to_owned(),
        });
    }
    Ok(names)
}

struct Loading<'a> {
    request: &'a MountRequest,
    cache: &'a Cache,
    access: Access,
}

impl Loading<'_> {
    fn run(
        &self,
        names: &[String],
        listed: &ListedImage,
        monitor: &Arc<dyn Monitor>,
    ) -> Result<Vec<Loaded>, Error> {
        let resolver = Resolver::new(self.request, &self.access, self.cache)?;
        let runtime = Content::new_runtime()
            .map_err(crate::mount::Error::io("cannot start the network threads"))?;
        let (image, source) = runtime.block_on(async {
            let source = self.access.open()?;
            let top = resolver.top(&source).await?;
            let image = resolver.image_of(&source, &top).await?;
            Ok::<_, Error>((image, source))
        })?;
        let key = self.access.name.to_string();
        let top = self
            .cache
            .tag(&key)
            .ok_or_else(|| Error::Gone(image.digest.clone()))?;
        // The archive may go: what is loaded has a name of its own.
        self.cache.forget_tag(&key)?;
        let taken = self.soles(&image).and_then(|soles| {
            let taken = runtime.block_on(self.take(&image, &soles, &source, monitor));
            taken.and_then(|()| self.check_whole(&image))
        });
        if let Err(error) = taken {
            // The other layers end, or are given up, before anybody looks what has come.
            drop(runtime);
            let mut reach = Reach::default();
            reach.add(self.cache, &top);
            reach::drop_unreachable(self.cache, &reach)?;
            return Err(error);
        }
        let mut loaded = Vec::new();
        for name in names {
            let whole = ImageName::Registry(store::name(name)?);
            let tag = RememberedTag {
                sources: vec![self.source(listed).to_string()],
                ..top.clone()
            };
            store::rename(self.cache, &whole.to_string(), tag)?;
            loaded.push(Loaded {
                name: store::name(name)?.familiar(),
                digest: top.digest.clone(),
                platform: image.platform.to_string(),
            });
        }
        Ok(loaded)
    }

    /// Layers that are not here whole come from the archive.
    async fn take(
        &self,
        image: &Image,
        soles: &HashSet<Digest>,
        source: &Source,
        monitor: &Arc<dyn Monitor>,
    ) -> Result<(), Error> {
        let mut wanted = Vec::new();
        for (layer, diff_id) in image.manifest.layers.iter().zip(&image.config.diff_ids) {
            let sole = soles.contains(&layer.digest);
            if let Some(stored) = self.cache.layer(&layer.digest)? {
                if sole {
                    // Before it is looked at, so that nothing of it goes after.
                    stored.set_sole(true)?;
                }
                let pages = stored.pages()?;
                if !pages.is_present(ByteRange::new(0, pages.size())) {
                    stored.forget()?;
                }
            }
            wanted.push(Wanted {
                descriptor: layer.clone(),
                diff_id: diff_id.clone(),
                blob: source.blob(layer)?,
                sole,
            });
        }
        first_contact::ingest(self.cache, wanted, monitor.clone()).await?;
        Ok(())
    }

    /// The layers that no registry is known to have.
    fn soles(&self, image: &Image) -> Result<HashSet<Digest>, Error> {
        let mut elsewhere = Reach::default();
        for (_, tag) in reach::names(self.cache)? {
            if tag.sources.is_empty() {
                elsewhere.add(self.cache, &tag);
            }
        }
        let layers = image.manifest.layers.iter().map(|layer| &layer.digest);
        let soles = layers.filter(|digest| !elsewhere.layers.contains(digest));
        Ok(soles.cloned().collect())
    }

    /// The archive may go now: what nobody else has must be here, all of it.
    fn check_whole(&self, image: &Image) -> Result<(), Error> {
        for layer in &image.manifest.layers {
            let stored = self.cache.layer(&layer.digest)?;
            let gone = || Error::Gone(layer.digest.clone());
            let stored = stored.ok_or_else(gone)?;
            let pages = stored.pages()?;
            if stored.is_sole()? && !pages.is_present(ByteRange::new(0, pages.size())) {
                return Err(gone());
            }
        }
        Ok(())
    }

    /// A name of the archive that can be written down.
    fn source(&self, listed: &ListedImage) -> ImageName {
        let file = PathBuf::from(&self.request.image);
        match &listed.image {
            ImageName::DockerArchive { name, .. } => ImageName::DockerArchive {
                file,
                name: name.clone(),
            },
            _ => {
                let tag = listed
                    .names
                    .first()
                    .and_then(|name| name.rsplit(':').next());
                let tag = tag.map(String::from);
                ImageName::OciArchive { file, tag }
            }
        }
    }
}
