//! A registry on loopback that serves a layout, takes pushes, counts what crosses and which steps
//! depend on which, and can be held or unplugged.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

/// A request for a blob or a part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub digest: String,
    pub range: Range<u64>,
}

#[derive(Debug)]
struct Required {
    /// `Authorization`.
    proof: String,
    /// Requests that had it.
    served: u64,
}

/// What a test may turn and read.
#[derive(Debug, Default)]
pub struct Control {
    /// Answers to blob requests wait as long as this is set.
    pub held: AtomicBool,
    /// Requests that ask for any byte of this range wait as long as it is set.
    pub held_range: Mutex<Option<Range<u64>>>,
    /// Requests for blobs, in the order in which they came.
    asked: Mutex<Vec<Asked>>,
    /// Who asks for a pack hears nothing as long as this is set.
    pub mute: AtomicBool,
    /// Connections are dropped as long as this is set.
    pub unplugged: AtomicBool,
    /// Nobody listens as long as this is set.
    stopped: AtomicBool,
    /// How often it was stopped: who came before that is not answered any more.
    stops: AtomicU64,
    /// Bytes of blobs sent.
    pub blob_bytes: AtomicU64,
    /// Requests of any kind.
    pub requests: AtomicU64,
    /// Requests for blobs.
    pub blob_requests: AtomicU64,
    /// What tags were pushed, with the digests of their manifests.
    tags: Mutex<HashMap<String, String>>,
    /// When set, an answer takes so many milliseconds, and so does a new connection.
    pub step_ms: AtomicU64,
    /// Connections now, and the most at the same time.
    connections: AtomicU64,
    pub most_connections: AtomicU64,
    /// When set, what every request must have.
    required: Mutex<Option<Required>>,
    /// The longest chain of answers, each of which was asked for after the one before had come.
    longest: AtomicU64,
}

impl Control {
    /// From now on nobody gets anything but with this user name and password.
    pub fn require(&self, user: &str, password: &str) {
        use base64::Engine as _;
        let both = format!("{user}:{password}");
        let encoded = base64::engine::general_purpose::STANDARD.encode(both);
        *self.required.lock().unwrap() = Some(Required {
            proof: format!("Basic {encoded}"),
            served: 0,
        });
    }

    /// Whether somebody came with what is required now.
    pub fn has_served_the_required(&self) -> bool {
        let required = self.required.lock().unwrap();
        required
            .as_ref()
            .is_some_and(|required| required.served > 0)
    }

    /// Whether a request with that `Authorization` is served.
    fn admits(&self, proof: Option<&str>) -> bool {
        let mut required = self.required.lock().unwrap();
        let Some(required) = &mut *required else {
            return true;
        };
        let admits = proof == Some(&*required.proof);
        required.served += u64::from(admits);
        admits
    }

    /// Requests for blobs so far, in the order in which they came.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    fn holds(&self, range: &Range<u64>) -> bool {
        let held = self.held_range.lock().unwrap();
        let hit = held
            .as_ref()
            .is_some_and(|h| h.start < range.end && range.start < h.end);
        hit || self.held.load(SeqCst)
    }

    /// How many steps something that begins now depends on, so far.
    pub fn steps(&self) -> u64 {
        self.longest.load(SeqCst)
    }

    /// Counts from 0 again, with steps of `ms` milliseconds: far more than what goes on at the same
    /// time needs to arrive, so that it is seen as such.
    pub fn count_steps(&self, ms: u64) {
        self.longest.store(0, SeqCst);
        self.step_ms.store(ms, SeqCst);
    }

    /// Waits as long as a step takes; `own` is how many this answer needs by itself.
    fn step(&self, own: u64) -> u64 {
        let behind = self.steps();
        std::thread::sleep(Duration::from_millis(own * self.step_ms.load(SeqCst)));
        behind + own
    }
}

/// A running registry; the threads end with the test's process.
pub struct Registry {
    pub control: Arc<Control>,
    layout: PathBuf,
    port: u16,
    /// Takes connections.
    accepting: Mutex<Option<JoinHandle<()>>>,
}

/// How long one may have to wait for the port: it may have been given to somebody else's connection.
const BIND_MAX: Duration = Duration::from_secs(30);

