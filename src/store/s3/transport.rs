//! What a connection that came to nothing means, in words a person can act on.
//!
//! Reads the chain of causes: what went wrong is an I/O or TLS error some levels down.

use std::error::Error;
use std::io;

use object_store::client::{HttpError, HttpErrorKind};
use rustls::{CertificateError, InvalidMessage};

use crate::store::StoreError;

/// What an attempt to speak with `place` ended in. `tls`: whether we spoke TLS.
pub(super) fn explain(error: &HttpError, place: &str, tls: bool) -> StoreError {
    let unavailable = |reason: String| StoreError::Unavailable {
        place: place.to_owned(),
        reason,
        retry_after: None,
    };
    let refused = |reason: &str, mend: &str| StoreError::Refused {
        place: place.to_owned(),
        reason: reason.to_owned(),
        mend: Some(mend.to_owned()),
        denied: false,
    };
    if let Some(cause) = find::<rustls::Error>(error) {
        return match cause {
            rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => refused(
                "something answered that does not speak TLS",
                "write http:// in the endpoint, or give the port of https",
            ),
            rustls::Error::InvalidCertificate(why) => refused(
                &certificate(why),
                "ca_cert=FILE trusts its authority, tls_verify=false any",
            ),
            other => unavailable(format!("no TLS connection: {other}")),
        };
    }
    let text = chain(error);
    if text.contains("dns error") || text.contains("failed to lookup address") {
        return unavailable("the endpoint's host name does not resolve".to_owned());
    }
    // A TLS server answers a plain request with an alert: bytes that are no HTTP.
    if !tls && (text.contains("invalid HTTP version") || text.contains("invalid HTTP status")) {
        return refused(
            "something answered that does not speak HTTP",
            "write https:// in the endpoint if that is what is spoken there",
        );
    }
    match find::<io::Error>(error).map(io::Error::kind) {
        Some(io::ErrorKind::ConnectionRefused) => {
            return unavailable("connection refused: nothing listens there".to_owned());
        }
        Some(io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable) => {
            return unavailable("there is no route to the endpoint".to_owned());
        }
        Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => {
            return unavailable("the connection was reset".to_owned());
        }
        _ => {}
    }
    match error.kind() {
        HttpErrorKind::Timeout => unavailable("it did not answer in time".to_owned()),
        HttpErrorKind::Connect => unavailable(format!("no connection: {}", last(error))),
        _ => unavailable(format!("the connection broke: {}", last(error))),
    }
}

fn certificate(why: &CertificateError) -> String {
    match why {
        CertificateError::UnknownIssuer => {
            "the server's certificate is not signed by an authority this host trusts".to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the server's certificate has expired".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the server's certificate is not valid yet: is this host's clock right?".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "the server's certificate is for another host name".to_owned()
        }
        other => format!("the server's certificate is not valid: {other}"),
    }
}

/// The first error of type `T` among the causes, those inside an [`io::Error`] included.
fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(found) = cause.downcast_ref::<T>() {
            // An I/O error that only wraps another error has no kind worth knowing.
            let wraps = cause
                .downcast_ref::<io::Error>()
                .is_some_and(|io| io.get_ref().is_some());
            if !wraps {
                return Some(found);
            }
        }
        // `source()` of an I/O error passes over the error it holds.
        next = match cause
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(inner) => Some(inner),
            None => cause.source(),
        };
    }
    None
}

/// All causes in one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// The innermost cause, which says most.
fn last(error: &(dyn Error + 'static)) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(kind: HttpErrorKind, error: io::Error, tls: bool) -> StoreError {
        explain(&HttpError::new(kind, error), "bucket `b`", tls)
    }

    #[test]
    fn what_may_pass_is_unavailable_and_what_will_not_is_refused_with_a_mend() {
        let tls = |error: rustls::Error| io::Error::new(io::ErrorKind::InvalidData, error);
        let unknown = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let plain = rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType);
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let table = [
            (refused, true, "connection refused"),
            (
                io::Error::from(io::ErrorKind::ConnectionReset),
                true,
                "reset",
            ),
            (io::Error::other("dns error: no such host"), true, "resolve"),
            (tls(unknown), false, "ca_cert"),
            (tls(plain), false, "write http://"),
        ];
        for (error, transient, word) in table {
            let error = explained(HttpErrorKind::Connect, error, true);
            assert_eq!(error.is_transient(), transient, "{error}");
            assert!(error.to_string().contains(word), "{error}");
        }
        let odd = io::Error::other("invalid HTTP version parsed");
        let error = explained(HttpErrorKind::Unknown, odd, false);
        assert!(error.to_string().contains("write https://"), "{error}");
        let slow = io::Error::from(io::ErrorKind::TimedOut);
        assert!(
            explained(HttpErrorKind::Timeout, slow, false)
                .to_string()
                .contains("in time")
        );
    }
}
