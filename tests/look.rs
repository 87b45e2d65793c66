//! Images that are looked at without a mount and without root: `inspect`, `history`, `ls`, `cat`, `cp`,
//! `diff`, `dump`; what they show, and what they fetch for it.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

#[path = "../benches/support/link.rs"]
#[allow(
    dead_code,
    clippy::expect_used,
    reason = "the benchmarks use the rest of it"
)]
mod link;
#[path = "support/all.rs"]
mod support;

use std::process::{Command, Output, Stdio};
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use rsmount::oci::Digest;
use serde_json::Value;
use support::docker_registry::DockerRegistry;
use support::edge;
use support::layout::{self, DIR, FILE, Layer, Meta, Pack};
use support::model::{self, Says};
use support::ordinary;
use support::place::{Place, skip};
use support::registry::Registry;
use support::seen;

/// Bytes that hardly compress.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..len).map(|_| random.u8(..)).collect()
}

fn base() -> Layer {
    Layer::new()
        .dir("etc", DIR)
        .file("etc/motd", FILE, b"hello\n")
        .symlink("etc/link", "/etc/motd")
        .symlink("here", "etc")
        .hard_link("etc/again", "etc/motd")
        .file("big", FILE, &noise(3 << 20, 1))
        .dir(
            "odd dir",
            Meta {
                mode: 0o1777,
                ..DIR
            },
        )
}

fn served(tars: &[Vec<u8>]) -> (Place, Registry) {
    let place = Place::new();
    layout::write(&place.path("image"), tars, Pack::Gzip);
    let registry = Registry::serve(place.path("image"));
    (place, registry)
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn metadata_costs_manifest_and_configuration_and_nothing_else() {
    let (place, registry) = served(&[base().tar()]);
    let image = registry.image();
    let shown = json(&place.ok(&["inspect", &image]));
    let requests = || {
        (
            registry.control.requests.load(SeqCst),
            registry.control.blob_requests.load(SeqCst),
        )
    };
    // The manifest, and the configuration, which is a blob.
    assert_eq!(requests(), (2, 1));
    let one = &shown[0];
    assert_eq!(one["RepoTags"][0], image);
    assert_eq!(one["Layers"].as_array().unwrap().len(), 1);
    assert_eq!(one["Layers"][0]["DiffID"], one["RootFS"]["Layers"][0]);
    assert_eq!(one["Config"]["Env"], Value::Array(Vec::new()));
    assert_eq!(
        place.ok(&["inspect", "-f", "{{.Os}}{{json .Config.Cmd}}", &image]),
        "linux[]\n"
    );
    // From now on everything is known here.
    for args in [
        &["history", "--json", &image][..],
        &["inspect", "--platforms", "--json", &image],
        &["inspect", "--raw", &image],
    ] {
        place.ok(args);
    }
    assert_eq!(requests(), (2, 1));
    let raw = place.run(&["inspect", "--raw", &image]).stdout;
    assert_eq!(Digest::of(&raw).to_string(), one["Digest"]);
    let config = place.run(&["inspect", "--raw=config", &image]).stdout;
    assert_eq!(Digest::of(&config).to_string(), one["Id"]);
    let history = json(&place.ok(&["history", "--json", &image]));
    assert_eq!(history[0]["layer"], one["Layers"][0]["Digest"]);
    let platforms = json(&place.ok(&["inspect", "--platforms", "--json", &image]));
    assert_eq!(platforms[0]["os"], "linux");
    assert_eq!(platforms[0]["digest"], one["Digest"]);
}

#[test]
fn platforms_of_an_index_are_listed_without_asking_for_them() {
    let place = Place::new();
    let dir = place.path("image");
    layout::write(&dir, &[base().tar()], Pack::Gzip);
    let index = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[
      {"mediaType":"application/vnd.oci.image.manifest.v1+json","size":7,
       "digest":"sha256:1111111111111111111111111111111111111111111111111111111111111111",
       "platform":{"os":"linux","architecture":"arm","variant":"v7"}},
      {"mediaType":"application/vnd.oci.image.manifest.v1+json","size":8,
       "digest":"sha256:2222222222222222222222222222222222222222222222222222222222222222",
       "platform":{"os":"windows","architecture":"amd64","os.version":"10.0.1"}},
      {"mediaType":"application/vnd.oci.image.manifest.v1+json","size":9,
       "digest":"sha256:3333333333333333333333333333333333333333333333333333333333333333",
       "annotations":{"vnd.docker.reference.type":"attestation-manifest"},
       "platform":{"os":"unknown","architecture":"unknown"}}]}"#;
    let digest = Digest::of(index.as_bytes());
    std::fs::write(dir.join("blobs/sha256").join(digest.hex()), index).unwrap();
    let top = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.index.v1+json",
        "digest":"{digest}","size":{}}}]}}"#,
        index.len()
    );
    std::fs::write(dir.join("index.json"), top).unwrap();
    let registry = Registry::serve(dir);
    let listed = json(&place.ok(&["inspect", "--platforms", "--json", &registry.image()]));
    assert_eq!(listed.as_array().unwrap().len(), 2, "{listed}");
    assert_eq!(listed[0]["variant"], "v7");
    assert_eq!(listed[1]["os.version"], "10.0.1");
    assert_eq!(listed[1]["size"], 8);
    assert_eq!(registry.control.requests.load(SeqCst), 1);
    let table = place.ok(&["inspect", "--platforms", &registry.image()]);
    assert!(table.starts_with("OS ") && table.contains("v7"), "{table}");
    let raw = place.ok(&["inspect", "--raw", &registry.image()]);
    assert_eq!(raw, index);
}

