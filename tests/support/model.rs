//! The naive model: what a tree has to look like after its layers, by full paths and in the plainest
//! way that comes to mind. It knows nothing of tars and nothing of how the product merges.
//!
//! A layer is first all its whiteouts, on what is below, and then its entries in their order.

use std::collections::{BTreeMap, VecDeque};

use rsmount::oci::Digest;

use super::seen::{self, SUMMED_BYTES_MAX, Seen, Xattrs};

/// One thing that a layer says. Paths have no leading slash; the empty one is the root.
#[derive(Debug, Clone)]
pub enum Says {
    Whiteout(Vec<u8>),
    Opaque(Vec<u8>),
    Entry(Entry),
}

/// What a layer adds at a path.
#[derive(Debug, Clone)]
pub struct Entry {
    pub path: Vec<u8>,
    pub kind: Kind,
    pub meta: Meta,
}

#[derive(Debug, Clone)]
pub enum Kind {
    Directory,
    /// Length, and pieces of content by their offset; what is between them is zeros.
    File(u64, Vec<(u64, Vec<u8>)>),
    Symlink(Vec<u8>),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
    /// Path of another name of the same inode.
    Link(Vec<u8>),
}

#[derive(Debug, Clone)]
pub struct Meta {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    pub xattrs: Xattrs,
}

/// A directory that no layer names.
const IMPLIED: Meta = Meta {
    mode: 0o755,
    uid: 0,
    gid: 0,
    mtime: (0, 0),
    xattrs: Xattrs::new(),
};

/// Attributes that a mount keeps to itself.
const HIDDEN: [&[u8]; 6] = [
    b"trusted.overlay.",
    b"user.overlay.",
    b"user.fuseoverlayfs.",
    b"security.selinux",
    b"security.ima",
    b"security.evm",
];

struct Inode {
    kind: Kind,
    meta: Meta,
}

#[derive(Default)]
struct Model {
    names: BTreeMap<Vec<u8>, usize>,
    inodes: Vec<Inode>,
}

/// The tree that these layers make, base first.
pub fn merged(layers: &[Vec<Says>]) -> Seen {
    let mut model = Model::default();
    model.insert(b"", Kind::Directory, IMPLIED);
    for layer in layers {
        for says in layer {
            match says {
                Says::Whiteout(path) => model.remove(&model.place(path), true),
                Says::Opaque(path) => model.remove(&model.real(path), false),
                Says::Entry(_) => {}
            }
        }
        let mut early = Vec::new();
        for says in layer {
            if let Says::Entry(entry) = says {
                model.put(entry, &mut early);
            }
        }
        // Links that stand before their targets, perhaps in a chain.
        while !early.is_empty() {
            let before = early.len();
            early.retain(|(place, target)| !model.link(place, target));
            assert!(early.len() < before, "links to nothing: {early:?}");
        }
    }
    model.seen()
}

fn parent(path: &[u8]) -> Option<&[u8]> {
    let cut = path.iter().rposition(|b| *b == b'/');
    (!path.is_empty()).then(|| &path[..cut.unwrap_or(0)])
}

fn is_below(path: &[u8], dir: &[u8]) -> bool {
    match dir {
        b"" => !path.is_empty(),
        _ => path.len() > dir.len() && path.starts_with(dir) && path[dir.len()] == b'/',
    }
}

impl Model {
    fn at(&self, path: &[u8]) -> Option<&Inode> {
        self.names.get(path).map(|inode| &self.inodes[*inode])
    }

    fn is_directory(&self, path: &[u8]) -> bool {
        matches!(self.at(path), Some(inode) if matches!(inode.kind, Kind::Directory))
    }

    /// The path with every symbolic link on it followed, as if the root were the whole world.
    fn real(&self, path: &[u8]) -> Vec<u8> {
        let split = |path: &[u8]| -> Vec<Vec<u8>> {
            path.split(|b| *b == b'/').map(<[u8]>::to_vec).collect()
        };
        let mut left = VecDeque::from(split(path));
        let mut done: Vec<Vec<u8>> = Vec::new();
        while let Some(name) = left.pop_front() {
            match &name[..] {
                b"" | b"." => continue,
                b".." => {
                    done.pop();
                    continue;
                }
                _ => done.push(name),
            }
            if let Some(Inode {
                kind: Kind::Symlink(target),
                ..
            }) = self.at(&done.join(&b'/'))
            {
                done.pop();
                if target.starts_with(b"/") {
                    done.clear();
                }
                for name in split(target).into_iter().rev() {
                    left.push_front(name);
                }
            }
        }
        done.join(&b'/')
    }

    /// The path with the links on the way to it followed, but not the one that may be there.
    fn place(&self, path: &[u8]) -> Vec<u8> {
        let Some(parent) = parent(path) else {
            return Vec::new();
        };
        let name = path.rsplit(|b| *b == b'/').next().unwrap();
        match self.real(parent) {
            top if top.is_empty() => name.to_vec(),
            dir => [&dir[..], b"/", name].concat(),
        }
    }

