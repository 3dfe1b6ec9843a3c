//! The node's side: where the data is, and what is known of the file system on it.

use super::params::VolumeType;
use super::store::Store;
use crate::{Access, Error, NodeVolume, Result, VolumeId};

impl Store {
    /// How to get at a volume on this node.
    pub(super) fn access(&self, id: &VolumeId) -> Result<NodeVolume> {
        let found = self.volume(id)?;
        // Longer than recorded: an expansion was interrupted, and the device will have the file's length.
        let size = found.whole()?;
        let params = self.params_of(&found.record)?;
        let path = found.data();
        let fs = found.record.fs;
        Ok(NodeVolume {
            access: match found.record.kind {
                VolumeType::File => Access::LoopFile { path },
                VolumeType::Directory => Access::Directory { path },
            },
            size: Some(size),
            fs_type: found.record.fs_type,
            mkfs_options: params.mkfs_options,
            root_mode: params.mode.filter(|_| params.kind == VolumeType::File),
            formatting: fs.formatting.is_some() && fs.formatted.is_none(),
            formatted: fs.formatted,
        })
    }

    /// Notes that a format begins or was completed.
    pub(super) fn formatted(&self, id: &VolumeId, fs_type: &str, done: bool) -> Result<()> {
        let found = self.volume(id)?;
        found.update(|record| {
            let before = record.fs.clone();
            if let Some(has) = record.fs.formatted.as_deref().filter(|has| !done || *has != fs_type) {
                return Err(Error::Refused(format!(
                    "volume {id} was formatted with {has} before and is not formatted again"
                )));
            }
            if done {
                record.fs.formatted = Some(fs_type.to_owned());
                record.fs.formatting = None;
            } else {
                record.fs.formatting = Some(fs_type.to_owned());
            }
            Ok(record.fs != before)
        })?;
        Ok(())
    }
}
