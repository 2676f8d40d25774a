//! Random operations on the file system and on a model of it that is a map in memory: both give the same
//! answers, and in the end the same files, here and on another host.
//!
//! The model keeps what is live apart from what is durable. When the host goes down the names are what they were at
//! the moment up to which its disk has the journal, each file is whole as it was at some moment since it was last
//! synced, and nothing that an fsync has promised is missing.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bucketvol::clock::SystemClock;
use bucketvol::config::options::{Durability, WriteOptions};
use bucketvol::config::{Location, Scheme};
use bucketvol::fs::{Allocation, FsError, RenameMode, SetAttr, XattrMode};
use bucketvol::store::{Bucket, MemoryStore, Store};
use proptest::prelude::*;

use crate::common::fault_store::{Connection, FaultStore, Faults, Outage};
use crate::common::test_fs::{OpenFile, TestFs, Unsynced};

/// A few names, so that operations meet.
const PATHS: [&str; 11] = [
    "a", "b", "c", "d", "d/a", "d/b", "d/d", "d/d/a", "e", "e/a", "e/d",
];

const XATTRS: [&str; 2] = ["user.a", "user.b"];

/// Longer than any operation asks a store again.
const GIVEN_UP: Duration = Duration::from_secs(90);

#[derive(Debug, Clone)]
enum Op {
    /// Opens (or makes) a file and keeps it open.
    Open(usize),
    /// Writes to one of the open files.
    Write {
        handle: usize,
        offset: u64,
        len: usize,
        byte: u8,
    },
    /// Makes zeros of a range of an open file, or room.
    Allocate {
        handle: usize,
        offset: u64,
        len: u64,
        allocation: Allocation,
    },
    /// Copies from one of the open files to another, or within one.
    Copy {
        from: usize,
        offset: u64,
        to: usize,
        at: u64,
        len: u64,
    },
    SetXattr {
        path: usize,
        name: usize,
        byte: u8,
        mode: XattrMode,
    },
    RemoveXattr {
        path: usize,
        name: usize,
    },
    Fsync(usize),
    FsyncDir(usize),
    Close(usize),
    Truncate {
        path: usize,
        size: u64,
    },
    Mkdir(usize),
    Unlink(usize),
    Rmdir(usize),
    Rename(usize, usize),
    Exchange(usize, usize),
    Link(usize, usize),
    /// All is brought into the bucket.
    Drain,
    /// Everything believed of the bucket is doubted from here on.
    Crash,
    /// The process is killed, and another takes over from it: who has a file open notices nothing.
    Kill,
    LetTtlPass,
    /// Everything is listed.
    List(usize),
    /// The store answers nothing else from here on.
    StoreDown(Outage),
    StoreUp,
    /// All is brought into the bucket, and the next process goes on.
    Remount,
    /// All is brought into the bucket, and the host goes down: of the journal's tail and of what was staged its disk has
    /// nothing.
    DrainAndHostCrash,
    /// The host goes down as it is. Its disk has what was synced, and of the rest of the journal so many quarters.
    HostCrash {
        tail: u64,
        staged: Unsynced,
    },
    /// Another host puts an object where nothing is changed here; it is looked for when the ttl is over.
    OtherHostWrites {
        path: usize,
        len: usize,
        byte: u8,
    },
}

fn allocation() -> impl Strategy<Value = Allocation> {
    (any::<bool>(), any::<bool>()).prop_map(|(zero, keep_size)| Allocation { zero, keep_size })
}

fn op() -> impl Strategy<Value = Op> {
    let path = || 0..PATHS.len();
    prop_oneof![
        4 => path().prop_map(Op::Open),
        6 => (0usize..4, offset(), len(), 1u8..)
            .prop_map(|(handle, offset, len, byte)| Op::Write { handle, offset, len, byte }),
        2 => (0usize..4, offset(), 1u64..50_000, allocation())
            .prop_map(|(handle, offset, len, allocation)| {
                Op::Allocate { handle, offset, len, allocation }
            }),
        3 => (0usize..4, offset(), 0usize..4, offset(), 1u64..10_000)
            .prop_map(|(from, offset, to, at, len)| Op::Copy { from, offset, to, at, len }),
        3 => (path(), 0..XATTRS.len(), any::<u8>(), xattr_mode())
            .prop_map(|(path, name, byte, mode)| Op::SetXattr { path, name, byte, mode }),
        1 => (path(), 0..XATTRS.len()).prop_map(|(path, name)| Op::RemoveXattr { path, name }),
        2 => (0usize..4).prop_map(Op::Fsync),
        1 => path().prop_map(Op::FsyncDir),
        3 => (0usize..4).prop_map(Op::Close),
        2 => (path(), 0u64..300_000).prop_map(|(path, size)| Op::Truncate { path, size }),
        3 => path().prop_map(Op::Mkdir),
        2 => path().prop_map(Op::Unlink),
        1 => path().prop_map(Op::Rmdir),
        4 => (path(), path()).prop_map(|(from, to)| Op::Rename(from, to)),
        2 => (path(), path()).prop_map(|(a, b)| Op::Exchange(a, b)),
        4 => (path(), path()).prop_map(|(from, to)| Op::Link(from, to)),
        1 => Just(Op::Drain),
        1 => Just(Op::Crash),
        3 => Just(Op::Kill),
        1 => Just(Op::LetTtlPass),
        1 => path().prop_map(Op::List),
        1 => prop_oneof![Just(Outage::Denied), Just(Outage::Away)].prop_map(Op::StoreDown),
        2 => Just(Op::StoreUp),
        1 => Just(Op::Remount),
        1 => Just(Op::DrainAndHostCrash),
        2 => (prop_oneof![2 => Just(0), 1 => 0u64..=4], unsynced())
            .prop_map(|(tail, staged)| Op::HostCrash { tail, staged }),
        1 => (path(), 1usize..5000, 1u8..)
            .prop_map(|(path, len, byte)| Op::OtherHostWrites { path, len, byte }),
    ]
}