#[test]
fn names_are_listed_as_ls_does() {
    let (place, registry) = served(&[base().tar()]);
    let image = registry.image();
    let first = place.run(&["ls", &image]);
    let said = String::from_utf8(first.stderr).unwrap();
    assert!(said.contains("streamed once"), "{said}");
    assert_eq!(
        String::from_utf8(first.stdout).unwrap(),
        "big\netc\nhere\nodd dir\n"
    );
    let fetched = registry.control.requests.load(SeqCst);
    let at = |path: &str| format!("{image}:{path}");
    // A link at the end is followed, as ls does, but not with -l.
    assert_eq!(place.ok(&["ls", &at("/here")]), "again\nlink\nmotd\n");
    assert_eq!(
        place.ok(&["ls", &at("/here/../etc/motd")]),
        "/here/../etc/motd\n"
    );
    let long = place.ok(&["ls", "-l", &at("/here")]);
    assert_eq!(
        long,
        "lrwxrwxrwx 1 0 0 3 2023-11-14 22:13:20 /here -> etc\n"
    );
    let long = place.ok(&["ls", "-l", &at("/etc/")]);
    assert_eq!(
        long.lines().next(),
        Some("-rw-r--r-- 2 0 0 6 2023-11-14 22:13:20 again")
    );
    let deep = place.ok(&["ls", "-R", &at("/")]);
    assert!(
        deep.starts_with("/:\nbig\n") && deep.contains("\n/etc:\nagain\n"),
        "{deep}"
    );
    let listed = json(&place.ok(&["ls", "-R", "--json", &image]));
    let odd = listed
        .as_array()
        .unwrap()
        .iter()
        .find(|e| e["path"] == "/odd dir");
    assert_eq!(odd.unwrap()["mode"], 0o1777);
    let dump = place.ok(&["dump", &at("/etc")]);
    assert!(dump.starts_with("/etc d 0755 0 0 4096 "), "{dump}");
    assert!(
        dump.contains("/etc/motd - 0644 0 0 6 1700000000.000000000 2 - =/etc/again -\n"),
        "{dump}"
    );
    assert_eq!(place.ok(&["dump", &image]).lines().count(), 8);
    assert_eq!(
        registry.control.requests.load(SeqCst),
        fetched,
        "a listing fetches nothing"
    );
}

