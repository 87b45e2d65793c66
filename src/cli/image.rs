//! Commands about images that are not mounted: one file a family.

mod archive;
mod inspect;
mod login;
mod look;
mod store;

use std::io::IsTerminal;
use std::process::ExitCode;

use crate::cli::args::image::{HostArgs, ImageCommand};
use crate::cli::args::{Global, ReachArgs};
use crate::cli::output::{self, Failure};
use crate::cli::settings::Settings;

impl HostArgs {
    /// The same as arguments of what reads images: ask, and take what the cache has.
    fn reach(&self, platform: Option<String>) -> ReachArgs {
        ReachArgs {
            platform,
            offline: false,
            pull: None,
            trust_index: None,
            trusted_key: Vec::new(),
            insecure_registry: self.insecure_registry.clone(),
            ca_file: self.ca_file.clone(),
            hosts_dir: self.hosts_dir.clone(),
        }
    }
}

/// Says on standard output, which is a pipe to a worker, what credentials there are.
pub(crate) fn credentials(reference: &str) -> Result<(), Failure> {
    if std::io::stdout().is_terminal() {
        return Err(Failure::new("secrets are not shown on a terminal"));
    }
    let found = crate::image::login::look_up(reference).map_err(|e| Failure::of(&e))?;
    output::bytes(&found)
}

pub(crate) fn run(
    command: ImageCommand,
    global: &Global,
    settings: Settings,
) -> Result<ExitCode, Failure> {
    match command {
        ImageCommand::Inspect(args) => inspect::inspect(&args, &settings)?,
        ImageCommand::History(args) => inspect::history(&args, settings)?,
        ImageCommand::Pull(args) => store::pull(&args, global, &settings)?,
        ImageCommand::Images(args) => store::images(&args, global, &settings)?,
        ImageCommand::Rmi(args) => store::rmi(&args, &settings)?,
        ImageCommand::Tag { source, target } => store::tag(&source, &target, &settings)?,
        ImageCommand::Save(args) => archive::save(&args, global, &settings)?,
        ImageCommand::Load(args) => archive::load(&args, global, settings)?,
        ImageCommand::Login(args) => login::login(&args, settings)?,
        ImageCommand::Logout(args) => login::logout(&args)?,
        ImageCommand::Ls(args) => look::ls(&args, global, settings)?,
        ImageCommand::Cat(args) => look::cat(&args, global, settings)?,
        ImageCommand::Cp(args) => return look::cp(&args, global, settings),
        ImageCommand::Diff(args) => look::diff(&args, global, settings)?,
        ImageCommand::Dump(args) => look::dump(&args, global, settings)?,
    }
    Ok(ExitCode::SUCCESS)
}
