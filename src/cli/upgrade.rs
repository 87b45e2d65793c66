//! `rsmount upgrade`: this binary takes over running mounts.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::cli::args::upgrade::UpgradeArgs;
use crate::cli::output::{self, Failure};
use crate::mount::record::{Record, State};
use crate::mount::{control, mountpoint, record};

/// How long the new process may take until it is known as the mount's, once the old one has ended.
const KNOWN_WITHIN: Duration = Duration::from_secs(10);

/// How often one looks.
const GLANCE: Duration = Duration::from_millis(2);

pub(crate) fn run(args: &UpgradeArgs) -> Result<(), Failure> {
    let program = std::env::current_exe().map_err(|e| Failure::of(&e))?;
    let mut upgraded = Vec::new();
    let mut failures = Vec::new();
    for record in wanted(args)? {
        match upgrade(&record, &program) {
            Ok(pid) => upgraded.push((record, pid)),
            Err(why) => failures.push(format!("{}: {why}", record.mountpoint.display())),
        }
    }
    show(args.json, &upgraded)?;
    match failures.is_empty() {
        true => Ok(()),
        false => Err(Failure::new(failures.join("; "))),
    }
}

fn show(json: bool, upgraded: &[(Record, u32)]) -> Result<(), Failure> {
    if json {
        let shown = |(record, pid): &(Record, u32)| {
            serde_json::json!({
                "mountpoint": record.mountpoint, "before": record.pid, "pid": pid,
            })
        };
        return output::json(&upgraded.iter().map(shown).collect::<Vec<_>>());
    }
    for (record, pid) in upgraded {
        let path = record.mountpoint.display();
        output::line(&format!(
            "{path}: process {} took over from {}",
            pid, record.pid
        ));
    }
    Ok(())
}

fn wanted(args: &UpgradeArgs) -> Result<Vec<Record>, Failure> {
    if args.all {
        let mut all = record::list().map_err(|e| Failure::of(&e))?;
        all.retain(|r| !matches!(r.state, State::Dead | State::Poisoned));
        return Ok(all);
    }
    let find = |path: &PathBuf| {
        let path = mountpoint::absolute(path).map_err(|e| Failure::of(&e))?;
        let found = record::find(&path).map_err(|e| Failure::of(&e))?;
        found.ok_or_else(|| Failure::of(&mountpoint::unknown(&path)))
    };
    args.mountpoints.iter().map(find).collect()
}

/// The process that has taken over.
fn upgrade(record: &Record, program: &Path) -> std::io::Result<u32> {
    control::ask_replace(&record::socket_path(record.pid)?, program)?;
    let deadline = Instant::now() + KNOWN_WITHIN;
    while Instant::now() < deadline {
        if let Some(now) = record::find(&record.mountpoint)?
            && now.pid != record.pid
        {
            return Ok(now.pid);
        }
        std::thread::sleep(GLANCE);
    }
    Err(std::io::Error::other(
        "its process has ended, and none has taken over; see the log",
    ))
}
