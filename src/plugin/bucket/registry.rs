//! The durable records of volumes: a directory each below `<state_dir>/volumes/`.
//!
//! ```text
//! volumes/photos/record.json        what the volume is; safe to paste into a bug report
//! volumes/photos/record.json.good   the same, for the day that one cannot be read
//! volumes/photos/secrets.json       inline credentials, if the volume was created with any
//! ```
//!
//! A volume that was removed is `.retired-<id>` there until all that was written to it is in the bucket.
//!
//! All of it has mode 0600 and appears and disappears by renaming the directory. A volume whose record
//! cannot be read is still a volume: the engine deletes what it knows of one that is said not to exist.
//! What is no directory with a volume's name is left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::VolumeName;
use crate::config::options;

const VERSION: u32 = 1;
const RECORD: &str = "record.json";
const LAST_GOOD: &str = "record.json.good";
const SET_ASIDE: &str = "record.json.corrupt";
const SECRETS: &str = "secrets.json";

/// A record is a page of text; what is longer was not written by us.
const MAX_RECORD: u64 = 1 << 20;

/// What is kept of a volume.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    /// What its state on this host is filed under; a name may be used again, an id never is.
    pub id: Uuid,
    /// Docker's name.
    pub name: VolumeName,
    /// When it was created, in whole seconds.
    pub created_at: SystemTime,
    /// What its creator said, secrets included.
    pub options: BTreeMap<String, String>,
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let keys: Vec<_> = self.options.keys().collect();
        f.debug_struct("Record")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("created_at", &self.created_at)
            .field("options", &keys)
            .finish()
    }
}

/// A volume that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Docker's name, which is the directory's.
    pub name: VolumeName,
    /// Its record, or why there is none: a fragment that names the file and the cause.
    pub record: Result<Record, String>,
}

/// An operation on the records that the disk did not do.
#[derive(Debug, thiserror::Error)]
#[error("{what} {}: {source}", path.display())]
pub struct RegistryError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// The records. The methods block on the disk.
#[derive(Debug)]
pub struct Registry {
    dir: PathBuf,
}

