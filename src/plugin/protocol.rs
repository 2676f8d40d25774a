//! The wire: what the engine sends, what it understands, and nothing else.
//!
//! Bodies are parsed from bytes, because the engine sends no Content-Type. This is the only file that
//! writes `Err`. An answer to a well-formed call has status 200 even when it says no: the engine then
//! shows the driver's words bare, while any other status puts the call's name before them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::SystemTime;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::error::Category;

use super::driver::{PluginError, Scope, Volume};

/// What the engine asks for in `Accept`. It ignores what it gets.
pub const CONTENT_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";

/// `VolumeDriver.Create`.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CreateRequest {
    /// The volume's name, which the engine has not checked.
    pub name: String,
    /// `null` when no `-o` was given. A key without a value comes with an empty one.
    #[serde(default)]
    pub opts: Option<BTreeMap<String, String>>,
}

impl fmt::Debug for CreateRequest {
    /// Without the options' values: some are secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Option<Vec<_>> = self.opts.as_ref().map(|opts| opts.keys().collect());
        f.debug_struct("CreateRequest")
            .field("name", &self.name)
            .field("opts", &keys)
            .finish()
    }
}

/// `VolumeDriver.Get`, `Path` and `Remove`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NameRequest {
    /// The volume's name.
    pub name: String,
}

/// `VolumeDriver.Mount` and `Unmount`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct MountRequest {
    /// The volume's name.
    pub name: String,
    /// The engine's id of this use of the volume. It is not unique.
    #[serde(rename = "ID")]
    pub id: String,
}

/// Whether a call that has to say something is the engine's retry after a broken connection: the first attempt has
/// drained the buffer with its body.
pub fn is_retry(body: &[u8]) -> bool {
    body.trim_ascii().is_empty()
}

/// Reads the body of a call that has to say something.
///
/// To accept a retry without one would make the engine believe in a volume that nobody named.
pub fn parse<T: DeserializeOwned>(call: &str, body: &[u8]) -> Result<T, PluginError> {
    if is_retry(body) {
        return Err(PluginError::Invalid(format!(
            "{call} came with an empty body, as the engine's retry after a lost connection does; run the command again"
        )));
    }
    serde_json::from_slice(body).map_err(|err| {
        // What serde_json says of a value it did not expect quotes that value, which may be a secret.
        let what = match err.classify() {
            Category::Data => "lacks something or has it in another type",
            Category::Syntax | Category::Eof | Category::Io => "is not JSON",
        };
        let (line, column) = (err.line(), err.column());
        PluginError::Invalid(format!(
            "{call} came with a body that {what}, at line {line} column {column}"
        ))
    })
}

/// What a driver's method returns, as the engine wants to read it.
pub(super) trait Answer {
    /// The answer's JSON, or why there is none.
    fn body(self) -> Result<Vec<u8>, PluginError>;
}

/// The answer of calls that only succeed or fail.
impl Answer for () {
    fn body(self) -> Result<Vec<u8>, PluginError> {
        json(&Outcome { err: "" })
    }
}

/// The answer of `Mount` and `Path`.
impl Answer for std::path::PathBuf {
    fn body(self) -> Result<Vec<u8>, PluginError> {
        json(&Mounted {
            mountpoint: checked(&self)?,
            err: "",
        })
    }
}

/// The answer of `Get`.
impl Answer for Volume {
    fn body(self) -> Result<Vec<u8>, PluginError> {
        json(&Got {
            volume: Described::new(&self)?,
            err: "",
        })
    }
}

/// The answer of `List`.
impl Answer for Vec<Volume> {
    fn body(self) -> Result<Vec<u8>, PluginError> {
        let volumes = self.iter().map(Described::new).collect::<Result<_, _>>()?;
        json(&Listed { volumes, err: "" })
    }
}

/// The answer of `Capabilities`.
impl Answer for Scope {
    fn body(self) -> Result<Vec<u8>, PluginError> {
        let scope = match self {
            Self::Local => "local",
            Self::Global => "global",
        };
        json(&Capable {
            capabilities: Capabilities { scope },
        })
    }
}

/// The answer of `Plugin.Activate`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Activated;

impl Answer for Activated {
    fn body(self) -> Result<Vec<u8>, PluginError> {
        json(&Implements {
            implements: ["VolumeDriver"],
        })
    }
}

/// A response to a well-formed call.
pub(super) fn answer<A: Answer>(result: Result<A, PluginError>) -> Response {
    match result.and_then(Answer::body) {
        Ok(body) => response(StatusCode::OK, body),
        Err(err) => refuse(StatusCode::OK, &err.to_string()),
    }
}

/// A response that says no.
pub(super) fn refuse(status: StatusCode, err: &str) -> Response {
    // An empty `Err` means success, so that an error without words must not pass for one.
    let err = if err.is_empty() {
        "the volume driver gave no reason"
    } else {
        err
    };
    response(status, json(&Outcome { err }).unwrap_or_default())
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Outcome<'a> {
    err: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Mounted<'a> {
    mountpoint: &'a str,
    err: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Got<'a> {
    volume: Described<'a>,
    err: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Listed<'a> {
    volumes: Vec<Described<'a>>,
    err: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Described<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    mountpoint: Option<&'a str>,
    /// RFC 3339 or absent: anything else makes the engine drop the whole answer, and the volume with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<String>,
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    status: &'a serde_json::Map<String, serde_json::Value>,
}

