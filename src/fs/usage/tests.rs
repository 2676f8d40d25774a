use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const NOW: Duration = Duration::from_secs(1_000);

fn key(text: &str) -> Key {
    Key::new(text)
}

fn nobody() -> Counted<'static> {
    Counted {
        ino: 9,
        object: None,
        bytes: None,
    }
}

/// A ledger that has counted files of so many bytes.
fn counted(limit: Option<u64>, files: &[u64]) -> Ledger {
    let mut ledger = Ledger::new(limit);
    ledger.begin();
    ledger.began();
    let objects = files.iter().zip(0..);
    ledger.page(objects.map(|(bytes, number)| (key(&format!("{number:04}")), *bytes)));
    ledger.end(NOW);
    ledger
}

#[test]
fn what_would_exceed_the_limit_is_refused_and_what_gives_back_never_is() {
    let of = |bytes| Counted {
        ino: 2,
        object: None,
        bytes: Some(bytes),
    };
    let over = Err(OverQuota { limit: 100 });
    // Bytes that are used, those of the file before and after, and what comes of it.
    for (used, before, after, done) in [
        (90, 10, Some(20), Ok(())),
        (90, 10, Some(21), over),
        (90, 0, Some(u64::MAX), over),
        (100, 10, Some(10), Ok(())),
        (100, 10, Some(11), over),
        // More than the limit: it was lower before, or another host has written.
        (500, 400, Some(400), Ok(())),
        (500, 400, Some(401), over),
        (500, 400, Some(399), Ok(())),
        (500, 400, None, Ok(())),
    ] {
        let mut ledger = counted(Some(100), &[used]);
        let case = format!("{used} used, {before} to {after:?}");
        assert_eq!(ledger.change(of(before), after), done, "{case}");
        let now = match done {
            Ok(()) => used - before + after.unwrap_or(0),
            Err(_) => used,
        };
        assert_eq!(ledger.used().0, now, "{case}");
    }
    let mut full = counted(Some(100), &[100]);
    assert_eq!(full.change(nobody(), Some(0)), Ok(()), "an empty file");
    assert_eq!(full.used(), (100, 2));
    assert_eq!(counted(None, &[u64::MAX]).used().0, u64::MAX);
}

#[test]
fn directories_and_what_is_ours_count_nothing() {
    let mut ledger = Ledger::new(None);
    ledger.begin();
    ledger.began();
    let listing = ["", ".bucketvol/orphans/1", ".bucketvolume", "d/", "d/f"];
    ledger.page(listing.map(|text| (key(text), 10)));
    assert!(!ledger.is_counted());
    assert_eq!(ledger.used(), (20, 2), "what is known until now");
    ledger.end(NOW);
    assert_eq!(ledger.used(), (20, 2));
}

#[test]
fn what_was_never_counted_is_not_given_back() {
    let mut ledger = counted(Some(100), &[10]);
    let of_another_host = Counted {
        ino: 2,
        object: None,
        bytes: Some(50),
    };
    ledger.set(of_another_host, None);
    assert_eq!(ledger.used(), (0, 0));
    assert!(ledger.change(nobody(), Some(100)).is_ok());
}

#[test]
fn a_count_is_believed_for_longer_the_more_it_costs() {
    let after = |seconds| NOW + Duration::from_secs(seconds);
    let small = counted(None, &[1]);
    assert!(!small.is_due(after(299)));
    assert!(small.is_due(after(300)));
    let mut large = Ledger::new(None);
    assert!(large.is_due(Duration::ZERO));
    large.begin();
    assert!(!large.is_due(NOW), "one at a time");
    for _ in 0..100 {
        large.page([]);
    }
    large.end(NOW);
    assert!(!large.is_due(after(2_999)));
    assert!(large.is_due(after(3_000)));
    large.doubt();
    assert!(!large.is_due(after(29)));
    assert!(large.is_due(after(30)));
}

