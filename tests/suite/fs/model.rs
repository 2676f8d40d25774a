//! Random operations on the file system and on a model of it that is a map in memory: both give the same
//! answers, and in the end the same files, here and on another host.

use std::collections::BTreeMap;
use std::sync::Arc;

use bucketvol::config::options::WriteOptions;
use bucketvol::fs::{FsError, SetAttr};
use bucketvol::store::Bucket;
use proptest::prelude::*;

use crate::common::test_fs::{OpenFile, TestFs};

/// A few names, so that operations meet.
const PATHS: [&str; 9] = ["a", "b", "c", "d", "d/a", "d/b", "d/d", "d/d/a", "e"];

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
    Fsync(usize),
    Close(usize),
    Truncate {
        path: usize,
        size: u64,
    },
    Mkdir(usize),
    Unlink(usize),
    Rmdir(usize),
    Rename(usize, usize),
    /// Everything believed of the bucket is doubted from here on.
    Crash,
    LetTtlPass,
    /// Everything is listed.
    List(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let path = || 0..PATHS.len();
    prop_oneof![
        4 => path().prop_map(Op::Open),
        6 => (0usize..4, 0u64..300_000, 1usize..5000, 1u8..)
            .prop_map(|(handle, offset, len, byte)| Op::Write { handle, offset, len, byte }),
        1 => (0usize..4).prop_map(Op::Fsync),
        3 => (0usize..4).prop_map(Op::Close),
        2 => (path(), 0u64..300_000).prop_map(|(path, size)| Op::Truncate { path, size }),
        3 => path().prop_map(Op::Mkdir),
        2 => path().prop_map(Op::Unlink),
        1 => path().prop_map(Op::Rmdir),
        4 => (path(), path()).prop_map(|(from, to)| Op::Rename(from, to)),
        1 => Just(Op::Crash),
        1 => Just(Op::LetTtlPass),
        1 => path().prop_map(Op::List),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    Directory,
    File(usize),
}

/// What a file system is, without one.
#[derive(Debug, Default)]
struct Model {
    names: BTreeMap<String, Node>,
    files: Vec<Vec<u8>>,
}

type Answer<T> = Result<T, &'static str>;

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

    fn node(&self, path: &str) -> Answer<Node> {
        self.parent_is_directory(path)?;
        self.names.get(path).copied().ok_or("no entry")
    }

    fn is_empty(&self, path: &str) -> bool {
        !self
            .names
            .keys()
            .any(|name| name.starts_with(&format!("{path}/")))
    }

    fn open(&mut self, path: &str) -> Answer<usize> {
        match self.node(path) {
            Ok(Node::File(id)) => Ok(id),
            Ok(Node::Directory) => Err("is a directory"),
            Err("no entry") => {
                self.parent_is_directory(path)?;
                self.files.push(Vec::new());
                self.names
                    .insert(path.to_owned(), Node::File(self.files.len() - 1));
                Ok(self.files.len() - 1)
            }
            Err(error) => Err(error),
        }
    }

    fn write(&mut self, id: usize, offset: u64, len: usize, byte: u8) {
        let offset = usize::try_from(offset).unwrap();
        let file = &mut self.files[id];
        if file.len() < offset + len {
            file.resize(offset + len, 0);
        }
        file[offset..offset + len].fill(byte);
    }

    fn mkdir(&mut self, path: &str) -> Answer<()> {
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

    fn unlink(&mut self, path: &str) -> Answer<()> {
        match self.node(path)? {
            Node::Directory => Err("is a directory"),
            Node::File(_) => {
                self.names.remove(path);
                Ok(())
            }
        }
    }

    fn rmdir(&mut self, path: &str) -> Answer<()> {
        match self.node(path)? {
            Node::File(_) => Err("not a directory"),
            Node::Directory if !self.is_empty(path) => Err("not empty"),
            Node::Directory => {
                self.names.remove(path);
                Ok(())
            }
        }
    }

    fn rename(&mut self, from: &str, to: &str) -> Answer<()> {
        self.parent_is_directory(from)?;
        self.parent_is_directory(to)?;
        let node = self.node(from)?;
        match (node, self.names.get(to)) {
            _ if from == to => return Ok(()),
            (Node::Directory, Some(Node::File(_))) => return Err("not a directory"),
            (Node::File(_), Some(Node::Directory)) => return Err("is a directory"),
            (Node::Directory, _) if to.starts_with(&format!("{from}/")) => return Err("invalid"),
            (Node::Directory, Some(Node::Directory)) if !self.is_empty(to) => {
                return Err("not empty");
            }
            _ => {}
        }
        let below = format!("{from}/");
        let moved: Vec<String> = self
            .names
            .keys()
            .filter(|name| *name == from || name.starts_with(&below))
            .cloned()
            .collect();
        for name in moved {
            let node = self.names.remove(&name).unwrap();
            self.names
                .insert(format!("{to}{}", &name[from.len()..]), node);
        }
        Ok(())
    }

    fn children(&self, path: &str) -> Vec<String> {
        let mut names: Vec<String> = self
            .names
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
}

fn word(error: &FsError) -> &'static str {
    match error {
        FsError::NoEntry => "no entry",
        FsError::Exists => "exists",
        FsError::NotDirectory => "not a directory",
        FsError::IsDirectory => "is a directory",
        FsError::NotEmpty => "not empty",
        FsError::Invalid(_) => "invalid",
        other => panic!("unexpected: {other}"),
    }
}

fn answer<T>(done: Result<T, FsError>) -> Answer<()> {
    done.map(drop).map_err(|error| word(&error))
}

async fn run(ops: Vec<Op>) {
    let mut fs = TestFs::with(Arc::new(Bucket::memory()), WriteOptions::default()).await;
    let mut model = Model::default();
    let mut open: Vec<(OpenFile, usize)> = Vec::new();
    for op in ops {
        match op {
            Op::Open(path) => {
                let opened = match fs.open(PATHS[path]).await {
                    Err(FsError::NoEntry) => fs.create(PATHS[path]).await,
                    opened => opened,
                };
                let expected = model.open(PATHS[path]);
                assert_eq!(opened.as_ref().map(drop).map_err(word), expected.map(drop));
                if let (Ok(file), Ok(id)) = (opened, expected) {
                    open.push((file, id));
                }
            }
            Op::Write {
                handle,
                offset,
                len,
                byte,
            } => {
                if let Some((file, id)) = open.get(handle) {
                    file.write_at(offset, vec![byte; len]).unwrap();
                    model.write(*id, offset, len, byte);
                }
            }
            Op::Fsync(handle) => {
                if let Some((file, _)) = open.get(handle) {
                    file.fsync().await.unwrap();
                }
            }
            Op::Close(handle) => {
                if handle < open.len() {
                    let (file, id) = open.remove(handle);
                    assert!(file.read_all().await.unwrap() == model.files[id]);
                    file.close().await.unwrap();
                }
            }
            Op::Truncate { path, size } => {
                let change = SetAttr {
                    size: Some(size),
                    ..SetAttr::default()
                };
                let done = answer(fs.setattr(PATHS[path], change).await);
                let expected = match model.node(PATHS[path]) {
                    Ok(Node::Directory) => Err("is a directory"),
                    Ok(Node::File(id)) => {
                        model.files[id].resize(usize::try_from(size).unwrap(), 0);
                        Ok(())
                    }
                    Err(error) => Err(error),
                };
                assert_eq!(done, expected);
            }
            Op::Mkdir(path) => {
                assert_eq!(
                    answer(fs.mkdir(PATHS[path]).await),
                    model.mkdir(PATHS[path])
                );
            }
            Op::Unlink(path) => {
                assert_eq!(
                    answer(fs.unlink(PATHS[path]).await),
                    model.unlink(PATHS[path])
                );
            }
            Op::Rmdir(path) => {
                assert_eq!(
                    answer(fs.rmdir(PATHS[path]).await),
                    model.rmdir(PATHS[path])
                );
            }
            Op::Rename(from, to) => {
                let (from, to) = (PATHS[from], PATHS[to]);
                assert_eq!(answer(fs.rename(from, to).await), model.rename(from, to));
            }
            Op::Crash => {
                // Who had a file open is gone too.
                open.clear();
                fs = fs.after_crash().await;
            }
            Op::LetTtlPass => fs.let_ttl_pass(),
            Op::List(path) => {
                if model.node(PATHS[path]) == Ok(Node::Directory) {
                    assert_eq!(fs.ls(PATHS[path]).await, model.children(PATHS[path]));
                }
            }
        }
    }
    for (file, id) in open {
        assert!(file.read_all().await.unwrap() == model.files[id]);
        file.close().await.unwrap();
    }
    fs.drained().await;
    assert_eq!(fs.status().dirty_files, 0);
    let other = fs.other_host().await;
    for host in [&fs, &other] {
        for (path, node) in &model.names {
            match node {
                Node::Directory => assert_eq!(host.ls(path).await, model.children(path), "{path}"),
                Node::File(id) => {
                    assert!(host.read(path).await.unwrap() == model.files[*id], "{path}");
                }
            }
        }
    }
    let keys: Vec<String> = model
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
    let mut keys = keys;
    keys.sort();
    assert_eq!(fs.keys().await, keys, "nothing else is in the bucket");
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
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(ops));
    }
}
