//! When and how often a request is asked again.
//!
//! A policy has a budget for everything and a deadline for each attempt. Only answers that may differ
//! the next time are asked for again; what an ambiguous failure means is the caller's to find out.

use std::future::Future;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::time::Instant;

use super::StoreError;

/// Slower than this a request counts as stuck. Connections of a crowded uplink get little each, so it
/// is far below what any line gives; a dead line is noticed earlier, by the kernel.
const BYTES_PER_SECOND_AT_LEAST: u64 = 64 * 1024;

/// What a store does inside itself is faster: bytes a second of a copy.
const COPIED_PER_SECOND_AT_LEAST: u64 = 16 * 1024 * 1024;

/// An answer that carries next to nothing has to be here after this.
const ATTEMPT: Duration = Duration::from_secs(20);

/// How long one operation is tried, attempts and pauses together.
const BUDGET: Duration = Duration::from_secs(60);

/// How long and how often something is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RetryPolicy {
    /// No attempt begins, and none goes on, after this.
    pub(super) budget: Duration,
    /// The deadline of one attempt.
    pub(super) attempt: Duration,
    /// Pause before the second attempt; doubles from there.
    pub(super) first_pause: Duration,
    /// The longest pause, whatever the store asks for.
    pub(super) longest_pause: Duration,
}

impl RetryPolicy {
    /// For a request or an answer that carries this many bytes.
    pub(super) fn for_bytes(bytes: u64) -> Self {
        Self::within(ATTEMPT + Duration::from_secs(bytes / BYTES_PER_SECOND_AT_LEAST))
    }

    /// For a copy of this many bytes inside the store.
    pub(super) fn for_copy(bytes: u64) -> Self {
        Self::within(ATTEMPT + Duration::from_secs(bytes / COPIED_PER_SECOND_AT_LEAST))
    }

    /// For putting together an object of `parts` parts, which large stores take minutes for.
    pub(super) fn for_complete(parts: usize) -> Self {
        let parts = u32::try_from(parts).unwrap_or(u32::MAX);
        let work = Duration::from_millis(20).saturating_mul(parts);
        Self::within(3 * ATTEMPT + work)
    }

    /// For a question a person waits for.
    pub(super) fn for_check() -> Self {
        Self {
            budget: Duration::from_secs(10),
            attempt: Duration::from_secs(8),
            ..Self::within(ATTEMPT)
        }
    }

    fn within(attempt: Duration) -> Self {
        Self {
            budget: BUDGET.max(attempt),
            attempt,
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(10),
        }
    }

    fn pauses(&self) -> impl Iterator<Item = Duration> + Send + use<> {
        ExponentialBuilder::default()
            .with_min_delay(self.first_pause)
            .with_max_delay(self.longest_pause)
            .without_max_times()
            .with_jitter()
            .build()
    }

    /// Tries until it is done, refused, or the budget is spent; the last answer is the result.
    ///
    /// `attempt` is told how many attempts came before it. `place` names the store in the error of an
    /// attempt that outlasts its deadline.
    pub(super) async fn run<T, F, Fut>(&self, place: &str, mut attempt: F) -> Result<T, StoreError>
    where
        F: FnMut(u32) -> Fut + Send,
        Fut: Future<Output = Result<T, StoreError>> + Send,
        T: Send,
    {
        let started = Instant::now();
        let mut pauses = self.pauses();
        let mut before = 0;
        loop {
            let left = self.budget.saturating_sub(started.elapsed());
            let deadline = self.attempt.min(left);
            let error = match tokio::time::timeout(deadline, attempt(before)).await {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(error)) => error,
                Err(_) => StoreError::Unavailable {
                    place: place.to_owned(),
                    reason: format!("no answer within {} s", deadline.as_secs_f32().ceil()),
                    retry_after: None,
                },
            };
            let pause = match next_pause(&error, pauses.next(), self.longest_pause) {
                Some(pause) if started.elapsed() + pause < self.budget => pause,
                _ => return Err(error),
            };
            tracing::debug!(%error, ?pause, "asking again");
            tokio::time::sleep(pause).await;
            before += 1;
        }
    }
}

