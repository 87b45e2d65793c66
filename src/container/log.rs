//! What a container printed: a line for each of its lines, in the format of the Kubernetes container
//! runtime interface (`TIME stdout|stderr F|P TEXT`), which podman's `k8s-file` writes as well. `P`
//! marks a part whose line goes on in the next record of the same stream.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Between two looks for more.
const GLANCE: Duration = Duration::from_millis(50);

/// Which of the two a text came from. A terminal has only the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Writes a log.
#[derive(Debug)]
pub struct Writer {
    file: File,
}

/// What to show of a log.
#[derive(Debug, Clone, Copy, Default)]
pub struct Show {
    /// Only the last lines.
    pub tail: Option<usize>,
    /// The time before each line.
    pub timestamps: bool,
}

impl Writer {
    /// Begins the log at `path`.
    pub fn create(path: &Path) -> io::Result<Writer> {
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o600);
        let file = options.open(path)?;
        Ok(Writer { file })
    }

    /// Adds what came from `stream`.
    pub fn write(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        let time = humantime::format_rfc3339_nanos(SystemTime::now());
        let name = match stream {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        };
        let mut text = Vec::with_capacity(bytes.len() + 64);
        for line in bytes.split_inclusive(|b| *b == b'\n') {
            let tag = if line.ends_with(b"\n") { "F" } else { "P" };
            write!(text, "{time} {name} {tag} ")?;
            text.extend_from_slice(line);
            if tag == "P" {
                text.push(b'\n');
            }
        }
        self.file.write_all(&text)
    }
}

/// A record of the log.
#[derive(Debug, Clone)]
struct Entry {
    stream: Stream,
    /// With its line's end, unless the line goes on.
    text: Vec<u8>,
    time: String,
    whole: bool,
}

fn parse(line: &[u8]) -> Option<Entry> {
    let mut fields = line.splitn(4, |b| *b == b' ');
    let time = String::from_utf8(fields.next()?.to_vec()).ok()?;
    let stream = match fields.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let whole = fields.next()? == b"F";
    let mut text = fields.next()?.to_vec();
    if !whole {
        text.pop();
    }
    Some(Entry {
        stream,
        text,
        time,
        whole,
    })
}

/// Gives the texts of the log at `path` to `sink`. As long as `goes_on` says that there may be more,
/// waits for it.
pub fn read(
    path: &Path,
    show: Show,
    goes_on: &dyn Fn() -> bool,
    sink: &mut dyn FnMut(Stream, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut reader = match File::open(path) {
        Ok(file) => BufReader::new(file),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    let mut printer = Printer {
        timestamps: show.timestamps,
        open: [false; 2],
        sink,
    };
    let mut line = Vec::new();
    if let Some(count) = show.tail {
        let (mut last, mut whole) = (VecDeque::<Entry>::new(), 0);
        while let Some(entry) = next(&mut reader, &mut line)? {
            whole += usize::from(entry.whole);
            last.push_back(entry);
            while whole > count
                && let Some(gone) = last.pop_front()
            {
                whole -= usize::from(gone.whole);
            }
        }
        if count > 0 {
            last.iter().try_for_each(|entry| printer.print(entry))?;
        }
    }
    loop {
        // Asked before the last look, so that nothing is missed that came meanwhile.
        let more = goes_on();
        while let Some(entry) = next(&mut reader, &mut line)? {
            printer.print(&entry)?;
        }
        if !more {
            return Ok(());
        }
        std::thread::sleep(GLANCE);
    }
}

/// The next whole record; a line that is still being written stays in `line`.
fn next(reader: &mut BufReader<File>, line: &mut Vec<u8>) -> io::Result<Option<Entry>> {
    loop {
        reader.read_until(b'\n', line)?;
        if !line.ends_with(b"\n") {
            return Ok(None);
        }
        let entry = parse(line);
        line.clear();
        if entry.is_some() {
            return Ok(entry);
        }
    }
}

struct Printer<'a> {
    timestamps: bool,
    /// Whether a line of that stream has begun.
    open: [bool; 2],
    sink: &'a mut dyn FnMut(Stream, &[u8]) -> io::Result<()>,
}

impl Printer<'_> {
    fn print(&mut self, entry: &Entry) -> io::Result<()> {
        let open = &mut self.open[usize::from(entry.stream == Stream::Stderr)];
        if self.timestamps && !*open {
            (self.sink)(entry.stream, format!("{} ", entry.time).as_bytes())?;
        }
        *open = !entry.whole;
        (self.sink)(entry.stream, &entry.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(path: &Path, show: Show) -> Vec<(Stream, String)> {
        let mut all: Vec<(Stream, String)> = Vec::new();
        let mut sink = |stream, text: &[u8]| {
            all.push((stream, String::from_utf8_lossy(text).into_owned()));
            Ok(())
        };
        read(path, show, &|| false, &mut sink).unwrap();
        all
    }

    #[test]
    fn what_was_printed_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert!(shown(&path, Show::default()).is_empty());
        let mut log = Writer::create(&path).unwrap();
        log.write(Stream::Stdout, b"a\nb").unwrap();
        log.write(Stream::Stderr, b"warn\n").unwrap();
        log.write(Stream::Stdout, b"c\n\n").unwrap();
        let all = shown(&path, Show::default());
        let of = |stream| -> String {
            let mine = all.iter().filter(|(s, _)| *s == stream);
            mine.map(|(_, text)| text.as_str()).collect()
        };
        assert_eq!(of(Stream::Stdout), "a\nbc\n\n");
        assert_eq!(of(Stream::Stderr), "warn\n");
    }

    #[test]
    fn the_last_lines_and_their_times() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = Writer::create(&path).unwrap();
        log.write(Stream::Stdout, b"a\nb\nc\n").unwrap();
        let tail = |n| Show {
            tail: Some(n),
            timestamps: false,
        };
        let text = |show| -> String { shown(&path, show).into_iter().map(|(_, t)| t).collect() };
        assert_eq!(text(tail(2)), "b\nc\n");
        assert_eq!(text(tail(9)), "a\nb\nc\n");
        assert_eq!(text(tail(0)), "");
        let timed = text(Show {
            tail: Some(1),
            timestamps: true,
        });
        assert!(
            timed.ends_with("Z c\n") && timed.starts_with("20"),
            "{timed}"
        );
    }
}
