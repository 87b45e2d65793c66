//! The forms of Go's `text/template` that docker users write, as Jinja: `{{.A.B}}`, `{{json .A}}`,
//! `{{len .A}}`, `{{index .A 0}}`, `{{join .A ","}}`, `{{range .A}}…{{end}}` and
//! `{{if .A}}…{{else}}…{{end}}`. What is none of these stays as it is, and is Jinja.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// A block that is open.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Block {
    /// `{{if}}`.
    If,
    /// `{{range}}`; `.` means the element meanwhile.
    Range,
}

/// `template` as Jinja. Values of Go's forms go through the filter `go`, which prints them as Go
/// does; `root` is the whole value.
pub(super) fn translated(template: &str) -> String {
    let (mut text, mut rest, mut open) = (String::new(), template, Vec::new());
    while let Some((before, after)) = rest.split_once("{{") {
        text.push_str(before);
        let Some((inside, behind)) = after.split_once("}}") else {
            text.push_str("{{");
            rest = after;
            continue;
        };
        match action(inside, &mut open) {
            Some(jinja) => text.push_str(&jinja),
            None => text.push_str(&format!("{{{{{inside}}}}}")),
        }
        rest = behind;
    }
    text + rest
}

/// One action in Jinja; nothing when it is none of Go's forms.
fn action(go: &str, open: &mut Vec<Block>) -> Option<String> {
    // Each range has a name of its own for its element.
    let depth = open.iter().filter(|b| **b == Block::Range).count();
    let words = words(go)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let of = |word: &str| path(word, depth);
    Some(match *words.as_slice() {
        ["end"] => match open.pop()? {
            Block::If => "{% endif %}".to_owned(),
            Block::Range => "{% endfor %}".to_owned(),
        },
        ["else"] if !open.is_empty() => "{% else %}".to_owned(),
        ["if", value] => {
            let value = of(value)?;
            open.push(Block::If);
            format!("{{% if {value} %}}")
        }
        ["if", "not", value] => {
            let value = of(value)?;
            open.push(Block::If);
            format!("{{% if not {value} %}}")
        }
        ["range", value] => {
            let value = of(value)?;
            open.push(Block::Range);
            format!("{{% for dot{} in {value}|elements %}}", depth + 1)
        }
        ["json", value] => format!("{{{{ {}|json }}}}", of(value)?),
        ["len", value] => format!("{{{{ {}|length }}}}", of(value)?),
        ["index", value, key] => format!("{{{{ {}[{key}]|go }}}}", of(value)?),
        ["join", value, by] => format!("{{{{ {}|join({by}) }}}}", of(value)?),
        ["println", value] => format!("{{{{ {}|go }}}}\n", of(value)?),
        [value] => format!("{{{{ {}|go }}}}", of(value)?),
        _ => return None,
    })
}

/// The words of an action; a quoted one keeps its quotes. Nothing when a quote stays open.
fn words(go: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    for c in go.chars().chain([' ']) {
        match c {
            c if c.is_whitespace() && !quoted => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => {
                quoted ^= c == '"';
                word.push(c);
            }
        }
    }
    (!quoted).then_some(words)
}

/// `.`, `.A.B` or `$.A` in Jinja, `depth` ranges deep.
fn path(go: &str, depth: usize) -> Option<String> {
    let (go, depth) = match go.strip_prefix('$') {
        Some(of_all) => (of_all, 0),
        None => (go, depth),
    };
    let base = match depth {
        0 => "root".to_owned(),
        depth => format!("dot{depth}"),
    };
    let members = go.strip_prefix('.')?;
    let word = |w: &str| !w.is_empty() && w.chars().all(|c| c.is_alphanumeric() || c == '_');
    match members {
        "" => Some(base),
        _ if members.split('.').all(word) => Some(format!("{base}.{members}")),
        _ => None,
    }
}

/// A value as Go prints it; one that is not there is an error, as everywhere.
pub(super) fn printed(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::Undefined => Err(Error::from(ErrorKind::UndefinedError)),
        ValueKind::None => Ok("<nil>".to_owned()),
        ValueKind::Seq => {
            let items: Result<Vec<String>, Error> =
                value.try_iter()?.map(|item| printed(&item)).collect();
            Ok(format!("[{}]", items?.join(" ")))
        }
        ValueKind::Map => {
            let pair = |key: Value| Ok(format!("{key}:{}", printed(&value.get_item(&key)?)?));
            let pairs: Result<Vec<String>, Error> = value.try_iter()?.map(pair).collect();
            let mut pairs = pairs?;
            pairs.sort_unstable();
            Ok(format!("map[{}]", pairs.join(" ")))
        }
        _ => Ok(value.to_string()),
    }
}

/// What a range goes over: the elements of a list, the values of a map in the order of its keys.
pub(super) fn elements(value: &Value) -> Result<Vec<Value>, Error> {
    match value.kind() {
        ValueKind::Undefined => Err(Error::from(ErrorKind::UndefinedError)),
        ValueKind::None => Ok(Vec::new()),
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            keys.sort();
            keys.iter().map(|key| value.get_item(key)).collect()
        }
        _ => Ok(value.try_iter()?.collect()),
    }
}
