//! The store of images: `pull`, `images`, `tag`, `rmi`, `save`, `load`, and logins; with skopeo and
//! podman at the other end of archives.
#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "support/all.rs"]
mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::layout::{self, DIR, FILE, Layer, Pack};
use support::place::{Place, can_mount, skip};
use support::registry::Registry;

/// Bytes that hardly compress.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..len).map(|_| random.u8(..)).collect()
}

fn base() -> Layer {
    Layer::new()
        .dir("etc", DIR)
        .file("etc/motd", FILE, b"hello\n")
        .file("big", FILE, &noise(5 << 20, 1))
}

fn upper(seed: u64) -> Layer {
    Layer::new().file("own", FILE, &noise(1 << 20, seed))
}

fn served(place: &Place, name: &str, tars: &[Vec<u8>]) -> Registry {
    layout::write(&place.path(name), tars, Pack::Gzip);
    Registry::serve(place.path(name))
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Everything in the store, as JSON.
fn images(place: &Place) -> Vec<Value> {
    json(&place.ok(&["images", "--json"]))
        .as_array()
        .unwrap()
        .clone()
}

fn layers(place: &Place) -> usize {
    std::fs::read_dir(place.path("cache/v1/layers/sha256")).map_or(0, Iterator::count)
}

fn counted(registry: &Registry) -> (u64, u64) {
    let control = &registry.control;
    (
        control.requests.swap(0, SeqCst),
        control.blob_bytes.swap(0, SeqCst),
    )
}

/// One line that says `expected`, exit code 1, nothing half-written.
fn refused(place: &Place, output: &Output, expected: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    let usage = expected.starts_with("--filter");
    assert_eq!(
        output.status.code(),
        Some(1 + i32::from(usage)),
        "{expected}: {text}"
    );
    assert_eq!(text.trim_end().lines().count(), 1, "{expected}: {text}");
    assert!(
        text.starts_with("rsmount: ") && text.contains(expected),
        "{expected}: {text}"
    );
    let left = std::fs::read_dir(place.path("cache/v1/tmp")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "{expected}: the cache has something half-written");
}

#[test]
fn a_pull_brings_what_is_not_here_and_nothing_else() {
    let place = Place::new();
    let registry = served(&place, "image", &[base().tar(), upper(2).tar()]);
    let image = registry.image();
    let said = json(&place.ok(&["-q", "pull", "--json", &image]));
    assert_eq!(
        (&said[0]["newer"], &said[0]["images"][0]["streamed"]),
        (&true.into(), &2.into())
    );
    let (_, whole) = counted(&registry);
    assert!(whole > 6 << 20, "{whole}");
    let manifest_and_config = 4 << 10;
    let fetched = said[0]["images"][0]["fetched_bytes"].as_u64().unwrap();
    assert!(
        (whole - manifest_and_config..=whole).contains(&fetched),
        "{fetched} of {whole}"
    );
    // The registry is asked what the tag stands for, and nothing else.
    let again = place.ok(&["pull", &image]);
    assert!(again.contains("up to date"), "{again}");
    assert_eq!(counted(&registry), (1, 0));
    // Data that is gone comes by its spans, and layers that were forgotten stream.
    place.ok(&["cache", "prune", "--data"]);
    place.ok(&["cat", &format!("{image}:/etc/motd")]);
    counted(&registry);
    let said = json(&place.ok(&["-q", "pull", "--json", &image]));
    let pulled = &said[0]["images"][0];
    assert_eq!(
        (&said[0]["newer"], &pulled["streamed"]),
        (&false.into(), &0.into())
    );
    let (_, rest) = counted(&registry);
    assert!((1..whole).contains(&rest), "{rest} of {whole}");
    assert_eq!(pulled["fetched_bytes"], rest);
    registry.control.unplugged.store(true, SeqCst);
    let cat = place.run(&["cat", "--offline", &format!("{image}:/big")]);
    assert!(cat.stdout == noise(5 << 20, 1));
    refused(&place, &place.run(&["-q", "pull", &image]), "127.0.0.1");
    let listed = images(&place);
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0]["local_bytes"], listed[0]["unpacked_bytes"]);
    assert!(place.ok(&["images"]).contains(" all"));
}

