//! The upper directory of a writable mount: what it holds, whose it is, and that only one mount uses
//! it at a time.
//!
//! ```text
//! DIR/             mode 0700, so that nobody reaches set-id files in it by another way
//!     rsmount.json the image that the changes belong to; locked as long as a mount uses DIR
//!     upper/       what was changed, as overlayfs (or fuse-overlayfs) writes it
//!     work/        theirs
//!     lower/       where the image is mounted for a moment, before the overlay hides it; then gone
//! ```
//!
//! Changes mean something only above the image that they were made on: a directory is never put over
//! another one, and does not follow a tag that moves. Whoever mounts the same name again gets the
//! image that the directory belongs to.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::mount::mountpoint;
use crate::mount::request::Upper;
use crate::oci::Digest;

/// Name of the file that says whose the directory is.
const ABOUT: &str = "rsmount.json";

/// Version of that file.
const VERSION: u32 = 1;

/// Longest such file; it holds a name and a digest.
const ABOUT_BYTES_MAX: u64 = 64 << 10;

/// How long a worker whose mount is gone may take to end.
const GOODBYE: Duration = Duration::from_secs(2);

/// How often one looks whether it has.
const GLANCE: Duration = Duration::from_millis(10);

/// Directory of throw-away upper directories below the cache's.
const THROW_AWAY: &str = "upper";

/// Who wrote the changes, and so how deletions and replaced directories are marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dialect {
    /// The kernel's overlayfs, as root: `trusted.overlay.*`.
    Trusted,
    /// The kernel's overlayfs in a user namespace: `user.overlay.*`.
    User,
    /// fuse-overlayfs: `user.fuseoverlayfs.*`, `.wh.*`.
    Fuse,
}

/// What the changes in a directory belong to: `rsmount.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    version: u32,
    /// The image as it was typed first.
    pub image: String,
    /// Digest of the image manifest.
    pub digest: Digest,
    /// `os/arch[/variant]`.
    pub platform: String,
    /// Who writes the changes.
    pub dialect: Dialect,
}

impl About {
    /// Changes above the image `digest`.
    pub fn new(image: &str, digest: &Digest, platform: &str, dialect: Dialect) -> About {
        About {
            version: VERSION,
            image: image.to_owned(),
            digest: digest.clone(),
            platform: platform.to_owned(),
            dialect,
        }
    }
}

