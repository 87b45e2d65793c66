//! Platforms: how they are written, which names mean the same, and which of the manifests of an
//! image fits best.
//!
//! Rules: <https://github.com/containerd/platforms> (`database.go`, `compare.go`), which Docker and
//! containerd use. A missing variant means `v8` for arm64, `v7` for arm and `v1` for amd64.

use std::fmt;
use std::str::FromStr;

use crate::oci::descriptor::Descriptor;
use crate::oci::shown::shown;

/// Longest part of a platform in bytes: no name in use has more than 20; hostile ones are cut off.
const PART_BYTES_MAX: usize = 64;

/// What an image runs on (OCI image-spec, `image-index.md`, "platform").
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Platform {
    /// Operating system, as `linux`.
    pub os: String,
    /// GOARCH name, as `amd64`.
    pub architecture: String,
    /// CPU variant, as `v8`.
    pub variant: Option<String>,
    /// Version of the operating system (Windows).
    pub os_version: Option<String>,
}

/// Why a text is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a platform (expected os/arch[/variant], as in linux/arm64/v8)")]
pub struct PlatformError(String);

impl Platform {
    /// A platform in normal form, without a version of the operating system.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Platform {
        let os = match os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".into(),
            other => String::from(other),
        };
        let (architecture, variant) = normalize(architecture, variant.unwrap_or(""));
        Platform {
            os,
            architecture,
            variant,
            os_version: None,
        }
    }

    /// What this program runs on.
    pub fn host() -> Platform {
        let architecture = match std::env::consts::ARCH {
            "x86" => "386",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "mips64" if cfg!(target_endian = "little") => "mips64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Platform::new(std::env::consts::OS, architecture, None)
    }

    /// The same platform in normal form (`x86_64` becomes `amd64`, `arm64/v8` becomes `arm64`).
    #[must_use]
    pub fn normalized(&self) -> Platform {
        let normal = Platform::new(&self.os, &self.architecture, self.variant.as_deref());
        Platform {
            os_version: self.os_version.clone(),
            ..normal
        }
    }

    /// Whether an image for `have` runs on this platform.
    pub fn runs(&self, have: &Platform) -> bool {
        self.rank(have).is_some()
    }

    /// How well an image for `have` fits: 0 is best, `None` is not at all.
    fn rank(&self, have: &Platform) -> Option<usize> {
        let have = have.normalized();
        let version_fits = match (&self.os_version, &have.os_version) {
            (Some(wanted), Some(have)) => build(wanted) == build(have),
            _ => true,
        };
        if self.os.to_ascii_lowercase() != have.os || !version_fits {
            return None;
        }
        fitting(&self.normalized())
            .iter()
            .position(|(architecture, variant)| {
                *architecture == have.architecture && *variant == have.variant
            })
    }
}

/// The descriptor that fits `wanted` best; the first one among equals. Descriptors without a
/// platform are taken when none of the others fits, because layouts with one image often say none.
/// Attestations (`unknown/unknown`) are never taken.
pub fn select<'a>(
    wanted: &Platform,
    have: impl Iterator<Item = &'a Descriptor>,
) -> Option<&'a Descriptor> {
    let mut best: Option<(usize, &Descriptor)> = None;
    for descriptor in have.filter(|d| !is_attestation(d)) {
        let rank = match &descriptor.platform {
            Some(platform) => wanted.rank(platform),
            None => Some(usize::MAX),
        };
        if let Some(rank) = rank
            && best.is_none_or(|(best, _)| rank < best)
        {
            best = Some((rank, descriptor));
        }
    }
    best.map(|(_, descriptor)| descriptor)
}

/// Whether the descriptor is of a BuildKit attestation instead of an image.
pub(crate) fn is_attestation(descriptor: &Descriptor) -> bool {
    descriptor
        .annotations
        .contains_key("vnd.docker.reference.type")
        || descriptor
            .platform
            .as_ref()
            .is_some_and(|p| p.os == "unknown" || p.architecture == "unknown")
}

/// `major.minor.build` of a Windows version: what has to be equal for an image to start.
fn build(version: &str) -> Vec<&str> {
    version.split('.').take(3).collect()
}