#[test]
fn a_pull_goes_on_where_another_one_ended() {
    let place = Place::new();
    let one = served(&place, "one", &[base().tar()]);
    let both = served(&place, "both", &[base().tar(), upper(2).tar()]);
    place.ok(&["-q", "pull", &one.image()]);
    // Killed in the middle of its second layer.
    both.control.held.store(true, SeqCst);
    let mut pull = place.rsmount();
    let mut pull = pull.args(["-q", "pull", &both.image()]).spawn().unwrap();
    wait_until("asked for a blob", || {
        both.control.blob_requests.load(SeqCst) > 0
    });
    pull.kill().unwrap();
    pull.wait().unwrap();
    both.control.held.store(false, SeqCst);
    let said = json(&place.ok(&["-q", "pull", "--json", &both.image()]));
    let pulled = &said[0]["images"][0];
    assert_eq!(
        (&pulled["layers"], &pulled["streamed"]),
        (&2.into(), &1.into())
    );
    let left = std::fs::read_dir(place.path("cache/v1/tmp"))
        .unwrap()
        .count();
    assert_eq!(left, 0);
}

fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is() {
        assert!(Instant::now() < deadline, "not {what} in 30 s");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Writes an image of two platforms, which share their base.
fn two_platforms(dir: &Path) {
    let mut entries = Vec::new();
    for (architecture, seed) in [("amd64", 2), ("arm64", 3)] {
        layout::write_spoilt(
            dir,
            &[base().tar(), upper(seed).tar()],
            Pack::Gzip,
            &|parts| {
                parts.architecture = architecture.to_owned();
            },
        );
        let index = json(&std::fs::read_to_string(dir.join("index.json")).unwrap());
        let mut entry = index["manifests"][0].clone();
        entry["platform"] = json(&format!(
            r#"{{"os":"linux","architecture":"{architecture}"}}"#
        ));
        entries.push(entry);
    }
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": entries,
    });
    let bytes = index.to_string();
    let digest = rsmount::oci::Digest::of(bytes.as_bytes());
    std::fs::write(dir.join("blobs/sha256").join(digest.hex()), &bytes).unwrap();
    let top = serde_json::json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": digest, "size": bytes.len(),
    }]});
    std::fs::write(dir.join("index.json"), top.to_string()).unwrap();
}

#[test]
fn an_index_that_names_no_platforms_is_not_pulled_as_nothing() {
    let place = Place::new();
    let dir = place.path("image");
    layout::write(&dir, &[base().tar()], Pack::Gzip);
    let top = std::fs::read_to_string(dir.join("index.json")).unwrap();
    let mut entry = json(&top)["manifests"][0].clone();
    entry.as_object_mut().unwrap().remove("platform");
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [entry],
        "mediaType": "application/vnd.oci.image.index.v1+json" });
    let bytes = index.to_string();
    let digest = rsmount::oci::Digest::of(bytes.as_bytes());
    std::fs::write(dir.join("blobs/sha256").join(digest.hex()), &bytes).unwrap();
    let top = serde_json::json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": digest, "size": bytes.len(),
    }]});
    std::fs::write(dir.join("index.json"), top.to_string()).unwrap();
    let registry = Registry::serve(dir);
    let output = place.run(&["-q", "pull", "--json", "--all-platforms", &registry.image()]);
    let said = String::from_utf8(output.stdout.clone()).unwrap();
    // One image of it, or a word on why not.
    let nothing = output.status.success() && json(&said)[0]["images"] == serde_json::json!([]);
    assert!(
        !nothing && (output.status.success() || !output.stderr.is_empty()),
        "{output:?}"
    );
}

#[test]
fn every_platform_is_pulled_and_listed() {
    let place = Place::new();
    two_platforms(&place.path("image"));
    let registry = Registry::serve(place.path("image"));
    let image = registry.image();
    place.ok(&["-q", "pull", "--platform", "linux/arm64", &image]);
    let listed = images(&place);
    assert_eq!(
        (listed.len(), &listed[0]["platform"]),
        (1, &"linux/arm64".into())
    );
    let said = json(&place.ok(&["-q", "pull", "--json", "--all-platforms", &image]));
    let pulled = said[0]["images"].as_array().unwrap();
    assert_eq!(pulled.len(), 2);
    assert_eq!(
        (&pulled[0]["streamed"], &pulled[1]["streamed"]),
        (&1.into(), &0.into())
    );
    let listed = images(&place);
    assert_eq!(listed.len(), 2);
    assert_eq!(listed[0]["digest"], listed[1]["digest"]);
    for (platform, seed) in [("linux/amd64", 2), ("linux/arm64", 3)] {
        let path = format!("{image}:/own");
        let cat = place.run(&["cat", "--offline", "--platform", platform, &path]);
        assert!(cat.stdout == noise(1 << 20, seed), "{platform}");
    }
    // The tag is one name for both.
    place.ok(&["rmi", &image]);
    assert_eq!((images(&place).len(), layers(&place)), (0, 0));
}

