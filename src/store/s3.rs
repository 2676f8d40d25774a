//! Any store that speaks S3, by requests of our own.
//!
//! object_store gives the HTTP client and the signer; its own S3 client cannot name every key, copy
//! parts or replace metadata. Single attempts only: retries are [`super::Bucket`]'s. What one request
//! teaches (the region, a header the store does not know) is kept for the next.

mod client;
mod conditions;
mod deletes;
mod endpoint;
mod failure;
mod headers;
mod listing;
mod request;
mod transport;
mod xml;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use object_store::client::HttpResponse;

use self::client::Trust;
use self::conditions::Conditions;
use self::endpoint::{Endpoint, is_addressable};
use self::failure::{Asked, Failure, WRITE};
pub(super) use self::headers::user_metadata_fit;
use self::request::{Call, Failed, Requester};
use self::xml::Element;
use super::counts::{Counters, Verb};
use super::{
    ByteStream, ConditionalWrites, CopyOptions, KeptVersion, Key, ListPage, ListRequest, Metadata,
    MetadataDirective, Object, ObjectVersion, PartTag, Precondition, Store, StoreError, UploadId,
    UploadPage, VersionId,
};
use crate::clock::Clock;
use crate::config::Location;
use crate::config::credentials::CredentialProvider;
use crate::config::options::EndpointOptions;

const COPY_SOURCE: HeaderName = HeaderName::from_static("x-amz-copy-source");
const COPY_SOURCE_IF_MATCH: HeaderName = HeaderName::from_static("x-amz-copy-source-if-match");
const COPY_SOURCE_RANGE: HeaderName = HeaderName::from_static("x-amz-copy-source-range");
const METADATA_DIRECTIVE: HeaderName = HeaderName::from_static("x-amz-metadata-directive");

/// What the host's operator says about connections, beside the endpoint.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dialling<'a> {
    /// A PEM file of authorities to trust beside the system's.
    pub(super) host_ca: Option<&'a Path>,
    /// Host names whose address is given.
    pub(super) addresses: &'a [(String, SocketAddr)],
}

/// A bucket of an S3-compatible store.
#[derive(Debug)]
pub(super) struct S3Store {
    requester: Requester,
    clock: Arc<dyn Clock>,
    counters: Arc<Counters>,
    conditions: Conditions,
    /// The store does not know DeleteObjects.
    no_batch_delete: AtomicBool,
    /// Some answer was a success, so endpoint, bucket and credentials are right.
    proven: AtomicBool,
    /// Entries of listings that could not be read.
    skipped: AtomicU64,
}

impl S3Store {
    /// Sends no request. `counters` count what a verb costs beyond its own request.
    pub(super) fn new(
        location: &Location,
        options: &EndpointOptions,
        dialling: Dialling<'_>,
        credentials: Arc<CredentialProvider>,
        clock: Arc<dyn Clock>,
        counters: Arc<Counters>,
    ) -> Result<Self, StoreError> {
        let endpoint = Endpoint::new(&location.bucket, options)?;
        let client = client::shared(Trust {
            tls: endpoint.is_tls(),
            verify: options.tls_verify,
            authorities: dialling.host_ca.map(client::read_authorities).transpose()?,
            direct: endpoint.is_loopback(),
            addresses: dialling.addresses.to_vec(),
        })?;
        let conditions = Conditions::new(endpoint.is_amazon(), &location.prefix);
        let region = options.region.clone();
        Ok(Self {
            requester: Requester::new(client, endpoint, credentials, region),
            clock,
            counters,
            conditions,
            no_batch_delete: AtomicBool::new(false),
            proven: AtomicBool::new(false),
            skipped: AtomicU64::new(0),
        })
    }

    async fn send(&self, call: Call<'_>) -> Result<HttpResponse, Failed> {
        if let Some(key) = call.key
            && !is_addressable(key)
        {
            let reason = format!("key {:?} cannot be sent over HTTP", key.as_str());
            let mend = "rename it with a tool of the store's own";
            return Err(Failed::Error(self.requester.refused(reason, mend)));
        }
        let response = self.requester.send(call).await?;
        self.proven.store(true, Ordering::Relaxed);
        Ok(response)
    }

