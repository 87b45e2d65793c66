//! The worker: the process that makes one mount and serves it until it is unmounted.
//!
//! A local image is mounted without a network stack: the runtime for fetching starts with the
//! first absent byte.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::SystemTime;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tokio::sync::Notify;

use crate::content::Notice;
use crate::fs::ImageFs;
use crate::fuse::{Eraser, MountFlags, Session, Unmounter};
use crate::monitor::{Event, Monitor};
use crate::mount::assemble::{self, Assembled};
use crate::mount::control::{Control, Shown};
use crate::mount::error::Error;
use crate::mount::launch::Message;
use crate::mount::learn::Learner;
use crate::mount::mountpoint;
use crate::mount::overlay;
use crate::mount::readahead;
use crate::mount::record::{self, OwnRecord, Record, State};
use crate::mount::refused;
use crate::mount::request::MountRequest;
use crate::mount::revalidate::{self, Newer};
use crate::mount::stats::Stats;
use crate::mount::upper::{About, UpperDir};
use crate::mount::why::{Foreknown, Why};

/// Longest request that is read from the command; it holds a few paths.
const REQUEST_BYTES_MAX: u64 = 1 << 20;

/// Runs a worker: a [`MountRequest`] on standard input, [`Message`]s on standard output.
pub fn run() -> ExitCode {
    let caller = Arc::new(Caller::default());
    match prepare(&caller) {
        Ok(prepared) => prepared.serve(&caller),
        Err(e) => {
            tracing::error!(error = %e, "not mounted");
            caller.say(&failed(&e));
            ExitCode::FAILURE
        }
    }
}

/// The command that started this worker: hears progress until the mount is ready.
#[derive(Debug, Default)]
struct Caller {
    gone: AtomicBool,
    interrupted: Notify,
}

