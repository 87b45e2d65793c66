//! The sandbox of workers: what is on is on for every thread, what is forbidden does not work, and
//! what needs somebody outside is done by the keeper.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    reason = "a test"
)]

#[path = "support/all.rs"]
mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::layout::{self, DIR, FILE, Layer, Pack};
use support::place::{Place, can_mount, skip};
use support::registry::Registry;

const MIB: usize = 1 << 20;
const FILES: u64 = 4;

fn noise(seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; MIB];
    random.fill(&mut bytes);
    bytes
}

/// An image whose layers are known here and whose bytes are not.
fn served() -> (Place, Registry) {
    let place = Place::new();
    let mut layer = Layer::new().dir("d", DIR);
    for n in 0..FILES {
        layer = layer.file(&format!("d/{n}"), FILE, &noise(n));
    }
    layout::write(&place.path("image"), &[layer.tar()], Pack::Plain);
    let registry = Registry::serve(place.path("image"));
    drop(place.mount_image(&registry.image(), &[]));
    place.ok(&["cache", "prune", "--data"]);
    (place, registry)
}

/// Whether this kernel has everything; `doctor` says so.
fn complete(place: &Place) -> bool {
    let checks = place.run(&["doctor", "--json"]).stdout;
    let checks: Value = serde_json::from_slice(&checks).unwrap();
    let of = |check: &&Value| check["name"] == "sandbox";
    let check = checks.as_array().unwrap().iter().find(of).unwrap();
    if check["verdict"] != "ok" {
        skip(&format!("no complete sandbox here: {}", check["found"]));
    }
    check["verdict"] == "ok"
}

/// The worker and its keeper.
fn processes(place: &Place) -> (u64, u64) {
    let listed: Value = serde_json::from_str(&place.ok(&["ps", "--json"])).unwrap();
    let row = &listed[0];
    (
        row["pid"].as_u64().unwrap(),
        row["keeper"].as_u64().unwrap(),
    )
}

/// A field of `/proc/PID/task/*/status` (proc(5)), of all threads.
fn of_threads(pid: u64, field: &str) -> Vec<String> {
    let mut values = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .flatten()
    {
        let Ok(status) = std::fs::read_to_string(task.path().join("status")) else {
            continue;
        };
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        values.push(line.unwrap().trim_start_matches(':').trim().to_owned());
    }
    values
}

fn all_are(pid: u64, field: &str, value: &str) {
    let values = of_threads(pid, field);
    assert!(values.len() > 1, "{field}: only {values:?}");
    assert!(values.iter().all(|v| v == value), "{field}: {values:?}");
}

#[test]
fn every_thread_of_a_worker_is_shut_in_and_its_keeper_is_not() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served();
    if !complete(&place) {
        return;
    }
    for engine in ["fuse", "auto"] {
        let options = [
            "--engine",
            engine,
            "--sandbox",
            "required",
            "--fill",
            "never",
        ];
        let mounted = place.mount_image(&registry.image(), &options);
        for n in 0..FILES {
            assert!(std::fs::read(mounted.path(&format!("d/{n}"))).unwrap() == noise(n));
        }
        let (worker, keeper) = processes(&place);
        for (field, value) in [
            ("Seccomp", "2"),
            ("NoNewPrivs", "1"),
            ("CapEff", "0000000000000000"),
            ("CapPrm", "0000000000000000"),
            ("CapInh", "0000000000000000"),
        ] {
            all_are(worker, field, value);
        }
        assert_eq!(of_threads(keeper, "Seccomp"), ["0"]);
        let shown = place.stats()["sandbox"].clone();
        assert_eq!(
            shown["on"],
            serde_json::json!(["capabilities", "landlock", "seccomp"])
        );
        assert_eq!(shown["missing"], Value::Null);
        let listed: Value = serde_json::from_str(&place.ok(&["ps", "--json"])).unwrap();
        assert_eq!(listed[0]["sandbox"], shown);
        drop(mounted);
        place.ok(&["cache", "prune", "--data"]);
    }
    let mounted = place.mount_image(&registry.image(), &["--sandbox", "off"]);
    all_are(processes(&place).0, "Seccomp", "0");
    let shown = place.stats()["sandbox"].clone();
    assert_eq!(shown["missing"], "--sandbox off");
    drop(mounted);
}

