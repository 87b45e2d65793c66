//! A mount that a service manager (systemd) has started, in the foreground: the command becomes the
//! keeper itself, because the manager listens to the process that it has started, and has it keep what
//! another one needs to go on should keeper and worker both die. Started again, the command goes on with
//! that, if it is what it is asked to mount.

use std::convert::Infallible;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::net::SocketType;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::mount::launch;
use crate::mount::mountpoint::{self, MountpointError};
use crate::mount::notify::{self, Notifier};
use crate::mount::parcel;
use crate::mount::record::{self, Record, State};
use crate::mount::request::MountRequest;
use crate::mount::stored::{self, Kept, Store};
use crate::mount::upper;

/// Longest request that is read from the command; it holds a few paths.
const REQUEST_BYTES_MAX: u64 = 64 << 10;

/// What the command leaves at standard input for the keeper that takes its place, with the descriptors
/// beside it.
#[derive(Debug, Serialize, Deserialize)]
struct Begin {
    request: Value,
    /// What the last worker of the keeper before has handed over.
    handed: Option<Value>,
    /// Of the state that says so.
    generation: u64,
}

/// What a keeper begins with.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) request: Value,
    pub(super) handed: Option<Value>,
    pub(super) descriptors: Vec<OwnedFd>,
    /// Of a keeper that is a service.
    pub(super) store: Option<Store>,
}

/// This process as a service.
#[derive(Debug)]
pub struct Service {
    manager: Notifier,
    given: Vec<(String, OwnedFd)>,
    goes_on: Option<(Kept, Vec<OwnedFd>)>,
}

/// What the manager had of a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// The mount that is asked for: it is there, and waits to be served.
    Mount,
    /// Something that cannot be gone on with, for this reason; it was ended.
    Ended(String),
}

impl Service {
    /// `None` when no manager has started this process.
    pub fn started() -> Option<Service> {
        let manager = Notifier::from_environment()?;
        let mut given = notify::given();
        given.retain(|(_, name)| stored::is_ours(name));
        Some(Service {
            manager,
            given: launch::adopt(given),
            goes_on: None,
        })
    }

    /// Finds out what there is of the mount that is asked for. Whatever is dead in its place and cannot be
    /// gone on with is unmounted. Nothing may ask for the mountpoint before: who does so waits for an
    /// answer.
    ///
    /// # Errors
    ///
    /// When the manager does not answer, or somebody uses a dead writable mount.
    pub fn find(&mut self, request: &MountRequest) -> io::Result<Found> {
        let mut given = std::mem::take(&mut self.given);
        let mut names: Vec<String> = given.iter().map(|(name, _)| name.clone()).collect();
        let kept = Kept::newest(&mut given);
        let keeper = kept.as_ref().map(|kept| kept.keeper);
        let mut places: Vec<_> = kept.iter().filter_map(Kept::mountpoint).collect();
        places.push(request.mountpoint.clone());
        places.dedup();
        for place in &places {
            // Nobody would start another should one of them die.
            record::end_workers(place, keeper);
        }
        let goes_on = match kept {
            Some(kept) => going_on(kept, given, request),
            None => {
                drop(given);
                Err("nothing says what it is of".to_owned())
            }
        };
        if let Ok((kept, _)) = &goes_on {
            kept.leave_names(&mut names);
        }
        // What cannot be gone on with is not held here any more: it ends when the manager drops it.
        stored::removed(&self.manager, &names)?;
        let why = match goes_on {
            Ok(goes_on) => {
                self.goes_on = Some(goes_on);
                return Ok(Found::Mount);
            }
            Err(why) => why,
        };
        for place in &places {
            clear(place, keeper, &request.cache_dir).map_err(io::Error::other)?;
        }
        Ok(match names.is_empty() {
            true => Found::Nothing,
            false => Found::Ended(why),
        })
    }

