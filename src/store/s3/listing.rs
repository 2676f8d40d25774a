//! A page of ListObjectsV2 or of ListMultipartUploads, from XML to entries. Pure.
//!
//! An entry that cannot be read is left out and counted: one odd key never hides its neighbours.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

use percent_encoding::percent_decode_str;

use super::xml::Element;
use crate::store::{
    KeptVersion, Key, ListEntry, ListPage, ObjectVersion, OpenUpload, UploadId, UploadPage,
    VersionId,
};

/// The entries of a page, and how many could not be read.
pub(super) fn read(document: &[u8]) -> Result<(ListPage, usize), String> {
    let root = Element::parse(document)?;
    if root.name() != "ListBucketResult" {
        return Err(format!("<{}> where a listing was expected", root.name()));
    }
    let mut skipped = 0;
    let contents = root
        .all("Contents")
        .filter_map(|contents| contents.text_of("Key"));
    let prefixes = root
        .all("CommonPrefixes")
        .filter_map(|prefix| prefix.text_of("Prefix"));
    let encoded = is_encoded(&root, contents.chain(prefixes));
    let mut entries = Vec::new();
    for contents in root.all("Contents") {
        match object(contents, encoded) {
            Some(entry) => entries.push(entry),
            None => skipped += 1,
        }
    }
    for prefix in root.all("CommonPrefixes") {
        match prefix.text_of("Prefix").and_then(|text| key(text, encoded)) {
            Some(key) => entries.push(ListEntry::Prefix(key)),
            None => skipped += 1,
        }
    }
    // Objects and prefixes come apart; each may be in an order of the store's own.
    entries.sort_by(|a, b| key_of(a).cmp(key_of(b)));
    let truncated = root
        .text_of("IsTruncated")
        .is_some_and(|text| text.trim() == "true");
    let continuation = root
        .text_of("NextContinuationToken")
        .filter(|token| !token.is_empty());
    if truncated && continuation.is_none() {
        return Err("a listing that goes on does not say where".to_owned());
    }
    let continuation = continuation.filter(|_| truncated).map(str::to_owned);
    Ok((
        ListPage {
            entries,
            continuation,
        },
        skipped,
    ))
}

/// The uploads of a page; those that cannot be read are left out.
pub(super) fn read_uploads(document: &[u8]) -> Result<UploadPage, String> {
    let root = Element::parse(document)?;
    if root.name() != "ListMultipartUploadsResult" {
        let name = root.name();
        return Err(format!("<{name}> where a list of uploads was expected"));
    }
    let keys = root
        .all("Upload")
        .filter_map(|upload| upload.text_of("Key"));
    let encoded = is_encoded(&root, keys);
    let read = |upload: &Element| {
        let begun = upload.text_of("Initiated")?.trim();
        Some(OpenUpload {
            key: key(upload.text_of("Key")?, encoded)?,
            upload: UploadId(upload.text_of("UploadId")?.trim().to_owned()),
            begun: humantime::parse_rfc3339(begun).ok()?,
        })
    };
    let uploads = root.all("Upload").filter_map(read).collect();
    let is_truncated = root
        .text_of("IsTruncated")
        .is_some_and(|text| text.trim() == "true");
    let next = || {
        let after = key(root.text_of("NextKeyMarker")?, encoded)?;
        let upload = root.text_of("NextUploadIdMarker").unwrap_or_default();
        Some((after, UploadId(upload.trim().to_owned())))
    };
    let continuation = match is_truncated {
        true => Some(next().ok_or("a list that goes on does not say where")?),
        false => None,
    };
    Ok(UploadPage {
        uploads,
        continuation,
    })
}

/// The versions of an object of which a page has something, in the store's order. Those that cannot be read, and what
/// says that it was deleted, are left out.
pub(super) fn read_versions(document: &[u8], of: &Key) -> Result<Vec<KeptVersion>, String> {
    let root = Element::parse(document)?;
    if root.name() != "ListVersionsResult" {
        let name = root.name();
        return Err(format!("<{name}> where a list of versions was expected"));
    }
    let keys = root.all("Version").filter_map(|v| v.text_of("Key"));
    let encoded = is_encoded(&root, keys);
    let read = |version: &Element| {
        let found = KeptVersion {
            id: VersionId(Arc::from(version.text_of("VersionId")?.trim())),
            version: ObjectVersion(Arc::from(version.text_of("ETag")?.trim())),
            size: version.text_of("Size")?.trim().parse().ok()?,
        };
        let is_its = key(version.text_of("Key")?, encoded)? == *of;
        is_its.then_some(found)
    };
    Ok(root.all("Version").filter_map(read).collect())
}

