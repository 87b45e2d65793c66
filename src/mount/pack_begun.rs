//! The pack that a mount begins with: how long it is waited for, and going on with the same one later.

use std::time::Duration;

use crate::cache::{Cache, CacheError};
use crate::mount::discover::{self, Pack, Refused};
use crate::mount::error::Error;
use crate::mount::learn::Learner;
use crate::mount::request::{BegunBy, MountRequest, TrustIndex};
use crate::mount::resolve::Image;
use crate::mount::source::Access;
use crate::mount::trust::Trust;
use crate::mount::why::Foreknown;

/// How long a pack may take when all else is there that a mount needs.
pub(super) const PACK_PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn late() -> Refused {
    let seconds = PACK_PATIENCE.as_secs();
    Refused::all(format!("the registry did not give it in {seconds} s"))
}

/// Both at the same time; nothing for the pack when it takes much longer than what is needed.
pub(super) async fn beside<P, I>(
    pack: impl Future<Output = P>,
    image: impl Future<Output = I>,
) -> (Option<P>, I) {
    let (mut pack, mut image) = (std::pin::pin!(pack), std::pin::pin!(image));
    tokio::select! {
        biased;
        pack = &mut pack => (Some(pack), image.await),
        image = &mut image => (tokio::time::timeout(PACK_PATIENCE, pack).await.ok(), image),
    }
}

/// The pack that the mount began with, which is gone on with.
pub(super) fn begun_by(
    request: &MountRequest,
    access: &Access,
    cache: &Cache,
    image: &Image,
) -> Result<Pack, Error> {
    let Some(begun) = &request.begun_by else {
        return Err(Error::Interrupted);
    };
    if cache.is_denied(&begun.pack) {
        return Err(Error::Content(crate::content::Error::Poisoned));
    }
    let place = image.sources.first().unwrap_or(&access.name);
    let trust = Trust::of(request, place);
    let pack = discover::recall(cache, trust, begun.pack.clone(), image);
    pack.map_err(Error::Resume)
}

/// That it begins with `pack`, for the layers that are not our own.
pub(super) fn begins_by(pack: Pack, own: &[bool]) -> BegunBy {
    BegunBy {
        pack: pack.digest,
        layers: (0..own.len()).filter(|at| !own[*at]).collect(),
    }
}

/// What is known of readers before they come, and whether they were seen before.
pub(super) fn foreknown(learner: &Learner, pack: Option<&Pack>) -> (Foreknown, bool) {
    let (profile, is_known) = learner.expected();
    let pack = pack.map(|pack| (pack.digest.clone(), pack.meta.hot.clone()));
    (Foreknown { profile, pack }, is_known)
}

/// Whether an index of our own was of no use: its layer is forgotten by then.
pub(super) fn is_of_index(error: &Error) -> bool {
    matches!(
        error,
        Error::Cache(CacheError::Damaged { .. } | CacheError::Gone(_)) | Error::Index { .. }
    )
}

/// The same request, by no pack.
pub(super) fn without_packs(request: &MountRequest) -> MountRequest {
    MountRequest {
        trust_index: TrustIndex::Local,
        ..request.clone()
    }
}
