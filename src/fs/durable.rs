//! The file system's side of the journal: what is written down when.
//!
//! - `directory`: what is written down of directories;
//! - `links`: and of hard links;
//! - `moves`: of files that get another name;
//! - `metadata`: and of metadata that programs change;
//! - `restore`: how what was written down comes back;
//! - `reopen`: and what the kernel knew of it;
//! - `rewrite`: how it is kept short.
//!
//! Order is the contract: bytes into the staging file, the record into the journal, then the change of the
//! inode. A change that cannot be written down is not made.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::error::FsError;
use super::filesystem::FileSystem;
use super::inode::{Attempt, Inode, InodeState, Linked, Remote, Unsent};
use super::journal::record::{ChangedDirectory, ChangedInode, Record, SentObject};
use super::kept::KeptInode;
use super::tree::{ROOT, Tree};
use crate::store::{Key, ObjectVersion};

mod directory;
mod links;
mod metadata;
mod moves;
mod reopen;
mod restore;
mod rewrite;
mod room;

pub(crate) use directory::{Copied, Migrated};

/// Objects that lose their name, as the journal has them and as the tree keeps them.
#[derive(Debug, Default)]
struct Nameless {
    doomed: Vec<SentObject>,
    orphans: Vec<(Key, Arc<Inode>)>,
    in_doubt: Option<Attempt>,
}

impl FileSystem {
    /// Writes down where an inode and the directories above it are: those first. What is going to be changed
    /// needs it.
    pub(crate) fn place_in_journal(&self, tree: &Tree, ino: u64) -> io::Result<()> {
        let mut places = Vec::new();
        let mut at = ino;
        while at != ROOT {
            let Some((parent, name)) = tree.place_of(at) else {
                return Ok(());
            };
            places.push((at, parent, name));
            at = parent;
        }
        for (ino, parent, name) in places.into_iter().rev() {
            let is_directory = tree.is_directory(ino) == Some(true);
            let name = (&name, &*tree.stored_name(&name));
            self.journal.place(ino, parent, name, is_directory)?;
        }
        Ok(())
    }

    /// Takes an inode's name away, here and in the journal by one record. What it leaves behind in the bucket, at
    /// its key and wherever else, is doomed.
    pub(crate) fn unlink_inode(
        &self,
        tree: &mut Tree,
        inode: &Arc<Inode>,
        place: (u64, &Arc<str>),
        key: &Key,
    ) -> io::Result<()> {
        let mut left = self.left_by(tree, inode, key);
        self.keep_open(inode.ino, &inode.state.lock());
        tree.keep_unnamed(inode.ino);
        if inode.state.lock().journaled || !left.doomed.is_empty() {
            self.journal.complete(&Record::Unlinked {
                ino: inode.ino,
                doomed: std::mem::take(&mut left.doomed),
                in_doubt: left.in_doubt.clone(),
            })?;
        }
        self.unname(tree, inode, place, left);
        Ok(())
    }

    /// What an inode leaves behind in the bucket when it loses its name.
    fn left_by(&self, tree: &mut Tree, inode: &Arc<Inode>, key: &Key) -> Nameless {
        let mut left = Nameless::default();
        let overwrites = {
            let state = inode.state.lock();
            left.in_doubt = state.attempt.clone();
            let at = state.remote.as_ref().map(|remote| remote.key.clone());
            left.doomed.extend(state.remote.as_ref().map(sent));
            if at.is_some() || state.sending {
                let at = at.unwrap_or_else(|| key.clone());
                left.orphans.push((at, Arc::clone(inode)));
            }
            state.overwrites.clone()
        };
        if let Some(version) = overwrites {
            self.leave_overwritten(tree, key, version, &mut left);
        }
        left
    }

    /// Takes an inode's name away here; the journal has been told.
    fn unname(
        &self,
        tree: &mut Tree,
        inode: &Arc<Inode>,
        (parent, name): (u64, &Arc<str>),
        left: Nameless,
    ) {
        self.part(tree, inode.ino);
        self.count_no_more(inode);
        tree.remove(parent, name, self.now());
        tree.note_place(inode, self.now());
        {
            let mut state = inode.state.lock();
            state.overwrites = None;
            self.settle(inode.ino, &mut state);
        }
        let Nameless {
            mut orphans,
            in_doubt,
            ..
        } = left;
        orphans.extend(self.doubted(tree, in_doubt));
        self.add_orphans(tree, orphans);
    }

