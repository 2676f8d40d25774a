//! Names of a directory <-> segments of keys.
//!
//! A bucket holds keys no directory can: empty segments (`a//b`), a NUL, an object beside a prefix of the
//! same name. Each is shown under an escaped name. The functions are pure and each other's inverse: what
//! [`Name::from_segment`] shows, [`Name::parse`] finds again, and a name that stands for itself is left as
//! it is.
//!
//! An escape is a `%` followed by one of a few fixed words, so a `%20` or a `100%` in an ordinary key needs
//! none; a key that happens to contain one of the words has its `%` written as `%25`.

use std::sync::Arc;

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

/// Every word that an escape can be.
const ESCAPES: [&str; 4] = [EMPTY, NUL, PERCENT, OBJECT];

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
        if beside_directory {
            shown.push_str(OBJECT);
        }
        if shown.len() > NAME_MAX {
            Err(NameError::TooLong)
        } else {
            Ok(shown.into())
        }
    }

    /// What the name stands for.
    pub(crate) fn parse(name: &[u8]) -> Result<Self, NameError> {
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
            let parsed = Name::parse(name.as_bytes()).unwrap();
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
        assert_eq!(
            Name::from_segment(&"x".repeat(256)),
            Err(NameError::TooLong)
        );
    }

    #[test]
    fn names_no_key_is_shown_as_are_refused() {
        for name in ["a%2Fb", "%file%file", "a%file%file", ".", ".."] {
            assert!(Name::parse(name.as_bytes()).is_err(), "{name}");
        }
        assert_eq!(Name::parse(b"\xff"), Err(NameError::NotAKey));
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
                ],
                0..8
            )
            .prop_map(|words| words.concat()),
        ]
        .prop_map(|s| s.replace('/', "_"))
    }

    proptest! {
        #[test]
        fn every_segment_that_is_shown_is_found_again(segment in segment(), beside: bool) {
            if let Ok(shown) = Name::show(&segment, beside) {
                let parsed = Name::parse(shown.as_bytes());
                prop_assert_eq!(
                    parsed,
                    Ok(Name { segment: segment.into(), beside_directory: beside })
                );
            }
        }

        #[test]
        fn every_name_that_is_accepted_is_shown_as_itself(name in segment()) {
            if let Ok(parsed) = Name::parse(name.as_bytes()) {
                let shown = Name::show(&parsed.segment, parsed.beside_directory).unwrap();
                prop_assert_eq!(&*shown, name.as_str());
            }
        }
    }
}
