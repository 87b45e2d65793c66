//! An image is made of a container that runs: it stands still meanwhile, or what changes under the reading
//! fails the commit; what its runtime made to mount over is in no image.
//!
//! Needs root, runc or crun with the cgroup freezer, and busybox-static; says so loudly where it is skipped.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "a test")]

#[path = "support/all.rs"]
mod support;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use support::containers::{Containers, text};

/// Writes to two files as long as it lives; the first is large, so that it is read for a while.
const BUSY: &str = "head -c 50331648 /dev/zero >/big; \
                    while :; do echo more >>/big; echo 1 >>/count; done";

/// How long the first is before that.
const BIG: usize = 50_331_648;

/// Does nothing when it has written a file.
const QUIET: &str = "echo new >/made; while :; do sleep 0.05; done";

/// A place with a container `box` that runs `script`.
fn begun(options: &[&str], script: &str) -> Option<Containers> {
    let containers = Containers::new(&json!({}))?;
    let all = [&["-d", "--name", "box"], options].concat();
    containers.ok(&all, &["sh", "-c", script]);
    Some(containers)
}

/// A file of the running container.
fn file(containers: &Containers, name: &str) -> PathBuf {
    let rows = containers.ps();
    PathBuf::from(rows[0]["mountpoint"].as_str().unwrap()).join(name)
}

