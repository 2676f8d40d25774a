//! Buckets as Docker volumes and as ordinary mounts.
//!
//! The modules are layers; each may name only those below it (ARCHITECTURE.md has the map):
//!
//! - [`cli`]: the commands, and the composition root where [`plugin`] meets [`fs`].
//! - [`plugin`]: Docker's volume protocol as an SDK, and in `plugin::bucket` our driver.
//! - [`fs`]: the file system: an async core, the kernel's edge in `fs::fuse`.
//! - [`store`]: one [`store::Bucket`] type over every kind of object store.
//! - [`config`]: options, URLs and credentials, parsed once and typed from then on.
//! - [`keeper`]: the parent process that holds descriptors for the one that serves; it names nothing else.
//! - [`clock`]: time, as something one is given.

pub mod cli;
pub mod clock;
pub mod config;
pub mod fs;
pub mod keeper;
pub mod plugin;
pub mod store;
pub mod telemetry;
