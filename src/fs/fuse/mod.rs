//! The kernel's edge: the only place that names fuser.
//!
//! - [`adapter`] turns the kernel's requests into calls of the core; `dispatch` runs them, `convert`, `errno`
//!   and `reply` translate;
//! - [`mount`] and [`fusermount`] attach a FUSE device to a directory and take it off again;
//! - [`handshake`] is the first request of a connection, which every later process has to know;
//! - [`connection`] is what a later process has to know beyond that;
//! - [`gate`] brings a connection to rest, so that it can be handed over;
//! - [`session`] runs a file system on such a device until the kernel lets go of it;
//! - [`base`] is the directory below which the plugin's volumes are mounted;
//! - [`mountinfo`] and [`namespaces`] tell what is mounted where, and who else still has it.

pub mod adapter;
pub mod base;
pub mod connection;
mod convert;
mod dispatch;
mod errno;
pub mod fusermount;
pub mod gate;
pub mod handshake;
pub mod mount;
pub mod mountinfo;
pub mod namespaces;
mod reply;
pub mod session;

pub use adapter::FuseAdapter;
pub use base::BaseDir;
pub use connection::Connection;
pub use gate::Served;
pub use handshake::{Agreement, Unanswered};
pub use mount::{AttachError, Attachment, FuseDevice, MountRequest};
pub use session::{Session, SessionError};