    fn asked<'a>(
        &'a self,
        verb: &'static str,
        key: Option<&'a Key>,
        condition: &'a Precondition,
        endpoint: &'a str,
    ) -> Asked<'a> {
        Asked {
            place: &self.requester.place,
            bucket: self.requester.endpoint.bucket(),
            endpoint,
            key,
            condition,
            verb,
            now: self.clock.wall(),
        }
    }

    fn explain(
        &self,
        failed: Failed,
        verb: &'static str,
        key: Option<&Key>,
        condition: &Precondition,
    ) -> StoreError {
        match failed {
            Failed::Error(error) => error,
            Failed::Answer(failure) => {
                let endpoint = self.requester.endpoint.endpoint();
                failure.explain(&self.asked(verb, key, condition, &endpoint))
            }
        }
    }

    fn not_s3(&self, verb: &'static str, why: &str) -> StoreError {
        failure::not_s3(&self.asked(verb, None, &Precondition::None, ""), why)
    }

    /// Metadata as the headers of a request.
    fn headers_of(&self, metadata: &Metadata) -> Result<HeaderMap, StoreError> {
        let mut headers = HeaderMap::new();
        headers::write(metadata, &mut headers)
            .map_err(|reason| self.requester.refused(reason, "use another name"))?;
        Ok(headers)
    }

    /// The root element of an answer that is a document; an `<Error>` in it is a failure.
    async fn document(
        &self,
        response: HttpResponse,
    ) -> Result<Result<Element, Failure>, StoreError> {
        let headers = response.headers().clone();
        let document = self.requester.document(response).await?;
        if let Some(failure) = Failure::inside_success(&headers, &document) {
            return Ok(Err(failure));
        }
        match Element::parse(&document) {
            Ok(root) => Ok(Ok(root)),
            Err(why) => Err(self.not_s3(WRITE, &why)),
        }
    }

    /// The ETag in a document that acknowledges a copy or an upload.
    async fn tag_of(
        &self,
        response: HttpResponse,
        verb: &'static str,
        key: &Key,
        condition: &Precondition,
    ) -> Result<Option<String>, StoreError> {
        match self.document(response).await? {
            Ok(root) => Ok(root.text_of("ETag").map(|tag| tag.trim().to_owned())),
            Err(failure) => Err(self.explain(failure.into(), verb, Some(key), condition)),
        }
    }

    /// The version a write made; a store that did not say is asked.
    ///
    /// The write is done: not knowing its version, which conditions then leave out, is no failure.
    async fn version(&self, key: &Key, tag: Option<String>) -> ObjectVersion {
        match tag.filter(|tag| !tag.is_empty()) {
            Some(tag) => ObjectVersion(Arc::from(tag)),
            None => match self.look_at(key).await {
                Ok(object) => object.version,
                Err(error) => {
                    tracing::warn!(%key, %error, "the version just written is not known");
                    ObjectVersion(Arc::from(""))
                }
            },
        }
    }

    /// The bytes of `range`, of the newest version or of the one of this id: it has to be `version`.
    async fn read(
        &self,
        key: &Key,
        range: Range<u64>,
        version: &ObjectVersion,
        id: Option<&VersionId>,
    ) -> Result<ByteStream, StoreError> {
        let mut call = Call::new(Method::GET, Some(key));
        if let Some(id) = id {
            call = call.query("versionId", &id.0);
        }
        let bytes = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
        if let Ok(bytes) = HeaderValue::from_str(&bytes) {
            call.headers.insert(header::RANGE, bytes);
        }
        if let Some(tag) = tag_header(version) {
            call.headers.insert(header::IF_MATCH, tag);
        }
        let response = self
            .send(call)
            .await
            .map_err(|failed| self.explain(failed, "read", Some(key), &Precondition::None))?;
        // For stores that pass over If-Match.
        if tag_in(response.headers()).is_some_and(|tag| !version.0.is_empty() && *tag != *version.0)
        {
            return Err(StoreError::Precondition { key: key.clone() });
        }
        // A store that passes over Range sends everything.
        let mut before = match response.status() {
            StatusCode::PARTIAL_CONTENT => 0,
            _ => range.start,
        };
        let body = self.requester.stream(response);
        if before == 0 {
            return Ok(body);
        }
        Ok(body
            .map(move |chunk| {
                let mut chunk = chunk?;
                let cut = usize::try_from(before)
                    .unwrap_or(usize::MAX)
                    .min(chunk.len());
                before -= cut as u64;
                Ok(chunk.split_off(cut))
            })
            .boxed())
    }

    /// HEAD of our own accord.
    async fn look_at(&self, key: &Key) -> Result<Object, StoreError> {
        self.counters.count(Verb::Head);
        self.head(key).await
    }
}

