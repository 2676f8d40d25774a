//! Deletes: one by one, and many in one request where the store can.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use md5::{Digest as _, Md5};

use super::failure::Failure;
use super::request::{Call, Failed};
use super::{S3Store, xml};
use crate::store::counts::Verb;
use crate::store::{Key, Precondition, StoreError};

const CONTENT_MD5: HeaderName = HeaderName::from_static("content-md5");

/// Deletes sent at once to a store that has no batch delete.
const DELETES_AT_ONCE: usize = 16;

impl S3Store {
    pub(super) async fn delete_one(&self, key: &Key, headers: HeaderMap) -> Result<(), Failed> {
        let call = Call {
            headers,
            ..Call::new(Method::DELETE, Some(key))
        };
        match self.send(call).await {
            Ok(_) => Ok(()),
            Err(Failed::Answer(failure))
                if failure.status == StatusCode::NOT_FOUND && failure.code != "NoSuchBucket" =>
            {
                Ok(())
            }
            Err(failed) => Err(failed),
        }
    }

    pub(super) async fn delete_singly(&self, keys: &[&Key]) -> Vec<(Key, StoreError)> {
        // Collected first: a stream over borrowed keys is not one the compiler can send to a thread.
        let deletes: Vec<_> = keys
            .iter()
            .map(|key| async move {
                self.counters.count(Verb::Delete);
                let failed = self.delete_one(key, HeaderMap::new()).await.err()?;
                let error = self.explain(failed, "delete", Some(key), &Precondition::None);
                Some(((*key).clone(), error))
            })
            .collect();
        stream::iter(deletes)
            .buffer_unordered(DELETES_AT_ONCE)
            .filter_map(|failed| async move { failed })
            .collect()
            .await
    }

    pub(super) async fn delete_together(
        &self,
        keys: &[&Key],
    ) -> Result<Vec<(Key, StoreError)>, Failed> {
        let mut document = String::from("<Delete><Quiet>true</Quiet>");
        for key in keys {
            let _ = write!(
                document,
                "<Object><Key>{}</Key></Object>",
                xml::escape(key.as_str())
            );
        }
        document.push_str("</Delete>");
        let mut call = Call::new(Method::POST, None).query("delete", "");
        // Of all the checksums a store may insist on here, this is the one that every store takes.
        let sum = BASE64.encode(Md5::digest(document.as_bytes()));
        if let Ok(sum) = HeaderValue::from_str(&sum) {
            call.headers.insert(CONTENT_MD5, sum);
        }
        call.headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/xml"),
        );
        call.body = Bytes::from(document);
        let response = self.send(call).await?;
        let root = match self.document(response).await.map_err(Failed::Error)? {
            Ok(root) => root,
            Err(failure) => return Err(failure.into()),
        };
        let failed = root.all("Error").filter_map(|error| {
            let key = Key::new(error.text_of("Key")?);
            let code = error.text_of("Code").unwrap_or_default();
            if matches!(code, "NoSuchKey") {
                return None;
            }
            let message = error.text_of("Message").unwrap_or_default();
            let failure = Failure::of_batch(code, message);
            let none = &Precondition::None;
            let error = self.explain(failure.into(), "delete", Some(&key), none);
            Some((key, error))
        });
        Ok(failed.collect())
    }
}
