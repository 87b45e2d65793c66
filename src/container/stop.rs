//! The end of containers: asked, killed, removed.

use std::time::{Duration, Instant};

use crate::container::error::Error;
use crate::container::record::{Record, Status};
use crate::container::store::Container;

/// How long a killed container may take: its processes may wait for a disk.
const DEATH: Duration = Duration::from_secs(30);

/// How long it may take until a container whose process is gone is known to have ended.
const NEWS: Duration = Duration::from_secs(2);

/// How long a container that is to be removed may go on being made: its image may be on its way.
const MAKING: Duration = Duration::from_secs(10);
/// Between two looks at it.
const GLANCE: Duration = Duration::from_millis(20);

/// Sends a signal to the first process. After SIGKILL it waits for the end, as docker does, so that
/// the container can be removed.
pub fn kill(container: &Container, signal: i32) -> Result<(), Error> {
    if let Err(error) = send(container, signal) {
        // It may have ended between the look at its record and the signal.
        return match container.wait(Some(NEWS))? {
            Some(_) => Err(Error::NotRunning(container.record.name.clone())),
            None => Err(error),
        };
    }
    if signal == rustix::process::Signal::KILL.as_raw() && container.wait(Some(DEATH))?.is_none() {
        return Err(Error::Undying(container.record.name.clone()));
    }
    Ok(())
}

fn send(container: &Container, signal: i32) -> Result<(), Error> {
    let not_running = || Error::NotRunning(container.record.name.clone());
    if container.record.status != Status::Running {
        return Err(not_running());
    }
    let program = container.record.program().ok_or_else(not_running)?;
    Ok(program.kill(&container.record.id, signal)?)
}

/// Asks a container to end with `signal` (else with its own), and kills it after `patience`. One
/// that does not run is left alone.
pub fn stop(container: &Container, signal: Option<i32>, patience: Duration) -> Result<(), Error> {
    let container = &made(container, patience);
    if container.record.status != Status::Running {
        return Ok(());
    }
    let asked = send(container, signal.unwrap_or(container.record.stop_signal));
    if container.wait(Some(patience))?.is_some() {
        return Ok(());
    }
    if let Err(error) = asked {
        tracing::debug!(%error, "it could not be asked");
    }
    end(container)
}

/// The container when it is no longer being made, or as it is after `patience`.
fn made(container: &Container, patience: Duration) -> Container {
    let deadline = Instant::now() + patience.max(GLANCE);
    let mut now = container.clone();
    while now.record.status == Status::Created && Instant::now() < deadline {
        std::thread::sleep(GLANCE);
        match Record::read(now.dir()) {
            Ok(Some(record)) => now.record = record,
            // It is gone.
            _ => break,
        }
    }
    now
}

/// Kills it, and waits until it is taken down.
fn end(container: &Container) -> Result<(), Error> {
    let killed = send(container, rustix::process::Signal::KILL.as_raw());
    if container.wait(Some(DEATH))?.is_some() {
        return Ok(());
    }
    killed?;
    Err(Error::Undying(container.record.name.clone()))
}

/// Removes a container; one that runs only with `force`.
pub fn remove(container: &Container, force: bool) -> Result<(), Error> {
    if container.record.status != Status::Exited {
        if !force {
            return Err(Error::Running(container.record.name.clone()));
        }
        end(&made(container, MAKING))?;
    }
    container.remove()
}

/// Waits for its end; gives its exit code, also when the container goes with it (`--rm`).
pub fn wait(container: &Container) -> Result<u8, Error> {
    let ended = container.wait(None)?;
    let record = Record::read(container.dir()).ok().flatten();
    let code = record
        .and_then(|r| r.exit_code)
        .or(container.record.exit_code)
        .or_else(|| ended?.exit_code());
    code.ok_or_else(|| Error::NoSuchContainer(container.record.name.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::record::now;
    use crate::container::store::Store;

    #[test]
    fn what_is_still_being_made_is_waited_for() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::open(place.path()).unwrap();
        let claimed = store.claim(None, "x").unwrap();
        let mut making = claimed.container.clone();
        std::thread::scope(|scope| {
            let stopped = scope.spawn(|| {
                let patience = Duration::from_secs(60);
                let container = made(&claimed.container, patience);
                container.record.started
            });
            making.record.status = Status::Running;
            making.record.started = Some(now());
            making.save().unwrap();
            assert!(stopped.join().unwrap().is_some());
        });
    }
}
