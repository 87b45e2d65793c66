//! `rsmount ps` and `rsmount stats`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::cli::args::{PsArgs, StatsArgs};
use crate::cli::containers;
use crate::cli::output::{self, Failure, size};
use crate::cli::publish;
use crate::cli::settings::Settings;
use crate::container::{Container, Status};
use crate::mount::engine::Choice;
use crate::mount::record::{Record, State};
use crate::mount::sandbox::Walls;
use crate::mount::stats::Stats;
use crate::mount::{control, mountpoint, record};

/// Of the table.
const HEADINGS: [&str; 10] = [
    "IMAGE",
    "DIGEST",
    "PLATFORM",
    "PID",
    "STATE",
    "ENGINE",
    "SINCE",
    "CONTAINER",
    "UPPER",
    "MOUNTPOINT",
];

/// A row: a mount, a container, or both.
#[derive(Debug, Serialize)]
struct Row {
    mountpoint: PathBuf,
    image: String,
    digest: String,
    platform: String,
    /// Of the process that serves the mount; nobody serves what is not mounted.
    pid: Option<u32>,
    /// The process that has another one serve it should that die.
    keeper: Option<u32>,
    state: &'static str,
    since: String,
    upper: Option<PathBuf>,
    /// The image that the tag stands for by now.
    newer: Option<String>,
    /// What answers for the mount, and why.
    #[serde(flatten)]
    engine: Option<Choice>,
    /// What of the sandbox is on.
    sandbox: Option<Walls>,
    container: Option<InContainer>,
}

/// What a row says of a container.
#[derive(Debug, Serialize)]
struct InContainer {
    id: String,
    name: String,
    status: Status,
    exit_code: Option<u8>,
}

impl From<&Container> for InContainer {
    fn from(container: &Container) -> InContainer {
        let record = &container.record;
        InContainer {
            id: record.id.clone(),
            name: record.name.clone(),
            status: record.status,
            exit_code: record.exit_code,
        }
    }
}

impl Row {
    fn of_mount(record: Record, containers: &mut Vec<Container>) -> Row {
        let own = |c: &Container| c.rootfs() == record.mountpoint;
        let place = containers.iter().position(own);
        Row {
            container: place.map(|at| InContainer::from(&containers.remove(at))),
            mountpoint: record.mountpoint,
            image: record.image,
            digest: record.digest,
            platform: record.platform,
            pid: Some(record.pid),
            keeper: record.keeper,
            state: state(record.state),
            since: record.since,
            upper: record.upper,
            newer: record.newer,
            engine: record.engine,
            sandbox: record.sandbox,
        }
    }

    /// A container whose image is not mounted.
    fn of_container(container: &Container) -> Row {
        let record = &container.record;
        Row {
            mountpoint: container.rootfs(),
            image: record.image.clone(),
            digest: record.digest.clone(),
            platform: record.platform.clone(),
            pid: None,
            keeper: None,
            state: "unmounted",
            since: record.created.clone(),
            upper: Some(container.changes()),
            newer: None,
            engine: None,
            sandbox: None,
            container: Some(container.into()),
        }
    }

    fn cells(&self) -> Vec<String> {
        let path = |path: &PathBuf| path.display().to_string();
        let status = |c: &InContainer| match (c.status, c.exit_code) {
            (Status::Exited, Some(code)) => format!("exited ({code})"),
            (Status::Exited, None) => "exited".to_owned(),
            (Status::Running, _) => "running".to_owned(),
            (Status::Created, _) => "created".to_owned(),
        };
        let mount = self.container.is_none();
        let newer = self.newer.as_ref().map_or("", |_| ", newer exists");
        let state = self
            .container
            .as_ref()
            .map_or(self.state.to_owned(), status);
        let upper = self.upper.as_ref().filter(|_| mount).map(path);
        vec![
            self.image.clone(),
            short(&self.digest),
            self.platform.clone(),
            self.pid.map_or("-".to_owned(), |pid| pid.to_string()),
            format!("{state}{newer}"),
            engine(self.engine.as_ref(), false),
            self.since.clone(),
            self.container
                .as_ref()
                .map_or("-".to_owned(), |c| c.name.clone()),
            upper.unwrap_or("-".to_owned()),
            // A container's is nobody's business.
            if mount {
                path(&self.mountpoint)
            } else {
                "-".to_owned()
            },
        ]
    }
}

pub(crate) fn ps(args: &PsArgs, quiet: bool, settings: &Settings) -> Result<(), Failure> {
    let store = containers::existing(&settings.cache_dir).map_err(|e| Failure::of(&e))?;
    let containers = store.map_or(Ok(Vec::new()), |s| s.list());
    let mut containers = containers.map_err(|e| Failure::of(&e))?;
    let mut records = record::list().map_err(|e| Failure::of(&e))?;
    let dead = records.iter().filter(|r| r.state == State::Dead).count();
    if !args.all {
        records.retain(|r| r.state != State::Dead);
    }
    for record in records.iter_mut().filter(|r| r.state == State::Ready) {
        if let Ok(stats) = ask(record) {
            record.state = stats.state;
            record.newer = stats.newer;
        }
    }
    let mounts = records.into_iter();
    let mut rows: Vec<Row> = mounts.map(|r| Row::of_mount(r, &mut containers)).collect();
    if args.all {
        rows.extend(containers.iter().map(Row::of_container));
    }
    if args.json {
        return output::json(&rows);
    }
    if quiet {
        // As `docker ps -q`, for `rsmount rm $(rsmount ps -aq)`.
        let ids = rows.iter().filter_map(|row| row.container.as_ref());
        ids.for_each(|container| output::line(container.id.get(..12).unwrap_or(&container.id)));
        return Ok(());
    }
    output::table(&HEADINGS, &rows.iter().map(Row::cells).collect::<Vec<_>>());
    if dead > 0 && !args.all {
        output::note(&format!(
            "{dead} dead mount(s) not shown: `rsmount ps -a` lists them, `rsmount umount` cleans up"
        ));
    }
    Ok(())
}

