//! Why a runtime did not do what it was asked: its words, sorted by what the caller can do about it.

use std::io::{self, BufRead};
use std::path::Path;

use serde::Deserialize;

/// What a program that is there, or is looked for below a file, is refused with: 126 in every shell.
const CANNOT_RUN: [&str; 4] = [
    "permission denied",
    "is a directory",
    "not a directory",
    "exec format",
];

/// Why a runtime did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The program is not in the container.
    #[error("{0}")]
    NotFound(String),
    /// The program is there but cannot be run.
    #[error("{0}")]
    NotExecutable(String),
    /// The runtime does not work with the cgroups of this host; another one may.
    #[error("{program} does not work with the cgroups of this host: {message}")]
    Cgroups {
        /// Name of the runtime.
        program: String,
        /// What it said.
        message: String,
    },
    /// Anything else.
    #[error("{program} refused: {message}")]
    Other {
        /// Name of the runtime.
        program: String,
        /// What it said.
        message: String,
    },
    /// The runtime itself could not be run.
    #[error("cannot run {program}: {source}")]
    Spawn {
        /// Name of the runtime.
        program: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Refusal {
    /// Sorts what `program` said. `runc` puts `exec:` before what concerns the container's program;
    /// `crun` names an executable.
    pub(super) fn of(program: &str, message: String) -> Refusal {
        let lower = message.to_lowercase();
        let about_exec = lower.contains("exec: ") || lower.contains("executable");
        let says = |words: &[&str]| words.iter().any(|word| lower.contains(word));
        if about_exec && says(&["not found", "no such file"]) {
            return Refusal::NotFound(message);
        }
        if about_exec && says(&CANNOT_RUN) {
            return Refusal::NotExecutable(message);
        }
        let program = program.to_owned();
        if lower.contains("cgroup") {
            return Refusal::Cgroups { program, message };
        }
        Refusal::Other { program, message }
    }

    /// The exit code of Docker's `run` for it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Refusal::NotFound(_) => 127,
            Refusal::NotExecutable(_) => 126,
            _ => 125,
        }
    }
}

/// One line of a log in JSON; all three runtimes write these members.
#[derive(Deserialize)]
struct Line {
    level: String,
    msg: String,
}

/// The last error in the log at `path`, if there is one.
pub(super) fn last_error(path: &Path) -> Option<String> {
    let file = std::fs::File::open(path).ok()?;
    let lines = io::BufReader::new(file).lines().map_while(Result::ok);
    let parsed = lines.filter_map(|line| serde_json::from_str::<Line>(&line).ok());
    parsed
        .filter(|line| line.level.eq_ignore_ascii_case("error"))
        .last()
        .map(|line| line.msg)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(message: &str) -> u8 {
        Refusal::of("runc", message.to_owned()).exit_code()
    }

    #[test]
    fn exit_codes_are_docker_s() {
        let runc = "runc create failed: unable to start container process: exec: ";
        let not_found = r#""nope": executable file not found in $PATH"#;
        assert_eq!(code(&format!("{runc}{not_found}")), 127);
        let no_file = r#""/nope": stat /nope: no such file or directory"#;
        assert_eq!(code(&format!("{runc}{no_file}")), 127);
        assert_eq!(code(&format!("{runc}\"/etc\": permission denied")), 126);
        let below_a_file = r#""/a/b": stat /a/b: not a directory"#;
        assert_eq!(code(&format!("{runc}{below_a_file}")), 126);
        assert_eq!(code("executable file `nope` not found in $PATH"), 127);
        assert_eq!(code("open executable: Permission denied"), 126);
        assert_eq!(code("mounting /a: no such file or directory"), 125);
    }

    #[test]
    fn trouble_with_cgroups_is_told_apart() {
        let hybrid = "cgroups in hybrid mode not supported, drop all controllers from cgroupv2";
        let refusal = Refusal::of("crun", hybrid.to_owned());
        assert!(matches!(refusal, Refusal::Cgroups { .. }));
    }
}