/// Waits until the container has counted on.
fn goes_on(containers: &Containers) {
    let count = file(containers, "count");
    let now = || std::fs::read_to_string(&count).unwrap_or_default();
    let (before, deadline) = (now(), Instant::now() + Duration::from_secs(30));
    while now() == before || now().is_empty() {
        assert!(Instant::now() < deadline, "it does not go on");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn commit(containers: &Containers, options: &[&str]) -> Output {
    let mut words = vec!["commit", "box", "test/frozen:1"];
    words.extend_from_slice(options);
    containers.0.run(&words)
}

/// A runtime that does `before` when it is asked to pause a container, and is runc else.
fn runtime(containers: &Containers, before: &str) -> String {
    let path = containers.0.path("a-runtime");
    let script = format!(
        "#!/bin/sh\nfor word; do\n  if [ \"$word\" = pause ]; then {before}; fi\ndone\nexec runc \"$@\"\n"
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_container_stands_still_while_it_is_committed() {
    let Some(containers) = begun(&[], BUSY) else {
        return;
    };
    goes_on(&containers);
    let committed = commit(&containers, &["-q"]);
    assert!(committed.status.success(), "{committed:?}");
    let size = |name: &str| {
        let text = containers
            .0
            .ok(&["cat", "--offline", &format!("test/frozen:1:/{name}")]);
        text.len()
    };
    // Five bytes and two bytes in turn: the two files are of one moment.
    let (more, lines) = ((size("big") - BIG) / 5, size("count") / 2);
    assert!(
        lines > 0 && (more == lines || more == lines + 1),
        "{more} {lines}"
    );
    goes_on(&containers);
    assert_eq!(containers.ps()[0]["container"]["status"], "running");

    let refused = commit(&containers, &["-q", "--pause=false"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let said = text(&refused.stderr);
    assert!(said.contains("changed while it was read"), "{said}");
    assert!(said.contains("/big:") || said.contains("/count:"), "{said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
}

#[test]
fn what_was_mounted_over_is_no_change() {
    let Some(containers) = begun(&["-v", "/etc:/mnt/host", "--tmpfs", "/scratch"], QUIET) else {
        return;
    };
    while !file(&containers, "made").exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let place = &containers.0;
    let running = place.ok(&["diff", "box"]);
    let mut lines: Vec<&str> = running.lines().collect();
    lines.sort_unstable();
    // The image has /etc, in which files are made to mount over; of the rest it has nothing.
    assert_eq!(lines, ["A /made", "A /mnt", "C /etc"]);
    place.ok(&["commit", "-q", "box", "test/frozen:1"]);
    let listed = |dir: &str| place.ok(&["ls", "--offline", &format!("test/frozen:1:{dir}")]);
    assert_eq!(listed("/"), "bin\ndata\netc\nmade\nmnt\nroot\ntmp\n");
    assert_eq!(listed("/etc"), "group\nno-program\npasswd\n");
    place.ok(&["kill", "box"]);
    place.ok(&["wait", "box"]);
    assert_eq!(place.ok(&["diff", "box"]), running);
    let layers = |image: &str| {
        let text = place.ok(&["inspect", "--offline", image]);
        let value: Value = serde_json::from_str(&text).unwrap();
        let layers = value[0]["RootFS"]["Layers"].clone();
        assert_eq!(layers.as_array().unwrap().len(), 2, "{text}");
        layers
    };
    let first = layers("test/frozen:1");
    place.ok(&["commit", "-q", "box", "test/frozen:2"]);
    let second = layers("test/frozen:2");
    assert_eq!(first, second, "the end of the container changed nothing");
}

#[test]
fn without_a_freezer_only_what_changes_is_refused() {
    let Some(containers) = Containers::new(&json!({})) else {
        return;
    };
    let none = runtime(&containers, "echo no freezer here >&2; exit 1");
    let run = |script: &str| {
        containers.ok(
            &["-d", "--name", "box", "--runtime", &none],
            &["sh", "-c", script],
        );
    };
    run(QUIET);
    let committed = commit(&containers, &[]);
    assert!(committed.status.success(), "{committed:?}");
    let said = text(&committed.stderr);
    assert!(
        said.contains("box goes on meanwhile") && said.contains("no freezer here"),
        "{said}"
    );
    containers.0.ok(&["rm", "-f", "box"]);
    run(BUSY);
    goes_on(&containers);
    let refused = commit(&containers, &["-q"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(
        text(&refused.stderr).contains("changed while it was read"),
        "{refused:?}"
    );
}

#[test]
fn an_interrupted_commit_lets_the_container_go_on() {
    let Some(containers) = Containers::new(&json!({})) else {
        return;
    };
    let mark = containers.0.path("stands-still");
    let marks = format!("runc \"$@\"; touch {}; exit", mark.display());
    let marking = runtime(&containers, &marks);
    containers.ok(
        &["-d", "--name", "box", "--runtime", &marking],
        &["sh", "-c", BUSY],
    );
    goes_on(&containers);
    let mut commit = containers.0.rsmount();
    commit.args(["commit", "-q", "box", "test/frozen:1"]);
    let mut commit = commit
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while !mark.exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    rustix::process::kill_process(Pid::from_child(&commit), Signal::INT).unwrap();
    let status = commit.wait().unwrap();
    assert_eq!(status.signal(), Some(Signal::INT.as_raw()), "{status:?}");
    goes_on(&containers);
}

#[test]
fn a_directory_of_the_same_name_is_in_no_containers_way() {
    let Some(containers) = begun(&[], QUIET) else {
        return;
    };
    let made = file(&containers, "made");
    let deadline = Instant::now() + Duration::from_secs(30);
    while !made.exists() {
        assert!(Instant::now() < deadline, "it does nothing");
        std::thread::sleep(Duration::from_millis(10));
    }
    let here = containers.0.path("here");
    let at_box = here.join("box");
    std::fs::create_dir_all(&at_box).unwrap();
    let at = |words: &[&str]| {
        let mut command = containers.0.rsmount();
        command.current_dir(&here).args(words).output().unwrap()
    };
    let diff = at(&["diff", "box"]);
    assert!(diff.status.success(), "{diff:?}");
    assert!(text(&diff.stdout).contains("A /made"), "{diff:?}");
    let commit = at(&["commit", "-q", "box", "test/here:1"]);
    assert!(commit.status.success(), "{commit:?}");
    assert_eq!(containers.0.ok(&["cat", "test/here:1:/made"]), "new\n");

    // Where both could be meant neither is taken for the other.
    let place = at_box.to_str().unwrap();
    containers
        .0
        .ok(&["-q", &containers.image(), place, "--tmp"]);
    std::fs::write(at_box.join("mine"), "").unwrap();
    for words in [&["diff", "box"][..], &["commit", "box", "test/here:2"]] {
        let both = at(words);
        assert_eq!(both.status.code(), Some(1), "{both:?}");
        let said = text(&both.stderr);
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains("write ./box for the directory"), "{said}");
    }
    let path = at(&["diff", "./box"]);
    assert_eq!(text(&path.stdout), "A /mine\n", "{path:?}");
    let mut rows = containers.ps().into_iter();
    let id = rows.find_map(|row| Some(row["container"]["id"].as_str()?.to_owned()));
    let container = at(&["diff", &id.unwrap()]);
    assert!(text(&container.stdout).contains("A /made"), "{container:?}");
    containers.0.ok(&["umount", place]);
}
