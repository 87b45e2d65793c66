//! The end of a reader's patience: with [`Outage::Seconds`] it gets an error when the source has given
//! nothing for so long, whatever is tried behind it meanwhile.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Runtime;

use crate::blob;
use crate::content::error::Error;
use crate::content::flights::Done;
use crate::content::{Content, Outage};

/// Shorter waits would be an error for a source that is merely far away.
const SHORTEST: Duration = Duration::from_millis(100);

impl Content {
    /// Gives up for `done` in time; bytes of any layer that arrive meanwhile show that the source is
    /// there.
    pub(super) fn with_deadline(self: &Arc<Self>, runtime: &Runtime, done: Done) -> Done {
        let Outage::Seconds(seconds) = self.options.outage else {
            return done;
        };
        let wait = Duration::from_secs(seconds).max(SHORTEST);
        let waiting = Arc::new(Mutex::new(Some(done)));
        let (content, watched) = (Arc::downgrade(self), waiting.clone());
        runtime.spawn(async move {
            let mut seen = None;
            loop {
                let Some(content) = content.upgrade() else {
                    return;
                };
                let now = content.tally.fetched_bytes.load(Relaxed);
                if lock(&watched).is_none() {
                    return;
                }
                if seen == Some(now) {
                    break;
                }
                seen = Some(now);
                drop(content);
                tokio::time::sleep(wait).await;
            }
            if let Some(done) = lock(&watched).take() {
                let message = format!("the source gave nothing in {seconds} s");
                let error = blob::Error::new(blob::ErrorKind::Transient, message);
                done(Err(Arc::new(Error::Blob(error))));
            }
        });
        Box::new(move |outcome| {
            if let Some(done) = lock(&waiting).take() {
                done(outcome);
            }
        })
    }
}

fn lock(waiting: &Mutex<Option<Done>>) -> std::sync::MutexGuard<'_, Option<Done>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}
