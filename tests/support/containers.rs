//! Containers of a small image, and that nothing is left of them.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use super::busybox;
use super::place::Place;

/// A place with the image `image`, and its containers, which end with it.
pub struct Containers(pub Place);

impl Containers {
    /// `config` is what the image's configuration says of containers; `None`, loudly, where none can run.
    pub fn new(config: &Value) -> Option<Containers> {
        if !busybox::can_run() {
            return None;
        }
        let place = Place::new();
        busybox::write(&place.path("image"), config);
        Some(Containers(place))
    }

    pub fn image(&self) -> String {
        format!("oci:{}", self.0.path("image").display())
    }

    pub fn run_command(&self, options: &[&str], command: &[&str]) -> Command {
        let mut run = self.0.rsmount();
        run.args(["run", "-q"]).args(options).arg(self.image());
        run.args(command);
        run
    }

    pub fn run(&self, options: &[&str], command: &[&str]) -> Output {
        self.run_command(options, command).output().unwrap()
    }

    /// Runs and expects success; gives standard output.
    pub fn ok(&self, options: &[&str], command: &[&str]) -> String {
        let output = self.run(options, command);
        assert!(
            output.status.success(),
            "{options:?} {command:?}: {output:?}"
        );
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn ps(&self) -> Vec<Value> {
        let text = self.0.ok(&["ps", "-a", "--json"]);
        serde_json::from_str(&text).unwrap()
    }

    /// What stays on disk of containers.
    pub fn left(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path("cache/containers"));
        let names = entries.into_iter().flatten().flatten();
        let names = names.map(|e| e.file_name().into_string().unwrap());
        names.filter(|name| name != "lock").collect()
    }

    pub fn nothing_is_left(&self) {
        assert_eq!(self.ps(), Vec::<Value>::new());
        assert_eq!(self.left(), Vec::<String>::new());
        assert_eq!(mounts_below(self.0.dir.path()), Vec::<String>::new());
        let cgroups = Command::new("find")
            .args(["/sys/fs/cgroup", "-path", "*/rsmount/*"])
            .output();
        for dir in String::from_utf8(cgroups.unwrap().stdout).unwrap().lines() {
            let id = dir.rsplit('/').next().unwrap();
            assert!(!self.0.path("cache/containers").join(id).exists(), "{dir}");
        }
    }
}

impl Drop for Containers {
    fn drop(&mut self) {
        let _ended = self.0.run(&["rm", "--all", "--force"]);
    }
}

/// What is mounted in a directory.
pub fn mounts_below(dir: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let places = table.lines().filter_map(|l| l.split(' ').nth(4));
    places
        .filter(|p| Path::new(p).starts_with(dir))
        .map(str::to_owned)
        .collect()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