/// An ETag as the value of a header; `None` if the store gave none that could be one.
fn tag_header(version: &ObjectVersion) -> Option<HeaderValue> {
    HeaderValue::from_str(&version.0)
        .ok()
        .filter(|value| !value.is_empty())
}

/// The ETag in an answer's headers.
fn tag_in(headers: &HeaderMap) -> Option<String> {
    headers
        .get(header::ETAG)
        .and_then(|tag| tag.to_str().ok())
        .map(str::to_owned)
}

#[async_trait]
impl Store for S3Store {
    fn conditional_writes(&self) -> Option<ConditionalWrites> {
        self.conditions.known()
    }

    async fn head(&self, key: &Key) -> Result<Object, StoreError> {
        let none = &Precondition::None;
        let response = match self.send(Call::new(Method::HEAD, Some(key))).await {
            Ok(response) => response,
            Err(failed) => {
                // An answer to HEAD has no body to say why. As long as nothing ever worked here, a
                // question that is answered in words is worth a request.
                let wordless = matches!(
                    &failed,
                    Failed::Answer(failure) if matches!(
                        failure.status,
                        StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN | StatusCode::MOVED_PERMANENTLY
                    )
                );
                if wordless && !self.proven.load(Ordering::Relaxed) {
                    let request = ListRequest {
                        prefix: key.clone(),
                        delimiter: false,
                        max_keys: 1,
                        continuation: None,
                    };
                    self.counters.count(Verb::List);
                    self.list(&request).await?;
                    // It may have taught the region.
                    let again = self.send(Call::new(Method::HEAD, Some(key))).await;
                    again.map_err(|failed| self.explain(failed, "read", Some(key), none))?
                } else {
                    return Err(self.explain(failed, "read", Some(key), none));
                }
            }
        };
        let headers = response.headers();
        let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let size = text(header::CONTENT_LENGTH)
            .and_then(|size| size.parse().ok())
            .ok_or_else(|| self.not_s3("read", "it does not say the object's size"))?;
        Ok(Object {
            size,
            version: ObjectVersion(Arc::from(tag_in(headers).unwrap_or_default())),
            modified: text(header::LAST_MODIFIED)
                .and_then(|date| httpdate::parse_http_date(date).ok())
                .unwrap_or(SystemTime::UNIX_EPOCH),
            metadata: headers::read(headers),
            answered: headers::answered(headers),
        })
    }

    async fn get(
        &self,
        key: &Key,
        range: Range<u64>,
        version: &ObjectVersion,
    ) -> Result<ByteStream, StoreError> {
        self.read(key, range, version, None).await
    }

    async fn list_versions(&self, key: &Key) -> Result<Vec<KeptVersion>, StoreError> {
        let call = Call::new(Method::GET, None)
            .query("versions", "")
            .query("encoding-type", "url")
            .query("prefix", key.as_str());
        let response = self
            .send(call)
            .await
            .map_err(|failed| self.explain(failed, "list versions", None, &Precondition::None))?;
        let document = self.requester.document(response).await?;
        listing::read_versions(&document, key).map_err(|why| self.not_s3("list versions", &why))
    }

    async fn get_version(
        &self,
        key: &Key,
        range: Range<u64>,
        version: &ObjectVersion,
        id: &VersionId,
    ) -> Result<ByteStream, StoreError> {
        self.read(key, range, version, Some(id)).await
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        let most = request.max_keys.clamp(1, 1000).to_string();
        let mut call = Call::new(Method::GET, None)
            .query("list-type", "2")
            .query("encoding-type", "url")
            .query("max-keys", &most);
        if !request.prefix.as_str().is_empty() {
            call = call.query("prefix", request.prefix.as_str());
        }
        if request.delimiter {
            call = call.query("delimiter", "/");
        }
        if let Some(continuation) = &request.continuation {
            call = call.query("continuation-token", continuation);
        }
        let response = self
            .send(call)
            .await
            .map_err(|failed| self.explain(failed, "list", None, &Precondition::None))?;
        let document = self.requester.document(response).await?;
        let (page, skipped) = listing::read(&document).map_err(|why| self.not_s3("list", &why))?;
        if skipped > 0 {
            let total = self.skipped.fetch_add(skipped as u64, Ordering::Relaxed) + skipped as u64;
            tracing::warn!(place = %self.requester.place, skipped, total, "keys that cannot be read");
        }
        Ok(page)
    }