fn short(digest: &str) -> String {
    digest
        .split(':')
        .nth(1)
        .map_or(digest, |hex| &hex[..hex.len().min(12)])
        .to_owned()
}

/// The engine's name; with `why`, also why it is that one.
fn engine(choice: Option<&Choice>, why: bool) -> String {
    match choice {
        Some(choice) if why => format!("{} ({})", choice.engine, choice.engine_why),
        Some(choice) => choice.engine.clone(),
        None => "-".to_owned(),
    }
}

/// What is on, and why something is not.
fn sandbox(walls: Option<&Walls>) -> String {
    let Some(walls) = walls else {
        return "-".to_owned();
    };
    let on = match walls.on.is_empty() {
        true => "off".to_owned(),
        false => walls.on.join(", "),
    };
    match &walls.missing {
        Some(why) => format!("{on} ({why})"),
        None => on,
    }
}

fn state(state: State) -> &'static str {
    match state {
        State::Ready => "ready",
        State::Stalled => "stalled",
        State::Dead => "dead",
        State::Poisoned => "poisoned",
    }
}

/// How long a worker may take to go on with the mount of another one, and how often is looked.
const TAKING_OVER: Duration = Duration::from_secs(1);
const GLANCE: Duration = Duration::from_millis(10);

/// The state, and whether the tag stands for another image now.
fn ask(record: &Record) -> std::io::Result<Stats> {
    control::ask_stats(&record::socket_path(record.pid)?)
}

/// The record of the mount that is meant by `path`.
pub(super) fn mount_at(path: &Path) -> Result<Record, Failure> {
    let path = mountpoint::absolute(path).map_err(|e| Failure::of(&e))?;
    let found = record::find(&path).map_err(|e| Failure::of(&e))?;
    found.ok_or_else(|| Failure::of(&mountpoint::unknown(&path)))
}

/// Asks the worker of `found`, or the one that takes over from it in this moment.
pub(super) fn ask_whoever_serves<T>(
    found: &Record,
    ask: impl Fn(&Path) -> std::io::Result<T>,
) -> std::io::Result<T> {
    let ask = |record: &Record| ask(&record::socket_path(record.pid)?);
    let first = ask(found);
    let until = Instant::now() + TAKING_OVER;
    while first.is_err() && Instant::now() < until {
        match record::find(&found.mountpoint) {
            Ok(Some(now)) if now.pid != found.pid => return ask(&now),
            _ => std::thread::sleep(GLANCE),
        }
    }
    first
}

pub(crate) fn stats(args: &StatsArgs) -> Result<(), Failure> {
    let found = mount_at(&args.mountpoint)?;
    let stats = ask_whoever_serves(&found, control::ask_stats).map_err(|e| {
        let at = found.mountpoint.display();
        Failure::new(format!(
            "{at}: its process does not answer ({e}); if `rsmount ps -a` calls it dead, \
             `rsmount umount {at}` cleans up"
        ))
    })?;
    if args.json {
        return output::json(&stats);
    }
    print_stats(&stats);
    Ok(())
}

/// The state, and what its tag stands for by now.
fn newer(stats: &Stats) -> String {
    let newer = stats.newer.as_ref();
    let newer = newer.map_or_else(String::new, |digest| {
        format!(", the tag stands for {digest} now; unmount and mount again to have it")
    });
    format!("{}{newer}", state(stats.state))
}

/// Who waits now.
fn waiting(stats: &Stats) -> String {
    match (stats.waiting_reads, stats.waiting_longest_ms) {
        (0, _) => "0 reads".to_owned(),
        (reads, ms) => format!("{reads} reads, the longest for {ms} ms by now (rsmount why)"),
    }
}

fn print_stats(stats: &Stats) {
    let lines = [
        ("image", stats.image.clone()),
        ("digest", stats.digest.clone()),
        ("state", newer(stats)),
        ("engine", engine(stats.engine.as_ref(), true)),
        ("sandbox", sandbox(stats.sandbox.as_ref())),
        (
            "upper",
            stats
                .upper
                .as_ref()
                .map_or("-".to_owned(), |dir| dir.display().to_string()),
        ),
        (
            "fetched",
            format!(
                "{} in {} requests",
                size(stats.fetched_bytes),
                stats.requests
            ),
        ),
        ("present", size(stats.cache_bytes)),
        (
            "read",
            format!("{} in {} reads", size(stats.read_bytes), stats.reads),
        ),
        (
            "stalled",
            format!(
                "{} reads, {} ms in all, {} ms the longest",
                stats.stalled_reads, stats.stalled_total_ms, stats.stalled_longest_ms
            ),
        ),
        ("waiting", waiting(stats)),
        ("verify failures", stats.verify_failures.to_string()),
    ];
    for (name, value) in lines {
        output::line(&format!("{name:16} {value}"));
    }
    for host in &stats.hosts {
        output::line(&format!("{:16} {}", "host", publish::used(host)));
    }
    let row = |l: &crate::mount::stats::Layer| {
        let percent = (l.present_bytes * 100)
            .checked_div(l.address_bytes)
            .unwrap_or(100);
        vec![
            l.digest.short().to_owned(),
            size(l.size),
            size(l.address_bytes),
            format!("{percent} %"),
            l.source.clone(),
        ]
    };
    output::line("");
    let headings = ["LAYER", "COMPRESSED", "UNPACKED", "PRESENT", "SOURCE"];
    output::table(&headings, &stats.layers.iter().map(row).collect::<Vec<_>>());
}
