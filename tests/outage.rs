//! Outages: the link goes away at random while readers work, for each policy; and a soak, in which
//! mounts live with faults, evictions and killed workers for a while and leak nothing.
#![allow(
    clippy::unwrap_used,
    clippy::type_complexity,
    clippy::print_stderr,
    clippy::print_stdout,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    reason = "a test"
)]

#[path = "support/all.rs"]
mod support;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::layout::{self, DIR, FILE, Layer, Pack};
use support::place::{Place, can_mount, long, private_kib, skip};
use support::registry::Registry;

const MIB: usize = 1 << 20;
const FILE_BYTES: usize = 2 * MIB;

/// Bytes that hardly compress, different for each `seed`.
fn noise(seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; FILE_BYTES];
    random.fill(&mut bytes);
    bytes
}

fn served(files: u64) -> (Place, Registry) {
    let place = Place::new();
    let mut layer = Layer::new().dir("d", DIR);
    for n in 0..files {
        layer = layer.file(&format!("d/{n}"), FILE, &noise(n));
    }
    // Plain, so that a miss costs a span and not all that stands before it.
    layout::write(&place.path("image"), &[layer.tar()], Pack::Plain);
    let registry = Registry::serve(place.path("image"));
    drop(place.mount_image(&registry.image(), &[]));
    place.ok(&["cache", "prune", "--data"]);
    (place, registry)
}

/// Reads random pieces past the page cache until told to stop; how many were right, and how many
/// failed with EIO. Wrong bytes and any other error end the test.
fn reader(
    directories: Vec<PathBuf>,
    files: u64,
    seed: u64,
    stop: &Arc<AtomicBool>,
) -> JoinHandle<(u64, u64)> {
    slow_reader(directories, files, seed, stop, Duration::ZERO)
}

/// The same with a pause between two reads.
fn slow_reader(
    directories: Vec<PathBuf>,
    files: u64,
    seed: u64,
    stop: &Arc<AtomicBool>,
    pause: Duration,
) -> JoinHandle<(u64, u64)> {
    let stop = stop.clone();
    std::thread::spawn(move || {
        let mut random = fastrand::Rng::with_seed(seed);
        let contents: Vec<Vec<u8>> = (0..files).map(noise).collect();
        let mut buffer = vec![0; 128 << 10];
        let (mut right, mut failed) = (0, 0);
        while !stop.load(SeqCst) {
            std::thread::sleep(pause);
            let n = random.usize(0..contents.len());
            let directory = &directories[random.usize(0..directories.len())];
            let len = random.usize(1..=buffer.len());
            let at = random.usize(0..=FILE_BYTES - len);
            let file = File::open(directory.join(format!("d/{n}"))).unwrap();
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            match file.read_exact_at(&mut buffer[..len], at as u64) {
                Ok(()) => {
                    assert!(buffer[..len] == contents[n][at..at + len], "WRONG BYTES");
                    right += 1;
                }
                Err(e) => {
                    let eio = rustix::io::Errno::IO.raw_os_error();
                    assert_eq!(e.raw_os_error(), Some(eio), "{e}");
                    failed += 1;
                }
            }
        }
        (right, failed)
    })
}

