//! Settings: flags first, then `RSMOUNT_*`, then `~/.config/rsmount/config.toml`, then
//! `/etc/rsmount/config.toml`.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::cli::args::Global;
use crate::cli::args::cache::bytes;
use crate::cli::output::Failure;
use crate::mount::privilege;

/// What a configuration file may hold.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    cache_dir: Option<PathBuf>,
    #[serde(default, deserialize_with = "written_size")]
    cache_size: Option<u64>,
    #[serde(default)]
    insecure_registries: Vec<String>,
    #[serde(default)]
    ca_files: Vec<PathBuf>,
}

/// What holds for this run.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) cache_dir: PathBuf,
    /// In bytes; no bound when absent.
    pub(crate) cache_size: Option<u64>,
    pub(crate) insecure_registries: Vec<String>,
    pub(crate) ca_files: Vec<PathBuf>,
}

impl Settings {
    /// Reads the files that exist.
    pub(crate) fn load(global: &Global) -> Result<Settings, Failure> {
        let mut settings = Settings {
            cache_dir: PathBuf::new(),
            cache_size: global.cache_size,
            insecure_registries: Vec::new(),
            ca_files: Vec::new(),
        };
        let mut cache_dir = global.cache_dir.clone();
        for path in config_paths() {
            let Some(file) = read(&path)? else { continue };
            cache_dir = cache_dir.or(file.cache_dir);
            settings.cache_size = settings.cache_size.or(file.cache_size);
            settings
                .insecure_registries
                .extend(file.insecure_registries);
            settings.ca_files.extend(file.ca_files);
        }
        let cache_dir = cache_dir.or_else(default_cache_dir).ok_or_else(|| {
            Failure::new("no cache directory: set HOME, XDG_CACHE_HOME or --cache-dir")
        })?;
        settings.cache_dir = std::path::absolute(&cache_dir)
            .map_err(|e| Failure::new(format!("{}: {e}", cache_dir.display())))?;
        Ok(settings)
    }
}

/// A number of bytes, or text as `--cache-size` takes it.
fn written_size<'de, D: serde::Deserializer<'de>>(written: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Bytes(u64),
        Text(String),
    }
    match Written::deserialize(written)? {
        Written::Bytes(bytes) => Ok(Some(bytes)),
        Written::Text(text) => bytes(&text).map(Some).map_err(serde::de::Error::custom),
    }
}

fn config_paths() -> Vec<PathBuf> {
    let home = || std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".config"));
    let own = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(home);
    let own = own.map(|d| d.join("rsmount/config.toml"));
    own.into_iter()
        .chain([PathBuf::from("/etc/rsmount/config.toml")])
        .collect()
}

fn read(path: &Path) -> Result<Option<ConfigFile>, Failure> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Failure::new(format!("{}: {e}", path.display()))),
    };
    let parsed = toml::from_str(&text);
    parsed.map(Some).map_err(|e| {
        let first_line = e.message().lines().next().unwrap_or_default().to_owned();
        Failure::new(format!("{}: {first_line}", path.display()))
    })
}

fn default_cache_dir() -> Option<PathBuf> {
    if privilege::is_system_root() {
        return Some("/var/lib/rsmount".into());
    }
    let home = || std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache"));
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(home);
    base.map(|d| d.join("rsmount"))
}
