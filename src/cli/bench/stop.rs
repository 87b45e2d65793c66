//! Ending a measurement by a signal: whatever is waited for is given up, so that what was mounted and
//! made goes the same way as at its regular end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::cli::output::Failure;

/// How long a program may take to end by itself before it is killed.
const PATIENCE: Duration = Duration::from_secs(5);

/// The signals that end a measurement.
#[derive(Debug)]
pub(super) struct Stop {
    /// The last one that came.
    signal: Arc<AtomicUsize>,
    /// Readable as soon as one has come; nobody reads it.
    came: UnixStream,
}

impl Stop {
    /// From now on signals do not end this process by themselves.
    pub(super) fn register() -> io::Result<Stop> {
        let signal = Arc::new(AtomicUsize::new(0));
        let (came, sender) = UnixStream::pair()?;
        for number in [SIGINT, SIGTERM, SIGHUP] {
            let value = usize::try_from(number).unwrap_or_default();
            signal_hook::flag::register_usize(number, signal.clone(), value)?;
            signal_hook::low_level::pipe::register(number, sender.try_clone()?)?;
        }
        Ok(Stop { signal, came })
    }

    /// The exit code that tells of the signal that came, if one has: what a shell gives.
    pub(super) fn exit_code(&self) -> Option<u8> {
        match self.signal.load(SeqCst) {
            0 => None,
            signal => Some(128_u8.saturating_add(u8::try_from(signal).unwrap_or(u8::MAX))),
        }
    }

    /// Readable when it is time to stop.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.came.as_fd()
    }

    /// Waits for a program; when a signal comes first it gets `ask`, and is killed if that does not
    /// end it.
    pub(super) fn wait(&self, child: &mut Child, ask: Signal) -> Result<ExitStatus, Failure> {
        let failed = |e: &dyn std::error::Error| Failure::new(format!("cannot wait: {e}"));
        let pid = Pid::from_raw(child.id().cast_signed()).ok_or_else(stopped)?;
        let ended = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| failed(&e))?;
        if !ready(&[ended.as_fd(), self.fd()], None) {
            let _gone = kill_process(pid, ask);
            if !ready(&[ended.as_fd()], Some(PATIENCE)) {
                let _gone = child.kill();
            }
            let _status = child.wait();
            return Err(stopped());
        }
        child.wait().map_err(|e| failed(&e))
    }

    /// Does something that cannot be ended; when a signal comes first it is left alone, and this
    /// process is about to end.
    pub(super) fn during<T: Send + 'static>(
        &self,
        action: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let failed = |e: io::Error| Failure::new(format!("cannot start a thread: {e}"));
        let (here, there) = UnixStream::pair().map_err(failed)?;
        let thread = std::thread::Builder::new().spawn(move || {
            let done = action();
            drop(there);
            done
        });
        let thread = thread.map_err(failed)?;
        match ready(&[here.as_fd(), self.fd()], None) {
            true => thread.join().map_err(|_panicked| stopped()),
            false => Err(stopped()),
        }
    }
}

/// Whether the first of `fds` is ready before any other of them, and in time.
fn ready(fds: &[BorrowedFd<'_>], patience: Option<Duration>) -> bool {
    let timeout = patience.and_then(|p| Timespec::try_from(p).ok());
    loop {
        let mut polled: Vec<_> = fds
            .iter()
            .map(|fd| PollFd::new(fd, PollFlags::IN))
            .collect();
        match poll(&mut polled, timeout.as_ref()) {
            // A signal that the pipe tells of as well, if it is one of ours.
            Err(rustix::io::Errno::INTR) => {}
            Err(_) | Ok(0) => return false,
            Ok(_) => return !polled[0].revents().is_empty(),
        }
    }
}

/// What nobody reads: the exit code says it.
pub(super) fn stopped() -> Failure {
    Failure::new("stopped")
}
