//! What a store's refusal means: S3's error codes -> our error, with a person's next step.
//!
//! Pure: knows what came back and what was asked, sends nothing.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode, header};

use super::xml::Element;
use crate::store::{Key, Precondition, StoreError};

/// The verb of requests that replace an object; a version that is gone means something to them.
pub(super) const WRITE: &str = "write";

/// Clocks that differ by more than this get requests refused, sometimes under another name.
const SKEW: Duration = Duration::from_secs(10 * 60);

/// The most of a store's own words that we repeat.
const MESSAGE: usize = 200;

/// An answer that says no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) status: StatusCode,
    /// S3's name of it; empty where the answer had no (readable) body.
    pub(super) code: String,
    /// The store's own words, shortened; never a header.
    pub(super) message: String,
    /// The region the store says it is in.
    pub(super) region: Option<String>,
    /// The store's clock.
    pub(super) date: Option<SystemTime>,
    pub(super) retry_after: Option<Duration>,
    /// Where it sends us.
    pub(super) location: Option<String>,
}

/// What was asked when it failed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    /// The bucket as errors name it.
    pub(super) place: &'a str,
    /// The bucket's name.
    pub(super) bucket: &'a str,
    /// The endpoint without the bucket.
    pub(super) endpoint: &'a str,
    /// The object, if it was about one.
    pub(super) key: Option<&'a Key>,
    /// What was to hold.
    pub(super) condition: &'a Precondition,
    /// What was to be done, as in "not allowed to ...".
    pub(super) verb: &'static str,
    /// Our clock.
    pub(super) now: SystemTime,
}

