//! `rsmount diff MOUNTPOINT` and `rsmount commit`: what a container has changed, and an image of it.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::cli::args::freeze::{CommitArgs, PushArgs};
use crate::cli::args::{Global, PullArg, ReachArgs, TrustArg};
use crate::cli::containers;
use crate::cli::mount::reach_request;
use crate::cli::output::{self, Failure};
use crate::cli::progress::Progress;
use crate::cli::settings::Settings;
use crate::container::freeze::Frozen;
use crate::container::{self, Container};
use crate::image::commit::{self, Changed, Commit, Overrides};
use crate::image::push;
use crate::monitor::{Event, Monitor};
use crate::mount::{MountRequest, mountpoint, record};

/// What a library call has to say goes to standard error.
#[derive(Debug)]
struct Notes;

impl Monitor for Notes {
    fn event(&self, event: Event) {
        if let Event::Warning { message } = event {
            output::note(&message);
        }
    }
}

/// A request that says where the cache is, and nothing else.
fn request(settings: Settings) -> Result<MountRequest, Failure> {
    let reach = ReachArgs {
        platform: None,
        offline: true,
        pull: Some(PullArg::Missing),
        trust_index: Some(TrustArg::Tag),
        trusted_key: Vec::new(),
        insecure_registry: Vec::new(),
        ca_file: Vec::new(),
        hosts_dir: None,
    };
    reach_request("", &reach, settings)
}

/// Whose changes are meant.
struct Target {
    changed: Changed,
    container: Option<Container>,
}

/// What is mounted at `target`; or the upper directory `target`; or the container of this name. A
/// directory that is neither is in nobody's way.
fn target(target: &Path, cache_dir: &Path) -> Result<Target, Failure> {
    let path = mountpoint::absolute(target).map_err(|e| Failure::of(&e))?;
    let mounted = record::find(&path).map_err(|e| Failure::of(&e))?;
    let is_upper = mounted.is_none() && path.join("rsmount.json").exists();
    let is_path = mounted.is_some() || is_upper;
    if let Some(container) = container(target, is_path, cache_dir)? {
        let changed = Changed {
            upper: container.changes(),
            stubs: container.record.mounted_over.clone(),
        };
        let container = Some(container);
        return Ok(Target { changed, container });
    }
    let upper = match mounted {
        Some(found) => {
            let read_only = || {
                let what = "the mount is read-only, so nothing in it was changed (--upper, --tmp)";
                Failure::new(format!("{}: {what}", path.display()))
            };
            found.upper.ok_or_else(read_only)?
        }
        None if is_upper => path.canonicalize().map_err(|e| Failure::of(&e))?,
        None => {
            return Err(Failure::new(format!(
                "{}: neither a writable mount (rsmount ps lists those), nor an upper directory, nor \
                 a container",
                target.display()
            )));
        }
    };
    let changed = Changed {
        upper,
        ..Changed::default()
    };
    Ok(Target {
        changed,
        container: None,
    })
}

/// Has a container that runs stand still, if it can.
fn freeze(container: Option<&Container>, wanted: bool) -> Option<Frozen> {
    let container = container.filter(|_| wanted)?;
    Frozen::freeze(container).unwrap_or_else(|error| {
        let name = &container.record.name;
        let what = "goes on meanwhile (what changes while it is read fails the commit)";
        output::note(&format!("{name} {what}: {error}"));
        None
    })
}

/// What the container was given, if it is one.
fn given_to(container: Option<&Container>) -> Overrides {
    let given = container.map(|container| container.record.given.clone());
    given.map_or_else(Overrides::default, |given| Overrides {
        env: given.env,
        entrypoint: given.entrypoint,
        command: given.command,
        working_dir: given.working_dir,
        user: given.user,
        stop_signal: given.stop_signal,
    })
}

