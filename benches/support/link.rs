//! A slow network link inside the process: a TCP proxy with a round-trip time and one bandwidth for
//! all connections, which counts what crosses it and can be unplugged.
//!
//! A new connection costs one round trip, as the handshake would, and each request one more. No more
//! is under way than the link holds, so that a reader that stops stops the sender.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes that are handed on at once.
const PIECE_BYTES: usize = 16 << 10;
/// A sleep that overran is made up for, up to this.
const CATCH_UP: Duration = Duration::from_millis(5);

/// What crossed a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Crossed {
    /// Bytes from the server.
    pub(crate) bytes: u64,
    /// HTTP requests.
    pub(crate) requests: u64,
    /// Connections.
    pub(crate) connections: u64,
}

/// A running link; its threads end with the process.
#[derive(Debug, Clone)]
pub(crate) struct Link(Arc<Shared>);

#[derive(Debug, Clone, Copy)]
struct Wire {
    rtt: Duration,
    bytes_per_second: f64,
}

impl Wire {
    fn new(rtt: Duration, megabits: f64) -> Wire {
        let bytes_per_second = megabits * 1e6 / 8.0;
        Wire {
            rtt,
            bytes_per_second,
        }
    }
}

#[derive(Debug)]
struct Shared {
    port: u16,
    /// What the wire is like now, for new connections.
    wire: Mutex<Wire>,
    /// When the last byte that was given to the wire has left.
    idle_at: Mutex<Instant>,
    /// When the last answer about what a name stands for began to arrive.
    manifest_at: Mutex<Option<Instant>>,
    unplugged: AtomicBool,
    sockets: Mutex<Vec<TcpStream>>,
    bytes: AtomicU64,
    requests: AtomicU64,
    connections: AtomicU64,
}

impl Link {
    /// A link to `target` (`HOST:PORT`).
    pub(crate) fn new(target: &str, rtt: Duration, megabits: f64) -> Link {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let shared = Arc::new(Shared {
            port: listener.local_addr().expect("an address").port(),
            wire: Mutex::new(Wire::new(rtt, megabits)),
            manifest_at: Mutex::new(None),
            idle_at: Mutex::new(Instant::now()),
            unplugged: AtomicBool::new(false),
            sockets: Mutex::default(),
            bytes: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            connections: AtomicU64::new(0),
        });
        let (link, target) = (Link(shared.clone()), target.to_owned());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if !shared.unplugged.load(Relaxed) {
                    let (shared, target) = (shared.clone(), target.clone());
                    thread::spawn(move || shared.connect(client, &target));
                }
            }
        });
        link
    }

    /// Where clients connect.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.0.port)
    }

    /// Makes it another wire, for connections that are still to come.
    pub(crate) fn tune(&self, rtt: Duration, megabits: f64) {
        *self.0.wire.lock().expect("no panic") = Wire::new(rtt, megabits);
    }

    /// When the last answer about what a name stands for began to arrive, since the last time that
    /// this was asked.
    pub(crate) fn manifest_at(&self) -> Option<Instant> {
        self.0.manifest_at.lock().expect("no panic").take()
    }

    /// Cuts every connection and takes no new one until it is plugged in again.
    pub(crate) fn plug(&self, plugged: bool) {
        self.0.unplugged.store(!plugged, Relaxed);
        if !plugged {
            for socket in self.0.sockets.lock().expect("no panic").drain(..) {
                let _closed_already = socket.shutdown(Shutdown::Both);
            }
        }
    }

    /// What crossed since the last time that this was asked.
    pub(crate) fn crossed(&self) -> Crossed {
        Crossed {
            bytes: self.0.bytes.swap(0, Relaxed),
            requests: self.0.requests.swap(0, Relaxed),
            connections: self.0.connections.swap(0, Relaxed),
        }
    }
}

