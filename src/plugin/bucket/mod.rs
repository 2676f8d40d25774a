//! Our volume driver: volumes that are buckets.
//!
//! It keeps records and counts holders. What mounting is belongs to the [`Mounter`] it is given, so that
//! nothing here names the file system. `driver` has Docker's verbs, `lifecycle` and `release` one volume
//! between mounted and not, `registry` the records on disk, `overlap` the rule which volumes may live side by side.

mod definition;
pub mod driver;
mod lifecycle;
pub mod mounter;
mod overlap;
pub mod registry;
mod release;
mod status;
pub mod volume;

pub use driver::{BucketDriver, Settings, Stopped};
pub use lifecycle::Limits;
pub use mounter::{Mount, MountError, MountStatus, Mounter, PendingChange, Salvage, VolumeSpec};
pub use volume::{MountId, NameError, VolumeName};
