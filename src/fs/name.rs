//! Names of a directory <-> segments of keys.
//!
//! A bucket holds keys no directory can: empty segments (`a//b`), a NUL, an object beside a prefix of the
//! same name. Each is shown under an escaped name. The functions are pure and each other's inverse: what
//! [`Name::from_segment`] shows, [`Name::parse`] finds again, and a name that stands for itself is left as
//! it is.
//!
//! An escape is a `%` followed by one of a few fixed words, so a `%20` or a `100%` in an ordinary key needs
//! none; a key that happens to contain one of the words has its `%` written as `%25`.
//!
//! A segment that no name has room for is shown as its beginning and a hash of all of it. What such a name stands for is
//! known to [`LongNames`] once the segment was seen.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use crate::store::digest::hex;

/// Longest name the kernel passes, in bytes.
pub const NAME_MAX: usize = 255;

/// Shown for the empty segment of `a//b`.
const EMPTY: &str = "%2F";
/// Shown for a NUL inside a segment.
const NUL: &str = "%00";
/// Shown for a `%` that would otherwise begin an escape.
const PERCENT: &str = "%25";
/// Ends the name of an object that has a directory of its own name beside it.
const OBJECT: &str = "%file";

/// Comes before the hash of a segment that is longer than names can be.
const LONG: &str = "%~";

/// Every word that an escape can be.
const ESCAPES: [&str; 5] = [EMPTY, NUL, PERCENT, OBJECT, LONG];

/// Bytes of SHA-256 in such a name: 128 bits, which no two segments of a bucket share by chance.
const HASH_BYTES: usize = 16;

/// Bytes of the escaped segment in front of them: with `%file` behind, the name is as long as one can be.
const BEGINNING_MAX: usize = NAME_MAX - LONG.len() - 2 * HASH_BYTES - OBJECT.len();

/// What stands between two slashes of a key, or after the last.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Name {
    /// The key's own text.
    pub(crate) segment: Arc<str>,
    /// It is the object, although a directory of the same segment may be there.
    pub(crate) beside_directory: bool,
}

/// Why a segment cannot be shown, or a name cannot be a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// `.` or `..`: the kernel gives these a meaning of their own.
    #[error("`.` and `..` are not names")]
    Dots,
    /// More than [`NAME_MAX`] bytes.
    #[error("name is longer than 255 bytes")]
    TooLong,
    /// With the names of the directories above it, more than a key can have.
    #[error("path is longer than the store's keys can be")]
    KeyTooLong,
    /// Not UTF-8, which every key has to be, or an escape that no key is shown as.
    #[error("name cannot be part of an object's key")]
    NotAKey,
    /// It ends with the hash of a segment that was not seen yet.
    #[error("no object's key is known that is shown by this shortened name")]
    UnknownHash,
}

/// So many of them are remembered: a bucket may hold more than there is memory for. Those that are found later are shown,
/// and not there for who asks.
const LONG_NAMES_MAX: usize = 100_000;

/// Segments that are too long to be names, by what is shown for them.
#[derive(Debug, Default)]
pub(crate) struct LongNames(HashMap<Arc<str>, Arc<str>>);

impl LongNames {
    /// A segment was seen.
    pub(crate) fn note(&mut self, segment: &str) {
        // Nearly all are short, however much of them is escaped.
        if segment.len() * PERCENT.len() + OBJECT.len() <= NAME_MAX {
            return;
        }
        let escaped = escape(segment);
        // It may have to be shown beside a directory.
        if escaped.len() + OBJECT.len() > NAME_MAX && self.0.len() < LONG_NAMES_MAX {
            let shown = shorten(&escaped, segment);
            self.0.entry(shown.into()).or_insert_with(|| segment.into());
        }
    }

    /// A name as a later process, which has seen no segment, is told of it: a shortened one with its segment. Another
    /// one has no slash in it.
    pub(crate) fn stored<'a>(&self, name: &'a str) -> Cow<'a, str> {
        let stem = name.strip_suffix(OBJECT).unwrap_or(name);
        match self.0.get(stem) {
            Some(segment) => Cow::Owned(format!("{name}/{segment}")),
            None => Cow::Borrowed(name),
        }
    }
}

/// The name, and the segment if it is a shortened one, of what [`LongNames::stored`] has put together.
pub(crate) fn split_stored(stored: &str) -> (&str, Option<&str>) {
    match stored.split_once('/') {
        Some((name, segment)) => (name, Some(segment)),
        None => (stored, None),
    }
}