/// How long to wait before asking again after this; `None`: do not.
fn next_pause(
    error: &StoreError,
    backoff: Option<Duration>,
    longest: Duration,
) -> Option<Duration> {
    match error {
        StoreError::Unavailable { retry_after, .. } => {
            // What the store asks for is a minimum; the jitter on top keeps clients apart.
            let backoff = backoff.unwrap_or(longest);
            Some(retry_after.map_or(backoff, |asked| asked.min(longest) + backoff.min(asked)))
        }
        StoreError::NotFound { .. }
        | StoreError::Precondition { .. }
        | StoreError::AlreadyExists { .. }
        | StoreError::Refused { .. }
        | StoreError::Unsupported { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Key;

    fn away(retry_after: Option<u64>) -> StoreError {
        StoreError::Unavailable {
            place: "bucket `b`".into(),
            reason: "overloaded".into(),
            retry_after: retry_after.map(Duration::from_secs),
        }
    }

    #[test]
    fn only_what_may_differ_next_time_is_asked_again() {
        let key = Key::new("k");
        let refused = StoreError::Refused {
            place: "b".into(),
            reason: "no".into(),
            mend: None,
            denied: true,
        };
        let table = [
            (away(None), true),
            (away(Some(3)), true),
            (refused, false),
            (StoreError::NotFound { key: key.clone() }, false),
            (StoreError::Precondition { key: key.clone() }, false),
            (StoreError::AlreadyExists { key }, false),
            (
                StoreError::Unsupported {
                    place: "b".into(),
                    verb: "copy",
                },
                false,
            ),
        ];
        for (error, again) in table {
            let pause = next_pause(
                &error,
                Some(Duration::from_millis(5)),
                Duration::from_secs(10),
            );
            assert_eq!(pause.is_some(), again, "{error}");
        }
    }

    #[test]
    fn the_wait_a_store_asks_for_is_honoured_up_to_the_longest_pause() {
        let longest = Duration::from_secs(10);
        let backoff = Some(Duration::from_millis(100));
        let pause = next_pause(&away(Some(3)), backoff, longest).unwrap();
        assert!(pause >= Duration::from_secs(3) && pause < Duration::from_secs(4));
        let pause = next_pause(&away(Some(3600)), backoff, longest).unwrap();
        assert!(pause <= Duration::from_secs(11));
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_stays_away_is_given_up_within_the_budget() {
        let started = Instant::now();
        let policy = RetryPolicy::for_bytes(0);
        let mut asked = 0;
        let result: Result<(), _> = policy
            .run("b", |_| {
                asked += 1;
                async { Err(away(None)) }
            })
            .await;
        assert!(result.unwrap_err().is_transient());
        assert!(started.elapsed() <= policy.budget);
        assert!((5..60).contains(&asked), "{asked} attempts");
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_without_an_answer_ends_at_its_deadline() {
        let started = Instant::now();
        let policy = RetryPolicy::for_check();
        let result: Result<(), _> = policy.run("b", |_| std::future::pending()).await;
        assert!(result.unwrap_err().is_transient());
        assert!(started.elapsed() <= Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_final() {
        let mut asked = 0;
        let result: Result<(), _> = RetryPolicy::for_bytes(0)
            .run("b", |_| {
                asked += 1;
                async { Err(StoreError::NotFound { key: Key::new("k") }) }
            })
            .await;
        assert!(matches!(result, Err(StoreError::NotFound { .. })));
        assert_eq!(asked, 1);
    }

    #[test]
    fn large_bodies_get_longer_deadlines() {
        let small = RetryPolicy::for_bytes(0);
        let large = RetryPolicy::for_bytes(64 * 1024 * 1024);
        assert!(large.attempt > small.attempt && large.budget >= large.attempt);
        assert!(RetryPolicy::for_complete(10_000).attempt > small.attempt);
    }
}
