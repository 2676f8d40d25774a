//! The `-o` keys: one typed struct for `docker volume create`, `bucketvol mount` and fstab.
//!
//! The keys themselves stand in the table of `keys`; here they are put together, and contradictions are
//! refused.

mod help;
mod write;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::ExposeSecret;

pub use self::write::{Conflicts, Durability, MinFree, WriteOptions};
use super::credentials::{CredentialSource, Credentials};
use super::endpoint::{is_aliyun, is_aws, parse_endpoint, region_of};
use super::keys::{Draft, KEYS, KeySpec, find, nearest};
use super::size::{format_duration, format_size, shown};
use super::url::{Location, Scheme};

/// Who is speaking: some keys name host paths, and the creator of a Docker volume must not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// `docker volume create -o` and `bucketvol volume create -o`.
    Volume,
    /// `bucketvol mount -o` and fstab: the person who types it owns the host's paths.
    Mount,
}

/// Everything that can be said about one volume, checked and with its defaults filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Where the data is.
    pub location: Location,
    /// How to reach the store.
    pub endpoint: EndpointOptions,
    /// Who we are to the store.
    pub credentials: CredentialSource,
    /// What an object that carries no attributes looks like.
    pub ownership: Ownership,
    /// No change is accepted.
    pub read_only: bool,
    /// How long a remote name or attribute is believed; `None` with `exclusive`: for ever.
    pub metadata_ttl: Option<Duration>,
    /// Bytes that all files may have together; `None`: as many as the store takes.
    pub size: Option<u64>,
    /// Whether extended attributes are kept; `None`: where the kernel does not ask for one before every write then.
    pub xattr: Option<bool>,
    /// After this an fsync or close that still waits for the store answers EIO.
    pub fsync_timeout: Duration,
    /// What waits for the bucket, and when changes leave for it.
    pub write: WriteOptions,
    /// Sizes of the requests to the store.
    pub transfer: Transfer,
    /// Ask the store at create whether the bucket can be used.
    pub check: bool,
    /// Accept a prefix inside another volume's.
    pub allow_overlap: bool,
    /// What only a mount by the host's own operator may say.
    pub host: HostOptions,
}

/// How to reach a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointOptions {
    /// `http://` or `https://` URL without the bucket; `None`: the provider's own.
    pub url: Option<String>,
    /// The region requests are signed for; `None`: asked for, `us-east-1` where an endpoint is named.
    pub region: Option<String>,
    /// `endpoint/bucket/key` rather than `bucket.endpoint/key`.
    pub path_style: bool,
    /// Whether the server's certificate has to be valid.
    pub tls_verify: bool,
}

/// Owner and mode of objects that carry no attributes of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ownership {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits of files, without the type bits.
    pub file_mode: u32,
    /// Permission bits of directories, without the type bits.
    pub dir_mode: u32,
}

/// Sizes of the requests to a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// Bytes of an upload's part; it grows with the object so that 10 000 parts suffice.
    pub part_size: u64,
    /// Requests of one volume in flight at once.
    pub concurrency: usize,
}

/// What a Docker volume's creator must not say: host paths and the host's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostOptions {
    /// Bytes of memory for cached blocks.
    pub cache_memory: u64,
    /// Bytes of disk for blocks that were read; 0: none.
    pub cache_disk: u64,
    /// Bytes that may wait until they are uploaded.
    pub staging_limit: u64,
    /// What they leave free of the disk.
    pub min_free: MinFree,
    /// Where bytes wait until they are uploaded; `None`: below the user's state directory.
    pub state_dir: Option<PathBuf>,
    /// Where what is known of objects is kept, and blocks of theirs; `None`: below the user's cache directory.
    pub cache_dir: Option<PathBuf>,
    /// A PEM file of certificates to trust beside the system's.
    pub ca_cert: Option<PathBuf>,
}

/// A key or value that cannot be accepted; the message names the key, the value and the mend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct OptionError(pub String);

impl Default for Ownership {
    fn default() -> Self {
        Self {
            uid: 0,
            gid: 0,
            file_mode: 0o644,
            dir_mode: 0o755,
        }
    }
}

impl Default for Transfer {
    fn default() -> Self {
        Self {
            part_size: 8 << 20,
            concurrency: 64,
        }
    }
}

