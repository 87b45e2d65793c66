//! A naive merge, rebuilt from scratch on full paths, against [`Tree::merge`].

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;
use crate::tree::dump::dump_string;
use crate::tree::{Ino, NodeKind, Tree};

type Names = Vec<String>;

/// Paths to objects; every path's parent is a path of a directory.
struct Model {
    paths: BTreeMap<Names, usize>,
    objects: Vec<Object>,
}

#[derive(Clone)]
enum Object {
    Directory(Option<Entry>),
    File { made: Entry, metadata: Entry },
    Waiting(LayerPath),
}

#[derive(Debug)]
struct Refused;

fn names(text: &str) -> Names {
    text.split('/')
        .filter(|n| !n.is_empty())
        .map(str::to_owned)
        .collect()
}

fn of(path: &LayerPath) -> Names {
    names(std::str::from_utf8(path.as_bytes()).unwrap())
}

impl Model {
    fn build(layers: &[Arc<LayerIndex>]) -> Result<Model, Refused> {
        let root = BTreeMap::from([(Vec::new(), 0)]);
        let mut model = Model {
            paths: root,
            objects: vec![Object::Directory(None)],
        };
        for layer in layers {
            for whiteout in &layer.whiteouts {
                model.hide(whiteout)?;
            }
            for entry in &layer.entries {
                model.put(entry)?;
            }
            model.settle()?;
        }
        Ok(model)
    }

    fn at(&self, path: &Names) -> Option<&Object> {
        self.paths.get(path).map(|id| &self.objects[*id])
    }

    fn is_directory(&self, path: &Names) -> bool {
        matches!(self.at(path), Some(Object::Directory(_)))
    }

    fn symlink(&self, path: &Names) -> Option<String> {
        match self.at(path)? {
            Object::File {
                made:
                    Entry {
                        kind: EntryKind::Symlink { target },
                        ..
                    },
                ..
            } => Some(String::from_utf8(target.to_vec()).unwrap()),
            _ => None,
        }
    }

    fn join(&self, path: Names) -> Result<Names, Refused> {
        let (mut done, mut left, mut links) = (Names::new(), VecDeque::from(path), 0);
        while let Some(name) = left.pop_front() {
            match name.as_str() {
                "." => continue,
                ".." => {
                    done.pop();
                    continue;
                }
                _ => done.push(name),
            }
            let Some(target) = self.symlink(&done) else {
                continue;
            };
            done.pop();
            links += 1;
            if links > 255 {
                return Err(Refused);
            }
            if target.starts_with('/') {
                done.clear();
            }
            for name in names(&target).into_iter().rev() {
                left.push_front(name);
            }
        }
        Ok(done)
    }

    /// The path with its parents resolved.
    fn place(&self, path: &LayerPath) -> Result<Names, Refused> {
        let mut path = of(path);
        let Some(name) = path.pop() else {
            return Ok(path);
        };
        let mut place = self.join(path)?;
        place.push(name);
        Ok(place)
    }

    fn remove(&mut self, path: &Names, itself: bool) {
        self.paths
            .retain(|p, _| !p.starts_with(path) || (!itself && p == path));
    }

    fn hide(&mut self, whiteout: &Whiteout) -> Result<(), Refused> {
        match whiteout {
            Whiteout::Path(path) => {
                let place = self.place(path)?;
                self.remove(&place, true);
            }
            Whiteout::Opaque(path) => {
                let place = self.join(of(path))?;
                self.remove(&place, false);
            }
        }
        Ok(())
    }

    fn insert(&mut self, place: &Names, object: Object) {
        self.objects.push(object);
        let id = self.objects.len() - 1;
        self.name(place, id);
    }

    fn name(&mut self, place: &Names, id: usize) {
        for depth in 1..place.len() {
            let above = place[..depth].to_vec();
            if !self.is_directory(&above) {
                self.insert(&above, Object::Directory(None));
            }
        }
        self.remove(place, true);
        self.paths.insert(place.clone(), id);
    }