    /// What an inode was to overwrite at `key` has no name now that it goes elsewhere.
    fn leave_overwritten(
        &self,
        tree: &mut Tree,
        key: &Key,
        version: ObjectVersion,
        nameless: &mut Nameless,
    ) {
        let object = SentObject {
            key: key.clone(),
            size: 0,
            version,
        };
        nameless.orphans.extend(self.orphan_of(tree, &object));
        nameless.doomed.push(object);
    }

    /// What stands for the object that an upload may have made of something that has no name any more.
    fn doubted(&self, tree: &mut Tree, attempt: Option<Attempt>) -> Option<(Key, Arc<Inode>)> {
        let attempt = attempt?;
        let key = attempt.key.clone();
        let remote = self.written(key.clone(), 0, ObjectVersion::any());
        let inode = tree.nameless(remote);
        let mut state = inode.state.lock();
        state.remote = None;
        state.attempt = Some(attempt);
        drop(state);
        Some((key, inode))
    }

    /// What stands for an object without a name, if nobody who has it open does.
    fn orphan_of(&self, tree: &mut Tree, object: &SentObject) -> Option<(Key, Arc<Inode>)> {
        let has_keeper = tree.orphans_at(&object.key).iter().any(|inode| {
            let state = inode.state.lock();
            state.opens > 0 && state.version().as_ref() == Some(&object.version)
        });
        (!has_keeper).then(|| {
            let inode = tree.nameless(self.remote_of(object.clone()));
            (object.key.clone(), inode)
        })
    }

    /// Keeps objects without names until nobody has them open. Those that nobody has are deleted a little later: a new
    /// file of the name may overwrite them.
    pub(crate) fn add_orphans(&self, tree: &mut Tree, orphans: Vec<(Key, Arc<Inode>)>) {
        let now = self.now();
        for (key, inode) in orphans {
            let is_open = inode.state.lock().opens > 0;
            let ino = inode.ino;
            tree.add_orphan(key, inode);
            if !is_open {
                self.uploader.tell(|queue| queue.closed(ino, now));
            }
        }
    }

    /// Writes a change of a file down; before its first, all of the inode. An inode without a name has nothing
    /// that must survive.
    pub(crate) fn record(
        &self,
        ino: u64,
        state: &mut InodeState,
        record: &Record,
    ) -> io::Result<()> {
        if state.linked == Linked::No {
            return Ok(());
        }
        self.note_changed(ino, state)?;
        self.journal.complete(record)
    }

    /// Appends all that the journal has to know of an inode, if it does not have it as changed.
    fn note_changed(&self, ino: u64, state: &mut InodeState) -> io::Result<()> {
        if !state.journaled {
            self.append_snapshot(ino, state, None)?;
            state.journaled = true;
        }
        Ok(())
    }

    /// Appends all that the journal has to know of an inode.
    fn append_snapshot(
        &self,
        ino: u64,
        state: &InodeState,
        directory: Option<ChangedDirectory>,
    ) -> io::Result<()> {
        snapshot(ino, state, directory)
            .iter()
            .try_for_each(|record| self.journal.append(record))
    }

    /// Appends what is true of the bucket already, and returns whether that could be written down. If not, the next
    /// process finds it out again.
    pub(crate) fn append_or_warn(&self, record: &Record) -> bool {
        let appended = self.journal.append(record);
        if let Err(error) = &appended {
            tracing::warn!(bucket = %self.bucket.location(), %error, "journal");
        }
        appended.is_ok()
    }

    /// Writes something new down: it exists, here and for the next process, when its place is in the journal.
    pub(crate) fn record_new(
        &self,
        tree: &Tree,
        inode: &Inode,
        content: &[u8],
    ) -> Result<(), FsError> {
        self.record_new_as(tree, inode, content, None)
    }

