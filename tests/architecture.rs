//! Holds the map in `src/lib.rs`: who may see whom, which outside crate lives where, and how files
//! are made up.
//!
//! Reads the sources as text. Test code and comments may name whatever they like.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// The table of `src/lib.rs`. A room sees rooms of lower rank, and itself.
const RANKS: &[(&str, u8)] = &[
    ("oci", 0),
    ("monitor", 1),
    ("blob", 1),
    ("cache", 2),
    ("registry", 2),
    ("archive", 2),
    ("layer", 2),
    ("tree", 3),
    ("content", 4),
    ("erofs", 4),
    ("fs", 5),
    ("pack", 5),
    ("fuse", 6),
    ("mount", 7),
    ("image", 8),
    ("runtime", 7),
    ("container", 8),
    ("cli", 9),
];

/// Where an outside crate may be named. `ANY` is for vocabulary: errors, bytes, traces.
const CRATES: &[(&str, &[&str])] = &[
    ("base64", &["registry", "pack"]),
    ("bytes", ANY),
    ("clap", &["cli"]),
    ("clap_complete", &["cli"]),
    ("clap_mangen", &["cli"]),
    ("strsim", &["cli"]),
    ("crc32c", &["cache", "layer", "erofs"]),
    (
        "data_encoding",
        &["oci", "cache", "layer", "registry", "archive"],
    ),
    (
        "fastrand",
        &["blob", "cache", "registry", "mount", "image", "container"],
    ),
    ("flate2", &["image"]),
    ("fuser", &["fuse", "mount"]),
    (
        "futures_util",
        &["blob", "registry", "archive", "content", "mount", "image"],
    ),
    ("http_auth", &["registry"]),
    ("httpdate", &["registry"]),
    (
        "humantime",
        &["registry", "mount", "image", "container", "cli"],
    ),
    ("indicatif", &["cli"]),
    ("landlock", &["mount"]),
    // In `cache` it is what `nix` calls by that name.
    ("libc", &["cache", "mount"]),
    ("libz_rs_sys", &["layer"]),
    ("lru", &["fs", "content"]),
    ("minijinja", &["image"]),
    ("nix", &["cache"]),
    ("oci_spec", &["oci", "runtime"]),
    ("reqwest", &["registry"]),
    ("ring", &["pack"]),
    (
        "rustix",
        &[
            "cache",
            "archive",
            "tree",
            "content",
            "fs",
            "fuse",
            "mount",
            "image",
            "runtime",
            "container",
            "cli",
        ],
    ),
    ("rpassword", &["cli"]),
    ("rustls", &["registry"]),
    ("rustls_pki_types", &["pack"]),
    ("seccompiler", &["mount"]),
    ("serde", ANY),
    ("serde_json", ANY),
    ("sha2", &["oci", "layer", "content", "pack", "mount"]),
    ("signal_hook", &["cli", "mount", "container"]),
    ("tar", &["archive", "image"]),
    ("tar_core", &["layer"]),
    ("thiserror", ANY),
    (
        "tokio",
        &[
            "blob", "registry", "archive", "cache", "content", "mount", "image",
        ],
    ),
    ("toml", &["registry", "mount", "cli"]),
    ("tracing", ANY),
    ("tracing_subscriber", &["mount", "cli"]),
    ("url", &["oci", "registry"]),
    ("zstd", &["layer", "pack", "image"]),
];
const ANY: &[&str] = &["*"];

/// The only files that may say `unsafe`, and what for. The compiler denies it everywhere else
/// (`unsafe_code` in Cargo.toml), and clippy wants a `SAFETY` reason for each block.
const UNSAFE: &[(&str, &str)] = &[
    ("src/cache/mapped.rs", "a file as memory"),
    (
        "src/fuse/session.rs",
        "a descriptor that somebody else owns",
    ),
    ("src/layer/inflate.rs", "zlib-rs, whose interface is C's"),
    (
        "src/mount/launch.rs",
        "a descriptor that somebody else owns",
    ),
    (
        "src/mount/sandbox/threads.rs",
        "a signal handler, and a system call that no crate has",
    ),
];

