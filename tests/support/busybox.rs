//! A small image to run: busybox under the names that tests use, and a user database.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::layout::{self, DIR, FILE, Layer, Meta, Pack};
use super::place;

/// Where Debian's busybox-static puts it.
const BUSYBOX: &str = "/bin/busybox";

const APPLETS: [&str; 25] = [
    "sh", "cat", "id", "ls", "env", "sleep", "kill", "pwd", "true", "false", "echo", "touch",
    "stty", "mkdir", "head", "wc", "ps", "hostname", "grep", "rm", "mknod", "chroot", "stat", "ip",
    "tty",
];

const PROGRAM: Meta = Meta {
    mode: 0o755,
    ..FILE
};

const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv/web:/bin/sh\n";
const GROUP: &[u8] = b"root:x:0:\nweb:x:34:\nlog:x:40:web\nssl:x:41:root,web\n";

/// Whether containers can be run here; says loudly when not.
pub fn can_run() -> bool {
    if !place::can_mount() {
        return false;
    }
    let there = |program: &str| Command::new(program).arg("--version").output().is_ok();
    if !["runc", "crun"].into_iter().any(there) {
        place::skip("needs runc or crun");
        return false;
    }
    if !Path::new(BUSYBOX).exists() {
        place::skip("needs busybox-static");
        return false;
    }
    true
}

/// Writes the image as a layout into `dir`; `config` is what its configuration says of containers.
pub fn write(dir: &Path, config: &Value) {
    write_with(dir, config, &[], Pack::Gzip);
}

/// The same with further files at the end of its layer, packed as `pack` says.
pub fn write_with(dir: &Path, config: &Value, files: &[(&str, &[u8])], pack: Pack) {
    let busybox = std::fs::read(BUSYBOX).unwrap();
    let mut layer = Layer::new()
        .dir("bin", DIR)
        .file("bin/busybox", PROGRAM, &busybox)
        .dir("etc", DIR)
        .file("etc/passwd", FILE, PASSWD)
        .file("etc/group", FILE, GROUP)
        .file("etc/no-program", PROGRAM, b"neither script nor binary\n")
        .dir("root", Meta { mode: 0o700, ..DIR })
        .dir(
            "data",
            Meta {
                uid: 33,
                gid: 34,
                ..DIR
            },
        )
        .file("data/seed", FILE, b"from the image\n")
        .dir(
            "tmp",
            Meta {
                mode: 0o1777,
                ..DIR
            },
        );
    for applet in APPLETS {
        layer = layer.hard_link_as(&format!("bin/{applet}"), "bin/busybox", PROGRAM);
    }
    for (path, bytes) in files {
        layer = layer.file(path, FILE, bytes);
    }
    let config = config.clone();
    layout::write_spoilt(dir, &[layer.tar()], pack, &move |parts| {
        parts.config.clone_from(&config);
    });
}
