//! The rows: starts from each state, interleaved.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::bench::{Bench, Start, drop_caches, median, ok, setting};
use crate::link::Crossed;
use crate::programs::run_in;
use crate::published::Published;
use crate::{oracle, wire};

/// What podman is told besides: the limits that it may raise here.
const PODMAN_RUN: [&str; 6] = [
    "run",
    "--rm",
    "--network=none",
    "--tls-verify=false",
    "--ulimit=nofile=1024:4096",
    "--ulimit=nproc=4096:8192",
];

/// A start from one state.
type Way = fn(&Bench) -> Start;

/// The starts of one row.
struct Row {
    name: &'static str,
    starts: Vec<Start>,
}

impl Row {
    fn ready(&self) -> f64 {
        median(self.starts.iter().map(|s| s.ready)).as_secs_f64()
    }

    fn usable(&self) -> f64 {
        median(self.starts.iter().map(|s| s.usable)).as_secs_f64()
    }

    /// How long the program ran.
    fn run(&self) -> f64 {
        median(self.starts.iter().map(|s| s.ready - s.usable)).as_secs_f64()
    }
}

fn podman(bench: &Bench) -> Command {
    let mut command = Command::new("podman");
    command
        .arg("--root")
        .arg(bench.path("podman"))
        .arg("--runroot")
        .arg(bench.path("podman-run"))
        .args(["--runtime", "runc"]);
    command
}

fn podman_start(bench: &Bench) -> Start {
    drop_caches();
    let _earlier = (bench.link.crossed(), bench.link.manifest_at());
    let image = bench.image();
    let began = Instant::now();
    ok(podman(bench).args(["pull", "-q", "--tls-verify=false", &image]));
    let usable = began.elapsed();
    let script = format!("cd /tmp\n{}", bench.program.script);
    let user = ["--user=0:0", &image, "/bin/sh", "-euc", &script];
    let printed = ok(podman(bench).args(PODMAN_RUN).args(user));
    let ready = began.elapsed();
    assert_eq!(printed.lines().last(), Some(bench.program.says));
    let crossed = bench.link.crossed();
    let resolved = bench.link.manifest_at();
    ok(podman(bench).args(["rmi", "-f", &image]));
    Start {
        resolved: resolved.map_or(Duration::ZERO, |at| at - began),
        usable,
        ready,
        crossed,
    }
}

fn first_contact(bench: &Bench) -> Start {
    bench.forget();
    drop_caches();
    bench.start(&bench.image(), &["--trust-index", "local"])
}

fn indexed(bench: &Bench) -> Start {
    bench.restore("indexed");
    drop_caches();
    bench.start(&bench.image(), &["--trust-index", "local"])
}

fn profiled(bench: &Bench) -> Start {
    bench.restore("profiled");
    drop_caches();
    bench.start(&bench.image(), &["--trust-index", "local"])
}

fn packed(bench: &Bench) -> Start {
    bench.forget();
    drop_caches();
    bench.start(&bench.image(), &[])
}

/// Everything is here, and was read once.
fn warm(bench: &Bench) -> Start {
    bench.restore("whole");
    bench.link.plug(false);
    let _once = bench.start(&bench.image(), &[]);
    let start = bench.start(&bench.image(), &[]);
    bench.link.plug(true);
    start
}

/// The command in a directory that was unpacked before, and was read once.
fn local(bench: &Bench) -> Start {
    let root = bench.path("local");
    if !root.exists() {
        bench.restore("whole");
        let mnt = bench.mount(&bench.image(), &["--offline"]);
        ok(Command::new("cp").arg("-a").args([&mnt, &root]));
        bench.umount();
    }
    run_in(&root, bench.program);
    let began = Instant::now();
    run_in(&root, bench.program);
    Start {
        resolved: Duration::ZERO,
        usable: Duration::ZERO,
        ready: began.elapsed(),
        crossed: Crossed {
            bytes: 0,
            requests: 0,
            connections: 0,
        },
    }
}

const WAYS: [(&str, Way); 7] = [
    ("podman", podman_start),
    ("first contact", first_contact),
    ("indexed", indexed),
    ("profiled", profiled),
    ("packed", packed),
    ("warm", warm),
    ("local", local),
];