fn normalize(architecture: &str, variant: &str) -> (String, Option<String>) {
    let (architecture, variant) = (
        architecture.to_ascii_lowercase(),
        variant.to_ascii_lowercase(),
    );
    let (name, variant) = match (architecture.as_str(), variant.as_str()) {
        ("i386" | "i486" | "i586" | "i686" | "386", _) => ("386", ""),
        ("x86_64" | "x86-64" | "amd64", "v1" | "1") => ("amd64", ""),
        ("x86_64" | "x86-64" | "amd64", v) => ("amd64", v),
        ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", ""),
        ("aarch64" | "arm64", "9" | "v9.0") => ("arm64", "v9"),
        ("aarch64" | "arm64", v) => ("arm64", v),
        ("armhf", _) => ("arm", "v7"),
        ("armel", _) => ("arm", "v6"),
        ("arm", "" | "7") => ("arm", "v7"),
        ("arm", "5") => ("arm", "v5"),
        ("arm", "6") => ("arm", "v6"),
        ("arm", "8") => ("arm", "v8"),
        (a, v) => (a, v),
    };
    (name.into(), (!variant.is_empty()).then(|| variant.into()))
}

/// Every architecture and variant that runs on `host` (in normal form), best first.
fn fitting(host: &Platform) -> Vec<(String, Option<String>)> {
    let own = (host.architecture.clone(), host.variant.clone());
    let arm = |from: u8| {
        (5..=from)
            .rev()
            .map(|v| ("arm".into(), Some(format!("v{v}"))))
    };
    let mut all = vec![own];
    match host.architecture.as_str() {
        "amd64" => {
            let level = number(host.variant.as_deref()).unwrap_or(1).min(4);
            let lower = (2..level).rev().map(|v| Some(format!("v{v}")));
            let lower = lower.chain((level > 1).then_some(None));
            all.extend(lower.map(|variant| ("amd64".into(), variant)));
            all.push(("386".into(), None));
        }
        "arm64" => {
            all.extend(arm64_below(host.variant.as_deref()));
            all.extend(arm(8));
        }
        "arm" => all.extend(arm(number(host.variant.as_deref()).unwrap_or(7).min(8)).skip(1)),
        _ => {}
    }
    all
}

/// `v9.M` runs `v9.M` and lower, and `v8.(M+5)` and lower (Arm ARM, "Armv9-A").
fn arm64_below(variant: Option<&str>) -> Vec<(String, Option<String>)> {
    let parse = |v: &str| {
        let (major, minor) = v
            .strip_prefix('v')?
            .split_once('.')
            .unwrap_or((&v[1..], "0"));
        Some((major.parse::<u8>().ok()?, minor.parse::<u8>().ok()?.min(9)))
    };
    let Some((major, minor)) = variant.and_then(parse) else {
        return Vec::new();
    };
    let name = |major: u8, minor: u8| match (major, minor) {
        (8, 0) => None,
        (major, 0) => Some(format!("v{major}")),
        (major, minor) => Some(format!("v{major}.{minor}")),
    };
    let mut below: Vec<_> = (0..minor).rev().map(|m| name(major, m)).collect();
    if major == 9 {
        below.extend((0..=minor + 5).rev().map(|m| name(8, m)));
    }
    below
        .into_iter()
        .map(|variant| ("arm64".into(), variant))
        .collect()
}

fn number(variant: Option<&str>) -> Option<u8> {
    variant?.strip_prefix('v')?.parse().ok()
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(s: &str) -> Result<Platform, PlatformError> {
        let error = || PlatformError(shown(s));
        let good = |part: &&str| {
            (1..=PART_BYTES_MAX).contains(&part.len())
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
        };
        let parts: Vec<&str> = s.split('/').collect();
        let (os, version) = match parts[0].strip_suffix(')').and_then(|p| p.split_once('(')) {
            Some((os, version)) => (os, Some(version)),
            None => (parts[0], None),
        };
        let rest = &parts[1..];
        if !matches!(rest.len(), 1 | 2)
            || !good(&os)
            || !rest.iter().all(good)
            || !version.iter().all(good)
        {
            return Err(error());
        }
        let mut platform = Platform::new(os, rest[0], rest.get(1).copied());
        platform.os_version = version.map(String::from);
        Ok(platform)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.os)?;
        if let Some(version) = &self.os_version {
            write!(f, "({version})")?;
        }
        write!(f, "/{}", self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