impl Registry {
    /// The records below `state_dir`, which is made if need be.
    pub fn open(state_dir: &Path) -> Result<Self, RegistryError> {
        let dir = state_dir.join("volumes");
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir);
        made.map_err(at("create directory", &dir))?;
        sync_dir(state_dir)?;
        Ok(Self { dir })
    }

    /// All volumes, in order of their names. A directory that cannot be read is an error, never "none".
    pub fn load(&self) -> Result<Vec<Found>, RegistryError> {
        let unreadable = at("read directory", &self.dir);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(&unreadable)? {
            let entry = entry.map_err(&unreadable)?;
            let is_dir = entry.file_type().map_err(&unreadable)?.is_dir();
            let file_name = entry.file_name();
            let name = file_name
                .to_str()
                .and_then(|name| VolumeName::parse(name).ok());
            match name {
                Some(name) if is_dir => found.push(load_one(&entry.path(), name)),
                _ if is_dir && is_leftover(&file_name.to_string_lossy()) => {
                    self.sweep(&entry.path())
                }
                _ => {
                    tracing::debug!(path = %entry.path().display(), "not a volume's record, left alone")
                }
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Makes a volume durable. When this returns `Ok` it survives a power failure; otherwise there is
    /// nothing of it. One of that name must not exist.
    pub fn insert(&self, record: &Record) -> Result<(), RegistryError> {
        let staged = self.dir.join(format!("{NEW}{}", record.id));
        let done = self.insert_by_way_of(&staged, record);
        if done.is_err() {
            // Best effort: `load` sweeps what is left.
            let _ = fs::remove_dir_all(&staged);
        }
        done
    }

    /// Makes a volume one that is no more, whatever its record looks like: what there is to know of it stays under
    /// `id` until it is forgotten. One that does not exist is a success.
    pub fn retire(&self, name: &VolumeName, id: Uuid) -> Result<(), RegistryError> {
        self.rename(name.as_str(), &format!("{RETIRED}{id}"))
    }

    /// The volumes that are no more and not forgotten.
    pub fn retired(&self) -> Result<Vec<(Uuid, Found)>, RegistryError> {
        let unreadable = at("read directory", &self.dir);
        let mut retired = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(&unreadable)? {
            let entry = entry.map_err(&unreadable)?;
            let Some(id) = id_after(RETIRED, &entry.file_name().to_string_lossy()) else {
                continue;
            };
            match stored_name(&entry.path()) {
                Some(name) => retired.push((id, load_one(&entry.path(), name))),
                // It leads to no bucket any more.
                None => self.sweep(&entry.path()),
            }
        }
        Ok(retired)
    }

    /// Forgets a volume that was retired.
    pub fn forget(&self, id: Uuid) -> Result<(), RegistryError> {
        let gone = format!("{GONE}{id}");
        self.rename(&format!("{RETIRED}{id}"), &gone)?;
        self.sweep(&self.dir.join(gone));
        Ok(())
    }

    /// One that does not exist is a success.
    fn rename(&self, from: &str, to: &str) -> Result<(), RegistryError> {
        let path = self.dir.join(from);
        match fs::rename(&path, self.dir.join(to)) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(err) => Err(at("retire", &path)(err)),
            Ok(()) => sync_dir(&self.dir),
        }
    }

    fn insert_by_way_of(&self, staged: &Path, record: &Record) -> Result<(), RegistryError> {
        let (secret, plain): (BTreeMap<_, _>, BTreeMap<_, _>) = record
            .options
            .clone()
            .into_iter()
            .partition(|(key, _)| options::is_secret(key));
        let stored = StoredRecord {
            version: VERSION,
            id: record.id,
            name: record.name.clone(),
            created_at: humantime::format_rfc3339_seconds(record.created_at).to_string(),
            options: plain,
            secret_options: secret.keys().cloned().collect(),
        };
        fs::DirBuilder::new()
            .mode(0o700)
            .create(staged)
            .map_err(at("create directory", staged))?;
        if !secret.is_empty() {
            write_json(
                &staged.join(SECRETS),
                &StoredSecrets {
                    version: VERSION,
                    options: secret,
                },
            )?;
        }
        write_json(&staged.join(LAST_GOOD), &stored)?;
        write_json(&staged.join(RECORD), &stored)?;
        sync_dir(staged)?;
        let path = self.dir.join(record.name.as_str());
        // Renaming over an empty directory would succeed, and take a damaged volume's place.
        if fs::symlink_metadata(&path).is_ok() {
            return Err(at("create record", &path)(
                io::ErrorKind::AlreadyExists.into(),
            ));
        }
        fs::rename(staged, &path).map_err(at("create record", &path))?;
        sync_dir(&self.dir).inspect_err(|_| {
            // Not durable is not created; a power failure might still bring it back.
            let _ = fs::remove_dir_all(&path);
        })
    }

    /// Removes what an interrupted creation or removal left.
    fn sweep(&self, leftover: &Path) {
        if let Err(error) = fs::remove_dir_all(leftover) {
            tracing::warn!(path = %leftover.display(), %error, "remains of a volume's record stay behind");
        }
    }
}

/// A directory on its way in or out, or of a volume that is no more; no volume's name begins with a dot.
const NEW: &str = ".new-";
const GONE: &str = ".gone-";
const RETIRED: &str = ".retired-";

fn is_leftover(name: &str) -> bool {
    [NEW, GONE]
        .iter()
        .any(|prefix| id_after(prefix, name).is_some())
}

fn id_after(prefix: &str, name: &str) -> Option<Uuid> {
    Uuid::try_parse(name.strip_prefix(prefix)?).ok()
}

fn load_one(dir: &Path, name: VolumeName) -> Found {
    let record = load_record(dir, &name).inspect_err(|reason| {
        tracing::error!(volume = %name, reason, "a volume's record cannot be used; the volume stays listed as broken");
    });
    Found { name, record }
}

/// Whose record a directory holds, as the record says.
fn stored_name(dir: &Path) -> Option<VolumeName> {
    let stored = [RECORD, LAST_GOOD]
        .iter()
        .find_map(|file| read_json::<StoredRecord>(&dir.join(file)).ok())?;
    Some(stored.name)
}

/// The record's format.
#[derive(Debug, Serialize, Deserialize)]
struct StoredRecord {
    version: u32,
    id: Uuid,
    name: VolumeName,
    created_at: String,
    options: BTreeMap<String, String>,
    /// The keys whose values are in the other file.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    secret_options: BTreeSet<String>,
}

#[derive(Serialize, Deserialize)]
struct StoredSecrets {
    version: u32,
    options: BTreeMap<String, String>,
}

/// Enough of a record of any version to tell which it is.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// Why a file of a record cannot be used.
enum Unusable {
    /// Another copy may be better.
    Damaged(String),
    /// A release that knows the format has to read it.
    Foreign(String),
}

fn load_record(dir: &Path, name: &VolumeName) -> Result<Record, String> {
    let stored = match read_json::<StoredRecord>(&dir.join(RECORD)) {
        Ok(stored) => stored,
        Err(Unusable::Foreign(reason)) => return Err(reason),
        Err(Unusable::Damaged(reason)) => restore(dir, &reason)?,
    };
    if stored.name != *name {
        return Err(format!(
            "{} is of a volume named {:?}",
            dir.join(RECORD).display(),
            stored.name.as_str()
        ));
    }
    let created_at = humantime::parse_rfc3339_weak(&stored.created_at).map_err(|err| {
        format!(
            "{}: created_at {:?}: {err}",
            dir.join(RECORD).display(),
            stored.created_at
        )
    })?;
    let mut options = stored.options;
    if !stored.secret_options.is_empty() {
        let path = dir.join(SECRETS);
        let secrets = read_json::<StoredSecrets>(&path).map_err(|err| match err {
            Unusable::Damaged(reason) | Unusable::Foreign(reason) => reason,
        })?;
        if let Some(missing) = stored
            .secret_options
            .iter()
            .find(|key| !secrets.options.contains_key(*key))
        {
            return Err(format!("{} lacks {missing}", path.display()));
        }
        options.extend(secrets.options);
    }
    Ok(Record {
        id: stored.id,
        name: name.clone(),
        created_at,
        options,
    })
}

/// Puts the last good copy in the place of a damaged record, which is set aside.
fn restore(dir: &Path, reason: &str) -> Result<StoredRecord, String> {
    let stored = match read_json::<StoredRecord>(&dir.join(LAST_GOOD)) {
        Ok(stored) => stored,
        Err(Unusable::Damaged(second) | Unusable::Foreign(second)) => {
            return Err(format!("{reason}; {second}"));
        }
    };
    tracing::warn!(
        reason,
        "a volume's record was damaged, its last good copy is used"
    );
    let record = dir.join(RECORD);
    let set_aside = fs::rename(&record, dir.join(SET_ASIDE));
    let repaired = match set_aside {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(at("set aside", &record)(err)),
        _ => write_json(&record, &stored).and_then(|()| sync_dir(dir)),
    };
    if let Err(error) = repaired {
        // The copy is good for this run all the same.
        tracing::warn!(%error, "the damaged record could not be repaired");
    }
    Ok(stored)
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, Unusable> {
    let damaged =
        |what: &dyn std::fmt::Display| Unusable::Damaged(format!("{}: {what}", path.display()));
    let size = fs::metadata(path).map_err(|err| damaged(&err))?.len();
    if size > MAX_RECORD {
        return Err(damaged(&format_args!(
            "{size} bytes are too many for a record"
        )));
    }
    let text = fs::read(path).map_err(|err| damaged(&err))?;
    // A serde_json error names a place and a type, never a string's content: secrets stay in the file.
    let Versioned { version } =
        serde_json::from_slice(&text).map_err(|err| damaged(&plain(&err)))?;
    if version != VERSION {
        return Err(Unusable::Foreign(format!(
            "{}: is of format {version}, this release reads {VERSION}; start the release that wrote it",
            path.display()
        )));
    }
    serde_json::from_slice(&text).map_err(|err| damaged(&plain(&err)))
}

/// Where in a file the JSON broke. The error's own words may quote a value.
fn plain(err: &serde_json::Error) -> String {
    format!("is damaged at line {} column {}", err.line(), err.column())
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), RegistryError> {
    let failed = at("write", path);
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut text = serde_json::to_vec_pretty(value).map_err(|err| failed(err.into()))?;
    text.push(b'\n');
    // Temporary files of this crate have mode 0600.
    let mut file = tempfile::Builder::new()
        .prefix(".tmp-")
        .tempfile_in(dir)
        .map_err(&failed)?;
    file.write_all(&text).map_err(&failed)?;
    file.as_file().sync_all().map_err(&failed)?;
    file.persist(path).map_err(|err| failed(err.error))?;
    Ok(())
}

/// Makes the names in a directory durable.
fn sync_dir(dir: &Path) -> Result<(), RegistryError> {
    let opened: io::Result<File> = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_DIRECTORY)
        .open(dir);
    opened
        .and_then(|dir| dir.sync_all())
        .map_err(at("sync directory", dir))
}

fn at(what: &'static str, path: &Path) -> impl Fn(io::Error) -> RegistryError {
    move |source| RegistryError {
        what,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use super::*;

    const SECRET: &str = "wJalrXUtnFEMI";

    fn record(name: &str, secret: bool) -> Record {
        let mut options = BTreeMap::from([("bucket".to_owned(), "b".to_owned())]);
        if secret {
            options.insert("secret_access_key".into(), SECRET.into());
        }
        Record {
            id: Uuid::now_v7(),
            name: VolumeName::parse(name).unwrap(),
            created_at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600),
            options,
        }
    }

    fn registry() -> (tempfile::TempDir, Registry) {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).unwrap();
        (dir, registry)
    }

    fn only(registry: &Registry) -> Found {
        let mut found = registry.load().unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }

    fn files_below(dir: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        entries
            .flat_map(|path| {
                if path.is_dir() {
                    files_below(&path)
                } else {
                    vec![path]
                }
            })
            .collect()
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let (dir, registry) = registry();
        let (a, b) = (record("a", false), record(&"b".repeat(255), true));
        registry.insert(&b).unwrap();
        registry.insert(&a).unwrap();
        let found = Registry::open(dir.path()).unwrap().load().unwrap();
        assert_eq!(
            found
                .into_iter()
                .map(|found| found.record.unwrap())
                .collect::<Vec<_>>(),
            [a, b]
        );
    }

    #[test]
    fn files_are_their_owners_alone_and_only_one_knows_the_secret() {
        let (dir, registry) = registry();
        registry.insert(&record("v", true)).unwrap();
        let files = files_below(dir.path());
        assert_eq!(files.len(), 3, "{files:?}");
        for file in files {
            assert_eq!(
                fs::metadata(&file).unwrap().permissions().mode() & 0o777,
                0o600,
                "{file:?}"
            );
            let has_secret = fs::read_to_string(&file).unwrap().contains(SECRET);
            assert_eq!(has_secret, file.ends_with(SECRETS), "{file:?}");
        }
        assert!(!format!("{:?}", record("v", true)).contains(SECRET));
    }

    #[test]
    fn a_damaged_record_is_set_aside_for_its_last_good_copy() {
        for damage in [
            "",
            "{",
            "\0\0\0\0",
            r#"{"version":1}"#,
            r#"{"version":"x"}"#,
        ] {
            let (dir, registry) = registry();
            let v = record("v", false);
            registry.insert(&v).unwrap();
            let path = dir.path().join("volumes/v/record.json");
            fs::write(&path, damage).unwrap();
            assert_eq!(only(&registry).record.as_ref(), Ok(&v), "{damage:?}");
            assert_eq!(
                fs::read_to_string(path.with_file_name(SET_ASIDE)).unwrap(),
                damage
            );
            fs::remove_file(path.with_file_name(LAST_GOOD)).unwrap();
            assert_eq!(
                only(&registry).record.as_ref(),
                Ok(&v),
                "the record itself was repaired"
            );
        }
    }

    #[test]
    fn a_volume_without_a_readable_record_stays_and_says_why() {
        let (dir, registry) = registry();
        registry.insert(&record("v", false)).unwrap();
        for file in [RECORD, LAST_GOOD] {
            fs::write(dir.path().join("volumes/v").join(file), "garbage").unwrap();
        }
        let reason = only(&registry).record.unwrap_err();
        assert!(
            reason.contains("v/record.json") && reason.contains("damaged at line 1"),
            "{reason}"
        );
        let id = Uuid::now_v7();
        registry
            .retire(&VolumeName::parse("v").unwrap(), id)
            .unwrap();
        registry.forget(id).unwrap();
        assert_eq!(registry.load().unwrap(), []);
    }

    #[test]
    fn a_record_of_a_later_release_stays_untouched() {
        let (dir, registry) = registry();
        registry.insert(&record("v", false)).unwrap();
        let path = dir.path().join("volumes/v/record.json");
        let later = r#"{"version":2,"everything":"else"}"#;
        fs::write(&path, later).unwrap();
        let reason = only(&registry).record.unwrap_err();
        assert!(
            reason.contains("format 2") && reason.contains("start the release that wrote it"),
            "{reason}"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), later);
    }

    #[test]
    fn lost_secrets_make_the_volume_broken_and_are_not_quoted() {
        let (dir, registry) = registry();
        registry.insert(&record("v", true)).unwrap();
        let path = dir.path().join("volumes/v/secrets.json");
        for (content, words) in [
            (
                format!(r#"{{"version":1,"options":"{SECRET}"}}"#),
                "damaged",
            ),
            (
                format!(r#"{{"version":1,"options":{{"other":"{SECRET}"}}}}"#),
                "lacks secret_access_key",
            ),
        ] {
            fs::write(&path, content).unwrap();
            let reason = only(&registry).record.unwrap_err();
            assert!(
                reason.contains(words) && !reason.contains(SECRET),
                "{reason}"
            );
        }
        fs::remove_file(&path).unwrap();
        assert!(only(&registry).record.unwrap_err().contains("secrets.json"));
    }

    #[test]
    fn what_is_not_ours_is_left_alone_and_what_was_interrupted_is_swept() {
        let (dir, registry) = registry();
        let volumes = dir.path().join("volumes");
        fs::write(volumes.join("notes.txt"), "mine").unwrap();
        fs::create_dir(volumes.join("lost+found")).unwrap();
        fs::create_dir(volumes.join(".new-by-hand")).unwrap();
        fs::create_dir(volumes.join(format!("{NEW}{}", Uuid::now_v7()))).unwrap();
        fs::create_dir(volumes.join(format!("{GONE}{}", Uuid::now_v7()))).unwrap();
        assert_eq!(registry.load().unwrap(), []);
        let mut left: Vec<_> = fs::read_dir(&volumes)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, [".new-by-hand", "lost+found", "notes.txt"]);
    }

    #[test]
    fn a_record_is_never_overwritten() {
        let (dir, registry) = registry();
        let v = record("v", false);
        registry.insert(&v).unwrap();
        assert!(registry.insert(&record("v", true)).is_err());
        assert_eq!(only(&registry).record, Ok(v));
        fs::create_dir(dir.path().join("volumes/empty")).unwrap();
        assert!(registry.insert(&record("empty", false)).is_err());
        assert_eq!(registry.load().unwrap().len(), 2);
    }

    #[test]
    fn a_volume_that_was_removed_is_known_until_it_is_forgotten() {
        let (dir, registry) = registry();
        let v = record("v", true);
        registry.insert(&v).unwrap();
        let id = Uuid::now_v7();
        registry.retire(&v.name, id).unwrap();
        registry.retire(&v.name, Uuid::now_v7()).unwrap();
        assert_eq!(registry.load().unwrap(), []);
        let found = Found {
            name: v.name.clone(),
            record: Ok(v),
        };
        assert_eq!(registry.retired().unwrap(), [(id, found)]);
        registry.forget(id).unwrap();
        registry.forget(id).unwrap();
        assert_eq!(registry.retired().unwrap(), []);
        assert_eq!(files_below(dir.path()), Vec::<PathBuf>::new());
    }

    #[test]
    fn an_unreadable_directory_is_an_error_and_not_no_volumes() {
        let (dir, registry) = registry();
        fs::remove_dir(dir.path().join("volumes")).unwrap();
        let err = registry.load().unwrap_err().to_string();
        assert!(err.contains("volumes"), "{err}");
    }
}
