//! Serving a mount: its record, its control socket, the threads that answer the kernel, and what goes on
//! behind it, until it is gone.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::cache::{Cache, StoredLayer};
use crate::content::Notice;
use crate::fs::ImageFs;
use crate::fuse::{Eraser, Unmounter};
use crate::mount::control::{Control, Shown};
use crate::mount::engine::{Answerer, Answering, Behind, Choice};
use crate::mount::error::Error;
use crate::mount::handover::{Handed, Keeper};
use crate::mount::launch::Message;
use crate::mount::learn::Learner;
use crate::mount::mounting::Mounting;
use crate::mount::mountpoint;
use crate::mount::overlay;
use crate::mount::parcel::Task;
use crate::mount::record::{self, OwnRecord, Record, State};
use crate::mount::request::{BegunBy, MountRequest};
use crate::mount::revalidate::{self, Newer};
use crate::mount::sandbox::Walls;
use crate::mount::shut_in;
use crate::mount::source::LateSource;
use crate::mount::stats::Stats;
use crate::mount::upper::UpperDir;
use crate::mount::whole::Wholes;
use crate::mount::why::{Foreknown, Why};
use crate::mount::worker::{self, Caller};
use crate::oci::Digest;

/// How long a start is left alone before what only another worker needs is worked out.
const PATIENCE: Duration = Duration::from_secs(1);

/// Between two looks whether a pack was found to lie by another mount.
const DENIED_EVERY: Duration = Duration::from_secs(5);

/// Between two looks whether the mount has ended meanwhile.
const GLANCE: Duration = Duration::from_millis(5);

/// A mount that is there, and that this process does not serve yet.
pub(super) struct Prepared {
    pub(super) request: MountRequest,
    /// Until the mount has its record.
    pub(super) mounting: Option<Mounting>,
    /// Taken when it answers.
    pub(super) answerer: Option<Answerer>,
    /// The record of the worker before this one.
    pub(super) before: Option<Record>,
    pub(super) served: Served,
    pub(super) upper: Option<UpperDir>,
    pub(super) behind: Behind,
    /// The layers whose index was made here, with the digests of their uncompressed tars.
    pub(super) stored: Vec<(StoredLayer, Digest)>,
    pub(super) learner: Learner,
    /// Whether the tag is asked for behind the mount.
    pub(super) asks: bool,
    pub(super) unmounter: Arc<Mutex<Option<Unmounter>>>,
    /// Of the worker before this one, when that knew it.
    pub(super) tree: Option<Digest>,
    /// The pack that the mount began with.
    pub(super) begun_by: Option<BegunBy>,
}

/// What the control socket shows of this mount, and asks of its worker.
#[derive(Clone)]
pub(super) struct Served {
    pub(super) record: Record,
    pub(super) fs: Arc<ImageFs>,
    pub(super) source: String,
    pub(super) late: Arc<LateSource>,
    pub(super) foreknown: Foreknown,
    /// What of the sandbox is on, once that is known.
    pub(super) walls: Arc<OnceLock<Walls>>,
    pub(super) newer: Newer,
    pub(super) keeper: Arc<Keeper>,
}

/// The layers whose index was made here, each with the digest of its uncompressed tar.
pub(super) fn with_diff_ids(
    stored: &[Option<StoredLayer>],
    diff_ids: &[Digest],
) -> Vec<(StoredLayer, Digest)> {
    let pairs = stored.iter().zip(diff_ids);
    let owned = pairs.filter_map(|(layer, id)| Some((layer.clone()?, id.clone())));
    owned.collect()
}

impl Shown for Served {
    fn stats(&self) -> Stats {
        let stats = Stats::of(&self.record, &self.fs, &self.source, &self.newer);
        Stats {
            hosts: self.late.hosts(),
            sandbox: self.walls.get().cloned(),
            ..stats
        }
    }

    fn why(&self) -> Why {
        let (image, digest) = (&self.record.image, &self.record.digest);
        Why::of(image, digest, &self.fs, &self.foreknown)
    }

