//! Volumes: `-v` and `--tmpfs` as Docker writes them, and the anonymous directories of the image's
//! own volumes.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use crate::container::copy;
use crate::container::rootfs::Rootfs;
use crate::runtime::{Bind, Tmpfs};

/// What `-v` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Volume {
    /// A directory or file of the host.
    Host(Bind),
    /// A directory of the container's own, outside of what is committed.
    Anonymous(PathBuf),
}

/// Why a volume is refused.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// Docker's named volumes.
    #[error("volume `{0}`: named volumes are not kept here; give the full path of a directory")]
    Named(String),
    /// The host has no such thing.
    #[error("volume {0}: no such file or directory; create it first (mkdir -p)")]
    Missing(PathBuf),
    /// Where in the container?
    #[error(
        "volume `{0}`: the path in the container has to begin with / and may not be / or have .."
    )]
    Destination(String),
    /// What is behind the last colon.
    #[error("volume `{0}`: option `{1}` is not known (ro, rw, z, Z are)")]
    Option(String, String),
    /// Two for one place.
    #[error("two volumes for {0}; leave one of them out")]
    Twice(PathBuf),
    /// The contents of the image could not be copied.
    #[error(
        "volume {0}: cannot copy what the image has there: {1}; give a directory instead (-v DIR:{0})"
    )]
    Copy(PathBuf, #[source] io::Error),
}

impl Volume {
    /// Reads `SOURCE:DESTINATION[:OPTIONS]` or `DESTINATION`. A source that begins with `.` is
    /// relative to `here`.
    pub fn parse(text: &str, here: &Path) -> Result<Volume, VolumeError> {
        let fields: Vec<&str> = text.split(':').collect();
        let (source, target, options) = match fields[..] {
            [target] => return Ok(Volume::Anonymous(destination(text, target)?)),
            [source, target] => (source, target, ""),
            [source, target, options] => (source, target, options),
            _ => return Err(VolumeError::Destination(text.to_owned())),
        };
        let mut read_only = false;
        for option in options.split(',').filter(|o| !o.is_empty()) {
            match option {
                "ro" => read_only = true,
                "rw" => read_only = false,
                // Labels of SELinux: the runtime sets none here.
                "z" | "Z" => {}
                other => return Err(VolumeError::Option(text.into(), other.into())),
            }
        }
        if !source.starts_with(['/', '.']) {
            return Err(VolumeError::Named(source.to_owned()));
        }
        let source = here.join(source);
        let source = source
            .canonicalize()
            .map_err(|_| VolumeError::Missing(source))?;
        Ok(Volume::Host(Bind {
            source,
            destination: destination(text, target)?,
            read_only,
        }))
    }

    fn destination(&self) -> &Path {
        match self {
            Volume::Host(bind) => &bind.destination,
            Volume::Anonymous(destination) => destination,
        }
    }
}

/// Reads `DESTINATION[:OPTIONS]` of `--tmpfs`.
pub fn tmpfs(text: &str) -> Result<Tmpfs, VolumeError> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    let options = options.split(',').filter(|o| !o.is_empty());
    Ok(Tmpfs {
        destination: destination(text, target)?,
        options: options.map(str::to_owned).collect(),
    })
}

fn destination(text: &str, target: &str) -> Result<PathBuf, VolumeError> {
    let refused = || VolumeError::Destination(text.to_owned());
    let path = Path::new(target);
    let mut names = 0;
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(_) => names += 1,
            _ => return Err(refused()),
        }
    }
    if !path.is_absolute() || names == 0 {
        return Err(refused());
    }
    // Its components, without what a trailing slash leaves.
    Ok(path.components().collect())
}

