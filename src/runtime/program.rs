//! The runtime programs: which are there, and the calls of the runtime-spec ("Operations") as their
//! command lines.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::Pid;
use serde::Deserialize;

use crate::runtime::refusal::{Refusal, last_error};

/// In the order in which they are tried.
const NAMES: [&str; 3] = ["crun", "runc", "youki"];

/// Where they may be when `PATH` does not say.
const PLACES: [&str; 5] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
];

/// A runtime program and the directory of its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    name: String,
    path: PathBuf,
    root: PathBuf,
}

/// Standard streams of a process in a container, and where its terminal goes.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// Standard input; nobody reads it when there is a terminal.
    pub stdin: Stdio,
    /// Standard output.
    pub stdout: Stdio,
    /// Standard error.
    pub stderr: Stdio,
    /// The socket that takes the terminal.
    pub console: Option<&'a Path>,
}

/// Files that a call writes.
struct Files {
    pid: PathBuf,
    log: PathBuf,
}

impl Files {
    fn named(base: &Path) -> Files {
        Files {
            pid: base.with_extension("pid"),
            log: base.with_extension("log"),
        }
    }

    fn pid_option(&self) -> OsString {
        let mut option = OsString::from("--pid-file=");
        option.push(&self.pid);
        option
    }
}

/// How a container is, as its runtime says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct State {
    /// `creating`, `created`, `running`, `paused` or `stopped`.
    pub status: String,
}

/// The runtimes of this machine, first choice first; each keeps its state below `root`. `wanted` is
/// a name or a path, and then the only choice.
pub fn find(wanted: Option<&str>, root: &Path) -> Vec<Program> {
    let names: Vec<&str> = wanted.map_or_else(|| NAMES.to_vec(), |name| vec![name]);
    let found = |name: &str| {
        let path = locate(name)?;
        let name = path.file_name()?.to_str()?.to_owned();
        let root = root.join(&name);
        Some(Program { name, path, root })
    };
    names.into_iter().filter_map(found).collect()
}

fn locate(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        // It is recorded, for commands in other directories.
        let path = Path::new(name).canonicalize().ok();
        return path.filter(|path| path.is_file());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let listed = std::env::split_paths(&path).chain(PLACES.map(PathBuf::from));
    listed.map(|dir| dir.join(name)).find(|path| path.is_file())
}

impl Program {
    /// One that was found earlier, from its path and where its state is.
    pub fn at(path: &Path, root: &Path) -> Program {
        let name = path.file_name().unwrap_or_default();
        Program {
            name: name.to_string_lossy().into_owned(),
            path: path.to_owned(),
            root: root.to_owned(),
        }
    }

    /// `crun`, `runc` or `youki`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the program is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where it keeps its state.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes the container `id` of the bundle in `bundle`; its first process waits for
    /// [`Self::start`]. The process becomes a child of the caller when that is a subreaper
    /// (prctl(2), `PR_SET_CHILD_SUBREAPER`).
    pub fn create(&self, id: &str, bundle: &Path, spawn: Spawn<'_>) -> Result<Pid, Refusal> {
        let mut words = vec![
            "create".into(),
            "--bundle".into(),
            bundle.as_os_str().to_owned(),
        ];
        let files = Files::named(&bundle.join("runtime"));
        words.push(files.pid_option());
        self.spawn(words, id, &files, spawn)
    }

    /// Runs the process that the document `process` spells out in the container `id`. Scratch files
    /// are named after `process`.
    pub fn exec(&self, id: &str, process: &Path, spawn: Spawn<'_>) -> Result<Pid, Refusal> {
        let files = Files::named(process);
        let mut words = vec!["exec".into(), "--detach".into()];
        words.extend(["--process".into(), process.as_os_str().to_owned()]);
        words.push(files.pid_option());
        let spawned = self.spawn(words, id, &files, spawn);
        for scratch in [&files.pid, &files.log] {
            let _gone = std::fs::remove_file(scratch);
        }
        spawned
    }

    fn spawn(
        &self,
        mut words: Vec<OsString>,
        id: &str,
        files: &Files,
        spawn: Spawn<'_>,
    ) -> Result<Pid, Refusal> {
        if let Some(console) = spawn.console {
            words.extend(["--console-socket".into(), console.as_os_str().to_owned()]);
        }
        let _old = std::fs::remove_file(&files.pid);
        // Made anew, so that what an earlier call said is not taken for this one's.
        let _log = File::create(&files.log).map_err(|e| self.io(e))?;
        let status = self
            .command()
            .args(["--log-format", "json", "--log"])
            .arg(&files.log)
            .args(words)
            .arg(id)
            .stdin(spawn.stdin)
            .stdout(spawn.stdout)
            .stderr(spawn.stderr)
            .status()
            .map_err(|e| self.io(e))?;
        if !status.success() {
            let said = last_error(&files.log).unwrap_or_else(|| format!("it ended with {status}"));
            return Err(Refusal::of(&self.name, said));
        }
        let pid = std::fs::read_to_string(&files.pid).map_err(|e| self.io(e))?;
        let pid = pid.trim().parse().ok().and_then(Pid::from_raw);
        pid.ok_or_else(|| Refusal::of(&self.name, "it did not say which process it made".into()))
    }

    /// Lets the first process run.
    pub fn start(&self, id: &str) -> Result<(), Refusal> {
        self.call(&["start", id]).map(drop)
    }

    /// Stops all processes where they are, until [`Self::resume`].
    pub fn pause(&self, id: &str) -> Result<(), Refusal> {
        self.call(&["pause", id]).map(drop)
    }

    /// Lets paused processes go on.
    pub fn resume(&self, id: &str) -> Result<(), Refusal> {
        self.call(&["resume", id]).map(drop)
    }

    /// Sends a signal (its number) to the first process.
    pub fn kill(&self, id: &str, signal: i32) -> Result<(), Refusal> {
        self.call(&["kill", id, &signal.to_string()]).map(drop)
    }

    /// Kills what still runs and forgets the container.
    pub fn delete(&self, id: &str) -> Result<(), Refusal> {
        self.call(&["delete", "--force", id]).map(drop)
    }

    /// How the container is.
    pub fn state(&self, id: &str) -> Result<State, Refusal> {
        let output = self.call(&["state", id])?;
        serde_json::from_slice(&output.stdout).map_err(|e| Refusal::of(&self.name, e.to_string()))
    }

    fn call(&self, words: &[&str]) -> Result<Output, Refusal> {
        let mut command = self.command();
        let output = command.args(words).stdin(Stdio::null()).output();
        let output = output.map_err(|e| self.io(e))?;
        if output.status.success() {
            return Ok(output);
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Refusal::of(&self.name, said))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.arg("--root").arg(&self.root);
        command
    }

    fn io(&self, source: std::io::Error) -> Refusal {
        Refusal::Spawn {
            program: self.name.clone(),
            source,
        }
    }
}