#[test]
fn files_come_out_whole_and_alone() {
    let (place, registry) = served(&[base().tar()]);
    let image = registry.image();
    let at = |path: &str| format!("{image}:{path}");
    place.ok(&["-q", "ls", &image]);
    place.ok(&["cache", "prune", "--data"]);
    let before = registry.control.blob_bytes.load(SeqCst);
    assert_eq!(
        place.ok(&["cat", &at("/here/link"), &at("/etc/motd")]),
        "hello\nhello\n"
    );
    let cost = registry.control.blob_bytes.load(SeqCst) - before;
    assert!(cost < 1 << 20, "{cost} bytes for a small file");
    assert!(place.run(&["cat", &at("/big")]).stdout == noise(3 << 20, 1));
    // A reader that leaves early is no error.
    let mut cat = place.rsmount();
    let mut child = cat
        .args(["cat", &at("/big")])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
    // As docker cp: to a new name, into a directory, the contents of a directory.
    let to = |name: &str| place.path(name).to_str().unwrap().to_owned();
    place.ok(&["cp", &at("/etc/motd"), &to("copy")]);
    assert_eq!(std::fs::read(place.path("copy")).unwrap(), b"hello\n");
    place.ok(&["cp", &at("/etc"), &to("new")]);
    assert!(place.path("new/motd").exists());
    place.ok(&["cp", &at("/etc"), &to("new")]);
    assert!(place.path("new/etc/motd").exists());
    place.ok(&["cp", &at("/etc/."), &to("mnt")]);
    assert!(place.path("mnt/motd").exists());
    place.ok(&["cp", &at("/here"), &to("a-link")]);
    assert_eq!(
        std::fs::read_link(place.path("a-link")).unwrap().to_str(),
        Some("etc")
    );
    place.ok(&["cp", "-L", &at("/here"), &to("followed")]);
    assert!(place.path("followed/motd").exists());
    // What is there already is replaced whole, and not written through.
    std::os::unix::fs::symlink(place.path("copy"), place.path("trap")).unwrap();
    std::fs::remove_file(place.path("new/motd")).unwrap();
    std::os::unix::fs::symlink(place.path("copy"), place.path("new/motd")).unwrap();
    std::fs::write(place.path("copy"), "mine").unwrap();
    place.ok(&["cp", &at("/etc/."), &to("new")]);
    assert_eq!(std::fs::read(place.path("copy")).unwrap(), b"mine");
    assert!(!place.path("new/motd").is_symlink());
}

