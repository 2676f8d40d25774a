//! Where dirty bytes wait for their upload: one file of the host per dirty inode, named by its number.
//!
//! Which bytes are where is in [`ContentMap`] and, for the next process, in the journal. A file that the
//! journal does not know of is nobody's: it goes at the next start.
//!
//! - `content`: what a dirty file is;
//! - `file`: the file itself, whose room goes back to the disk without anybody waiting for it.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

pub(crate) use self::content::{
    ContentMap, ContentSource, FrozenContent, FrozenMap, StagedContent,
};
use self::file::{Reaper, StagingFile, is_large};
use super::budget::StagingBudget;
use super::extents::Chunk;

mod content;
mod file;

/// The directory that staging files are made in.
#[derive(Debug)]
pub(crate) struct Staging {
    directory: PathBuf,
    budget: Arc<StagingBudget>,
    /// Inodes whose files go when the journal on the disk speaks of them no more.
    retired: Mutex<Vec<u64>>,
    reaper: Arc<Reaper>,
}

impl Staging {
    /// Makes the directory if it is not there.
    pub(crate) fn open(directory: PathBuf, budget: Arc<StagingBudget>) -> io::Result<Self> {
        std::fs::create_dir_all(&directory).map_err(named(&directory))?;
        let reaper = Reaper::start().map_err(named(&directory))?;
        Ok(Self {
            directory,
            budget,
            retired: Mutex::default(),
            reaper: Arc::new(reaper),
        })
    }

    /// Whether `bytes` more may be staged now.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        self.budget.has_room(bytes, &self.directory)
    }

    /// A writer has waited for room.
    pub(crate) fn note_short(&self) {
        self.budget.note_short(&self.directory);
    }

    /// It has found room.
    pub(crate) fn note_room(&self) {
        self.budget.note_room();
    }

    /// Waits until somebody gives room back.
    pub(crate) async fn released(&self) {
        self.budget.released().await;
    }

    /// A new staging file for content whose first `base_len` bytes are those of an object.
    pub(crate) fn create(&self, ino: u64, base_len: u64) -> io::Result<StagedContent> {
        let path = self.path(ino);
        // Whoever removes what was retired must not find this one.
        self.retired.lock().retain(|retired| *retired != ino);
        // A new file, not the old one emptied: somebody may still read that.
        self.remove(ino);
        let file = OpenOptions::new()
            .create_new(true)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(named(&path))?;
        let file = StagingFile::new(file, &self.reaper);
        let account = self.budget.account();
        Ok(StagedContent::new(file, ContentMap::new(base_len), account))
    }

    /// The staging file that an earlier process left, with what the journal says of it. What is in it then is not
    /// written over: that process may have told somebody that the disk has it.
    pub(crate) fn reopen(&self, ino: u64, map: ContentMap) -> io::Result<StagedContent> {
        let path = self.path(ino);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(named(&path))?;
        let file = StagingFile::new(file, &self.reaper);
        StagedContent::reopen(file, map, self.budget.account()).map_err(named(&path))
    }

    /// What tells whether chunks of the staging file that an earlier process left are what was written.
    pub(crate) fn verifier(&self, ino: u64) -> impl FnMut(&Chunk) -> bool {
        let file = File::open(self.path(ino)).ok();
        let mut found: HashMap<(u64, u64), Option<u32>> = HashMap::new();
        move |chunk| {
            let read = || checksum_of(file.as_ref()?, chunk).ok();
            let found = found.entry((chunk.place, chunk.len)).or_insert_with(read);
            *found == Some(chunk.checksum)
        }
    }

    /// The inode has nothing staged any more, but the disk has what it had, and its journal says so: the file stays
    /// until [`Staging::remove`] after a sync of the journal.
    pub(crate) fn retire(&self, ino: u64) {
        self.retired.lock().push(ino);
    }

    /// Those that were retired so far.
    pub(crate) fn retired(&self) -> Vec<u64> {
        self.retired.lock().clone()
    }

    /// The journal has been synced since these were retired. One that has a new staging file by now keeps it.
    pub(crate) fn remove_retired(&self, inos: &[u64]) {
        let mut retired = self.retired.lock();
        retired.retain(|ino| {
            let is_synced = inos.contains(ino);
            if is_synced {
                self.remove(*ino);
            }
            !is_synced
        });
    }

    /// Whether the inode is retired.
    pub(crate) fn is_retired(&self, ino: u64) -> bool {
        self.retired.lock().contains(&ino)
    }

    /// The inode has nothing staged any more. Who still reads the file keeps it.
    pub(crate) fn remove(&self, ino: u64) {
        let path = self.path(ino);
        // Open, it outlives its name: whoever removes it holds locks, and does not wait for its room.
        let file = File::open(&path).ok().filter(is_large);
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "a staging file stays until the next start");
        }
        if let Some(file) = file {
            self.reaper.close(file);
        }
    }

    /// Removes the files of all inodes but these.
    pub(crate) fn sweep(&self, keep: &HashSet<u64>) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.directory).map_err(named(&self.directory))? {
            let entry = entry?;
            let ino = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            if ino.is_none_or(|ino| !keep.contains(&ino)) {
                std::fs::remove_file(entry.path()).map_err(named(&entry.path()))?;
            }
        }
        Ok(())
    }

    fn path(&self, ino: u64) -> PathBuf {
        self.directory.join(ino.to_string())
    }
}

fn named(path: &Path) -> impl Fn(io::Error) -> io::Error + '_ {
    |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn checksum_of(file: &File, chunk: &Chunk) -> io::Result<u32> {
    const STEP: u64 = 1 << 20;
    let mut buffer = vec![0; in_memory(chunk.len.min(STEP))];
    let (mut checksum, mut at) = (0, chunk.place);
    let end = chunk.place + chunk.len;
    while at < end {
        let step = &mut buffer[..in_memory((end - at).min(STEP))];
        file.read_exact_at(step, at)?;
        checksum = crc32c::crc32c_append(checksum, step);
        at += step.len() as u64;
    }
    Ok(checksum)
}

fn in_memory(len: u64) -> usize {
    usize::try_from(len).expect("usize has 64 bits")
}
