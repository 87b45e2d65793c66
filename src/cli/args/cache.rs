//! The arguments of `cache …`, and sizes.

use std::time::Duration;

use clap::Subcommand;

use crate::cli::args::SourceArgs;

/// `cache …`.
#[derive(Debug, Clone, Subcommand)]
pub enum CacheCommand {
    /// Show what the cache holds
    Du {
        /// JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove cached bytes; pinned images stay
    Prune {
        /// Remove layer data and keep the indexes: the next start is lazy (the default)
        #[arg(long, conflicts_with_all = ["all", "older"])]
        data: bool,
        /// Remove everything, loaded images too
        #[arg(long, conflicts_with = "older")]
        all: bool,
        /// Remove data of layers that no mount has open and nobody has read for so long (2days, 12h)
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        older: Option<Duration>,
        /// With --data: also the data of images that were loaded, whose only copy it is
        #[arg(long, conflicts_with_all = ["all", "older"])]
        force: bool,
    },
    /// Keep an image that was mounted here: it is neither evicted nor pruned
    Pin {
        /// The image
        #[command(flatten)]
        source: SourceArgs,
    },
    /// Let go of a pinned image
    Unpin {
        /// As it was pinned, or its digest
        image: String,
    },
    /// Look for damage in the cache, and mend it
    ///
    /// Reads everything that is cached and compares it with its checksums, without the network; mounts
    /// may go on meanwhile. What is damaged is removed from the cache, and fetched again when it is read
    /// next: from its registry, or from the archive that it was loaded from, if that is still there. What
    /// was nowhere else, as a commit that was never pushed, has to be made again. Damage that was mended
    /// is no failure: the exit code is 0, and the last line (with --json: "damaged") says how much it was.
    Verify {
        /// JSON
        #[arg(long)]
        json: bool,
    },
}

/// A number of bytes: 1500, 20GB (of 1000), 20GiB or 20G (of 1024).
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_ascii_lowercase();
    let (letter, base) = match unit.strip_suffix('b') {
        None => (&*unit, 1024),
        Some(rest) => match rest.strip_suffix('i') {
            Some(letter) => (letter, 1024),
            None => (rest, 1000),
        },
    };
    let power = ["", "k", "m", "g", "t"].iter().position(|l| *l == letter);
    let size = number
        .parse::<u64>()
        .ok()
        .zip(power)
        .and_then(|(n, power)| {
            let unit = u64::pow(base, u32::try_from(power).ok()?);
            n.checked_mul(unit)
        });
    size.ok_or_else(|| "expected a size, as 20GB, 512MiB or a number of bytes".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, expected) in [
            ("0", 0),
            ("1500", 1500),
            ("20GB", 20_000_000_000),
            ("20 gb", 20_000_000_000),
            ("3MiB", 3 << 20),
            ("3m", 3 << 20),
            ("1T", 1 << 40),
            ("7b", 7),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "GB", "-1", "1.5G", "1X", "99999999T", "1ib2"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