impl Default for HostOptions {
    fn default() -> Self {
        Self {
            cache_memory: 256 << 20,
            cache_disk: 0,
            staging_limit: 20 << 30,
            min_free: MinFree::Percent(10),
            state_dir: None,
            cache_dir: None,
            ca_cert: None,
        }
    }
}

impl Options {
    /// How long a remote name or attribute is believed when nothing is said.
    pub const METADATA_TTL: Duration = Duration::from_secs(1);

    /// How long an fsync waits for the store when nothing is said.
    pub const FSYNC_TIMEOUT: Duration = Duration::from_secs(60);

    /// Options as they are when only the location is said.
    pub fn at(location: Location) -> Self {
        let path_style = default_path_style(None, &location);
        Self {
            location,
            endpoint: EndpointOptions {
                url: None,
                region: None,
                path_style,
                tls_verify: true,
            },
            credentials: CredentialSource::Default,
            ownership: Ownership::default(),
            read_only: false,
            metadata_ttl: Some(Self::METADATA_TTL),
            fsync_timeout: Self::FSYNC_TIMEOUT,
            write: WriteOptions::default(),
            transfer: Transfer::default(),
            size: None,
            xattr: None,
            check: true,
            allow_overlap: false,
            host: HostOptions::default(),
        }
    }

    /// Puts keys and values together. `location` is a URL that was given beside them, as `bucketvol mount`
    /// has one; without it the pairs say where the data is.
    pub fn parse(
        pairs: impl IntoIterator<Item = (String, String)>,
        scope: Scope,
        location: Option<Location>,
    ) -> Result<Self, OptionError> {
        let mut draft = Draft::default();
        let mut said: BTreeMap<&'static str, String> = BTreeMap::new();
        for (key, value) in pairs {
            let spec = known(&key)?;
            if let (Scope::Volume, Some(instead)) = (scope, spec.host_only) {
                return refuse(format!(
                    "option {key} is not for a volume: only the host's operator says it ({instead}, or \
                     bucketvol mount -o {key}=…)"
                ));
            }
            (spec.set)(&mut draft, &value).map_err(|why| bad_value(spec, &key, &value, why))?;
            // An alias beside its key is fine as long as both say the same.
            if said
                .insert(spec.name, value.clone())
                .is_some_and(|before| before != value)
            {
                return refuse(format!(
                    "option {} is said twice, with different values",
                    spec.name
                ));
            }
        }
        let (location, endpoint) = place(&draft, location)?;
        if location.scheme != Scheme::S3
            && let Some(spec) = KEYS
                .iter()
                .find(|spec| spec.s3_only && said.contains_key(spec.name))
        {
            return refuse(format!(
                "option {} means nothing to {location}: it is for s3://",
                spec.name
            ));
        }
        let mut options = Self::at(location);
        options.credentials = credentials(&mut draft)?;
        options.endpoint = reach(&draft, endpoint, &options.location)?;
        options.ownership = ownership(&draft)?;
        options.read_only = match (draft.ro, draft.rw) {
            (Some(ro), Some(rw)) if ro == rw => {
                return refuse("options ro and rw contradict each other: say one of them");
            }
            (Some(ro), _) => ro,
            (None, rw) => !rw.unwrap_or(true),
        };
        options.metadata_ttl = match (draft.exclusive.unwrap_or(false), draft.metadata_ttl) {
            (true, Some(_)) => {
                return refuse(
                    "options exclusive and metadata_ttl contradict each other: exclusive means that names \
                     are believed for ever",
                );
            }
            (true, None) => None,
            (false, ttl) => Some(ttl.unwrap_or(Self::METADATA_TTL)),
        };
        let Draft {
            fsync_timeout,
            part_size,
            concurrency,
            check,
            overlap,
            ..
        } = draft;
        options.fsync_timeout = fsync_timeout.unwrap_or(options.fsync_timeout);
        options.transfer.part_size = part_size.unwrap_or(options.transfer.part_size);
        options.transfer.concurrency = concurrency.unwrap_or(options.transfer.concurrency);
        let write = &mut options.write;
        write.durability = draft.durability.unwrap_or(write.durability);
        write.upload_delay = draft.upload_delay.unwrap_or(write.upload_delay);
        write.max_dirty_age = draft.max_dirty_age.unwrap_or(write.max_dirty_age);
        write.conflicts = draft.conflicts.unwrap_or(write.conflicts);
        if write.max_dirty_age < write.upload_delay {
            return refuse(format!(
                "options upload_delay ({}) and max_dirty_age ({}) contradict each other: no file waits longer than \
                 max_dirty_age",
                format_duration(write.upload_delay),
                format_duration(write.max_dirty_age),
            ));
        }
        options.size = draft.size;
        options.xattr = draft.xattr;
        options.check = check.unwrap_or(options.check);
        options.allow_overlap = overlap.unwrap_or(options.allow_overlap);
        options.host.cache_memory = draft.cache_memory.unwrap_or(options.host.cache_memory);
        options.host.cache_disk = draft.cache_disk.unwrap_or(options.host.cache_disk);
        options.host.staging_limit = draft.staging_limit.unwrap_or(options.host.staging_limit);
        options.host.min_free = draft.min_free.unwrap_or(options.host.min_free);
        options.host.state_dir = draft.state_dir;
        options.host.cache_dir = draft.cache_dir;
        options.host.ca_cert = draft.ca_cert;
        Ok(options)
    }

