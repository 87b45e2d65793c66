//! Cold starts over a slow link: from the command to the end of a program in the image, against
//! `podman pull` and `podman run`, interleaved, medians.
//!
//! ```text
//! RSMOUNT_BENCH_REGISTRY=HOST:PORT cargo bench --bench cold_start
//! ```
//!
//! The registry (`contrib/images/serve`, filled by `contrib/images/build`) speaks plain HTTP and
//! takes pushes: packs are published to it. Needs root. What to measure is chosen by
//!
//! | variable | default | |
//! |---|---|---|
//! | `RSMOUNT_BENCH_PARTS` | `starts slope small fill` | see below |
//! | `RSMOUNT_BENCH_IMAGES` | `python:3.11` | names of `contrib/images`, as many as are wanted |
//! | `RSMOUNT_BENCH_LINKS` | `1000/5 100/20` | Mbit/s and round-trip time in ms |
//! | `RSMOUNT_BENCH_RUNS` | 5 | medians of so many |
//! | `RSMOUNT_BENCH_ROWS` | all | words that names of rows begin with |
//! | `RSMOUNT_BENCH_SMALL` | `debian:12` | the image of the part `small` |
//!
//! - `starts`: each image on each link, in these rows. The kernel's caches are dropped before each
//!   start but those of the last two.
//!
//! | row | what is known before |
//! |---|---|
//! | `podman` | nothing; pull and run |
//! | `first contact` | nothing, and packs are not looked for |
//! | `indexed` | the indexes |
//! | `profiled` | the indexes, and what one earlier start touched |
//! | `packed` | nothing; the registry has a pack |
//! | `warm` | everything, and the link is unplugged |
//! | `local` | the command alone, in a local directory |
//!
//! - `slope`: time over round-trip time for a packed start: dependent round trips.
//! - `small`: first contact and indexed without profile, where round trips are dear (100/80).
//! - `fill`: `--fill now` against curl, and what readers notice of it.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and ends where something is wrong"
)]

#[path = "cold_start/bench.rs"]
mod bench;
#[path = "cold_start/fill.rs"]
mod fill;
#[path = "support/link.rs"]
mod link;
#[path = "cold_start/oracle.rs"]
mod oracle;
#[path = "../tests/support/programs.rs"]
mod programs;
#[path = "cold_start/published.rs"]
mod published;
#[path = "cold_start/slope.rs"]
mod slope;
#[path = "cold_start/starts.rs"]
mod starts;

use std::time::Duration;

use bench::{Bench, setting};

/// A wire that preparations do not wait for.
const FAST: (Duration, f64) = (Duration::ZERO, 20_000.0);

/// `1000/5`: Mbit/s and milliseconds.
fn wire(text: &str) -> (Duration, f64) {
    let (megabits, rtt) = text.split_once('/').unwrap();
    let rtt = Duration::from_secs_f64(rtt.parse::<f64>().unwrap() / 1e3);
    (rtt, megabits.parse().unwrap())
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
    let links = setting("RSMOUNT_BENCH_LINKS", "1000/5 100/20");
    let images = setting("RSMOUNT_BENCH_IMAGES", "python:3.11");
    let first = images.split_whitespace().next().unwrap();
    for part in setting("RSMOUNT_BENCH_PARTS", "starts slope small fill").split_whitespace() {
        println!("== {part}\n");
        match part {
            "starts" => starts::measure(&registry, &images, &links, runs),
            "slope" => slope::measure(&Bench::new(&registry, first), runs),
            "small" => {
                let image = setting("RSMOUNT_BENCH_SMALL", "debian:12");
                starts::small(&Bench::new(&registry, &image), runs);
            }
            "fill" => {
                for link in links.split_whitespace() {
                    fill::measure(&Bench::new(&registry, first), link);
                }
            }
            other => println!("there is no part `{other}`"),
        }
    }
}
