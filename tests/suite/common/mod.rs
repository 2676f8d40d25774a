//! What the tests stand on: servers, daemons and places of their own, each gone when its value is dropped.

#[cfg(feature = "fuse-tests")]
pub(crate) mod cgroup;
pub(crate) mod counting;
#[cfg(feature = "docker-tests")]
pub(crate) mod daemon;
#[cfg(feature = "docker-tests")]
pub(crate) mod dockerd;
pub(crate) mod fake_http;
pub(crate) mod fault_store;
#[cfg(feature = "s3-tests")]
pub(crate) mod garage;
#[cfg(feature = "fuse-tests")]
pub(crate) mod mounted;
#[cfg(feature = "docker-tests")]
pub(crate) mod namespace;
#[cfg(any(feature = "fuse-tests", feature = "s3-tests", feature = "docker-tests"))]
pub(crate) mod process;
#[cfg(any(feature = "fuse-tests", feature = "s3-tests", feature = "docker-tests"))]
pub(crate) mod s3;
mod s3_backend;
pub(crate) mod s3_server;
pub(crate) mod simulated_store;
pub(crate) mod test_fs;
#[cfg(any(feature = "fuse-tests", feature = "s3-tests"))]
pub(crate) mod tools;