    /// What was said beyond the defaults, in canonical words and without inline credentials.
    ///
    /// Parsed again together with [`inline_pairs`](Self::inline_pairs) it gives the same options.
    pub fn to_pairs(&self) -> BTreeMap<String, String> {
        let plain = Self::at(self.location.clone());
        let mut pairs = BTreeMap::new();
        let mut say = |differs: bool, key: &str, value: String| {
            if differs {
                pairs.insert(key.to_owned(), value);
            }
        };
        if self.location.scheme == Scheme::S3 {
            say(true, "bucket", self.location.bucket.clone());
            say(
                !self.location.prefix.is_empty(),
                "prefix",
                self.location.prefix.clone(),
            );
        } else {
            say(true, "url", self.location.to_string());
        }
        let endpoint = &self.endpoint;
        let url = endpoint.url.as_deref();
        say(
            url.is_some(),
            "endpoint",
            url.unwrap_or_default().to_owned(),
        );
        let told = url.and_then(region_of);
        say(
            endpoint.region != told,
            "region",
            endpoint.region.clone().unwrap_or_default(),
        );
        let path_style = default_path_style(url, &self.location);
        say(
            endpoint.path_style != path_style,
            "path_style",
            endpoint.path_style.to_string(),
        );
        say(!endpoint.tls_verify, "tls_verify", "false".to_owned());
        let unsaid = matches!(
            self.credentials,
            CredentialSource::Default | CredentialSource::Inline(_)
        );
        say(!unsaid, "credentials", self.credentials.to_string());
        say(self.read_only, "ro", "true".to_owned());
        let (own, base) = (self.ownership, plain.ownership);
        say(own.uid != base.uid, "uid", own.uid.to_string());
        say(own.gid != base.gid, "gid", own.gid.to_string());
        say(
            own.file_mode != base.file_mode,
            "file_mode",
            format!("{:04o}", own.file_mode),
        );
        say(
            own.dir_mode != base.dir_mode,
            "dir_mode",
            format!("{:04o}", own.dir_mode),
        );
        match self.metadata_ttl {
            None => say(true, "exclusive", "true".to_owned()),
            Some(ttl) => say(
                ttl != Self::METADATA_TTL,
                "metadata_ttl",
                format_duration(ttl),
            ),
        }
        say(
            self.fsync_timeout != plain.fsync_timeout,
            "fsync_timeout",
            format_duration(self.fsync_timeout),
        );
        let (own, base) = (self.write, plain.write);
        say(
            own.durability != base.durability,
            "durability",
            own.durability.as_str().to_owned(),
        );
        say(
            own.upload_delay != base.upload_delay,
            "upload_delay",
            format_duration(own.upload_delay),
        );
        say(
            own.max_dirty_age != base.max_dirty_age,
            "max_dirty_age",
            format_duration(own.max_dirty_age),
        );
        say(
            own.conflicts != base.conflicts,
            "conflicts",
            own.conflicts.as_str().to_owned(),
        );
        let (own, base) = (self.transfer, plain.transfer);
        say(
            own.part_size != base.part_size,
            "part_size",
            format_size(own.part_size),
        );
        say(
            own.concurrency != base.concurrency,
            "concurrency",
            own.concurrency.to_string(),
        );
        let size = self.size.map(format_size);
        say(size.is_some(), "size", size.unwrap_or_default());
        if let Some(xattr) = self.xattr {
            say(true, "xattr", xattr.to_string());
        }
        say(!self.check, "check", "false".to_owned());
        say(self.allow_overlap, "overlap", "allow".to_owned());
        let (own, base) = (&self.host, &plain.host);
        say(
            own.cache_memory != base.cache_memory,
            "cache_memory",
            format_size(own.cache_memory),
        );
        say(
            own.cache_disk != base.cache_disk,
            "cache_disk",
            format_size(own.cache_disk),
        );
        say(
            own.staging_limit != base.staging_limit,
            "staging_limit",
            format_size(own.staging_limit),
        );
        say(
            own.min_free != base.min_free,
            "min_free",
            own.min_free.to_string(),
        );
        for (key, path) in [
            ("state_dir", &own.state_dir),
            ("cache_dir", &own.cache_dir),
            ("ca_cert", &own.ca_cert),
        ] {
            let path = path.as_deref().map(|p| p.to_string_lossy().into_owned());
            say(path.is_some(), key, path.unwrap_or_default());
        }
        pairs
    }