impl Caller {
    fn say(&self, message: &Message) {
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

struct Prepared {
    request: MountRequest,
    session: Session,
    served: Served,
    upper: Option<UpperDir>,
    /// `MAJOR:MINOR` of the image's own mount.
    device: Option<String>,
    learner: Learner,
    /// Whether the tag is asked for behind the mount.
    asks: bool,
    unmounter: Arc<Mutex<Option<Unmounter>>>,
}

/// What the control socket shows of this mount.
struct Served {
    record: Record,
    fs: Arc<ImageFs>,
    source: String,
    foreknown: Foreknown,
    newer: Newer,
}

impl Shown for Served {
    fn stats(&self) -> Stats {
        Stats::of(&self.record, &self.fs, &self.source, &self.newer)
    }

    fn why(&self) -> Why {
        let (image, digest) = (&self.record.image, &self.record.digest);
        Why::of(image, digest, &self.fs, &self.foreknown)
    }
}

fn read_request() -> Result<MountRequest, Error> {
    let mut json = Vec::new();
    io::stdin()
        .take(REQUEST_BYTES_MAX)
        .read_to_end(&mut json)
        .map_err(Error::io("cannot read the request"))?;
    serde_json::from_slice(&json)
        .map_err(io::Error::other)
        .map_err(Error::io("cannot read the request"))
}

fn prepare(caller: &Arc<Caller>) -> Result<Prepared, Error> {
    let mut request = read_request()?;
    if !request.foreground {
        // A worker of its own session outlives the terminal. It is no group leader, so this works.
        let _already_leader = rustix::process::setsid();
    }
    let unmounter = Arc::new(Mutex::new(None));
    watch_signals(&request, caller.clone(), unmounter.clone())
        .map_err(Error::io("cannot watch signals"))?;
    let mut upper = open_upper(&mut request)?;
    let assembled = assemble::assemble(&request, caller.clone(), &caller.interrupted)?;
    let Assembled {
        fs,
        image,
        learner,
        source,
        foreknown,
        from_cache,
        ..
    } = assembled;
    let asks = from_cache && revalidate::is_wanted(&request);
    if caller.gone.load(Ordering::Relaxed) {
        return Err(Error::Interrupted);
    }
    if let Some(upper) = &mut upper {
        let platform = image.platform.to_string();
        let dialect = overlay::dialect(upper)?;
        upper.claim(About::new(
            &request.image,
            &image.digest,
            &platform,
            dialect,
        ))?;
    }
    let place = match &upper {
        Some(upper) => upper.lower(),
        None => request.mountpoint.clone(),
    };
    let mut session = mount(&request, &place, &fs)?;
    *unmounter.lock().unwrap_or_else(|e| e.into_inner()) = Some(session.unmounter());
    let record = Record {
        mountpoint: request.mountpoint.clone(),
        image: request.image.clone(),
        digest: image.digest.to_string(),
        platform: image.platform.to_string(),
        pid: std::process::id(),
        state: State::Ready,
        since: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        upper: upper.as_ref().map(|u| u.dir().to_owned()),
        newer: None,
    };
    Ok(Prepared {
        request,
        upper,
        device: mountpoint::device(&place),
        session,
        served: Served {
            record,
            fs,
            source,
            foreknown,
            newer: Newer::default(),
        },
        learner,
        asks,
        unmounter,
    })
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

/// Mounts the image at `place`. Below an overlay nobody but the overlay sees it.
fn mount(request: &MountRequest, place: &Path, fs: &Arc<ImageFs>) -> Result<Session, Error> {
    let root = rustix::process::geteuid().is_root();
    let shown = request.upper.is_none();
    let flags = MountFlags {
        suid: shown && request.suid.unwrap_or(false),
        dev: shown && request.dev.unwrap_or(false),
        noexec: shown && request.noexec,
        allow_other: request.allow_other.unwrap_or(root),
    };
    Session::mount(fs.clone(), place, &request.image, flags).map_err(|source| Error::Fuse {
        mountpoint: request.mountpoint.clone(),
        hint: refused::hint(&source),
        source,
    })
}

/// Puts the overlay of a writable mount in the place of the image, which is then out of sight and
/// ends with the overlay.
fn stack(
    request: &MountRequest,
    upper: &mut UpperDir,
    unmounter: &Mutex<Option<Unmounter>>,
) -> Result<(), Error> {
    overlay::mount(request, upper)?;
    upper.keep();
    mountpoint::unmount(&upper.lower(), true)?;
    // From now on it is the overlay that has to go, by its mountpoint.
    drop(unmounter.lock().unwrap_or_else(|e| e.into_inner()).take());
    Ok(())
}

/// Starts what goes on behind the mount; true once a pack was found to lie. Then the lock is held
/// until nothing of it can be read any more.
fn watch(
    fs: &Arc<ImageFs>,
    mountpoint: PathBuf,
    device: Option<String>,
    eraser: Eraser,
) -> Arc<Mutex<bool>> {
    let poisoned = Arc::new(Mutex::new(false));
    let state = poisoned.clone();
    let started = fs.clone();
    fs.content().start(Box::new(move |notice| match notice {
        Notice::Complete => {
            if let Some(device) = device.as_ref().filter(|_| !started.content().is_learning()) {
                readahead::raise(device);
            }
        }
        Notice::Poisoned => {
            let mut lies = state.lock().unwrap_or_else(|e| e.into_inner());
            *lies = true;
            mountpoint::abort(&mountpoint, device.as_deref());
            eraser.erase();
        }
    }));
    poisoned
}

impl Prepared {
    fn serve(self, caller: &Caller) -> ExitCode {
        let Prepared {
            request,
            session,
            served,
            mut upper,
            device,
            learner,
            asks,
            unmounter,
        } = self;
        let (record, fs) = (served.record.clone(), served.fs.clone());
        let newer = served.newer.clone();
        let place = match &upper {
            Some(upper) => upper.lower(),
            None => request.mountpoint.clone(),
        };
        let (mut own, control) = match publish(served) {
            Ok(published) => published,
            Err(e) => {
                caller.say(&failed(&e));
                let _unmounted = mountpoint::unmount(&place, true);
                return ExitCode::FAILURE;
            }
        };
        let eraser = session.eraser(&fs);
        // The kernel's first request waits for these threads, so they start before `ready`.
        let serving = std::thread::Builder::new()
            .name("serve".into())
            .spawn(|| session.serve());
        if let Some(upper) = &mut upper
            && let Err(e) = stack(&request, upper, &unmounter)
        {
            caller.say(&failed(&e));
            let _unmounted = mountpoint::unmount(&place, true);
            let _served = serving.map(JoinHandle::join);
            return ExitCode::FAILURE;
        }
        let (ended, learning) = learn(learner, fs.clone(), device.clone());
        let poisoned = watch(&fs, record.mountpoint.clone(), device, eraser);
        tracing::info!(image = record.image, mountpoint = %record.mountpoint.display(), "mounted");
        if let (true, Ok(digest)) = (asks, record.digest.parse()) {
            revalidate::start(&request, &digest, &newer);
        }
        let last = record.clone();
        caller.say(&Message::Ready(record));
        if caller.gone.load(Ordering::Relaxed) {
            unmount_for_signal(&unmounter);
            let _gone_already = mountpoint::unmount(&last.mountpoint, true);
        }
        if !request.foreground
            && let Err(e) = let_go_of_caller()
        {
            tracing::warn!(error = %e, "standard input and output stay open");
        }
        let ending = serving.map(JoinHandle::join);
        if *poisoned.lock().unwrap_or_else(|e| e.into_inner()) {
            keep_poisoned(&mut own, last);
        }
        // Whoever sees the record gone may use the directory again.
        drop(upper);
        drop(ended);
        let _kept = learning.map(JoinHandle::join);
        drop((own, control));
        exit_code(ending)
    }
}

/// How the session's thread ended.
type Ending = io::Result<std::thread::Result<io::Result<()>>>;

fn exit_code(ending: Ending) -> ExitCode {
    match ending {
        Ok(Ok(Ok(()))) => {
            tracing::info!("unmounted");
            ExitCode::SUCCESS
        }
        other => {
            tracing::error!(?other, "the session ended with an error");
            ExitCode::FAILURE
        }
    }
}

/// Leaves a record that says why the mount has ended.
fn keep_poisoned(own: &mut OwnRecord, mut record: Record) {
    record.state = State::Poisoned;
    if let Err(error) = own.update(&record) {
        tracing::warn!(%error, "`ps` will not say why this mount has ended");
    }
}

/// Starts to learn; it ends when the sender is dropped. Read-ahead would blur what is learned, so it
/// waits for the end of a first start even where all bytes are here.
fn learn(
    learner: Learner,
    fs: Arc<ImageFs>,
    device: Option<String>,
) -> (mpsc::Sender<()>, io::Result<JoinHandle<()>>) {
    let (ended, waiting) = mpsc::channel();
    let thread = std::thread::Builder::new()
        .name("learn".into())
        .spawn(move || {
            learner.run(fs.content(), &waiting, || {
                fs.content().learned();
                if let Some(device) = device.filter(|_| fs.content().is_complete()) {
                    readahead::raise(&device);
                }
            });
        });
    (ended, thread)
}

fn publish(served: Served) -> Result<(OwnRecord, Control), Error> {
    let record = &served.record;
    let own = OwnRecord::create(record).map_err(Error::io("cannot write the mount's record"))?;
    let control = record::socket_path(record.pid)
        .and_then(|path| Control::listen(&path, served))
        .map_err(Error::io("cannot open the control socket"))?;
    Ok((own, control))
}

/// Standard input and output are pipes to the command: closing them tells it that all is said.
fn let_go_of_caller() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(())
}

fn watch_signals(
    request: &MountRequest,
    caller: Arc<Caller>,
    unmounter: Arc<Mutex<Option<Unmounter>>>,
) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let path = request.mountpoint.clone();
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                tracing::info!(signal, "ending");
                caller.interrupt();
                unmount_for_signal(&unmounter);
                // Whoever still has a file open keeps the detached tree until the last close.
                let _gone_already = mountpoint::unmount(&path, true);
            }
        })?;
    Ok(())
}

fn unmount_for_signal(unmounter: &Mutex<Option<Unmounter>>) {
    let taken = unmounter.lock().unwrap_or_else(|e| e.into_inner()).take();
    if let Some(Err(e)) = taken.map(|mut u| u.unmount()) {
        tracing::debug!(error = %e, "busy, so it is detached");
    }
}

fn failed(error: &Error) -> Message {
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
