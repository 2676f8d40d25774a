//! One [`FileSystem`] per place: volumes on the same endpoint, bucket and prefix share it, so that they
//! see each other's changes at once. It lives as long as a session uses it.

use std::collections::HashMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::Host;
use super::attributes::place;
use super::kept::Kept;
use crate::config::credentials::CredentialProvider;
use crate::config::{Location, Options};
use crate::fs::{BlockPlace, FileSystem, FsError, Settings};
use crate::plugin::bucket::MountError;
use crate::store::digest::{self, hex};
use crate::store::{Bucket, StoreError};

/// How often a file system that nobody uses is asked whether all of it is in the bucket.
const PENDING_POLL: Duration = Duration::from_millis(250);

/// What two volumes have to have in common to be the same files.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Place {
    endpoint: Option<String>,
    location: Location,
}

impl Place {
    fn of(options: &Options) -> Self {
        Self {
            endpoint: options.endpoint.url.clone(),
            location: options.location.clone(),
        }
    }

    /// What its journal is filed under: volumes of one place have one journal, whichever is mounted first.
    fn label(&self) -> String {
        let endpoint = self.endpoint.as_deref().unwrap_or_default();
        filed_under(
            "place-",
            &[endpoint.as_bytes(), self.location.to_string().as_bytes()],
        )
    }
}

/// A name for a directory of state: the same for the same parts, and no other's. No part holds a NUL.
pub(super) fn filed_under(prefix: &str, parts: &[impl AsRef<[u8]>]) -> String {
    let digest = digest::of_parts(parts);
    format!("{prefix}{}", hex(&digest[..8]))
}

/// The file systems that are open, by place.
#[derive(Debug)]
pub(super) struct FileSystems {
    host: Host,
    kept: Arc<Kept>,
    slots: Slots,
}

type Slots = Arc<Mutex<HashMap<Place, Slot>>>;

/// Its lock is held while the file system is opened and closed, so that there is never a second one.
type Slot = Arc<tokio::sync::Mutex<Option<Open>>>;

#[derive(Debug)]
struct Open {
    filesystem: Arc<FileSystem>,
    /// What it is filed and kept under.
    label: String,
    leases: usize,
}

impl FileSystems {
    pub(super) fn new(host: Host, kept: Arc<Kept>) -> Self {
        Self {
            host,
            kept,
            slots: Arc::default(),
        }
    }

    /// Asks the store whether these options lead to a bucket.
    pub(super) async fn check(&self, options: &Options) -> Result<Arc<Bucket>, MountError> {
        let bucket = self.connect(options)?;
        bucket
            .check()
            .await
            .map_err(|error| store_error(&options.location, &error))?;
        Ok(bucket)
    }

    fn connect(&self, options: &Options) -> Result<Arc<Bucket>, MountError> {
        let refused = |text: String| MountError::Refused(format!("{}: {text}", options.location));
        let clock = &self.host.clock;
        let credentials = CredentialProvider::new(options, &self.host.ambient, Arc::clone(clock))
            .map_err(|error| refused(error.to_string()))?;
        let bucket = Bucket::connect(
            &options.location,
            &options.endpoint,
            options.host.ca_cert.as_deref(),
            Arc::new(credentials),
            Arc::clone(clock),
        )
        .map_err(|error| store_error(&options.location, &error))?;
        let bucket = match (&self.host.attributes, place(options)) {
            (Some(attributes), Some(place)) => bucket.with_attributes(attributes.of(&place)),
            _ => bucket,
        };
        Ok(Arc::new(bucket))
    }

    /// The file system at the options' place, opened if nobody has it open. Its journal is filed under `label`
    /// below the state directory then, or under the place itself.
    ///
    /// The bucket is asked with these options in any case: a volume must not reach by another volume's
    /// credentials what its own do not open.
    pub(super) async fn acquire(
        &self,
        options: &Options,
        label: Option<&str>,
    ) -> Result<Lease, MountError> {
        let bucket = self.check(options).await?;
        self.acquire_at(bucket, options, label).await
    }

