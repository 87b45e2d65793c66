//! What the service manager keeps of a mount that is a service (systemd's file descriptor store), so
//! that the mount outlives its keeper as well: the descriptors that a worker has handed over, and
//! beside them a file that says what they are of.
//!
//! ```text
//! rsmount-held-0    the device; -1 the lock of an upper directory
//! rsmount-state-7   sealed: the request, what the worker has said of its mount, how many are held
//! ```
//!
//! A new state is stored before the old one is removed, so there is always one, if there is room for both.
//! A manager that has less drops what is new without a word: where it says how much it has (`$FDSTORE`,
//! systemd 254), nothing is stored unless all fits; where it does not, the old state goes and no new one
//! comes, and the next keeper, which finds nothing that says what it has, mounts anew. Who ends in an
//! orderly way leaves nothing; what is found there is of a keeper that was killed.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::time::Timespec;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::mount::handover::Handed;
use crate::mount::mountpoint;
use crate::mount::notify::Notifier;
use crate::mount::record::Record;

/// How the names of held descriptors begin; a number follows.
const HELD: &str = "rsmount-held-";

/// How those of states do.
const STATE: &str = "rsmount-state-";

/// Longest state in bytes: twice the longest message between a keeper and its worker.
const STATE_BYTES_MAX: u64 = 256 << 10;

/// What of a request makes another mount of it. The rest, as where mirrors are, may change from one
/// keeper to the next.
const SAME: [&str; 11] = [
    "image",
    "mountpoint",
    "platform",
    "pinned",
    "upper",
    "engine",
    "cache_dir",
    "suid",
    "dev",
    "noexec",
    "allow_other",
];

/// A state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    /// What was asked for.
    pub(super) request: Value,
    /// What the last worker has handed over.
    pub(super) handed: Value,
    /// The process that has stored it.
    pub(super) keeper: u32,
    /// How many descriptors with it.
    descriptors: usize,
    /// The number of the state.
    #[serde(skip)]
    pub(super) generation: u64,
}

/// The store, as the keeper of a mount fills it.
#[derive(Debug)]
pub(super) struct Store {
    manager: Notifier,
    /// Of all that is in it.
    names: Vec<String>,
    generation: u64,
    is_ready: bool,
}

impl Store {
    /// One with nothing in it.
    pub(super) fn empty(manager: Notifier) -> Store {
        Store {
            manager,
            names: Vec::new(),
            generation: 0,
            is_ready: false,
        }
    }

    /// One that has brought a mount over its keeper's death.
    pub(super) fn with(manager: Notifier, generation: u64, descriptors: usize) -> Store {
        Store {
            names: names(generation, descriptors),
            generation,
            ..Store::empty(manager)
        }
    }

    /// The mount is served: the service is ready, and what another keeper needs is kept, unless
    /// it could not go on for the reason given.
    pub(super) fn serving(
        &mut self,
        (request, handed): (&Value, &Value),
        descriptors: &[OwnedFd],
        cannot: Option<String>,
    ) {
        let kept = match cannot {
            Some(why) => Err(io::Error::other(why)),
            None => self.keep(request, handed, descriptors),
        };
        if let Err(error) = kept {
            tracing::warn!(%error, "the mount will not outlive its keeper");
        }
        if !self.is_ready {
            let said = self.manager.ready();
            let said = said.inspect_err(|error| tracing::error!(%error, "nobody hears of it"));
            self.is_ready = said.is_ok();
        }
    }

