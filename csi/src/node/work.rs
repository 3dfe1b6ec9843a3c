//! What the RPCs of the Node service do.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use csi_proto::v1 as pb;
use provisioners::{
    Access, Capability, Error, NodeAccess, NodeRequest, NodeVolume, Result, Secrets, StringMap, VolumeId,
};
use tokio::runtime::Handle;

use crate::convert::{self, bytes};
use crate::driver::Service;
use crate::flight::Hold;
use crate::host::{FormatLog, PublishRequest, StageRequest, Usage, VolumeStats};
use crate::validate;

impl Service {
    pub(super) async fn stage(
        &self,
        mut request: pb::NodeStageVolumeRequest,
    ) -> Result<pb::NodeStageVolumeResponse> {
        let secrets = Secrets::new(std::mem::take(&mut request.secrets));
        let id = VolumeId(validate::volume_id(&request.volume_id)?.to_owned());
        let staging = validate::path("staging_target_path", &request.staging_target_path)?.to_path_buf();
        let capability = self.node_capability(request.volume_capability.as_ref())?;
        let (service, context) = (self.clone(), request.volume_context.clone());
        let publish_context = request.publish_context.clone();
        let holds = vec![Hold::Exclusive(key(&id))];
        self.single("NodeStageVolume", &request, holds, |ctx| async move {
            let volume = service.access(&id, &context, &publish_context, &secrets).await?;
            let log = Log {
                node: service.backend.node.clone(),
                id: id.clone(),
                access: volume.access.clone(),
                runtime: Handle::current(),
            };
            blocking(move || {
                let wish =
                    StageRequest { id: &id.0, volume: &volume, capability: &capability, staging: &staging };
                service.host.stage(&ctx, &wish, &log)
            })
            .await
        })
        .await?;
        Ok(pb::NodeStageVolumeResponse {})
    }

    /// NodeUnstageVolume. A volume that is gone is no obstacle: what is mounted is what is taken down.
    pub(super) async fn unstage(
        &self,
        request: pb::NodeUnstageVolumeRequest,
    ) -> Result<pb::NodeUnstageVolumeResponse> {
        let id = VolumeId(validate::volume_id(&request.volume_id)?.to_owned());
        let staging = validate::path("staging_target_path", &request.staging_target_path)?.to_path_buf();
        let service = self.clone();
        let holds = vec![Hold::Exclusive(key(&id))];
        self.single("NodeUnstageVolume", &request, holds, |ctx| async move {
            let access = match service.backend.node.held(&id).await {
                Ok(access) => Some(access),
                Err(Error::NotFound(_) | Error::Corrupt { .. }) => None,
                Err(error) => return Err(error),
            };
            blocking(move || service.host.unstage(&ctx, access.as_ref(), &staging)).await
        })
        .await?;
        Ok(pb::NodeUnstageVolumeResponse {})
    }

    pub(super) async fn publish_on_node(
        &self,
        mut request: pb::NodePublishVolumeRequest,
    ) -> Result<pb::NodePublishVolumeResponse> {
        request.secrets.clear();
        let id = VolumeId(validate::volume_id(&request.volume_id)?.to_owned());
        let target = validate::path("target_path", &request.target_path)?.to_path_buf();
        let staging = staging(&request.staging_target_path)?;
        let capability = self.node_capability(request.volume_capability.as_ref())?;
        let read_only = request.readonly || capability.mode.is_read_only();
        let service = self.clone();
        let holds = vec![Hold::Shared(key(&id)), Hold::Exclusive(format!("path {}", target.display()))];
        self.single("NodePublishVolume", &request, holds, |ctx| async move {
            let access = service.backend.node.held(&id).await?;
            blocking(move || {
                let (access, capability) = (&access, &capability);
                let wish = PublishRequest {
                    id: &id.0,
                    access,
                    capability,
                    staging: &staging,
                    target: &target,
                    read_only,
                };
                service.host.publish(&ctx, &wish)
            })
            .await
        })
        .await?;
        Ok(pb::NodePublishVolumeResponse {})
    }

    pub(super) async fn unpublish_on_node(
        &self,
        request: pb::NodeUnpublishVolumeRequest,
    ) -> Result<pb::NodeUnpublishVolumeResponse> {
        let id = VolumeId(validate::volume_id(&request.volume_id)?.to_owned());
        let target = validate::path("target_path", &request.target_path)?.to_path_buf();
        let service = self.clone();
        let holds = vec![Hold::Shared(key(&id)), Hold::Exclusive(format!("path {}", target.display()))];
        self.single("NodeUnpublishVolume", &request, holds, |ctx| async move {
            blocking(move || service.host.unpublish(&ctx, &target)).await
        })
        .await?;
        Ok(pb::NodeUnpublishVolumeResponse {})
    }

    /// NodeGetVolumeStats. It takes no hold: a volume that hangs must not make kubelet's other calls wait.
    pub(super) async fn stats(
        &self,
        request: pb::NodeGetVolumeStatsRequest,
    ) -> Result<pb::NodeGetVolumeStatsResponse> {
        let id = VolumeId(validate::volume_id(&request.volume_id)?.to_owned());
        validate::text("volume_path", &request.volume_path, validate::MAX_PATH)?;
        let access = self.backend.node.held(&id).await?;
        let (host, path) = (self.host.clone(), request.volume_path.clone());
        let stats = blocking(move || {
            host.require(&id.0, &access, Path::new(&path))?;
            host.stats(validate::path("volume_path", &path)?)
        })
        .await?;
        Ok(pb::NodeGetVolumeStatsResponse {
            volume_condition: Some(convert::condition(&stats.condition)),
            usage: usage(&stats),
        })
    }

