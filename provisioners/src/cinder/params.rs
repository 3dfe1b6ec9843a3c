//! StorageClass parameters of the cinder backend: the names that users of Cinder's own driver have.

use std::collections::BTreeMap;

use super::handle::is_uuid;
use super::record::{OURS, VALUE_MAX};
use crate::filesystem::{FS_TYPES, mkfs_options};
use crate::parameters::docs;
use crate::{NameTemplate, ParameterDoc, Parameters, PvcMeta, Result, StringMap};

/// Every parameter, for refusing others and for the documentation.
pub(super) static DOCS: [ParameterDoc; 9] = docs! {
    "cloud", "The configured cloud to make the volume in; the secret `cloud` is understood, too.", "the first", false;
    "type", "The volume type, by name or id. ControllerModifyVolume retypes.", "Cinder's default", true;
    "availability", "The availability zone of Cinder.", "by the claim's topology, else Cinder's default", false;
    "nameTemplate", "The volume's name in Cinder, made from `${pvc.namespace}`, `${pvc.name}`, `${pv.name}`, `${pvc.labels.KEY}` and `${pvc.annotations.KEY}`.",
        "the volume's CSI name", false;
    "tags", "Metadata of the volume, such as `team=storage,env=prod`.", "none", false;
    "affinity", "Volumes (UUIDs, separated by commas) on whose back end it shall be: the hint `same_host`. The claim's annotation `cinder.csi.openstack.org/affinity` is understood, too.",
        "none", false;
    "antiAffinity", "Volumes on whose back ends it shall not be: the hint `different_host`. The claim's annotation `cinder.csi.openstack.org/anti-affinity` is understood, too.",
        "none", false;
    "fsType", "The file system, where the capability names none: `ext4`, `xfs` or `btrfs`.", "the capability's, else `ext4`", false;
    "mkfsOptions", "Extra arguments for mkfs, separated by spaces, such as `-m 0 -i 8192`; no paths.", "none", false;
};

/// VolumeSnapshotClass parameters.
pub(super) static SNAPSHOT_DOCS: [ParameterDoc; 5] = docs! {
    "type", "`snapshot`, or `backup`: Cinder's backup service copies the data elsewhere.", "snapshot", false;
    "force-create", "Whether a volume in use may be taken: `true` or `false`.", "true", false;
    "availability", "Of a backup: the availability zone.", "the volume's", false;
    "backup-max-duration-seconds-per-gb", "Of a backup: how long it may take, in seconds for each GiB.", "20", false;
    "tags", "Metadata of the snapshot, such as `team=storage`.", "none", false;
};

/// What scheduler hints the claim's annotations give (Cinder's own driver).
const ANNOTATIONS: [(&str, &str); 2] = [
    ("affinity", "cinder.csi.openstack.org/affinity"),
    ("antiAffinity", "cinder.csi.openstack.org/anti-affinity"),
];

/// The parameters, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Params {
    pub(super) cloud: Option<String>,
    pub(super) volume_type: Option<String>,
    pub(super) zone: Option<String>,
    pub(super) template: Option<NameTemplate>,
    pub(super) tags: BTreeMap<String, String>,
    pub(super) same_host: Vec<String>,
    pub(super) different_host: Vec<String>,
    pub(super) fs_type: Option<String>,
    pub(super) mkfs_options: Vec<String>,
}

impl Params {
    /// Reads a StorageClass's parameters, and what a VolumeAttributesClass puts in their place.
    pub(super) fn parse(given: &StringMap, mutable: &StringMap, pvc: &PvcMeta) -> Result<Self> {
        let reader = Parameters::new("parameters", given, &DOCS)?;
        let later = Parameters::mutable(mutable, &DOCS)?;
        let text = |key: &str| reader.read(key, not_empty);
        Ok(Self {
            cloud: text("cloud")?,
            volume_type: later.read("type", not_empty)?.or(text("type")?),
            zone: text("availability")?,
            template: reader.get("nameTemplate").map(NameTemplate::parse).transpose()?,
            tags: reader.read("tags", tags)?.unwrap_or_default(),
            same_host: hint(&reader, pvc, "affinity")?,
            different_host: hint(&reader, pvc, "antiAffinity")?,
            fs_type: reader.one_of("fsType", &FS_TYPES)?.map(str::to_owned),
            mkfs_options: reader.read("mkfsOptions", mkfs_options)?.unwrap_or_default(),
        })
    }

