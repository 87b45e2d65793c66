//! What can go wrong with a blob or a registry. Whether trying again helps is a property of the
//! error, decided where the knowledge is.

use std::time::Duration;

/// What an error means to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The name or digest does not exist there.
    NotFound,
    /// The server knows us and refuses, or does not know us (401, 403).
    Denied,
    /// Trying again may help: connection trouble, time-outs, 429, 5xx.
    Transient,
    /// Bytes come so slowly that another connection may help.
    Slow,
    /// The bytes are not those that were announced.
    Corrupt,
    /// The answer is not what the protocol allows.
    Protocol,
    /// What was asked for cannot be asked (a bad range, an unsupported thing).
    Unsupported,
}

/// An error of a blob source. One line for people; the chain of causes is in `source`.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What it means.
    pub kind: ErrorKind,
    /// What happened, and to what, in one line.
    pub message: String,
    /// The server asked to wait this long before the next try.
    pub retry_after: Option<Duration>,
    /// The cause.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error without a cause.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error {
            kind,
            message: message.into(),
            retry_after: None,
            source: None,
        }
    }

    /// The same error with its cause.
    pub fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        self.source = Some(source.into());
        self
    }

    /// The same error with the server's wish to wait.
    pub fn with_retry_after(mut self, wait: Option<Duration>) -> Error {
        self.retry_after = wait;
        self
    }

    /// Whether trying again may help.
    pub fn is_transient(&self) -> bool {
        matches!(self.kind, ErrorKind::Transient | ErrorKind::Slow)
    }
}
