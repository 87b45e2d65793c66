//! A stand-in for a service manager (systemd): it listens to one service at a time, keeps what that has it
//! keep, and gives it back to the next one, as sd_notify(3) and sd_listen_fds(3) say.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, sockopt,
};
use serde_json::Value;

use crate::support::place::Place;

/// A process that becomes the service, as whom a manager starts it: it gets the descriptors at standard
/// input, so that no other process which this one starts meanwhile has them as well.
const START: &str = r#"
import array, fcntl, os, socket, sys
count = int(os.environ["LISTEN_FDS"])
given = array.array("i")
if count:
    room = socket.CMSG_LEN(count * given.itemsize)
    for _, _, numbers in socket.socket(fileno=os.dup(0)).recvmsg(1, room)[1]:
        given.frombytes(numbers)
assert len(given) == count, given
given = [fcntl.fcntl(number, fcntl.F_DUPFD, 100) for number in given]
os.closerange(3, 100)
for number, high in enumerate(given, 3):
    os.dup2(high, number)
    os.close(high)
os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
os.environ["LISTEN_PID"] = os.environ["SYSTEMD_EXEC_PID"] = str(os.getpid())
os.execv(sys.argv[1], sys.argv[1:])
"#;

#[derive(Debug, Default)]
struct Heard {
    store: Mutex<Vec<(String, OwnedFd)>>,
    /// Who has said what, in its order; a message a line, without what is about descriptors.
    said: Mutex<Vec<(u32, String)>>,
    /// Whether it has no room to keep anything.
    no_room: AtomicBool,
    end: AtomicBool,
}

pub struct Manager<'a> {
    place: &'a Place,
    heard: Arc<Heard>,
    listens: Option<JoinHandle<()>>,
}

/// A service that was started; killed when dropped.
pub struct Service<'a> {
    manager: &'a Manager<'a>,
    child: Child,
}

impl<'a> Manager<'a> {
    pub fn new(place: &'a Place) -> Manager<'a> {
        let _before = std::fs::remove_file(place.path("notify"));
        let socket = UnixDatagram::bind(place.path("notify")).unwrap();
        sockopt::set_socket_passcred(&socket, true).unwrap();
        let glance = Some(Duration::from_millis(50));
        socket.set_read_timeout(glance).unwrap();
        let heard = Arc::new(Heard::default());
        let hears = heard.clone();
        let listens = std::thread::spawn(move || {
            while !hears.end.load(SeqCst) {
                hears.hear(&socket);
            }
        });
        Manager {
            place,
            heard,
            listens: Some(listens),
        }
    }

    /// From now on it keeps nothing more.
    pub fn has_no_room(&self) {
        self.heard.no_room.store(true, SeqCst);
    }

    /// Names of what it keeps, sorted.
    pub fn keeps(&self) -> Vec<String> {
        let store = self.heard.store.lock().unwrap();
        let mut names: Vec<_> = store.iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    }

    /// Drops what has that name.
    pub fn loses(&self, name: &str) {
        let mut store = self.heard.store.lock().unwrap();
        store.retain(|(kept, _)| kept != name);
    }

    /// Has the state `name` say something else.
    pub fn changes(&self, name: &str, change: impl Fn(&mut Value)) {
        let mut store = self.heard.store.lock().unwrap();
        let kept = store.iter_mut().find(|(kept, _)| kept == name).unwrap();
        let file = File::from(kept.1.try_clone().unwrap());
        let mut json = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut json, 0).unwrap();
        let mut state = serde_json::from_slice(&json).unwrap();
        change(&mut state);
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let mut other = File::from(rustix::fs::memfd_create(name, flags).unwrap());
        other.write_all(state.to_string().as_bytes()).unwrap();
        kept.1 = other.into();
    }

