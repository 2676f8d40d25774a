//! One volume between mounted and not.
//!
//! Docker's ids are hints, so that nothing here counts: a session ends when no id is left, everything is
//! in the bucket and no container has the file system mounted; a Mount before that uses it further.
//!
//! Lock order: `turn` (held across awaits, by whoever changes what is mounted), then `state`, then
//! `notes` (both for moments). Lookups take only the last two, so that no store can delay them.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::definition::Definition;
use super::volume::VolumeState;
use super::{Mount, MountError, MountId, Mounter, VolumeName, VolumeSpec};
use crate::plugin::{Caller, PluginError};

/// How long the driver works on what the engine waits for. The sums stay below the engine's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Asking the store at Create.
    pub check: Duration,
    /// Trying to mount while the store is away.
    pub mount: Duration,
    /// Bringing changes into the bucket at Unmount and Remove.
    pub drain: Duration,
    /// Before the second attempt to mount; it doubles from one to the next.
    pub retry: Duration,
    /// Between looks at a mount that may be detached soon; it grows eightfold while containers hold it.
    pub sweep: Duration,
    /// How long a mount of an earlier process is waited for by whoever was answered by that, and has not come yet.
    pub awaited: Duration,
}

impl Limits {
    /// For a plugin that listens on a socket: the engine waits 120 s for Create and Mount, 60 s otherwise.
    pub const SOCKET: Self = Self {
        check: Duration::from_secs(25),
        mount: Duration::from_secs(100),
        drain: Duration::from_secs(50),
        retry: Duration::from_millis(250),
        sweep: Duration::from_secs(2),
        // Before it starts a container the engine mounts all its volumes, one after the other, and gives each of them two
        // minutes. To wait longer than that costs next to nothing.
        awaited: Duration::from_secs(600),
    };

    /// For a managed plugin: the engine waits 30 s.
    pub const MANAGED: Self = Self {
        mount: Duration::from_secs(25),
        drain: Duration::from_secs(25),
        check: Duration::from_secs(20),
        ..Self::SOCKET
    };
}

/// Between two attempts to mount at the most.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What all volumes of a driver have in common.
pub(super) struct Context {
    pub(super) mounter: Arc<dyn Mounter>,
    pub(super) limits: Limits,
    /// Cancelled when the daemon stops: nothing is mounted from then on.
    pub(super) closing: CancellationToken,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// A volume that exists.
pub(super) struct Volume {
    pub(super) name: VolumeName,
    pub(super) mountpoint: PathBuf,
    pub(super) definition: Definition,
    pub(super) context: Arc<Context>,
    /// Whoever changes what is mounted has it. In an `Arc` because an attempt that nobody waits for any
    /// more takes its turn along.
    pub(super) turn: Arc<tokio::sync::Mutex<()>>,
    pub(super) state: Mutex<VolumeState>,
    pub(super) notes: Mutex<Notes>,
    /// A task looks after the session until it can be detached.
    pub(super) sweeping: AtomicBool,
    /// The ids of an earlier process are lost. A container whose Mount it has answered may not have started yet: until
    /// then, or until a container is seen that has the session, it stays.
    pub(super) awaited_until: Mutex<Option<Instant>>,
}

/// What there is to say to `docker volume inspect` that no mount knows.
#[derive(Debug, Clone, Default)]
pub(super) struct Notes {
    /// The last thing that went wrong and was not followed by a success.
    pub(super) last_error: Option<String>,
    /// The store did not answer at Create; forgotten with the first successful Mount.
    pub(super) unchecked: Option<String>,
}

/// A moment's look at a volume.
pub(super) struct Glimpse {
    pub(super) state: &'static str,
    pub(super) holders: usize,
    pub(super) mount: Option<Arc<dyn Mount>>,
    pub(super) notes: Notes,
}

/// What became of a volume when the daemon stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parted {
    Detached,
    /// Containers keep it; whether everything is in the bucket.
    Left {
        drained: bool,
    },
}

impl Volume {
    pub(super) fn new(
        name: VolumeName,
        definition: Definition,
        context: &Arc<Context>,
        notes: Notes,
    ) -> Arc<Self> {
        Arc::new(Self {
            mountpoint: context.mounter.mountpoint(&name),
            name,
            definition,
            context: Arc::clone(context),
            turn: Arc::default(),
            state: Mutex::default(),
            notes: Mutex::new(notes),
            sweeping: AtomicBool::new(false),
            awaited_until: Mutex::default(),
        })
    }

    pub(super) fn glimpse(&self) -> Glimpse {
        let (state, holders, mount) = {
            let state = self.state.lock();
            let (word, holders) = match &*state {
                VolumeState::Unmounted | VolumeState::Removed => ("not mounted", 0),
                VolumeState::Mounted { holders, .. } => ("mounted", holders.len()),
                VolumeState::Stuck { .. } => ("unmount failed", 0),
            };
            (word, holders, state.mount().map(Arc::clone))
        };
        let mut notes = self.notes.lock().clone();
        if let VolumeState::Stuck { error, .. } = &*self.state.lock() {
            notes.last_error.get_or_insert_with(|| error.to_string());
        }
        Glimpse {
            state,
            holders,
            mount,
            notes,
        }
    }

