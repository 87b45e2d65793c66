//! The image of edge cases: every feature that tars and layers have, each in a directory of its own,
//! over [`LAYERS`] layers. What a tar says and what it means are written down side by side.

mod changes;
mod entry;
mod headers;
mod sparse;

use super::model::{Entry, Kind, Says};
use super::raw_tar::{self, Member};

/// How many layers the groups may write to.
pub const LAYERS: usize = 4;

/// Features that belong together. Each writes to the layers, base first.
pub type Group = fn(&mut [Layer; LAYERS]);

/// All groups. Global PAX headers are the last, because they hold until the end of the tar.
pub const GROUPS: [(&str, Group); 34] = [
    ("root", changes::root),
    ("names", headers::names),
    ("gnu long names", headers::gnu_long_names),
    ("old headers", headers::old_headers),
    ("contiguous files", headers::contiguous),
    ("other types", headers::other_types),
    ("numbers", headers::numbers),
    ("negative owners", headers::negative_owners),
    ("times", headers::times),
    ("far times", headers::far_times),
    ("pax", headers::pax),
    ("headers in conflict", headers::conflicts),
    ("sparse, old gnu", sparse::old_gnu),
    ("sparse, old gnu, 9 GiB", sparse::old_gnu_long),
    ("sparse, pax 0.0", sparse::pax_0_0),
    ("sparse, pax 0.1", sparse::pax_0_1),
    ("sparse, pax 1.0", sparse::pax_1_0),
    ("links", changes::links),
    ("links before their targets", changes::early_links),
    ("nodes", changes::nodes),
    ("xattrs", changes::xattrs),
    ("hidden xattrs", changes::hidden_xattrs),
    ("empty xattrs", changes::empty_xattrs),
    ("impossible xattrs", changes::impossible_xattrs),
    ("duplicates", changes::duplicates),
    ("parents", changes::parents),
    ("files as parents", changes::files_as_parents),
    ("replaced", changes::replaced),
    ("whiteouts", changes::whiteouts),
    ("opaque", changes::opaque),
    ("aufs", changes::aufs),
    ("directory links", changes::directory_links),
    ("pax, global", headers::global_pax),
    ("pax, global again", headers::global_pax_again),
];

/// The layers of an image made of the groups that `wanted` picks by their names.
pub fn image(wanted: impl Fn(&str) -> bool) -> [Layer; LAYERS] {
    let mut layers: [Layer; LAYERS] = Default::default();
    for (_, group) in GROUPS.iter().filter(|(name, _)| wanted(name)) {
        group(&mut layers);
    }
    layers
}

/// A layer in the making: its bytes, and what they mean.
#[derive(Debug, Clone, Default)]
pub struct Layer {
    tar: Vec<u8>,
    pub says: Vec<Says>,
}

impl Layer {
    /// The whole tar.
    pub fn tar(&self) -> Vec<u8> {
        [&self.tar[..], &raw_tar::end()].concat()
    }

    /// An entry in the way that most tars have it: ustar, and PAX for what ustar cannot hold.
    pub fn add(&mut self, entry: Entry) -> &mut Layer {
        let bytes = entry.plain();
        self.odd(&[bytes], entry)
    }

    /// An entry in these very bytes.
    pub fn odd(&mut self, bytes: &[Vec<u8>], entry: Entry) -> &mut Layer {
        self.bytes(&bytes.concat());
        self.says.push(Says::Entry(entry));
        self
    }

    /// Bytes that add nothing.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Layer {
        self.tar.extend_from_slice(bytes);
        self
    }

    /// Hides `dir/name` of the layers below.
    pub fn whiteout(&mut self, dir: &str, name: &str) -> &mut Layer {
        let path = format!("{dir}/{name}").into_bytes();
        self.says.push(Says::Whiteout(path));
        let marker = format!("{dir}/.wh.{name}");
        self.bytes(&Member::new(b'0', marker.as_bytes()).bytes())
    }

    /// Hides what the layers below have in `dir`.
    pub fn opaque(&mut self, dir: &str) -> &mut Layer {
        self.says.push(Says::Opaque(dir.as_bytes().to_vec()));
        let marker = format!("{dir}/.wh..wh..opq");
        self.bytes(&Member::new(b'0', marker.as_bytes()).bytes())
    }
}

/// The `n`th of many layers: adds a file, replaces one, hides what an earlier one added, links to what
/// the base has.
pub fn step(layer: &mut Layer, n: usize) {
    layer.add(entry::dir("steps").at(i64::try_from(n).unwrap(), 5));
    layer.add(entry::file(format!("steps/{n}"), n.to_string()));
    layer.add(entry::file("steps/last", format!("{n} was the last")));
    if n == 0 {
        layer.add(entry::file("steps/base", "from the base"));
    } else {
        layer.add(entry::link(format!("steps/link-{n}"), "steps/base"));
    }
    if n >= 3 && n % 2 == 1 {
        layer.whiteout("steps", &(n - 3).to_string());
    }
}

/// Hides all there is, and says one thing more.
pub fn opaque_root(layer: &mut Layer) {
    layer.add(entry::file("new/file", "alone"));
    layer.says.push(Says::Opaque(Vec::new()));
    layer.bytes(&Member::new(b'0', b".wh..wh..opq").bytes());
}

/// A program with a capability.
pub fn capable_program(layer: &mut Layer, path: &str, program: &[u8]) {
    let entry = entry::file(path, program).mode(0o755);
    layer.add(entry.xattr("security.capability", changes::CAP_NET_RAW));
}

/// As much as Linux allows, which few file systems on disk do.
pub fn limits(layer: &mut Layer) {
    let longest = "n".repeat(255);
    let name = format!("user.{}", "x".repeat(250));
    let value = entry::file("value", "x").xattr("user.value", &[7; 64 << 10]);
    layer
        .add(value)
        .add(entry::file("name", "x").xattr(&name, b"1"));
    let many = (0..500).fold(entry::file("many", "x"), |entry, n| {
        entry.xattr(&format!("user.{n}"), b"1")
    });
    layer.add(many);
    layer.add(entry::symlink("link", "t".repeat(4095)));
    layer.add(entry::file(&longest, "x"));
    // More than one request can list, of names that are short and long.
    for n in 0..4000 {
        let long = &longest[..usize::try_from(n % 250).unwrap()];
        layer.add(entry::file(format!("dir/{n}{long}"), ""));
    }
}

/// Pieces of the file that this layer says is at `path`.
pub fn pieces<'a>(layers: &'a [Layer], path: &[u8]) -> &'a [(u64, Vec<u8>)] {
    let mut entries = layers.iter().flat_map(|layer| &layer.says);
    let found = entries.find_map(|says| match says {
        Says::Entry(entry) if entry.path == path => match &entry.kind {
            Kind::File(_, pieces) => Some(&pieces[..]),
            _ => None,
        },
        _ => None,
    });
    found.expect("a file of the image")
}