/// The mounts for `volumes` and for the image's own (`of_image`), which the user's replace. An
/// anonymous one is a directory below `dir` that begins with what the image has in its place.
pub fn binds(
    volumes: &[Volume],
    of_image: &[String],
    tmpfs: &[Tmpfs],
    rootfs: &Rootfs,
    dir: &Path,
) -> Result<Vec<Bind>, VolumeError> {
    let mut all = volumes.to_vec();
    for text in of_image {
        let path = destination(text, text)?;
        let taken = all.iter().any(|v| v.destination() == path)
            || tmpfs.iter().any(|t| t.destination == path);
        if !taken {
            all.push(Volume::Anonymous(path));
        }
    }
    // What lies deeper is mounted later, or it would be hidden.
    all.sort_by_key(|v| v.destination().components().count());
    let mut binds: Vec<Bind> = Vec::with_capacity(all.len());
    for (number, volume) in all.into_iter().enumerate() {
        let bind = match volume {
            Volume::Host(bind) => bind,
            Volume::Anonymous(path) => anonymous(path, rootfs, &dir.join(number.to_string()))?,
        };
        if binds.iter().any(|b| b.destination == bind.destination) {
            return Err(VolumeError::Twice(bind.destination));
        }
        binds.push(bind);
    }
    Ok(binds)
}

fn anonymous(destination: PathBuf, rootfs: &Rootfs, dir: &Path) -> Result<Bind, VolumeError> {
    let failed = |e: io::Error| VolumeError::Copy(destination.clone(), e);
    // What is in there may be set-id, and is for the container alone.
    let mut private = std::fs::DirBuilder::new();
    let private = private.recursive(true).mode(0o700);
    private
        .create(dir.parent().unwrap_or(dir))
        .map_err(failed)?;
    std::fs::create_dir(dir).map_err(failed)?;
    std::fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).map_err(failed)?;
    if let Some(from) = rootfs.directory(&destination).map_err(failed)? {
        let to = std::fs::File::open(dir).map_err(failed)?;
        copy::directory(from, to.into()).map_err(failed)?;
    }
    Ok(Bind {
        source: dir.to_owned(),
        destination,
        read_only: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_read_as_docker_writes_them() {
        let here = Path::new("/");
        let bind = |read_only| {
            Volume::Host(Bind {
                source: "/etc".into(),
                destination: "/data".into(),
                read_only,
            })
        };
        assert_eq!(Volume::parse("/etc:/data", here).unwrap(), bind(false));
        assert_eq!(Volume::parse("/etc:/data/:ro,z", here).unwrap(), bind(true));
        assert_eq!(Volume::parse("./etc:/data", here).unwrap(), bind(false));
        let anonymous = Volume::Anonymous("/data".into());
        assert_eq!(Volume::parse("/data", here).unwrap(), anonymous);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |text: &str| Volume::parse(text, Path::new("/")).unwrap_err().to_string();
        assert!(refused("name:/data").contains("named volumes"));
        assert!(refused("/none/such:/data").contains("no such file"));
        assert!(refused("/etc:data").contains("begin with /"));
        assert!(refused("/etc:/").contains("may not be /"));
        assert!(refused("/etc:/a/../b").contains(".."));
        assert!(refused("/etc:/data:fast").contains("`fast`"));
        assert!(tmpfs("tmp").is_err());
        assert_eq!(
            tmpfs("/tmp:size=1m,exec").unwrap().options,
            ["size=1m", "exec"]
        );
    }

    #[test]
    fn anonymous_volumes_begin_with_what_the_image_has() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("root");
        std::fs::create_dir_all(root.join("data/deep")).unwrap();
        std::fs::write(root.join("data/deep/file"), "x").unwrap();
        let rootfs = Rootfs::open(&root).unwrap();
        let of_image = [
            "/data".to_owned(),
            "/new".to_owned(),
            "/data/deep".to_owned(),
        ];
        let own = [Volume::parse("/etc:/new", Path::new("/")).unwrap()];
        let dir = place.path().join("volumes");
        let binds = binds(&own, &of_image, &[], &rootfs, &dir).unwrap();
        let places: Vec<&str> = binds
            .iter()
            .map(|b| b.destination.to_str().unwrap())
            .collect();
        assert_eq!(places, ["/new", "/data", "/data/deep"]);
        assert_eq!(binds[0].source, Path::new("/etc"));
        assert!(binds[1].source.join("deep/file").is_file());
        let twice = [own[0].clone(), own[0].clone()];
        assert!(super::binds(&twice, &[], &[], &rootfs, &dir).is_err());
    }
}
