//! Making the bucket equal to what programs wrote.
//!
//! - `plan` (pure): which requests make the object equal to the file.
//! - `schedule` (pure): what has to wait for what.
//! - `worker`: does it.

pub(crate) mod plan;
pub(crate) mod schedule;
pub(crate) mod worker;
