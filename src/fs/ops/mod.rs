//! The operations of [`super::FileSystem`], by family.

pub(crate) mod allocate;
pub(crate) mod attr;
pub(crate) mod copy;
pub(crate) mod create;
pub(crate) mod dir;
pub(crate) mod io;
mod link;
pub(crate) mod lookup;
pub(crate) mod remove;
pub(crate) mod rename;
mod salvage;
pub(crate) mod space;
pub(crate) mod sync;
pub(crate) mod xattr;
