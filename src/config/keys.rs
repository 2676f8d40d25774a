//! The table of `-o` keys: the one place where a key, its aliases, its default and its meaning stand.
//!
//! Parsing, the command line's help and docs/OPTIONS.md are made from it. What keys mean together is
//! decided in `options`.

use std::path::PathBuf;
use std::time::Duration;

use super::Scope;
use super::credentials::{self, CredentialSource};
use super::endpoint::parse_endpoint;
use super::options::{Conflicts, Durability, MinFree};
use super::size::{parse_cache_disk, parse_duration, parse_mode, parse_size, parse_switch};
use super::url::normalized_prefix;

/// What was said, key by key, before it is put together.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) bucket: Option<String>,
    pub(super) prefix: Option<String>,
    pub(super) url: Option<String>,
    pub(super) endpoint: Option<String>,
    pub(super) region: Option<String>,
    pub(super) path_style: Option<bool>,
    pub(super) tls_verify: Option<bool>,
    pub(super) credentials: Option<CredentialSource>,
    pub(super) access_key_id: Option<String>,
    pub(super) secret_access_key: Option<secrecy::SecretString>,
    pub(super) session_token: Option<secrecy::SecretString>,
    pub(super) ro: Option<bool>,
    pub(super) rw: Option<bool>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) file_mode: Option<u32>,
    pub(super) dir_mode: Option<u32>,
    pub(super) umask: Option<u32>,
    pub(super) metadata_ttl: Option<Duration>,
    pub(super) exclusive: Option<bool>,
    pub(super) size: Option<u64>,
    pub(super) xattr: Option<bool>,
    pub(super) fsync_timeout: Option<Duration>,
    pub(super) durability: Option<Durability>,
    pub(super) upload_delay: Option<Duration>,
    pub(super) max_dirty_age: Option<Duration>,
    pub(super) conflicts: Option<Conflicts>,
    pub(super) part_size: Option<u64>,
    pub(super) concurrency: Option<usize>,
    pub(super) check: Option<bool>,
    pub(super) overlap: Option<bool>,
    pub(super) cache_memory: Option<u64>,
    pub(super) cache_disk: Option<u64>,
    pub(super) staging_limit: Option<u64>,
    pub(super) min_free: Option<MinFree>,
    pub(super) state_dir: Option<PathBuf>,
    pub(super) cache_dir: Option<PathBuf>,
    pub(super) ca_cert: Option<PathBuf>,
}

/// One key.
pub(super) struct KeySpec {
    pub(super) name: &'static str,
    pub(super) aliases: &'static [&'static str],
    /// What holds when nothing is said, for people.
    pub(super) default: &'static str,
    /// What a value may be, for people.
    pub(super) accepts: &'static str,
    pub(super) help: &'static str,
    /// The value is never shown or recorded with the others.
    pub(super) secret: bool,
    /// Means something to an `s3://` store only.
    pub(super) s3_only: bool,
    /// Not for a Docker volume's creator; says where its host's operator says it.
    pub(super) host_only: Option<&'static str>,
    /// Takes the value into the draft. `Err(None)`: not what [`accepts`](Self::accepts) says.
    pub(super) set: fn(&mut Draft, &str) -> Result<(), Option<String>>,
}

impl KeySpec {
    /// Whether the help shows the key to whoever speaks: a mount's place stands in its URL.
    pub(super) fn may_be_said(&self, scope: Scope) -> bool {
        match scope {
            Scope::Volume => self.host_only.is_none(),
            Scope::Mount => !matches!(self.name, "bucket" | "prefix" | "url"),
        }
    }
}

const BASE: KeySpec = KeySpec {
    name: "",
    aliases: &[],
    default: "-",
    accepts: "",
    help: "",
    secret: false,
    s3_only: false,
    host_only: None,
    set: |_, _| Err(None),
};

pub(super) const PART_SIZE: std::ops::RangeInclusive<u64> = 5 << 20..=5 << 30;
pub(super) const CONCURRENCY: std::ops::RangeInclusive<usize> = 1..=1024;
const FSYNC_TIMEOUT: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(24 * 3600);
/// A block of statfs: below this df could not show that there is room at all.
const SIZE_MIN: u64 = 4 << 10;
/// Below this a single part could not be staged.
const STAGING_LIMIT_MIN: u64 = 8 << 20;
/// Longest time that a changed file may wait before it sets out.
const DELAY_MAX: Duration = Duration::from_secs(24 * 3600);
/// Below this the cache could not hold what one sequential reader has in flight.
const CACHE_MEMORY_MIN: u64 = 8 << 20;
const SWITCH: &str = "true or false";