#[test]
fn of_a_count_that_was_disturbed_the_one_before_is_the_better_one() {
    let mut ledger = counted(None, &[10]);
    ledger.begin();
    ledger.began();
    ledger.page([(key("a"), 10)]);
    ledger.set(nobody(), Some(5));
    ledger.disturb();
    ledger.page([(key("b"), 10)]);
    ledger.end(NOW);
    assert_eq!(ledger.used(), (15, 2));
    assert!(ledger.is_due(NOW + RETRY_AFTER));
    ledger.begin();
    ledger.fail(NOW);
    assert_eq!(ledger.used(), (15, 2));
    let mut first = Ledger::new(None);
    first.begin();
    first.disturb();
    first.page([(key("a"), 10)]);
    first.end(NOW);
    assert_eq!(first.used(), (10, 1));
    assert!(first.is_due(NOW + RETRY_AFTER));
}

/// A file as the host has it.
#[derive(Debug, Clone)]
struct File {
    ino: u64,
    bytes: u64,
    object: Option<(Key, u64)>,
    is_dirty: bool,
}

impl File {
    fn counted(&self) -> Counted<'_> {
        Counted {
            ino: self.ino,
            object: self.object.as_ref().map(|(key, _)| key),
            bytes: Some(self.bytes),
        }
    }
}

/// A host, its bucket, and the ledger.
#[derive(Debug, Default)]
struct World {
    bucket: BTreeMap<Key, u64>,
    files: BTreeMap<Key, File>,
    /// Objects without names.
    orphans: Vec<Key>,
    ledger: Ledger,
    inos: u64,
    /// A page that the store has made and that has not come yet, and whether it is the last one.
    asked: Option<(Vec<(Key, u64)>, bool)>,
}

#[derive(Debug, Clone)]
enum Op {
    Create(Key, u64),
    Resize(Key, u64),
    Unlink(Key),
    Rename(Key, Key),
    Exchange(Key, Key),
    Upload(Key),
    DeleteOrphan,
    Forget(Key),
    /// While one file is written to.
    Begin(Key, u64),
    Ask,
    Answer,
}

fn op() -> impl Strategy<Value = Op> {
    let name = || (b'a'..b'i').prop_map(|name| key(&char::from(name).to_string()));
    let bytes = || 0..50_u64;
    prop_oneof![
        3 => (name(), bytes()).prop_map(|(name, bytes)| Op::Create(name, bytes)),
        3 => (name(), bytes()).prop_map(|(name, bytes)| Op::Resize(name, bytes)),
        2 => name().prop_map(Op::Unlink),
        3 => (name(), name()).prop_map(|(from, to)| Op::Rename(from, to)),
        1 => (name(), name()).prop_map(|(from, to)| Op::Exchange(from, to)),
        6 => name().prop_map(Op::Upload),
        2 => Just(Op::DeleteOrphan),
        2 => name().prop_map(Op::Forget),
        1 => (name(), bytes()).prop_map(|(name, bytes)| Op::Begin(name, bytes)),
        4 => Just(Op::Ask),
        4 => Just(Op::Answer),
    ]
}

impl World {
    fn new_ino(&mut self) -> u64 {
        self.inos += 1;
        self.inos
    }

    fn resize(&mut self, name: &Key, bytes: u64) {
        let Some(file) = self.files.get_mut(name) else {
            return;
        };
        self.ledger.set(file.counted(), Some(bytes));
        file.bytes = bytes;
        file.is_dirty = true;
    }

    fn unlink(&mut self, name: &Key) {
        if let Some(file) = self.files.remove(name) {
            self.ledger.set(file.counted(), None);
            self.orphans.extend(file.object.map(|(key, _)| key));
        }
    }

    /// What is put at a key waits until what another file has there has left.
    fn upload(&mut self, name: &Key) {
        let is_at = |file: &File| file.object.as_ref().is_some_and(|(at, _)| at == name);
        let mut others = self.files.iter().filter(|(other, _)| *other != name);
        let is_occupied = others.any(|(_, file)| is_at(file));
        let Some(file) = self.files.get_mut(name).filter(|file| file.is_dirty) else {
            return;
        };
        if is_occupied {
            // By way of a place aside.
            if let Some((at, bytes)) = file.object.take_if(|(at, _)| at != name) {
                let aside = key(&format!(".bucketvol/{}", file.ino));
                self.bucket.remove(&at);
                self.bucket.insert(aside.clone(), bytes);
                file.object = Some((aside, bytes));
            }
            return;
        }
        if let Some((at, _)) = file.object.replace((name.clone(), file.bytes)) {
            self.bucket.remove(&at);
        }
        self.orphans.retain(|orphan| orphan != name);
        self.bucket.insert(name.clone(), file.bytes);
        file.is_dirty = false;
    }

