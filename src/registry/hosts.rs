//! Which hosts are asked for a registry: containerd's `hosts.toml` (its `docs/hosts.md`), so that a
//! machine that has mirrors for containerd has them for this as well.
//!
//! ```text
//! DIRECTORY/registry.example.com_5000_/hosts.toml     also …com:5000, and _default for all others
//!
//!   server = "https://registry.example.com:5000"      the last to be asked
//!   [host."https://mirror.example.com"]               asked in the order of the file
//!     capabilities = ["pull"]                         no tags, no pushes
//! ```
//!
//! The first directory that has anything for the registry, be it `_default`, holds. One without
//! `hosts.toml` may hold certificates after docker's pattern: `*.crt`, and `*.cert` with `*.key`.
//!
//! Unlike containerd, a file that makes no sense is an error (it goes on without it, and so without
//! what the file was to forbid), and `http://` with TLS settings is plain HTTP. Its `proxy` is
//! refused: the environment names proxies.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use toml::Spanned;
use url::Url;

use super::redirect::shown_host;
use super::secret::Secret;
use crate::blob::{Error, ErrorKind};
use crate::oci::Reference;

/// How the files are named.
const FILE: &str = "hosts.toml";

/// Longest file that is read: it holds a few lines a host.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Most hosts of one registry: each that is away costs a reader its time-out.
const HOSTS_MAX: usize = 16;

/// What a host may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capabilities {
    /// What has a digest.
    pub(super) pull: bool,
    /// What a tag stands for, and what refers to an image: nothing proves the answer.
    pub(super) resolve: bool,
    /// To keep something.
    pub(super) push: bool,
}

impl Capabilities {
    const ALL: Capabilities = Capabilities {
        pull: true,
        resolve: true,
        push: true,
    };
}

/// How a host proves itself, and we to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tls {
    pub(super) ca_files: Vec<PathBuf>,
    /// A file of the certificate and one of the key, which may be the same.
    pub(super) client: Option<(PathBuf, PathBuf)>,
    pub(super) skip_verify: bool,
}

/// A host that is asked for a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    /// Root of its API, without a slash at the end; the registry's own when absent.
    pub(super) root: Option<Url>,
    pub(super) may: Capabilities,
    pub(super) tls: Tls,
    /// Sent with each request, to this host alone.
    pub(super) headers: Vec<(String, Secret)>,
    pub(super) connect: Option<Duration>,
}

impl Host {
    /// The registry itself, of which nothing special is known.
    pub(super) fn plain() -> Host {
        Host {
            root: None,
            may: Capabilities::ALL,
            tls: Tls::default(),
            headers: Vec::new(),
            connect: None,
        }
    }
}

/// Where the files are looked for: the first one that has something for a registry holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostsDirs {
    /// The directories.
    pub dirs: Vec<PathBuf>,
    /// Whether it is an error that one cannot be read. It is not for places that are looked into
    /// unasked, and that may belong to somebody else.
    pub strict: bool,
}

/// The hosts of the registry of `reference` in the order in which they are asked; at least one.
pub(super) fn of(reference: &Reference, dirs: &HostsDirs) -> Result<Vec<Host>, Error> {
    match directory(reference, dirs)? {
        Some(directory) => read(&directory),
        None => Ok(vec![Host::plain()]),
    }
}

/// The registry of `reference` and its mirrors as `HOST[:PORT]`: whose credentials a process needs that
/// asks them.
pub fn names(reference: &Reference, dirs: &HostsDirs) -> Result<Vec<String>, Error> {
    let mut names = vec![reference.registry().to_owned()];
    for host in of(reference, dirs)? {
        names.extend(host.root.as_ref().map(shown_host));
    }
    Ok(names)
}

/// The files that the hosts of `reference` need: what a process must be able to read that asks them.
pub fn files(reference: &Reference, dirs: &HostsDirs) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    for host in of(reference, dirs)? {
        files.extend(host.tls.ca_files);
        files.extend(host.tls.client.into_iter().flat_map(|(a, b)| [a, b]));
    }
    Ok(files)
}

/// Where it would be said which hosts are asked for the registry of `reference`, whether it is or not.
pub fn places(reference: &Reference, dirs: &HostsDirs) -> Vec<PathBuf> {
    let directories = directories(reference, dirs).into_iter();
    directories.map(|dir| dir.join(FILE)).collect()
}

