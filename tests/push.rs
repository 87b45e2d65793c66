//! Images are pushed: what is there is not sent, a broken upload goes on, the manifest comes last.
//!
//! Needs root and `/dev/fuse`, docker-registry and skopeo; says so loudly where something is skipped.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "a test")]

#[path = "support/all.rs"]
mod support;

use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::Ordering::SeqCst;

use rsmount::oci::Digest;
use serde_json::{Value, json};
use support::docker_registry::DockerRegistry;
use support::layout::{self, DIR, FILE, Layer, Pack};
use support::place::{Place, can_mount};
use support::receiver::Receiver;
use support::seen;

/// Length of a piece of an upload.
const PIECE: u64 = 8 << 20;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn noise(len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    (0..len).map(|_| random.u8(..)).collect()
}

/// A committed image of two layers below one of `len` bytes that do not compress.
fn committed(place: &Place, base: &str, name: &str, len: usize) {
    let mounted = place.mount_image(base, &["--tmp"]);
    std::fs::write(mounted.path("etc/new"), noise(len)).unwrap();
    place.ok(&["commit", text(&place.mnt()), name]);
}

fn layout(place: &Place) -> String {
    let first = Layer::new().dir("etc", DIR).file("etc/a", FILE, b"a");
    let second = Layer::new().file("etc/b", FILE, &noise(100_000));
    layout::write(
        &place.path("image"),
        &[first.tar(), second.tar()],
        Pack::Gzip,
    );
    format!("oci:{}", place.path("image").display())
}

fn run(program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
    output.stdout
}

fn pushed(place: &Place, words: &[&str]) -> String {
    let output = place.run(&[&["push"], words].concat());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{words:?}: {said}");
    said
}

fn refused(output: &Output, expected: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    assert!(said.contains(expected), "{said:?} lacks {expected:?}");
}

#[test]
fn a_real_registry_takes_what_it_lacks_and_gives_it_back() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let Some(registry) = DockerRegistry::serve(&place.path("registry"), false) else {
        return;
    };
    let source = layout(&place);
    let (base, app) = (registry.image("team/base:1"), registry.image("team/app:1"));
    // From an archive, as `skopeo copy` does it.
    let said = pushed(&place, &[&source, &base]);
    assert_eq!(said.matches(": pushed").count(), 2, "{said}");
    let raw = |name: &str| {
        let name = format!("docker://{name}");
        run("skopeo", &["inspect", "--tls-verify=false", "--raw", &name])
    };
    let index: Value =
        serde_json::from_slice(&std::fs::read(place.path("image/index.json")).unwrap()).unwrap();
    let digest = index["manifests"][0]["digest"].as_str().unwrap();
    assert_eq!(Digest::of(&raw(&base)).to_string(), digest);
    // The layers below are there; a neighbour has them.
    committed(&place, &base, &app, 20_000_000);
    let said = pushed(&place, &[&app]);
    assert_eq!(said.matches("mounted from team/base").count(), 2, "{said}");
    assert_eq!(said.matches(": pushed").count(), 1, "{said}");
    let said = pushed(&place, &[&app]);
    assert_eq!(said.matches("there already").count(), 3, "{said}");
    // To another registry the layers below stream from the first one: no original is kept.
    let other = DockerRegistry::serve(&place.path("other"), false).unwrap();
    place.ok(&["cache", "prune", "--data"]);
    let there = other.image("copy:2");
    let said = pushed(&place, &[&app, &there]);
    assert_eq!(said.matches(": pushed").count(), 3, "{said}");
    assert_eq!(raw(&app), raw(&there));
    // What others make of it, and we from nothing.
    let copy = place.path("copy");
    let (from, to) = (
        format!("docker://{there}"),
        format!("oci:{}:x", copy.display()),
    );
    run(
        "skopeo",
        &["copy", "-q", "--src-tls-verify=false", &from, &to],
    );
    let ours = {
        let _mounted = place.mount_image(&app, &[]);
        seen::look(&place.mnt())
    };
    let fresh = Place::new();
    let _mounted = fresh.mount_image(&there, &[]);
    seen::assert_same("pulled", &ours, &seen::look(&fresh.mnt()));
}

