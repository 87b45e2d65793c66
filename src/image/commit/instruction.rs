//! `--change`: Dockerfile instructions that change an image's configuration, as `docker commit` reads
//! them (Dockerfile reference; OCI image-spec, `config.md`, the object `config`).

use serde_json::{Map, Value, json};

use super::words::{expand, split};

/// Why an instruction cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InstructionError {
    /// Not one of those that change a configuration.
    #[error(
        "`{0}` cannot be used with --change (CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, \
         STOPSIGNAL, USER, VOLUME and WORKDIR can)"
    )]
    Unknown(String),
    /// Nothing behind the word.
    #[error("--change {0}: says nothing")]
    Empty(&'static str),
    /// A name without a value.
    #[error("--change {0}: `{1}` is not NAME=VALUE")]
    Pair(&'static str, String),
    /// No port.
    #[error("--change EXPOSE: `{0}` is not a port (80, 80/udp or 8000-8010)")]
    Port(String),
    /// No JSON array of strings.
    #[error("--change {0}: begins like a JSON array, but is none of strings")]
    Json(&'static str),
    /// A quote that is not closed.
    #[error("--change: a quote in `{0}` is not closed")]
    Quote(String),
    /// A variable in an unknown form.
    #[error(
        "--change: `${{{0}}}` is not a variable (${{NAME}}, ${{NAME:-DEFAULT}}, ${{NAME:+OTHER}})"
    )]
    Variable(String),
    /// An instruction that cannot wait for a build.
    #[error("--change ONBUILD: `{0}` cannot be triggered")]
    OnBuild(String),
}

use InstructionError as E;

/// A configuration's `config` that is being changed.
pub(super) struct Changer<'a> {
    config: &'a mut Map<String, Value>,
    /// Whether these instructions have given a command.
    command_given: bool,
}

impl<'a> Changer<'a> {
    pub(super) fn new(config: &'a mut Map<String, Value>) -> Changer<'a> {
        Changer {
            config,
            command_given: false,
        }
    }

    /// Follows one instruction.
    pub(super) fn apply(&mut self, text: &str) -> Result<(), E> {
        let text = text.trim();
        let end = text.find(char::is_whitespace).unwrap_or(text.len());
        let (word, rest) = (&text[..end], text[end..].trim());
        match word.to_ascii_uppercase().as_str() {
            "CMD" => {
                self.command_given = true;
                self.command("CMD", "Cmd", rest)
            }
            "ENTRYPOINT" => {
                // The command of the image was made for its own entry point.
                if !self.command_given {
                    self.config.remove("Cmd");
                }
                self.command("ENTRYPOINT", "Entrypoint", rest)
            }
            "ENV" => self.env(rest),
            "LABEL" => self.labels(rest),
            "EXPOSE" => self.expose(rest),
            "VOLUME" => self.volumes(rest),
            "USER" => self.text("USER", "User", rest),
            "STOPSIGNAL" => self.text("STOPSIGNAL", "StopSignal", rest),
            "WORKDIR" => self.working_directory(rest),
            "ONBUILD" => self.on_build(rest),
            _ => Err(E::Unknown(word.to_owned())),
        }
    }

    /// A JSON array as it is; anything else is for the shell.
    fn command(&mut self, name: &'static str, key: &str, rest: &str) -> Result<(), E> {
        let words = match array(name, rest)? {
            Some(words) => words,
            None if rest.is_empty() => return Err(E::Empty(name)),
            None => ["/bin/sh", "-c", rest].map(str::to_owned).to_vec(),
        };
        self.config.insert(key.to_owned(), json!(words));
        Ok(())
    }

    fn env(&mut self, rest: &str) -> Result<(), E> {
        let pairs = self.pairs("ENV", rest)?;
        let mut list = self.take_list("Env");
        for (name, value) in pairs {
            let entry = Value::String(format!("{name}={value}"));
            let is_it = |known: &&mut Value| {
                let known = known.as_str().and_then(|k| k.split_once('='));
                known.is_some_and(|(known, _)| known == name)
            };
            match list.iter_mut().find(is_it) {
                Some(known) => *known = entry,
                None => list.push(entry),
            }
        }
        self.config.insert("Env".to_owned(), Value::Array(list));
        Ok(())
    }

    fn labels(&mut self, rest: &str) -> Result<(), E> {
        let pairs = self.pairs("LABEL", rest)?;
        let members = pairs.into_iter().map(|(n, v)| (n, Value::String(v)));
        self.add("Labels", members);
        Ok(())
    }

    fn expose(&mut self, rest: &str) -> Result<(), E> {
        for word in self.words("EXPOSE", rest)? {
            let (ports, protocol) = word.split_once('/').unwrap_or((&word, "tcp"));
            let protocol = protocol.to_ascii_lowercase();
            let bad = || E::Port(word.clone());
            if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
                return Err(bad());
            }
            let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
            let port = |text: &str| text.parse::<u16>().map_err(|_| bad());
            let (first, last) = (port(first)?, port(last)?);
            if first == 0 || last < first {
                return Err(bad());
            }
            let name = |port| (format!("{port}/{protocol}"), json!({}));
            self.add("ExposedPorts", (first..=last).map(name));
        }
        Ok(())
    }