    /// Mounts the volume for `id`, or joins the session there is.
    pub(super) async fn mount(
        self: &Arc<Self>,
        id: MountId,
        caller: &Caller,
    ) -> Result<PathBuf, PluginError> {
        let spec = self.definition.spec(&self.name)?;
        let give_up = Instant::now() + self.context.limits.mount;
        let turn = tokio::select! {
            biased;
            turn = timeout_at(give_up, Arc::clone(&self.turn).lock_owned()) => turn.map_err(|_| self.busy())?,
            () = caller.gone() => return Err(self.given_up("the engine hung up")),
        };
        if matches!(*self.state.lock(), VolumeState::Removed) {
            return Err(PluginError::NoSuchVolume(self.name.to_string()));
        }
        if self.context.closing.is_cancelled() {
            return Err(self.given_up("the daemon is stopping"));
        }
        if let Some(mountpoint) = self.join(&id) {
            return Ok(mountpoint);
        }
        self.clear().await?;
        // Held to the end: the state changes in one turn.
        let (_turn, mount) = self.attempt(turn, spec, give_up, caller).await?;
        let mountpoint = mount.mountpoint().to_owned();
        self.occupy(mount, BTreeSet::from([id]));
        tracing::info!(volume = %self.name, mountpoint = %mountpoint.display(), "mounted");
        Ok(mountpoint)
    }

    /// Drops the hint `id`; when none is left, brings the changes into the bucket and lets go of the
    /// session as soon as no container has it.
    pub(super) async fn unmount(self: &Arc<Self>, id: &MountId) {
        let idle = {
            let mut state = self.state.lock();
            if let VolumeState::Mounted { holders, .. } = &mut *state {
                holders.remove(id);
            }
            state.candidate().is_some()
        };
        if idle {
            self.release().await;
        }
    }

    /// Goes on with what an earlier process has left, for nobody in particular: the sweeper lets go of it when the
    /// containers have.
    pub(super) async fn take_up(self: &Arc<Self>) -> Result<(), PluginError> {
        let nobody = MountId("healing".to_owned());
        self.mount(nobody.clone(), &Caller::patient()).await?;
        *self.awaited_until.lock() = Some(Instant::now() + self.context.limits.awaited);
        self.unmount(&nobody).await;
        Ok(())
    }

    /// Ends the session whatever it takes, then runs `forget`, which removes the record. What is not in
    /// the bucket by then stays with the volume's id, and the mounter sees to it.
    pub(super) async fn retire<F>(&self, forget: F) -> Result<(), PluginError>
    where
        F: Future<Output = Result<(), PluginError>>,
    {
        let _turn = timeout(self.context.limits.drain, self.turn.lock())
            .await
            .map_err(|_| self.busy())?;
        if matches!(*self.state.lock(), VolumeState::Removed) {
            // There may be another volume of the name by now.
            return Ok(());
        }
        let mount = self.state.lock().mount().map(Arc::clone);
        if let Some(mount) = mount {
            if !self.drain(&mount).await {
                let status = mount.status();
                tracing::error!(volume = %self.name, status.dirty_bytes, status.dirty_files,
                    "removed with changes that are not in the bucket");
            }
            self.detach(mount).await;
        }
        forget.await?;
        *self.state.lock() = VolumeState::Removed;
        Ok(())
    }

    /// Lets go of the volume because the daemon stops. Ids do not matter here: what a container has
    /// mounted stays for the next start to heal.
    pub(super) async fn part(&self, limit: Duration) -> Option<Parted> {
        let give_up = Instant::now() + limit;
        let _turn = timeout_at(give_up, self.turn.lock()).await.ok()?;
        let mount = self.state.lock().mount().map(Arc::clone)?;
        let left = give_up.saturating_duration_since(Instant::now());
        let drained = self.drain_within(&mount, left).await;
        if drained && self.is_settled(&mount).await && self.detach(mount).await {
            return Some(Parted::Detached);
        }
        Some(Parted::Left { drained })
    }

    /// Adds a holder to the session there is, if that is in order. The caller has the turn.
    fn join(&self, id: &MountId) -> Option<PathBuf> {
        let mount = match &*self.state.lock() {
            VolumeState::Mounted { mount, .. } => Arc::clone(mount),
            VolumeState::Unmounted | VolumeState::Stuck { .. } | VolumeState::Removed => {
                return None;
            }
        };
        if !(mount.is_alive() && mount.is_attached()) {
            return None;
        }
        if let VolumeState::Mounted { holders, .. } = &mut *self.state.lock() {
            holders.insert(id.clone());
        }
        Some(mount.mountpoint().to_owned())
    }

