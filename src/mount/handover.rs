//! A worker's end of keeping: what it hands over, and how it takes over from one that has died.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::mount::engine::Devices;
use crate::mount::parcel::{self, Said, Start, Task, Told};
use crate::mount::record::Record;
use crate::mount::request::{BegunBy, MountRequest};
use crate::oci::Digest;

/// What the next worker has to know of a mount. Everything else is in the cache. Fields that are
/// added later have a default: the next worker may be of a newer version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Handed {
    /// What was mounted; its process is the one that has died.
    pub(super) record: Record,
    /// `MAJOR:MINOR` of the image's own mount.
    pub(super) device: Option<String>,
    /// Present when the kernel engine serves the mount.
    #[serde(default)]
    pub(super) kernel: Option<Devices>,
    /// Digest of the tree ([`Tree::identity`](crate::tree::Tree::identity)) that the kernel knows;
    /// absent with the kernel engine, whose plan says the same, and in the first second.
    #[serde(default)]
    pub(super) tree: Option<Digest>,
    /// The pack that the mount began with.
    #[serde(default)]
    pub(super) pack: Option<BegunBy>,
}

/// What was handed over, with its descriptors.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) handed: Handed,
    /// `/dev/fuse`.
    pub(super) fuse: OwnedFd,
    /// The lock of the upper directory.
    pub(super) upper: Option<File>,
}

/// The keeper of this worker.
#[derive(Debug)]
pub(super) struct Keeper {
    socket: OwnedFd,
    does: bool,
    /// Whether it has to.
    acts: AtomicBool,
}

/// How long a keeper may take for what it is asked to do.
const PATIENCE: Timespec = Timespec {
    tv_sec: 70,
    tv_nsec: 0,
};
/// Longest answer in bytes, as for a token.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

impl Keeper {
    /// Hears from the keeper, which is at standard input, what there is to do.
    pub(super) fn meet() -> io::Result<(Keeper, MountRequest, Option<Taken>)> {
        let socket = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
        let gone = || io::Error::other("the keeper is gone");
        let (start, descriptors): (Start, _) = parcel::receive(&socket)?.ok_or_else(gone)?;
        let request = serde_json::from_value(start.request)?;
        let taken = start.handed.map(|handed| taken(handed, descriptors));
        let keeper = Keeper {
            socket,
            does: start.does,
            acts: AtomicBool::new(false),
        };
        Ok((keeper, request, taken.transpose()?))
    }

    /// From now on, another worker can go on with the mount.
    pub(super) fn serving(
        &self,
        handed: &Handed,
        fuse: BorrowedFd<'_>,
        upper: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let said = Said::Serving(serde_json::to_value(handed)?);
        let descriptors: Vec<_> = [fuse].into_iter().chain(upper).collect();
        parcel::send(&self.socket, &said, &descriptors)
    }

    /// Waits until the worker before this one is gone.
    pub(super) fn wait_until_alone(&self) -> io::Result<()> {
        parcel::send(&self.socket, &Said::Prepared, &[])?;
        match parcel::receive(&self.socket)? {
            Some((Told::Alone, _)) => Ok(()),
            _ => Err(io::Error::other("the keeper is gone")),
        }
    }

    /// Has a worker of `program` take over. Returns only when none did.
    pub(super) fn replace(&self, program: &Path) -> String {
        let said = Said::Replace(program.to_owned());
        let told = parcel::send(&self.socket, &said, &[])
            .and_then(|()| parcel::receive::<Told>(&self.socket));
        match told {
            Ok(Some((Told::NotReplaced(why), _))) => why,
            _ => "the keeper of this mount is gone; unmount and mount again".to_owned(),
        }
    }

    /// Whether it does what a worker in a sandbox cannot.
    pub(super) fn does_errands(&self) -> bool {
        self.does
    }

    /// From now on this process cannot unmount by itself.
    pub(super) fn acts_for_us(&self) {
        self.acts.store(true, Ordering::Relaxed);
    }

    /// Has it do `task` if this process cannot; whether it had to.
    pub(super) fn acts(&self, task: Task) -> bool {
        let acts = self.acts.load(Ordering::Relaxed);
        if acts && let Err(error) = self.have_done(task) {
            tracing::error!(%error, "the keeper does nothing");
        }
        acts
    }

    /// Has it do `task`; gives its answer.
    pub(super) fn have_done(&self, task: Task) -> io::Result<Vec<u8>> {
        let (answer, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        parcel::send(&self.socket, &Said::Do(task), &[theirs.as_fd()])?;
        drop(theirs);
        let mut bytes = Vec::new();
        let mut pipe = File::from(answer);
        loop {
            let mut fds = [PollFd::new(&pipe, PollFlags::IN)];
            if rustix::io::retry_on_intr(|| poll(&mut fds, Some(&PATIENCE)))? == 0 {
                return Err(io::Error::other("the keeper does not answer"));
            }
            let room = ANSWER_BYTES_MAX - bytes.len() as u64;
            let mut piece = vec![0; room.min(64 << 10) as usize];
            match pipe.read(&mut piece)? {
                0 => return Ok(bytes),
                len => bytes.extend_from_slice(&piece[..len]),
            }
        }
    }

    /// Its process.
    pub(super) fn pid() -> Option<u32> {
        let pid = rustix::process::getppid()?;
        u32::try_from(pid.as_raw_nonzero().get()).ok()
    }
}

fn taken(handed: Value, descriptors: Vec<OwnedFd>) -> io::Result<Taken> {
    let mut descriptors = descriptors.into_iter();
    let fuse = descriptors.next();
    Ok(Taken {
        handed: serde_json::from_value(handed)?,
        fuse: fuse.ok_or_else(|| io::Error::other("the keeper has no device"))?,
        upper: descriptors.next().map(File::from),
    })
}