    fn replace(&self, program: &Path) -> String {
        self.keeper.replace(program)
    }
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
    served: &Served,
    behind: Behind,
    stored: Vec<(StoredLayer, Digest)>,
    eraser: Eraser,
) -> Arc<Mutex<bool>> {
    let poisoned = Arc::new(Mutex::new(false));
    let state = poisoned.clone();
    let (started, mountpoint) = (served.fs.clone(), served.record.mountpoint.clone());
    let keeper = served.keeper.clone();
    let lends = served.record.engine.as_ref().is_some_and(Choice::is_kernel);
    let wholes = Wholes::new(stored, lends, &served.fs);
    wholes.begin();
    served
        .fs
        .content()
        .start(Box::new(move |notice| match notice {
            Notice::Complete => {
                if started.content().allows_read_ahead() {
                    behind.raise_read_ahead();
                }
                if lends {
                    wholes.look_soon();
                }
            }
            Notice::Layer => wholes.look_soon(),
            Notice::Poisoned => {
                let mut lies = state.lock().unwrap_or_else(|e| e.into_inner());
                *lies = true;
                if !keeper.acts(Task::Abort(behind.connection.clone())) {
                    mountpoint::abort(&mountpoint, behind.connection.as_deref());
                }
                eraser.erase();
            }
        }));
    poisoned
}

/// Looks now and then whether another mount has found the pack to lie, until this process ends.
fn look_for_denial(cache: Cache, pack: Digest, fs: &Arc<ImageFs>) {
    let fs = fs.clone();
    let thread = std::thread::Builder::new().name("denied".into());
    let started = thread.spawn(move || {
        while !cache.is_denied(&pack) {
            std::thread::sleep(DENIED_EVERY);
        }
        fs.content().is_found_out();
    });
    if let Err(error) = started {
        tracing::warn!(%error, "what others find out of the pack is not heard");
    }
}

/// What there is while a mount is served.
struct Running {
    own: OwnRecord,
    control: Control,
    answering: Answering,
}

impl Prepared {
    /// Serves until the mount is gone.
    pub(super) fn serve(mut self, caller: &Caller) -> ExitCode {
        let before = self.before.take();
        let begun = match &before {
            None => self.begin(),
            Some(before) => self.take_over(before),
        };
        drop(self.mounting.take());
        let begun = begun.and_then(|running| self.shut_in(running));
        let running = match begun {
            Ok(running) => running,
            Err(e) => {
                tracing::error!(error = %e, "not served");
                caller.say(&worker::failed(&e));
                return ExitCode::FAILURE;
            }
        };
        let (record, mut handed) = (self.served.record.clone(), self.handed());
        let path = record.mountpoint.clone();
        let Answering {
            thread,
            fuse,
            eraser,
        } = running.answering;
        let lock = self.upper.as_ref().map(UpperDir::lock);
        let keeper = &self.served.keeper;
        let serving = |handed: &Handed| {
            if let Err(error) = keeper.serving(handed, fuse.as_fd(), lock) {
                tracing::warn!(%error, "nobody takes over should this process die");
            }
        };
        // Before anybody hears that the mount is there: from then on it outlives this process.
        serving(&handed);
        let cache = self.learner.cache().clone();
        let (ended, learning) = learn(self.learner, &self.served, self.behind.clone());
        let poisoned = watch(&self.served, self.behind, self.stored, eraser);
        if let Some(begun) = &self.begun_by {
            look_for_denial(cache, begun.pack.clone(), &self.served.fs);
        }
        tracing::info!(image = record.image, mountpoint = %path.display(), "mounted");
        if let (true, Ok(digest)) = (self.asks, record.digest.parse()) {
            revalidate::start(&self.request, &digest, &self.served.newer);
        }
        self.served.fs.counters().is_usable();
        if before.is_none() {
            caller.say(&Message::Ready(record.clone()));
        }
        if caller.gone.load(Ordering::Relaxed) {
            worker::end_mount(&self.unmounter, &self.served.keeper, &path);
        }
        if !self.request.foreground
            && let Err(e) = let_go_of_caller()
        {
            tracing::warn!(error = %e, "standard input and output stay open");
        }
        if handed.tree.is_none() && handed.kernel.is_none() && goes_on(&thread) {
            handed.tree = Some(self.served.fs.tree().identity());
            serving(&handed);
        }
        drop(fuse);
        let ending = thread.join();
        if ending.as_ref().is_ok_and(Result::is_err) || ending.is_err() {
            // Another worker goes on with what is still there.
            self.upper.as_mut().map(UpperDir::leave);
        }
        let mut own = running.own;
        if *poisoned.lock().unwrap_or_else(|e| e.into_inner()) {
            keep_poisoned(&mut own, record);
        }
        // Whoever sees the record gone may use the directory again.
        drop(self.upper);
        drop(ended);
        let _kept = learning.map(JoinHandle::join);
        // The record last: who sees it gone finds nothing else of this mount.
        drop((running.control, own));
        exit_code(ending)
    }

