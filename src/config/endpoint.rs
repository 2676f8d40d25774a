//! The address of a store, as text: what is accepted, whose it is, what follows from it.
//!
//! Pure; nothing is resolved or asked.

use super::OptionError;
use super::size::shown;

/// Normalizes an endpoint: a URL without credentials, query, fragment and trailing slash. A bare host is
/// spoken to over TLS.
pub fn parse_endpoint(text: &str) -> Result<String, OptionError> {
    let text = text.trim();
    // Checked before anything could be repeated: what stands before an @ is somebody's key.
    if text.contains('@') {
        return Err(refuse(
            "an endpoint with credentials in it is refused: say credentials=file:NAME or \
             credentials=profile:NAME",
        ));
    }
    let bad = |why: &str| refuse(format!("endpoint {}: {why}", shown(text)));
    let url = if text.contains("://") {
        text.to_owned()
    } else {
        format!("https://{text}")
    };
    if url.contains(['?', '#']) {
        return Err(bad("no query and no fragment"));
    }
    let uri: http::Uri = url.parse().map_err(|_| bad("not a URL or host name"))?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(bad("not a URL or host name"));
    };
    if !matches!(scheme, "http" | "https") {
        return Err(bad("http:// or https:// is spoken, nothing else"));
    }
    let host = authority.host();
    if host.is_empty() || host == "." {
        return Err(bad("it names no host"));
    }
    if authority.as_str().len() != host.len() && authority.port_u16().is_none_or(|port| port == 0) {
        return Err(bad("the port is a number from 1 to 65535"));
    }
    let authority = authority.as_str().to_ascii_lowercase();
    let path = uri.path().trim_end_matches('/');
    if path.split('/').any(|segment| matches!(segment, "." | "..")) {
        return Err(bad("'.' and '..' are refused"));
    }
    Ok(format!("{scheme}://{authority}{path}"))
}

/// Scheme, host and port of a normalized endpoint, the port written out.
pub(super) fn origin(endpoint: &str) -> Option<(String, String, u16)> {
    let uri: http::Uri = endpoint.parse().ok()?;
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    let port = uri
        .port_u16()
        .unwrap_or(if scheme == "http" { 80 } else { 443 });
    Some((scheme, uri.host()?.to_ascii_lowercase(), port))
}

/// Whether the endpoint is Amazon's own S3, over TLS.
///
/// The names of S3's endpoints are spelled out: other names below `amazonaws.com` (EC2 instances, load
/// balancers) belong to whoever rents them.
pub(super) fn is_aws(endpoint: &str) -> bool {
    let Some((scheme, host, 443)) = origin(endpoint) else {
        return false;
    };
    let Some(labels) = host
        .strip_suffix(".amazonaws.com")
        .or_else(|| host.strip_suffix(".amazonaws.com.cn"))
    else {
        return false;
    };
    let labels: Vec<&str> = labels.split('.').collect();
    let service = |label: &str| matches!(label, "s3" | "s3-fips" | "s3-accelerate");
    let old_regional = |label: &str| {
        label
            .strip_prefix("s3-")
            .is_some_and(|region| !region.is_empty())
    };
    scheme == "https"
        && match labels.as_slice() {
            [label] => service(label) || old_regional(label),
            [label, _region] => service(label),
            [label, "dualstack", _region] => service(label),
            _ => false,
        }
}

/// Whether the endpoint is Aliyun's OSS, which takes no path-style requests.
pub(super) fn is_aliyun(endpoint: &str) -> bool {
    origin(endpoint).is_some_and(|(_, host, _)| host.ends_with(".aliyuncs.com"))
}

/// The region that an endpoint's own name tells.
pub(super) fn region_of(endpoint: &str) -> Option<String> {
    let (_, host, _) = origin(endpoint)?;
    if let Some(labels) = host.strip_suffix(".aliyuncs.com") {
        let label = labels.split('.').find_map(|label| {
            label
                .strip_prefix("vpc100-")
                .unwrap_or(label)
                .strip_prefix("oss-")
        })?;
        let region = label.strip_suffix("-internal").unwrap_or(label);
        return (!region.is_empty()).then(|| region.to_owned());
    }
    if is_aws(endpoint) {
        let labels = host.split(".amazonaws.com").next()?;
        return match labels.split('.').collect::<Vec<_>>().as_slice() {
            [_, region] | [_, _, region] => Some((*region).to_owned()),
            _ => None,
        };
    }
    None
}

