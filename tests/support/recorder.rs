//! A file system in memory that writes down every change in the order in which it came, and says what
//! a power cut would have left of them. It is mounted by FUSE, so that what reaches a disk reaches it:
//! also what is written through a mapping.
//!
//! What a power cut does is no gentler than journaling file systems are. Names are lost from the end,
//! back to the last time that a directory was synced. What was written into a file since it was
//! synced is lost page by page, each for itself and without regard to when it came, some of it in the
//! middle of a page; where the end of the file is, is known or not.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyStatfs, ReplyWrite,
    Request, Session, TimeOrNow, WriteFlags,
};

const PAGE: usize = 4096;
const SECTOR: usize = 512;
const ROOT: u64 = 1;
/// What others may have changed is asked for each time.
const NEVER: Duration = Duration::ZERO;

/// A change, or the promise that earlier ones last.
#[derive(Debug, Clone)]
pub enum Change {
    Make {
        parent: u64,
        name: Vec<u8>,
        ino: u64,
        mode: u32,
        directory: bool,
    },
    Remove {
        parent: u64,
        name: Vec<u8>,
    },
    Rename {
        from: (u64, Vec<u8>),
        to: (u64, Vec<u8>),
    },
    Mode {
        ino: u64,
        mode: u32,
    },
    Resize {
        ino: u64,
        size: u64,
    },
    Punch {
        ino: u64,
        at: u64,
        len: u64,
    },
    Write {
        ino: u64,
        at: u64,
        data: Vec<u8>,
    },
    Sync {
        ino: u64,
    },
}

impl Change {
    /// Whether it is about which names there are.
    fn is_of_names(&self) -> bool {
        matches!(
            self,
            Change::Make { .. } | Change::Remove { .. } | Change::Rename { .. }
        )
    }

    /// The file that it changes inside.
    fn file(&self) -> u64 {
        match self {
            Change::Mode { ino, .. }
            | Change::Resize { ino, .. }
            | Change::Punch { ino, .. }
            | Change::Write { ino, .. }
            | Change::Sync { ino } => *ino,
            _ => 0,
        }
    }
}

type Page = [u8; PAGE];

#[derive(Debug, Clone)]
enum Kind {
    Directory(BTreeMap<Vec<u8>, u64>),
    /// What was never written, or was punched, has no page.
    File {
        size: u64,
        pages: BTreeMap<u64, Box<Page>>,
    },
}

#[derive(Debug, Clone)]
struct Node {
    mode: u32,
    changed: SystemTime,
    kind: Kind,
}

/// All files at one moment.
#[derive(Debug, Clone)]
pub struct Files {
    nodes: HashMap<u64, Node>,
}

impl Files {
    fn new() -> Files {
        let root = Node {
            mode: 0o700,
            changed: SystemTime::now(),
            kind: Kind::Directory(BTreeMap::new()),
        };
        Files {
            nodes: HashMap::from([(ROOT, root)]),
        }
    }

    fn names(&mut self, ino: u64) -> Option<&mut BTreeMap<Vec<u8>, u64>> {
        match &mut self.nodes.get_mut(&ino)?.kind {
            Kind::Directory(names) => Some(names),
            Kind::File { .. } => None,
        }
    }

    fn child(&self, parent: u64, name: &[u8]) -> Option<u64> {
        match &self.nodes.get(&parent)?.kind {
            Kind::Directory(names) => names.get(name).copied(),
            Kind::File { .. } => None,
        }
    }

    fn is_empty(&self, ino: u64) -> bool {
        match &self.nodes[&ino].kind {
            Kind::Directory(names) => names.is_empty(),
            Kind::File { .. } => true,
        }
    }

    /// How long a file is, and its pages.
    fn file(&mut self, ino: u64) -> Option<(&mut u64, &mut BTreeMap<u64, Box<Page>>)> {
        let node = self.nodes.get_mut(&ino)?;
        node.changed = SystemTime::now();
        match &mut node.kind {
            Kind::File { size, pages } => Some((size, pages)),
            Kind::Directory(_) => None,
        }
    }

