//! Directories: opendir, readdir, releasedir.

use std::collections::hash_map::Entry as Slot;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::fs::attr::Attr;
use crate::fs::error::FsError;
use crate::fs::filesystem::FileSystem;
use crate::fs::handles::DirHandle;
use crate::fs::inode::Inode;
use crate::fs::kept::Bookmarks;
use crate::fs::name::Name;
use crate::fs::request::RequestId;
use crate::fs::tree::{Child, Observed, ObservedObject};
use crate::store::{FileKind, Key, ListEntry, ListPage, ListRequest};

/// Keys that a page of a listing asks for: S3 gives no more.
pub(super) const PAGE_KEYS: usize = 1000;

/// Entries whose attributes are looked up together. A reply of the kernel's holds about 180.
const WINDOW: usize = 256;

/// `.` and `..` come first.
const DOTS: usize = 2;

/// One entry of a directory.
#[derive(Debug, Clone)]
pub struct DirEntry {
    /// The inode's number.
    pub ino: u64,
    /// Its name; `.` and `..` come first.
    pub name: Arc<str>,
    /// Its attributes.
    pub attr: Attr,
    /// Where to read on after this entry.
    pub next: u64,
}

/// An entry that is about to be shown.
struct Entry {
    name: Arc<str>,
    next: u64,
    found: Found,
}

/// An entry whose attributes the store is asked for, in a task of its own.
type Asked = JoinHandle<Result<Option<Arc<Inode>>, FsError>>;

/// What the tree has of an entry.
enum Found {
    /// All that is shown of it.
    Shown(u64, Attr),
    InCore(Arc<Inode>),
    /// It is gone, or there was no memory for its name.
    Nothing,
}

/// A reader's way through a directory, page by page of the store's listing.
#[derive(Debug, Default)]
pub(crate) struct DirStream {
    entries: Vec<Child>,
    positions: HashMap<Arc<str>, usize>,
    /// Of the entries so many were shown, and stay where they are.
    shown: usize,
    /// Of the store's names so many cannot be shown.
    unshowable: u32,
    /// Nobody has called for the listing: it is not believed about what it does not have.
    pub(crate) is_uncalled: bool,
    /// Entries whose attributes are being asked for.
    asked: HashMap<u64, Asked>,
    progress: Progress,
}

#[derive(Debug, Default)]
enum Progress {
    #[default]
    NotBegun,
    /// The question that the pages answer, when it was asked, and where the next page begins.
    Page {
        asked: u64,
        began: Duration,
        continuation: Option<String>,
    },
    End,
}

impl FileSystem {
    /// Opens a directory.
    pub async fn opendir(&self, ino: u64) -> Result<u64, FsError> {
        match self.tree.lock().is_directory(ino) {
            Some(true) => {}
            Some(false) => return Err(FsError::NotDirectory),
            None => return Err(FsError::NoEntry),
        }
        if let Some(fh) = self.opened_earlier() {
            return Ok(fh);
        }
        let fh = self.handles.new_number(&self.kept);
        let handle = DirHandle::new(ino, RequestId::current(), Bookmarks::default());
        self.kept.opened(fh, &handle.kept());
        self.handles.add_directory(fh, handle);
        Ok(fh)
    }

    /// The reader was given entries up to this one: a later process goes on after it, whatever was removed meanwhile.
    pub fn keep_place(&self, fh: u64, last: &DirEntry) {
        if let Ok(handle) = self.handles.directory(fh) {
            handle.bookmarks.lock().push(last.next, &last.name);
            self.kept.opened(fh, &handle.kept());
        }
    }

    /// Closes a directory.
    pub fn releasedir(&self, fh: u64) {
        self.kept.released(fh);
        self.handles.remove_directory(fh);
    }

