//! The control socket of a worker: one word in, one line of JSON out. Only its owner can connect.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::mount::stats::Stats;
use crate::mount::why::Why;

/// Longest request: a word. Anything longer is not ours.
const REQUEST_BYTES_MAX: u64 = 64;

/// A client that says nothing must not hold the socket.
const PATIENCE: Duration = Duration::from_secs(2);

/// A listening control socket; the file is removed when this is dropped.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
}

/// What the socket gives.
pub(crate) trait Shown: Send + 'static {
    /// To `stats`.
    fn stats(&self) -> Stats;
    /// To `why`.
    fn why(&self) -> Why;
}

impl Control {
    /// Listens on `path` and answers with what `shown` gives, on a thread of its own. The directory
    /// is the owner's only, so nobody else gets as far as the socket.
    pub(crate) fn listen(path: &Path, shown: impl Shown) -> io::Result<Control> {
        let _left_over = std::fs::remove_file(path);
        let listener = UnixListener::bind(path)?;
        std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                for stream in listener.incoming().flatten() {
                    if let Err(e) = answer(&stream, &shown) {
                        tracing::debug!(error = %e, "a control request failed");
                    }
                }
            })?;
        Ok(Control {
            path: path.to_owned(),
        })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.path);
    }
}

fn answer(stream: &UnixStream, shown: &impl Shown) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut word = String::new();
    BufReader::new(stream.take(REQUEST_BYTES_MAX)).read_line(&mut word)?;
    let mut stream = stream;
    match word.trim() {
        "stats" => say(stream, &shown.stats()),
        "why" => say(stream, &shown.why()),
        _ => stream.write_all(b"{\"error\":\"unknown request\"}\n"),
    }
}

fn say(mut stream: &UnixStream, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Asks the worker behind `path` for its numbers.
pub fn ask_stats(path: &Path) -> io::Result<Stats> {
    ask(path, b"stats\n")
}

/// Asks the worker behind `path` why its readers waited.
pub fn ask_why(path: &Path) -> io::Result<Why> {
    ask(path, b"why\n")
}

fn ask<T: DeserializeOwned>(path: &Path, word: &[u8]) -> io::Result<T> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(word)?;
    Ok(serde_json::from_reader(BufReader::new(stream))?)
}
