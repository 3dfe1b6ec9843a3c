//! A CreateVolume request, checked without asking a server.

use super::config::NfsConfig;
use super::handle::Handle;
use super::params::{DOCS, Params};
use super::record::VolumeRecord;
use crate::parameters::canonical;
use crate::record::compare_wish;
use crate::size::{decide, decide_for_source};
use crate::{AccessType, Capability, Error, Result, StringMap, VolumeId, VolumeSpec, key_for};

/// The smallest volume.
const MINIMUM: (u64, &str) = (crate::size::MIB, "a directory");

/// What is to be made.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) handle: Handle,
    pub(super) id: VolumeId,
    pub(super) spec: VolumeSpec,
    pub(super) params: Params,
    /// The volume's directory below the share.
    pub(super) dir: String,
}

impl Plan {
    pub(super) fn new(config: &NfsConfig, mut spec: VolumeSpec) -> Result<Self> {
        let params = Params::parse(config, &spec.parameters, &spec.mutable_parameters)?;
        spec.parameters = canonical(&spec.parameters, &DOCS);
        spec.mutable_parameters = canonical(&spec.mutable_parameters, &DOCS);
        for capability in &spec.capabilities {
            supports(capability)?;
        }
        let key = key_for(&spec.name);
        let dir = match &params.template {
            Some(template) => template.render(&spec.pvc, &spec.name)?,
            None => key.clone(),
        };
        let handle = Handle::new(params.share.clone(), key)?;
        // Fails early where no size can be right.
        decide(spec.range, config.default_size, MINIMUM)?;
        Ok(Self { id: VolumeId(handle.to_string()), handle, spec, params, dir })
    }

    /// The size that the volume gets; `source`: of what it is filled from.
    pub(super) fn size(&self, config: &NfsConfig, source: Option<u64>) -> Result<u64> {
        match source {
            Some(source) => decide_for_source(self.spec.range, source, MINIMUM),
            None => decide(self.spec.range, config.default_size, MINIMUM),
        }
    }

    /// What of a volume made before differs from this plan; `None`: nothing.
    pub(super) fn differs(&self, config: &NfsConfig, record: &VolumeRecord) -> Result<Option<String>> {
        let original = Params::parse(config, &record.parameters, &record.mutable_parameters)?;
        let mut found = self.params.differences(&original);
        compare_wish(&mut found, &self.spec, record.capacity, record.source.as_ref());
        if self.dir != record.dir {
            found.push(format!("subDir (its directory is {:?}; asked: {:?})", record.dir, self.dir));
        }
        Ok((!found.is_empty()).then(|| found.join(", ")))
    }
}

/// In what a volume that exists differs from a StorageClass's parameters; `None`: in nothing.
pub(super) fn class_differs(
    config: &NfsConfig,
    record: &VolumeRecord,
    parameters: &StringMap,
) -> Result<Option<String>> {
    let asked = Params::parse(config, parameters, &record.mutable_parameters)?;
    let original = Params::parse(config, &record.parameters, &record.mutable_parameters)?;
    let mut found = asked.differences(&original);
    let dir = match &asked.template {
        Some(template) => template.render(&record.pvc, &record.name)?,
        None => key_for(&record.name),
    };
    if dir != record.dir {
        found.push(format!("subDir (it would be {dir:?})"));
    }
    Ok((!found.is_empty()).then(|| found.join(", ")))
}

/// Why a volume cannot be used so.
pub(super) fn supports(capability: &Capability) -> Result<()> {
    match &capability.access {
        AccessType::Block => Err(Error::invalid(
            "volume_capability.access_type",
            "block: an NFS volume is a directory; use volumeMode Filesystem",
        )),
        AccessType::Mount { fs_type, .. } if !["", "nfs", "nfs4"].contains(&fs_type.as_str()) => {
            Err(Error::invalid(
                "volume_capability.mount.fs_type",
                format!(
                    "{fs_type:?}: an NFS volume has no file system of its own; leave fsType out, or write nfs"
                ),
            ))
        }
        AccessType::Mount { .. } => Ok(()),
    }
}
