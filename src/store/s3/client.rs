//! The HTTP client, one for the whole process wherever the same trust is asked for.
//!
//! It follows no redirect and has no timeout but the one for connecting: a signature holds for one host
//! only, and only the caller knows how long a body may take.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use object_store::client::HttpClient;
use parking_lot::Mutex;

use crate::store::StoreError;

const CONNECT: Duration = Duration::from_secs(5);

/// Sent bytes that nobody acknowledges for this long mean a dead line; the kernel then closes it.
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);

/// Most servers close idle connections after a minute or more; using one as it is closed costs a retry.
const IDLE: Duration = Duration::from_secs(50);

/// Idle connections kept to one host: as many as one volume sends requests at once.
const IDLE_PER_HOST: usize = 64;

/// Clients kept for sharing. Each is another set of trusted authorities, so there are few.
const SHARED_CLIENTS: usize = 16;

/// What two users of one client have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trust {
    /// Whether `https` is spoken at all; if not, no authority is loaded.
    pub(super) tls: bool,
    /// Whether certificates have to be valid.
    pub(super) verify: bool,
    /// PEM of authorities beside the system's.
    pub(super) authorities: Option<Vec<u8>>,
    /// Whether proxies of the environment are passed by.
    pub(super) direct: bool,
    /// Host names whose address is given.
    pub(super) addresses: Vec<(String, SocketAddr)>,
}

/// The authorities in a PEM file.
pub(super) fn read_authorities(path: &Path) -> Result<Vec<u8>, StoreError> {
    std::fs::read(path).map_err(|error| cannot(&format!("ca_cert {}: {error}", path.display())))
}

/// A client with this trust, the one that is there already if there is one.
pub(super) fn shared(trust: Trust) -> Result<HttpClient, StoreError> {
    static CLIENTS: OnceLock<Mutex<Vec<(Trust, HttpClient)>>> = OnceLock::new();
    let mut clients = CLIENTS.get_or_init(Mutex::default).lock();
    if let Some((_, client)) = clients.iter().find(|(other, _)| *other == trust) {
        return Ok(client.clone());
    }
    let client = build(&trust)?;
    if clients.len() == SHARED_CLIENTS {
        clients.remove(0);
    }
    clients.push((trust, client.clone()));
    Ok(client)
}

fn build(trust: &Trust) -> Result<HttpClient, StoreError> {
    // An error means that somebody has chosen a provider already, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("bucketvol/", env!("CARGO_PKG_VERSION")))
        .http1_only()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .tcp_keepalive(UNACKNOWLEDGED)
        .tcp_user_timeout(UNACKNOWLEDGED)
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(IDLE_PER_HOST);
    if trust.direct {
        builder = builder.no_proxy();
    }
    for (host, address) in &trust.addresses {
        builder = builder.resolve(host, *address);
    }
    if !trust.tls {
        // A host without a certificate store can still speak plain HTTP.
        builder = builder.tls_certs_only([]);
    } else if !trust.verify {
        builder = builder.danger_accept_invalid_certs(true);
    } else if let Some(pem) = &trust.authorities {
        let certificates = reqwest::Certificate::from_pem_bundle(pem)
            .map_err(|error| cannot(&format!("ca_cert: {error}")))?;
        if certificates.is_empty() {
            return Err(cannot("ca_cert: there is no certificate in it"));
        }
        builder = builder.tls_certs_merge(certificates);
    }
    let client = builder
        .build()
        .map_err(|error| cannot(&format!("{error:?}")))?;
    Ok(HttpClient::new(client))
}

fn cannot(reason: &str) -> StoreError {
    StoreError::Refused {
        place: "HTTPS client".to_owned(),
        reason: reason.to_owned(),
        mend: Some(
            "ca_cert names a PEM file; the system's authorities come with the package ca-certificates"
                .to_owned(),
        ),
        denied: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trust() -> Trust {
        Trust {
            tls: false,
            verify: true,
            authorities: None,
            direct: true,
            addresses: vec![("only.this.test".into(), ([127, 0, 0, 1], 1).into())],
        }
    }

    #[test]
    fn equal_trust_shares_a_client() {
        let count = |trust: Trust| {
            shared(trust).unwrap();
        };
        count(trust());
        count(trust());
        count(Trust {
            direct: false,
            ..trust()
        });
    }

    #[test]
    fn a_file_without_a_certificate_is_no_authority() {
        let error = shared(Trust {
            tls: true,
            authorities: Some(b"hello".to_vec()),
            ..trust()
        });
        assert!(error.unwrap_err().to_string().contains("ca_cert"));
        let error = read_authorities(Path::new("/nonexistent/ca.pem")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/ca.pem"));
    }
}
