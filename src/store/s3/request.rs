//! One signed request and its answer: region, credentials, signature, and what a failure teaches.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use http::{HeaderMap, Method, StatusCode};
use object_store::aws::{AwsAuthorizer, AwsCredential};
use object_store::client::{HttpClient, HttpError, HttpRequest, HttpRequestBody, HttpResponse};
use parking_lot::RwLock;
use secrecy::ExposeSecret as _;
use sha2::{Digest as _, Sha256};

use super::endpoint::Endpoint;
use super::failure::Failure;
use super::transport;
use crate::config::Credentials;
use crate::config::credentials::CredentialProvider;
use crate::store::{Key, StoreError};

/// Bodies above this are hashed off the async threads.
const HASHED_INLINE: usize = 64 * 1024;

/// An error's body that is longer is not one of S3's.
const LONGEST_ERROR: usize = 64 * 1024;

/// A thousand keys of a kilobyte each, every byte encoded as three, stay below this.
const LONGEST_DOCUMENT: usize = 16 * 1024 * 1024;

/// A body that brings nothing for this long is broken off.
const SILENCE: Duration = Duration::from_secs(20);

/// How often one request is sent anew because the store named another region: a redirect from the
/// general address, then the bucket's own word.
const REGIONS: usize = 2;

/// One request, before it is signed.
#[derive(Debug, Clone)]
pub(super) struct Call<'a> {
    pub(super) method: Method,
    /// `None`: it is about the bucket.
    pub(super) key: Option<&'a Key>,
    pub(super) query: Vec<(&'static str, &'a str)>,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl<'a> Call<'a> {
    pub(super) fn new(method: Method, key: Option<&'a Key>) -> Self {
        Self {
            method,
            key,
            query: Vec::new(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
        }
    }

    pub(super) fn query(mut self, name: &'static str, value: &'a str) -> Self {
        self.query.push((name, value));
        self
    }
}

/// Why there is no answer to use.
#[derive(Debug)]
pub(super) enum Failed {
    /// The store said no.
    Answer(Box<Failure>),
    /// It did not come to an answer.
    Error(StoreError),
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Self::Answer(Box::new(failure))
    }
}

/// Sends requests for one bucket.
#[derive(Debug)]
pub(super) struct Requester {
    client: HttpClient,
    pub(super) endpoint: Endpoint,
    pub(super) place: String,
    credentials: Arc<CredentialProvider>,
    /// What requests are signed for; `None` until the provider has told. Only ever replaced by what
    /// the store itself named.
    region: RwLock<Option<String>>,
}

impl Requester {
    pub(super) fn new(
        client: HttpClient,
        endpoint: Endpoint,
        credentials: Arc<CredentialProvider>,
        region: Option<String>,
    ) -> Self {
        let place = endpoint.place();
        let region = RwLock::new(region.or_else(|| endpoint.implied_region()));
        Self {
            client,
            endpoint,
            place,
            credentials,
            region,
        }
    }

    /// Sends a request; an answer that is not a success is a failure.
    pub(super) async fn send(&self, call: Call<'_>) -> Result<HttpResponse, Failed> {
        let mut tries = 0;
        loop {
            let known = self.region.read().clone();
            let region = match known {
                Some(region) => Some(region),
                None => self.ask_region().await?,
            };
            let region = region.as_deref().unwrap_or(EVERY_REGION);
            let (status, headers, body) = match self.attempt(&call, region).await? {
                Ok(response) => return Ok(response),
                Err(failed) => failed,
            };
            let failure = Failure::read(status, &headers, &body);
            match failure.other_region(region) {
                Some(right) if tries < REGIONS => {
                    tracing::info!(place = %self.place, region = right, "learned the bucket's region");
                    *self.region.write() = Some(right.to_owned());
                    tries += 1;
                }
                _ => return Err(failure.into()),
            }
        }
    }

    /// Asks Amazon where the bucket is. Its answer needs no signature and is the same for everybody,
    /// whether it lets us in or not.
    async fn ask_region(&self) -> Result<Option<String>, Failed> {
        let url = self.endpoint.url(EVERY_REGION, None, &[]);
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.method_mut() = Method::HEAD;
        *request.uri_mut() = self.uri(&url)?;
        let response = self.execute(request).await?;
        let failure = Failure::read(response.status(), response.headers(), b"");
        if let Some(region) = failure.region {
            *self.region.write() = Some(region.clone());
            return Ok(Some(region));
        }
        Ok(None)
    }

    /// Signs and sends once. The inner error is an answer that says no, with its body.
    async fn attempt(
        &self,
        call: &Call<'_>,
        region: &str,
    ) -> Result<Result<HttpResponse, (StatusCode, HeaderMap, Bytes)>, Failed> {
        let url = self.endpoint.url(region, call.key, &call.query);
        let body = HttpRequestBody::from(call.body.clone());
        let mut request = HttpRequest::new(body);
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = self.uri(&url)?;
        *request.headers_mut() = call.headers.clone();
        // What cannot be read or found says its own mend.
        let credentials = self.credentials.current().map_err(|error| {
            Failed::Error(StoreError::Refused {
                place: self.place.clone(),
                reason: error.to_string(),
                mend: None,
                denied: true,
            })
        })?;
        if let Some(credentials) = credentials {
            self.sign(&mut request, &credentials, region, &call.body)
                .await?;
        }
        let response = self.execute(request).await?;
        if response.status().is_success() {
            return Ok(Ok(response));
        }
        let (parts, body) = response.into_parts();
        // What cannot be read of an error's body changes nothing: its status stands.
        let body = self
            .collect(body.bytes_stream(), LONGEST_ERROR)
            .await
            .unwrap_or_default();
        Ok(Err((parts.status, parts.headers, body)))
    }

