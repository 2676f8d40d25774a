//! Which credentials may be sent where. Pure.
//!
//! A session token travels in a header, so an endpoint that somebody else chose must not be sent one that
//! was not meant for it.

use crate::config::endpoint::{is_aws, origin, parse_endpoint};
use crate::config::{Location, OptionError, Options};

/// Where a volume's requests go.
#[derive(Debug, Clone)]
pub(super) struct Place {
    endpoint: Option<String>,
    location: Location,
}

impl Place {
    pub(super) fn of(options: &Options) -> Self {
        Self {
            endpoint: options.endpoint.url.clone(),
            location: options.location.clone(),
        }
    }

    fn is_aws(&self) -> bool {
        self.endpoint.as_deref().is_none_or(is_aws)
    }
}

/// Whether the daemon's own credentials may go to the volume's endpoint.
pub(super) fn check_ambient(place: &Place, trusted: &[String]) -> Result<(), OptionError> {
    let Some(endpoint) = place.endpoint.as_deref() else {
        return Ok(());
    };
    let wanted = origin(endpoint);
    if is_aws(endpoint) || (wanted.is_some() && trusted.iter().any(|url| origin(url) == wanted)) {
        return Ok(());
    }
    Err(OptionError(format!(
        "the daemon's own credentials are not sent to {endpoint}, which its operator has not named: say \
         credentials=file:NAME or credentials=anonymous, or start the daemon with --trust-endpoint {endpoint}"
    )))
}

/// Whether one of the `allow` entries of a credentials file covers the place.
///
/// `s3://bucket[/prefix][/*]` is a bucket at Amazon, `https://endpoint[/bucket[/prefix]][/*]` one elsewhere;
/// `*` as the bucket means each. A prefix covers what is below it.
pub(super) fn is_allowed(place: &Place, allow: &[String]) -> bool {
    allow.iter().any(|entry| covers(entry, place))
}

fn covers(entry: &str, place: &Place) -> bool {
    if let Some(path) = entry.strip_prefix("s3://") {
        return place.is_aws() && path_covers(path, &place.location);
    }
    let Some(endpoint) = place.endpoint.as_deref() else {
        return false;
    };
    let Some((scheme, rest)) = entry.split_once("://") else {
        return false;
    };
    let (host, path) = rest.split_once('/').unwrap_or((rest, "*"));
    let Ok(entry) = parse_endpoint(&format!("{scheme}://{host}")) else {
        return false;
    };
    let wanted = origin(endpoint);
    if wanted.is_none() || origin(&entry) != wanted {
        return false;
    }
    // An endpoint may have a path of its own, in front of the bucket.
    let own = endpoint
        .split_once("://")
        .and_then(|(_, rest)| rest.split_once('/'))
        .map_or("", |(_, p)| p);
    let below = match path.strip_prefix(own) {
        Some(below) if own.is_empty() || below.is_empty() || below.starts_with('/') => below,
        _ => return false,
    };
    path_covers(below.trim_start_matches('/'), &place.location)
}

/// `bucket/prefix/*` against a location, at the boundaries of segments.
fn path_covers(path: &str, location: &Location) -> bool {
    let path = path.strip_suffix('*').unwrap_or(path).trim_end_matches('/');
    let wanted = format!("{}/{}", location.bucket, location.prefix);
    let wanted = wanted.trim_end_matches('/');
    path.is_empty()
        || wanted == path
        || wanted
            .strip_prefix(path)
            .is_some_and(|r| r.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(endpoint: Option<&str>, url: &str) -> Place {
        Place {
            endpoint: endpoint.map(String::from),
            location: Location::parse(url).unwrap(),
        }
    }

    #[test]
    fn the_daemons_own_credentials_go_to_amazon_and_to_endpoints_its_operator_named() {
        let trusted = [
            "https://s3.example.com".to_owned(),
            "http://minio:9000".to_owned(),
        ];
        for endpoint in [
            None,
            Some("https://s3.eu-central-1.amazonaws.com"),
            Some("https://s3.example.com"),
            Some("https://s3.example.com:443/sub"),
            Some("http://minio:9000"),
        ] {
            assert_eq!(
                check_ambient(&place(endpoint, "s3://photos"), &trusted),
                Ok(()),
                "{endpoint:?}"
            );
        }
        for endpoint in [
            "https://evil.example",
            "http://s3.example.com",
            "http://minio:9001",
            "https://s3.example.com.evil.example",
            "http://s3.amazonaws.com",
            "https://ec2-1-2-3-4.compute-1.amazonaws.com",
        ] {
            let error = check_ambient(&place(Some(endpoint), "s3://photos"), &trusted)
                .expect_err(endpoint)
                .to_string();
            assert!(
                error.contains(&format!("--trust-endpoint {endpoint}")),
                "{error}"
            );
        }
    }

    #[test]
    fn an_allow_list_covers_endpoints_buckets_and_prefixes_at_their_boundaries() {
        let minio = Some("https://minio:9000");
        for (entry, endpoint, url, allowed) in [
            ("s3://photos/*", None, "s3://photos", true),
            ("s3://photos", None, "s3://photos/2026", true),
            ("s3://photos/2026", None, "s3://photos/2026/may", true),
            ("s3://photos/2026/*", None, "s3://photos/2026", true),
            ("s3://*", None, "s3://anything", true),
            ("s3://photos/2026", None, "s3://photos", false),
            ("s3://photos/2026", None, "s3://photos/20261", false),
            ("s3://photos/*", None, "s3://photos2", false),
            // A bucket's bare name is one at Amazon: another endpoint may have a bucket of that name.
            ("s3://photos/*", minio, "s3://photos", false),
            (
                "s3://photos/*",
                Some("https://s3.us-east-1.amazonaws.com"),
                "s3://photos",
                true,
            ),
            ("https://minio:9000", minio, "s3://photos", true),
            ("https://minio:9000/*", minio, "s3://photos", true),
            ("https://minio:9000/photos", minio, "s3://photos/x", true),
            (
                "https://minio:9000/photos/x/*",
                minio,
                "s3://photos/x",
                true,
            ),
            ("https://minio:9000/photos", minio, "s3://other", false),
            ("http://minio:9000/photos", minio, "s3://photos", false),
            ("https://minio:9000/photos", None, "s3://photos", false),
            (
                "https://host/base/photos",
                Some("https://host/base"),
                "s3://photos",
                true,
            ),
            (
                "https://host/photos",
                Some("https://host/base"),
                "s3://photos",
                false,
            ),
            (
                "https://host/*",
                Some("https://host/base"),
                "s3://photos",
                false,
            ),
            ("photos", None, "s3://photos", false),
        ] {
            let place = place(endpoint, url);
            assert_eq!(
                is_allowed(&place, &[entry.to_owned()]),
                allowed,
                "{entry} for {endpoint:?} {url}"
            );
        }
        assert!(!is_allowed(&place(None, "s3://photos"), &[]));
    }
}