/// Those that may hold for a registry, in the order in which they are looked for.
fn directories(reference: &Reference, dirs: &HostsDirs) -> Vec<PathBuf> {
    let registry = reference.registry();
    let mut names = vec![registry.to_owned(), "_default".to_owned()];
    if let Some((host, port)) = registry.rsplit_once(':') {
        names.insert(0, format!("{host}_{port}_"));
    }
    let of = |dir: &PathBuf| names.iter().map(|name| dir.join(name)).collect::<Vec<_>>();
    dirs.dirs.iter().flat_map(of).collect()
}

/// The directory that holds for a registry.
fn directory(reference: &Reference, dirs: &HostsDirs) -> Result<Option<PathBuf>, Error> {
    for path in directories(reference, dirs) {
        match path.metadata() {
            Ok(_) => return Ok(Some(path)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) if !dirs.strict => tracing::debug!(path = %path.display(), error = %e),
            Err(e) => return Err(unusable(&path, &e.to_string())),
        }
    }
    Ok(None)
}

fn unusable(path: &Path, why: &str) -> Error {
    let what = format!("cannot use {}: {why}", path.display());
    Error::new(ErrorKind::Unsupported, what)
}

fn read(directory: &Path) -> Result<Vec<Host>, Error> {
    use std::io::Read;
    let path = directory.join(FILE);
    let mut text = String::new();
    let opened = std::fs::File::open(&path);
    match opened.and_then(|f| f.take(FILE_BYTES_MAX).read_to_string(&mut text)) {
        Ok(_) => parse(&text, directory).map_err(|why| unusable(&path, &why)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => certificates(directory),
        Err(e) => Err(unusable(&path, &e.to_string())),
    }
}

/// Docker's pattern: any `*.crt` is an authority, any `*.cert` is ours and has a `*.key`.
fn certificates(directory: &Path) -> Result<Vec<Host>, Error> {
    let listed = std::fs::read_dir(directory).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let listed = listed.map_err(|e| unusable(directory, &e.to_string()))?;
    let mut paths: Vec<PathBuf> = listed.iter().map(std::fs::DirEntry::path).collect();
    paths.sort();
    let mut tls = Tls::default();
    for path in paths {
        match path.extension().and_then(|e| e.to_str()) {
            Some("crt") => tls.ca_files.push(path),
            Some("cert") if tls.client.is_none() => {
                let key = path.with_extension("key");
                tls.client = Some((path, key));
            }
            _ => {}
        }
    }
    Ok(vec![Host {
        tls,
        ..Host::plain()
    }])
}

/// What can be said of a host. Fields that this version does not know are errors: they may be ones
/// that forbid something.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMore>,
    client: Option<Client>,
    skip_verify: Option<bool>,
    #[serde(default)]
    header: BTreeMap<String, OneOrMore>,
    #[serde(default)]
    override_path: bool,
    dial_timeout: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    server: Option<String>,
    #[serde(default)]
    host: BTreeMap<Spanned<String>, Fields>,
    // Flattened by hand: serde does not refuse unknown fields of a flattened part.
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMore>,
    client: Option<Client>,
    skip_verify: Option<bool>,
    #[serde(default)]
    header: BTreeMap<String, OneOrMore>,
    #[serde(default)]
    override_path: bool,
    dial_timeout: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl OneOrMore {
    fn all(self) -> Vec<String> {
        match self {
            OneOrMore::One(one) => vec![one],
            OneOrMore::More(more) => more,
        }
    }
}

/// One file with certificate and key; several; or pairs of files.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Client {
    File(String),
    Files(Vec<String>),
    Pairs(Vec<(String, String)>),
}

fn parse(text: &str, directory: &Path) -> Result<Vec<Host>, String> {
    let document: Document = toml::from_str(text).map_err(|e| {
        let line = e
            .span()
            .map_or(0, |at| text[..at.start].matches('\n').count() + 1);
        let message = e.message().lines().next().unwrap_or_default().to_owned();
        format!("line {line}: {message}")
    })?;
    let mut tables: Vec<_> = document.host.into_iter().collect();
    tables.sort_by_key(|(name, _)| name.span().start);
    if tables.len() >= HOSTS_MAX {
        return Err(format!("more than {} hosts", HOSTS_MAX - 1));
    }
    let mut hosts = Vec::new();
    for (name, fields) in tables {
        let name = name.into_inner();
        let host = host(Some(&name), fields, directory);
        hosts.push(host.map_err(|why| format!("host \"{name}\": {why}"))?);
    }
    let own = Fields {
        capabilities: document.capabilities,
        ca: document.ca,
        client: document.client,
        skip_verify: document.skip_verify,
        header: document.header,
        override_path: document.override_path,
        dial_timeout: document.dial_timeout,
    };
    let server = document.server.filter(|server| !server.is_empty());
    hosts.push(host(server.as_deref(), own, directory)?);
    Ok(hosts)
}

