//! Programs that scripts build once and keep between checkouts.

use std::path::{Path, PathBuf};

/// Where a program of a crate of this version is: `scripts/lib.sh` has the other half of this.
pub(crate) fn built(name: &str, version: &str) -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(
        || Path::new(&std::env::var_os("HOME").expect("HOME is set")).join(".cache"),
        PathBuf::from,
    );
    cache.join(format!("bucketvol-tools/{name}-{version}/bin/{name}"))
}