    /// Likewise, of a hard link to `target`.
    fn record_new_as(
        &self,
        tree: &Tree,
        inode: &Inode,
        content: &[u8],
        target: Option<u64>,
    ) -> Result<(), FsError> {
        let ino = inode.ino;
        {
            let mut state = inode.state.lock();
            if !content.is_empty() {
                let staged = self.staged(ino, &mut state)?;
                let extents = staged.stage(0, content)?;
                staged.record(&extents);
            }
            state.changed(Unsent {
                content: true,
                attributes: true,
                place: false,
            });
            self.append_snapshot(ino, &state, tree.changed_directory(ino))?;
            state.journaled = true;
        }
        if let Some(target) = target {
            self.journal.append(&Record::Linked { ino, target })?;
        }
        let (parent, name) = tree.place_of(ino).ok_or(FsError::NoEntry)?;
        self.place_in_journal(tree, parent)?;
        self.journal.complete(&Record::Placed {
            ino,
            parent,
            name: tree.stored_name(&name).into_owned(),
            is_directory: tree.is_directory(ino) == Some(true),
        })?;
        self.journal.note_place(ino, parent, &name);
        Ok(())
    }

    /// The inode's object is another, by another request than an upload, and it is to overwrite this version; the
    /// object before is doomed if there is one. What cannot be written down does not hold.
    pub(crate) fn record_base(
        &self,
        ino: u64,
        state: &mut InodeState,
        (remote, overwrites): (Option<Remote>, Option<ObjectVersion>),
        doomed: Option<SentObject>,
    ) -> io::Result<()> {
        if state.journaled {
            let record = Record::Based {
                ino,
                remote: remote.as_ref().map(sent),
                overwrites: overwrites.clone(),
                doomed,
            };
            self.record(ino, state, &record)?;
        }
        state.remote = remote;
        state.overwrites = overwrites;
        if !state.journaled {
            self.keep_open(ino, state);
        }
        Ok(())
    }

    /// Keeps the object at `key` for an open inode that lost its name. Its last close deletes it, or, if we do
    /// not live to see that, the next process.
    pub(crate) fn doom(&self, tree: &mut Tree, key: Key, inode: &Arc<Inode>) {
        let object = inode.state.lock().remote.as_ref().map(sent);
        if let Some(object) = object {
            self.append_or_warn(&Record::Doomed(object));
        }
        tree.add_orphan(key, Arc::clone(inode));
    }

    /// The object of this version that was kept at `key` for the inode is gone, or is another's.
    pub(crate) fn forget_doomed(&self, key: &Key, inode: &Inode, version: Option<ObjectVersion>) {
        let now = self.now();
        self.tree.lock().remove_orphan(key, inode.ino, now);
        self.uploader_is_done_with(inode.ino, now);
        if let Some(version) = version {
            let key = key.clone();
            self.append_or_warn(&Record::Deleted { key, version });
        }
    }

    /// Nothing of the inode is to be sent any more.
    pub(crate) fn settle(&self, ino: u64, state: &mut InodeState) {
        if !state.journaled {
            return;
        }
        // What is as its object is has nothing staged: the next change begins a file of its own. Who has an inode open
        // that lost its name goes on with the one there is.
        let goes_on = state.linked == Linked::No && state.opens > 0;
        let is_clean = state.linked != Linked::No && !state.unsent.any();
        self.keep_open_as(ino, state, |kept| {
            if is_clean {
                kept.staged = None;
            }
        });
        // As long as the journal has it as changed, its staging file is of use.
        if !self.tell_settled(ino, state) {
            return;
        }
        // A crash of the host may still undo what takes the inode away: then it is to be there, and whole.
        if state.staged.as_ref().is_some_and(|staged| staged.is_kept()) && !goes_on {
            self.staging.retire(ino);
        }
        if is_clean {
            state.staged = None;
        }
        self.forget_changed(ino, state);
    }

    /// Tells the journal that nothing of the inode is to be sent any more; of one that has several names, what it is:
    /// the journal keeps it. Returns whether that could be written down.
    fn tell_settled(&self, ino: u64, state: &mut InodeState) -> bool {
        if !self.stays_journaled(state) {
            return self.append_or_warn(&Record::Settled { ino });
        }
        state.attempt = None;
        let staged = state.staged.take();
        let records = snapshot(ino, state, None);
        state.staged = staged;
        records.iter().all(|record| self.append_or_warn(record))
    }

    /// Whether the journal has the inode though nothing of it is to be sent.
    pub(crate) fn stays_journaled(&self, state: &InodeState) -> bool {
        state.is_hard_linked && state.linked != Linked::No && self.keeps_links()
    }

