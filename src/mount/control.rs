//! The control socket of a worker: one word in, one line of JSON out. Only its owner can connect.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::mount::stats::Stats;

/// Longest request: a word. Anything longer is not ours.
const REQUEST_BYTES_MAX: u64 = 64;

/// A client that says nothing must not hold the socket.
const PATIENCE: Duration = Duration::from_secs(2);

/// A listening control socket; the file is removed when this is dropped.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
}

impl Control {
    /// Listens on `path` and answers with what `stats` gives, on a thread of its own. The directory
    /// is the owner's only, so nobody else gets as far as the socket.
    pub fn listen(path: &Path, stats: Arc<dyn Fn() -> Stats + Send + Sync>) -> io::Result<Control> {
        let _left_over = std::fs::remove_file(path);
        let listener = UnixListener::bind(path)?;
        std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                for stream in listener.incoming().flatten() {
                    if let Err(e) = answer(&stream, &*stats) {
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

fn answer(stream: &UnixStream, stats: &dyn Fn() -> Stats) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut word = String::new();
    BufReader::new(stream.take(REQUEST_BYTES_MAX)).read_line(&mut word)?;
    let mut stream = stream;
    match word.trim() {
        "stats" => {
            let mut line = serde_json::to_vec(&stats())?;
            line.push(b'\n');
            stream.write_all(&line)
        }
        _ => stream.write_all(b"{\"error\":\"unknown request\"}\n"),
    }
}

/// Asks the worker behind `path` for its numbers.
pub fn ask_stats(path: &Path) -> io::Result<Stats> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"stats\n")?;
    Ok(serde_json::from_reader(BufReader::new(stream))?)
}
