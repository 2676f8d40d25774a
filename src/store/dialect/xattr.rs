//! Extended attributes <-> user metadata, in s3fs's form: JSON in percent-encoding, the values in base64.
//!
//! s3fs takes every comma and colon for the end of something. Such bytes of a name are written as JSON's
//! `\u` escapes, which s3fs takes for the name as it is and writes back so.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};

use crate::store::Metadata;

/// The user metadata that hold them.
const NAME: &str = "xattr";

/// What s3fs encodes: all but what may stand in a path.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'.')
    .remove(b'-')
    .remove(b'_')
    .remove(b'~');

/// The extended attributes of an object, of all namespaces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Xattrs(BTreeMap<Vec<u8>, Vec<u8>>);

impl Xattrs {
    /// Those that `metadata` hold. `None`: what stands there is something else, and somebody else's.
    pub fn from_metadata(metadata: &Metadata) -> Option<Self> {
        let text = metadata.user.get(NAME).map_or("", |text| text.trim());
        if text.is_empty() {
            return Some(Self::default());
        }
        let json: Vec<u8> = percent_decode_str(text).collect();
        let pairs: BTreeMap<Text, Text> = serde_json::from_slice(&json).ok()?;
        let decoded = pairs
            .into_iter()
            .map(|(name, value)| Some((name.0, BASE64.decode(value.0).ok()?)));
        decoded.collect::<Option<_>>().map(Self)
    }

    /// Writes them into `metadata`; none leave nothing there.
    pub fn write_to(&self, metadata: &mut Metadata) {
        if self.0.is_empty() {
            metadata.user.remove(NAME);
            return;
        }
        let text = percent_encode(&self.to_json(), ENCODED).to_string();
        metadata.user.insert(NAME.to_owned(), text);
    }

    fn to_json(&self) -> Vec<u8> {
        let mut json = Vec::new();
        for (name, value) in &self.0 {
            json.push(if json.is_empty() { b'{' } else { b',' });
            json.push(b'"');
            for byte in name {
                match byte {
                    0..b' ' | b'"' | b'\\' | b',' | b':' => {
                        json.extend(format!("\\u{byte:04x}").into_bytes());
                    }
                    // Names need not be UTF-8; s3fs writes them so too.
                    byte => json.push(*byte),
                }
            }
            json.extend(format!("\":\"{}\"", BASE64.encode(value)).into_bytes());
        }
        json.push(b'}');
        json
    }

    /// The value of `name`.
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.0.get(name).map(Vec::as_slice)
    }

    /// All names, in order.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.0.keys().map(Vec::as_slice)
    }

    /// Gives `name` a value.
    pub fn set(&mut self, name: &[u8], value: &[u8]) {
        self.0.insert(name.to_vec(), value.to_vec());
    }

    /// Takes `name` away; `false` if it is not there.
    pub fn remove(&mut self, name: &[u8]) -> bool {
        self.0.remove(name).is_some()
    }
}

/// A JSON string of any bytes.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Text(Vec<u8>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;

        impl Visitor<'_> for Bytes {
            type Value = Text;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Text, E> {
                Ok(Text(bytes.to_vec()))
            }
        }

        deserializer.deserialize_bytes(Bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    use super::*;

    fn metadata(text: &str) -> Metadata {
        let mut metadata = Metadata::default();
        metadata.user.insert(NAME.to_owned(), text.to_owned());
        metadata
    }

    fn read(text: &str) -> Option<Xattrs> {
        Xattrs::from_metadata(&metadata(text))
    }

    fn xattrs(pairs: &[(&[u8], &[u8])]) -> Xattrs {
        let pairs = pairs.iter();
        Xattrs(
            pairs
                .map(|(name, value)| (name.to_vec(), value.to_vec()))
                .collect(),
        )
    }

    fn written(xattrs: &Xattrs) -> Option<String> {
        let mut metadata = metadata("before");
        xattrs.write_to(&mut metadata);
        metadata.user.remove(NAME)
    }

    /// By the rules of s3fs 1.90.
    #[test]
    fn what_is_written_is_what_s3fs_writes() {
        let one = xattrs(&[(b"user.a", b"hello")]);
        let text = "%7B%22user.a%22%3A%22aGVsbG8%3D%22%7D";
        assert_eq!(written(&one).as_deref(), Some(text));
        assert_eq!(read(text), Some(one));
        let several = xattrs(&[
            (b"user.caf\xc3\xa9 /~", b"\xff\xfe\xfd?>"),
            (b"user.empty", b""),
        ]);
        let text = "%7B%22user.caf%C3%A9%20/~%22%3A%22//79Pz4%3D%22%2C%22user.empty%22%3A%22%22%7D";
        assert_eq!(written(&several).as_deref(), Some(text));
        assert_eq!(read(text), Some(several));
    }

    #[test]
    fn no_byte_of_a_name_is_one_that_s3fs_takes_for_an_end() {
        let odd = xattrs(&[(b"user.a,b:\"c\"\\{}\n", b"1"), (b"user.\xff", b"2")]);
        let json = odd.to_json();
        let count = |byte| json.iter().filter(|b| **b == byte).count();
        assert_eq!((count(b','), count(b':'), count(b'"')), (1, 2, 8));
        assert_eq!(read(&written(&odd).unwrap()), Some(odd));
    }

    #[test]
    fn none_leave_nothing_behind() {
        assert_eq!(written(&Xattrs::default()), None);
        let none = Some(Xattrs::default());
        assert_eq!(Xattrs::from_metadata(&Metadata::default()), none);
        // As s3fs writes them.
        assert_eq!((read(""), read("%7B%7D")), (none.clone(), none));
    }

    #[test]
    fn what_is_no_attributes_is_somebody_elses() {
        for other in [
            "yes",
            "[]",
            "%7B",
            "{\"user.a\":1}",
            "{\"user.a\":\"*\"}",
            "{\"user.a\":\"YQ==\"} and more",
            "{\"user.a\":[89]}",
        ] {
            assert_eq!(read(other), None, "{other}");
        }
        // The same without percent-encoding.
        let plain = read("{ \"user.a\" : \"YQ==\" }");
        assert_eq!(plain, Some(xattrs(&[(b"user.a", b"a")])));
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_back(
            pairs in btree_map(vec(1..=255_u8, 1..40), vec(any::<u8>(), 0..40), 0..6),
        ) {
            let xattrs = Xattrs(pairs);
            let mut metadata = Metadata::default();
            xattrs.write_to(&mut metadata);
            if let Some(text) = metadata.user.get(NAME) {
                prop_assert!(text.bytes().all(|b| b.is_ascii_graphic()));
            }
            prop_assert_eq!(Xattrs::from_metadata(&metadata), Some(xattrs));
        }

        #[test]
        fn reading_never_panics(text in any::<String>(), json in "[{}\\[\\]\":,\\\\ua0%-]{0,40}") {
            let _ = (read(&text), read(&json));
        }
    }
}
