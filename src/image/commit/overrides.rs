//! What a container was given when it was run, which an image that is made of it keeps, as with
//! `docker commit`: a container that is run from that image does the same. That holds for variables as
//! well, so a secret that was given as one is in the image's configuration.

use serde_json::{Map, Value, json};

/// What a container was given; nothing set leaves what the image said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `NAME=value`; a name alone takes a variable away.
    pub env: Vec<String>,
    /// What ran instead of the image's entrypoint; empty for none at all.
    pub entrypoint: Option<Vec<String>>,
    /// What ran instead of the image's command.
    pub command: Vec<String>,
    /// Where it started.
    pub working_dir: Option<String>,
    /// `user[:group]`.
    pub user: Option<String>,
    /// The signal that asks it to end.
    pub stop_signal: Option<String>,
}

impl Overrides {
    /// Puts it into `config`, the object of that name in an image's configuration.
    pub(super) fn apply(&self, config: &mut Map<String, Value>) {
        if !self.env.is_empty() {
            let known = config.remove("Env");
            let known = known.as_ref().and_then(Value::as_array);
            let known = known.into_iter().flatten().filter_map(Value::as_str);
            let mut env: Vec<String> = known.map(str::to_owned).collect();
            self.env.iter().for_each(|given| set(&mut env, given));
            config.insert("Env".to_owned(), json!(env));
        }
        if let Some(words) = &self.entrypoint {
            // The command of the image was made for its own entry point.
            config.remove("Cmd");
            config.remove("Entrypoint");
            if !words.is_empty() {
                config.insert("Entrypoint".to_owned(), json!(words));
            }
        }
        if !self.command.is_empty() {
            config.insert("Cmd".to_owned(), json!(self.command));
        }
        for (name, text) in [
            ("WorkingDir", &self.working_dir),
            ("User", &self.user),
            ("StopSignal", &self.stop_signal),
        ] {
            if let Some(text) = text {
                config.insert(name.to_owned(), json!(text));
            }
        }
    }
}

fn set(env: &mut Vec<String>, given: &str) {
    let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
    let at = env.iter().position(|known| name(known) == name(given));
    match (at, given.contains('=')) {
        (Some(at), true) => given.clone_into(&mut env[at]),
        (None, true) => env.push(given.to_owned()),
        (Some(at), false) => drop(env.remove(at)),
        (None, false) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_s_own_words_replace_the_image_s() {
        let image = json!({ "Env": ["A=1", "B=2", "C=3"], "Cmd": ["c"], "Entrypoint": ["e"],
            "User": "u", "Labels": {} });
        let of = |given: &Overrides| {
            let mut config = image.as_object().unwrap().clone();
            given.apply(&mut config);
            Value::Object(config)
        };
        assert_eq!(of(&Overrides::default()), image);
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let given = Overrides {
            env: words("B=x C D=4"),
            entrypoint: Some(words("n m")),
            working_dir: Some("/w".to_owned()),
            ..Overrides::default()
        };
        let expected = json!({ "Env": ["A=1", "B=x", "D=4"], "Entrypoint": ["n", "m"], "User": "u",
            "Labels": {}, "WorkingDir": "/w" });
        assert_eq!(of(&given), expected);
        let command = Overrides {
            command: words("x y"),
            ..Overrides::default()
        };
        assert_eq!(of(&command)["Cmd"], json!(["x", "y"]));
        assert_eq!(of(&command)["Entrypoint"], json!(["e"]));
    }
}