    /// The inline credentials as keys and values, for a file of their own; empty without any.
    pub fn inline_pairs(&self) -> BTreeMap<String, String> {
        let CredentialSource::Inline(credentials) = &self.credentials else {
            return BTreeMap::new();
        };
        let mut pairs = BTreeMap::from([
            (
                "access_key_id".to_owned(),
                credentials.access_key_id.clone(),
            ),
            (
                "secret_access_key".to_owned(),
                credentials.secret_access_key.expose_secret().to_owned(),
            ),
        ]);
        if let Some(token) = &credentials.session_token {
            pairs.insert("session_token".to_owned(), token.expose_secret().to_owned());
        }
        pairs
    }
}

/// Whether a key's value is a secret.
pub fn is_secret(key: &str) -> bool {
    find(key).is_some_and(|spec| spec.secret)
}

/// Keys and values as somebody said them, the secret ones apart: the first can stand in a record or a bug
/// report, the second only in a file that nobody else reads.
pub fn split_secrets(
    pairs: impl IntoIterator<Item = (String, String)>,
) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
    pairs
        .into_iter()
        .partition(|(key, _)| find(key).is_some_and(|spec| !spec.secret))
}

fn known(key: &str) -> Result<&'static KeySpec, OptionError> {
    find(key).ok_or_else(|| {
        // The value is not repeated: the key may be a secret's, misspelt.
        OptionError(format!(
            "unknown option {}: did you mean {:?}?",
            shown(key),
            nearest(key)
        ))
    })
}

fn bad_value(spec: &KeySpec, key: &str, value: &str, why: Option<String>) -> OptionError {
    OptionError(match why {
        // A reason names as much of the value as may be seen.
        Some(why) => format!("option {key}: {why}"),
        None if spec.secret || value.contains('@') => {
            format!("option {key}: accepted is {}", spec.accepts)
        }
        None => format!(
            "option {key}={}: accepted is {}",
            shown(value),
            spec.accepts
        ),
    })
}