fn host(name: Option<&str>, fields: Fields, directory: &Path) -> Result<Host, String> {
    let root = name
        .map(|name| root(name, fields.override_path))
        .transpose()?;
    let path = |file: &str| directory.join(file);
    let ca_files = fields.ca.map(OneOrMore::all).unwrap_or_default();
    let mut headers = Vec::new();
    for (name, values) in fields.header {
        let kept = [
            "range",
            "content-length",
            "content-range",
            "transfer-encoding",
            "accept-encoding",
        ];
        if kept.iter().any(|kept| kept.eq_ignore_ascii_case(&name)) {
            return Err(format!("the header {name} is not for configuration"));
        }
        let values = values.all().into_iter();
        headers.extend(values.map(|value| (name.clone(), Secret::new(value))));
    }
    let connect = fields.dial_timeout.map(|text| {
        let parsed = humantime::parse_duration(&text);
        parsed.map_err(|e| format!("dial_timeout \"{text}\": {e}"))
    });
    Ok(Host {
        root,
        may: capabilities(fields.capabilities)?,
        tls: Tls {
            ca_files: ca_files.iter().map(|file| path(file)).collect(),
            client: fields.client.map(|c| client(c, &path)).transpose()?,
            skip_verify: fields.skip_verify.unwrap_or(false),
        },
        headers,
        connect: connect.transpose()?,
    })
}

/// The root of a host's API: `/v2` unless the path is said to be all of it.
fn root(name: &str, override_path: bool) -> Result<Url, String> {
    let name = match name.contains("://") {
        true => name.to_owned(),
        false => format!("https://{name}"),
    };
    let mut url = Url::parse(&name).map_err(|e| format!("{name} is not a URL: {e}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(format!("{name} is neither http:// nor https://"));
    }
    if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
        return Err("a host has no user, query or fragment".to_owned());
    }
    // What containerd's own examples call the server of Docker Hub is not where its API is.
    if url.host_str() == Some("docker.io") {
        url.set_host(Some("registry-1.docker.io"))
            .map_err(|e| e.to_string())?;
    }
    let path = url.path().trim_end_matches('/').to_owned();
    match override_path || path.ends_with("/v2") {
        true => url.set_path(&path),
        false => url.set_path(&format!("{path}/v2")),
    }
    Ok(url)
}

fn capabilities(words: Option<Vec<String>>) -> Result<Capabilities, String> {
    let words = words.unwrap_or_default();
    if words.is_empty() {
        return Ok(Capabilities::ALL);
    }
    let mut may = Capabilities {
        pull: false,
        resolve: false,
        push: false,
    };
    for word in words {
        match word.to_ascii_lowercase().as_str() {
            "pull" => may.pull = true,
            "resolve" => may.resolve = true,
            "push" => may.push = true,
            _ => {
                return Err(format!(
                    "unknown capability \"{word}\": expected pull, resolve or push"
                ));
            }
        }
    }
    Ok(may)
}

