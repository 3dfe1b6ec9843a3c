//! What the objects of a file say of each other.

use anyhow::{Context as _, Result, ensure};

use super::manifests::Bundle;
use super::objects::{Claim, Map, Meta, ObjectRef, PersistentVolume, StorageClass};
use super::snapshot_objects::{Snapshot, SnapshotClass, SnapshotContent};

/// What the sidecars' own parameters begin with.
pub const SIDECAR: &str = "csi.storage.k8s.io/";

impl Bundle {
    /// A class by name.
    pub fn class(&self, name: &str) -> Result<&StorageClass> {
        let found = self.classes.iter().find(|class| class.metadata.name == name);
        found.with_context(|| format!("StorageClass {name} is not in the file"))
    }

    /// The class of claims that name none. Of several it is the first by name, as it is in a cluster of those that are
    /// equally old.
    pub fn default_class(&self) -> Option<&StorageClass> {
        self.classes.iter().filter(|class| class.is_default()).min_by_key(|class| &class.metadata.name)
    }

    /// The name of a claim's class; none is "".
    pub fn class_name<'a>(&'a self, claim: &'a Claim) -> &'a str {
        let default = || self.default_class().map_or("", |class| &class.metadata.name);
        claim.class_name().unwrap_or_else(default)
    }

    /// A PersistentVolume by name.
    pub fn volume(&self, name: &str) -> Result<&PersistentVolume> {
        let found = self.volumes.iter().find(|volume| volume.metadata.name == name);
        found.with_context(|| format!("PersistentVolume {name} is not in the file"))
    }

    /// A claim by namespace and name.
    pub fn claim(&self, namespace: &str, name: &str) -> Option<&Claim> {
        self.claims.iter().find(|it| it.metadata.namespace == namespace && it.metadata.name == name)
    }

    /// A claim's mutable parameters; none if it has no VolumeAttributesClass.
    pub fn mutable_parameters(&self, claim: &Claim, driver: &str) -> Result<Map> {
        let name = claim.spec.volume_attributes_class_name.as_deref().unwrap_or_default();
        if name.is_empty() {
            return Ok(Map::new());
        }
        let class = self.attributes.iter().find(|class| class.metadata.name == name);
        let class = class.with_context(|| format!("VolumeAttributesClass {name} is not in the file"))?;
        let of = &class.driver_name;
        ensure!(
            of.is_empty() || of == driver,
            "VolumeAttributesClass {name} is for the driver {of}, this endpoint is {driver}"
        );
        Ok(class.parameters.clone())
    }

    /// A snapshot's class, or the default one; none where the file has none.
    pub fn snapshot_class(&self, snapshot: &Snapshot, driver: &str) -> Result<Option<&SnapshotClass>> {
        let found = match snapshot.spec.volume_snapshot_class_name.as_deref() {
            None => {
                let ours =
                    |it: &&SnapshotClass| it.is_default() && (it.driver.is_empty() || it.driver == driver);
                self.snapshot_classes.iter().find(ours)
            }
            Some(name) => {
                let found = self.snapshot_classes.iter().find(|class| class.metadata.name == name);
                Some(found.with_context(|| format!("VolumeSnapshotClass {name} is not in the file"))?)
            }
        };
        if let Some(class) = found {
            ensure!(
                class.driver.is_empty() || class.driver == driver,
                "VolumeSnapshotClass {} is for the driver {}, this endpoint is {driver}",
                class.metadata.name,
                class.driver
            );
        }
        Ok(found)
    }

    /// The content of a snapshot that there is already, and its handle.
    pub fn content(&self, snapshot: &Snapshot, driver: &str) -> Result<Option<&str>> {
        let Some(name) = snapshot.spec.source.volume_snapshot_content_name.as_deref() else {
            return Ok(None);
        };
        let found = self.contents.iter().find(|content| content.metadata.name == name);
        let SnapshotContent { spec, .. } =
            found.with_context(|| format!("VolumeSnapshotContent {name} is not in the file"))?;
        let (of, meta) = (&spec.volume_snapshot_ref, &snapshot.metadata);
        ensure!(
            of.name == meta.name && of.namespace == meta.namespace,
            "VolumeSnapshotContent {name} is for the snapshot {}/{}",
            of.namespace,
            of.name
        );
        ensure!(
            spec.driver == driver,
            "VolumeSnapshotContent {name} is for the driver {}, this endpoint is {driver}",
            spec.driver
        );
        let handle = spec.source.snapshot_handle.as_deref();
        handle
            .map(Some)
            .with_context(|| format!("VolumeSnapshotContent {name} has no spec.source.snapshotHandle"))
    }

    /// The secrets that class parameters name for a step, such as `provisioner` or `node-stage`
    /// (`csi.storage.k8s.io/<step>-secret-name` and `-namespace`, with the templates of the sidecars).
    pub fn secrets(&self, step: &str, parameters: &Map, of: &Meta) -> Result<Map> {
        let parameter = |what: &str| parameters.get(&format!("{SIDECAR}{step}-secret-{what}"));
        let Some(name) = parameter("name") else { return Ok(Map::new()) };
        let namespace = parameter("namespace").map_or_else(|| of.namespace.clone(), |n| fill(n, of));
        self.secret_of(step, &ObjectRef { name: fill(name, of), namespace })
    }
}

/// A template of external-provisioner or external-snapshotter for a secret's name or namespace.
fn fill(template: &str, of: &Meta) -> String {
    let mut text = template.to_owned();
    for kind in ["pvc", "volumesnapshot"] {
        text = text
            .replace(&format!("${{{kind}.namespace}}"), &of.namespace)
            .replace(&format!("${{{kind}.name}}"), &of.name);
    }
    text = text.replace("${pv.name}", &super::plan::volume_name(of));
    for (key, value) in &of.annotations {
        text = text.replace(&format!("${{pvc.annotations['{key}']}}"), value);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_have_the_templates_of_the_sidecars() {
        let mut meta = Meta::made("shop", "db".into());
        meta.annotations.insert("team".into(), "red".into());
        assert_eq!(fill("${pvc.namespace}-${pvc.name}-${pvc.annotations['team']}", &meta), "shop-db-red");
        assert_eq!(fill("${pv.name}", &meta), format!("pvc-{}", meta.uid()));
        assert_eq!(fill("${volumesnapshot.name}", &meta), "db");
    }
}
