//! The order in which locks are taken: the tree's, then one inode's, then the journal's, then the
//! ledger's of what is used.
//!
//! Who takes one out of order may wait for somebody who waits for him, once in a hundred thousand times. A build with
//! debug assertions panics the first time that the order is broken, whether anybody waits or not.

use std::ops::{Deref, DerefMut};

use parking_lot::{Mutex, MutexGuard};

/// The tree's place in the order.
pub(crate) const TREE: u8 = 1;
/// An inode's: never two at a time.
pub(crate) const INODE: u8 = 2;
/// The journal's.
pub(crate) const JOURNAL: u8 = 3;
/// The ledger's of what is used.
pub(crate) const USAGE: u8 = 4;

/// A mutex with a place in the order.
#[derive(Debug)]
pub(crate) struct Ordered<T, const RANK: u8>(Mutex<T>);

/// See [`Ordered::lock`].
#[derive(Debug)]
pub(crate) struct OrderedGuard<'a, T, const RANK: u8> {
    guard: MutexGuard<'a, T>,
    #[cfg(debug_assertions)]
    _held: held::Held<RANK>,
}

impl<T, const RANK: u8> Ordered<T, RANK> {
    /// An unlocked mutex.
    pub(crate) fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Nobody else has it: nothing is locked.
    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.0.get_mut()
    }

    /// What it has guarded.
    #[cfg(test)]
    pub(crate) fn into_inner(self) -> T {
        self.0.into_inner()
    }

    /// Waits until nobody else has it. With debug assertions, panics if this thread has one of the same place or a
    /// later one.
    pub(crate) fn lock(&self) -> OrderedGuard<'_, T, RANK> {
        #[cfg(debug_assertions)]
        let held = held::Held::new();
        OrderedGuard {
            guard: self.0.lock(),
            #[cfg(debug_assertions)]
            _held: held,
        }
    }
}

impl<T, const RANK: u8> Deref for OrderedGuard<'_, T, RANK> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T, const RANK: u8> DerefMut for OrderedGuard<'_, T, RANK> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

#[cfg(debug_assertions)]
mod held {
    use std::cell::Cell;

    thread_local! {
        /// One bit for each place in the order that this thread holds.
        static HELD: Cell<u8> = const { Cell::new(0) };
    }

    #[derive(Debug)]
    pub(super) struct Held<const RANK: u8>(());

    impl<const RANK: u8> Held<RANK> {
        pub(super) fn new() -> Self {
            let held = HELD.get();
            assert!(
                held >> RANK == 0,
                "a lock of place {RANK} is taken while one of the same place or a later one is held: {held:#b}"
            );
            HELD.set(held | 1 << RANK);
            Self(())
        }
    }

    impl<const RANK: u8> Drop for Held<RANK> {
        fn drop(&mut self) {
            HELD.set(HELD.get() & !(1 << RANK));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_order_all_can_be_held_at_once_and_again() {
        let (tree, inode) = (Ordered::<_, TREE>::new(1), Ordered::<_, INODE>::new(2));
        for _ in 0..2 {
            let held = tree.lock();
            assert_eq!(*held + *inode.lock(), 3);
        }
    }

    #[test]
    #[should_panic(expected = "a lock of place 1")]
    fn who_takes_the_tree_while_holding_an_inode_is_told() {
        let (tree, inode) = (Ordered::<_, TREE>::new(()), Ordered::<_, INODE>::new(()));
        let _inode = inode.lock();
        let _tree = tree.lock();
    }

    #[test]
    #[should_panic(expected = "a lock of place 2")]
    fn who_takes_two_inodes_is_told() {
        let inodes = [Ordered::<_, INODE>::new(()), Ordered::<_, INODE>::new(())];
        let _one = inodes[0].lock();
        let _other = inodes[1].lock();
    }
}
