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
use crate::mount::notify;
use crate::mount::parcel::Task;
use crate::oci::Reference;
use crate::registry::credentials;

/// How long a lookup may take: a helper may ask a cloud for a token.
const LOOKUP_MAX: Duration = Duration::from_secs(60);

/// How often one looks whether it has ended.
const GLANCE: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// Where a request says whose credentials may be looked up.
pub(super) const REGISTRIES: &str = "registries";

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
            (Task::Credentials(reference), _) if !is_needed(request, &reference) => {
                tracing::error!(
                    reference = %reference.escape_debug(),
                    "a worker asks for credentials that its mount does not need; it gets none"
                );
                refuse(&answer);
            }
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
        let mut command = Command::new("/proc/self/exe");
        // Helpers of others are run there.
        notify::keep_from(&mut command);
        let child = command
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

/// Says so. To a pipe of the worker's, which must not be waited for.
fn refuse(answer: &OwnedFd) {
    let why = "this registry is not one that the mount was made with; \
               unmount and mount again to use it";
    let _not_heard = rustix::fs::fcntl_setfl(answer, rustix::fs::OFlags::NONBLOCK).and_then(|()| {
        let json = credentials::refused(why);
        rustix::io::write(answer, &json).map(|_written| ())
    });
}

/// Whether `reference` is of a registry that the mount's image comes from. The worker reads what
/// strangers have made: whatever became of it, it gets no secrets but those that it works with.
fn is_needed(request: &Value, reference: &str) -> bool {
    let Ok(reference) = reference.parse::<Reference>() else {
        return false;
    };
    let needed = request[REGISTRIES].as_array();
    needed.is_some_and(|names| names.iter().any(|name| *name == reference.registry()))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn credentials_of_other_registries_are_not_looked_up() {
        let request = serde_json::json!({
            "image": "one.example/a/b:1",
            REGISTRIES: ["one.example", "mirror.example:5000", "docker.io"],
        });
        for needed in [
            "one.example/a/b:1",
            "one.example/other",
            "mirror.example:5000/a/b",
            "debian:12",
        ] {
            assert!(is_needed(&request, needed), "{needed}");
        }
        let none = serde_json::json!({ "image": "one.example/a/b:1" });
        assert!(!is_needed(&none, "one.example/a/b:1"));
        for other in [
            "two.example/a/b:1",
            "mirror.example/a/b",
            "one.example:443/a/b",
            "one.example@two.example/a",
            "--help",
            "",
        ] {
            assert!(!is_needed(&request, other), "{other}");
            let (mut said, answer) = io::pipe().unwrap();
            let mut errands = Errands::default();
            let task = Task::Credentials(other.to_owned());
            errands.run(&request, task, vec![answer.into()]);
            assert!(errands.lookups.is_empty());
            let mut answer = Vec::new();
            said.read_to_end(&mut answer).unwrap();
            let answer = String::from_utf8(answer).unwrap();
            assert!(answer.contains("mount again"), "{answer}");
        }
    }
}
