//! `--format`: a value through a template.
//!
//! The language is Jinja's, by `minijinja`: well kept, without dependencies but serde, and it cannot
//! do anything but print. Docker's own is Go's `text/template`, for which there is no kept crate; the
//! forms of it that scripts live on, from `{{.Config.User}}` to `{{range .Config.Env}}`, are read as
//! well (`go`).

mod go;

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
    environment.add_filter("go", |value: minijinja::Value| go::printed(&value));
    environment.add_filter("elements", |value: minijinja::Value| go::elements(&value));
    let text = go::translated(template);
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
            "{what} (read are {{{{.A.B}}}}, json, len, index, join, range and if of docker's templates, \
             and Jinja: {{{{ Config.User }}}}, {{% for e in Config.Env %}})"
        ),
    }
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
    fn docker_s_templates_print_what_docker_prints() {
        let value = json!({
            "Config": {
                "Cmd": ["redis-server", "--port", "1"],
                "User": "",
                "Labels": {"b": "2", "a": "1"},
                "WorkingDir": "/data",
            },
            "RepoTags": ["redis:7"],
            "Size": 7,
        });
        for (template, text) in [
            ("{{.Config.Cmd}}", "[redis-server --port 1]"),
            ("{{ .Config.Labels }}", "map[a:1 b:2]"),
            ("{{len .Config.Cmd}}", "3"),
            ("{{index .RepoTags 0}}", "redis:7"),
            ("{{index .Config.Labels \"b\"}}", "2"),
            ("{{join .Config.Cmd \", \"}}", "redis-server, --port, 1"),
            (
                "{{range .Config.Cmd}}<{{.}}>{{end}}",
                "<redis-server><--port><1>",
            ),
            ("{{range .Config.Labels}}{{.}},{{end}}", "1,2,"),
            ("{{range .RepoTags}}{{.}}={{$.Size}} {{end}}", "redis:7=7 "),
            ("{{if .Config.User}}u{{else}}none{{end}}", "none"),
            (
                "{{if .Config.WorkingDir}}{{.Config.WorkingDir}}{{end}}",
                "/data",
            ),
        ] {
            let rendered = render(template, &value);
            assert_eq!(rendered.ok().as_deref(), Some(text), "{template}");
        }
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
