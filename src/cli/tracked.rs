//! Mounts that can be shown and asked while somebody else owns them.
//!
//! [`Tracked`] wraps a [`Mounter`] and remembers the mounts it made by weak references: whoever holds the
//! mount decides how long it lives.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use parking_lot::Mutex;

use super::control::MountView;
use crate::config::Options;
use crate::plugin::bucket::{
    Mount, MountError, MountStatus, Mounter, Salvage, VolumeName, VolumeSpec,
};

/// A mount and what was asked for.
pub(super) struct Held {
    pub(super) mount: Box<dyn Mount>,
    volume: Option<String>,
    source: String,
    read_only: bool,
    credentials: String,
}

impl Held {
    pub(super) fn new(
        mount: Box<dyn Mount>,
        options: &Options,
        volume: Option<&VolumeName>,
    ) -> Self {
        Self {
            mount,
            volume: volume.map(ToString::to_string),
            source: options.location.to_string(),
            read_only: options.read_only,
            credentials: options.credentials.to_string(),
        }
    }

    pub(super) fn view(&self) -> MountView {
        MountView {
            volume: self.volume.clone(),
            source: self.source.clone(),
            mountpoint: self.mount.mountpoint().to_owned(),
            read_only: self.read_only,
            credentials: self.credentials.clone(),
            alive: self.mount.is_alive() && self.mount.is_attached(),
            status: self.mount.status(),
        }
    }
}

/// A mounter whose mounts are listed.
pub(super) struct Tracked {
    mounter: Arc<dyn Mounter>,
    mounts: Mutex<BTreeMap<PathBuf, Weak<Held>>>,
}

impl Tracked {
    pub(super) fn new(mounter: Arc<dyn Mounter>) -> Arc<Self> {
        Arc::new(Self {
            mounter,
            mounts: Mutex::default(),
        })
    }

    /// The mounts that still exist, by mount point.
    pub(super) fn mounts(&self) -> Vec<Arc<Held>> {
        let mut mounts = self.mounts.lock();
        mounts.retain(|_, held| held.strong_count() > 0);
        mounts.values().filter_map(Weak::upgrade).collect()
    }

    /// Drains one mount, or all of them at the same time; the first error wins.
    pub(super) async fn drain(
        &self,
        mountpoint: Option<&Path>,
        limit: Duration,
    ) -> Option<Result<(), MountError>> {
        let mut mounts = self.mounts();
        if let Some(wanted) = mountpoint {
            mounts.retain(|held| held.mount.mountpoint() == wanted);
            if mounts.is_empty() {
                return None;
            }
        }
        Some(
            join_all(mounts.iter().map(|held| held.mount.drain(limit)))
                .await
                .into_iter()
                .collect(),
        )
    }
}

impl Tracked {
    /// See [`Mount::salvage`]. `None`: there is no such mount.
    pub(super) async fn salvage(
        &self,
        mountpoint: &Path,
        key: &str,
        how: &Salvage,
    ) -> Option<Result<Vec<Range<u64>>, MountError>> {
        let mounts = self.mounts();
        let held = mounts
            .iter()
            .find(|held| held.mount.mountpoint() == mountpoint)?;
        Some(held.mount.salvage(key, how).await)
    }
}

#[async_trait]
impl Mounter for Tracked {
    fn mountpoint(&self, name: &VolumeName) -> PathBuf {
        self.mounter.mountpoint(name)
    }

    async fn is_left_behind(&self, name: &VolumeName) -> bool {
        self.mounter.is_left_behind(name).await
    }

    async fn check(&self, spec: &VolumeSpec) -> Result<(), MountError> {
        self.mounter.check(spec).await
    }

    async fn resume(&self, spec: &VolumeSpec) -> Result<bool, MountError> {
        self.mounter.resume(spec).await
    }

    async fn mount(&self, spec: &VolumeSpec) -> Result<Box<dyn Mount>, MountError> {
        let mount = self.mounter.mount(spec).await?;
        let held = Arc::new(Held::new(mount, &spec.options, Some(&spec.name)));
        let mountpoint = held.mount.mountpoint().to_owned();
        self.mounts.lock().insert(mountpoint, Arc::downgrade(&held));
        Ok(Box::new(Shared(held)))
    }
}

/// A mount that is also in the list.
struct Shared(Arc<Held>);

#[async_trait]
impl Mount for Shared {
    fn mountpoint(&self) -> &Path {
        self.0.mount.mountpoint()
    }

    fn is_alive(&self) -> bool {
        self.0.mount.is_alive()
    }

    fn is_attached(&self) -> bool {
        self.0.mount.is_attached()
    }

    async fn is_held(&self) -> bool {
        self.0.mount.is_held().await
    }

    async fn drain(&self, limit: Duration) -> Result<(), MountError> {
        self.0.mount.drain(limit).await
    }

    async fn detach(&self) -> Result<(), MountError> {
        self.0.mount.detach().await
    }

    fn status(&self) -> MountStatus {
        self.0.mount.status()
    }

    async fn salvage(&self, key: &str, how: &Salvage) -> Result<Vec<Range<u64>>, MountError> {
        self.0.mount.salvage(key, how).await
    }
}
