//! `rsmount key`, and reading keys that are named on the command line and in the configuration.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::cli::args::trust::KeyCommand;
use crate::cli::output::{self, Failure};
use crate::pack::{PublicKey, SecretKey};

/// Longest key file that is read, in bytes: a list of some thousand public keys.
const KEY_BYTES_MAX: u64 = 1 << 20;

pub(crate) fn run(command: KeyCommand) -> Result<(), Failure> {
    let (keys, json) = match command {
        KeyCommand::Generate { file, json } => (vec![generate(&file)?], json),
        KeyCommand::Show { file, json } => {
            let pem = read(&file)?;
            let keys = match SecretKey::from_pem(&pem) {
                Ok(secret) => vec![secret.public()],
                Err(_) => PublicKey::from_pem(&pem).map_err(|e| bad(&file, &e))?,
            };
            (keys, json)
        }
    };
    if json {
        let shown = |key: &PublicKey| json!({ "key": key, "fingerprint": key.fingerprint() });
        return output::json(&keys.iter().map(shown).collect::<Vec<_>>());
    }
    for key in keys {
        output::line(&format!("{}  {key}", key.fingerprint()));
    }
    Ok(())
}

fn generate(file: &Path) -> Result<PublicKey, Failure> {
    let (secret, pem) = SecretKey::generate().map_err(|e| Failure::of(&e))?;
    let public = secret.public();
    let mut public_file = file.as_os_str().to_owned();
    public_file.push(".pub");
    let public_file = PathBuf::from(public_file);
    // Both or neither: a public key without its secret would be trusted for nothing.
    write_new(&public_file, &public.to_pem(), 0o644)?;
    if let Err(failure) = write_new(file, &pem, 0o600) {
        let _none_left = std::fs::remove_file(&public_file);
        return Err(failure);
    }
    Ok(public)
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(mode);
    let written = options.open(path).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => Failure::new(format!(
            "{}: exists; a key is never written over, choose another name",
            path.display()
        )),
        _ => Failure::new(format!("{}: {e}", path.display())),
    })
}

/// The secret key in `file`.
pub(super) fn secret(file: &Path) -> Result<SecretKey, Failure> {
    let pem = read(file)?;
    let open = std::fs::metadata(file).is_ok_and(|found| found.mode() & 0o077 != 0);
    if open {
        output::note(&format!(
            "{}: others can read this secret key (chmod 600)",
            file.display()
        ));
    }
    SecretKey::from_pem(&pem).map_err(|e| bad(file, &e))
}

/// The public keys that `name` stands for: `ed25519:BASE64`, or a PEM file, relative to `base`.
pub(super) fn public(name: &str, base: &Path) -> Result<Vec<PublicKey>, Failure> {
    if name.starts_with("ed25519:") {
        let key = name.parse::<PublicKey>();
        return key
            .map(|key| vec![key])
            .map_err(|e| Failure::new(format!("{name}: {e}")));
    }
    let file = base.join(name);
    PublicKey::from_pem(&read(&file)?).map_err(|e| bad(&file, &e))
}

fn bad(file: &Path, error: &crate::pack::key::KeyError) -> Failure {
    Failure::new(format!("{}: {error}", file.display()))
}

fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(file)
        .and_then(|opened| opened.take(KEY_BYTES_MAX).read_to_end(&mut bytes))
        .map_err(|e| Failure::new(format!("{}: {e}", file.display())))?;
    Ok(bytes)
}
