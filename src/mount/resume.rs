//! Going on with a mount whose worker has died or is to be replaced: the same tree from the cache, on
//! the same device.

use std::sync::Arc;

use crate::fuse::Session;
use crate::mount::assemble::{self, Assembled};
use crate::mount::error::Error;
use crate::mount::handover::Taken;
use crate::mount::record::{Record, State};
use crate::mount::request::MountRequest;
use crate::mount::revalidate::{self, Newer};
use crate::mount::serve::{Prepared, Served};
use crate::mount::upper::UpperDir;
use crate::mount::worker::{Caller, Part};
use crate::oci::Digest;

/// Makes ready to serve what was handed over.
pub(super) fn prepare(part: Part, taken: Taken, caller: &Arc<Caller>) -> Result<Prepared, Error> {
    let Part {
        request,
        unmounter,
        keeper,
    } = part;
    let before = taken.handed.record;
    let digest = before.digest.parse::<Digest>();
    let digest = digest.map_err(|e| Error::Name(e.to_string()))?;
    // The name may stand for another image by now.
    let pinned = MountRequest {
        pinned: Some(digest),
        resumed: true,
        ..request.clone()
    };
    let assembled = assemble::assemble(&pinned, caller.clone(), &caller.interrupted)?;
    let Assembled {
        fs,
        learner,
        source,
        foreknown,
        ..
    } = assembled;
    let root = rustix::process::geteuid().is_root();
    let allow_other = request.allow_other.unwrap_or(root);
    let mut session = Session::resume(fs.clone(), &taken.fuse, &request.mountpoint, allow_other)
        .map_err(Error::io("cannot go on with the device"))?;
    let upper = match (&before.upper, taken.upper) {
        (Some(dir), Some(lock)) => {
            let throw_away = taken.handed.throw_away;
            Some(UpperDir::resume(dir.clone(), lock, throw_away)?)
        }
        _ => None,
    };
    if upper.is_none() {
        let mut slot = unmounter.lock().unwrap_or_else(|e| e.into_inner());
        *slot = Some(session.unmounter());
    }
    let record = Record {
        pid: std::process::id(),
        state: State::Ready,
        ..before.clone()
    };
    Ok(Prepared {
        asks: revalidate::is_wanted(&request),
        request,
        session: Some(session),
        before: Some(before),
        served: Served {
            record,
            fs,
            source,
            foreknown,
            newer: Newer::default(),
            keeper,
        },
        upper,
        device: taken.handed.device,
        learner,
        unmounter,
    })
}
