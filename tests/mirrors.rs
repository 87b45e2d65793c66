//! Mounts through mirrors, configured as for containerd: dead ones, ones that lack a blob, and ones
//! that give wrong bytes. Readers get right bytes in each case.
#![allow(
    clippy::unwrap_used,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    reason = "a test"
)]

#[path = "support/faulty.rs"]
mod faulty;
#[path = "support/all.rs"]
mod support;

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use faulty::{Fault, Faulty, Message};
use serde_json::Value;
use support::layout::{self, DIR, FILE, Layer, Pack};
use support::place::{Place, can_mount};
use support::registry::Registry;

const MIB: usize = 1 << 20;
const FILES: u64 = 4;

fn noise(seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; MIB];
    random.fill(&mut bytes);
    bytes
}

/// A place with an image, the registry that has it, and where its mirrors are configured.
struct Scene {
    place: Place,
    origin: Registry,
}

impl Scene {
    fn new() -> Scene {
        let place = Place::new();
        let mut layer = Layer::new().dir("d", DIR);
        for n in 0..FILES {
            layer = layer.file(&format!("d/{n}"), FILE, &noise(n));
        }
        // Plain, so that a miss costs a span and not all that stands before it.
        layout::write(&place.path("image"), &[layer.tar()], Pack::Plain);
        let origin = Registry::serve(place.path("image"));
        Scene { place, origin }
    }

    fn hosts(&self, text: &str) -> String {
        let image = self.origin.image();
        let registry = image.split('/').next().unwrap();
        let dir = self.place.path("certs.d").join(registry);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("hosts.toml"), text).unwrap();
        self.place.path("certs.d").to_str().unwrap().to_owned()
    }

    /// Mounts, reads everything twice, the second time without what the first has kept; what
    /// `stats` says of the hosts.
    fn read_all(&self, hosts_dir: &str) -> Vec<Value> {
        let options = ["--hosts-dir", hosts_dir, "--fill", "never"];
        // First contact streams the layer, the second mount reads spans of it.
        drop(self.place.mount_image(&self.origin.image(), &options));
        self.place.ok(&["cache", "prune", "--data"]);
        let mounted = self.place.mount_image(&self.origin.image(), &options);
        for n in 0..FILES {
            assert!(std::fs::read(mounted.path(&format!("d/{n}"))).unwrap() == noise(n));
        }
        self.place.stats()["hosts"].as_array().unwrap().clone()
    }
}

#[test]
fn a_mirror_that_is_added_while_the_registry_is_away_is_asked() {
    if !can_mount() {
        return;
    }
    for sandbox in ["auto", "off"] {
        let scene = Scene::new();
        let dir = scene.place.path("certs.d");
        std::fs::create_dir(&dir).unwrap();
        let image = scene.origin.image();
        let options = ["--hosts-dir", dir.to_str().unwrap(), "--sandbox", sandbox];
        let options = [&options[..], &["--fill", "never"]].concat();
        drop(scene.place.mount_image(&image, &options));
        scene.place.ok(&["cache", "prune", "--data"]);
        let mounted = scene.place.mount_image(&image, &options);
        scene.origin.stop();
        let file = mounted.path("d/1");
        let reader = std::thread::spawn(move || std::fs::read(file).unwrap());
        std::thread::sleep(Duration::from_millis(500));
        // What is not written whole yet is left alone.
        scene.hosts("[host.");
        std::thread::sleep(Duration::from_millis(2500));
        assert!(!reader.is_finished());
        let mirror = Registry::serve(scene.place.path("image"));
        let at = host(&mirror.image()).to_owned();
        scene.hosts(&format!("[host.'http://{at}']\ncapabilities = ['pull']\n"));
        let deadline = Instant::now() + Duration::from_secs(60);
        while !reader.is_finished() {
            let stats = scene.place.stats();
            assert!(Instant::now() < deadline, "sandbox {sandbox}: {stats}");
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(reader.join().unwrap() == noise(1));
        let hosts = scene.place.stats()["hosts"].clone();
        let hosts = hosts.as_array().unwrap();
        assert!(hosts.iter().any(|host| host["host"] == at), "{hosts:?}");
    }
}

fn host(image: &str) -> &str {
    image.split('/').next().unwrap()
}

#[test]
fn blobs_come_from_the_mirror_and_tags_from_the_registry() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let mirror = Registry::serve(scene.place.path("image"));
    let dir = scene.hosts(&format!(
        "[host.'http://{}']\ncapabilities = ['pull']",
        host(&mirror.image())
    ));
    let hosts = scene.read_all(&dir);
    assert_eq!(scene.origin.control.blob_requests.load(SeqCst), 0);
    assert!(mirror.control.blob_bytes.load(SeqCst) > FILES * MIB as u64);
    assert_eq!(hosts[0]["host"], host(&mirror.image()));
    assert!(
        hosts[0]["blob_bytes"].as_u64() >= Some(FILES * MIB as u64),
        "{hosts:?}"
    );
    assert_eq!(
        (&hosts[1]["answers"], &hosts[1]["blob_bytes"]),
        (&0.into(), &0.into())
    );

    // Who served is said by whoever can be asked.
    let place = &scene.place;
    let image = scene.origin.image();
    let text = place.ok(&["explain", "--pull", "always", "--hosts-dir", &dir, &image]);
    let line = format!("{} may pull, resolve, push; ", host(&image));
    assert!(text.contains(&line), "{text}");
    let found = place.ok(&["doctor", "--hosts-dir", &dir, &image]);
    assert!(
        found.contains(&format!("says its host {}", host(&image))),
        "{found}"
    );
    let said = place.run(&[
        "-v",
        "explain",
        "--pull",
        "always",
        "--hosts-dir",
        &dir,
        &image,
    ]);
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(
        said.contains(host(&image)) && said.contains("manifests/latest"),
        "{said}"
    );
}