/// The container that `target` names. Where a mount or an upper directory has that name as well
/// (`is_path`), neither is taken for the other; the mere beginning of an ID gives way.
fn container(target: &Path, is_path: bool, cache_dir: &Path) -> Result<Option<Container>, Failure> {
    let Some(name) = target.to_str().filter(|name| !name.contains('/')) else {
        return Ok(None);
    };
    let Some(store) = containers::existing(cache_dir).map_err(|e| Failure::of(&e))? else {
        return Ok(None);
    };
    match store.find(name) {
        Ok(found) if !is_path => Ok(Some(found)),
        Ok(found) if found.record.name == name || found.record.id == name => {
            let id = found.short_id();
            Err(Failure::new(format!(
                "{name}: both a container and a directory here; write ./{name} for the directory, \
                 {id} for the container"
            )))
        }
        Ok(_) => Ok(None),
        Err(container::Error::Ambiguous(_)) if is_path => Ok(None),
        Err(container::Error::NoSuchContainer(_)) => Ok(None),
        Err(error) => Err(Failure::of(&error)),
    }
}

pub(crate) fn diff(of: &Path, json: bool, settings: Settings) -> Result<(), Failure> {
    let Target { changed, .. } = target(of, &settings.cache_dir)?;
    let lines = commit::diff(&changed, &request(settings)?).map_err(|e| Failure::of(&e))?;
    if json {
        return output::json(&lines);
    }
    for line in &lines {
        let path = output::one_line(&line.path);
        output::line(&format!("{} {path}", line.kind.letter()));
    }
    Ok(())
}

pub(crate) fn commit(
    args: &CommitArgs,
    global: &Global,
    settings: Settings,
) -> Result<(), Failure> {
    let Target { changed, container } = target(&args.target, &settings.cache_dir)?;
    let wish = Commit {
        changed,
        given: given_to(container.as_ref()),
        name: args.image.clone(),
        author: args.author.clone(),
        message: args.message.clone(),
        changes: args.change.clone(),
        compression: args.compression.into(),
        created_by: "rsmount commit".to_owned(),
        created: now()?,
    };
    let request = request(settings)?;
    let frozen = freeze(container.as_ref(), args.pause);
    let committed = commit::commit(&wish, &request, &Notes);
    drop(frozen);
    let committed = committed.map_err(|e| Failure::of(&e))?;
    if args.json {
        return output::json(&committed);
    }
    if !global.quiet {
        let size = output::size(committed.size);
        let (image, entries) = (&committed.image, committed.entries);
        output::note(&format!("{image}: a layer of {size}, {entries} entries"));
    }
    output::line(&committed.digest.to_string());
    Ok(())
}

pub(crate) fn push(args: &PushArgs, global: &Global, settings: Settings) -> Result<(), Failure> {
    if args.reach.offline {
        let what = "a registry is needed for this; leave --offline out";
        return Err(Failure::new(format!("push: {what}")));
    }
    let request = reach_request(&args.image, &args.reach, settings)?;
    let bars = Arc::new(Bars(Mutex::new(Progress::new(global.quiet))));
    let pushed = push::push(
        &request,
        args.to.as_deref(),
        args.update_index,
        bars.clone(),
    );
    bars.with(|progress| progress.finish());
    let pushed = pushed.map_err(|e| Failure::of(&e))?;
    if args.json {
        return output::json(&pushed);
    }
    let digest = pushed.index.as_ref().unwrap_or(&pushed.digest);
    output::line(&format!("{}@{digest}", pushed.image));
    Ok(())
}

/// Progress that several threads tell of.
#[derive(Debug)]
struct Bars(Mutex<Progress>);

impl Bars {
    fn with(&self, show: impl FnOnce(&mut Progress)) {
        show(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Monitor for Bars {
    fn event(&self, event: Event) {
        self.with(|progress| progress.show(event));
    }
}

/// The last second that has a date of four digits, which is all that RFC 3339 knows.
const YEAR_9999: u64 = 253_402_300_799;

/// The time of day, or what reproducible builds say it is
/// (<https://reproducible-builds.org/specs/source-date-epoch/>).
fn now() -> Result<SystemTime, Failure> {
    let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH") else {
        return Ok(SystemTime::now());
    };
    let seconds = text.to_str().and_then(|t| t.parse().ok());
    let seconds = seconds.filter(|seconds| *seconds <= YEAR_9999);
    let bad =
        || Failure::usage("SOURCE_DATE_EPOCH is not a number of seconds before the year 10000");
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.ok_or_else(bad)?))
}
