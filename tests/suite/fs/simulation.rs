//! Several programs at once on a volume whose store takes its time, all in an order that a seed decides; and the same
//! again with the process, or the whole host, dying at each point of it. Whatever was answered is there when the next
//! process starts, after the death of the host whatever was synced; and in the end the bucket is what this host
//! sees, with nothing else in it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bucketvol::clock::Clock;
use bucketvol::config::options::{Durability, WriteOptions};
use bucketvol::config::{Location, Scheme};
use bucketvol::fs::{FsError, RenameMode};
use bucketvol::store::{Bucket, MemoryStore, Metadata, Precondition, Store};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::model::{Answer, Found, Model, Node, Promise, all_names, word};
use super::together::{Random, may_happen};
use crate::common::simulated_store::{Life, RuntimeClock};
use crate::common::test_fs::{NOBODY_GIVES_UP, OpenFile, TestFs, Unsynced};

const PROGRAMS: u64 = 3;
const STEPS: u64 = 10;

/// Runs, when nobody asks for more.
const SEEDS: u64 = 3;
/// Every so many points of them one is tried then.
const STRIDE: u64 = 13;

/// Names of a program's own, below a directory of its own.
const PATHS: [&str; 9] = ["a", "b", "d", "d/a", "d/b", "d/d", "e", "e/a", "e/d"];
/// What a program writes before it gives it another name.
const NEW: &str = "new";

/// Names of all programs, and the directories among them.
const SHARED: [&str; 6] = ["s/a", "s/b", "s/d/a", "s/d/b", "s/e/a", "s/e/b"];
const SHARED_DIRECTORIES: [&str; 3] = ["s/d", "s/e", "s/f"];
/// Bytes of a shared file, when it has any: one program's, all alike.
const SHARED_LEN: usize = 3000;

/// Who dies, and at which point.
#[derive(Debug, Clone, Copy)]
struct Death {
    at: u64,
    who: Who,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Process,
    Host,
}

/// A program's own names after one of its operations.
#[derive(Debug)]
struct State {
    /// Bytes of the journal when the operation began and when it was answered. `None`: it was not.
    began: u64,
    ended: Option<u64>,
    names: BTreeMap<String, Node>,
    /// Of each file, which of its moments was the latest.
    latest: Vec<usize>,
}

impl State {
    fn new(model: &Model, began: u64, ended: Option<u64>) -> Self {
        Self {
            began,
            ended,
            names: model.names.clone(),
            latest: model.files.iter().map(|file| file.latest()).collect(),
        }
    }
}

/// What a program was told of its own names.
#[derive(Debug)]
struct Told {
    model: Model,
    states: Vec<State>,
    /// Each with the number of the first state that has it.
    promises: Vec<(usize, Promise)>,
}

/// A program. It does one thing after the other.
struct Program {
    fs: Arc<TestFs>,
    life: Arc<Life>,
    random: Random,
    directory: String,
    durability: Durability,
    told: Arc<Mutex<Told>>,
}

impl Program {
    async fn run(mut self) {
        for _ in 0..STEPS {
            let pause = self.random.below(3000);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            match self.random.below(18) {
                0..=2 => self.save().await,
                3 | 4 => self.change().await,
                5 => self.unlink().await,
                6 | 7 => self.rename().await,
                8 => self.exchange().await,
                9 => self.mkdir().await,
                10 => self.rmdir().await,
                11 => self.fsyncdir().await,
                12 | 13 => self.link().await,
                _ => self.share().await,
            }
        }
    }

