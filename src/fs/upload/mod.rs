//! Making the bucket equal to what programs wrote.
//!
//! - `plan` (pure): which requests make the object equal to the file.
//! - `schedule` (pure): what has to wait for what.
//! - `queue` (pure): when a change sets out.
//! - `vacate`: what has to go first; `directory`: markers, and objects that follow a renamed directory;
//!   `orphans`: what has no name any more.
//! - `multipart`: what becomes of uploads in parts that come to nothing.
//! - `conflict`: what becomes of a change that another host's has overtaken.
//! - `uploader`: the task that sends what nobody waits for.
//! - `worker`: does it.

mod conflict;
mod directory;
pub(crate) mod multipart;
mod orphans;
pub(crate) mod plan;
pub(crate) mod queue;
pub(crate) mod schedule;
pub(crate) mod uploader;
mod vacate;
pub(crate) mod worker;
