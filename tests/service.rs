//! A mount that a service manager has started outlives its keeper and its worker: who reads meanwhile
//! waits, and every byte is right. What cannot be gone on with is ended, and the image mounted anew.
//!
//! The manager is a stand-in (`support/manager.rs`), so that this needs no systemd; the unit in `contrib`
//! is read by `systemd-analyze` where that is.
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

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering::SeqCst;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::layout::{self, DIR, FILE, Layer, Pack};
use support::manager::{Manager, Service};
use support::place::{Place, can_mount, skip};
use support::registry::Registry;
use support::seen;

const FILES: u64 = 4;
const FILE_BYTES: usize = 2 << 20;

/// Bytes that hardly compress, different for each `seed`.
fn noise(seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; FILE_BYTES];
    random.fill(&mut bytes);
    bytes
}

fn served() -> (Place, Registry) {
    let place = Place::new();
    let mut layer = Layer::new().dir("d", DIR).symlink("link", "d/0");
    for n in 0..FILES {
        layer = layer.file(&format!("d/{n}"), FILE, &noise(n));
    }
    layout::write(&place.path("image"), &[layer.tar()], Pack::Gzip);
    let registry = Registry::serve(place.path("image"));
    (place, registry)
}

/// Another image in `place`.
fn other(place: &Place) -> String {
    let layer = Layer::new().file("other", FILE, b"another one");
    layout::write(&place.path("other"), &[layer.tar()], Pack::Gzip);
    format!("oci:{}", place.path("other").display())
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn kill(signal: rustix::process::Signal, pid: u64) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// The one mount that `ps` knows, as soon as it does: who takes over has no record for a moment.
fn listed(place: &Place) -> Value {
    let mut all = Value::Null;
    until("no mount", || {
        all = serde_json::from_str(&place.ok(&["ps", "-a", "--json"])).unwrap();
        all.as_array().is_some_and(|all| all.len() == 1)
    });
    all[0].clone()
}

fn worker(place: &Place) -> u64 {
    listed(place)["pid"].as_u64().unwrap()
}

/// How many file systems are mounted one above the other at the mountpoint.
fn stacked(place: &Place) -> usize {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table
        .matches(&format!(" {} ", place.mnt().display()))
        .count()
}

/// Has the keeper die, and then the worker, as a manager has what is left of a service.
fn die(place: &Place, service: Service<'_>) {
    let worker = worker(place);
    service.kill();
    kill(rustix::process::Signal::KILL, worker);
    // Its threads may hold its record for a moment longer.
    until("somebody serves", || listed(place)["state"] == "dead");
}

/// The state in what a manager keeps, which holds so many descriptors besides.
fn state(manager: &Manager<'_>, held: usize) -> String {
    let mut keeps = manager.keeps();
    let state = keeps.pop().unwrap();
    assert!(state.starts_with("rsmount-state-"), "{state}");
    let names: Vec<_> = (0..held).map(|n| format!("rsmount-held-{n}")).collect();
    assert_eq!(keeps, names);
    state
}

/// Ends the mount, and with it the service, of which nothing stays.
fn unmount(place: &Place, manager: &Manager<'_>, service: Service<'_>) {
    place.ok(&["umount", place.mnt().to_str().unwrap()]);
    assert!(service.ends().success());
    assert_eq!(manager.keeps(), [""; 0]);
    assert_eq!((stacked(place), place.leftovers()), (0, 0));
}

/// Reads a piece of file `n`, which must be right.
fn read(file: &File, n: u64, at: usize) {
    let mut piece = vec![0; 5000];
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    file.read_exact_at(&mut piece, at as u64).unwrap();
    assert!(piece == noise(n)[at..at + piece.len()], "file {n} at {at}");
}

fn reader(file: &File, n: u64, at: usize) -> JoinHandle<()> {
    let file = file.try_clone().unwrap();
    std::thread::spawn(move || read(&file, n, at))
}

/// A process that has a file in memory, and reads it there when it is told to.
struct Mapping(Child);

impl Mapping {
    fn of(path: &Path) -> Mapping {
        let program = "import hashlib, mmap, sys; f = open(sys.argv[1], 'rb'); \
             m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); print(flush=True); input(); \
             print(hashlib.sha256(m).hexdigest())";
        let mut child = Command::new("python3")
            .args(["-c", program])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = [0];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first).unwrap();
        Mapping(child)
    }

    fn digest(mut self) -> String {
        self.0.stdin.take().unwrap().write_all(b"\n").unwrap();
        let mut line = String::new();
        let stdout = self.0.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        assert!(self.0.wait().unwrap().success());
        line.trim().to_owned()
    }
}