/// Where the data is, and the endpoint if one is said.
fn place(
    draft: &Draft,
    location: Option<Location>,
) -> Result<(Location, Option<String>), OptionError> {
    let endpoint = draft.endpoint.clone();
    if let Some(location) = location {
        for (key, said) in [
            ("bucket", draft.bucket.is_some()),
            ("prefix", draft.prefix.is_some()),
            ("url", draft.url.is_some()),
        ] {
            if said {
                return refuse(format!(
                    "option {key} contradicts the URL {location}: say it there"
                ));
            }
        }
        return Ok((location, endpoint));
    }
    match (&draft.bucket, &draft.url) {
        (Some(bucket), url) => {
            let location = Location::s3(bucket, draft.prefix.as_deref().unwrap_or_default())?;
            let Some(url) = url else {
                return Ok((location, endpoint));
            };
            let is_location = url
                .split_once("://")
                .is_some_and(|(s, _)| !matches!(s, "http" | "https"));
            if is_location {
                return refuse(
                    "options bucket and url contradict each other: say bucket (and prefix), or url=s3://…",
                );
            }
            if endpoint.is_some() {
                return refuse("options endpoint and url both name an endpoint: say one of them");
            }
            let url = parse_endpoint(url).map_err(|e| OptionError(format!("option url: {e}")))?;
            Ok((location, Some(url)))
        }
        (None, Some(url)) => {
            if draft.prefix.is_some() {
                return refuse(
                    "options url and prefix contradict each other: the prefix stands in the URL",
                );
            }
            let location =
                Location::parse(url).map_err(|e| OptionError(format!("option url: {e}")))?;
            Ok((location, endpoint))
        }
        (None, None) => {
            refuse("no bucket: say bucket=NAME (and prefix=…), or url=s3://BUCKET/PREFIX")
        }
    }
}

fn reach(
    draft: &Draft,
    url: Option<String>,
    location: &Location,
) -> Result<EndpointOptions, OptionError> {
    let path_style = draft
        .path_style
        .unwrap_or_else(|| default_path_style(url.as_deref(), location));
    if location.scheme == Scheme::S3 && !path_style && !fits_a_host(&location.bucket) {
        return refuse(format!(
            "bucket {} cannot be part of a host's name: say path_style=true",
            location.bucket
        ));
    }
    let region = draft
        .region
        .clone()
        .or_else(|| url.as_deref().and_then(region_of));
    Ok(EndpointOptions {
        url,
        region,
        path_style,
        tls_verify: draft.tls_verify.unwrap_or(true),
    })
}

/// Amazon promises `bucket.endpoint` for ever, for names that a certificate covers; OSS knows nothing
/// else; everything else speaks `endpoint/bucket`, which needs no DNS of its own.
fn default_path_style(endpoint: Option<&str>, location: &Location) -> bool {
    match endpoint {
        Some(url) if is_aliyun(url) => false,
        None => !location.bucket_is_dns_label(),
        Some(url) if is_aws(url) => !location.bucket_is_dns_label(),
        Some(_) => true,
    }
}

fn fits_a_host(bucket: &str) -> bool {
    bucket.len() <= 63
        && bucket
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b))
}

fn credentials(draft: &mut Draft) -> Result<CredentialSource, OptionError> {
    let inline = draft.access_key_id.is_some()
        || draft.secret_access_key.is_some()
        || draft.session_token.is_some();
    match (draft.credentials.take(), inline) {
        (Some(_), true) => {
            refuse("option credentials and an inline key contradict each other: say one of them")
        }
        (Some(source), false) => Ok(source),
        (None, false) => Ok(CredentialSource::Default),
        (None, true) => {
            let text = |s: Option<secrecy::SecretString>| s.map(|s| s.expose_secret().to_owned());
            Credentials::from_parts(
                "options access_key_id and secret_access_key",
                draft.access_key_id.take(),
                text(draft.secret_access_key.take()),
                text(draft.session_token.take()),
            )
            .map(CredentialSource::Inline)
        }
    }
}

fn ownership(draft: &Draft) -> Result<Ownership, OptionError> {
    let base = Ownership::default();
    if draft.umask.is_some() && (draft.file_mode.is_some() || draft.dir_mode.is_some()) {
        return refuse(
            "options umask and file_mode or dir_mode contradict each other: say umask or the modes",
        );
    }
    let (file_mode, dir_mode) = match draft.umask {
        Some(umask) => (0o666 & !umask, 0o777 & !umask),
        None => (base.file_mode, base.dir_mode),
    };
    Ok(Ownership {
        uid: draft.uid.unwrap_or(base.uid),
        gid: draft.gid.unwrap_or(base.gid),
        file_mode: draft.file_mode.unwrap_or(file_mode),
        dir_mode: draft.dir_mode.unwrap_or(dir_mode),
    })
}

fn refuse<T>(message: impl Into<String>) -> Result<T, OptionError> {
    Err(OptionError(message.into()))
}

#[cfg(test)]
mod tests;
