//! Names: lookup and forget, and how a name's truth is asked of the store.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::fs::block::BLOCK_SIZE;
use crate::fs::error::FsError;
use crate::fs::filesystem::{Entry, FileSystem};
use crate::fs::inode::Inode;
use crate::fs::lookahead::Lookahead;
use crate::fs::name::{Name, NameError};
use crate::fs::tree::{Known, Observed, ObservedObject};
use crate::store::{FileKind, Key, ListEntry, ListRequest, Object, StoreError};

/// The objects of a directory can be brought elsewhere so often at most while one question is asked.
const ASK_ATTEMPTS: u32 = 4;

/// What to ask the store about a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    /// Whether it is an object, a directory, both or neither.
    Anything,
    /// It was an object: whether it still is, and which.
    Object,
    /// It was a directory.
    Directory,
}

/// What there is below a directory's key.
#[derive(Debug)]
enum Below {
    Nothing,
    Keys,
    /// The directory's marker, whose attributes nobody has to ask for.
    Marker(ObservedObject),
}

impl FileSystem {
    /// Finds a name. The kernel will forget the inode as often as this has returned it.
    pub async fn lookup(&self, parent: u64, name: &OsStr) -> Result<Entry, FsError> {
        let mut parsed = self.parse_name(name);
        if let Err(FsError::Name(NameError::UnknownHash)) = parsed {
            self.list(parent).await?;
            parsed = self.parse_name(name);
        }
        let (name, _) = parsed.map_err(|error| match error {
            FsError::Name(NameError::TooLong) => error,
            // A name that cannot be a key is a name that is not there.
            _ => FsError::NoEntry,
        })?;
        let found = self.find_linked(parent, &name).await?;
        let inode = found.ok_or(FsError::NoEntry)?;
        Ok(self.entry(&inode))
    }

    /// The kernel forgets what [`FileSystem::lookup`] and its like told it `nlookup` times.
    pub fn forget(&self, ino: u64, nlookup: u64) {
        self.tree.lock().forget(ino, nlookup);
    }

    /// What a name stands for, its attributes known; asks the store if nobody did lately.
    pub(crate) async fn find(
        &self,
        parent: u64,
        name: &Arc<str>,
    ) -> Result<Option<Arc<Inode>>, FsError> {
        let known = match self.lookaheads.get(parent) {
            Some(lookahead) => self.look_ahead(&lookahead, parent, name).await,
            None => self.look(parent, name),
        };
        match known {
            Known::Fresh(inode) => Ok(Some(inode)),
            Known::Absent => self.check_directory(parent).map(|()| None),
            Known::Unknown => {
                self.check_directory(parent)?;
                let lookahead = self.expect_more(parent, name);
                let found = self.ask(parent, name, Question::Anything).await?;
                if let (Some(lookahead), None) = (lookahead, &found) {
                    lookahead.missed_in_vain();
                }
                Ok(found)
            }
            Known::Stale(inode) => {
                self.expect_more(parent, name);
                self.ask_again(parent, name, &inode).await
            }
        }
    }

    fn look(&self, parent: u64, name: &str) -> Known {
        let ttl = self.settings.metadata_ttl;
        self.tree.lock().look(parent, name, self.now(), ttl)
    }

    /// Likewise, of a name that may have been asked ahead; asks for the next ones if it was.
    async fn look_ahead(&self, lookahead: &Arc<Lookahead>, parent: u64, name: &Arc<str>) -> Known {
        let Some(ahead) = lookahead.take(name, self.now()) else {
            return self.look(parent, name);
        };
        // An error is as good as an answer: this one asks again.
        let _ = ahead.answered.await;
        let known = self.look(parent, name);
        if matches!(known, Known::Fresh(_) | Known::Absent) {
            lookahead.hit(ahead.age, self.settings.metadata_ttl);
            self.ask_ahead(lookahead, parent, name);
        }
        known
    }

