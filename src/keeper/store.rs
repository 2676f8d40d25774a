//! The descriptors that are held for the next worker, by name. Its room is made once: nothing is allocated
//! when a descriptor comes or goes.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};

use super::descriptors::{self, FIRST_PASSED};
use super::message::NAME_MAX;

/// The kernel takes no environment variable above 128 KiB, and LISTEN_FDNAMES is one.
const NAMES_MAX: usize = 120 << 10;

/// A name of a descriptor; several may have the same.
#[derive(Clone, Copy)]
struct Name {
    bytes: [u8; NAME_MAX],
    length: u8,
}

impl Name {
    fn new(name: &str) -> Option<Self> {
        let mut bytes = [0; NAME_MAX];
        bytes
            .get_mut(..name.len())?
            .copy_from_slice(name.as_bytes());
        let length = u8::try_from(name.len()).ok()?;
        Some(Self { bytes, length })
    }

    fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..usize::from(self.length));
        bytes
            .and_then(|bytes| std::str::from_utf8(bytes).ok())
            .unwrap_or_default()
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

/// Why descriptors were not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error(
        "all {0} places of the store are taken: raise the limit of open files (LimitNOFILE=, ulimit -Hn)"
    )]
    Full(usize),
    #[error(
        "the names of all stored descriptors together are longer than {NAMES_MAX} bytes: use shorter ones"
    )]
    Names,
    #[error("the name is longer than {NAME_MAX} bytes")]
    LongName,
    #[error("no number for a descriptor: {0}")]
    Number(#[from] io::Error),
}

/// The descriptors held, oldest first: a worker finds them in the order in which they were stored.
///
/// Their numbers are at or above `lowest`, and there are never more than lie between 3 and that.
#[derive(Debug)]
pub(super) struct Store {
    held: Vec<(Name, OwnedFd)>,
    capacity: usize,
    /// Bytes of all names with a separator behind each.
    names: usize,
}

impl Store {
    /// An empty store for `capacity` descriptors.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            held: Vec::with_capacity(capacity),
            capacity,
            names: 0,
        }
    }

    /// The lowest number that is out of the way of a worker's.
    pub(super) fn lowest(&self) -> RawFd {
        let capacity = RawFd::try_from(self.capacity).unwrap_or(RawFd::MAX - FIRST_PASSED);
        FIRST_PASSED + capacity
    }

    /// Takes all of `fds` by one name, or none of them.
    pub(super) fn add(&mut self, name: &str, fds: Vec<OwnedFd>) -> Result<(), StoreError> {
        let names = self.names + fds.len() * (name.len() + 1);
        let name = Name::new(name).ok_or(StoreError::LongName)?;
        if self.held.len() + fds.len() > self.capacity {
            return Err(StoreError::Full(self.capacity));
        }
        if names > NAMES_MAX {
            return Err(StoreError::Names);
        }
        let (before, lowest) = (self.held.len(), self.lowest());
        for fd in fds {
            match descriptors::lift(fd.as_fd(), lowest) {
                Ok(fd) => self.held.push((name, fd)),
                Err(error) => {
                    self.held.truncate(before);
                    return Err(error.into());
                }
            }
        }
        self.names = names;
        Ok(())
    }

    /// Lets go of all descriptors of a name; how many there were.
    pub(super) fn remove(&mut self, name: &str) -> usize {
        let before = self.held.len();
        self.held.retain(|(held, _)| held.as_str() != name);
        let removed = before - self.held.len();
        self.names -= removed * (name.len() + 1);
        removed
    }

    /// What is held, in the order in which it came.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &OwnedFd)> {
        self.held.iter().map(|(name, fd)| (name.as_str(), fd))
    }

    pub(super) fn len(&self) -> usize {
        self.held.len()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use super::*;

    fn file() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    fn names(store: &Store) -> Vec<&str> {
        store.iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn descriptors_are_held_by_name_in_their_order_and_out_of_a_workers_way() {
        let mut store = Store::new(8);
        store.add("a", vec![file()]).unwrap();
        store.add("b", vec![file(), file()]).unwrap();
        store.add("a", vec![file()]).unwrap();
        assert_eq!(names(&store), ["a", "b", "b", "a"]);
        assert!(store.iter().all(|(_, fd)| fd.as_raw_fd() >= 11));
        assert_eq!(store.remove("a"), 2);
        assert_eq!(store.remove("a"), 0);
        assert_eq!(names(&store), ["b", "b"]);
        assert_eq!(store.names, 4);
    }

    #[test]
    fn a_full_store_takes_all_of_a_datagram_or_nothing() {
        let mut store = Store::new(2);
        store.add("a", vec![file()]).unwrap();
        let refused = store.add("b", vec![file(), file()]);
        assert!(matches!(refused, Err(StoreError::Full(2))), "{refused:?}");
        assert_eq!(names(&store), ["a"]);
        store.add("b", vec![file()]).unwrap();
    }

    #[test]
    fn names_are_held_only_as_long_as_a_successor_can_be_told_all_of_them() {
        let mut store = Store::new(600);
        let long = "n".repeat(NAME_MAX);
        for _ in 0..NAMES_MAX / 256 {
            store.add(&long, vec![file()]).unwrap();
        }
        assert!(matches!(
            store.add("n", vec![file()]),
            Err(StoreError::Names)
        ));
        store.remove(&long);
        store.add("n", vec![file()]).unwrap();
        let longer = "n".repeat(NAME_MAX + 1);
        assert!(matches!(
            store.add(&longer, vec![file()]),
            Err(StoreError::LongName)
        ));
    }
}
