//! Words of the command line before clap sees them: `mount` may be left out, and what follows the image
//! of `run` belongs to the container.

use std::ffi::OsString;

use clap::{Command, CommandFactory};

use crate::cli::args::Args;

/// Commands whose options end with the first word that is none, as Docker's do.
const OPTIONS_FIRST: [&str; 3] = ["run", "exec", "bundle"];

/// Puts `mount` in front when the first word is no command: `rsmount IMAGE MOUNTPOINT`. An image
/// that is named like a command is written `mount NAME`. Behind the options of `run` and its kin goes
/// a `--`, so that `run IMAGE ls -l` lists at length. Gives the command's name as well, if there is
/// one.
pub fn arranged(mut words: Vec<OsString>) -> (Vec<OsString>, Option<String>) {
    let mut command = Args::command();
    command.build();
    let Some(at) = first_word(&words, 1, &command, command.find_subcommand("mount")) else {
        return (words, None);
    };
    let Some(name) = words.get(at).filter(|name| **name != *"help") else {
        return (words, None);
    };
    let found = command.get_subcommands().find(|c| *name == *c.get_name());
    let Some(found) = found else {
        words.insert(1, "mount".into());
        return (words, Some("mount".to_owned()));
    };
    if OPTIONS_FIRST.contains(&found.get_name())
        && let Some(end) = first_word(&words, at + 1, found, None)
        && words.get(end).is_some_and(|word| *word != *"--")
    {
        words.insert(end, "--".into());
    }
    (words, Some(found.get_name().to_owned()))
}

/// Position of the first word from `at` on that is no option of `command` (or `other`) and no value
/// of one; nothing when help or the version is asked for on the way.
fn first_word(
    words: &[OsString],
    mut at: usize,
    command: &Command,
    other: Option<&Command>,
) -> Option<usize> {
    while let Some(word) = words.get(at) {
        let word = word.to_string_lossy();
        if !word.starts_with('-') || word == "-" || word == "--" {
            break;
        }
        if matches!(&*word, "--help" | "-V" | "--version") || (word == "-h" && other.is_some()) {
            return None;
        }
        let value = takes_next(command, &word) || other.is_some_and(|c| takes_next(c, &word));
        at += if value { 2 } else { 1 };
    }
    Some(at)
}

/// Whether the word after `word` is its value: `--name x`, `-e x`, `-ite x`, but not `--name=x` and
/// not `-ex`.
fn takes_next(command: &Command, word: &str) -> bool {
    if let Some(long) = word.strip_prefix("--") {
        let mut all = command.get_arguments();
        return all.any(|a| a.get_long() == Some(long) && a.get_action().takes_values());
    }
    let takes = |short: char| {
        let mut all = command.get_arguments();
        all.any(|a| a.get_short() == Some(short) && a.get_action().takes_values())
    };
    let letters = &word[1..];
    letters
        .find(takes)
        .is_some_and(|at| letters[at..].chars().nth(1).is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &[&str]) -> Vec<String> {
        let words = words.iter().map(OsString::from).collect();
        let (arranged, _name) = arranged(words);
        arranged
            .iter()
            .map(|w| w.to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn the_word_mount_may_be_left_out() {
        assert_eq!(
            of(&["rsmount", "ubuntu", "/m"]),
            ["rsmount", "mount", "ubuntu", "/m"]
        );
        let with_options = ["rsmount", "--platform", "linux/arm64", "-q", "ubuntu", "/m"];
        assert_eq!(of(&with_options)[1], "mount");
        assert_eq!(of(&["rsmount", "-v", "ubuntu", "/m"])[1], "mount");
        for command in [
            &["rsmount", "ps"][..],
            &["rsmount", "-q", "umount", "/m"],
            &["rsmount"],
        ] {
            assert_eq!(of(command).len(), command.len(), "{command:?}");
        }
        assert_eq!(of(&["rsmount", "mount", "ps", "/m"]).len(), 4);
    }

    #[test]
    fn options_behind_the_image_are_the_container_s() {
        let run = |words: &str| {
            let words: Vec<&str> = words.split_whitespace().collect();
            of(&words).join(" ")
        };
        for (given, expected) in [
            ("rsmount run debian ls -l", "rsmount run -- debian ls -l"),
            (
                "rsmount -q run -it debian sh",
                "rsmount -q run -it -- debian sh",
            ),
            (
                "rsmount run -v /a:/b debian",
                "rsmount run -v /a:/b -- debian",
            ),
            (
                "rsmount run -ite A=1 debian",
                "rsmount run -ite A=1 -- debian",
            ),
            (
                "rsmount run -eA=1 debian -e",
                "rsmount run -eA=1 -- debian -e",
            ),
            (
                "rsmount run --name=x debian",
                "rsmount run --name=x -- debian",
            ),
            (
                "rsmount run --name x debian",
                "rsmount run --name x -- debian",
            ),
            ("rsmount run -h box debian", "rsmount run -h box -- debian"),
            (
                "rsmount exec -u web box id -u",
                "rsmount exec -u web -- box id -u",
            ),
            ("rsmount run -- debian -x", "rsmount run -- debian -x"),
            ("rsmount run --help", "rsmount run --help"),
            ("rsmount run", "rsmount run"),
        ] {
            assert_eq!(run(given), expected);
        }
    }
}