    fn volumes(&mut self, rest: &str) -> Result<(), E> {
        let words = match array("VOLUME", rest)? {
            Some(words) => words,
            None => self.words("VOLUME", rest)?,
        };
        if words.iter().any(|word| word.trim().is_empty()) || words.is_empty() {
            return Err(E::Empty("VOLUME"));
        }
        self.add("Volumes", words.into_iter().map(|word| (word, json!({}))));
        Ok(())
    }

    fn text(&mut self, name: &'static str, key: &str, rest: &str) -> Result<(), E> {
        let value = expand(rest, &|name| self.value(name))?;
        if value.is_empty() {
            return Err(E::Empty(name));
        }
        self.config.insert(key.to_owned(), Value::String(value));
        Ok(())
    }

    /// A relative one is below the one before.
    fn working_directory(&mut self, rest: &str) -> Result<(), E> {
        let value = expand(rest, &|name| self.value(name))?;
        if value.is_empty() {
            return Err(E::Empty("WORKDIR"));
        }
        let before = self.config.get("WorkingDir").and_then(Value::as_str);
        let whole = match value.starts_with('/') {
            true => value,
            false => format!("/{}/{value}", before.unwrap_or_default()),
        };
        let mut names: Vec<&str> = Vec::new();
        for name in whole.split('/') {
            match name {
                "" | "." => {}
                ".." => drop(names.pop()),
                name => names.push(name),
            }
        }
        let path = format!("/{}", names.join("/"));
        self.config
            .insert("WorkingDir".to_owned(), Value::String(path));
        Ok(())
    }

    fn on_build(&mut self, rest: &str) -> Result<(), E> {
        let word = rest.split_whitespace().next().unwrap_or_default();
        match word.to_ascii_uppercase().as_str() {
            "" => return Err(E::Empty("ONBUILD")),
            "ONBUILD" | "FROM" | "MAINTAINER" => return Err(E::OnBuild(word.to_owned())),
            _ => {}
        }
        let mut list = self.take_list("OnBuild");
        list.push(Value::String(rest.to_owned()));
        self.config.insert("OnBuild".to_owned(), Value::Array(list));
        Ok(())
    }

    fn words(&self, name: &'static str, rest: &str) -> Result<Vec<String>, E> {
        let words = split(rest);
        if words.is_empty() {
            return Err(E::Empty(name));
        }
        let expanded = |word: &&str| expand(word, &|name| self.value(name));
        words.iter().map(expanded).collect()
    }

    /// `NAME=VALUE …`, or the old `NAME VALUE`.
    fn pairs(&self, name: &'static str, rest: &str) -> Result<Vec<(String, String)>, E> {
        let words = split(rest);
        let first = words.first().ok_or(E::Empty(name))?;
        let lookup = |name: &str| self.value(name);
        if !first.contains('=') {
            let value = rest[first.len()..].trim();
            if value.is_empty() {
                return Err(E::Pair(name, (*first).to_owned()));
            }
            return Ok(vec![(expand(first, &lookup)?, expand(value, &lookup)?)]);
        }
        let mut pairs = Vec::new();
        for word in words {
            let bad = || E::Pair(name, word.to_owned());
            let (key, value) = word.split_once('=').ok_or_else(bad)?;
            let key = expand(key, &lookup)?;
            if key.is_empty() {
                return Err(bad());
            }
            pairs.push((key, expand(value, &lookup)?));
        }
        Ok(pairs)
    }

    /// A variable of the image's environment.
    fn value(&self, name: &str) -> Option<String> {
        let env = self.config.get("Env").and_then(Value::as_array)?;
        let mut pairs = env.iter().filter_map(|e| e.as_str()?.split_once('='));
        let found = pairs.rfind(|(known, _)| *known == name);
        found.map(|(_, value)| value.to_owned())
    }