    /// Makes a change. `kept` says how many bytes from its beginning are kept of each page's part of
    /// a write; `None` is none of them, and then also whether the file grows is asked for (`grows`).
    fn apply(&mut self, change: &Change, kept: &mut dyn FnMut() -> Option<usize>, grows: bool) {
        match change {
            Change::Make {
                parent,
                name,
                ino,
                mode,
                directory,
            } => {
                let kind = match directory {
                    true => Kind::Directory(BTreeMap::new()),
                    false => Kind::File {
                        size: 0,
                        pages: BTreeMap::new(),
                    },
                };
                if let Some(names) = self.names(*parent) {
                    names.insert(name.clone(), *ino);
                    let changed = SystemTime::now();
                    let mode = *mode;
                    self.nodes.insert(
                        *ino,
                        Node {
                            mode,
                            changed,
                            kind,
                        },
                    );
                }
            }
            Change::Remove { parent, name } => {
                if let Some(names) = self.names(*parent) {
                    names.remove(name);
                }
            }
            Change::Rename { from, to } => {
                let moved = self.names(from.0).and_then(|names| names.remove(&from.1));
                if let (Some(ino), Some(names)) = (moved, self.names(to.0)) {
                    names.insert(to.1.clone(), ino);
                }
            }
            Change::Mode { ino, mode } => {
                if let Some(node) = self.nodes.get_mut(ino) {
                    node.mode = *mode;
                }
            }
            Change::Resize { ino, size } => {
                if let Some((len, _)) = self.file(*ino) {
                    let old = std::mem::replace(len, *size);
                    self.zero(*ino, *size, old.saturating_sub(*size));
                }
            }
            Change::Punch { ino, at, len } => self.zero(*ino, *at, *len),
            Change::Write { ino, at, data } => {
                if let Some(file) = self.file(*ino) {
                    write(file, *at, data, kept, grows);
                }
            }
            Change::Sync { .. } => {}
        }
    }

    fn zero(&mut self, ino: u64, at: u64, len: u64) {
        let Some((_, pages)) = self.file(ino) else {
            return;
        };
        let (page, end) = (PAGE as u64, at + len);
        let touched: Vec<u64> = pages
            .range(at / page..end.div_ceil(page))
            .map(|(n, _)| *n)
            .collect();
        for n in touched {
            let (from, to) = (at.max(n * page), end.min((n + 1) * page));
            match to.saturating_sub(from) == page {
                true => drop(pages.remove(&n)),
                false => {
                    let inner = |at: u64| (at - n * page) as usize;
                    if let Some(page) = pages.get_mut(&n).filter(|_| from < to) {
                        page[inner(from)..inner(to)].fill(0);
                    }
                }
            }
        }
    }

    /// Writes them all below `directory`, which must not exist.
    pub fn write_to(&self, directory: &Path) {
        self.write_node(ROOT, directory);
    }

    fn write_node(&self, ino: u64, at: &Path) {
        let node = &self.nodes[&ino];
        match &node.kind {
            Kind::Directory(names) => {
                std::fs::create_dir(at).unwrap();
                for (name, ino) in names {
                    self.write_node(*ino, &at.join(OsStr::from_bytes(name)));
                }
            }
            Kind::File { size, pages } => {
                let file = File::create(at).unwrap();
                for (n, page) in pages {
                    file.write_all_at(&page[..], n * PAGE as u64).unwrap();
                }
                file.set_len(*size).unwrap();
            }
        }
        std::fs::set_permissions(at, Permissions::from_mode(node.mode)).unwrap();
    }
}

/// Writes what is `kept` of each page.
fn write(
    (size, pages): (&mut u64, &mut BTreeMap<u64, Box<Page>>),
    at: u64,
    data: &[u8],
    kept: &mut dyn FnMut() -> Option<usize>,
    grows: bool,
) {
    if grows {
        *size = (at + data.len() as u64).max(*size);
    }
    let mut done = 0;
    while done < data.len() {
        let at = at + done as u64;
        let inner = (at % PAGE as u64) as usize;
        let len = (PAGE - inner).min(data.len() - done);
        if let Some(most) = kept() {
            let new = || Box::new([0; PAGE]);
            let page = pages.entry(at / PAGE as u64).or_insert_with(new);
            let len = len.min(most);
            page[inner..inner + len].copy_from_slice(&data[done..done + len]);
            *size = (*size).max(at + len as u64);
        }
        done += len;
    }
}

/// What is left of `changes`, all of which had been made, when nothing is written out of order.
pub fn prefix(changes: &[Change]) -> Files {
    let mut files = Files::new();
    for change in changes {
        files.apply(change, &mut || Some(PAGE), true);
    }
    files
}

