//! Docker's credential helpers: `docker-credential-NAME get`, the server on stdin, JSON on stdout
//! (<https://github.com/docker/docker-credential-helpers>).

use std::ffi::OsStr;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::{Credentials, CredentialsError};
use crate::registry::secret::Secret;

/// A helper may ask a cloud for a token, but not a person for a password.
const TIME_MAX: Duration = Duration::from_secs(30);
/// Longest answer in bytes, as for a token.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "Username")]
    username: String,
    #[serde(rename = "Secret")]
    secret: String,
}

/// Asks the helper `name` for the credentials of `server`; `None` when it has none.
pub(super) async fn get(name: &str, server: &str) -> Result<Option<Credentials>, CredentialsError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if name.is_empty() || !name.bytes().all(plain) {
        let shown = name.chars().take(40).filter(|c| !c.is_control()).collect();
        let why = "this name cannot be that of a program";
        return Err(CredentialsError::Helper(shown, why.into()));
    }
    ask(name, format!("docker-credential-{name}").as_ref(), server).await
}

/// Asks the helper that is the program `program`; `name` is for messages.
pub(super) async fn ask(
    name: &str,
    program: &OsStr,
    server: &str,
) -> Result<Option<Credentials>, CredentialsError> {
    let error = |why: String| CredentialsError::Helper(name.into(), why);
    let run = tokio::time::timeout(TIME_MAX, run(program, server));
    let (good, output) = match run.await {
        Ok(done) => done.map_err(|e| error(e.to_string()))?,
        Err(_) => return Err(error(format!("no answer in {} s", TIME_MAX.as_secs()))),
    };
    if !good {
        let said = String::from_utf8_lossy(&output);
        // The words of the helpers' own library (`credentials.NewErrCredentialsNotFound`).
        if said.contains("credentials not found") {
            return Ok(None);
        }
        let said = said.trim().chars().take(200).filter(|c| !c.is_control());
        return Err(error(format!("it failed: {}", said.collect::<String>())));
    }
    let answer: Answer = serde_json::from_slice(&output)
        .map_err(|_| error("its answer is not the JSON of a login".into()))?;
    if answer.secret.is_empty() {
        return Ok(None);
    }
    let password = Secret::new(answer.secret);
    Ok(Some(match answer.username.as_str() {
        "<token>" => Credentials::IdentityToken(password),
        _ => Credentials::Password {
            username: answer.username,
            password,
        },
    }))
}

/// Whether the helper was content, and what it wrote.
async fn run(program: &OsStr, server: &str) -> std::io::Result<(bool, Vec<u8>)> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read is free to; its answer counts.
        let _ = stdin.write_all(server.as_bytes()).await;
    }
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout
            .take(OUTPUT_BYTES_MAX)
            .read_to_end(&mut output)
            .await?;
    }
    Ok((child.wait().await?.success(), output))
}
