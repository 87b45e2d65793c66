//! Behind a mount that was made from what the cache knew of a tag: what does the tag stand for now?
//!
//! A change is said (in the log, by `ps` and by `stats`) and never applied: what is mounted stays as
//! it is, and so does what the next mount starts from, unless it is told to ask (`--pull newer`).

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::cache::Cache;
use crate::mount::error::Error;
use crate::mount::request::MountRequest;
use crate::mount::resolve::Resolver;
use crate::mount::source::{self, Source};
use crate::oci::{Digest, ImageName};

/// When it is asked, after the mount can be used: a start has better uses for the link and the
/// processor. Then again after each of these, while the registry cannot be reached.
const WAITS: [Duration; 4] = [
    Duration::from_secs(1),
    Duration::from_secs(10),
    Duration::from_secs(60),
    Duration::from_secs(600),
];

/// The digest of the image manifest that the tag stands for now, once it is known to differ.
pub(crate) type Newer = Arc<OnceLock<Digest>>;

/// Asks in a thread of its own, whose network stack ends with it. Nothing is asked for a name that
/// cannot change (a digest, an archive), or without a network.
pub(crate) fn start(request: &MountRequest, mounted: &Digest, newer: &Newer) {
    let (mounted, newer) = (mounted.clone(), newer.clone());
    let request = MountRequest {
        pinned: None,
        ..request.clone()
    };
    let thread = std::thread::Builder::new().name("revalidate".into());
    let started = thread.spawn(move || {
        for wait in WAITS {
            std::thread::sleep(wait);
            match look(&request, &mounted) {
                Ok(None) => return tracing::debug!("the tag stands for what is mounted"),
                Ok(Some(digest)) => {
                    tracing::info!(image = request.image, %digest, "there is a newer image");
                    return drop(newer.set(digest));
                }
                Err(Error::Blob(e)) if e.is_transient() => {
                    tracing::debug!(error = %e, "asking later")
                }
                Err(error) => return tracing::info!(%error, "the tag cannot be asked for"),
            }
        }
    });
    if let Err(error) = started {
        tracing::warn!(%error, "the tag is not asked for");
    }
}

/// Whether the name of `request` may stand for something else than it did.
pub(crate) fn is_wanted(request: &MountRequest) -> bool {
    let name: Result<ImageName, _> = request.image.parse();
    let tag = matches!(name, Ok(ImageName::Registry(r)) if r.digest().is_none());
    tag && !request.offline
}

/// The image of the tag, if it is not `mounted`. Small when nothing has changed: one HEAD.
fn look(request: &MountRequest, mounted: &Digest) -> Result<Option<Digest>, Error> {
    let cache = Cache::open(&request.cache_dir)?;
    let access = source::access(request)?;
    let resolver = Resolver::new(request, &access, &cache)?;
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build();
    let runtime = runtime.map_err(Error::io("cannot start the network thread"))?;
    runtime.block_on(async {
        let source = access.open()?;
        let ImageName::Registry(reference) = &access.name else {
            return Ok(None);
        };
        let Source::Registry { registry, .. } = &source else {
            return Ok(None);
        };
        let known = cache.tag(&access.name.to_string());
        if known.as_ref().is_some_and(|tag| !tag.sources.is_empty()) {
            // The name was given here: its registry knows nothing of it.
            return Ok(None);
        }
        let known = known.map(|tag| tag.digest);
        match registry.digest_of(&reference.tag_or_digest()).await {
            // A writable mount goes on with an older image than the one that is remembered.
            Ok(now) if now.is_some() && now == known && request.upper.is_none() => return Ok(None),
            Err(e) if e.is_transient() => return Err(e.into()),
            // Whoever does not answer that has to be asked for the document.
            _ => {}
        }
        // The index may have changed without this platform's image.
        let top = resolver.top(&source).await?;
        Ok((top.digest() != mounted).then(|| top.digest().clone()))
    })
}
