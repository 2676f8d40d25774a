//! S3 to the letter, as a backend of `s3s` over [`MemoryStore`].
//!
//! `s3s-fs` neither keeps `dir/` markers nor encodes listings; this does, and checks every condition.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use bucketvol::clock::SystemClock;
use bucketvol::store::{
    CopyOptions, Key, ListEntry, ListRequest, MemoryStore, Metadata, MetadataDirective,
    ObjectVersion, PartTag, Precondition, Store as _, StoreError, UploadId,
};
use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt as _;
use http::{HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};

/// One bucket.
#[derive(Debug)]
pub(crate) struct Backend {
    bucket: String,
    store: MemoryStore,
    /// Parts from this number on are not answered for as long as it is so.
    pub(crate) held_from: Arc<AtomicU32>,
    /// Metadata that are not ASCII are answered as bytes, as some servers do, and not in RFC 2047's words: in Latin-1
    /// where that has their characters, else in UTF-8.
    pub(crate) answers_bytes: Arc<AtomicBool>,
}

impl Backend {
    pub(crate) fn new(bucket: &str) -> Self {
        Self {
            bucket: bucket.to_owned(),
            store: MemoryStore::new(SystemClock::shared()),
            held_from: Arc::new(AtomicU32::new(u32::MAX)),
            answers_bytes: Arc::default(),
        }
    }

    /// Likewise, one that keeps what is replaced or deleted.
    pub(crate) fn keeping_versions(bucket: &str) -> Self {
        Self {
            store: MemoryStore::keeping_versions(SystemClock::shared()),
            ..Self::new(bucket)
        }
    }

    /// The bytes of a version that was replaced.
    async fn get_version(
        &self,
        input: GetObjectInput,
        id: &str,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        let key = Key::new(input.key);
        let kept = self.store.list_versions(&key).await.map_err(refuse)?;
        let kept = kept.into_iter().find(|kept| &*kept.id.0 == id);
        let kept = kept.ok_or_else(|| s3_error!(NoSuchVersion))?;
        let range = match &input.range {
            Some(range) => range.check(kept.size)?,
            None => 0..kept.size,
        };
        let body = self
            .store
            .get_version(&key, range, &kept.version, &kept.id)
            .await;
        let chunks = body
            .map_err(refuse)?
            .map_err(refuse)
            .try_collect::<Vec<Bytes>>()
            .await?;
        let chunks = futures_util::stream::iter(chunks.into_iter().map(Ok::<_, std::io::Error>));
        Ok(S3Response::new(GetObjectOutput {
            e_tag: tag(&kept.version.0),
            body: Some(StreamingBlob::wrap(chunks)),
            content_range: input.range.map(|_| String::new()),
            ..GetObjectOutput::default()
        }))
    }

    /// An answer with an object's metadata.
    fn answer<T>(&self, output: T, metadata: &Metadata) -> S3Response<T> {
        let mut answer = S3Response::new(output);
        if self.answers_bytes.load(Ordering::SeqCst) {
            let foreign = metadata.user.iter().filter(|(_, value)| !value.is_ascii());
            for (name, value) in foreign {
                let latin1: Option<Vec<u8>> = value.chars().map(|c| u8::try_from(c).ok()).collect();
                let bytes = latin1.unwrap_or_else(|| value.clone().into_bytes());
                let name = format!("x-amz-meta-{name}");
                if let (Ok(name), Ok(value)) = (
                    HeaderName::from_bytes(name.as_bytes()),
                    HeaderValue::from_bytes(&bytes),
                ) {
                    // It takes the place of what the output says of the same name.
                    answer.headers.insert(name, value);
                }
            }
        }
        answer
    }

    fn check(&self, bucket: &str) -> S3Result<()> {
        if bucket == self.bucket {
            Ok(())
        } else {
            Err(s3_error!(NoSuchBucket))
        }
    }
}

fn refuse(error: StoreError) -> s3s::S3Error {
    match error {
        StoreError::NotFound { .. } => s3_error!(NoSuchKey),
        StoreError::Precondition { .. } | StoreError::AlreadyExists { .. } => {
            s3_error!(PreconditionFailed)
        }
        StoreError::Refused { reason, .. } if reason.contains("upload") => s3_error!(NoSuchUpload),
        StoreError::Refused { .. } => s3_error!(InvalidPart),
        other => s3_error!(InternalError, "{other}"),
    }
}

