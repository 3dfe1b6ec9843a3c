//! The node's side: what to mount.

use super::attributes;
use super::store::Store;
use crate::access::NfsMount;
use crate::{Access, NodeVolume, Permit, Result, StringMap, VolumeId};

impl Store {
    /// How a node gets at a volume: as its context says, else as its record says.
    pub(super) fn access(&self, id: &VolumeId, context: &StringMap) -> Result<NodeVolume> {
        let mount = if attributes::names_a_share(context) {
            let (mount, ignored) = attributes::mount(&self.config, context)?;
            self.told.tell("nfs", &ignored);
            mount
        } else {
            self.by_record(id)?
        };
        Ok(NodeVolume {
            access: Access::Nfs(Box::new(mount)),
            size: None,
            fs_type: None,
            mkfs_options: Vec::new(),
            root_mode: None,
            formatted: None,
            raw: false,
            vouched: None,
            permit: Permit::default(),
        })
    }

    fn by_record(&self, id: &VolumeId) -> Result<NfsMount> {
        let found = self.volume(id)?;
        let spec = &found.share.spec;
        Ok(NfsMount {
            server: spec.server.clone(),
            share: spec.path.clone(),
            dir: found.record.dir.clone(),
            options: found.options(),
            force: found.force(),
            local: spec.local.clone(),
        })
    }
}
