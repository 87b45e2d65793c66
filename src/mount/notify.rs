//! The talk of a service with the manager that has started it (systemd, or who does as it does):
//! datagrams of `NAME=value` lines to the socket that `NOTIFY_SOCKET` names, with descriptors beside
//! them (sd_notify(3)), and descriptors that it has kept over the service's death (sd_listen_fds(3)).
//!
//! Rejected: the crate `sd-notify`, which brings another one for descriptors and knows no barrier.

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::process::Command;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};
use rustix::time::Timespec;

/// Where it listens.
const SOCKET: &str = "NOTIFY_SOCKET";

/// How many descriptors it keeps.
const ROOM: &str = "FDSTORE";

/// What a manager says to the one process that it has started, and to none that this one starts.
const VARIABLES: [&str; 8] = [
    SOCKET,
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    ROOM,
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];

/// The first descriptor that a manager gives (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;

/// Most descriptors that are taken from it; there are a handful.
const GIVEN_MAX: usize = 256;

/// Longest name of a descriptor in bytes (`FDNAME_MAX`).
const NAME_BYTES_MAX: usize = 255;

/// How long a manager may take to hear what it is told, as systemd's own programs wait. A keeper has
/// other things to do.
const PATIENCE: Duration = Duration::from_secs(5);

/// Keeps from the program that `command` runs what is not for it.
pub(super) fn keep_from(command: &mut Command) {
    for name in VARIABLES {
        command.env_remove(name);
    }
}

/// Leaves to the program that takes this one's place what it may say to the manager.
pub(super) fn leave_to(command: &mut Command) {
    let said = |name| Some((name, std::env::var_os(name)?));
    command.envs([SOCKET, ROOM].into_iter().filter_map(said));
}

/// The descriptors that the manager gives this process, by number, with their names; from the
/// variables, which say for whom they are.
pub(super) fn given() -> Vec<(RawFd, String)> {
    named(std::process::id(), |name| std::env::var(name).ok())
}

fn named(pid: u32, variable: impl Fn(&str) -> Option<String>) -> Vec<(RawFd, String)> {
    let number = |name: &str| variable(name)?.parse::<u32>().ok();
    if number("LISTEN_PID") != Some(pid) {
        return Vec::new();
    }
    let count = number("LISTEN_FDS").unwrap_or(0) as usize;
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').chain(std::iter::repeat(""));
    let names = names.take(count.min(GIVEN_MAX)).map(str::to_owned);
    (FIRST..).zip(names).collect()
}

/// The way to the manager.
#[derive(Debug)]
pub(super) struct Notifier {
    socket: OwnedFd,
    address: SocketAddrUnix,
    room: Option<usize>,
}

impl Notifier {
    /// That of the manager that has started this process itself; `None` when nobody has. A program that
    /// a service runs has no say in how its service is.
    pub(super) fn from_environment() -> Option<Notifier> {
        let started = std::env::var("SYSTEMD_EXEC_PID").ok();
        if started.is_some_and(|pid| pid != std::process::id().to_string()) {
            return None;
        }
        let path = std::env::var_os(SOCKET)?;
        match Notifier::at(&path) {
            Ok(notifier) => {
                let room = std::env::var(ROOM).ok();
                Some(notifier.with_room(room.and_then(|room| room.parse().ok())))
            }
            Err(error) => {
                tracing::warn!(%error, ?path, "the service manager cannot be told anything");
                None
            }
        }
    }

    /// One that speaks to the socket of this name: a path, or `@` and an abstract name.
    pub(super) fn at(name: &OsStr) -> io::Result<Notifier> {
        let address = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name)?,
            [b'/', ..] => SocketAddrUnix::new(name)?,
            _ => return Err(io::ErrorKind::Unsupported.into()),
        };
        let (unix, datagrams) = (AddressFamily::UNIX, SocketType::DGRAM);
        let socket = rustix::net::socket_with(unix, datagrams, SocketFlags::CLOEXEC, None)?;
        set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
        Ok(Notifier {
            socket,
            address,
            room: None,
        })
    }

    /// The same, of a manager that keeps so many descriptors.
    pub(super) fn with_room(self, room: Option<usize>) -> Notifier {
        Notifier { room, ..self }
    }

    /// How many descriptors it keeps; `None` when it does not say.
    pub(super) fn room(&self) -> Option<usize> {
        self.room
    }

    /// That the service does what it is for.
    pub(super) fn ready(&self) -> io::Result<()> {
        self.say("READY=1", &[])
    }

    /// Has the manager keep another descriptor, as `name`. It is not to watch whether that hangs up, as
    /// systemd would: every request for `/dev/fuse` would wake it.
    pub(super) fn store(&self, name: &str, descriptor: impl AsFd) -> io::Result<()> {
        let lines = naming("FDSTORE", name)? + "\nFDPOLL=0";
        self.say(&lines, &[descriptor.as_fd()])
    }

    /// Has it drop the descriptors of that name.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        self.say(&naming("FDSTOREREMOVE", name)?, &[])
    }

    /// Waits until the manager has heard all that was said.
    pub(super) fn wait_until_heard(&self) -> io::Result<()> {
        let (heard, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        self.say("BARRIER=1", &[theirs.as_fd()])?;
        drop(theirs);
        // It says so by closing the pipe.
        let mut fds = [PollFd::new(&heard, PollFlags::empty())];
        let patience = Timespec::try_from(PATIENCE).map_err(io::Error::other)?;
        match rustix::io::retry_on_intr(|| poll(&mut fds, Some(&patience)))? {
            0 => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }

    fn say(&self, lines: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            beside.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        let (lines, flags) = ([IoSlice::new(lines.as_bytes())], SendFlags::NOSIGNAL);
        rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg_addr(&self.socket, &self.address, &lines, &mut beside, flags)
        })?;
        Ok(())
    }
}

