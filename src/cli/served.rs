//! The words that this program starts itself with: its keeper and its workers.
//!
//! They are told apart before the command line is parsed like anybody's, because clap's picture of all
//! commands takes 0.8 MB, which the allocator then keeps as long as the mount lives, in both processes,
//! and the better part of a millisecond in each.

use std::ffi::OsString;
use std::process::ExitCode;

use crate::cli::args::LogFormat;

/// How much the log says, and how.
pub(super) struct Log {
    pub(super) verbose: u8,
    pub(super) format: LogFormat,
}

/// What is to be run, when `words` (the program's name first) are such words and nothing else.
pub(super) fn process(words: &[OsString]) -> Option<(fn() -> ExitCode, Log)> {
    let (word, options) = words.get(1..)?.split_first()?;
    let run: fn() -> ExitCode = match word.to_str()? {
        "keeper" => crate::mount::keeper::run,
        "worker" => crate::mount::worker::run,
        _ => return None,
    };
    let mut log = Log {
        verbose: 0,
        format: LogFormat::Text,
    };
    for option in options {
        match option.to_str()? {
            "-v" => log.verbose = log.verbose.saturating_add(1),
            "--log-format=json" => log.format = LogFormat::Json,
            _ => return None,
        }
    }
    Some((run, log))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_words_are_taken() {
        let process = |words: &[&str]| {
            let words: Vec<OsString> = words.iter().map(OsString::from).collect();
            process(&words).map(|(_, log)| (log.verbose, log.format == LogFormat::Json))
        };
        assert_eq!(process(&["rsmount", "keeper"]), Some((0, false)));
        let options = ["rsmount", "worker", "-v", "--log-format=json", "-v"];
        assert_eq!(process(&options), Some((2, true)));
        assert_eq!(process(&["rsmount", "worker", "--help"]), None);
        assert_eq!(process(&["rsmount", "keeper", "/mnt"]), None);
        assert_eq!(process(&["rsmount"]), None);
    }
}
