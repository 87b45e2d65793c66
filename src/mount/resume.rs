//! Going on with a mount whose worker has died or is to be replaced: the same tree from the cache, on
//! the same device.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::fs::ImageFs;
use crate::fuse::{Session, Unmounter};
use crate::mount::assemble::{self, Assembled};
use crate::mount::engine::{self, Answerer, Behind, Parts};
use crate::mount::error::Error;
use crate::mount::handover::Taken;
use crate::mount::record::{Record, State};
use crate::mount::request::MountRequest;
use crate::mount::revalidate::{self, Newer};
use crate::mount::serve::{self, Prepared, Served};
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
    let pinned = pinned(&request, &before)?;
    let assembled = assemble::assemble(&pinned, caller.clone(), &caller.interrupted)?;
    let Assembled {
        fs,
        image,
        stored,
        diff_ids,
        learner,
        source,
        late,
        foreknown,
        ..
    } = assembled;
    let owned = serve::with_diff_ids(&stored, &diff_ids);
    let (mut session, inodes) = match &taken.handed.kernel {
        Some(devices) => {
            let parts = Parts::new(&fs, learner.cache(), &stored, &image.digest, diff_ids);
            engine::resume(&parts, devices, &taken.fuse)?
        }
        None => again(&request, &fs, &taken.fuse)?,
    };
    let upper = match (&before.upper, taken.upper) {
        (Some(dir), Some(lock)) => {
            let throw_away = taken.handed.throw_away;
            Some(UpperDir::resume(dir.clone(), lock, throw_away)?)
        }
        _ => None,
    };
    if upper.is_none() {
        let mut slot = unmounter.lock().unwrap_or_else(|e| e.into_inner());
        *slot = Some(match taken.handed.kernel {
            Some(_) => Unmounter::directly(&request.mountpoint),
            None => session.unmounter(),
        });
    }
    let record = Record {
        pid: std::process::id(),
        state: State::Ready,
        ..before.clone()
    };
    Ok(Prepared {
        asks: revalidate::is_wanted(&request),
        request,
        answerer: Some(Answerer::Later(Box::new(session), inodes)),
        stored: owned,
        before: Some(before),
        served: Served {
            record,
            fs,
            source,
            late,
            foreknown,
            walls: Arc::default(),
            newer: Newer::default(),
            keeper,
        },
        upper,
        behind: Behind::again(taken.handed.device, taken.handed.kernel),
        learner,
        unmounter,
    })
}

/// The request for what was mounted: the name may stand for another image by now.
fn pinned(request: &MountRequest, before: &Record) -> Result<MountRequest, Error> {
    let digest = before.digest.parse::<Digest>();
    Ok(MountRequest {
        pinned: Some(digest.map_err(|e| Error::Name(e.to_string()))?),
        resumed: true,
        ..request.clone()
    })
}

/// The session of the fuse engine, and how many inodes it has.
fn again(
    request: &MountRequest,
    fs: &Arc<ImageFs>,
    fuse: &OwnedFd,
) -> Result<(Session, u64), Error> {
    let root = rustix::process::geteuid().is_root();
    let allow_other = request.allow_other.unwrap_or(root);
    let session = Session::resume(fs.clone(), fuse, &request.mountpoint, allow_other)
        .map_err(Error::io("cannot go on with the device"))?;
    Ok((session, fs.totals().files))
}