    /// A lookup in this directory has to ask the store: more of them are expected. What the store says is listed, page
    /// by page, and the attributes of the names after this one are asked for.
    fn expect_more(&self, parent: u64, name: &Arc<str>) -> Option<Arc<Lookahead>> {
        // Who wants every lookup to ask gets nothing that was asked before.
        if self.settings.metadata_ttl.is_zero() {
            return None;
        }
        let lookahead = self.lookaheads.watch(parent);
        if lookahead.missed(self.now()) {
            self.list_ahead(&lookahead, parent);
        }
        self.ask_ahead(&lookahead, parent, name);
        Some(lookahead)
    }

    fn list_ahead(&self, lookahead: &Arc<Lookahead>, parent: u64) {
        let Some(this) = self.this.upgrade() else {
            return;
        };
        let (now, ttl) = (self.now(), self.settings.metadata_ttl);
        if self.tree.lock().is_listed(parent, now, ttl) {
            return;
        }
        let lookahead = Arc::clone(lookahead);
        self.runtime.spawn(async move {
            // One page at a time; who comes meanwhile has its answer soon.
            if let Ok(mut listing) = lookahead.listing.try_lock()
                && listing.begin_page(lookahead.is_searched(), now, ttl)
            {
                let page = this.next_page(parent, &mut listing.stream).await;
                listing.end_page(page.is_ok(), this.now());
            }
        });
    }

    fn ask_ahead(&self, lookahead: &Arc<Lookahead>, parent: u64, name: &str) {
        let Some(this) = self.this.upgrade() else {
            return;
        };
        let (now, ttl) = (self.now(), self.settings.metadata_ttl);
        let reach = lookahead.reach();
        if reach == 0 {
            return;
        }
        let next = self.tree.lock().stale_after(parent, name, reach, now, ttl);
        let asked = lookahead.ask(next, now, ttl);
        for (name, asking) in asked {
            let (this, lookahead) = (Arc::clone(&this), Arc::clone(lookahead));
            self.runtime.spawn(async move {
                if let Known::Stale(inode) = this.look(parent, &name) {
                    // Who looks it up asks again, and is told of an error.
                    let found = this.ask_again(parent, &name, &inode).await;
                    if let Ok(Some(inode)) = found
                        && lookahead.is_read()
                    {
                        this.fetch_small(&inode);
                    }
                }
                drop(asking);
            });
        }
    }

    /// Begins to fetch the bytes of a file that is one block.
    fn fetch_small(&self, inode: &Inode) {
        let object = {
            let state = inode.state.lock();
            let is_small = state.attr.kind == FileKind::File && state.attr.size <= BLOCK_SIZE;
            let is_clean = is_small && !state.unsent.any();
            self.source_of(&state).filter(|_| is_clean)
        };
        if let Some(object) = object {
            self.settings.cache.prefetch(&object, &(0..object.size));
        }
    }

    /// Like [`FileSystem::find`], of a name that has to be there.
    pub(crate) async fn find_existing(
        &self,
        parent: u64,
        name: &Arc<str>,
    ) -> Result<Arc<Inode>, FsError> {
        self.find(parent, name).await?.ok_or(FsError::NoEntry)
    }

    /// Asks the store about a name that stood for `inode` when somebody last looked.
    pub(crate) async fn ask_again(
        &self,
        parent: u64,
        name: &Arc<str>,
        inode: &Inode,
    ) -> Result<Option<Arc<Inode>>, FsError> {
        let is_directory = self.tree.lock().is_directory(inode.ino) == Some(true);
        let question = if is_directory {
            Question::Directory
        } else {
            Question::Object
        };
        match self.ask(parent, name, question).await? {
            Some(inode) => Ok(Some(inode)),
            // It is not what it was, but it may be something else.
            None => self.ask(parent, name, Question::Anything).await,
        }
    }

    /// Fails unless the inode is a directory.
    pub(crate) fn check_directory(&self, ino: u64) -> Result<(), FsError> {
        match self.tree.lock().is_directory(ino) {
            Some(true) => Ok(()),
            Some(false) => Err(FsError::NotDirectory),
            None => Err(FsError::NoEntry),
        }
    }

