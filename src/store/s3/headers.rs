//! Metadata <-> HTTP headers.
//!
//! We send ASCII only: a value that is not printable ASCII travels as an RFC 2047 word in UTF-8, which
//! is also how Amazon answers such values. What others left as raw UTF-8 or Latin-1 is read as well as
//! it can be: odd metadata never hides an object.

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use percent_encoding::percent_decode_str;

use crate::store::Metadata;

const USER: &str = "x-amz-meta-";

/// Bytes of user metadata that an object can have.
const USER_BYTES_MAX: usize = 2048;

/// The system headers a rewrite has to send again.
const SYSTEM: [&str; 6] = [
    "content-type",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "expires",
];

/// Adds `metadata` to a request's headers; an error names what cannot be a header.
pub(super) fn write(metadata: &Metadata, headers: &mut HeaderMap) -> Result<(), String> {
    for (name, value) in &metadata.user {
        let header = HeaderName::from_bytes(format!("{USER}{name}").as_bytes())
            .map_err(|_| format!("user metadata cannot be called {name:?}"))?;
        let value = HeaderValue::from_str(&encode(value))
            .map_err(|_| format!("user metadata {name:?} cannot be sent"))?;
        headers.insert(header, value);
    }
    for (name, value) in &metadata.headers {
        // A name that is not one of ours would be a request header with a meaning of its own.
        let Some(name) = SYSTEM.into_iter().find(|known| known == name) else {
            continue;
        };
        if let Ok(value) = HeaderValue::from_str(&encode(value)) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    Ok(())
}

/// Whether an object can have so much user metadata. Not every server counts what stands before their names: we do.
pub(in crate::store) fn user_metadata_fit(metadata: &Metadata) -> bool {
    let bytes = |(name, value): (&String, &String)| USER.len() + name.len() + encode(value).len();
    metadata.user.iter().map(bytes).sum::<usize>() <= USER_BYTES_MAX
}

/// The metadata in an answer's headers.
pub(super) fn read(headers: &HeaderMap) -> Metadata {
    let mut metadata = Metadata::default();
    for (header, value) in headers {
        let name = header.as_str();
        if let Some(name) = name.strip_prefix(USER) {
            metadata
                .user
                .insert(name.to_owned(), decode(value.as_bytes()));
        } else if SYSTEM.contains(&name) {
            metadata
                .headers
                .insert(name.to_owned(), decode(value.as_bytes()));
        }
    }
    metadata
}

/// When the store answered, if metadata that are replaced there give the object another time.
pub(super) fn answered(headers: &HeaderMap) -> Option<SystemTime> {
    // Google's store counts changes of metadata apart from versions, and has a request for them that is no copy.
    if headers.contains_key("x-goog-metageneration") {
        return None;
    }
    let date = headers.get(header::DATE)?.to_str().ok()?;
    httpdate::parse_http_date(date).ok()
}

/// A value that HTTP, SigV4 and every proxy leave as it is.
fn encode(value: &str) -> String {
    let printable = value.bytes().all(|b| (b' '..=b'~').contains(&b));
    // Spaces at the ends are cut and runs of them folded on the way; `=?` would be taken for a word.
    let ambiguous = value.trim() != value || value.contains("  ") || value.contains("=?");
    if printable && !ambiguous {
        return value.to_owned();
    }
    format!("=?UTF-8?B?{}?=", BASE64.encode(value))
}

fn decode(raw: &[u8]) -> String {
    let text = match std::str::from_utf8(raw) {
        Ok(text) => text.to_owned(),
        // Latin-1, as HTTP once said: each byte is its own character.
        Err(_) => raw.iter().map(|byte| char::from(*byte)).collect(),
    };
    decode_words(&text).unwrap_or(text)
}

/// Undoes RFC 2047 where the whole text is made of its words.
fn decode_words(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut words = 0;
    for word in text.split_ascii_whitespace() {
        // Adjacent words stand without a space where a writer did not fold.
        let mut rest = word;
        while !rest.is_empty() {
            let (charset, tail) = rest.strip_prefix("=?")?.split_once('?')?;
            let (encoding, tail) = tail.split_once('?')?;
            let (payload, tail) = tail.split_once("?=")?;
            if !charset.eq_ignore_ascii_case("utf-8") && !charset.eq_ignore_ascii_case("us-ascii") {
                return None;
            }
            match encoding {
                "B" | "b" => bytes.extend(BASE64.decode(payload).ok()?),
                "Q" | "q" => bytes.extend(unquote(payload)),
                _ => return None,
            }
            words += 1;
            rest = tail;
        }
    }
    if words == 0 {
        return None;
    }
    String::from_utf8(bytes).ok()
}

/// Quoted-printable as RFC 2047 has it: `=XX` is a byte and `_` a space.
fn unquote(payload: &str) -> Vec<u8> {
    let percent = payload
        .replace('%', "%25")
        .replace('=', "%")
        .replace('_', " ");
    percent_decode_str(&percent).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn read_value(raw: &[u8]) -> String {
        let mut headers = HeaderMap::new();
        headers.insert("x-amz-meta-v", HeaderValue::from_bytes(raw).unwrap());
        read(&headers).user["v"].clone()
    }

    #[test]
    fn values_of_every_writer_are_read() {
        assert_eq!(read_value(b"33188"), "33188");
        assert_eq!(read_value("caf\u{e9}".as_bytes()), "caf\u{e9}");
        assert_eq!(read_value(b"caf\xe9"), "caf\u{e9}");
        assert_eq!(read_value(b"=?UTF-8?B?Y2Fmw6k=?="), "caf\u{e9}");
        assert_eq!(read_value(b"=?UTF-8?Q?caf=C3=A9_50%?="), "caf\u{e9} 50%");
        assert_eq!(
            read_value(b"=?utf-8?b?Y2Fm?= =?utf-8?b?w6k=?="),
            "caf\u{e9}"
        );
        // Not words after all: shown as they are.
        for odd in [
            "=?UTF-8?B?*?=",
            "=?koi8-r?B?Y2Fm?=",
            "=?UTF-8?B?Y2Fm?= and more",
            "=?",
        ] {
            assert_eq!(read_value(odd.as_bytes()), odd);
        }
    }

    #[test]
    fn a_name_that_cannot_be_a_header_is_named_in_the_error() {
        let user = BTreeMap::from([("a b".to_owned(), "x".to_owned())]);
        let metadata = Metadata {
            user,
            ..Metadata::default()
        };
        assert!(
            write(&metadata, &mut HeaderMap::new())
                .unwrap_err()
                .contains("a b")
        );
    }

    #[test]
    fn only_known_system_headers_travel() {
        let known = ("content-type".to_owned(), "text/plain".to_owned());
        let sly = ("x-amz-acl".to_owned(), "public-read".to_owned());
        let metadata = Metadata {
            headers: BTreeMap::from([known.clone(), sly]),
            ..Metadata::default()
        };
        let mut headers = HeaderMap::new();
        write(&metadata, &mut headers).unwrap();
        assert_eq!(read(&headers).headers, BTreeMap::from([known]));
    }

    #[test]
    fn an_answer_says_when_it_was_given_unless_metadata_may_change_without_it() {
        let mut headers = HeaderMap::new();
        assert_eq!(answered(&headers), None);
        let date = |text: &'static str| HeaderValue::from_static(text);
        headers.insert(header::DATE, date("Thu, 01 Jan 2026 00:00:00 GMT"));
        let new_year = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_767_225_600);
        assert_eq!(answered(&headers), Some(new_year));
        headers.insert("x-goog-metageneration", date("1"));
        assert_eq!(answered(&headers), None);
        headers.clear();
        headers.insert(header::DATE, date("today"));
        assert_eq!(answered(&headers), None);
    }

    proptest! {
        #[test]
        fn any_value_survives_the_round_trip(value in any::<String>()) {
            let user = BTreeMap::from([("v".to_owned(), value.clone())]);
            let metadata = Metadata { user, ..Metadata::default() };
            let mut headers = HeaderMap::new();
            write(&metadata, &mut headers).unwrap();
            let sent = headers["x-amz-meta-v"].as_bytes();
            prop_assert!(sent.iter().all(|b| (b' '..=b'~').contains(b)));
            prop_assert_eq!(&read(&headers), &metadata);
        }
    }
}
