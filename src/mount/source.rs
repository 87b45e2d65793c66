//! Where an image's documents and blobs come from: a registry, a layout, or an archive.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OnceCell, Semaphore};

use crate::archive::{self, Archive};
use crate::blob::limit::Limit;
use crate::blob::retry::{Policy, Retry};
use crate::blob::{self, Blob, BoxFuture, Busy, ByteRange, ByteStream};
use crate::cache::Cache;
use crate::mount::error::Error;
use crate::oci::manifest::MANIFEST_BYTES_MAX;
use crate::oci::reference::ReferenceError;
use crate::oci::{Descriptor, Digest, ImageName};
use crate::registry::{self, HostUse, HostsDirs, Registry, Settings};

/// Streams that one source may have open at the same time: with the connection on which a tag is
/// asked for behind the mount, a host sees eight.
const STREAMS_MAX: usize = 7;

/// What has to be known to reach an image's source.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    pub(crate) name: ImageName,
    pub(crate) insecure_registries: Vec<String>,
    pub(crate) ca_files: Vec<PathBuf>,
    pub(crate) hosts: HostsDirs,
    /// The registry that the command names: only it gets the credentials of the environment, unless
    /// those name another themselves.
    pub(crate) own_registry: Option<String>,
}

/// An opened source.
#[derive(Debug)]
pub(crate) enum Source {
    Registry {
        registry: Box<Registry>,
        streams: Arc<Semaphore>,
        busy: Busy,
    },
    Archive(Box<Archive>),
}

impl Access {
    /// Where credentials come from.
    pub(crate) fn credentials(&self) -> registry::Source {
        registry::Source::from_environment(self.own_registry.as_deref())
    }

    /// The same way to another image.
    pub(crate) fn of(&self, name: &ImageName) -> Access {
        Access {
            name: name.clone(),
            ..self.clone()
        }
    }

    /// Opens the source. For a registry nothing is sent yet.
    pub(crate) fn open(&self) -> Result<Source, blob::Error> {
        let archive = match &self.name {
            ImageName::Registry(reference) => {
                let settings = Settings {
                    insecure_hosts: self.insecure_registries.clone(),
                    ca_files: self.ca_files.clone(),
                    hosts: self.hosts.clone(),
                    credentials: self.credentials(),
                    ..Settings::default()
                };
                let registry = Box::new(Registry::new(reference, settings)?);
                return Ok(Source::Registry {
                    registry,
                    streams: Arc::new(Semaphore::new(STREAMS_MAX)),
                    busy: Busy::default(),
                });
            }
            ImageName::Layout { dir, tag } => archive::open_layout(dir, tag.as_deref()),
            ImageName::DockerArchive { file, name } => archive::open_docker(file, name.as_deref()),
            ImageName::OciArchive { file, tag } => archive::open_oci(file, tag.as_deref()),
        };
        Ok(Source::Archive(Box::new(archive?)))
    }

    /// Name of the source, for people.
    pub(crate) fn describe(&self) -> String {
        match &self.name {
            ImageName::Registry(reference) => reference.registry().to_owned(),
            ImageName::Layout { dir, .. } => display(dir),
            ImageName::DockerArchive { file, .. } | ImageName::OciArchive { file, .. } => {
                display(file)
            }
        }
    }
}

fn display(path: &Path) -> String {
    path.display().to_string()
}

/// A manifest or index as the source gave it.
#[derive(Debug, Clone)]
pub(crate) struct Document {
    pub(crate) bytes: Bytes,
    pub(crate) media_type: Option<String>,
    pub(crate) digest: Digest,
}

impl Source {
    /// The manifest or index that the name stands for.
    pub(crate) async fn top(&self, name: &ImageName) -> Result<Document, blob::Error> {
        match (self, name) {
            (Source::Registry { registry, .. }, ImageName::Registry(reference)) => {
                fetch_manifest(registry, &reference.tag_or_digest()).await
            }
            (Source::Archive(archive), _) => {
                let (bytes, media_type) = archive.manifest()?;
                let digest = Digest::of(&bytes);
                Ok(Document {
                    bytes: bytes.into(),
                    media_type,
                    digest,
                })
            }
            (Source::Registry { .. }, _) => Err(blob::Error::new(
                blob::ErrorKind::Unsupported,
                "the name is not of this source",
            )),
        }
    }