    async fn sign(
        &self,
        request: &mut HttpRequest,
        credentials: &Credentials,
        region: &str,
        body: &Bytes,
    ) -> Result<(), Failed> {
        let token = credentials
            .session_token
            .as_ref()
            .map(|token| token.expose_secret().to_owned());
        // The signer puts these into headers and takes it for granted that it can.
        for (name, value) in [
            ("access_key_id", Some(credentials.access_key_id.as_str())),
            ("session_token", token.as_deref()),
        ] {
            let visible = |value: &str| value.bytes().all(|b| b.is_ascii_graphic());
            if !value.is_none_or(|value| !value.is_empty() && visible(value)) {
                let reason = format!("{name} holds characters that no key has");
                return Err(Failed::Error(
                    self.refused(reason, "was it pasted with a line break?"),
                ));
            }
        }
        let credential = AwsCredential {
            key_id: credentials.access_key_id.clone(),
            secret_key: credentials.secret_access_key.expose_secret().to_owned(),
            token,
        };
        // TLS guards the body on its way; hashing it once more would cost a core per gigabit.
        let unsigned = self.endpoint.is_tls() && body.len() > HASHED_INLINE;
        let digest = match () {
            () if unsigned || body.is_empty() => None,
            () if body.len() <= HASHED_INLINE => Some(Sha256::digest(body)),
            () => {
                let body = body.clone();
                let digest = tokio::task::spawn_blocking(move || Sha256::digest(&body)).await;
                Some(digest.map_err(|_| {
                    Failed::Error(self.unavailable("the process is going down".to_owned()))
                })?)
            }
        };
        AwsAuthorizer::new(&credential, "s3", region)
            .with_sign_payload(!unsigned)
            .try_authorize(request, digest.as_deref())
            .map_err(|_| {
                let mend = "was it pasted with a line break?";
                Failed::Error(self.refused("requests cannot be signed".to_owned(), mend))
            })
    }

    async fn execute(&self, request: HttpRequest) -> Result<HttpResponse, Failed> {
        let response = self.client.execute(request).await;
        response.map_err(|error| Failed::Error(self.explain_transport(&error)))
    }

    fn explain_transport(&self, error: &HttpError) -> StoreError {
        transport::explain(error, &self.place, self.endpoint.is_tls())
    }

    /// The whole body of an answer that is a document.
    pub(super) async fn document(&self, response: HttpResponse) -> Result<Bytes, StoreError> {
        self.collect(response.into_body().bytes_stream(), LONGEST_DOCUMENT)
            .await
    }

    async fn collect(
        &self,
        mut body: BoxStream<'static, Result<Bytes, HttpError>>,
        longest: usize,
    ) -> Result<Bytes, StoreError> {
        let mut whole = BytesMut::new();
        while let Some(chunk) = body.next().await {
            whole.extend_from_slice(&chunk.map_err(|error| self.explain_transport(&error))?);
            if whole.len() > longest {
                let reason = format!("an answer of more than {longest} bytes");
                return Err(self.refused(reason, "is the endpoint the S3 API's?"));
            }
        }
        Ok(whole.freeze())
    }

    /// A body as it arrives; one that falls silent ends in an error.
    pub(super) fn stream(&self, response: HttpResponse) -> crate::store::ByteStream {
        let place = self.place.clone();
        let tls = self.endpoint.is_tls();
        let body = response.into_body().bytes_stream();
        futures_util::stream::try_unfold(body, move |mut body| {
            let place = place.clone();
            async move {
                match tokio::time::timeout(SILENCE, body.next()).await {
                    Ok(Some(Ok(chunk))) => Ok(Some((chunk, body))),
                    Ok(Some(Err(error))) => Err(transport::explain(&error, &place, tls)),
                    Ok(None) => Ok(None),
                    Err(_) => Err(StoreError::Unavailable {
                        place,
                        reason: format!("nothing more came for {} s", SILENCE.as_secs()),
                        retry_after: None,
                    }),
                }
            }
        })
        .boxed()
    }

    fn uri(&self, url: &str) -> Result<http::Uri, Failed> {
        url.parse().map_err(|_| {
            Failed::Error(
                self.refused("the key is too long for a request".to_owned(), "shorten it"),
            )
        })
    }

    pub(super) fn refused(&self, reason: String, mend: &str) -> StoreError {
        StoreError::Refused {
            place: self.place.clone(),
            reason,
            mend: Some(mend.to_owned()),
            denied: false,
        }
    }

    fn unavailable(&self, reason: String) -> StoreError {
        StoreError::Unavailable {
            place: self.place.clone(),
            reason,
            retry_after: None,
        }
    }
}

/// The region whose address knows every bucket of Amazon's.
const EVERY_REGION: &str = "us-east-1";