#[test]
fn readers_live_through_outages_as_their_policy_says() {
    if !can_mount() {
        return;
    }
    let rounds: &[u64] = if long() {
        &[1000, 10_000, 60_000, 1000]
    } else {
        &[100, 700, 3000]
    };
    for (policy, errors) in [
        ("wait", Some(false)),
        // Once what is tried again has failed, which takes longer than the short outages.
        ("eio", long().then_some(true)),
        ("1", Some(true)),
    ] {
        let (place, registry) = served(8);
        let options = [
            "--on-outage",
            policy,
            "--fill",
            "never",
            "--cache-size",
            "6MiB",
            // Nothing but the worker keeps what it has read, so that readers go on to need the registry.
            "--engine",
            "fuse",
        ];
        let mounted = place.mount_image(&registry.image(), &options);
        let stop = Arc::new(AtomicBool::new(false));
        let readers: Vec<_> = (0..8)
            .map(|seed| reader(vec![place.mnt()], 8, seed, &stop))
            .collect();
        let mut stalled = false;
        for down in rounds {
            std::thread::sleep(Duration::from_millis(300));
            registry.control.unplugged.store(true, SeqCst);
            let until = Instant::now() + Duration::from_millis(*down);
            while Instant::now() < until {
                std::thread::sleep(Duration::from_millis(50));
                stalled |= place.stats()["state"] == "stalled";
            }
            registry.control.unplugged.store(false, SeqCst);
        }
        // All that wait go on by themselves.
        std::thread::sleep(Duration::from_secs(1));
        stop.store(true, SeqCst);
        let (mut right, mut failed) = (0, 0);
        for reader in readers {
            let (r, f) = reader.join().unwrap();
            (right, failed) = (right + r, failed + f);
        }
        println!("{policy}: {right} reads right, {failed} failed, seen stalled: {stalled}");
        assert!(right > 20, "{policy}: {right} reads");
        if let Some(errors) = errors {
            assert_eq!(errors, failed > 0, "{policy}: {failed} failed");
        }
        assert!(stalled, "{policy}: `stats` never said that readers wait");
        let deadline = Instant::now() + Duration::from_secs(20);
        while place.stats()["state"] != "ready" {
            assert!(Instant::now() < deadline, "{}", place.stats());
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(std::fs::read(mounted.path("d/5")).unwrap() == noise(5));
    }
}

/// A mount whose readers need the registry for most of what they read, and a registry that is asked
/// with a password that a helper gives, who says what is in a file.
fn with_password() -> (Place, Registry, Command) {
    let (place, registry) = served(8);
    let bin = place.path("bin");
    std::fs::create_dir(&bin).unwrap();
    let helper = bin.join("docker-credential-test");
    let script = format!(
        "#!/bin/sh\nread server\n\
         printf '{{\"ServerURL\":\"%s\",\"Username\":\"user\",\"Secret\":\"%s\"}}' \"$server\" \"$(cat {0})\"\n",
        place.path("secret").display(),
    );
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let image = registry.image();
    let host = image.split('/').next().unwrap();
    std::fs::create_dir(place.path("docker")).unwrap();
    let config = format!(r#"{{"credHelpers":{{"{host}":"test"}}}}"#);
    std::fs::write(place.path("docker/config.json"), config).unwrap();
    let mut command = place.rsmount();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    command
        .env("PATH", path)
        .env("DOCKER_CONFIG", place.path("docker"))
        .env_remove("REGISTRY_AUTH_FILE")
        .env("HOME", place.path("nobody"))
        .env("XDG_RUNTIME_DIR", place.path("nobody"))
        .args(["-q", "--fill", "never", "--on-outage", "wait"])
        .args(["--cache-size", "6MiB", "--engine", "fuse"])
        .arg(&image)
        .arg(place.mnt());
    (place, registry, command)
}

/// What readers that have been stopped have read right.
fn none_failed(readers: Vec<JoinHandle<(u64, u64)>>) -> u64 {
    let outcomes = readers.into_iter().map(|reader| reader.join().unwrap());
    outcomes
        .map(|(right, failed)| {
            assert_eq!(failed, 0, "reads failed");
            right
        })
        .sum()
}

/// The registry ends and comes back, with another password each time, while readers work; the worker is
/// in its sandbox, and asks the helper outside.
#[test]
fn readers_live_through_restarts_and_new_passwords() {
    if !can_mount() {
        return;
    }
    let (place, registry, mut command) = with_password();
    let rotate = |to: &str| {
        // First who says it, then who asks for it: what is fetched anew is never what was, and never
        // a half of it.
        std::fs::write(place.path("secret.new"), to).unwrap();
        std::fs::rename(place.path("secret.new"), place.path("secret")).unwrap();
        registry.control.require("user", to);
    };
    rotate("one");
    assert!(command.status().unwrap().success());
    let mounted = support::place::Mounted::adopt(&place);
    let sandbox = place.stats()["sandbox"].to_string();
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..8)
        .map(|seed| reader(vec![place.mnt()], 8, seed, &stop))
        .collect();
    let mut random = fastrand::Rng::new();
    println!("seed {}", random.get_seed());
    let rounds = if long() { 30 } else { 4 };
    for round in 0..rounds {
        std::thread::sleep(Duration::from_millis(random.u64(50..400)));
        // A request is sent with two passwords at most: the next one is for who knows this one.
        let deadline = Instant::now() + Duration::from_secs(60);
        while !registry.control.has_served_the_required() {
            let stats = place.stats();
            assert!(Instant::now() < deadline, "round {round}: {stats}");
            std::thread::sleep(Duration::from_millis(20));
        }
        if round % 2 == 0 {
            registry.stop();
            std::thread::sleep(Duration::from_millis(random.u64(0..1500)));
            rotate(&format!("after {round}"));
            registry.start();
        } else {
            rotate(&format!("meanwhile {round}"));
        }
    }
    let before = registry.control.asked().len();
    let deadline = Instant::now() + Duration::from_secs(60);
    while registry.control.asked().len() < before + 8 {
        assert!(
            Instant::now() < deadline,
            "nobody reads on: {}",
            place.stats()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    stop.store(true, SeqCst);
    let right = none_failed(readers);
    println!(
        "{rounds} restarts and passwords, sandbox {sandbox}: {right} reads right, none failed"
    );
    assert!(std::fs::read(mounted.path("d/5")).unwrap() == noise(5));
}

/// A mount namespace with its own names of hosts, held open by a process.
struct Names {
    child: std::process::Child,
    hosts: PathBuf,
}

impl Names {
    fn new(place: &Place) -> Names {
        let (hosts, resolv) = (place.path("hosts"), place.path("resolv.conf"));
        std::fs::write(&hosts, "127.0.0.1 registry.test\n").unwrap();
        // Nobody answers there.
        let nobody = "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n";
        std::fs::write(&resolv, nobody).unwrap();
        let script = "mount --bind \"$0\" /etc/hosts && mount --bind \"$1\" \"$(readlink -f /etc/resolv.conf)\" \
                      && echo ready && read -r _";
        let mut child = Command::new("unshare")
            .args(["-m", "--propagation", "private", "sh", "-c", script])
            .args([&hosts, &resolv])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut said).unwrap();
        assert_eq!(said, "ready\n");
        Names { child, hosts }
    }

    /// In place, because it is this very file that is mounted.
    fn say(&self, text: &str) {
        std::fs::write(&self.hosts, text).unwrap();
    }

    fn rsmount(&self, place: &Place, args: &[&str]) -> String {
        let program = place.rsmount();
        let mut inside = Command::new("nsenter");
        inside.arg(format!("--target={}", self.child.id()));
        inside.arg("--mount").arg("--").arg(program.get_program());
        inside.args(args);
        for (name, value) in program.get_envs() {
            if let Some(value) = value {
                inside.env(name, value);
            }
        }
        let output = inside.output().unwrap();
        let log = std::fs::read_to_string(place.path("log")).unwrap_or_default();
        assert!(output.status.success(), "{args:?}: {output:?}\n{log}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// A path, seen from outside.
    fn path(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.child.id()));
        root.join(path.strip_prefix("/").unwrap())
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _gone = self.child.wait();
    }
}

#[test]
fn readers_live_through_names_that_are_not_found() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served(8);
    let names = Names::new(&place);
    let host = format!("registry.test:{}", registry.port());
    let image = format!("{host}/test/image:latest");
    let mnt = place.mnt();
    let mut args = vec!["-q", "--insecure-registry", &host, "--on-outage", "wait"];
    args.extend([
        "--fill",
        "never",
        "--cache-size",
        "6MiB",
        "--engine",
        "fuse",
    ]);
    args.extend([&image, mnt.to_str().unwrap()]);
    names.rsmount(&place, &args);
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..8)
        .map(|seed| reader(vec![names.path(&mnt)], 8, seed, &stop))
        .collect();
    let rounds: &[u64] = if long() { &[1, 10, 60, 1] } else { &[5] };
    let state = || {
        let said = names.rsmount(&place, &["stats", mnt.to_str().unwrap(), "--json"]);
        let stats: Value = serde_json::from_str(&said).unwrap();
        stats["state"].clone()
    };
    let mut stalled = false;
    for seconds in rounds {
        std::thread::sleep(Duration::from_millis(300));
        names.say("");
        // Connections that were there would need no name.
        registry.stop();
        registry.start();
        let until = Instant::now() + Duration::from_secs(*seconds);
        while Instant::now() < until {
            std::thread::sleep(Duration::from_millis(100));
            stalled |= state() == "stalled";
        }
        let before = registry.control.asked().len();
        names.say("127.0.0.1 registry.test\n");
        let deadline = Instant::now() + Duration::from_secs(60);
        while registry.control.asked().len() < before + 8 {
            assert!(Instant::now() < deadline, "nobody reads on");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    stop.store(true, SeqCst);
    let right = none_failed(readers);
    println!(
        "no names for {rounds:?} s: {right} reads right, none failed, seen stalled: {stalled}"
    );
    assert!(stalled, "`stats` never said that readers wait");
    names.rsmount(&place, &["umount", mnt.to_str().unwrap()]);
}

#[test]
fn a_reader_that_waits_for_the_registry_can_be_killed() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served(2);
    let mounted = place.mount_image(&registry.image(), &["--fill", "never"]);
    registry.control.held.store(true, SeqCst);
    let mut waiting = Command::new("cat")
        .arg(mounted.path("d/1"))
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert!(waiting.try_wait().unwrap().is_none());
    waiting.kill().unwrap();
    assert!(!waiting.wait().unwrap().success());
    registry.control.held.store(false, SeqCst);
    assert!(std::fs::read(mounted.path("d/1")).unwrap() == noise(1));
}

/// What a process has: private memory in KiB, and descriptors.
fn footprint(pid: u64) -> (u64, usize) {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    (private_kib(pid), descriptors.count())
}

fn pids(place: &Place) -> Vec<(u64, u64)> {
    let listed: Value = serde_json::from_str(&place.ok(&["ps", "--json"])).unwrap();
    let pid = |r: &Value| Some((r["pid"].as_u64()?, r["keeper"].as_u64()?));
    listed.as_array().unwrap().iter().filter_map(pid).collect()
}

/// Memory and descriptors of all processes of the mounts, together.
fn sum(place: &Place) -> (u64, usize) {
    let both = pids(place)
        .into_iter()
        .flat_map(|(pid, keeper)| [pid, keeper]);
    both.map(footprint)
        .fold((0, 0), |(m, d), (memory, fds)| (m + memory, d + fds))
}

/// Mounts the image so many times, by both engines; where.
fn mount_many(place: &Place, registry: &Registry, mounts: usize, budget: &str) -> Vec<PathBuf> {
    let directories: Vec<PathBuf> = (0..mounts)
        .map(|n| place.path(&format!("mnt-{n}")))
        .collect();
    for (n, directory) in directories.iter().enumerate() {
        std::fs::create_dir(directory).unwrap();
        let path = directory.to_str().unwrap();
        // By the kernel's engine where that is possible; with so little room its layers stay lazy.
        let engine = if n % 2 == 0 { "fuse" } else { "auto" };
        let options = ["-q", "--engine", engine, "--cache-size", budget];
        place.ok(&[&options[..], &[&registry.image(), path]].concat());
    }
    let listed = place.ok(&["ps", "--json"]);
    let kernels = listed.matches("\"kernel\"").count();
    println!("{mounts} mounts, {kernels} of them by the kernel engine");
    if kernels == 0 {
        skip("no mount is by the kernel engine: only the other half is tested");
    }
    directories
}

#[test]
fn a_soak_leaks_nothing_and_ends_with_whole_trees() {
    if !can_mount() {
        return;
    }
    let (mounts, seconds, files) = if long() { (20, 1800, 30) } else { (4, 12, 10) };
    let (place, registry) = served(files);
    let budget = (files * FILE_BYTES as u64 / 10).to_string();
    let directories = mount_many(&place, &registry, mounts, &budget);
    let stop = Arc::new(AtomicBool::new(false));
    // So that the long form leaves a machine to others.
    let pause = Duration::from_millis(if long() { 50 } else { 0 });
    let readers: Vec<_> = (0..4)
        .map(|seed| slow_reader(directories.clone(), files, seed, &stop, pause))
        .collect();
    let mut random = fastrand::Rng::new();
    let began = Instant::now();
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut footprints = Vec::new();
    while Instant::now() < end {
        for _ in 0..4 {
            std::thread::sleep(Duration::from_millis(random.u64(100..400)));
            registry.control.unplugged.store(true, SeqCst);
            std::thread::sleep(Duration::from_millis(random.u64(0..100)));
            registry.control.unplugged.store(false, SeqCst);
        }
        footprints.push(sum(&place));
        if footprints.len() % 30 == 0 {
            let (memory, descriptors) = footprints[footprints.len() - 1];
            let seconds = began.elapsed().as_secs();
            println!("after {seconds} s: {memory} KiB private, {descriptors} descriptors");
        }
    }
    stop.store(true, SeqCst);
    for reader in readers {
        let (right, failed) = reader.join().unwrap();
        assert!(right > 5 && failed == 0, "{right} right, {failed} failed");
    }
    let held: Value = serde_json::from_str(&place.ok(&["cache", "du", "--json"])).unwrap();
    println!("held at the end: {} of {budget} bytes", held["data_bytes"]);
    for directory in &directories {
        for n in 0..files {
            let bytes = std::fs::read(directory.join(format!("d/{n}"))).unwrap();
            assert!(bytes == noise(n), "file {n} below {}", directory.display());
        }
        place.ok(&["umount", directory.to_str().unwrap()]);
    }
    println!("private KiB and descriptors of all processes, over time: {footprints:?}");
    // The first third is for warming up; after that nothing may grow by more than noise. What grows for
    // some minutes has an end: the list of the longest waits (512 of them), threads that fetch and what
    // malloc keeps for each, and what it cannot give back between what is in use.
    let third = footprints.len() / 3;
    let most = |part: &[(u64, usize)]| {
        let memory = part.iter().map(|f| f.0).max().unwrap();
        (memory, part.iter().map(|f| f.1).max().unwrap())
    };
    let (early, late) = (most(&footprints[..=third]), most(&footprints[third..]));
    // A short one is hardly warm when it ends.
    let allowed = match long() {
        true => early.0 + early.0 / 5,
        false => early.0 + early.0 / 2 + 4096 * mounts as u64,
    };
    assert!(late.0 <= allowed, "memory grows: {footprints:?}");
    assert!(
        late.1 <= early.1 + 16 * mounts,
        "descriptors grow: {footprints:?}"
    );
    assert!(
        early.0 / mounts as u64 <= 64 << 10,
        "{} KiB a mount",
        early.0 / mounts as u64
    );
    assert!(Path::new(&directories[0]).exists());
}

/// What a published pack is made of: `d/0` was read.
fn packed() -> (Place, Registry) {
    let (place, registry) = served(2);
    let options = ["--fill", "never", "--engine", "fuse"];
    let mounted = place.mount_image(&registry.image(), &options);
    std::fs::read(mounted.path("d/0")).unwrap();
    drop(mounted);
    place.ok(&["-q", "publish", &registry.image()]);
    std::fs::remove_dir_all(place.path("cache")).unwrap();
    (place, registry)
}

/// Who waits for pages that come with a pack waits no longer than who waits for others, and `ps` says
/// so.
#[test]
fn pages_of_a_pack_that_do_not_come_are_an_outage() {
    if !can_mount() {
        return;
    }
    let (place, registry) = packed();
    // All but small documents: the answers are there, and their bytes are not.
    *registry.control.held_range.lock().unwrap() = Some(64 << 10..u64::MAX);
    let options = ["--fill", "never", "--on-outage", "4"];
    let mounted = place.mount_image(&registry.image(), &options);
    let path = mounted.path("d/0");
    let reader = std::thread::spawn(move || std::fs::read(path));
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut stalled = false;
    while !reader.is_finished() {
        let listed: Value = serde_json::from_str(&place.ok(&["ps", "--json"])).unwrap();
        stalled |= listed[0]["state"] == "stalled";
        assert!(Instant::now() < deadline, "the reader waits and waits");
        std::thread::sleep(Duration::from_millis(50));
    }
    let failed = reader.join().unwrap().unwrap_err();
    assert_eq!(
        failed.raw_os_error(),
        Some(rustix::io::Errno::IO.raw_os_error())
    );
    assert!(stalled, "nobody was told");
    *registry.control.held_range.lock().unwrap() = None;
    assert!(std::fs::read(mounted.path("d/0")).unwrap() == noise(0));
}

#[test]
fn a_pack_that_does_not_come_is_not_waited_for() {
    if !can_mount() {
        return;
    }
    let (place, registry) = packed();
    registry.control.mute.store(true, SeqCst);
    let began = Instant::now();
    let mounted = place.mount_image(&registry.image(), &["--fill", "never"]);
    let took = began.elapsed();
    // A try alone is given half a minute, and there would be three of them.
    assert!(took < Duration::from_secs(25), "{took:?}");
    registry.control.mute.store(false, SeqCst);
    assert!(std::fs::read(mounted.path("d/0")).unwrap() == noise(0));
}