impl Name {
    /// How the directory shows an ordinary object or a directory of this segment.
    pub(crate) fn from_segment(segment: &str) -> Result<Arc<str>, NameError> {
        Self::show(segment, false)
    }

    /// How the directory shows an object whose name a directory has taken.
    pub(crate) fn from_segment_beside_directory(segment: &str) -> Result<Arc<str>, NameError> {
        Self::show(segment, true)
    }

    fn show(segment: &str, beside_directory: bool) -> Result<Arc<str>, NameError> {
        if segment == "." || segment == ".." {
            return Err(NameError::Dots);
        }
        let mut shown = if segment.is_empty() {
            EMPTY.to_owned()
        } else {
            escape(segment)
        };
        let suffix = if beside_directory { OBJECT } else { "" };
        if shown.len() + suffix.len() > NAME_MAX {
            shown = shorten(&shown, segment);
        }
        shown.push_str(suffix);
        Ok(shown.into())
    }

    /// What the name stands for.
    pub(crate) fn parse(name: &[u8], long: &LongNames) -> Result<Self, NameError> {
        let name = std::str::from_utf8(name).map_err(|_| NameError::NotAKey)?;
        if name == "." || name == ".." {
            return Err(NameError::Dots);
        }
        if name.len() > NAME_MAX {
            return Err(NameError::TooLong);
        }
        let (stem, beside_directory) = match name.strip_suffix(OBJECT) {
            Some(stem) => (stem, true),
            None => (name, false),
        };
        let segment = if stem == EMPTY {
            String::new()
        } else if stem.contains(LONG) {
            let segment = long.0.get(stem).ok_or(NameError::UnknownHash)?;
            segment.to_string()
        } else {
            unescape(stem)
        };
        // A name that is not what its own segment is shown as (`%2F` in the middle, a lone `%file`) would
        // be stored under one name and listed under another.
        if Self::show(&segment, beside_directory).as_deref() != Ok(name) {
            return Err(NameError::NotAKey);
        }
        Ok(Self {
            segment: segment.into(),
            beside_directory,
        })
    }
}

/// The beginning of a segment, and the hash of all of it.
fn shorten(escaped: &str, segment: &str) -> String {
    let mut end = BEGINNING_MAX;
    // Neither a character nor an escape is cut in two.
    let longest = ESCAPES.map(str::len).into_iter().max().unwrap_or(0);
    if let Some(at) = escaped[..escaped.floor_char_boundary(end)].rfind('%')
        && at + longest > end
    {
        end = at;
    }
    let beginning = &escaped[..escaped.floor_char_boundary(end)];
    let hash = Sha256::digest(segment.as_bytes());
    let hash = hex(&hash[..HASH_BYTES]);
    format!("{beginning}{LONG}{hash}")
}

fn escape(segment: &str) -> String {
    let mut shown = String::with_capacity(segment.len());
    for (at, c) in segment.char_indices() {
        match c {
            '\0' => shown.push_str(NUL),
            '%' if ESCAPES.iter().any(|word| segment[at..].starts_with(word)) => {
                shown.push_str(PERCENT);
            }
            c => shown.push(c),
        }
    }
    shown
}