    fn own(&mut self) -> &'static str {
        self.of(&PATHS)
    }

    fn of(&mut self, choice: &[&'static str]) -> &'static str {
        choice[usize::try_from(self.random.below(choice.len() as u64)).unwrap()]
    }

    fn at(&self, path: &str) -> String {
        format!("{}/{path}", self.directory)
    }

    /// Does one thing to a name of its own, here and in the model; `true` if it was done.
    async fn does<T, U>(
        &self,
        model: impl FnOnce(&mut Model) -> Answer<U>,
        done: impl Future<Output = Result<T, FsError>>,
    ) -> Option<(T, U)> {
        let began = self.fs.status().journal_bytes;
        let expected = {
            let mut told = self.told.lock();
            let expected = model(&mut told.model);
            let state = State::new(&told.model, began, None);
            told.states.push(state);
            expected
        };
        let done = done.await;
        {
            let ended = self.fs.status().journal_bytes;
            let mut told = self.told.lock();
            told.states.last_mut().unwrap().ended = Some(ended);
        }
        assert_eq!(
            done.as_ref().map(drop).map_err(word),
            expected.as_ref().map(drop).map_err(|error| *error)
        );
        self.life.point().await;
        Some((done.ok()?, expected.ok()?))
    }

    async fn open(&self, path: &str) -> Option<(OpenFile, usize)> {
        let at = self.at(path);
        let opened = async {
            match self.fs.open(&at).await {
                Err(FsError::NoEntry) => self.fs.create(&at).await,
                opened => opened,
            }
        };
        self.does(|model| model.open(path), opened).await
    }

    async fn write(&mut self, file: &OpenFile, id: usize, offset: u64) {
        let len = usize::try_from(1 + self.random.below(5000)).unwrap();
        let byte = u8::try_from(1 + self.random.below(255)).unwrap();
        let change = |model: &mut Model| {
            model.write(id, offset, len, byte);
            Ok(())
        };
        self.does(change, async { file.write_at(offset, vec![byte; len]) })
            .await;
    }

    /// An answered fsync is a promise.
    async fn fsync(&self, file: &OpenFile, id: usize) {
        self.does(|_| Ok(()), file.fsync()).await;
        if self.durability == Durability::Local {
            self.fs.note_synced(file.ino);
        }
        let mut told = self.told.lock();
        let synced = &mut told.model.files[id];
        synced.durable = synced.latest();
        let promise = Promise::File(id, told.model.names_of(id));
        let since = told.states.len() - 1;
        told.promises.push((since, promise));
    }

    async fn close(&self, file: OpenFile) {
        self.does(|_| Ok(()), file.close()).await;
    }

    /// As editors do: a file beside it, then its name.
    async fn save(&mut self) {
        let path = self.own();
        let Some((file, id)) = self.open(NEW).await else {
            return;
        };
        self.write(&file, id, 0).await;
        if self.random.below(2) == 0 {
            self.fsync(&file, id).await;
        }
        self.close(file).await;
        self.rename_to(NEW, path).await;
    }

    /// Writes somewhere in a file.
    async fn change(&mut self) {
        let path = self.own();
        let Some((file, id)) = self.open(path).await else {
            return;
        };
        for _ in 0..=self.random.below(2) {
            let offset = self.random.below(10_000);
            self.write(&file, id, offset).await;
        }
        if self.random.below(2) == 0 {
            self.fsync(&file, id).await;
        }
        self.close(file).await;
    }

    async fn unlink(&mut self) {
        let path = self.own();
        let at = self.at(path);
        self.does(|model| model.unlink(path), self.fs.unlink(&at))
            .await;
    }

    async fn rename(&mut self) {
        let (from, to) = (self.own(), self.own());
        self.rename_to(from, to).await;
    }

    async fn rename_to(&self, from: &str, to: &str) {
        let (at, new) = (self.at(from), self.at(to));
        self.does(|model| model.rename(from, to), self.fs.rename(&at, &new))
            .await;
    }

    async fn exchange(&mut self) {
        let (a, b) = (self.own(), self.own());
        let (at, with) = (self.at(a), self.at(b));
        let done = self.fs.rename_as(&at, &with, RenameMode::Exchange);
        self.does(|model| model.exchange(a, b), done).await;
    }

    async fn link(&mut self) {
        let (from, to) = (self.own(), self.own());
        let (at, new) = (self.at(from), self.at(to));
        self.does(|model| model.link(from, to), self.fs.link(&at, &new))
            .await;
    }

    async fn mkdir(&mut self) {
        let path = self.own();
        let at = self.at(path);
        self.does(|model| model.mkdir(path), self.fs.mkdir(&at))
            .await;
    }

    async fn rmdir(&mut self) {
        let path = self.own();
        let at = self.at(path);
        self.does(|model| model.rmdir(path), self.fs.rmdir(&at))
            .await;
    }

    async fn fsyncdir(&mut self) {
        let path = self.own();
        if self.told.lock().model.node(path) != Ok(Node::Directory) {
            return;
        }
        let at = self.at(path);
        let synced = async { self.fs.fsyncdir(self.fs.ino(&at).await?).await };
        self.does(|_| Ok(()), synced).await;
        let mut told = self.told.lock();
        let promise = Promise::Directory(path.to_owned(), told.model.children(path));
        let since = told.states.len() - 1;
        told.promises.push((since, promise));
    }

    /// Does something to names that others change too.
    async fn share(&mut self) {
        let byte = u8::try_from(1 + self.random.below(255)).unwrap();
        let (a, b) = (self.of(&SHARED), self.of(&SHARED));
        let (from, to) = (self.of(&SHARED_DIRECTORIES), self.of(&SHARED_DIRECTORIES));
        let fs = &self.fs;
        let done = match self.random.below(9) {
            0..=2 => fs.write(a, vec![byte; SHARED_LEN]).await,
            3 => fs.unlink(a).await,
            4 => fs.rename(a, b).await,
            5 => fs.rename_as(a, b, RenameMode::Exchange).await,
            6 => fs.rename(from, to).await,
            7 => fs.link(a, b).await.map(drop),
            _ => fs.mkdir(from).await.map(drop),
        };
        if let Err(error) = done {
            assert!(may_happen(&error), "{error}");
        }
        self.life.point().await;
    }
}

impl Told {
    fn new(journal_bytes: u64) -> Self {
        let model = Model::default();
        Self {
            states: vec![State::new(&model, 0, Some(journal_bytes))],
            model,
            promises: Vec::new(),
        }
    }

    /// What was found of the program's own names is what it was told, if it was the process that died.
    fn check_answers(&self, found: &Found) {
        let answered = self.states.iter().rposition(|state| state.ended.is_some());
        let exactly = |state: &State, id: usize| state.latest[id]..=state.latest[id];
        self.check(found, answered.unwrap(), self.states.len() - 1, exactly);
    }

    /// What was found is what it was at a moment, and all that was promised, if the journal on the disk was so long
    /// when the host went down.
    fn check_promises(&self, found: &Found, synced: u64) {
        let mut states = self.states.iter();
        let is_on_disk = |state: &State| state.ended.is_some_and(|ended| ended <= synced);
        let first = states.rposition(is_on_disk).unwrap_or(0);
        let mut states = self.states.iter();
        let last = states.rposition(|state| state.began < synced).unwrap_or(0);
        let since = |state: &State, id: usize| self.model.files[id].durable..=state.latest[id];
        let at = self.check(found, first, last.max(first), since);
        for (promised, promise) in &self.promises {
            if at < *promised {
                promise.check(&self.states[at].names);
            }
        }
    }

    /// Returns the state that it is.
    fn check(
        &self,
        found: &Found,
        first: usize,
        last: usize,
        moments: impl Fn(&State, usize) -> std::ops::RangeInclusive<usize>,
    ) -> usize {
        let is_it = |state: &State| {
            found.len() == state.names.len()
                && state
                    .names
                    .iter()
                    .all(|(name, node)| match (node, found.get(name)) {
                        (Node::Directory, Some(None)) => true,
                        (Node::File(id), Some(Some(bytes))) => {
                            let file = &self.model.files[*id];
                            moments(state, *id).any(|at| file.moments[at] == *bytes)
                        }
                        _ => false,
                    })
        };
        let states = &self.states[first..=last];
        let at = states.iter().rposition(is_it).unwrap_or_else(|| {
            let lengths: Vec<_> = found
                .iter()
                .map(|(name, bytes)| (name, bytes.as_ref().map(Vec::len)))
                .collect();
            panic!("found {lengths:?}, which it was at no moment of {states:#?}")
        });
        first + at
    }
}

fn below(found: &Found, directory: &str) -> Found {
    let prefix = format!("{directory}/");
    let names = found.iter();
    names
        .filter_map(|(name, bytes)| Some((name.strip_prefix(&prefix)?.to_owned(), bytes.clone())))
        .collect()
}

/// What a run was.
#[derive(Debug)]
struct Ran {
    points: u64,
    requests: Vec<(Duration, String)>,
}

async fn simulate(seed: u64, durability: Durability, death: Option<Death>) -> Ran {
    let time: Arc<dyn Clock> = RuntimeClock::shared();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(Arc::clone(&time)));
    let bucket = direct(&store);
    let directories: Vec<String> = (0..PROGRAMS).map(|program| format!("p{program}")).collect();
    for directory in directories.iter().map(String::as_str).chain(["s"]) {
        let marker = bucketvol::store::Key::new(format!("{directory}/"));
        let put = bucket.put(
            &marker,
            Bytes::new(),
            Metadata::default(),
            Precondition::None,
        );
        put.await.unwrap();
    }
    let life = Life::new(seed);
    let write = WriteOptions {
        durability,
        ..WriteOptions::default()
    };
    let fs = TestFs::simulated(life.connect(&store), write, time).await;
    let fs = Arc::new(fs);
    life.begin(death.map(|death| death.at));
    let journal_bytes = fs.status().journal_bytes;
    let mut told = Vec::new();
    let mut programs = JoinSet::new();
    for (number, directory) in (0..PROGRAMS).zip(&directories) {
        let mixed = (seed * PROGRAMS + number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let program = Program {
            fs: Arc::clone(&fs),
            life: Arc::clone(&life),
            random: Random(mixed),
            directory: directory.clone(),
            durability,
            told: Arc::new(Mutex::new(Told::new(journal_bytes))),
        };
        told.push(Arc::clone(&program.told));
        programs.spawn(program.run());
    }
    let work = async {
        while let Some(program) = programs.join_next().await {
            program.unwrap();
        }
        fs.drain(NOBODY_GIVES_UP).await.unwrap();
    };
    let has_died = tokio::select! {
        () = work => false,
        () = life.died() => true,
    };
    programs.abort_all();
    while let Some(program) = programs.join_next().await {
        assert!(program.is_ok_and(|()| true) || has_died);
    }
    let ran = Ran {
        points: life.points(),
        requests: life.requests(),
    };
    let mut fs = Arc::try_unwrap(fs).unwrap();
    let found = match death.filter(|_| has_died) {
        None => all_names(&fs).await,
        Some(Death { who, .. }) => {
            fs.bucket = Life::new(seed + 1).connect(&store);
            let synced = fs.status().journal_synced_bytes;
            fs = match who {
                Who::Process => fs.after_crash().await,
                Who::Host => fs.after_host_crash_at(synced, Unsynced::Lost).await,
            };
            let found = all_names(&fs).await;
            for (told, directory) in told.iter().zip(&directories) {
                let (told, found) = (told.lock(), below(&found, directory));
                match who {
                    Who::Process => told.check_answers(&found),
                    Who::Host => told.check_promises(&found, synced),
                }
            }
            found
        }
    };
    if !has_died {
        for (told, directory) in told.iter().zip(&directories) {
            told.lock().check_answers(&below(&found, directory));
        }
    }
    for (name, bytes) in below(&found, "s") {
        let is_whole = |bytes: &Vec<u8>| {
            bytes.is_empty()
                || bytes.len() == SHARED_LEN && bytes.iter().all(|byte| *byte == bytes[0])
        };
        assert!(bytes.as_ref().is_none_or(is_whole), "s/{name} is mixed");
    }
    ends_well(&fs, &direct(&store), found).await;
    ran
}

/// The bucket gets what the host has, all of it and nothing else.
async fn ends_well(fs: &TestFs, bucket: &Arc<Bucket>, found: Found) {
    fs.drain(NOBODY_GIVES_UP).await.unwrap();
    assert_eq!(fs.status().pending, []);
    assert!(all_names(fs).await == found, "a drain changes nothing here");
    let other = TestFs::on(Arc::clone(bucket)).await;
    assert!(
        all_names(&other).await == found,
        "another host sees the same"
    );
    let key = |(name, bytes): (&String, &Option<Vec<u8>>)| match bytes {
        Some(_) => name.clone(),
        None => format!("{name}/"),
    };
    let mut keys: Vec<String> = found.iter().map(key).collect();
    keys.sort();
    assert_eq!(other.keys().await, keys, "nothing else is in the bucket");
}

/// The store without its time.
fn direct(store: &Arc<dyn Store>) -> Arc<Bucket> {
    let location = Location {
        scheme: Scheme::Memory,
        bucket: "simulated".to_owned(),
        prefix: String::new(),
    };
    Arc::new(Bucket::new(Arc::clone(store), location))
}

/// In time that passes only when everybody waits.
fn run(seed: u64, durability: Durability, death: Option<Death>) -> Ran {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let done = std::panic::AssertUnwindSafe(|| runtime.block_on(simulate(seed, durability, death)));
    std::panic::catch_unwind(done)
        .unwrap_or_else(|_| panic!("again: run({seed}, Durability::{durability:?}, {death:?})"))
}

/// `BUCKETVOL_SEEDS` asks for every point of so many seeds; without it, of a few seeds some.
fn survives(who: Who, durability: Durability) {
    let asked = std::env::var("BUCKETVOL_SEEDS");
    let asked = asked.ok().and_then(|seeds| seeds.parse().ok());
    let (seeds, step) = asked.map_or((SEEDS, STRIDE), |seeds| (seeds, 1));
    for seed in 1..=seeds {
        let points = run(seed, durability, None).points;
        for at in (1 + seed % step..=points).step_by(usize::try_from(step).unwrap()) {
            run(seed, durability, Some(Death { at, who }));
        }
    }
}

#[test]
fn a_seed_decides_the_order_of_all_requests() {
    for seed in 1..=4 {
        let [first, second] = [(); 2].map(|()| run(seed, Durability::Fsync, None));
        assert_eq!(first.requests, second.requests);
        assert_eq!(first.points, second.points);
    }
}

#[test]
fn what_was_answered_is_there_wherever_the_process_dies() {
    survives(Who::Process, Durability::Fsync);
}

#[test]
fn what_was_synced_is_there_wherever_the_host_goes_down() {
    survives(Who::Host, Durability::Fsync);
}

#[test]
fn with_durability_local_what_was_synced_is_there_wherever_the_host_goes_down() {
    survives(Who::Host, Durability::Local);
}