    fn begin(&mut self, written: &Key, bytes: u64) {
        if !self.ledger.is_due(Duration::MAX) {
            return;
        }
        self.ledger.begin();
        self.resize(written, bytes);
        let mut keys = self.orphans.clone();
        for (name, file) in self.files.iter().filter(|(_, file)| file.is_dirty) {
            self.ledger.keep(file.counted());
            keys.push(name.clone());
        }
        self.ledger.pass_over(keys);
        self.ledger.began();
    }

    fn ask(&mut self) {
        let Some(count) = self.ledger.count.as_ref().filter(|_| self.asked.is_none()) else {
            return;
        };
        let rest = self.bucket.iter().filter(|(key, _)| count.is_ahead(key));
        let mut page: Vec<_> = rest.map(|(key, bytes)| (key.clone(), *bytes)).collect();
        let is_last = page.len() <= 2;
        page.truncate(2);
        self.asked = Some((page, is_last));
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Create(name, bytes) => {
                if self.files.contains_key(&name) {
                    return;
                }
                let ino = self.new_ino();
                self.ledger.pass_over([name.clone()]);
                let file = File {
                    ino,
                    bytes,
                    object: None,
                    is_dirty: true,
                };
                let before = Counted {
                    bytes: None,
                    ..file.counted()
                };
                self.ledger.set(before, Some(bytes));
                self.files.insert(name, file);
            }
            Op::Resize(name, bytes) => self.resize(&name, bytes),
            Op::Unlink(name) => self.unlink(&name),
            Op::Rename(from, to) => {
                if from == to || !self.files.contains_key(&from) {
                    return;
                }
                self.unlink(&to);
                let mut file = self.files.remove(&from).unwrap();
                self.ledger.keep(file.counted());
                self.ledger.pass_over([from, to.clone()]);
                file.is_dirty = true;
                self.files.insert(to, file);
            }
            Op::Exchange(one, other) => {
                let files = (self.files.get(&one), self.files.get(&other));
                let (Some(a), Some(b)) = files else { return };
                let (mut a, mut b) = (a.clone(), b.clone());
                self.ledger.keep(a.counted());
                self.ledger.keep(b.counted());
                self.ledger.pass_over([one.clone(), other.clone()]);
                (a.is_dirty, b.is_dirty) = (true, true);
                self.files.insert(other, a);
                self.files.insert(one, b);
            }
            Op::Upload(name) => self.upload(&name),
            Op::DeleteOrphan => {
                if let Some(orphan) = self.orphans.pop() {
                    self.bucket.remove(&orphan);
                }
            }
            Op::Forget(name) => {
                let ino = self.new_ino();
                if let Some(file) = self.files.get_mut(&name).filter(|file| !file.is_dirty) {
                    file.ino = ino;
                }
            }
            Op::Begin(name, bytes) => self.begin(&name, bytes),
            Op::Ask => self.ask(),
            Op::Answer => {
                if let Some((page, is_last)) = self.asked.take() {
                    self.ledger.page(page);
                    if is_last {
                        self.ledger.end(NOW);
                    }
                }
            }
        }
    }

    fn truth(&self) -> (u64, u64) {
        let bytes = self.files.values().map(|file| file.bytes).sum();
        (bytes, self.files.len() as u64)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Whatever is changed and uploaded while a count is under way, it comes to what the files are, and so it stays.
    #[test]
    fn a_count_comes_to_what_the_files_are_whatever_happens_meanwhile(
        ops in proptest::collection::vec(op(), 1..120),
    ) {
        let mut world = World::default();
        for op in ops {
            let told = format!("{op:?}");
            world.apply(op);
            if world.ledger.is_counted() {
                prop_assert_eq!(world.ledger.used(), world.truth(), "after {}", told);
            }
        }
        world.begin(&key("a"), 1);
        while world.ledger.count.is_some() {
            world.apply(Op::Ask);
            world.apply(Op::Answer);
        }
        prop_assert_eq!(world.ledger.used(), world.truth());
    }
}
