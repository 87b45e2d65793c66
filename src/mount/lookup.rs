//! Looking an image up by name: its manifest and its configuration, and no byte of a layer.

use crate::cache::Cache;
use crate::content::Content;
use crate::mount::error::Error;
use crate::mount::request::{MountRequest, Pull};
use crate::mount::resolve::{Image, Resolver};
use crate::mount::source;
use crate::oci::{Digest, ImageName};

/// The image of `request`. What was asked for is in the cache afterwards: the document that the
/// name stands for, the image manifest, and the configuration.
///
/// # Errors
///
/// [`Error::Offline`] when the image is not known here and the network may not be used.
pub(crate) fn lookup(request: &MountRequest, cache: &Cache) -> Result<Image, Error> {
    let access = source::access(request)?;
    let resolver = Resolver::new(request, &access, cache)?;
    if let Some(image) = resolver.cached()? {
        return Ok(image);
    }
    if request.offline && matches!(access.name, ImageName::Registry(_)) {
        return Err(Error::Offline(request.image.clone()));
    }
    let runtime = Content::new_runtime().map_err(Error::io("cannot start the network threads"))?;
    let asked = runtime.block_on(async {
        let source = access.open()?;
        let top = resolver.top(&source).await?;
        resolver.image_of(&source, &top).await
    });
    match asked {
        Err(Error::Blob(e)) if e.is_transient() && request.pull == Pull::Newer => {
            resolver.known()?.ok_or(Error::Blob(e))
        }
        asked => asked,
    }
}

/// Digest of the document that the name of `request` stands for, an index or an image manifest. The
/// document is in the cache afterwards; nothing else is asked for.
pub(crate) fn lookup_top(request: &MountRequest, cache: &Cache) -> Result<Digest, Error> {
    let access = source::access(request)?;
    let resolver = Resolver::new(request, &access, cache)?;
    if let Some(digest) = resolver.cached_top() {
        return Ok(digest);
    }
    if request.offline && matches!(access.name, ImageName::Registry(_)) {
        return Err(Error::Offline(request.image.clone()));
    }
    let runtime = Content::new_runtime().map_err(Error::io("cannot start the network threads"))?;
    runtime.block_on(async { resolver.ask_top(&access.open()?).await })
}
