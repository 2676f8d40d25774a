//! One [`Bucket`] type over every kind of object store.
//!
//! A [`Store`] makes single attempts: it knows a protocol and nothing of retries. [`Bucket`] is what the
//! rest of the program holds: it adds the volume's prefix, deadlines, retries and the count of requests.

mod attribute_cache;
mod bucket;
mod counts;
mod dialect;
pub(crate) mod digest;
mod error;
mod keys;
mod local;
mod memory;
mod object;
mod retry;
mod s3;

pub use attribute_cache::{AttributeCache, BucketAttributes};
pub(crate) use bucket::COPY_AT_ONCE;
pub use bucket::{Bucket, WriteId};
pub use counts::RequestCounts;
pub use dialect::{Attributes, FileKind, Xattrs};
pub use error::StoreError;
pub use keys::Key;
pub use memory::MemoryStore;
pub use object::{
    ByteStream, CopyOptions, KeptVersion, ListEntry, ListPage, ListRequest, Metadata,
    MetadataDirective, Object, ObjectVersion, OpenUpload, PartTag, Precondition, UploadId,
    UploadPage, VersionId,
};

use std::fmt::Debug;
use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;

/// What a store makes of a write that is to hold only if nobody else has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConditionalWrites {
    /// It checks.
    Checked,
    /// It checks that there is nothing, not which version there is: that is looked at first, and another host may
    /// write in between.
    OnlyAbsence,
    /// It does not check: it is looked at first, likewise.
    LookedAt,
}

/// A store's protocol: one method, one attempt.
///
/// Keys are whole keys of the bucket; [`Bucket`] has put the volume's prefix in front.
#[async_trait]
pub trait Store: Debug + Send + Sync {
    /// Whether a write can be made to hold only if nobody else has written; `None`: nobody has tried yet.
    fn conditional_writes(&self) -> Option<ConditionalWrites> {
        Some(ConditionalWrites::Checked)
    }

    /// Most bytes of a key; `None` where there is no limit. Amazon's, Google's and Azure's is 1024.
    fn key_max(&self) -> Option<usize> {
        Some(1024)
    }

    /// Size, version and metadata of an object.
    async fn head(&self, key: &Key) -> Result<Object, StoreError>;

    /// The bytes of `range`, of exactly the version named: another one is [`StoreError::Precondition`].
    ///
    /// `range` is not empty and lies inside the object.
    async fn get(
        &self,
        key: &Key,
        range: Range<u64>,
        version: &ObjectVersion,
    ) -> Result<ByteStream, StoreError>;

    /// The versions of an object that the store keeps, the newest first, up to a page of them; none where it keeps no
    /// version that was replaced.
    async fn list_versions(&self, _key: &Key) -> Result<Vec<KeptVersion>, StoreError> {
        Ok(Vec::new())
    }

    /// Like [`Store::get`], of one of [`Store::list_versions`].
    async fn get_version(
        &self,
        key: &Key,
        _range: Range<u64>,
        _version: &ObjectVersion,
        _id: &VersionId,
    ) -> Result<ByteStream, StoreError> {
        Err(StoreError::NotFound { key: key.clone() })
    }

    /// One page of a listing, in the order of the keys' bytes.
    async fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError>;

    /// Creates or replaces an object in one request.
    async fn put(
        &self,
        key: &Key,
        body: Bytes,
        metadata: &Metadata,
        condition: &Precondition,
    ) -> Result<ObjectVersion, StoreError>;

    /// Removes an object; one that is not there is no error.
    async fn delete(&self, key: &Key, condition: &Precondition) -> Result<(), StoreError>;

    /// Removes up to 1000 objects; returns those that are still there, each with its reason.
    async fn delete_batch(&self, keys: &[Key]) -> Result<Vec<(Key, StoreError)>, StoreError>;

    /// Copies an object inside the store. `from == to` with a replaced metadata is how attributes change.
    async fn copy(
        &self,
        from: &Key,
        to: &Key,
        options: &CopyOptions,
    ) -> Result<ObjectVersion, StoreError>;

    /// Begins an upload in parts.
    async fn create_multipart(
        &self,
        key: &Key,
        metadata: &Metadata,
    ) -> Result<UploadId, StoreError>;

    /// Sends one part. `number` counts from 1.
    async fn put_part(
        &self,
        key: &Key,
        upload: &UploadId,
        number: u32,
        body: Bytes,
    ) -> Result<PartTag, StoreError>;

    /// Makes one part of a range of an object of the same bucket, of exactly the version named.
    async fn copy_part(
        &self,
        key: &Key,
        upload: &UploadId,
        number: u32,
        from: &Key,
        range: Range<u64>,
        version: &ObjectVersion,
    ) -> Result<PartTag, StoreError>;

    /// Makes the object of its parts, given in order from number 1.
    async fn complete_multipart(
        &self,
        key: &Key,
        upload: &UploadId,
        parts: &[PartTag],
        condition: &Precondition,
    ) -> Result<ObjectVersion, StoreError>;

    /// Drops an upload and its parts; one that is not there is no error.
    async fn abort_multipart(&self, key: &Key, upload: &UploadId) -> Result<(), StoreError>;

    /// One page of the uploads in parts, of keys that begin with `prefix`, that have not ended. A store that
    /// cannot say is [`StoreError::Unsupported`].
    async fn list_multipart(
        &self,
        prefix: &Key,
        after: Option<&(Key, UploadId)>,
    ) -> Result<UploadPage, StoreError>;
}
