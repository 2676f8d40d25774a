//! The integration tests: one binary, a module for each thing that is under test.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

// Stores: the same promises over memory, a directory and S3, and what only S3 can get wrong.
mod store;

// The file system's core, without a kernel.
mod fs;

// Docker's side: a real unix socket, the engine's bytes, a mounter that mounts nothing.
mod plugin;

// The program as a script meets it: help, bad input, exit statuses; no mount is made.
mod cli;
#[cfg(feature = "fuse-tests")]
mod crash;

// A process leaves nothing unanswered behind.
#[cfg(feature = "fuse-tests")]
mod hand_over;

// Mounting: sessions of the kernel, who holds them, what a dead one leaves behind.
#[cfg(feature = "fuse-tests")]
mod mounter;
#[cfg(feature = "fuse-tests")]
mod session;

// A keeper and its workers as processes: what survives a worker that is killed, and who is started when.
mod keeper;

// The program as a keeper and its worker: killed, replaced, upgraded, ended.
#[cfg(feature = "fuse-tests")]
mod restart;

// Programs use a mount while its worker is killed under them.
#[cfg(feature = "fuse-tests")]
mod survival;

// What the README tells people to type.
mod front_door;

// A real mount by the `bucketvol` program, used by ordinary programs.
#[cfg(feature = "fuse-tests")]
mod fuse_real;
// What POSIX says, by programs that were made to test it.
#[cfg(feature = "fuse-tests")]
mod posix;

// Programs of others on a real mount, and s3fs and objects by hand beside it.
#[cfg(feature = "fuse-tests")]
mod programs;

// The disk of the host is full, to the last byte.
#[cfg(feature = "fuse-tests")]
mod disk_full;

// A real S3 server that others wrote.
#[cfg(feature = "s3-tests")]
mod garage;

// A real engine, a real daemon, a real mount: what a user of Docker sees.
#[cfg(feature = "docker-tests")]
mod docker;

// The programs below examples/.
mod examples;

// What ARCHITECTURE.md and SEMANTICS.md say, held against the sources.
mod layers;
