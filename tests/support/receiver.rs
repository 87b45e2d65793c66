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
        "POST" => {
            let place = format!("{}", fastrand::u64(..));
            received
                .uploads
                .lock()
                .unwrap()
                .insert(place.clone(), Vec::new());
            let head = format!("Location: {path}{place}?state=a\r\nRange: 0-0\r\n");
            say(stream, "202 Accepted", &head, b"")
        }
        "PUT" if path.contains("/blobs/uploads/") => {
            let bytes = received.uploads.lock().unwrap().remove(&last)?;
            let digest = request.query.get("digest")?;
            if rsmount::oci::Digest::of(&[&bytes[..], &body].concat()).to_string() != *digest {
                return say(stream, "400 Bad Request", "", b"");
            }
            let bytes = [bytes, body].concat();
            received.blobs.lock().unwrap().insert(digest.clone(), bytes);
            say(stream, "201 Created", "", b"")
        }
        "PUT" => {
            let mut manifests = received.manifests.lock().unwrap();
            let digest = rsmount::oci::Digest::of(&body).to_string();
            manifests.insert(digest, body.clone());
            manifests.insert(last, body);
            say(stream, "201 Created", "", b"")
        }
        _ if path.contains("/blobs/uploads/") => {
            received.states.fetch_add(1, SeqCst);
            let uploads = received.uploads.lock().unwrap();
            let Some(bytes) = uploads.get(&last) else {
                return say(stream, "404 Not Found", "", b"");
            };
            say(stream, "204 No Content", &state(path, bytes.len()), b"")
        }
        _ if path.contains("/blobs/") => match received.blobs.lock().unwrap().contains_key(&last) {
            true => say(stream, "200 OK", "", b""),
            false => say(stream, "404 Not Found", "", b""),
        },
        _ => match received.manifests.lock().unwrap().get(&last) {
            Some(bytes) => say(stream, "200 OK", "", bytes),
            None => say(stream, "404 Not Found", "", b""),
        },
    }
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
    let breaks = number == received.break_at.load(SeqCst);
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
