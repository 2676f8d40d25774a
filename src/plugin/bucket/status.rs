//! What `docker volume inspect` shows of a volume beside its name. Nothing secret, and nothing that has
//! to be asked of a store.

use serde_json::{Map, Value, json};

use super::definition::{Definition, credentials_name, inline_secrets};
use super::lifecycle::Volume;

/// The `Status` of a volume, from memory.
pub(super) fn status(volume: &Volume) -> Map<String, Value> {
    let glimpse = volume.glimpse();
    let mut status = Map::new();
    let mut warnings = Vec::new();
    match &volume.definition {
        Definition::Broken { reason } => {
            status.insert("state".into(), json!("broken"));
            status.insert("last_error".into(), json!(reason));
            warnings.push(format!(
                "it cannot be mounted; docker volume rm {} forgets it and deletes no object",
                volume.name
            ));
        }
        Definition::Usable { spec, pairs, .. } => {
            status.insert("state".into(), json!(glimpse.state));
            status.insert("id".into(), json!(spec.id));
            status.insert("store".into(), json!(spec.options.location.to_string()));
            if let Some(url) = &spec.options.endpoint.url {
                status.insert("endpoint".into(), json!(url));
            }
            status.insert("read_only".into(), json!(spec.options.read_only));
            status.insert("credentials".into(), json!(credentials_name(pairs)));
            let inline = inline_secrets(pairs);
            if !inline.is_empty() {
                warnings.push(format!(
                    "{} can be read by everybody who may inspect the volume; use credentials=file:NAME instead",
                    inline.join(" and ")
                ));
            }
        }
    }
    if let Some(mount) = glimpse.mount {
        status.insert("holders".into(), json!(glimpse.holders));
        let mut numbers = mount.status();
        let last_error = numbers
            .last_error
            .take()
            .map(|text| volume.definition.scrub(&text));
        if let Some(error) = last_error {
            status.insert("last_error".into(), json!(error));
        }
        if let Ok(Value::Object(mut numbers)) = serde_json::to_value(numbers) {
            numbers.remove("last_error");
            status.insert("mount".into(), Value::Object(numbers));
        }
    }
    if let Some(error) = glimpse.notes.last_error {
        // The driver's own error is about the mount as a whole, and outranks a file's.
        status.insert("last_error".into(), json!(error));
    }
    warnings.extend(glimpse.notes.unchecked);
    if !warnings.is_empty() {
        status.insert("warnings".into(), json!(warnings));
    }
    status
}