/// The table, in the order in which the documentation shows it.
pub(super) const KEYS: &[KeySpec] = &[
    KeySpec {
        name: "bucket",
        accepts: "a bucket's name",
        help: "the bucket",
        set: |draft, v| some(&mut draft.bucket, text(v)),
        ..BASE
    },
    KeySpec {
        name: "prefix",
        default: "the whole bucket",
        accepts: "the beginning of keys, up to a slash",
        help: "the part of the bucket that is the volume; no other key is touched",
        set: |draft, v| {
            draft.prefix = Some(normalized_prefix(v).map_err(|e| Some(e.to_string()))?);
            Ok(())
        },
        ..BASE
    },
    KeySpec {
        name: "url",
        accepts: "s3://BUCKET[/PREFIX], file:///DIR or memory://NAME; beside bucket: an endpoint",
        help: "bucket and prefix in one; file:// only below the daemon's --allow-local",
        set: |draft, v| some(&mut draft.url, text(v)),
        ..BASE
    },
    KeySpec {
        name: "endpoint",
        aliases: &["endpoint_url"],
        default: "Amazon S3",
        accepts: "a URL or host name without the bucket",
        help: "where the store is; a bare host is spoken to over TLS, http:// is said by writing it",
        s3_only: true,
        set: |draft, v| {
            draft.endpoint = Some(parse_endpoint(v).map_err(|e| Some(e.to_string()))?);
            Ok(())
        },
        ..BASE
    },
    KeySpec {
        name: "region",
        default: "asked for, or told by the endpoint",
        accepts: "a region's name",
        help: "the region that requests are signed for",
        s3_only: true,
        set: |draft, v| {
            let fits = (1..=64).contains(&v.len())
                && v.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
            some(&mut draft.region, fits.then(|| v.to_owned()))
        },
        ..BASE
    },
    KeySpec {
        name: "path_style",
        aliases: &["force_path_style", "use_path_request_style"],
        default: "false at Amazon (for names that fit a host's) and Aliyun, true elsewhere",
        accepts: SWITCH,
        help: "whether requests go to endpoint/bucket/key or to bucket.endpoint/key",
        s3_only: true,
        set: |draft, v| some(&mut draft.path_style, parse_switch(v)),
        ..BASE
    },
    KeySpec {
        name: "tls_verify",
        default: "true",
        accepts: SWITCH,
        help: "whether the server's certificate has to be valid",
        s3_only: true,
        set: |draft, v| some(&mut draft.tls_verify, parse_switch(v)),
        ..BASE
    },
    KeySpec {
        name: "credentials",
        default: "volumes: the daemon's environment; commands: the environment, then the AWS profile",
        accepts: credentials::ACCEPTED,
        help: "who we are to the store: a reference, read again when what it names changes",
        s3_only: true,
        set: |draft, v| {
            draft.credentials = Some(CredentialSource::parse(v).map_err(Some)?);
            Ok(())
        },
        ..BASE
    },
    KeySpec {
        name: "access_key_id",
        aliases: &["ak_id"],
        accepts: "an access key's id, together with secret_access_key",
        help: "a key given inline; Docker shows inline keys to whoever may inspect the volume",
        s3_only: true,
        set: |draft, v| some(&mut draft.access_key_id, text(v)),
        ..BASE
    },
    KeySpec {
        name: "secret_access_key",
        aliases: &["ak_secret"],
        accepts: "the secret of access_key_id",
        help: "prefer credentials=file:NAME, which keeps the secret out of Docker's records",
        secret: true,
        s3_only: true,
        set: |draft, v| some(&mut draft.secret_access_key, text(v).map(Into::into)),
        ..BASE
    },
    KeySpec {
        name: "session_token",
        accepts: "the token of temporary credentials, together with access_key_id",
        help: "inline temporary credentials end with their hour; a file or profile can be renewed",
        secret: true,
        s3_only: true,
        set: |draft, v| some(&mut draft.session_token, text(v).map(Into::into)),
        ..BASE
    },
    KeySpec {
        name: "ro",
        default: "false",
        accepts: SWITCH,
        help: "no change is accepted",
        set: |draft, v| some(&mut draft.ro, parse_switch(v)),
        ..BASE
    },
    KeySpec {
        name: "rw",
        default: "true",
        accepts: SWITCH,
        help: "the opposite of ro",
        set: |draft, v| some(&mut draft.rw, parse_switch(v)),
        ..BASE
    },
    KeySpec {
        name: "uid",
        default: "0; commands: the caller's",
        accepts: "a numeric user id",
        help: "owner of what carries no owner of its own",
        set: |draft, v| some(&mut draft.uid, id(v)),
        ..BASE
    },
    KeySpec {
        name: "gid",
        default: "0; commands: the caller's",
        accepts: "a numeric group id",
        help: "group of what carries no group of its own",
        set: |draft, v| some(&mut draft.gid, id(v)),
        ..BASE
    },
    KeySpec {
        name: "file_mode",
        default: "0644",
        accepts: "octal permissions, 0000 to 0777",
        help: "permissions of files that carry none of their own",
        set: |draft, v| some(&mut draft.file_mode, parse_mode(v)),
        ..BASE
    },
    KeySpec {
        name: "dir_mode",
        default: "0755",
        accepts: "octal permissions, 0000 to 0777",
        help: "permissions of directories that carry none of their own",
        set: |draft, v| some(&mut draft.dir_mode, parse_mode(v)),
        ..BASE
    },
    KeySpec {
        name: "umask",
        accepts: "octal permissions, 0000 to 0777",
        help: "both modes at once: what it takes away from 0666 and 0777",
        set: |draft, v| some(&mut draft.umask, parse_mode(v)),
        ..BASE
    },
    KeySpec {
        name: "metadata_ttl",
        default: "1s",
        accepts: "a time span (500ms, 1m 30s) or plain seconds",
        help: "how long a remote name or attribute is believed",
        set: |draft, v| some(&mut draft.metadata_ttl, parse_duration(v)),
        ..BASE
    },
    KeySpec {
        name: "exclusive",
        default: "false",
        accepts: SWITCH,
        help: "you assert that nobody else writes here: names and attributes are believed for ever",
        set: |draft, v| some(&mut draft.exclusive, parse_switch(v)),
        ..BASE
    },
    KeySpec {
        name: "xattr",
        default: "true from Linux 5.11 on",
        accepts: SWITCH,
        help: "extended attributes (user.*) are kept; before Linux 5.11 the kernel then asks for one before every write",
        set: |draft, v| some(&mut draft.xattr, parse_switch(v)),
        ..BASE
    },
    KeySpec {
        name: "size",
        default: "no limit",
        accepts: "a size of at least 4KiB",
        help: "the volume's quota: what would make its files larger together is EDQUOT, and df shows what is left",
        set: |draft, v| some(&mut draft.size, parse_size(v).filter(|s| *s >= SIZE_MIN)),
        ..BASE
    },
    KeySpec {
        name: "fsync_timeout",
        default: "1m",
        accepts: "a time span (500ms, 1m 30s) or plain seconds, from 100ms to 1day",
        help: "an fsync or close that waits longer for the store answers EIO",
        set: |draft, v| {
            some(
                &mut draft.fsync_timeout,
                parse_duration(v).filter(|t| FSYNC_TIMEOUT.contains(t)),
            )
        },
        ..BASE
    },
    KeySpec {
        name: "durability",
        default: "fsync",
        accepts: "close, fsync or local",
        help: "what waits for the bucket: close and fsync; fsync; nothing (fsync is for this host's disk)",
        set: |draft, v| some(&mut draft.durability, Durability::parse(v)),
        ..BASE
    },
    KeySpec {
        name: "upload_delay",
        default: "100ms",
        accepts: "a time span (500ms, 1m 30s) or plain seconds, up to 1day",
        help: "how long after its last close a changed file sets out; longer for one changed again and again",
        set: |draft, v| {
            some(
                &mut draft.upload_delay,
                parse_duration(v).filter(|t| *t <= DELAY_MAX),
            )
        },
        ..BASE
    },
    KeySpec {
        name: "max_dirty_age",
        default: "30s",
        accepts: "a time span (500ms, 1m 30s) or plain seconds, up to 1day",
        help: "when a changed file that nobody closes or syncs sets out at the latest",
        set: |draft, v| {
            some(
                &mut draft.max_dirty_age,
                parse_duration(v).filter(|t| *t <= DELAY_MAX),
            )
        },
        ..BASE
    },
    KeySpec {
        name: "conflicts",
        default: "keep-both",
        accepts: "keep-both, fail or overwrite",
        help: "what is done about a change that another host's change has overtaken",
        set: |draft, v| some(&mut draft.conflicts, Conflicts::parse(v)),
        ..BASE
    },
    KeySpec {
        name: "part_size",
        default: "8MiB",
        accepts: "a size from 5MiB to 5GiB",
        help: "bytes of an upload's part; it grows with the object",
        set: |draft, v| {
            some(
                &mut draft.part_size,
                parse_size(v).filter(|s| PART_SIZE.contains(s)),
            )
        },
        ..BASE
    },
    KeySpec {
        name: "concurrency",
        default: "64",
        accepts: "a number from 1 to 1024",
        help: "requests of the volume in flight at once",
        set: |draft, v| {
            some(
                &mut draft.concurrency,
                v.parse().ok().filter(|n| CONCURRENCY.contains(n)),
            )
        },
        ..BASE
    },
    KeySpec {
        name: "check",
        default: "true",
        accepts: SWITCH,
        help: "ask the store at once whether the bucket can be used; a definite no refuses the volume",
        set: |draft, v| some(&mut draft.check, parse_switch(v)),
        ..BASE
    },
    KeySpec {
        name: "overlap",
        default: "refuse",
        accepts: "allow or refuse",
        help: "a prefix inside another volume's (the two see each other like two hosts)",
        set: |draft, v| {
            let overlap = match v {
                "allow" => Some(true),
                "refuse" => Some(false),
                _ => None,
            };
            some(&mut draft.overlap, overlap)
        },
        ..BASE
    },
    KeySpec {
        name: "cache_memory",
        default: "256MiB",
        accepts: "a size of at least 8MiB",
        help: "memory for cached blocks",
        host_only: Some("serve --cache-memory"),
        set: |draft, v| {
            some(
                &mut draft.cache_memory,
                parse_size(v).filter(|s| *s >= CACHE_MEMORY_MIN),
            )
        },
        ..BASE
    },
    KeySpec {
        name: "cache_disk",
        default: "0",
        accepts: "a size of at least 64MiB, or 0",
        help: "disk for blocks that were read, which outlive the mount (0: none)",
        host_only: Some("serve --cache-disk"),
        set: |draft, v| some(&mut draft.cache_disk, parse_cache_disk(v)),
        ..BASE
    },
    KeySpec {
        name: "staging_limit",
        default: "20GiB",
        accepts: "a size of at least 8MiB",
        help: "bytes that may wait on this host until they are uploaded; writes wait for room then",
        host_only: Some("serve --staging-limit"),
        set: |draft, v| {
            some(
                &mut draft.staging_limit,
                parse_size(v).filter(|s| *s >= STAGING_LIMIT_MIN),
            )
        },
        ..BASE
    },
    KeySpec {
        name: "min_free",
        default: "10%",
        accepts: "a size, or a part of the disk from 0% to 99%",
        help: "what such bytes leave free of the disk",
        host_only: Some("serve --min-free"),
        set: |draft, v| some(&mut draft.min_free, v.parse().ok()),
        ..BASE
    },
    KeySpec {
        name: "state_dir",
        default: "below the user's state directory",
        accepts: "an absolute path",
        help: "where bytes wait until they are uploaded",
        host_only: Some("serve --state-dir"),
        set: |draft, v| some(&mut draft.state_dir, absolute(v)),
        ..BASE
    },
    KeySpec {
        name: "cache_dir",
        default: "below the user's cache directory",
        accepts: "an absolute path",
        help: "where attributes of objects, and blocks (cache_disk), are kept from one mount to the next; what is lost there is asked for again",
        host_only: Some("serve --cache-dir"),
        set: |draft, v| some(&mut draft.cache_dir, absolute(v)),
        ..BASE
    },
    KeySpec {
        name: "ca_cert",
        accepts: "an absolute path",
        help: "a PEM file of certificates to trust beside the system's",
        s3_only: true,
        host_only: Some("the host's certificate store"),
        set: |draft, v| some(&mut draft.ca_cert, absolute(v)),
        ..BASE
    },
];

