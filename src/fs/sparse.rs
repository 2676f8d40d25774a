//! A sparse array: what has a number, where numbers are given one after the other.
//!
//! Neighbours share an allocation that is as long as there are neighbours, so that an element takes hardly more room
//! than itself. A hash table of a million elements is half empty.

use rustc_hash::FxHashMap;

/// Numbers of a page: as many as its bitmap has bits.
const PAGE: u64 = u32::BITS as u64;

/// Elements by number.
#[derive(Debug)]
pub(crate) struct SparseArray<T> {
    pages: FxHashMap<u64, Page<T>>,
}

#[derive(Debug)]
struct Page<T> {
    /// A bit for each number that there is.
    present: u32,
    /// In the order of their numbers.
    elements: Vec<T>,
}

impl<T> Default for SparseArray<T> {
    fn default() -> Self {
        Self {
            pages: FxHashMap::default(),
        }
    }
}

impl<T> Default for Page<T> {
    fn default() -> Self {
        Self {
            present: 0,
            elements: Vec::new(),
        }
    }
}

impl<T> Page<T> {
    /// Where the element of this bit is, or would be.
    fn position(&self, bit: u32) -> Result<usize, usize> {
        let before = (self.present & (bit - 1)).count_ones() as usize;
        if self.present & bit == 0 {
            Err(before)
        } else {
            Ok(before)
        }
    }
}

/// A number's page, and its bit there.
fn place(number: u64) -> (u64, u32) {
    (number / PAGE, 1 << (number % PAGE))
}

impl<T> SparseArray<T> {
    /// So many elements more are about to come.
    pub(crate) fn reserve(&mut self, elements: usize) {
        self.pages.reserve(elements.div_ceil(u32::BITS as usize));
    }

    pub(crate) fn get(&self, number: u64) -> Option<&T> {
        let (page, bit) = place(number);
        let page = self.pages.get(&page)?;
        page.elements.get(page.position(bit).ok()?)
    }

    pub(crate) fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        let (page, bit) = place(number);
        let page = self.pages.get_mut(&page)?;
        let position = page.position(bit).ok()?;
        page.elements.get_mut(position)
    }

    pub(crate) fn contains(&self, number: u64) -> bool {
        self.get(number).is_some()
    }

    /// In place of what has the number.
    pub(crate) fn insert(&mut self, number: u64, element: T) {
        let (page, bit) = place(number);
        let page = self.pages.entry(page).or_default();
        match page.position(bit) {
            Ok(position) => page.elements[position] = element,
            Err(position) => {
                page.elements.reserve_exact(1);
                page.elements.insert(position, element);
                page.present |= bit;
            }
        }
    }

    pub(crate) fn remove(&mut self, number: u64) -> Option<T> {
        let (at, bit) = place(number);
        let page = self.pages.get_mut(&at)?;
        let removed = page.elements.remove(page.position(bit).ok()?);
        page.present &= !bit;
        page.elements.shrink_to_fit();
        if page.present == 0 {
            self.pages.remove(&at);
        }
        Some(removed)
    }

    /// All elements with their numbers, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.pages.iter().flat_map(|(at, page)| {
            let numbers = (0..PAGE).filter(|bit| page.present >> bit & 1 == 1);
            let numbers = numbers.map(move |bit| at * PAGE + bit);
            numbers.zip(&page.elements)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_holds_what_a_map_would(
            steps in prop::collection::vec((any::<bool>(), prop_oneof![0..100_u64, any::<u64>()]), 0..300)
        ) {
            let (mut array, mut map) = (SparseArray::default(), BTreeMap::new());
            for (step, (is_there, number)) in steps.into_iter().enumerate() {
                if is_there {
                    array.insert(number, step);
                    map.insert(number, step);
                } else {
                    prop_assert_eq!(array.remove(number), map.remove(&number));
                }
                prop_assert_eq!(array.get(number), map.get(&number));
                prop_assert_eq!(array.get_mut(number), map.get_mut(&number));
                prop_assert_eq!(array.contains(number), is_there);
            }
            let found: BTreeMap<u64, usize> = array.iter().map(|(n, step)| (n, *step)).collect();
            prop_assert_eq!(found, map);
            prop_assert!(array.pages.values().all(|page| page.elements.len() == page.elements.capacity()));
        }
    }
}