    async fn put(
        &self,
        key: &Key,
        body: Bytes,
        metadata: &Metadata,
        condition: &Precondition,
    ) -> Result<ObjectVersion, StoreError> {
        let headers = self.headers_of(metadata)?;
        let response = self
            .conditional(Verb::Put, key, condition, |condition| {
                let mut headers = headers.clone();
                headers.extend(condition);
                self.send(Call {
                    headers,
                    body: body.clone(),
                    ..Call::new(Method::PUT, Some(key))
                })
            })
            .await?;
        Ok(self.version(key, tag_in(response.headers())).await)
    }

    async fn delete(&self, key: &Key, condition: &Precondition) -> Result<(), StoreError> {
        if *condition == Precondition::None {
            return self
                .delete_one(key, HeaderMap::new())
                .await
                .map_err(|failed| self.explain(failed, "delete", Some(key), condition));
        }
        self.conditional_delete(key, condition).await
    }

    async fn delete_batch(&self, keys: &[Key]) -> Result<Vec<(Key, StoreError)>, StoreError> {
        // What XML cannot spell, and what a batch would name wrongly, goes one by one.
        let spelled = |key: &&Key| !key.as_str().chars().any(char::is_control);
        let (batch, mut single): (Vec<&Key>, Vec<&Key>) = keys.iter().partition(spelled);
        let mut left = Vec::new();
        if self.no_batch_delete.load(Ordering::Relaxed) || batch.len() == 1 {
            single.extend(batch);
        } else if !batch.is_empty() {
            match self.delete_together(&batch).await {
                Ok(failed) => left.extend(failed),
                Err(Failed::Answer(failure))
                    if failure.is_not_implemented()
                        || failure.status == StatusCode::METHOD_NOT_ALLOWED =>
                {
                    self.no_batch_delete.store(true, Ordering::Relaxed);
                    single.extend(batch);
                }
                Err(failed) => {
                    return Err(self.explain(failed, "delete", None, &Precondition::None));
                }
            }
        }
        left.extend(self.delete_singly(&single).await);
        Ok(left)
    }

    async fn copy(
        &self,
        from: &Key,
        to: &Key,
        options: &CopyOptions,
    ) -> Result<ObjectVersion, StoreError> {
        let mut headers = match &options.metadata {
            MetadataDirective::Copy => HeaderMap::new(),
            MetadataDirective::Replace(metadata) => {
                let mut headers = self.headers_of(metadata)?;
                headers.insert(METADATA_DIRECTIVE, HeaderValue::from_static("REPLACE"));
                headers
            }
        };
        self.name_source(&mut headers, from, options.source_version.as_ref())?;
        let call = Call {
            headers,
            ..Call::new(Method::PUT, Some(to))
        };
        let none = &Precondition::None;
        let response = self
            .send(call)
            .await
            .map_err(|failed| self.explain(failed, "copy", Some(from), none))?;
        let tag = self.tag_of(response, "copy", from, none).await?;
        Ok(self.version(to, tag).await)
    }

    async fn create_multipart(
        &self,
        key: &Key,
        metadata: &Metadata,
    ) -> Result<UploadId, StoreError> {
        let headers = self.headers_of(metadata)?;
        let call = Call {
            headers,
            ..Call::new(Method::POST, Some(key))
        }
        .query("uploads", "");
        let none = &Precondition::None;
        let response = self
            .send(call)
            .await
            .map_err(|failed| self.explain(failed, WRITE, Some(key), none))?;
        match self.document(response).await? {
            Ok(root) => match root.text_of("UploadId").map(str::trim) {
                Some(id) if !id.is_empty() => Ok(UploadId(id.to_owned())),
                _ => Err(self.not_s3(WRITE, "an upload without a name")),
            },
            Err(failure) => Err(self.explain(failure.into(), WRITE, Some(key), none)),
        }
    }

    async fn put_part(
        &self,
        key: &Key,
        upload: &UploadId,
        number: u32,
        body: Bytes,
    ) -> Result<PartTag, StoreError> {
        let number = number.to_string();
        let call = Call {
            body,
            ..Call::new(Method::PUT, Some(key))
        }
        .query("partNumber", &number)
        .query("uploadId", &upload.0);
        let response = self
            .send(call)
            .await
            .map_err(|failed| self.explain(failed, WRITE, Some(key), &Precondition::None))?;
        tag_in(response.headers())
            .map(PartTag)
            .ok_or_else(|| self.not_s3(WRITE, "a part without an ETag"))
    }

