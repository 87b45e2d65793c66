//! The commands for containers: which is which, and `exec`, `logs`, `stop`, `kill`, `wait` and `rm`.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use crate::cli::args::Global;
use crate::cli::args::container::{
    ContainerCommand, ExecArgs, KillArgs, LogsArgs, RmArgs, StopArgs, WaitArgs,
};
use crate::cli::bundle;
use crate::cli::output::{self, Failure};
use crate::cli::run::{self, Failed};
use crate::cli::settings::Settings;
use crate::cli::wishes::variables;
use crate::container::exec::Request;
use crate::container::log::{Show, Stream};
use crate::container::streams::Wanted;
use crate::container::{Container, Error, Status, Store, exec, log, signal, stop};

/// Runs one of the commands for containers; the exit code of `run` and `exec` is the program's.
pub(crate) fn run(
    command: ContainerCommand,
    global: &Global,
    settings: Settings,
) -> Result<ExitCode, Failure> {
    use ContainerCommand as C;
    let verbose = global.verbose > 0;
    match command {
        C::Run(args) => return Ok(run::code_of(run::run(&args, global, settings), verbose)),
        C::Exec(args) => return Ok(run::code_of(exec(&args, &settings), verbose)),
        C::Watch(args) => return Ok(run::watch(&args, &settings)),
        C::Logs(args) => logs(&args, &settings)?,
        C::Stop(args) => stop(&args, &settings)?,
        C::Kill(args) => kill(&args, &settings)?,
        C::Wait(args) => wait(&args, &settings)?,
        C::Rm(args) => rm(&args, &settings)?,
        C::Bundle(args) => bundle::bundle(&args, global, settings)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The store of containers; those that it cannot read are told of.
pub(super) fn open(cache_dir: &Path) -> Result<Store, Error> {
    let store = Store::open(cache_dir)?;
    for damaged in store.damaged() {
        output::note(&damaged.to_string());
    }
    Ok(store)
}

/// The same, unless nobody has made a container there yet.
pub(super) fn existing(cache_dir: &Path) -> Result<Option<Store>, Error> {
    Store::exists(cache_dir)
        .then(|| open(cache_dir))
        .transpose()
}

/// The exit code of `exec` is the program's.
fn exec(args: &ExecArgs, settings: &Settings) -> Result<u8, Failed> {
    let container = open(&settings.cache_dir)?.find(&args.container)?;
    let request = Request {
        command: args.command.clone(),
        env: variables(&args.env_file, &args.env)?,
        working_dir: args.workdir.clone(),
        user: args.user.clone(),
        wanted: Wanted {
            interactive: args.interactive,
            terminal: args.tty,
            attached: !args.detach,
        },
        detach: args.detach,
    };
    Ok(exec::exec(&container, &request)?)
}

fn logs(args: &LogsArgs, settings: &Settings) -> Result<(), Failure> {
    let store = open(&settings.cache_dir).map_err(|e| Failure::of(&e))?;
    let container = store.find(&args.container).map_err(|e| Failure::of(&e))?;
    let show = Show {
        tail: args.tail.filter(|lines| *lines < usize::MAX),
        timestamps: args.timestamps,
    };
    let goes_on = || args.follow && container.is_watched();
    let mut sink = |stream, text: &[u8]| match stream {
        Stream::Stdout => io::stdout().write_all(text),
        Stream::Stderr => io::stderr().write_all(text),
    };
    let read = log::read(&container.log(), show, &goes_on, &mut sink);
    match read.and_then(|()| io::stdout().flush()) {
        // A closed pipe is the reader's wish.
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Failure::of(&e)),
        _ => Ok(()),
    }
}

fn stop(args: &StopArgs, settings: &Settings) -> Result<(), Failure> {
    let signal = args.signal.as_deref().map(signal::parse).transpose();
    let signal = signal.map_err(|e| Failure::of(&e))?;
    let patience = Duration::from_secs(args.time);
    each(&args.containers, settings, |container| {
        stop::stop(container, signal, patience)
    })
}

fn kill(args: &KillArgs, settings: &Settings) -> Result<(), Failure> {
    let signal = signal::parse(&args.signal).map_err(|e| Failure::of(&e))?;
    each(&args.containers, settings, |container| {
        stop::kill(container, signal)
    })
}

fn rm(args: &RmArgs, settings: &Settings) -> Result<(), Failure> {
    let mut names = args.containers.clone();
    if args.all {
        let store = open(&settings.cache_dir).map_err(|e| Failure::of(&e))?;
        let all = store.list().map_err(|e| Failure::of(&e))?;
        let wanted = |c: &Container| args.force || c.record.status == Status::Exited;
        let wanted = all.into_iter().filter(wanted);
        names.extend(wanted.map(|c| c.record.name));
    }
    each(&names, settings, |container| {
        stop::remove(container, args.force)
    })
}

fn wait(args: &WaitArgs, settings: &Settings) -> Result<(), Failure> {
    let store = open(&settings.cache_dir).map_err(|e| Failure::of(&e))?;
    for name in &args.containers {
        let found = store.find(name).and_then(|c| stop::wait(&c));
        output::line(&found.map_err(|e| Failure::of(&e))?.to_string());
    }
    Ok(())
}

/// Does it to each, prints the names of those that it was done to, and fails in the end with the
/// first that it could not be done to.
fn each(
    names: &[String],
    settings: &Settings,
    act: impl Fn(&Container) -> Result<(), Error>,
) -> Result<(), Failure> {
    let store = open(&settings.cache_dir).map_err(|e| Failure::of(&e))?;
    let mut failure = None;
    for name in names {
        match store.find(name).and_then(|container| act(&container)) {
            Ok(()) => output::line(name),
            Err(error) => {
                if let Some(earlier) = failure.replace(Failure::of(&error)) {
                    output::print_failure(&earlier, false);
                }
            }
        }
    }
    failure.map_or(Ok(()), Err)
}
