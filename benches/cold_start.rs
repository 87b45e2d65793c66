//! Cold starts over a slow link: from the command to the end of a program in the image, against
//! `podman pull` and `podman run`, interleaved, medians.
//!
//! ```text
//! RSMOUNT_BENCH_REGISTRY=HOST:PORT cargo bench --bench cold_start
//! ```
//!
//! The registry (`contrib/images/serve`, filled by `contrib/images/build`) speaks plain HTTP.
//! `RSMOUNT_BENCH_IMAGES` names images (default `python:3.11`), `RSMOUNT_BENCH_RUNS` says how many
//! runs (5), `RSMOUNT_BENCH_LINKS` which links, as `MBIT/RTT-MS` (`1000/5 100/20`). Needs root.
//!
//! | row | what is known before |
//! |---|---|
//! | `podman` | nothing; pull and run |
//! | `first contact` | nothing |
//! | `indexed` | the indexes (`cache prune --data`) |
//! | `cable out` | everything, and the link is unplugged |
//!
//! The kernel's caches are dropped before each start but the last row's.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and ends where something is wrong"
)]

#[path = "support/link.rs"]
mod link;
#[path = "../tests/support/programs.rs"]
mod programs;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use link::{Crossed, Link};
use programs::{PROGRAMS, Program, run_in};
use tempfile::TempDir;

/// What podman is told besides: the limits that it may raise here.
const PODMAN_RUN: [&str; 6] = [
    "run",
    "--rm",
    "--network=none",
    "--tls-verify=false",
    "--ulimit=nofile=1024:4096",
    "--ulimit=nproc=4096:8192",
];

/// One start.
#[derive(Debug, Clone, Copy)]
struct Start {
    /// When the image could be used; for podman when it was pulled.
    usable: Duration,
    /// When the program had ended.
    ready: Duration,
    crossed: Crossed,
}

/// The starts of one row.
struct Row {
    name: &'static str,
    starts: Vec<Start>,
}

struct Bench {
    scratch: TempDir,
    link: Link,
    image: String,
    program: &'static Program,
}

impl Bench {
    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn rsmount(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rsmount"));
        command
            .env("RSMOUNT_CACHE_DIR", self.path("cache"))
            .env("RSMOUNT_RUN_DIR", self.path("run"))
            .env("RSMOUNT_LOG_FILE", self.path("log"));
        command
    }

    fn mounted_start(&self) -> Start {
        let _earlier = self.link.crossed();
        let mnt = self.path("mnt");
        std::fs::create_dir_all(&mnt).unwrap();
        let began = Instant::now();
        ok(self.rsmount().arg("-q").arg(&self.image).arg(&mnt));
        let usable = began.elapsed();
        let printed = run_in(&mnt, self.program);
        let ready = began.elapsed();
        assert_eq!(printed.lines().last(), Some(self.program.says));
        let crossed = self.link.crossed();
        ok(self.rsmount().arg("umount").arg(&mnt));
        Start {
            usable,
            ready,
            crossed,
        }
    }

    fn first_contact(&self) -> Start {
        let _none_yet = std::fs::remove_dir_all(self.path("cache"));
        drop_caches();
        self.mounted_start()
    }

    fn indexed(&self) -> Start {
        ok(self.rsmount().args(["cache", "prune", "--data"]));
        drop_caches();
        self.mounted_start()
    }

    /// Everything is read once, then again with the cable out.
    fn cable_out(&self) -> Start {
        let _none_yet = std::fs::remove_dir_all(self.path("cache"));
        let _whole = self.mounted_start();
        self.link.plug(false);
        let start = self.mounted_start();
        self.link.plug(true);
        start
    }

    /// Bytes that a listing of the whole tree fetches when the indexes are known.
    fn listing(&self) -> Crossed {
        ok(self.rsmount().args(["cache", "prune", "--data"]));
        let mnt = self.path("mnt");
        ok(self.rsmount().arg("-q").arg(&self.image).arg(&mnt));
        let _manifest = self.link.crossed();
        ok(Command::new("ls").arg("-lR").arg(&mnt));
        let crossed = self.link.crossed();
        ok(self.rsmount().arg("umount").arg(&mnt));
        crossed
    }

    fn podman(&self) -> Command {
        let mut command = Command::new("podman");
        command
            .arg("--root")
            .arg(self.path("podman"))
            .arg("--runroot")
            .arg(self.path("podman-run"))
            .args(["--runtime", "runc"]);
        command
    }

    fn podman_start(&self) -> Start {
        drop_caches();
        let _earlier = self.link.crossed();
        let began = Instant::now();
        ok(self
            .podman()
            .args(["pull", "-q", "--tls-verify=false", &self.image]));
        let usable = began.elapsed();
        let script = format!("cd /tmp\n{}", self.program.script);
        let user = ["--user=0:0", &self.image, "/bin/sh", "-euc", &script];
        let printed = ok(self.podman().args(PODMAN_RUN).args(user));
        let ready = began.elapsed();
        assert_eq!(printed.lines().last(), Some(self.program.says));
        let crossed = self.link.crossed();
        ok(self.podman().args(["rmi", "-f", &self.image]));
        Start {
            usable,
            ready,
            crossed,
        }
    }