#[test]
fn images_are_listed_and_filtered() {
    let place = Place::new();
    let registry = served(&place, "image", &[base().tar()]);
    let image = registry.image();
    assert!(place.ok(&["images"]).starts_with("REPOSITORY "));
    place.ok(&["inspect", &image]);
    assert!(
        place.ok(&["images"]).contains("metadata"),
        "{}",
        place.ok(&["images"])
    );
    place.ok(&["-q", "pull", &image]);
    place.ok(&["tag", &image, "mine/one:1"]);
    place.ok(&["tag", "mine/one:1", "mine/two"]);
    let of = |args: &[&str]| {
        let args = [&["images", "--json"], args].concat();
        json(&place.ok(&args)).as_array().unwrap().len()
    };
    assert_eq!(of(&[]), 3);
    assert_eq!(of(&["mine/*"]), 2);
    assert_eq!(of(&["mine/one"]), 1);
    assert_eq!(of(&["*:latest"]), 2);
    assert_eq!(of(&["-f", "mounted=true"]), 0);
    assert_eq!(of(&["-f", "complete=true", "-f", "platform=linux"]), 3);
    assert_eq!(of(&["-f", "platform=windows"]), 0);
    refused(
        &place,
        &place.run(&["images", "-f", "nope=1"]),
        "--filter nope=1",
    );
    let id = place.ok(&["images", "-q", "mine/one"]);
    assert_eq!(id.trim().len(), 12);
    let listed = images(&place);
    let two = listed
        .iter()
        .find(|i| i["name"] == "mine/two:latest")
        .unwrap();
    assert_eq!(
        (&two["tag"], &two["repository"]),
        (&"latest".into(), &"mine/two".into())
    );
    assert_eq!(two["sources"][0], image);
}

#[test]
fn a_name_given_here_leads_to_the_bytes_of_its_source() {
    let place = Place::new();
    let registry = served(&place, "image", &[base().tar()]);
    let image = registry.image();
    refused(
        &place,
        &place.run(&["tag", &image, "mine:1"]),
        "not known here",
    );
    place.ok(&["-q", "pull", &image]);
    place.ok(&["tag", &image, "mine:1"]);
    assert_eq!(
        place.ok(&["cat", "--offline", "mine:1:/etc/motd"]),
        "hello\n"
    );
    place.ok(&["cache", "prune", "--data"]);
    // The first name may go.
    place.ok(&["rmi", &image]);
    assert_eq!(place.ok(&["cat", "mine:1:/etc/motd"]), "hello\n");
    if can_mount() {
        let mounted = place.mount_image("mine:1", &[]);
        assert!(std::fs::read(mounted.path("big")).unwrap() == noise(5 << 20, 1));
        drop(mounted);
        drop(place.mount_image("mine:1", &["--offline"]));
    }
    let digest = format!("mine@sha256:{}", "1".repeat(64));
    refused(
        &place,
        &place.run(&["tag", "mine:1", &digest]),
        "no name to give",
    );
    refused(
        &place,
        &place.run(&["tag", "mine:1", "oci:/x"]),
        "names files",
    );
    refused(
        &place,
        &place.run(&["tag", "mine:1", "UPPER"]),
        "lower case",
    );
}

#[test]
fn removing_an_image_removes_what_only_it_needed() {
    let place = Place::new();
    let one = served(&place, "one", &[base().tar(), upper(2).tar()]);
    let two = served(&place, "two", &[base().tar(), upper(3).tar()]);
    place.ok(&["-q", "pull", &one.image(), &two.image()]);
    assert_eq!(layers(&place), 3);
    place.ok(&["tag", &one.image(), "mine:1"]);
    let said = place.ok(&["rmi", "mine:1"]);
    assert_eq!(said, "Untagged: mine:1\n");
    let said = place.ok(&["rmi", &one.image()]);
    assert!(said.contains("Deleted: sha256:"), "{said}");
    assert_eq!(layers(&place), 2, "the base is needed");
    place.ok(&["cat", "--offline", &format!("{}:/etc/motd", two.image())]);
    refused(&place, &place.run(&["rmi", &one.image()]), "not known here");
    refused(
        &place,
        &place.run(&["rmi", "abcdef123456"]),
        "not known here",
    );
    // By ID, as docker takes them; all names of it only with -f.
    let id = place
        .ok(&["images", "-q"])
        .lines()
        .next()
        .unwrap()
        .to_owned();
    let inspected = json(&place.ok(&["inspect", "--offline", &id]));
    assert!(inspected[0]["Id"].as_str().unwrap().contains(&id));
    assert!(place.ok(&["images"]).contains(&id));
    place.ok(&["cat", "--offline", &format!("{id}:/etc/motd")]);
    place.ok(&["tag", &id, "mine:3"]);
    place.ok(&["rmi", "mine:3"]);
    place.ok(&["tag", &two.image(), "mine:2"]);
    let ids = place.ok(&["images", "-q"]);
    let id = ids.lines().next().unwrap();
    refused(&place, &place.run(&["rmi", id]), "2 names");
    // One that cannot be removed keeps the others.
    refused(&place, &place.run(&["rmi", "mine:2", "no/such"]), "no/such");
    assert_eq!(images(&place).len(), 2);
    place.ok(&["rmi", "-f", id]);
    assert_eq!((images(&place).len(), layers(&place)), (0, 0));
    let documents = std::fs::read_dir(place.path("cache/v1/documents"))
        .unwrap()
        .count();
    assert_eq!(documents, 0);
}

