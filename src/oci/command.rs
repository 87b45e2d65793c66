//! What a container runs: Docker's rule for the image's entrypoint and command and the user's words.

use serde::{Deserialize, Serialize};

/// What the user says of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    /// Replaces the image's entrypoint and drops its command with it; empty: no entrypoint at all.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's command when it has any word.
    pub command: Vec<String>,
}

impl Given {
    /// Program and arguments, for an image with this `entrypoint` and `command`; empty when neither
    /// names any.
    pub fn words(&self, entrypoint: &[String], command: &[String]) -> Vec<String> {
        let mut words = self
            .entrypoint
            .clone()
            .unwrap_or_else(|| entrypoint.to_vec());
        if !self.command.is_empty() {
            words.extend_from_slice(&self.command);
        } else if self.entrypoint.is_none() {
            words.extend_from_slice(command);
        }
        words
    }

    /// How long its words are, in bytes.
    pub fn len(&self) -> usize {
        let words = self.entrypoint.iter().flatten().chain(&self.command);
        words.map(|word| word.len() + 1).sum()
    }

    /// Whether the user says nothing.
    pub fn is_empty(&self) -> bool {
        self.entrypoint.is_none() && self.command.is_empty()
    }
}