#[test]
fn a_platform_is_added_to_an_index_and_replaced_in_it() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let Some(registry) = DockerRegistry::serve(&place.path("registry"), false) else {
        return;
    };
    let source = layout(&place);
    let other = place.path("arm");
    let arm: support::layout::Spoil<'_> = &|parts| parts.architecture = "arm64".to_owned();
    let tar = Layer::new().file("arm", FILE, b"arm").tar();
    layout::write_spoilt(&other, &[tar], Pack::Gzip, arm);
    let arm = format!("oci:{}", other.display());
    let name = registry.image("app:multi");
    let platforms = || {
        let docker = format!("docker://{name}");
        let raw = run(
            "skopeo",
            &["inspect", "--tls-verify=false", "--raw", &docker],
        );
        let index: Value = serde_json::from_slice(&raw).unwrap();
        let of = |m: &Value| m["platform"]["architecture"].as_str().unwrap().to_owned();
        let list = index["manifests"].as_array().unwrap().clone();
        (list.iter().map(of).collect::<Vec<_>>(), index)
    };
    // A single image stays beside the new one.
    pushed(&place, &["--platform", "linux/arm64", &arm, &name]);
    pushed(&place, &[&source, &name, "--update-index"]);
    let host = layout::host_architecture();
    assert_eq!(platforms().0, ["arm64", host]);
    let before = platforms().1;
    committed(&place, &name, "local/app:1", 10);
    pushed(&place, &["local/app:1", &name, "--update-index"]);
    let (names, after) = platforms();
    assert_eq!(names, ["arm64", host]);
    assert_eq!(before["manifests"][0], after["manifests"][0]);
    assert_ne!(before["manifests"][1], after["manifests"][1]);
    let fresh = Place::new();
    let mounted = fresh.mount_image(&name, &[]);
    assert_eq!(std::fs::read(mounted.path("etc/new")).unwrap(), noise(10));
}

#[test]
fn an_upload_that_breaks_goes_on_where_it_broke() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let receiver = Receiver::serve();
    let received = &receiver.received;
    committed(&place, &layout(&place), "app:1", 40_000_000);
    let name = receiver.image("app:1");
    // In the middle of a piece, within one push.
    received.break_at.store(3, SeqCst);
    pushed(&place, &["app:1", &name]);
    let size: u64 = received
        .blobs
        .lock()
        .unwrap()
        .values()
        .map(|b| b.len() as u64)
        .sum();
    assert!(size > 40_000_000);
    assert!(received.states.load(SeqCst) >= 1);
    let config_bytes = size - received.bytes.load(SeqCst);
    assert!(
        config_bytes < 10_000,
        "nothing was sent twice: {config_bytes}"
    );
    assert!(received.manifests.lock().unwrap().contains_key("1"));
}

#[test]
fn an_upload_survives_whatever_still_makes_progress() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let receiver = Receiver::serve();
    let received = &receiver.received;
    committed(&place, &layout(&place), "app:1", 80_000_000);
    // More breaks than there are tries, each behind something that has arrived; and a registry that is
    // too busy to say how far it is has not forgotten it.
    received.shaky.store(true, SeqCst);
    received.busy_states.store(1, SeqCst);
    let name = receiver.image("app:1");
    pushed(&place, &["app:1", &name]);
    let sum = || {
        let blobs = received.blobs.lock().unwrap();
        blobs.values().map(|b| b.len() as u64).sum::<u64>()
    };
    assert!(received.pieces.load(SeqCst) > 12);
    assert!(
        received.bytes.load(SeqCst) <= sum(),
        "something was sent twice"
    );
    // The end of an upload works, and its answer gets lost: nothing is sent again.
    received.shaky.store(false, SeqCst);
    committed(&place, &layout(&place), "app:2", 20_000_000);
    received.silent_ends.store(1, SeqCst);
    let (bytes, begun) = (received.bytes.load(SeqCst), received.begun.load(SeqCst));
    let before = sum();
    pushed(&place, &["app:2", &receiver.image("app:2")]);
    assert_eq!(received.silent_ends.load(SeqCst), 0);
    assert!(
        received.bytes.load(SeqCst) - bytes <= sum() - before,
        "something was sent twice"
    );
    // Its layer and its configuration.
    assert_eq!(received.begun.load(SeqCst) - begun, 2);
}

#[test]
fn a_registry_that_fails_at_taking_a_blob_over_gets_it_sent() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let receiver = Receiver::serve();
    let source = layout(&place);
    pushed(&place, &[&source, &receiver.image("team/base:1")]);
    let base = receiver.image("team/base:1");
    place.ok(&["pull", "-q", &base]);
    receiver.received.discreet.store(true, SeqCst);
    let said = pushed(&place, &[&base, &receiver.image("team/app:1")]);
    assert_eq!(said.matches(": pushed").count(), 2, "{said}");
}

