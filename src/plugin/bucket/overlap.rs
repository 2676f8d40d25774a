//! Pure: whether a new volume may live beside one that exists.
//!
//! Two writable volumes of which one holds the other would rename and delete under each other's feet
//! without knowing it. Two volumes of the very same place share one file system, so what that file system
//! has only one of must be said alike by both.

use super::VolumeName;
use crate::config::{Location, Options, Scheme};

/// How the places of two volumes lie to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    Apart,
    Same,
    /// One is a directory somewhere inside the other.
    Nested,
}

/// Why a volume with the options `new` must not be created beside `other`, as a fragment that names
/// `other` and the mend.
pub(super) fn conflict(new: &Options, name: &VolumeName, other: &Options) -> Option<String> {
    let place = &other.location;
    match relation(new, other) {
        Relation::Apart => None,
        Relation::Nested if new.read_only || other.read_only || new.allow_overlap => None,
        Relation::Nested => Some(format!(
            "{} overlaps {place}, which is volume {name}: use that volume's directory, or ro, or overlap=allow \
             if the two may treat each other as different hosts",
            new.location
        )),
        Relation::Same => {
            let differing = differences(new, other);
            (!differing.is_empty()).then(|| {
                format!(
                    "{place} is volume {name} already, and both would share one file system: say the same as it does for {}",
                    differing.join(", ")
                )
            })
        }
    }
}

fn relation(a: &Options, b: &Options) -> Relation {
    if root(a) != root(b) {
        return Relation::Apart;
    }
    let (a, b) = (segments(&a.location), segments(&b.location));
    if a == b {
        Relation::Same
    } else if a.starts_with(&b) || b.starts_with(&a) {
        Relation::Nested
    } else {
        Relation::Apart
    }
}

/// What two places must have in common before their prefixes can meet. The directories of `file://` are
/// all of one tree.
fn root(options: &Options) -> (Scheme, String, &str) {
    let Location { scheme, bucket, .. } = &options.location;
    match scheme {
        Scheme::S3 => (*scheme, endpoint(options), bucket),
        Scheme::File => (*scheme, String::new(), ""),
        Scheme::Memory => (*scheme, String::new(), bucket),
    }
}

/// The endpoint as far as it decides which bucket a name means: Amazon's are one name space.
fn endpoint(options: &Options) -> String {
    let url = options.endpoint.url.as_deref().unwrap_or_default();
    let url = url.trim_end_matches('/').to_ascii_lowercase();
    let host = url.split_once("://").map_or(url.as_str(), |(_, host)| host);
    if host.ends_with(".amazonaws.com") {
        String::new()
    } else {
        url
    }
}

fn segments(location: &Location) -> Vec<&str> {
    let directory = match location.scheme {
        Scheme::File => location.bucket.as_str(),
        Scheme::S3 | Scheme::Memory => "",
    };
    // Only in a path of this host do repeated slashes mean nothing; in a key they are part of it.
    let directories = directory.split('/').filter(|segment| !segment.is_empty());
    let prefix = location
        .prefix
        .split('/')
        .filter(|_| !location.prefix.is_empty());
    directories.chain(prefix).collect()
}

