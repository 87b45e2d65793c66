//! From a name to a manifest and a configuration: from the cache where that is allowed, else from
//! the source, keeping everything that a later mount needs.

use crate::cache::Cache;
use crate::mount::error::Error;
use crate::mount::request::{MountRequest, Pull};
use crate::mount::source::{Access, Document, Source};
use crate::oci::config::CONFIG_BYTES_MAX;
use crate::oci::manifest::ManifestError;
use crate::oci::platform::PlatformError;
use crate::oci::{Descriptor, Digest, ImageConfig, ImageManifest, ImageName, Manifest, Platform};

/// An image of one platform.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    /// Digest of the image manifest.
    pub(crate) digest: Digest,
    pub(crate) platform: Platform,
    pub(crate) manifest: ImageManifest,
    pub(crate) config: ImageConfig,
    /// Whose sources have the bytes; the name's own when empty.
    pub(crate) sources: Vec<ImageName>,
}

/// What a name stands for, as far as the first answer says.
#[derive(Debug)]
pub(crate) struct Top {
    document: Document,
    below: Below,
}

#[derive(Debug)]
enum Below {
    /// The answer is the image manifest.
    Itself(Box<ImageManifest>),
    /// It is an index, which names the image manifest of the platform.
    Named(Descriptor),
}

impl Top {
    /// Digest of the image manifest.
    pub(crate) fn digest(&self) -> &Digest {
        match &self.below {
            Below::Itself(_) => &self.document.digest,
            Below::Named(of) => &of.digest,
        }
    }
}

/// Resolves names against one cache.
#[derive(Debug)]
pub(crate) struct Resolver<'a> {
    request: &'a MountRequest,
    access: &'a Access,
    cache: &'a Cache,
    platform: Platform,
}

