//! What a file was after each change, for a host that went down before all of its bytes were on the disk. No I/O.
//!
//! The file goes back to the last moment of which nothing is missing. What it was at two moments is never mixed, and
//! zeros are never taken for bytes that were lost.

use std::time::SystemTime;

use crate::fs::extents::{Chunk, Extent};
use crate::fs::staging::{ContentMap, FrozenMap};

/// The content of a file at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Moment {
    pub(crate) map: ContentMap,
    pub(crate) size: u64,
    /// When it became so; `None`: it is what the object has.
    pub(crate) time: Option<SystemTime>,
}

/// The changes of one file's content, from one that its object has.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// The content before the first step.
    first: Option<ContentMap>,
    /// What of that the object has, and the object's size: that much can be lost here.
    sent: Option<(FrozenMap, u64)>,
    steps: Vec<Step>,
    /// The inode is being written down anew, record by record: what it is in between it never was.
    is_partial: bool,
}

#[derive(Debug)]
struct Step {
    change: Change,
    size: u64,
    time: SystemTime,
    is_moment: bool,
}

#[derive(Debug)]
enum Change {
    Written(Vec<Extent>),
    Resized,
    /// All of it was told at once.
    Whole(Box<ContentMap>),
}

/// How long the history was when an upload began.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark(usize);

impl History {
    /// The history of a file that is being written down anew, record by record until [`History::complete`].
    pub(crate) fn of_parts(first: Option<ContentMap>) -> Self {
        Self {
            is_partial: first.is_some(),
            first,
            ..Self::default()
        }
    }

    /// The content of a file that is about to change for the first time is its object's.
    pub(crate) fn begin(&mut self, first: &ContentMap) {
        self.first.get_or_insert_with(|| first.clone());
    }

    pub(crate) fn written(&mut self, extents: Vec<Extent>, size: u64, time: SystemTime) {
        self.push(Change::Written(extents), size, time);
    }

    pub(crate) fn resized(&mut self, size: u64, time: SystemTime) {
        self.push(Change::Resized, size, time);
    }

    fn push(&mut self, change: Change, size: u64, time: SystemTime) {
        self.steps.push(Step {
            change,
            size,
            time,
            is_moment: !self.is_partial,
        });
    }

    /// All of the file is written down, which is `content` by now.
    pub(crate) fn complete(&mut self, content: &ContentMap, size: u64, time: SystemTime) {
        if std::mem::take(&mut self.is_partial) {
            self.push(Change::Whole(Box::new(content.clone())), size, time);
        }
    }

    /// An upload begins.
    pub(crate) fn mark(&self) -> Mark {
        Mark(self.steps.len())
    }

    /// The upload that began at `mark` made an object of `size` bytes of what it had frozen.
    pub(crate) fn sent(&mut self, Mark(mark): Mark, frozen: FrozenMap, size: u64) {
        self.steps.drain(..mark.min(self.steps.len()));
        self.first = Some(frozen.content());
        self.sent = Some((frozen, size));
    }

    /// The object is another: of earlier moments nobody knows what they would be laid over it.
    pub(crate) fn rebased(&mut self, content: &ContentMap, size: u64, time: SystemTime) {
        *self = Self {
            first: Some(content.clone()),
            is_partial: self.is_partial,
            ..Self::default()
        };
        self.push(Change::Whole(Box::new(content.clone())), size, time);
    }

    /// The last step after which nothing is missing; `None`: the object has all that there is.
    pub(crate) fn last_intact(&self, mut is_intact: impl FnMut(&Chunk) -> bool) -> Option<u64> {
        let mut intact = None;
        self.replay(self.steps.len(), |at, map| {
            let sent = self.sent.as_ref().map(|(frozen, _)| frozen);
            if map.is_intact(sent, &mut is_intact) {
                intact = Some(at as u64);
            }
        });
        intact
    }

    /// What came after the step never was; `None`: no step was, and the object of so many bytes is all that there is.
    /// Returns what the file is.
    pub(crate) fn return_to(&mut self, step: Option<u64>, object_size: u64) -> Moment {
        let at = step.and_then(|step| usize::try_from(step).ok());
        let Some((at, last)) = at.and_then(|at| Some((at, self.steps.get(at)?))) else {
            let map = ContentMap::new(object_size);
            *self = Self {
                first: Some(map.clone()),
                ..Self::default()
            };
            return Moment {
                map,
                size: object_size,
                time: None,
            };
        };
        let (size, time) = (last.size, last.time);
        self.steps.truncate(at + 1);
        let mut map = self.replay(at + 1, |_, _| {});
        if let Some((frozen, size)) = &self.sent {
            map.uploaded(frozen, *size);
        }
        Moment {
            map,
            size,
            time: Some(time),
        }
    }

    /// The content after so many steps; `at_moment` sees what it is on the way.
    fn replay(&self, steps: usize, mut at_moment: impl FnMut(usize, &ContentMap)) -> ContentMap {
        let mut map = self.first.clone().unwrap_or_else(|| ContentMap::new(0));
        for (at, step) in self.steps[..steps].iter().enumerate() {
            match &step.change {
                Change::Written(extents) => map.record(extents),
                Change::Resized => map.resize(step.size),
                Change::Whole(content) => map = (**content).clone(),
            }
            if step.is_moment {
                at_moment(at, &map);
            }
        }
        map
    }
}
