//! An ordinary user in a mount namespace where everybody may open `/dev/fuse`, as on other machines.
//! Needs root to make it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use super::place::Place;

/// Nobody on any system has this number.
pub const UID: u32 = 54_321;

/// Makes the namespace and holds it until its standard input ends.
const SETUP: &str = r#"
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=0755 tmpfs "$1"
mknod -m "$2" "$1/fuse" c 10 229
mount --bind "$1/fuse" /dev/fuse
echo "$3" >"$1/fuse.conf"
mount --bind "$1/fuse.conf" /etc/fuse.conf
cat /etc/passwd - >"$1/passwd" <<PASSWD
$4
PASSWD
mount --bind "$1/passwd" /etc/passwd
echo ready
read -r _ || true
"#;

/// What a machine's administrator has decided.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// Of `/dev/fuse`, octal.
    pub device_mode: &'static str,
    /// What `/etc/fuse.conf` says.
    pub fuse_conf: &'static str,
    /// The user's line in `/etc/passwd`.
    pub passwd: &'static str,
}

/// As distributions set it up.
pub const USUAL: Machine = Machine {
    device_mode: "0666",
    fuse_conf: "",
    passwd: "somebody:x:54321:54321::/:/bin/sh",
};

/// The user, with a home of their own in the place.
pub struct Ordinary {
    pub place: Place,
    holder: Child,
}

/// Whether there is what this needs besides root and `/dev/fuse`; says loudly when not.
pub fn can_be_ordinary() -> bool {
    for tool in ["unshare", "nsenter", "setpriv", "fusermount3"] {
        let flag = if tool == "fusermount3" {
            "-V"
        } else {
            "--version"
        };
        if Command::new(tool).arg(flag).output().is_err() {
            super::place::skip(&format!("needs {tool}"));
            return false;
        }
    }
    super::place::can_mount()
}

impl Ordinary {
    pub fn on(machine: Machine) -> Ordinary {
        let place = Place::new();
        let open = PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(place.dir.path(), open).unwrap();
        std::fs::create_dir(place.path("home")).unwrap();
        std::fs::create_dir(place.path("devices")).unwrap();
        for name in ["home", "mnt"] {
            chown(place.path(name), Some(UID), Some(UID)).unwrap();
        }
        // The user may not be able to reach the directory of the build.
        let (built, here) = (env!("CARGO_BIN_EXE_rsmount"), place.path("rsmount"));
        std::fs::hard_link(built, &here)
            .or_else(|_| std::fs::copy(built, &here).map(drop))
            .unwrap();
        let mut holder = Command::new("unshare")
            .args(["--mount", "sh", "-c", SETUP, "sh"])
            .arg(place.path("devices"))
            .args([machine.device_mode, machine.fuse_conf, machine.passwd])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let stdout = holder.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut said).unwrap();
        assert_eq!(said, "ready\n", "the namespace was not made");
        Ordinary { place, holder }
    }

    /// A program run by somebody in the namespace. Settings come from the user's home alone.
    pub fn command(&self, uid: u32, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id()));
        command.arg("setpriv");
        command.args([format!("--reuid={uid}"), format!("--regid={uid}")]);
        command.args(["--clear-groups", "--", program]);
        command.env_clear().env("HOME", self.home());
        command.env("XDG_RUNTIME_DIR", self.home().join("run"));
        command.env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
        command
    }

    pub fn home(&self) -> PathBuf {
        self.place.path("home")
    }

    pub fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = self.command(UID, program);
        command.args(arguments).output().unwrap()
    }

    pub fn rsmount(&self, arguments: &[&str]) -> Output {
        let program = self.place.path("rsmount");
        self.run(program.to_str().unwrap(), arguments)
    }

    /// Runs and expects success; gives standard output.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.rsmount(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs and expects failure; gives the one line that was said.
    pub fn refused(&self, arguments: &[&str]) -> String {
        let output = self.rsmount(arguments);
        assert!(!output.status.success(), "{arguments:?}: {output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said.trim().lines().count(), 1, "{arguments:?}: {said:?}");
        said
    }

    /// The line of the mount in the namespace's mountinfo.
    pub fn mounted(&self) -> Option<String> {
        let path = format!("/proc/{}/mountinfo", self.holder.id());
        let table = std::fs::read_to_string(path).unwrap();
        let at = format!(" {} ", self.place.mnt().display());
        table.lines().find(|l| l.contains(&at)).map(str::to_owned)
    }
}

impl Drop for Ordinary {
    fn drop(&mut self) {
        if self.mounted().is_some() {
            let mut umount = self.command(0, "umount");
            let _failed = umount.arg("-l").arg(self.place.mnt()).status();
        }
        if let Some(mut stdin) = self.holder.stdin.take() {
            let _gone = stdin.write_all(b"\n");
        }
        let _gone = self.holder.wait();
    }
}
