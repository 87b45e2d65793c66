//! What the test images are for: a program for each, and how to run it in a tree.

use std::path::Path;
use std::process::{Command, Stdio};

/// What runs in an image, and the line it has to end with.
pub(crate) struct Program {
    /// `NAME:TAG`.
    pub(crate) image: &'static str,
    /// Directories of the image that get a tmpfs, besides /tmp and /run.
    pub(crate) writable: &'static [&'static str],
    /// For sh, inside of the chroot; starts in /tmp.
    pub(crate) script: &'static str,
    /// The last line that it prints.
    pub(crate) says: &'static str,
}

/// What the images are for.
pub(crate) const PROGRAMS: &[Program] = &[
    Program {
        image: "debian:12",
        writable: &[],
        script: "dpkg --verify base-files && . /etc/os-release && echo $ID $VERSION_ID",
        says: "debian 12",
    },
    Program {
        image: "python:3.11",
        writable: &[],
        script: "python3 -c 'import json, ssl, http.client; print(json.dumps(\"imported\"))'",
        says: "\"imported\"",
    },
    Program {
        image: "redis:7",
        writable: &[],
        script: "redis-server --port 0 --unixsocket /tmp/s --save '' --dir /tmp >log &
            for i in $(seq 100); do [ -S s ] && break; sleep 0.1; done
            redis-cli -s /tmp/s ping",
        says: "PONG",
    },
    Program {
        image: "node:18",
        writable: &[],
        script: "node -e 'console.log(\"node\", process.version.split(\".\")[0])'",
        says: "node v18",
    },
    Program {
        image: "nginx:1",
        writable: &["/var/lib/nginx", "/var/log/nginx"],
        script: "nginx -t 2>&1",
        says: "nginx: configuration file /etc/nginx/nginx.conf test is successful",
    },
    Program {
        image: "postgres:15",
        writable: &["/var/lib/postgresql"],
        script: "mkdir data && chown postgres: data && cd data
            as() { setpriv --reuid postgres --regid postgres --clear-groups \"$@\"; }
            bin=/usr/lib/postgresql/15/bin
            as $bin/initdb -D /tmp/data/db >log
            as $bin/pg_ctl -w -D /tmp/data/db -l /tmp/data/server \
                -o \"-k /tmp/data -c listen_addresses=''\" start >>log
            as psql -h /tmp/data -Atc 'select 40 + 2' postgres
            as $bin/pg_ctl -w -D /tmp/data/db -m fast stop >>log",
        says: "42",
    },
    Program {
        image: "gcc:12",
        writable: &[],
        script: "echo '#include <iostream>' >hello.cc
            echo 'int main() { std::cout << \"compiled\" << std::endl; }' >>hello.cc
            g++ -O1 hello.cc -o hello && ./hello",
        says: "compiled",
    },
    Program {
        image: "openjdk:17",
        writable: &[],
        script: "echo 'class Hello { public static void main(String[] a) {
                System.out.println(\"compiled\"); } }' >Hello.java
            javac Hello.java && java -cp . Hello",
        says: "compiled",
    },
];

/// Mounts what a program needs over the tree and enters it. `$1` is the mountpoint, `$2` the script,
/// the rest directories to be made writable. It runs in namespaces of its own, so that mounts and
/// processes end with it.
const ENTER: &str = r#"
set -eu
root=$1 script=$2
shift 2
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
for directory in /tmp /run "$@"; do
    mount -t tmpfs -o mode=1777 tmpfs "$root$directory"
done
export HOME=/tmp PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
exec chroot "$root" /bin/sh -euc "cd /tmp
$script"
"#;

/// Runs `program` in the tree at `root`; gives what it printed.
pub(crate) fn run_in(root: &Path, program: &Program) -> String {
    let out = Command::new("unshare")
        .args([
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            ENTER,
            "sh",
        ])
        .arg(root)
        .arg(program.script)
        .args(program.writable)
        .stdin(Stdio::null())
        .output()
        .expect("unshare starts");
    let printed = String::from_utf8_lossy(&out.stdout).into_owned();
    let complained = String::from_utf8_lossy(&out.stderr);
    assert!(
        out.status.success(),
        "{}: {}\n{printed}{complained}",
        program.image,
        out.status
    );
    printed
}
