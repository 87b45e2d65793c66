//! The keeper: the process that outlives its workers.
//!
//! It holds the descriptor of `/dev/fuse` (and whatever else a worker hands over), so that a mount
//! does not end with the process that serves it: when a worker is killed, another one is started,
//! takes the descriptor, and is given the requests that were on their way again. Readers wait a
//! little; none sees an error. `rsmount upgrade` does the same with a new binary, which prepares
//! while the old one still serves.
//!
//! It knows nothing of images or engines, starts no thread, and does one thing at a time.
//!
//! ```text
//! command --request--> keeper --Start--> worker          first start
//!                             <-Serving- worker          device and state are held from now on
//!                             --Start--> next worker     the worker has died, or asked for it
//!                             <Prepared- next worker
//!         (ends the old one, if it lives)
//!                             --Alone--> next worker     FUSE_NOTIFY_RESEND on the device
//!                             <-Serving- next worker
//! ```
//!
//! If the keeper dies as well, the kernel ends the connection and reads fail. They never hang, and
//! never give zeros. Unless it is a service (`super::service`): then the manager that has started it
//! keeps what it holds, and starts another one, which begins where this one has ended.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;
use serde_json::Value;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::mount::deaths::{Death, Deaths};
use crate::mount::errands::Errands;
use crate::mount::launch::Message;
use crate::mount::notify;
use crate::mount::parcel::{self, Said, Start, Task, Told};
use crate::mount::service::{self, Begun};
use crate::mount::stored::Store;
use crate::mount::{resend, sandbox};

/// Something that a later version says.
fn not_understood(error: &io::Error) -> Option<ExitCode> {
    tracing::warn!(%error, "a worker says what this keeper does not understand");
    None
}

/// Runs a keeper: a mount request on standard input; its workers speak to standard output.
pub fn run() -> ExitCode {
    match Keeper::begin() {
        Ok(mut keeper) => {
            let code = keeper.keep();
            if let Some(store) = keeper.store.take() {
                store.clear();
            }
            code
        }
        Err(e) => {
            tracing::error!(error = %e, "nothing is kept");
            let message = Message::Failed {
                message: format!("cannot start the worker: {e}"),
                causes: Vec::new(),
            };
            let line = serde_json::to_string(&message).unwrap_or_default() + "\n";
            let _nobody_listens = io::stdout().write_all(line.as_bytes());
            ExitCode::FAILURE
        }
    }
}

/// A running worker, and the way to it.
struct Worker {
    child: Child,
    socket: OwnedFd,
    /// When it began to serve.
    since: Instant,
}

impl Worker {
    /// Has it end the mount.
    fn end(&self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            let _gone = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }
}

/// A program that stays what it is, whatever is put in its place.
struct Program {
    path: PathBuf,
    _open: Option<File>,
}

impl Program {
    fn open(path: &Path) -> Program {
        let open = File::open(path).ok();
        let by_descriptor = |file: &File| format!("/proc/self/fd/{}", file.as_raw_fd()).into();
        Program {
            path: open.as_ref().map_or_else(|| path.to_owned(), by_descriptor),
            _open: open,
        }
    }
}

/// What a worker handed over.
struct Held {
    state: Value,
    descriptors: Vec<OwnedFd>,
}

struct Keeper {
    request: Value,
    /// What workers are started from.
    program: Program,
    /// The same before an upgrade that is not done yet.
    before: Option<Program>,
    /// Their options.
    words: Vec<OsString>,
    signals: UnixStream,
    /// Absent while the last one is dead and the next one prepares.
    worker: Option<Worker>,
    next: Option<Worker>,
    held: Option<Held>,
    /// Where it is kept beyond this process's death.
    store: Option<Store>,
    /// Whether the mount is to end. Who serves it was told so, but may have died of something else.
    ending: bool,
    deaths: Deaths,
    errands: Errands,
}

/// What there is to do.
enum Happened {
    Signal,
    Current,
    Next,
}