#[test]
fn a_pinned_image_stays() {
    let place = Place::new();
    let registry = served(&place, "image", &[base().tar()]);
    let image = registry.image();
    place.ok(&["-q", "pull", &image]);
    place.ok(&["cache", "pin", &image]);
    refused(&place, &place.run(&["rmi", &image]), "is pinned");
    place.ok(&["rmi", "-f", &image]);
    assert_eq!((images(&place).len(), layers(&place)), (0, 1));
}

#[test]
fn a_mounted_image_keeps_its_data() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let registry = served(&place, "image", &[base().tar()]);
    let image = registry.image();
    let mounted = place.mount_image(&image, &[]);
    refused_while_mounted(&place, &place.run(&["rmi", &image]));
    place.ok(&["tag", &image, "mine:1"]);
    // Another name is left, so this one may go.
    place.ok(&["rmi", &image]);
    refused_while_mounted(&place, &place.run(&["rmi", "mine:1"]));
    let listed = images(&place);
    assert_eq!(listed[0]["mounted"][0], place.mnt().to_str().unwrap());
    place.ok(&["rmi", "-f", "mine:1"]);
    registry.control.unplugged.store(true, SeqCst);
    assert!(std::fs::read(mounted.path("big")).unwrap() == noise(5 << 20, 1));
    assert_eq!(layers(&place), 1);
}

#[test]
fn an_image_that_was_changed_stays() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let registry = served(&place, "image", &[base().tar()]);
    let image = registry.image();
    let upper = place.path("changes");
    let dir = upper.to_str().unwrap();
    let mounted = place.mount_image(&image, &["--upper", dir]);
    std::fs::write(mounted.path("new"), "new").unwrap();
    drop(mounted);
    refused(&place, &place.run(&["rmi", &image]), dir);
    assert_eq!(images(&place).len(), 1);
    place.ok(&["rmi", "-f", &image]);
    assert_eq!(images(&place).len(), 0);
    assert_eq!(layers(&place), 1, "what was changed is still there");
    registry.control.unplugged.store(true, SeqCst);
    let mounted = place.mount_image(&image, &["--upper", dir]);
    assert_eq!(std::fs::read(mounted.path("new")).unwrap(), b"new");
    assert!(std::fs::read(mounted.path("big")).unwrap() == noise(5 << 20, 1));
    drop(mounted);
    // An image of them needs the layer as well, until it goes after them.
    place.ok(&["commit", "-q", dir, "mine:1"]);
    std::fs::remove_dir_all(&upper).unwrap();
    assert_eq!(layers(&place), 2);
    place.ok(&["rmi", "mine:1"]);
    assert_eq!(layers(&place), 0);
}

fn refused_while_mounted(place: &Place, output: &Output) {
    let text = String::from_utf8_lossy(&output.stderr);
    let at = place.mnt().display().to_string();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains(&at) && text.trim().lines().count() == 1,
        "{text}"
    );
}

/// Runs a program that has to succeed; `None` when it is not installed.
fn tool(program: &str, arguments: &[&str]) -> Option<Vec<u8>> {
    let run = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output();
    let Ok(output) = run else {
        skip(&format!("needs {program}"));
        return None;
    };
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
    Some(output.stdout)
}

