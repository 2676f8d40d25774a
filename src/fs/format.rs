//! The formats of what one process leaves to the next: journals, and tables in shared memory.
//!
//! A release reads its own format and the one before. It writes the one before until it has served for long enough to be
//! trusted: as long as its predecessor may have to take over again, that one finds what it can read. Tables are brought
//! into the newer format before journals, so that whoever can read a mount's table can read its journal.

use std::fmt;

/// One format, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Format(u32);

impl Format {
    /// The first that left a release.
    pub const FIRST: Self = Self(2);

    /// This release's own. What is new in it: `Record::{Resolved, Metadata, Linked, Together}` in journals.
    pub const CURRENT: Self = Self(3);

    /// As it stands in a header.
    pub(crate) fn number(self) -> u32 {
        self.0
    }

    fn before(self) -> Self {
        Self(self.0 - 1).max(Self::FIRST)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The formats that a release knows, and the one of them that it writes at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Formats {
    newest: Format,
    written: Format,
}

impl Formats {
    /// Of a release that has served for long enough.
    pub fn trusted(newest: Format) -> Self {
        Self {
            newest,
            written: newest,
        }
    }

    /// Of one that its predecessor may have to take over from.
    pub fn on_trial(newest: Format) -> Self {
        Self {
            newest,
            written: newest.before(),
        }
    }

    /// What is written.
    pub fn written(self) -> Format {
        self.written
    }

    /// The format of this number. An error says which ones are read.
    pub(crate) fn read(self, number: u32) -> Result<Format, UnknownFormat> {
        let known = self.newest.before().0..=self.newest.0;
        match known.contains(&number) {
            true => Ok(Format(number)),
            false => Err(UnknownFormat {
                found: number,
                newest: self.newest,
            }),
        }
    }
}

impl Default for Formats {
    /// This release's, which will not have to be taken over from.
    fn default() -> Self {
        Self::trusted(Format::CURRENT)
    }
}

/// What another release has left, which this one cannot read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it has format {found}, and this release reads {newest} and the one before")]
pub struct UnknownFormat {
    found: u32,
    newest: Format,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_reads_its_own_format_and_the_one_before_and_writes_that_until_it_is_trusted() {
        let newest = Format(5);
        for formats in [Formats::on_trial(newest), Formats::trusted(newest)] {
            for (number, is_read) in [(3, false), (4, true), (5, true), (6, false)] {
                assert_eq!(formats.read(number).is_ok(), is_read, "{number}");
            }
        }
        assert_eq!(Formats::on_trial(newest).written(), Format(4));
        assert_eq!(Formats::trusted(newest).written(), newest);
        let error = Formats::trusted(newest).read(6).unwrap_err().to_string();
        assert_eq!(
            error,
            "it has format 6, and this release reads 5 and the one before"
        );
    }

    #[test]
    fn there_is_none_before_the_first() {
        assert_eq!(Formats::on_trial(Format::FIRST).written(), Format::FIRST);
        assert!(Formats::trusted(Format::FIRST).read(1).is_err());
    }
}
