//! The numbers of a measurement: starts, medians, spreads.

use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::cli::output;

/// One start. Times are from the beginning of the command.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Start {
    /// The name was resolved to a manifest; absent for other tools.
    #[serde(rename = "resolved_ms", serialize_with = "optional_ms")]
    pub(crate) resolved: Option<Duration>,
    /// The image could be used; for other tools: it was pulled.
    #[serde(rename = "usable_ms", serialize_with = "ms")]
    pub(crate) usable: Duration,
    /// The first bytes of a file had reached a reader; absent when nobody knows.
    #[serde(rename = "first_byte_ms", serialize_with = "optional_ms")]
    pub(crate) first_byte: Option<Duration>,
    /// The command had ended.
    #[serde(rename = "ready_ms", serialize_with = "ms")]
    pub(crate) ready: Duration,
    /// Compressed bytes of layers and pages that were fetched; absent when nobody knows.
    pub(crate) fetched_bytes: Option<u64>,
    /// Requests for those.
    pub(crate) requests: Option<u64>,
}

fn ms<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((time.as_secs_f64() * 1e6).round() / 1e3)
}

fn optional_ms<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => ms(time, serializer),
        None => serializer.serialize_none(),
    }
}

/// The starts of one mode.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    /// Which.
    pub(crate) mode: String,
    /// The median of each number by itself.
    pub(crate) median: Start,
    /// The quickest and the slowest `ready`, and the middle half of all.
    pub(crate) spread: Spread,
    /// As they were measured.
    pub(crate) starts: Vec<Start>,
}

/// How far `ready` varies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Spread {
    #[serde(rename = "min_ms", serialize_with = "ms")]
    pub(crate) min: Duration,
    #[serde(rename = "quarter_ms", serialize_with = "ms")]
    pub(crate) quarter: Duration,
    #[serde(rename = "three_quarters_ms", serialize_with = "ms")]
    pub(crate) three_quarters: Duration,
    #[serde(rename = "max_ms", serialize_with = "ms")]
    pub(crate) max: Duration,
}

impl Row {
    pub(crate) fn new(mode: &str, starts: Vec<Start>) -> Row {
        let all = |field: fn(&Start) -> Option<Duration>| starts.iter().filter_map(field).collect();
        let time = |field| at(all(field), 0.5);
        let count =
            |field: fn(&Start) -> Option<u64>| at(starts.iter().filter_map(field).collect(), 0.5);
        let ready = |part| at(all(|s| Some(s.ready)), part).unwrap_or_default();
        Row {
            mode: mode.to_owned(),
            median: Start {
                resolved: time(|s| s.resolved),
                usable: time(|s| Some(s.usable)).unwrap_or_default(),
                first_byte: time(|s| s.first_byte),
                ready: ready(0.5),
                fetched_bytes: count(|s| s.fetched_bytes),
                requests: count(|s| s.requests),
            },
            spread: Spread {
                min: ready(0.0),
                quarter: ready(0.25),
                three_quarters: ready(0.75),
                max: ready(1.0),
            },
            starts,
        }
    }
}

/// The value at `part` (0 to 1) of the way from the smallest to the largest; of two in the middle the
/// larger one.
fn at<T: Ord + Copy>(mut values: Vec<T>, part: f64) -> Option<T> {
    values.sort_unstable();
    let last = values.len().checked_sub(1)?;
    values
        .get((last as f64 * part + 0.5).floor() as usize)
        .copied()
}

/// All that was measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Measured {
    pub(crate) image: String,
    pub(crate) digest: String,
    pub(crate) platform: String,
    /// Compressed bytes of all layers.
    pub(crate) compressed_bytes: u64,
    pub(crate) command: Vec<String>,
    pub(crate) runs: u32,
    /// Whether the kernel's page cache was dropped before each start but the warm ones.
    pub(crate) page_cache_dropped: bool,
    pub(crate) modes: Vec<Row>,
    /// What was left out, and why.
    pub(crate) left_out: Vec<LeftOut>,
}

/// A mode or tool that was not measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct LeftOut {
    pub(crate) mode: String,
    pub(crate) why: String,
}

impl Measured {
    /// The command as it would be typed.
    pub(crate) fn shown_command(&self) -> String {
        output::shell_words(&self.command)
    }

    /// The row that others are compared with: another tool's, else the first contact's, else the first.
    pub(crate) fn base(&self) -> Option<&Row> {
        let named = |name: &str| self.modes.iter().find(|row| row.mode == name);
        named("podman")
            .or_else(|| named("first-contact"))
            .or_else(|| self.modes.first())
    }
}

/// Seconds as people read them.
pub(crate) fn seconds(time: Duration) -> String {
    match time.as_secs_f64() {
        s if s < 10.0 => format!("{s:.3} s"),
        s => format!("{s:.1} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(ready: u64, bytes: Option<u64>) -> Start {
        Start {
            ready: Duration::from_millis(ready),
            fetched_bytes: bytes,
            ..Start::default()
        }
    }

    #[test]
    fn medians_and_spreads() {
        let starts = [50, 10, 40, 20, 30].map(|ms| start(ms, Some(ms)));
        let row = Row::new("m", starts.to_vec());
        assert_eq!(row.median.ready, Duration::from_millis(30));
        assert_eq!(row.median.fetched_bytes, Some(30));
        assert_eq!(row.median.first_byte, None);
        assert_eq!(row.spread.min, Duration::from_millis(10));
        assert_eq!(row.spread.quarter, Duration::from_millis(20));
        assert_eq!(row.spread.three_quarters, Duration::from_millis(40));
        assert_eq!(row.spread.max, Duration::from_millis(50));
        let one = Row::new("m", vec![start(7, None)]);
        assert_eq!(
            (one.spread.min, one.spread.max),
            (one.median.ready, one.median.ready)
        );
        let two = Row::new("m", vec![start(7, None), start(9, None)]);
        assert_eq!(two.median.ready, Duration::from_millis(9));
    }
}
