//! A container as `docker inspect` shows it: the members that scripts ask for.

use serde::Serialize;

use crate::container::record::{Record, Status};
use crate::container::store::Container;

/// A container, for people and scripts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Inspected {
    /// 64 hexadecimal digits.
    pub id: String,
    /// When it was made, RFC 3339.
    pub created: String,
    /// The program.
    pub path: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Where it is in its life.
    pub state: State,
    /// Digest of the image manifest.
    pub image: String,
    /// With docker's slash in front.
    pub name: String,
    /// What was asked for.
    pub config: Config,
    /// Where its root is mounted while it is.
    pub rootfs: String,
    /// Directory of what it has changed.
    pub upper: String,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct State {
    /// `created`, `running` or `exited`.
    pub status: Status,
    /// Whether its process runs.
    pub running: bool,
    /// Of its first process; 0 when there is none.
    pub pid: u32,
    /// 0 as long as it runs.
    pub exit_code: u8,
    /// When its process began; empty before.
    pub started_at: String,
    /// When it ended; empty before.
    pub finished_at: String,
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Config {
    /// The image as typed.
    pub image: String,
    /// `UID:GID`, resolved.
    pub user: String,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Program and arguments.
    pub cmd: Vec<String>,
    /// Absolute.
    pub working_dir: String,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Number of the signal that asks it to end.
    pub stop_signal: i32,
}

/// What is known of `container`.
pub fn inspect(container: &Container) -> Inspected {
    let Record {
        id,
        name,
        image,
        digest,
        created,
        status,
        pid,
        started,
        finished,
        exit_code,
        stop_signal,
        process,
        ..
    } = container.record.clone();
    let (cmd, env, user, cwd, tty) = process.map_or_else(Default::default, |p| {
        let user = format!("{}:{}", p.user.uid, p.user.gid);
        (p.args, p.env, user, p.cwd.display().to_string(), p.terminal)
    });
    Inspected {
        id,
        created,
        path: cmd.first().cloned().unwrap_or_default(),
        args: cmd.iter().skip(1).cloned().collect(),
        state: State {
            status,
            running: status == Status::Running,
            pid: pid.unwrap_or_default(),
            exit_code: exit_code.unwrap_or_default(),
            started_at: started.unwrap_or_default(),
            finished_at: finished.unwrap_or_default(),
        },
        image: digest,
        name: format!("/{name}"),
        config: Config {
            image,
            user,
            env,
            cmd,
            working_dir: cwd,
            tty,
            stop_signal,
        },
        rootfs: container.rootfs().display().to_string(),
        upper: container.changes().display().to_string(),
    }
}
