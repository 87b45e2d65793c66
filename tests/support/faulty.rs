//! A registry on loopback whose answers can be spoilt.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

/// An answer of a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    Manifest,
    Config,
    /// All of a layer.
    Layer,
    /// A range of one.
    Range,
}

/// What is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// 404.
    Missing,
    /// A good head and an empty body.
    Empty,
    /// The body ends in the middle, and says so.
    Truncated,
    /// The body ends in the middle of what the head has announced.
    Short,
    Flipped,
    /// Another blob's bytes.
    Swapped,
    /// The connection is reset in the middle.
    Reset,
    /// The answer comes after the reader's patience.
    Delayed,
    /// It goes on and on behind what was asked for.
    Endless,
    /// A byte now and then.
    Trickling,
    /// 503, with a wish to wait that is short.
    Busy,
    /// A range that was not asked for.
    OtherRange,
}

pub const FAULTS: [Fault; 12] = [
    Fault::Missing,
    Fault::Empty,
    Fault::Truncated,
    Fault::Short,
    Fault::Flipped,
    Fault::Swapped,
    Fault::Reset,
    Fault::Delayed,
    Fault::Endless,
    Fault::Trickling,
    Fault::Busy,
    Fault::OtherRange,
];

#[derive(Debug, Default)]
struct Plan {
    spoilt: Option<(Message, Fault)>,
    /// How often yet.
    times: u32,
}

/// A running registry; the threads end with the test's process.
pub struct Faulty {
    plan: Arc<Mutex<Plan>>,
    port: u16,
}

impl Faulty {
    /// Serves `layout` under every repository name.
    pub fn serve(layout: PathBuf) -> Faulty {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let plan = Arc::new(Mutex::new(Plan::default()));
        let shared = plan.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (layout, plan) = (layout.clone(), shared.clone());
                std::thread::spawn(move || connection(&layout, &plan, &stream));
            }
        });
        Faulty { plan, port }
    }

    pub fn image(&self) -> String {
        format!("127.0.0.1:{}/test/image:latest", self.port)
    }

    /// Spoils the next `times` answers of that kind.
    pub fn spoil(&self, message: Message, fault: Fault, times: u32) {
        let spoilt = Some((message, fault));
        *self.plan.lock().unwrap() = Plan { spoilt, times };
    }

    pub fn good(&self) {
        *self.plan.lock().unwrap() = Plan::default();
    }
}

fn connection(layout: &Path, plan: &Mutex<Plan>, stream: &TcpStream) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut first = String::new();
        if reader.read_line(&mut first).ok()? == 0 {
            return None;
        }
        let mut range = None;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            if line.trim().is_empty() {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
                let (start, end) = value.trim().split_once('-')?;
                range = Some((start.parse::<usize>().ok()?, end.parse::<usize>().ok()? + 1));
            }
        }
        let path = first.split(' ').nth(1)?.split('?').next()?;
        answer(layout, plan, stream, path, range)?;
    }
}

fn blob(layout: &Path, digest: &str) -> Option<Vec<u8>> {
    std::fs::read(layout.join("blobs").join(digest.replacen(':', "/", 1))).ok()
}

const NOT_FOUND: &str = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
const BUSY: &str = "HTTP/1.1 503 Busy\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n";
const NOTHING: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

/// The digest that `path` names.
fn named(layout: &Path, path: &str) -> Option<String> {
    match (
        path.split("/manifests/").nth(1),
        path.split("/blobs/").nth(1),
    ) {
        (Some("latest"), _) => {
            let index = std::fs::read(layout.join("index.json")).ok()?;
            let index: Value = serde_json::from_slice(&index).ok()?;
            Some(index["manifests"][0]["digest"].as_str()?.to_owned())
        }
        (Some(digest), _) | (_, Some(digest)) => Some(digest.to_owned()),
        _ => None,
    }
}

/// What is to be wrong with this answer.
fn due(plan: &Mutex<Plan>, message: Message) -> Option<Fault> {
    let mut plan = plan.lock().unwrap();
    let due = plan.spoilt.filter(|(m, _)| *m == message && plan.times > 0);
    if due.is_some() {
        plan.times -= 1;
    }
    due.map(|(_, fault)| fault)
}

fn spoil(fault: Option<Fault>, message: Message, part: &mut Vec<u8>) {
    let middle = part.len() / 2;
    match fault {
        Some(Fault::Empty) => part.clear(),
        Some(Fault::Truncated) => part.truncate(middle),
        // The digest of the configuration, in a manifest.
        Some(Fault::Flipped) if message == Message::Manifest => {
            let at = part.windows(7).position(|w| w == b"sha256:").unwrap();
            part[at + 9] ^= 1;
        }
        Some(Fault::Flipped) => part[middle] ^= 4,
        Some(Fault::Swapped) => part.reverse(),
        Some(Fault::Delayed) => std::thread::sleep(Duration::from_millis(400)),
        _ => {}
    }
}

fn answer(
    layout: &Path,
    plan: &Mutex<Plan>,
    stream: &TcpStream,
    path: &str,
    range: Option<(usize, usize)>,
) -> Option<()> {
    let Some(digest) = named(layout, path) else {
        return write(stream, NOTHING, b"");
    };
    let Some(bytes) = blob(layout, &digest) else {
        return write(stream, NOT_FOUND, b"");
    };
    let message = match range {
        _ if path.contains("/manifests/") => Message::Manifest,
        _ if bytes.starts_with(b"{") => Message::Config,
        Some(_) => Message::Range,
        None => Message::Layer,
    };
    let fault = due(plan, message);
    let (start, end) = range.unwrap_or((0, bytes.len()));
    let mut part = bytes[start..end.min(bytes.len())].to_vec();
    match fault {
        Some(Fault::Missing) => return write(stream, NOT_FOUND, b""),
        Some(Fault::Busy) => return write(stream, BUSY, b""),
        _ => spoil(fault, message, &mut part),
    }
    let shown = start + usize::from(fault == Some(Fault::OtherRange));
    let status = match range {
        Some(_) => format!(
            "206 Partial Content\r\nContent-Range: bytes {shown}-{}/{}",
            (shown + part.len()).saturating_sub(1),
            bytes.len()
        ),
        None => "200 OK".to_owned(),
    };
    send(stream, fault, &status, &part)
}

fn send(mut stream: &TcpStream, fault: Option<Fault>, status: &str, part: &[u8]) -> Option<()> {
    let kind = "Content-Type: application/vnd.oci.image.manifest.v1+json";
    let length = match fault {
        Some(Fault::Endless) => "Connection: close".to_owned(),
        _ => format!("Content-Length: {}", part.len()),
    };
    let head = format!("HTTP/1.1 {status}\r\n{kind}\r\n{length}\r\n\r\n");
    match fault {
        Some(Fault::Short) => {
            write(stream, &head, &part[..part.len() / 2])?;
            None
        }
        Some(Fault::Reset) => {
            write(stream, &head, &part[..part.len() / 2])?;
            // Closed so, the kernel sends a reset.
            let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
            None
        }
        Some(Fault::Endless) => {
            write(stream, &head, part)?;
            while stream.write_all(&[0x55; 4096]).is_ok() {}
            None
        }
        Some(Fault::Trickling) => {
            write(stream, &head, b"")?;
            for byte in part {
                stream.write_all(&[*byte]).ok()?;
                std::thread::sleep(Duration::from_millis(20));
            }
            Some(())
        }
        _ => write(stream, &head, part),
    }
}

fn write(mut stream: &TcpStream, head: &str, body: &[u8]) -> Option<()> {
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(body).ok()
}
