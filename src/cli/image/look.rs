//! `rsmount ls`, `cat`, `cp`, `diff` and `dump`: an image without a mount.

use std::ffi::OsStr;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use crate::cli::args::image::{CatArgs, CpArgs, DiffArgs, DumpArgs, LsArgs};
use crate::cli::args::{Global, ReachArgs};
use crate::cli::freeze;
use crate::cli::mount::reach_request;
use crate::cli::output::{self, Failure, one_line};
use crate::cli::progress::Progress;
use crate::cli::settings::Settings;
use crate::image::compare;
use crate::image::copy::{self, Keep};
use crate::image::list::{self, Listed, Listing, Options};
use crate::image::path::ImagePath;
use crate::image::view::{Stream, View};
use crate::image::{Error, export};
use crate::monitor::{Event, Monitor};

/// Collects small writes to standard output.
const BUFFER_BYTES: usize = 256 << 10;

/// Says once that layers stream, and shows how.
struct Streaming {
    image: String,
    quiet: bool,
    shown: Mutex<(Progress, bool)>,
}

impl std::fmt::Debug for Streaming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streaming").finish_non_exhaustive()
    }
}

impl Monitor for Streaming {
    fn event(&self, event: Event) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(event, Event::LayerStarted { .. }) && !shown.1 && !self.quiet {
            shown.1 = true;
            output::note(&format!(
                "{}: no index of its layers is known here, so they are streamed once; after that \
                 only what is read is fetched",
                self.image
            ));
        }
        shown.0.show(event);
    }
}

fn open(
    image: &str,
    reach: &ReachArgs,
    global: &Global,
    settings: Settings,
) -> Result<View, Failure> {
    let request = reach_request(image, reach, settings)?;
    let monitor = Arc::new(Streaming {
        image: image.to_owned(),
        quiet: global.quiet,
        shown: Mutex::new((Progress::new(global.quiet), false)),
    });
    let view = View::open(&request, monitor.clone()).map_err(|e| Failure::of(&e));
    let shown = monitor.shown.lock().unwrap_or_else(PoisonError::into_inner);
    shown.0.finish();
    view
}

fn parse(typed: &OsStr) -> Result<ImagePath, Failure> {
    let parsed = ImagePath::parse(typed.as_bytes());
    parsed.ok_or_else(|| Failure::usage(format!("{}: not the name of an image", typed.display())))
}

/// The same where a path is needed.
fn parse_file(typed: &OsStr) -> Result<ImagePath, Failure> {
    let parsed = parse(typed)?;
    if parsed.path.is_none() {
        let shown = typed.display();
        return Err(Failure::usage(format!(
            "{shown}: names no path in an image (expected IMAGE:/path, as in debian:12:/etc/passwd)"
        )));
    }
    Ok(parsed)
}

/// Standard output, buffered; what goes wrong there is an [`Error::Output`].
fn stdout() -> BufWriter<io::StdoutLock<'static>> {
    BufWriter::with_capacity(BUFFER_BYTES, io::stdout().lock())
}