/// The rows that were asked for, `runs` times each, interleaved.
fn rows(bench: &Bench, ways: &[(&'static str, Way)], runs: usize) -> Vec<Row> {
    let empty = |(name, _): &(&'static str, Way)| Row {
        name,
        starts: Vec::new(),
    };
    let mut rows: Vec<Row> = ways.iter().map(empty).collect();
    for _ in 0..runs {
        for (row, (_, way)) in rows.iter_mut().zip(ways) {
            row.starts.push(way(bench));
        }
    }
    rows
}

fn wanted() -> Vec<(&'static str, Way)> {
    let words = setting("RSMOUNT_BENCH_ROWS", "");
    let podman = Command::new("podman").arg("--version").output().is_ok();
    let is_wanted = |name: &str| {
        (name != "podman" || podman)
            && (words.is_empty() || words.split_whitespace().any(|w| name.starts_with(w)))
    };
    WAYS.into_iter()
        .filter(|(name, _)| is_wanted(name))
        .collect()
}

fn print(rows: &[Row], compressed: u64, oracle: u64) {
    let find = |name| rows.iter().find(|row| row.name == name);
    let podman = find("podman").map(Row::ready);
    let local = find("local").map(Row::run);
    println!(
        "  {:13} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>6} {:>8} {:>5} {:>5}",
        "",
        "resolved",
        "usable",
        "ready",
        "podman /",
        "run",
        "/ local",
        "MB",
        "% gz",
        "/ oracle",
        "reqs",
        "conns"
    );
    let ratio = |a: Option<f64>, b: Option<f64>| match (a, b) {
        (Some(a), Some(b)) => format!("{:.2}", a / b),
        _ => "-".to_owned(),
    };
    for row in rows {
        let bytes = median(row.starts.iter().map(|s| s.crossed.bytes)) as f64;
        println!(
            "  {:13} {:>8.3} {:>8.3} {:>8.3} {:>8} {:>8.3} {:>8} {:>8.2} {:>6.2} {:>8.2} {:>5} {:>5}",
            row.name,
            median(row.starts.iter().map(|s| s.resolved)).as_secs_f64(),
            row.usable(),
            row.ready(),
            ratio(podman, Some(row.ready())),
            row.run(),
            ratio(Some(row.run()), local),
            bytes / 1e6,
            100.0 * bytes / compressed as f64,
            bytes / oracle as f64,
            median(row.starts.iter().map(|s| s.crossed.requests)),
            median(row.starts.iter().map(|s| s.crossed.connections)),
        );
    }
}

/// Ratios whose geometric mean is shown at the end.
#[derive(Default)]
struct Means(Vec<(String, Vec<f64>)>);

impl Means {
    fn add(&mut self, name: String, ratio: Option<f64>) {
        let Some(ratio) = ratio else { return };
        match self.0.iter_mut().find(|(n, _)| *n == name) {
            Some((_, ratios)) => ratios.push(ratio),
            None => self.0.push((name, vec![ratio])),
        }
    }

    fn print(&self) {
        for (name, ratios) in &self.0 {
            let mean = (ratios.iter().map(|r| r.ln()).sum::<f64>() / ratios.len() as f64).exp();
            let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
            let images = ratios.len();
            println!("  {name}: {mean:.2} (geometric mean of {images}), least {least:.2}");
        }
        println!();
    }
}

/// All images on all links.
pub(crate) fn measure(registry: &str, images: &str, links: &str, runs: usize) {
    let (ways, mut means) = (wanted(), Means::default());
    for image in images.split_whitespace() {
        let bench = Bench::new(registry, image);
        bench.prepare();
        let compressed = bench.compressed();
        let (pages, oracle) = oracle::bytes(&bench, 0);
        let (pages_128, oracle_128) = oracle::bytes(&bench, 128);
        println!(
            "{image}: {:.1} MB of layers; oracle {:.2} MB ({:.1} MB of pages); at read-ahead 128 \
             {:.2} MB ({:.1})",
            compressed as f64 / 1e6,
            oracle as f64 / 1e6,
            pages as f64 * 4096.0 / 1e6,
            oracle_128 as f64 / 1e6,
            pages_128 as f64 * 4096.0 / 1e6,
        );
        for link in links.split_whitespace() {
            let (rtt, megabits) = wire(link);
            bench.link.tune(rtt, megabits);
            println!("{image} at {link} (Mbit/s, ms), medians of {runs}, seconds");
            let rows = rows(&bench, &ways, runs);
            print(&rows, compressed, oracle);
            let ready = |name| rows.iter().find(|r| r.name == name).map(Row::ready);
            let faster = |a: Option<f64>, b: Option<f64>| Some(a? / b?);
            for row in ["packed", "profiled", "indexed", "first contact"] {
                let name = format!("podman / {row} at {link}");
                means.add(name, faster(ready("podman"), ready(row)));
            }
            if let Some(others) = Published::of(image, link) {
                let shown = |s: Option<f64>| s.map_or("-".to_owned(), |s| format!("{s:.2}"));
                println!(
                    "  others' figures, not of this run: podman {:.2}, stargz (converted) {}, \
                     nydus (converted) {}",
                    others.podman,
                    shown(others.stargz),
                    shown(others.nydus)
                );
                let name = format!("best of stargz and nydus (not of this run) / packed at {link}");
                means.add(name, faster(others.best(), ready("packed")));
            }
            println!();
        }
    }
    means.print();
}

/// First contact and indexed without profile, where round trips are dear.
pub(crate) fn small(bench: &Bench, runs: usize) {
    bench.prepare();
    let compressed = bench.compressed();
    let (_, oracle) = oracle::bytes(bench, 0);
    let (rtt, megabits) = wire("100/80");
    bench.link.tune(rtt, megabits);
    let megabytes = compressed as f64 / 1e6;
    println!("{} ({megabytes:.1} MB of layers) at 100/80", bench.name);
    let ways: [(&str, Way); 2] = [("first contact", first_contact), ("indexed", indexed)];
    print(&rows(bench, &ways, runs), compressed, oracle);
    println!();
}
