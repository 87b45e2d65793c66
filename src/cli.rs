//! The command line: arguments in, text or JSON out. The only room that prints.

pub mod args;
mod bench;
mod bundle;
mod cache;
mod containers;
mod doctor;
mod freeze;
mod image;
mod index;
mod key;
mod list;
mod manual;
mod mount;
mod output;
mod progress;
mod publish;
mod run;
mod served;
mod settings;
mod upgrade;
mod why;
mod wishes;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use tracing_subscriber::EnvFilter;

use crate::cli::args::container::ContainerCommand;
use crate::cli::args::{Args, Arranged, Command, LogFormat};
use crate::cli::output::Failure;
use crate::cli::served::Log;
use crate::cli::settings::Settings;

/// Runs the command line `words` (the program's name first). Exit codes: 0 done, 1 failed,
/// 2 wrong usage.
pub fn run(words: Vec<OsString>) -> ExitCode {
    if let Some((serve, log)) = served::process(&words) {
        start_log(&log);
        return serve();
    }
    let Arranged { words, name, meant } = args::arranged(words);
    let in_container = matches!(name.as_deref(), Some("run" | "exec"));
    let matches = match Args::command().try_get_matches_from(words) {
        Ok(matches) => matches,
        Err(e) => {
            let code = usage(&e, in_container);
            if let Some(meant) = meant.filter(|_| e.use_stderr()) {
                output::note(&did_you_mean(&meant));
            }
            return code;
        }
    };
    let args = match Args::from_arg_matches(&matches) {
        Ok(args) => args,
        Err(e) => return usage(&e, in_container),
    };
    let served = match args.command {
        Command::Worker => Some(crate::mount::worker::run as fn() -> ExitCode),
        Command::Keeper => Some(crate::mount::keeper::run as fn() -> ExitCode),
        _ => None,
    };
    let log = Log {
        verbose: args.global.verbose,
        format: args.global.log_format,
    };
    if let Some(serve) = served {
        start_log(&log);
        return serve();
    }
    let verbose = args.global.verbose > 0;
    if verbose
        || matches!(
            &args.command,
            Command::Container(ContainerCommand::Watch(_))
        )
    {
        start_log(&log);
    }
    let done = dispatch(args).and_then(|code| output::outcome().map(|()| code));
    match done {
        Ok(code) => code,
        Err(mut failure) => {
            if let Some(meant) = &meant {
                failure = failure.with_hint(&did_you_mean(meant));
            }
            output::print_failure(&failure, verbose);
            match in_container {
                true => ExitCode::from(run::OWN_FAILURE),
                false => ExitCode::from(failure.exit_code()),
            }
        }
    }
}

fn did_you_mean(command: &str) -> String {
    format!("or did you mean the command `rsmount {command}`?")
}

/// Exit code 2 may be a container's own, so wrong usage is told as Docker tells it there.
fn usage(error: &clap::Error, in_container: bool) -> ExitCode {
    let _closed = error.print();
    match error.exit_code() {
        0 => ExitCode::SUCCESS,
        _ if in_container => ExitCode::from(run::OWN_FAILURE),
        code => ExitCode::from(u8::try_from(code).unwrap_or(2)),
    }
}

fn dispatch(args: Args) -> Result<ExitCode, Failure> {
    let settings = settings(&args)?;
    match args.command {
        Command::Mount(mount) => return mount::mount(&mount, &args.global, settings),
        Command::Umount(umount) => mount::umount(&umount)?,
        Command::Ps(ps) => list::ps(&ps, args.global.quiet, &settings)?,
        Command::Stats(stats) => list::stats(&stats)?,
        Command::Why(args) => why::why(&args)?,
        Command::Cache(command) => cache::run(command, settings)?,
        Command::Publish {
            source,
            key,
            force,
            json,
        } => {
            let how = (key.as_deref(), force, json);
            publish::publish(&source, how, &args.global, settings)?;
        }
        Command::Key(command) => key::run(command)?,
        Command::Index(command) => index::run(&command, &args.global, settings)?,
        Command::Bench(bench) => return bench::bench(&bench, &args.global, settings),
        Command::Doctor(doctor) => return doctor::doctor(&doctor, settings),
        Command::Explain { source, json } => publish::explain(&source, json, settings)?,
        Command::Push(push) => freeze::push(&push, &args.global, settings)?,
        Command::Commit(commit) => freeze::commit(&commit, &args.global, settings)?,
        Command::Image(command) => return image::run(command, &args.global, settings),
        Command::Container(command) => return containers::run(command, &args.global, settings),
        Command::Completions { shell } => manual::completions(shell)?,
        Command::Man(man) => manual::man(&man)?,
        Command::Upgrade(upgrade) => upgrade::run(&upgrade)?,
        Command::Credentials { reference } => image::credentials(&reference)?,
        Command::Worker | Command::Keeper => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// What files that cannot be read say must not keep anybody from ending a mount or from seeing what
/// there is, and is nothing to commands that ask for no settings.
fn settings(args: &Args) -> Result<Settings, Failure> {
    use Command as C;
    let loaded = Settings::load(&args.global);
    match (loaded, &args.command) {
        (Ok(settings), _) => Ok(settings),
        (
            Err(_),
            C::Umount(_) | C::Stats(_) | C::Why(_) | C::Key(_) | C::Completions { .. } | C::Man(_),
        ) => Ok(Settings::without_files(&args.global)),
        (Err(failure), C::Ps(_) | C::Doctor(_)) => {
            output::note(failure.message());
            Ok(Settings::without_files(&args.global))
        }
        (Err(failure), _) => Err(failure),
    }
}

/// The log goes to standard error, which for a worker in the background is the log file.
fn start_log(log: &Log) {
    let level = match log.verbose {
        0 => "rsmount=info,warn",
        1 => "rsmount=debug,warn",
        _ => "rsmount=trace,debug",
    };
    let filter = EnvFilter::try_from_env("RSMOUNT_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(std::io::stderr);
    if log.format == LogFormat::Json {
        subscriber.json().init();
    } else {
        subscriber.init();
    }
}
