//! What a volume driver does, apart from how it is asked: implement [`VolumeDriver`] and hand it to
//! [`super::serve`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

use tokio_util::sync::CancellationToken;

/// A volume driver. Every method may be called at any time, several at once, for the same volume too.
///
/// Names come as the engine got them from a person: `../etc`, 300 characters, anything. Check them before
/// they become part of a path.
pub trait VolumeDriver: Send + Sync + 'static {
    /// Whether a volume of this driver is one host's or the whole cluster's.
    fn scope(&self) -> Scope {
        Scope::Local
    }

    /// Makes a volume. To make one that exists with the same options is a success.
    fn create(
        &self,
        name: &str,
        options: BTreeMap<String, String>,
    ) -> impl Future<Output = Result<(), PluginError>> + Send;

    /// Forgets a volume. The engine asks only when no container of its own uses it.
    fn remove(&self, name: &str) -> impl Future<Output = Result<(), PluginError>> + Send;

    /// Makes a volume usable and says where: an absolute path of the host that exists.
    ///
    /// `id` names the use of the volume by one container, and it repeats: `docker cp` mounts again under
    /// the id of the running container, and so does a container's next start after a crash of the engine.
    /// A `caller` that has gone never asks for the unmount; when this returns `Ok` to nobody, the server
    /// calls [`unmount`](Self::unmount) in its place.
    fn mount(
        &self,
        name: &str,
        id: &str,
        caller: &Caller,
    ) -> impl Future<Output = Result<PathBuf, PluginError>> + Send;

    /// Ends one use of a volume. One that is not known, or not mounted, is a success.
    fn unmount(&self, name: &str, id: &str)
    -> impl Future<Output = Result<(), PluginError>> + Send;

    /// Where a volume is, or would be, mounted.
    fn path(&self, name: &str) -> impl Future<Output = Result<PathBuf, PluginError>> + Send;

    /// Describes a volume. Answer from memory: whatever else is said of a volume that exists, the engine
    /// takes it for gone and deletes the labels and options it keeps of it.
    fn get(&self, name: &str) -> impl Future<Output = Result<Volume, PluginError>> + Send;

    /// Describes all volumes.
    fn list(&self) -> impl Future<Output = Result<Vec<Volume>, PluginError>> + Send;
}

/// How far a volume reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Each host has its own volume of a name.
    Local,
    /// A name means the same volume on every host.
    Global,
}

/// What the engine shows of a volume.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// Where it is or would be mounted.
    pub mountpoint: Option<PathBuf>,
    /// When it was made.
    pub created_at: Option<SystemTime>,
    /// Anything else, for `docker volume inspect`.
    pub status: serde_json::Map<String, serde_json::Value>,
}

impl Volume {
    /// A volume of which nothing but its name is said.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }
}

/// Why a driver says no. The words reach the person at the command line as they are: name the volume, the
/// cause and what to do, and no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PluginError {
    /// There is no volume of that name.
    #[error("no such volume: {0:?}")]
    NoSuchVolume(String),
    /// What was asked for cannot be done for anybody.
    #[error("{0}")]
    Invalid(String),
    /// What was asked for could not be done.
    #[error("{0}")]
    Failed(String),
}

/// Whoever waits for the answer of a call, and may stop waiting.
#[derive(Debug, Clone)]
pub struct Caller(CancellationToken);

impl Caller {
    /// A caller who goes when `token` is cancelled.
    pub fn new(token: CancellationToken) -> Self {
        Self(token)
    }

    /// A caller who waits however long it takes.
    pub fn patient() -> Self {
        Self(CancellationToken::new())
    }

    /// Whether nobody waits any more.
    pub fn has_gone(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Returns when nobody waits any more.
    pub async fn gone(&self) {
        self.0.cancelled().await;
    }
}
