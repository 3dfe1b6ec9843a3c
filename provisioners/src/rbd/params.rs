//! StorageClass parameters of the rbd backend: the names that users of Ceph's own driver have.

use super::config::{Mounter, RbdCluster, RbdConfig};
use super::ffi::ImageOptions;
use super::foreign::CLASS;
use super::handle::{Place, check_part};
use super::mapping::{has_nbd, kernel_options, unmap_options};
use crate::filesystem::{FS_TYPES, mkfs_options};
use crate::parameters::{Ignored, docs};
use crate::{Error, NameTemplate, ParameterDoc, Parameters, Result, StringMap, parse_size};

/// Every parameter, for refusing others and for the documentation.
pub(super) static DOCS: [ParameterDoc; 18] = docs! {
    "clusterID", "The configured cluster to make the volume in.", "the only one", false;
    "pool", "The pool of the image.", "the cluster's only configured pool", false;
    "dataPool", "The pool of the data, where that is not the image's: an erasure coded one, for example.", "the image's pool", false;
    "radosNamespace", "The RADOS namespace of the image. It must exist.", "the cluster's configured one, else the default one", false;
    "imageFeatures", "The image's features, separated by commas: `layering`, `exclusive-lock`, `object-map`, `fast-diff`, `deep-flatten`, `journaling`.",
        "layering,exclusive-lock,object-map,fast-diff,deep-flatten", false;
    "mounter", "`krbd` (or `rbd`): the kernel's client. `fuse`: qemu-storage-daemon with a FUSE export and a loop device, for kernels without the module rbd.",
        "the driver's configured one", false;
    "mapOptions", "Options for mapping, separated by commas, such as `noshare,queue_depth=256,ms_mode=secure`; `krbd:` before them is understood, parts for other mounters are passed over.",
        "none", false;
    "unmapOptions", "Options for unmapping: `force`.", "none", false;
    "fsType", "The file system, where the capability names none: `ext4`, `xfs` or `btrfs`.", "the capability's, else the driver's", false;
    "mkfsOptions", "Extra arguments for mkfs, separated by spaces, such as `-m 0 -i 8192`; no paths.", "none", false;
    "stripeUnit", "The bytes of a stripe in one object, such as `65536`; together with `stripeCount`. It divides the object size.", "the object size", false;
    "stripeCount", "The objects that a stripe goes over.", "1", false;
    "objectSize", "The bytes of one object: a power of two from 4 KiB to 32 MiB.", "the cluster's, 4 MiB", false;
    "volumeNamePrefix", "What the image's name begins with.", "none", false;
    "nameTemplate", "The image's name, made from `${pvc.namespace}`, `${pvc.name}`, `${pv.name}`, `${pvc.labels.KEY}` and `${pvc.annotations.KEY}`. A name that is taken is refused.",
        "the volume's CSI name", false;
    "lockRecovery", "What ControllerPublishVolume does about a holder that is proved dead: `manual`: refuse, and print the command that recovers it. `auto`: fence it and break its lock.",
        "manual", true;
    "flatten", "`true`: a volume that was made from a snapshot or another volume is copied in the background, so that it shares nothing with its source any more. It is not undone.",
        "false", true;
    "encrypted", "`false`. Encryption at rest is not done by this driver; `true` is refused.", "false", false;
};

/// VolumeGroupSnapshotClass parameters.
pub(super) static GROUP_DOCS: [ParameterDoc; 2] = docs! {
    "clusterID", "The cluster of the source volumes; another is refused.", "the volumes'", false;
    "pool", "The pool of the first source volume; another is refused.", "the volume's", false;
};

/// VolumeSnapshotClass parameters.
pub(super) static SNAPSHOT_DOCS: [ParameterDoc; 3] = docs! {
    "clusterID", "The cluster of the source volume; another is refused.", "the volume's", false;
    "pool", "The pool of the source volume; another is refused.", "the volume's", false;
    "snapshotNamePrefix", "What the snapshot's name begins with.", "none", false;
};

/// Features and their bits (rbd/features.h), each with what it needs.
pub(super) const FEATURES: [(&str, u64, Option<&str>); 6] = [
    ("layering", 1, None),
    ("exclusive-lock", 1 << 2, None),
    ("object-map", 1 << 3, Some("exclusive-lock")),
    ("fast-diff", 1 << 4, Some("object-map")),
    ("deep-flatten", 1 << 5, None),
    ("journaling", 1 << 6, Some("exclusive-lock")),
];
/// What an image has where the class says nothing.
const DEFAULT_FEATURES: u64 = 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5;
/// The bit of a feature that group snapshots need.
pub(super) const EXCLUSIVE_LOCK: u64 = 1 << 2;
/// The feature by which the object map tells what is stored (librbd, RBD_FEATURE_FAST_DIFF).
pub(super) const FAST_DIFF: u64 = 1 << 4;

