//! A registry on loopback that takes uploads, in memory, counts them, and can fail in the middle.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

/// What was received, and what a test may turn.
#[derive(Debug, Default)]
pub struct Received {
    pub blobs: Mutex<HashMap<String, Vec<u8>>>,
    /// By tag and by digest.
    pub manifests: Mutex<HashMap<String, Vec<u8>>>,
    uploads: Mutex<HashMap<String, Vec<u8>>>,
    /// Bytes of pieces that were kept.
    pub bytes: AtomicU64,
    pub pieces: AtomicU64,
    /// Questions for the state of an upload.
    pub states: AtomicU64,
    /// This piece arrives by half, and its connection breaks; counted from 1.
    pub break_at: AtomicU64,
    /// From that piece on nobody is answered.
    pub dies: AtomicBool,
    /// Nobody is answered.
    pub dead: AtomicBool,
    /// Nobody may push.
    pub forbidden: AtomicBool,
    /// Every other piece arrives by half, and its connection breaks.
    pub shaky: AtomicBool,
    /// So many ends of uploads are never answered, although they do what they are to do.
    pub silent_ends: AtomicU64,
    /// So many questions for the state of an upload are too many (429).
    pub busy_states: AtomicU64,
    /// Nobody is told what is there.
    pub discreet: AtomicBool,
    /// Uploads that were begun.
    pub begun: AtomicU64,
    /// What somebody else writes to a name directly behind the next write to it by us.
    pub undone_by: Mutex<Option<Vec<u8>>>,
}

/// Takes one from what is left, if anything is.
fn take(left: &AtomicU64) -> bool {
    left.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1))
        .is_ok()
}

/// A running registry; the threads end with the test's process.
pub struct Receiver {
    pub received: Arc<Received>,
    port: u16,
}

struct Request {
    method: String,
    path: String,
    query: HashMap<String, String>,
    range: Option<u64>,
    length: usize,
}

impl Receiver {
    pub fn serve() -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let received = Arc::new(Received::default());
        let shared = received.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let received = shared.clone();
                std::thread::spawn(move || connection(&received, &stream));
            }
        });
        Receiver { received, port }
    }

    pub fn image(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port)
    }
}

fn connection(received: &Received, stream: &TcpStream) -> Option<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let request = request(&mut reader)?;
        if received.dead.load(SeqCst) {
            return None;
        }
        answer(received, &mut reader, stream, &request)?;
    }
}

fn request(reader: &mut impl BufRead) -> Option<Request> {
    let mut first = String::new();
    if reader.read_line(&mut first).ok()? == 0 {
        return None;
    }
    let mut words = first.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let pairs = query.split('&').filter_map(|p| p.split_once('='));
    let query = pairs
        .map(|(n, v)| (n.to_owned(), v.replace("%3A", ":")))
        .collect();
    let (mut range, mut length) = (None, 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-range:") {
            range = value.trim().split('-').next()?.parse().ok();
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let path = path.to_owned();
    Some(Request {
        method,
        path,
        query,
        range,
        length,
    })
}

fn say(mut stream: &TcpStream, status: &str, headers: &str, body: &[u8]) -> Option<()> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(body).ok()
}

