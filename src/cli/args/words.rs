//! Words of the command line before clap sees them: `mount` may be left out, and what follows the image
//! of `run` belongs to the container.

use std::ffi::OsString;

use clap::{Command, CommandFactory};

use crate::cli::args::Args;

/// Commands whose options end with the first word that is none, as Docker's do.
const OPTIONS_FIRST: [&str; 3] = ["run", "exec", "bundle"];

/// From which likeness on (Jaro-Winkler) a word may have been meant as a command.
const ALIKE: f64 = 0.85;

/// What a command line turned out to be.
#[derive(Debug)]
pub struct Arranged {
    /// For clap.
    pub words: Vec<OsString>,
    /// The command's name, if there is one.
    pub name: Option<String>,
    /// The command that the image's name may have been meant as, where no command was named.
    pub meant: Option<String>,
}

/// Puts `mount` in front when the first word is no command: `rsmount IMAGE MOUNTPOINT`. An image
/// that is named like a command is written `mount NAME`. Behind the options of `run` and its kin goes
/// a `--`, so that `run IMAGE ls -l` lists at length.
pub fn arranged(mut words: Vec<OsString>) -> Arranged {
    let mut command = Args::command();
    command.build();
    let at = first_word(&words, 1, &command, command.find_subcommand("mount"));
    let named = at.and_then(|at| Some((at, words.get(at).filter(|name| **name != *"help")?)));
    let Some((at, name)) = named else {
        return Arranged {
            words,
            name: None,
            meant: None,
        };
    };
    let found = command.get_subcommands().find(|c| *name == *c.get_name());
    let Some(found) = found else {
        let meant = meant(&command, &name.to_string_lossy());
        words.insert(1, "mount".into());
        return Arranged {
            words,
            name: Some("mount".to_owned()),
            meant,
        };
    };
    if OPTIONS_FIRST.contains(&found.get_name())
        && let Some(end) = first_word(&words, at + 1, found, None)
        && words.get(end).is_some_and(|word| *word != *"--")
    {
        words.insert(end, "--".into());
    }
    Arranged {
        words,
        name: Some(found.get_name().to_owned()),
        meant: None,
    }
}

/// The command that is most like `word`, if one is like it at all.
fn meant(command: &Command, word: &str) -> Option<String> {
    let shown = command.get_subcommands().filter(|c| !c.is_hide_set());
    let alike = shown.map(|c| (strsim::jaro_winkler(word, c.get_name()), c.get_name()));
    let (alike, name) = alike.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (alike >= ALIKE).then(|| name.to_owned())
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
        let arranged = arranged(words);
        arranged
            .words
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
    fn a_misspelled_command_is_told_from_an_image() {
        for (word, expected) in [
            ("unmount", Some("umount")),
            ("umout", Some("umount")),
            ("stat", Some("stats")),
            ("pul", Some("pull")),
            ("image", Some("images")),
            ("debian", None),
            ("ubuntu:latest", None),
            ("registry.example/app", None),
        ] {
            let words = ["rsmount", word, "m"].map(OsString::from).to_vec();
            assert_eq!(arranged(words).meant.as_deref(), expected, "{word}");
        }
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
