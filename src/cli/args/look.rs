//! Arguments of the commands that look and measure: `why`.

use std::path::PathBuf;

use clap::Args as ClapArgs;

/// Arguments of `why`.
#[derive(Debug, Clone, ClapArgs)]
pub struct WhyArgs {
    /// Where it is mounted
    pub mountpoint: PathBuf,
    /// How many waits to show, the longest first (JSON has all that are kept)
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    pub lines: usize,
    /// JSON
    #[arg(long)]
    pub json: bool,
}
