//! Another host's change has overtaken ours: whose stays, and where the other one goes.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use crate::config::options::Conflicts;
use crate::fs::error::FsError;
use crate::fs::filesystem::FileSystem;
use crate::fs::inode::{Frozen, Inode};
use crate::fs::name::NAME_MAX;
use crate::fs::staging::ContentSource;
use crate::store::{Key, Object};

impl FileSystem {
    /// Decides about an upload that found something else at its key than it was based on. `true`: it can be tried
    /// again under the same name. Else the inode has another name, or waits for somebody to decide.
    pub(super) async fn resolve_conflict(
        &self,
        inode: &Arc<Inode>,
        key: &Key,
        frozen: &Frozen,
    ) -> Result<bool, FsError> {
        if self.settings.write.conflicts == Conflicts::Fail {
            return Ok(false);
        }
        // The other host's object is of a size that nobody has counted.
        self.doubt_count();
        let found = self.bucket.head(key).await?;
        if frozen.content.is_some() {
            self.make_whole(inode).await?;
        }
        match (self.settings.write.conflicts, found) {
            // Nobody's bytes are in the way: it was deleted, and is made anew.
            (_, None) => self.base_on(inode, key, None)?,
            (Conflicts::Overwrite, found) => self.base_on(inode, key, found)?,
            (_, Some(_)) => {
                self.set_beside(inode)?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What an upload of the inode is to overwrite.
    fn base_on(&self, inode: &Inode, key: &Key, found: Option<Object>) -> Result<(), FsError> {
        let mut state = inode.state.lock();
        let elsewhere = state.remote.clone().filter(|remote| remote.key != *key);
        let base = (elsewhere, found.map(|object| object.version));
        Ok(self.record_base(inode.ino, &mut state, base, None)?)
    }

    /// Gives the loser a name beside the winner. Who has it open under the old name is told at its next use.
    fn set_beside(&self, inode: &Arc<Inode>) -> Result<(), FsError> {
        let mut tree = self.tree.lock();
        let (Some((parent, name)), Some(from)) = (tree.place_of(inode.ino), tree.key_of(inode.ino))
        else {
            return Ok(());
        };
        let taken = |name: &str| tree.child(parent, name).is_some();
        let beside = conflict_name(&name, host(), self.settings.clock.wall(), taken);
        let to = tree
            .child_key(parent, &beside, false)
            .ok_or(FsError::NoEntry)?;
        tracing::warn!(
            bucket = %self.bucket.location(),
            "{from:?} was changed by another host while it was changed here: the other's stays, ours is {to:?}",
        );
        {
            let mut state = inode.state.lock();
            // The winner's object is not ours to delete.
            let elsewhere = state.remote.clone().filter(|remote| remote.key != from);
            self.record_base(inode.ino, &mut state, (elsewhere, None), None)?;
            state.lineage += 1;
        }
        let beside: Arc<str> = Arc::from(beside);
        self.move_file(&mut tree, inode, (parent, &beside), None, (&from, &to))?;
        // The old name is the winner's: the next lookup asks for it.
        tree.forget_removal(parent, &name);
        drop(tree);
        self.complete(inode.ino);
        Ok(())
    }

    /// A key beside `key`, at which another host's object is, for a copy of ours; and says so in the log.
    pub(super) fn key_beside(&self, key: &Key, taken: &HashSet<Key>) -> Key {
        let (directory, name) = key.as_str().rsplit_once('/').unwrap_or(("", key.as_str()));
        let in_directory = |name: &str| Key::new(format!("{directory}/{name}"));
        let is_taken = |name: &str| taken.contains(&in_directory(name));
        let time = self.settings.clock.wall();
        let beside = in_directory(&conflict_name(name, host(), time, is_taken));
        tracing::warn!(
            bucket = %self.bucket.location(),
            "{key:?} was made by another host while a directory was on its way there: ours is {beside:?}",
        );
        beside
    }

    /// Brings what the file still takes from its object into its staging file: that version may be gone, but what
    /// was read of it is in the cache.
    async fn make_whole(&self, inode: &Inode) -> Result<(), FsError> {
        let (ino, base) = (inode.ino, inode.state.lock().remote.clone());
        let Some(base) = base else { return Ok(()) };
        let clean: Vec<_> = {
            let mut state = inode.state.lock();
            let size = state.attr.size.min(base.size);
            let sources = self.staged(ino, &mut state)?.sources(0..size);
            sources
                .into_iter()
                .filter(|(_, source)| *source == ContentSource::Base)
                .map(|(range, _)| range)
                .collect()
        };
        let object = self.object_source(&base);
        for range in clean {
            let mut at = range.start;
            for bytes in self.settings.cache.read(&object, range).await? {
                let mut state = inode.state.lock();
                let (size, time) = (state.attr.size, state.attr.mtime);
                // Something may have been written or cut off meanwhile: that stays.
                let staged = self.staged(ino, &mut state)?;
                let end = at + bytes.len() as u64;
                for (piece, source) in staged.sources(at..end) {
                    if source != ContentSource::Base {
                        continue;
                    }
                    let within = |offset: u64| usize::try_from(offset - at).expect("a block");
                    let bytes = &bytes[within(piece.start)..within(piece.end)];
                    self.stage(ino, &mut state, piece.start, bytes, (size, time))?;
                }
                at = end;
            }
        }
        Ok(())
    }
}

/// `name.conflict-<host>-<time>`, cut so that it can be a name, with a number if that one is taken.
fn conflict_name(name: &str, host: &str, time: SystemTime, taken: impl Fn(&str) -> bool) -> String {
    let time = humantime::format_rfc3339_seconds(time)
        .to_string()
        .replace(['-', ':'], "");
    let suffix = format!(".conflict-{host}-{time}");
    (1_u32..)
        .map(|number| {
            let suffix = match number {
                1 => suffix.clone(),
                number => format!("{suffix}-{number}"),
            };
            let mut end = name.len().min(NAME_MAX.saturating_sub(suffix.len()));
            while !name.is_char_boundary(end) {
                end -= 1;
            }
            format!("{}{suffix}", &name[..end])
        })
        .find(|name| !taken(name))
        .expect("a directory has fewer entries than there are numbers")
}

/// This host's name, as far as it can be part of a file's.
fn host() -> &'static str {
    /// Longer host names are cut: the file's own name matters more.
    const HOST_MAX: usize = 64;
    static HOST: OnceLock<String> = OnceLock::new();
    HOST.get_or_init(|| {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let name: String = name
            .trim()
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || *c == '-' || *c == '.')
            .take(HOST_MAX)
            .collect();
        if name.is_empty() {
            "host".to_owned()
        } else {
            name
        }
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_loser_is_named_after_the_file_the_host_and_the_time() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600);
        let name = |name: &str| conflict_name(name, "h1", time, |_| false);
        assert_eq!(name("a.txt"), "a.txt.conflict-h1-20260101T000000Z");
        let second = conflict_name("a", "h1", time, |name| !name.ends_with("-2"));
        assert_eq!(second, "a.conflict-h1-20260101T000000Z-2");
        let long = name(&"ä".repeat(127));
        assert!(long.len() <= NAME_MAX && long.ends_with("ä.conflict-h1-20260101T000000Z"));
    }
}