/// `verb` for the descriptors of that name. Managers drop names that they do not like without a word.
fn naming(verb: &str, name: &str) -> io::Result<String> {
    let is_allowed = |c: char| c.is_ascii() && !c.is_ascii_control() && c != ':';
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(is_allowed) {
        let why = format!("{} is no name for a descriptor", name.escape_debug());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    Ok(format!("{verb}=1\nFDNAME={name}"))
}

#[cfg(test)]
mod tests {
    use std::io::IoSliceMut;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

    use super::*;

    fn hear(socket: &UnixDatagram) -> (String, Vec<OwnedFd>) {
        let mut bytes = [0; 500];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let length = rustix::net::recvmsg(socket, &mut into, &mut beside, flags);
        let length = length.unwrap().bytes;
        let mut descriptors = Vec::new();
        for message in beside.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                descriptors.extend(received);
            }
        }
        let said = String::from_utf8(bytes[..length].to_vec()).unwrap();
        (said, descriptors)
    }

    fn heard(name: &OsStr, manager: &UnixDatagram) {
        let notifier = Notifier::at(name).unwrap();
        notifier.ready().unwrap();
        notifier.store("a-name", io::stdin()).unwrap();
        notifier.remove("a-name").unwrap();
        assert_eq!(hear(manager).0, "READY=1");
        let (said, descriptors) = hear(manager);
        assert_eq!(said, "FDSTORE=1\nFDNAME=a-name\nFDPOLL=0");
        assert_eq!(descriptors.len(), 1);
        assert_eq!(hear(manager).0, "FDSTOREREMOVE=1\nFDNAME=a-name");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| notifier.wait_until_heard());
            let (said, pipe) = hear(manager);
            assert_eq!((&*said, pipe.len()), ("BARRIER=1", 1));
            assert!(!waiting.is_finished(), "it has not been heard yet");
            drop(pipe);
            waiting.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_manager_is_told_by_path_and_by_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        heard(path.as_os_str(), &UnixDatagram::bind(&path).unwrap());
        let name = format!("rsmount-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        heard(OsStr::new(&format!("@{name}")), &manager);
        assert!(Notifier::at(OsStr::new("vsock:2:1")).is_err());
        let gone = Notifier::at(OsStr::new("/nowhere/notify")).unwrap();
        assert!(gone.ready().is_err());
    }

    #[test]
    fn names_are_such_as_managers_take() {
        assert!(naming("FDSTORE", &"x".repeat(NAME_BYTES_MAX)).is_ok());
        for name in ["", "a:b", "a\nREADY=1", "ä", &"x".repeat(256)] {
            assert!(naming("FDSTORE", name).is_err(), "{name}");
        }
    }

    #[test]
    fn descriptors_are_for_the_process_that_they_were_given_to() {
        let given = |pid: &str, count: &str, names: Option<&str>| {
            named(7, |name| match name {
                "LISTEN_PID" => Some(pid.to_owned()),
                "LISTEN_FDS" => Some(count.to_owned()),
                _ => names.map(str::to_owned),
            })
        };
        let two = [(3, "a".to_owned()), (4, "b-1".to_owned())];
        assert_eq!(given("7", "2", Some("a:b-1")), two);
        assert_eq!(given("7", "2", None), [3, 4].map(|fd| (fd, String::new())));
        assert!(given("8", "2", Some("a:b")).is_empty());
        assert!(given("7", "-1", Some("a")).is_empty());
        assert_eq!(given("7", "4000000000", None).len(), GIVEN_MAX);
    }
}
