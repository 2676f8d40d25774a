//! The integration tests: one binary, a module for each thing that is under test.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

// Stores: the same promises over memory, a directory and S3, and what only S3 can get wrong.
mod store;

// The file system's core, without a kernel.
mod fs;

// Docker's side: a real unix socket, the engine's bytes, a mounter that mounts nothing.
mod plugin;

#[cfg(feature = "fuse-tests")]
mod session;
