//! The node's side, without credentials: what it needs comes with the request, and what it formats is noted here.

use super::disks;
use super::handle::{Kind, parse_handle};
use super::params::DOCS;
use super::record::PERMIT;
use super::store::Store;
use crate::filesystem::mkfs_options;
use crate::parameters::{Ignored, field_of, is_key};
use crate::{
    Access, CinderDisk, Error, FsNote, NodeRequest, NodeVolume, Parameters, Permit, Result, StringMap,
    VolumeId,
};

/// `volumeAttributes` of a PersistentVolume, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attributes {
    fs_type: Option<String>,
    mkfs_options: Vec<String>,
    pub(super) ignored: Vec<Ignored>,
}

impl Attributes {
    /// Keys with a slash are other programs'. What else is not known was meant for another driver, and the volume is known
    /// by its handle alone.
    pub(super) fn parse(context: &StringMap) -> Result<Self> {
        const FIELD: &str = "volume_context";
        let is_known = |key: &str| ["fsType", "mkfsOptions"].iter().any(|known| is_key(known, key));
        let (known, others): (StringMap, StringMap) = context
            .iter()
            .filter(|(key, _)| !key.contains('/'))
            .map(|(key, value)| (key.clone(), value.clone()))
            .partition(|(key, _)| is_known(key));
        let reader = Parameters::new(FIELD, &known, &DOCS)?;
        let why = "a volume that exists has its type and zone, and is known by its handle";
        let ignored = |key: &String| Ignored { field: field_of(FIELD, key), why: why.to_owned() };
        Ok(Self {
            fs_type: reader.get("fsType").map(str::to_owned),
            mkfs_options: reader.read("mkfsOptions", mkfs_options)?.unwrap_or_default(),
            ignored: others.keys().map(ignored).collect(),
        })
    }
}

impl Store {
    /// How to get at a volume on this node.
    pub(super) fn access(&self, request: &NodeRequest<'_>) -> Result<NodeVolume> {
        let mut disk = self.disk(request.id)?;
        disk.at_least = request.publish_context.get("bytes").and_then(|text| text.parse().ok());
        let note = self.notes.of(&disk.id)?;
        let word = |key: &str| match request.publish_context.get(key) {
            Some(word) if !self.notes.is_used(&note, word)? => Ok(Some(word.clone())),
            _ => Ok::<_, Error>(None),
        };
        let attributes = Attributes::parse(request.context)?;
        self.told.tell("cinder", &attributes.ignored);
        let id = disk.id.clone();
        Ok(NodeVolume {
            access: Access::Cinder(Box::new(disk)),
            size: None,
            fs_type: attributes.fs_type,
            mkfs_options: attributes.mkfs_options,
            root_mode: None,
            // Noted on this node alone: that the volume was formatted on another one is seen on its disk.
            formatted: note.fs.file_system().map(str::to_owned),
            raw: note.fs.is_raw() || request.publish_context.contains_key("raw"),
            vouched: word("blank")?,
            permit: Permit {
                code: word("allowFormat")?,
                how: format!(
                    "`openstack volume set --property {PERMIT}=CODE {id}`, then delete the pod, so that the volume is attached anew"
                ),
            },
        })
    }

    /// How a volume that may be on this node is got at.
    pub(super) fn held(&self, id: &VolumeId) -> Result<Access> {
        Ok(Access::Cinder(Box::new(self.disk(id)?)))
    }

    fn disk(&self, id: &VolumeId) -> Result<CinderDisk> {
        let none = || Error::NotFound(format!("there is no volume {id}"));
        let handle = parse_handle(&id.0).map_err(|_| none())?;
        if handle.kind == Kind::Backup {
            return Err(none());
        }
        Ok(CinderDisk { id: handle.id, root: self.config.device_root.clone(), at_least: None })
    }

    /// Notes what is done with a volume's file system on this node, and forgets what has become of no use.
    pub(super) fn note(&self, id: &VolumeId, note: &FsNote) -> Result<()> {
        self.notes.take(&self.disk(id)?.id, note)?;
        self.forget_notes();
        Ok(())
    }

    /// Forgets what was noted of volumes that are not on this node any more.
    pub(super) fn forget_notes(&self) {
        let is_here = |id: &str| match &self.config.device_root {
            Some(root) => disks::linked(root, id).is_some(),
            None => !disks::with_serial(&self.config.root.join("sys"), id).is_empty(),
        };
        match self.notes.forget(is_here) {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "forgot notes of volumes that are not here any more"),
            Err(error) => tracing::warn!(%error, "notes of volumes that are not here any more stay"),
        }
    }
}
