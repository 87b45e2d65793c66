//! Every thread of this process shuts itself in.
//!
//! Capabilities and Landlock belong to a thread, and no thread can change another's (Landlock can
//! from Linux 7.0 on). So each gets a signal whose handler makes the calls, as the C library does for
//! `setuid`. A thread that is started meanwhile either has what its maker has, or is found by the
//! next look at the list.

use std::collections::HashSet;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use rustix::thread::{CapabilitySet, CapabilitySets};

/// How long all of them may take: each wakes up for it at once.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between two looks whether one has done it.
const GLANCE: Duration = Duration::from_micros(50);

/// The rules of Landlock; negative when there are none.
static RULES: AtomicI32 = AtomicI32::new(-1);
/// The capabilities that are kept, as bits.
static KEEPS: AtomicU64 = AtomicU64::new(0);
/// Threads that have made the calls, and the first error that one of them got.
static DONE: AtomicU32 = AtomicU32::new(0);
static FAILED: AtomicI32 = AtomicI32::new(0);

/// Shuts all threads in: `rules` are Landlock's, `keeps` the capabilities that stay.
pub(super) fn shut_in(rules: Option<OwnedFd>, keeps: CapabilitySet) -> Result<(), String> {
    RULES.store(rules.as_ref().map_or(-1, AsRawFd::as_raw_fd), SeqCst);
    KEEPS.store(keeps.bits(), SeqCst);
    FAILED.store(0, SeqCst);
    let shut = others().map_err(|e| format!("the threads could not be shut in: {e}"));
    // This one last, because it looks at the list and sends the signals.
    let itself = calls();
    RULES.store(-1, SeqCst);
    shut?;
    match itself.and(FAILED.load(SeqCst)) {
        0 => Ok(()),
        code => {
            let error = std::io::Error::from_raw_os_error(code);
            Err(format!("the threads could not be shut in: {error}"))
        }
    }
}

/// An `errno`, or 0.
trait Errno {
    fn and(self, other: i32) -> i32;
}

impl Errno for i32 {
    fn and(self, other: i32) -> i32 {
        if self == 0 { other } else { self }
    }
}

/// The calls, of the thread that makes them; gives an `errno` or 0. Safe in a signal handler: these
/// are bare system calls, nothing is allocated, nothing locked.
fn calls() -> i32 {
    if let Err(e) = rustix::thread::set_no_new_privs(true) {
        return e.raw_os_error();
    }
    let rules = RULES.load(SeqCst);
    if rules >= 0
        && let Err(e) = landlock(rules)
    {
        return e;
    }
    let keeps = CapabilitySet::from_bits_retain(KEEPS.load(SeqCst));
    let has = match rustix::thread::capabilities(None) {
        Ok(has) => has,
        Err(e) => return e.raw_os_error(),
    };
    let sets = CapabilitySets {
        effective: has.effective & keeps,
        permitted: has.permitted & keeps,
        inheritable: CapabilitySet::empty(),
    };
    match rustix::thread::set_capabilities(None, sets) {
        Ok(()) => 0,
        Err(e) => e.raw_os_error(),
    }
}

#[allow(unsafe_code)]
fn landlock(rules: i32) -> Result<(), i32> {
    // SAFETY: the call takes two numbers and touches no memory of ours; `errno` is this thread's.
    unsafe {
        match libc::syscall(libc::SYS_landlock_restrict_self, rules, 0) {
            0 => Ok(()),
            _ => Err(*libc::__errno_location()),
        }
    }
}

extern "C" fn on_signal(_signal: libc::c_int) {
    let code = calls();
    if code != 0 {
        let _an_earlier_one = FAILED.compare_exchange(0, code, SeqCst, SeqCst);
    }
    DONE.fetch_add(1, SeqCst);
}

/// One that nobody else uses; the C library keeps the first ones for itself.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 3
}

#[allow(unsafe_code)]
fn listen(handler: libc::sighandler_t) -> std::io::Result<()> {
    // SAFETY: the structure is plain data for which zeros mean no flags and an empty mask; the
    // handler has the type of one and does only what a handler may. SA_RESTART keeps what other
    // threads wait for going.
    let done = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(signal(), &action, std::ptr::null_mut())
    };
    match done {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

#[allow(unsafe_code)]
fn tell(thread: i32) -> std::io::Result<()> {
    let process = std::process::id();
    // SAFETY: the call takes three numbers and touches no memory of ours.
    match unsafe { libc::syscall(libc::SYS_tgkill, process, thread, signal()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// All threads but this one.
fn list() -> std::io::Result<HashSet<i32>> {
    let this = rustix::thread::gettid().as_raw_nonzero().get();
    let mut threads = HashSet::new();
    for entry in std::fs::read_dir("/proc/self/task")? {
        let name = entry?.file_name();
        threads.extend(name.to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    threads.remove(&this);
    Ok(threads)
}

fn others() -> std::io::Result<()> {
    let handler = on_signal as extern "C" fn(libc::c_int);
    listen(handler as usize)?;
    let deadline = Instant::now() + PATIENCE;
    let mut told = HashSet::new();
    let outcome = loop {
        let new: Vec<i32> = list()?.difference(&told).copied().collect();
        if new.is_empty() {
            break Ok(());
        }
        for thread in new {
            told.insert(thread);
            let before = DONE.load(SeqCst);
            match tell(thread) {
                Ok(()) => {}
                // It has ended meanwhile.
                Err(e) if e.raw_os_error() == Some(libc::ESRCH) => continue,
                Err(e) => return Err(e),
            }
            while DONE.load(SeqCst) == before && lives(thread) {
                if Instant::now() > deadline {
                    return Err(std::io::Error::other("one of them does not answer"));
                }
                std::thread::sleep(GLANCE);
            }
        }
    };
    listen(libc::SIG_IGN)?;
    outcome
}

fn lives(thread: i32) -> bool {
    std::path::Path::new(&format!("/proc/self/task/{thread}")).exists()
}
