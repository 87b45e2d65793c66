//! `--fill now`: how fast an image becomes whole, and what readers of absent bytes notice of it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::bench::{Bench, drop_caches, ok};
use crate::wire;

/// Reads of absent spans.
const READS: usize = 50;

/// Distance of reads in a file: no two share a span.
const APART: u64 = 2 << 20;

/// A read that takes less had its bytes already.
const PRESENT: Duration = Duration::from_millis(1);

pub(crate) fn measure(bench: &Bench, link: &str) {
    bench.prepare();
    let (rtt, megabits) = wire(link);
    bench.link.tune(rtt, megabits);
    println!("{} at {link}", bench.name);
    let (whole, curl) = (whole(bench), curl(bench));
    println!(
        "  --fill now {:.2} s, curl of the same blobs {:.2} s: ratio {:.3} (at most 1.1 at 100/20)",
        whole.as_secs_f64(),
        curl.as_secs_f64(),
        whole.as_secs_f64() / curl.as_secs_f64()
    );
    let idle = reads(bench, "never");
    let busy = reads(bench, "now");
    for (name, at) in [("p50", 50), ("p95", 95)] {
        let of = |times: &[Duration]| times[(times.len() * at / 100).min(times.len() - 1)];
        let (idle, busy) = (of(&idle).as_secs_f64(), of(&busy).as_secs_f64());
        println!(
            "  {name} of reads of absent spans: {:.1} ms idle, {:.1} ms while it fills: {:.2} (at most 2)",
            idle * 1e3,
            busy * 1e3,
            busy / idle
        );
    }
    println!(
        "  reads that waited: {} idle, {} while it fills\n",
        idle.len(),
        busy.len()
    );
}

/// From the command until all is present.
fn whole(bench: &Bench) -> Duration {
    bench.restore("indexed");
    drop_caches();
    let began = Instant::now();
    bench.mount(&bench.image(), &["--fill", "now", "--trust-index", "local"]);
    loop {
        let stats = ok(bench
            .rsmount()
            .arg("stats")
            .arg(bench.path("mnt"))
            .arg("--json"));
        let stats: Value = serde_json::from_str(&stats).unwrap();
        let layers = stats["layers"].as_array().unwrap();
        if layers
            .iter()
            .all(|l| l["present_bytes"] == l["address_bytes"])
        {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let took = began.elapsed();
    bench.umount();
    took
}

fn curl(bench: &Bench) -> Duration {
    let repository = bench.name.split(':').next().unwrap();
    let mut command = Command::new("curl");
    command.args(["-sS", "--fail", "--parallel"]);
    for (digest, _) in bench.layers() {
        let address = bench.link.address();
        let url = format!("http://{address}/v2/library/{repository}/blobs/{digest}");
        command.args(["-o", "/dev/null", &url]);
    }
    let began = Instant::now();
    ok(&mut command);
    began.elapsed()
}

/// Times of reads of a page each that waited, sorted.
fn reads(bench: &Bench, fill: &str) -> Vec<Duration> {
    bench.restore("indexed");
    drop_caches();
    let mnt = bench.mount(&bench.image(), &["--fill", fill, "--trust-index", "local"]);
    let mut files = Vec::new();
    large(&mnt, &mut files);
    files.sort();
    let mut times = Vec::new();
    // From the end, where the fill comes last.
    'all: for (size, path) in files.into_iter().rev() {
        let file = File::open(path).unwrap();
        for n in (0..=(size - 4096) / APART).rev() {
            let began = Instant::now();
            file.read_exact_at(&mut [0; 512], n * APART).unwrap();
            let took = began.elapsed();
            if took >= PRESENT {
                times.push(took);
            }
            if times.len() == READS {
                break 'all;
            }
        }
    }
    bench.umount();
    times.sort();
    times
}

/// Files of more than a span.
fn large(directory: &Path, found: &mut Vec<(u64, PathBuf)>) {
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        let Ok(about) = entry.path().symlink_metadata() else {
            continue;
        };
        if about.is_dir() {
            large(&entry.path(), found);
        } else if about.is_file() && about.len() > 300 << 10 {
            found.push((about.len(), entry.path()));
        }
    }
}
