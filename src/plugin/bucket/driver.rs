//! Docker's verbs for buckets.
//!
//! Get, List and Path read a snapshot of the volumes and never wait. Create and Remove change the
//! snapshot and the records one at a time; what may wait for a store happens before they queue up for
//! that. Mount and Unmount are the volume's own affair (`lifecycle`).

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::RwLock;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::definition::{Definition, difference, inline_secrets};
use super::lifecycle::{Context, Limits, Notes, Parted, Volume};
use super::overlap;
use super::registry::{Record, Registry, RegistryError};
use super::status::status;
use super::{MountError, MountId, Mounter, VolumeName, VolumeSpec};
use crate::clock::Clock;
use crate::config::{Location, Scheme};
use crate::plugin::driver::Volume as Described;
use crate::plugin::driver::{Caller, PluginError, VolumeDriver};

/// First and longest pause before a store that is away is asked again whether it takes what is pending.
const RESUME_FIRST: Duration = Duration::from_secs(1);
const RESUME_LAST: Duration = Duration::from_secs(60);

/// What the daemon's operator decides.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Records are kept below it.
    pub state_dir: PathBuf,
    /// `file://` volumes have to lie in one of these directories.
    pub allow_local: Vec<PathBuf>,
    /// Refuse secrets among a volume's options.
    pub deny_inline_credentials: bool,
    /// How long things may take.
    pub limits: Limits,
}

impl Settings {
    /// Records in `state_dir`, no `file://` volumes, secrets accepted, the limits of a plugin with a socket.
    pub fn new(state_dir: PathBuf) -> Self {
        Self {
            state_dir,
            allow_local: Vec::new(),
            deny_inline_credentials: false,
            limits: Limits::SOCKET,
        }
    }
}

/// What became of the mounts when the driver was shut down.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stopped {
    /// Detached, with everything in the bucket.
    pub detached: Vec<VolumeName>,
    /// Left mounted, because containers have them or because of the next list.
    pub left: Vec<VolumeName>,
    /// Left with changes that are not in the bucket.
    pub dirty: Vec<VolumeName>,
}

type Volumes = BTreeMap<VolumeName, Arc<Volume>>;

/// Volumes that are buckets.
#[derive(Debug)]
pub struct BucketDriver {
    settings: Settings,
    registry: Arc<Registry>,
    context: Arc<Context>,
    clock: Arc<dyn Clock>,
    /// Replaced as a whole, so that a reader holds the lock for as long as a pointer takes to copy.
    volumes: RwLock<Arc<Volumes>>,
    /// Whoever changes the records and `volumes` has it.
    changing: tokio::sync::Mutex<()>,
}

