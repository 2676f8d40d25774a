//! Writes that hold only if nobody else has written.
//!
//! Stores differ: some check the conditional headers, some refuse them, some pass over them without a
//! word and overwrite. Which kind this is, one request finds out before the first conditional write. A
//! store that does not check is looked at before it is written to: a narrower promise, as another may
//! write in between, and the best such a store allows.

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use object_store::client::HttpResponse;
use tokio::sync::OnceCell;
use uuid::Uuid;

use super::failure::WRITE;
use super::request::{Call, Failed};
use super::{S3Store, tag_header};
use crate::store::counts::Verb;
use crate::store::{ConditionalWrites, Key, Precondition, StoreError};

/// An ETag that no object has.
const NOBODY: HeaderValue = HeaderValue::from_static("\"00000000000000000000000000000000\"");

/// What is known of the store's conditions.
#[derive(Debug)]
pub(super) struct Conditions {
    /// Every verb checks: the provider says so.
    sure: bool,
    /// What a PUT checks, once it was tried.
    put: OnceCell<Checks>,
    /// A key where nothing is, for trying.
    scratch: String,
}

/// The headers of a PUT that the store checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Checks {
    /// `If-None-Match: *`.
    absent: bool,
    /// `If-Match`.
    version: bool,
}

impl Conditions {
    /// `prefix` is the volume's; nothing outside of it is touched.
    pub(super) fn new(sure: bool, prefix: &str) -> Self {
        let slash = if prefix.is_empty() { "" } else { "/" };
        let scratch = format!("{prefix}{slash}.bucketvol/probe-");
        Self {
            sure,
            put: OnceCell::new(),
            scratch,
        }
    }
}

impl Conditions {
    /// What is known so far.
    pub(super) fn known(&self) -> Option<ConditionalWrites> {
        if self.sure {
            return Some(ConditionalWrites::Checked);
        }
        self.put.get().map(|checks| match checks {
            Checks { version: true, .. } => ConditionalWrites::Checked,
            Checks { absent: true, .. } => ConditionalWrites::OnlyAbsence,
            _ => ConditionalWrites::LookedAt,
        })
    }
}

/// The header that asks the store to check.
fn header_for(condition: &Precondition) -> HeaderMap {
    let mut headers = HeaderMap::new();
    match condition {
        Precondition::None => {}
        Precondition::Absent => {
            headers.insert(header::IF_NONE_MATCH, HeaderValue::from_static("*"));
        }
        Precondition::Version(version) => {
            if let Some(tag) = tag_header(version) {
                headers.insert(header::IF_MATCH, tag);
            }
        }
    }
    headers
}

impl S3Store {
    /// Sends a write with the header its condition asks for, after a look where that is not enough.
    pub(super) async fn conditional<F, Fut>(
        &self,
        verb: Verb,
        key: &Key,
        condition: &Precondition,
        send: F,
    ) -> Result<HttpResponse, StoreError>
    where
        F: Fn(HeaderMap) -> Fut + Send + Sync,
        Fut: Future<Output = Result<HttpResponse, Failed>> + Send,
    {
        let explain = |failed| self.explain(failed, WRITE, Some(key), condition);
        let checks = match condition {
            Precondition::None => return send(HeaderMap::new()).await.map_err(explain),
            _ if self.conditions.sure => Checks {
                absent: true,
                version: true,
            },
            _ => self.checks().await,
        };
        let checked = match condition {
            Precondition::Absent => checks.absent,
            _ => checks.version,
        };
        // What completes an upload cannot be tried without one; it is rare enough to look each time.
        if !self.conditions.sure && (!checked || verb != Verb::Put) {
            self.look(key, condition).await?;
        }
        let headers = if checked {
            header_for(condition)
        } else {
            HeaderMap::new()
        };
        match send(headers).await {
            // A PUT may be conditional where the end of an upload may not.
            Err(Failed::Answer(failure)) if checked && failure.is_not_implemented() => {
                self.look(key, condition).await?;
                send(HeaderMap::new()).await.map_err(explain)
            }
            other => other.map_err(explain),
        }
    }

