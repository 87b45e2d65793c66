//! Signals by name and number, as Docker's options and images write them (signal(7)).

use rustix::process::Signal;
use signal_hook::consts as c;

/// Real-time signals, as the C library numbers them.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// Names and numbers.
const NAMES: [(&str, i32); 33] = [
    ("HUP", c::SIGHUP),
    ("INT", c::SIGINT),
    ("QUIT", c::SIGQUIT),
    ("ILL", c::SIGILL),
    ("TRAP", c::SIGTRAP),
    ("ABRT", c::SIGABRT),
    ("BUS", c::SIGBUS),
    ("FPE", c::SIGFPE),
    ("KILL", c::SIGKILL),
    ("USR1", c::SIGUSR1),
    ("SEGV", c::SIGSEGV),
    ("USR2", c::SIGUSR2),
    ("PIPE", c::SIGPIPE),
    ("ALRM", c::SIGALRM),
    ("TERM", c::SIGTERM),
    ("CHLD", c::SIGCHLD),
    ("CONT", c::SIGCONT),
    ("STOP", c::SIGSTOP),
    ("TSTP", c::SIGTSTP),
    ("TTIN", c::SIGTTIN),
    ("TTOU", c::SIGTTOU),
    ("URG", c::SIGURG),
    ("XCPU", c::SIGXCPU),
    ("XFSZ", c::SIGXFSZ),
    ("VTALRM", c::SIGVTALRM),
    ("PROF", c::SIGPROF),
    ("WINCH", c::SIGWINCH),
    ("IO", c::SIGIO),
    ("POLL", c::SIGIO),
    ("IOT", c::SIGABRT),
    ("SYS", c::SIGSYS),
    ("PWR", Signal::POWER.as_raw()),
    ("STKFLT", Signal::STKFLT.as_raw()),
];

/// No such signal.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no signal `{0}` (TERM, SIGTERM and 15 are one)")]
pub struct NoSignal(String);

/// The number of `TERM`, `SIGTERM`, `15` or `RTMIN+3`.
pub fn parse(text: &str) -> Result<i32, NoSignal> {
    let refused = || NoSignal(text.to_owned());
    if let Ok(number) = text.parse() {
        let known = (1..=RTMAX).contains(&number);
        return known.then_some(number).ok_or_else(refused);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let from = |end: &str, base: i32, sign: i32| {
        let distance = name.strip_prefix(end)?;
        let distance: i32 = match distance {
            "" => 0,
            given => given.trim_start_matches(['+', '-']).parse().ok()?,
        };
        Some(base + sign * distance).filter(|n| (RTMIN..=RTMAX).contains(n))
    };
    let real_time = || from("RTMIN", RTMIN, 1).or_else(|| from("RTMAX", RTMAX, -1));
    let named = NAMES
        .iter()
        .find(|(n, _)| *n == name)
        .map(|(_, number)| *number);
    named.or_else(real_time).ok_or_else(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_one() {
        for (text, number) in [
            ("TERM", 15),
            ("SIGTERM", 15),
            ("sigint", 2),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("RTMIN", 34),
            ("SIGSYS", 31),
            ("PWR", 30),
            ("STKFLT", 16),
            ("POLL", 29),
        ] {
            assert_eq!(parse(text), Ok(number), "{text}");
        }
        for text in ["", "0", "65", "SIG", "NOPE", "RTMIN+40", "-1"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