impl BucketDriver {
    /// The driver of the volumes recorded in the state directory. Nothing is mounted yet: who holds what
    /// was known to the last process only.
    pub fn open(
        settings: Settings,
        mounter: Arc<dyn Mounter>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, RegistryError> {
        let registry = Registry::open(&settings.state_dir)?;
        let context = Arc::new(Context {
            mounter,
            limits: settings.limits,
            closing: CancellationToken::new(),
        });
        let found = registry.load()?;
        let volumes: Volumes = found
            .into_iter()
            .map(|found| {
                let name = found.name.clone();
                let definition = Definition::from_found(found);
                (
                    name.clone(),
                    Volume::new(name, definition, &context, Notes::default()),
                )
            })
            .collect();
        tracing::info!(volumes = volumes.len(), "records read");
        Ok(Arc::new(Self {
            settings,
            registry: Arc::new(registry),
            context,
            clock,
            volumes: RwLock::new(Arc::new(volumes)),
            changing: tokio::sync::Mutex::default(),
        }))
    }

    /// Drains all mounts at once, for at most `limit`, and detaches those that no container has. Nothing
    /// can be mounted any more.
    pub async fn shutdown(&self, limit: Duration) -> Stopped {
        self.context.closing.cancel();
        let volumes = self.snapshot();
        let parting = volumes
            .values()
            .map(async |volume| (volume.name.clone(), volume.part(limit).await));
        let mut stopped = Stopped::default();
        for (name, parted) in join_all(parting).await {
            match parted {
                None => {}
                Some(Parted::Detached) => stopped.detached.push(name),
                Some(Parted::Left { drained }) => {
                    if !drained {
                        stopped.dirty.push(name.clone());
                    }
                    stopped.left.push(name);
                }
            }
        }
        stopped
    }

    /// Mounts anew what a daemon that is gone left to running containers: every new open of theirs works
    /// again. To be called once, before the first Mount; it returns when each was mounted or given up.
    pub async fn heal(&self) {
        let volumes = self.snapshot();
        join_all(volumes.values().map(|volume| async move {
            if !self.context.mounter.is_left_behind(&volume.name).await {
                return;
            }
            if let Err(error) = volume.take_up().await {
                tracing::error!(volume = %volume.name, "containers still look at a dead mount: {error}");
            }
        }))
        .await;
    }

    /// Goes on with what an earlier daemon accepted and could not bring into the buckets. To be called once; it
    /// returns when that is under way for each volume, however long a store is away.
    pub async fn resume(&self) {
        for (id, found) in self.registry.retired().unwrap_or_else(|error| {
            tracing::error!("what removed volumes have left is not looked for: {error}");
            Vec::new()
        }) {
            let name = found.name.clone();
            let definition = Definition::from_found(found);
            self.see_out(
                id,
                Volume::new(name, definition, &self.context, Notes::default()),
            );
        }
        let volumes = self.snapshot();
        join_all(volumes.values().map(|volume| async move {
            let Ok(spec) = volume.definition.spec(&volume.name) else {
                return;
            };
            let mut pause = RESUME_FIRST;
            while let Err(error) = self.context.mounter.resume(spec).await {
                tracing::warn!(volume = %volume.name, "changes wait for their bucket: {error}");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RESUME_LAST);
            }
        }))
        .await;
    }