    /// The journal does not have the inode as changed any more.
    pub(crate) fn forget_changed(&self, ino: u64, state: &mut InodeState) {
        state.journaled = self.stays_journaled(state);
        state.attempt = None;
        let now = self.now();
        let is_retired = self.uploader_is_done_with(ino, now);
        if !is_retired && (state.linked != Linked::No || state.opens == 0) {
            self.staging.remove(ino);
        }
    }

    /// Nothing of the inode is to be sent, but the uploader is still to see to its staging file if that was retired.
    /// Returns whether it was.
    fn uploader_is_done_with(&self, ino: u64, now: Duration) -> bool {
        let is_retired = self.staging.is_retired(ino);
        self.uploader.tell(|queue| {
            queue.settled(ino, now);
            if is_retired {
                queue.urgent(ino, now);
            }
        });
        is_retired
    }

    /// Keeps what an open inode, or the root, is for a process that takes over: the journal may not have it.
    pub(crate) fn keep_open(&self, ino: u64, state: &InodeState) {
        self.keep_open_as(ino, state, |_| {});
    }

    /// Likewise, of what it is about to be.
    pub(crate) fn keep_open_as(
        &self,
        ino: u64,
        state: &InodeState,
        change: impl FnOnce(&mut KeptInode),
    ) {
        if state.opens > 0 || ino == ROOT {
            let mut kept = KeptInode::of(state);
            change(&mut kept);
            self.kept.inode(ino, &kept);
        }
    }

    /// Keeps what was changed of an open inode without a name, of which the journal knows nothing.
    pub(crate) fn keep_nameless(&self, ino: u64, state: &InodeState) {
        if state.linked == Linked::No {
            self.keep_open(ino, state);
        }
    }

    /// Removes the staging files of inodes that are gone, once the journal on the disk says so too.
    pub(crate) async fn remove_retired(&self) {
        let retired = self.staging.retired();
        if retired.is_empty() {
            return;
        }
        if let Err(error) = self.journal.sync().await {
            tracing::warn!(bucket = %self.bucket.location(), %error, "staging files stay until the next start");
            return;
        }
        self.staging.remove_retired(&retired);
    }

    pub(crate) fn remote_of(&self, object: SentObject) -> Remote {
        self.written(object.key, object.size, object.version)
    }
}

/// An object as the journal has it.
pub(crate) fn sent(remote: &Remote) -> SentObject {
    SentObject {
        key: remote.key.clone(),
        size: remote.size,
        version: remote.version.clone(),
    }
}

/// All that the journal has to know of an inode: what an upload under way has frozen first, so that its end
/// means the same.
fn snapshot(ino: u64, state: &InodeState, directory: Option<ChangedDirectory>) -> Vec<Record> {
    let changed = ChangedInode {
        ino,
        attr: state.attr,
        metadata: state.metadata.clone(),
        remote: state.remote.as_ref().map(sent),
        overwrites: state.overwrites.clone(),
        unsent: state.unsent,
        base_len: state.staged.as_ref().map(|staged| staged.map().base_len()),
        attempt: state.attempt.clone(),
        directory,
    };
    let mut records = vec![Record::Changed(Box::new(changed))];
    let (size, time) = (state.attr.size, state.attr.mtime);
    let written = |frozen: bool| {
        let extents = state.staged.iter().flat_map(|s| s.map().extents());
        let extents = extents.filter(move |extent| extent.frozen == frozen);
        extents.map(move |extent| Record::Written {
            ino,
            extents: vec![*extent],
            size,
            time,
        })
    };
    records.extend(written(true));
    if let (true, Some(attempt)) = (state.sending, &state.attempt) {
        let attempt = attempt.clone();
        records.push(Record::Sending { ino, attempt });
        let cut_to = state.staged.as_ref().and_then(|s| s.map().lowest_size());
        for size in cut_to.into_iter().chain(cut_to.map(|_| size)) {
            records.push(Record::Resized { ino, size, time });
        }
    }
    records.extend(written(false));
    // The times that the records before have changed.
    if state.staged.is_some() {
        let attr = state.attr;
        records.push(Record::Attributes { ino, attr });
    }
    records
}
