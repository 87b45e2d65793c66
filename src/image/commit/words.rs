//! The words of a Dockerfile line: quotes, backslashes, and variables (Dockerfile reference,
//! "Environment replacement").

use super::instruction::InstructionError;

/// Gives the value of a variable.
pub(super) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Splits at blanks outside of quotes; quotes stay for [`expand`].
pub(super) fn split(text: &str) -> Vec<&str> {
    let (mut words, mut start, mut quote, mut escaped) = (Vec::new(), None, None, false);
    for (at, c) in text.char_indices() {
        let was_escaped = std::mem::replace(&mut escaped, false);
        match c {
            _ if was_escaped => {}
            '\\' if quote != Some('\'') => escaped = true,
            '"' | '\'' if quote.is_none() => quote = Some(c),
            _ if quote == Some(c) => quote = None,
            _ if c.is_whitespace() && quote.is_none() => {
                if let Some(from) = start.take() {
                    words.push(&text[from..at]);
                }
                continue;
            }
            _ => {}
        }
        start = start.or(Some(at));
    }
    words.extend(start.map(|from| &text[from..]));
    words
}

/// Takes quotes and backslashes away and puts values in the place of variables.
pub(super) fn expand(word: &str, lookup: Lookup<'_>) -> Result<String, InstructionError> {
    let (mut out, mut quote) = (String::new(), None);
    let mut rest = word.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\\' if quote != Some('\'') => match rest.next() {
                // In double quotes a backslash is one, but for what it can take the meaning from.
                Some(next) if quote == Some('"') && !matches!(next, '"' | '\\' | '$') => {
                    out.extend(['\\', next]);
                }
                Some(next) => out.push(next),
                None => out.push('\\'),
            },
            '"' | '\'' if quote.is_none() => quote = Some(c),
            _ if quote == Some(c) => quote = None,
            '$' if quote != Some('\'') => {
                if rest.next_if_eq(&'{').is_some() {
                    let body: String = rest.by_ref().take_while(|c| *c != '}').collect();
                    out.push_str(&braced(&body, lookup)?);
                    continue;
                }
                let mut name = String::new();
                while let Some(c) = rest.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
                    name.push(c);
                }
                match name.is_empty() {
                    true => out.push('$'),
                    false => out.push_str(&lookup(&name).unwrap_or_default()),
                }
            }
            c => out.push(c),
        }
    }
    match quote {
        None => Ok(out),
        Some(_) => Err(InstructionError::Quote(word.to_owned())),
    }
}

/// What stands in `${…}`: a name, or one with `:-` or `:+`.
fn braced(body: &str, lookup: Lookup<'_>) -> Result<String, InstructionError> {
    let end = body
        .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .unwrap_or(body.len());
    let (name, rest) = body.split_at(end);
    let value = lookup(name).filter(|value| !value.is_empty());
    let unknown = || InstructionError::Variable(body.to_owned());
    match rest.split_at_checked(2) {
        _ if name.is_empty() => Err(unknown()),
        None if rest.is_empty() => Ok(value.unwrap_or_default()),
        Some((":-", default)) => value.map_or_else(|| expand(default, lookup), Ok),
        Some((":+", other)) => match value {
            Some(_) => expand(other, lookup),
            None => Ok(String::new()),
        },
        _ => Err(unknown()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_and_expanded_as_in_a_dockerfile() {
        let words = split(r#"a="b c"  d\ e 'f g'"#);
        assert_eq!(words, [r#"a="b c""#, r"d\ e", "'f g'"]);
        assert!(split("  ").is_empty());
        let lookup = |name: &str| (name == "A").then(|| "1".to_owned());
        for (word, expected) in [
            ("$A", "1"),
            ("x${A}y", "x1y"),
            ("'$A'", "$A"),
            ("\"$A b\"", "1 b"),
            (r"\$A", "$A"),
            (r"d\ e", "d e"),
            (r#""a\b\"""#, r#"a\b""#),
            ("$B", ""),
            ("${B:-z$A}", "z1"),
            ("${A:+y}", "y"),
            ("${B:+y}", ""),
            ("5$", "5$"),
        ] {
            assert_eq!(expand(word, &lookup).unwrap(), expected, "{word}");
        }
        for bad in ["\"a", "${}", "${A?x}", "${A:?x}"] {
            assert!(expand(bad, &lookup).is_err(), "{bad}");
        }
    }
}
