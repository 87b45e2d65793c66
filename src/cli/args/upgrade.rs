//! The arguments of `upgrade`.

use std::path::PathBuf;

/// Arguments of `upgrade`.
#[derive(Debug, Clone, clap::Args)]
pub struct UpgradeArgs {
    /// Where images are mounted
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub mountpoints: Vec<PathBuf>,
    /// All mounts of this user
    #[arg(long)]
    pub all: bool,
    /// JSON
    #[arg(long)]
    pub json: bool,
}
