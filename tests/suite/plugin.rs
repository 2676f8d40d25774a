//! The plugin as the engine meets it: over a real unix socket, with the bytes the engine sends. What is
//! mounted is a fake's, which counts its sessions.

#![expect(
    clippy::unwrap_used,
    reason = "the lint does not see that helpers are part of a test"
)]

// How the rest talks and what it talks to.
mod rig;

// The wire: exact answers, broken requests, connections.
mod wire;

// What the server does for any driver: one that hangs, panics or talks nonsense.
mod sdk;

// Create, Get, List, Remove: records, options, names, secrets.
mod volumes;

// Mount and Unmount: sessions, ids, hang-ups, stores that are away.
mod sessions;

// A daemon that goes on with the mounts of the one before.
mod restarts;