fn config_digest(manifest: &[u8]) -> String {
    json(std::str::from_utf8(manifest).unwrap())["config"]["digest"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
fn archives_go_out_and_come_back() {
    let place = Place::new();
    let registry = served(&place, "image", &[base().tar(), upper(2).tar()]);
    let image = registry.image();
    let path = |name: &str| place.path(name).to_str().unwrap().to_owned();
    let shown = json(&place.ok(&["inspect", &image]));
    let (digest, id) = (
        shown[0]["Digest"].as_str().unwrap(),
        shown[0]["Id"].as_str().unwrap(),
    );
    // Not pulled before: the layers stream through, and nothing of them is kept.
    let docker = path("docker.tar");
    place.ok(&["-q", "save", &image, "-o", &docker]);
    let oci = path("oci.tar");
    place.ok(&["-q", "save", "--format", "oci-archive", "-o", &oci, &image]);
    assert_eq!(layers(&place), 0);
    for (archive, exact) in [
        (format!("docker-archive:{docker}"), false),
        (format!("oci-archive:{docker}"), true),
        (format!("oci-archive:{oci}"), true),
    ] {
        let Some(raw) = tool("skopeo", &["inspect", "--raw", &archive]) else {
            return;
        };
        assert_eq!(config_digest(&raw), id, "{archive}");
        if exact {
            assert_eq!(
                rsmount::oci::Digest::of(&raw).to_string(),
                digest,
                "{archive}"
            );
        }
        // All blobs are there, and are what they should be.
        let copy = format!("dir:{}", path("copy"));
        tool(
            "skopeo",
            &["--insecure-policy", "copy", "--quiet", &archive, &copy],
        );
    }
    // Two images in one archive share their base.
    place.ok(&["-q", "pull", &image]);
    place.ok(&["tag", &image, "mine:1"]);
    let both = path("both.tar");
    place.ok(&["-q", "save", "-o", &both, &image, "mine:1"]);
    let size = |file: &str| std::fs::metadata(file).unwrap().len();
    assert!(size(&both) < size(&docker) + 4096);
    read_back(&both, &[&image, "mine:1"], (digest, id));
    podman_reads(&place, &docker, &image, id);
    podman_reads(&place, &oci, &image, id);
}

/// Another store loads the archive; the names and digests are the same.
fn read_back(archive: &str, names: &[&str], (digest, id): (&str, &str)) {
    let place = Place::new();
    let said = place.ok(&["-q", "load", "-i", archive]);
    assert_eq!(said.lines().count(), names.len(), "{said}");
    let listed = images(&place);
    for name in names {
        let image = listed.iter().find(|i| i["name"] == *name);
        let image = image.unwrap_or_else(|| panic!("no {name} in {listed:?}"));
        assert_eq!(
            (image["digest"].as_str(), image["id"].as_str()),
            (Some(digest), Some(id))
        );
        let cat = place.run(&["cat", "--offline", &format!("{name}:/big")]);
        assert!(cat.stdout == noise(5 << 20, 1), "{name}");
    }
}

fn podman_reads(place: &Place, archive: &str, name: &str, id: &str) {
    if !rustix::process::geteuid().is_root() {
        return skip("podman needs root here");
    }
    let root = place.path("podman").to_str().unwrap().to_owned();
    let run = place.path("podman-run").to_str().unwrap().to_owned();
    let storage = [
        "--root",
        &root,
        "--runroot",
        &run,
        "--storage-driver",
        "vfs",
    ];
    let Some(said) = tool(
        "podman",
        &[&storage[..], &["load", "-q", "-i", archive]].concat(),
    ) else {
        return;
    };
    let said = String::from_utf8(said).unwrap();
    assert!(said.contains(name), "{said}");
    let format = ["image", "inspect", "--format", "{{.Id}}", name];
    let found = tool("podman", &[&storage[..], &format].concat()).unwrap();
    let found = String::from_utf8(found).unwrap();
    assert_eq!(found.trim(), id.trim_start_matches("sha256:"));
    tool("podman", &[&storage[..], &["rmi", "-f", name]].concat());
}

#[test]
fn archives_of_others_are_loaded() {
    let place = Place::new();
    layout::write(
        &place.path("image"),
        &[base().tar(), upper(2).tar()],
        Pack::Gzip,
    );
    let source = format!("oci:{}", place.path("image").display());
    let id = json(&place.ok(&["inspect", &source]))[0]["Id"]
        .as_str()
        .unwrap()
        .to_owned();
    for (kind, name) in [
        ("docker-archive", "some/image:7"),
        ("oci-archive", "some/other:8"),
    ] {
        let file = place
            .path(&format!("{kind}.tar"))
            .to_str()
            .unwrap()
            .to_owned();
        let target = format!("{kind}:{file}:{name}");
        if tool(
            "skopeo",
            &["--insecure-policy", "copy", "--quiet", &source, &target],
        )
        .is_none()
        {
            return;
        }
        let said = place.ok(&["-q", "load", "-i", &file]);
        assert_eq!(said, format!("Loaded image: {name}\n"));
        let listed = images(&place);
        let image = listed.iter().find(|i| i["name"] == name).unwrap();
        assert_eq!(image["id"], id, "{kind}");
        let cat = place.run(&["cat", "--offline", &format!("{name}:/big")]);
        assert!(cat.stdout == noise(5 << 20, 1), "{kind}");
    }
    // From a pipe, and without a name of its own.
    let file = std::fs::File::open(place.path("docker-archive.tar")).unwrap();
    let piped = place
        .rsmount()
        .args(["-q", "load", "--name", "given:1"])
        .stdin(file)
        .output();
    let piped = piped.unwrap();
    assert_eq!(
        String::from_utf8_lossy(&piped.stdout),
        "Loaded image: given:1\n",
        "{piped:?}"
    );
}

#[test]
fn the_data_of_a_loaded_image_stays() {
    let place = Place::new();
    let file = place.path("image.tar").to_str().unwrap().to_owned();
    {
        let registry = served(&place, "image", &[base().tar()]);
        place.ok(&["-q", "save", "-o", &file, &registry.image()]);
    }
    place.ok(&["cache", "prune", "--all"]);
    place.ok(&["-q", "load", "-i", &file, "--name", "loaded:1"]);
    std::fs::rename(&file, place.path("moved.tar")).unwrap();
    let pruned = place.run(&["cache", "prune", "--data"]);
    let said = String::from_utf8(pruned.stderr).unwrap();
    assert!(said.contains("--force"), "{said}");
    let usage = json(&place.ok(&["cache", "du", "--json"]));
    assert_eq!(usage["layers"][0]["sole"], true, "{usage}");
    place.ok(&["tag", "loaded:1", "loaded:2"]);
    place.ok(&["rmi", "loaded:1"]);
    let cat = place.run(&["cat", "loaded:2:/big"]);
    assert!(cat.stdout == noise(5 << 20, 1));
    // A compressed original is not kept, and its archive is not where it was.
    let again = place.path("again.tar").to_str().unwrap().to_owned();
    let output = place.run(&["-q", "save", "-o", &again, "loaded:2"]);
    refused(&place, &output, "the original of layer sha256:");
    assert!(!Path::new(&again).exists());
    std::fs::rename(place.path("moved.tar"), &file).unwrap();
    place.ok(&["-q", "save", "-o", &again, "--offline", "loaded:2"]);
    // Forced away it comes from the archive again, as long as that is there.
    place.ok(&["cache", "prune", "--data", "--force"]);
    assert_eq!(place.ok(&["cat", "loaded:2:/etc/motd"]), "hello\n");
}

#[test]
fn what_is_loaded_is_whole_however_small_the_budget() {
    let place = Place::new();
    let file = place.path("image.tar").to_str().unwrap().to_owned();
    {
        let registry = served(&place, "image", &[base().tar()]);
        place.ok(&["-q", "save", "-o", &file, &registry.image()]);
    }
    // No registry is known to have it.
    place.ok(&["cache", "prune", "--all"]);
    let load = || {
        let mut command = place.rsmount();
        command.args(["-q", "load", "-i", &file, "--name", "loaded:1"]);
        command.env("RSMOUNT_CACHE_SIZE", "1MiB").output().unwrap()
    };
    // From nothing, and over what another mount has left of it.
    for _ in 0..2 {
        let loaded = load();
        assert!(loaded.status.success(), "{loaded:?}");
        std::fs::rename(&file, place.path("moved.tar")).unwrap();
        let cat = place.run(&["cat", "loaded:1:/big"]);
        assert!(cat.stdout == noise(5 << 20, 1), "{:?}", cat.stderr);
        std::fs::rename(place.path("moved.tar"), &file).unwrap();
        place.ok(&["cache", "prune", "--data", "--force"]);
    }
}

#[test]
fn a_layer_that_was_never_compressed_is_its_own_original() {
    let place = Place::new();
    layout::write(&place.path("image"), &[base().tar()], Pack::Plain);
    let registry = Registry::serve(place.path("image"));
    place.ok(&["-q", "pull", &registry.image()]);
    registry.control.unplugged.store(true, SeqCst);
    let file = place.path("image.tar").to_str().unwrap().to_owned();
    place.ok(&["-q", "save", "--offline", "-o", &file, &registry.image()]);
    place.ok(&["cache", "prune", "--data"]);
    let output = place.run(&["-q", "save", "--offline", "-o", &file, &registry.image()]);
    refused(&place, &output, "the original of layer");
}

#[test]
fn what_is_no_archive_is_refused_and_leaves_nothing() {
    let place = Place::new();
    let registry = served(&place, "image", &[base().tar(), upper(2).tar()]);
    let image = registry.image();
    let path = |name: &str| place.path(name).to_str().unwrap().to_owned();
    let good = path("good.tar");
    place.ok(&["-q", "save", "-o", &good, &image]);
    let bytes = std::fs::read(&good).unwrap();
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(place.path(name), bytes).unwrap();
        path(name)
    };
    let mut flipped = bytes.clone();
    let at = bytes.len() / 2;
    flipped[at] ^= 0x55;
    // Where nothing else needs the layers.
    let elsewhere = Place::new();
    let load = |file: &str| elsewhere.run(&["-q", "load", "-i", file]);
    refused(
        &elsewhere,
        &load(&write("cut.tar", &bytes[..at])),
        "cut off",
    );
    refused(&elsewhere, &load(&write("flipped.tar", &flipped)), "layer");
    refused(
        &elsewhere,
        &load(&write("text", b"no archive")),
        "not a tar",
    );
    refused(
        &elsewhere,
        &load(&write("gz.tar", &layout::compress(&bytes, Pack::Gzip))),
        "gunzip",
    );
    refused(&elsewhere, &load(&path("missing.tar")), "missing.tar");
    let nothing = tar_of(&[("hello", b"x")]);
    refused(&elsewhere, &load(&write("other.tar", &nothing)), "neither");
    assert_eq!(layers(&elsewhere), 0, "a layer of a broken archive stays");
    let bad_name = place.run(&["-q", "load", "-i", &good, "--name", "UPPER"]);
    refused(&place, &bad_name, "lower case");
    // Nothing that is there is lost by a save that fails.
    std::fs::write(place.path("kept.tar"), "kept").unwrap();
    registry.control.unplugged.store(true, SeqCst);
    let failed = place.run(&["-q", "save", "-o", &path("kept.tar"), &image]);
    refused(&place, &failed, "the original of layer");
    assert_eq!(std::fs::read(place.path("kept.tar")).unwrap(), b"kept");
    // However it ends: nothing is left of one that is killed.
    registry.control.unplugged.store(false, SeqCst);
    registry.control.held.store(true, SeqCst);
    let before = registry.control.blob_requests.load(SeqCst);
    let mut save = place.rsmount();
    let mut save = save
        .args(["-q", "save", "-o", &path("kept.tar"), &image])
        .spawn()
        .unwrap();
    wait_until("asked for a blob", || {
        registry.control.blob_requests.load(SeqCst) > before
    });
    save.kill().unwrap();
    save.wait().unwrap();
    registry.control.held.store(false, SeqCst);
    assert_eq!(std::fs::read(place.path("kept.tar")).unwrap(), b"kept");
    let into = place.run(&["-q", "save", "-o", "/nonexistent/x.tar", &image]);
    refused(&place, &into, "/nonexistent/x.tar");
    let left = std::fs::read_dir(place.dir.path()).unwrap();
    let hidden = left.filter(|e| {
        e.as_ref()
            .unwrap()
            .file_name()
            .to_string_lossy()
            .starts_with('.')
    });
    assert_eq!(hidden.count(), 0, "a partial archive was left");
}

fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut layer = Layer::new();
    for (name, bytes) in files {
        layer = layer.file(name, FILE, bytes);
    }
    layer.tar()
}

