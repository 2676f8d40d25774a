//! A range's bytes as a stream that survives broken connections.
//!
//! Every new request carries the same version, so that a body is never put together of two objects.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};

use super::Bucket;
use crate::store::counts::Verb;
use crate::store::retry::RetryPolicy;
use crate::store::{ByteStream, Key, ObjectVersion, StoreError};

/// Resumes in a row that brought not one byte before the body is given up.
const FRUITLESS_RESUMES: u32 = 5;

/// What is left of a body.
struct Body {
    bucket: Bucket,
    key: Key,
    version: ObjectVersion,
    left: Range<u64>,
    stream: ByteStream,
    fruitless: u32,
}

/// The bytes of `range`; the first answer is here when this returns.
pub(super) async fn open(
    bucket: Bucket,
    key: Key,
    range: Range<u64>,
    version: ObjectVersion,
) -> Result<ByteStream, StoreError> {
    if range.is_empty() {
        return Ok(stream::empty().boxed());
    }
    let stream = request(&bucket, &key, &range, &version).await?;
    let body = Body {
        bucket,
        key,
        version,
        left: range,
        stream,
        fruitless: 0,
    };
    Ok(stream::try_unfold(body, |mut body| async move {
        let chunk = body.next().await?;
        Ok(chunk.map(|chunk| (chunk, body)))
    })
    .boxed())
}

async fn request(
    bucket: &Bucket,
    key: &Key,
    range: &Range<u64>,
    version: &ObjectVersion,
) -> Result<ByteStream, StoreError> {
    let full = bucket.key(key);
    let policy = RetryPolicy::for_bytes(0);
    let store = &bucket.inner.store;
    let id = match bucket.inner.versions.known(&full, version) {
        Some(id) => id,
        None => {
            let get = || store.get(&full, range.clone(), version);
            let missed = match bucket.run(policy, Verb::Get, get).await {
                Err(missed) if is_replaced(&missed) => missed,
                got => return got,
            };
            bucket.find_version(&full, version).await?.ok_or(missed)?
        }
    };
    let get = || store.get_version(&full, range.clone(), version, &id);
    bucket.run(policy, Verb::Get, get).await
}

fn is_replaced(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Precondition { .. } | StoreError::NotFound { .. }
    )
}

impl Body {
    async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        while !self.left.is_empty() {
            let cause = match self.stream.next().await {
                Some(Ok(mut chunk)) => {
                    // A store may send more than it was asked for.
                    let wanted = self.left.end - self.left.start;
                    chunk.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
                    if chunk.is_empty() {
                        continue;
                    }
                    self.left.start += chunk.len() as u64;
                    self.fruitless = 0;
                    return Ok(Some(chunk));
                }
                Some(Err(error)) if error.is_transient() => error,
                Some(Err(error)) => return Err(self.bucket.strip_error(error)),
                None => StoreError::Unavailable {
                    place: self.bucket.inner.place.clone(),
                    reason: format!("the body of {:?} ended early", self.key.as_str()),
                    retry_after: None,
                },
            };
            if self.fruitless == FRUITLESS_RESUMES {
                return Err(cause);
            }
            tracing::debug!(key = %self.key, at = self.left.start, error = %cause, "resuming a body");
            // The first resume is immediate: idle connections do get closed under a request.
            tokio::time::sleep(Duration::from_millis(100) * self.fruitless * self.fruitless).await;
            self.fruitless += 1;
            self.stream = request(&self.bucket, &self.key, &self.left, &self.version).await?;
        }
        Ok(None)
    }
}
