//! A further process in a container that runs.

use std::path::{Path, PathBuf};

use crate::container::command;
use crate::container::error::Error;
use crate::container::prepare::{find_user, working_directory};
use crate::container::record::Status;
use crate::container::rootfs::Rootfs;
use crate::container::store::Container;
use crate::container::streams::{Ends, Streams, Wanted};
use crate::container::supervise::{Ears, console_path};
use crate::runtime::config;

/// What is to run.
#[derive(Debug, Clone)]
pub struct Request {
    /// Program and arguments.
    pub command: Vec<String>,
    /// `NAME=value`, besides the container's own.
    pub env: Vec<String>,
    /// Where it starts, if not where the container's first process did.
    pub working_dir: Option<String>,
    /// `user[:group]`, if not the container's.
    pub user: Option<String>,
    /// Its streams.
    pub wanted: Wanted,
    /// Whether to return as soon as it runs.
    pub detach: bool,
}

/// Files of one call that go with it.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.0);
    }
}

/// Runs it; gives its exit code, or 0 when it is detached.
pub fn exec(container: &Container, request: &Request) -> Result<u8, Error> {
    let record = &container.record;
    let not_running = || Error::NotRunning(record.name.clone());
    let (Status::Running, Some(pid)) = (record.status, record.pid) else {
        return Err(not_running());
    };
    let program = record.program().ok_or_else(not_running)?;
    let mut process = record.process.clone().ok_or_else(not_running)?;
    process.args.clone_from(&request.command);
    // Nobody is left to hold the other side of a terminal, nor of a pipe.
    process.terminal = request.wanted.terminal && !request.detach;
    if process.terminal {
        command::set_default(&mut process.env, "TERM", "xterm");
    }
    if let Some(wanted) = &request.user {
        // As the container sees its files, with all that is mounted over them.
        let root = PathBuf::from(format!("/proc/{pid}/root"));
        let rootfs = Rootfs::open(&root).map_err(|e| Error::at(&root, e))?;
        let user = find_user(&rootfs, wanted, &[])?;
        // A home that the container was given holds for all in it; that of its user does not.
        let first = format!("{}:{}", process.user.uid, process.user.gid);
        let first = find_user(&rootfs, &first, &[])?;
        if process.env.contains(&format!("HOME={}", first.home)) {
            command::set(&mut process.env, "HOME");
        }
        command::set_default(&mut process.env, "HOME", &user.home);
        process.user = user.identity;
    }
    for variable in &request.env {
        command::set(&mut process.env, variable);
    }
    if let Some(path) = &request.working_dir {
        process.cwd = working_directory(path);
    }
    let name = format!("exec-{}-{:08x}", std::process::id(), fastrand::u32(..));
    let scratch = Scratch(container.dir().join(format!("{name}.json")));
    config::write_process(&process, &scratch.0)?;
    let at = |e| Error::at(Path::new("/proc/self"), e);
    if request.detach {
        let spawn = Ends::default();
        program.exec(&record.id, &scratch.0, spawn.spawn().map_err(at)?)?;
        return Ok(0);
    }
    let mut ears = Ears::open().map_err(at)?;
    let (streams, ends) = Streams::make(request.wanted, &console_path(&name)?, None).map_err(at)?;
    let spawn = ends.spawn().map_err(at)?;
    let pid = program.exec(&record.id, &scratch.0, spawn)?;
    drop((ends, scratch));
    let passing = streams.pass().map_err(at)?;
    let code = ears.wait(pid, &passing).map_err(at)?;
    passing.finish();
    Ok(code)
}
