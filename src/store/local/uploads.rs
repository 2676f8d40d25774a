//! Uploads in parts: a directory of our own per upload, a file per part.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::attributes;
use super::tree::{OUR_OWN, OURS, Tree, version_of};
use crate::store::{
    Key, Metadata, ObjectVersion, OpenUpload, PartTag, Precondition, StoreError, UploadId,
};

/// What an upload was begun with. Its metadata are the attribute of the file this stands in.
#[derive(Debug, Serialize, Deserialize)]
struct Begun {
    key: String,
}

const BEGUN: &str = "begun";

/// Begins one.
pub(super) fn create(tree: &Tree, key: &Key, metadata: &Metadata) -> Result<UploadId, StoreError> {
    tree.place_of(key)?;
    let id = UploadId(Uuid::new_v4().simple().to_string());
    let create = || {
        tree.our_directory(OUR_OWN[1])?;
        let directory = directory(tree, &id)?;
        fs::create_dir(&directory)?;
        let begun = directory.join(BEGUN);
        fs::write(
            &begun,
            serde_json::to_vec(&Begun {
                key: key.as_str().to_owned(),
            })?,
        )?;
        attributes::write(&File::open(&begun)?, metadata)
    };
    create().map_err(|error| tree.error(key, &error))?;
    Ok(id)
}

/// Adds or replaces a part.
pub(super) fn add<F>(
    tree: &Tree,
    key: &Key,
    upload: &UploadId,
    number: u32,
    write: F,
) -> Result<PartTag, StoreError>
where
    F: FnOnce(&mut File) -> io::Result<()>,
{
    let directory = find(tree, key, upload)?;
    let add = || {
        let draft = directory.join(format!("draft-{}", Uuid::new_v4().simple()));
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&draft)?;
        let written = write(&mut file).and_then(|()| {
            let tag = version_of(&file.metadata()?).0.to_string();
            fs::rename(&draft, directory.join(number.to_string()))?;
            Ok(PartTag(tag))
        });
        if written.is_err() {
            let _ = fs::remove_file(&draft);
        }
        written
    };
    add().map_err(|error| tree.error(key, &error))
}

/// Makes the object of its parts.
pub(super) fn complete(
    tree: &Tree,
    key: &Key,
    upload: &UploadId,
    parts: &[PartTag],
    condition: &Precondition,
) -> Result<ObjectVersion, StoreError> {
    let directory = find(tree, key, upload)?;
    let failed = |error: io::Error| tree.error(key, &error);
    let metadata = File::open(directory.join(BEGUN))
        .and_then(|begun| attributes::read(&begun))
        .map_err(failed)?;
    let mut draft = tree.draft(key)?;
    for (number, tag) in (1_u32..).zip(parts) {
        let missing = || {
            tree.refused(&format!(
                "part {number} of {:?} was never sent",
                key.as_str()
            ))
        };
        let mut part = File::open(directory.join(number.to_string())).map_err(|_| missing())?;
        let sent = part
            .metadata()
            .map(|stat| version_of(&stat))
            .map_err(failed)?;
        if *sent.0 != *tag.0 {
            return Err(missing());
        }
        draft.write(key, |file| io::copy(&mut part, file).map(|_| ()))?;
    }
    let version = draft.publish(key, &metadata, condition)?;
    // The object is there; what stays behind only takes space.
    if let Err(error) = fs::remove_dir_all(&directory) {
        tracing::warn!(%key, %error, "the parts of a finished upload stay");
    }
    Ok(version)
}

/// Those of keys that begin with `prefix`. What is no upload of ours is passed over.
pub(super) fn list(tree: &Tree, prefix: &Key) -> Result<Vec<OpenUpload>, StoreError> {
    let all = tree.path().join(OURS).join(OUR_OWN[1]);
    let entries = match fs::read_dir(all) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|error| tree.error(prefix, &error))?,
    };
    let read = |entry: io::Result<fs::DirEntry>| {
        let entry = entry?;
        let file = File::open(entry.path().join(BEGUN))?;
        let begun = file.metadata()?.modified()?;
        let Begun { key } = serde_json::from_reader(file)?;
        let name = entry.file_name();
        Ok::<_, io::Error>(OpenUpload {
            key: Key::new(key),
            upload: UploadId(name.to_string_lossy().into_owned()),
            begun,
        })
    };
    let uploads = entries.filter_map(|entry| read(entry).ok());
    let is_asked_for = |open: &OpenUpload| open.key.as_str().starts_with(prefix.as_str());
    Ok(uploads.filter(is_asked_for).collect())
}

/// Drops one; one that is not there is dropped already.
pub(super) fn abort(tree: &Tree, upload: &UploadId) -> Result<(), StoreError> {
    let drop = || match fs::remove_dir_all(directory(tree, upload)?) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    drop().map_err(|error| tree.error(&Key::root(), &error))
}

/// The directory of an upload of this key.
fn find(tree: &Tree, key: &Key, upload: &UploadId) -> Result<PathBuf, StoreError> {
    let begun = directory(tree, upload).and_then(|directory| {
        let begun: Begun = serde_json::from_slice(&fs::read(directory.join(BEGUN))?)?;
        Ok((directory, begun))
    });
    match begun {
        Ok((directory, begun)) if begun.key == key.as_str() => Ok(directory),
        _ => Err(tree.refused(&format!("there is no such upload of {:?}", key.as_str()))),
    }
}

/// Where an upload is. Its name came from outside, so it has to be one that we gave.
fn directory(tree: &Tree, upload: &UploadId) -> io::Result<PathBuf> {
    let id = Uuid::try_parse(&upload.0).map_err(io::Error::other)?;
    Ok(tree
        .path()
        .join(OURS)
        .join(OUR_OWN[1])
        .join(id.simple().to_string()))
}
