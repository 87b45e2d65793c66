//! Watching a container: the runtime makes it, this process is its parent until it ends.
//!
//! The runtime's process ends as soon as the container's is there, which then belongs to the nearest
//! subreaper (prctl(2)): this one. So its exit code comes by waitpid(2), and a signal that is passed
//! on cannot hit another process of the same number.

use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use signal_hook::consts::{
    SIGALRM, SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH,
};
use signal_hook::iterator::Signals;

use crate::container::error::Error;
use crate::container::log::Writer;
use crate::container::record::{RuntimeAt, Status, now};
use crate::container::store::Container;
use crate::container::streams::{Passing, Streams, Wanted};
use crate::mount::record;
use crate::runtime::{Program, Refusal};

/// What is passed on, besides what concerns this process itself.
const PASSED_ON: [i32; 8] = [
    SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGALRM, SIGCONT,
];

/// Signals that this process hears from now on.
#[derive(Debug)]
pub struct Ears(Signals);

impl Ears {
    /// Begins to listen, and takes orphans in.
    pub fn open() -> io::Result<Ears> {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        let all = PASSED_ON.into_iter().chain([SIGCHLD, SIGWINCH]);
        Signals::new(all).map(Ears)
    }

    /// Passes signals on to the child `pid` until it ends; gives its exit code as a shell does.
    pub fn wait(&mut self, pid: Pid, passing: &Passing) -> io::Result<u8> {
        // It may have ended before anybody listened.
        if let Some(code) = ended(pid)? {
            return Ok(code);
        }
        for signal in self.0.forever() {
            match signal {
                SIGCHLD => {
                    if let Some(code) = ended(pid)? {
                        return Ok(code);
                    }
                }
                SIGWINCH => passing.resized(),
                other => pass_on(pid, other),
            }
        }
        Err(io::Error::other("no signal will come any more"))
    }
}

fn pass_on(pid: Pid, signal: i32) {
    if let Some(signal) = Signal::from_named_raw(signal)
        && let Err(error) = rustix::process::kill_process(pid, signal)
    {
        tracing::debug!(%error, ?signal, "not passed on");
    }
}

/// The exit code when `pid` has ended: its own, or 128 and the signal that ended it.
fn ended(pid: Pid) -> io::Result<Option<u8>> {
    let waited = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG)?;
    Ok(waited.map(|(_, status)| code(status)))
}

fn code(status: WaitStatus) -> u8 {
    let signal = status.terminating_signal().map(|signal| 128 + signal);
    let code = status.exit_status().or(signal).unwrap_or(255);
    u8::try_from(code).unwrap_or(u8::MAX)
}

/// Where a terminal comes through. The run directory, because the name of a socket may have 107
/// bytes only (unix(7)).
pub(super) fn console_path(name: &str) -> Result<PathBuf, Error> {
    let dir = record::directory().map_err(|e| Error::at(Path::new("the run directory"), e))?;
    Ok(dir.join(format!("{name}.pty")))
}

/// Makes and starts the process of a prepared container by the first of `programs` that works here,
/// calls `started`, and stays until it has ended. Gives its exit code. In any case nothing stays
/// mounted; a container that never started is removed.
pub fn supervise(
    container: &mut Container,
    programs: &[Program],
    wanted: Wanted,
    started: impl FnOnce(&Container),
) -> Result<u8, Error> {
    let outcome = watch(container, programs, wanted, started);
    match &outcome {
        Ok(code) => {
            container.record.exit_code = Some(*code);
            container.record.finished = Some(now());
        }
        Err(_) if container.record.started.is_none() => container.record.remove = true,
        Err(_) => {}
    }
    let finished = container.finish(outcome.as_ref().copied().unwrap_or(u8::MAX));
    if let Err(error) = finished {
        // How its process ended is what was asked for, and the next command looks after the rest.
        tracing::warn!(%error, "the container is not taken down");
    }
    outcome
}

fn watch(
    container: &mut Container,
    programs: &[Program],
    wanted: Wanted,
    started: impl FnOnce(&Container),
) -> Result<u8, Error> {
    let at = |e| Error::at(Path::new("/proc/self"), e);
    let mut ears = Ears::open().map_err(at)?;
    let (program, pid, streams) = create(container, programs, wanted)?;
    let passing = streams.pass().map_err(|e| Error::at(container.dir(), e))?;
    // Before it starts: whoever finds it without a watcher has to know that it may have run.
    container.record.status = Status::Running;
    container.record.pid = u32::try_from(pid.as_raw_nonzero().get()).ok();
    container.record.started = Some(now());
    container.save()?;
    if let Err(refusal) = program.start(&container.record.id) {
        container.record.started = None;
        let _gone = program.delete(&container.record.id);
        passing.finish();
        return Err(refusal.into());
    }
    started(container);
    let code = ears.wait(pid, &passing).map_err(at)?;
    passing.finish();
    Ok(code)
}

/// Tries the runtimes in turn: one that cannot live with the cgroups of this host is passed over.
fn create(
    container: &mut Container,
    programs: &[Program],
    wanted: Wanted,
) -> Result<(Program, Pid, Streams), Error> {
    let mut refused = Error::NoRuntime;
    for program in programs {
        // Written before, so that whoever finds the container can have it forgotten.
        container.record.runtime = Some(RuntimeAt::from(program));
        container.save()?;
        match create_by(container, program, wanted) {
            Ok((pid, streams)) => return Ok((program.clone(), pid, streams)),
            Err(Error::Refusal(refusal @ Refusal::Cgroups { .. })) => {
                tracing::debug!(%refusal, "the next runtime is tried");
                if let Err(error) = program.delete(&container.record.id) {
                    tracing::debug!(%error, "it has nothing to forget");
                }
                refused = refusal.into();
            }
            Err(other) => return Err(other),
        }
    }
    Err(refused)
}

fn create_by(
    container: &Container,
    program: &Program,
    wanted: Wanted,
) -> Result<(Pid, Streams), Error> {
    let at = |e| Error::at(container.dir(), e);
    let log = Writer::create(&container.log()).map_err(at)?;
    let socket = console_path(container.short_id())?;
    let (streams, ends) = Streams::make(wanted, &socket, Some(log)).map_err(at)?;
    let spawn = ends.spawn().map_err(at)?;
    let pid = program.create(&container.record.id, container.dir(), spawn)?;
    Ok((pid, streams))
}