    fn keep(&mut self, request: &Value, handed: &Value, descriptors: &[OwnedFd]) -> io::Result<()> {
        // With the old state and the new one.
        let needed = descriptors.len() + 2;
        if let Some(room) = self.manager.room().filter(|room| *room < needed) {
            return Err(io::Error::other(format!(
                "the service manager keeps {room} descriptors, and {needed} are needed \
                 (FileDescriptorStoreMax={needed})"
            )));
        }
        for (n, descriptor) in descriptors.iter().enumerate() {
            // Every worker hands over the same open files.
            let name = format!("{HELD}{n}");
            if !self.names.contains(&name) {
                self.manager.store(&name, descriptor)?;
                self.names.push(name);
            }
        }
        let kept = Kept {
            request: request.clone(),
            handed: handed.clone(),
            keeper: std::process::id(),
            descriptors: descriptors.len(),
            generation: self.generation + 1,
        };
        let name = format!("{STATE}{}", kept.generation);
        self.manager.store(&name, kept.sealed()?)?;
        self.generation = kept.generation;
        let is_old = |name: &mut String| name.starts_with(STATE);
        let old: Vec<_> = self.names.extract_if(.., is_old).collect();
        self.names.push(name);
        old.iter().try_for_each(|name| self.manager.remove(name))
    }

    /// Removes all of it; nothing is left for the next keeper to go on with.
    pub(super) fn clear(self) {
        if let Err(error) = removed(&self.manager, &self.names) {
            tracing::warn!(%error, "what is kept of the mount cannot be removed");
        }
    }
}

/// Has the manager drop what has these names, and waits until it has.
pub(super) fn removed<N: AsRef<str>>(manager: &Notifier, names: &[N]) -> io::Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    for name in names {
        manager.remove(name.as_ref())?;
    }
    manager.wait_until_heard()
}

/// Of what is kept of a mount.
fn names(generation: u64, descriptors: usize) -> Vec<String> {
    let held = (0..descriptors).map(|n| format!("{HELD}{n}"));
    held.chain([format!("{STATE}{generation}")]).collect()
}

/// Whether a descriptor of that name is of a mount of ours.
pub(super) fn is_ours(name: &str) -> bool {
    name.starts_with(HELD) || name.starts_with(STATE)
}

impl Kept {
    fn sealed(&self) -> io::Result<File> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut file = File::from(memfd_create("rsmount-state", flags)?);
        file.write_all(&serde_json::to_vec(self)?)?;
        fcntl_add_seals(
            &file,
            SealFlags::SEAL | SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK,
        )?;
        Ok(file)
    }

    /// By position: everybody that it was ever given to has the same open file.
    fn read(file: &File, generation: u64) -> io::Result<Kept> {
        let bytes = file.metadata()?.len();
        if bytes > STATE_BYTES_MAX {
            return Err(io::Error::other("too long"));
        }
        let mut json = vec![0; bytes as usize];
        file.read_exact_at(&mut json, 0)?;
        let kept = serde_json::from_slice(&json)?;
        Ok(Kept { generation, ..kept })
    }

    /// The newest state that can be read among what the manager has given, which loses all states.
    pub(super) fn newest(given: &mut Vec<(String, OwnedFd)>) -> Option<Kept> {
        let is_state = |given: &mut (String, OwnedFd)| given.0.starts_with(STATE);
        let states = given.extract_if(.., is_state);
        let states = states.filter_map(|(name, state)| {
            let generation = name.strip_prefix(STATE)?.parse().ok()?;
            let kept = Kept::read(&File::from(state), generation);
            kept.inspect_err(|error| tracing::warn!(%error, name, "not read"))
                .ok()
        });
        states.max_by_key(|kept| kept.generation)
    }

    /// What it says was held, in its order; `None` when some of it is not there.
    pub(super) fn held(&self, given: Vec<(String, OwnedFd)>) -> Option<Vec<OwnedFd>> {
        let number = |name: &str| name.strip_prefix(HELD)?.parse::<usize>().ok();
        let numbered = given.into_iter();
        let mut held: Vec<_> = numbered
            .filter_map(|(name, descriptor)| Some((number(&name)?, descriptor)))
            .filter(|(n, _)| *n < self.descriptors)
            .collect();
        held.sort_by_key(|(n, _)| *n);
        held.dedup_by_key(|(n, _)| *n);
        let is_all = held.len() == self.descriptors && !held.is_empty();
        is_all.then(|| held.into_iter().map(|(_, descriptor)| descriptor).collect())
    }

    /// Where it was asked to mount.
    pub(super) fn mountpoint(&self) -> Option<PathBuf> {
        self.request["mountpoint"].as_str().map(PathBuf::from)
    }

    /// What the last worker has handed over; the error says why it is of no use. A worker reads what strangers
    /// have made: whatever became of it, it has no say in which mount is gone on with.
    pub(super) fn handed(&self) -> Result<Handed, String> {
        let handed = Handed::deserialize(&self.handed);
        let handed = handed.map_err(|_| "nothing says what it is of")?;
        let Record {
            mountpoint, keeper, ..
        } = &handed.record;
        match self.mountpoint().as_ref() == Some(mountpoint) && *keeper == Some(self.keeper) {
            true => Ok(handed),
            false => Err("its worker has said that it was another one".to_owned()),
        }
    }

    /// Takes its names out of `all`: what is left belongs to other states.
    pub(super) fn leave_names(&self, all: &mut Vec<String>) {
        let own = names(self.generation, self.descriptors);
        all.retain(|name| !own.contains(name));
    }

    /// What it was asked to be, and `request` does not.
    pub(super) fn differs_in(&self, request: &Value) -> Option<&'static str> {
        SAME.into_iter()
            .find(|field| self.request[field] != request[field])
    }
}

