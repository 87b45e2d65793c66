//! `WWW-Authenticate`: what the registry wants to see. Sans-IO.
//!
//! Grammar: RFC 9110, section 11.6.1; the parameters of `Bearer` by the distribution project's
//! token specification (<https://distribution.github.io/distribution/spec/auth/token/>).

/// How the registry wants to be convinced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User name and password with each request.
    Basic,
    /// A token from somewhere else.
    Bearer {
        /// URL of the token server.
        realm: String,
        /// What the token server calls the registry.
        service: Option<String>,
        /// What the token has to allow.
        scope: Option<String>,
    },
}

impl Challenge {
    /// The best challenge of all header values: a bearer token before a password, because tokens
    /// are worth less to a thief. `None` when none can be met.
    pub(super) fn parse<'a>(headers: impl IntoIterator<Item = &'a str>) -> Option<Challenge> {
        let mut best = None;
        for header in headers {
            // What stands before a syntax error is as good as without it.
            let parsed = http_auth::parser::ChallengeParser::new(header).map_while(Result::ok);
            for challenge in parsed {
                match Challenge::of(&challenge) {
                    Some(bearer @ Challenge::Bearer { .. }) => return Some(bearer),
                    Some(Challenge::Basic) => best = Some(Challenge::Basic),
                    None => {}
                }
            }
        }
        best
    }

    fn of(challenge: &http_auth::ChallengeRef<'_>) -> Option<Challenge> {
        let parameter = |name: &str| {
            let found = challenge
                .params
                .iter()
                .find(|(n, _)| n.eq_ignore_ascii_case(name));
            found
                .map(|(_, value)| value.to_unescaped())
                .filter(|v| !v.is_empty())
        };
        if challenge.scheme.eq_ignore_ascii_case("basic") {
            return Some(Challenge::Basic);
        }
        if !challenge.scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (service, scope) = (parameter("service"), parameter("scope"));
        Some(Challenge::Bearer {
            realm: parameter("realm")?,
            service,
            scope,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        let own = |s: Option<&str>| s.map(String::from);
        Some(Challenge::Bearer {
            realm: realm.into(),
            service: own(service),
            scope: own(scope),
        })
    }

    #[test]
    fn challenges_of_real_registries_are_read() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/ubuntu:pull""#;
        assert_eq!(
            Challenge::parse([hub]),
            bearer(
                "https://auth.docker.io/token",
                Some("registry.docker.io"),
                Some("repository:library/ubuntu:pull")
            )
        );
        let basic = r#"Basic realm="Registry Realm""#;
        assert_eq!(Challenge::parse([basic]), Some(Challenge::Basic));
        assert_eq!(
            Challenge::parse(["BASIC realm=\"x\", bearer Realm=\"y\""]),
            bearer("y", None, None)
        );
        assert_eq!(
            Challenge::parse([basic, r#"Bearer realm="z""#]),
            bearer("z", None, None)
        );
        assert_eq!(
            Challenge::parse(["Negotiate", basic]),
            Some(Challenge::Basic)
        );
    }

    #[test]
    fn what_cannot_be_met_is_none() {
        for header in [
            "",
            "Negotiate",
            "Bearer",
            "Bearer realm=\"\"",
            "Bearer realm=\"x",
            "=,=\0",
        ] {
            assert_eq!(Challenge::parse([header]), None, "{header}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics(s in "(Bearer|Basic)? ?[ -~\u{80}-\u{ff}]{0,60}") {
            let _ = Challenge::parse([s.as_str()]);
        }
    }
}
