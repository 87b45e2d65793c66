//! `rsmount man` and `rsmount completions`: both are made from the arguments that clap knows.

use std::io;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_mangen::Man;

use crate::cli::args::{Args, ManArgs};
use crate::cli::output::{self, Failure};

/// Of the options that belong to the form without a command, `rsmount IMAGE MOUNTPOINT`.
const MOUNT_HEADING: &str = "Mount options";

/// Prints completions for `shell`.
pub(crate) fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut shown(), "rsmount", &mut script);
    output::bytes(&script)
}

/// Prints the page of a command, or writes all of them into a directory.
pub(crate) fn man(args: &ManArgs) -> Result<(), Failure> {
    let root = shown();
    if let Some(dir) = &args.dir {
        return write_all(root, dir);
    }
    let mut root = root;
    root.build();
    let mut command = &root;
    for word in &args.command {
        let found = command.find_subcommand(word);
        command = found.ok_or_else(|| {
            let name = args.command.join(" ");
            Failure::new(format!("{name}: no such command; see `rsmount --help`"))
        })?;
    }
    let page = page(command.clone()).map_err(|e| Failure::of(&e))?;
    output::bytes(&page)
}

/// Writes the pages of `command` and of all below it.
fn write_all(command: Command, dir: &Path) -> Result<(), Failure> {
    let failed = |path: &Path, e: &io::Error| Failure::new(format!("{}: {e}", path.display()));
    std::fs::create_dir_all(dir).map_err(|e| failed(dir, &e))?;
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let mut open = vec![command];
    while let Some(command) = open.pop() {
        open.extend(command.get_subcommands().cloned());
        let path = dir.join(Man::new(command.clone()).get_filename());
        let written = page(command).and_then(|page| std::fs::write(&path, page));
        written.map_err(|e| failed(&path, &e))?;
    }
    Ok(())
}

/// A page in roff, section 1.
fn page(command: Command) -> io::Result<Vec<u8>> {
    let images = command.get_after_help().map(ToString::to_string);
    let commands = command.has_subcommands();
    let page = Man::new(command);
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    if commands {
        page.render_subcommands_section(&mut text)?;
    }
    if let Some(images) = images {
        let mut roff = clap_mangen::roff::Roff::default();
        roff.control("SH", ["NOTES"]);
        for line in images.lines() {
            roff.text([clap_mangen::roff::roman(line.trim())]);
        }
        roff.to_writer(&mut text)?;
    }
    Ok(text)
}

/// The command line as people see it: without the commands that only rsmount itself starts, and with
/// what may be given where no command is named.
fn shown() -> Command {
    let whole = Args::command();
    let visible = whole.get_subcommands().filter(|c| !c.is_hide_set());
    let mount = whole.find_subcommand("mount").into_iter();
    let mount = mount.flat_map(Command::get_arguments).cloned();
    Command::new("rsmount")
        .version(env!("CARGO_PKG_VERSION"))
        .about(whole.get_about().cloned().unwrap_or_default())
        .after_help(whole.get_after_help().cloned().unwrap_or_default())
        .args(whole.get_arguments().cloned())
        .args(mount.map(|arg| arg.required(false).help_heading(MOUNT_HEADING)))
        .subcommands(visible.cloned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_see_has_the_options_of_mount_and_no_inner_command() {
        let shown = shown();
        assert!(shown.get_arguments().any(|a| a.get_long() == Some("upper")));
        for inner in ["keeper", "worker", "watch"] {
            assert!(Args::command().find_subcommand(inner).is_some(), "{inner}");
            assert!(shown.find_subcommand(inner).is_none(), "{inner}");
        }
        shown.debug_assert();
    }
}
