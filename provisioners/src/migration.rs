//! The test of docs/migration.md: every class and PersistentVolume of `migration/classes.yaml` goes through the code that
//! reads it in the driver, and each parameter must do what its row says. No row is without a parameter, and none of the
//! parameters without a row.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::Value;

use crate::parameters::Ignored;
use crate::{Result, StringMap, cinder, nfs, rbd, split_parameters};

mod table;

use table::{Fate, Table};

/// What was read, as a text to compare, and the fields that have no effect.
pub(crate) type Parsed = Result<(String, Vec<String>)>;

/// The fields of what has no effect.
pub(crate) fn fields(ignored: &[Ignored]) -> Vec<String> {
    ignored.iter().map(|it| it.field.clone()).collect()
}

#[derive(Deserialize)]
struct Object {
    kind: String,
    #[serde(default)]
    provisioner: String,
    #[serde(default)]
    driver: String,
    #[serde(default)]
    parameters: StringMap,
    #[serde(default)]
    spec: Value,
}

/// An object of another driver, and how it is read here.
struct Case {
    driver: String,
    kind: String,
    given: StringMap,
    read: Box<dyn Fn(&StringMap) -> Parsed>,
}

fn objects() -> Vec<Object> {
    let text = include_str!("migration/classes.yaml");
    text.split("\n---\n").map(|document| serde_saphyr::from_str(document).expect(document)).collect()
}

fn case(object: &Object) -> Case {
    if object.kind == "PersistentVolume" {
        return volume(&object.spec);
    }
    let driver = format!("{}{}", object.provisioner, object.driver);
    let read = match (driver.as_str(), object.kind.as_str()) {
        ("rbd.csi.ceph.com", "StorageClass") => rbd::reading::class,
        ("rbd.csi.ceph.com", "VolumeSnapshotClass") => rbd::reading::snapshot_class,
        ("rbd.csi.ceph.com", "VolumeGroupSnapshotClass") => rbd::reading::group_class,
        ("kubernetes.io/rbd", "StorageClass") => rbd::reading::class_of_one_cluster,
        ("nfs.csi.k8s.io", "VolumeSnapshotClass") => nfs::reading::snapshot_class,
        ("nfs.csi.k8s.io" | "k8s-sigs.io/nfs-subdir-external-provisioner", _) => nfs::reading::class,
        ("cinder.csi.openstack.org", "VolumeSnapshotClass") => cinder::reading::snapshot_class,
        ("cinder.csi.openstack.org" | "kubernetes.io/cinder", _) => cinder::reading::class,
        other => panic!("{other:?}"),
    };
    Case { driver, kind: object.kind.clone(), given: object.parameters.clone(), read: Box::new(read) }
}

/// A PersistentVolume of a CSI driver: its attributes, and its handle as one of them.
fn volume(spec: &Value) -> Case {
    let csi = &spec["csi"];
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let (driver, handle) = (text(&csi["driver"]), text(&csi["volumeHandle"]));
    let attributes = csi["volumeAttributes"].as_object().expect("attributes");
    let mut given: StringMap = attributes.iter().map(|(k, v)| (k.clone(), text(v))).collect();
    let anew = rbd::reading::written_anew(&handle, &given);
    given.insert("volumeHandle".into(), handle);
    let of_driver = driver.clone();
    let read = move |given: &StringMap| {
        let mut attributes = given.clone();
        let handle = attributes.remove("volumeHandle");
        match of_driver.as_str() {
            "rbd.csi.ceph.com" => {
                // As it is, then as docs/migration.md says.
                handle.map_or(Ok(String::new()), |handle| rbd::reading::handle(&handle))?;
                rbd::reading::attributes(&anew, &attributes)
            }
            "nfs.csi.k8s.io" => nfs::reading::attributes(&attributes),
            _ => cinder::reading::attributes(
                &handle.unwrap_or_else(|| "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9".into()),
                &attributes,
            ),
        }
    };
    Case { driver, kind: "PersistentVolume".into(), given, read: Box::new(read) }
}

impl Case {
    fn fates(&self, table: &mut Table) -> Vec<(String, Fate)> {
        let fate = |(key, value): (&String, &String)| {
            (key.clone(), table.fate(&self.driver, &self.kind, key, value))
        };
        self.given.iter().map(fate).collect()
    }

    /// Whether a key is kept from the backend as one of a sidecar.
    fn is_sidecars(&self, key: &str, value: &str) -> bool {
        let alone = StringMap::from([(key.to_owned(), value.to_owned())]);
        if self.kind == "PersistentVolume" {
            key.contains('/')
        } else {
            split_parameters(&alone).1.is_empty()
        }
    }