    /// In what these differ from those of a volume that exists.
    pub(super) fn differences(&self, has: &Self) -> Vec<String> {
        let mut found = Vec::new();
        let mut compare = |name: &str, asked: String, has: String| {
            if asked != has {
                found.push(format!("{name} (it has {has}; asked: {asked})"));
            }
        };
        compare("type", format!("{:?}", self.volume_type), format!("{:?}", has.volume_type));
        compare("availability", format!("{:?}", self.zone), format!("{:?}", has.zone));
        compare("tags", format!("{:?}", self.tags), format!("{:?}", has.tags));
        compare("mkfsOptions", self.mkfs_options.join(" "), has.mkfs_options.join(" "));
        found
    }
}

/// The parameters of a snapshot, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SnapshotParams {
    pub(super) backup: bool,
    pub(super) force: bool,
    pub(super) zone: Option<String>,
    /// Seconds.
    pub(super) per_gib: u64,
    pub(super) tags: BTreeMap<String, String>,
}

impl SnapshotParams {
    pub(super) fn parse(given: &StringMap) -> Result<Self> {
        let reader = Parameters::new("parameters", given, &SNAPSHOT_DOCS)?;
        Ok(Self {
            backup: reader.one_of("type", &["snapshot", "backup"])? == Some("backup"),
            force: reader.flag("force-create")?.unwrap_or(true),
            zone: reader.read("availability", not_empty)?,
            per_gib: reader.number("backup-max-duration-seconds-per-gb")?.unwrap_or(20),
            tags: reader.read("tags", tags)?.unwrap_or_default(),
        })
    }
}

fn not_empty(text: &str) -> Result<String, String> {
    let fits = !text.trim().is_empty() && text.len() <= 255 && !text.chars().any(char::is_control);
    if fits { Ok(text.to_owned()) } else { Err("must have 1 to 255 characters".into()) }
}

fn hint(reader: &Parameters<'_>, pvc: &PvcMeta, key: &str) -> Result<Vec<String>> {
    let ids = |text: &str| -> Result<Vec<String>, String> {
        let ids: Vec<String> =
            text.split(',').map(|id| id.trim().to_owned()).filter(|id| !id.is_empty()).collect();
        match ids.iter().find(|id| !is_uuid(id)) {
            Some(wrong) => Err(format!("{wrong:?} is no UUID of a volume; separate several by commas")),
            None => Ok(ids),
        }
    };
    if let Some(found) = reader.read(key, ids)? {
        return Ok(found);
    }
    let annotation = ANNOTATIONS
        .iter()
        .find(|(of, _)| *of == key)
        .and_then(|(_, name)| pvc.annotations.get_key_value(*name));
    annotation.map_or(Ok(Vec::new()), |(name, text)| {
        ids(text).map_err(|problem| crate::Error::invalid(format!("the claim's annotation {name}"), problem))
    })
}

fn tags(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut found = BTreeMap::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (key, value) = part.split_once('=').ok_or_else(|| format!("{part:?} is no key=value"))?;
        if key.is_empty() || key.len() > VALUE_MAX || value.len() > VALUE_MAX {
            return Err(format!("{part:.40?}: keys have 1 to {VALUE_MAX} bytes, values at most {VALUE_MAX}"));
        }
        if key.starts_with(OURS) {
            return Err(format!("{key:?}: keys that begin with {OURS} are the driver's own"));
        }
        if found.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(format!("{key:?} is given twice"));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(key: &str, value: &str) -> Result<Params> {
        let given = StringMap::from([(key.to_owned(), value.to_owned())]);
        Params::parse(&given, &StringMap::new(), &PvcMeta::default())
    }

    #[test]
    fn wrong_values_are_named() {
        for (key, value, words) in [
            ("tags", "a", "key=value"),
            ("tags", "volumectl.name=x", "driver's own"),
            ("tags", "a=1,a=2", "twice"),
            ("affinity", "x", "UUID"),
            ("typ", "ssd", "did you mean \"type\""),
            ("fsType", "zfs", "known: ext4, xfs, btrfs"),
        ] {
            let error = parse(key, value).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains(words), "{error}");
        }
        assert_eq!(parse("tags", "a=1, b=x=y").unwrap().tags.len(), 2);
    }

    #[test]
    fn a_volume_attributes_class_goes_before() {
        let class = StringMap::from([("type".to_owned(), "slow".to_owned())]);
        let later = StringMap::from([("type".to_owned(), "fast".to_owned())]);
        let params = Params::parse(&class, &later, &PvcMeta::default()).unwrap();
        assert_eq!(params.volume_type.as_deref(), Some("fast"));
        let later = StringMap::from([("availability".to_owned(), "x".to_owned())]);
        assert!(Params::parse(&class, &later, &PvcMeta::default()).is_err());
    }
}
