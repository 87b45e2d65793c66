//! Shutting a worker in once its mount is served: what it is left with, and what its keeper does for
//! it from then on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::thread::CapabilitySet;

use crate::mount::error::Error;
use crate::mount::handover::Keeper;
use crate::mount::parcel::Task;
use crate::mount::request::MountRequest;
use crate::mount::sandbox::{self, Reach, Sandbox, Walls, Ways};
use crate::mount::source::LateSource;
use crate::mount::upper::UpperDir;
use crate::registry::credentials;

/// Between two workers that are asked for because sources may be reached in another way.
const RENEWED_EVERY: Duration = Duration::from_secs(60);

/// Says early what would keep a mount from having the sandbox that it must have.
pub(super) fn check(request: &MountRequest) -> Result<(), Error> {
    match request.sandbox {
        Sandbox::Required => sandbox::lacking().map_or(Ok(()), |why| Err(Error::Sandbox(why))),
        Sandbox::Auto | Sandbox::Off => Ok(()),
    }
}

/// Shuts this process in as far as the request and the kernel allow; what is on.
pub(super) fn shut_in(
    request: &MountRequest,
    keeper: &Arc<Keeper>,
    late: &Arc<LateSource>,
    upper: Option<&UpperDir>,
) -> Result<Walls, Error> {
    if keeper.does_errands() {
        watch_ways(Ways::to(late.names(), request), keeper, late);
    }
    if request.sandbox == Sandbox::Off {
        return Ok(Walls::none("--sandbox off"));
    }
    if !keeper.does_errands() {
        let why = "the mount was begun by a version that has none; mount it again";
        return match request.sandbox {
            Sandbox::Required => Err(Error::Sandbox(why.to_owned())),
            Sandbox::Auto | Sandbox::Off => Ok(Walls::none(why)),
        };
    }
    let reach = Reach::of(request, &late.names(), upper.map(UpperDir::dir));
    // What a container made belongs to whomever it likes, and goes with the mount.
    let keeps = match upper.is_some_and(UpperDir::is_throw_away) {
        true => CapabilitySet::DAC_OVERRIDE | CapabilitySet::FOWNER,
        false => CapabilitySet::empty(),
    };
    let asked = keeper.clone();
    credentials::ask_outside(Box::new(move |reference| {
        asked.have_done(Task::Credentials(reference.to_owned()))
    }));
    keeper.acts_for_us();
    let walls = sandbox::enter(&reach, keeps);
    match &walls.missing {
        Some(why) if request.sandbox == Sandbox::Required => {
            return Err(Error::Sandbox(why.clone()));
        }
        Some(why) => tracing::warn!(why, "the sandbox is not complete"),
        None => tracing::debug!(on = ?walls.on, "in the sandbox"),
    }
    Ok(walls)
}

/// Asks for another worker when the source is out of reach and there may be another way to it by now.
fn watch_ways(ways: Ways, keeper: &Arc<Keeper>, late: &Arc<LateSource>) {
    let (stamp, keeper) = (ways.stamp(), keeper.clone());
    let last: Mutex<Option<Instant>> = Mutex::new(None);
    late.when_out_of_reach(Box::new(move || {
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        let was_just_now = last.is_some_and(|last| last.elapsed() < RENEWED_EVERY);
        if was_just_now || !ways.are_others(&stamp) {
            return;
        }
        *last = Some(Instant::now());
        tracing::info!(
            "names or hosts are looked up in other files now; another worker takes over"
        );
        let keeper = keeper.clone();
        let renew = move || keeper.have_done(Task::Renew);
        if let Err(error) = std::thread::Builder::new()
            .name("renew".into())
            .spawn(renew)
        {
            tracing::warn!(%error, "no other worker is asked for");
        }
    }));
}