    /// Takes out the array `key`; empty if it is none.
    fn take_list(&mut self, key: &str) -> Vec<Value> {
        match self.config.remove(key) {
            Some(Value::Array(list)) => list,
            _ => Vec::new(),
        }
    }

    /// Adds members to the object `key`.
    fn add(&mut self, key: &str, members: impl IntoIterator<Item = (String, Value)>) {
        let mut object = match self.config.remove(key) {
            Some(Value::Object(object)) => object,
            _ => Map::new(),
        };
        object.extend(members);
        self.config.insert(key.to_owned(), Value::Object(object));
    }
}

/// A JSON array of strings; `None` for what does not look like one.
fn array(name: &'static str, rest: &str) -> Result<Option<Vec<String>>, E> {
    if !rest.starts_with('[') {
        return Ok(None);
    }
    let words = serde_json::from_str(rest).map_err(|_| E::Json(name))?;
    Ok(Some(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(before: Value, instructions: &[&str]) -> Result<Value, E> {
        let Value::Object(mut config) = before else {
            panic!("an object");
        };
        let mut changer = Changer::new(&mut config);
        instructions.iter().try_for_each(|i| changer.apply(i))?;
        Ok(Value::Object(config))
    }

    #[test]
    fn instructions_change_what_docker_commit_changes() {
        let before = json!({
            "Cmd": ["old"], "Env": ["PATH=/bin", "A=1"], "WorkingDir": "/srv", "Labels": null,
        });
        let after = changed(
            before,
            &[
                "ENTRYPOINT [\"/e\", \"x y\"]",
                "cmd run $A",
                "ENV A=2 B=\"b c\" C=$A",
                "ENV OLD one two",
                "LABEL a.b=c",
                "EXPOSE 80 53/udp 8000-8001",
                "VOLUME /data [x",
                "USER $A:0",
                "STOPSIGNAL SIGUSR1",
                "WORKDIR app/../lib",
                "ONBUILD RUN make",
            ],
        );
        let expected = json!({
            "Entrypoint": ["/e", "x y"],
            "Cmd": ["/bin/sh", "-c", "run $A"],
            "Env": ["PATH=/bin", "A=2", "B=b c", "C=1", "OLD=one two"],
            "Labels": {"a.b": "c"},
            "ExposedPorts": {"80/tcp": {}, "53/udp": {}, "8000/tcp": {}, "8001/tcp": {}},
            "Volumes": {"/data": {}, "[x": {}},
            "User": "2:0",
            "StopSignal": "SIGUSR1",
            "WorkingDir": "/srv/lib",
            "OnBuild": ["RUN make"],
        });
        assert_eq!(after.unwrap(), expected);
    }

    #[test]
    fn an_entry_point_takes_the_images_command_away_but_not_a_new_one() {
        let before = json!({"Cmd": ["old"], "Entrypoint": ["older"]});
        let after = changed(before.clone(), &["ENTRYPOINT [\"e\"]"]).unwrap();
        assert_eq!(after, json!({"Entrypoint": ["e"]}));
        let after = changed(before, &["CMD [\"c\"]", "ENTRYPOINT [\"e\"]"]).unwrap();
        assert_eq!(after, json!({"Cmd": ["c"], "Entrypoint": ["e"]}));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (instruction, error) in [
            ("RUN x", E::Unknown("RUN".into())),
            ("", E::Unknown(String::new())),
            ("CMD", E::Empty("CMD")),
            ("CMD [\"a\"", E::Json("CMD")),
            ("CMD [1]", E::Json("CMD")),
            ("ENV", E::Empty("ENV")),
            ("ENV A", E::Pair("ENV", "A".into())),
            ("ENV A=1 B", E::Pair("ENV", "B".into())),
            ("LABEL =x", E::Pair("LABEL", "=x".into())),
            ("EXPOSE 70000", E::Port("70000".into())),
            ("EXPOSE 80/icmp", E::Port("80/icmp".into())),
            ("EXPOSE 9-8", E::Port("9-8".into())),
            ("USER", E::Empty("USER")),
            ("ENV A=\"b", E::Quote("\"b".into())),
            ("ONBUILD FROM x", E::OnBuild("FROM".into())),
        ] {
            assert_eq!(changed(json!({}), &[instruction]), Err(error));
        }
    }
}
