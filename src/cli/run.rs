//! `rsmount run`, and the watcher of a detached container.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use serde::{Deserialize, Serialize};

use crate::cli::args::Global;
use crate::cli::args::container::{RunArgs, WatchArgs};
use crate::cli::containers;
use crate::cli::mount::{launch_mount, log_words, source_request};
use crate::cli::output::{self, Failure};
use crate::cli::settings::Settings;
use crate::cli::wishes;
use crate::container::store::Claimed;
use crate::container::streams::Wanted;
use crate::container::{Container, Error, Store, prepare, supervise};
use crate::mount::launch;

/// Docker's exit code for what is not the container's own fault.
pub(crate) const OWN_FAILURE: u8 = 125;

/// A failure, and the exit code of the command for it.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) failure: Failure,
    pub(crate) code: u8,
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Failed {
        let code = OWN_FAILURE;
        Failed { failure, code }
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Failed {
        let code = error.exit_code();
        let failure = Failure::of(&error);
        Failed { failure, code }
    }
}

/// Prints a failure and gives its exit code.
pub(crate) fn code_of(outcome: Result<u8, Failed>, verbose: bool) -> ExitCode {
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(Failed { failure, code }) => {
            output::print_failure(&failure, verbose);
            ExitCode::from(code)
        }
    }
}

/// What the watcher tells the command that started it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    Started,
    Failed { message: String, code: u8 },
}

pub(crate) fn run(args: &RunArgs, global: &Global, settings: Settings) -> Result<u8, Failed> {
    let programs = prepare::runtimes(args.runtime.as_deref())?;
    let wishes = wishes::wishes(&args.process, &args.command)?;
    if args.interactive && args.process.tty && !args.detach && !std::io::stdin().is_terminal() {
        output::note("standard input is no terminal; keys like Ctrl-C do not come through it");
    }
    let cidfile = args.cidfile.as_deref().map(IdFile::create).transpose()?;
    let cache_dir = settings.cache_dir.clone();
    let unread = (settings.on_outage, settings.fill, settings.engine);
    let mut request = source_request(&args.source, settings)?;
    request.on_outage = unread.0.unwrap_or_default();
    request.fill = unread.1.unwrap_or_default();
    request.engine = unread.2.unwrap_or(request.engine);
    let store = containers::open(&cache_dir)?;
    let Claimed {
        mut container,
        lock,
    } = store.claim(args.name.as_deref(), &request.image)?;
    container.record.remove = args.rm;
    let request = prepare::mount_request(&container, &wishes, request);
    let prepared = launch_mount(&request, global)
        .map_err(Failed::from)
        .and_then(|launched| {
            let mounted = launched.record;
            Ok(prepare::prepare(
                &mut container,
                &wishes,
                &cache_dir,
                &mounted,
            )?)
        });
    if let Err(failed) = prepared {
        discard(container);
        return Err(failed);
    }
    if let Some(file) = cidfile
        && let Err(failure) = file.finish(&container.record.id)
    {
        discard(container);
        return Err(failure.into());
    }
    if args.detach {
        return detach(&container, lock, args, global, &cache_dir);
    }
    let wanted = Wanted {
        interactive: args.interactive,
        terminal: args.process.tty,
        attached: true,
    };
    Ok(supervise::supervise(
        &mut container,
        &programs,
        wanted,
        |_| {},
    )?)
}

/// Takes a container away that has never run.
fn discard(mut container: Container) {
    container.record.remove = true;
    if let Err(error) = container.finish(OWN_FAILURE) {
        output::note(&error.to_string());
    }
}

/// The file of `--cidfile`, which stays only when there is a container.
struct IdFile {
    file: File,
    path: PathBuf,
    finished: bool,
}

impl IdFile {
    fn create(path: &Path) -> Result<IdFile, Failure> {
        let opened = OpenOptions::new().write(true).create_new(true).open(path);
        Ok(IdFile {
            file: opened.map_err(|e| failed_at(path, &e))?,
            path: path.to_owned(),
            finished: false,
        })
    }

    fn finish(mut self, id: &str) -> Result<(), Failure> {
        let written = self.file.write_all(id.as_bytes());
        self.finished = written.is_ok();
        written.map_err(|e| failed_at(&self.path, &e))
    }
}

impl Drop for IdFile {
    fn drop(&mut self) {
        if !self.finished {
            let _gone = std::fs::remove_file(&self.path);
        }
    }
}

fn failed_at(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("{}: {error}", path.display()))
}

/// Hands the container to a process of its own session, and waits until it runs.
fn detach(
    container: &Container,
    lock: File,
    args: &RunArgs,
    global: &Global,
    cache_dir: &Path,
) -> Result<u8, Failed> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("rsmount").arg("watch").args(log_words(global));
    command.arg("--cache-dir").arg(cache_dir);
    if args.interactive {
        command.arg("--interactive");
    }
    if let Some(runtime) = &args.runtime {
        command.args(["--runtime", runtime]);
    }
    let log = launch::log_path();
    let log = OpenOptions::new().append(true).create(true).open(log);
    let spawned = command
        .arg("--")
        .arg(&container.record.id)
        .stdin(lock)
        .stdout(Stdio::piped())
        .stderr(log.map_or_else(|_| Stdio::null(), Stdio::from))
        .spawn();
    let mut child = spawned.map_err(|e| Failure::of(&e))?;
    let stdout = child.stdout.take();
    let mut line = String::new();
    if let Some(stdout) = stdout {
        let read = BufReader::new(stdout).read_line(&mut line);
        read.map_err(|e| Failure::of(&e))?;
    }
    match serde_json::from_str(&line) {
        Ok(Message::Started) => {
            output::line(&container.record.id);
            Ok(0)
        }
        Ok(Message::Failed { message, code }) => Err(Failed {
            failure: Failure::new(message),
            code,
        }),
        Err(_) => Err(Failure::new("the container's watcher ended without a word").into()),
    }
}

/// Watches one container until it ends: its lock is this process's standard input.
pub(crate) fn watch(args: &WatchArgs, settings: &Settings) -> ExitCode {
    // It is no group leader, so this works; and if not, it is still the container's parent.
    let _session = rustix::process::setsid();
    let outcome = watched(args, settings);
    if let Err(error) = &outcome {
        let (message, code) = (error.to_string(), error.exit_code());
        say(&Message::Failed { message, code });
    }
    outcome.map_or(ExitCode::FAILURE, ExitCode::from)
}

fn watched(args: &WatchArgs, settings: &Settings) -> Result<u8, Error> {
    let runtime = args.runtime.as_deref();
    let programs = prepare::runtimes(runtime)?;
    let mut container = Store::open(&settings.cache_dir)?.find(&args.container)?;
    let process = container.record.process.as_ref();
    let wanted = Wanted {
        interactive: args.interactive,
        terminal: process.is_some_and(|p| p.terminal),
        attached: false,
    };
    supervise::supervise(&mut container, &programs, wanted, |_| {
        say(&Message::Started)
    })
}

/// One line for the command, which is then let go.
fn say(message: &Message) {
    let line = serde_json::to_string(message).unwrap_or_default();
    output::line(&line);
    if let Ok(null) = OpenOptions::new().write(true).open("/dev/null") {
        let _still_open = rustix::stdio::dup2_stdout(&null);
    }
}
