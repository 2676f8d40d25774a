//! A volume driver in forty lines: plain directories that are gone with the process.
//!
//! `cargo run --example memory_driver -- /tmp/memory.sock`, then in another terminal
//! `curl --unix-socket /tmp/memory.sock -d '{"Name":"v"}' http://x/VolumeDriver.Create`.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bucketvol::plugin::{
    Caller, Deadlines, PluginError, PluginSocket, Stop, Volume, VolumeDriver, serve,
};
use tempfile::TempDir;

/// Names are keys here and never become part of a path, so that any name will do.
#[derive(Default)]
struct MemoryDriver(Mutex<HashMap<String, TempDir>>);

impl MemoryDriver {
    fn volumes(&self) -> MutexGuard<'_, HashMap<String, TempDir>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl VolumeDriver for MemoryDriver {
    async fn create(&self, name: &str, _: BTreeMap<String, String>) -> Result<(), PluginError> {
        let dir = tempfile::tempdir().map_err(|err| PluginError::Failed(err.to_string()))?;
        self.volumes().entry(name.into()).or_insert(dir);
        Ok(())
    }
    async fn remove(&self, name: &str) -> Result<(), PluginError> {
        self.volumes().remove(name);
        Ok(())
    }
    async fn mount(&self, name: &str, _id: &str, _: &Caller) -> Result<PathBuf, PluginError> {
        self.path(name).await
    }
    async fn unmount(&self, _name: &str, _id: &str) -> Result<(), PluginError> {
        Ok(())
    }
    async fn path(&self, name: &str) -> Result<PathBuf, PluginError> {
        let path = self.volumes().get(name).map(|dir| dir.path().to_owned());
        path.ok_or_else(|| PluginError::NoSuchVolume(name.into()))
    }
    async fn get(&self, name: &str) -> Result<Volume, PluginError> {
        self.path(name).await.map(|_| Volume::named(name))
    }
    async fn list(&self) -> Result<Vec<Volume>, PluginError> {
        Ok(self.volumes().keys().map(Volume::named).collect())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("name a socket")?;
    let socket = PluginSocket::bind(Path::new(&path))?;
    let stop = async {
        let _ = tokio::signal::ctrl_c().await;
        Stop::End
    };
    let driver = Arc::new(MemoryDriver::default());
    serve(socket, driver, Deadlines::SOCKET, stop).await?;
    Ok(())
}
