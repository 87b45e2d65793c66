//! The worker: the process that makes one mount and serves it until it is unmounted.
//!
//! A local image is mounted without a network stack: the runtime for fetching starts with the
//! first absent byte.
//!
//! Nothing about the mount lives only here: inode numbers come from the layers, there are no handles,
//! and what is on its way is asked for again. So another worker can take over at any moment, which
//! the keeper sees to.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tokio::sync::Notify;

use crate::cache::Cache;
use crate::content;
use crate::fuse::Unmounter;
use crate::monitor::{Event, Monitor};
use crate::mount::assemble::{self, Assembled, ResolvedImage};
use crate::mount::engine::{self, Choice, Parts};
use crate::mount::error::Error;
use crate::mount::handover::Keeper;
use crate::mount::launch::Message;
use crate::mount::mounting::Mounting;
use crate::mount::mountpoint;
use crate::mount::overlay;
use crate::mount::parcel::Task;
use crate::mount::record::{Record, State};
use crate::mount::request::MountRequest;
use crate::mount::resume;
use crate::mount::revalidate::{self, Newer};
use crate::mount::serve::{self, Prepared, Served};
use crate::mount::shut_in;
use crate::mount::upper::{About, UpperDir};

/// Runs a worker: its keeper at standard input, [`Message`]s to the command on standard output.
pub fn run() -> ExitCode {
    raise_descriptors();
    let caller = Arc::new(Caller::default());
    match prepare(&caller) {
        Ok(prepared) => prepared.serve(&caller),
        // It was ended: there is nothing for another worker to go on with.
        Err(Error::Content(content::Error::Poisoned)) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!(error = %e, "not mounted");
            caller.say(&failed(&e));
            ExitCode::FAILURE
        }
    }
}

/// A mount has some descriptors open for each layer, and the limit that shells begin with is for who
/// uses select(2).
fn raise_descriptors() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "no more descriptors than before");
    }
}

/// The command that asked for the mount: hears progress until the mount is ready.
#[derive(Debug, Default)]
pub(super) struct Caller {
    pub(super) gone: AtomicBool,
    pub(super) interrupted: Notify,
}

impl Caller {
    pub(super) fn say(&self, message: &Message) {
        let line = serde_json::to_string(message).unwrap_or_default() + "\n";
        let mut stdout = io::stdout().lock();
        if stdout
            .write_all(line.as_bytes())
            .and_then(|()| stdout.flush())
            .is_err()
        {
            self.interrupt();
        }
    }

    /// Nobody waits for this mount any more.
    fn interrupt(&self) {
        self.gone.store(true, Ordering::Relaxed);
        self.interrupted.notify_one();
    }
}

impl Monitor for Caller {
    fn event(&self, event: Event) {
        if !self.gone.load(Ordering::Relaxed) {
            self.say(&Message::Event(event));
        }
    }
}

/// What there is before a mount is.
pub(super) struct Part {
    pub(super) request: MountRequest,
    pub(super) unmounter: Arc<Mutex<Option<Unmounter>>>,
    pub(super) keeper: Arc<Keeper>,
}

fn prepare(caller: &Arc<Caller>) -> Result<Prepared, Error> {
    let (keeper, request, taken) = Keeper::meet().map_err(Error::io("cannot read the request"))?;
    let unmounter = Arc::new(Mutex::new(None));
    let keeper = Arc::new(keeper);
    shut_in::check(&request)?;
    let ends = (unmounter.clone(), keeper.clone());
    watch_signals(&request, caller.clone(), ends).map_err(Error::io("cannot watch signals"))?;
    let part = Part {
        request,
        unmounter,
        keeper,
    };
    match taken {
        Some(taken) => resume::prepare(part, taken, caller),
        None => make(part, caller),
    }
}