/// That a worker has nothing of what its manager says to the service alone.
fn assert_is_not_told(worker: u64) {
    let all = std::fs::read(format!("/proc/{worker}/environ")).unwrap();
    let all = String::from_utf8(all).unwrap();
    assert!(all.contains("RSMOUNT_RUN_DIR="), "{all}");
    let told = |variable: &&str| variable.starts_with("NOTIFY_") || variable.starts_with("LISTEN_");
    assert_eq!(all.split('\0').find(told), None);
}

/// Has a worker die whose keeper has replaced another one before, and then a keeper alone.
fn dies_otherwise<'a>(
    place: &Place,
    manager: &'a Manager<'a>,
    service: Service<'a>,
    words: &[&str],
) -> Service<'a> {
    let file = File::open(place.mnt().join("d/3")).unwrap();
    let replaced = worker(place);
    kill(rustix::process::Signal::KILL, replaced);
    until("no other worker", || worker(place) != replaced);
    die(place, service);
    let mut service = manager.start(words);
    service.until_ready();
    read(&file, 3, 1_000_000);
    let alone = worker(place);
    service.kill();
    read(&file, 3, 2_000);
    let mut service = manager.start(words);
    service.until_ready();
    assert_ne!(worker(place), alone);
    assert!(!PathBuf::from(format!("/proc/{alone}/exe")).exists());
    service
}

fn outlives(engine: &str) {
    let (place, registry) = served();
    let image = registry.image();
    let mnt = place.mnt();
    let words = ["-q", "--engine", engine, "--fill", "never", &image];
    let words = [&words[..], &[mnt.to_str().unwrap()]].concat();
    // In another cache, so that nothing is known of what will be read.
    let elsewhere = place.path("elsewhere");
    let elsewhere = ["--cache-dir", elsewhere.to_str().unwrap()];
    let tried = place.run(&[&elsewhere[..], &words].concat());
    if !tried.status.success() && engine == "kernel" {
        return skip(String::from_utf8_lossy(&tried.stderr).trim());
    }
    let expected = seen::look(&mnt);
    place.ok(&["umount", mnt.to_str().unwrap()]);
    place.ok(&words);
    place.ok(&["umount", mnt.to_str().unwrap()]);
    place.ok(&["cache", "prune", "--data"]);

    let manager = Manager::new(&place);
    let words = [&["-f"], &words[..]].concat();
    let mut service = manager.start(&words);
    service.until_ready();
    let first = state(&manager, 1);
    let before = listed(&place);
    assert_eq!(
        before["keeper"],
        service.pid(),
        "the manager knows the keeper"
    );
    assert_is_not_told(before["pid"].as_u64().unwrap());
    let open = |n: u64| File::open(mnt.join(format!("d/{n}"))).unwrap();
    let files: Vec<File> = (0..FILES).map(open).collect();
    let mapping = Mapping::of(&mnt.join("d/1"));
    registry.control.held.store(true, SeqCst);
    let early = reader(&files[0], 0, 1 << 20);
    std::thread::sleep(Duration::from_millis(200));
    die(&place, service);
    let late = reader(&files[2], 2, 77_777);
    std::thread::sleep(Duration::from_millis(200));
    let mut service = manager.start(&words);
    service.until_ready();
    for reader in [&early, &late] {
        assert!(!reader.is_finished(), "nobody has the bytes yet");
    }
    registry.control.held.store(false, SeqCst);
    early.join().unwrap();
    late.join().unwrap();
    let after = listed(&place);
    assert_eq!(after["keeper"], service.pid());
    assert_eq!(after["since"], before["since"], "it is the same mount");
    assert_ne!(after["pid"], before["pid"]);
    assert_eq!(mapping.digest(), rsmount::oci::Digest::of(&noise(1)).hex());
    seen::assert_same(engine, &expected, &seen::look(&mnt));
    assert_ne!(state(&manager, 1), first, "there is a newer state");

    let service = dies_otherwise(&place, &manager, service, &words);
    files
        .iter()
        .zip(0..)
        .for_each(|(file, n)| read(file, n, 4096));
    assert_eq!(stacked(&place), 1);
    drop(files);
    unmount(&place, &manager, service);
}