    /// Gets a session that is not in order out of the way of a new one. The caller has the turn.
    async fn clear(&self) -> Result<(), PluginError> {
        let Some(mount) = self.state.lock().mount().map(Arc::clone) else {
            return Ok(());
        };
        tracing::warn!(volume = %self.name, "the mount is not in order any more, mounting anew");
        if !mount.is_alive() {
            *self.state.lock() = VolumeState::Unmounted;
            return Ok(());
        }
        if self.detach(mount).await {
            return Ok(());
        }
        let reason = self.notes.lock().last_error.clone().unwrap_or_default();
        Err(PluginError::Failed(format!(
            "volume {}: an earlier mount is in the way: {reason}",
            self.name
        )))
    }

    /// Mounts, again and again while the store is away, as long as there is time and the caller waits.
    ///
    /// An attempt runs in a task of its own: one that is given up is not dropped half done, but finished
    /// and undone, and only then is it another caller's turn.
    async fn attempt(
        self: &Arc<Self>,
        turn: Turn,
        spec: &VolumeSpec,
        give_up: Instant,
        caller: &Caller,
    ) -> Result<(Turn, Arc<dyn Mount>), PluginError> {
        let mut pause = self.context.limits.retry;
        loop {
            let mut attempt = tokio::spawn({
                let (mounter, spec) = (Arc::clone(&self.context.mounter), spec.clone());
                async move { mounter.mount(&spec).await }
            });
            let ended = tokio::select! {
                biased;
                ended = &mut attempt => ended,
                stopped = self.stopped(give_up, caller) => {
                    self.undo(turn, attempt);
                    return Err(stopped);
                }
            };
            let error = match ended {
                Ok(Ok(mount)) => return Ok((turn, Arc::from(mount))),
                Ok(Err(error)) => error,
                Err(panic) => MountError::Refused(format!(
                    "the mounter broke down ({panic}); the log has the details"
                )),
            };
            let text = self.definition.scrub(&error.to_string());
            self.notes.lock().last_error = Some(text.clone());
            if !error.is_transient() {
                return Err(self.failed(&text));
            }
            if Instant::now() + pause >= give_up {
                let tried = self.context.limits.mount.as_secs();
                return Err(self.failed(&format!("{text} (tried for {tried} s)")));
            }
            tracing::debug!(volume = %self.name, error = text, ?pause, "the store is away, trying again");
            tokio::select! {
                () = sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
                stopped = self.stopped(give_up, caller) => return Err(stopped),
            }
        }
    }

    /// Returns when a Mount should not be gone on with.
    async fn stopped(&self, give_up: Instant, caller: &Caller) -> PluginError {
        tokio::select! {
            () = caller.gone() => self.given_up("the engine hung up"),
            () = self.context.closing.cancelled() => self.given_up("the daemon is stopping"),
            () = sleep_until(give_up) => {
                let earlier = self.notes.lock().last_error.clone();
                let reason = earlier.unwrap_or_else(|| "the store does not answer".into());
                self.failed(&format!("not mounted after {} s: {reason}", self.context.limits.mount.as_secs()))
            }
        }
    }

    /// Sees an attempt through that nobody waits for, and undoes it. The turn goes with it.
    fn undo(self: &Arc<Self>, turn: Turn, attempt: JoinHandle<Result<Box<dyn Mount>, MountError>>) {
        let volume = Arc::clone(self);
        tokio::spawn(async move {
            if let Ok(Ok(mount)) = attempt.await {
                tracing::info!(volume = %volume.name, "mounted too late, unmounting again");
                volume.occupy(Arc::from(mount), BTreeSet::new());
                drop(turn);
                volume.release().await;
            }
        });
    }

    fn occupy(&self, mount: Arc<dyn Mount>, holders: BTreeSet<MountId>) {
        *self.state.lock() = VolumeState::Mounted { mount, holders };
        *self.notes.lock() = Notes::default();
    }

    /// The error of a Mount, with what helps.
    fn failed(&self, reason: &str) -> PluginError {
        PluginError::Failed(format!(
            "volume {} ({}): {reason}; if its options are wrong, docker volume rm first: Docker ignores new options of \
             an existing volume",
            self.name,
            self.definition.place(),
        ))
    }

    fn given_up(&self, reason: &str) -> PluginError {
        PluginError::Failed(format!(
            "volume {}: the mount was given up: {reason}",
            self.name
        ))
    }

    fn busy(&self) -> PluginError {
        let earlier = self.notes.lock().last_error.clone();
        let reason = earlier.map_or_else(String::new, |reason| format!(": {reason}"));
        PluginError::Failed(format!(
            "volume {} ({}): another call is busy with it{reason}; try again",
            self.name,
            self.definition.place()
        ))
    }
}

/// The right to change what is mounted.
type Turn = OwnedMutexGuard<()>;

impl fmt::Debug for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Volume")
            .field("name", &self.name)
            .field("state", &*self.state.lock())
            .finish_non_exhaustive()
    }
}
