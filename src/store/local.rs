//! A directory of this host as a store.
//!
//! A key is a path below the directory; a directory is a `dir/` marker if it was put as one or is
//! empty, else it is only implied by what is in it. Metadata are an extended attribute. Everything
//! blocks, so everything runs on the blocking threads. Ordinary programs may use the directory at the
//! same time: what they write are objects without metadata.

mod attributes;
mod listing;
mod tree;
mod uploads;

use std::fs::File;
use std::io::Write as _;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};

use self::tree::{Found, Place, Tree};
use super::{
    ByteStream, CopyOptions, Key, ListPage, ListRequest, Metadata, MetadataDirective, Object,
    ObjectVersion, PartTag, Precondition, Store, StoreError, UploadId, UploadPage,
};
use crate::clock::Clock;

/// Bytes of one read of a file.
const CHUNK: u64 = 256 * 1024;

/// A directory as a store.
#[derive(Debug, Clone)]
pub(super) struct LocalStore {
    tree: Arc<Tree>,
}

impl LocalStore {
    /// The store in the directory at `path`, which has to be there.
    pub(super) fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        Ok(Self {
            tree: Arc::new(Tree::open(path, clock)?),
        })
    }

    async fn blocking<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        F: FnOnce(&Tree) -> Result<T, StoreError> + Send + 'static,
        T: Send + 'static,
    {
        let tree = Arc::clone(&self.tree);
        let place = tree.place().to_owned();
        tokio::task::spawn_blocking(move || work(&tree))
            .await
            .unwrap_or_else(|_| {
                Err(StoreError::Unavailable {
                    place,
                    reason: "the request was dropped: the process is going down".to_owned(),
                    retry_after: None,
                })
            })
    }
}

/// An open file of exactly one version.
fn open_version(tree: &Tree, key: &Key, version: &ObjectVersion) -> Result<Found, StoreError> {
    let found = tree.find(key)?;
    if found.version != *version {
        return Err(StoreError::Precondition { key: key.clone() });
    }
    Ok(found)
}

#[async_trait]
impl Store for LocalStore {
    fn key_max(&self) -> Option<usize> {
        None
    }

    async fn head(&self, key: &Key) -> Result<Object, StoreError> {
        let key = key.clone();
        self.blocking(move |tree| {
            let found = tree.find(&key)?;
            let metadata = attributes::read(&found.file).map_err(|e| tree.error(&key, &e))?;
            Ok(Object {
                size: found.size,
                version: found.version,
                modified: found.modified,
                metadata,
                // Extended attributes change and the file's time does not.
                answered: None,
            })
        })
        .await
    }

    async fn get(
        &self,
        key: &Key,
        range: Range<u64>,
        version: &ObjectVersion,
    ) -> Result<ByteStream, StoreError> {
        let (key, version) = (key.clone(), version.clone());
        let store = self.clone();
        let found = {
            let (key, version) = (key.clone(), version.clone());
            self.blocking(move |tree| open_version(tree, &key, &version))
                .await?
        };
        if range.end > found.size {
            return Err(StoreError::Precondition { key });
        }
        let state = (Arc::new(found.file), range);
        Ok(stream::try_unfold(state, move |(file, range)| {
            let (store, key, version) = (store.clone(), key.clone(), version.clone());
            async move {
                if range.is_empty() {
                    return Ok(None);
                }
                let end = range.end.min(range.start + CHUNK);
                let piece = range.start..end;
                let handle = Arc::clone(&file);
                let chunk = store
                    .blocking(move |tree| {
                        let bytes = read_exact(&handle, piece).map_err(|e| tree.error(&key, &e))?;
                        // A program that writes into the file in place changes its version.
                        let now = tree.describe(&key, &handle)?;
                        if now.version != version {
                            return Err(StoreError::Precondition { key });
                        }
                        Ok(bytes)
                    })
                    .await?;
                Ok(Some((chunk, (file, end..range.end))))
            }
        })
        .boxed())
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        let request = request.clone();
        self.blocking(move |tree| listing::page(tree, &request))
            .await
    }

    async fn put(
        &self,
        key: &Key,
        body: Bytes,
        metadata: &Metadata,
        condition: &Precondition,
    ) -> Result<ObjectVersion, StoreError> {
        let (key, metadata, condition) = (key.clone(), metadata.clone(), condition.clone());
        self.blocking(move |tree| match tree.place_of(&key)? {
            Place::Directory(_) => {
                if !body.is_empty() {
                    return Err(tree.refused("a directory's marker cannot have a body here"));
                }
                tree.publish_marker(&key, &metadata, &condition)
            }
            Place::File { .. } => {
                let mut draft = tree.draft(&key)?;
                draft.write(&key, |file| file.write_all(&body))?;
                draft.publish(&key, &metadata, &condition)
            }
        })
        .await
    }