    fn read_without(&self, without: &BTreeSet<&str>) -> Parsed {
        let kept = self.given.iter().filter(|(key, _)| !without.contains(key.as_str()));
        let kept = kept.map(|(key, value)| (key.clone(), value.clone())).collect();
        if self.kind == "PersistentVolume" {
            (self.read)(&kept)
        } else {
            (self.read)(&split_parameters(&kept).1)
        }
    }

    /// Each parameter does what its row says: seen by what changes when it is left out.
    fn check(&self, table: &mut Table) {
        let fates = self.fates(table);
        let refused: BTreeSet<&str> =
            fates.iter().filter(|(_, fate)| *fate == Fate::Refused).map(|(key, _)| key.as_str()).collect();
        let (text, ignored) = self.read_without(&refused).expect("what is left without the refused ones");
        for (key, fate) in &fates {
            let place = format!("{} {} {key}", self.driver, self.kind);
            let mut without = refused.clone();
            let is_ignored = ignored.iter().any(|field| field.contains(&format!("[{key:?}]")));
            let sidecars = self.is_sidecars(key, &self.given[key]);
            assert_eq!(*fate == Fate::Sidecar, sidecars, "{place}");
            assert_eq!(*fate == Fate::Ignored, is_ignored, "{place}: {ignored:?}");
            if *fate == Fate::Refused {
                without.remove(key.as_str());
                let error = self.read_without(&without).expect_err(&place).to_string();
                let names =
                    error.contains(&format!("[{key:?}]: ")) || error.contains(&format!("write {key}: "));
                assert!(names && error.len() > key.len() + 20, "{place}: {error}");
                continue;
            }
            // They name the claim, whose name a template may want.
            if *fate == Fate::Sidecar {
                continue;
            }
            without.insert(key);
            let rest = self.read_without(&without);
            let same = rest.is_ok_and(|(rest, _)| rest == text);
            assert_eq!(*fate == Fate::Taken, !same, "{place}: {text}");
        }
    }
}

/// A field of an in-tree PersistentVolume, in a PersistentVolume of this driver, as its row says.
fn convert(driver: &str, source: &Value, table: &mut Table) {
    let (mut handle, mut attributes) = (Vec::new(), StringMap::new());
    for (field, value) in source.as_object().expect("fields") {
        let text = value.as_str().unwrap_or_default().to_owned();
        match table.fate(driver, "PersistentVolume", field, &text) {
            Fate::Becomes(place) if place == "volumeHandle" => handle.push((field.clone(), text)),
            Fate::Becomes(place) => match place.strip_prefix("volumeAttributes.") {
                Some(key) => drop(attributes.insert(key.to_owned(), text)),
                // Fields that every CSI PersistentVolume has.
                None => {
                    assert!(
                        ["fsType", "readOnly", "nodeStageSecretRef"].contains(&place.as_str()),
                        "{place}"
                    );
                }
            },
            Fate::Configured => {}
            other => panic!("{driver} {field}: {other:?}"),
        }
    }
    let texts: Vec<String> = handle
        .iter()
        .chain(&attributes.clone().into_iter().collect::<Vec<_>>())
        .map(|(_, v)| v.clone())
        .collect();
    let part = |name: &str| handle.iter().find(|(field, _)| field == name).map(|(_, text)| text.clone());
    let read = match driver {
        "kubernetes.io/rbd" => {
            let text = format!("ceph:{}/{}", part("pool").expect("a pool"), part("image").expect("an image"));
            rbd::reading::handle(&text).map(|handle| (handle, Vec::new()))
        }
        "kubernetes.io/nfs" => nfs::reading::attributes(&attributes),
        _ => cinder::reading::attributes(&part("volumeID").expect("an id"), &attributes),
    };
    let (seen, ignored) = read.expect(driver);
    assert!(ignored.is_empty() && texts.iter().all(|text| seen.contains(text)), "{driver}: {seen} {texts:?}");
}

#[test]
fn every_parameter_of_other_drivers_does_what_docs_migration_says() {
    let mut table = Table::read(include_str!("../../docs/migration.md"));
    for object in objects() {
        let in_tree = object.spec.as_object().and_then(|spec| spec.iter().find(|(key, _)| *key != "csi"));
        match in_tree {
            Some((plugin, source)) => convert(&format!("kubernetes.io/{plugin}"), source, &mut table),
            None => case(&object).check(&mut table),
        }
    }
    assert_eq!(table.unused(), Vec::<String>::new(), "rows without a parameter in migration/classes.yaml");
}

/// Nothing that is known to be of another driver is missing in the documentation.
#[test]
fn every_foreign_parameter_is_in_docs_migration() {
    let table = Table::read(include_str!("../../docs/migration.md"));
    for name in rbd::reading::foreign().into_iter().chain(nfs::reading::foreign()) {
        assert!(table.has(name), "{name} is not in docs/migration.md");
    }
}
