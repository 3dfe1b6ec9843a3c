//! A CreateVolume request, checked without asking the cluster.

use super::config::RbdConfig;
use super::handle::Handle;
use super::params::{DOCS, Mutable, Params};
use super::record::Found;
use crate::filesystem::{supports_disk, wished};
use crate::parameters::canonical;
use crate::record::{compare_disk, compare_wish};
use crate::{AccessType, Capability, Result, StringMap, VolumeId, VolumeSpec, key_for};

/// What is to be made.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) handle: Handle,
    pub(super) id: VolumeId,
    pub(super) spec: VolumeSpec,
    pub(super) params: Params,
    pub(super) block: bool,
    /// The capability's or the parameter's.
    pub(super) fs_type: Option<String>,
    /// Nobody else makes an image of this name, so an image of it without a record is ours, half made.
    pub(super) unique: bool,
}

impl Plan {
    pub(super) fn new(config: &RbdConfig, mut spec: VolumeSpec) -> Result<Self> {
        Mutable::parse(&spec.mutable_parameters)?;
        let mut parameters = spec.parameters.clone();
        parameters.extend(spec.mutable_parameters.clone());
        let params = Params::parse(config, &parameters)?;
        spec.parameters = canonical(&spec.parameters, &DOCS);
        spec.mutable_parameters = canonical(&spec.mutable_parameters, &DOCS);
        for capability in &spec.capabilities {
            supports(capability)?;
        }
        let name = match &params.template {
            Some(template) => format!("{}{}", params.prefix, template.render(&spec.pvc, &spec.name)?),
            None => format!("{}{}", params.prefix, key_for(&spec.name)),
        };
        let handle = Handle::new(params.place.clone(), name)?;
        Ok(Self {
            id: VolumeId(handle.to_string()),
            block: spec.capabilities.iter().any(|it| it.access == AccessType::Block),
            fs_type: wished(&spec.capabilities, params.fs_type.as_deref())?,
            unique: is_unique(&handle.name),
            handle,
            spec,
            params,
        })
    }

    /// What of a volume made before differs from this plan; `None`: nothing.
    pub(super) fn differs(&self, config: &RbdConfig, found: &Found) -> Result<Option<String>> {
        let (spec, record) = (&self.spec, &found.record);
        let mut differences = self.params.differences(&Params::parse(config, &record.parameters)?);
        compare_wish(&mut differences, spec, found.header.size, record.source.as_ref());
        let (asked, has) = ((self.block, &self.fs_type), (record.block, &record.fs_type));
        compare_disk(&mut differences, asked, has);
        Ok((!differences.is_empty()).then(|| differences.join(", ")))
    }
}

/// Whether a name has a UUID in it (RFC 9562, the text form), as `pvc-<uid>` of Kubernetes has.
pub(super) fn is_unique(name: &str) -> bool {
    let is_uuid = |text: &[u8]| {
        text.iter().enumerate().all(|(i, byte)| match i {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
    };
    name.as_bytes().windows(36).any(is_uuid)
}

/// In what a volume that exists differs from a StorageClass's parameters; `None`: in nothing.
pub(super) fn class_differs(config: &RbdConfig, found: &Found, asked: &StringMap) -> Result<Option<String>> {
    let asked = Params::parse(config, asked)?;
    let mut differences = asked.differences(&Params::parse(config, &found.record.parameters)?);
    if asked.fs_type.is_some() && asked.fs_type != found.record.fs_type {
        differences.push(format!("fsType (it has {:?}; asked: {:?})", found.record.fs_type, asked.fs_type));
    }
    Ok((!differences.is_empty()).then(|| differences.join(", ")))
}

/// Why a volume cannot be used so.
pub(super) fn supports(capability: &Capability) -> Result<()> {
    supports_disk(capability, "image", "volumeMode Block")
}