    /// Entries from `offset` on (0: the beginning; else what an entry's `next` said); none at the end. The
    /// first come as soon as their page of the listing is there.
    pub async fn readdir(&self, fh: u64, offset: u64) -> Result<Vec<DirEntry>, FsError> {
        let handle = self.handles.directory(fh)?;
        let mut stream = handle.stream.lock().await;
        if offset == 0 {
            // rewinddir(3) wants to see what is there now.
            *stream = DirStream::default();
        }
        let mut at = usize::try_from(offset).map_err(|_| FsError::Invalid("directory offset"))?;
        if at > DOTS && matches!(stream.progress, Progress::NotBegun) {
            self.find_place(&handle, &mut stream, at).await?;
        }
        let mut found = Vec::new();
        while at < DOTS {
            found.push(self.dot_entry(handle.ino, at).await?);
            at += 1;
        }
        loop {
            stream.shown = stream.shown.max(at - DOTS);
            while stream.entries.len() < at - DOTS + WINDOW
                && !matches!(stream.progress, Progress::End)
            {
                match self.next_page(handle.ino, &mut stream).await {
                    // The directory was renamed meanwhile: the listing begins anew under its new key.
                    Err(FsError::Stale) => stream.progress = Progress::NotBegun,
                    listed => listed?,
                }
            }
            let window = self.look_at(&stream, at);
            if window.is_empty() {
                return Ok(found);
            }
            self.ask_for(handle.ino, &mut stream, &window);
            at += window.len();
            // Who has come back once is expected to read on: the store is not to wait for the kernel to do so.
            if offset > 0 {
                let next = self.look_at(&stream, at);
                self.ask_for(handle.ino, &mut stream, &next);
            }
            let resolved = self.resolve_all(handle.ino, &mut stream, window);
            found.extend(resolved.await?);
            // All of them may be gone by now, and an empty answer would mean the end.
            if !found.is_empty() {
                return Ok(found);
            }
        }
    }

    /// An earlier process has read the directory up to `at`: what it has shown comes before that.
    async fn find_place(
        &self,
        handle: &DirHandle,
        stream: &mut DirStream,
        at: usize,
    ) -> Result<(), FsError> {
        let last = handle.bookmarks.lock().at(at as u64).map(str::to_owned);
        let Some(last) = last else { return Ok(()) };
        self.list_all(handle.ino, stream).await?;
        stream.go_on_after(&last, at - DOTS);
        Ok(())
    }

    async fn dot_entry(&self, ino: u64, position: usize) -> Result<DirEntry, FsError> {
        let (name, ino) = if position == 0 {
            (".", ino)
        } else {
            ("..", self.tree.lock().parent(ino).unwrap_or(ino))
        };
        let attr = self.inode(ino)?.state.lock().attr;
        Ok(DirEntry {
            ino,
            name: Arc::from(name),
            attr,
            next: position as u64 + 1,
        })
    }

    /// What is known of the entries from position `at` on, and where to read on after each.
    fn look_at(&self, stream: &DirStream, at: usize) -> Vec<Entry> {
        let mut tree = self.tree.lock();
        tree.pack_unused();
        let look = |ino| match tree.packed_attr(ino) {
            Some(attr) => Found::Shown(ino, attr),
            None => tree.inode(ino).map_or(Found::Nothing, Found::InCore),
        };
        let entries = stream.entries.iter().skip(at - DOTS).take(WINDOW);
        (at as u64 + 1..)
            .zip(entries)
            .map(|(next, child)| Entry {
                name: Arc::clone(&child.name),
                next,
                found: look(child.ino),
            })
            .collect()
    }

    /// Begins to look up the attributes that are not known, as many side by side as may be.
    fn ask_for(&self, parent: u64, stream: &mut DirStream, entries: &[Entry]) {
        let Some(this) = self.this.upgrade() else {
            return;
        };
        for entry in entries {
            let Found::InCore(inode) = &entry.found else {
                continue;
            };
            if inode.state.lock().resolved || stream.asked.contains_key(&inode.ino) {
                continue;
            }
            let (this, permits) = (Arc::clone(&this), Arc::clone(&self.attributes_in_flight));
            let (name, inode) = (Arc::clone(&entry.name), Arc::clone(inode));
            let ino = inode.ino;
            let asked = self.runtime.spawn(async move {
                let _permit = permits.acquire_owned().await;
                this.ask_again(parent, &name, &inode).await
            });
            stream.asked.insert(ino, asked);
        }
    }

    /// The entries as they are shown, when their attributes are here; without what is gone meanwhile.
    async fn resolve_all(
        &self,
        parent: u64,
        stream: &mut DirStream,
        window: Vec<Entry>,
    ) -> Result<Vec<DirEntry>, FsError> {
        let mut resolved = Vec::with_capacity(window.len());
        for Entry { name, next, found } in window {
            let known = match found {
                Found::Shown(ino, attr) => Some((ino, attr)),
                Found::InCore(inode) => {
                    let inode = match stream.asked.remove(&inode.ino) {
                        Some(asked) => asked.await.unwrap_or(Err(FsError::Stale))?,
                        None => Some(inode),
                    };
                    self.shown(parent, &name, inode).await?
                }
                Found::Nothing => {
                    let inode = self.find(parent, &name).await?;
                    self.shown(parent, &name, inode).await?
                }
            };
            resolved.extend(known.map(|(ino, attr)| DirEntry {
                ino,
                name,
                attr,
                next,
            }));
        }
        Ok(resolved)
    }

