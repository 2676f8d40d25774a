//! Where requests go: from options to the URL of each request. Pure.

use std::fmt::Write as _;
use std::net::IpAddr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::config::options::EndpointOptions;
use crate::store::{Key, StoreError};

/// What SigV4 wants encoded in a query: all but the unreserved.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The same for a path, whose slashes stay.
const PATH: &AsciiSet = &QUERY.remove(b'/');

/// Used where nothing names a region: what stores other than Amazon's expect or ignore.
const REGION_OF_OTHERS: &str = "us-east-1";

/// A bucket's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    bucket: String,
    /// `http` or `https`.
    scheme: String,
    host: Host,
    /// What stands before the bucket or key in every path; no slash at its end.
    base: String,
    path_style: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    /// Host and port as they were given, without the bucket.
    Fixed(String),
    /// Amazon's: the region is part of the name.
    Amazon,
}

impl Endpoint {
    pub(super) fn new(bucket: &str, options: &EndpointOptions) -> Result<Self, StoreError> {
        let refuse = |reason: String, mend: &str| StoreError::Refused {
            place: format!("bucket `{bucket}`"),
            reason,
            mend: Some(mend.to_owned()),
            denied: false,
        };
        // It becomes part of paths and host names: nothing in it may end either.
        let safe = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b':');
        if bucket.is_empty() || !bucket.bytes().all(safe) || bucket.starts_with('.') {
            return Err(refuse(
                format!("a bucket cannot be called {bucket:?}"),
                "letters, digits, `-`, `.` and `_`",
            ));
        }
        let Some(url) = &options.url else {
            return Ok(Self {
                bucket: bucket.to_owned(),
                scheme: "https".to_owned(),
                host: Host::Amazon,
                base: String::new(),
                path_style: options.path_style || !fits_host_name(bucket),
            });
        };
        let example = "write it as https://host or http://host:port";
        let parsed = reqwest::Url::parse(url)
            .map_err(|error| refuse(format!("endpoint {url:?} is no URL: {error}"), example))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(refuse(
                format!("endpoint {url:?} is neither http:// nor https://"),
                example,
            ));
        }
        if !parsed.username().is_empty() || parsed.password().is_some() {
            return Err(refuse(
                "the endpoint's URL holds a user name or password".to_owned(),
                "give credentials by the options that are for them",
            ));
        }
        let host = parsed
            .host_str()
            .ok_or_else(|| refuse(format!("endpoint {url:?} names no host"), example))?;
        let is_address = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        // Alibaba answers path-style requests with an error only.
        let needs_name = is_alibaba(host);
        let path_style =
            is_address || (!needs_name && (options.path_style || !fits_host_name(bucket)));
        // Some give the endpoint with the bucket in it already.
        let host = match host
            .strip_prefix(bucket)
            .and_then(|rest| rest.strip_prefix('.'))
        {
            Some(rest) if !path_style => rest,
            _ => host,
        };
        let authority = match parsed.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        Ok(Self {
            bucket: bucket.to_owned(),
            scheme: parsed.scheme().to_owned(),
            host: Host::Fixed(authority),
            base: parsed.path().trim_end_matches('/').to_owned(),
            path_style,
        })
    }

    pub(super) fn bucket(&self) -> &str {
        &self.bucket
    }

    pub(super) fn is_tls(&self) -> bool {
        self.scheme == "https"
    }

    /// Whether it is Amazon's own service, whose every verb checks conditions.
    pub(super) fn is_amazon(&self) -> bool {
        match &self.host {
            Host::Amazon => true,
            Host::Fixed(host) => {
                host.ends_with(".amazonaws.com") || host.ends_with(".amazonaws.com.cn")
            }
        }
    }

    /// Whether the host is this machine, where no proxy belongs in between.
    pub(super) fn is_loopback(&self) -> bool {
        let Host::Fixed(authority) = &self.host else {
            return false;
        };
        let host = authority
            .rsplit_once(':')
            .map_or(authority.as_str(), |(host, _)| host);
        let host = if authority.ends_with(']') {
            authority
        } else {
            host
        };
        host == "localhost"
            || host
                .trim_matches(['[', ']'])
                .parse::<IpAddr>()
                .is_ok_and(|ip| ip.is_loopback())
    }

    /// The region the address itself implies; `None`: it has to be asked for.
    pub(super) fn implied_region(&self) -> Option<String> {
        match &self.host {
            Host::Amazon => None,
            Host::Fixed(host) => {
                let host = host.split(':').next().unwrap_or_default();
                amazon_region(host)
                    .or_else(|| alibaba_region(host))
                    .or_else(|| (!self.is_amazon()).then(|| REGION_OF_OTHERS.to_owned()))
            }
        }
    }

    /// The endpoint as a person gave it.
    pub(super) fn endpoint(&self) -> String {
        match &self.host {
            Host::Fixed(authority) => format!("{}://{authority}{}", self.scheme, self.base),
            Host::Amazon => "Amazon S3".to_owned(),
        }
    }

    /// The bucket as errors name it.
    pub(super) fn place(&self) -> String {
        format!("bucket `{}` at {}", self.bucket, self.endpoint())
    }

    /// The URL of a request; `None` as the key is the bucket itself.
    pub(super) fn url(&self, region: &str, key: Option<&Key>, query: &[(&str, &str)]) -> String {
        let authority = match &self.host {
            Host::Fixed(authority) => authority.clone(),
            Host::Amazon if region.starts_with("cn-") => format!("s3.{region}.amazonaws.com.cn"),
            Host::Amazon => format!("s3.{region}.amazonaws.com"),
        };
        let path = key.map_or_else(String::new, |key| {
            utf8_percent_encode(key.as_str(), PATH).to_string()
        });
        let Self {
            bucket,
            scheme,
            base,
            ..
        } = self;
        let mut url = match (self.path_style, key) {
            (true, Some(_)) => format!("{scheme}://{authority}{base}/{bucket}/{path}"),
            (true, None) => format!("{scheme}://{authority}{base}/{bucket}"),
            (false, _) => format!("{scheme}://{bucket}.{authority}{base}/{path}"),
        };
        for (n, (name, value)) in query.iter().enumerate() {
            let separator = if n == 0 { '?' } else { '&' };
            let value = utf8_percent_encode(value, QUERY);
            let _ = write!(url, "{separator}{name}={value}");
        }
        url
    }

    /// The value of `x-amz-copy-source`.
    pub(super) fn copy_source(&self, key: &Key) -> String {
        format!(
            "/{}/{}",
            self.bucket,
            utf8_percent_encode(key.as_str(), PATH)
        )
    }
}