fn condition(
    if_match: Option<ETagCondition>,
    if_none_match: Option<ETagCondition>,
) -> Precondition {
    match (if_match, if_none_match) {
        (Some(ETagCondition::ETag(tag)), _) => Precondition::Version(version(&tag)),
        (_, Some(_)) => Precondition::Absent,
        _ => Precondition::None,
    }
}

fn version(tag: &ETag) -> ObjectVersion {
    ObjectVersion(Arc::from(format!("\"{}\"", tag.value())))
}

fn tag(quoted: &str) -> Option<ETag> {
    Some(ETag::Strong(quoted.trim_matches('"').to_owned()))
}

fn time(time: SystemTime) -> Option<Timestamp> {
    Some(Timestamp::from(time))
}

async fn whole(body: Option<StreamingBlob>) -> S3Result<Bytes> {
    let Some(body) = body else {
        return Ok(Bytes::new());
    };
    let body = body.try_collect::<BytesMut>().await;
    Ok(body
        .map_err(|error| s3_error!(IncompleteBody, "{error}"))?
        .freeze())
}

/// The metadata of any request that carries some.
macro_rules! metadata {
    ($input:expr) => {{
        let user = $input
            .metadata
            .clone()
            .unwrap_or_default()
            .into_iter()
            .collect();
        let headers = [
            ("content-type", $input.content_type.clone()),
            ("cache-control", $input.cache_control.clone()),
            ("content-disposition", $input.content_disposition.clone()),
            ("content-encoding", $input.content_encoding.clone()),
            ("content-language", $input.content_language.clone()),
        ];
        let headers = headers
            .into_iter()
            .filter_map(|(k, v)| Some((k.to_owned(), v?)))
            .collect();
        Metadata { user, headers }
    }};
}

/// Puts metadata into any answer that carries some.
macro_rules! describe {
    ($output:ident, $object:expr) => {{
        let header = |name: &str| $object.metadata.headers.get(name).cloned();
        $output.content_type = header("content-type");
        $output.cache_control = header("cache-control");
        $output.content_disposition = header("content-disposition");
        $output.content_encoding = header("content-encoding");
        $output.content_language = header("content-language");
        $output.metadata = Some($object.metadata.user.clone().into_iter().collect());
        $output.e_tag = tag(&$object.version.0);
        $output.last_modified = time($object.modified);
    }};
}

fn source(source: &CopySource) -> S3Result<(&str, Key)> {
    match source {
        CopySource::Bucket { bucket, key, .. } => Ok((bucket, Key::new(&**key))),
        _ => Err(s3_error!(NotImplemented)),
    }
}

/// Form encoding as Amazon does it; slashes stay.
fn encode(key: &Key) -> String {
    const KEPT: &AsciiSet = &NON_ALPHANUMERIC
        .remove(b'-')
        .remove(b'.')
        .remove(b'_')
        .remove(b'/')
        .remove(b'*');
    utf8_percent_encode(key.as_str(), KEPT)
        .to_string()
        .replace("%20", "+")
}

fn spell(key: &Key, encoded: bool) -> String {
    match encoded {
        true => encode(key),
        false => key.as_str().to_owned(),
    }
}

fn max_keys(asked: Option<i32>) -> usize {
    usize::try_from(asked.unwrap_or(1000)).unwrap_or(0)
}

/// A page as S3 says it: objects, and what they were folded into.
fn listed(entries: Vec<ListEntry>, encoded: bool) -> (Vec<Object>, Vec<CommonPrefix>) {
    let (mut contents, mut prefixes) = (Vec::new(), Vec::new());
    for entry in entries {
        match entry {
            ListEntry::Prefix(key) => {
                prefixes.push(CommonPrefix {
                    prefix: Some(spell(&key, encoded)),
                });
            }
            ListEntry::Object {
                key,
                size,
                version,
                modified,
                ..
            } => contents.push(Object {
                key: Some(spell(&key, encoded)),
                size: i64::try_from(size).ok(),
                e_tag: tag(&version.0),
                last_modified: time(modified),
                ..Object::default()
            }),
        }
    }
    (contents, prefixes)
}

