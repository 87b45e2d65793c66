//! What a start cannot do without: the pages of one start with as little read-ahead as is asked for,
//! in order of first use, zstd level 15.

use std::fs::File;
use std::io::Write;
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::FileExt;

use serde_json::Value;

use crate::bench::Bench;
use crate::programs::run_in;

/// Level of zstd of the measure.
const LEVEL: i32 = 15;

/// Pages, and their compressed bytes, with a read-ahead of `kib` KiB.
pub(crate) fn bytes(bench: &Bench, kib: u32) -> (u64, u64) {
    bench.restore("whole");
    crate::bench::drop_caches();
    // The read-ahead of a FUSE mount is what can be set.
    let options = ["--trust-index", "local", "--engine", "fuse"];
    let mnt = bench.mount(&bench.image(), &options);
    let device = std::fs::metadata(&mnt).unwrap().st_dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let setting = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    std::fs::write(setting, kib.to_string()).unwrap();
    run_in(&mnt, bench.program);
    bench.umount();
    let layers: Vec<File> = bench
        .layers()
        .iter()
        .map(|(digest, _)| {
            let layer = bench.path("cache/v1/layers").join(digest.replace(':', "/"));
            File::open(layer.join("pages/data")).unwrap()
        })
        .collect();
    let profile = std::fs::read_dir(bench.path("cache/v1/profiles")).unwrap();
    let profile = std::fs::read(profile.last().unwrap().unwrap().path()).unwrap();
    let profile: Value = serde_json::from_slice(&profile).unwrap();
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), LEVEL).unwrap();
    let mut pages = 0;
    for touch in profile["touches"].as_array().unwrap() {
        let number = |at: usize| touch[at].as_u64().unwrap();
        let mut bytes = vec![0; number(2) as usize * 4096];
        let layer = &layers[number(0) as usize];
        let read = layer.read_at(&mut bytes, number(1) * 4096).unwrap();
        encoder.write_all(&bytes[..read]).unwrap();
        pages += number(2);
    }
    (pages, encoder.finish().unwrap().len() as u64)
}
