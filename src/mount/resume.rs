//! Going on with a mount whose worker has died or is to be replaced: the same tree from the cache, on
//! the same device.

use std::sync::Arc;

use crate::content;
use crate::fs::ImageFs;
use crate::fuse::{Session, Unmounter};
use crate::mount::assemble::{self, Assembled};
use crate::mount::engine::{self, Answerer, Behind, Parts};
use crate::mount::error::Error;
use crate::mount::handover::{Handed, Keeper, Taken};
use crate::mount::mountpoint;
use crate::mount::readahead::ReadAhead;
use crate::mount::record::{self, OwnRecord, Record, State};
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
    let before = believed(&request, &taken.handed);
    let assembled = assemble_again(&request, &before, &taken.handed, caller)?;
    let Assembled {
        fs,
        image,
        stored,
        diff_ids,
        learner,
        source,
        late,
        foreknown,
        begun_by,
        ..
    } = assembled;
    let owned = serve::with_diff_ids(&stored, &diff_ids);
    let (mut session, inodes) = match &taken.handed.kernel {
        Some(devices) => {
            let parts = Parts::new(&fs, learner.cache(), &stored, &image.digest, diff_ids);
            engine::resume(&parts, devices, &taken.fuse)?
        }
        None => again(&request, &fs, &taken)?,
    };
    let upper = match (&request.upper, &before.upper, taken.upper) {
        (Some(asked), Some(dir), Some(lock)) => {
            let of = (asked, request.cache_dir.as_path());
            Some(UpperDir::resume(of, dir.clone(), lock)?)
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
        state: State::Ready,
        ..of_this_process(&before)
    };
    Ok(Prepared {
        mounting: None,
        behind: behind(&request, &taken.handed),
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
        learner,
        unmounter,
        tree: taken.handed.tree,
        begun_by,
    })
}

fn behind(request: &MountRequest, handed: &Handed) -> Behind {
    let read_ahead = ReadAhead::beside(&request.cache_dir);
    Behind::of(read_ahead, handed.device.clone(), handed.kernel.clone())
}

/// The record of the mount, as handed over; where that is, the request says, not the worker before this one.
fn believed(request: &MountRequest, handed: &Handed) -> Record {
    Record {
        mountpoint: request.mountpoint.clone(),
        ..handed.record.clone()
    }
}

/// The record of the mount, as this process's. Its keeper may be another one as well.
fn of_this_process(before: &Record) -> Record {
    Record {
        pid: std::process::id(),
        keeper: Keeper::pid(),
        ..before.clone()
    }
}

/// The same file system, from the cache.
fn assemble_again(
    request: &MountRequest,
    before: &Record,
    handed: &Handed,
    caller: &Arc<Caller>,
) -> Result<Assembled, Error> {
    let digest = before.digest.parse::<Digest>();
    let digest = digest.map_err(|e| Error::Name(e.to_string()))?;
    // The name may stand for another image by now.
    let pinned = MountRequest {
        pinned: Some(digest),
        resumed: true,
        begun_by: handed.pack.clone(),
        ..request.clone()
    };
    let assembled = assemble::assemble(&pinned, caller.clone(), &caller.interrupted);
    if let Err(Error::Content(content::Error::Poisoned)) = &assembled {
        end(before, handed);
    }
    assembled
}

/// Ends a mount whose pack was found to lie while nobody served it, or by somebody else, and leaves a
/// record that says so.
fn end(before: &Record, handed: &Handed) {
    mountpoint::abort(&before.mountpoint, handed.device.as_deref());
    record::forget(before);
    let mut record = of_this_process(before);
    let own = OwnRecord::create(&record);
    record.state = State::Poisoned;
    if let Err(error) = own.and_then(|mut own| own.update(&record)) {
        tracing::warn!(%error, "`ps` will not say why this mount has ended");
    }
}

/// The kernel remembers what it was told of inodes: another tree would give it other bytes for them.
fn is_same(fs: &ImageFs, tree: Option<&Digest>) -> Result<(), Error> {
    match tree {
        Some(tree) if *tree != fs.tree().identity() => Err(Error::Resume(
            "this version would give its files other numbers; unmount and mount again".to_owned(),
        )),
        _ => Ok(()),
    }
}

/// The session of the fuse engine, and how many inodes it has.
fn again(
    request: &MountRequest,
    fs: &Arc<ImageFs>,
    taken: &Taken,
) -> Result<(Session, u64), Error> {
    is_same(fs, taken.handed.tree.as_ref())?;
    let root = rustix::process::geteuid().is_root();
    let allow_other = request.allow_other.unwrap_or(root);
    let session = Session::resume(fs.clone(), &taken.fuse, &request.mountpoint, allow_other)
        .map_err(Error::io("cannot go on with the device"))?;
    Ok((session, fs.totals().files))
}
