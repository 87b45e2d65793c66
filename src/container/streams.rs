//! Standard streams of a container's process: pipes, or a terminal that the runtime makes. What it
//! prints goes to the log and to the caller; what the caller types goes to it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rustix::pipe::{PipeFlags, pipe_with};

use crate::container::log::{Stream, Writer};
use crate::container::terminal::{self, Raw};
use crate::runtime::console::Console;
use crate::runtime::program::Spawn;

/// Bytes that are passed on at once: a pipe's capacity.
const BUFFER_BYTES: usize = 64 << 10;

/// What the terminal's end of file is typed as (termios(3), `VEOF`).
const END_OF_FILE: u8 = 4;

/// What a process is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Standard input stays open, and is the caller's.
    pub interactive: bool,
    /// A terminal.
    pub terminal: bool,
    /// The caller's streams; else what is printed goes to the log alone.
    pub attached: bool,
}

/// Streams of a process that is still to be made.
#[derive(Debug)]
pub struct Streams {
    wanted: Wanted,
    log: Option<Arc<Mutex<Writer>>>,
    ours: Ours,
}

/// The ends that stay here.
#[derive(Debug)]
enum Ours {
    Terminal(Console),
    Pipes {
        stdin: Option<File>,
        stdout: File,
        stderr: File,
    },
}

/// Streams that are passed on.
#[derive(Debug)]
pub struct Passing {
    outputs: Vec<JoinHandle<()>>,
    /// Open as long as the process runs, although nothing is written: a detached `-i`.
    _held: Option<File>,
    master: Option<File>,
    raw: Option<Raw>,
}

impl Streams {
    /// Makes the streams, and the ends for the runtime. A terminal is handed over on a socket at
    /// `socket`.
    pub fn make(wanted: Wanted, socket: &Path, log: Option<Writer>) -> io::Result<(Streams, Ends)> {
        let log = log.map(|writer| Arc::new(Mutex::new(writer)));
        if wanted.terminal {
            let console = Console::listen(socket)?;
            let ends = Ends {
                console: Some(console.path().to_owned()),
                ..Ends::default()
            };
            let ours = Ours::Terminal(console);
            return Ok((Streams { wanted, log, ours }, ends));
        }
        let pipe = || pipe_with(PipeFlags::CLOEXEC);
        let (stdout, out) = pipe()?;
        let (stderr, err) = pipe()?;
        let (input, stdin) = match wanted.interactive {
            true => pipe().map(|(theirs, ours)| (Some(theirs), Some(ours.into())))?,
            false => (None, None),
        };
        let ours = Ours::Pipes {
            stdin,
            stdout: stdout.into(),
            stderr: stderr.into(),
        };
        let ends = Ends {
            stdin: input,
            stdout: Some(out),
            stderr: Some(err),
            console: None,
        };
        Ok((Streams { wanted, log, ours }, ends))
    }

    /// Begins to pass on, once the process is there.
    pub fn pass(self) -> io::Result<Passing> {
        let Streams { wanted, log, ours } = self;
        let output = |from, stream| {
            let to = wanted.attached.then_some(stream);
            spawn_output(from, stream, to, log.clone(), wanted.terminal)
        };
        match ours {
            Ours::Terminal(console) => {
                let master = File::from(console.receive()?);
                let mut raw = None;
                if wanted.attached {
                    terminal::follow_size(&master);
                    raw = if wanted.interactive {
                        Raw::enter()?
                    } else {
                        None
                    };
                }
                let outputs = vec![output(master.try_clone()?, Stream::Stdout)?];
                if wanted.attached && wanted.interactive {
                    spawn_input(master.try_clone()?, true)?;
                }
                Ok(Passing {
                    outputs,
                    _held: None,
                    master: Some(master),
                    raw,
                })
            }
            Ours::Pipes {
                stdin,
                stdout,
                stderr,
            } => {
                let outputs = vec![
                    output(stdout, Stream::Stdout)?,
                    output(stderr, Stream::Stderr)?,
                ];
                let held = match stdin {
                    Some(to) if wanted.attached => {
                        spawn_input(to, false)?;
                        None
                    }
                    other => other,
                };
                Ok(Passing {
                    outputs,
                    _held: held,
                    master: None,
                    raw: None,
                })
            }
        }
    }
}

/// The ends of a process's streams that its runtime is given; none is `/dev/null`.
#[derive(Debug, Default)]
pub struct Ends {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    console: Option<std::path::PathBuf>,
}

impl Ends {
    /// As the runtime takes them. They are closed here when this is dropped, so that the other ends
    /// see the process's end.
    pub fn spawn(&self) -> io::Result<Spawn<'_>> {
        let stdio = |fd: &Option<OwnedFd>| match fd {
            Some(fd) => Ok::<_, io::Error>(Stdio::from(fd.try_clone()?)),
            None => Ok(Stdio::null()),
        };
        Ok(Spawn {
            stdin: stdio(&self.stdin)?,
            stdout: stdio(&self.stdout)?,
            stderr: stdio(&self.stderr)?,
            console: self.console.as_deref(),
        })
    }
}

impl Passing {
    /// The user's terminal has another size.
    pub fn resized(&self) {
        if let Some(master) = &self.master {
            terminal::follow_size(master);
        }
    }

    /// Waits until all that was printed is passed on; the process has ended.
    pub fn finish(self) {
        let Passing { outputs, raw, .. } = self;
        for output in outputs {
            let _ended = output.join();
        }
        drop(raw);
    }
}

fn spawn_output(
    mut from: File,
    stream: Stream,
    to: Option<Stream>,
    log: Option<Arc<Mutex<Writer>>>,
    terminal: bool,
) -> io::Result<JoinHandle<()>> {
    let pass = move || {
        let mut to = to;
        let mut buffer = vec![0; BUFFER_BYTES];
        // A terminal whose other side is closed says EIO.
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let bytes = &buffer[..length];
            if let Some(log) = &log {
                let mut log = log.lock().unwrap_or_else(|e| e.into_inner());
                if let Err(error) = log.write(stream, bytes) {
                    tracing::debug!(%error, "the log misses something");
                }
            }
            if to.is_some_and(|stream| show(stream, bytes).is_err()) {
                // Whoever reads from us has gone: so has whoever the container writes to.
                if !terminal {
                    return;
                }
                // A terminal that nobody reads would hold the container up for ever.
                to = None;
            }
        }
    };
    std::thread::Builder::new()
        .name("output".into())
        .spawn(pass)
}

fn show(stream: Stream, bytes: &[u8]) -> io::Result<()> {
    match stream {
        Stream::Stdout => write_all(io::stdout().as_fd(), bytes),
        Stream::Stderr => write_all(io::stderr().as_fd(), bytes),
    }
}

/// Past the buffer of `std`, which keeps what has no line's end.
fn write_all(fd: std::os::fd::BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => wait_until_writable(fd)?,
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// A terminal or pipe that somebody else has made non-blocking.
fn wait_until_writable(fd: std::os::fd::BorrowedFd<'_>) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};
    let mut wait = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
    match poll(&mut wait, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Nobody waits for it: it may stand in a read for ever, and ends with this process.
fn spawn_input(mut to: File, terminal: bool) -> io::Result<()> {
    let pass = move || {
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut stdin = io::stdin().lock();
        while let Ok(length @ 1..) = stdin.read(&mut buffer) {
            if to.write_all(&buffer[..length]).is_err() {
                return;
            }
        }
        if terminal {
            let _gone = to.write_all(&[END_OF_FILE]);
        }
    };
    std::thread::Builder::new()
        .name("input".into())
        .spawn(pass)?;
    Ok(())
}
