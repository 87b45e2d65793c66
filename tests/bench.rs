//! `rsmount bench`: every mode is what it says, and what it prints is whole.
#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "support/all.rs"]
mod support;

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::layout::{self, DIR, FILE, Layer, Pack};
use support::ordinary::{Ordinary, USUAL, can_be_ordinary};
use support::place::{Place, can_mount};
use support::registry::Registry;

/// An image whose only program is busybox's: enough to read a file.
fn served(place: &Place) -> Option<Registry> {
    let Ok(busybox) = std::fs::read("/bin/busybox") else {
        support::place::skip("needs busybox (package busybox-static)");
        return None;
    };
    let mut random = fastrand::Rng::with_seed(3);
    let noise: Vec<u8> = (0..4 << 20).map(|_| random.u8(..)).collect();
    let program = layout::Meta {
        mode: 0o755,
        ..FILE
    };
    let layer = Layer::new()
        .dir("bin", DIR)
        .dir("proc", DIR)
        .dir("tmp", DIR)
        .file("bin/busybox", program, &busybox)
        .file("noise", FILE, &noise);
    // Nothing for the programs of this machine that get the command into the image.
    let env = serde_json::json!({ "Env": ["PATH=/in/the/image", "--help=me", "IFS=x"] });
    let spoil: layout::Spoil<'_> = &|parts| parts.config = env.clone();
    layout::write_spoilt(&place.path("image"), &[layer.tar()], Pack::Gzip, spoil);
    Some(Registry::serve(place.path("image")))
}

const READS: &[&str] = &[
    "/bin/busybox",
    "dd",
    "if=/noise",
    "of=/tmp/x",
    "bs=4096",
    "count=1",
];

/// `rsmount -q bench WORDS IMAGE -- COMMAND`, with its caches in `scratch` of the place.
fn bench(place: &Place, image: &str, words: &[&str], command: &[&str]) -> Output {
    let scratch = place.path("scratch");
    std::fs::create_dir_all(&scratch).unwrap();
    let scratch = scratch.to_str().unwrap();
    let before = ["-q", "bench", "--scratch", scratch];
    place.run(&[&before, words, &[image, "--"], command].concat())
}

/// Nothing is left of a measurement.
fn assert_clean(place: &Place) {
    let left = std::fs::read_dir(place.path("scratch")).unwrap().count();
    assert_eq!((left, place.leftovers()), (0, 0));
}

#[test]
fn the_modes_are_what_they_say() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let Some(registry) = served(&place) else {
        return;
    };
    let report = place.path("report.html");
    let words = [
        "--json",
        "--runs",
        "2",
        "--report",
        report.to_str().unwrap(),
    ];
    let output = bench(&place, &registry.image(), &words, READS);
    assert!(output.status.success(), "{output:?}");
    let measured: Value = serde_json::from_slice(&output.stdout).unwrap();
    let compressed = measured["compressed_bytes"].as_u64().unwrap();
    let fetched = |name: &str| {
        let modes = measured["modes"].as_array().unwrap();
        let mode = modes.iter().find(|m| m["mode"] == name).unwrap();
        mode["median"]["fetched_bytes"].as_u64().unwrap()
    };
    assert_eq!(fetched("first-contact"), compressed);
    assert!(
        (1..compressed / 2).contains(&fetched("indexed")),
        "{measured}"
    );
    assert!(fetched("profiled") > 0);
    assert_eq!(fetched("warm"), 0);
    assert_eq!(
        measured["left_out"][0]["mode"], "packed",
        "nobody has published"
    );
    for row in measured["modes"].as_array().unwrap() {
        assert_eq!(row["starts"].as_array().unwrap().len(), 2);
        let time = |name: &str| row["median"][name].as_f64().unwrap();
        assert!(time("resolved_ms") <= time("usable_ms"));
        assert!(time("usable_ms") <= time("ready_ms"));
    }
    let page = std::fs::read_to_string(&report).unwrap();
    assert!(page.contains("<svg") && page.contains("first-contact") && page.contains("</html>"));
    assert_clean(&place);
}

#[test]
fn with_a_pack_a_packed_start_is_measured() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let Some(registry) = served(&place) else {
        return;
    };
    drop(place.mount_image(&registry.image(), &[]));
    place.ok(&["-q", "publish", &registry.image()]);
    let words = ["--runs", "1", "--modes", "packed"];
    let output = bench(&place, &registry.image(), &words, READS);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("packed") && text.contains("SPREAD"), "{text}");
    assert_clean(&place);
}

#[test]
fn what_cannot_be_measured_is_one_line_and_leaves_nothing() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let Some(registry) = served(&place) else {
        return;
    };
    let image = registry.image();
    let warm = ["--runs", "1", "--modes", "warm"];
    let failed = bench(&place, &image, &warm, &["/bin/busybox", "false"]);
    let wrong = bench(&place, &image, &["--report", "x.png"], READS);
    registry.control.unplugged.store(true, SeqCst);
    let away = bench(&place, &image, &warm, READS);
    for output in [failed, wrong, away] {
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    assert_clean(&place);
}