fn refuse(message: impl Into<String>) -> OptionError {
    OptionError(message.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_endpoint_is_a_url_and_a_bare_host_means_tls() {
        for (text, url) in [
            ("https://s3.example.com", "https://s3.example.com"),
            ("https://S3.Example.com/", "https://s3.example.com"),
            ("s3.example.com", "https://s3.example.com"),
            ("minio:9000", "https://minio:9000"),
            ("http://127.0.0.1:9000/", "http://127.0.0.1:9000"),
            ("http://[::1]:9000", "http://[::1]:9000"),
            (
                "https://x.supabase.co/storage/v1/s3/",
                "https://x.supabase.co/storage/v1/s3",
            ),
            (
                "vpc100-oss-cn-hangzhou.aliyuncs.com",
                "https://vpc100-oss-cn-hangzhou.aliyuncs.com",
            ),
        ] {
            assert_eq!(parse_endpoint(text).as_deref(), Ok(url), "{text}");
            assert_eq!(parse_endpoint(url).as_deref(), Ok(url), "again: {url}");
        }
    }

    #[test]
    fn an_endpoint_that_is_no_address_is_refused() {
        for (text, says) in [
            ("", "not a URL"),
            ("https://", "not a URL"),
            ("ftp://host", "http:// or https://"),
            ("s3://bucket", "http:// or https://"),
            ("https://host:99999", "port"),
            ("https://host:0", "port"),
            ("https://host:", "port"),
            ("https://ho st", "not a URL"),
            ("https://host?x=1", "no query"),
            ("https://host#x", "no query"),
            ("https://host/a/../b", "'..' are refused"),
            ("https://host\n", ""),
        ] {
            match parse_endpoint(text) {
                Err(error) => assert!(error.to_string().contains(says), "{text}: {error}"),
                Ok(url) => assert!(says.is_empty(), "{text} became {url}"),
            }
        }
        let error = parse_endpoint("https://AKIA:hunter2@host")
            .expect_err("refused")
            .to_string();
        assert!(
            !error.contains("hunter2") && !error.contains("AKIA"),
            "{error}"
        );
    }

    #[test]
    fn only_the_names_of_s3_itself_are_amazons() {
        for endpoint in [
            "https://s3.amazonaws.com",
            "https://s3.eu-central-1.amazonaws.com",
            "https://s3-eu-west-1.amazonaws.com",
            "https://s3.dualstack.us-east-2.amazonaws.com",
            "https://s3-fips.us-gov-west-1.amazonaws.com",
            "https://s3.cn-north-1.amazonaws.com.cn",
        ] {
            assert!(is_aws(endpoint), "{endpoint}");
        }
        for endpoint in [
            "http://s3.amazonaws.com",
            "https://s3.amazonaws.com:8443",
            "https://ec2-1-2-3-4.compute-1.amazonaws.com",
            "https://s3-trap-123.us-east-1.elb.amazonaws.com",
            "https://s3.vpce.trap.us-east-1.amazonaws.com",
            "https://s3.amazonaws.com.evil.example",
            "https://amazonaws.com",
            "https://evils3.amazonaws.com",
        ] {
            assert!(!is_aws(endpoint), "{endpoint}");
        }
    }

    #[test]
    fn some_endpoints_tell_their_region() {
        for (endpoint, region) in [
            (
                "https://vpc100-oss-cn-hangzhou.aliyuncs.com",
                Some("cn-hangzhou"),
            ),
            (
                "https://oss-cn-hangzhou-internal.aliyuncs.com",
                Some("cn-hangzhou"),
            ),
            (
                "https://s3.oss-eu-central-1.aliyuncs.com",
                Some("eu-central-1"),
            ),
            (
                "https://s3.eu-central-1.amazonaws.com",
                Some("eu-central-1"),
            ),
            (
                "https://s3.dualstack.us-east-2.amazonaws.com",
                Some("us-east-2"),
            ),
            ("https://s3.amazonaws.com", None),
            ("http://minio:9000", None),
        ] {
            assert_eq!(region_of(endpoint).as_deref(), region, "{endpoint}");
        }
    }

    proptest! {
        #[test]
        fn a_normalized_endpoint_stays_as_it_is(text in "[ -~]{0,60}") {
            if let Ok(url) = parse_endpoint(&text) {
                prop_assert_eq!(parse_endpoint(&url), Ok(url));
            }
        }
    }
}