impl Failure {
    /// Reads an answer.
    pub(super) fn read(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Self {
        let header = |name: header::HeaderName| headers.get(name).and_then(|v| v.to_str().ok());
        let error = Element::parse(body)
            .ok()
            .filter(|root| root.name() == "Error");
        let field = |name| error.as_ref().and_then(|e| e.text_of(name)).map(str::trim);
        let message = match &error {
            Some(_) => field("Message").unwrap_or_default().to_owned(),
            None => plain_text(body),
        };
        let region = headers
            .get("x-amz-bucket-region")
            .and_then(|value| value.to_str().ok())
            .or_else(|| field("Region"))
            .map(str::to_owned)
            .or_else(|| region_in(&message));
        Self {
            status,
            code: field("Code").unwrap_or_default().to_owned(),
            message: shorten(&message),
            region: region.filter(|region| is_region(region)),
            date: header(header::DATE).and_then(|date| httpdate::parse_http_date(date).ok()),
            retry_after: header(header::RETRY_AFTER)
                .and_then(|seconds| seconds.parse().ok())
                .map(Duration::from_secs),
            location: header(header::LOCATION).map(str::to_owned),
        }
    }

    /// An `<Error>` inside an answer whose status said 200.
    pub(super) fn inside_success(headers: &HeaderMap, body: &[u8]) -> Option<Self> {
        let root = Element::parse(body).ok()?;
        if root.name() != "Error" {
            return None;
        }
        // The status was sent before the store knew. What S3 reports this way are its own troubles.
        let mut failure = Self::read(StatusCode::INTERNAL_SERVER_ERROR, headers, body);
        failure.status = status_of(&failure.code);
        Some(failure)
    }

    /// One key's line in the answer to a batch.
    pub(super) fn of_batch(code: &str, message: &str) -> Self {
        Self {
            status: status_of(code),
            code: code.to_owned(),
            message: shorten(message),
            region: None,
            date: None,
            retry_after: None,
            location: None,
        }
    }

    /// The region to sign for instead, if that is what is wrong.
    pub(super) fn other_region(&self, signed_for: &str) -> Option<&str> {
        let about_region = matches!(
            self.code.as_str(),
            "AuthorizationHeaderMalformed"
                | "PermanentRedirect"
                | "IllegalLocationConstraintException"
        );
        // HEAD has no body: a bucket's region in the headers is all there is.
        let bare = self.code.is_empty()
            && (self.status == StatusCode::MOVED_PERMANENTLY
                || self.status == StatusCode::BAD_REQUEST);
        self.region
            .as_deref()
            .filter(|region| (about_region || bare) && *region != signed_for)
    }

    /// Whether the store does not know a header or verb at all.
    pub(super) fn is_not_implemented(&self) -> bool {
        self.code == "NotImplemented" || self.status == StatusCode::NOT_IMPLEMENTED
    }

    /// The failure as the layers above take it.
    pub(super) fn explain(&self, asked: &Asked<'_>) -> StoreError {
        self.about_object(asked)
            .or_else(|| self.passing(asked))
            .unwrap_or_else(|| self.refusal(asked))
    }

    /// What concerns one object only.
    fn about_object(&self, asked: &Asked<'_>) -> Option<StoreError> {
        let key = asked.key?.clone();
        let based_on_version = matches!(asked.condition, Precondition::Version(_));
        match (self.status, self.code.as_str()) {
            (StatusCode::PRECONDITION_FAILED, _) => Some(match asked.condition {
                Precondition::Absent => StoreError::AlreadyExists { key },
                Precondition::None | Precondition::Version(_) => StoreError::Precondition { key },
            }),
            // The object shrank: it is not the version the range was chosen for.
            (StatusCode::RANGE_NOT_SATISFIABLE, _) => Some(StoreError::Precondition { key }),
            (StatusCode::NOT_FOUND, "NoSuchKey" | "NotFound" | "") => Some(
                // The version that was to be replaced is gone, which is another's change.
                match based_on_version && asked.verb == WRITE {
                    true => StoreError::Precondition { key },
                    false => StoreError::NotFound { key },
                },
            ),
            _ => None,
        }
    }

    /// What may pass.
    fn passing(&self, asked: &Asked<'_>) -> Option<StoreError> {
        let status = self.status;
        let passes = match self.code.as_str() {
            "SlowDown"
            | "ServiceUnavailable"
            | "InternalError"
            | "RequestTimeout"
            | "Busy"
            | "TooManyRequests"
            | "OperationAborted"
            | "ConditionalRequestConflict"
            | "TemporaryRedirect" => true,
            "NotImplemented" => false,
            _ => {
                (status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED)
                    || status == StatusCode::TOO_MANY_REQUESTS
                    || status == StatusCode::REQUEST_TIMEOUT
                    || (status == StatusCode::CONFLICT && self.code.is_empty())
            }
        };
        passes.then(|| StoreError::Unavailable {
            place: asked.place.to_owned(),
            reason: format!("not able to {} just now: {}", asked.verb, self.words()),
            retry_after: self.retry_after,
        })
    }

    /// What stays as it is until a person does something.
    fn refusal(&self, asked: &Asked<'_>) -> StoreError {
        let Asked {
            bucket,
            endpoint,
            verb,
            ..
        } = asked;
        let denied = matches!(
            self.status,
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED
        );
        let refused = |reason: String, mend: Option<String>| StoreError::Refused {
            place: asked.place.to_owned(),
            reason,
            mend,
            denied,
        };
        let mend = |text: &str| Some(text.to_owned());
        let unknown_key = || {
            refused(
                "the access key id is not known there".to_owned(),
                mend("correct access_key_id, or the endpoint it belongs to"),
            )
        };
        let wrong_secret = || {
            refused(
                "the secret access key does not belong to the access key id".to_owned(),
                mend("correct secret_access_key"),
            )
        };
        match self.code.as_str() {
            "NoSuchBucket" => refused(
                format!("there is no bucket `{bucket}` at {endpoint}"),
                mend("create it, or correct its name or the endpoint"),
            ),
            "InvalidAccessKeyId" | "NoSuchAccessKey" | "NotSignedUp" => unknown_key(),
            "SignatureDoesNotMatch" => wrong_secret(),
            // garage has no codes of their own for these.
            "AccessDenied" if self.message.contains("No such key") => unknown_key(),
            "AccessDenied" if self.message.contains("Invalid signature") => wrong_secret(),
            "ExpiredToken" | "TokenRefreshRequired" => refused(
                "the credentials have expired".to_owned(),
                mend("renew the session token"),
            ),
            "InvalidToken" => refused(
                "the session token is not valid".to_owned(),
                mend("renew session_token"),
            ),
            "RequestTimeTooSkewed" | "RequestExpired" => refused(
                self.skew(asked.now),
                mend("set the clock: chronyd, ntpd or timedatectl"),
            ),
            "AuthorizationHeaderMalformed" => refused(
                match &self.region {
                    Some(region) => format!("requests have to be signed for region {region}"),
                    None => format!("the signature is not accepted: {}", self.message),
                },
                Some(match &self.region {
                    Some(region) => format!("set region={region}"),
                    None => "check region and access_key_id".to_owned(),
                }),
            ),
            "NotImplemented" | "MethodNotAllowed" => StoreError::Unsupported {
                place: asked.place.to_owned(),
                verb,
            },
            "NoSuchUpload" => refused(
                "the upload in parts is no longer known there".to_owned(),
                mend("it is begun again; look for a lifecycle rule that aborts uploads early"),
            ),
            "EntityTooLarge" => refused(format!("too much to {verb} at once"), None),
            "QuotaExceeded" | "XMinioStorageFull" | "InsufficientStorage" => refused(
                "the store is full".to_owned(),
                mend("free space or raise its quota"),
            ),
            "AccountProblem" | "AllAccessDisabled" | "UserSuspended" => {
                refused(format!("the account is closed: {}", self.message), None)
            }
            _ if denied && self.is_skewed(asked.now) => refused(
                self.skew(asked.now),
                mend("set the clock: chronyd, ntpd or timedatectl"),
            ),
            _ if self.is_plain_to_tls() => refused(
                "https is spoken there, and we spoke http".to_owned(),
                mend("write https:// in the endpoint"),
            ),
            _ if self.status.is_redirection() => self.redirect(asked),
            _ if denied => refused(
                format!(
                    "not allowed to {verb} with these credentials: {}",
                    self.words()
                ),
                mend("the credentials need the right to list, read, write and delete there"),
            ),
            _ => refused(
                format!("the request to {verb} was refused: {}", self.words()),
                None,
            ),
        }
    }

    fn redirect(&self, asked: &Asked<'_>) -> StoreError {
        let to_tls = self
            .location
            .as_deref()
            .is_some_and(|to| to.starts_with("https://"))
            && asked.endpoint.starts_with("http://");
        let (reason, mend) = match (to_tls, &self.region) {
            (true, _) => (
                "it wants https".to_owned(),
                "write https:// in the endpoint".to_owned(),
            ),
            (false, Some(region)) => (
                format!("the bucket is in region {region}"),
                format!("set region={region}"),
            ),
            (false, None) => (
                format!("the bucket is somewhere else: {}", self.words()),
                "correct endpoint and region".to_owned(),
            ),
        };
        StoreError::Refused {
            place: asked.place.to_owned(),
            reason,
            mend: Some(mend),
            denied: false,
        }
    }

    /// By how much the clocks differ.
    fn skew(&self, now: SystemTime) -> String {
        let Some(theirs) = self.date else {
            return "this host's clock and the store's differ too much".to_owned();
        };
        let (by, direction) = match now.duration_since(theirs) {
            Ok(ahead) => (ahead, "ahead of"),
            Err(behind) => (behind.duration(), "behind"),
        };
        let by = humantime::format_duration(Duration::from_secs(by.as_secs()));
        format!("this host's clock is {by} {direction} the store's")
    }

    fn is_skewed(&self, now: SystemTime) -> bool {
        self.date.is_some_and(|theirs| {
            let by = now
                .duration_since(theirs)
                .unwrap_or_else(|behind| behind.duration());
            by > SKEW
        })
    }

    /// The status 400 that Go's, nginx's and others' TLS ports give to plain HTTP.
    fn is_plain_to_tls(&self) -> bool {
        let message = self.message.to_ascii_lowercase();
        self.status == StatusCode::BAD_REQUEST
            && self.code.is_empty()
            && message.contains("http request")
            && message.contains("https")
    }

    /// Code and message, or at least the status.
    fn words(&self) -> String {
        match (self.code.as_str(), self.message.as_str()) {
            ("", "") => self.status.to_string(),
            ("", message) => format!("{}, {message}", self.status),
            (code, "") => code.to_owned(),
            (code, message) => format!("{code}, {message}"),
        }
    }
}

/// The status that a code would have come with.
fn status_of(code: &str) -> StatusCode {
    match code {
        "PreconditionFailed" => StatusCode::PRECONDITION_FAILED,
        "AccessDenied" => StatusCode::FORBIDDEN,
        "NoSuchKey" | "NoSuchUpload" | "NoSuchBucket" => StatusCode::NOT_FOUND,
        "NotImplemented" => StatusCode::NOT_IMPLEMENTED,
        code if code.starts_with("Invalid") || code.starts_with("Entity") => {
            StatusCode::BAD_REQUEST
        }
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// An answer that should have been S3's and is not.
pub(super) fn not_s3(asked: &Asked<'_>, why: &str) -> StoreError {
    StoreError::Refused {
        place: asked.place.to_owned(),
        reason: format!(
            "the answer to a request to {} was none of S3's: {why}",
            asked.verb
        ),
        mend: Some("is the endpoint the S3 API's, and not a console's or a proxy's?".to_owned()),
        denied: false,
    }
}

/// What an answer that is no XML says, without its markup.
fn plain_text(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let mut plain = String::new();
    let mut tag = false;
    for c in text.chars().take(4 * MESSAGE) {
        match c {
            '<' => tag = true,
            '>' if tag => {
                tag = false;
                plain.push(' ');
            }
            _ if tag => {}
            c => plain.push(c),
        }
    }
    plain.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// One line of bounded length. A store's message may repeat the request: whatever looks like a
/// signature's parts is left out.
fn shorten(message: &str) -> String {
    let secret = [
        "Signature=",
        "X-Amz-Signature",
        "X-Amz-Security-Token",
        "Credential=",
    ];
    if secret.iter().any(|word| message.contains(word)) {
        return "(its message repeats the signature and is not shown)".to_owned();
    }
    let line: String = message
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MESSAGE)
        .collect();
    line.trim().to_owned()
}

/// The region that an error's text names.
fn region_in(message: &str) -> Option<String> {
    // "... the region 'us-east-1' is wrong; expecting 'eu-west-1'"
    if let Some((_, rest)) = message.split_once("expecting '") {
        return rest.split_once('\'').map(|(region, _)| region.to_owned());
    }
    // "unexpected scope: '20260101/OURS/s3/aws4_request', expected: '20260101/REGION/s3/aws4_request'"
    let (_, rest) = message.rsplit_once("expected")?;
    let (before, _) = rest.split_once("/s3/aws4_request")?;
    before.rsplit('/').next().map(str::to_owned)
}

/// Whether it may stand in a signature and in a host name.
fn is_region(region: &str) -> bool {
    !region.is_empty()
        && region.len() <= 64
        && region
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

#[cfg(test)]
mod tests;