    /// Serves what this process has mounted; nothing stays mounted when that fails.
    fn begin(&mut self) -> Result<Running, Error> {
        let place = match &self.upper {
            Some(upper) => upper.lower(),
            None => self.request.mountpoint.clone(),
        };
        let begun = publish(&self.served).and_then(|(own, control)| {
            // The kernel's first request waits for these threads, so they start before `ready`.
            let running = self.answer(own, control)?;
            let stacked = match &mut self.upper {
                Some(upper) => stack(&self.request, upper, &self.unmounter),
                None => Ok(()),
            };
            match stacked {
                Ok(()) => Ok(running),
                Err(e) => {
                    let _unmounted = mountpoint::unmount(&place, true);
                    drop(running.answering.fuse);
                    let _served = running.answering.thread.join();
                    Err(e)
                }
            }
        });
        begun.inspect_err(|_| {
            let _gone_already = mountpoint::unmount(&place, true);
        })
    }

    /// Serves what another process has served before.
    fn take_over(&mut self, before: &Record) -> Result<Running, Error> {
        let alone = self.served.keeper.wait_until_alone();
        alone.map_err(Error::io("cannot take over"))?;
        record::forget(before);
        record::forget_others(&before.mountpoint);
        let (own, control) = publish(&self.served)?;
        let running = self.answer(own, control)?;
        self.upper.as_mut().map(UpperDir::take_over);
        Ok(running)
    }

    /// Drops what serving does not need; when that must be and cannot, nothing stays mounted.
    fn shut_in(&mut self, mut running: Running) -> Result<Running, Error> {
        let served = &mut self.served;
        let upper = self.upper.as_ref();
        let walls = shut_in::shut_in(&self.request, &served.keeper, &served.late, upper);
        let walls = walls.inspect_err(|_| {
            worker::end_mount(&self.unmounter, &served.keeper, &served.record.mountpoint);
        })?;
        let _first = served.walls.set(walls.clone());
        served.record.sandbox = Some(walls);
        let updated = running.own.update(&served.record);
        updated.map_err(Error::io("cannot write the mount's record"))?;
        Ok(running)
    }

    /// Answers the kernel from now on.
    fn answer(&mut self, own: OwnRecord, control: Control) -> Result<Running, Error> {
        let answerer = self.answerer.take().ok_or(Error::Interrupted)?;
        Ok(Running {
            own,
            control,
            answering: answerer.answer().map_err(Error::io("cannot answer"))?,
        })
    }

    fn handed(&self) -> Handed {
        Handed {
            record: self.served.record.clone(),
            device: self.behind.connection.clone(),
            kernel: self.behind.kernel.clone(),
            tree: self.tree.clone(),
            pack: self.begun_by.clone(),
        }
    }
}

/// Waits until a start has had its first second; whether the mount goes on.
fn goes_on(thread: &JoinHandle<io::Result<()>>) -> bool {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until && !thread.is_finished() {
        std::thread::sleep(GLANCE);
    }
    !thread.is_finished()
}

fn exit_code(ending: std::thread::Result<io::Result<()>>) -> ExitCode {
    match ending {
        Ok(Ok(())) => {
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
    served: &Served,
    behind: Behind,
) -> (mpsc::Sender<()>, io::Result<JoinHandle<()>>) {
    let (ended, waiting) = mpsc::channel();
    let fs = served.fs.clone();
    let thread = std::thread::Builder::new()
        .name("learn".into())
        .spawn(move || {
            learner.run(fs.content(), &waiting, || {
                fs.content().learned();
                if fs.content().allows_read_ahead() {
                    behind.raise_read_ahead();
                }
            });
        });
    (ended, thread)
}

fn publish(served: &Served) -> Result<(OwnRecord, Control), Error> {
    let record = &served.record;
    let own = OwnRecord::create(record).map_err(Error::io("cannot write the mount's record"))?;
    let control = record::socket_path(record.pid)
        .and_then(|path| Control::listen(&path, served.clone()))
        .map_err(Error::io("cannot open the control socket"))?;
    Ok((own, control))
}

/// Standard output is a pipe to the command, and standard input was the way to the keeper, which has
/// another descriptor by now.
fn let_go_of_caller() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(())
}
