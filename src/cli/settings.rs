//! Settings: flags first, then `RSMOUNT_*`, then `~/.config/rsmount/config.toml`, then
//! `/etc/rsmount/config.toml`. Lists are added up; of anything else the first one holds.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::Deserialize;

use crate::cli::args::cache::bytes;
use crate::cli::args::{EngineArg, FillArg, Global, on_outage};
use crate::cli::output::Failure;
use crate::content::{Fill, Outage};
use crate::mount::{Engine, Pull, Sandbox, TrustIndex, privilege};

/// What a configuration file may hold.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    cache_dir: Option<PathBuf>,
    #[serde(default, deserialize_with = "written_size")]
    cache_size: Option<u64>,
    platform: Option<String>,
    pull: Option<Pull>,
    on_outage: Option<OutageWord>,
    fill: Option<Fill>,
    trust_index: Option<TrustIndex>,
    sandbox: Option<Sandbox>,
    #[serde(default)]
    trusted_keys: Vec<String>,
    #[serde(default)]
    insecure_registries: Vec<String>,
    #[serde(default)]
    ca_files: Vec<PathBuf>,
    hosts_dir: Option<PathBuf>,
}

/// `"wait"`, `"eio"`, or a number of seconds.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "toml::Value")]
struct OutageWord(Outage);

impl TryFrom<toml::Value> for OutageWord {
    type Error = String;

    fn try_from(value: toml::Value) -> Result<OutageWord, String> {
        let text = match value {
            toml::Value::String(text) => text,
            toml::Value::Integer(seconds) => seconds.to_string(),
            _ => String::new(),
        };
        on_outage(&text).map(OutageWord)
    }
}

/// A public key as the configuration names it.
#[derive(Debug, Clone)]
pub(crate) struct KeyName {
    /// `ed25519:…`, or a file.
    pub(crate) name: String,
    /// Where the file is looked for.
    pub(crate) base: PathBuf,
}

/// What holds for this run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    pub(crate) cache_dir: PathBuf,
    /// In bytes; no bound when absent.
    pub(crate) cache_size: Option<u64>,
    pub(crate) platform: Option<String>,
    pub(crate) pull: Option<Pull>,
    pub(crate) on_outage: Option<Outage>,
    pub(crate) fill: Option<Fill>,
    pub(crate) trust_index: Option<TrustIndex>,
    pub(crate) sandbox: Option<Sandbox>,
    /// From the environment; files say nothing of it.
    pub(crate) engine: Option<Engine>,
    /// Read when they are needed: a key that is missing must not keep anybody from unmounting.
    pub(crate) trusted_keys: Vec<KeyName>,
    pub(crate) insecure_registries: Vec<String>,
    pub(crate) ca_files: Vec<PathBuf>,
    /// Where mirrors are configured, when it is not the usual places.
    pub(crate) hosts_dir: Option<PathBuf>,
}

impl Settings {
    /// Reads the files that exist.
    pub(crate) fn load(global: &Global) -> Result<Settings, Failure> {
        let mut settings = Settings {
            cache_size: global.cache_size,
            ..Settings::from_environment()?
        };
        let mut cache_dir = global.cache_dir.clone();
        for path in config_paths() {
            let Some(file) = read(&path)? else { continue };
            let directory = path.parent().unwrap_or(Path::new("/"));
            let named = file.cache_dir.as_ref().map(|dir| directory.join(dir));
            cache_dir = cache_dir.or(named);
            settings.add(file, directory);
        }
        let cache_dir = cache_dir.or_else(default_cache_dir).ok_or_else(|| {
            Failure::new("no cache directory: set HOME, XDG_CACHE_HOME or --cache-dir")
        })?;
        settings.cache_dir = std::path::absolute(&cache_dir)
            .map_err(|e| Failure::new(format!("{}: {e}", cache_dir.display())))?;
        Ok(settings)
    }

    /// What commands without a flag for it take from the environment as well.
    fn from_environment() -> Result<Settings, Failure> {
        let fill = variable("RSMOUNT_FILL", |text| FillArg::from_str(text, false))?;
        let engine = variable("RSMOUNT_ENGINE", |text| EngineArg::from_str(text, false))?;
        Ok(Settings {
            fill: fill.map(Fill::from),
            engine: engine.map(Engine::from),
            on_outage: variable("RSMOUNT_ON_OUTAGE", on_outage)?,
            ..Settings::default()
        })
    }

    /// What holds when the files cannot be read.
    pub(crate) fn without_files(global: &Global) -> Settings {
        let cache_dir = global.cache_dir.clone().or_else(default_cache_dir);
        let cache_dir = cache_dir.and_then(|dir| std::path::absolute(dir).ok());
        Settings {
            cache_dir: cache_dir.unwrap_or_else(|| "/var/lib/rsmount".into()),
            cache_size: global.cache_size,
            ..Settings::default()
        }
    }

    /// Adds what a file in `directory` says to what those before it have said.
    fn add(&mut self, file: ConfigFile, directory: &Path) {
        self.cache_size = self.cache_size.or(file.cache_size);
        self.platform = self.platform.take().or(file.platform);
        self.pull = self.pull.or(file.pull);
        self.on_outage = self.on_outage.or(file.on_outage.map(|word| word.0));
        self.fill = self.fill.or(file.fill);
        self.sandbox = self.sandbox.or(file.sandbox);
        self.trust_index = self.trust_index.or(file.trust_index);
        let key = |name| KeyName {
            name,
            base: directory.to_owned(),
        };
        self.trusted_keys
            .extend(file.trusted_keys.into_iter().map(key));
        self.insecure_registries.extend(file.insecure_registries);
        let hosts_dir = file.hosts_dir.map(|dir| directory.join(dir));
        self.hosts_dir = self.hosts_dir.take().or(hosts_dir);
        self.ca_files
            .extend(file.ca_files.iter().map(|ca| directory.join(ca)));
    }
}

/// What a variable says, if it is set to anything.
fn variable<T>(
    name: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Option<T>, Failure> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty());
    let parsed = text.map(|text| parse(&text)).transpose();
    parsed.map_err(|why| Failure::usage(format!("{name}: {why}")))
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

/// The files that are read if they exist, the first one that says something first.
pub(crate) fn config_paths() -> Vec<PathBuf> {
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

/// Where mirrors are configured when nobody says otherwise: our own places, then containerd's, so
/// that what a machine has for it holds here as well.
pub(crate) fn default_hosts_dirs() -> Vec<PathBuf> {
    let own = config_paths();
    let own = own.iter().filter_map(|path| path.parent());
    own.map(|dir| dir.join("certs.d"))
        .chain([PathBuf::from("/etc/containerd/certs.d")])
        .collect()
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