fn key_of(entry: &ListEntry) -> &Key {
    match entry {
        ListEntry::Object { key, .. } | ListEntry::Prefix(key) => key,
    }
}

fn object(contents: &Element, encoded: bool) -> Option<ListEntry> {
    let modified = contents.text_of("LastModified").map(str::trim);
    Some(ListEntry::Object {
        key: key(contents.text_of("Key")?, encoded)?,
        size: contents.text_of("Size")?.trim().parse().ok()?,
        // Without one every HEAD shows another version, which costs a request and no truth.
        version: ObjectVersion(Arc::from(
            contents.text_of("ETag").unwrap_or_default().trim(),
        )),
        modified: modified
            .and_then(|time| humantime::parse_rfc3339(time).ok())
            .unwrap_or(SystemTime::UNIX_EPOCH),
        metadata: None,
    })
}

fn key(text: &str, encoded: bool) -> Option<Key> {
    let key = if encoded {
        decode(text)?
    } else {
        Cow::Borrowed(text)
    };
    (!key.is_empty() && !key.contains('\0')).then(|| Key::new(key.as_ref()))
}

/// The text behind `encoding-type=url`: form encoding, in which `+` is a space.
fn decode(text: &str) -> Option<Cow<'_, str>> {
    let spaced = match text.contains('+') {
        true => Cow::Owned(text.replace('+', " ")),
        false => Cow::Borrowed(text),
    };
    let decoded = percent_decode_str(&spaced).decode_utf8().ok()?.into_owned();
    Some(Cow::Owned(decoded))
}

