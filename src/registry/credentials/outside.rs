//! Credentials for a process that may not look for them itself: another one does, and says what it
//! found in JSON.

use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use super::{Credentials, CredentialsError, Source};
use crate::oci::Reference;
use crate::registry::secret::Secret;

/// Asks for the credentials of a reference; gives the JSON of [`look_up`].
pub type Ask = Box<dyn Fn(&str) -> std::io::Result<Vec<u8>> + Send + Sync>;

/// A property of the process, like what it may not do: whatever was made before is held to it.
static OUTSIDE: OnceLock<Ask> = OnceLock::new();

/// From now on this process has its credentials looked up by `ask`.
pub fn ask_outside(ask: Ask) {
    let _already = OUTSIDE.set(ask);
}

/// What crosses.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Nothing,
    Password { username: String, password: String },
    IdentityToken(String),
    Failed(String),
}

/// Looks for the credentials of `reference` as [`Source::from_environment`] says; for who asks. What the
/// environment has for the registry that a command names, who asks has as well.
pub async fn look_up(reference: &Reference) -> Vec<u8> {
    let answer = match Source::from_environment(None).find(reference).await {
        Ok(None) => Answer::Nothing,
        Ok(Some(Credentials::Password { username, password })) => Answer::Password {
            username,
            password: password.expose().to_owned(),
        },
        Ok(Some(Credentials::IdentityToken(token))) => {
            Answer::IdentityToken(token.expose().to_owned())
        }
        Err(e) => Answer::Failed(e.to_string()),
    };
    serde_json::to_vec(&answer).unwrap_or_default()
}

/// The answer of who does not look, for [`ask_outside`].
pub fn refused(why: &str) -> Vec<u8> {
    serde_json::to_vec(&Answer::Failed(why.to_owned())).unwrap_or_default()
}

/// What somebody else found; `None` when this process may look itself.
pub(super) async fn found(
    reference: &Reference,
) -> Option<Result<Option<Credentials>, CredentialsError>> {
    let ask = OUTSIDE.get()?;
    let named = reference.to_string();
    let said = tokio::task::spawn_blocking(move || ask(&named)).await;
    let said = said.unwrap_or_else(|e| Err(std::io::Error::other(e)));
    Some(
        said.map_err(|e| e.to_string())
            .and_then(|json| read(&json))
            .map_err(CredentialsError::Outside),
    )
}

fn read(json: &[u8]) -> Result<Option<Credentials>, String> {
    // Without the words of the error, which could show a piece of a secret.
    let answer = serde_json::from_slice(json).map_err(|_| "no answer".to_owned())?;
    Ok(match answer {
        Answer::Nothing => None,
        Answer::Password { username, password } => Some(Credentials::Password {
            username,
            password: Secret::new(password),
        }),
        Answer::IdentityToken(token) => Some(Credentials::IdentityToken(Secret::new(token))),
        Answer::Failed(why) => return Err(why),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_crosses_is_read_again() {
        let password = Answer::Password {
            username: "u".into(),
            password: "p".into(),
        };
        let json = serde_json::to_vec(&password).unwrap();
        let expected = Credentials::Password {
            username: "u".into(),
            password: Secret::new("p"),
        };
        assert_eq!(read(&json), Ok(Some(expected)));
        let token = serde_json::to_vec(&Answer::IdentityToken("t".into())).unwrap();
        assert_eq!(
            read(&token),
            Ok(Some(Credentials::IdentityToken(Secret::new("t"))))
        );
        assert_eq!(read(&refused("gone")), Err("gone".to_owned()));
        assert_eq!(read(b"{\"password\":1}"), Err("no answer".to_owned()));
    }
}
