//! Uploads and copies in parts.

use std::ops::Range;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{Bucket, WriteId};
use crate::store::counts::Verb;
use crate::store::retry::RetryPolicy;
use crate::store::{
    CopyOptions, Key, Metadata, MetadataDirective, ObjectVersion, OpenUpload, PartTag,
    Precondition, StoreError, UploadId, UploadPage,
};

/// The largest object that one request can copy: S3's limit, which others share.
pub(crate) const COPY_AT_ONCE: u64 = 5 * GIB;

const GIB: u64 = 1 << 30;

/// Parts of a copy in parts. Large ones, as no byte passes through us, but each within S3's 5 GiB.
const COPY_PART: u64 = GIB;

/// S3's limit on the number of parts.
const MOST_PARTS: u64 = 10_000;

/// Parts of one copy asked for at once.
const COPIES_AT_ONCE: usize = 8;

impl Bucket {
    /// Begins an upload in parts.
    pub async fn create_multipart(
        &self,
        key: &Key,
        metadata: Metadata,
    ) -> Result<UploadId, StoreError> {
        let full = self.key(key);
        let (id, metadata) = WriteId::stamp(metadata);
        let upload = self
            .run(RetryPolicy::for_bytes(0), Verb::CreateMultipart, || {
                self.inner.store.create_multipart(&full, &metadata)
            })
            .await?;
        Ok(pack(&id, &upload))
    }

    /// Sends one part. `number` counts from 1.
    pub async fn put_part(
        &self,
        key: &Key,
        upload: &UploadId,
        number: u32,
        body: Bytes,
    ) -> Result<PartTag, StoreError> {
        let (_, upload) = unpack(upload);
        let full = self.key(key);
        self.run(
            RetryPolicy::for_bytes(body.len() as u64),
            Verb::PutPart,
            || {
                self.inner
                    .store
                    .put_part(&full, &upload, number, body.clone())
            },
        )
        .await
    }

    /// Makes one part of a range of an object of the same bucket, of exactly the version named.
    pub async fn copy_part(
        &self,
        key: &Key,
        upload: &UploadId,
        number: u32,
        from: &Key,
        range: Range<u64>,
        version: &ObjectVersion,
    ) -> Result<PartTag, StoreError> {
        let (_, upload) = unpack(upload);
        let (full, from) = (self.key(key), self.key(from));
        let policy = RetryPolicy::for_copy(range.end.saturating_sub(range.start));
        self.run(policy, Verb::CopyPart, || {
            self.inner
                .store
                .copy_part(&full, &upload, number, &from, range.clone(), version)
        })
        .await
    }

    /// Makes the object of its parts, given in order from number 1.
    pub async fn complete_multipart(
        &self,
        key: &Key,
        upload: &UploadId,
        parts: &[PartTag],
        condition: Precondition,
    ) -> Result<ObjectVersion, StoreError> {
        let (id, upload) = unpack(upload);
        let full = self.key(key);
        let policy = RetryPolicy::for_complete(parts.len());
        let store = &self.inner.store;
        // Without an id (an upload begun by somebody else) a fresh one matches nothing, which is right.
        let id = id.unwrap_or_else(WriteId::new);
        self.write(policy, Verb::CompleteMultipart, &full, &id, || {
            store.complete_multipart(&full, &upload, parts, &condition)
        })
        .await
    }

    /// Drops an upload and its parts.
    pub async fn abort_multipart(&self, key: &Key, upload: &UploadId) -> Result<(), StoreError> {
        let (_, upload) = unpack(upload);
        let full = self.key(key);
        self.run(RetryPolicy::for_bytes(0), Verb::AbortMultipart, || {
            self.inner.store.abort_multipart(&full, &upload)
        })
        .await
    }

    /// A page of the uploads in parts that have not ended, of this volume's keys, whoever began them. A store that
    /// cannot say is [`StoreError::Unsupported`].
    pub async fn list_multipart(
        &self,
        after: Option<&(Key, UploadId)>,
    ) -> Result<UploadPage, StoreError> {
        let prefix = self.key(&Key::root());
        let after = after.map(|(key, upload)| (self.key(key), upload.clone()));
        let page = self
            .run(RetryPolicy::for_bytes(0), Verb::ListMultipart, || {
                self.inner.store.list_multipart(&prefix, after.as_ref())
            })
            .await?;
        let relative = |open: OpenUpload| {
            let key = self.strip(&open.key)?;
            Some(OpenUpload { key, ..open })
        };
        let continuation = page.continuation;
        Ok(UploadPage {
            uploads: page.uploads.into_iter().filter_map(relative).collect(),
            continuation: continuation.and_then(|(key, upload)| Some((self.strip(&key)?, upload))),
        })
    }

    /// Copies an object of `size` bytes in parts. Nobody knows of the parts if this is not polled to its end.
    pub(super) async fn copy_in_parts(
        &self,
        from: &Key,
        to: &Key,
        options: &CopyOptions,
        size: u64,
    ) -> Result<ObjectVersion, StoreError> {
        let copy = self.begin_copy(from, to, options, size).await?;
        let result = self.finish_copy(&copy).await;
        if result.is_err() {
            // What matters is the first error; a part that stays is found by the bucket's own rules.
            if let Err(error) = self.abort_multipart(to, &copy.upload).await {
                tracing::warn!(key = %to, %error, "an upload in parts was left behind");
            }
        }
        result
    }