/// Lines of a file without its tests.
const FILE_LINES_MAX: usize = 500;

/// One file of `src`, with what is only there for tests taken out.
struct Source {
    /// Relative to the repository, as `src/layer/tar.rs`.
    path: String,
    /// The module path: `["layer", "tar"]`; empty for `lib.rs` and `main.rs`.
    module: Vec<String>,
    first_line: String,
    /// What is left without test items: code and comments.
    shipped: Vec<String>,
}

impl Source {
    fn room(&self) -> Option<&str> {
        self.module.first().map(String::as_str)
    }

    /// Lines without comments, numbered from 1 in the order of `shipped`.
    fn code(&self) -> impl Iterator<Item = &str> {
        self.shipped.iter().map(|line| without_comment(line))
    }
}

fn repository() -> PathBuf {
    // At run time first: the same binary can then be pointed at another working tree.
    std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from)
}

fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// All of `src` that is compiled into the product.
fn sources() -> Vec<Source> {
    let root = repository();
    let mut files = Vec::new();
    rust_files(&root.join("src"), &mut files);
    files.sort();
    let mut sources = Vec::new();
    let mut only_tests = BTreeSet::new();
    for file in files {
        let path = file
            .strip_prefix(&root)
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        let module = module_of(&path);
        let text = std::fs::read_to_string(&file).unwrap();
        let (shipped, test_modules) = without_tests(&text);
        for name in test_modules {
            only_tests.insert([module.as_slice(), &[name]].concat());
        }
        let first_line = text.lines().next().unwrap_or_default().to_owned();
        sources.push(Source {
            path,
            module,
            first_line,
            shipped,
        });
    }
    sources.retain(|source| {
        (0..=source.module.len()).all(|n| !only_tests.contains(&source.module[..n]))
    });
    sources
}

/// `src/layer/tar.rs` is `layer::tar`.
fn module_of(path: &str) -> Vec<String> {
    let inner = path
        .strip_prefix("src/")
        .unwrap()
        .strip_suffix(".rs")
        .unwrap();
    match inner {
        "lib" | "main" => Vec::new(),
        _ => inner.split('/').map(str::to_owned).collect(),
    }
}

/// Takes out each item behind `#[cfg(test)]`, as rustfmt lays it out: its one line, or all up to
/// the closing brace of the same indentation. Also returns the names of modules declared so.
fn without_tests(text: &str) -> (Vec<String>, Vec<String>) {
    let (mut shipped, mut modules) = (Vec::new(), Vec::new());
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim() != "#[cfg(test)]" {
            shipped.push(line.to_owned());
            continue;
        }
        let indent = &line[..line.len() - line.trim_start().len()];
        let end = format!("{indent}}}");
        let Some(head) = lines
            .by_ref()
            .find(|line| !line.trim_start().starts_with("#["))
        else {
            break;
        };
        modules.extend(declared_module(head).map(str::to_owned));
        if !head.ends_with([';', '}']) {
            lines.by_ref().find(|line| *line == end);
        }
    }
    (shipped, modules)
}

/// `mod tests;` or `pub(crate) mod tests;`
fn declared_module(line: &str) -> Option<&str> {
    let (before, name) = line.trim().strip_suffix(';')?.rsplit_once(' ')?;
    before.ends_with("mod").then_some(name)
}

