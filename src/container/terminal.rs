//! The user's terminal while a container's is shown on it: raw, so that every key goes through, and
//! as large as the one in the container.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::termios::{
    OptionalActions, Termios, Winsize, isatty, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize,
};

/// The user's terminal in raw mode; as it was before when this is dropped.
#[derive(Debug)]
pub(super) struct Raw {
    input: OwnedFd,
    before: Termios,
}

impl Raw {
    /// Makes standard input raw; nothing when it is no terminal.
    pub(super) fn enter() -> io::Result<Option<Raw>> {
        let stdin = io::stdin();
        if !isatty(&stdin) {
            return Ok(None);
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        let input = stdin.as_fd().try_clone_to_owned()?;
        Ok(Some(Raw { input, before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _gone = tcsetattr(&self.input, OptionalActions::Now, &self.before);
    }
}

/// Size of the user's terminal, if there is one.
fn size() -> Option<Winsize> {
    let of = |fd: &dyn AsFd| tcgetwinsize(fd.as_fd()).ok();
    of(&io::stdout()).or_else(|| of(&io::stdin()))
}

/// Gives the container's terminal the size of the user's.
pub(super) fn follow_size(master: &File) {
    if let Some(size) = size()
        && let Err(error) = tcsetwinsize(master, size)
    {
        tracing::debug!(%error, "the terminal keeps its size");
    }
}