fn answer(
    received: &Received,
    reader: &mut impl BufRead,
    stream: &TcpStream,
    request: &Request,
) -> Option<()> {
    let (method, path) = (request.method.as_str(), request.path.as_str());
    if method == "PATCH" {
        return piece(received, reader, stream, request);
    }
    let mut body = vec![0; request.length];
    reader.read_exact(&mut body).ok()?;
    if received.forbidden.load(SeqCst) && !matches!(method, "GET" | "HEAD") {
        return say(stream, "403 Forbidden", "", b"");
    }
    let last = path.rsplit('/').next()?.to_owned();
    match method {
        "POST" => begin(received, stream, request),
        "PUT" if path.contains("/blobs/uploads/") => {
            let bytes = received.uploads.lock().unwrap().remove(&last)?;
            let digest = request.query.get("digest")?;
            if rsmount::oci::Digest::of(&[&bytes[..], &body].concat()).to_string() != *digest {
                return say(stream, "400 Bad Request", "", b"");
            }
            let bytes = [bytes, body].concat();
            received.blobs.lock().unwrap().insert(digest.clone(), bytes);
            if take(&received.silent_ends) {
                return None;
            }
            say(stream, "201 Created", "", b"")
        }
        "PUT" => {
            let mut manifests = received.manifests.lock().unwrap();
            let digest = rsmount::oci::Digest::of(&body).to_string();
            manifests.insert(digest.clone(), body.clone());
            let other = received
                .undone_by
                .lock()
                .unwrap()
                .take_if(|_| !last.starts_with("sha256:"));
            manifests.insert(last, other.unwrap_or(body));
            say(stream, "201 Created", "", b"")
        }
        _ if path.contains("/blobs/uploads/") => {
            received.states.fetch_add(1, SeqCst);
            if take(&received.busy_states) {
                return say(stream, "429 Too Many Requests", "Retry-After: 0\r\n", b"");
            }
            let uploads = received.uploads.lock().unwrap();
            let Some(bytes) = uploads.get(&last) else {
                return say(stream, "404 Not Found", "", b"");
            };
            say(stream, "204 No Content", &state(path, bytes.len()), b"")
        }
        _ if path.contains("/blobs/") => match received.blobs.lock().unwrap().get(&last) {
            Some(bytes) if method == "GET" => say(stream, "200 OK", "", bytes),
            Some(_) if !received.discreet.load(SeqCst) => say(stream, "200 OK", "", b""),
            _ => say(stream, "404 Not Found", "", b""),
        },
        _ => match received.manifests.lock().unwrap().get(&last) {
            Some(bytes) => say(stream, "200 OK", "", bytes),
            None => say(stream, "404 Not Found", "", b""),
        },
    }
}

/// A place for an upload.
fn begin(received: &Received, stream: &TcpStream, request: &Request) -> Option<()> {
    let path = &request.path;
    // A neighbour's blob is nothing that this one could take over.
    if request.query.contains_key("mount") {
        return say(stream, "500 Internal Server Error", "", b"");
    }
    received.begun.fetch_add(1, SeqCst);
    let place = format!("{}", fastrand::u64(..));
    received
        .uploads
        .lock()
        .unwrap()
        .insert(place.clone(), Vec::new());
    let head = format!("Location: {path}{place}?state=a\r\nRange: 0-0\r\n");
    say(stream, "202 Accepted", &head, b"")
}

fn state(path: &str, len: usize) -> String {
    let last = len.saturating_sub(1);
    format!("Location: {path}?state=b\r\nRange: 0-{last}\r\n")
}

fn piece(
    received: &Received,
    reader: &mut impl BufRead,
    stream: &TcpStream,
    request: &Request,
) -> Option<()> {
    let number = received.pieces.fetch_add(1, SeqCst) + 1;
    let shaky = received.shaky.load(SeqCst) && number.is_multiple_of(2);
    let breaks = shaky || number == received.break_at.load(SeqCst);
    let mut bytes = vec![
        0;
        if breaks {
            request.length / 2
        } else {
            request.length
        }
    ];
    reader.read_exact(&mut bytes).ok()?;
    let last = request.path.rsplit('/').next()?;
    let mut uploads = received.uploads.lock().unwrap();
    let upload = uploads.get_mut(last)?;
    if request.range != Some(upload.len() as u64) {
        return say(stream, "416 Range Not Satisfiable", "", b"");
    }
    received.bytes.fetch_add(bytes.len() as u64, SeqCst);
    upload.extend_from_slice(&bytes);
    if breaks {
        received.dead.store(received.dies.load(SeqCst), SeqCst);
        return None;
    }
    say(
        stream,
        "202 Accepted",
        &state(&request.path, upload.len()),
        b"",
    )
}