/// What may be left of `changes` when the power goes after the last of them.
pub fn after_power_cut(changes: &[Change], random: &mut fastrand::Rng) -> Files {
    let is_directory = |ino: u64| {
        ino == ROOT
            || changes.iter().any(
                |c| matches!(c, Change::Make { ino: made, directory: true, .. } if *made == ino),
            )
    };
    let mut synced = HashMap::new();
    let mut names_last = 0;
    for (at, change) in changes.iter().enumerate() {
        if let Change::Sync { ino } = change {
            synced.insert(*ino, at);
            if is_directory(*ino) {
                names_last = at;
            }
        }
    }
    let names_end = random.usize(names_last..=changes.len());
    // All, none, or some of what was not synced.
    let share = [0.0, 0.1, 0.5, 0.9, 1.0][random.usize(0..5)];
    let mut files = Files::new();
    for (at, change) in changes.iter().enumerate() {
        if change.is_of_names() {
            if at <= names_end {
                files.apply(change, &mut || None, false);
            }
            continue;
        }
        if synced.get(&change.file()).is_some_and(|sync| at < *sync) {
            files.apply(change, &mut || Some(PAGE), true);
            continue;
        }
        if matches!(change, Change::Write { .. }) {
            let grows = random.bool();
            let mut kept = || match random.f64() < share {
                true if random.u8(0..20) == 0 => Some(random.usize(0..PAGE / SECTOR) * SECTOR),
                true => Some(PAGE),
                false => None,
            };
            files.apply(change, &mut kept, grows);
        } else if at <= names_end {
            // Lengths, modes and holes go the way of names.
            files.apply(change, &mut || None, false);
        }
    }
    files
}

#[derive(Debug)]
struct State {
    files: Files,
    changes: Vec<Change>,
    next_ino: u64,
}

impl State {
    fn change(&mut self, change: Change) {
        self.files.apply(&change, &mut || Some(PAGE), true);
        self.changes.push(change);
    }

    fn make(&mut self, parent: u64, name: &OsStr, mode: u32, directory: bool) -> FileAttr {
        let ino = self.next_ino;
        self.next_ino += 1;
        self.change(Change::Make {
            parent,
            name: name.as_bytes().to_vec(),
            ino,
            mode: mode & 0o7777,
            directory,
        });
        self.attr(ino)
    }

    fn attr(&self, ino: u64) -> FileAttr {
        let node = &self.files.nodes[&ino];
        let (kind, size, blocks) = match &node.kind {
            Kind::Directory(_) => (FileType::Directory, 0, 0),
            Kind::File { size, pages } => {
                let blocks = pages.len() * (PAGE / SECTOR);
                (FileType::RegularFile, *size, blocks as u64)
            }
        };
        FileAttr {
            ino: INodeNo(ino),
            size,
            blocks,
            atime: node.changed,
            mtime: node.changed,
            ctime: node.changed,
            crtime: node.changed,
            kind,
            perm: (node.mode & 0o7777) as u16,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: PAGE as u32,
            flags: 0,
        }
    }
}

/// The file system, mounted until it is dropped.
pub struct Recorder {
    state: Arc<Mutex<State>>,
    at: PathBuf,
    session: Option<BackgroundSession>,
}

impl Recorder {
    /// Mounts an empty one on `at`, an empty directory.
    pub fn mount(at: &Path) -> Recorder {
        let state = Arc::new(Mutex::new(State {
            files: Files::new(),
            changes: Vec::new(),
            next_ino: ROOT + 1,
        }));
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("recorder".to_owned()),
            MountOption::DefaultPermissions,
        ];
        config.n_threads = Some(2);
        let session = Session::new(Served(state.clone()), at, &config).unwrap();
        Recorder {
            state,
            at: at.to_owned(),
            session: Some(session.spawn().unwrap()),
        }
    }

    /// All changes so far.
    pub fn changes(&self) -> Vec<Change> {
        self.state.lock().unwrap().changes.clone()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // Who has just ended its mount may have a file open for a moment yet.
        let _gone = rustix::mount::unmount(&self.at, rustix::mount::UnmountFlags::DETACH);
        drop(self.session.take());
    }
}

struct Served(Arc<Mutex<State>>);

