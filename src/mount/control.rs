//! The control socket of a worker: one word in, one line of JSON out. Only its owner can connect.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::mount::stats::Stats;
use crate::mount::why::Why;

/// Longest request: a word, or one and a path (PATH_MAX). Anything longer is not ours.
const REQUEST_BYTES_MAX: u64 = 64 + 4096;

/// How long a new worker may take to prepare.
const PATIENCE_TO_REPLACE: Duration = Duration::from_secs(60);

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
    /// Has a worker of another program take over. Gives why none did; else it does not return,
    /// because this process is ended.
    fn replace(&self, program: &Path) -> String;
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
    let word = word.trim_end_matches('\n');
    if let Some(program) = word.strip_prefix("replace ") {
        let error = shown.replace(Path::new(program));
        return say(stream, &serde_json::json!({ "error": error }));
    }
    match word {
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

/// Asks the worker behind `path` to let one of `program` take over. `Ok` when its process has ended,
/// which is how that ends; else why it goes on.
pub fn ask_replace(path: &Path, program: &Path) -> io::Result<()> {
    let program = program
        .to_str()
        .filter(|path| !path.contains('\n'))
        .ok_or_else(|| io::Error::other("the program's path is not plain UTF-8"))?;
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE_TO_REPLACE))?;
    stream.write_all(format!("replace {program}\n").as_bytes())?;
    let mut said = String::new();
    match BufReader::new(stream).read_line(&mut said) {
        Ok(0) => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
        read => read?,
    };
    let said: serde_json::Value = serde_json::from_str(&said)?;
    Err(io::Error::other(
        said["error"]
            .as_str()
            .unwrap_or("it did not say why")
            .to_owned(),
    ))
}
