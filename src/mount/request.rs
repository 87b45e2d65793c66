//! What a mount is asked to be: filled by the command line, sent to the worker as JSON.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::content::{Fill, Outage};
use crate::mount::sandbox::Sandbox;
use crate::oci::Digest;
use crate::oci::command::Given;
use crate::pack::PublicKey;
use crate::registry::HostsDirs;

/// When the registry is asked although the tag is known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Pull {
    /// Only when the tag is not known.
    #[default]
    Missing,
    /// Ask; when the registry cannot be reached, use what is known.
    Newer,
    /// Ask; fail when the registry cannot be reached.
    Always,
}

/// Whose packs are used besides what was learned here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum TrustIndex {
    /// Those of the same repository, and those that a trusted key has signed, for an image that is
    /// named by tag; for one that is named by digest only the latter.
    #[default]
    Tag,
    /// Those of the same repository, and those that a trusted key has signed.
    Registry,
    /// Those that a trusted key has signed.
    Signed,
    /// None.
    Local,
}

/// Where a writable mount keeps what is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Upper {
    /// In this directory (absolute), which stays.
    Directory(PathBuf),
    /// In the cache; it is removed when the mount ends.
    ThrowAway,
}

/// Who answers for names and metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// The kernel where that is possible, else FUSE.
    #[default]
    Auto,
    /// FUSE.
    Fuse,
    /// The kernel's EROFS, or nothing.
    Kernel,
}

/// The pack that a mount began with. Whoever goes on with the mount goes on with it, because bytes of it
/// may have been read, and remembered, before it was proven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BegunBy {
    /// Digest of its manifest.
    pub pack: Digest,
    /// The layers that were known by it alone, 0 is the base.
    pub layers: Vec<usize>,
}

/// Everything a worker must know to mount. A keeper hands it to workers of later versions too: fields
/// that are added have a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRequest {
    /// The image as typed.
    pub image: String,
    /// Absolute path.
    pub mountpoint: PathBuf,
    /// The command that it is mounted for, as the user of `run` gave it: starts of one command read
    /// much the same. Absent when anything may be read.
    #[serde(default)]
    pub command: Option<Given>,
    /// Makes the mount writable.
    pub upper: Option<Upper>,
    /// The image manifest to use, whatever the name stands for by now.
    pub pinned: Option<Digest>,
    /// Goes on with a mount that is there: what the cache knows of it is what it has, also if it came
    /// from an archive that was written anew since.
    #[serde(default)]
    pub resumed: bool,
    /// What the mount that is gone on with began with.
    #[serde(default)]
    pub begun_by: Option<BegunBy>,
    /// `os/arch[/variant]`; the host's when absent.
    pub platform: Option<String>,
    /// Cache root.
    pub cache_dir: PathBuf,
    /// Bytes that layers' pages may hold in the cache; no bound when absent.
    pub cache_size: Option<u64>,
    /// Never use the network.
    pub offline: bool,
    /// When to ask for a known tag.
    pub pull: Pull,
    /// What waiting readers get.
    pub on_outage: Outage,
    /// When the rest is fetched.
    pub fill: Fill,
    /// Who answers for names and metadata.
    #[serde(default)]
    pub engine: Engine,
    /// Whose packs are used.
    pub trust_index: TrustIndex,
    /// Keys whose signed packs are used.
    pub trusted_keys: Vec<PublicKey>,
    /// Hosts that may speak plain HTTP.
    pub insecure_registries: Vec<String>,
    /// Extra CA certificates, PEM.
    pub ca_files: Vec<PathBuf>,
    /// Where mirrors are configured.
    #[serde(default)]
    pub hosts: HostsDirs,
    /// Honour set-id bits; by default a writable mount does, as a container's root file system has
    /// to, and a read-only one does not.
    pub suid: Option<bool>,
    /// Honour device nodes; the default is as for `suid`.
    pub dev: Option<bool>,
    /// Refuse execution.
    pub noexec: bool,
    /// Whether other users may enter; as root they may unless this says no.
    pub allow_other: Option<bool>,
    /// Whether the worker is shut in.
    #[serde(default)]
    pub sandbox: Sandbox,
    /// Stay in the caller's session and process group.
    pub foreground: bool,
}