fn client(client: Client, path: &impl Fn(&str) -> PathBuf) -> Result<(PathBuf, PathBuf), String> {
    let mut pairs = match client {
        Client::File(file) => vec![(file, String::new())],
        Client::Files(files) => files.into_iter().map(|f| (f, String::new())).collect(),
        Client::Pairs(pairs) => pairs,
    };
    match (pairs.pop(), pairs.is_empty()) {
        (Some((file, key)), true) if key.is_empty() => Ok((path(&file), path(&file))),
        (Some((file, key)), true) => Ok((path(&file), path(&key))),
        _ => Err("one client certificate is expected".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(text: &str) -> Vec<Host> {
        parse(text, Path::new("/certs")).unwrap()
    }

    fn roots(text: &str) -> Vec<String> {
        let root = |h: &Host| h.root.as_ref().map_or_else(String::new, Url::to_string);
        hosts(text).iter().map(root).collect()
    }

    #[test]
    fn hosts_are_asked_in_the_order_of_the_file_and_the_server_last() {
        let text = r#"
            server = "https://registry-1.docker.io"
            [host."https://z.example.com"]
            [host."a.example.com:5000/deep"]
            [host."http://m.example.com/v2/"]
            [host."https://b.example.com/proxy"]
            override_path = true
        "#;
        let expected = [
            "https://z.example.com/v2",
            "https://a.example.com:5000/deep/v2",
            "http://m.example.com/v2",
            "https://b.example.com/proxy",
            "https://registry-1.docker.io/v2",
        ];
        assert_eq!(roots(text), expected);
        assert_eq!(roots("server = 'https://docker.io'"), expected[4..]);
        assert_eq!(roots(""), [""]);
    }

    #[test]
    fn a_registry_is_named_with_its_mirrors() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("own.example")).unwrap();
        let text = "[host.'https://m.example:5000/v2']\n[host.'https://n.example']";
        std::fs::write(dir.path().join("own.example/hosts.toml"), text).unwrap();
        let dirs = HostsDirs {
            dirs: vec![dir.path().to_owned()],
            strict: true,
        };
        let named = |image: &str| names(&image.parse().unwrap(), &dirs).unwrap();
        let all = ["own.example", "m.example:5000", "n.example"];
        assert_eq!(named("own.example/a:1"), all);
        assert_eq!(named("other.example/a:1"), ["other.example"]);
    }

    #[test]
    fn fields_are_read_in_all_their_forms() {
        let text = r#"
            capabilities = ["pull", "resolve"]
            [host."https://m"]
            capabilities = ["pull"]
            ca = "m.crt"
            client = [["c.cert", "/abs/c.key"]]
            skip_verify = true
            dial_timeout = "1s"
            [host."https://m".header]
            x-one = "1"
            x-two = ["a", "b"]
            [host."https://n"]
            ca = ["/x.pem", "y.pem"]
            client = "both.pem"
        "#;
        let all = hosts(text);
        let [m, n, own] = &all[..] else {
            panic!("{all:?}")
        };
        assert!(m.may.pull && !m.may.resolve && !m.may.push && m.tls.skip_verify);
        assert_eq!(m.tls.ca_files, [PathBuf::from("/certs/m.crt")]);
        let pair = ("/certs/c.cert".into(), "/abs/c.key".into());
        assert_eq!(m.tls.client, Some(pair));
        assert_eq!(m.connect, Some(Duration::from_secs(1)));
        let header = |at: usize| (m.headers[at].0.as_str(), m.headers[at].1.expose());
        let headers: Vec<_> = (0..m.headers.len()).map(header).collect();
        assert_eq!(headers, [("x-one", "1"), ("x-two", "a"), ("x-two", "b")]);
        let two = [PathBuf::from("/x.pem"), "/certs/y.pem".into()];
        assert_eq!(n.tls.ca_files, two);
        let both = PathBuf::from("/certs/both.pem");
        assert_eq!(n.tls.client, Some((both.clone(), both)));
        assert!(n.may == Capabilities::ALL && own.may.resolve && !own.may.push);
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_place() {
        for (text, word) in [
            ("server = 1", "line 1"),
            ("\n[host.'https://a']\ncapability = ['pull']", "line 3"),
            ("capabilities = ['pul']", "\"pul\""),
            ("[host.'ftp://a']", "neither http"),
            ("[host.'https://u:p@a']", "no user"),
            ("[host.'https://a?x']", "no user, query"),
            ("dial_timeout = 'soon'", "dial_timeout"),
            ("client = ['a', 'b']", "one client certificate"),
            ("[header]\nRange = 'bytes=0-'", "not for configuration"),
            ("proxy = 'http://p'", "proxy"),
        ] {
            let why = parse(text, Path::new("/")).unwrap_err();
            assert!(why.contains(word), "{text}: {why}");
        }
        let many: String = (0..20)
            .map(|n| format!("[host.'https://{n}.io']\n"))
            .collect();
        assert!(parse(&many, Path::new("/")).is_err());
    }

    #[test]
    fn the_first_directory_that_has_anything_holds() {
        let [one, two] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let dirs = HostsDirs {
            dirs: vec![one.path().to_owned(), two.path().to_owned()],
            strict: true,
        };
        let found = |name: &str| {
            let reference = format!("{name}/x").parse().unwrap();
            directory(&reference, &dirs).unwrap()
        };
        assert_eq!(found("r.io:5000"), None);
        for (dir, name) in [
            (&two, "r.io:5000"),
            (&two, "r.io_5000_"),
            (&one, "_default"),
        ] {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            assert_eq!(found("r.io:5000"), Some(path));
        }
        // Docker's pattern.
        let path = one.path().join("q.io");
        std::fs::create_dir(&path).unwrap();
        for name in ["b.crt", "a.crt", "c.cert", "c.key", "README"] {
            std::fs::write(path.join(name), "").unwrap();
        }
        let tls = of(&"q.io/x".parse().unwrap(), &dirs).unwrap().remove(0).tls;
        assert_eq!(tls.ca_files, [path.join("a.crt"), path.join("b.crt")]);
        assert_eq!(tls.client, Some((path.join("c.cert"), path.join("c.key"))));
        assert_eq!(files(&"q.io/x".parse().unwrap(), &dirs).unwrap().len(), 4);
    }
}