    /// Brings what was written to a volume that is no more into its bucket, in a task of its own; then nothing is known
    /// of it. The next daemon goes on if this one ends before.
    fn see_out(&self, id: Uuid, volume: Arc<Volume>) {
        let (context, registry) = (Arc::clone(&self.context), Arc::clone(&self.registry));
        let drain = async move {
            let (name, definition) = (&volume.name, &volume.definition);
            let mut pause = RESUME_FIRST;
            // One whose record cannot be read leads to no bucket.
            while let Ok(spec) = definition.spec(name) {
                match context.mounter.resume(spec).await {
                    Ok(false) => break,
                    Ok(true) => {}
                    Err(error) => {
                        let error = definition.scrub(&error.to_string());
                        tracing::warn!(volume = %name, "removed, and changes wait for their bucket: {error}");
                    }
                }
                tokio::select! {
                    () = context.closing.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(RESUME_LAST);
            }
            match spawn_blocking(move || registry.forget(id)).await {
                Ok(Ok(())) => {
                    tracing::info!(volume = %name, "removed, and nothing of it is left to do")
                }
                Ok(Err(error)) => tracing::warn!(volume = %name, "removed: {error}"),
                Err(panic) => tracing::warn!(volume = %name, "removed: {panic}"),
            }
        };
        tokio::spawn(drain);
    }

    fn snapshot(&self) -> Arc<Volumes> {
        Arc::clone(&self.volumes.read())
    }

    fn find(&self, name: &str) -> Result<Arc<Volume>, PluginError> {
        // A name that no volume can have is not in the map either.
        let found = VolumeName::parse(name)
            .ok()
            .and_then(|name| self.snapshot().get(&name).map(Arc::clone));
        found.ok_or_else(|| PluginError::NoSuchVolume(name.to_owned()))
    }

    /// Whether a volume that exists is what somebody wants to create.
    fn compare(existing: &Volume, wanted: &Definition) -> Result<(), PluginError> {
        let Some(difference) = difference(&existing.definition, wanted) else {
            return Ok(());
        };
        Err(PluginError::Invalid(format!(
            "volume {name} exists already and {difference}; docker volume rm {name} first (no object is deleted), or choose \
             another name",
            name = existing.name
        )))
    }

    /// Whether the volume may be created as far as this host knows.
    fn admit(&self, spec: &VolumeSpec) -> Result<(), PluginError> {
        let snapshot = self.snapshot();
        let others = snapshot.values().filter(|other| other.name != spec.name);
        let mut conflicts = others.filter_map(|other| {
            other
                .definition
                .options()
                .and_then(|theirs| overlap::conflict(&spec.options, &other.name, theirs))
        });
        match conflicts.next() {
            None => Ok(()),
            Some(conflict) => Err(PluginError::Invalid(format!(
                "volume {}: {conflict}",
                spec.name
            ))),
        }
    }

    /// Asks the store, unless the creator does not want to: `Err` if the answer is a definite no,
    /// otherwise what there is to warn of.
    async fn check(
        &self,
        spec: &VolumeSpec,
        definition: &Definition,
    ) -> Result<Option<String>, PluginError> {
        if !spec.options.check {
            return Ok(None);
        }
        let limit = self.settings.limits.check;
        let late = || {
            Err(MountError::TimedOut(format!(
                "no answer after {} s",
                limit.as_secs()
            )))
        };
        let Err(error) = timeout(limit, self.context.mounter.check(spec))
            .await
            .unwrap_or_else(|_| late())
        else {
            return Ok(None);
        };
        let place = &spec.options.location;
        let text = definition.scrub(&error.to_string());
        if !error.is_transient() {
            return Err(PluginError::Invalid(format!(
                "volume {} ({place}): {text}",
                spec.name
            )));
        }
        tracing::warn!(volume = %spec.name, %place, error = text, "created without an answer of the store");
        Ok(Some(format!(
            "the store could not be asked when the volume was created: {text}"
        )))
    }

    /// Whether a `file://` place is below a directory the operator allows. Asked again at every Mount,
    /// since a container may have put a symbolic link where a directory was.
    async fn permit(&self, name: &VolumeName, location: &Location) -> Result<(), PluginError> {
        if location.scheme != Scheme::File {
            return Ok(());
        }
        let refused = |why: &str| {
            Err(PluginError::Invalid(format!(
                "volume {name}: {location} {why}"
            )))
        };
        // Put together again without a slash at the end, which would make every look follow a link.
        let path: PathBuf = Path::new(&location.bucket)
            .join(&location.prefix)
            .components()
            .collect();
        if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
            return refused("is not an absolute path without ..");
        }
        let real = existing_part(path).await;
        for allowed in &self.settings.allow_local {
            if let (Ok(allowed), Some(real)) = (tokio::fs::canonicalize(allowed).await, &real)
                && real.starts_with(&allowed)
            {
                return Ok(());
            }
        }
        refused("is not below a directory the daemon was given with --allow-local")
    }

    /// Changes the set of volumes. The caller is the one that is changing.
    fn change(&self, change: impl FnOnce(&mut Volumes)) {
        let mut volumes = (*self.snapshot()).clone();
        change(&mut volumes);
        *self.volumes.write() = Arc::new(volumes);
    }

    async fn on_disk<F>(&self, name: &VolumeName, work: F) -> Result<(), PluginError>
    where
        F: FnOnce(&Registry) -> Result<(), RegistryError> + Send + 'static,
    {
        let registry = Arc::clone(&self.registry);
        let failed = |err: String| PluginError::Failed(format!("volume {name}: {err}"));
        match spawn_blocking(move || work(&registry)).await {
            Ok(done) => done.map_err(|err| failed(err.to_string())),
            Err(panic) => Err(failed(panic.to_string())),
        }
    }
}

