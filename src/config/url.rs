//! Where a volume's data is: `s3://bucket/prefix`, `file:///dir`, `memory://name`.
//!
//! The text is taken as it stands: nothing is percent-decoded, since `%` is an ordinary character of a
//! key. Refusals never repeat a URL that may hold credentials.

use std::fmt;
use std::path::{Path, PathBuf};

use super::OptionError;
use super::size::shown;

/// Longest prefix: S3 ends keys at 1024 bytes, and the names below the prefix need room.
const PREFIX_BYTES_MAX: usize = 768;

/// What a refusal says is possible.
const SUPPORTED: &str = "s3://BUCKET[/PREFIX], file:///DIR or memory://NAME";

/// The kind of store behind a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Amazon S3 and everything that speaks its protocol.
    S3,
    /// A directory of this host.
    File,
    /// This process's memory; gone with it.
    Memory,
}

/// A place that holds objects: a bucket, or a part of it under a prefix.
///
/// For [`Scheme::File`] the bucket is the absolute path of the directory. The prefix has no slash at
/// either end and may be empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Location {
    /// The kind of store.
    pub scheme: Scheme,
    /// The bucket's name, or the directory of a `file://` location.
    pub bucket: String,
    /// What every key of the volume begins with, without its trailing slash; empty for a whole bucket.
    pub prefix: String,
}

impl Location {
    /// Reads a location's URL.
    pub fn parse(url: &str) -> Result<Self, OptionError> {
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err(refuse(format!(
                "{} is not a URL; accepted: {SUPPORTED}",
                shown_place(url)
            )));
        };
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "s3" => Scheme::S3,
            "file" => Scheme::File,
            "memory" => Scheme::Memory,
            "s3a" | "s3n" => {
                return Err(refuse(
                    "s3a:// and s3n:// are other programs' words: say s3://",
                ));
            }
            known @ ("oss" | "gs" | "gcs" | "az" | "azure" | "abfs" | "abfss" | "swift") => {
                return Err(refuse(format!(
                    "{known}:// is not supported yet; {SUPPORTED} are"
                )));
            }
            "http" | "https" => {
                return Err(refuse(
                    "http:// and https:// name an endpoint, not a bucket: say s3://BUCKET/PREFIX with \
                     the option endpoint=URL",
                ));
            }
            other => {
                let scheme = shown(other);
                return Err(refuse(format!(
                    "unknown scheme {scheme}; accepted: {SUPPORTED}"
                )));
            }
        };
        let (host, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        // Checked before anything could be repeated: what stands before an @ is somebody's key.
        if host.contains('@') {
            return Err(refuse(
                "credentials in a URL are refused, since URLs end up in logs and process lists: say \
                 credentials=file:NAME or credentials=profile:NAME",
            ));
        }
        if rest.contains(['?', '#']) {
            let key = if scheme == Scheme::File {
                "choose another directory"
            } else {
                "say prefix=…"
            };
            return Err(refuse(format!(
                "a location's URL has no query and no fragment (for a ? or # in the name itself: {key})"
            )));
        }
        match scheme {
            Scheme::File if host.is_empty() => Self::file(path),
            Scheme::File => Err(refuse(format!(
                "file://{host}… names a host: say file:///DIR, with three slashes"
            ))),
            Scheme::S3 => Self::s3(host, path),
            Scheme::Memory => Self::memory(host, path),
        }
    }

    /// A bucket of an S3 store, or the part of it under `prefix`.
    pub fn s3(bucket: &str, prefix: &str) -> Result<Self, OptionError> {
        check_bucket(bucket)?;
        let prefix = normalized_prefix(prefix)?;
        Ok(Self {
            scheme: Scheme::S3,
            bucket: bucket.to_owned(),
            prefix,
        })
    }

    fn memory(name: &str, prefix: &str) -> Result<Self, OptionError> {
        if name.is_empty() {
            return Err(refuse("memory:// needs a name: say memory://NAME"));
        }
        let fits = name.len() <= 255
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !fits || is_dots(name) {
            let name = shown(name);
            return Err(refuse(format!(
                "memory store {name}: letters, digits, '.', '_' and '-' only"
            )));
        }
        let prefix = normalized_prefix(prefix)?;
        Ok(Self {
            scheme: Scheme::Memory,
            bucket: name.to_owned(),
            prefix,
        })
    }

    fn file(path: &str) -> Result<Self, OptionError> {
        check_text("directory", path)?;
        let mut bucket = String::with_capacity(path.len());
        for segment in path.split('/').filter(|s| !s.is_empty()) {
            if is_dots(segment) {
                let path = shown(path);
                return Err(refuse(format!(
                    "directory {path}: '.' and '..' are refused"
                )));
            }
            bucket.push('/');
            bucket.push_str(segment);
        }
        if bucket.is_empty() {
            return Err(refuse("file:// needs a directory below /: say file:///DIR"));
        }
        Ok(Self {
            scheme: Scheme::File,
            bucket,
            prefix: String::new(),
        })
    }

    /// Whether the bucket's name can stand in a host's name in front of an endpoint.
    pub fn bucket_is_dns_label(&self) -> bool {
        let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = self.bucket.as_bytes();
        bytes.len() <= 63
            && bytes
                .iter()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
            && edge(bytes.first())
            && edge(bytes.last())
    }

    /// Refuses a `file://` location that is not inside one of `roots`, symbolic links followed.
    ///
    /// A Docker volume's creator must not reach the host's directories by naming them; the daemon's
    /// operator opens some with `--allow-local`.
    pub fn require_local_below(&self, roots: &[PathBuf]) -> Result<(), OptionError> {
        if self.scheme != Scheme::File {
            return Ok(());
        }
        let wanted = resolved(Path::new(&self.bucket));
        if roots.iter().any(|root| wanted.starts_with(resolved(root))) {
            return Ok(());
        }
        Err(refuse(format!(
            "{self} is outside the directories that volumes may use: the daemon's operator allows one \
             with serve --allow-local DIR"
        )))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::S3 => "s3",
            Scheme::File => "file",
            Scheme::Memory => "memory",
        };
        write!(f, "{scheme}://{}", self.bucket)?;
        if !self.prefix.is_empty() {
            write!(f, "/{}", self.prefix)?;
        }
        Ok(())
    }
}