impl Filesystem for Served {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let state = self.0.lock().unwrap();
        match state.files.child(parent.0, name.as_bytes()) {
            Some(ino) => reply.entry(&NEVER, &state.attr(ino), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&NEVER, &self.0.lock().unwrap().attr(ino.0));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut state = self.0.lock().unwrap();
        let ino = ino.0;
        if let Some(mode) = mode {
            let mode = mode & 0o7777;
            state.change(Change::Mode { ino, mode });
        }
        if let Some(size) = size {
            state.change(Change::Resize { ino, size });
        }
        reply.attr(&NEVER, &state.attr(ino));
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let mut state = self.0.lock().unwrap();
        let attr = state.make(parent.0, name, mode & !umask, true);
        reply.entry(&NEVER, &attr, Generation(0));
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let mut state = self.0.lock().unwrap();
        let attr = match state.files.child(parent.0, name.as_bytes()) {
            Some(_) if flags & libc::O_EXCL != 0 => return reply.error(Errno::EEXIST),
            Some(ino) => state.attr(ino),
            None => state.make(parent.0, name, mode & !umask, false),
        };
        let none = FopenFlags::empty();
        reply.created(&NEVER, &attr, Generation(0), FileHandle(0), none);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let mut state = self.0.lock().unwrap();
        let (parent, name) = (parent.0, name.as_bytes().to_vec());
        match state.files.child(parent, &name) {
            None => reply.error(Errno::ENOENT),
            Some(_) => {
                state.change(Change::Remove { parent, name });
                reply.ok();
            }
        }
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let mut state = self.0.lock().unwrap();
        let (parent, name) = (parent.0, name.as_bytes().to_vec());
        match state.files.child(parent, &name) {
            None => reply.error(Errno::ENOENT),
            Some(ino) if !state.files.is_empty(ino) => reply.error(Errno::ENOTEMPTY),
            Some(_) => {
                state.change(Change::Remove { parent, name });
                reply.ok();
            }
        }
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut state = self.0.lock().unwrap();
        let from = (parent.0, name.as_bytes().to_vec());
        let to = (new_parent.0, new_name.as_bytes().to_vec());
        if state.files.child(from.0, &from.1).is_none() {
            return reply.error(Errno::ENOENT);
        }
        if flags.bits() & !libc::RENAME_NOREPLACE != 0 {
            return reply.error(Errno::EINVAL);
        }
        match state.files.child(to.0, &to.1) {
            Some(_) if !flags.is_empty() => return reply.error(Errno::EEXIST),
            Some(there) if !state.files.is_empty(there) => return reply.error(Errno::ENOTEMPTY),
            _ => {}
        }
        state.change(Change::Rename { from, to });
        reply.ok();
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let state = self.0.lock().unwrap();
        let Kind::File { size: end, pages } = &state.files.nodes[&ino.0].kind else {
            return reply.error(Errno::EISDIR);
        };
        let len = end.saturating_sub(offset).min(size.into());
        let mut data = vec![0; len as usize];
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let inner = (at % PAGE as u64) as usize;
            let len = (PAGE - inner).min(data.len() - done);
            if let Some(page) = pages.get(&(at / PAGE as u64)) {
                data[done..done + len].copy_from_slice(&page[inner..inner + len]);
            }
            done += len;
        }
        reply.data(&data);
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        at: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let (ino, data) = (ino.0, data.to_vec());
        let written = data.len() as u32;
        let mut state = self.0.lock().unwrap();
        state.change(Change::Write { ino, at, data });
        reply.written(written);
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        at: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if mode != libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let mut state = self.0.lock().unwrap();
        let ino = ino.0;
        state.change(Change::Punch { ino, at, len });
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.0.lock().unwrap().change(Change::Sync { ino: ino.0 });
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.0.lock().unwrap().change(Change::Sync { ino: ino.0 });
        reply.ok();
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let mut state = self.0.lock().unwrap();
        let Some(names) = state.files.names(ino.0).cloned() else {
            return reply.error(Errno::ENOTDIR);
        };
        // By number, so that names that come and go meanwhile move nobody else.
        let mut sorted: Vec<_> = names.into_iter().map(|(name, ino)| (ino, name)).collect();
        sorted.sort();
        for (ino, name) in sorted.into_iter().filter(|(ino, _)| *ino > offset) {
            let kind = state.attr(ino).kind;
            if reply.add(INodeNo(ino), ino, kind, OsStr::from_bytes(&name)) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let plenty = 16 << 20;
        reply.statfs(
            plenty,
            plenty,
            plenty,
            plenty,
            plenty,
            PAGE as u32,
            255,
            PAGE as u32,
        );
    }
}
