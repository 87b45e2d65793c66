//! What is run, and in which environment: Docker's rules for entrypoint, command and variables.

use crate::container::image::Defaults;
use crate::oci::command::Given;

/// Docker's `PATH` for images that give none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// There is nothing to run.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} names no command; say what to run behind the image's name")]
pub struct NoCommand(pub String);

/// Program and arguments. `entrypoint` replaces the image's and drops its command with it (empty: no
/// entrypoint at all); `command` replaces the image's when it has any word.
pub fn arguments(
    image: &str,
    defaults: &Defaults,
    entrypoint: Option<&[String]>,
    command: &[String],
) -> Result<Vec<String>, NoCommand> {
    let given = Given {
        entrypoint: entrypoint.map(<[String]>::to_vec),
        command: command.to_vec(),
    };
    let of_image = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let words = given.words(&of_image(&defaults.entrypoint), &of_image(&defaults.cmd));
    match words.first() {
        None => Err(NoCommand(image.to_owned())),
        Some(_) => Ok(words),
    }
}

/// The words of `--entrypoint`: one program, a JSON array, or nothing for none.
pub fn entrypoint(text: &str) -> Vec<String> {
    if text.is_empty() {
        return Vec::new();
    }
    let list = text.starts_with('[').then(|| serde_json::from_str(text));
    match list {
        Some(Ok(list)) => list,
        _ => vec![text.to_owned()],
    }
}

/// Variables of the first process, later ones replacing earlier ones of the same name: what every
/// container has, the image's, the user's.
pub fn environment(
    defaults: &Defaults,
    hostname: &str,
    terminal: bool,
    given: &[String],
) -> Vec<String> {
    let mut env = vec![
        format!("PATH={DEFAULT_PATH}"),
        format!("HOSTNAME={hostname}"),
    ];
    if terminal {
        env.push("TERM=xterm".to_owned());
    }
    for variable in defaults.env.iter().flatten().chain(given) {
        set(&mut env, variable);
    }
    env
}

/// Sets `NAME=value`; a name alone takes the variable away, as `-e NAME` of an unset one does.
pub fn set(env: &mut Vec<String>, variable: &str) {
    let name = name_of(variable);
    let place = env.iter().position(|v| name_of(v) == name);
    match (place, variable.contains('=')) {
        (Some(at), true) => variable.clone_into(&mut env[at]),
        (None, true) => env.push(variable.to_owned()),
        (Some(at), false) => drop(env.remove(at)),
        (None, false) => {}
    }
}

/// Sets a variable unless somebody has.
pub fn set_default(env: &mut Vec<String>, name: &str, value: &str) {
    if !env.iter().any(|v| name_of(v) == name) {
        env.push(format!("{name}={value}"));
    }
}

fn name_of(variable: &str) -> &str {
    variable.split_once('=').map_or(variable, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_eight_combinations() {
        let some = |text: &str| (!text.is_empty()).then(|| words(text));
        for (entrypoint, cmd, given, expected) in [
            ("", "", "", None),
            ("", "", "x y", Some("x y")),
            ("", "c d", "", Some("c d")),
            ("", "c d", "x y", Some("x y")),
            ("e", "", "", Some("e")),
            ("e", "", "x y", Some("e x y")),
            ("e", "c d", "", Some("e c d")),
            ("e", "c d", "x y", Some("e x y")),
        ] {
            let defaults = Defaults {
                entrypoint: some(entrypoint),
                cmd: some(cmd),
                ..Defaults::default()
            };
            let run = arguments("image", &defaults, None, &words(given)).ok();
            assert_eq!(run, expected.map(words), "{entrypoint:?} {cmd:?} {given:?}");
        }
    }

    #[test]
    fn another_entrypoint_drops_the_image_s_command() {
        let defaults = Defaults {
            entrypoint: Some(words("e")),
            cmd: Some(words("c")),
            ..Defaults::default()
        };
        let run = |text: &str, given: &str| {
            arguments("image", &defaults, Some(&entrypoint(text)), &words(given)).ok()
        };
        assert_eq!(run("n", ""), Some(words("n")));
        assert_eq!(run(r#"["n", "m"]"#, "x"), Some(words("n m x")));
        assert_eq!(run("", "x"), Some(words("x")));
        assert_eq!(run("", ""), None);
    }

    #[test]
    fn later_variables_win() {
        let defaults = Defaults {
            env: Some(words("A=1 B=2")),
            ..Defaults::default()
        };
        let mut env = environment(&defaults, "h", true, &words("B=3 A C=4"));
        set_default(&mut env, "HOME", "/root");
        let path = format!("PATH={DEFAULT_PATH}");
        assert_eq!(
            env,
            [
                &path,
                "HOSTNAME=h",
                "TERM=xterm",
                "B=3",
                "C=4",
                "HOME=/root"
            ]
        );
        set_default(&mut env, "HOME", "/elsewhere");
        assert!(env.contains(&"HOME=/root".to_owned()));
    }
}
