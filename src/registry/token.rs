//! Token servers: which request gets a token, and what the answer says. Sans-IO.
//!
//! Protocol: the distribution project's token specification (GET) and its OAuth 2 variant (POST,
//! <https://distribution.github.io/distribution/spec/auth/oauth/>), which identity tokens need.

use std::time::Duration;

use serde::Deserialize;
use url::Url;

use super::credentials::{Credentials, basic};
use super::secret::Secret;

/// Longest answer of a token server in bytes: real tokens have a few KiB, those with many groups
/// in them some tens.
pub(super) const TOKEN_BYTES_MAX: u64 = 1 << 20;
/// How long a token lives when the server does not say (token specification, `expires_in`).
const LIFE_DEFAULT: Duration = Duration::from_secs(60);
/// No token is believed to live longer: a server that says "a century" is asked again anyway.
const LIFE_MAX: Duration = Duration::from_secs(24 * 3600);

/// What to send to the token server.
#[derive(Debug)]
pub(super) struct TokenRequest {
    pub(super) url: Url,
    pub(super) authorization: Option<Secret>,
    /// The body of a POST; a GET without.
    pub(super) form: Option<Secret>,
}

/// A token and how long it is good.
#[derive(Debug)]
pub(super) struct Token {
    pub(super) value: Secret,
    pub(super) life: Duration,
}

impl TokenRequest {
    pub(super) fn new(
        mut realm: Url,
        service: Option<&str>,
        scope: &str,
        credentials: Option<&Credentials>,
    ) -> TokenRequest {
        let service = service.map(|s| ("service", s));
        if let Some(Credentials::IdentityToken(token)) = credentials {
            let mut form = url::form_urlencoded::Serializer::new(String::new());
            // One parameter, as OAuth 2 has it (RFC 6749, section 3.3).
            form.extend_pairs(service);
            form.extend_pairs((!scope.is_empty()).then_some(("scope", scope)));
            form.append_pair("grant_type", "refresh_token");
            form.append_pair("client_id", "rsmount");
            form.append_pair("refresh_token", token.expose());
            let form = Some(Secret::new(form.finish()));
            return TokenRequest {
                url: realm,
                authorization: None,
                form,
            };
        }
        // A parameter for each: servers that follow the token specification take a value with a space
        // for one scope that they do not know.
        let scopes = scope.split_whitespace().map(|scope| ("scope", scope));
        realm
            .query_pairs_mut()
            .extend_pairs(service.into_iter().chain(scopes));
        TokenRequest {
            url: realm,
            authorization: credentials.and_then(basic),
            form: None,
        }
    }
}

impl Token {
    /// Reads a token server's answer; the error says what is wrong with it.
    pub(super) fn parse(bytes: &[u8]) -> Result<Token, &'static str> {
        #[derive(Deserialize)]
        struct Document {
            token: Option<String>,
            access_token: Option<String>,
            expires_in: Option<f64>,
        }
        let document: Document =
            serde_json::from_slice(bytes).map_err(|_| "its answer is not the JSON of a token")?;
        let given = |token: &String| !token.is_empty();
        let value = document
            .token
            .filter(given)
            .or(document.access_token.filter(given));
        let value = value.ok_or("its answer holds no token")?;
        if !value.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("its token has characters that no header can hold");
        }
        let seconds = document.expires_in.filter(|s| *s >= 1.0);
        let life = seconds.map_or(LIFE_DEFAULT, |s| {
            Duration::try_from_secs_f64(s)
                .unwrap_or(LIFE_MAX)
                .min(LIFE_MAX)
        });
        Ok(Token {
            value: Secret::new(format!("Bearer {value}")),
            life,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_token_servers_are_read() {
        let token = |json: &str| Token::parse(json.as_bytes());
        let t = token(r#"{"token":"","access_token":"abc","expires_in":300}"#).unwrap();
        assert_eq!((t.value.expose(), t.life.as_secs()), ("Bearer abc", 300));
        for (life, seconds) in [("null", 60), ("-5", 60), ("0", 60), ("1e300", 24 * 3600)] {
            let t = token(&format!(r#"{{"token":"x","expires_in":{life}}}"#)).unwrap();
            assert_eq!(t.life.as_secs(), seconds, "{life}");
        }
        for bad in ["", "{}", "[]", r#"{"token":"a\nb"}"#, r#"{"token":"ä"}"#] {
            assert!(token(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn requests_carry_what_the_credentials_are() {
        let realm = || Url::parse("https://a.io/token?x=1").unwrap();
        let scope = "repository:a/b:pull";
        let anonymous = TokenRequest::new(realm(), Some("s & t"), scope, None);
        let query = "x=1&service=s+%26+t&scope=repository%3Aa%2Fb%3Apull";
        assert_eq!(anonymous.url.query(), Some(query));
        assert!(anonymous.authorization.is_none() && anonymous.form.is_none());
        let two = "repository:a:pull,push repository:b:pull";
        let both = TokenRequest::new(realm(), None, two, None);
        let query = "x=1&scope=repository%3Aa%3Apull%2Cpush&scope=repository%3Ab%3Apull";
        assert_eq!(both.url.query(), Some(query));
        let password = Credentials::Password {
            username: "u".into(),
            password: Secret::new("p"),
        };
        let with = TokenRequest::new(realm(), None, scope, Some(&password));
        assert_eq!(with.authorization.unwrap().expose(), "Basic dTpw");
        let identity = Credentials::IdentityToken(Secret::new("id&"));
        let post = TokenRequest::new(realm(), None, scope, Some(&identity));
        assert!(post.form.unwrap().expose().ends_with("refresh_token=id%26"));
        assert_eq!(post.url, realm());
    }
}