#[test]
fn an_update_of_an_index_that_somebody_undoes_is_made_again() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let receiver = Receiver::serve();
    let received = &receiver.received;
    let source = layout(&place);
    let name = receiver.image("app:1");
    let arm = Digest::of(b"arm");
    let other = json!({ "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{ "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": arm.to_string(), "size": 3,
            "platform": { "os": "linux", "architecture": "arm64" } }] });
    *received.undone_by.lock().unwrap() = Some(other.to_string().into_bytes());
    pushed(&place, &[&source, &name, "--update-index"]);
    let manifests = received.manifests.lock().unwrap();
    let index: Value = serde_json::from_slice(&manifests["1"]).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 2, "{index}");
    assert_eq!(index["manifests"][0]["digest"], arm.to_string());
}

#[test]
fn a_push_that_was_broken_off_goes_on_the_next_time() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let receiver = Receiver::serve();
    let received = &receiver.received;
    committed(&place, &layout(&place), "app:1", 40_000_000);
    let name = receiver.image("app:1");
    // One layer after the other, so that the large one's third piece is the one meant.
    received.break_at.store(5, SeqCst);
    received.dies.store(true, SeqCst);
    let output = place.run(&["-q", "push", "app:1", &name]);
    refused(&output, "127.0.0.1");
    assert!(
        received.manifests.lock().unwrap().is_empty(),
        "the manifest comes last"
    );
    let before = received.bytes.load(SeqCst);
    assert!(before >= 2 * PIECE, "{before}");
    received.dead.store(false, SeqCst);
    pushed(&place, &["app:1", &name]);
    let size: u64 = received
        .blobs
        .lock()
        .unwrap()
        .values()
        .map(|b| b.len() as u64)
        .sum();
    let sent = received.bytes.load(SeqCst);
    assert!(sent <= size, "{sent} of {size}: something was sent twice");
    assert!(received.manifests.lock().unwrap().contains_key("1"));
}

#[test]
fn who_cannot_push_is_told_why() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let source = layout(&place);
    let receiver = Receiver::serve();
    receiver.received.forbidden.store(true, SeqCst);
    let denied = place.run(&["-q", "push", &source, &receiver.image("app:1")]);
    refused(&denied, "no right to push to app");
    let by_digest = format!("app@{}", Digest::of(b"x"));
    refused(
        &place.run(&["-q", "push", &source, &by_digest]),
        "with a tag",
    );
    refused(&place.run(&["-q", "push", &source, "Bad"]), "Bad");
    let nobody = place.run(&["-q", "push", &source, "127.0.0.1:1/app:1"]);
    refused(&nobody, "refuses connections");
    let Some(registry) = DockerRegistry::serve(&place.path("registry"), true) else {
        return;
    };
    let read_only = place.run(&["-q", "push", &source, &registry.image("app:1")]);
    refused(&read_only, "read-only");
    let said: Value = serde_json::from_str(&place.ok(&["inspect", "--offline", &source])).unwrap();
    assert_ne!(said, json!([]));
}

#[test]
fn what_was_loaded_is_the_only_copy_until_its_own_name_has_it() {
    let place = Place::new();
    let Some(registry) = DockerRegistry::serve(&place.path("registry"), false) else {
        return;
    };
    let source = layout(&place);
    let file = place.path("image.tar");
    place.ok(&["-q", "save", "-o", text(&file), &source]);
    place.ok(&["cache", "prune", "--all"]);
    let name = registry.image("team/loaded:1");
    place.ok(&["-q", "load", "-i", text(&file), "--name", &name]);
    let sole = || {
        let usage: Value = serde_json::from_str(&place.ok(&["cache", "du", "--json"])).unwrap();
        let layers = usage["layers"].as_array().unwrap().clone();
        layers.iter().filter(|l| l["sole"] == true).count()
    };
    assert_eq!(sole(), 2);
    // Another name is not where the image is looked for.
    pushed(&place, &[&name, &registry.image("elsewhere:1")]);
    assert_eq!(sole(), 2);
    pushed(&place, &[&name]);
    assert_eq!(sole(), 0);
    // So it is pruned as any other, and comes from there again.
    std::fs::remove_file(&file).unwrap();
    std::fs::remove_dir_all(place.path("image")).unwrap();
    let pruned = place.run(&["cache", "prune", "--data"]);
    let said = String::from_utf8(pruned.stderr).unwrap();
    assert!(!said.contains("kept their data"), "{said}");
    assert_eq!(place.ok(&["cat", &format!("{name}:/etc/a")]), "a");
}