    /// Begins a copy of an object of `size` bytes in parts: [`Bucket::finish_copy`] does it, or
    /// [`Bucket::abort_multipart`] gives it up.
    pub(crate) async fn begin_copy(
        &self,
        from: &Key,
        to: &Key,
        options: &CopyOptions,
        size: u64,
    ) -> Result<PartsCopy, StoreError> {
        // Parts have to be of one version, so one is needed even where the caller names none.
        let (source, _) = self.head_marked(&self.key(from)).await?;
        if options
            .source_version
            .as_ref()
            .is_some_and(|version| *version != source.version)
            || source.size != size
        {
            return Err(StoreError::Precondition { key: from.clone() });
        }
        let version = source.version;
        let metadata = match &options.metadata {
            MetadataDirective::Copy => source.metadata,
            MetadataDirective::Replace(metadata) => metadata.clone(),
        };
        let condition = match from == to {
            true => Precondition::Version(version.clone()),
            false => Precondition::None,
        };
        Ok(PartsCopy {
            upload: self.create_multipart(to, metadata).await?,
            from: from.clone(),
            to: to.clone(),
            version,
            size,
            condition,
        })
    }

    /// Copies the parts and makes the object of them.
    pub(crate) async fn finish_copy(&self, copy: &PartsCopy) -> Result<ObjectVersion, StoreError> {
        let PartsCopy {
            upload, from, to, ..
        } = copy;
        let parts = stream::iter((1..).zip(copy_ranges(copy.size)))
            .map(|(number, range)| self.copy_part(to, upload, number, from, range, &copy.version))
            .buffered(COPIES_AT_ONCE)
            .try_collect::<Vec<_>>()
            .await?;
        self.complete_multipart(to, upload, &parts, copy.condition.clone())
            .await
    }
}

/// A copy in parts that was begun.
#[derive(Debug)]
pub(crate) struct PartsCopy {
    /// The upload that makes it.
    pub(crate) upload: UploadId,
    from: Key,
    to: Key,
    /// Of `from`.
    version: ObjectVersion,
    /// Bytes.
    size: u64,
    /// What has to hold of `to` at the end.
    condition: Precondition,
}

/// The ranges a copy of `size` bytes is made of.
fn copy_ranges(size: u64) -> Vec<Range<u64>> {
    let part = COPY_PART.max(size.div_ceil(MOST_PARTS));
    (0..size.div_ceil(part))
        .map(|n| n * part..((n + 1) * part).min(size))
        .collect()
}

/// The upload's name with the write id its metadata carry, so that whoever completes it knows.
fn pack(id: &WriteId, upload: &UploadId) -> UploadId {
    UploadId(format!("{}/{}", id.as_str(), upload.0))
}

fn unpack(upload: &UploadId) -> (Option<WriteId>, UploadId) {
    if let Some((id, rest)) = upload.0.split_once('/')
        && let Some(id) = WriteId::parse(id)
    {
        return (Some(id), UploadId(rest.to_owned()));
    }
    (None, upload.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ranges_of_a_copy_cover_it_once_within_the_limits() {
        for size in [COPY_AT_ONCE + 1, 7 * GIB, 48 * 1024 * GIB] {
            let ranges = copy_ranges(size);
            assert!(ranges.len() as u64 <= MOST_PARTS);
            assert_eq!(ranges.first().unwrap().start, 0);
            assert_eq!(ranges.last().unwrap().end, size);
            assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert!(
                ranges
                    .iter()
                    .all(|range| range.end - range.start <= 5 * GIB)
            );
        }
    }

    #[tokio::test]
    async fn a_copy_in_parts_is_the_same_object_and_checks_its_source() {
        let bucket = Bucket::memory();
        let (from, to) = (Key::new("from"), Key::new("to"));
        let mut metadata = Metadata::default();
        metadata.user.insert("mode".into(), "33188".into());
        let body = Bytes::from_static(b"as if it were large");
        let size = body.len() as u64;
        let version = bucket
            .put(&from, body, metadata.clone(), Precondition::None)
            .await
            .unwrap();
        let mut options = CopyOptions {
            source_version: Some(version),
            metadata: MetadataDirective::Copy,
        };
        bucket
            .copy_in_parts(&from, &to, &options, size)
            .await
            .unwrap();
        let object = bucket.head(&to).await.unwrap().unwrap();
        assert_eq!((object.size, &object.metadata), (size, &metadata));

        // Onto itself, as metadata of large objects are replaced.
        metadata.user.insert("mode".into(), "33261".into());
        options.source_version = Some(object.version);
        options.metadata = MetadataDirective::Replace(metadata.clone());
        bucket
            .copy_in_parts(&to, &to, &options, size)
            .await
            .unwrap();
        assert_eq!(bucket.head(&to).await.unwrap().unwrap().metadata, metadata);
        let stale = bucket.copy_in_parts(&to, &to, &options, size).await;
        assert!(
            matches!(stale, Err(StoreError::Precondition { .. })),
            "{stale:?}"
        );
    }

    #[test]
    fn an_upload_names_its_write_id_and_a_foreign_one_none() {
        let id = WriteId::new();
        let upload = UploadId("a/b/c".into());
        assert_eq!(unpack(&pack(&id, &upload)), (Some(id), upload.clone()));
        assert_eq!(unpack(&upload), (None, upload));
    }
}