/// The only file outside that a worker can be led to without a flaw in it: one that takes the place of
/// a configuration which it reads late.
#[test]
fn a_worker_cannot_read_what_is_none_of_its_business() {
    if !can_mount() {
        return;
    }
    let secret = Path::new("/etc/shadow");
    for (sandbox, word) in [("required", "Permission denied"), ("off", "line 1")] {
        let (place, registry) = served();
        if !complete(&place) || std::fs::read(secret).is_err() {
            return;
        }
        let image = registry.image();
        let dir = place.path("certs.d").join(image.split('/').next().unwrap());
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("hosts.toml"), "").unwrap();
        let hosts = place.path("certs.d");
        let options = [
            "--sandbox",
            sandbox,
            "--hosts-dir",
            hosts.to_str().unwrap(),
            "--fill",
            "never",
            "--on-outage",
            "eio",
        ];
        let mounted = place.mount_image(&image, &options);
        std::fs::remove_file(dir.join("hosts.toml")).unwrap();
        std::os::unix::fs::symlink(secret, dir.join("hosts.toml")).unwrap();
        std::fs::read(mounted.path("d/1")).unwrap_err();
        let log = std::fs::read_to_string(place.path("log")).unwrap();
        let said = log.lines().find(|line| line.contains("hosts.toml"));
        let said = said.unwrap_or_else(|| panic!("nothing of it in {log}"));
        assert!(said.contains(word), "{sandbox}: {said}");
    }
}

#[test]
fn credentials_that_change_are_fetched_by_a_helper_outside() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served();
    let image = registry.image();
    let host = image.split('/').next().unwrap();
    // A helper that says what is in a file, and what it is itself held to.
    let bin = place.path("bin");
    std::fs::create_dir(&bin).unwrap();
    let (secret, trace) = (place.path("secret"), place.path("trace"));
    let helper = bin.join("docker-credential-test");
    let script = format!(
        "#!/bin/sh\nread server\ngrep -E '^(Seccomp|NoNewPrivs):' /proc/self/status >> {1}\n\
         printf '{{\"ServerURL\":\"%s\",\"Username\":\"user\",\"Secret\":\"%s\"}}' \"$server\" \"$(cat {0})\"\n",
        secret.display(),
        trace.display()
    );
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::create_dir(place.path("docker")).unwrap();
    let config = format!(r#"{{"credHelpers":{{"{host}":"test"}}}}"#);
    std::fs::write(place.path("docker/config.json"), config).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let rotate = |to: &str| {
        std::fs::write(&secret, to).unwrap();
        registry.control.require("user", to);
    };
    rotate("one");
    let mut command = place.rsmount();
    command
        .env("PATH", path)
        .env("DOCKER_CONFIG", place.path("docker"))
        .env_remove("REGISTRY_AUTH_FILE")
        .env("HOME", place.path("nobody"))
        .env("XDG_RUNTIME_DIR", place.path("nobody"))
        .args(["-q", "--fill", "never", "--on-outage", "eio", &image])
        .arg(place.mnt());
    std::fs::create_dir_all(place.mnt()).unwrap();
    assert!(command.status().unwrap().success());
    let mounted = support::place::Mounted::adopt(&place);
    let (worker, _) = processes(&place);
    all_are(worker, "NoNewPrivs", "1");
    for (n, password) in ["one", "two", "three", "two"].iter().enumerate() {
        rotate(password);
        assert!(std::fs::read(mounted.path(&format!("d/{n}"))).unwrap() == noise(n as u64));
    }
    assert_eq!(
        processes(&place).0,
        worker,
        "no other worker had to be started"
    );
    let trace = std::fs::read_to_string(&trace).unwrap();
    let lines: Vec<&str> = trace
        .lines()
        .map(|line| line.rsplit('\t').next().unwrap())
        .collect();
    assert!(
        lines.len() >= 4 && lines.iter().all(|value| *value == "0"),
        "{trace}"
    );
}

#[test]
fn a_worker_that_is_told_to_end_has_its_keeper_unmount() {
    if !can_mount() {
        return;
    }
    for options in [&["--engine", "fuse"][..], &["--engine", "auto"], &["--tmp"]] {
        let (place, registry) = served();
        let mounted = place.mount_image(&registry.image(), options);
        if options == ["--tmp"] {
            // Files of others go with the mount too.
            let theirs = mounted.path("d/theirs");
            std::fs::create_dir(&theirs).unwrap();
            std::fs::write(theirs.join("file"), "x").unwrap();
            std::fs::set_permissions(&theirs, std::fs::Permissions::from_mode(0o700)).unwrap();
            std::os::unix::fs::chown(&theirs, Some(1234), Some(1234)).unwrap();
        }
        let (worker, _) = processes(&place);
        let pid = rustix::process::Pid::from_raw(i32::try_from(worker).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while place.is_mounted() || Path::new(&format!("/proc/{worker}")).exists() {
            assert!(
                Instant::now() < deadline,
                "{options:?} is still mounted or served"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        let left = std::fs::read_dir(place.path("cache/upper")).map_or(0, Iterator::count);
        assert_eq!(left, 0, "a throw-away upper directory is left");
        std::mem::forget(mounted);
    }
}