/// The parameters, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Params {
    pub(super) place: Place,
    pub(super) options: ImageOptions,
    pub(super) mounter: Mounter,
    pub(super) map_options: Vec<String>,
    pub(super) unmap_options: Vec<String>,
    pub(super) fs_type: Option<String>,
    pub(super) mkfs_options: Vec<String>,
    pub(super) prefix: String,
    pub(super) template: Option<NameTemplate>,
    pub(super) auto_recovery: bool,
    pub(super) flatten: bool,
    /// What was given and has no effect.
    pub(super) ignored: Vec<Ignored>,
}

/// What of the parameters can be changed later, as far as it is done at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mutable {
    pub(super) flatten: bool,
}

impl Params {
    /// Reads a StorageClass's parameters.
    pub(super) fn parse(config: &RbdConfig, given: &StringMap) -> Result<Self> {
        let reader = Parameters::with_foreign("parameters", given, &DOCS, &CLASS)?;
        if reader.read("encrypted", encrypted)? == Some(true) {
            let problem = "encryption at rest is not done by this driver; leave it out, or encrypt the OSDs";
            return Err(Error::invalid(reader.field_of("encrypted"), problem));
        }
        Self::at(place(config, &reader)?, config.mounter, &reader)
    }

    /// Reads how an image at a place is made and used.
    pub(super) fn at(place: Place, mounter: Mounter, reader: &Parameters<'_>) -> Result<Self> {
        let mut ignored = reader.ignored();
        for key in ["mapOptions", "unmapOptions"] {
            if reader.get(key).is_some_and(has_nbd) {
                let why = "its part for nbd: no volume is mapped by rbd-nbd".to_owned();
                ignored.push(Ignored { field: reader.field_of(key), why });
            }
        }
        Ok(Self {
            place,
            options: image_options(reader)?,
            mounter: reader.read("mounter", mounter_of)?.unwrap_or(mounter),
            map_options: reader.read("mapOptions", kernel_options)?.unwrap_or_default(),
            unmap_options: reader.read("unmapOptions", unmap_options)?.unwrap_or_default(),
            fs_type: reader.one_of("fsType", &FS_TYPES)?.map(str::to_owned),
            mkfs_options: reader.read("mkfsOptions", mkfs_options)?.unwrap_or_default(),
            prefix: reader.read("volumeNamePrefix", prefix)?.unwrap_or_default(),
            template: reader.get("nameTemplate").map(NameTemplate::parse).transpose()?,
            auto_recovery: reader.one_of("lockRecovery", &["manual", "auto"])? == Some("auto"),
            flatten: reader.flag("flatten")?.unwrap_or(false),
            ignored,
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
        compare("clusterID", self.place.cluster.clone(), has.place.cluster.clone());
        compare("pool", self.place.path(), has.place.path());
        let pool = |p: &Self| p.options.data_pool.clone().unwrap_or_else(|| p.place.pool.clone());
        compare("dataPool", pool(self), pool(has));
        compare("imageFeatures", features_text(self.options.features), features_text(has.options.features));
        let layout = |o: &ImageOptions| format!("{:?}/{:?}/{:?}", o.order, o.stripe_unit, o.stripe_count);
        compare("objectSize/stripeUnit/stripeCount", layout(&self.options), layout(&has.options));
        compare("mkfsOptions", self.mkfs_options.join(" "), has.mkfs_options.join(" "));
        compare("mounter", format!("{:?}", self.mounter), format!("{:?}", has.mounter));
        compare("mapOptions", self.map_options.join(","), has.map_options.join(","));
        found
    }
}

/// Feature bits as a StorageClass writes them.
pub(super) fn features_text(bits: Option<u64>) -> String {
    let bits = bits.unwrap_or(DEFAULT_FEATURES);
    let names = FEATURES.iter().filter(|(_, bit, _)| bits & bit != 0).map(|(name, ..)| *name);
    names.collect::<Vec<_>>().join(",")
}

fn place(config: &RbdConfig, reader: &Parameters<'_>) -> Result<Place> {
    let cluster = cluster(config, reader)?;
    let field = reader.field_of("pool");
    let pool = match (reader.get("pool"), cluster.pools.as_slice()) {
        (Some(pool), known) if known.is_empty() || known.iter().any(|p| p == pool) => pool,
        (Some(pool), known) => {
            return Err(Error::invalid(
                field,
                format!("{pool:?} is not configured; known: {}", known.join(", ")),
            ));
        }
        (None, [only]) => only,
        (None, known) => {
            return Err(Error::invalid(field, format!("must be given; known: {}", known.join(", "))));
        }
    };
    check_part(pool).map_err(|problem| Error::invalid(field, format!("{pool:?}: {problem}")))?;
    let namespace = reader.read("radosNamespace", |v| check_part(v).map(|()| v.to_owned()))?;
    Ok(Place {
        cluster: cluster.id.clone(),
        pool: pool.to_owned(),
        namespace: namespace.unwrap_or_else(|| cluster.namespace.clone()),
    })
}

fn cluster<'a>(config: &'a RbdConfig, reader: &Parameters<'_>) -> Result<&'a RbdCluster> {
    let names = || config.clusters.iter().map(|c| c.id.as_str()).collect::<Vec<_>>().join(", ");
    match (reader.get("clusterID"), config.clusters.as_slice()) {
        (Some(id), clusters) => clusters.iter().find(|c| c.id == id).ok_or_else(|| {
            let problem = format!("{id:?} is not a configured cluster; known: {}", names());
            Error::invalid(reader.field_of("clusterID"), problem)
        }),
        (None, [only]) => Ok(only),
        (None, _) => Err(Error::invalid(
            reader.field_of("clusterID"),
            format!("must be given, for several clusters are configured: {}", names()),
        )),
    }
}

fn image_options(reader: &Parameters<'_>) -> Result<ImageOptions> {
    let size =
        |text: &str| parse_size(text).map_err(|_| "write bytes, such as \"4194304\" or \"4Mi\"".to_owned());
    let object = reader.read("objectSize", |text| {
        let size = size(text)?;
        if size.is_power_of_two() && (1 << 12..=1 << 25).contains(&size) {
            return Ok(size);
        }
        Err("must be a power of two from 4 KiB to 32 MiB".into())
    })?;
    let unit = reader.read("stripeUnit", size)?;
    let count = reader.number::<u64>("stripeCount")?;
    if unit.is_some() != count.is_some() {
        let missing = if unit.is_some() { "stripeCount" } else { "stripeUnit" };
        return Err(Error::invalid(reader.field_of(missing), "must be given together with its twin"));
    }
    let whole = object.unwrap_or(1 << 22);
    if let Some(unit) = unit.filter(|unit| *unit < 512 || *unit > whole || whole % *unit != 0) {
        let problem = format!("{unit}: must be at least 512 and divide the object size of {whole} bytes");
        return Err(Error::invalid(reader.field_of("stripeUnit"), problem));
    }
    if count == Some(0) {
        return Err(Error::invalid(reader.field_of("stripeCount"), "must be at least 1"));
    }
    Ok(ImageOptions {
        features: Some(reader.read("imageFeatures", features)?.unwrap_or(DEFAULT_FEATURES)),
        order: object.map(|size| u64::from(size.trailing_zeros())),
        stripe_unit: unit,
        stripe_count: count,
        data_pool: reader.read("dataPool", |v| check_part(v).map(|()| v.to_owned()))?,
    })
}

fn features(text: &str) -> Result<u64, String> {
    let names: Vec<&str> = text.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    let mut bits = 1;
    for name in &names {
        let Some((_, bit, needs)) = FEATURES.iter().find(|(known, ..)| known == name) else {
            let known: Vec<_> = FEATURES.iter().map(|(name, ..)| *name).collect();
            return Err(format!("{name:?} is unknown; known: {}", known.join(", ")));
        };
        if let Some(needed) = needs.filter(|needed| !names.contains(needed)) {
            return Err(format!("{name} needs {needed}; add it"));
        }
        bits |= bit;
    }
    Ok(bits)
}

fn prefix(text: &str) -> Result<String, String> {
    check_part(text)?;
    if text.len() > 40 {
        return Err("at most 40 bytes".into());
    }
    Ok(text.to_owned())
}

/// How images are mapped; `rbd` is what Ceph's own driver calls the kernel's client.
fn mounter_of(text: &str) -> Result<Mounter, String> {
    match text {
        "krbd" | "rbd" => Ok(Mounter::Krbd),
        "fuse" => Ok(Mounter::Fuse),
        "rbd-nbd" => Err(
            "this driver does not use it; write `krbd`, or `fuse` for nodes without the kernel's module rbd"
                .into(),
        ),
        _ => Err("known: krbd, fuse".into()),
    }
}

fn encrypted(text: &str) -> Result<bool, String> {
    let read = if text.is_empty() { Some(false) } else { crate::parameters::flag(text) };
    read.ok_or_else(|| "write \"false\", or leave it out".to_owned())
}