    fn put(&mut self, entry: &Entry) -> Result<(), Refused> {
        if entry.path.is_root() {
            self.objects[0] = Object::Directory(Some(entry.clone()));
            return Ok(());
        }
        let place = self.place(&entry.path)?;
        match &entry.kind {
            EntryKind::HardLink { target } => {
                let target_place = self.place(target)?;
                let id = self.paths.get(&target_place).copied();
                match id {
                    _ if self.is_directory(&target_place) => return Err(Refused),
                    Some(id) => self.name(&place, id),
                    None => self.insert(&place, Object::Waiting(target.clone())),
                }
            }
            EntryKind::Directory => {
                if self.symlink(&place).is_some() {
                    if let Ok(behind) = self.join(place.clone()) {
                        if self.is_directory(&behind) {
                            let id = self.paths[&place];
                            if let Object::File { metadata, .. } = &mut self.objects[id] {
                                *metadata = entry.clone();
                            }
                            return Ok(());
                        }
                    }
                }
                if self.is_directory(&place) {
                    let id = self.paths[&place];
                    self.objects[id] = Object::Directory(Some(entry.clone()));
                } else {
                    self.insert(&place, Object::Directory(Some(entry.clone())));
                }
            }
            _ => {
                let (made, metadata) = (entry.clone(), entry.clone());
                self.insert(&place, Object::File { made, metadata });
            }
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<(), Refused> {
        loop {
            let mut waiting = Vec::new();
            for id in self.paths.values() {
                if let Object::Waiting(target) = &self.objects[*id] {
                    waiting.push((*id, target.clone()));
                }
            }
            if waiting.is_empty() {
                return Ok(());
            }
            let mut changed = false;
            for (id, target) in waiting {
                let place = self.place(&target)?;
                let Some(end) = self.paths.get(&place).copied() else {
                    continue;
                };
                match self.objects[end] {
                    Object::Waiting(_) => {}
                    Object::Directory(_) => return Err(Refused),
                    Object::File { .. } => {
                        self.paths
                            .values_mut()
                            .filter(|v| **v == id)
                            .for_each(|v| *v = end);
                        changed = true;
                    }
                }
            }
            if !changed {
                return Err(Refused);
            }
        }
    }

    fn dump(&self) -> String {
        let mut out = String::new();
        let mut first: BTreeMap<usize, String> = BTreeMap::new();
        for (path, id) in &self.paths {
            let shown = format!("/{}", path.join("/"));
            match &self.objects[*id] {
                Object::Directory(entry) => {
                    let below = |p: &&Names| {
                        p.len() == path.len() + 1 && p.starts_with(path) && self.is_directory(p)
                    };
                    let nlink = 2 + self.paths.keys().filter(below).count();
                    let meta = entry
                        .as_ref()
                        .map_or("0755 0 0 4096 0.000000000".into(), |e| {
                            let (uid, gid) = (e.uid, e.gid);
                            format!("{:04o} {uid} {gid} 4096 {uid}.000000005", e.mode)
                        });
                    writeln!(out, "{shown} d {meta} {nlink} - - -").unwrap();
                }
                Object::File { made, metadata } => {
                    let nlink = self.paths.values().filter(|v| *v == id).count();
                    let (uid, gid) = (metadata.uid, metadata.gid);
                    let (letter, size, rdev, target) = match &made.kind {
                        EntryKind::Regular { size, .. } => ('-', *size, "-".into(), "-".into()),
                        EntryKind::Symlink { target } => {
                            let target = String::from_utf8(target.to_vec()).unwrap();
                            ('l', target.len() as u64, "-".to_owned(), target)
                        }
                        EntryKind::CharDevice { major, minor } => {
                            ('c', 0, format!("{major}:{minor}"), "-".to_owned())
                        }
                        EntryKind::BlockDevice { major, minor } => {
                            ('b', 0, format!("{major}:{minor}"), "-".to_owned())
                        }
                        _ => ('p', 0, "-".to_owned(), "-".to_owned()),
                    };
                    let mode = if letter == 'l' { 0o777 } else { metadata.mode };
                    let target = first.get(id).map_or(target, |f| format!("={f}"));
                    first.entry(*id).or_insert(shown.clone());
                    let meta = format!("{mode:04o} {uid} {gid} {size} {uid}.000000005");
                    writeln!(out, "{shown} {letter} {meta} {nlink} {rdev} {target} -").unwrap();
                }
                Object::Waiting(_) => unreachable!("settled"),
            }
        }
        out
    }
}

fn some_path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop_oneof![Just("a"), Just("b")], 1..=3).prop_map(|n| n.join("/"))
}