/// Makes the mount.
fn make(part: Part, caller: &Arc<Caller>) -> Result<Prepared, Error> {
    let Part {
        mut request,
        unmounter,
        keeper,
    } = part;
    let mounting = Mounting::begin(&request.mountpoint)?;
    let mut upper = open_upper(&mut request)?;
    let assembled = assemble::assemble(&request, caller.clone(), &caller.interrupted)?;
    let Assembled {
        fs,
        image,
        stored,
        diff_ids,
        learner,
        source,
        late,
        foreknown,
        from_cache,
        begun_by,
        ..
    } = assembled;
    let asks = from_cache && revalidate::is_wanted(&request);
    if caller.gone.load(Ordering::Relaxed) {
        return Err(Error::Interrupted);
    }
    if let Some(upper) = &mut upper {
        claim(upper, &request, &image)?;
        remember(upper, learner.cache(), &image);
    }
    let place = match &upper {
        Some(upper) => upper.lower(),
        None => request.mountpoint.clone(),
    };
    let owned = serve::with_diff_ids(&stored, &diff_ids);
    let parts = Parts::new(&fs, learner.cache(), &stored, &image.digest, diff_ids);
    let mut mounted = engine::mount(&request, &place, &parts)?;
    *unmounter.lock().unwrap_or_else(|e| e.into_inner()) = mounted.unmounter.take();
    let record = record_of(&request, &image, &mounted.choice, upper.as_ref());
    Ok(Prepared {
        request,
        mounting: Some(mounting),
        upper,
        behind: mounted.behind,
        answerer: Some(mounted.answerer),
        stored: owned,
        before: None,
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
        learner,
        asks,
        unmounter,
        tree: None,
        begun_by,
    })
}

/// What `ps` shows of the mount that this process has made.
fn record_of(
    request: &MountRequest,
    image: &ResolvedImage,
    choice: &Choice,
    upper: Option<&UpperDir>,
) -> Record {
    Record {
        mountpoint: request.mountpoint.clone(),
        image: request.image.clone(),
        digest: image.digest.to_string(),
        platform: image.platform.to_string(),
        pid: std::process::id(),
        keeper: Keeper::pid(),
        state: State::Ready,
        since: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        engine: Some(choice.clone()),
        sandbox: None,
        upper: upper.map(|u| u.dir().to_owned()),
        newer: None,
    }
}

/// Locks the upper directory, and holds the request to the image that its changes belong to.
fn open_upper(request: &mut MountRequest) -> Result<Option<UpperDir>, Error> {
    let Some(wanted) = &request.upper else {
        return Ok(None);
    };
    let upper = UpperDir::open(wanted, &request.cache_dir, &request.mountpoint)?;
    if request.pinned.is_none() {
        request.pinned = upper.pinned(&request.image).cloned();
    }
    Ok(Some(upper))
}

/// Says in the upper directory what its changes belong to.
fn claim(upper: &mut UpperDir, request: &MountRequest, image: &ResolvedImage) -> Result<(), Error> {
    let (platform, dialect) = (image.platform.to_string(), overlay::dialect(upper)?);
    let about = About::new(&request.image, &image.digest, &platform, dialect);
    Ok(upper.claim(about)?)
}

/// So that nobody removes the image while there are changes to it. The mount does not depend on it.
fn remember(upper: &UpperDir, cache: &Cache, image: &ResolvedImage) {
    if !upper.is_throw_away()
        && let Err(error) = cache.remember_upper(upper.dir(), &image.digest)
    {
        tracing::debug!(%error, "the upper directory is not remembered");
    }
}

fn watch_signals(
    request: &MountRequest,
    caller: Arc<Caller>,
    (unmounter, keeper): (Arc<Mutex<Option<Unmounter>>>, Arc<Keeper>),
) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let path = request.mountpoint.clone();
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                tracing::info!(signal, "ending");
                caller.interrupt();
                end_mount(&unmounter, &keeper, &path);
            }
        })?;
    Ok(())
}

/// Unmounts what is at `path`. Whoever still has a file open keeps the detached tree until the last
/// close.
pub(super) fn end_mount(unmounter: &Mutex<Option<Unmounter>>, keeper: &Keeper, path: &Path) {
    if keeper.acts(Task::Unmount) {
        return;
    }
    let taken = unmounter.lock().unwrap_or_else(|e| e.into_inner()).take();
    if let Some(Err(e)) = taken.map(|mut u| u.unmount()) {
        tracing::debug!(error = %e, "busy, so it is detached");
    }
    let _gone_already = mountpoint::unmount(path, true);
}

pub(super) fn failed(error: &Error) -> Message {
    let mut causes = Vec::new();
    let mut cause = std::error::Error::source(error);
    while let Some(e) = cause {
        causes.push(e.to_string());
        cause = e.source();
    }
    Message::Failed {
        message: error.to_string(),
        causes,
    }
}