    fn remove(&mut self, path: &[u8], itself: bool) {
        self.names
            .retain(|name, _| !(is_below(name, path) || itself && name == path));
    }

    fn insert(&mut self, path: &[u8], kind: Kind, meta: Meta) {
        self.inodes.push(Inode { kind, meta });
        self.name(path, self.inodes.len() - 1);
    }

    /// Gives the inode a name, instead of what had it, and makes the directories above.
    fn name(&mut self, path: &[u8], inode: usize) {
        if let Some(above) = parent(path)
            && !self.is_directory(above)
        {
            self.insert(above, Kind::Directory, IMPLIED);
        }
        self.remove(path, true);
        self.names.insert(path.to_vec(), inode);
    }

    fn put(&mut self, entry: &Entry, early: &mut Vec<(Vec<u8>, Vec<u8>)>) {
        let place = self.place(&entry.path);
        match &entry.kind {
            Kind::Link(target) => {
                if !self.link(&place, target) {
                    early.push((place, target.clone()));
                }
            }
            // A directory changes one that is there. A symbolic link to a directory stays a link, and
            // it is the link whose owner, time and attributes change.
            Kind::Directory if self.is_directory(&self.real(&place)) => {
                let inode = self.names[&place];
                self.inodes[inode].meta = entry.meta.clone();
            }
            kind => self.insert(&place, kind.clone(), entry.meta.clone()),
        }
    }

    /// Whether there is such a target yet.
    fn link(&mut self, place: &[u8], target: &[u8]) -> bool {
        let target = self.names.get(&self.place(target)).copied();
        if let Some(inode) = target {
            self.name(place, inode);
        }
        target.is_some()
    }

    fn seen(&self) -> Seen {
        let mut first = BTreeMap::new();
        let nodes = self.names.iter().map(|(path, number)| {
            let Inode { kind, meta } = &self.inodes[*number];
            let known: &mut Vec<u8> = first.entry(number).or_insert_with(|| path.clone());
            let mut node = self.node(path, *number, kind, meta);
            node.first_path = (node.kind != 'd').then(|| known.clone());
            (path.clone(), node)
        });
        nodes.collect()
    }

    fn node(&self, path: &[u8], number: usize, kind: &Kind, meta: &Meta) -> seen::Node {
        let letter = match kind {
            Kind::Directory => 'd',
            Kind::File(..) => '-',
            Kind::Symlink(_) => 'l',
            Kind::Char(..) => 'c',
            Kind::Block(..) => 'b',
            Kind::Fifo => 'p',
            Kind::Link(_) => unreachable!("names of inodes"),
        };
        let nlink = match letter {
            'd' => {
                let children = self.names.keys().filter(|p| parent(p) == Some(path));
                2 + children.filter(|p| self.is_directory(p)).count()
            }
            _ => self.names.values().filter(|n| **n == number).count(),
        };
        // `user.` is for regular files and directories only (xattr(7)), and a link has no ACL.
        let possible = |name: &[u8]| match letter {
            '-' | 'd' => true,
            'l' => !name.starts_with(b"user.") && !name.starts_with(b"system.posix_acl_"),
            _ => !name.starts_with(b"user."),
        };
        let visible = |name: &[u8]| possible(name) && !HIDDEN.iter().any(|h| name.starts_with(h));
        let mut xattrs = meta.xattrs.clone();
        xattrs.retain(|name, _| visible(name));
        seen::Node {
            kind: letter,
            mode: if letter == 'l' { 0o777 } else { meta.mode },
            uid: meta.uid,
            gid: meta.gid,
            mtime: meta.mtime,
            nlink: nlink as u64,
            size: match kind {
                Kind::Directory => None,
                Kind::File(size, _) => Some(*size),
                Kind::Symlink(target) => Some(target.len() as u64),
                _ => Some(0),
            },
            rdev: match kind {
                Kind::Char(major, minor) | Kind::Block(major, minor) => Some((*major, *minor)),
                _ => None,
            },
            target: match kind {
                Kind::Symlink(target) => Some(target.clone()),
                _ => None,
            },
            sum: match kind {
                Kind::File(size, pieces) if *size <= SUMMED_BYTES_MAX => {
                    Some(Digest::of(&whole(*size, pieces)))
                }
                _ => None,
            },
            xattrs,
            first_path: None,
        }
    }
}

/// All bytes of a file.
pub fn whole(size: u64, pieces: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(size).unwrap()];
    for (offset, piece) in pieces {
        let offset = usize::try_from(*offset).unwrap();
        bytes[offset..offset + piece.len()].copy_from_slice(piece);
    }
    bytes
}