impl Shared {
    fn connect(self: Arc<Self>, client: TcpStream, target: &str) {
        self.connections.fetch_add(1, Relaxed);
        let Ok(server) = TcpStream::connect(target) else {
            return;
        };
        for socket in [&client, &server] {
            socket.set_nodelay(true).expect("a socket");
        }
        let again = |socket: &TcpStream| socket.try_clone().expect("a socket");
        self.sockets.lock().expect("no panic").push(again(&client));
        let (shared, from, to) = (self.clone(), again(&client), again(&server));
        let wire = *self.wire.lock().expect("no panic");
        let asked = Arc::new(AtomicBool::new(false));
        let asks = asked.clone();
        thread::spawn(move || shared.requests(wire, &asks, from, to));
        self.answers(wire, &asked, server, client);
    }

    /// Client to server: nothing but the delay; the first bytes wait for the handshake as well.
    fn requests(&self, wire: Wire, asked: &AtomicBool, mut from: TcpStream, to: TcpStream) {
        let queue = queue(wire, to);
        let (mut piece, mut handshake) = (vec![0; PIECE_BYTES], wire.rtt);
        while let Ok(n @ 1..) = from.read(&mut piece) {
            let methods = [&b"GET "[..], b"HEAD ", b"POST ", b"PUT ", b"PATCH "];
            if methods.iter().any(|method| piece[..n].starts_with(method)) {
                self.requests.fetch_add(1, Relaxed);
                let line = piece[..n].split(|b| *b == b'\r').next().unwrap_or_default();
                let line = String::from_utf8_lossy(line);
                let of_image = line.contains("/manifests/") && !line.contains(".rsmount");
                asked.store(of_image, Relaxed);
            }
            let due = Instant::now() + wire.rtt / 2 + std::mem::take(&mut handshake);
            if queue.send((due, piece[..n].to_vec())).is_err() {
                return;
            }
        }
    }

    /// Server to client: through the wire that all connections share.
    fn answers(&self, wire: Wire, asked: &AtomicBool, mut from: TcpStream, to: TcpStream) {
        let queue = queue(wire, to);
        let mut piece = vec![0; PIECE_BYTES];
        while let Ok(n @ 1..) = from.read(&mut piece) {
            self.bytes.fetch_add(n as u64, Relaxed);
            let left = self.through_the_wire(wire, n);
            sleep_until(left);
            let due = left + wire.rtt / 2;
            if asked.swap(false, Relaxed) {
                *self.manifest_at.lock().expect("no panic") = Some(due);
            }
            if queue.send((due, piece[..n].to_vec())).is_err() {
                return;
            }
        }
    }

    /// When `n` more bytes have left.
    fn through_the_wire(&self, wire: Wire, n: usize) -> Instant {
        let mut idle_at = self.idle_at.lock().expect("no panic");
        let earliest = Instant::now().checked_sub(CATCH_UP).unwrap_or(*idle_at);
        *idle_at =
            (*idle_at).max(earliest) + Duration::from_secs_f64(n as f64 / wire.bytes_per_second);
        *idle_at
    }
}

/// A queue whose pieces are written to `to` when they are due.
fn queue(wire: Wire, to: TcpStream) -> SyncSender<(Instant, Vec<u8>)> {
    let held = 2.0 * wire.bytes_per_second * wire.rtt.as_secs_f64() / PIECE_BYTES as f64;
    let (sender, receiver) = sync_channel((held as usize).max(8));
    thread::spawn(move || deliver(&receiver, to));
    sender
}

fn deliver(queue: &Receiver<(Instant, Vec<u8>)>, mut to: TcpStream) {
    while let Ok((due, piece)) = queue.recv() {
        sleep_until(due);
        if to.write_all(&piece).is_err() {
            break;
        }
    }
    let _closed_already = to.shutdown(Shutdown::Write);
}

fn sleep_until(due: Instant) {
    thread::sleep(due.saturating_duration_since(Instant::now()));
}