    /// The manifest with a digest, by whatever name it was found first.
    pub(crate) async fn pinned(&self, digest: &Digest) -> Result<Document, blob::Error> {
        match self {
            Source::Registry { registry, .. } => {
                fetch_manifest(registry, &digest.to_string()).await
            }
            Source::Archive(archive) => Ok(Document {
                bytes: archive.document(digest, MANIFEST_BYTES_MAX)?.into(),
                media_type: None,
                digest: digest.clone(),
            }),
        }
    }

    /// A manifest that an index names.
    pub(crate) async fn manifest(&self, of: &Descriptor) -> Result<Document, blob::Error> {
        match self {
            Source::Registry { registry, .. } => {
                fetch_manifest(registry, &of.digest.to_string()).await
            }
            Source::Archive(archive) => {
                let bytes = archive.document(&of.digest, MANIFEST_BYTES_MAX)?.into();
                let media_type = Some(of.media_type.clone());
                Ok(Document {
                    bytes,
                    media_type,
                    digest: of.digest.clone(),
                })
            }
        }
    }

    /// A small blob, verified.
    pub(crate) async fn small(&self, of: &Descriptor, max: u64) -> Result<Bytes, blob::Error> {
        match self {
            Source::Registry { registry, .. } => registry.blob_bytes(of, max).await,
            Source::Archive(archive) => Ok(archive.document(&of.digest, max)?.into()),
        }
    }

    /// What the hosts of a registry have done; none of an archive.
    pub(crate) fn hosts(&self) -> Vec<HostUse> {
        match self {
            Source::Registry { registry, .. } => registry.hosts(),
            Source::Archive(_) => Vec::new(),
        }
    }

    /// A layer, read by range. The order of the wrappers: a retry gives its permit back before it
    /// waits, so that one slow blob does not hold the host's connections.
    pub(crate) fn blob(&self, of: &Descriptor) -> Result<Arc<dyn Blob>, blob::Error> {
        match self {
            Source::Registry {
                registry,
                streams,
                busy,
            } => {
                let limited = Limit::new(registry.blob(of), streams.clone());
                let retried = Retry::new(limited, Policy::default());
                Ok(Arc::new(retried.telling(busy.clone())))
            }
            Source::Archive(archive) => archive.blob(of),
        }
    }
}

async fn fetch_manifest(registry: &Registry, wanted: &str) -> Result<Document, blob::Error> {
    let fetched = registry.resolve(wanted).await?;
    Ok(Document {
        bytes: fetched.bytes,
        media_type: fetched.media_type,
        digest: fetched.digest,
    })
}

/// Sources that are opened by the first byte that is needed from them: a mount whose bytes are local
/// has no TLS and reads no certificates.
#[derive(Debug)]
pub(crate) struct LateSource {
    places: Vec<Place>,
    here: Here,
    out_of_reach: OnceLock<OutOfReach>,
}

/// What is done when a source cannot be reached.
struct OutOfReach(Box<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for OutOfReach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OutOfReach")
    }
}

/// One source.
#[derive(Debug)]
struct Place {
    access: Access,
    opened: OnceCell<Source>,
}

impl LateSource {
    /// `opened` is the source of `access`, when somebody has opened it already; `sources` names the
    /// images that have the bytes instead of it, if there are any.
    pub(crate) fn new(
        access: Access,
        sources: &[ImageName],
        opened: Option<Source>,
        here: Here,
    ) -> Arc<LateSource> {
        let elsewhere = |name: &ImageName| Place {
            access: access.of(name),
            opened: OnceCell::new(),
        };
        let mut places: Vec<Place> = sources.iter().map(elsewhere).collect();
        if places.is_empty() {
            let opened = OnceCell::new_with(opened);
            places.push(Place { access, opened });
        }
        Arc::new(LateSource {
            places,
            here,
            out_of_reach: OnceLock::new(),
        })
    }

    /// Whose sources these are.
    pub(crate) fn names(&self) -> Vec<ImageName> {
        let names = self.places.iter().map(|place| &place.access.name);
        names.cloned().collect()
    }

    /// Does this whenever a source cannot be reached after some tries.
    pub(crate) fn when_out_of_reach(&self, act: Box<dyn Fn() + Send + Sync>) {
        let _once = self.out_of_reach.set(OutOfReach(act));
    }

    /// A layer of this source.
    pub(crate) fn blob(self: &Arc<Self>, of: Descriptor) -> Arc<dyn Blob> {
        Arc::new(LateBlob {
            source: self.clone(),
            descriptor: of,
            opened: OnceCell::new(),
        })
    }

    /// What the hosts that were asked have done.
    pub(crate) fn hosts(&self) -> Vec<HostUse> {
        let opened = self.places.iter().filter_map(|place| place.opened.get());
        opened.flat_map(Source::hosts).collect()
    }

