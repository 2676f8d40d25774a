//! The file system: an async core ([`FileSystem`]) that knows no kernel, and the kernel's edge ([`fuse`]).
//!
//! An inode has two places. Its tree place (parent, name) is what programs on this host see and belongs to
//! `tree`; its remote place (key, version, content) is where its bytes are in the bucket and belongs to
//! `inode`. A rename changes the first at once and the second when the store has done it.
//!
//! Lock order: handles, tree, one inode, journal, cache; the ledger of what is used comes after the journal. `lock` checks
//! these but handles and cache. None is held across a request to the store.

mod attr;
mod block;
mod blocking;
mod budget;
mod cache;
mod durable;
mod error;
mod extents;
mod filesystem;
mod format;
pub mod fuse;
mod handles;
mod inode;
mod journal;
mod kept;
mod lock;
mod lookahead;
mod memory;
mod name;
mod ops;
mod readahead;
mod refusal;
mod request;
mod sparse;
mod staging;
mod status;
mod tree;
mod upload;
mod usage;

pub use attr::{Attr, Caller, SetAttr};
pub use budget::StagingBudget;
pub use cache::{BlockCache, BlockPlace, DiskCache};
pub use error::FsError;
pub use filesystem::{Entry, FileSystem, Settings};
pub use format::{Format, Formats, UnknownFormat};
pub use kept::table::check_format;
pub use name::{NAME_MAX, NameError};
pub use ops::allocate::Allocation;
pub use ops::copy::FilePlace;
pub use ops::create::IfExists;
pub use ops::dir::DirEntry;
pub use ops::rename::RenameMode;
pub use ops::space::Space;
pub use ops::xattr::XattrMode;
pub use request::RequestId;
pub use status::{Change, Pending, Status};
