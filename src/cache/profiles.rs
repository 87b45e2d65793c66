//! What earlier starts of an image touched, by a key that stands for its list of layers, and the same
//! of each command that was run in it: `KEY` and `KEY-COMMAND`. A profile is a hint: one that is
//! missing or damaged costs speed, nothing else.

use super::{Cache, CacheError, staging};
use crate::oci::Digest;

/// The largest profile that is read.
const PROFILE_BYTES_MAX: usize = 8 << 20;

/// Commands of one image whose profiles are kept: who runs a new one each time must not fill the disk.
const COMMANDS_MAX: usize = 32;

fn name(key: &Digest, command: Option<&Digest>) -> String {
    match command {
        None => key.hex().to_owned(),
        Some(command) => format!("{}-{}", key.hex(), command.hex()),
    }
}

impl Cache {
    /// Stores the profile of `key`, or that of one command of it. The profile that was stored longest
    /// ago makes room for that of one command too many.
    pub fn put_profile(
        &self,
        key: &Digest,
        command: Option<&Digest>,
        bytes: &[u8],
    ) -> Result<(), CacheError> {
        let name = name(key, command);
        staging::write_file(&self.root, &self.root.profiles, &name, bytes)?;
        let mut stored = self.command_names(key)?;
        stored.sort_by_cached_key(|name| {
            let stat = self.root.profiles.stat(name).ok().flatten();
            std::cmp::Reverse(stat.map_or((0, 0), |s| (s.st_mtime, s.st_mtime_nsec as i64)))
        });
        let mut surplus = stored
            .iter()
            .filter(|of| **of != name)
            .skip(COMMANDS_MAX - 1);
        surplus.try_for_each(|name| self.root.profiles.remove(name))
    }

    /// The profile of `key`, or that of one command of it, as it was stored.
    pub fn profile(&self, key: &Digest, command: Option<&Digest>) -> Option<Vec<u8>> {
        self.read_profile(&name(key, command))
    }

    /// The profiles of all commands of `key`.
    pub fn command_profiles(&self, key: &Digest) -> Vec<Vec<u8>> {
        let names = self.command_names(key).unwrap_or_default();
        let profiles = names.iter().map(|name| self.read_profile(name));
        profiles.flatten().collect()
    }

    fn command_names(&self, key: &Digest) -> Result<Vec<String>, CacheError> {
        let begin = format!("{}-", key.hex());
        let mut names = self.root.profiles.names()?;
        names.retain(|name| name.starts_with(&begin));
        Ok(names)
    }

    fn read_profile(&self, name: &str) -> Option<Vec<u8>> {
        let read = self.root.profiles.read(name, PROFILE_BYTES_MAX);
        read.ok().flatten()
    }

    /// Removes all profiles: the next starts have nothing to go by.
    pub fn forget_profiles(&self) -> Result<(), CacheError> {
        let names = self.root.profiles.names()?;
        names
            .iter()
            .try_for_each(|name| self.root.profiles.remove(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_profiles_of_their_own_and_not_too_many() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let (key, other) = (Digest::of(b"layers"), Digest::of(b"others"));
        cache.put_profile(&key, None, b"merged").unwrap();
        cache.put_profile(&other, Some(&key), b"else").unwrap();
        let command = |n: usize| Digest::of(&n.to_le_bytes());
        for n in 0..COMMANDS_MAX + 3 {
            let bytes = n.to_string();
            cache
                .put_profile(&key, Some(&command(n)), bytes.as_bytes())
                .unwrap();
        }
        assert_eq!(cache.command_profiles(&key).len(), COMMANDS_MAX);
        let last = command(COMMANDS_MAX + 2);
        let bytes = (COMMANDS_MAX + 2).to_string().into_bytes();
        assert_eq!(cache.profile(&key, Some(&last)), Some(bytes));
        assert_eq!(cache.profile(&key, None), Some(b"merged".to_vec()));
        assert_eq!(cache.command_profiles(&other), [b"else"]);
    }
}