    /// Starts `rsmount` with these words as its service; what it prints goes to the log.
    pub fn start(&'a self, words: &[&str]) -> Service<'a> {
        let store = self.heard.store.lock().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let given: Vec<_> = store.iter().map(|(_, kept)| kept.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        assert!(given.is_empty() || beside.push(SendAncillaryMessage::ScmRights(&given)));
        let byte = [IoSlice::new(b"x")];
        rustix::net::sendmsg(&ours, &byte, &mut beside, SendFlags::empty()).unwrap();
        let names: Vec<_> = store.iter().map(|(name, _)| &**name).collect();
        let rsmount = self.place.rsmount();
        let mut options = File::options();
        let log = options
            .append(true)
            .create(true)
            .open(self.place.path("log"));
        let mut command = Command::new("python3");
        command.args(["-c", START]);
        command.arg(rsmount.get_program()).args(words);
        command.envs(rsmount.get_envs().filter_map(|(k, v)| Some((k, v?))));
        command.env("NOTIFY_SOCKET", self.place.path("notify"));
        command.env("LISTEN_FDS", given.len().to_string());
        command.env("LISTEN_FDNAMES", names.join(":"));
        command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null());
        Service {
            child: command.stderr(log.unwrap()).spawn().unwrap(),
            manager: self,
        }
    }
}

impl Drop for Manager<'_> {
    fn drop(&mut self) {
        self.heard.end.store(true, SeqCst);
        let ended = self.listens.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))));
    }
}

impl Heard {
    /// One message, if there is one soon.
    fn hear(&self, socket: &UnixDatagram) {
        let mut bytes = [0; 1000];
        let mut space = [0; rustix::cmsg_space!(ScmRights(8), ScmCredentials(1))]
            .map(|_: u8| MaybeUninit::uninit());
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = match rustix::net::recvmsg(socket, &mut into, &mut beside, flags) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return,
            received => received.unwrap().bytes,
        };
        let (mut given, mut sender) = (Vec::new(), None);
        for message in beside.drain() {
            match message {
                RecvAncillaryMessage::ScmRights(descriptors) => given.extend(descriptors),
                RecvAncillaryMessage::ScmCredentials(who) => sender = Some(who.pid),
                _ => {}
            }
        }
        let lines = String::from_utf8(bytes[..received].to_vec()).unwrap();
        let said = |what: &str| lines.lines().find_map(|line| line.strip_prefix(what));
        let name = said("FDNAME=").map(str::to_owned);
        match lines.lines().next() {
            Some("FDSTORE=1") if !self.no_room.load(SeqCst) => {
                assert_eq!(said("FDPOLL="), Some("0"), "it would wake at every request");
                let mut store = self.store.lock().unwrap();
                store.extend(given.into_iter().map(|fd| (name.clone().unwrap(), fd)));
            }
            Some("FDSTOREREMOVE=1") => {
                let mut store = self.store.lock().unwrap();
                store.retain(|(kept, _)| Some(kept) != name.as_ref());
            }
            // That is heard when the descriptor is closed.
            Some("FDSTORE=1" | "BARRIER=1") => {}
            Some(other) => {
                let pid = u32::try_from(sender.unwrap().as_raw_nonzero().get()).unwrap();
                self.said.lock().unwrap().push((pid, other.to_owned()));
            }
            None => panic!("an empty message"),
        }
    }
}

impl Service<'_> {
    /// Its process, which has the number that the manager knows.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has said that it is ready.
    pub fn until_ready(&mut self) {
        let ready = (self.pid(), "READY=1".to_owned());
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.manager.heard.said.lock().unwrap().contains(&ready) {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}\n{}", self.log());
            assert!(Instant::now() < deadline, "not ready\n{}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
        let said = self.manager.heard.said.lock().unwrap();
        let by_it = said.iter().filter(|said| **said == ready).count();
        assert_eq!(by_it, 1, "it says so once");
    }

    /// Kills it, and nobody else.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its end.
    pub fn ends(mut self) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it goes on\n{}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.manager.place.path("log")).unwrap_or_default()
    }
}

impl Drop for Service<'_> {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}