/// Whether a key can be put into a URL at all: `.` and `..` are resolved away on the way to the wire,
/// and would name another object.
pub(super) fn is_addressable(key: &Key) -> bool {
    let key = key.as_str();
    !key.is_empty() && !key.contains('\0') && !key.split('/').any(|s| matches!(s, "." | ".."))
}

/// Whether a bucket's name can be the first label of a host name that a wildcard certificate covers.
fn fits_host_name(bucket: &str) -> bool {
    let label = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    bucket.len() <= 63 && bucket.bytes().all(label) && !bucket.starts_with('-')
}

fn is_alibaba(host: &str) -> bool {
    host.ends_with(".aliyuncs.com")
}

/// The region in `s3.REGION.amazonaws.com` and its variants.
fn amazon_region(host: &str) -> Option<String> {
    let name = host
        .strip_suffix(".amazonaws.com")
        .or_else(|| host.strip_suffix(".amazonaws.com.cn"))?;
    let region = name.rsplit('.').next()?;
    // `s3.amazonaws.com` is every region; `s3-REGION` is an old spelling.
    let region = region.strip_prefix("s3-").unwrap_or(region);
    (region.contains('-') && region != "s3-accelerate" && region != "accelerate")
        .then(|| region.to_owned())
}

/// The region in `[BUCKET.][vpc100-]oss-REGION[-internal].aliyuncs.com`.
fn alibaba_region(host: &str) -> Option<String> {
    let name = host.strip_suffix(".aliyuncs.com")?;
    let label = name.rsplit('.').next()?;
    let (_, region) = label.split_once("oss-")?;
    Some(
        region
            .strip_suffix("-internal")
            .unwrap_or(region)
            .to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(url: Option<&str>, path_style: bool) -> EndpointOptions {
        EndpointOptions {
            url: url.map(str::to_owned),
            region: None,
            path_style,
            tls_verify: true,
        }
    }

    fn endpoint(bucket: &str, url: Option<&str>, path_style: bool) -> Endpoint {
        Endpoint::new(bucket, &options(url, path_style)).unwrap()
    }

    #[test]
    fn the_bucket_stands_in_the_path_or_in_the_host() {
        let key = Key::new("a b/c+d/");
        let table = [
            (
                Some("http://127.0.0.1:9000"),
                false,
                "http://127.0.0.1:9000/photos/a%20b/c%2Bd/",
            ),
            (
                Some("http://[::1]:9000/"),
                false,
                "http://[::1]:9000/photos/a%20b/c%2Bd/",
            ),
            (
                Some("https://s3.example.com"),
                true,
                "https://s3.example.com/photos/a%20b/c%2Bd/",
            ),
            (
                Some("https://s3.example.com"),
                false,
                "https://photos.s3.example.com/a%20b/c%2Bd/",
            ),
            (
                Some("https://photos.s3.example.com"),
                false,
                "https://photos.s3.example.com/a%20b/c%2Bd/",
            ),
            (
                Some("https://gate.example.com/s3/"),
                true,
                "https://gate.example.com/s3/photos/a%20b/c%2Bd/",
            ),
            (
                Some("https://vpc100-oss-cn-hangzhou.aliyuncs.com"),
                true,
                "https://photos.vpc100-oss-cn-hangzhou.aliyuncs.com/a%20b/c%2Bd/",
            ),
            (
                None,
                true,
                "https://s3.eu-west-1.amazonaws.com/photos/a%20b/c%2Bd/",
            ),
            (
                None,
                false,
                "https://photos.s3.eu-west-1.amazonaws.com/a%20b/c%2Bd/",
            ),
        ];
        for (url, path_style, expected) in table {
            let endpoint = endpoint("photos", url, path_style);
            assert_eq!(endpoint.url("eu-west-1", Some(&key), &[]), expected);
        }
        let dotted = endpoint("my.photos", None, false);
        assert!(
            dotted
                .url("r", None, &[])
                .contains("amazonaws.com/my.photos")
        );
    }

    #[test]
    fn the_bucket_itself_is_asked_by_query() {
        let query = [("list-type", "2"), ("prefix", "a/b c&d")];
        let path = endpoint("b", Some("http://127.0.0.1:1"), true);
        assert_eq!(
            path.url("r", None, &query),
            "http://127.0.0.1:1/b?list-type=2&prefix=a%2Fb%20c%26d"
        );
        let host = endpoint("b", Some("http://h.example:1"), false);
        assert_eq!(
            host.url("r", None, &query[..1]),
            "http://b.h.example:1/?list-type=2"
        );
    }

    #[test]
    fn a_region_is_read_from_the_address_where_it_is_in_it() {
        let table = [
            ("https://s3.eu-west-1.amazonaws.com", Some("eu-west-1")),
            ("https://s3-eu-west-1.amazonaws.com", Some("eu-west-1")),
            (
                "https://s3.dualstack.us-west-2.amazonaws.com",
                Some("us-west-2"),
            ),
            ("https://s3.amazonaws.com", None),
            (
                "https://vpc100-oss-cn-hangzhou.aliyuncs.com",
                Some("cn-hangzhou"),
            ),
            (
                "https://oss-cn-beijing-internal.aliyuncs.com",
                Some("cn-beijing"),
            ),
            ("https://minio.example.com:9000", Some("us-east-1")),
        ];
        for (url, region) in table {
            assert_eq!(
                endpoint("b", Some(url), true).implied_region().as_deref(),
                region,
                "{url}"
            );
        }
        assert_eq!(endpoint("b", None, true).implied_region(), None);
    }

    #[test]
    fn an_endpoint_that_cannot_be_one_is_refused_with_its_mend() {
        for url in [
            "s3.example.com",
            "ftp://h",
            "https://",
            "http://user:geheim@h/",
        ] {
            let error = Endpoint::new("b", &options(Some(url), true))
                .unwrap_err()
                .to_string();
            assert!(error.contains('('), "{error}");
            assert!(!error.contains("geheim"), "{error}");
        }
        for bucket in ["", "a/b", "a?b", "..", "a b"] {
            assert!(
                Endpoint::new(bucket, &options(None, true)).is_err(),
                "{bucket:?}"
            );
        }
    }

    #[test]
    fn keys_with_dot_segments_are_never_sent() {
        for key in ["", ".", "..", "a/./b", "../a", "a/..", "a\0b"] {
            assert!(!is_addressable(&Key::new(key)), "{key:?}");
        }
        for key in [
            "a", "a/", "a//b", "/a", "...", ".a", "a/.b", "%2e%2e", "\t\u{1}",
        ] {
            assert!(is_addressable(&Key::new(key)), "{key:?}");
        }
    }

    #[test]
    fn loopback_is_told_from_the_world() {
        for url in [
            "http://127.0.0.1:9",
            "http://localhost",
            "http://localhost:80/x",
            "http://[::1]:9",
        ] {
            assert!(endpoint("b", Some(url), true).is_loopback(), "{url}");
        }
        for url in [
            "http://10.0.0.1:9",
            "http://example.com",
            "http://[2001:db8::1]",
        ] {
            assert!(!endpoint("b", Some(url), true).is_loopback(), "{url}");
        }
    }
}
