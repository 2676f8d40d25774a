//! Metadata as one extended attribute, so that it is replaced in one step or not at all.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;

use serde::{Deserialize, Serialize};
use xattr::FileExt as _;

use crate::store::Metadata;

const NAME: &str = "user.bucketvol.metadata";

/// The attribute's content, in JSON. Empty maps are left out, but never the attribute itself: on a
/// directory it is what makes a marker.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Stored {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    user: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<String, String>,
}

/// The metadata of a file; one without the attribute, or with one we did not write, has none.
pub(super) fn read(file: &File) -> io::Result<Metadata> {
    let stored = raw(file)?.and_then(|json| serde_json::from_slice::<Stored>(&json).ok());
    let Stored { user, headers } = stored.unwrap_or_default();
    Ok(Metadata { user, headers })
}

/// Replaces the metadata of a file.
pub(super) fn write(file: &File, metadata: &Metadata) -> io::Result<()> {
    let Metadata { user, headers } = metadata.clone();
    let json = serde_json::to_vec(&Stored { user, headers })?;
    file.set_xattr(NAME, &json)
}

/// Whether there is any, be it empty.
pub(super) fn is_present(file: &File) -> io::Result<bool> {
    Ok(raw(file)?.is_some())
}

/// Takes it away.
pub(super) fn clear(file: &File) -> io::Result<()> {
    if is_present(file)? {
        file.remove_xattr(NAME)?;
    }
    Ok(())
}

fn raw(file: &File) -> io::Result<Option<Vec<u8>>> {
    match file.get_xattr(NAME) {
        // A file system that keeps no attributes holds files that have none.
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(None),
        other => other,
    }
}
