//! Single flight: who waits for which span. A span that is on its way is never asked for again.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::content::error::Error;

/// Called once, with the outcome.
pub(super) type Done = Box<dyn FnOnce(Result<(), Arc<Error>>) + Send>;

/// A layer's position and a span's in its index.
type Key = (u32, usize);

/// The spans that are on their way.
#[derive(Debug, Default)]
pub(super) struct Flights(Mutex<HashMap<Key, Vec<Arc<Waiter>>>>);

/// Somebody who waits for one span or several.
pub(super) struct Waiter(Mutex<Waiting>);

struct Waiting {
    left: usize,
    done: Option<Done>,
}

impl fmt::Debug for Waiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Waiter")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Flights {
    /// Waits for all `spans` of `layer`; gives those of them that nobody fetches yet, which the
    /// caller must then fetch. `spans` is not empty.
    pub(super) fn join(&self, layer: u32, spans: &[usize], done: Done) -> Vec<usize> {
        let waiting = Waiting {
            left: spans.len(),
            done: Some(done),
        };
        let waiter = Arc::new(Waiter(Mutex::new(waiting)));
        let mut flights = lock(&self.0);
        let mut fresh = Vec::new();
        for &span in spans {
            let waiters = flights.entry((layer, span)).or_insert_with(|| {
                fresh.push(span);
                Vec::new()
            });
            waiters.push(waiter.clone());
        }
        fresh
    }

    /// Takes on those of `spans` that nobody fetches yet, without waiting for them.
    pub(super) fn claim(&self, layer: u32, spans: &[usize]) -> Vec<usize> {
        let mut flights = lock(&self.0);
        let claim = |span: &&usize| match flights.entry((layer, **span)) {
            Entry::Occupied(_) => false,
            Entry::Vacant(vacant) => {
                vacant.insert(Vec::new());
                true
            }
        };
        spans.iter().filter(claim).copied().collect()
    }

    /// Span `span` is there: whoever waited for nothing else goes on.
    pub(super) fn landed(&self, layer: u32, span: usize) {
        let waiters = lock(&self.0).remove(&(layer, span)).unwrap_or_default();
        for waiter in waiters {
            let done = {
                let mut waiting = lock(&waiter.0);
                waiting.left = waiting.left.saturating_sub(1);
                if waiting.left == 0 {
                    waiting.done.take()
                } else {
                    None
                }
            };
            if let Some(done) = done {
                done(Ok(()));
            }
        }
    }

    /// Span `span` will not come.
    pub(super) fn failed(&self, layer: u32, span: usize, error: &Arc<Error>) {
        let waiters = lock(&self.0).remove(&(layer, span)).unwrap_or_default();
        for waiter in waiters {
            let done = lock(&waiter.0).done.take();
            if let Some(done) = done {
                done(Err(error.clone()));
            }
        }
    }
}
