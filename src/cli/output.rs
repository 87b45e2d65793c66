//! Text on standard output and standard error: errors, tables, sizes, completions, the man page.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is where printing is done"
)]

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

/// The first write to standard output that failed, but for a reader who has gone.
static FAILED: Mutex<Option<io::Error>> = Mutex::new(None);

/// Why a command failed: one line for everybody, causes for `-v`.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    causes: Vec<String>,
    usage: bool,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Failure {
        Failure {
            message: message.into(),
            causes: Vec::new(),
            usage: false,
        }
    }

    /// Wrong usage that the parser of the command line does not see.
    pub(crate) fn usage(message: impl Into<String>) -> Failure {
        Failure {
            usage: true,
            ..Failure::new(message)
        }
    }

    /// 1 failed, 2 wrong usage.
    pub(crate) fn exit_code(&self) -> u8 {
        if self.usage { 2 } else { 1 }
    }

    pub(crate) fn with_causes(mut self, causes: Vec<String>) -> Failure {
        self.causes = causes;
        self
    }

    /// The one line.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// With a word in front that says where it happened.
    pub(crate) fn within(mut self, place: &str) -> Failure {
        self.message = format!("{place}: {}", self.message);
        self
    }

    /// With what may be done instead behind it.
    pub(crate) fn with_hint(mut self, hint: &str) -> Failure {
        self.message = format!("{}; {hint}", self.message);
        self
    }

    /// From any error and the chain below it.
    pub(crate) fn of(error: &dyn std::error::Error) -> Failure {
        let mut causes = Vec::new();
        let mut cause = error.source();
        while let Some(e) = cause {
            causes.push(e.to_string());
            cause = e.source();
        }
        Failure::new(error.to_string()).with_causes(causes)
    }
}

/// Prints a failure on standard error.
pub(crate) fn print_failure(failure: &Failure, verbose: bool) {
    eprintln!("rsmount: {}", one_line(&failure.message));
    if verbose {
        for cause in &failure.causes {
            eprintln!("  caused by: {}", one_line(cause));
        }
    }
}

/// Prints a note on standard error.
pub(crate) fn note(text: &str) {
    eprintln!("rsmount: {}", one_line(text));
}

/// Remote text must not write over the terminal: control characters become spaces.
pub(crate) fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// Prints a line on standard output; a closed pipe is the reader's wish, any other error is kept for
/// [`outcome`].
pub(crate) fn line(text: &str) {
    note_error(writeln!(io::stdout(), "{text}"));
}

/// Writes bytes to standard output as they are; a closed pipe is the reader's wish.
pub(crate) fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(unwritten(&e)),
        _ => Ok(()),
    }
}

/// Keeps the error of a write to standard output for [`outcome`].
pub(crate) fn note_error(written: io::Result<()>) {
    let Err(error) = written else { return };
    if error.kind() != io::ErrorKind::BrokenPipe {
        let mut failed = FAILED.lock().unwrap_or_else(PoisonError::into_inner);
        failed.get_or_insert(error);
    }
}

/// Whether all that was printed so far has been written: a list that is cut short on a full disk must
/// not look like the whole one.
pub(crate) fn outcome() -> Result<(), Failure> {
    note_error(io::stdout().flush());
    let failed = FAILED.lock().unwrap_or_else(PoisonError::into_inner);
    failed
        .as_ref()
        .map_or(Ok(()), |error| Err(unwritten(error)))
}

fn unwritten(error: &io::Error) -> Failure {
    Failure::new(format!("standard output: {error}"))
}

/// Prints a value as indented JSON.
pub(crate) fn json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Failure::of(&e))?;
    line(&text);
    Ok(())
}

/// Prints rows under headings, columns aligned, the last one free.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) {
    let mut widths: Vec<usize> = headings.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let headings: Vec<String> = headings.iter().map(|h| (*h).to_owned()).collect();
    for row in std::iter::once(&headings).chain(rows) {
        let mut text = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            text.push_str(&format!("{:width$}  ", one_line(cell)));
        }
        line(text.trim_end());
    }
}

/// A size as people read it, in units of 1000 as docker prints it.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Words as they are typed into a shell.
pub(crate) fn shell_words(words: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    let quoted = |word: &String| match !word.is_empty() && word.chars().all(plain) {
        true => word.clone(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    };
    let words: Vec<String> = words.iter().map(quoted).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        assert_eq!(size(999), "999 B");
        assert_eq!(size(1500), "1.5 kB");
        assert_eq!(size(999_999), "1.0 MB");
        assert_eq!(size(96_000_000), "96.0 MB");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(one_line("a\u{1b}[2Jb\nc"), "a [2Jb c");
    }
}