/// The options that a shared file system has only one of, where they differ. `ro` is each mount's own.
fn differences(a: &Options, b: &Options) -> Vec<&'static str> {
    let mut differing = Vec::new();
    let mut note = |differs: bool, what| {
        if differs {
            differing.push(what);
        }
    };
    note(a.credentials != b.credentials, "credentials");
    note(a.endpoint.region != b.endpoint.region, "region");
    note(a.endpoint.path_style != b.endpoint.path_style, "path_style");
    note(a.endpoint.tls_verify != b.endpoint.tls_verify, "tls_verify");
    note(a.ownership.uid != b.ownership.uid, "uid");
    note(a.ownership.gid != b.ownership.gid, "gid");
    note(a.ownership.file_mode != b.ownership.file_mode, "file_mode");
    note(a.ownership.dir_mode != b.ownership.dir_mode, "dir_mode");
    note(a.metadata_ttl != b.metadata_ttl, "metadata_ttl");
    note(a.size != b.size, "size");
    note(a.fsync_timeout != b.fsync_timeout, "fsync_timeout");
    note(a.transfer != b.transfer, "part_size and concurrency");
    if differing.is_empty() {
        // Options this list does not know yet count too.
        let mut b = b.clone();
        b.location.clone_from(&a.location);
        b.endpoint.url.clone_from(&a.endpoint.url);
        (b.read_only, b.check, b.allow_overlap) = (a.read_only, a.check, a.allow_overlap);
        if *a != b {
            differing.push("every option but ro");
        }
    }
    differing
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Scope;

    fn options(text: &str) -> Options {
        let pair = |pair: &str| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key.to_owned(), value.to_owned())
        };
        let pairs = text.split_whitespace().map(pair);
        Options::parse(pairs, Scope::Volume, None).unwrap()
    }

    fn verdict(new: &str, old: &str) -> Option<String> {
        conflict(
            &options(new),
            &VolumeName::parse("old").unwrap(),
            &options(old),
        )
    }

    #[test]
    fn places_apart_or_harmless_are_accepted() {
        for (new, old) in [
            ("bucket=bbb", "bucket=ccc"),
            ("bucket=bbb prefix=x", "bucket=bbb prefix=y"),
            ("bucket=bbb prefix=photos", "bucket=bbb prefix=photos-old"),
            (
                "bucket=bbb endpoint=http://one:9000",
                "bucket=bbb endpoint=http://two:9000",
            ),
            ("url=file:///srv/ab", "url=file:///srv/a"),
            ("url=memory://aaa", "url=memory://bbb"),
            ("url=memory://bbb", "bucket=bbb"),
            ("bucket=bbb prefix=x ro", "bucket=bbb"),
            ("bucket=bbb prefix=x", "bucket=bbb ro"),
            ("bucket=bbb ro", "bucket=bbb prefix=x"),
            ("bucket=bbb prefix=x overlap=allow", "bucket=bbb"),
            ("bucket=bbb prefix=x", "bucket=bbb prefix=x"),
            ("bucket=bbb prefix=x ro", "bucket=bbb prefix=x"),
            ("bucket=bbb check=false", "bucket=bbb overlap=allow"),
            (
                "bucket=bbb endpoint=https://s3.eu-west-1.amazonaws.com",
                "bucket=bbb region=eu-west-1",
            ),
            (
                "bucket=bbb endpoint=http://h:9000/",
                "bucket=bbb endpoint=http://H:9000",
            ),
        ] {
            assert_eq!(verdict(new, old), None, "{new:?} beside {old:?}");
        }
    }

    #[test]
    fn a_nested_writable_place_is_refused_by_name() {
        for (new, old) in [
            ("bucket=bbb prefix=x", "bucket=bbb"),
            ("bucket=bbb", "bucket=bbb prefix=x"),
            ("bucket=bbb prefix=x/y/z", "bucket=bbb prefix=x"),
            ("bucket=bbb prefix=x", "bucket=bbb overlap=allow"),
            (
                "bucket=bbb prefix=x endpoint=https://s3.amazonaws.com",
                "bucket=bbb",
            ),
            ("url=file:///srv/a/b", "url=file:///srv/a"),
        ] {
            let text = verdict(new, old).unwrap_or_else(|| panic!("{new:?} beside {old:?}"));
            assert!(
                text.contains("volume old") && text.contains("overlap=allow"),
                "{text}"
            );
        }
    }

    #[test]
    fn one_place_has_one_way_to_be_shown() {
        for (new, old, what) in [
            ("bucket=bbb uid=1000", "bucket=bbb", "uid"),
            (
                "bucket=bbb credentials=file:other",
                "bucket=bbb",
                "credentials",
            ),
            ("bucket=bbb region=eu-west-1", "bucket=bbb", "region"),
            ("bucket=bbb uid=1000 ro overlap=allow", "bucket=bbb", "uid"),
        ] {
            let text = verdict(new, old).unwrap_or_else(|| panic!("{new:?} beside {old:?}"));
            assert!(
                text.contains("volume old") && text.ends_with(&format!("for {what}")),
                "{text}"
            );
        }
    }
}