    /// Like [`FileSystems::acquire`], for a mount that is there already: its users do not wait for the store to say
    /// once more that these options lead to it.
    pub(super) async fn acquire_mounted(
        &self,
        options: &Options,
        label: Option<&str>,
    ) -> Result<Lease, MountError> {
        let bucket = self.connect(options)?;
        self.acquire_at(bucket, options, label).await
    }

    async fn acquire_at(
        &self,
        bucket: Arc<Bucket>,
        options: &Options,
        label: Option<&str>,
    ) -> Result<Lease, MountError> {
        let place = Place::of(options);
        let mut label = label.map_or_else(|| place.label(), str::to_owned);
        let slot = Arc::clone(self.slots.lock().entry(place.clone()).or_default());
        let mut open = slot.lock().await;
        let opened = match open.as_mut() {
            Some(open) => {
                open.leases += 1;
                label.clone_from(&open.label);
                Ok(Arc::clone(&open.filesystem))
            }
            None => match self.open(bucket, options, &label).await {
                Ok(filesystem) => {
                    *open = Some(Open {
                        filesystem: Arc::clone(&filesystem),
                        label: label.clone(),
                        leases: 1,
                    });
                    Ok(filesystem)
                }
                Err(error) => Err(error),
            },
        };
        drop(open);
        let held = Held {
            place,
            label,
            slot,
            slots: Arc::clone(&self.slots),
            kept: Arc::clone(&self.kept),
        };
        match opened {
            Ok(filesystem) => Ok(Lease {
                filesystem,
                held: Some(held),
            }),
            Err(error) => {
                held.forget_if_closed();
                Err(error)
            }
        }
    }

    /// Opens the file system at the options' place if an earlier process left changes there that are not in the
    /// bucket; it goes on until they are. Returns whether any are left.
    pub(super) async fn resume(&self, options: &Options) -> Result<bool, MountError> {
        let state = self.host.state_dir.join(Place::of(options).label());
        if !state.exists() {
            return Ok(false);
        }
        let lease = self.acquire(options, None).await?;
        let is_pending = lease.filesystem().has_pending();
        lease.release().await;
        Ok(is_pending)
    }

    async fn open(
        &self,
        bucket: Arc<Bucket>,
        options: &Options,
        label: &str,
    ) -> Result<Arc<FileSystem>, MountError> {
        let staging_dir = self.staging_dir(label)?;
        // A read-only volume is so by its mount; the file system may have a writable one too.
        let options = Options {
            read_only: false,
            ..options.clone()
        };
        let location = options.location.clone();
        let cache = Arc::clone(&self.host.cache);
        let clock = Arc::clone(&self.host.clock);
        let staging = Arc::clone(&self.host.staging);
        let settings = Settings {
            place: place(&options).map(|place| BlockPlace::of(&place)),
            formats: self.kept.formats(),
            ..Settings::from_options(&options, staging_dir, staging, cache, clock)
        };
        let opened = match self.kept.take_files(label) {
            Some(memory) => FileSystem::resume(bucket, settings, memory).await,
            None => FileSystem::open(bucket, settings).await,
        };
        opened.map_err(|error| fs_error(&location, &error))
    }

    /// What is staged is a container's data: nobody else on the host may read it.
    fn staging_dir(&self, label: &str) -> Result<PathBuf, MountError> {
        let dir = self.host.state_dir.join(label);
        match DirBuilder::new().recursive(true).mode(0o700).create(&dir) {
            Ok(()) => Ok(dir),
            Err(error) => Err(MountError::Refused(format!(
                "state directory {}: {error}",
                dir.display()
            ))),
        }
    }
}

/// The right to use a file system. Its last one closes it.
#[derive(Debug)]
pub(super) struct Lease {
    filesystem: Arc<FileSystem>,
    held: Option<Held>,
}

impl Lease {
    pub(super) fn filesystem(&self) -> &Arc<FileSystem> {
        &self.filesystem
    }

    /// What the file system is filed and kept under.
    pub(super) fn label(&self) -> &str {
        self.held.as_ref().map_or("", |held| &held.label)
    }

