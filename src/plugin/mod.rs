//! Docker's volume plugin protocol.
//!
//! [`protocol`], [`driver`], [`router`](mod@router) and [`listen`] are an SDK that knows no bucket: implement
//! [`VolumeDriver`] and [`serve`] it. [`bucket`] is our driver.

pub mod bucket;
pub mod driver;
pub mod listen;
pub mod protocol;
pub mod router;

pub use driver::{Caller, PluginError, Scope, Volume, VolumeDriver};
pub use listen::{ListenError, PluginSocket, Stop, serve};
pub use router::{Deadlines, router};
