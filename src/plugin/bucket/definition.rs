//! What a volume is: its record, understood, or the reason why it cannot be.

use std::collections::BTreeMap;
use std::time::SystemTime;

use super::registry::{Found, Record};
use super::{VolumeName, VolumeSpec};
use crate::config::{Options, Scope, options};
use crate::plugin::PluginError;

/// A volume's record as the rest of the driver uses it.
pub(super) enum Definition {
    /// A volume that can be mounted.
    Usable {
        spec: Box<VolumeSpec>,
        created_at: SystemTime,
        /// As its creator spelled the options.
        pairs: BTreeMap<String, String>,
    },
    /// A volume that exists and cannot be used.
    Broken { reason: String },
}

impl Definition {
    /// Understands what was found on disk.
    pub(super) fn from_found(found: Found) -> Self {
        match found
            .record
            .and_then(|record| Self::from_record(record).map_err(|err| err.to_string()))
        {
            Ok(usable) => usable,
            Err(reason) => Self::Broken { reason },
        }
    }

    /// Understands what somebody wants to create, or created.
    pub(super) fn from_record(record: Record) -> Result<Self, PluginError> {
        let Record {
            id,
            name,
            created_at,
            options: pairs,
        } = record;
        match Options::parse(pairs.clone(), Scope::Volume, None) {
            Ok(options) => Ok(Self::Usable {
                spec: Box::new(VolumeSpec { id, name, options }),
                created_at,
                pairs,
            }),
            Err(err) => Err(PluginError::Invalid(scrub(&pairs, &err.to_string()))),
        }
    }

    /// What to mount, or what to do about a broken record.
    pub(super) fn spec(&self, name: &VolumeName) -> Result<&VolumeSpec, PluginError> {
        match self {
            Self::Usable { spec, .. } => Ok(spec),
            Self::Broken { reason } => Err(PluginError::Failed(format!(
                "volume {name} cannot be used: {reason}; to make it anew, docker volume rm {name} first (no object is \
                 deleted, and Docker ignores new options of an existing volume)"
            ))),
        }
    }

    /// The volume's options, if they could be read.
    pub(super) fn options(&self) -> Option<&Options> {
        match self {
            Self::Usable { spec, .. } => Some(&spec.options),
            Self::Broken { .. } => None,
        }
    }

    /// Where the data is, in one word.
    pub(super) fn place(&self) -> String {
        self.options().map_or_else(
            || "unknown place".into(),
            |options| options.location.to_string(),
        )
    }

    /// `text` without any of the volume's secrets.
    pub(super) fn scrub(&self, text: &str) -> String {
        match self {
            Self::Usable { pairs, .. } => scrub(pairs, text),
            Self::Broken { .. } => text.to_owned(),
        }
    }
}

/// `text` without the values of secret options: whoever wrote it was not to put them there, and this is
/// the last place before a terminal, a log or the engine's records.
pub(super) fn scrub(pairs: &BTreeMap<String, String>, text: &str) -> String {
    // What is shorter is no secret, and would shred the text.
    const SHORTEST: usize = 4;
    let secrets = pairs
        .iter()
        .filter(|(key, value)| options::is_secret(key) && value.len() >= SHORTEST);
    secrets.fold(text.to_owned(), |text, (_, secret)| {
        text.replace(secret.as_str(), "***")
    })
}

/// Where two sets of options differ, as a list for people; `None` if they mean the same.
pub(super) fn difference(have: &Definition, want: &Definition) -> Option<String> {
    let (
        Definition::Usable {
            spec: a,
            pairs: have,
            ..
        },
        Definition::Usable {
            spec: b,
            pairs: want,
            ..
        },
    ) = (have, want)
    else {
        return Some("its record cannot be used".into());
    };
    if have == want || a.options == b.options {
        return None;
    }
    let show = |key: &str, value: Option<&String>| match value {
        None => "none".to_owned(),
        Some(_) if options::is_secret(key) => "***".to_owned(),
        Some(value) => format!("{value:?}"),
    };
    let keys: std::collections::BTreeSet<_> = have.keys().chain(want.keys()).collect();
    let differing = keys
        .into_iter()
        .filter(|key| have.get(*key) != want.get(*key))
        .map(|key| {
            format!(
                "{key} is {} and not {}",
                show(key, have.get(key)),
                show(key, want.get(key))
            )
        });
    Some(differing.collect::<Vec<_>>().join(", "))
}

/// The keys of secret options.
pub(super) fn inline_secrets(pairs: &BTreeMap<String, String>) -> Vec<&str> {
    pairs
        .keys()
        .map(String::as_str)
        .filter(|key| options::is_secret(key))
        .collect()
}

/// Who the volume is to its store, by name.
pub(super) fn credentials_name(pairs: &BTreeMap<String, String>) -> &str {
    if inline_secrets(pairs).is_empty() {
        pairs.get("credentials").map_or("default", String::as_str)
    } else {
        "inline"
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;

    fn pairs(text: &str) -> BTreeMap<String, String> {
        text.split_whitespace()
            .map(|pair| pair.split_once('=').unwrap())
            .map(|(k, v)| (k.into(), v.into()))
            .collect()
    }

    fn definition(text: &str) -> Definition {
        let created_at = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        let name = VolumeName::parse("v").unwrap();
        Definition::from_record(Record {
            id: Uuid::nil(),
            name,
            created_at,
            options: pairs(text),
        })
        .unwrap()
    }

    #[test]
    fn the_same_said_in_other_words_is_no_difference() {
        for (have, want) in [
            ("bucket=bbb prefix=p", "prefix=p bucket=bbb"),
            ("bucket=bbb prefix=p", "url=s3://bbb/p"),
        ] {
            assert_eq!(difference(&definition(have), &definition(want)), None);
        }
    }

    #[test]
    fn a_difference_names_key_and_values_but_no_secret() {
        let have = definition("bucket=bbb prefix=p access_key_id=A secret_access_key=one-secret");
        let want = definition("bucket=bbb region=r access_key_id=A secret_access_key=two-secret");
        assert_eq!(
            difference(&have, &want).unwrap(),
            r#"prefix is "p" and not none, region is none and not "r", secret_access_key is *** and not ***"#
        );
    }

    #[test]
    fn secrets_are_taken_out_of_any_text() {
        let v = definition("bucket=bbb access_key_id=AKIA secret_access_key=hush-hush");
        assert_eq!(
            v.scrub("GET ?sig=hush-hush by AKIA: hush-hush"),
            "GET ?sig=*** by AKIA: ***"
        );
    }
}
