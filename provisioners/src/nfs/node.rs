//! The node's side: what to mount.

use super::config::{check_path, check_server, plain_path, plain_server};
use super::params::UNMOUNT_POLICIES;
use super::store::Store;
use crate::access::NfsMount;
use crate::{Access, Error, NodeVolume, Permit, Result, StringMap, VolumeId};

impl Store {
    /// How a node gets at a volume: as its context says, else as its record says.
    pub(super) fn access(&self, id: &VolumeId, context: &StringMap) -> Result<NodeVolume> {
        let mount = if context.contains_key("server") || context.contains_key("share") {
            self.by_context(context)?
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

    /// `server`, `share`, `subdir`, `mountOptions` and `unmountPolicy`: also of volumes that were made by hand, as csi-driver-nfs has them.
    fn by_context(&self, context: &StringMap) -> Result<NfsMount> {
        let known = ["server", "share", "subdir", "subDir", "mountOptions", "unmountPolicy"];
        let field = |key: &str| format!("volume_context[{key:?}]");
        let own = |key: &&String| !known.contains(&key.as_str()) && !key.contains('/');
        if let Some(key) = context.keys().find(own) {
            return Err(Error::invalid(field(key), format!("unknown; known: {}", known.join(", "))));
        }
        let get = |key: &str| {
            context.get(key).ok_or_else(|| Error::invalid(field(key), "is required, beside server and share"))
        };
        let (server, share) = (get("server")?, get("share")?);
        check_server(server).map_err(|problem| Error::invalid(field("server"), problem))?;
        check_path(share).map_err(|problem| Error::invalid(field("share"), problem))?;
        let (server, share) = (plain_server(server), plain_path(share));
        let dir = context.get("subdir").or_else(|| context.get("subDir")).cloned().unwrap_or_default();
        if !dir.is_empty() {
            check_path(&format!("/{dir}")).map_err(|problem| Error::invalid(field("subdir"), problem))?;
        }
        let options = context.get("mountOptions").map(String::as_str).unwrap_or_default();
        let options = options.split(',').filter(|option| !option.is_empty()).map(str::to_owned).collect();
        let force = context.get("unmountPolicy").map_or("wait", String::as_str);
        if !UNMOUNT_POLICIES.contains(&force) {
            return Err(Error::invalid(field("unmountPolicy"), format!("{force:?}: write wait or force")));
        }
        let force = force == "force";
        let local = self.config.shares.iter().find(|spec| spec.server == server && spec.path == share);
        Ok(NfsMount { local: local.and_then(|spec| spec.local.clone()), server, share, dir, options, force })
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