    /// What is shown of a name that stands for an inode: of a hard link its target.
    async fn shown(
        &self,
        parent: u64,
        name: &Arc<str>,
        inode: Option<Arc<Inode>>,
    ) -> Result<Option<(u64, Attr)>, FsError> {
        let linked = match inode.map(|inode| self.linked_inode(inode)) {
            Some(linked) if !linked.state.lock().resolved => self.find_linked(parent, name).await?,
            found => found,
        };
        Ok(linked.map(|inode| (inode.ino, inode.state.lock().shown_attr())))
    }

    /// Reads all names of a directory that the store has.
    pub(super) async fn list(&self, ino: u64) -> Result<(), FsError> {
        self.list_all(ino, &mut DirStream::default()).await
    }

    async fn list_all(&self, ino: u64, stream: &mut DirStream) -> Result<(), FsError> {
        while !matches!(stream.progress, Progress::End) {
            match self.next_page(ino, stream).await {
                Err(FsError::Stale) => *stream = DirStream::default(),
                listed => listed?,
            }
        }
        Ok(())
    }

    pub(super) async fn next_page(&self, ino: u64, stream: &mut DirStream) -> Result<(), FsError> {
        let (asked, began, continuation) = match &stream.progress {
            Progress::End => return Ok(()),
            Progress::Page {
                asked,
                began,
                continuation,
            } => (*asked, *began, continuation.clone()),
            Progress::NotBegun => {
                let now = self.now();
                let mut tree = self.tree.lock();
                if tree.is_listed(ino, now, self.settings.metadata_ttl) {
                    stream.entries = tree.children(ino);
                    stream.progress = Progress::End;
                    return Ok(());
                }
                stream.unshowable = 0;
                (tree.begin_question(), now, None)
            }
        };
        let directory = self.key_of(ino)?;
        let request = ListRequest {
            prefix: directory.clone(),
            delimiter: true,
            max_keys: PAGE_KEYS,
            continuation,
        };
        let page = self.bucket.list_known(&request).await?;
        let continuation = page.continuation.clone();
        stream.unshowable += unshowable(&directory, &page);
        let names = {
            let mut tree = self.tree.lock();
            segments_of(&directory, &page).for_each(|segment| tree.note_segment(segment));
            names_of(&directory, page, |name| tree.is_no_directory(ino, name))
        };
        for (name, observed) in names {
            let object = match observed {
                Observed::Prefix => self.object_called(stream, &name),
                Observed::Object(_) | Observed::Directory(_) => None,
            };
            if let Some(object) = object {
                // A page before this one had an object of the name that the directory takes.
                let segment = self.tree.lock().parse(&name)?.segment;
                let beside = Name::from_segment_beside_directory(&segment)?;
                let object = Observed::Object(object);
                if let Some(inode) = self.observe((ino, &directory), &beside, &object, asked)? {
                    stream.push(Child {
                        name: beside,
                        ino: inode.ino,
                    });
                }
            }
            if let Some(inode) = self.observe((ino, &directory), &name, &observed, asked)? {
                let ino = inode.ino;
                stream.push(Child { name, ino });
            }
        }
        if continuation.is_some() {
            stream.progress = Progress::Page {
                asked,
                began,
                continuation,
            };
        } else {
            let mut tree = self.tree.lock();
            if tree.key_of(ino).as_ref() != Some(&directory) {
                return Err(FsError::Stale);
            }
            tree.finish_listing(ino, asked, self.now(), stream.unshowable);
            if !stream.is_uncalled {
                tree.note_listed(ino, asked, began);
            }
            self.settle_parted(&mut tree);
            // What was made here and is not in the bucket yet.
            for child in tree.children(ino) {
                if !stream.positions.contains_key(&child.name) {
                    stream.push(child);
                }
            }
            stream.positions = HashMap::new();
            stream.sort();
            stream.progress = Progress::End;
        }
        Ok(())
    }