    /// Puts a keeper in the place of this process; `words` are options for its log.
    ///
    /// # Errors
    ///
    /// When it cannot; it does not return otherwise.
    pub fn keep(self, request: &MountRequest, words: &[String]) -> io::Result<Infallible> {
        let (kept, held) = self.goes_on.unzip();
        let begin = Begin {
            request: launch::for_keeper(request)?,
            generation: kept.as_ref().map_or(0, |kept| kept.generation),
            handed: kept.map(|kept| kept.handed),
        };
        let held: Vec<_> = held.iter().flatten().map(AsFd::as_fd).collect();
        let (ours, theirs) = parcel::pair()?;
        parcel::send(&ours, &begin, &held)?;
        launch::become_keeper(theirs, words)
    }
}

/// What another worker needs to go on; the error says why none can.
fn going_on(
    kept: Kept,
    given: Vec<(String, OwnedFd)>,
    request: &MountRequest,
) -> Result<(Kept, Vec<OwnedFd>), String> {
    let wanted = serde_json::to_value(request).map_err(|e| e.to_string())?;
    if let Some(field) = kept.differs_in(&wanted) {
        return Err(format!("it is of a mount of another `{field}`"));
    }
    let handed = kept.handed()?;
    let held = kept.held(given).ok_or("some of it is missing")?;
    let device = held.first().ok_or("the device is missing")?;
    if !stored::is_in_place(&handed, device) {
        return Err("it is of a mount that has ended".to_owned());
    }
    let there = record::find(&handed.record.mountpoint);
    match there.map_err(|e| e.to_string())? {
        Some(other) if is_served(&other, Some(kept.keeper)) => {
            Err("another mount has taken its place".to_owned())
        }
        _ => Ok((kept, held)),
    }
}

/// Whether the mount of this record is another one than that of `before`, the keeper that is dead, and goes
/// on. The number of a dead keeper may be another process's by now.
fn is_served(found: &Record, before: Option<u32>) -> bool {
    match found.state {
        State::Ready => true,
        State::Stalled => before.is_none() || before != found.keeper,
        State::Dead | State::Poisoned => false,
    }
}

/// Unmounts what nobody serves at `place`. Whoever has a file open there keeps a detached overlay alive, which
/// would go on with an upper directory that the next mount may have as well: such a mount is not detached.
///
/// # Errors
///
/// When somebody uses that.
fn clear(place: &Path, before: Option<u32>, cache_dir: &Path) -> Result<(), MountpointError> {
    while let Ok(Some(dead)) = record::find(place)
        && !is_served(&dead, before)
    {
        let stays = |upper: &PathBuf| !upper::is_for_one_mount(upper, cache_dir);
        match mountpoint::unmount(place, !dead.upper.as_ref().is_some_and(stays)) {
            Ok(()) => record::forget(&dead),
            Err(error @ MountpointError::Busy(_)) => return Err(error),
            // Whoever mounts there says what is the matter.
            Err(_) => break,
        }
    }
    Ok(())
}

/// What this keeper is to do: as the command before it in this process has left it, or as the command that
/// has started it says.
pub(super) fn begun() -> io::Result<Begun> {
    let stdin = io::stdin();
    if rustix::net::sockopt::socket_type(&stdin) != Ok(SocketType::SEQPACKET) {
        let mut json = Vec::new();
        stdin.take(REQUEST_BYTES_MAX).read_to_end(&mut json)?;
        return Ok(Begun {
            request: serde_json::from_slice(&json)?,
            handed: None,
            descriptors: Vec::new(),
            store: None,
        });
    }
    let nothing = || io::Error::other("nobody says what to keep");
    let (begin, descriptors): (Begin, Vec<OwnedFd>) =
        parcel::receive(&stdin)?.ok_or_else(nothing)?;
    let manager = Notifier::from_environment();
    let manager = manager.ok_or_else(|| io::Error::other("there is no service manager"))?;
    let store = match &begin.handed {
        Some(_) => Store::with(manager, begin.generation, descriptors.len()),
        None => Store::empty(manager),
    };
    Ok(Begun {
        request: begin.request,
        handed: begin.handed,
        descriptors,
        store: Some(store),
    })
}