    /// Gives it back; closes the file system if this was the last.
    pub(super) async fn release(mut self) {
        if let Some(held) = self.held.take() {
            held.release().await;
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // A task that was given up. Without a runtime the process ends, and the next one cleans up.
        if let (Some(held), Ok(runtime)) = (self.held.take(), Handle::try_current()) {
            runtime.spawn(held.release());
        }
    }
}

#[derive(Debug)]
struct Held {
    place: Place,
    label: String,
    slot: Slot,
    slots: Slots,
    kept: Arc<Kept>,
}

impl Held {
    async fn release(self) {
        let pending = {
            let mut open = self.slot.lock().await;
            open.as_mut().and_then(|shared| {
                shared.leases = shared.leases.saturating_sub(1);
                let is_pending = shared.leases == 0 && shared.filesystem.has_pending();
                is_pending.then(|| Arc::clone(&shared.filesystem))
            })
        };
        match pending {
            Some(filesystem) => {
                tokio::spawn(self.close_when_settled(filesystem));
            }
            None => self.close_if_unused().await,
        }
    }

    /// Nobody uses it, and it has changes that are not in the bucket: it lives on until they are, or until
    /// somebody uses it again.
    async fn close_when_settled(self, filesystem: Arc<FileSystem>) {
        settled(&filesystem).await;
        drop(filesystem);
        self.close_if_unused().await;
    }

    async fn close_if_unused(self) {
        {
            let mut open = self.slot.lock().await;
            if open.as_ref().is_some_and(|open| open.leases == 0)
                && let Some(last) = open.take()
            {
                self.kept.forget_files(&last.label);
                last.filesystem.close();
            }
        }
        self.forget_if_closed();
    }

    /// Lock order: the table's, then the slot's, which is only tried.
    fn forget_if_closed(self) {
        let mut slots = self.slots.lock();
        // Ours and the table's: nobody waits to open it, and nobody can begin to while we have the table.
        if Arc::strong_count(&self.slot) == 2
            && self.slot.try_lock().is_ok_and(|open| open.is_none())
        {
            slots.remove(&self.place);
        }
    }
}

/// Waits until all of it is in the bucket.
pub(super) async fn settled(filesystem: &FileSystem) {
    while filesystem.has_pending() {
        tokio::time::sleep(PENDING_POLL).await;
    }
}

/// What a store's error means for a mount. The text names the place, the cause and the mend.
fn store_error(location: &Location, error: &StoreError) -> MountError {
    let text = named(location, error.to_string());
    match error.is_transient() {
        true => MountError::Unavailable(text),
        false => MountError::Refused(text),
    }
}

/// What a file system's error means for a mount.
pub(super) fn fs_error(location: &Location, error: &FsError) -> MountError {
    match error {
        FsError::Store(error) => store_error(location, error),
        FsError::TimedOut(_) => MountError::TimedOut(named(location, error.to_string())),
        _ => MountError::Refused(named(location, error.to_string())),
    }
}

fn named(location: &Location, text: String) -> String {
    if text.contains(&location.bucket) {
        text
    } else {
        format!("{location}: {text}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Scheme;

    fn photos() -> Location {
        let (bucket, prefix) = ("photos".to_owned(), "2026".to_owned());
        Location {
            scheme: Scheme::S3,
            bucket,
            prefix,
        }
    }

    fn away() -> StoreError {
        let (place, reason) = ("https://s3.example.com".to_owned(), "timed out".to_owned());
        StoreError::Unavailable {
            place,
            reason,
            retry_after: None,
        }
    }

    #[test]
    fn a_store_that_is_away_may_be_asked_again_and_one_that_says_no_may_not() {
        assert!(store_error(&photos(), &away()).is_transient());
        let refusal = StoreError::Refused {
            place: "bucket photos".into(),
            reason: "access denied".into(),
            mend: Some("check the credentials".into()),
            denied: true,
        };
        let error = store_error(&photos(), &refusal);
        assert!(!error.is_transient());
        assert_eq!(
            error.to_string(),
            "bucket photos: access denied (check the credentials)"
        );
    }

    #[test]
    fn every_error_names_the_bucket() {
        let error = store_error(&photos(), &away());
        assert_eq!(
            error.to_string(),
            "s3://photos/2026: https://s3.example.com: timed out"
        );
        let error = fs_error(&photos(), &FsError::TimedOut(Duration::from_secs(3)));
        assert!(matches!(error, MountError::TimedOut(_)));
        assert!(error.to_string().starts_with("s3://photos/2026: "));
    }
}
