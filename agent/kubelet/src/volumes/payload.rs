//! What stands in the files of a ConfigMap, Secret, downward API or projected volume. Pure: objects are passed in.

use super::atomic::{File, Payload};
use crate::downward::{self, Facts};
use k8s_openapi::api::core::v1::{ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret};
use std::collections::BTreeMap;

/// Kubernetes' default for files in volumes.
pub const DEFAULT_MODE: i32 = 0o644;

/// Keys and values of an object.
pub type Data = BTreeMap<String, Vec<u8>>;

/// A ConfigMap's keys.
pub fn config_map_data(map: &ConfigMap) -> Data {
    let text = map.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes()));
    text.chain(map.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()))).collect()
}

/// A Secret's keys.
pub fn secret_data(secret: &Secret) -> Data {
    secret.data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone())).collect()
}

/// All keys as files, or only `items` at their paths; a missing item fails unless `optional`.
pub fn keys(
    data: &Data,
    items: Option<&Vec<KeyToPath>>,
    default_mode: i32,
    optional: bool,
    what: &str,
) -> Result<Payload, String> {
    let Some(items) = items.filter(|i| !i.is_empty()) else {
        let file = |v: &Vec<u8>| File { data: v.clone(), mode: mode(default_mode) };
        return Ok(data.iter().map(|(k, v)| (k.clone(), file(v))).collect());
    };
    let mut payload = Payload::new();
    for item in items {
        match data.get(&item.key) {
            Some(value) => {
                let file = File { data: value.clone(), mode: mode(item.mode.unwrap_or(default_mode)) };
                payload.insert(item.path.clone(), file);
            }
            None if optional => {}
            None => return Err(format!("{what} references non-existent config key: {}", item.key)),
        }
    }
    Ok(payload)
}

/// Files of the downward API.
pub fn downward(
    pod: &Pod,
    items: Option<&Vec<DownwardAPIVolumeFile>>,
    default_mode: i32,
    facts: &Facts,
) -> Result<Payload, String> {
    let mut payload = Payload::new();
    for item in items.into_iter().flatten() {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(r), _) => downward::field(pod, r, facts)?,
            (None, Some(r)) => downward::resource(pod, None, r, facts)?,
            (None, None) => return Err(format!("downward API file {:?} names no source", item.path)),
        };
        let file = File { data: text.into_bytes(), mode: mode(item.mode.unwrap_or(default_mode)) };
        payload.insert(item.path.clone(), file);
    }
    Ok(payload)
}

/// Permission bits of a mode in the API.
pub fn mode(mode: i32) -> u32 {
    u32::try_from(mode).unwrap_or(0o644) & 0o7777
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_choose_and_rename() {
        let data = Data::from([("a".to_owned(), b"1".to_vec()), ("b".to_owned(), b"2".to_vec())]);
        assert_eq!(keys(&data, None, 0o600, false, "x").unwrap().len(), 2);
        let item = |key: &str| vec![KeyToPath { key: key.to_owned(), path: "p/q".to_owned(), mode: Some(0o400) }];
        let chosen = keys(&data, Some(&item("a")), 0o644, false, "x").unwrap();
        assert_eq!(chosen["p/q"], File { data: b"1".to_vec(), mode: 0o400 });
        assert!(
            keys(&data, Some(&item("z")), 0o644, false, "configmap")
                .unwrap_err()
                .contains("non-existent config key: z")
        );
        assert!(keys(&data, Some(&item("z")), 0o644, true, "x").unwrap().is_empty());
    }
}