/// A registry that lets in who has this header.
fn guarded(authorization: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut line, mut known) = (String::new(), false);
            while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
                known |= line
                    .trim()
                    .eq_ignore_ascii_case(&format!("authorization: {authorization}"));
                line.clear();
            }
            let status = if known { "200 OK" } else { "401 Unauthorized" };
            let challenge = "WWW-Authenticate: Basic realm=\"x\"";
            let head = format!(
                "HTTP/1.1 {status}\r\n{challenge}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
            );
            let _client_has_left = stream.write_all(head.as_bytes());
        }
    });
    host
}

fn login(place: &Place, host: &str, password: &str) -> Output {
    let mut command = place.rsmount();
    command
        .args(["login", "-u", "user", "--password-stdin", host])
        .env("DOCKER_CONFIG", place.path("docker"))
        .env("HOME", place.path("home"))
        .env(
            "PATH",
            format!("{}:/usr/bin:/bin", place.path("bin").display()),
        )
        .env_remove("REGISTRY_AUTH_FILE")
        .env_remove("XDG_RUNTIME_DIR")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // One that is refused before it is read breaks the pipe.
    let _unread = writeln!(child.stdin.take().unwrap(), "{password}");
    child.wait_with_output().unwrap()
}

fn logout(place: &Place, host: &str) -> Output {
    let mut command = place.rsmount();
    command
        .args(["logout", host])
        .env("DOCKER_CONFIG", place.path("docker"))
        .env("HOME", place.path("home"))
        .env(
            "PATH",
            format!("{}:/usr/bin:/bin", place.path("bin").display()),
        )
        .env_remove("REGISTRY_AUTH_FILE")
        .env_remove("XDG_RUNTIME_DIR");
    command.output().unwrap()
}