fn without_comment(line: &str) -> &str {
    line.find("//").map_or(line, |at| &line[..at])
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The word at the beginning of `text`.
fn word(text: &str) -> &str {
    &text[..text.find(|c| !is_word(c)).unwrap_or(text.len())]
}

/// First words of all that `path` (as `crate::`) leads to, each with its line:
/// `crate::{a, b::{c}}` gives a and b.
fn followers(code: &str, path: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices(path) {
        if code[..at]
            .chars()
            .next_back()
            .is_some_and(|c| is_word(c) || c == ':' || c == '$')
        {
            continue;
        }
        let line = code[..at].lines().count().max(1);
        let rest = &code[at + path.len()..];
        match rest.strip_prefix('{') {
            None => found.push((line, first_word_or_star(rest))),
            Some(group) => found.extend(group_heads(group).into_iter().map(|head| (line, head))),
        }
    }
    found
}

fn first_word_or_star(text: &str) -> String {
    if text.starts_with('*') {
        "*".to_owned()
    } else {
        word(text).to_owned()
    }
}

/// The heads of a `use` group's members, from behind its `{` on.
fn group_heads(group: &str) -> Vec<String> {
    let (mut depth, mut start, mut heads) = (0_u32, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                heads.push(first_word_or_star(group[start..at].trim()));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    heads.retain(|head| !head.is_empty());
    heads
}

fn rank(room: &str) -> Option<u8> {
    RANKS
        .iter()
        .find(|(name, _)| *name == room)
        .map(|(_, rank)| *rank)
}

fn fail_if_any(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn rooms_see_lower_ranks_only() {
    let mut complaints = Vec::new();
    for source in sources() {
        let code = source.code().collect::<Vec<_>>().join("\n");
        let Some(room) = source.room() else {
            // main.rs starts the command line and nothing else; lib.rs declares.
            for (line, seen) in followers(&code, "rsmount::")
                .into_iter()
                .filter(|(_, s)| s != "cli")
            {
                complaints.push(format!(
                    "{}:{line}: names {seen}, but only cli is its business",
                    source.path
                ));
            }
            continue;
        };
        let Some(own) = rank(room) else {
            complaints.push(format!("{}: room {room} has no rank", source.path));
            continue;
        };
        for (line, seen) in followers(&code, "crate::") {
            let place = format!("{}:{line}", source.path);
            match rank(&seen) {
                None => complaints.push(format!("{place}: crate::{seen} is no room")),
                Some(other) if seen != room && other >= own => complaints.push(format!(
                    "{place}: {room} (rank {own}) may not see {seen} (rank {other})"
                )),
                Some(_) => {}
            }
        }
        let way_out = "super::".repeat(source.module.len());
        if let Some(line) = code.lines().position(|line| line.contains(&way_out)) {
            complaints.push(format!(
                "{}:{}: {way_out} leaves the room",
                source.path,
                line + 1
            ));
        }
    }
    fail_if_any(&complaints);
}

#[test]
fn the_ranks_here_are_those_of_the_map() {
    let map = std::fs::read_to_string(repository().join("src/lib.rs")).unwrap();
    for (room, rank) in RANKS {
        let row = format!("//! | {rank} | [`{room}`] |");
        assert!(map.contains(&row), "src/lib.rs has no row {row}");
        assert!(
            map.contains(&format!("mod {room};")),
            "src/lib.rs has no mod {room}"
        );
    }
}

#[test]
fn outside_crates_stay_in_their_rooms() {
    let mut complaints = Vec::new();
    for source in sources() {
        let room = source.room().unwrap_or("lib.rs or main.rs");
        let code = source.code().collect::<Vec<_>>().join("\n");
        for (name, rooms) in CRATES {
            if *rooms == ANY || rooms.contains(&room) {
                continue;
            }
            let as_path = followers(&code, &format!("{name}::"))
                .into_iter()
                .map(|(line, _)| line);
            let as_import = followers(&code, &format!("use {name}"))
                .into_iter()
                .filter(|(_, rest)| rest.is_empty())
                .map(|(line, _)| line);
            for line in as_path.chain(as_import).collect::<BTreeSet<_>>() {
                complaints.push(format!(
                    "{}:{line}: {name} may not be named in {room}",
                    source.path
                ));
            }
        }
    }
    fail_if_any(&complaints);
}

#[test]
fn every_dependency_has_a_room() {
    let manifest: BTreeSet<String> = dependencies()
        .into_iter()
        .map(|name| name.replace('-', "_"))
        .collect();
    let table: BTreeSet<String> = CRATES.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(
        manifest, table,
        "Cargo.toml (left) and the table in this file (right)"
    );
}

#[test]
fn files_are_made_up_alike() {
    let mut complaints = Vec::new();
    for source in sources() {
        let mut complain = |what: &str| complaints.push(format!("{}: {what}", source.path));
        if !source.first_line.starts_with("//! ") {
            complain("its first line does not say what it is for (//!)");
        }
        if source.path.ends_with("/mod.rs") {
            complain("a room is x.rs beside x/, never mod.rs");
        }
        if source.shipped.len() > FILE_LINES_MAX {
            complain(&format!("{} lines without tests", source.shipped.len()));
        }
        let code = source.code().collect::<Vec<_>>().join("\n");
        if followers(&code, "crate::")
            .iter()
            .any(|(_, seen)| seen == "*")
        {
            complain("use crate::* hides who sees whom");
        }
    }
    fail_if_any(&complaints);
}

#[test]
fn unsafe_code_is_where_it_has_to_be() {
    let is_unsafe = |source: &Source| {
        let mut words = source
            .code()
            .flat_map(|line| line.split(|c: char| !is_word(c)));
        words.any(|word| word == "unsafe" || word == "unsafe_code")
    };
    let sources = sources();
    let found: Vec<&str> = sources
        .iter()
        .filter(|source| is_unsafe(source))
        .map(|source| source.path.as_str())
        .collect();
    let listed: Vec<&str> = UNSAFE.iter().map(|(path, _)| *path).collect();
    assert_eq!(
        found, listed,
        "src (left) and the list in this file (right)"
    );
    let manifest = std::fs::read_to_string(repository().join("Cargo.toml")).unwrap();
    assert!(manifest.contains("\nunsafe_code = \"deny\"\n"));
}

/// The names that `[dependencies]` of a Cargo.toml begins its lines with.
fn dependencies() -> BTreeSet<String> {
    let text = std::fs::read_to_string(repository().join("Cargo.toml")).unwrap();
    text.lines()
        .skip_while(|line| *line != "[dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split_once(" = "))
        .map(|(name, _)| name.to_owned())
        .collect()
}

/// What a Cargo.lock says that a package needs. A name that stands for several versions has one
/// behind it.
fn locked_dependencies(lock: &str, package: &str) -> BTreeSet<String> {
    let name = format!("name = \"{package}\"");
    lock.split("[[package]]")
        .find(|part| part.lines().any(|line| line == name))
        .into_iter()
        .flat_map(str::lines)
        .skip_while(|line| *line != "dependencies = [")
        .filter_map(|line| line.trim().strip_prefix('"')?.split(['"', ' ']).next())
        .map(str::to_owned)
        .collect()
}

/// The fuzz targets are a workspace of their own, which is built with `--locked`.
#[test]
fn the_fuzz_targets_are_locked_to_what_the_product_needs() {
    let lock = std::fs::read_to_string(repository().join("contrib/fuzz/Cargo.lock")).unwrap();
    assert_eq!(
        dependencies(),
        locked_dependencies(&lock, "rsmount"),
        "Cargo.toml (left) and contrib/fuzz/Cargo.lock (right), which \
         `cd contrib/fuzz && cargo metadata >/dev/null` brings up to date"
    );
}

/// Each target is in the manifest, and the runner knows it.
#[test]
fn every_fuzz_target_is_run() {
    let fuzz = repository().join("contrib/fuzz");
    let read = |name: &str| std::fs::read_to_string(fuzz.join(name)).unwrap();
    let (manifest, runner) = (read("Cargo.toml"), read("run"));
    let known = runner
        .lines()
        .find_map(|line| line.strip_prefix("(($#)) || set -- "))
        .unwrap();
    let known: BTreeSet<String> = known.split(' ').map(str::to_owned).collect();
    let mut files = Vec::new();
    rust_files(&fuzz.join("targets"), &mut files);
    let there: BTreeSet<String> = files
        .iter()
        .map(|file| file.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(there, known, "targets (left) and what `run` runs (right)");
    for name in &there {
        assert!(manifest.contains(&format!("path = \"targets/{name}.rs\"")));
    }
}

/// What stands in backticks and looks like a path below one of the top directories has to be there.
#[test]
fn paths_in_the_documents_exist() {
    let root = repository();
    let mut complaints = Vec::new();
    for document in ["src/lib.rs", "README.md"] {
        let text = std::fs::read_to_string(root.join(document)).unwrap();
        for quoted in text.split('`').skip(1).step_by(2) {
            let path = quoted.split_whitespace().next().unwrap_or_default();
            let top = path.split('/').next().unwrap_or_default();
            let ours = ["src", "tests", "benches", "contrib", ".ci"].contains(&top);
            if ours && !root.join(path).exists() {
                complaints.push(format!("{document} names {path}, which is not there"));
            }
        }
    }
    fail_if_any(&complaints);
}

/// Not a check: figures to keep an eye on, shown with --nocapture.
#[test]
fn sizes_are_printed() {
    let sources = sources();
    let mut files: Vec<usize> = sources.iter().map(|source| source.shipped.len()).collect();
    let mut functions: Vec<usize> = sources.iter().flat_map(function_lines).collect();
    let mut rooms = BTreeMap::<&str, usize>::new();
    for source in &sources {
        *rooms
            .entry(source.room().unwrap_or("lib, main"))
            .or_default() += source.shipped.len();
    }
    let mut report = String::new();
    for (what, sizes) in [("files", &mut files), ("functions", &mut functions)] {
        sizes.sort_unstable();
        let (median, most) = (sizes.get(sizes.len() / 2), sizes.last());
        writeln!(
            report,
            "{} {what}: median {} lines, longest {}",
            sizes.len(),
            median.unwrap_or(&0),
            most.unwrap_or(&0)
        )
        .unwrap();
    }
    for (room, lines) in rooms {
        writeln!(report, "  {room}: {lines} lines").unwrap();
    }
    println!("{report}");
}

/// Lengths of the functions of a file that are longer than a line.
fn function_lines(source: &Source) -> Vec<usize> {
    let mut lengths = Vec::new();
    for (at, line) in source.shipped.iter().enumerate() {
        let body = line.trim_start();
        let is_function = !body.starts_with("//")
            && body.split("fn ").count() > 1
            && body.split("fn ").next().is_some_and(|before| {
                before
                    .split_whitespace()
                    .all(|word| word.chars().all(is_modifier))
            });
        let end = format!("{}}}", &line[..line.len() - body.len()]);
        if is_function
            && let Some(length) = source.shipped[at..].iter().position(|line| *line == end)
        {
            lengths.push(length + 1);
        }
    }
    lengths
}

/// Characters of `pub(crate) const unsafe extern "C"`.
fn is_modifier(c: char) -> bool {
    c.is_alphanumeric() || "()\"".contains(c)
}

#[test]
fn the_checker_reads_what_rustfmt_writes() {
    let code = "use crate::{cache, layer::{self, tar}};\n\
        let x = crate::oci::Digest::new();\n\
        use crate::*;";
    let seen: Vec<_> = followers(code, "crate::").into_iter().collect();
    let expected = [(1, "cache"), (1, "layer"), (2, "oci"), (3, "*")];
    assert_eq!(seen, expected.map(|(line, name)| (line, name.to_owned())));
    assert!(followers("crate::layer::zstd::x(); my_zstd::y()", "zstd::").is_empty());
    assert_eq!(followers("use zstd::{stream}", "zstd::").len(), 1);

    let text = "//! a\n#[cfg(test)]\nmod tests;\nfn f() {}\n#[cfg(test)]\n#[rustfmt::skip]\n\
        mod more {\n    use a;\n    fn g() {}\n}\nfn h() {}";
    let (shipped, modules) = without_tests(text);
    assert_eq!(shipped, ["//! a", "fn f() {}", "fn h() {}"]);
    assert_eq!(modules, ["tests"]);
    assert_eq!(module_of("src/layer/tar.rs"), ["layer", "tar"]);
}
