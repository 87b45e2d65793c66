//! Commands about images that are not mounted: one file a family.

mod inspect;
mod look;

use std::process::ExitCode;

use crate::cli::args::Global;
use crate::cli::args::image::ImageCommand;
use crate::cli::output::Failure;
use crate::cli::settings::Settings;

pub(crate) fn run(
    command: ImageCommand,
    global: &Global,
    settings: Settings,
) -> Result<ExitCode, Failure> {
    match command {
        ImageCommand::Inspect(args) => inspect::inspect(&args, &settings)?,
        ImageCommand::History(args) => inspect::history(&args, settings)?,
        ImageCommand::Ls(args) => look::ls(&args, global, settings)?,
        ImageCommand::Cat(args) => look::cat(&args, global, settings)?,
        ImageCommand::Cp(args) => return look::cp(&args, global, settings),
        ImageCommand::Diff(args) => look::diff(&args, global, settings)?,
        ImageCommand::Dump(args) => look::dump(&args, global, settings)?,
    }
    Ok(ExitCode::SUCCESS)
}