impl<'a> Described<'a> {
    fn new(volume: &'a Volume) -> Result<Self, PluginError> {
        if volume.name.is_empty() {
            // The engine would list a volume without a name.
            return Err(PluginError::Failed(
                "the volume driver described a volume without a name".into(),
            ));
        }
        Ok(Self {
            name: &volume.name,
            mountpoint: volume.mountpoint.as_deref().and_then(Path::to_str),
            created_at: volume.created_at.and_then(rfc3339),
            status: &volume.status,
        })
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Capable {
    capabilities: Capabilities,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Capabilities {
    scope: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Implements {
    implements: [&'static str; 1],
}

/// The engine mounts what it is told to: an empty path makes it mount the container's own bundle
/// directory, and a relative one whatever its working directory holds.
fn checked(mountpoint: &Path) -> Result<&str, PluginError> {
    match mountpoint.to_str() {
        Some(text) if mountpoint.is_absolute() => Ok(text),
        _ => Err(PluginError::Failed(format!(
            "the volume driver gave {mountpoint:?} as mount point, which is not an absolute path in UTF-8"
        ))),
    }
}

/// `None` for times before 1970 or after 9999, which RFC 3339 or its formatter cannot spell.
fn rfc3339(time: SystemTime) -> Option<String> {
    const END_OF_9999: u64 = 253_402_300_800;
    let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    (since.as_secs() < END_OF_9999).then(|| humantime::format_rfc3339_seconds(time).to_string())
}

fn json<T: Serialize>(value: &T) -> Result<Vec<u8>, PluginError> {
    serde_json::to_vec(value)
        .map_err(|err| PluginError::Failed(format!("the answer cannot be written as JSON: {err}")))
}

fn response(status: StatusCode, body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    response
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;

    #[test]
    fn options_may_be_null_absent_or_without_a_value() {
        for (body, opts) in [
            (r#"{"Name":"v","Opts":null}"#, None),
            (r#"{"Name":"v"}"#, None),
            (
                "{\"Name\":\"v\",\"Opts\":{\"flag\":\"\"},\"Later\":1}\n",
                Some(BTreeMap::from([("flag".into(), "".into())])),
            ),
        ] {
            let request: CreateRequest = parse("VolumeDriver.Create", body.as_bytes()).unwrap();
            assert_eq!(
                request,
                CreateRequest {
                    name: "v".into(),
                    opts
                }
            );
        }
    }

    #[test]
    fn an_empty_or_broken_body_is_an_error_that_names_the_call() {
        for body in [
            "",
            "\n",
            "{",
            "[]",
            "{}",
            r#"{"Name":7}"#,
            r#"{"Name":"v"} x"#,
            "null",
            "\u{1}",
        ] {
            let err = parse::<NameRequest>("VolumeDriver.Get", body.as_bytes()).unwrap_err();
            assert!(
                err.to_string().contains("VolumeDriver.Get"),
                "{body:?}: {err}"
            );
        }
    }

    #[test]
    fn no_value_of_an_option_is_quoted() {
        let body = br#"{"Name":"v","Opts":{"secret_access_key":["hush"]}}"#;
        let err = parse::<CreateRequest>("VolumeDriver.Create", body).unwrap_err();
        assert!(!err.to_string().contains("hush"), "{err}");
        let opts = Some(BTreeMap::from([(
            "secret_access_key".into(),
            "hush".into(),
        )]));
        let request = CreateRequest {
            name: "v".into(),
            opts,
        };
        assert!(!format!("{request:?}").contains("hush"));
    }

    #[test]
    fn a_mount_point_is_absolute_or_an_error() {
        for bad in ["", "relative/path"] {
            assert!(PathBuf::from(bad).body().is_err(), "{bad:?}");
        }
        assert_eq!(
            PathBuf::from("/m/v").body().unwrap(),
            br#"{"Mountpoint":"/m/v","Err":""}"#
        );
    }

    #[test]
    fn a_time_the_engine_cannot_read_is_left_out() {
        let volume = |created_at| Volume {
            name: "v".into(),
            created_at: Some(created_at),
            ..Volume::default()
        };
        let year_12000 = SystemTime::UNIX_EPOCH + Duration::from_secs(316_516_204_800);
        assert_eq!(
            volume(year_12000).body().unwrap(),
            br#"{"Volume":{"Name":"v"},"Err":""}"#
        );
        let in_2026 = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600);
        assert_eq!(
            volume(in_2026).body().unwrap(),
            br#"{"Volume":{"Name":"v","CreatedAt":"2026-01-01T00:00:00Z"},"Err":""}"#
        );
    }

    #[test]
    fn a_volume_without_a_name_is_not_sent() {
        assert!(vec![Volume::default()].body().is_err());
        assert_eq!(
            Vec::<Volume>::new().body().unwrap(),
            br#"{"Volumes":[],"Err":""}"#
        );
    }
}