    /// All rows, `runs` times each, interleaved.
    fn rows(&self, runs: usize) -> Vec<Row> {
        type Way = fn(&Bench) -> Start;
        let podman = Command::new("podman").arg("--version").output().is_ok();
        let mut ways: Vec<(&'static str, Way)> = vec![
            ("first contact", Bench::first_contact),
            ("indexed", Bench::indexed),
            ("cable out", Bench::cable_out),
        ];
        if podman {
            ways.insert(0, ("podman", Bench::podman_start));
        }
        let mut rows: Vec<Row> = Vec::new();
        for run in 0..runs {
            for (at, (name, way)) in ways.iter().enumerate() {
                let start = way(self);
                if run == 0 {
                    let starts = Vec::new();
                    rows.push(Row { name, starts });
                }
                rows[at].starts.push(start);
            }
        }
        rows
    }
}

/// Runs a command that has to succeed; gives what it printed.
fn ok(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {complained}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn drop_caches() {
    let _not_allowed = std::fs::write("/proc/sys/vm/drop_caches", "3");
}

fn median<T: Ord + Copy>(values: impl Iterator<Item = T>) -> T {
    let mut values: Vec<T> = values.collect();
    values.sort();
    values[values.len() / 2]
}

/// Bytes of the layers of an image as the registry has them.
fn layer_bytes(registry: &str, image: &str) -> u64 {
    let url = format!("docker://{registry}/library/{image}");
    let raw = ok(Command::new("skopeo").args(["inspect", "--raw", "--tls-verify=false", &url]));
    let manifest: serde_json::Value = serde_json::from_str(&raw).unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    layers.iter().map(|l| l["size"].as_u64().unwrap()).sum()
}

fn print(rows: &[Row], compressed: u64) {
    let ready = |row: &Row| median(row.starts.iter().map(|s| s.ready)).as_secs_f64();
    let podman = rows.iter().find(|row| row.name == "podman").map(ready);
    println!(
        "  {:14} {:>9} {:>9} {:>9} {:>8} {:>9} {:>7} {:>6}",
        "", "usable s", "ready s", "/ podman", "MB", "% of gz", "reqs", "conns"
    );
    for row in rows {
        let usable = median(row.starts.iter().map(|s| s.usable)).as_secs_f64();
        let bytes = median(row.starts.iter().map(|s| s.crossed.bytes));
        println!(
            "  {:14} {usable:>9.3} {:>9.3} {:>9} {:>8.2} {:>9.2} {:>7} {:>6}",
            row.name,
            ready(row),
            podman.map_or("-".to_owned(), |p| format!("{:.3}", ready(row) / p)),
            bytes as f64 / 1e6,
            100.0 * bytes as f64 / compressed as f64,
            median(row.starts.iter().map(|s| s.crossed.requests)),
            median(row.starts.iter().map(|s| s.crossed.connections)),
        );
    }
}

fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

fn measure(registry: &str, image: &str, program: &'static Program, link: &str, runs: usize) {
    let (megabits, rtt) = link.split_once('/').unwrap();
    let rtt = Duration::from_secs_f64(rtt.parse::<f64>().unwrap() / 1e3);
    let link = Link::new(registry, rtt, megabits.parse().unwrap());
    let bench = Bench {
        scratch: TempDir::with_prefix_in("rsmount-bench.", scratch_parent()).unwrap(),
        image: format!("{}/library/{image}", link.address()),
        link,
        program,
    };
    let compressed = layer_bytes(registry, image);
    println!(
        "{image} ({:.1} MB of layers), {megabits} Mbit/s, {:.0} ms, medians of {runs}",
        compressed as f64 / 1e6,
        rtt.as_secs_f64() * 1e3
    );
    print(&bench.rows(runs), compressed);
    let listing = bench.listing();
    println!(
        "  {:14} {:.2} MB in {} requests\n",
        "ls -lR",
        listing.bytes as f64 / 1e6,
        listing.requests
    );
    for dir in ["podman", "podman/overlay"] {
        let _not_mounted = Command::new("umount").arg(bench.path(dir)).output();
    }
}

/// Not /tmp, which may be in memory.
fn scratch_parent() -> &'static Path {
    Path::new("/var/tmp")
}

fn main() {
    let Ok(registry) = std::env::var("RSMOUNT_BENCH_REGISTRY") else {
        println!(
            "SKIPPED cold_start: RSMOUNT_BENCH_REGISTRY=HOST:PORT is not set (see contrib/images)"
        );
        return;
    };
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED cold_start: it mounts, and chroots: run it as root");
        return;
    }
    let runs = setting("RSMOUNT_BENCH_RUNS", "5").parse().unwrap();
    for link in setting("RSMOUNT_BENCH_LINKS", "1000/5 100/20").split_whitespace() {
        for image in setting("RSMOUNT_BENCH_IMAGES", "python:3.11").split_whitespace() {
            let program = PROGRAMS.iter().find(|p| p.image == image);
            measure(&registry, image, program.unwrap(), link, runs);
        }
    }
}
