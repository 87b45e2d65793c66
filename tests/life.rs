//! The life of an image with real parts: a package of Debian's is installed in a container, its changes
//! become an image, the image goes to a registry, and everybody gets the same tree from there.
//!
//! Needs root, the registry that `contrib/test` starts, Debian's package servers, docker-registry, runc,
//! skopeo, umoci and podman; says so loudly where it is skipped.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    unreachable_pub,
    reason = "a test"
)]

#[allow(dead_code, reason = "each test uses its own part")]
#[path = "support/images.rs"]
mod images;
#[path = "support/all.rs"]
mod support;

use std::path::Path;

use serde_json::Value;
use support::docker_registry::DockerRegistry;
use support::place::{Place, skip};
use support::podman::Podman;
use support::seen::{self, Seen};

/// Most of the image, in percent of its compressed bytes, that a program of the package may need.
const PERCENT_MAX: u64 = 15;

/// Installs a package, and removes what that leaves besides.
const INSTALL: &str = "set -eu; export DEBIAN_FRONTEND=noninteractive; apt-get -q update; \
                       apt-get -q install -y --no-install-recommends jq; apt-get clean; \
                       rm -rf /var/lib/apt/lists/*";

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

/// `image` as podman pulls and mounts it.
fn by_podman(image: &str, podman: &Podman) -> Seen {
    podman.pull(image);
    let mounted = podman.ok(&["image", "mount", image]);
    let mut seen = comparable(seen::look(Path::new(mounted.trim())));
    // To podman the root of an image is a directory of its own making.
    seen.remove(&b""[..]);
    seen
}

#[test]
fn an_image_is_changed_committed_pushed_and_pulled_by_everybody() {
    let test = "an_image_is_changed_committed_pushed_and_pulled_by_everybody";
    let Some(base) = images::registry(test) else {
        return;
    };
    // Not in /tmp, which may be a tmpfs: changes have attributes of their own.
    let (place, scratch) = (Place::in_directory(images::scratch()), images::scratch());
    let Some(registry) = DockerRegistry::serve(&place.path("registry"), false) else {
        return;
    };
    let Some(podman) = Podman::new(scratch.path()) else {
        return;
    };
    let base = format!("{base}/library/debian:12");
    let app = registry.image("team/app:1");
    let run = ["run", "-q", "--name", "app", &base, "sh", "-c", INSTALL];
    let installed = place.run(&run);
    if !installed.status.success() {
        let said = String::from_utf8_lossy(&installed.stderr).into_owned();
        let unreachable = ["Could not resolve", "Unable to fetch", "Failed to fetch"];
        if unreachable.iter().any(|words| said.contains(words)) {
            return skip("Debian's package servers cannot be reached");
        }
        panic!("{said}");
    }
    place.ok(&["commit", "app", &app, "-c", "CMD [\"jq\"]"]);
    let rows: Value = serde_json::from_str(&place.ok(&["ps", "-a", "--json"])).unwrap();
    let container = {
        let changes = rows[0]["upper"].as_str().unwrap();
        let _mounted = place.mount_image(&base, &["--upper", changes]);
        comparable(seen::look(&place.mnt()))
    };
    place.ok(&["rm", "app"]);
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
    seen::assert_same("podman", &by_podman(&app, &podman), &below);

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
    let percent = fetched as f64 * 100.0 / whole as f64;
    println!("a program of the package ran after {fetched} of {whole} bytes, {percent:.1} %");
    assert!(
        fetched > 0 && fetched * 100 < whole * PERCENT_MAX,
        "{fetched} of {whole}"
    );
}