#[test]
fn another_tool_that_fails_is_left_out_with_a_line() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let Some(registry) = served(&place) else {
        return;
    };
    // It is there, and its second pull fails.
    let programs = place.path("programs");
    std::fs::create_dir(&programs).unwrap();
    let script = "#!/bin/sh\ncase $* in\n--version) exit 0;;\n*pull*) ;;\n*) exit 0;;\nesac\n\
                  if mkdir \"$0.once\" 2>/dev/null; then exit 0; fi\n\
                  echo too few files >&2\necho no room >&2\nexit 125\n";
    let podman = programs.join("podman");
    std::fs::write(&podman, script).unwrap();
    std::fs::set_permissions(&podman, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::create_dir(place.path("scratch")).unwrap();
    let path = std::env::var("PATH").unwrap();
    let measured = |modes: &str| {
        let mut bench = place.rsmount();
        bench.env("PATH", format!("{}:{path}", programs.display()));
        bench.args(["-q", "bench", "--json", "--runs", "3", "--vs", "podman"]);
        bench.args(["--modes", modes, "--scratch"]);
        bench.arg(place.path("scratch")).arg(registry.image());
        bench.arg("--").args(READS).output().unwrap()
    };
    let output = measured("warm");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    let modes = shown["modes"].as_array().unwrap();
    assert_eq!(modes.len(), 1, "{shown}");
    assert_eq!(modes[0]["mode"], "warm");
    assert_eq!(shown["left_out"][0]["mode"], "podman", "{shown}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(
        said.contains("podman is left out") && said.contains("no room"),
        "{said}"
    );
    assert_clean(&place);
}

/// Processes of which a word of the command line is `word`.
fn processes_with(word: &str) -> usize {
    let has = |pid: &Path| {
        let line = std::fs::read(pid.join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|w| w == word.as_bytes())
    };
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter(|entry| has(&entry.path())).count()
}

fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is() {
        assert!(Instant::now() < deadline, "not {what} in 30 s");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A measurement that goes on.
fn begun(place: &Place, image: &str, mode: &str, command: &[&str]) -> Child {
    let scratch = place.path("scratch");
    std::fs::create_dir_all(&scratch).unwrap();
    let mut bench = place.rsmount();
    bench.args(["-q", "bench", "--runs", "1", "--modes", mode, "--scratch"]);
    bench.arg(scratch).args([image, "--"]).args(command);
    bench.stdout(Stdio::piped()).stderr(Stdio::piped());
    bench.spawn().unwrap()
}

/// Sends it a signal: nothing is left, and the exit code says which it was.
fn assert_ends(place: &Place, child: Child, signal: &str, code: i32) {
    let mut kill = Command::new("kill");
    let sent = kill.args(["-s", signal, &child.id().to_string()]).status();
    assert!(sent.unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert!(
        output.stdout.is_empty() && output.stderr.is_empty(),
        "{output:?}"
    );
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(place.dir.path().to_str().unwrap()));
    assert_clean(place);
}

#[test]
fn a_signal_ends_it_as_if_it_had_ended() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let Some(registry) = served(&place) else {
        return;
    };
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        // While the command runs.
        let long = format!("{}", 100_000 + std::process::id());
        let command = ["/bin/busybox", "sleep", &long];
        let child = begun(&place, &registry.image(), "first-contact", &command);
        // `rsmount`, `unshare`, and the command itself.
        wait_until("running", || processes_with(&long) >= 3);
        assert_ends(&place, child, signal, code);
        wait_until("ended", || processes_with(&long) == 0);

        // While the image is on its way.
        let asked = registry.control.asked().len();
        *registry.control.held_range.lock().unwrap() = Some(1 << 20..2 << 20);
        let child = begun(&place, &registry.image(), "first-contact", READS);
        let is_layer = |a: &support::registry::Asked| a.range.end > 1 << 20;
        wait_until("asked for", || {
            registry.control.asked()[asked..].iter().any(is_layer)
        });
        assert_ends(&place, child, signal, code);
        *registry.control.held_range.lock().unwrap() = None;
    }
}

#[test]
fn an_ordinary_user_measures_as_well() {
    if !can_be_ordinary() {
        return;
    }
    let user = Ordinary::on(USUAL);
    let Some(registry) = served(&user.place) else {
        return;
    };
    let mut probe = user.command(support::ordinary::UID, "unshare");
    let probe = probe.args(["--user", "--map-root-user", "--mount", "--pid", "--fork"]);
    if !probe.arg("true").output().unwrap().status.success() {
        support::place::skip("needs user namespaces for ordinary users");
        return;
    }
    let scratch = user.home().to_str().unwrap().to_owned();
    let image = registry.image();
    let words = [
        "-q",
        "bench",
        "--json",
        "--runs",
        "1",
        "--scratch",
        &scratch,
    ];
    let modes = [
        "--modes",
        "first-contact,indexed,profiled,warm",
        &image,
        "--",
    ];
    let before = std::fs::read_dir(user.home()).unwrap().count();
    let said = user.ok(&[&words[..], &modes, READS].concat());
    let measured: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(measured["page_cache_dropped"], false);
    let modes = measured["modes"].as_array().unwrap();
    let fetched = |n: usize| modes[n]["median"]["fetched_bytes"].as_u64().unwrap();
    assert_eq!(modes.len(), 4, "{measured}");
    assert_eq!(fetched(0), measured["compressed_bytes"].as_u64().unwrap());
    assert!((1..fetched(0) / 2).contains(&fetched(1)), "{measured}");
    assert_eq!(fetched(3), 0, "{measured}");
    assert_eq!(user.mounted(), None);
    // What is new besides is where records of mounts go, and the log.
    let left = std::fs::read_dir(user.home()).unwrap().flatten();
    let names: Vec<_> = left.map(|e| e.file_name().into_string().unwrap()).collect();
    assert!(
        names.iter().all(|name| !name.starts_with("rsmount-bench")),
        "{names:?}"
    );
    assert!(names.len() <= before + 3, "{names:?}");
}
