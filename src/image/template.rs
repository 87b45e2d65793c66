//! `--format`: a value through a template.
//!
//! The language is Jinja's, by `minijinja`: well kept, without dependencies but serde, and it cannot
//! do anything but print. Docker's own is Go's `text/template`, for which there is no kept crate; its
//! two forms that scripts live on, `{{.Config.User}}` and `{{json .Config}}`, are read as well.

use minijinja::{Environment, UndefinedBehavior};
use serde_json::Value;

use crate::image::error::Error;

/// Steps that a template may take: one that loops is ended.
const FUEL: u64 = 10_000_000;

/// Prints `value`, whose members are the variables of `template`; `root` is the whole of it.
pub fn render(template: &str, value: &Value) -> Result<String, Error> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(FUEL));
    environment.add_filter("json", |value: minijinja::Value| {
        serde_json::to_string(&value).map_err(|e| {
            minijinja::Error::new(minijinja::ErrorKind::BadSerialization, e.to_string())
        })
    });
    let mut context = value.clone();
    if let Some(members) = context.as_object_mut() {
        members.insert("root".to_owned(), value.clone());
    }
    let text = translated(template);
    let rendered = environment.render_str(
        &text,
        minijinja::Value::from(minijinja::value::Serde(context)),
    );
    rendered.map_err(|e| Error::Template(why(&e)))
}

fn why(error: &minijinja::Error) -> String {
    let what = error
        .detail()
        .map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.kind() {
        minijinja::ErrorKind::UndefinedError => format!("the image has no such member ({what})"),
        _ => format!(
            "{what} (the language is Jinja's: {{{{ Config.User }}}}, {{% for e in Config.Env %}})"
        ),
    }
}

/// Docker's `{{.A.B}}` as `{{ A.B }}`, `{{json .A}}` as `{{ A|json }}`; all else as it is.
fn translated(template: &str) -> String {
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        text.push_str(before);
        let Some((inside, behind)) = after.split_once("}}") else {
            text.push_str("{{");
            rest = after;
            continue;
        };
        let go = inside.trim();
        let (go, filter) = match go.strip_prefix("json ") {
            Some(of) => (of.trim(), "|json"),
            None => (go, ""),
        };
        match go.strip_prefix('.') {
            Some("") => text.push_str(&format!("{{{{ root{filter} }}}}")),
            Some(path) if is_path(path) => text.push_str(&format!("{{{{ {path}{filter} }}}}")),
            _ => text.push_str(&format!("{{{{{inside}}}}}")),
        }
        rest = behind;
    }
    text + rest
}

fn is_path(path: &str) -> bool {
    let word = |w: &str| !w.is_empty() && w.chars().all(|c| c.is_alphanumeric() || c == '_');
    path.split('.').all(word)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn templates_of_both_kinds_are_read() {
        let value = json!({"Os": "linux", "Config": {"Env": ["A=1", "B=<2>"], "User": ""}});
        for (template, text) in [
            ("{{ Os }}/{{.Os}}", "linux/linux"),
            ("{{json .Config.Env}}", r#"["A=1","B=<2>"]"#),
            ("{{ Config.Env|json }}", r#"["A=1","B=<2>"]"#),
            (
                "{% for e in Config.Env %}{{ e }};{% endfor %}",
                "A=1;B=<2>;",
            ),
            ("{{ Config.Env|join(' ') }}", "A=1 B=<2>"),
            ("[{{.Config.User}}]", "[]"),
        ] {
            assert_eq!(
                render(template, &value).ok().as_deref(),
                Some(text),
                "{template}"
            );
        }
        assert_eq!(render("{{json .}}", &value).unwrap(), value.to_string());
    }

    #[test]
    fn what_is_wrong_is_one_line() {
        let value = json!({"Os": "linux"});
        for bad in [
            "{{",
            "{{ Nope }}",
            "{{.Os.Nope}}",
            "{% for %}",
            "{{range .Env}}{{end}}",
        ] {
            let error = render(bad, &value).unwrap_err().to_string();
            assert_eq!(error.lines().count(), 1, "{error}");
        }
        let endless =
            "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
        assert!(render(endless, &value).is_err());
    }
}
