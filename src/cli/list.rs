//! `rsmount ps` and `rsmount stats`.

use crate::cli::args::{PsArgs, StatsArgs};
use crate::cli::output::{self, Failure, size};
use crate::mount::engine::Choice;
use crate::mount::record::{Record, State};
use crate::mount::stats::Stats;
use crate::mount::{control, mountpoint, record};

pub(crate) fn ps(args: &PsArgs) -> Result<(), Failure> {
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
    if args.json {
        return output::json(&records);
    }
    let row = |r: &Record| {
        vec![
            r.image.clone(),
            short(&r.digest),
            r.platform.clone(),
            r.pid.to_string(),
            shown_state(r),
            engine(r.engine.as_ref(), false),
            r.since.clone(),
            r.upper
                .as_ref()
                .map_or("-".to_owned(), |dir| dir.display().to_string()),
            r.mountpoint.display().to_string(),
        ]
    };
    let headings = [
        "IMAGE",
        "DIGEST",
        "PLATFORM",
        "PID",
        "STATE",
        "ENGINE",
        "SINCE",
        "UPPER",
        "MOUNTPOINT",
    ];
    output::table(&headings, &records.iter().map(row).collect::<Vec<_>>());
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

fn state(state: State) -> &'static str {
    match state {
        State::Ready => "ready",
        State::Stalled => "stalled",
        State::Dead => "dead",
        State::Poisoned => "poisoned",
    }
}

/// The state, and whether the tag stands for another image now.
fn shown_state(record: &Record) -> String {
    let newer = match record.newer {
        Some(_) => ", newer exists",
        None => "",
    };
    format!("{}{newer}", state(record.state))
}

fn ask(record: &Record) -> std::io::Result<Stats> {
    control::ask_stats(&record::socket_path(record.pid)?)
}

/// The record of the mount that is meant by `path`.
pub(super) fn mount_at(path: &std::path::Path) -> Result<Record, Failure> {
    let path = mountpoint::absolute(path).map_err(|e| Failure::of(&e))?;
    let found = record::find(&path).map_err(|e| Failure::of(&e))?;
    found.ok_or_else(|| Failure::of(&mountpoint::unknown(&path)))
}

pub(crate) fn stats(args: &StatsArgs) -> Result<(), Failure> {
    let found = mount_at(&args.mountpoint)?;
    let stats = ask(&found).map_err(|e| {
        Failure::new(format!(
            "{}: its process does not answer: {e}",
            found.mountpoint.display()
        ))
    })?;
    if args.json {
        return output::json(&stats);
    }
    print_stats(&stats);
    Ok(())
}

fn print_stats(stats: &Stats) {
    let lines = [
        ("image", stats.image.clone()),
        ("digest", stats.digest.clone()),
        ("state", state(stats.state).to_owned()),
        ("engine", engine(stats.engine.as_ref(), true)),
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
        ("verify failures", stats.verify_failures.to_string()),
    ];
    for (name, value) in lines {
        output::line(&format!("{name:16} {value}"));
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