#[test]
fn a_fuse_mount_outlives_its_keeper_and_its_worker() {
    if can_mount() {
        outlives("fuse");
    }
}

#[test]
fn a_kernel_mount_outlives_its_keeper_and_its_worker() {
    if can_mount() {
        outlives("kernel");
    }
}

#[test]
fn a_writable_mount_goes_on_with_its_changes() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served();
    let (image, mnt) = (registry.image(), place.mnt());
    let manager = Manager::new(&place);
    let words = ["-f", "-q", "--tmp", &image, mnt.to_str().unwrap()];
    let mut service = manager.start(&words);
    service.until_ready();
    let mut written = File::create(mnt.join("d/new")).unwrap();
    written.write_all(b"one ").unwrap();
    die(&place, service);
    written.write_all(b"two ").unwrap();
    let mut service = manager.start(&words);
    service.until_ready();
    written.write_all(b"three").unwrap();
    state(&manager, 2);
    let new = std::fs::read(mnt.join("d/new")).unwrap();
    assert_eq!(new, b"one two three");
    read(&File::open(mnt.join("d/3")).unwrap(), 3, 500_000);
    let upper = PathBuf::from(listed(&place)["upper"].as_str().unwrap());
    assert!(upper.exists());
    drop(written);
    // As the manager ends it.
    kill(rustix::process::Signal::TERM, service.pid().into());
    assert!(service.ends().success());
    assert_eq!(manager.keeps(), [""; 0]);
    assert_eq!((stacked(&place), place.leftovers()), (0, 0));
    assert!(!upper.exists());
}

/// Starts a service, has it die, has `happen` happen, and starts one with `image` (or the same): which must
/// be mounted anew, alone.
fn anew(place: &Place, image: &str, next: &str, happen: impl Fn(&Manager<'_>)) {
    let mnt = place.mnt();
    let manager = Manager::new(place);
    let words = |image| {
        let options = ["-f", "-q", "--engine", "fuse", "--fill", "never"];
        [&options[..], &[image, mnt.to_str().unwrap()]].concat()
    };
    let start = |image| {
        let mut service = manager.start(&words(image));
        service.until_ready();
        service
    };
    let service = start(image);
    let before = listed(place);
    let file = File::open(mnt.join("d/0")).unwrap();
    die(place, service);
    happen(&manager);
    let service = start(next);
    let after = listed(place);
    assert_eq!(
        (&after["image"], &after["state"]),
        (&next.into(), &"ready".into())
    );
    assert_eq!(stacked(place), 1);
    let failed = file.read_exact_at(&mut [0], 1 << 20);
    assert!(failed.is_err(), "the old mount has ended: {before} {after}");
    match next == image {
        true => read(&File::open(mnt.join("d/1")).unwrap(), 1, 9_999),
        false => assert_eq!(std::fs::read(mnt.join("other")).unwrap(), b"another one"),
    }
    let kept = manager.keeps();
    assert!(kept.len() == 2 || kept.is_empty(), "{kept:?}");
    unmount(place, &manager, service);
}

#[test]
fn what_is_kept_of_another_image_is_ended() {
    if can_mount() {
        let (place, registry) = served();
        anew(&place, &registry.image(), &other(&place), |_| {});
    }
}

#[test]
fn what_is_not_kept_as_a_whole_is_ended() {
    if can_mount() {
        let (place, registry) = served();
        anew(&place, &registry.image(), &registry.image(), |manager| {
            manager.loses(&state(manager, 1));
        });
        anew(&place, &registry.image(), &registry.image(), |manager| {
            manager.loses("rsmount-held-0");
        });
    }
}

#[test]
fn a_mount_that_was_unmounted_meanwhile_is_made_anew() {
    if can_mount() {
        let (place, registry) = served();
        anew(&place, &registry.image(), &registry.image(), |_| {
            place.ok(&["umount", "--lazy", place.mnt().to_str().unwrap()]);
        });
    }
}

#[test]
fn a_manager_that_keeps_nothing_gets_a_new_mount() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served();
    let (image, mnt) = (registry.image(), place.mnt());
    let manager = Manager::new(&place);
    manager.has_no_room();
    let words = ["-f", "-q", &image, mnt.to_str().unwrap()];
    let mut service = manager.start(&words);
    service.until_ready();
    die(&place, service);
    let mut service = manager.start(&words);
    service.until_ready();
    assert_eq!(stacked(&place), 1, "the dead one was in the way");
    read(&File::open(mnt.join("d/1")).unwrap(), 1, 9_999);
    // Where no manager kills what is left of a service, its worker lives on, and nobody would replace it.
    let alone = worker(&place);
    service.kill();
    let mut service = manager.start(&words);
    service.until_ready();
    assert_ne!(worker(&place), alone);
    assert_eq!(stacked(&place), 1);
    unmount(&place, &manager, service);
}

