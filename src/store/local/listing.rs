//! A directory tree as S3 lists a bucket: one order of all keys' bytes, in pages.
//!
//! Sorting each directory with a slash behind its directories' names gives that order. A page starts
//! over at the root and passes by what the pages before it showed.

use std::fs::File;
use std::ops::ControlFlow;

use nix::dir::Type;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{SFlag, fstatat};

use super::attributes;
use super::tree::{OUR_OWN, OURS, Tree, entries_in, names_in, open_under, version_of};
use crate::store::{Key, ListEntry, ListPage, ListRequest, StoreError};

/// The page that `request` asks for.
pub(super) fn page(tree: &Tree, request: &ListRequest) -> Result<ListPage, StoreError> {
    let prefix = request.prefix.as_str();
    // What is above the last slash of the prefix is a path; the rest selects among its names.
    let base = prefix.rfind('/').map_or("", |slash| &prefix[..=slash]);
    let segments: Vec<&str> = base.split_terminator('/').collect();
    let sane = |segment: &&str| !segment.is_empty() && !matches!(*segment, "." | "..");
    if !segments.iter().all(sane) || prefix.contains('\0') {
        return Ok(ListPage::default());
    }
    let Ok(directory) = tree.open_below(&segments) else {
        return Ok(ListPage::default());
    };
    if !directory.metadata().is_ok_and(|stat| stat.is_dir()) {
        return Ok(ListPage::default());
    }
    let mut walk = Walk {
        tree,
        request,
        entries: Vec::new(),
    };
    let most = request.max_keys.max(1);
    // One more than fits tells whether there is another page.
    if let ControlFlow::Break(Err(error)) = walk.visit(&directory, base, most + 1) {
        return Err(error);
    }
    let mut entries = walk.entries;
    let more = entries.len() > most;
    entries.truncate(most);
    let continuation = entries.last().filter(|_| more).map(|last| match last {
        ListEntry::Object { key, .. } | ListEntry::Prefix(key) => key.as_str().to_owned(),
    });
    Ok(ListPage {
        entries,
        continuation,
    })
}

/// What a name is, if it is a file or a directory. Not all file systems say so in their listings.
fn kind_of(directory: &File, name: &str) -> Option<Type> {
    let stat = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW).ok()?;
    match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFDIR => Some(Type::Directory),
        SFlag::S_IFREG => Some(Type::File),
        _ => None,
    }
}

struct Walk<'a> {
    tree: &'a Tree,
    request: &'a ListRequest,
    entries: Vec<ListEntry>,
}

/// Ends a walk: enough was found, or something broke.
type Step = ControlFlow<Result<(), StoreError>>;

impl Walk<'_> {
    fn visit(&mut self, directory: &File, at: &str, most: usize) -> Step {
        if !at.is_empty() && self.is_wanted(at) && self.tree.is_marker(directory).unwrap_or(false) {
            self.push(directory, at, most)?;
        }
        let entries = match entries_in(directory) {
            Ok(entries) => entries,
            Err(error) => {
                let key = Key::new(at);
                return ControlFlow::Break(Err(self.tree.error(&key, &error)));
            }
        };
        let mut keys: Vec<String> = entries
            .into_iter()
            .filter_map(|(name, kind)| {
                if at.strip_suffix('/') == Some(OURS) && OUR_OWN.contains(&name.as_str()) {
                    return None;
                }
                // Links, pipes and devices are no objects.
                match kind.or_else(|| kind_of(directory, &name)) {
                    Some(Type::Directory) => Some(format!("{at}{name}/")),
                    Some(Type::File) => Some(format!("{at}{name}")),
                    _ => None,
                }
            })
            .collect();
        keys.sort_unstable();
        for key in keys {
            let name = key[at.len()..].trim_end_matches('/').to_owned();
            if key.ends_with('/') {
                self.enter(directory, &name, &key, most)?;
            } else if self.is_wanted(&key) {
                // Gone in between: then it is not there.
                if let Ok(file) = open_under(directory, &name, OFlag::empty()) {
                    self.push(&file, &key, most)?;
                }
            }
        }
        ControlFlow::Continue(())
    }

    fn enter(&mut self, parent: &File, name: &str, key: &str, most: usize) -> Step {
        let prefix = self.request.prefix.as_str();
        let below = key.starts_with(prefix);
        if !below && !prefix.starts_with(key) {
            return ControlFlow::Continue(());
        }
        if self
            .after()
            .is_some_and(|last| last >= key && !last.starts_with(key))
        {
            return ControlFlow::Continue(());
        }
        let Ok(directory) = open_under(parent, name, OFlag::O_DIRECTORY) else {
            return ControlFlow::Continue(());
        };
        if self.request.delimiter && below && key.len() > prefix.len() {
            let shown = self.after().is_some_and(|last| last.starts_with(key));
            let only_ours = key.strip_suffix('/') == Some(OURS)
                && names_in(&directory)
                    .is_ok_and(|names| names.iter().all(|name| OUR_OWN.contains(&name.as_str())));
            if !shown && !only_ours {
                self.entries.push(ListEntry::Prefix(Key::new(key)));
                return self.enough(most);
            }
            return ControlFlow::Continue(());
        }
        self.visit(&directory, key, most)
    }

    fn push(&mut self, file: &File, key: &str, most: usize) -> Step {
        if let Ok(stat) = file.metadata() {
            self.entries.push(ListEntry::Object {
                key: Key::new(key),
                size: if stat.is_dir() { 0 } else { stat.len() },
                version: version_of(&stat),
                modified: stat.modified().unwrap_or(std::time::SystemTime::UNIX_EPOCH),
                // The file is open: to be asked for it later would open it once more.
                metadata: attributes::read(file).ok(),
            });
        }
        self.enough(most)
    }

    fn enough(&self, most: usize) -> Step {
        if self.entries.len() >= most {
            return ControlFlow::Break(Ok(()));
        }
        ControlFlow::Continue(())
    }

    /// Whether an object of this key belongs on this page.
    fn is_wanted(&self, key: &str) -> bool {
        key.starts_with(self.request.prefix.as_str()) && self.after().is_none_or(|last| key > last)
    }

    fn after(&self) -> Option<&str> {
        self.request.continuation.as_deref()
    }
}
