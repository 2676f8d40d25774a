//! What a store's requests and answers are made of.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};

use super::{Key, StoreError};

/// The ETag of an object as the store spells it, quotes included. Equal versions have equal bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ObjectVersion(pub Arc<str>);

impl ObjectVersion {
    /// Stands for whatever is at a key that only we use: its version was never told.
    pub(crate) fn any() -> Self {
        Self(Arc::from(""))
    }

    /// Whether it is [`ObjectVersion::any`].
    pub(crate) fn is_any(&self) -> bool {
        self.0.is_empty()
    }
}

/// Bytes as they arrive.
pub type ByteStream = BoxStream<'static, Result<Bytes, StoreError>>;

/// What HEAD says of an object.
#[derive(Debug, Clone)]
pub struct Object {
    /// Bytes.
    pub size: u64,
    /// The version these facts are about.
    pub version: ObjectVersion,
    /// When the store took it.
    pub modified: SystemTime,
    /// What travels beside the bytes.
    pub metadata: Metadata,
    /// When the store said so, by the clock that [`modified`](Self::modified) is of too. `None`: it does not say, or an
    /// object's metadata can be replaced there and the object keeps its time.
    pub answered: Option<SystemTime>,
}

/// The store's name for one of the versions of an object, in a bucket that keeps those that were replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionId(pub Arc<str>);

/// One of the versions of an object that a store keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptVersion {
    /// What to ask for it by.
    pub id: VersionId,
    /// Its ETag.
    pub version: ObjectVersion,
    /// Bytes.
    pub size: u64,
}

/// What travels beside an object's bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// User metadata; keys in lower case, without `x-amz-meta-`.
    pub user: BTreeMap<String, String>,
    /// System headers that a rewrite has to send again: `content-type`, `cache-control`,
    /// `content-disposition`, `content-encoding`, `content-language`, `expires`. Keys in lower case.
    pub headers: BTreeMap<String, String>,
}

impl Metadata {
    /// Says of an object that has no content type what the end of its key says, if that says something.
    pub fn set_content_type_by_name(&mut self, key: &Key) {
        const CONTENT_TYPE: &str = "content-type";
        if !self.headers.contains_key(CONTENT_TYPE)
            && let Some(found) = mime_guess::from_path(key.as_str()).first_raw()
        {
            self.headers
                .insert(CONTENT_TYPE.to_owned(), found.to_owned());
        }
    }
}

/// What has to hold for a write to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Precondition {
    /// Nothing.
    #[default]
    None,
    /// There is no object of that key.
    Absent,
    /// The object is still of this version.
    Version(ObjectVersion),
}

/// How a copy is to be done.
#[derive(Debug, Clone)]
pub struct CopyOptions {
    /// The version the copy is based on; another one is [`StoreError::Precondition`].
    pub source_version: Option<ObjectVersion>,
    /// What travels with the copy.
    pub metadata: MetadataDirective,
}

/// Whose metadata a copy carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetadataDirective {
    /// The source's.
    Copy,
    /// This, and nothing of the source's.
    Replace(Metadata),
}

/// One page of a listing to ask for.
#[derive(Debug, Clone)]
pub struct ListRequest {
    /// Only keys that begin with this; it need not end in a slash.
    pub prefix: Key,
    /// Fold what follows the next slash into [`ListEntry::Prefix`].
    pub delimiter: bool,
    /// Entries wanted at most; a store may return fewer.
    pub max_keys: usize,
    /// Where the previous page ended.
    pub continuation: Option<String>,
}

/// One page of a listing.
#[derive(Debug, Clone, Default)]
pub struct ListPage {
    /// Objects and prefixes together, in the order of their bytes.
    pub entries: Vec<ListEntry>,
    /// Where the next page begins; `None` on the last.
    pub continuation: Option<String>,
}

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListEntry {
    /// An object.
    Object {
        /// Its key.
        key: Key,
        /// Bytes.
        size: u64,
        /// Its version.
        version: ObjectVersion,
        /// When the store took it.
        modified: SystemTime,
        /// What travels beside the bytes, if that is known without asking: a directory's listing says it, S3's does not.
        metadata: Option<Metadata>,
    },
    /// Keys that share everything up to and including a slash.
    Prefix(Key),
}

/// Names an upload in parts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UploadId(pub String);

/// An upload in parts that was begun and has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenUpload {
    /// The key of the object it is to make.
    pub key: Key,
    /// Its name.
    pub upload: UploadId,
    /// When the store began it.
    pub begun: SystemTime,
}

/// One page of the uploads in parts that have not ended.
#[derive(Debug, Clone, Default)]
pub struct UploadPage {
    /// In the order of the keys' bytes.
    pub uploads: Vec<OpenUpload>,
    /// What the next page comes after; `None` on the last.
    pub continuation: Option<(Key, UploadId)>,
}

/// Uploads that a page of our own stores names at most.
const UPLOADS_PER_PAGE: usize = 1000;

impl UploadPage {
    /// The page of `uploads` that comes after this one.
    pub(super) fn of(mut uploads: Vec<OpenUpload>, after: Option<&(Key, UploadId)>) -> Self {
        uploads.retain(|open| after.is_none_or(|(key, id)| (&open.key, &open.upload) > (key, id)));
        uploads.sort_unstable_by(|a, b| (&a.key, &a.upload).cmp(&(&b.key, &b.upload)));
        let is_last = uploads.len() <= UPLOADS_PER_PAGE;
        uploads.truncate(UPLOADS_PER_PAGE);
        let last = uploads.last().filter(|_| !is_last);
        Self {
            continuation: last.map(|open| (open.key.clone(), open.upload.clone())),
            uploads,
        }
    }
}

/// Names a part that was sent: its ETag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartTag(pub String);