#[test]
fn a_worker_that_hands_over_another_mount_does_it_no_harm() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served();
    let (image, mnt, elsewhere) = (registry.image(), place.mnt(), place.path("elsewhere"));
    let manager = Manager::new(&place);
    let words = ["-f", "-q", &image, mnt.to_str().unwrap()];
    let mut service = manager.start(&words);
    service.until_ready();
    die(&place, service);
    std::fs::create_dir(&elsewhere).unwrap();
    place.ok(&["-q", &image, elsewhere.to_str().unwrap()]);
    let there = || {
        let all: Value = serde_json::from_str(&place.ok(&["ps", "-a", "--json"])).unwrap();
        let all = all.as_array().unwrap();
        let there = all
            .iter()
            .find(|m| m["mountpoint"] == elsewhere.to_str().unwrap());
        there.cloned()
    };
    let other = there().unwrap();
    manager.changes(&state(&manager, 1), |state| {
        let record = &mut state["handed"]["record"];
        record["mountpoint"] = other["mountpoint"].clone();
        record["keeper"] = other["keeper"].clone();
    });
    let mut service = manager.start(&words);
    service.until_ready();
    assert_eq!(there(), Some(other));
    read(&File::open(elsewhere.join("d/0")).unwrap(), 0, 4096);
    read(&File::open(mnt.join("d/1")).unwrap(), 1, 9_999);
    place.ok(&["umount", elsewhere.to_str().unwrap()]);
    assert_eq!(stacked(&place), 1, "the dead one is gone");
    unmount(&place, &manager, service);
}

#[test]
fn a_dead_writable_mount_that_is_in_use_keeps_its_directory() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served();
    let (image, mnt, upper) = (registry.image(), place.mnt(), place.path("changes"));
    let manager = Manager::new(&place);
    let upper = ["--upper", upper.to_str().unwrap()];
    let words = [&["-f", "-q"], &upper[..], &[&image, mnt.to_str().unwrap()]].concat();
    let mut service = manager.start(&words);
    service.until_ready();
    let mut written = File::create(mnt.join("d/new")).unwrap();
    written.write_all(b"one ").unwrap();
    die(&place, service);
    manager.loses(&state(&manager, 2));
    for _ in 0..2 {
        let service = manager.start(&words);
        assert_eq!(service.ends().code(), Some(1));
        let log = std::fs::read_to_string(place.path("log")).unwrap();
        assert!(log.contains("busy"), "{log}");
    }
    written.write_all(b"two").unwrap();
    drop(written);
    let mut service = manager.start(&words);
    service.until_ready();
    assert_eq!(std::fs::read(mnt.join("d/new")).unwrap(), b"one two");
    unmount(&place, &manager, service);
}

#[test]
fn a_service_that_cannot_mount_fails_and_says_why() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served();
    let (image, mnt) = (registry.image(), place.mnt());
    let manager = Manager::new(&place);
    let gone = image.replace("latest", "gone");
    let service = manager.start(&["-f", "-q", &gone, mnt.to_str().unwrap()]);
    assert_eq!(service.ends().code(), Some(1));
    let log = || std::fs::read_to_string(place.path("log")).unwrap();
    assert!(log().contains("gone"), "{}", log());
    let nowhere = place.path("nowhere");
    let service = manager.start(&["-f", "-q", &image, nowhere.to_str().unwrap()]);
    assert_eq!(service.ends().code(), Some(1));
    assert!(log().contains("create it first"), "{}", log());
    let service = manager.start(&["-f", "--no-such-option"]);
    assert_eq!(service.ends().code(), Some(2));
    assert_eq!(manager.keeps(), [""; 0]);
    assert_eq!(place.leftovers(), 0);
}

