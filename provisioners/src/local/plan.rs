//! A CreateVolume request, checked without touching the disk.

use super::config::LocalConfig;
use super::handle::Handle;
use super::params::{DOCS, Params, VolumeType};
use super::record::VolumeRecord;
use super::store::Store;
use crate::filesystem::{supports_access, wished};
use crate::parameters::canonical;
use crate::record::{compare_disk, compare_wish};
use crate::{
    AccessType, Capability, Error, Result, StringMap, Topology, TopologyRequest, VolumeId, VolumeSpec,
    key_for,
};

/// What is to be made.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) handle: Handle,
    pub(super) id: VolumeId,
    pub(super) spec: VolumeSpec,
    pub(super) params: Params,
    /// The name of the volume's directory in the root.
    pub(super) dir_name: String,
    pub(super) block: bool,
    /// The capability's or the parameter's.
    pub(super) fs_type: Option<String>,
}

impl Plan {
    pub(super) fn new(config: &LocalConfig, ours: &Topology, mut spec: VolumeSpec) -> Result<Self> {
        let params = Params::parse(config, &spec.parameters, &spec.mutable_parameters)?;
        spec.parameters = canonical(&spec.parameters, &DOCS);
        spec.mutable_parameters = canonical(&spec.mutable_parameters, &DOCS);
        for capability in &spec.capabilities {
            supports(capability)?;
        }
        let block = spec.capabilities.iter().any(|it| it.access == AccessType::Block);
        if block && params.kind == VolumeType::Directory {
            return Err(Error::invalid(
                "parameters[\"type\"]",
                "a directory cannot be a block device; use type \"file\" or volumeMode Filesystem",
            ));
        }
        check_topology(ours, spec.topology.as_ref())?;
        let key = key_for(&spec.name);
        let dir_name = match &params.template {
            Some(template) => template.render(&spec.pvc, &spec.name)?,
            None => key.clone(),
        };
        let root = params.root.clone();
        let handle = Handle { root, key };
        Ok(Self {
            id: VolumeId(handle.to_string()),
            fs_type: wished(&spec.capabilities, params.fs_type.as_deref())?
                .filter(|_| params.kind == VolumeType::File),
            handle,
            spec,
            params,
            dir_name,
            block,
        })
    }

    /// What of a volume made before differs from this plan; `None`: nothing.
    pub(super) fn differs(
        &self,
        store: &Store,
        record: &VolumeRecord,
        dir_name: &str,
    ) -> Result<Option<String>> {
        let original = Params::parse(&store.config, &record.parameters, &record.mutable_parameters)?;
        let mut found = param_differences(&self.params, &original);
        compare_wish(&mut found, &self.spec, record.capacity, record.source.as_ref());
        let (asked, has) = ((self.block, &self.fs_type), (record.block, &record.fs_type));
        compare_disk(&mut found, asked, has);
        if self.dir_name != dir_name {
            found.push(format!("nameTemplate (its directory is {dir_name:?}; asked: {:?})", self.dir_name));
        }
        Ok((!found.is_empty()).then(|| found.join(", ")))
    }
}

impl Store {
    /// In what a volume that exists differs from a StorageClass's parameters; `None`: in nothing.
    pub(super) fn differs(&self, id: &VolumeId, parameters: &StringMap) -> Result<Option<String>> {
        let found = self.volume(id)?;
        let record = &found.record;
        let asked = Params::parse(&self.config, parameters, &record.mutable_parameters)?;
        let original = Params::parse(&self.config, &record.parameters, &record.mutable_parameters)?;
        let mut differences = param_differences(&asked, &original);
        if asked.fs_type.is_some() && asked.fs_type != record.fs_type {
            differences.push(format!("fsType (it has {:?}; asked: {:?})", record.fs_type, asked.fs_type));
        }
        let dir_name = match &asked.template {
            Some(template) => template.render(&record.pvc, &record.name)?,
            None => key_for(&record.name),
        };
        if found.dir.file_name().is_none_or(|has| has != dir_name.as_str()) {
            differences.push(format!("nameTemplate (it would be {dir_name:?})"));
        }
        Ok((!differences.is_empty()).then(|| differences.join(", ")))
    }
}

/// Which parameters differ, with both values.
pub(super) fn param_differences(asked: &Params, has: &Params) -> Vec<String> {
    let mut found = Vec::new();
    let mut compare = |name: &str, asked: String, has: String| {
        if asked != has {
            found.push(format!("{name} (it has {has}; asked: {asked})"));
        }
    };
    let octal = |mode: Option<u32>| mode.map_or_else(|| "none".into(), |mode| format!("{mode:04o}"));
    compare("root", asked.root.clone(), has.root.clone());
    compare("type", asked.kind.word().into(), has.kind.word().into());
    compare("thick", asked.thick.to_string(), has.thick.to_string());
    compare("mode", octal(asked.mode), octal(has.mode));
    compare("uid", format!("{:?}", asked.uid), format!("{:?}", has.uid));
    compare("gid", format!("{:?}", asked.gid), format!("{:?}", has.gid));
    compare("mkfsOptions", asked.mkfs_options.join(" "), has.mkfs_options.join(" "));
    found
}

/// Why a volume cannot be used so.
pub(super) fn supports(capability: &Capability) -> Result<()> {
    if capability.mode.is_multi_node() {
        return Err(Error::invalid(
            "volume_capability.access_mode",
            format!(
                "{:?}: a local volume is on one node; use a single-node mode (ReadWriteOnce)",
                capability.mode
            ),
        ));
    }
    supports_access(&capability.access)
}

/// Whether a term of a topology requirement includes this node.
pub(super) fn includes(term: &Topology, ours: &Topology) -> bool {
    term.iter().all(|(key, value)| ours.get(key) == Some(value))
}

fn check_topology(ours: &Topology, wish: Option<&TopologyRequest>) -> Result<()> {
    let Some(wish) = wish else { return Ok(()) };
    // CSI: with requisite terms the volume must be in one of them; preferred ones are among those.
    let terms = if wish.requisite.is_empty() { &wish.preferred } else { &wish.requisite };
    if terms.is_empty() || terms.iter().any(|term| includes(term, ours)) {
        return Ok(());
    }
    Err(Error::Exhausted(format!(
        "accessibility_requirements: volumes can be made only where {ours:?}; the request allows only {terms:?}"
    )))
}
