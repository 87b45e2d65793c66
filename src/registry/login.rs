//! Whether a registry accepts a user name and a password (OCI distribution-spec, "Determining
//! Support": `GET /v2/`, which every registry answers).

use super::exchange::Ask;
use super::mirrors::Mirrors;
use super::{Settings, status};
use crate::blob::{Error, ErrorKind};
use crate::oci::Reference;

/// Asks the registry of `reference` with the credentials of `settings`; whether it has looked at
/// them. Errors: it refuses them, or cannot be asked.
pub async fn check_login(reference: &Reference, settings: Settings) -> Result<bool, Error> {
    let exchange = Mirrors::new(reference, &settings)?.itself();
    let refused = |host: &str| {
        let what = format!("{host} refuses the user name or the password");
        Error::new(ErrorKind::Denied, what)
    };
    let ask = Ask {
        login: true,
        ..Ask::default()
    };
    let found = match exchange.get("/v2/", ask).await {
        Err(e) if e.kind == ErrorKind::Denied => {
            return Err(refused(&exchange.host()).with_source(e));
        }
        found => found?,
    };
    match found.answer.status() {
        200 => {
            found.answer.drain().await;
            exchange.was_asked().await
        }
        401 | 403 => Err(refused(&exchange.host())),
        _ => Err(status::error(found.answer, "registry at /v2/").await),
    }
}