/// Often the same, so that writes meet.
fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 0u64..300_000]
}

fn len() -> impl Strategy<Value = usize> {
    prop_oneof![Just(4000), 1usize..5000]
}

fn xattr_mode() -> impl Strategy<Value = XattrMode> {
    prop_oneof![
        3 => Just(XattrMode::Set),
        1 => Just(XattrMode::Create),
        1 => Just(XattrMode::Replace),
    ]
}

fn unsynced() -> impl Strategy<Value = Unsynced> {
    prop_oneof![
        2 => Just(Unsynced::Lost),
        1 => Just(Unsynced::Kept),
        1 => any::<u64>().prop_map(Unsynced::Some),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    Directory,
    File(usize),
}

/// A file: what it was after each change.
#[derive(Debug, Clone)]
pub(super) struct File {
    pub(super) moments: Vec<Vec<u8>>,
    /// Nothing takes it back to before this one.
    pub(super) durable: usize,
}

impl File {
    fn new(bytes: Vec<u8>) -> Self {
        Self {
            moments: vec![bytes],
            durable: 0,
        }
    }

    pub(super) fn bytes(&self) -> &Vec<u8> {
        &self.moments[self.latest()]
    }

    pub(super) fn latest(&self) -> usize {
        self.moments.len() - 1
    }

    pub(super) fn change(&mut self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = self.bytes().clone();
        change(&mut bytes);
        self.moments.push(bytes);
    }
}

/// The names that were found; a file's with its bytes.
pub(super) type Found = BTreeMap<String, Option<Vec<u8>>>;

/// The extended attributes of each name that has any.
type Xattrs = BTreeMap<String, BTreeMap<String, Vec<u8>>>;

/// What a file system is, without one.
#[derive(Debug, Clone, Default)]
pub(super) struct Model {
    pub(super) names: BTreeMap<String, Node>,
    xattrs: Xattrs,
    pub(super) files: Vec<File>,
}

/// The model as it was when the journal was so long.
#[derive(Debug)]
struct Snapshot {
    journal_bytes: u64,
    names: BTreeMap<String, Node>,
    xattrs: Xattrs,
    /// Of each file, which of its moments was the latest.
    latest: Vec<usize>,
}

impl Snapshot {
    /// Whether these are the extended attributes of all names that there were.
    fn has_xattrs(&self, found: &Xattrs) -> bool {
        let none = BTreeMap::new();
        found
            .iter()
            .all(|(name, found)| self.xattrs.get(name).unwrap_or(&none) == found)
    }
}

/// What was promised after a snapshot. What came later may have undone it.
#[derive(Debug)]
pub(super) enum Promise {
    /// These names are the file's.
    File(usize, Vec<String>),
    /// A directory has these names.
    Directory(String, Vec<String>),
}

pub(super) type Answer<T> = Result<T, &'static str>;

impl Model {
    fn parent_is_directory(&self, path: &str) -> Answer<()> {
        match path.rsplit_once('/') {
            None => Ok(()),
            Some((parent, _)) => match self.names.get(parent) {
                Some(Node::Directory) => Ok(()),
                Some(Node::File(_)) => Err("not a directory"),
                None => {
                    // Of a longer path the first missing piece decides.
                    self.parent_is_directory(parent)?;
                    Err("no entry")
                }
            },
        }
    }

    /// Both are looked up before either is used.
    fn parents_are_directories(&self, a: &str, b: &str) -> Answer<()> {
        for path in [a, b] {
            if let Some((parent, _)) = path.rsplit_once('/') {
                self.node(parent)?;
            }
        }
        self.parent_is_directory(a)?;
        self.parent_is_directory(b)
    }

    pub(super) fn node(&self, path: &str) -> Answer<Node> {
        self.parent_is_directory(path)?;
        self.names.get(path).copied().ok_or("no entry")
    }

    fn is_empty(&self, path: &str) -> bool {
        !self
            .names
            .keys()
            .any(|name| name.starts_with(&format!("{path}/")))
    }

    pub(super) fn open(&mut self, path: &str) -> Answer<usize> {
        match self.node(path) {
            Ok(Node::File(id)) => Ok(id),
            Ok(Node::Directory) => Err("is a directory"),
            Err("no entry") => {
                self.parent_is_directory(path)?;
                self.files.push(File::new(Vec::new()));
                self.names
                    .insert(path.to_owned(), Node::File(self.files.len() - 1));
                Ok(self.files.len() - 1)
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn write(&mut self, id: usize, offset: u64, len: usize, byte: u8) {
        let offset = usize::try_from(offset).unwrap();
        self.files[id].change(|bytes| {
            if bytes.len() < offset + len {
                bytes.resize(offset + len, 0);
            }
            bytes[offset..offset + len].fill(byte);
        });
    }

    pub(super) fn mkdir(&mut self, path: &str) -> Answer<()> {
        match self.node(path) {
            Ok(_) => Err("exists"),
            Err("no entry") => {
                self.parent_is_directory(path)?;
                self.names.insert(path.to_owned(), Node::Directory);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn unlink(&mut self, path: &str) -> Answer<()> {
        match self.node(path)? {
            Node::Directory => Err("is a directory"),
            Node::File(_) => {
                self.remove(path);
                Ok(())
            }
        }
    }

    pub(super) fn rmdir(&mut self, path: &str) -> Answer<()> {
        match self.node(path)? {
            Node::File(_) => Err("not a directory"),
            Node::Directory if !self.is_empty(path) => Err("not empty"),
            Node::Directory => {
                self.remove(path);
                Ok(())
            }
        }
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) -> Answer<()> {
        self.parents_are_directories(from, to)?;
        let node = self.node(from)?;
        match (node, self.names.get(to)) {
            _ if from == to => return Ok(()),
            (Node::File(one), Some(Node::File(other))) if one == *other => return Ok(()),
            (Node::Directory, Some(Node::File(_))) => return Err("not a directory"),
            (Node::File(_), Some(Node::Directory)) => return Err("is a directory"),
            (Node::Directory, Some(Node::Directory)) if !self.is_empty(to) => {
                return Err("not empty");
            }
            (Node::Directory, _) if to.starts_with(&format!("{from}/")) => return Err("invalid"),
            _ => {}
        }
        self.remove(to);
        self.move_names(|name| {
            let rest = name.strip_prefix(from)?;
            (rest.is_empty() || rest.starts_with('/')).then(|| format!("{to}{rest}"))
        });
        Ok(())
    }

    pub(super) fn link(&mut self, from: &str, to: &str) -> Answer<()> {
        let node = self.node(from)?;
        if let Some((parent, _)) = to.rsplit_once('/') {
            self.node(parent)?;
        }
        self.parent_is_directory(to)?;
        match (node, self.names.get(to)) {
            (_, Some(_)) => Err("exists"),
            (Node::Directory, None) => Err("not permitted"),
            (Node::File(_), None) => {
                self.names.insert(to.to_owned(), node);
                let xattrs = self.xattrs_of(from);
                self.xattrs.insert(to.to_owned(), xattrs);
                Ok(())
            }
        }
    }

    /// The volume was unmounted: each name is a file of its own from now on.
    fn part_links(&mut self) {
        let mut seen = HashSet::new();
        for node in self.names.values_mut() {
            if let Node::File(id) = node
                && !seen.insert(*id)
            {
                let file = self.files[*id].clone();
                self.files.push(file);
                *id = self.files.len() - 1;
            }
        }
    }

    fn remove(&mut self, path: &str) {
        self.names.remove(path);
        self.xattrs.remove(path);
    }

    fn move_names(&mut self, place: impl Fn(&str) -> Option<String>) {
        fn moved<T>(
            names: &mut BTreeMap<String, T>,
            place: impl Fn(&str) -> Option<String>,
        ) -> BTreeMap<String, T> {
            std::mem::take(names)
                .into_iter()
                .map(|(name, what)| (place(&name).unwrap_or(name), what))
                .collect()
        }
        self.names = moved(&mut self.names, &place);
        self.xattrs = moved(&mut self.xattrs, &place);
    }

    fn set_xattr(&mut self, path: &str, name: &str, value: Vec<u8>, mode: XattrMode) -> Answer<()> {
        self.change_xattrs(path, |xattrs| match (mode, xattrs.contains_key(name)) {
            (XattrMode::Create, true) => Err("exists"),
            (XattrMode::Replace, false) => Err("no attribute"),
            _ => {
                xattrs.insert(name.to_owned(), value);
                Ok(())
            }
        })
    }

    /// Of all names that a file has.
    fn change_xattrs(
        &mut self,
        path: &str,
        change: impl FnOnce(&mut BTreeMap<String, Vec<u8>>) -> Answer<()>,
    ) -> Answer<()> {
        let names = match self.node(path)? {
            Node::Directory => vec![path.to_owned()],
            Node::File(id) => self.names_of(id),
        };
        let mut xattrs = self.xattrs_of(path);
        change(&mut xattrs)?;
        let all = names.into_iter().map(|name| (name, xattrs.clone()));
        self.xattrs.extend(all);
        Ok(())
    }

    fn remove_xattr(&mut self, path: &str, name: &str) -> Answer<()> {
        self.change_xattrs(path, |xattrs| {
            xattrs.remove(name).map(drop).ok_or("no attribute")
        })
    }

    /// The extended attributes of a name.
    fn xattrs_of(&self, path: &str) -> BTreeMap<String, Vec<u8>> {
        self.xattrs.get(path).cloned().unwrap_or_default()
    }

    fn allocate(&mut self, file: usize, range: Range<u64>, allocation: Allocation) {
        let [start, end] = [range.start, range.end].map(|at| usize::try_from(at).unwrap());
        let file = &mut self.files[file];
        if allocation.zero {
            file.change(|bytes| {
                let len = bytes.len();
                bytes[start.min(len)..end.min(len)].fill(0);
            });
        }
        if !allocation.keep_size && file.bytes().len() < end {
            file.change(|bytes| bytes.resize(end, 0));
        }
    }

    /// Returns how many bytes were copied.
    fn copy(&mut self, from: usize, offset: u64, to: usize, at: u64, len: u64) -> u64 {
        let source = self.files[from].bytes();
        let in_source = |offset: u64| usize::try_from(offset).unwrap().min(source.len());
        let copied = source[in_source(offset)..in_source(offset + len)].to_vec();
        let at = usize::try_from(at).unwrap();
        if !copied.is_empty() {
            self.files[to].change(|bytes| {
                if bytes.len() < at + copied.len() {
                    bytes.resize(at + copied.len(), 0);
                }
                bytes[at..at + copied.len()].copy_from_slice(&copied);
            });
        }
        copied.len() as u64
    }

    pub(super) fn exchange(&mut self, a: &str, b: &str) -> Answer<()> {
        self.parents_are_directories(a, b)?;
        self.node(a)?;
        self.node(b)?;
        let is_below = |path: &str, of: &str| path.starts_with(&format!("{of}/"));
        if is_below(a, b) || is_below(b, a) {
            return Err("invalid");
        }
        let place = |name: &str| {
            [(a, b), (b, a)].into_iter().find_map(|(from, to)| {
                let rest = name.strip_prefix(from)?;
                (rest.is_empty() || rest.starts_with('/')).then(|| format!("{to}{rest}"))
            })
        };
        self.move_names(place);
        Ok(())
    }

    pub(super) fn children(&self, path: &str) -> Vec<String> {
        children(&self.names, path)
    }

    /// The names that a file has.
    pub(super) fn names_of(&self, id: usize) -> Vec<String> {
        let names = self.names.iter();
        names
            .filter(|(_, node)| **node == Node::File(id))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Nothing takes any file back to before this moment.
    fn all_is_durable(&mut self) {
        for file in &mut self.files {
            file.durable = file.latest();
        }
    }
}

pub(super) fn children(names: &BTreeMap<String, Node>, path: &str) -> Vec<String> {
    let mut names: Vec<String> = names
        .iter()
        .filter_map(|(name, node)| {
            let rest = name.strip_prefix(path)?.strip_prefix('/')?;
            let slash = if *node == Node::Directory { "/" } else { "" };
            (!rest.contains('/')).then(|| format!("{rest}{slash}"))
        })
        .collect();
    names.sort();
    names
}

pub(super) fn word(error: &FsError) -> &'static str {
    match error {
        FsError::NoEntry => "no entry",
        FsError::Exists => "exists",
        FsError::NotDirectory => "not a directory",
        FsError::IsDirectory => "is a directory",
        FsError::NotEmpty => "not empty",
        FsError::Invalid(_) => "invalid",
        FsError::NoAttribute => "no attribute",
        FsError::NotPermitted(_) => "not permitted",
        other => panic!("unexpected: {other}"),
    }
}

/// A process's connection to the store.
pub(super) fn connect(
    store: &Arc<dyn Store>,
    faults: &Arc<Faults>,
) -> (Arc<Bucket>, Arc<Connection>) {
    let (store, connection) = FaultStore::connect(Arc::clone(store), Arc::clone(faults));
    let location = Location {
        scheme: Scheme::Memory,
        bucket: "model".to_owned(),
        prefix: String::new(),
    };
    let bucket = Bucket::new(Arc::new(store), location);
    (Arc::new(bucket), connection)
}

fn answer<T>(done: Result<T, FsError>) -> Answer<()> {
    done.map(drop).map_err(|error| word(&error))
}

/// A volume and the model of it.
struct Run {
    fs: TestFs,
    store: Arc<dyn Store>,
    faults: Arc<Faults>,
    connection: Arc<Connection>,
    model: Model,
    open: Vec<(OpenFile, usize)>,
    is_down: bool,
    /// A close may still tell of an upload that failed then.
    was_down: bool,
    durability: Durability,
    /// After each operation since the journal was begun.
    snapshots: Vec<Snapshot>,
    /// Each with the number of its snapshot.
    promises: Vec<(usize, Promise)>,
}

impl Run {
    async fn new(durability: Durability) -> Self {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new(SystemClock::shared()));
        let faults = Arc::<Faults>::default();
        let (bucket, connection) = connect(&store, &faults);
        let write = WriteOptions {
            durability,
            ..WriteOptions::default()
        };
        let mut run = Self {
            fs: TestFs::in_little_memory(bucket, write).await,
            store,
            faults,
            connection,
            model: Model::default(),
            open: Vec::new(),
            is_down: false,
            was_down: false,
            durability,
            snapshots: Vec::new(),
            promises: Vec::new(),
        };
        run.note();
        run
    }

    fn note(&mut self) {
        self.snapshots.push(Snapshot {
            journal_bytes: self.fs.status().journal_bytes,
            names: self.model.names.clone(),
            xattrs: self.model.xattrs.clone(),
            latest: self.model.files.iter().map(File::latest).collect(),
        });
    }

    /// Nothing takes the names back to before this moment.
    fn names_are_durable(&mut self) {
        self.snapshots.clear();
        self.promises.clear();
    }

    fn promise(&mut self, promise: Promise) {
        self.promises.push((self.snapshots.len(), promise));
    }

    /// Whether it tells of a store that is down, or was.
    fn is_down_or_was<T>(&self, done: &Result<T, FsError>) -> bool {
        self.was_down && is_the_stores(done)
    }

    /// Whether it is for the store alone that this was not done. Then it did not happen.
    fn is_refused<T>(&self, done: &Result<T, FsError>) -> bool {
        self.is_down && is_the_stores(done)
    }

    /// Both give the same answer, but for a store that is down.
    fn agree<T, U>(
        &mut self,
        done: Result<T, FsError>,
        model: impl FnOnce(&mut Model) -> Answer<U>,
    ) {
        if !self.is_refused(&done) {
            assert_eq!(answer(done), model(&mut self.model).map(drop));
        }
    }

    async fn step(&mut self, op: Op) {
        match op {
            Op::Open(path) => {
                let opened = match self.fs.open(PATHS[path]).await {
                    Err(FsError::NoEntry) => self.fs.create(PATHS[path]).await,
                    opened => opened,
                };
                if self.is_refused(&opened) {
                    return;
                }
                let expected = self.model.open(PATHS[path]);
                assert_eq!(opened.as_ref().map(drop).map_err(word), expected.map(drop));
                if let (Ok(file), Ok(id)) = (opened, expected) {
                    self.open.push((file, id));
                }
            }
            Op::Write {
                handle,
                offset,
                len,
                byte,
            } => {
                if let Some((file, id)) = self.open.get(handle) {
                    file.write_at(offset, vec![byte; len]).unwrap();
                    self.model.write(*id, offset, len, byte);
                }
            }
            Op::Allocate {
                handle,
                offset,
                len,
                allocation,
            } => {
                if let Some((file, id)) = self.open.get(handle) {
                    file.allocate(offset, len, allocation).unwrap();
                    self.model.allocate(*id, offset..offset + len, allocation);
                }
            }
            Op::Copy {
                from,
                offset,
                to,
                at,
                len,
            } => {
                let overlaps = from == to && offset < at + len && at < offset + len;
                if let (Some((source, from)), Some((target, to)), false) =
                    (self.open.get(from), self.open.get(to), overlaps)
                {
                    let copied = source.copy_to(offset, target, at, len).await;
                    if !self.is_refused(&copied) {
                        let expected = self.model.copy(*from, offset, *to, at, len);
                        assert_eq!(copied.unwrap(), expected);
                    }
                }
            }
            Op::SetXattr {
                path,
                name,
                byte,
                mode,
            } => {
                let (path, name, value) = (PATHS[path], XATTRS[name], vec![byte; 3]);
                let done = match self.fs.ino(path).await {
                    Ok(ino) => {
                        let name = OsStr::new(name);
                        self.fs.setxattr_as(ino, name, &value, mode).await
                    }
                    Err(error) => Err(error),
                };
                self.agree(done, |model| model.set_xattr(path, name, value, mode));
            }
            Op::RemoveXattr { path, name } => {
                let (path, name) = (PATHS[path], XATTRS[name]);
                let done = self.fs.removexattr(path, name).await;
                self.agree(done, |model| model.remove_xattr(path, name));
            }
            Op::Fsync(handle) => {
                if let Some((file, id)) = self.open.get(handle) {
                    let id = *id;
                    let synced = file.fsync().await;
                    if synced.is_ok() {
                        if self.durability == Durability::Local {
                            self.fs.note_synced(file.ino);
                        }
                        let file = &mut self.model.files[id];
                        file.durable = file.latest();
                        self.promise(Promise::File(id, self.model.names_of(id)));
                    } else {
                        assert!(self.is_down_or_was(&synced), "{synced:?}");
                    }
                }
            }
            Op::FsyncDir(path) => {
                let path = PATHS[path];
                if self.model.node(path) == Ok(Node::Directory) {
                    let synced = match self.fs.ino(path).await {
                        Ok(ino) => self.fs.fsyncdir(ino).await,
                        Err(error) => Err(error),
                    };
                    if synced.is_ok() {
                        let children = self.model.children(path);
                        self.promise(Promise::Directory(path.to_owned(), children));
                    } else {
                        assert!(self.is_refused(&synced), "{synced:?}");
                    }
                }
            }
            Op::Close(handle) => {
                if handle < self.open.len() {
                    let (file, id) = self.open.remove(handle);
                    self.close(file, id).await;
                }
            }
            Op::Truncate { path, size } => {
                let change = SetAttr {
                    size: Some(size),
                    ..SetAttr::default()
                };
                let done = self.fs.setattr(PATHS[path], change).await;
                self.agree(done, |model| match model.node(PATHS[path])? {
                    Node::Directory => Err("is a directory"),
                    Node::File(id) => {
                        let size = usize::try_from(size).unwrap();
                        model.files[id].change(|bytes| bytes.resize(size, 0));
                        Ok(())
                    }
                });
            }
            Op::Mkdir(path) => {
                let done = self.fs.mkdir(PATHS[path]).await;
                self.agree(done, |model| model.mkdir(PATHS[path]));
            }
            Op::Unlink(path) => {
                let done = self.fs.unlink(PATHS[path]).await;
                self.agree(done, |model| model.unlink(PATHS[path]));
            }
            Op::Rmdir(path) => {
                let done = self.fs.rmdir(PATHS[path]).await;
                self.agree(done, |model| model.rmdir(PATHS[path]));
            }
            Op::Rename(from, to) => {
                let (from, to) = (PATHS[from], PATHS[to]);
                let done = self.fs.rename(from, to).await;
                self.agree(done, |model| model.rename(from, to));
            }
            Op::Exchange(a, b) => {
                let (a, b) = (PATHS[a], PATHS[b]);
                let done = self.fs.rename_as(a, b, RenameMode::Exchange).await;
                self.agree(done, |model| model.exchange(a, b));
            }
            Op::Link(from, to) => {
                let (from, to) = (PATHS[from], PATHS[to]);
                let done = self.fs.link(from, to).await;
                self.agree(done, |model| model.link(from, to));
            }
            Op::Drain => {
                let drained = self.fs.drain(GIVEN_UP).await;
                assert!(drained.is_ok() || self.is_refused(&drained), "{drained:?}");
                if drained.is_ok() {
                    self.model.all_is_durable();
                    self.names_are_durable();
                }
            }
            Op::Crash => {
                self.die();
                self.fs = self.fs.after_crash().await;
                self.names_are_durable();
            }
            Op::Kill => self.kill().await,
            Op::LetTtlPass => self.fs.let_ttl_pass(),
            Op::List(path) => {
                if self.model.node(PATHS[path]) == Ok(Node::Directory) {
                    let entries = self.fs.entries(PATHS[path]).await;
                    if !self.is_refused(&entries) {
                        assert_eq!(
                            self.fs.ls(PATHS[path]).await,
                            self.model.children(PATHS[path])
                        );
                        let xattrs = self.fs.xattrs(PATHS[path]).await.unwrap();
                        assert_eq!(xattrs, self.model.xattrs_of(PATHS[path]));
                    }
                }
            }
            Op::StoreDown(outage) => {
                self.faults.out(outage);
                self.is_down = true;
                self.was_down = true;
            }
            Op::StoreUp => self.up(),
            Op::Remount => {
                self.close_all().await;
                self.fs = self.fs.remounted().await;
                self.model.part_links();
                self.model.all_is_durable();
                self.names_are_durable();
            }
            Op::DrainAndHostCrash => {
                self.close_all().await;
                self.fs.drained().await;
                self.fs = self.fs.after_host_crash(Unsynced::Lost).await;
                self.model.all_is_durable();
                self.names_are_durable();
            }
            Op::HostCrash { tail, staged } => self.host_crash(tail, staged).await,
            Op::OtherHostWrites { path, len, byte } => {
                let path = PATHS[path];
                let is_directory = self.model.node(path) == Ok(Node::Directory);
                if is_directory || self.model.parent_is_directory(path).is_err() {
                    return;
                }
                self.close_all().await;
                // Whoever crashes before the disk knows of an upload's end cannot tell who has changed its object.
                self.fs = self.fs.remounted().await;
                self.model.part_links();
                self.fs.put_object(path, &vec![byte; len]).await;
                self.fs.let_ttl_pass();
                self.model.files.push(File::new(vec![byte; len]));
                let id = self.model.files.len() - 1;
                self.model.names.insert(path.to_owned(), Node::File(id));
                self.model.xattrs.remove(path);
                self.model.all_is_durable();
                self.names_are_durable();
            }
        }
        self.note();
    }

    async fn host_crash(&mut self, tail: u64, staged: Unsynced) {
        self.die();
        let status = self.fs.status();
        let (synced, end) = (status.journal_synced_bytes, status.journal_bytes);
        let cut = synced + (end - synced) * tail / 4;
        self.fs = self.fs.after_host_crash_at(cut, staged).await;
        if cut == end && staged == Unsynced::Kept {
            self.model.all_is_durable();
        }
        let found = all_names(&self.fs).await;
        let mut xattrs = Xattrs::new();
        for name in found.keys() {
            xattrs.insert(name.clone(), self.fs.xattrs(name).await.unwrap());
        }
        // An operation may have been in the middle of what it has to say.
        let mut before = self.snapshots.iter();
        let before = before
            .rposition(|snapshot| snapshot.journal_bytes <= cut)
            .unwrap_or(0);
        let is_between = self.snapshots[before].journal_bytes < cut;
        let last = (before + usize::from(is_between)).min(self.snapshots.len() - 1);
        let matches = (before..=last)
            .rev()
            .filter(|at| self.snapshots[*at].has_xattrs(&xattrs))
            .find_map(|at| Some((at, self.moments_at(&self.snapshots[at], &found)?)));
        let Some((at, moments)) = matches else {
            let lengths: Vec<_> = found
                .iter()
                .map(|(name, bytes)| (name, bytes.as_ref().map(Vec::len)))
                .collect();
            panic!(
                "no moment had {lengths:?}, {xattrs:?}: {:?}",
                self.snapshots[before]
            );
        };
        for (promised, promise) in &self.promises {
            if at < *promised {
                promise.check(&self.snapshots[at].names);
            }
        }
        self.model.names = std::mem::take(&mut self.snapshots[at].names);
        self.model.xattrs = std::mem::take(&mut self.snapshots[at].xattrs);
        for (id, moment) in moments {
            let file = &mut self.model.files[id];
            file.moments.truncate(moment + 1);
            file.durable = moment;
        }
        self.names_are_durable();
    }

    /// Which moment of each of its files was found, if all was found as it can have been at a snapshot.
    fn moments_at(&self, snapshot: &Snapshot, found: &Found) -> Option<Vec<(usize, usize)>> {
        let mut moments = Vec::new();
        for (name, node) in &snapshot.names {
            match (node, found.get(name)?) {
                (Node::Directory, None) => {}
                (Node::File(id), Some(bytes)) => {
                    let file = &self.model.files[*id];
                    let mut since = (file.durable..=snapshot.latest[*id]).rev();
                    moments.push((*id, since.find(|at| file.moments[*at] == *bytes)?));
                }
                _ => return None,
            }
        }
        (found.len() == snapshot.names.len()).then_some(moments)
    }

    /// The process is dead, with whoever had a file open. No volume is opened without its store.
    fn die(&mut self) {
        self.up();
        self.open.clear();
        self.connection.cut();
        (self.fs.bucket, self.connection) = connect(&self.store, &self.faults);
    }

    async fn kill(&mut self) {
        self.up();
        self.connection.cut();
        (self.fs.bucket, self.connection) = connect(&self.store, &self.faults);
        self.fs = self.fs.after_kill().await;
        for (file, id) in &mut self.open {
            *file = self.fs.still_open(file);
            for name in self.model.names_of(*id) {
                assert_eq!(self.fs.ino(&name).await.unwrap(), file.ino, "{name}");
            }
        }
        self.names_are_durable();
    }

    fn up(&mut self) {
        self.faults.end();
        self.is_down = false;
    }

    async fn close(&mut self, file: OpenFile, id: usize) {
        let read = file.read_all().await;
        if !self.is_refused(&read) {
            assert!(read.unwrap() == *self.model.files[id].bytes());
        }
        let closed = file.close().await;
        assert!(closed.is_ok() || self.is_down_or_was(&closed), "{closed:?}");
    }

    /// The store is there, and nobody has a file open.
    async fn close_all(&mut self) {
        self.up();
        for (file, id) in std::mem::take(&mut self.open) {
            self.close(file, id).await;
        }
        if self.was_down {
            // What is being tried waits before it is tried again.
            self.fs.settled().await;
        }
    }

    /// In the end this host, another one and the bucket are what the model is.
    async fn end(mut self) {
        self.close_all().await;
        self.fs.drained().await;
        assert_eq!(self.fs.status().pending, []);
        let other = self.fs.other_host().await;
        for host in [&self.fs, &other] {
            for (path, node) in &self.model.names {
                let xattrs = host.xattrs(path).await.unwrap();
                assert_eq!(xattrs, self.model.xattrs_of(path), "{path}");
                match node {
                    Node::Directory => {
                        assert_eq!(host.ls(path).await, self.model.children(path), "{path}");
                    }
                    Node::File(id) => {
                        assert!(
                            host.read(path).await.unwrap() == *self.model.files[*id].bytes(),
                            "{path}"
                        );
                    }
                }
            }
        }
        let mut keys: Vec<String> = self
            .model
            .names
            .iter()
            .map(|(name, node)| {
                if *node == Node::Directory {
                    format!("{name}/")
                } else {
                    name.clone()
                }
            })
            .collect();
        keys.sort();
        assert_eq!(self.fs.keys().await, keys, "nothing else is in the bucket");
    }
}

impl Promise {
    /// It is kept by these names.
    pub(super) fn check(&self, names: &BTreeMap<String, Node>) {
        match self {
            Self::File(id, promised) => {
                for name in promised {
                    assert_eq!(names.get(name), Some(&Node::File(*id)), "{name} was synced");
                }
            }
            Self::Directory(path, promised) => {
                assert_eq!(children(names, path), *promised, "{path} was synced");
            }
        }
    }
}

/// Every name that there is; a file's with its bytes.
pub(super) async fn all_names(fs: &TestFs) -> Found {
    let mut found = BTreeMap::new();
    let mut directories = vec![String::new()];
    while let Some(directory) = directories.pop() {
        for name in fs.ls(&directory).await {
            let path = format!("{directory}{name}");
            match path.strip_suffix('/') {
                Some(below) => {
                    found.insert(below.to_owned(), None);
                    directories.push(path);
                }
                None => {
                    let bytes = fs.read(&path).await.unwrap();
                    found.insert(path, Some(bytes));
                }
            }
        }
    }
    found
}

fn is_the_stores<T>(done: &Result<T, FsError>) -> bool {
    matches!(done, Err(FsError::Store(_) | FsError::TimedOut(_)))
}

/// In time that passes only when everybody waits: a store that is down is waited for.
fn run_with(durability: Durability, ops: Vec<Op>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut run = Run::new(durability).await;
        for op in ops {
            run.step(op).await;
        }
        run.end().await;
    });
}

fn run(ops: Vec<Op>) {
    run_with(Durability::Fsync, ops);
}

/// `PROPTEST_CASES` asks for more: 4000 take about a minute.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(150)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn it_answers_as_a_file_system_in_memory_does(ops in proptest::collection::vec(op(), 1..50)) {
        run(ops);
    }

    #[test]
    fn with_durability_local_it_answers_so_too(ops in proptest::collection::vec(op(), 1..50)) {
        run_with(Durability::Local, ops);
    }
}

/// The disk has heard of the upload, but not of its end nor of the unlink, when the object is deleted.
#[test]
fn regression_a_file_whose_object_is_gone_does_not_come_back_when_the_host_goes_down() {
    let write = Op::Write {
        handle: 0,
        offset: 0,
        len: 1000,
        byte: 1,
    };
    run(vec![
        Op::Open(0),
        write,
        Op::Fsync(0),
        Op::Unlink(0),
        Op::DrainAndHostCrash,
    ]);
}

/// The directory is known to be in the bucket only by what the disk does not know.
#[test]
fn regression_a_directory_that_was_sent_before_the_host_went_down_is_removed_after_it() {
    let write = Op::Write {
        handle: 0,
        offset: 93891,
        len: 846,
        byte: 147,
    };
    run(vec![
        Op::Open(3),
        write,
        Op::Mkdir(2),
        Op::DrainAndHostCrash,
        Op::Rmdir(2),
    ]);
}

/// It never came into the bucket, and it does not after the host went down.
#[test]
fn regression_a_file_that_was_never_sent_and_is_gone_stays_so_when_the_host_goes_down() {
    run(vec![
        Op::Open(8),
        Op::Crash,
        Op::Unlink(8),
        Op::DrainAndHostCrash,
    ]);
}

#[test]
fn regression_bytes_that_the_disk_had_before_a_kill_it_has_after_it() {
    let write = Op::Write {
        handle: 0,
        offset: 0,
        len: 4000,
        byte: 1,
    };
    let host_crash = |staged| Op::HostCrash { tail: 0, staged };
    run(vec![
        Op::Open(0),
        Op::Open(8),
        write,
        Op::Fsync(1),
        host_crash(Unsynced::Kept),
        Op::Crash,
        host_crash(Unsynced::Lost),
    ]);
}

/// The directory that had the file's name before is not where it was when the kernel last heard of it.
#[test]
fn regression_an_open_file_that_changed_places_keeps_its_number_through_kills() {
    run_with(
        Durability::Local,
        vec![
            Op::Mkdir(3),
            Op::Mkdir(1),
            Op::Drain,
            Op::Kill,
            Op::Open(4),
            Op::Exchange(4, 1),
            Op::Drain,
            Op::Kill,
        ],
    );
}

/// The names of directories above a file that was sent long ago are the file's too.
#[test]
fn regression_an_fsync_of_a_file_that_was_sent_waits_for_the_directories_above_it() {
    let lost = Op::HostCrash {
        tail: 0,
        staged: Unsynced::Lost,
    };
    run(vec![
        Op::Mkdir(8),
        Op::Open(9),
        Op::Fsync(0),
        Op::Rename(8, 2),
        Op::Fsync(0),
        lost,
    ]);
}

/// The journal has the write, and the disk does not have its bytes.
#[test]
fn regression_a_file_whose_bytes_the_host_has_lost_is_what_it_was_before_not_zeros() {
    let write = Op::Write {
        handle: 0,
        offset: 0,
        len: 1,
        byte: 1,
    };
    let staged = Unsynced::Lost;
    run(vec![Op::Open(0), write, Op::HostCrash { tail: 4, staged }]);
}

/// The host goes down in the middle of what the journal is told of a rename.
#[test]
fn regression_a_directory_renamed_over_another_is_one_of_both_when_the_host_goes_down() {
    for tail in 0..=4 {
        run(vec![
            Op::Mkdir(1),
            Op::Mkdir(0),
            Op::Rename(0, 1),
            Op::HostCrash {
                tail,
                staged: Unsynced::Lost,
            },
        ]);
    }
}

/// What is found after a crash of the host was on its disk.
#[test]
fn regression_a_file_that_has_survived_one_crash_of_the_host_survives_the_next() {
    let write = Op::Write {
        handle: 0,
        offset: 0,
        len: 4000,
        byte: 1,
    };
    let crash = |tail, staged| Op::HostCrash { tail, staged };
    run(vec![
        Op::Open(0),
        write,
        crash(4, Unsynced::Kept),
        crash(0, Unsynced::Lost),
    ]);
}

/// The journal that is written anew tells of both writes at once.
#[test]
fn regression_what_was_synced_stays_though_more_was_written_before_a_crash() {
    let write = || Op::Write {
        handle: 0,
        offset: 0,
        len: 4000,
        byte: 1,
    };
    let staged = Unsynced::Lost;
    for crash in [Op::Crash, Op::Kill] {
        run_with(
            Durability::Local,
            vec![
                Op::Open(0),
                write(),
                Op::Fsync(0),
                write(),
                crash,
                Op::HostCrash { tail: 0, staged },
            ],
        );
    }
}

/// The host may not forget that the name is gone: what it stood for is older than what was synced.
#[test]
fn regression_an_fsync_of_a_file_without_a_name_does_not_let_the_name_come_back_with_less() {
    let write = Op::Write {
        handle: 0,
        offset: 0,
        len: 4000,
        byte: 1,
    };
    let lost = Op::HostCrash {
        tail: 0,
        staged: Unsynced::Lost,
    };
    run(vec![
        Op::Open(0),
        Op::Drain,
        Op::Unlink(0),
        write,
        Op::Fsync(0),
        lost,
    ]);
}
