//! The life of an image with real parts: a package of Debian's is installed in a writable mount, the
//! changes become an image, the image goes to a registry, and everybody gets the same tree from there.
//!
//! Needs root, the registry that `contrib/test` starts, Debian's package servers, docker-registry,
//! skopeo, umoci and podman; says so loudly where it is skipped.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "a test")]

#[allow(dead_code, reason = "each test uses its own part")]
#[path = "support/images.rs"]
mod images;
#[path = "support/all.rs"]
mod support;

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use support::docker_registry::DockerRegistry;
use support::place::{Place, skip};
use support::seen::{self, Seen};

/// Most of the image, in percent of its compressed bytes, that a program of the package may need.
const PERCENT_MAX: u64 = 15;

/// Installs a package in the root `$1`; the names of servers are resolved as on this machine.
const INSTALL: &str = r#"
set -eu
root=$1
trap 'umount "$root/proc" "$root/dev"; rm -f "$root/etc/resolv.conf"' EXIT
mount --bind /dev "$root/dev"
mount -t proc proc "$root/proc"
cp /etc/resolv.conf "$root/etc/resolv.conf"
in_root() { chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive "$@"; }
in_root apt-get -q update
in_root apt-get -q install -y --no-install-recommends jq
in_root apt-get clean
rm -rf "$root"/var/lib/apt/lists/*
"#;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A tree as all tools can show it: without what `unpacked` cannot keep or counts in another way.
fn comparable(mut seen: Seen) -> Seen {
    for node in seen.values_mut() {
        if node.kind == 'd' {
            node.nlink = 0;
        }
        // Labels of the machine that unpacks, and what umoci keeps for itself.
        node.xattrs
            .retain(|name, _| name.starts_with(b"user.") || name == b"security.capability");
    }
    seen
}

/// `image` as umoci unpacks what skopeo has copied.
fn by_umoci(image: &str, scratch: &Path) -> Seen {
    let (rootfs, _) = images::unpack(image, scratch);
    comparable(seen::look(&rootfs))
}

/// `image` as podman pulls and mounts it, in a store of its own.
fn by_podman(image: &str, scratch: &Path) -> Seen {
    // Podman takes no run directory whose path has more than 50 characters.
    let run = tempfile::tempdir_in("/run").unwrap();
    let (root, run) = (scratch.join("podman"), run.path().to_owned());
    let podman = |words: &[&str]| {
        let store = ["--root", text(&root), "--runroot", text(&run)];
        let all = [&store[..], &["--storage-driver", "overlay"], words].concat();
        images::run("podman", &all)
    };
    podman(&["pull", "-q", "--tls-verify=false", image]);
    let mounted = podman(&["image", "mount", image]);
    let mut seen = comparable(seen::look(Path::new(mounted.trim())));
    // To podman the root of an image is a directory of its own making.
    seen.remove(&b""[..]);
    podman(&["image", "umount", "-a"]);
    podman(&["rmi", "-a", "-f"]);
    let overlay = root.join("overlay");
    // Podman keeps a bind mount of its store upon itself.
    let _not_mounted = Command::new("umount")
        .arg(&overlay)
        .stderr(Stdio::null())
        .status();
    seen
}

#[test]
fn an_image_is_changed_committed_pushed_and_pulled_by_everybody() {
    let test = "an_image_is_changed_committed_pushed_and_pulled_by_everybody";
    let Some(base) = images::registry(test) else {
        return;
    };
    let (place, scratch) = (Place::new(), images::scratch());
    let Some(registry) = DockerRegistry::serve(&place.path("registry"), false) else {
        return;
    };
    // Not in /tmp, which may be a tmpfs.
    let upper = scratch.path().join("changes");
    let base = format!("{base}/library/debian:12");
    let app = registry.image("team/app:1");
    let mounted = place.mount_image(&base, &["--upper", text(&upper)]);
    let mut install = Command::new("sh");
    install.args(["-c", INSTALL, "sh", text(&place.mnt())]);
    let installed = install.output().unwrap();
    if !installed.status.success() {
        let said = String::from_utf8_lossy(&installed.stderr).into_owned();
        let unreachable = ["Could not resolve", "Unable to fetch", "Failed to fetch"];
        if unreachable.iter().any(|words| said.contains(words)) {
            return skip("Debian's package servers cannot be reached");
        }
        panic!("{said}");
    }
    place.ok(&["commit", text(&place.mnt()), &app, "-c", "CMD [\"jq\"]"]);
    let container = comparable(seen::look(&place.mnt()));
    drop(mounted);
    place.ok(&["-q", "push", &app]);

    let fresh = Place::new();
    let ours = {
        let _mounted = fresh.mount_image(&app, &["-o", "suid,dev"]);
        comparable(seen::look(&fresh.mnt()))
    };
    seen::assert_same("the container", &container, &ours);
    seen::assert_same("umoci", &by_umoci(&app, scratch.path()), &ours);
    let mut below = ours;
    below.remove(&b""[..]);
    seen::assert_same("podman", &by_podman(&app, scratch.path()), &below);

    // Lazily on a machine where nobody has read anything: the indexes are known, the bytes are not.
    let fresh = Place::new();
    drop(fresh.mount_image(&app, &["--fill", "never"]));
    fresh.ok(&["cache", "prune", "--data"]);
    let _mounted = fresh.mount_image(&app, &["--fill", "never"]);
    let mnt = fresh.mnt();
    let words = [text(&mnt), "jq", "-n", "6*7"];
    assert_eq!(images::run("chroot", &words).trim(), "42");
    let stats: Value = fresh.stats();
    let layers = stats["layers"].as_array().unwrap();
    let whole: u64 = layers.iter().map(|l| l["size"].as_u64().unwrap()).sum();
    let fetched = stats["fetched_bytes"].as_u64().unwrap();

    assert!(
        fetched > 0 && fetched * 100 < whole * PERCENT_MAX,
        "{fetched} of {whole}"
    );
}