#[async_trait::async_trait]
impl S3 for Backend {
    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        self.check(&request.input.bucket)?;
        let object = self
            .store
            .head(&Key::new(request.input.key))
            .await
            .map_err(refuse)?;
        let mut output = HeadObjectOutput::default();
        describe!(output, object);
        output.content_length = i64::try_from(object.size).ok();
        Ok(self.answer(output, &object.metadata))
    }

    async fn get_object(
        &self,
        request: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        let input = request.input;
        self.check(&input.bucket)?;
        if let Some(id) = input.version_id.clone() {
            return self.get_version(input, &id).await;
        }
        let key = Key::new(input.key);
        let object = self.store.head(&key).await.map_err(refuse)?;
        if let Some(ETagCondition::ETag(wanted)) = &input.if_match
            && version(wanted) != object.version
        {
            return Err(s3_error!(PreconditionFailed));
        }
        let range: Range<u64> = match &input.range {
            Some(range) => range.check(object.size)?,
            None => 0..object.size,
        };
        let body = self
            .store
            .get(&key, range.clone(), &object.version)
            .await
            .map_err(refuse)?;
        let mut output = GetObjectOutput::default();
        describe!(output, object);
        output.content_length = i64::try_from(range.end - range.start).ok();
        output.content_range = input
            .range
            .map(|_| format!("bytes {}-{}/{}", range.start, range.end - 1, object.size));
        let chunks = body.map_err(refuse).try_collect::<Vec<Bytes>>().await?;
        let chunks = futures_util::stream::iter(chunks.into_iter().map(Ok::<_, std::io::Error>));
        output.body = Some(StreamingBlob::wrap(chunks));
        Ok(self.answer(output, &object.metadata))
    }

    async fn put_object(
        &self,
        request: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        let mut input = request.input;
        self.check(&input.bucket)?;
        let body = whole(input.body.take()).await?;
        let condition = condition(input.if_match.take(), input.if_none_match.take());
        let key = Key::new(input.key.as_str());
        let version = self
            .store
            .put(&key, body, &metadata!(input), &condition)
            .await
            .map_err(refuse)?;
        let output = PutObjectOutput {
            e_tag: tag(&version.0),
            ..PutObjectOutput::default()
        };
        Ok(S3Response::new(output))
    }

    async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        let input = request.input;
        self.check(&input.bucket)?;
        let condition = condition(input.if_match, None);
        self.store
            .delete(&Key::new(input.key), &condition)
            .await
            .map_err(refuse)?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(
        &self,
        request: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        self.check(&request.input.bucket)?;
        let objects = request.input.delete.objects;
        let keys: Vec<Key> = objects
            .into_iter()
            .map(|object| Key::new(object.key))
            .collect();
        self.store.delete_batch(&keys).await.map_err(refuse)?;
        Ok(S3Response::new(DeleteObjectsOutput::default()))
    }

    async fn list_object_versions(
        &self,
        request: S3Request<ListObjectVersionsInput>,
    ) -> S3Result<S3Response<ListObjectVersionsOutput>> {
        let input = request.input;
        self.check(&input.bucket)?;
        let key = Key::new(input.prefix.unwrap_or_default());
        let kept = self.store.list_versions(&key).await.map_err(refuse)?;
        let versions = kept.into_iter().map(|kept| s3s::dto::ObjectVersion {
            key: Some(key.as_str().to_owned()),
            version_id: Some(kept.id.0.to_string()),
            e_tag: tag(&kept.version.0),
            size: i64::try_from(kept.size).ok(),
            ..s3s::dto::ObjectVersion::default()
        });
        Ok(S3Response::new(ListObjectVersionsOutput {
            versions: Some(versions.collect()),
            ..ListObjectVersionsOutput::default()
        }))
    }

    async fn head_bucket(
        &self,
        request: S3Request<HeadBucketInput>,
    ) -> S3Result<S3Response<HeadBucketOutput>> {
        self.check(&request.input.bucket)?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn list_objects(
        &self,
        request: S3Request<ListObjectsInput>,
    ) -> S3Result<S3Response<ListObjectsOutput>> {
        let input = request.input;
        self.check(&input.bucket)?;
        // A marker may be any key; a continuation is one as well.
        let page = ListRequest {
            prefix: Key::new(input.prefix.clone().unwrap_or_default()),
            delimiter: input.delimiter.is_some(),
            max_keys: max_keys(input.max_keys),
            continuation: input.marker.clone().filter(|marker| !marker.is_empty()),
        };
        let page = self.store.list(&page).await.map_err(refuse)?;
        let encoded = input.encoding_type.is_some();
        let (contents, prefixes) = listed(page.entries, encoded);
        // By it s3fs tells a directory's own marker from what is in the directory.
        let prefix = input.prefix.map(|prefix| spell(&Key::new(prefix), encoded));
        Ok(S3Response::new(ListObjectsOutput {
            is_truncated: Some(page.continuation.is_some()),
            next_marker: page.continuation,
            contents: Some(contents),
            common_prefixes: Some(prefixes),
            encoding_type: input.encoding_type,
            name: Some(input.bucket),
            prefix,
            delimiter: input.delimiter,
            ..ListObjectsOutput::default()
        }))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = request.input;
        self.check(&input.bucket)?;
        let page = ListRequest {
            prefix: Key::new(input.prefix.clone().unwrap_or_default()),
            delimiter: input.delimiter.is_some(),
            max_keys: max_keys(input.max_keys),
            continuation: input.continuation_token.clone(),
        };
        let page = self.store.list(&page).await.map_err(refuse)?;
        let encoded = input.encoding_type.is_some();
        let (contents, prefixes) = listed(page.entries, encoded);
        // By it s3fs tells a directory's own marker from what is in the directory.
        let prefix = input.prefix.map(|prefix| spell(&Key::new(prefix), encoded));
        Ok(S3Response::new(ListObjectsV2Output {
            is_truncated: Some(page.continuation.is_some()),
            next_continuation_token: page.continuation,
            contents: Some(contents),
            common_prefixes: Some(prefixes),
            encoding_type: input.encoding_type,
            name: Some(input.bucket),
            prefix,
            delimiter: input.delimiter,
            ..ListObjectsV2Output::default()
        }))
    }

    async fn copy_object(
        &self,
        request: S3Request<CopyObjectInput>,
    ) -> S3Result<S3Response<CopyObjectOutput>> {
        let input = request.input;
        let (bucket, from) = source(&input.copy_source)?;
        self.check(bucket)?;
        self.check(&input.bucket)?;
        let replace = input
            .metadata_directive
            .as_ref()
            .is_some_and(|d| d.as_str() == "REPLACE");
        let to = Key::new(input.key.as_str());
        if from == to && !replace {
            return Err(s3_error!(
                InvalidRequest,
                "a copy onto itself that changes nothing"
            ));
        }
        let source_version = match &input.copy_source_if_match {
            Some(ETagCondition::ETag(tag)) => Some(version(tag)),
            _ => None,
        };
        let metadata = match replace {
            true => MetadataDirective::Replace(metadata!(input)),
            false => MetadataDirective::Copy,
        };
        let options = CopyOptions {
            source_version,
            metadata,
        };
        let version = self
            .store
            .copy(&from, &to, &options)
            .await
            .map_err(refuse)?;
        let result = CopyObjectResult {
            e_tag: tag(&version.0),
            ..CopyObjectResult::default()
        };
        Ok(S3Response::new(CopyObjectOutput {
            copy_object_result: Some(result),
            ..CopyObjectOutput::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let input = request.input;
        self.check(&input.bucket)?;
        let key = Key::new(input.key.as_str());
        let id = self
            .store
            .create_multipart(&key, &metadata!(input))
            .await
            .map_err(refuse)?;
        Ok(S3Response::new(CreateMultipartUploadOutput {
            upload_id: Some(id.0),
            ..CreateMultipartUploadOutput::default()
        }))
    }

    async fn upload_part(
        &self,
        request: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        let input = request.input;
        self.check(&input.bucket)?;
        let number = u32::try_from(input.part_number).map_err(|_| s3_error!(InvalidPart))?;
        let body = whole(input.body).await?;
        while number >= self.held_from.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (key, id) = (Key::new(input.key), UploadId(input.upload_id));
        let part = self
            .store
            .put_part(&key, &id, number, body)
            .await
            .map_err(refuse)?;
        let output = UploadPartOutput {
            e_tag: tag(&part.0),
            ..UploadPartOutput::default()
        };
        Ok(S3Response::new(output))
    }

    async fn upload_part_copy(
        &self,
        request: S3Request<UploadPartCopyInput>,
    ) -> S3Result<S3Response<UploadPartCopyOutput>> {
        let input = request.input;
        let (bucket, from) = source(&input.copy_source)?;
        self.check(bucket)?;
        let number = u32::try_from(input.part_number).map_err(|_| s3_error!(InvalidPart))?;
        let object = self.store.head(&from).await.map_err(refuse)?;
        let based_on = match &input.copy_source_if_match {
            Some(ETagCondition::ETag(tag)) => version(tag),
            _ => object.version,
        };
        let range = input.copy_source_range.as_deref().and_then(|range| {
            let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
            Some(first.parse::<u64>().ok()?..last.parse::<u64>().ok()? + 1)
        });
        let range = range.unwrap_or(0..object.size);
        let (key, id) = (Key::new(input.key), UploadId(input.upload_id));
        let part = self
            .store
            .copy_part(&key, &id, number, &from, range, &based_on)
            .await;
        let part = part.map_err(refuse)?;
        let result = CopyPartResult {
            e_tag: tag(&part.0),
            ..CopyPartResult::default()
        };
        Ok(S3Response::new(UploadPartCopyOutput {
            copy_part_result: Some(result),
            ..UploadPartCopyOutput::default()
        }))
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = request.input;
        self.check(&input.bucket)?;
        let parts = input
            .multipart_upload
            .and_then(|upload| upload.parts)
            .unwrap_or_default();
        // Parts are named by number; here they are dense.
        let parts: BTreeMap<i32, PartTag> = parts
            .into_iter()
            .filter_map(|part| {
                Some((
                    part.part_number?,
                    PartTag(format!("\"{}\"", part.e_tag?.value())),
                ))
            })
            .collect();
        let parts: Vec<PartTag> = parts.into_values().collect();
        let condition = condition(input.if_match, input.if_none_match);
        let (key, id) = (Key::new(input.key), UploadId(input.upload_id));
        let version = self
            .store
            .complete_multipart(&key, &id, &parts, &condition)
            .await;
        let version = version.map_err(refuse)?;
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            e_tag: tag(&version.0),
            ..CompleteMultipartUploadOutput::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let input = request.input;
        let (key, id) = (Key::new(input.key), UploadId(input.upload_id));
        self.store
            .abort_multipart(&key, &id)
            .await
            .map_err(refuse)?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }

    async fn list_multipart_uploads(
        &self,
        request: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let input = request.input;
        self.check(&input.bucket)?;
        let encoded = input.encoding_type.is_some();
        let spell = |key: &Key| match encoded {
            true => encode(key),
            false => key.as_str().to_owned(),
        };
        let prefix = Key::new(input.prefix.unwrap_or_default());
        let marker = input.upload_id_marker.unwrap_or_default();
        let after = input
            .key_marker
            .map(|key| (Key::new(key), UploadId(marker)));
        let page = self.store.list_multipart(&prefix, after.as_ref()).await;
        let page = page.map_err(refuse)?;
        let uploads = page.uploads.into_iter().map(|open| MultipartUpload {
            key: Some(spell(&open.key)),
            upload_id: Some(open.upload.0),
            initiated: time(open.begun),
            ..MultipartUpload::default()
        });
        let (key, upload) = page.continuation.unzip();
        Ok(S3Response::new(ListMultipartUploadsOutput {
            encoding_type: input.encoding_type,
            uploads: Some(uploads.collect()),
            is_truncated: Some(key.is_some()),
            next_key_marker: key.as_ref().map(spell),
            next_upload_id_marker: upload.map(|upload| upload.0),
            ..ListMultipartUploadsOutput::default()
        }))
    }
}
