//! A registry on loopback that serves a layout, counts what crosses, and can be held or unplugged.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use serde_json::Value;

/// What a test may turn and read.
#[derive(Debug, Default)]
pub struct Control {
    /// Answers to blob requests wait as long as this is set.
    pub held: AtomicBool,
    /// Connections are dropped as long as this is set.
    pub unplugged: AtomicBool,
    /// Bytes of blobs sent.
    pub blob_bytes: AtomicU64,
    /// Requests of any kind.
    pub requests: AtomicU64,
    /// Requests for blobs.
    pub blob_requests: AtomicU64,
}

/// A running registry; the threads end with the test's process.
pub struct Registry {
    pub control: Arc<Control>,
    port: u16,
}

impl Registry {
    /// Serves `layout` under every repository name.
    pub fn serve(layout: PathBuf) -> Registry {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let control = Arc::new(Control::default());
        let shared = control.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (layout, control) = (layout.clone(), shared.clone());
                std::thread::spawn(move || connection(&layout, &control, &stream));
            }
        });
        Registry { control, port }
    }

    /// The image's name.
    pub fn image(&self) -> String {
        format!("127.0.0.1:{}/test/image:latest", self.port)
    }
}

fn connection(layout: &std::path::Path, control: &Control, stream: &TcpStream) -> Option<()> {
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
                range = Some((start.parse().ok()?, end.parse::<usize>().ok()));
            }
        }
        if control.unplugged.load(SeqCst) {
            return None;
        }
        control.requests.fetch_add(1, SeqCst);
        let path = first.split(' ').nth(1)?;
        answer(layout, control, stream, path, range)?;
    }
}

fn answer(
    layout: &std::path::Path,
    control: &Control,
    mut stream: &TcpStream,
    path: &str,
    range: Option<(usize, Option<usize>)>,
) -> Option<()> {
    let blob =
        |digest: &str| std::fs::read(layout.join("blobs").join(digest.replacen(':', "/", 1))).ok();
    if let Some(reference) = path.split("/manifests/").nth(1) {
        let index: Value =
            serde_json::from_slice(&std::fs::read(layout.join("index.json")).ok()?).ok()?;
        let top = index["manifests"][0]["digest"].as_str()?;
        let wanted = if reference.contains(':') {
            reference
        } else {
            top
        };
        let Some(bytes) = blob(wanted) else {
            return status(stream, "404 Not Found");
        };
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.oci.image.manifest.v1+json\r\n\
             Content-Length: {}\r\n\r\n",
            bytes.len()
        );
        stream.write_all(head.as_bytes()).ok()?;
        return stream.write_all(&bytes).ok();
    }
    let Some(digest) = path.split("/blobs/").nth(1) else {
        return status(stream, "200 OK");
    };
    let Some(bytes) = blob(digest) else {
        return status(stream, "404 Not Found");
    };
    control.blob_requests.fetch_add(1, SeqCst);
    while control.held.load(SeqCst) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let all = bytes.len();
    let (head, part) = match range {
        Some((start, end)) => {
            let end = end.map_or(all, |e| (e + 1).min(all));
            let range = format!("Content-Range: bytes {start}-{}/{all}\r\n", end - 1);
            (
                format!("HTTP/1.1 206 Partial Content\r\n{range}"),
                &bytes[start..end],
            )
        }
        None => ("HTTP/1.1 200 OK\r\n".to_owned(), &bytes[..]),
    };
    let head = format!("{head}Content-Length: {}\r\n\r\n", part.len());
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(part).ok()?;
    control.blob_bytes.fetch_add(part.len() as u64, SeqCst);
    Some(())
}

fn status(mut stream: &TcpStream, status: &str) -> Option<()> {
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(head.as_bytes()).ok()
}