fn some_kind() -> impl Strategy<Value = EntryKind> {
    let target = prop_oneof![
        some_path(),
        some_path().prop_map(|p| format!("/{p}")),
        some_path().prop_map(|p| format!("../{p}")),
        Just("/".to_owned()),
        Just("..".to_owned()),
    ];
    prop_oneof![
        4 => Just(EntryKind::Directory),
        3 => (0..9u64).prop_map(|size| EntryKind::Regular { size, extents: Vec::new() }),
        3 => target.prop_map(|t| EntryKind::Symlink { target: t.into_bytes().into() }),
        4 => some_path().prop_map(|t| EntryKind::HardLink { target: path(&t) }),
        1 => Just(EntryKind::CharDevice { major: 1, minor: 3 }),
        1 => Just(EntryKind::BlockDevice { major: 8, minor: 0 }),
        1 => Just(EntryKind::Fifo),
    ]
}

fn some_layer() -> impl Strategy<Value = (Vec<Whiteout>, Vec<(String, EntryKind)>)> {
    let whiteout = prop_oneof![
        some_path().prop_map(|p| Whiteout::Path(path(&p))),
        some_path().prop_map(|p| Whiteout::Opaque(path(&p))),
        Just(Whiteout::Opaque(LayerPath::root())),
    ];
    let entry = prop_oneof![
        20 => (some_path(), some_kind()),
        1 => Just((String::new(), EntryKind::Directory)),
    ];
    (
        prop::collection::vec(whiteout, 0..3),
        prop::collection::vec(entry, 0..7),
    )
}

/// What must hold for every tree.
fn check_whole(tree: &Tree) {
    let mut stack = vec![Ino::ROOT];
    let mut seen = 0;
    while let Some(dir) = stack.pop() {
        seen += 1;
        let mut last: Option<&[u8]> = None;
        for (n, (name, ino)) in tree.children(dir).enumerate() {
            assert!(last.is_none_or(|l| l < name));
            last = Some(name);
            assert_eq!(tree.lookup(dir, name), Some(ino));
            assert_eq!(tree.children_from(dir, n).next(), Some((name, ino)));
            let node = tree.node(ino).unwrap();
            if node.kind == NodeKind::Directory {
                assert_eq!(tree.parent(ino), dir);
                stack.push(ino);
            }
            let path = tree.path(ino).unwrap();
            assert_eq!(tree.resolve(&LayerPath::parse(&path).unwrap()), Some(ino));
        }
    }
    assert!(seen <= tree.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]
    #[test]
    fn merge_is_what_the_naive_model_does(plan in prop::collection::vec(some_layer(), 2..=4)) {
        let mut uid = 0;
        let mut next = |(at, kind): (String, EntryKind)| {
            uid += 1;
            entry(&at, uid, kind)
        };
        let layers: Vec<_> = plan
            .into_iter()
            .map(|(whiteouts, entries)| {
                layer(whiteouts, entries.into_iter().map(&mut next).collect())
            })
            .collect();
        match (Tree::merge(&layers), Model::build(&layers)) {
            (Ok(tree), Ok(model)) => {
                prop_assert_eq!(dump_string(&tree), model.dump());
                check_whole(&tree);
            }
            (Err(_), Err(Refused)) => {}
            (tree, model) => {
                let model = model.map(|m| m.dump());
                prop_assert!(false, "tree: {tree:?}\nmodel: {model:?}");
            }
        }
    }
}
