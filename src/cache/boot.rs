//! What was found out about this machine and holds until it is started anew.

use super::{Cache, CacheError, staging};

/// Longest note.
const NOTE_BYTES_MAX: usize = 4 << 10;

impl Cache {
    /// What was noted as `name` under `key`, which has to say everything that the note depends on:
    /// the boot, the kernel, the program.
    pub fn note(&self, name: &str, key: &str) -> Option<String> {
        let bytes = self.root.notes.read(name, NOTE_BYTES_MAX).ok().flatten()?;
        let text = String::from_utf8(bytes).ok()?;
        let (noted, note) = text.split_once('\n')?;
        (noted == key).then(|| note.to_owned())
    }

    /// Notes something as `name` instead of what was noted before. `key` is one line.
    pub fn put_note(&self, name: &str, key: &str, note: &str) -> Result<(), CacheError> {
        let text = format!("{key}\n{note}");
        staging::write_file(&self.root, &self.root.notes, name, text.as_bytes())
    }
}
