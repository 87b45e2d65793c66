//! Pinning: which documents and layers of the cache an image is made of, so that they stay.

use crate::cache::{Cache, Pin};
use crate::mount::MountRequest;
use crate::mount::error::Error;
use crate::mount::resolve::Resolver;
use crate::mount::source;
use crate::oci::ImageName;

/// Pins the image that `request` names, as the cache knows it. Nobody is asked.
pub fn pin(request: &MountRequest) -> Result<Pin, Error> {
    let cache = Cache::open(&request.cache_dir)?;
    let access = source::access(request)?;
    let ImageName::Registry(reference) = &access.name else {
        return Err(Error::Pin(format!(
            "{} is read from its file each time: only images from registries can be pinned",
            request.image
        )));
    };
    let name = access.name.to_string();
    let known = Resolver::new(request, &access, &cache)?.known()?;
    let top = match reference.digest() {
        Some(digest) => Some(digest.clone()),
        None => cache.tag(&name).map(|tag| tag.digest),
    };
    let Some((image, top)) = known.zip(top) else {
        return Err(Error::Pin(format!(
            "{} is not in the cache; mount it first",
            request.image
        )));
    };
    let pin = Pin {
        image: name,
        documents: vec![
            top,
            image.digest.clone(),
            image.manifest.config.digest.clone(),
        ],
        layers: image
            .manifest
            .layers
            .iter()
            .map(|l| l.digest.clone())
            .collect(),
        digest: image.digest,
    };
    cache.pin(&pin)?;
    Ok(pin)
}

/// Lets go of the pin of that name or digest.
pub fn unpin(cache: &Cache, image: &str) -> Result<Pin, Error> {
    let name = image.parse::<ImageName>().map(|name| name.to_string());
    let named = |pin: &Pin| {
        let digest = pin.digest.to_string();
        digest == image
            || name
                .as_ref()
                .is_ok_and(|n| *n == pin.image || n.ends_with(&digest))
    };
    let pinned = cache.pins()?.into_iter().find(named);
    let pin = pinned.ok_or_else(|| {
        Error::Pin(format!(
            "{image} is not pinned (rsmount cache du lists what is)"
        ))
    })?;
    cache.unpin(&pin.digest)?;
    Ok(pin)
}