/// Whether keys are encoded as we asked. Some stores repeat the question and then do not do it; a
/// character that encoding would have replaced gives them away.
fn is_encoded<'a>(root: &Element, mut keys: impl Iterator<Item = &'a str>) -> bool {
    let raw = |text: &str| {
        let bytes = text.as_bytes();
        bytes.iter().enumerate().any(|(at, byte)| match byte {
            b'%' => !bytes
                .get(at + 1..at + 3)
                .is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)),
            b'-' | b'_' | b'.' | b'/' | b'+' | b'*' | b'~' => false,
            // Stores differ in the punctuation they leave; none leaves these.
            b' ' | b'"' | b'<' | b'>' | b'#' | b'?' | b'&' => true,
            byte => !byte.is_ascii_graphic(),
        })
    };
    root.text_of("EncodingType")
        .is_some_and(|kind| kind.trim() == "url")
        && !keys.any(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(inside: &str) -> Result<(ListPage, usize), String> {
        read(format!("<ListBucketResult xmlns=\"x\">{inside}</ListBucketResult>").as_bytes())
    }

    fn contents(key: &str) -> String {
        format!(
            "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>\
             <ETag>&quot;e&quot;</ETag><Size>7</Size></Contents>"
        )
    }

    fn keys(page: &ListPage) -> Vec<&str> {
        page.entries
            .iter()
            .map(|entry| key_of(entry).as_str())
            .collect()
    }

    #[test]
    fn objects_and_prefixes_come_in_one_order() {
        let inside = format!(
            "<IsTruncated>true</IsTruncated><NextContinuationToken>n+1=</NextContinuationToken>{}{}\
             <CommonPrefixes><Prefix>b/</Prefix></CommonPrefixes>",
            contents("c"),
            contents("a"),
        );
        let (page, skipped) = page(&inside).unwrap();
        assert_eq!(keys(&page), ["a", "b/", "c"]);
        assert_eq!((page.continuation.as_deref(), skipped), (Some("n+1="), 0));
        let ListEntry::Object {
            size,
            version,
            modified,
            ..
        } = &page.entries[0]
        else {
            panic!("not an object")
        };
        assert_eq!((*size, &*version.0), (7, "\"e\""));
        assert_eq!(
            modified
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap()
                .as_secs(),
            1_767_225_600
        );
    }

    #[test]
    fn encoded_keys_are_decoded_and_unreadable_ones_skipped_and_counted() {
        let inside = format!(
            "<EncodingType>url</EncodingType>{}{}{}{}<Contents><Key>no-size</Key></Contents>",
            contents("a%2F%2Fb"),
            contents("sp+ace%09tab%2Bplus"),
            contents("%FF"),
            contents("nul%00"),
        );
        let (page, skipped) = page(&inside).unwrap();
        assert_eq!(keys(&page), ["a//b", "sp ace\ttab+plus"]);
        assert_eq!(skipped, 3);
    }

    #[test]
    fn keys_that_only_claim_to_be_encoded_are_taken_as_they_are() {
        let inside = format!(
            "<EncodingType>url</EncodingType>{}{}",
            contents("a b"),
            contents("c+d%")
        );
        assert_eq!(keys(&page(&inside).unwrap().0), ["a b", "c+d%"]);
        let plain = page(&contents("a+b%20")).unwrap().0;
        assert_eq!(keys(&plain), ["a+b%20"]);
    }

    #[test]
    fn a_listing_without_an_end_is_an_error() {
        assert!(page("<IsTruncated>true</IsTruncated>").is_err());
        assert!(read(b"<html>hello</html>").is_err());
        assert!(read(b"").is_err());
    }

    #[test]
    fn versions_of_one_key_are_read_and_what_says_that_it_is_gone_is_not() {
        let version = |key: &str, id: &str| {
            format!(
                "<Version><Key>{key}</Key><VersionId>{id}</VersionId><ETag>&quot;{id}&quot;</ETag>\
                 <Size>7</Size></Version>"
            )
        };
        let list = |inside: &str| {
            let text = format!("<ListVersionsResult xmlns=\"x\">{inside}</ListVersionsResult>");
            read_versions(text.as_bytes(), &Key::new("a b"))
        };
        let found = list(&format!(
            "<EncodingType>url</EncodingType><DeleteMarker><Key>a+b</Key><VersionId>4</VersionId></DeleteMarker>\
             {}{}{}<Version><Key>a+b</Key></Version>",
            version("a+b", "3"),
            version("a+b", "null"),
            version("a+bc", "1"),
        ));
        let found = found.unwrap();
        let ids: Vec<&str> = found.iter().map(|version| &*version.id.0).collect();
        assert_eq!(ids, ["3", "null"]);
        assert_eq!((&*found[0].version.0, found[0].size), ("\"3\"", 7));
        assert!(read_versions(b"<Error/>", &Key::new("a")).is_err());
    }

    #[test]
    fn uploads_that_have_not_ended_are_read_with_where_the_next_come_from() {
        let list = |inside: &str| {
            let root = "ListMultipartUploadsResult";
            read_uploads(format!("<{root} xmlns=\"x\">{inside}</{root}>").as_bytes())
        };
        let upload = "<Upload><Key>a+b</Key><UploadId>u/1</UploadId>\
                      <Initiated>2026-01-01T00:00:00.000Z</Initiated></Upload>";
        let odd = "<Upload><Key>no-time</Key><UploadId>2</UploadId></Upload>";
        let next = "<NextKeyMarker>a+b</NextKeyMarker><NextUploadIdMarker>u/1</NextUploadIdMarker>";
        let encoding = "<EncodingType>url</EncodingType>";
        let truncated = "<IsTruncated>true</IsTruncated>";
        let page = list(&format!("{encoding}{truncated}{next}{upload}{odd}")).unwrap();
        let at = (Key::new("a b"), UploadId("u/1".to_owned()));
        assert_eq!(page.continuation, Some(at.clone()));
        assert_eq!(page.uploads.len(), 1);
        assert_eq!(
            (&page.uploads[0].key, &page.uploads[0].upload),
            (&at.0, &at.1)
        );
        assert!(list(truncated).is_err());
        assert!(list("").unwrap().uploads.is_empty());
    }
}