fn unescape(shown: &str) -> String {
    let mut segment = String::with_capacity(shown.len());
    let mut rest = shown;
    while let Some(at) = rest.find('%') {
        segment.push_str(&rest[..at]);
        rest = &rest[at..];
        let (c, used) = if rest.starts_with(PERCENT) {
            ('%', PERCENT.len())
        } else if rest.starts_with(NUL) {
            ('\0', NUL.len())
        } else {
            ('%', 1)
        };
        segment.push(c);
        rest = &rest[used..];
    }
    segment.push_str(rest);
    segment
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(name: &str) -> Result<Name, NameError> {
        Name::parse(name.as_bytes(), &LongNames::default())
    }

    #[test]
    fn ordinary_names_stand_for_themselves() {
        for name in [
            "a",
            "photo.jpg",
            "100%",
            "a%20b",
            "%",
            "%41",
            "caf\u{e9}",
            "a b",
            "-",
            "...",
            "#1",
        ] {
            assert_eq!(Name::from_segment(name).as_deref(), Ok(name));
            let parsed = parse(name).unwrap();
            assert_eq!((&*parsed.segment, parsed.beside_directory), (name, false));
        }
    }

    #[test]
    fn segments_no_directory_can_hold_are_escaped() {
        assert_eq!(Name::from_segment("").as_deref(), Ok("%2F"));
        assert_eq!(Name::from_segment("a\0b").as_deref(), Ok("a%00b"));
        assert_eq!(Name::from_segment("%2F").as_deref(), Ok("%252F"));
        assert_eq!(Name::from_segment("x%file").as_deref(), Ok("x%25file"));
        assert_eq!(
            Name::from_segment_beside_directory("x").as_deref(),
            Ok("x%file")
        );
        assert_eq!(Name::from_segment("."), Err(NameError::Dots));
    }

    #[test]
    fn segments_that_are_longer_than_names_are_shown_with_a_hash() {
        let longest = "x".repeat(255);
        assert_eq!(Name::from_segment(&longest).as_deref(), Ok(&*longest));
        assert_eq!(parse(&longest).unwrap().segment.as_ref(), longest);
        let longer = "x".repeat(256);
        let shown = Name::from_segment(&longer).unwrap();
        assert!(shown.starts_with(&"x".repeat(BEGINNING_MAX)), "{shown}");
        assert_eq!(shown[BEGINNING_MAX..].len(), 2 + 2 * HASH_BYTES);
        assert_ne!(shown, Name::from_segment(&"x".repeat(257)).unwrap());
        // Until it was seen, nobody knows what it stands for.
        assert_eq!(parse(&shown), Err(NameError::UnknownHash));
        let mut long = LongNames::default();
        long.note(&longer);
        long.note(&longest);
        for (segment, beside_directory) in [(&longer, false), (&longer, true), (&longest, true)] {
            let shown = Name::show(segment, beside_directory).unwrap();
            let parsed = Name::parse(shown.as_bytes(), &long).unwrap();
            assert_eq!(
                (&*parsed.segment, parsed.beside_directory),
                (&**segment, beside_directory)
            );
            assert_eq!(
                split_stored(&long.stored(&shown)),
                (&*shown, Some(&**segment))
            );
        }
        assert_eq!(split_stored(&long.stored("name")), ("name", None));
        // An ordinary key of that form is another name.
        let imitated = Name::from_segment(&shown).unwrap();
        assert_ne!(imitated, shown);
        long.note(&shown);
        let parsed = Name::parse(imitated.as_bytes(), &long).unwrap();
        assert_eq!(parsed.segment, shown);
    }

    #[test]
    fn names_no_key_is_shown_as_are_refused() {
        for name in ["a%2Fb", "%file%file", "a%file%file", ".", ".."] {
            assert!(parse(name).is_err(), "{name}");
        }
        let not_utf8 = Name::parse(b"\xff", &LongNames::default());
        assert_eq!(not_utf8, Err(NameError::NotAKey));
    }

    fn segment() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<String>(),
            proptest::collection::vec(
                prop_oneof![
                    Just("%"),
                    Just("25"),
                    Just("2F"),
                    Just("00"),
                    Just("file"),
                    Just("\0"),
                    Just("a"),
                    Just("~"),
                    Just("\u{e9}"),
                ],
                0..8
            )
            .prop_map(|words| words.concat()),
            (0..300_usize, any::<String>()).prop_map(|(n, end)| "\u{e9}%\0x".repeat(n) + &end),
        ]
        .prop_map(|s| s.replace('/', "_"))
    }

    proptest! {
        #[test]
        fn every_segment_that_is_shown_is_found_again(segment in segment(), beside: bool) {
            if let Ok(shown) = Name::show(&segment, beside) {
                prop_assert!(shown.len() <= NAME_MAX);
                let mut long = LongNames::default();
                long.note(&segment);
                let parsed = Name::parse(shown.as_bytes(), &long);
                prop_assert_eq!(
                    parsed,
                    Ok(Name { segment: segment.into(), beside_directory: beside })
                );
            }
        }

        #[test]
        fn every_name_that_is_accepted_is_shown_as_itself(name in segment()) {
            if let Ok(parsed) = parse(&name) {
                let shown = Name::show(&parsed.segment, parsed.beside_directory).unwrap();
                prop_assert_eq!(&*shown, name.as_str());
            }
        }
    }
}
