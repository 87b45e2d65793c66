//! What an image configuration tells people: who made the image, when, by which steps, and how it
//! wants to be run (OCI image-spec, `config.md`).

use serde::Deserialize;
use serde_json::Value;

use crate::oci::config::{CONFIG_BYTES_MAX, ConfigError};

/// The part of a configuration that is for people. Times are kept as they stand there (RFC 3339).
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct About {
    /// When the image was made.
    pub created: Option<String>,
    /// By whom.
    pub author: Option<String>,
    /// A comment (Docker's).
    pub comment: Option<String>,
    /// How it wants to be run: the object `config`, as it stands there.
    #[serde(default)]
    pub config: Value,
    /// The steps that made it, first one first; `None` when nothing was written down.
    #[serde(default)]
    pub history: Option<Vec<Step>>,
}

/// One step of an image's history.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct Step {
    /// When.
    pub created: Option<String>,
    /// The command.
    pub created_by: Option<String>,
    /// By whom.
    pub author: Option<String>,
    /// A comment.
    pub comment: Option<String>,
    /// Whether it made no layer.
    #[serde(default)]
    pub empty_layer: Option<bool>,
}

impl Step {
    /// Whether the step made a layer.
    pub fn has_layer(&self) -> bool {
        !self.empty_layer.unwrap_or(false)
    }
}

impl About {
    /// Reads a configuration.
    pub fn parse(bytes: &[u8]) -> Result<About, ConfigError> {
        if bytes.len() as u64 > CONFIG_BYTES_MAX {
            return Err(ConfigError::TooLong(bytes.len()));
        }
        Ok(serde_json::from_slice(bytes)?)
    }

    /// The steps, first one first.
    pub fn steps(&self) -> &[Step] {
        self.history.as_deref().unwrap_or_default()
    }

    /// Each step with the position of the layer that it made, of `layers` in all. Layers that no step
    /// claims have none; builders are known to write too short histories.
    pub fn steps_with_layers(&self, layers: usize) -> Vec<(&Step, Option<usize>)> {
        let mut next = 0;
        let with_layer = |step| {
            let has = Step::has_layer(step) && next < layers;
            let at = has.then_some(next);
            next += usize::from(has);
            (step, at)
        };
        self.steps().iter().map(with_layer).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_claim_layers_in_order() {
        let json = r#"{"author":null,"history":[{"created_by":"a"},{"empty_layer":true},
            {"created_by":"b"},{"created_by":"c"}]}"#;
        let about = About::parse(json.as_bytes()).unwrap();
        let steps = about.steps_with_layers(2);
        let at: Vec<_> = steps.iter().map(|(_, at)| *at).collect();
        assert_eq!(at, [Some(0), None, Some(1), None]);
        assert!(About::parse(b"{}").unwrap().steps().is_empty());
        let null = About::parse(br#"{"history":null,"config":null}"#).unwrap();
        assert!(null.steps().is_empty() && null.config.is_null());
        assert!(About::parse(b"[1]").is_err());
    }
}
