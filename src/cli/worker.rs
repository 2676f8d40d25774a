//! This process as a keeper's worker.

use std::os::fd::OwnedFd;

use parking_lot::Mutex;

use crate::keeper::{Inherited, Keeper};

/// What a keeper holds for this process, and has held for the one before.
#[derive(Debug, Default)]
pub struct Worker {
    keeper: Keeper,
    inherited: Mutex<Inherited>,
}

impl Worker {
    /// Nobody keeps anything.
    pub fn alone() -> Self {
        Self::default()
    }

    /// The line to the keeper.
    pub fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    /// Takes what the process before had kept by a name.
    pub fn take(&self, name: &str) -> Vec<OwnedFd> {
        self.inherited.lock().take(name)
    }

    /// The names of what is left to take.
    pub fn names(&self) -> Vec<String> {
        self.inherited.lock().names().map(str::to_owned).collect()
    }
}