    /// What the listing said of the object that it has shown under this name.
    fn object_called(&self, stream: &DirStream, name: &str) -> Option<ObservedObject> {
        let child = stream.entries.get(*stream.positions.get(name)?)?;
        let inode = self.tree.lock().inode(child.ino)?;
        let state = inode.state.lock();
        let remote = state
            .remote
            .as_ref()
            .filter(|_| state.attr.kind != FileKind::Directory)?;
        Some(ObservedObject {
            size: remote.size,
            version: remote.version.clone(),
            modified: remote.modified?,
            metadata: None,
        })
    }
}

impl DirStream {
    /// Whether the store has nothing more to say.
    pub(crate) fn is_at_end(&self) -> bool {
        matches!(self.progress, Progress::End)
    }

    /// Brings what was not shown yet into the order of the names, in which a later process finds them too.
    fn sort(&mut self) {
        let shown = self.shown.min(self.entries.len());
        self.entries[shown..].sort_by(|a, b| a.name.cmp(&b.name));
    }

    /// Lets the entry after `last` be at `position`. Names come in their order, but for few: where `last` is gone,
    /// the next one in order is what follows.
    fn go_on_after(&mut self, last: &str, position: usize) {
        let place = self.entries.iter().position(|child| &*child.name == last);
        let next = place.map_or_else(
            || {
                let follows = |child: &Child| &*child.name > last;
                let first = self.entries.iter().position(follows);
                first.unwrap_or(self.entries.len())
            },
            |place| place + 1,
        );
        let rest = self.entries.split_off(next);
        // Nobody reads what is before: a reader who begins anew gets another listing.
        match self.entries.first().or(rest.first()).cloned() {
            Some(any) => self.entries.resize(position, any),
            None => return,
        }
        self.entries.extend(rest);
    }

    /// Adds an entry; one of the same name (an object whose name a directory takes) gives way.
    fn push(&mut self, child: Child) {
        match self.positions.entry(Arc::clone(&child.name)) {
            Slot::Occupied(position) => self.entries[*position.get()] = child,
            Slot::Vacant(position) => {
                position.insert(self.entries.len());
                self.entries.push(child);
            }
        }
    }
}

/// What the key of an entry of `directory` adds to the directory's own.
fn segment_of<'a>(directory: &Key, key: &'a Key) -> Option<&'a str> {
    key.as_str().strip_prefix(directory.as_str())
}

/// What the page's keys add to the directory's, but for its own marker.
fn segments_of<'a>(directory: &Key, page: &'a ListPage) -> impl Iterator<Item = &'a str> {
    page.entries.iter().filter_map(|entry| match entry {
        ListEntry::Prefix(key) => segment_of(directory, key)?.strip_suffix('/'),
        ListEntry::Object { key, .. } => {
            segment_of(directory, key).filter(|segment| !segment.is_empty())
        }
    })
}

/// How many names of the page no directory can have.
fn unshowable(directory: &Key, page: &ListPage) -> u32 {
    let names = segments_of(directory, page).map(Name::from_segment);
    u32::try_from(names.filter(Result::is_err).count()).unwrap_or(u32::MAX)
}

/// The names that a page of a listing of `directory` shows, with what it says of them. Of some it is known that they
/// are no directories, though there are keys below them.
fn names_of(
    directory: &Key,
    page: ListPage,
    is_no_directory: impl Fn(&str) -> bool,
) -> Vec<(Arc<str>, Observed)> {
    let directory_called = |key: &Key| {
        let segment = segment_of(directory, key)?.strip_suffix('/')?.to_owned();
        let name = Name::from_segment(&segment).ok()?;
        (!is_no_directory(&name)).then_some((segment, name))
    };
    let directories: HashSet<String> = page
        .entries
        .iter()
        .filter_map(|entry| match entry {
            ListEntry::Prefix(key) => Some(directory_called(key)?.0),
            ListEntry::Object { .. } => None,
        })
        .collect();
    let shown = |entry| match entry {
        ListEntry::Prefix(key) => Some((directory_called(&key)?.1, Observed::Prefix)),
        ListEntry::Object {
            key,
            size,
            version,
            modified,
            metadata,
        } => {
            // The empty segment is the directory's own marker.
            let segment = segment_of(directory, &key).filter(|segment| !segment.is_empty())?;
            let name = if directories.contains(segment) {
                Name::from_segment_beside_directory(segment)
            } else {
                Name::from_segment(segment)
            };
            let object = ObservedObject {
                size,
                version,
                modified,
                metadata,
            };
            Some((name.ok()?, Observed::Object(object)))
        }
    };
    page.entries.into_iter().filter_map(shown).collect()
}