    /// Removes an object if the condition holds.
    ///
    /// Most stores pass over conditions of a DELETE without a word, and no harmless request tells, so a
    /// look comes first wherever it is not known better. The header closes the gap where it is
    /// understood; it is left out where conditions are known to be refused.
    pub(super) async fn conditional_delete(
        &self,
        key: &Key,
        condition: &Precondition,
    ) -> Result<(), StoreError> {
        let explain = |failed| self.explain(failed, "delete", Some(key), condition);
        if !self.conditions.sure {
            match self.look(key, condition).await {
                // Gone already: what was asked for holds.
                Err(StoreError::Precondition { .. }) if self.is_gone(key).await? => return Ok(()),
                other => other?,
            }
        }
        match self.delete_one(key, header_for(condition)).await {
            Err(Failed::Answer(failure)) if failure.is_not_implemented() => self
                .delete_one(key, HeaderMap::new())
                .await
                .map_err(explain),
            other => other.map_err(explain),
        }
    }

    /// What a PUT checks; tried once. Where trying comes to nothing, the headers are trusted.
    async fn checks(&self) -> Checks {
        let trusted = Checks {
            absent: true,
            version: true,
        };
        match self.conditions.put.get_or_try_init(|| self.try_put()).await {
            Ok(checks) => *checks,
            // The write itself is about to meet the same trouble, and will say it better.
            Err(_) => trusted,
        }
    }

    /// Puts an object of a version that there cannot be. A store that checks refuses, and nothing was
    /// written; one that passes over the header has an object now, which tells the rest and is removed.
    async fn try_put(&self) -> Result<Checks, Failed> {
        let scratch = Key::new(format!(
            "{}{}",
            self.conditions.scratch,
            Uuid::new_v4().simple()
        ));
        let put = |name, value| {
            self.counters.count(Verb::Put);
            let headers = HeaderMap::from_iter([(name, value)]);
            self.send(Call {
                headers,
                ..Call::new(Method::PUT, Some(&scratch))
            })
        };
        let refuses = |failed: &Failed| match failed {
            Failed::Answer(failure) => {
                failure.status == StatusCode::PRECONDITION_FAILED
                    || (failure.status == StatusCode::NOT_FOUND && failure.code == "NoSuchKey")
            }
            Failed::Error(_) => false,
        };
        match put(header::IF_MATCH, NOBODY).await {
            Ok(_) => {}
            // Whoever checks versions checks absence: it came first everywhere.
            Err(failed) if refuses(&failed) => {
                return Ok(Checks {
                    absent: true,
                    version: true,
                });
            }
            Err(Failed::Answer(failure)) if failure.is_not_implemented() => {}
            Err(Failed::Answer(failure)) if failure.status == StatusCode::FORBIDDEN => {
                // Not allowed to try, now or later.
                return Ok(Checks {
                    absent: true,
                    version: true,
                });
            }
            Err(failed) => return Err(failed),
        }
        let absent = match put(header::IF_NONE_MATCH, HeaderValue::from_static("*")).await {
            Err(failed) if refuses(&failed) => true,
            // The first attempt may not have left an object: then this one has, and a third tells.
            Ok(_) => match put(header::IF_NONE_MATCH, HeaderValue::from_static("*")).await {
                Err(failed) if refuses(&failed) => true,
                Ok(_) => false,
                Err(failed) => return Err(failed),
            },
            Err(Failed::Answer(failure)) if failure.is_not_implemented() => false,
            Err(failed) => return Err(failed),
        };
        self.counters.count(Verb::Delete);
        self.delete_one(&scratch, HeaderMap::new()).await?;
        tracing::info!(
            place = %self.requester.place,
            absent,
            version = false,
            "the store does not check every condition: it is looked at before it is written to",
        );
        Ok(Checks {
            absent,
            version: false,
        })
    }

    /// Whether the condition holds at this moment.
    async fn look(&self, key: &Key, condition: &Precondition) -> Result<(), StoreError> {
        let found = match self.look_at(key).await {
            Ok(object) => Some(object.version),
            Err(StoreError::NotFound { .. }) => None,
            Err(error) => return Err(error),
        };
        match (condition, found) {
            (Precondition::Absent, Some(_)) => Err(StoreError::AlreadyExists { key: key.clone() }),
            // A version that was never told cannot be another one.
            (Precondition::Version(version), Some(_)) if version.0.is_empty() => Ok(()),
            (Precondition::Version(version), found) if found.as_ref() != Some(version) => {
                Err(StoreError::Precondition { key: key.clone() })
            }
            _ => Ok(()),
        }
    }

    async fn is_gone(&self, key: &Key) -> Result<bool, StoreError> {
        match self.look_at(key).await {
            Ok(_) => Ok(false),
            Err(StoreError::NotFound { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }
}