impl<'a> Resolver<'a> {
    pub(crate) fn new(
        request: &'a MountRequest,
        access: &'a Access,
        cache: &'a Cache,
    ) -> Result<Resolver<'a>, Error> {
        let platform = match &request.platform {
            Some(text) => text
                .parse()
                .map_err(|e: PlatformError| Error::Name(e.to_string()))?,
            None => Platform::host(),
        };
        Ok(Resolver {
            request,
            access,
            cache,
            platform,
        })
    }

    /// Whether the answer of the cache is good enough without asking anybody. An archive is local
    /// and may have been rewritten: it is always read again.
    fn cache_suffices(&self) -> bool {
        if self.request.pinned.is_some() {
            return true;
        }
        match &self.access.name {
            ImageName::Registry(r) => {
                self.request.offline || r.digest().is_some() || self.request.pull == Pull::Missing
            }
            _ => false,
        }
    }

    /// The image, if all about it is in the cache and need not be asked for again.
    pub(crate) fn cached(&self) -> Result<Option<Image>, Error> {
        if !self.cache_suffices() {
            return Ok(None);
        }
        self.known()
    }

    /// What the name stands for, if that is in the cache and need not be asked for again.
    pub(crate) fn cached_top(&self) -> Option<Digest> {
        let ImageName::Registry(reference) = &self.access.name else {
            return None;
        };
        let remembered = || Some(self.cache.tag(&self.access.name.to_string())?.digest);
        let digest = reference.digest().cloned().or_else(remembered);
        let digest = digest.filter(|_| self.cache_suffices())?;
        self.cache.document(&digest).map(|_| digest)
    }

    /// What the name stands for at the source now; the document is kept.
    pub(crate) async fn ask_top(&self, source: &Source) -> Result<Digest, Error> {
        let top = source.top(&self.access.name).await?;
        self.keep(&top)?;
        Ok(top.digest)
    }

    /// The image as the cache knows it, however old.
    pub(crate) fn known(&self) -> Result<Option<Image>, Error> {
        let named = match (&self.access.name, &self.request.pinned) {
            (_, Some(pinned)) => Some(pinned),
            (ImageName::Registry(reference), None) => reference.digest(),
            _ if self.request.resumed => None,
            _ => return Ok(None),
        };
        let tag = self.cache.tag(&self.access.name.to_string());
        let sources = tag.as_ref().map(|tag| tag.sources.clone());
        let (top, media_type) = match named {
            Some(digest) => (digest.clone(), None),
            None => match tag {
                Some(tag) => (tag.digest, Some(tag.media_type)),
                None => return Ok(None),
            },
        };
        let Some(bytes) = self.cache.document(&top) else {
            return Ok(None);
        };
        let (digest, manifest) = match self.parse(&bytes, media_type.as_deref())? {
            Manifest::Image(manifest) => (top, manifest),
            Manifest::Index(index) => {
                let of = index
                    .select(&self.platform)
                    .map_err(|e| self.manifest_error(e))?;
                let Some(bytes) = self.cache.document(&of.digest) else {
                    return Ok(None);
                };
                (
                    of.digest.clone(),
                    self.parse_image(&bytes, Some(&of.media_type))?,
                )
            }
        };
        let Some(config) = self.cache.document(&manifest.config.digest) else {
            return Ok(None);
        };
        let image = self.image(digest, manifest, &config)?;
        let sources = sources.unwrap_or_default();
        let sources = sources.iter().filter_map(|name| name.parse().ok());
        Ok(Some(Image {
            sources: sources.collect(),
            ..image
        }))
    }

    /// What the source says now that the name stands for.
    pub(crate) async fn top(&self, source: &Source) -> Result<Top, Error> {
        let document = match (&self.request.pinned, &self.access.name) {
            (Some(digest), ImageName::Registry(_)) => source.pinned(digest).await?,
            _ => source.top(&self.access.name).await?,
        };
        self.keep(&document)?;
        let below = match self.parse(&document.bytes, document.media_type.as_deref())? {
            Manifest::Image(manifest) => Below::Itself(Box::new(manifest)),
            Manifest::Index(index) => {
                let of = index.select(&self.platform);
                Below::Named(of.map_err(|e| self.manifest_error(e))?.clone())
            }
        };
        Ok(Top { document, below })
    }

    /// The image manifest, if it is here.
    pub(crate) fn manifest_here(&self, top: &Top) -> Result<Option<ImageManifest>, Error> {
        let of = match &top.below {
            Below::Itself(manifest) => return Ok(Some((**manifest).clone())),
            Below::Named(of) => of,
        };
        let bytes = self.cache.document(&of.digest);
        bytes
            .map(|bytes| self.parse_image(&bytes, Some(&of.media_type)))
            .transpose()
    }

    async fn manifest(&self, source: &Source, top: &Top) -> Result<ImageManifest, Error> {
        match (self.manifest_here(top)?, &top.below) {
            (Some(manifest), _) => Ok(manifest),
            (None, Below::Itself(manifest)) => Ok((**manifest).clone()),
            (None, Below::Named(of)) => {
                let document = source.manifest(of).await?;
                self.keep(&document)?;
                self.parse_image(&document.bytes, document.media_type.as_deref())
            }
        }
    }

    /// Asks for what is missing of manifest and configuration, and keeps what is needed to mount
    /// again.
    pub(crate) async fn image_of(&self, source: &Source, top: &Top) -> Result<Image, Error> {
        let manifest = self.manifest(source, top).await?;
        let of = manifest.config.clone();
        let config = match self.cache.document(&of.digest) {
            Some(here) => here.into(),
            None => source.small(&of, CONFIG_BYTES_MAX).await?,
        };
        let image = self.image(top.digest().clone(), manifest, &config)?;
        self.cache.put_document(&of.digest, &config)?;
        if self.request.pinned.is_some() {
            return Ok(image);
        }
        // Last, so that a remembered tag always leads to documents that are there.
        self.cache.remember_tag(
            &self.access.name.to_string(),
            top.document.media_type.as_deref().unwrap_or_default(),
            &top.document.digest,
        )?;
        Ok(image)
    }

    fn keep(&self, document: &Document) -> Result<(), Error> {
        Ok(self.cache.put_document(&document.digest, &document.bytes)?)
    }

    fn parse(&self, bytes: &[u8], media_type: Option<&str>) -> Result<Manifest, Error> {
        Manifest::parse(bytes, media_type).map_err(|e| self.manifest_error(e))
    }

    fn parse_image(&self, bytes: &[u8], media_type: Option<&str>) -> Result<ImageManifest, Error> {
        match self.parse(bytes, media_type)? {
            Manifest::Image(manifest) => Ok(manifest),
            Manifest::Index(_) => Err(Error::NestedIndex(self.request.image.clone())),
        }
    }

    fn image(
        &self,
        digest: Digest,
        manifest: ImageManifest,
        config: &[u8],
    ) -> Result<Image, Error> {
        manifest
            .check_is_image()
            .map_err(|e| self.manifest_error(e))?;
        let config = ImageConfig::parse(config)
            .and_then(|config| config.check_layers(&manifest).map(|()| config))
            .map_err(|source| Error::Config {
                image: self.request.image.clone(),
                source,
            })?;
        if self.request.platform.is_some() && !self.platform.runs(&config.platform) {
            let have = config.platform.to_string();
            let wanted = self.platform.clone();
            return Err(self.manifest_error(ManifestError::NoPlatform { wanted, have }));
        }
        Ok(Image {
            digest,
            platform: config.platform.clone(),
            manifest,
            config,
            sources: Vec::new(),
        })
    }

    fn manifest_error(&self, source: ManifestError) -> Error {
        Error::Manifest {
            image: self.request.image.clone(),
            source,
        }
    }
}