    async fn find(&self, of: &Descriptor, range: ByteRange) -> Result<Opened, blob::Error> {
        if let Some(opened) = self.here.open(of, range).await? {
            return Ok(opened);
        }
        let mut refused = None;
        for place in &self.places {
            match place.open(of, range, self.here.offline).await {
                Ok(opened) => return Ok(opened),
                // Another place may have it, but one that is away for a while may come back.
                Err(e) if e.is_transient() => return Err(e),
                Err(e) => refused = refused.or(Some(e)),
            }
        }
        Err(refused.unwrap_or_else(|| {
            let what = format!("no source of layer {} is known", of.digest);
            blob::Error::new(blob::ErrorKind::NotFound, what)
        }))
    }
}

/// What this machine has and allows.
#[derive(Debug)]
pub(crate) struct Here {
    /// Holds blobs that no registry has.
    pub(crate) cache: Cache,
    /// Never use the network.
    pub(crate) offline: bool,
}

impl Here {
    /// A blob that was made here.
    async fn open(&self, of: &Descriptor, range: ByteRange) -> Result<Option<Opened>, blob::Error> {
        let kept = self.cache.blob(&of.digest).map_err(|e| {
            let what = format!("layer {}: {e}", of.digest);
            blob::Error::new(blob::ErrorKind::Corrupt, what)
        })?;
        let Some(file) = kept else {
            return Ok(None);
        };
        let name = format!("layer {}", of.digest);
        let blob: Arc<dyn Blob> = Arc::new(archive::file_blob(file, &name, of)?);
        let stream = blob.open(range).await?;
        Ok(Some((blob, stream)))
    }
}

/// A blob, and the range of it that was asked for.
type Opened = (Arc<dyn Blob>, ByteStream);

impl Place {
    async fn open(
        &self,
        of: &Descriptor,
        range: ByteRange,
        offline: bool,
    ) -> Result<Opened, blob::Error> {
        if offline && matches!(self.access.name, ImageName::Registry(_)) {
            let message = "the bytes are not in the cache and --offline was given";
            return Err(blob::Error::new(blob::ErrorKind::Unsupported, message));
        }
        let open = async || self.access.open();
        let blob = self.opened.get_or_try_init(open).await?.blob(of)?;
        let stream = blob.open(range).await?;
        Ok((blob, stream))
    }
}

/// A layer of a [`LateSource`].
#[derive(Debug)]
struct LateBlob {
    source: Arc<LateSource>,
    descriptor: Descriptor,
    opened: OnceCell<Arc<dyn Blob>>,
}

impl Blob for LateBlob {
    fn digest(&self) -> &Digest {
        &self.descriptor.digest
    }

    fn size(&self) -> u64 {
        self.descriptor.size
    }

    fn busy(&self) -> Option<Duration> {
        self.opened.get().and_then(|blob| blob.busy())
    }

    fn ignores_ranges(&self) -> bool {
        let opened = self.opened.get();
        opened.is_some_and(|blob| blob.ignores_ranges())
    }

    fn distrust(&self, range: ByteRange) -> bool {
        self.opened.get().is_some_and(|blob| blob.distrust(range))
    }

    fn avoid(&self, range: ByteRange) -> bool {
        self.opened.get().is_some_and(|blob| blob.avoid(range))
    }

    fn open(&self, range: ByteRange) -> BoxFuture<'_, Result<ByteStream, blob::Error>> {
        Box::pin(async move {
            let opened = match self.opened.get() {
                Some(blob) => blob.open(range).await,
                None => self
                    .source
                    .find(&self.descriptor, range)
                    .await
                    .map(|(blob, stream)| {
                        // Who was first stays: both are of the same place.
                        let _other = self.opened.set(blob);
                        stream
                    }),
            };
            if let (Err(error), Some(act)) = (&opened, self.source.out_of_reach.get())
                && error.is_transient()
            {
                (act.0)();
            }
            opened
        })
    }
}

/// The parts of a request that say how to reach the image.
pub(crate) fn access(request: &crate::mount::MountRequest) -> Result<Access, Error> {
    let name: ImageName = request
        .image
        .parse()
        .map_err(|e: ReferenceError| Error::Name(e.to_string()))?;
    let own_registry = match &name {
        ImageName::Registry(reference) => Some(reference.registry().to_owned()),
        _ => None,
    };
    Ok(Access {
        name,
        own_registry,
        insecure_registries: request.insecure_registries.clone(),
        ca_files: request.ca_files.clone(),
        hosts: request.hosts.clone(),
    })
}
