//! What a keeper does for a worker that is in a sandbox.
//!
//! Nothing of it waits for anybody: a keeper has to be there when a worker dies. Credentials are looked
//! up by a process of their own, which has the files, the environment and the programs that the
//! worker cannot reach, and answers it directly.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::time::Timespec;
use serde_json::Value;

use crate::mount::mountpoint;
use crate::mount::parcel::Task;

/// How long a lookup may take: a helper may ask a cloud for a token.
const LOOKUP_MAX: Duration = Duration::from_secs(60);

/// How often one looks whether it has ended.
const GLANCE: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// Lookups at the same time; a worker asks for one a registry.
const LOOKUPS_MAX: usize = 8;

/// Errands that are under way.
#[derive(Debug, Default)]
pub(super) struct Errands {
    lookups: Vec<(Child, Instant)>,
}

impl Errands {
    /// Does `task` for the mount of `request`; the answer goes to what `answer` holds, which is closed
    /// at the end.
    pub(super) fn run(&mut self, request: &Value, task: Task, answer: Vec<OwnedFd>) {
        let Some(answer) = answer.into_iter().next() else {
            return;
        };
        let place = request["mountpoint"].as_str().map(Path::new);
        match (task, place) {
            (Task::Credentials(reference), _) => {
                if self.lookups.len() < LOOKUPS_MAX
                    && let Err(error) = self.look_up(&reference, answer)
                {
                    tracing::warn!(%error, "credentials cannot be looked up");
                }
            }
            (Task::Unmount, Some(place)) => {
                if let Err(error) = mountpoint::unmount(place, false)
                    .or_else(|_busy| mountpoint::unmount(place, true))
                {
                    tracing::debug!(%error, "not unmounted");
                }
            }
            (Task::Abort(device), Some(place)) => mountpoint::abort(place, device.as_deref()),
            (Task::Unmount | Task::Abort(_), None) | (Task::Renew, _) => {}
        }
    }

    fn look_up(&mut self, reference: &str, answer: OwnedFd) -> io::Result<()> {
        let null = File::open("/dev/null")?;
        let child = Command::new("/proc/self/exe")
            .arg0("rsmount")
            .arg("credentials")
            .arg("--")
            .arg(reference)
            .stdin(Stdio::from(null))
            .stdout(Stdio::from(answer))
            .spawn()?;
        self.lookups.push((child, Instant::now()));
        Ok(())
    }

    /// Forgets lookups that have ended, and ends those that take too long; when to look again.
    pub(super) fn reap(&mut self) -> Option<Timespec> {
        self.lookups.retain_mut(|(child, since)| {
            if since.elapsed() > LOOKUP_MAX {
                let _ended_meanwhile = child.kill();
            }
            matches!(child.try_wait(), Ok(None))
        });
        (!self.lookups.is_empty()).then_some(GLANCE)
    }
}