    async fn copy_part(
        &self,
        key: &Key,
        upload: &UploadId,
        number: u32,
        from: &Key,
        range: Range<u64>,
        version: &ObjectVersion,
    ) -> Result<PartTag, StoreError> {
        let number = number.to_string();
        let mut call = Call::new(Method::PUT, Some(key))
            .query("partNumber", &number)
            .query("uploadId", &upload.0);
        self.name_source(&mut call.headers, from, Some(version))?;
        let bytes = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
        if let Ok(bytes) = HeaderValue::from_str(&bytes) {
            call.headers.insert(COPY_SOURCE_RANGE, bytes);
        }
        let none = &Precondition::None;
        let response = self
            .send(call)
            .await
            .map_err(|failed| self.explain(failed, "copy", Some(from), none))?;
        let tag = self.tag_of(response, "copy", from, none).await?;
        tag.map(PartTag)
            .ok_or_else(|| self.not_s3("copy", "a part without an ETag"))
    }

    async fn complete_multipart(
        &self,
        key: &Key,
        upload: &UploadId,
        parts: &[PartTag],
        condition: &Precondition,
    ) -> Result<ObjectVersion, StoreError> {
        let mut document = String::from("<CompleteMultipartUpload>");
        for (number, tag) in (1_u32..).zip(parts) {
            let tag = xml::escape(&tag.0);
            let _ = write!(
                document,
                "<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag></Part>"
            );
        }
        document.push_str("</CompleteMultipartUpload>");
        let document = Bytes::from(document);
        let response = self
            .conditional(Verb::CompleteMultipart, key, condition, |headers| {
                let call = Call {
                    headers,
                    body: document.clone(),
                    ..Call::new(Method::POST, Some(key))
                };
                self.send(call.query("uploadId", &upload.0))
            })
            .await?;
        let tag = self.tag_of(response, WRITE, key, condition).await?;
        Ok(self.version(key, tag).await)
    }

    async fn abort_multipart(&self, key: &Key, upload: &UploadId) -> Result<(), StoreError> {
        let call = Call::new(Method::DELETE, Some(key)).query("uploadId", &upload.0);
        match self.send(call).await {
            Ok(_) => Ok(()),
            Err(Failed::Answer(failure)) if failure.code == "NoSuchUpload" => Ok(()),
            Err(failed) => Err(self.explain(failed, "delete", Some(key), &Precondition::None)),
        }
    }

    async fn list_multipart(
        &self,
        prefix: &Key,
        after: Option<&(Key, UploadId)>,
    ) -> Result<UploadPage, StoreError> {
        let mut call = Call::new(Method::GET, None)
            .query("uploads", "")
            .query("encoding-type", "url");
        if !prefix.as_str().is_empty() {
            call = call.query("prefix", prefix.as_str());
        }
        if let Some((key, upload)) = after {
            call = call
                .query("key-marker", key.as_str())
                .query("upload-id-marker", &upload.0);
        }
        let response = match self.send(call).await {
            Ok(response) => response,
            Err(Failed::Answer(failure))
                if failure.is_not_implemented()
                    || failure.status == StatusCode::METHOD_NOT_ALLOWED =>
            {
                return Err(StoreError::Unsupported {
                    place: self.requester.place.clone(),
                    verb: "list uploads in parts",
                });
            }
            Err(failed) => return Err(self.explain(failed, "list", None, &Precondition::None)),
        };
        let document = self.requester.document(response).await?;
        listing::read_uploads(&document).map_err(|why| self.not_s3("list", &why))
    }
}

impl S3Store {
    fn name_source(
        &self,
        headers: &mut HeaderMap,
        from: &Key,
        version: Option<&ObjectVersion>,
    ) -> Result<(), StoreError> {
        let source = self.requester.endpoint.copy_source(from);
        let source = HeaderValue::from_str(&source).map_err(|_| {
            self.requester
                .refused("the bucket's name is odd".to_owned(), "rename it")
        })?;
        headers.insert(COPY_SOURCE, source);
        if let Some(tag) = version.and_then(tag_header) {
            headers.insert(COPY_SOURCE_IF_MATCH, tag);
        }
        Ok(())
    }
}