/// A closed pipe is the reader's wish.
fn written(outcome: Result<(), Error>) -> Result<(), Failure> {
    match outcome {
        Err(Error::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.map_err(|e| Failure::of(&e)),
    }
}

pub(crate) fn ls(args: &LsArgs, global: &Global, settings: Settings) -> Result<(), Failure> {
    let path = parse(&args.path)?;
    let view = open(&path.image, &args.reach, global, settings)?;
    let options = Options {
        long: args.long,
        recursive: args.recursive,
        directory: args.directory,
    };
    let listings = list::list(&view, path.path(), options).map_err(|e| Failure::of(&e))?;
    if args.json {
        let all: Vec<&Listed> = listings.iter().flat_map(|l| &l.entries).collect();
        return output::json(&all);
    }
    let mut out = stdout();
    let print = print_listings(&listings, args, &mut out).and_then(|()| out.flush());
    written(print.map_err(Error::Output))
}

fn print_listings(listings: &[Listing], args: &LsArgs, out: &mut dyn Write) -> io::Result<()> {
    for (n, listing) in listings.iter().enumerate() {
        if let (true, Some(directory)) = (args.recursive, &listing.directory) {
            let blank = if n > 0 { "\n" } else { "" };
            writeln!(out, "{blank}{}:", one_line(directory))?;
        }
        let whole = listing.directory.is_none();
        let widths = Widths::of(&listing.entries);
        for entry in &listing.entries {
            let name = if whole { &entry.path } else { &entry.name };
            if args.long {
                widths.print(entry, name, out)?;
            } else {
                writeln!(out, "{}", one_line(name))?;
            }
        }
    }
    Ok(())
}

/// Widths of the columns of `ls -l`.
#[derive(Default)]
struct Widths {
    nlink: usize,
    uid: usize,
    gid: usize,
    size: usize,
}

impl Widths {
    fn of(entries: &[Listed]) -> Widths {
        let widest = |text: &dyn Fn(&Listed) -> String| {
            entries.iter().map(|e| text(e).len()).max().unwrap_or(0)
        };
        Widths {
            nlink: widest(&|e| e.nlink.to_string()),
            uid: widest(&|e| e.uid.to_string()),
            gid: widest(&|e| e.gid.to_string()),
            size: widest(&size_or_device),
        }
    }

    fn print(&self, e: &Listed, name: &str, out: &mut dyn Write) -> io::Result<()> {
        let Widths {
            nlink,
            uid,
            gid,
            size,
        } = self;
        let mode = list::mode_letters(e.kind, e.mode);
        let time = e.mtime.replace('T', " ").replace('Z', "");
        let length = size_or_device(e);
        let target = e.target.as_ref().map(|t| format!(" -> {t}"));
        let name = one_line(&format!("{name}{}", target.unwrap_or_default()));
        writeln!(
            out,
            "{mode} {:>nlink$} {:>uid$} {:>gid$} {length:>size$} {time} {name}",
            e.nlink, e.uid, e.gid
        )
    }
}

fn size_or_device(e: &Listed) -> String {
    match e.rdev {
        Some((major, minor)) => format!("{major}, {minor}"),
        None => e.size.to_string(),
    }
}

pub(crate) fn cat(args: &CatArgs, global: &Global, settings: Settings) -> Result<(), Failure> {
    let paths: Result<Vec<ImagePath>, Failure> = args.paths.iter().map(|p| parse_file(p)).collect();
    let mut view: Option<(String, View)> = None;
    for path in paths? {
        let opened = match view.take() {
            Some((image, view)) if image == path.image => view,
            _ => open(&path.image, &args.reach, global, settings.clone())?,
        };
        let printed = cat_one(&opened, path.path());
        if matches!(&printed, Err(Error::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe) {
            return Ok(());
        }
        written(printed)?;
        view = Some((path.image, opened));
    }
    Ok(())
}

fn cat_one(view: &View, path: &[u8]) -> Result<(), Error> {
    let ino = view.find_file(path)?;
    view.bring([ino])?;
    let mut out = stdout();
    view.read(ino, &mut Stream(&mut out))?;
    out.flush().map_err(Error::Output)
}

pub(crate) fn cp(args: &CpArgs, global: &Global, settings: Settings) -> Result<ExitCode, Failure> {
    let path = parse_file(&args.path)?;
    let to = args.to.as_os_str().as_bytes();
    if to == b"-" && io::stdout().is_terminal() {
        return Err(Failure::new(
            "a tar is not written to a terminal: redirect it",
        ));
    }
    if parse(args.to.as_os_str())?.path.is_some() && !args.to.exists() {
        return Err(Failure::new(format!(
            "{}: an image is read-only, so nothing can be copied into it",
            args.to.display()
        )));
    }
    let view = open(&path.image, &args.reach, global, settings)?;
    let ino = view
        .find(path.path(), args.follow_link)
        .map_err(|e| Failure::of(&e))?;
    let contents = path.path().ends_with(b"/.") || path.path() == b"/.";
    let name = last_name(path.path(), &view, ino);
    if to == b"-" {
        let name = if contents || name.is_empty() {
            b"."
        } else {
            &name[..]
        };
        let mut out = stdout();
        written(export::export(&view, ino, name, &mut out))?;
        return Ok(ExitCode::SUCCESS);
    }
    let keep = Keep {
        archive: args.archive,
    };
    let copied = copy::copy(&view, (ino, &name), &args.to, contents, keep);
    let copied = copied.map_err(|e| Failure::of(&e))?;
    if copied.devices == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    output::note(&format!(
        "{} device(s) were left out, all else was copied; root copies them with -a",
        copied.devices
    ));
    Ok(ExitCode::FAILURE)
}

/// What the copy is called: the last name that was typed; for `/` and what ends in dots, the name that
/// the directory has.
fn last_name(path: &[u8], view: &View, ino: crate::tree::Ino) -> Vec<u8> {
    let last = |path: &[u8]| {
        let mut names = path.rsplit(|b| *b == b'/').filter(|n| !n.is_empty());
        names.next().unwrap_or_default().to_vec()
    };
    match last(path) {
        name if name == b"." || name == b".." => last(&view.tree().path(ino).unwrap_or_default()),
        name => name,
    }
}

pub(crate) fn diff(args: &DiffArgs, global: &Global, settings: Settings) -> Result<(), Failure> {
    let Some(new) = &args.new else {
        return freeze::diff(Path::new(&args.old), args.json, settings);
    };
    let old = open(&args.old, &args.reach, global, settings.clone())?;
    let new = open(new, &args.reach, global, settings)?;
    let differences = compare::compare(&old, &new).map_err(|e| Failure::of(&e))?;
    if args.json {
        return output::json(&differences);
    }
    let mut out = stdout();
    for d in &differences {
        let kind = d.kind.letter();
        let line = writeln!(out, "{kind} {}", one_line(&d.path));
        if line.is_err() {
            return written(line.map_err(Error::Output));
        }
    }
    written(out.flush().map_err(Error::Output))
}

pub(crate) fn dump(args: &DumpArgs, global: &Global, settings: Settings) -> Result<(), Failure> {
    let path = parse(&args.path)?;
    let view = open(&path.image, &args.reach, global, settings)?;
    let ino = view.find(path.path(), false).map_err(|e| Failure::of(&e))?;
    let mut out = stdout();
    let dumped = crate::tree::dump::dump_below(view.tree(), ino, args.numbers, &mut out);
    written(dumped.and_then(|()| out.flush()).map_err(Error::Output))
}