impl Keeper {
    fn begin() -> io::Result<Keeper> {
        let Begun {
            request,
            handed,
            descriptors,
            store,
        } = service::begun()?;
        if !request["foreground"].as_bool().unwrap_or(false) {
            // A keeper of its own session outlives the terminal, and so do its workers.
            let _already_leader = rustix::process::setsid();
        }
        let (signals, sender) = UnixStream::pair()?;
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?;
        }
        let mut keeper = Keeper {
            request,
            program: Program {
                path: "/proc/self/exe".into(),
                _open: None,
            },
            before: None,
            // The program and the word `keeper` come first.
            words: std::env::args_os().skip(2).collect(),
            signals,
            worker: None,
            next: None,
            held: handed.map(|state| Held { state, descriptors }),
            store,
            ending: false,
            deaths: Deaths::none(Instant::now()),
            errands: Errands::default(),
        };
        if keeper.held.is_none() {
            keeper.worker = Some(keeper.start(Stdio::inherit())?);
        }
        Ok(keeper)
    }

    fn start(&self, stdout: Stdio) -> io::Result<Worker> {
        let (socket, theirs) = parcel::pair()?;
        let mut command = Command::new(&self.program.path);
        notify::keep_from(&mut command);
        let child = command
            .arg0("rsmount")
            .arg("worker")
            .args(&self.words)
            .stdin(Stdio::from(theirs))
            .stdout(stdout)
            .spawn()?;
        let start = Start {
            request: self.request.clone(),
            handed: self.held.as_ref().map(|held| held.state.clone()),
            does: true,
        };
        let descriptors = self.held.iter().flat_map(|held| &held.descriptors);
        let descriptors: Vec<_> = descriptors.map(AsFd::as_fd).collect();
        let since = Instant::now();
        let worker = Worker {
            child,
            socket,
            since,
        };
        // Should it be dead already, its end is noticed like any other.
        let _dead = parcel::send(&worker.socket, &start, &descriptors);
        Ok(worker)
    }

    /// Keeps the mount until a worker says by its exit that it has ended.
    fn keep(&mut self) -> ExitCode {
        // The worker of a keeper before this one was killed with it.
        if self.worker.is_none()
            && let Some(code) = self.start_next(Death::Killed(Duration::ZERO))
        {
            return code;
        }
        loop {
            let ended = match self.wait() {
                Happened::Signal => {
                    self.pass_on();
                    None
                }
                Happened::Current => self.hear_current(),
                Happened::Next => self.hear_next(),
            };
            if let Some(code) = ended {
                return code;
            }
        }
    }

    fn wait(&mut self) -> Happened {
        loop {
            let patience = self.errands.reap();
            let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
            let workers = [
                (&self.worker, Happened::Current),
                (&self.next, Happened::Next),
            ];
            let mut happened = vec![Happened::Signal];
            for (worker, what) in workers {
                if let Some(worker) = worker {
                    fds.push(PollFd::new(&worker.socket, PollFlags::IN));
                    happened.push(what);
                }
            }
            // EINTR is a signal that the pipe tells of as well.
            if poll(&mut fds, patience.as_ref()).is_err() {
                continue;
            }
            let ready = fds.iter().position(|fd| !fd.revents().is_empty());
            if let Some(ready) = ready {
                return happened.swap_remove(ready);
            }
        }
    }

    /// A signal to end the mount is for who serves it. The next one, which could not hear it yet, is told
    /// when it does.
    fn pass_on(&mut self) {
        let _read = self.signals.read(&mut [0; 64]);
        self.ending = true;
        self.worker.iter().for_each(Worker::end);
    }

    /// Another worker can go on with the mount from now on.
    fn holds(&mut self, held: Held) {
        if let Some(store) = &mut self.store {
            let said = (&self.request, &held.state);
            store.serving(said, &held.descriptors, resend::cannot());
        }
        self.held = Some(held);
        let_go_of_caller();
    }

    fn hear_current(&mut self) -> Option<ExitCode> {
        let worker = self.worker.as_mut()?;
        match parcel::receive::<Said>(&worker.socket) {
            Ok(Some((Said::Serving(state), descriptors))) => {
                self.holds(Held { state, descriptors });
                None
            }
            Ok(Some((Said::Replace(program), _))) => {
                self.replace(program);
                None
            }
            Ok(Some((Said::Do(Task::Renew), _))) => {
                self.renew();
                None
            }
            Ok(Some((Said::Do(task), answer))) => {
                self.errands.run(&self.request, task, answer);
                None
            }
            Ok(Some((Said::Prepared, _))) => None,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => not_understood(&error),
            Ok(None) | Err(_) => self.died(),
        }
    }

    /// Starts the next worker from another program.
    fn replace(&mut self, program: PathBuf) {
        if self.next.is_some() || self.held.is_none() {
            return self.tell_not_replaced("another worker is taking over already");
        }
        if let Some(why) = resend::cannot() {
            return self.tell_not_replaced(&why);
        }
        let cache = self.request["cache_dir"].as_str().unwrap_or_default();
        let program = match sandbox::outside(&program, Path::new(cache)) {
            Ok(program) => program,
            Err(why) => return self.tell_not_replaced(&why),
        };
        let before = std::mem::replace(&mut self.program, Program::open(&program));
        match self.start(Stdio::null()) {
            Ok(next) => (self.next, self.before) = (Some(next), Some(before)),
            Err(e) => {
                let why = format!("{}: {e}", program.display());
                self.program = before;
                self.tell_not_replaced(&why);
            }
        }
    }

    /// Starts the next worker from the same program.
    fn renew(&mut self) {
        if self.next.is_some() || self.held.is_none() {
            return;
        }
        match self.start(Stdio::null()) {
            Ok(next) => self.next = Some(next),
            Err(error) => tracing::warn!(%error, "no other worker can be started"),
        }
    }

    fn tell_not_replaced(&self, why: &str) {
        if let Some(worker) = &self.worker {
            let told = Told::NotReplaced(why.to_owned());
            let _dead = parcel::send(&worker.socket, &told, &[]);
        }
    }

    /// The current worker has ended: with the mount, or before its time.
    fn died(&mut self) -> Option<ExitCode> {
        let mut worker = self.worker.take()?;
        let status = worker.child.wait();
        let success = status.as_ref().is_ok_and(ExitStatus::success);
        if success || self.held.is_none() {
            self.end_next();
            return Some(match success {
                true => ExitCode::SUCCESS,
                false => ExitCode::FAILURE,
            });
        }
        tracing::warn!(?status, "the worker has died; another one takes over");
        match self.next {
            // It was about to take over anyway.
            Some(_) => None,
            None => self.start_next(death(status, worker.since.elapsed())),
        }
    }

    fn start_next(&mut self, mut death: Death) -> Option<ExitCode> {
        loop {
            let Some(wait) = self.deaths.after(death, Instant::now()) else {
                tracing::error!(
                    "workers end one after the other: the mount ends, reads of it fail"
                );
                return Some(ExitCode::FAILURE);
            };
            self.pause(wait);
            match self.start(Stdio::null()) {
                Ok(next) => {
                    self.next = Some(next);
                    return None;
                }
                // As if it had been killed for that.
                Err(error) if is_want(&error) => {
                    tracing::warn!(%error, "no worker can be started for now");
                    death = Death::Killed(Duration::ZERO);
                }
                Err(error) => {
                    tracing::error!(%error, "no worker can be started: the mount ends");
                    return Some(ExitCode::FAILURE);
                }
            }
        }
    }

    /// Waits for so long, but not when the mount is to end: whoever serves it next does that.
    fn pause(&mut self, wait: Duration) {
        let until = Instant::now() + wait;
        while !self.ending {
            let left = until.saturating_duration_since(Instant::now());
            let Ok(left) = Timespec::try_from(left) else {
                return;
            };
            let mut fds = [PollFd::new(&self.signals, PollFlags::IN)];
            match poll(&mut fds, Some(&left)) {
                Ok(0) => return,
                Ok(_) => self.pass_on(),
                // A signal, which the pipe tells of as well.
                Err(_) => {}
            }
        }
    }

    fn hear_next(&mut self) -> Option<ExitCode> {
        let next = self.next.as_mut()?;
        match parcel::receive::<Said>(&next.socket) {
            Ok(Some((Said::Prepared, _))) => self.hand_over(),
            Ok(Some(_)) => None,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => not_understood(&error),
            Ok(None) | Err(_) => {
                let mut next = self.next.take()?;
                let status = next.child.wait();
                tracing::warn!(?status, "the next worker could not take over");
                // The one that has served last is known to be able to.
                if let Some(before) = self.before.take() {
                    self.program = before;
                }
                let ended = status.as_ref().is_ok_and(ExitStatus::success);
                if self.worker.is_none() && ended {
                    return Some(ExitCode::SUCCESS);
                }
                if self.worker.is_some() {
                    self.tell_not_replaced("the new worker could not take over; see the log");
                    return None;
                }
                self.start_next(death(status, Duration::ZERO))
            }
        }
    }

    /// Ends the current worker, if it lives, and lets the next one serve.
    fn hand_over(&mut self) -> Option<ExitCode> {
        if let Some(mut worker) = self.worker.take() {
            let _dead_already = worker.child.kill();
            let _status = worker.child.wait();
            self.deaths.last_one_lived();
        }
        let mut next = self.next.take()?;
        for device in self.held.iter().flat_map(|held| held.descriptors.first()) {
            if let Err(error) = resend::resend(device) {
                // Who waits for an answer would wait for ever.
                tracing::error!(%error, "this kernel sends no request again: the mount ends");
                let _dead_already = next.child.kill();
                return Some(ExitCode::FAILURE);
            }
        }
        next.since = Instant::now();
        self.before = None;
        let _dead = parcel::send(&next.socket, &Told::Alone, &[]);
        if self.ending {
            next.end();
        }
        self.worker = Some(next);
        None
    }

    fn end_next(&mut self) {
        if let Some(mut next) = self.next.take() {
            let _dead_already = next.child.kill();
            let _status = next.child.wait();
        }
    }
}

fn death(status: io::Result<ExitStatus>, served: Duration) -> Death {
    let signal = status.ok().and_then(|status| status.signal());
    match signal == Some(rustix::process::Signal::KILL.as_raw()) {
        true => Death::Killed(served),
        false => Death::Failed(served),
    }
}

/// Whether the machine lacks memory or processes, which may pass.
fn is_want(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::OutOfMemory | io::ErrorKind::WouldBlock
    )
}

/// The command has heard all that it will hear.
fn let_go_of_caller() {
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        let _kept = rustix::stdio::dup2_stdin(&null);
        let _kept = rustix::stdio::dup2_stdout(&null);
    }
}