/// A prefix without slashes at its ends.
pub(super) fn normalized_prefix(prefix: &str) -> Result<String, OptionError> {
    check_text("prefix", prefix)?;
    let prefix = prefix.trim_matches('/');
    if prefix.len() > PREFIX_BYTES_MAX {
        let length = prefix.len();
        return Err(refuse(format!(
            "the prefix is {length} bytes long; at most {PREFIX_BYTES_MAX} leave room for names"
        )));
    }
    if prefix.split('/').any(is_dots) {
        let prefix = shown(prefix);
        return Err(refuse(format!(
            "prefix {prefix}: '.' and '..' are refused as segments"
        )));
    }
    Ok(prefix.to_owned())
}

/// Refuses what no store takes for a bucket's name. Today's rules of Amazon are stricter; older buckets and
/// other stores have capitals, underscores and up to 255 characters.
fn check_bucket(bucket: &str) -> Result<(), OptionError> {
    if bucket.is_empty() {
        return Err(refuse(
            "the bucket's name is missing: say s3://BUCKET/PREFIX or bucket=NAME",
        ));
    }
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = bucket.as_bytes();
    let valid = (3..=255).contains(&bytes.len())
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(b))
        && edge(bytes.first())
        && edge(bytes.last())
        && !bucket.contains("..");
    if valid {
        return Ok(());
    }
    Err(refuse(format!(
        "bucket {}: a name has 3 to 63 letters, digits, '.', '-' or '_', with a letter or digit at both ends",
        shown(bucket)
    )))
}

fn check_text(what: &str, text: &str) -> Result<(), OptionError> {
    if text.chars().any(char::is_control) {
        let text = shown(text);
        return Err(refuse(format!(
            "{what} {text}: control characters are refused"
        )));
    }
    Ok(())
}

fn is_dots(segment: &str) -> bool {
    matches!(segment, "." | "..")
}

/// The path with its links followed, as far as it exists.
fn resolved(path: &Path) -> PathBuf {
    let mut missing = Vec::new();
    let mut at = path;
    loop {
        if let Ok(real) = at.canonicalize() {
            return missing
                .iter()
                .rev()
                .fold(real, |path, name| path.join(name));
        }
        let (Some(parent), Some(name)) = (at.parent(), at.file_name()) else {
            return path.to_owned();
        };
        missing.push(name.to_owned());
        at = parent;
    }
}

/// A place as a refusal may repeat it.
fn shown_place(text: &str) -> String {
    if text.contains('@') {
        "the location".to_owned()
    } else {
        shown(text)
    }
}