    async fn ask(
        &self,
        parent: u64,
        name: &Arc<str>,
        question: Question,
    ) -> Result<Option<Arc<Inode>>, FsError> {
        for _ in 1..ASK_ATTEMPTS {
            match self.ask_once(parent, name, question).await {
                Err(FsError::Stale) => {}
                answered => return answered,
            }
        }
        self.ask_once(parent, name, question).await
    }

    /// [`FsError::Stale`] if the directory's objects were brought elsewhere meanwhile.
    async fn ask_once(
        &self,
        parent: u64,
        name: &Arc<str>,
        question: Question,
    ) -> Result<Option<Arc<Inode>>, FsError> {
        let (asked, directory) = {
            let mut tree = self.tree.lock();
            (
                tree.begin_question(),
                tree.key_of(parent).ok_or(FsError::NoEntry)?,
            )
        };
        let parsed = self.tree.lock().parse(name)?;
        let file_key = directory.join_file(&parsed.segment);
        let dir_key = directory.join_dir(&parsed.segment);

        let (object, below) = match question {
            Question::Anything => {
                let (object, below) =
                    futures_util::join!(self.head_object(&file_key), self.below(&dir_key));
                (object?, below?)
            }
            Question::Object if parsed.beside_directory => {
                (self.head_object(&file_key).await?, Below::Keys)
            }
            Question::Object => (self.head_object(&file_key).await?, Below::Nothing),
            Question::Directory => (None, self.below(&dir_key).await?),
        };

        let is_directory =
            !matches!(below, Below::Nothing) && !self.tree.lock().is_no_directory(parent, name);
        // A directory takes the name; an object of the same name is shown beside it.
        let observed = match (parsed.beside_directory, object, is_directory) {
            (true, Some(object), true) => Some(observed_object(object)),
            (true, _, _) => None,
            (false, object, true) => {
                if let (Some(object), Ok(beside)) =
                    (object, Name::from_segment_beside_directory(&parsed.segment))
                {
                    self.observe(
                        (parent, &directory),
                        &beside,
                        &observed_object(object),
                        asked,
                    )?;
                }
                let marker = match below {
                    Below::Marker(marker) => Some(marker),
                    _ => self.bucket.head(&dir_key).await?.map(to_observed),
                };
                Some(Observed::Directory(marker))
            }
            (false, Some(object), false) => Some(observed_object(object)),
            (false, None, false) => None,
        };
        match observed {
            Some(observed) => self.observe((parent, &directory), name, &observed, asked),
            None => {
                let mut tree = self.tree.lock();
                if tree.key_of(parent).as_ref() != Some(&directory) {
                    return Err(FsError::Stale);
                }
                tree.observe_absent(parent, name, asked);
                self.settle_parted(&mut tree);
                // It stays if something of it is known here and not in the bucket yet.
                Ok(tree.child(parent, name).and_then(|ino| tree.inode(ino)))
            }
        }
    }

    async fn head_object(&self, key: &Key) -> Result<Option<Object>, StoreError> {
        // The empty segment of `a/` is the directory's own marker.
        if key.is_dir() {
            Ok(None)
        } else {
            self.bucket.head(key).await
        }
    }

    async fn below(&self, directory: &Key) -> Result<Below, StoreError> {
        let request = ListRequest {
            prefix: directory.clone(),
            delimiter: false,
            max_keys: 1,
            continuation: None,
        };
        let page = self.bucket.list_known(&request).await?;
        Ok(match page.entries.into_iter().next() {
            None => Below::Nothing,
            // The marker's key comes before all that are below it.
            Some(ListEntry::Object {
                key,
                size,
                version,
                modified,
                metadata: Some(metadata),
            }) if key == *directory => Below::Marker(ObservedObject {
                size,
                version,
                modified,
                metadata: Some(metadata),
            }),
            Some(_) => Below::Keys,
        })
    }
}

fn observed_object(object: Object) -> Observed {
    Observed::Object(to_observed(object))
}

/// A HEAD's answer, as the tree takes it.
pub(crate) fn to_observed(object: Object) -> ObservedObject {
    ObservedObject {
        size: object.size,
        version: object.version,
        modified: object.modified,
        metadata: Some(object.metadata),
    }
}