    pub(super) async fn expand_on_node(
        &self,
        mut request: pb::NodeExpandVolumeRequest,
    ) -> Result<pb::NodeExpandVolumeResponse> {
        let secrets = Secrets::new(std::mem::take(&mut request.secrets));
        let id = VolumeId(validate::volume_id(&request.volume_id)?.to_owned());
        validate::text("volume_path", &request.volume_path, validate::MAX_PATH)?;
        let (access, size) = self.present(&id, &secrets).await?;
        if let Access::Cinder(_) = access {
            // The other backends have asked their server, or looked at their directory.
            let (host, access, name) = (self.host.clone(), access.clone(), id.0.clone());
            blocking(move || host.require(&name, &access, Path::new("/"))).await?;
        }
        let path = validate::path("volume_path", &request.volume_path)?.to_path_buf();
        let range = validate::range(request.capacity_range.as_ref())?;
        if let Some(size) = size.filter(|size| *size < range.required) {
            return Err(Error::OutOfRange(format!(
                "capacity_range: volume {id} has {size} bytes, {} are required; expand it at the controller first",
                range.required
            )));
        }
        let service = self.clone();
        let holds = vec![Hold::Exclusive(key(&id))];
        // Without leave to ask the server, the caller's word is what the controller has confirmed.
        let wanted = size.or(Some(range.required).filter(|size| *size > 0));
        let capacity = self
            .single("NodeExpandVolume", &request, holds, |ctx| async move {
                blocking(move || service.host.expand(&ctx, &access, wanted, &path)).await
            })
            .await?;
        Ok(pb::NodeExpandVolumeResponse { capacity_bytes: bytes(capacity.or(size).unwrap_or(0)) })
    }

    /// A volume that is on this node, with its size if the server can be asked: a node may have no key of its own.
    async fn present(&self, id: &VolumeId, secrets: &Secrets) -> Result<(Access, Option<u64>)> {
        let none = StringMap::new();
        match self.access(id, &none, &none, secrets).await {
            Ok(volume) => Ok((volume.access, volume.size)),
            Err(Error::Invalid { field, .. }) if field == "secrets" => {
                Ok((self.backend.node.held(id).await?, None))
            }
            Err(error) => Err(error),
        }
    }

    fn node_capability(&self, capability: Option<&pb::VolumeCapability>) -> Result<Capability> {
        let capability = validate::capability("volume_capability", capability)?;
        // "Exceeds capabilities" of NodeStageVolume and NodePublishVolume is FAILED_PRECONDITION.
        self.backend
            .provisioner
            .supports(&capability)
            .map_err(|e| Error::Refused(format!("volume_capability: {e}")))?;
        Ok(capability)
    }

    async fn access(
        &self,
        id: &VolumeId,
        context: &StringMap,
        publish_context: &StringMap,
        secrets: &Secrets,
    ) -> Result<NodeVolume> {
        self.backend.node.access(&NodeRequest { id, context, publish_context, secrets }).await
    }
}

fn key(id: &VolumeId) -> String {
    format!("volume {id} on this node")
}

/// The staging path of a publish: missing is FAILED_PRECONDITION by the specification ("Staging target path not set").
fn staging(path: &str) -> Result<PathBuf> {
    if path.is_empty() {
        let text = "staging_target_path: is required, because this driver stages volumes; call NodeStageVolume first";
        return Err(Error::Refused(text.into()));
    }
    validate::path("staging_target_path", path).map(PathBuf::from)
}

/// Runs work that blocks on a thread for it; a panic there is an internal error.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|e| Err(Error::Internal(format!("the work on this node ended early: {e}"))))
}

fn usage(stats: &VolumeStats) -> Vec<pb::VolumeUsage> {
    use pb::volume_usage::Unit;
    let entry = |u: &Usage, unit: Unit| pb::VolumeUsage {
        available: bytes(u.available),
        total: bytes(u.total),
        used: bytes(u.used),
        unit: unit.into(),
    };
    let inodes = stats.inodes.as_ref().map(|u| entry(u, Unit::Inodes));
    std::iter::once(entry(&stats.bytes, Unit::Bytes)).chain(inodes).collect()
}

/// Writes the begin and the end of a format into the volume's record.
struct Log {
    node: Arc<dyn NodeAccess>,
    id: VolumeId,
    access: Access,
    runtime: Handle,
}

impl FormatLog for Log {
    fn begin(&self, fs: &str) -> Result<()> {
        self.runtime.block_on(self.node.formatted(&self.id, fs, false))
    }

    fn done(&self, fs: &str) -> Result<()> {
        self.runtime.block_on(self.node.formatted(&self.id, fs, true))
    }

    fn attaching(&self, clients: &[String]) -> Result<()> {
        self.runtime.block_on(self.node.attaching(&self.id, clients))
    }

    fn attached(&self, client: Option<&str>) -> Result<()> {
        self.runtime.block_on(self.node.attached(&self.id, &self.access, client))
    }
}