#[test]
fn a_login_is_kept_when_the_registry_accepts_it() {
    let place = Place::new();
    // user:secret
    let host = guarded("Basic dXNlcjpzZWNyZXQ=");
    let config = place.path("docker/config.json");
    refused(
        &place,
        &login(&place, &host, "wrong"),
        "refuses the user name or the password",
    );
    assert!(!config.exists(), "a login that was refused is not kept");
    let output = login(&place, &host, "secret");
    assert!(output.status.success(), "{output:?}");
    let said = format!("{output:?}");
    assert!(
        !said.contains("secret") && said.contains("Login Succeeded"),
        "{said}"
    );
    let mode = config.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let kept = json(&std::fs::read_to_string(&config).unwrap());
    assert_eq!(kept["auths"][&host]["auth"], "dXNlcjpzZWNyZXQ=");
    // A wrong one later does not replace it.
    assert!(!login(&place, &host, "wrong").status.success());
    assert_eq!(json(&std::fs::read_to_string(&config).unwrap()), kept);
    assert!(logout(&place, &host).status.success());
    let kept = json(&std::fs::read_to_string(&config).unwrap());
    assert_eq!(kept["auths"].as_object().map(serde_json::Map::len), Some(0));
    let again = logout(&place, &host);
    assert!(again.status.success());
    assert!(String::from_utf8_lossy(&again.stderr).contains("not logged in"));
    refused(&place, &login(&place, "no registry", "x"), "no registry");
    refused(&place, &login(&place, &host, ""), "empty");
    refused(&place, &login(&place, "127.0.0.1:9", "x"), "127.0.0.1:9");
    let no_terminal = place
        .rsmount()
        .args(["login", "-u", "x", &host])
        .stdin(Stdio::null())
        .output();
    refused(&place, &no_terminal.unwrap(), "--password-stdin");
    let no_name = place
        .rsmount()
        .args(["login", &host])
        .stdin(Stdio::null())
        .output();
    refused(&place, &no_name.unwrap(), "-u NAME");
}

