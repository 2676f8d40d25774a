//! Where attributes of objects are kept from one mount to the next, and under which name.
//!
//! A daemon has one file for all its volumes. A command has one for each place: two commands at one time do not wait
//! for each other, and of two on the same place the second goes without.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::filesystems::filed_under;
use crate::clock::Clock;
use crate::config::credentials::CredentialSource;
use crate::config::{Options, Scheme};
use crate::store::AttributeCache;

/// The daemon's file; those of commands have more behind it.
const NAME: &str = "attributes";

/// A place that nobody has mounted for so long is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(90 * 24 * 3600);

/// The daemon's cache.
pub(in crate::cli) fn of_daemon(cache_dir: &Path) -> Arc<AttributeCache> {
    AttributeCache::open(cache_dir.join(NAME), AttributeCache::LIMIT)
}

/// The cache of a command that mounts what the options say; `None` where there is nothing to be saved.
pub(in crate::cli) fn of_command(
    cache_dir: &Path,
    options: &Options,
    clock: &dyn Clock,
) -> Option<Arc<AttributeCache>> {
    let place = place(options)?;
    forget_old(cache_dir, clock);
    let name = filed_under(&format!("{NAME}-"), &place);
    let path = cache_dir.join(name);
    Some(AttributeCache::open(path, AttributeCache::LIMIT))
}

/// All that tells a bucket from others, the prefix aside: keys have it. Two who are not the same to a store that many
/// share may have buckets of one name. `None`: to ask is not dearer than to know.
pub(super) fn place(options: &Options) -> Option<[String; 4]> {
    let who = match &options.credentials {
        CredentialSource::Inline(credentials) => credentials.access_key_id.clone(),
        source => source.to_string(),
    };
    let endpoint = &options.endpoint;
    match options.location.scheme {
        Scheme::S3 => Some([
            endpoint.url.clone().unwrap_or_default(),
            endpoint.region.clone().unwrap_or_default(),
            options.location.bucket.clone(),
            who,
        ]),
        Scheme::File | Scheme::Memory => None,
    }
}

fn forget_old(cache_dir: &Path, clock: &dyn Clock) {
    let Ok(entries) = std::fs::read_dir(cache_dir) else {
        return;
    };
    for entry in entries.flatten() {
        let is_ours = entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.starts_with(&format!("{NAME}-")));
        // A mount touches its file when it begins, and whenever it learns something.
        let is_old = entry
            .metadata()
            .and_then(|about| about.modified())
            .is_ok_and(|used| {
                clock
                    .wall()
                    .duration_since(used)
                    .is_ok_and(|age| age > FORGOTTEN_AFTER)
            });
        if is_ours && is_old {
            // Who still has it goes on with a file without a name, and the next one begins anew.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, FileTimes};

    use super::*;
    use crate::clock::SystemClock;
    use crate::config::Scope;

    fn options(pairs: &[(&str, &str)]) -> Options {
        let pairs = pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Options::parse(pairs, Scope::Mount, None).unwrap()
    }

    #[test]
    fn buckets_of_other_endpoints_names_and_owners_are_other_places_and_prefixes_are_not() {
        let endpoint = ("endpoint", "https://s3.example.com");
        let one = place(&options(&[("bucket", "photos"), endpoint]));
        let inside = [("bucket", "photos"), ("prefix", "p"), endpoint];
        assert_eq!(one, place(&options(&inside)));
        for other in [
            &[("bucket", "music"), endpoint][..],
            &[("bucket", "photos"), ("endpoint", "https://s3.example.org")],
            &[
                ("bucket", "photos"),
                endpoint,
                ("credentials", "profile:other"),
            ],
            &[
                ("bucket", "photos"),
                endpoint,
                ("access_key_id", "AKIDOTHER"),
                ("secret_access_key", "secret"),
            ],
        ] {
            assert_ne!(one, place(&options(other)), "{other:?}");
        }
        assert_eq!(place(&options(&[("url", "memory://x")])), None);
    }

    #[test]
    fn the_files_of_places_that_nobody_mounts_any_more_go() {
        let dir = tempfile::tempdir().unwrap();
        let clock = SystemClock::shared();
        let make = |name: &str, days: u64| {
            let file = File::create(dir.path().join(name)).unwrap();
            let used = clock.wall() - Duration::from_secs(days * 24 * 3600);
            file.set_times(FileTimes::new().set_modified(used)).unwrap();
        };
        make("attributes-old", 91);
        make("attributes-new", 89);
        make("attributes", 91);
        make("something-else", 91);
        forget_old(dir.path(), &*clock);
        let mut left: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["attributes", "attributes-new", "something-else"]);
    }
}
