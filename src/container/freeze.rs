//! A running container that stands still while its changes are read.

use std::io;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::container::error::Error;
use crate::container::record::Status;
use crate::container::store::Container;
use crate::runtime::{Program, Refusal};

/// A container whose processes stand still (cgroups(7), the freezer); they go on when this is dropped,
/// and when a signal ends this process before.
#[derive(Debug)]
pub struct Frozen {
    program: Program,
    id: String,
}

impl Frozen {
    /// Freezes a container that runs; nothing for one that does not. Fails where the runtime or the
    /// host has no freezer.
    pub fn freeze(container: &Container) -> Result<Option<Frozen>, Error> {
        let record = &container.record;
        let Some(program) = record
            .program()
            .filter(|_| record.status == Status::Running)
        else {
            return Ok(None);
        };
        let id = record.id.clone();
        release_at_the_end(program.clone(), id.clone())
            .map_err(|e| Error::at(container.dir(), e))?;
        // From here on dropping lets it go on, also after half a freeze.
        let frozen = Frozen { program, id };
        frozen.program.pause(&frozen.id)?;
        Ok(Some(frozen))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        release(&self.program, &self.id);
    }
}

/// Whoever interrupts this process does not want a container that stands still for ever. Listens as long
/// as the process lives: a signal that was once caught has no effect of its own any more.
fn release_at_the_end(program: Program, id: String) -> io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    let listen = move || {
        for signal in signals.forever() {
            release(&program, &id);
            let _ended = signal_hook::low_level::emulate_default_handler(signal);
        }
    };
    let listener = std::thread::Builder::new().name("thaw".into());
    listener.spawn(listen).map(drop)
}

fn release(program: &Program, id: &str) {
    match program.resume(id) {
        Ok(()) => {}
        // It never stood still, or has ended.
        Err(error @ (Refusal::Other { .. } | Refusal::Cgroups { .. })) => {
            tracing::debug!(%error, "not resumed");
        }
        Err(error) => tracing::warn!(%error, "the container may stand still"),
    }
}