impl Registry {
    /// Serves `layout` under every repository name.
    pub fn serve(layout: PathBuf) -> Registry {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let registry = Registry {
            control: Arc::new(Control::default()),
            layout,
            port: listener.local_addr().unwrap().port(),
            accepting: Mutex::default(),
        };
        registry.listen(listener);
        registry
    }

    fn listen(&self, listener: TcpListener) {
        let (layout, control) = (self.layout.clone(), self.control.clone());
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if control.stopped.load(SeqCst) {
                    return;
                }
                let (layout, control) = (layout.clone(), control.clone());
                std::thread::spawn(move || connection(&layout, &control, &stream));
            }
        });
        *self.accepting.lock().unwrap() = Some(accepting);
    }

    /// Ends it, with all its connections: nobody listens any more.
    pub fn stop(&self) {
        self.control.stopped.store(true, SeqCst);
        self.control.stops.fetch_add(1, SeqCst);
        let there = ("127.0.0.1", self.port);
        let accepting = self.accepting.lock().unwrap().take().unwrap();
        // Who listens hears of it by the next connection.
        while !accepting.is_finished() {
            let _refused = TcpStream::connect(there);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Starts it again at the same place.
    pub fn start(&self) {
        self.control.stopped.store(false, SeqCst);
        let deadline = Instant::now() + BIND_MAX;
        let listener = loop {
            match TcpListener::bind(("127.0.0.1", self.port)) {
                Ok(listener) => break listener,
                Err(e) => assert!(Instant::now() < deadline, "{e}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        self.listen(listener);
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The image's name.
    pub fn image(&self) -> String {
        format!("127.0.0.1:{}/test/image:latest", self.port)
    }
}

fn connection(layout: &std::path::Path, control: &Control, stream: &TcpStream) -> Option<()> {
    let now = control.connections.fetch_add(1, SeqCst) + 1;
    control.most_connections.fetch_max(now, SeqCst);
    let served = requests(layout, control, stream);
    control.connections.fetch_sub(1, SeqCst);
    served
}

fn requests(layout: &std::path::Path, control: &Control, stream: &TcpStream) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut reader = BufReader::new(stream);
    let mut is_new = true;
    let stops = control.stops.load(SeqCst);
    loop {
        let mut first = String::new();
        if reader.read_line(&mut first).ok()? == 0 {
            return None;
        }
        let (mut range, mut length, mut proof) = (None, 0, None);
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
            if line.to_ascii_lowercase().starts_with("authorization: ") {
                proof = Some(line["authorization: ".len()..].trim().to_owned());
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length: ") {
                length = value.trim().parse().ok()?;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        if control.unplugged.load(SeqCst) || control.stops.load(SeqCst) != stops {
            return None;
        }
        control.requests.fetch_add(1, SeqCst);
        if !control.admits(proof.as_deref()) {
            let mut stream = stream;
            let refused = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\n\
                           Content-Length: 0\r\n\r\n";
            stream.write_all(refused.as_bytes()).ok()?;
            continue;
        }
        let (method, rest) = first.split_once(' ')?;
        let path = rest.split(' ').next()?;
        let steps = control.step(1 + u64::from(is_new));
        is_new = false;
        match method {
            // A mirror is told in the query what it stands for.
            "GET" => answer(layout, control, stream, path.split('?').next()?, range)?,
            "HEAD" if path.contains("/manifests/") => {
                head(layout, control, stream, path.split('?').next()?)?;
            }
            _ => push(layout, control, stream, (method, path, body))?,
        }
        control.longest.fetch_max(steps, SeqCst);
    }
}

/// What pushes need (OCI distribution-spec, "Pushing blobs" and "Pushing Manifests").
fn push(
    layout: &std::path::Path,
    control: &Control,
    mut stream: &TcpStream,
    (method, path, body): (&str, &str, Vec<u8>),
) -> Option<()> {
    let keep = |bytes: &[u8]| {
        let digest = rsmount::oci::Digest::of(bytes);
        let path = layout.join("blobs/sha256").join(digest.hex());
        std::fs::write(path, bytes)
            .ok()
            .map(|()| digest.to_string())
    };
    match method {
        "POST" => {
            let head = "HTTP/1.1 202 Accepted\r\nLocation: uploads/1\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(head.as_bytes()).ok()
        }
        "PUT" => {
            let digest = keep(&body)?;
            if let Some(tag) = path.split("/manifests/").nth(1) {
                control.tags.lock().unwrap().insert(tag.into(), digest);
            }
            status(stream, "201 Created")
        }
        _ => status(stream, "404 Not Found"),
    }
}

/// What a tag or digest stands for.
fn digest_of(layout: &std::path::Path, control: &Control, reference: &str) -> Option<String> {
    let index: Value =
        serde_json::from_slice(&std::fs::read(layout.join("index.json")).ok()?).ok()?;
    let top = index["manifests"][0]["digest"].as_str()?;
    let tags = control.tags.lock().unwrap();
    let wanted = match tags.get(reference) {
        Some(pushed) => pushed,
        None if reference.contains(':') => reference,
        None if reference == "latest" => top,
        None => "sha256:none",
    };
    Some(wanted.to_owned())
}

/// Says what a manifest is without sending it.
fn head(
    layout: &std::path::Path,
    control: &Control,
    mut stream: &TcpStream,
    path: &str,
) -> Option<()> {
    let digest = digest_of(layout, control, path.split("/manifests/").nth(1)?)?;
    let file = layout.join("blobs").join(digest.replacen(':', "/", 1));
    let Ok(bytes) = std::fs::read(file) else {
        return status(stream, "404 Not Found");
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {}\r\nContent-Length: {}\r\n\
         Docker-Content-Digest: {digest}\r\n\r\n",
        media_type(&bytes),
        bytes.len()
    );
    stream.write_all(head.as_bytes()).ok()
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
        while reference.starts_with("sha256-") && control.mute.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let Some(bytes) = blob(&digest_of(layout, control, reference)?) else {
            return status(stream, "404 Not Found");
        };
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {}\r\nContent-Length: {}\r\n\r\n",
            media_type(&bytes),
            bytes.len()
        );
        stream.write_all(head.as_bytes()).ok()?;
        return stream.write_all(&bytes).ok();
    }
    let Some(digest) = path.split("/blobs/").nth(1) else {
        return status(stream, "404 Not Found");
    };
    let file = layout.join("blobs").join(digest.replacen(':', "/", 1));
    let Ok(file) = File::open(file) else {
        return status(stream, "404 Not Found");
    };
    let all = usize::try_from(file.metadata().ok()?.len()).ok()?;
    control.blob_requests.fetch_add(1, SeqCst);
    let (start, end) = match range {
        Some((start, end)) => (start, end.map_or(all, |e| (e + 1).min(all))),
        None => (0, all),
    };
    let range_asked = start as u64..end as u64;
    control.asked.lock().unwrap().push(Asked {
        digest: digest.to_owned(),
        range: range_asked.clone(),
    });
    while control.holds(&range_asked) {
        std::thread::sleep(Duration::from_millis(1));
    }
    // No more than was asked for: layers are long, and requests many.
    let mut part = vec![0; end.checked_sub(start)?];
    file.read_exact_at(&mut part, start as u64).ok()?;
    let head = match range {
        Some(_) => {
            let range = format!("Content-Range: bytes {start}-{}/{all}\r\n", end - 1);
            format!("HTTP/1.1 206 Partial Content\r\n{range}")
        }
        None => "HTTP/1.1 200 OK\r\n".to_owned(),
    };
    let head = format!("{head}Content-Length: {}\r\n\r\n", part.len());
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(&part).ok()?;
    control.blob_bytes.fetch_add(part.len() as u64, SeqCst);
    Some(())
}

fn media_type(manifest: &[u8]) -> String {
    let manifest: Value = serde_json::from_slice(manifest).unwrap_or_default();
    let image = "application/vnd.oci.image.manifest.v1+json";
    manifest["mediaType"].as_str().unwrap_or(image).to_owned()
}

fn status(mut stream: &TcpStream, status: &str) -> Option<()> {
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(head.as_bytes()).ok()
}
