//! Keys of the sidecars among a StorageClass's parameters.

use crate::{PvcMeta, StringMap};

const SIDECAR: &str = "csi.storage.k8s.io/";
const OURS: &str = "csi.volumectl.io/pvc/";

/// Splits what Kubernetes says of the claim from the StorageClass's own parameters. Keys that belong to the sidecars
/// (`csi.storage.k8s.io/…`) never reach a backend.
pub fn split_parameters(parameters: &StringMap) -> (PvcMeta, StringMap) {
    let (mut pvc, mut rest) = (PvcMeta::default(), StringMap::new());
    for (key, value) in parameters {
        if let Some(key) = key.strip_prefix(SIDECAR) {
            match key {
                "pvc/name" => pvc.name = Some(value.clone()),
                "pvc/namespace" => pvc.namespace = Some(value.clone()),
                "pv/name" => pvc.pv_name = Some(value.clone()),
                _ => {}
            }
        } else if let Some(key) = key.strip_prefix(OURS) {
            if let Some(label) = key.strip_prefix("labels/") {
                pvc.labels.insert(label.to_owned(), value.clone());
            } else if let Some(annotation) = key.strip_prefix("annotations/") {
                pvc.annotations.insert(annotation.to_owned(), value.clone());
            }
        } else {
            rest.insert(key.clone(), value.clone());
        }
    }
    (pvc, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sidecar_keys_become_the_claim_and_reach_no_backend() {
        let parameters = StringMap::from(
            [
                ("csi.storage.k8s.io/pvc/name", "db"),
                ("csi.storage.k8s.io/pvc/namespace", "shop"),
                ("csi.storage.k8s.io/pv/name", "pvc-1"),
                ("csi.storage.k8s.io/fstype", "xfs"),
                ("csi.volumectl.io/pvc/labels/app", "shop"),
                ("csi.volumectl.io/pvc/annotations/team", "blue"),
                ("type", "file"),
            ]
            .map(|(k, v)| (k.to_owned(), v.to_owned())),
        );
        let (pvc, rest) = split_parameters(&parameters);
        assert_eq!(rest, StringMap::from([("type".into(), "file".into())]));
        assert_eq!((pvc.name.as_deref(), pvc.namespace.as_deref()), (Some("db"), Some("shop")));
        assert_eq!((pvc.labels["app"].as_str(), pvc.annotations["team"].as_str()), ("shop", "blue"));
    }
}