/// What `systemd-analyze` says of a unit with this text, if it is there.
fn complaints(unit: &str) -> Option<Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rsmount@.service");
    std::fs::write(&path, unit).unwrap();
    let instance = dir.path().join("rsmount@app.service");
    std::os::unix::fs::symlink(&path, &instance).unwrap();
    let mut command = Command::new("systemd-analyze");
    let output = command.args(["verify", "--man=no"]).arg(&instance).output();
    let output = output.inspect_err(|e| skip(&format!("systemd-analyze: {e}")));
    let said = String::from_utf8_lossy(&output.ok()?.stderr).into_owned();
    // It reads the machine's own units as well.
    let lines = said.lines().filter(|line| line.contains("rsmount"));
    Some(lines.map(str::to_owned).collect())
}

#[test]
fn systemd_understands_the_unit() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/systemd/rsmount@.service");
    let unit = std::fs::read_to_string(unit).unwrap();
    // It looks whether the program is there.
    let program = format!("\nExecStart={} ", env!("CARGO_BIN_EXE_rsmount"));
    let there = unit.replace("\nExecStart=rsmount ", &program);
    assert_ne!(there, unit);
    let Some(said) = complaints(&there) else {
        return;
    };
    assert_eq!(said, [""; 0]);
    let wrong = there.replace("KillMode=mixed", "KillMode=never");
    assert_ne!(complaints(&wrong), Some(Vec::new()), "it would say so");
}

/// `systemctl` of the manager that this test may use, of the system or of the user.
fn manager_of_this_machine() -> Option<&'static [&'static str]> {
    let all: [&[&str]; 2] = [&["--system"], &["--user"]];
    let answers = |scope: &&&[&str]| {
        let mut asked = Command::new("systemctl");
        let output = asked.args(**scope).arg("show-environment").output();
        output.is_ok_and(|output| output.status.success())
    };
    all.iter().find(answers).copied()
}

/// A unit of this machine's manager, which does not outlive the test.
struct Unit<'a> {
    scope: &'a [&'a str],
    name: &'a str,
}

impl Drop for Unit<'_> {
    fn drop(&mut self) {
        let mut stop = Command::new("systemctl");
        let stop = stop.args(self.scope).args(["stop", self.name]);
        let _stopped_already = stop.stderr(Stdio::null()).status();
    }
}

#[test]
fn systemd_itself_keeps_a_mount() {
    if !can_mount() {
        return;
    }
    let Some(scope) = manager_of_this_machine() else {
        return skip("needs a systemd that runs");
    };
    let (place, registry) = served();
    let (image, mnt) = (registry.image(), place.mnt());
    let unit = format!("rsmount-test-{}.service", std::process::id());
    let run = |program: &str, words: &[&str]| {
        let output = Command::new(program).args(scope).args(words).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{program} {words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let show = |what: &str| run("systemctl", &["show", "--value", "-p", what, &unit]);
    let rsmount = place.rsmount();
    let environment = rsmount
        .get_envs()
        .filter_map(|(k, v)| Some((k.to_str()?, v?.to_str()?)));
    let environment: Vec<_> = environment
        .map(|(k, v)| format!("--setenv={k}={v}"))
        .collect();
    let mut words = vec!["--collect", "--unit", &unit];
    for property in [
        "--property=Type=notify",
        "--property=NotifyAccess=main",
        "--property=Restart=on-failure",
        "--property=FileDescriptorStoreMax=16",
        "--property=KillMode=mixed",
    ] {
        words.push(property);
    }
    words.extend(environment.iter().map(String::as_str));
    words.push(env!("CARGO_BIN_EXE_rsmount"));
    words.extend(["-f", "-q", &image, mnt.to_str().unwrap()]);
    let _stopped = Unit { scope, name: &unit };
    // It returns when the service is ready.
    run("systemd-run", &words);
    let file = File::open(mnt.join("d/0")).unwrap();
    for at in [0, 500_000, 1_000_000] {
        until("nothing is kept", || show("NFileDescriptorStore") == "2");
        let (keeper, worker) = (show("MainPID"), worker(&place));
        kill(rustix::process::Signal::KILL, keeper.parse().unwrap());
        // Should systemd not have done so already.
        let worker = i32::try_from(worker).ok();
        let worker = worker.and_then(rustix::process::Pid::from_raw).unwrap();
        let _dead_already = rustix::process::kill_process(worker, rustix::process::Signal::KILL);
        read(&file, 0, at);
        assert_ne!(show("MainPID"), keeper);
    }
    drop(file);
    run("systemctl", &["stop", &unit]);
    assert_eq!((stacked(&place), place.leftovers()), (0, 0));
}