#[test]
fn a_credential_helper_keeps_the_secret() {
    let place = Place::new();
    let host = guarded("Basic dXNlcjpzZWNyZXQ=");
    std::fs::create_dir_all(place.path("docker")).unwrap();
    std::fs::create_dir_all(place.path("bin")).unwrap();
    let config = place.path("docker/config.json");
    std::fs::write(&config, r#"{"credsStore":"test","detachKeys":"ctrl-x"}"#).unwrap();
    let helper = place.path("bin/docker-credential-test");
    let kept = place.path("kept");
    let script = format!(
        "#!/bin/sh\ncase $1 in store) cat >{0};; erase) read -r s; echo \"$s\" >{0}.erased;; esac\n",
        kept.display()
    );
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, PermissionsExt::from_mode(0o755)).unwrap();
    let output = login(&place, &host, "secret");
    assert!(output.status.success(), "{output:?}");
    let stored = json(&std::fs::read_to_string(&kept).unwrap());
    assert_eq!(
        (&stored["ServerURL"], &stored["Secret"]),
        (&host.clone().into(), &"secret".into())
    );
    let text = std::fs::read_to_string(&config).unwrap();
    assert!(
        !text.contains("secret") && text.contains("detachKeys"),
        "{text}"
    );
    assert_eq!(json(&text)["auths"][&host], json("{}"));
    assert!(logout(&place, &host).status.success());
    let erased = std::fs::read_to_string(place.path("kept.erased")).unwrap();
    assert_eq!(erased.trim(), host);
    assert!(
        json(&std::fs::read_to_string(&config).unwrap())["auths"]
            .get(&host)
            .is_none()
    );
}