    async fn delete(&self, key: &Key, condition: &Precondition) -> Result<(), StoreError> {
        let (key, condition) = (key.clone(), condition.clone());
        self.blocking(move |tree| tree.remove(&key, &condition))
            .await
    }

    async fn delete_batch(&self, keys: &[Key]) -> Result<Vec<(Key, StoreError)>, StoreError> {
        let mut keys = keys.to_vec();
        // Children before their directory: only an empty one can go.
        keys.sort_unstable_by(|a, b| b.cmp(a));
        self.blocking(move |tree| {
            let failed = keys.into_iter().filter_map(|key| {
                let error = tree.remove(&key, &Precondition::None).err()?;
                Some((key, error))
            });
            Ok(failed.collect())
        })
        .await
    }

    async fn copy(
        &self,
        from: &Key,
        to: &Key,
        options: &CopyOptions,
    ) -> Result<ObjectVersion, StoreError> {
        let (from, to, options) = (from.clone(), to.clone(), options.clone());
        self.blocking(move |tree| {
            if let (true, MetadataDirective::Replace(metadata)) = (from == to, &options.metadata) {
                return tree.replace_metadata(&to, options.source_version.as_ref(), metadata);
            }
            let found = match &options.source_version {
                Some(version) => open_version(tree, &from, version)?,
                None => tree.find(&from)?,
            };
            let metadata = match &options.metadata {
                MetadataDirective::Replace(metadata) => metadata.clone(),
                MetadataDirective::Copy => {
                    attributes::read(&found.file).map_err(|e| tree.error(&from, &e))?
                }
            };
            let none = &Precondition::None;
            match (tree.place_of(&from)?, tree.place_of(&to)?) {
                (Place::Directory(_), Place::Directory(_)) => {
                    tree.publish_marker(&to, &metadata, none)
                }
                (Place::File { .. }, Place::File { .. }) => {
                    let mut draft = tree.draft(&to)?;
                    draft.write(&to, |file| {
                        std::io::copy(&mut &found.file, file).map(|_| ())
                    })?;
                    draft.publish(&to, &metadata, none)
                }
                _ => Err(tree.refused("a file and a directory cannot become each other")),
            }
        })
        .await
    }

    async fn create_multipart(
        &self,
        key: &Key,
        metadata: &Metadata,
    ) -> Result<UploadId, StoreError> {
        let (key, metadata) = (key.clone(), metadata.clone());
        self.blocking(move |tree| uploads::create(tree, &key, &metadata))
            .await
    }

    async fn put_part(
        &self,
        key: &Key,
        upload: &UploadId,
        number: u32,
        body: Bytes,
    ) -> Result<PartTag, StoreError> {
        let (key, upload) = (key.clone(), upload.clone());
        self.blocking(move |tree| {
            uploads::add(tree, &key, &upload, number, |file| file.write_all(&body))
        })
        .await
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
        let (key, upload, from) = (key.clone(), upload.clone(), from.clone());
        let version = version.clone();
        self.blocking(move |tree| {
            let found = open_version(tree, &from, &version)?;
            if range.end > found.size {
                return Err(StoreError::Precondition { key: from });
            }
            uploads::add(tree, &key, &upload, number, |file| {
                copy_range(&found.file, range, file)
            })
        })
        .await
    }

    async fn complete_multipart(
        &self,
        key: &Key,
        upload: &UploadId,
        parts: &[PartTag],
        condition: &Precondition,
    ) -> Result<ObjectVersion, StoreError> {
        let (key, upload, parts) = (key.clone(), upload.clone(), parts.to_vec());
        let condition = condition.clone();
        self.blocking(move |tree| uploads::complete(tree, &key, &upload, &parts, &condition))
            .await
    }

    async fn abort_multipart(&self, _key: &Key, upload: &UploadId) -> Result<(), StoreError> {
        let upload = upload.clone();
        self.blocking(move |tree| uploads::abort(tree, &upload))
            .await
    }

    async fn list_multipart(
        &self,
        prefix: &Key,
        after: Option<&(Key, UploadId)>,
    ) -> Result<UploadPage, StoreError> {
        let prefix = prefix.clone();
        let uploads = self.blocking(move |tree| uploads::list(tree, &prefix));
        Ok(UploadPage::of(uploads.await?, after))
    }
}

fn read_exact(file: &File, range: Range<u64>) -> std::io::Result<Bytes> {
    let length = usize::try_from(range.end - range.start).map_err(std::io::Error::other)?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, range.start)?;
    Ok(Bytes::from(bytes))
}

fn copy_range(from: &File, range: Range<u64>, to: &mut File) -> std::io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        let end = range.end.min(at + CHUNK);
        to.write_all(&read_exact(from, at..end)?)?;
        at = end;
    }
    Ok(())
}
