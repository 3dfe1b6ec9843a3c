//! A CreateVolume request, checked without asking the cloud.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::config::CinderConfig;
use super::params::{DOCS, Params};
use super::record::{ATTEMPT, CLUSTER, NAME, VolumeRecord, to_metadata};
use super::store::{Found, Store};
use crate::filesystem::{supports_disk, wished};
use crate::parameters::canonical;
use crate::record::{Publication, Requested, compare_disk, compare_wish};
use crate::{AccessMode, AccessType, Capability, Error, Result, Source, StringMap, VolumeId, VolumeSpec};

/// What is to be made.
#[derive(Debug)]
pub(super) struct Plan {
    /// The configured cloud's name, where one is asked for.
    pub(super) cloud: Option<String>,
    /// For keeping two calls of one name apart; the volume's own id is Cinder's to give.
    pub(super) id: VolumeId,
    /// The volume's name in Cinder.
    pub(super) display: String,
    pub(super) zone: Option<String>,
    pub(super) spec: VolumeSpec,
    pub(super) params: Params,
    pub(super) usual: Publication,
    /// The capability's or the parameter's.
    pub(super) fs_type: Option<String>,
}

impl Plan {
    pub(super) fn new(config: &CinderConfig, mut spec: VolumeSpec) -> Result<Self> {
        let params = Params::parse(&spec.parameters, &spec.mutable_parameters, &spec.pvc)?;
        spec.parameters = canonical(&spec.parameters, &DOCS);
        spec.mutable_parameters = canonical(&spec.mutable_parameters, &DOCS);
        spec.capabilities.iter().try_for_each(supports)?;
        let display = match &params.template {
            Some(template) => template.render(&spec.pvc, &spec.name)?,
            None => spec.name.clone(),
        };
        let cloud = params.cloud.clone().or_else(|| spec.secrets.get("cloud").map(str::to_owned));
        // Named or not, the first cloud is one.
        let named = cloud.as_deref().filter(|name| Some(*name) != config.first_cloud());
        let block = spec.capabilities.iter().any(|it| it.access == AccessType::Block);
        let mode = spec.capabilities.first().map_or(AccessMode::SingleNodeWriter, |it| it.mode);
        Ok(Self {
            id: VolumeId(format!("{}/name:{}", named.unwrap_or_default(), spec.name)),
            zone: zone(config, &params, &spec)?,
            fs_type: wished(&spec.capabilities, params.fs_type.as_deref())?,
            usual: Publication { read_only: false, mode, block },
            cloud,
            display,
            spec,
            params,
        })
    }

    /// Whether it is made for use as a raw block device.
    pub(super) fn is_block(&self) -> bool {
        self.usual.block
    }

    /// Whether more than one node is to have it.
    pub(super) fn is_shared(&self) -> bool {
        self.spec.capabilities.iter().any(|capability| capability.mode.is_multi_node())
    }

    /// The new volume's metadata: the user's tags, our record, and the attempt that makes it.
    pub(super) fn metadata(&self, owner: &str, attempt: String) -> Result<BTreeMap<String, String>> {
        let spec = &self.spec;
        let record = VolumeRecord {
            id: spec.name.clone(),
            pvc: spec.pvc.clone(),
            requested: Requested { required: spec.range.required, limit: spec.range.limit },
            parameters: spec.parameters.clone(),
            mutable: spec.mutable_parameters.clone(),
            source: spec.source.clone(),
            fs_type: self.fs_type.clone(),
            usual: self.usual.clone(),
            created: Timestamp::now(),
        };
        let mut metadata = self.params.tags.clone();
        metadata.insert(CLUSTER.into(), owner.to_owned());
        metadata.insert(NAME.into(), spec.name.clone());
        metadata.insert(ATTEMPT.into(), attempt);
        metadata.extend(to_metadata(&record)?);
        Ok(metadata)
    }

    /// What of a volume made before differs from this plan; `None`: nothing.
    pub(super) fn differs(&self, found: &Found) -> Result<Option<String>> {
        let record = found.record()?;
        let has = Params::parse(&record.parameters, &record.mutable, &record.pvc)?;
        let mut differences = self.params.differences(&has);
        // Spelled otherwise it is no other source.
        let asked = self.spec.source.as_ref();
        let source = record.source.as_ref().map(|has| asked.filter(|asked| same(asked, has)).unwrap_or(has));
        compare_wish(&mut differences, &self.spec, found.volume.bytes(), source);
        let asked = (self.usual.block, &self.fs_type);
        compare_disk(&mut differences, asked, (record.usual.block, &record.fs_type));
        if let (Some(asked), Some(has)) = (&self.zone, &found.volume.availability_zone)
            && asked != has
        {
            differences.push(format!("zone (it has {has}; asked: {asked})"));
        }
        Ok((!differences.is_empty()).then(|| differences.join(", ")))
    }
}

/// Whether two handles name one source.
fn same(a: &Source, b: &Source) -> bool {
    match (a, b) {
        (Source::Volume(a), Source::Volume(b)) => Store::identity(&a.0) == Store::identity(&b.0),
        (Source::Snapshot(a), Source::Snapshot(b)) => Store::identity(&a.0) == Store::identity(&b.0),
        _ => false,
    }
}

/// In what a volume that exists differs from a StorageClass's parameters; `None`: in nothing.
pub(super) fn class_differs(found: &Found, asked: &StringMap) -> Result<Option<String>> {
    let record = found.record()?;
    let asked = Params::parse(asked, &StringMap::new(), &record.pvc)?;
    let mut differences =
        asked.differences(&Params::parse(&record.parameters, &record.mutable, &record.pvc)?);
    if asked.fs_type.is_some() && asked.fs_type != record.fs_type {
        differences.push(format!("fsType (it has {:?}; asked: {:?})", record.fs_type, asked.fs_type));
    }
    Ok((!differences.is_empty()).then(|| differences.join(", ")))
}

/// The zone: the class's, else the first that the claim's topology prefers or requires.
fn zone(config: &CinderConfig, params: &Params, spec: &VolumeSpec) -> Result<Option<String>> {
    let Some(topology) = spec.topology.as_ref().filter(|_| !config.ignore_zone) else {
        return Ok(params.zone.clone());
    };
    let zones = |all: &[crate::Topology]| -> Vec<String> {
        all.iter().filter_map(|segments| segments.get(&config.topology_key).cloned()).collect()
    };
    let (required, preferred) = (zones(&topology.requisite), zones(&topology.preferred));
    match &params.zone {
        Some(zone) if !required.is_empty() && !required.contains(zone) => Err(Error::Exhausted(format!(
            "accessibility_requirements: parameters[\"availability\"] is {zone:?}, and the volume must be reachable from {}; use another class or zone",
            required.join(", ")
        ))),
        Some(zone) => Ok(Some(zone.clone())),
        None => Ok(preferred.into_iter().chain(required).next()),
    }
}

/// Why a volume cannot be used so.
pub(super) fn supports(capability: &Capability) -> Result<()> {
    supports_disk(capability, "volume", "volumeMode Block (and a multi-attach type)")
}