fn refuse(message: impl Into<String>) -> OptionError {
    OptionError(message.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn accepted(url: &str) -> (Scheme, String, String) {
        let location = Location::parse(url).unwrap_or_else(|e| panic!("{url}: {e}"));
        (location.scheme, location.bucket, location.prefix)
    }

    #[test]
    fn a_location_is_scheme_bucket_and_bare_prefix() {
        for (url, scheme, bucket, prefix) in [
            ("s3://photos", Scheme::S3, "photos", ""),
            ("s3://photos/", Scheme::S3, "photos", ""),
            ("S3://photos/2026/", Scheme::S3, "photos", "2026"),
            ("s3://photos//a//b/", Scheme::S3, "photos", "a//b"),
            (
                "s3://photos/50%25 off+é",
                Scheme::S3,
                "photos",
                "50%25 off+é",
            ),
            ("s3://photos/a@b", Scheme::S3, "photos", "a@b"),
            ("s3://Old_Bucket.Name/x", Scheme::S3, "Old_Bucket.Name", "x"),
            ("file:///srv//data/", Scheme::File, "/srv/data", ""),
            ("memory://scratch", Scheme::Memory, "scratch", ""),
            ("memory://scratch/a/b", Scheme::Memory, "scratch", "a/b"),
        ] {
            assert_eq!(
                accepted(url),
                (scheme, bucket.to_owned(), prefix.to_owned()),
                "{url}"
            );
        }
    }

    #[test]
    fn a_refused_url_is_told_what_is_accepted() {
        for (url, says) in [
            ("photos/2026", "is not a URL; accepted: s3://BUCKET"),
            ("", "is not a URL"),
            ("s3://", "bucket's name is missing"),
            ("s3:///prefix", "bucket's name is missing"),
            ("s3://ab", "3 to 63"),
            ("s3://-abc", "letter or digit at both ends"),
            ("s3://a..b", "3 to 63"),
            ("s3://bu\0cket", "3 to 63"),
            ("s3://büro", "3 to 63"),
            ("s3://photos/a/../b", "'..' are refused"),
            ("s3://photos/./b", "'..' are refused"),
            ("s3://photos/a\0b", "control characters"),
            ("s3://photos/a?versions", "no query"),
            ("s3://photos/a#b", "no query and no fragment"),
            ("file://host/dir", "three slashes"),
            ("file:///", "needs a directory below /"),
            ("file:///a/../etc", "'..' are refused"),
            ("memory://", "needs a name"),
            ("memory://a b", "letters, digits"),
            ("oss://bucket", "not supported yet; s3://"),
            ("gs://bucket", "not supported yet"),
            ("az://container", "not supported yet"),
            ("s3a://bucket", "say s3://"),
            ("https://s3.example.com/bucket", "endpoint=URL"),
            ("ftp://x", "unknown scheme \"ftp\""),
        ] {
            let error = Location::parse(url).expect_err(url).to_string();
            assert!(error.contains(says), "{url}: {error}");
            assert!(
                !error.contains('\n') && !error.contains('\0'),
                "{url}: {error}"
            );
        }
        let long = format!("s3://photos/{}", "x".repeat(PREFIX_BYTES_MAX + 1));
        assert!(
            Location::parse(&long)
                .expect_err("long")
                .to_string()
                .contains("bytes long")
        );
    }

    #[test]
    fn credentials_in_a_url_are_refused_and_not_repeated() {
        for url in [
            "s3://AKIA:hunter2@photos/x",
            "file://me:hunter2@host/x",
            "AKIA:hunter2@photos",
        ] {
            let error = Location::parse(url).expect_err(url).to_string();
            assert!(
                !error.contains("hunter2") && !error.contains("AKIA"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_local_volume_stays_below_the_allowed_directories_even_through_links() {
        let dir = tempfile::tempdir().unwrap();
        let open = dir.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::os::unix::fs::symlink("/etc", open.join("out")).unwrap();
        let at = |path: &Path| Location::parse(&format!("file://{}", path.display())).unwrap();
        let roots = [open.clone()];
        assert_eq!(at(&open).require_local_below(&roots), Ok(()));
        assert_eq!(
            at(&open.join("not-yet/there")).require_local_below(&roots),
            Ok(())
        );
        for outside in [
            dir.path().to_owned(),
            dir.path().join("opened"),
            open.join("out/ssl"),
        ] {
            let error = at(&outside)
                .require_local_below(&roots)
                .expect_err("outside")
                .to_string();
            assert!(error.contains("--allow-local"), "{error}");
        }
        assert!(at(&open).require_local_below(&[]).is_err());
        assert_eq!(
            Location::parse("s3://photos")
                .unwrap()
                .require_local_below(&[]),
            Ok(())
        );
    }

    proptest! {
        #[test]
        fn what_is_accepted_prints_as_a_url_of_the_same_place(url in "(s3|memory|file)://[ -~]{0,40}") {
            if let Ok(location) = Location::parse(&url) {
                prop_assert_eq!(Location::parse(&location.to_string()), Ok(location));
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(url in any::<String>()) {
            let _ = Location::parse(&url);
        }
    }
}
