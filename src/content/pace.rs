//! How fast the source is, measured while running: bytes a second of all streams together, and the
//! time of a round trip.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Until something was measured: 100 Mbit/s and 20 ms.
const BYTES_PER_SECOND: f64 = 12_500_000.0;
const ROUND_TRIP: Duration = Duration::from_millis(20);

/// How long arriving bytes are counted for one measurement.
const WINDOW: Duration = Duration::from_millis(25);

/// Fewer bytes say little about the bandwidth: they may have waited in a buffer.
const MEASURED_BYTES_MIN: u64 = 64 << 10;

/// A running measurement.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<State>);

#[derive(Debug)]
struct State {
    bytes_per_second: f64,
    round_trip: Duration,
    /// Streams that are arriving.
    streams: usize,
    /// Since when bytes are counted, and how many came.
    since: Instant,
    bytes: u64,
}

impl Default for State {
    fn default() -> State {
        State {
            bytes_per_second: BYTES_PER_SECOND,
            round_trip: ROUND_TRIP,
            streams: 0,
            since: Instant::now(),
            bytes: 0,
        }
    }
}

impl State {
    fn measure(&mut self, now: Instant) {
        let time = now.saturating_duration_since(self.since);
        if self.bytes >= MEASURED_BYTES_MIN {
            let rate = self.bytes as f64 / time.as_secs_f64().max(1e-4);
            // A quarter of the news: moments vary, links do not.
            self.bytes_per_second += (rate - self.bytes_per_second) / 4.0;
        }
        (self.since, self.bytes) = (now, 0);
    }
}

/// An answer that is arriving, until it is dropped.
#[derive(Debug)]
pub(super) struct Receiving<'a>(&'a Pace);

impl Pace {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An answer begins to arrive, `asked` after it was asked for.
    pub(super) fn receive(&self, asked: Duration) -> Receiving<'_> {
        let mut state = self.lock();
        // A busy link and a new connection make answers late, nothing makes them early.
        state.round_trip = match asked < state.round_trip {
            true => asked,
            false => state.round_trip + (asked - state.round_trip) / 16,
        };
        if state.streams == 0 {
            (state.since, state.bytes) = (Instant::now(), 0);
        }
        state.streams += 1;
        Receiving(self)
    }

    /// Bytes that come in `time`.
    pub(super) fn bytes_in(&self, time: Duration) -> u64 {
        (self.lock().bytes_per_second * time.as_secs_f64()) as u64
    }

    /// Time in which `bytes` come.
    pub(super) fn time_of(&self, bytes: u64) -> Duration {
        let rate = self.lock().bytes_per_second.max(1.0);
        Duration::from_secs_f64((bytes as f64 / rate).min(1e9))
    }

    /// Time from a question to its answer.
    pub(super) fn round_trip(&self) -> Duration {
        self.lock().round_trip
    }

    /// Bytes that are cheaper to fetch than to ask again for what follows them.
    pub(super) fn gap(&self) -> u64 {
        self.bytes_in(self.round_trip())
    }
}

impl Receiving<'_> {
    /// More bytes of it came.
    pub(super) fn arrived(&self, bytes: u64) {
        let mut state = self.0.lock();
        state.bytes += bytes;
        let now = Instant::now();
        if now.saturating_duration_since(state.since) >= WINDOW {
            state.measure(now);
        }
    }
}

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.streams -= 1;
        if state.streams == 0 {
            state.measure(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_learns_what_streams_bring_together() {
        let pace = Pace::default();
        for _ in 0..40 {
            let two =
                [Duration::from_millis(5), Duration::from_millis(30)].map(|t| pace.receive(t));
            // 1 MB in 10 ms, half of it in each stream.
            let ago = Duration::from_millis(10);
            pace.lock().since = Instant::now().checked_sub(ago).unwrap();
            two.iter().for_each(|stream| stream.arrived(500_000));
        }
        let rate = pace.bytes_in(Duration::from_secs(1)) as f64;
        // The clock goes on while this runs.
        assert!((30e6..=101e6).contains(&rate), "{rate}");
        assert!(pace.round_trip() < Duration::from_millis(7));
        let before = pace.bytes_in(Duration::from_secs(1));
        pace.receive(Duration::from_millis(5)).arrived(10);
        assert_eq!(
            pace.bytes_in(Duration::from_secs(1)),
            before,
            "a few bytes say little"
        );
    }
}