#[test]
fn the_next_host_is_asked_when_one_is_dead_or_has_nothing() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dead = gone.local_addr().unwrap();
    drop(gone);
    let empty = scene.place.path("empty");
    std::fs::create_dir(&empty).unwrap();
    let lacking = Registry::serve(empty);
    let dir = scene.hosts(&format!(
        "[host.'http://{dead}']\n[host.'http://{}']\n",
        host(&lacking.image())
    ));
    let hosts = scene.read_all(&dir);
    assert!(scene.origin.control.blob_requests.load(SeqCst) > 1);
    assert_eq!(
        (&hosts[0]["answers"], &hosts[1]["answers"]),
        (&0.into(), &0.into())
    );
    // A file that cannot be used is said, with its name and line.
    scene.hosts("\nserver = 5");
    let refused = scene.place.run(&[
        "explain",
        "--pull",
        "always",
        "--hosts-dir",
        &dir,
        &scene.origin.image(),
    ]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("hosts.toml: line 2"), "{said}");
}

#[test]
fn wrong_bytes_of_a_mirror_never_reach_a_reader() {
    if !can_mount() {
        return;
    }
    for (message, fault) in [
        (Message::Layer, Fault::Flipped),
        (Message::Range, Fault::Flipped),
        (Message::Range, Fault::Swapped),
        (Message::Range, Fault::Truncated),
        (Message::Manifest, Fault::Flipped),
        (Message::Config, Fault::Flipped),
    ] {
        let scene = Scene::new();
        let liar = Faulty::serve(scene.place.path("image"));
        liar.spoil(message, fault, u32::MAX);
        // One more mirror behind it, so that it is the next that is asked and not just the last.
        let mirror = Registry::serve(scene.place.path("image"));
        let dir = scene.hosts(&format!(
            "[host.'http://{}']\ncapabilities = ['pull']\n[host.'http://{}']\ncapabilities = ['pull']",
            host(&liar.image()),
            host(&mirror.image())
        ));
        let hosts = scene.read_all(&dir);
        if message == Message::Range {
            assert!(
                hosts[0]["failures"].as_u64() > Some(0),
                "{fault:?}: {hosts:?}"
            );
            assert!(
                hosts[1]["blob_bytes"].as_u64() > Some(0),
                "{fault:?}: {hosts:?}"
            );
        }
        assert_eq!(
            hosts[2]["blob_bytes"], 0,
            "{message:?} {fault:?}: {hosts:?}"
        );
    }
}