/// Whether the mount of that device goes on, and is where it was. A connection that goes on has its
/// file system, and so the number of that is nobody else's.
pub(super) fn is_in_place(handed: &Handed, device: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(device, PollFlags::empty())];
    let at_once = Timespec::default();
    let polled = rustix::io::retry_on_intr(|| poll(&mut fds, Some(&at_once)));
    let goes_on = polled == Ok(0);
    let there = mountpoint::device(&handed.record.mountpoint);
    let same = match (&handed.record.upper, &handed.kernel) {
        // It is the overlay that is there.
        (Some(_), _) => true,
        (None, Some(kernel)) => there == kernel.erofs,
        (None, None) => there == handed.device,
    };
    goes_on && there.is_some() && same
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use serde_json::json;

    use super::*;

    fn null() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    fn kept(generation: u64, descriptors: usize) -> Kept {
        Kept {
            request: json!({"image": "a", "mountpoint": "/m", "noexec": false, "pull": "newer"}),
            handed: json!({"said": generation}),
            keeper: 7,
            descriptors,
            generation,
        }
    }

    fn given(states: &[u64], held: &[usize]) -> Vec<(String, OwnedFd)> {
        let state = |n: &u64| (format!("{STATE}{n}"), kept(*n, 2).sealed().unwrap().into());
        let held = held.iter().map(|n| (format!("{HELD}{n}"), null()));
        states.iter().map(state).chain(held).collect()
    }

    #[test]
    fn the_newest_state_that_can_be_read_holds() {
        let mut all = given(&[9, 10], &[1, 0]);
        all.push((format!("{STATE}11"), null()));
        all.push((format!("{STATE}x"), null()));
        let newest = Kept::newest(&mut all).unwrap();
        assert_eq!(newest, kept(10, 2));
        assert_eq!(all.len(), 2, "no state is left: {all:?}");
        assert_eq!(newest.held(all).unwrap().len(), 2);
        assert!(Kept::newest(&mut given(&[], &[0, 1])).is_none());
    }

    #[test]
    fn what_was_held_is_there_as_a_whole() {
        for incomplete in [&[][..], &[0], &[1], &[0, 0], &[0, 2]] {
            let held = kept(1, 2).held(given(&[], incomplete));
            assert!(held.is_none(), "{incomplete:?}");
        }
        assert_eq!(kept(1, 2).held(given(&[], &[2, 1, 0])).unwrap().len(), 2);
        assert!(kept(1, 0).held(given(&[], &[])).is_none(), "no device");
    }

    #[test]
    fn nobody_changes_a_state() {
        let mut file = kept(3, 1).sealed().unwrap();
        assert!(file.write_all(b"x").is_err());
        assert!(file.set_len(0).is_err());
        assert_eq!(Kept::read(&file, 3).unwrap(), kept(3, 1));
        assert_eq!(Kept::read(&file, 3).unwrap(), kept(3, 1), "and again");
    }

    #[test]
    fn only_what_makes_another_mount_is_compared() {
        let mut request = kept(1, 1).request;
        request["pull"] = json!("always");
        // An older version may not have said what is the default.
        request["suid"] = Value::Null;
        assert_eq!(kept(1, 1).differs_in(&request), None);
        for (field, other) in [("image", json!("b")), ("suid", json!(true))] {
            let mut request = request.clone();
            request[field] = other;
            assert_eq!(kept(1, 1).differs_in(&request), Some(field));
        }
    }

    #[test]
    fn a_worker_does_not_say_which_mount_is_gone_on_with() {
        let of = |mountpoint: &str, keeper: Option<u32>| Kept {
            handed: json!({"record": {
                "mountpoint": mountpoint, "keeper": keeper, "image": "a", "digest": "b", "pid": 8,
                "platform": "linux/amd64", "state": "ready", "since": "1970-01-01T00:00:00Z",
            }}),
            ..kept(1, 1)
        };
        let handed = of("/m", Some(7)).handed().unwrap();
        assert_eq!(handed.record.pid, 8);
        for (mountpoint, keeper) in [("/of/another", Some(7)), ("/m", Some(9)), ("/m", None)] {
            let refused = of(mountpoint, keeper).handed().unwrap_err();
            assert!(refused.contains("another"), "{refused}");
        }
        assert!(kept(1, 1).handed().unwrap_err().contains("nothing says"));
    }

    #[test]
    fn nothing_is_kept_where_not_all_of_it_has_room() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let (request, handed) = (json!({}), json!({}));
        let descriptors = [null(), null()];
        for (room, first) in [(3, "READY=1"), (4, "FDSTORE=1\nFDNAME=rsmount-held-0")] {
            let notifier = Notifier::at(path.as_os_str()).unwrap();
            let mut store = Store::empty(notifier.with_room(Some(room)));
            store.serving((&request, &handed), &descriptors, None);
            let mut bytes = [0; 200];
            let length = manager.recv(&mut bytes).unwrap();
            assert!(bytes[..length].starts_with(first.as_bytes()), "{room}");
        }
    }

    #[test]
    fn there_is_always_a_state_and_nothing_in_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let hear = || {
            let mut bytes = [0; 200];
            let length = manager.recv(&mut bytes).unwrap();
            let said = String::from_utf8_lossy(&bytes[..length]).into_owned();
            said.replace("=1\nFDNAME=rsmount-", " ")
                .replace("\nFDPOLL=0", "")
        };
        let mut store = Store::empty(Notifier::at(path.as_os_str()).unwrap());
        let (request, handed) = (json!({}), json!({}));
        let descriptors = [null()];
        store.serving((&request, &handed), &descriptors, None);
        let first = ["FDSTORE held-0", "FDSTORE state-1", "READY=1"];
        assert_eq!([hear(), hear(), hear()], first);
        store.serving((&request, &handed), &descriptors, None);
        let second = ["FDSTORE state-2", "FDSTOREREMOVE state-1"];
        assert_eq!([hear(), hear()], second);
        let mut store = Store::with(Notifier::at(path.as_os_str()).unwrap(), 2, 1);
        store.serving((&request, &handed), &descriptors, None);
        let third = ["FDSTORE state-3", "FDSTOREREMOVE state-2", "READY=1"];
        assert_eq!([hear(), hear(), hear()], third);
        std::thread::scope(|scope| {
            scope.spawn(|| store.clear());
            let last = ["FDSTOREREMOVE held-0", "FDSTOREREMOVE state-3", "BARRIER=1"];
            // The end of the pipe that came with it is closed, as it was not received.
            assert_eq!([hear(), hear(), hear()], last);
        });
        let mut store = Store::empty(Notifier::at(path.as_os_str()).unwrap());
        store.serving(
            (&request, &handed),
            &descriptors,
            Some("too old".to_owned()),
        );
        assert_eq!(
            hear(),
            "READY=1",
            "nothing is kept that nobody could go on with"
        );
        store.clear();
    }
}
