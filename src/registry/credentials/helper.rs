//! Docker's credential helpers: `docker-credential-NAME get|store|erase`, the server or a login on
//! stdin, JSON on stdout
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
    ask(name, program(name)?.as_ref(), server).await
}

/// Has the helper `name` keep a login.
pub(super) async fn store(
    name: &str,
    server: &str,
    username: &str,
    password: &str,
) -> Result<(), CredentialsError> {
    let login = serde_json::json!({
        "ServerURL": server, "Username": username, "Secret": password,
    });
    let said = tell(name, "store", &login.to_string()).await?;
    match said {
        None => Ok(()),
        Some(why) => Err(CredentialsError::Helper(name.into(), why)),
    }
}

/// Has the helper `name` forget a login; whether it says that it did.
pub(super) async fn erase(name: &str, server: &str) -> Result<bool, CredentialsError> {
    match tell(name, "erase", server).await? {
        None => Ok(true),
        Some(why) if why.contains(NOT_FOUND) => Ok(false),
        Some(why) => Err(CredentialsError::Helper(name.into(), why)),
    }
}

/// Runs a verb that answers nothing; gives what the helper says when it fails.
async fn tell(name: &str, verb: &str, input: &str) -> Result<Option<String>, CredentialsError> {
    let error = |why: String| CredentialsError::Helper(name.into(), why);
    let program = program(name)?;
    let run = tokio::time::timeout(TIME_MAX, run(program.as_ref(), verb, input));
    match run.await {
        Ok(Ok((true, _))) => Ok(None),
        Ok(Ok((false, output))) => Ok(Some(format!("it failed: {}", shown(&output)))),
        Ok(Err(e)) => Err(error(e.to_string())),
        Err(_) => Err(error(format!("no answer in {} s", TIME_MAX.as_secs()))),
    }
}

/// The words of the helpers' own library (`credentials.NewErrCredentialsNotFound`).
const NOT_FOUND: &str = "credentials not found";

fn program(name: &str) -> Result<String, CredentialsError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if name.is_empty() || !name.bytes().all(plain) {
        let shown = name.chars().take(40).filter(|c| !c.is_control()).collect();
        let why = "this name cannot be that of a program";
        return Err(CredentialsError::Helper(shown, why.into()));
    }
    Ok(format!("docker-credential-{name}"))
}

/// What a helper said, for a message.
fn shown(output: &[u8]) -> String {
    let said = String::from_utf8_lossy(output);
    let said = said.trim().chars().take(200);
    said.filter(|c| !c.is_control()).collect()
}

/// Asks the helper that is the program `program`; `name` is for messages.
pub(super) async fn ask(
    name: &str,
    program: &OsStr,
    server: &str,
) -> Result<Option<Credentials>, CredentialsError> {
    let error = |why: String| CredentialsError::Helper(name.into(), why);
    let run = tokio::time::timeout(TIME_MAX, run(program, "get", server));
    let (good, output) = match run.await {
        Ok(done) => done.map_err(|e| error(e.to_string()))?,
        Err(_) => return Err(error(format!("no answer in {} s", TIME_MAX.as_secs()))),
    };
    if !good {
        let said = shown(&output);
        if said.contains(NOT_FOUND) {
            return Ok(None);
        }
        return Err(error(format!("it failed: {said}")));
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
async fn run(program: &OsStr, verb: &str, input: &str) -> std::io::Result<(bool, Vec<u8>)> {
    let mut child = Command::new(program)
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read is free to; its answer counts.
        let _ = stdin.write_all(input.as_bytes()).await;
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
