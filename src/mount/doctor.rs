//! What this machine has of what mounts need: one check, one line, and what to do about it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};
use rustix::io::Errno;
use serde::Serialize;

use crate::blob::ErrorKind;
use crate::cache::{Cache, FREE_BYTES_RESERVED};
use crate::mount::request::MountRequest;
use crate::mount::source::{self, Source};
use crate::mount::{launch, record, sandbox};
use crate::oci::ImageName;

/// Free bytes below which a first contact with a common image fails.
const FREE_BYTES_WANTED: u64 = 2 << 30;

/// Open files that a busy mount may need.
const FILES_WANTED: u64 = 1024;

/// What a check came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Something does not work that not everybody needs.
    Warn,
    /// Nothing can be mounted like this.
    Fail,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do; absent when nothing is to be done.
    pub advice: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Check {
        Check {
            name,
            verdict: Verdict::Ok,
            found: found.into(),
            advice: None,
        }
    }

    fn warn(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Check {
        Check {
            verdict: Verdict::Warn,
            advice: Some(advice.into()),
            ..Check::ok(name, found)
        }
    }

    fn fail(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Check {
        Check {
            verdict: Verdict::Fail,
            ..Check::warn(name, found, advice)
        }
    }
}

/// Looks at everything. `request` names the cache; its image is asked for when there is one.
pub fn examine(request: &MountRequest) -> Vec<Check> {
    let root = rustix::process::geteuid().is_root();
    let mut checks = vec![
        kernel(),
        device(),
        fusermount(root),
        overlay(root),
        erofs(root),
        user_namespaces(),
        open_files(),
        cache(&request.cache_dir),
        cache_files(&request.cache_dir),
        run_directory(),
        log(),
        shut_in(),
        runtimes(),
    ];
    if !request.image.is_empty() {
        checks.push(registry(request));
    }
    checks
}

fn kernel() -> Check {
    let name = "kernel";
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(|n| n.parse::<u32>().ok());
    let version = (
        numbers.next().flatten().unwrap_or(0),
        numbers.next().flatten().unwrap_or(0),
    );
    // FUSE_NO_OPENDIR_SUPPORT and CACHE_SYMLINKS came with 5.1 (fuse.h, history of the protocol).
    match version {
        (0..5, _) | (5, 0) => Check::warn(
            name,
            release,
            "before 5.1 every open and every listing asks the daemon; newer kernels are faster",
        ),
        _ => Check::ok(name, release),
    }
}

fn shut_in() -> Check {
    let name = "sandbox";
    match sandbox::lacking() {
        None => Check::ok(name, "landlock, seccomp and capabilities"),
        Some(lacking) => Check::warn(name, lacking, "a mount has what there is of it"),
    }
}

fn device() -> Check {
    let (name, path) = ("/dev/fuse", "/dev/fuse");
    let opened = OpenOptions::new().read(true).write(true).open(path);
    let mode = || std::fs::metadata(path).map_or(0, |m| m.permissions().mode() & 0o7777);
    match opened.map_err(|e| e.kind()) {
        Ok(_) if mode() & 0o006 != 0o006 => Check::warn(
            name,
            format!("can be opened by its owner only (mode {:04o})", mode()),
            "other users cannot mount (chmod 666 /dev/fuse)",
        ),
        Ok(_) => Check::ok(name, "can be opened"),
        Err(std::io::ErrorKind::NotFound) => Check::fail(
            name,
            "is missing",
            "load the module (modprobe fuse), or in a container add --device /dev/fuse",
        ),
        Err(kind) => {
            let found = format!("cannot be opened ({kind}, mode {:04o})", mode());
            Check::fail(
                name,
                found,
                "its mode is usually 0666 (chmod 666 /dev/fuse)",
            )
        }
    }
}

fn fusermount(root: bool) -> Check {
    let name = "fusermount3";
    let set_user_id = |path: &PathBuf| {
        let found = std::fs::metadata(path);
        found.is_ok_and(|m| m.uid() == 0 && m.mode() & 0o4000 != 0)
    };
    match (in_path(name), root) {
        (Some(path), _) if set_user_id(&path) => Check::ok(name, shown(&path)),
        (Some(path), true) => Check::warn(
            name,
            format!("{} is not set-user-id", shown(&path)),
            "ordinary users cannot mount (chmod u+s)",
        ),
        (Some(path), false) => Check::fail(
            name,
            format!("{} is not set-user-id", shown(&path)),
            "have it made so (chmod u+s), or mount as root",
        ),
        (None, true) => Check::warn(name, "not found", "only root can mount; install fuse3"),
        (None, false) => Check::fail(name, "not found", "install fuse3, or mount as root"),
    }
}

/// Whether the kernel has a file system, or its module can be loaded.
fn has_file_system(kind: &str) -> bool {
    let table = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    table
        .lines()
        .any(|l| l.split_whitespace().last() == Some(kind))
        || {
            let quiet = Command::new("modprobe").args(["-n", "-q", kind]).output();
            quiet.is_ok_and(|output| output.status.success())
        }
}

fn overlay(root: bool) -> Check {
    let (name, helper) = ("overlayfs", in_path("fuse-overlayfs"));
    match (has_file_system("overlay"), &helper, root) {
        (true, ..) => Check::ok(name, "in the kernel"),
        (false, Some(path), false) => Check::ok(name, format!("by {}", shown(path))),
        _ => Check::warn(
            name,
            "not in the kernel",
            "writable mounts (--upper, --tmp) need it: modprobe overlay",
        ),
    }
}

fn erofs(root: bool) -> Check {
    let name = "EROFS";
    match (has_file_system("erofs"), root) {
        (true, true) => Check::ok(name, "in the kernel"),
        (true, false) => Check::ok(name, "in the kernel (only root can use it)"),
        (false, _) => Check::warn(
            name,
            "not in the kernel",
            "mounts use the FUSE engine alone; nothing is to be done if that is fast enough",
        ),
    }
}

fn user_namespaces() -> Check {
    let name = "user namespaces";
    let setting = |path: &str| {
        let text = std::fs::read_to_string(path).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let advice = "ordinary users cannot run containers or make writable mounts";
    if setting("/proc/sys/user/max_user_namespaces").is_none_or(|n| n == 0) {
        let advice = format!("{advice}: sysctl user.max_user_namespaces=15000");
        return Check::warn(name, "none allowed", advice);
    }
    if setting("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        let advice = format!("{advice}: sysctl kernel.unprivileged_userns_clone=1");
        return Check::warn(name, "for root only", advice);
    }
    if setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        return Check::warn(name, "restricted by AppArmor", advice);
    }
    Check::ok(name, "allowed")
}

fn open_files() -> Check {
    let name = "open files";
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    match limit.maximum.unwrap_or(u64::MAX) {
        most if most < FILES_WANTED => Check::warn(
            name,
            format!("at most {most}"),
            format!("allow {FILES_WANTED} or more (ulimit -n)"),
        ),
        u64::MAX => Check::ok(name, "no limit"),
        most => Check::ok(name, format!("at most {most}")),
    }
}

fn cache(path: &Path) -> Check {
    let name = "cache";
    let opened = Cache::open(path).and_then(|cache| cache.free_bytes());
    let free = match opened {
        Ok(free) => free,
        Err(error) => {
            return Check::fail(
                name,
                error.to_string(),
                "or choose another with --cache-dir",
            );
        }
    };
    let found = format!("{} ({} MB free)", shown(path), free / 1_000_000);
    match free {
        0 => Check::fail(
            name,
            found,
            format!(
                "nothing can be stored: {} MB are left for others; free some, or rsmount cache prune",
                FREE_BYTES_RESERVED >> 20
            ),
        ),
        free if free < FREE_BYTES_WANTED => Check::warn(
            name,
            found,
            "a large image will not fit; free some, or rsmount cache prune",
        ),
        _ => Check::ok(name, found),
    }
}

/// What the cache does with its files that not every file system can.
fn cache_files(path: &Path) -> Check {
    let name = "cache files";
    match try_files(path) {
        Ok(None) => Check::ok(name, "can be locked, and can have holes"),
        Ok(Some(what)) => Check::warn(
            name,
            what,
            "pruning gives no space back while a mount uses the layer; ext4, xfs, btrfs and tmpfs can",
        ),
        Err(error) => Check::fail(
            name,
            format!("cannot be locked or written ({error})"),
            "put the cache on a local file system with --cache-dir",
        ),
    }
}

/// The error is fatal; the text is what is missing.
fn try_files(directory: &Path) -> std::io::Result<Option<String>> {
    let path = directory.join(format!(".doctor-{}", std::process::id()));
    let open = || {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options.open(&path)
    };
    let tried = (|| {
        let (file, other) = (open()?, open()?);
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        let second = flock(&other, FlockOperation::NonBlockingLockExclusive);
        if second != Err(Errno::WOULDBLOCK) {
            return Err(std::io::Error::other(
                "a lock that is held can be had again",
            ));
        }
        punch(&file)
    })();
    let _gone = std::fs::remove_file(&path);
    tried
}

fn punch(file: &File) -> std::io::Result<Option<String>> {
    std::os::unix::fs::FileExt::write_all_at(file, &[1; 8192], 0)?;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(match fallocate(file, flags, 0, 4096) {
        Ok(()) => None,
        Err(error) => Some(format!("cannot have holes ({error})")),
    })
}

fn run_directory() -> Check {
    let name = "runtime directory";
    match record::directory() {
        Ok(path) => Check::ok(name, shown(&path)),
        Err(error) => Check::fail(name, error.to_string(), "or set RSMOUNT_RUN_DIR"),
    }
}

fn log() -> Check {
    let (name, path) = ("log", launch::log_path());
    let directory = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    let opened = directory.and_then(|()| OpenOptions::new().append(true).create(true).open(&path));
    match opened {
        Ok(_) => Check::ok(name, shown(&path)),
        Err(error) => Check::warn(
            name,
            format!("{}: {error}", shown(&path)),
            "mounts work, but what they have to say is lost; set RSMOUNT_LOG_FILE",
        ),
    }
}

fn runtimes() -> Check {
    let name = "runtimes";
    let found: Vec<String> = ["crun", "runc", "youki"]
        .into_iter()
        .filter_map(|program| {
            let path = in_path(program)?;
            let output = Command::new(path).arg("--version").output().ok()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let version = text.lines().next()?.split_whitespace().last()?.to_owned();
            Some(format!("{program} {version}"))
        })
        .collect();
    match found.is_empty() {
        false => Check::ok(name, found.join(", ")),
        true => Check::warn(
            name,
            "none found",
            "only `rsmount run` needs one: install crun or runc",
        ),
    }
}

/// Asks for the image; a host alone is as well as any answer from it.
fn registry(request: &MountRequest) -> Check {
    let name = "registry";
    let host_only = is_host(&request.image);
    let mut request = request.clone();
    if host_only {
        request.image = format!("{}/rsmount/doctor", request.image);
    }
    let access = match source::access(&request) {
        Ok(access) => access,
        Err(error) => return Check::fail(name, error.to_string(), "check the image's name"),
    };
    let ImageName::Registry(reference) = access.name.clone() else {
        return Check::warn(name, "the image is an archive", "nothing is asked for it");
    };
    let host = reference.registry().to_owned();
    let asked = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| e.to_string())
        .and_then(|runtime| {
            let registry = match access.open() {
                Ok(Source::Registry { registry, .. }) => registry,
                Ok(Source::Archive(_)) => return Err("it is an archive".to_owned()),
                Err(e) => return Err(e.to_string()),
            };
            let word = reference.tag_or_digest();
            let asked = runtime.block_on(registry.digest_of(&word));
            let hosts = registry.hosts();
            let answered = hosts.iter().find(|h| h.answers > 0 && hosts.len() > 1);
            let by = answered.map_or_else(String::new, |h| format!(", says its host {}", h.host));
            match asked {
                Ok(_) => Ok(format!("{host} has {}, {word}{by}", reference.repository())),
                // Whoever says no is there.
                Err(e) if host_only && !e.is_transient() && e.kind != ErrorKind::Protocol => {
                    Ok(format!("{host} answers"))
                }
                Err(e) => Err(e.to_string()),
            }
        });
    match asked {
        Ok(found) => Check::ok(name, found),
        // It says what to do by itself.
        Err(found) => Check {
            verdict: Verdict::Fail,
            ..Check::ok(name, found)
        },
    }
}

/// `example.com`, `host:5000` or `localhost`, rather than an image.
fn is_host(text: &str) -> bool {
    let (name, port) = text.split_once(':').unwrap_or((text, ""));
    let numeric = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    !text.contains('/')
        && !text.contains('@')
        && (name == "localhost" || name.contains('.'))
        && (port.is_empty() || numeric)
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let mut places = std::env::split_paths(&path).chain(usual);
    places.find_map(|place| {
        let file = place.join(program);
        let runs = std::fs::metadata(&file).is_ok_and(|m| m.is_file() && m.mode() & 0o111 != 0);
        runs.then_some(file)
    })
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_told_from_an_image() {
        for host in [
            "example.com",
            "localhost",
            "localhost:5000",
            "10.0.0.1:5000",
        ] {
            assert!(is_host(host), "{host}");
        }
        for image in [
            "debian",
            "debian:12",
            "example.com/x",
            "x.y:tag",
            "a@sha256:1",
        ] {
            assert!(!is_host(image), "{image}");
        }
    }

    #[test]
    fn what_the_cache_needs_of_files_is_tried_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert!(try_files(dir.path()).is_ok());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(cache_files(&dir.path().join("no")).verdict, Verdict::Fail);
    }
}