/// The row of a key or of its alias.
pub(super) fn find(key: &str) -> Option<&'static KeySpec> {
    KEYS.iter()
        .find(|spec| spec.name == key || spec.aliases.contains(&key))
}

/// The key that somebody who wrote `key` most likely meant.
pub(super) fn nearest(key: &str) -> &'static str {
    // Long input is nobody's slip of the finger, and the comparison is quadratic.
    let key: String = key
        .chars()
        .take(64)
        .collect::<String>()
        .to_ascii_lowercase()
        .replace('-', "_");
    let names = KEYS
        .iter()
        .flat_map(|spec| std::iter::once(spec.name).chain(spec.aliases.iter().copied()));
    let score = |name: &str| {
        let distance = strsim::damerau_levenshtein(name, &key);
        let alike = strsim::jaro_winkler(name, &key);
        (distance, std::cmp::Reverse(ordered(alike)))
    };
    names.min_by_key(|name| score(name)).unwrap_or("bucket")
}

/// A likeness from 0 to 1 as something that can be ordered.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a likeness is between 0 and 1"
)]
fn ordered(likeness: f64) -> u32 {
    (likeness * 1e6) as u32
}

fn some<T>(slot: &mut Option<T>, value: Option<T>) -> Result<(), Option<String>> {
    *slot = Some(value.ok_or(None)?);
    Ok(())
}

fn text(value: &str) -> Option<String> {
    (!value.is_empty()).then(|| value.to_owned())
}

/// An id; the largest number is the kernel's "no such id".
fn id(value: &str) -> Option<u32> {
    let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    value.parse().ok().filter(|id| digits && *id < u32::MAX)
}

fn absolute(value: &str) -> Option<PathBuf> {
    let path = PathBuf::from(value);
    (path.is_absolute() && !value.contains('\0')).then_some(path)
}