impl VolumeDriver for BucketDriver {
    async fn create(
        &self,
        name: &str,
        options: BTreeMap<String, String>,
    ) -> Result<(), PluginError> {
        let name = VolumeName::parse(name).map_err(|err| PluginError::Invalid(err.to_string()))?;
        let secrets = inline_secrets(&options).join(" and ");
        if self.settings.deny_inline_credentials && !secrets.is_empty() {
            return Err(PluginError::Invalid(format!(
                "volume {name}: {secrets} not accepted here, Docker shows it to everybody who may inspect the volume; use \
                 credentials=file:NAME"
            )));
        }
        let record = Record {
            id: Uuid::now_v7(),
            name: name.clone(),
            created_at: self.clock.wall(),
            options,
        };
        let definition = Definition::from_record(record.clone())
            .map_err(|err| PluginError::Invalid(format!("volume {name}: {err}")))?;
        if let Some(existing) = self.snapshot().get(&name) {
            return Self::compare(existing, &definition);
        }
        let spec = definition.spec(&name)?.clone();
        self.permit(&name, &spec.options.location).await?;
        self.admit(&spec)?;
        let unchecked = self.check(&spec, &definition).await?;

        let _changing = self.changing.lock().await;
        // Others may have been created while the store was asked.
        if let Some(existing) = self.snapshot().get(&name) {
            return Self::compare(existing, &definition);
        }
        self.admit(&spec)?;
        self.on_disk(&name, move |registry| registry.insert(&record))
            .await?;
        let volume = Volume::new(
            name.clone(),
            definition,
            &self.context,
            Notes {
                unchecked,
                last_error: None,
            },
        );
        self.change(|volumes| _ = volumes.insert(name.clone(), volume));
        tracing::info!(volume = %name, store = %spec.options.location, "created");
        if !secrets.is_empty() {
            tracing::warn!(volume = %name, "{secrets} was given inline: Docker shows it in inspect");
        }
        Ok(())
    }

    async fn remove(&self, name: &str) -> Result<(), PluginError> {
        let volume = self.find(name)?;
        let name = volume.name.clone();
        volume
            .retire(async {
                let _changing = self.changing.lock().await;
                let id = Uuid::now_v7();
                self.on_disk(&name, {
                    let name = name.clone();
                    move |registry| registry.retire(&name, id)
                })
                .await?;
                self.change(|volumes| _ = volumes.remove(&name));
                tracing::info!(volume = %name, "removed; its objects stay in the bucket");
                self.see_out(id, Arc::clone(&volume));
                Ok(())
            })
            .await
    }

    async fn mount(&self, name: &str, id: &str, caller: &Caller) -> Result<PathBuf, PluginError> {
        let volume = self.find(name)?;
        if let Some(options) = volume.definition.options() {
            self.permit(&volume.name, &options.location).await?;
        }
        let mounted = volume.mount(MountId(id.to_owned()), caller).await;
        mounted.inspect_err(|error| tracing::warn!(volume = name, %error, "not mounted"))
    }

    async fn unmount(&self, name: &str, id: &str) -> Result<(), PluginError> {
        match self.find(name) {
            Ok(volume) => volume.unmount(&MountId(id.to_owned())).await,
            // The engine would go on believing in a mount that nobody has.
            Err(_) => tracing::debug!(volume = name, "unmount of a volume that does not exist"),
        }
        Ok(())
    }

    async fn path(&self, name: &str) -> Result<PathBuf, PluginError> {
        Ok(self.find(name)?.mountpoint.clone())
    }

    async fn get(&self, name: &str) -> Result<Described, PluginError> {
        let volume = self.find(name)?;
        Ok(Described {
            status: status(&volume),
            ..describe(&volume)
        })
    }

    async fn list(&self) -> Result<Vec<Described>, PluginError> {
        Ok(self
            .snapshot()
            .values()
            .map(|volume| describe(volume))
            .collect())
    }
}

fn describe(volume: &Volume) -> Described {
    let created_at = match &volume.definition {
        Definition::Usable { created_at, .. } => Some(*created_at),
        Definition::Broken { .. } => None,
    };
    Described {
        name: volume.name.to_string(),
        mountpoint: Some(volume.mountpoint.clone()),
        created_at,
        ..Described::default()
    }
}

/// The real path of as much of `path` as exists: what does not exist yet leads nowhere.
async fn existing_part(path: PathBuf) -> Option<PathBuf> {
    for part in path.ancestors() {
        match tokio::fs::canonicalize(part).await {
            Ok(real) => return Some(real),
            // A link to nowhere may lead somewhere tomorrow.
            Err(_) if tokio::fs::symlink_metadata(part).await.is_ok() => return None,
            Err(_) => {}
        }
    }
    None
}
