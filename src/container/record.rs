//! What is known of a container: one JSON file beside its changes.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::runtime::{Process, Program};

/// Version of the file.
pub const VERSION: u32 = 1;

/// Name of the file.
const FILE: &str = "container.json";

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It is being made.
    Created,
    /// Its process runs.
    Running,
    /// Its process has ended.
    Exited,
}

/// What is known of a container. Members that come later need a default: what an earlier rsmount
/// wrote has to stay readable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// 64 hexadecimal digits.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// The image as typed.
    pub image: String,
    /// Digest of the image manifest; empty until it is known.
    pub digest: String,
    /// `os/arch[/variant]`.
    pub platform: String,
    /// When it was made, RFC 3339.
    pub created: String,
    /// Where it is in its life.
    pub status: Status,
    /// Of its first process, while it runs.
    pub pid: Option<u32>,
    /// When that began, RFC 3339.
    pub started: Option<String>,
    /// When that ended, RFC 3339.
    pub finished: Option<String>,
    /// How it ended.
    pub exit_code: Option<u8>,
    /// Number of the signal that asks it to end.
    pub stop_signal: i32,
    /// Whether nothing is to be left of it.
    #[serde(default)]
    pub remove: bool,
    /// Files and directories that the runtime has to make, to mount others over them: gone with the
    /// mounts, and no changes.
    #[serde(default)]
    pub mounted_over: Vec<PathBuf>,
    /// The first process; `exec` follows it.
    pub process: Option<Process>,
    /// Which runtime has it.
    pub runtime: Option<RuntimeAt>,
    /// What it was given; `commit` keeps it.
    #[serde(default)]
    pub given: Overrides,
}

/// What a container was given instead of what its image says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Overrides {
    /// `NAME=value`; a name alone took a variable away.
    pub env: Vec<String>,
    /// Instead of the image's entrypoint; empty for none at all.
    pub entrypoint: Option<Vec<String>>,
    /// Instead of the image's command.
    pub command: Vec<String>,
    /// Where its process started.
    pub working_dir: Option<String>,
    /// `user[:group]`.
    pub user: Option<String>,
    /// The signal that asks it to end.
    pub stop_signal: Option<String>,
}

/// A runtime that was chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeAt {
    /// The program.
    pub path: PathBuf,
    /// Its state.
    pub root: PathBuf,
}

impl From<&Program> for RuntimeAt {
    fn from(program: &Program) -> RuntimeAt {
        RuntimeAt {
            path: program.path().to_owned(),
            root: program.root().to_owned(),
        }
    }
}

impl Record {
    /// The runtime that has the container, if one does.
    pub fn program(&self) -> Option<Program> {
        let at = self.runtime.as_ref()?;
        Some(Program::at(&at.path, &at.root))
    }

    /// Reads the record in `dir`; nothing when there is none (yet). One that is there and cannot be
    /// read is an error, because who takes it for none would remove what somebody made.
    pub fn read(dir: &Path) -> io::Result<Option<Record>> {
        /// What every version begins with.
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let bytes = match std::fs::read(dir.join(FILE)) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let Versioned { version } = serde_json::from_slice(&bytes)?;
        if version != VERSION {
            let what = format!("written by another rsmount (version {version}, not {VERSION})");
            return Err(io::Error::other(what));
        }
        Ok(Some(serde_json::from_slice(&bytes)?))
    }

    /// Writes it into `dir`, whole or not at all.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        let partial = dir.join(format!("{FILE}.new"));
        let mut file = std::fs::File::create(&partial)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_data()?;
        std::fs::rename(&partial, dir.join(FILE))
    }
}

/// The time as records have it.
pub fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}
