//! Dependent round trips of a packed start: the slope of its time over the round-trip time.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::bench::{Bench, drop_caches, median, ok};

/// Round-trip times in milliseconds.
const RTTS: [u64; 4] = [0, 20, 40, 80];

/// Mbit/s.
const MEGABITS: f64 = 1000.0;

/// A case: how the cache is before, and by what name.
struct Case {
    name: &'static str,
    state: Option<&'static str>,
    image: String,
    options: &'static [&'static str],
}

pub(crate) fn measure(bench: &Bench, runs: usize) {
    bench.prepare();
    let many = push_index(bench);
    // The tag's digest and the documents are known, and nothing of layers and packs.
    bench.restore("whole");
    std::fs::remove_dir_all(bench.path("cache/v1/layers")).unwrap();
    std::fs::remove_dir_all(bench.path("cache/v1/profiles")).unwrap();
    bench.keep("remembered");
    let case = |name, state, image, options| Case {
        name,
        state,
        image,
        options,
    };
    let cases = [
        case(
            "tag, one platform (at most 4)",
            None,
            bench.image(),
            &[][..],
        ),
        case("tag, many platforms (at most 5)", None, many, &[]),
        case(
            "tag that is remembered (at most 3)",
            Some("remembered"),
            bench.image(),
            &["--pull", "newer"],
        ),
    ];
    let mut times: Vec<Vec<Vec<Duration>>> = vec![vec![Vec::new(); RTTS.len()]; cases.len()];
    for _ in 0..runs {
        for (at, rtt) in RTTS.iter().enumerate() {
            bench.link.tune(Duration::from_millis(*rtt), MEGABITS);
            for (case, times) in cases.iter().zip(&mut times) {
                match case.state {
                    None => bench.forget(),
                    Some(state) => bench.restore(state),
                }
                drop_caches();
                times[at].push(bench.start(&case.image, case.options).ready);
            }
        }
    }
    println!(
        "{}: packed starts at {MEGABITS:.0} Mbit/s, medians of {runs}",
        bench.name
    );
    for (case, times) in cases.iter().zip(times) {
        let ready: Vec<f64> = times
            .iter()
            .map(|of| median(of.iter().copied()).as_secs_f64())
            .collect();
        let shown: Vec<String> = RTTS
            .iter()
            .zip(&ready)
            .map(|(rtt, s)| format!("{rtt} ms: {s:.3}"))
            .collect();
        println!(
            "  {:36} {:.2} round trips ({})",
            case.name,
            slope(&ready),
            shown.join(", ")
        );
    }
    println!();
}

/// Least squares: seconds over seconds.
fn slope(ready: &[f64]) -> f64 {
    let x: Vec<f64> = RTTS.iter().map(|ms| *ms as f64 / 1e3).collect();
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    let (mx, my) = (mean(&x), mean(ready));
    let both: f64 = x.iter().zip(ready).map(|(x, y)| (x - mx) * (y - my)).sum();
    both / x.iter().map(|x| (x - mx).powi(2)).sum::<f64>()
}

/// A tag with two platforms, one of which is the image; its name through the link.
fn push_index(bench: &Bench) -> String {
    let repository = bench.name.split(':').next().unwrap();
    let url = format!("docker://{}/library/{}", bench.registry, bench.name);
    let inspect = ["inspect", "--tls-verify=false", &url];
    let about: Value = serde_json::from_str(&ok(Command::new("skopeo").args(inspect))).unwrap();
    let raw = ok(Command::new("skopeo").args(["inspect", "--raw", "--tls-verify=false", &url]));
    let manifest = bench.manifest();
    let named = |architecture: &str| {
        json!({ "mediaType": manifest["mediaType"], "digest": about["Digest"], "size": raw.len(),
                "platform": { "os": "linux", "architecture": architecture } })
    };
    let own = about["Architecture"].as_str().unwrap();
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [named("mips"), named(own)],
    });
    let file = bench.path("index.json");
    std::fs::write(&file, serde_json::to_vec(&index).unwrap()).unwrap();
    ok(Command::new("curl")
        .args(["-sS", "--fail", "-X", "PUT"])
        .args([
            "-H",
            "Content-Type: application/vnd.oci.image.index.v1+json",
            "--data-binary",
            &format!("@{}", file.display()),
            &format!(
                "http://{}/v2/library/{repository}/manifests/many-platforms",
                bench.registry
            ),
        ]));
    format!(
        "{}/library/{repository}:many-platforms",
        bench.link.address()
    )
}