/// A directory that is a link to elsewhere is not entered.
#[test]
fn a_copy_stays_below_its_destination() {
    let (place, registry) = served(&[base().tar()]);
    std::fs::create_dir_all(place.path("to")).unwrap();
    std::fs::create_dir_all(place.path("outside")).unwrap();
    std::os::unix::fs::symlink(place.path("outside"), place.path("to/etc")).unwrap();
    let to = place.path("to");
    let output = place.run(&[
        "-q",
        "cp",
        &format!("{}:/etc", registry.image()),
        to.to_str().unwrap(),
    ]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(std::fs::read_dir(place.path("outside")).unwrap().count(), 0);
}

/// Without the times that the file system of the destination may not be able to keep.
fn edge_case(leave_out: &str) -> (Place, seen::Seen, String) {
    let layers = edge::image(|name| name != leave_out && name != "far times");
    let says: Vec<Vec<Says>> = layers.iter().map(|layer| layer.says.clone()).collect();
    let place = Place::new();
    let tars: Vec<_> = layers.iter().map(edge::Layer::tar).collect();
    layout::write(&place.path("image"), &tars, Pack::Gzip);
    let image = format!("oci:{}", place.path("image").display());
    (place, model::merged(&says), image)
}

#[test]
fn a_copy_of_every_edge_case_is_what_the_model_says() {
    if !rustix::process::geteuid().is_root() {
        return skip("needs root to keep owners and devices");
    }
    let (place, expected, image) = edge_case("far times");
    place.ok(&[
        "-q",
        "cp",
        "-a",
        &format!("{image}:/"),
        place.path("all").to_str().unwrap(),
    ]);
    seen::assert_same("cp -a", &expected, &seen::look(&place.path("all")));
}

#[test]
fn a_tar_of_every_edge_case_unpacks_to_what_the_model_says() {
    if !rustix::process::geteuid().is_root() {
        return skip("needs root to keep owners and devices");
    }
    // Nine gigabytes of zeros would be written and read.
    let (place, expected, image) = edge_case("sparse, old gnu, 9 GiB");
    std::fs::create_dir(place.path("all")).unwrap();
    let mut cp = place.rsmount();
    cp.args(["-q", "cp", &format!("{image}:/"), "-"]);
    let mut cp = cp.stdout(Stdio::piped()).spawn().unwrap();
    let tar = Command::new("tar")
        .args([
            "--extract",
            "--xattrs",
            "--xattrs-include=*",
            "--same-permissions",
            "--same-owner",
        ])
        .args(["--numeric-owner", "--directory"])
        .arg(place.path("all"))
        .stdin(cp.stdout.take().unwrap())
        .output()
        .unwrap();
    assert!(tar.status.success(), "{tar:?}");
    assert!(cp.wait().unwrap().success());
    seen::assert_same("cp -", &expected, &seen::look(&place.path("all")));
}

#[test]
fn images_are_compared_as_docker_diff_does() {
    let place = Place::new();
    let other = Meta {
        mode: 0o600,
        mtime: 5,
        ..FILE
    };
    let upper = Layer::new()
        .whiteout("etc/motd")
        .file("etc/new", FILE, b"n")
        .file("here", FILE, b"was a link")
        .dir("fresh", DIR)
        .file("fresh/a", FILE, b"")
        .file("big", other, &noise(3 << 20, 1));
    layout::write(&place.path("a"), &[base().tar()], Pack::Gzip);
    layout::write(&place.path("b"), &[base().tar(), upper.tar()], Pack::Gzip);
    let image = |name: &str| format!("oci:{}", place.path(name).display());
    let (a, b) = (image("a"), image("b"));
    let shown = place.ok(&["-q", "diff", &a, &b]);
    let expected = "C /\nC /big\nC /etc\nC /etc/again\nC /etc/link\nD /etc/motd\nA /etc/new\nA /fresh\nA /fresh/a\nC /here\n";
    // A hard link that lost its other name, and a link whose target is gone, are themselves as before.
    assert_eq!(shown, expected.replace("C /etc/again\nC /etc/link\n", ""));
    let shown = json(&place.ok(&["-q", "diff", "--json", &a, &b]));
    let of = |path: &str| {
        let all = shown.as_array().unwrap();
        all.iter().find(|d| d["path"] == path).unwrap()["what"].clone()
    };
    // The same bytes at another place are read, and found to be the same.
    assert_eq!(of("/big"), json(r#"["mode","mtime"]"#));
    assert_eq!(of("/here"), json(r#"["type","mode"]"#));
    assert_eq!(of("/etc"), json(r#"["names"]"#));
    assert_eq!(place.ok(&["-q", "diff", &a, &a]), "");
    let back = place.ok(&["-q", "diff", &b, &a]);
    assert!(
        back.contains("D /fresh\n") && !back.contains("/fresh/a"),
        "{back}"
    );
}

/// Neither root nor a FUSE device that one may open.
#[test]
fn an_ordinary_user_looks_without_a_mount() {
    if !ordinary::can_be_ordinary() {
        return;
    }
    let user = ordinary::Ordinary::on(ordinary::Machine {
        device_mode: "0600",
        ..ordinary::USUAL
    });
    let (_place, registry) = served(&[base().tar()]);
    let image = registry.image();
    let at = |path: &str| format!("{image}:{path}");
    assert!(user.ok(&["inspect", &image]).contains("RootFS"));
    assert_eq!(user.ok(&["-q", "ls", &at("/etc")]), "again\nlink\nmotd\n");
    assert_eq!(user.ok(&["cat", &at("/etc/motd")]), "hello\n");
    let to = user.home().join("etc");
    user.ok(&["cp", &at("/etc"), to.to_str().unwrap()]);
    assert_eq!(std::fs::read(to.join("again")).unwrap(), b"hello\n");
    assert!(user.ok(&["images"]).contains("all"));
    user.ok(&["rmi", &image]);
}

fn refused(place: &Place, output: &Output, expected: &str, case: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    let usage = expected == "names no path";
    assert_eq!(
        output.status.code(),
        Some(1 + i32::from(usage)),
        "{case}: {text}"
    );
    assert_eq!(text.trim_end().lines().count(), 1, "{case}: {text}");
    assert!(
        text.starts_with("rsmount: ") && text.contains(expected),
        "{case}: {text}"
    );
    let left = std::fs::read_dir(place.path("cache/v1/tmp")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "{case}: the cache has something half-written");
}

#[test]
fn what_cannot_be_shown_is_refused_in_one_line() {
    let (place, registry) = served(&[base().tar()]);
    let image = registry.image();
    place.ok(&["-q", "ls", &image]);
    let at = |path: &str| format!("{image}:{path}");
    let to = place.path("to").to_str().unwrap().to_owned();
    std::fs::write(place.path("file"), "").unwrap();
    let file = place.path("file").to_str().unwrap().to_owned();
    for (args, expected) in [
        (&["ls", &at("/nope")][..], "/nope: no such file"),
        (&["ls", &at("/etc/motd/")], "not a directory"),
        (&["ls", &at("/etc/motd/x")], "no such file"),
        (&["cat", &at("/etc")], "is a directory"),
        (&["cat", &image], "names no path"),
        (
            &["cat", "127.0.0.1:9/nobody/listens:1:/etc/passwd"],
            "127.0.0.1:9",
        ),
        (&["cat", "UPPER:/etc"], "lower case"),
        (&["cp", &at("/nope"), &to], "no such file"),
        (&["cp", &at("/etc"), &file], "no directory"),
        (
            &["cp", &at("/etc/motd"), &format!("{to}/")],
            "no such directory",
        ),
        (&["cp", &at("/etc/motd"), "/nonexistent/a"], "/nonexistent"),
        (&["cp", &file, &at("/etc")], "names no path"),
        (&["cp", &at("/etc"), &at("/var")], "read-only"),
        (&["dump", &at("/nope")], "no such file"),
        (&["diff", &image, "oci:/nonexistent"], "/nonexistent"),
        (&["inspect", "--offline", "never/seen"], "--offline"),
        (&["inspect", "-f", "{{ Nope }}", &image], "--format"),
        (&["inspect", "-f", "{% nope %}", &image], "--format"),
        (
            &[
                "history",
                "--platform",
                "linux/s390x",
                "--pull",
                "always",
                &image,
            ],
            "s390x",
        ),
    ] {
        let output = place.run(&[&["-q"], args].concat());
        refused(&place, &output, expected, &args.join(" "));
    }
    assert!(!place.path("to").exists());
    registry.control.unplugged.store(true, SeqCst);
    place.ok(&["cache", "prune", "--data"]);
    let output = place.run(&["cat", "--offline", &at("/big")]);
    refused(&place, &output, "--offline", "absent bytes");
    let output = place.run(&["cp", &at("/big"), &to]);
    refused(&place, &output, "127.0.0.1", "an outage");
    assert!(!place.path("to").exists());
}

/// `inspect`, `ls` and `cat` of an image of 300 MB whose index is known: manifest and configuration;
/// nothing more; the spans of the one file. A tenth of it unless RSMOUNT_TEST_LONG is set.
#[test]
fn a_look_into_a_large_image_costs_what_is_looked_at() {
    let mut layer = Layer::new()
        .dir("d", DIR)
        .file("d/wanted", FILE, &noise(200 << 10, 9));
    let long = std::env::var_os("RSMOUNT_TEST_LONG").is_some();
    let megabytes = if long { 300 } else { 30 };
    for n in 0..megabytes / 10 {
        layer = layer.file(&format!("d/{n}"), FILE, &noise(10 << 20, n));
    }
    let (place, registry) = served(&[layer.tar()]);
    let name = registry.image();
    let (host, path) = name.split_once('/').unwrap();
    let link = link::Link::new(host, Duration::ZERO, 1e6);
    let image = format!("{}/{path}", link.address());
    place.ok(&["inspect", &image]);
    let inspect = link.crossed();
    place.ok(&["-q", "ls", &image]);
    let first = link.crossed();
    place.ok(&["cache", "prune", "--data"]);
    place.ok(&["ls", "-lR", &image]);
    let ls = link.crossed();
    let cat = place.run(&["cat", &format!("{image}:/d/wanted")]);
    assert!(cat.stdout == noise(200 << 10, 9));
    let cat = link.crossed();
    println!("{megabytes} MiB by its index: inspect {inspect:?}, ls {ls:?}, cat {cat:?}");
    assert_eq!(inspect.requests, 2, "manifest and configuration");
    assert!(inspect.bytes < 4 << 10, "{inspect:?}");
    assert!(first.bytes > megabytes << 20, "the first look streams");
    assert_eq!((ls.requests, ls.bytes), (0, 0));
    assert!((1..=2).contains(&cat.requests), "{cat:?}");
    assert!(cat.bytes < (200 << 10) + (2 << 20), "{cat:?}");
}

/// The same on a machine that has never seen the image, whose index is in a pack beside it: what is
/// fetched crosses a link that counts. Needs docker-registry and skopeo.
#[test]
fn a_look_into_an_unknown_image_costs_its_pack_and_what_is_looked_at() {
    let long = std::env::var_os("RSMOUNT_TEST_LONG").is_some();
    let megabytes = if long { 300 } else { 30 };
    let seed = u64::from(std::process::id()) << 8;
    let mut layer = Layer::new().dir("d", DIR);
    layer = layer.file("d/wanted", FILE, &noise(200 << 10, seed));
    for n in 1..=megabytes / 10 {
        layer = layer.file(&format!("d/{n}"), FILE, &noise(10 << 20, seed + n));
    }
    let place = Place::new();
    let Some(registry) = DockerRegistry::serve(&place.path("registry"), false) else {
        return;
    };
    let name = registry.image("look/image");
    let (host, repository) = name.split_once('/').unwrap();
    layout::write(&place.path("image"), &[layer.tar()], Pack::Gzip);
    let copied = Command::new("skopeo")
        .args([
            "copy",
            "--quiet",
            "--insecure-policy",
            "--dest-tls-verify=false",
        ])
        .arg(format!("oci:{}:latest", place.path("image").display()))
        .arg(format!("docker://{host}/{repository}:1"))
        .status();
    assert!(copied.unwrap().success());
    place.ok(&["-q", "publish", &format!("{host}/{repository}:1")]);
    std::fs::remove_dir_all(place.path("cache")).unwrap();

    let link = link::Link::new(host, Duration::ZERO, 1e6);
    let image = format!("{}/{repository}:1", link.address());
    place.ok(&["inspect", &image]);
    let inspect = link.crossed();
    place.ok(&["-q", "ls", "-lR", &image]);
    let ls = link.crossed();
    let cat = place.run(&["-q", "cat", &format!("{image}:/d/wanted")]);
    let cat_cost = link.crossed();
    assert!(cat.stdout == noise(200 << 10, seed), "{cat:?}");
    println!("{megabytes} MiB by a pack: inspect {inspect:?}, ls {ls:?}, cat {cat_cost:?}");
    assert_eq!(inspect.requests, 2, "manifest and configuration");
    assert!(inspect.bytes < 8 << 10, "{inspect:?}");
    // The pack by its tag, its indexes where they are not in it, and its hot pages, of which it has none.
    assert!((1..=4).contains(&ls.requests), "{ls:?}");
    assert!(ls.bytes < megabytes * (1 << 20) / 50, "{ls:?}");
    // The span, and the windows to begin in the middle of the layer.
    assert!((1..=6).contains(&cat_cost.requests), "{cat_cost:?}");
    let windows = megabytes * (1 << 20) / 25;
    assert!(
        cat_cost.bytes < (200 << 10) + (2 << 20) + windows,
        "{cat_cost:?}"
    );
}