/// Why a directory cannot be an upper directory.
#[derive(Debug, thiserror::Error)]
pub enum UpperError {
    /// Another mount uses it.
    #[error("{0}: in use by another mount (rsmount ps shows which); unmount that first")]
    InUse(PathBuf),
    /// The changes belong to another image.
    #[error(
        "{dir}: holds changes to {image} ({digest}), not to {wanted}; mount that image, or give \
         another directory"
    )]
    OtherImage {
        /// The directory.
        dir: PathBuf,
        /// What it belongs to, as typed.
        image: String,
        /// What it belongs to.
        digest: String,
        /// What was asked for.
        wanted: String,
    },
    /// Something else is in it.
    #[error(
        "{0}: not empty, and no upper directory of rsmount (it has no rsmount.json); give a new one"
    )]
    Foreign(PathBuf),
    /// It has no `rsmount.json`.
    #[error("{0}: no upper directory of rsmount (it has no rsmount.json)")]
    NoUpper(PathBuf),
    /// Somebody else owns it.
    #[error("{0}: belongs to another user; give a directory of your own")]
    NotYours(PathBuf),
    /// It is no directory.
    #[error("{0}: not a directory")]
    NotADirectory(PathBuf),
    /// `rsmount.json` makes no sense.
    #[error("{}: damaged: {why}", .dir.join(ABOUT).display())]
    Damaged {
        /// The directory.
        dir: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// One lies inside the other.
    #[error("{0}: the upper directory and the mountpoint may not lie in each other")]
    Nested(PathBuf),
    /// Anything else.
    #[error("{0}: {1}")]
    Io(PathBuf, #[source] io::Error),
}

/// A locked upper directory. Dropped before [`UpperDir::keep`], it leaves a new directory as it was
/// found; a throw-away one is removed in any case.
#[derive(Debug)]
pub struct UpperDir {
    dir: PathBuf,
    about_file: File,
    about: Option<About>,
    /// Whether there was nothing before.
    made: bool,
    fresh: bool,
    kept: bool,
    throw_away: bool,
    /// Whether this process may remove it: not while another one serves, or could.
    removes: bool,
}

impl UpperDir {
    /// Opens and locks what was asked for. `mountpoint` is absolute.
    pub fn open(
        upper: &Upper,
        cache_dir: &Path,
        mountpoint: &Path,
    ) -> Result<UpperDir, UpperError> {
        match upper {
            Upper::Directory(dir) => Self::open_dir(dir, mountpoint, false),
            Upper::ThrowAway => {
                let all = cache_dir.join(THROW_AWAY);
                let mut builder = DirBuilder::new();
                builder.recursive(true).mode(0o700);
                builder.create(&all).map_err(io_at(&all))?;
                remove_leftovers(&all);
                // Until it is locked, nobody takes it for a leftover.
                let making = File::open(&all).map_err(io_at(&all))?;
                let shared = flock(&making, FlockOperation::LockShared);
                shared.map_err(|e| UpperError::Io(all.clone(), e.into()))?;
                let name = format!("{}-{:08x}", std::process::id(), fastrand::u32(..));
                Self::open_dir(&all.join(name), mountpoint, true)
            }
        }
    }

    fn open_dir(dir: &Path, mountpoint: &Path, throw_away: bool) -> Result<UpperDir, UpperError> {
        let made = match DirBuilder::new().mode(0o700).create(dir) {
            Ok(()) => true,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => false,
            Err(e) => return Err(UpperError::Io(dir.to_owned(), e)),
        };
        let opened = Self::take(dir, mountpoint, throw_away, made);
        if opened.is_err() && made {
            let _gone = std::fs::remove_dir(dir);
        }
        opened
    }

    /// Takes a directory that is there.
    fn take(
        dir: &Path,
        mountpoint: &Path,
        throw_away: bool,
        made: bool,
    ) -> Result<UpperDir, UpperError> {
        use UpperError as E;
        let dir = dir.canonicalize().map_err(io_at(dir))?;
        let meta = dir.metadata().map_err(io_at(&dir))?;
        if !meta.is_dir() {
            return Err(E::NotADirectory(dir));
        }
        if dir.starts_with(mountpoint) || mountpoint.starts_with(&dir) {
            return Err(E::Nested(dir));
        }
        if meta.uid() != rustix::process::geteuid().as_raw() {
            return Err(E::NotYours(dir));
        }
        let path = dir.join(ABOUT);
        if !path.exists() && !is_empty(&dir).map_err(io_at(&dir))? {
            return Err(E::Foreign(dir));
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options.mode(0o600);
        options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
        let file = options.open(&path).map_err(io_at(&path))?;
        lock(&dir, &file)?;
        let about = read(&dir, &file)?;
        std::fs::set_permissions(&dir, Permissions::from_mode(0o700)).map_err(io_at(&dir))?;
        Ok(UpperDir {
            fresh: about.is_none(),
            dir,
            about_file: file,
            about,
            made,
            kept: false,
            throw_away,
            removes: throw_away,
        })
    }

    /// The directory of a mount that is there, with the lock that whoever served it before has held. Only what was
    /// asked for says whether it goes with the mount: who served it before may say anything, and no directory
    /// but one of the cache's own is removed for that.
    pub fn resume(
        (asked, cache_dir): (&Upper, &Path),
        dir: PathBuf,
        lock: File,
    ) -> Result<UpperDir, UpperError> {
        let throw_away = *asked == Upper::ThrowAway;
        let all = cache_dir.join(THROW_AWAY);
        let all = all.canonicalize().map_err(io_at(&all));
        if throw_away && dir.parent() != Some(all?.as_path()) {
            return Err(UpperError::Foreign(dir));
        }
        let json = File::open(dir.join(ABOUT)).map_err(io_at(&dir))?;
        let about = read(&dir, &json)?;
        Ok(UpperDir {
            dir,
            about_file: lock,
            about,
            made: false,
            fresh: false,
            kept: true,
            throw_away,
            removes: false,
        })
    }

    /// Says that this process serves the mount now: it removes what goes with it.
    pub fn take_over(&mut self) {
        self.removes = self.throw_away;
    }

    /// Leaves the directory as it is: the mount may go on without this process.
    pub fn leave(&mut self) {
        self.removes = false;
        self.kept = true;
    }

    /// What holds the lock.
    pub fn lock(&self) -> BorrowedFd<'_> {
        self.about_file.as_fd()
    }

    /// Whether it goes with the mount.
    pub fn is_throw_away(&self) -> bool {
        self.throw_away
    }

    /// What the changes belong to; `None` as long as there are none.
    pub fn about(&self) -> Option<&About> {
        self.about.as_ref()
    }

    /// The image to mount when `image` is asked for: the one that the changes belong to, if they
    /// were made under that name; else whatever the name stands for.
    pub fn pinned(&self, image: &str) -> Option<&Digest> {
        let about = self.about.as_ref().filter(|about| about.image == image);
        about.map(|about| &about.digest)
    }

    /// Ties the directory to an image, or compares. Then all is there that an overlay needs.
    pub fn claim(&mut self, about: About) -> Result<(), UpperError> {
        if let Some(known) = &self.about {
            if known.digest != about.digest {
                return Err(UpperError::OtherImage {
                    dir: self.dir.clone(),
                    image: known.image.clone(),
                    digest: known.digest.to_string(),
                    wanted: format!("{} ({})", about.image, about.digest),
                });
            }
        } else {
            let json = serde_json::to_vec_pretty(&about).map_err(io::Error::other);
            let path = self.dir.join(ABOUT);
            let written = json.and_then(|json| {
                self.about_file.write_all_at(&json, 0)?;
                self.about_file.sync_all()
            });
            written.map_err(io_at(&path))?;
            self.about = Some(about);
        }
        for path in [self.upper(), self.work(), self.lower()] {
            match DirBuilder::new().mode(0o755).create(&path) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(UpperError::Io(path, e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The mount is there: from now on the changes are the user's.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// Whether nothing was ever written to it.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// The directory itself, absolute.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What was changed.
    pub fn upper(&self) -> PathBuf {
        self.dir.join("upper")
    }

    /// What overlayfs works in.
    pub fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    /// Where the image is mounted until the overlay hides it.
    pub fn lower(&self) -> PathBuf {
        self.dir.join("lower")
    }
}

impl Drop for UpperDir {
    fn drop(&mut self) {
        let _never_made = std::fs::remove_dir(self.lower());
        if self.removes {
            match mountpoint::is_upper_of_a_mount(&self.upper()) {
                true => tracing::warn!(dir = %self.dir.display(), "still mounted, so it is left"),
                false => remove(&self.dir),
            }
        } else if self.fresh && !self.kept {
            let _never_made = std::fs::remove_dir(self.upper());
            let _never_made = std::fs::remove_dir_all(self.work());
            let _gone = std::fs::remove_file(self.dir.join(ABOUT));
            if self.made {
                let _not_ours_alone = std::fs::remove_dir(&self.dir);
            }
        }
    }
}

/// Locks a directory. Whoever has just unmounted need not wait for the worker to be gone.
fn lock(dir: &Path, file: &File) -> Result<(), UpperError> {
    let deadline = Instant::now() + GOODBYE;
    loop {
        let mounted = mountpoint::is_upper_of_a_mount(&dir.join("upper"));
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if !mounted => return Ok(()),
            Ok(()) => return Err(UpperError::InUse(dir.to_owned())),
            Err(rustix::io::Errno::WOULDBLOCK) if mounted || Instant::now() > deadline => {
                return Err(UpperError::InUse(dir.to_owned()));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(GLANCE),
            Err(e) => return Err(UpperError::Io(dir.join(ABOUT), e.into())),
        }
    }
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> UpperError {
    let path = path.to_owned();
    move |e| UpperError::Io(path, e)
}

/// What the changes in `dir` belong to, whether or not it is in use.
pub fn read_about(dir: &Path) -> Result<About, UpperError> {
    let path = dir.join(ABOUT);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(UpperError::NoUpper(dir.to_owned()));
        }
        Err(e) => return Err(UpperError::Io(path, e)),
    };
    read(dir, &file)?.ok_or_else(|| UpperError::NoUpper(dir.to_owned()))
}

fn is_empty(dir: &Path) -> io::Result<bool> {
    Ok(std::fs::read_dir(dir)?.next().is_none())
}

fn read(dir: &Path, file: &File) -> Result<Option<About>, UpperError> {
    let damaged = |why: String| UpperError::Damaged {
        dir: dir.to_owned(),
        why,
    };
    let mut json = Vec::new();
    file.take(ABOUT_BYTES_MAX)
        .read_to_end(&mut json)
        .map_err(io_at(&dir.join(ABOUT)))?;
    // It is written before anything else is made; a power cut may have come between.
    if json.is_empty() && !dir.join("upper").exists() {
        return Ok(None);
    }
    let about: About = serde_json::from_slice(&json).map_err(|e| damaged(e.to_string()))?;
    if about.version != VERSION {
        return Err(damaged(format!(
            "version {} is not known; a newer rsmount may have written it",
            about.version
        )));
    }
    Ok(Some(about))
}

/// Whether the upper directory `dir` goes with its mount: no other one will have it.
pub(super) fn is_for_one_mount(dir: &Path, cache_dir: &Path) -> bool {
    let all = cache_dir.join(THROW_AWAY);
    // It is named as it is without links.
    dir.parent() == Some(all.canonicalize().unwrap_or(all).as_path())
}

/// Removes throw-away directories whose mounts are gone: their workers were killed.
fn remove_leftovers(all: &Path) {
    // Somebody is making one right now: whoever comes next will look.
    let Ok(looking) = File::open(all) else { return };
    if flock(&looking, FlockOperation::NonBlockingLockExclusive).is_err() {
        return;
    }
    for entry in std::fs::read_dir(all).into_iter().flatten().flatten() {
        let dir = entry.path();
        let Ok(file) = File::open(dir.join(ABOUT)) else {
            continue;
        };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
            && !mountpoint::is_upper_of_a_mount(&dir.join("upper"))
        {
            let _never_there = mountpoint::unmount(&dir.join("lower"), true);
            remove(&dir);
        }
    }
}

fn remove(dir: &Path) {
    if let Err(error) = std::fs::remove_dir_all(dir) {
        tracing::warn!(%error, dir = %dir.display(), "a throw-away upper directory is left");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path) -> Result<UpperDir, UpperError> {
        let upper = Upper::Directory(dir.to_owned());
        UpperDir::open(&upper, Path::new("/nowhere"), Path::new("/mnt/of/the/test"))
    }

    fn about(of: &[u8]) -> About {
        About::new("app:1", &Digest::of(of), "linux/amd64", Dialect::User)
    }

    #[test]
    fn a_directory_belongs_to_one_image_for_ever() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("changes");
        let mut first = open(&dir).unwrap();
        assert!(first.is_fresh() && first.pinned("app:1").is_none());
        first.claim(about(b"one")).unwrap();
        first.keep();
        assert!(matches!(open(&dir), Err(UpperError::InUse(_))));
        drop(first);
        let mut again = open(&dir).unwrap();
        assert_eq!(again.pinned("app:1"), Some(&Digest::of(b"one")));
        assert_eq!(again.pinned("app:2"), None);
        let said = again.claim(about(b"two")).unwrap_err().to_string();
        assert!(said.contains("holds changes to app:1"), "{said}");
        again.claim(about(b"one")).unwrap();
        assert_eq!(dir.metadata().unwrap().mode() & 0o7777, 0o700);
    }

    #[test]
    fn who_could_not_take_over_removes_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let all = temp.path().join(THROW_AWAY);
        std::fs::create_dir(&all).unwrap();
        let dir = all.join("1");
        let take = |dir: &Path| UpperDir::open_dir(dir, Path::new("/mnt/of/the/test"), true);
        let mut serving = take(&dir).unwrap();
        serving.claim(about(b"one")).unwrap();
        serving.keep();
        let resume = || {
            let lock = serving.about_file.try_clone().unwrap();
            UpperDir::resume((&Upper::ThrowAway, temp.path()), dir.clone(), lock).unwrap()
        };
        let another = temp.path().join("of-another");
        std::fs::create_dir(&another).unwrap();
        let lock = serving.about_file.try_clone().unwrap();
        let said = UpperDir::resume((&Upper::ThrowAway, temp.path()), another, lock).unwrap_err();
        assert!(matches!(said, UpperError::Foreign(_)), "{said}");
        drop(resume());
        assert!(dir.join("upper").exists(), "another worker serves it");
        let mut next = resume();
        next.take_over();
        next.leave();
        drop(next);
        assert!(dir.join("upper").exists(), "it may go on");
        let mut last = resume();
        last.take_over();
        assert!(last.is_throw_away());
        serving.leave();
        drop((serving, last));
        assert!(!dir.exists());
    }

    /// Whoever cleans up finds it locked, or not at all.
    #[test]
    fn what_is_being_made_is_no_leftover() {
        let temp = tempfile::tempdir().unwrap();
        let open = || {
            let mountpoint = Path::new("/mnt/of/the/test");
            UpperDir::open(&Upper::ThrowAway, temp.path(), mountpoint).unwrap()
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let dir = open();
                        assert!(dir.dir().join(ABOUT).exists());
                    }
                });
            }
        });
        drop(open());
        let all = temp.path().join(THROW_AWAY);
        assert!(is_empty(&all).unwrap());
    }

    #[test]
    fn what_was_never_mounted_leaves_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("changes");
        open(&dir).unwrap().claim(about(b"one")).unwrap();
        assert!(!dir.exists());
        std::fs::create_dir(&dir).unwrap();
        open(&dir).unwrap().claim(about(b"one")).unwrap();
        assert!(is_empty(&dir).unwrap());
    }

    #[test]
    fn what_is_no_upper_directory_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("f"), "mine").unwrap();
        assert!(matches!(open(temp.path()), Err(UpperError::Foreign(_))));
        let file = open(&temp.path().join("f"));
        assert!(matches!(file, Err(UpperError::NotADirectory(_))));
        let other = temp.path().join("other");
        std::fs::create_dir(&other).unwrap();
        std::fs::write(other.join(ABOUT), "{}").unwrap();
        assert!(matches!(open(&other), Err(UpperError::Damaged { .. })));
        assert!(matches!(
            open(Path::new("/mnt/of")),
            Err(UpperError::Nested(_) | UpperError::Io(..))
        ));
    }
}
