//! What the RPCs of the Node service do.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use csi_proto::v1 as pb;
use prost::Message as _;
use provisioners::{
    Access, AccessType, Capability, CapacityRange, Ctx, Error, FsNote, NodeAccess, NodeRequest, NodeVolume,
    Result, Secrets, StringMap, VolumeId,
};
use tokio::runtime::Handle;

use crate::convert::{self, bytes};
use crate::driver::Service;
use crate::flight::{Hold, Mode, Operation};
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
        let capability = validate::capability("volume_capability", request.volume_capability.as_ref())?;
        validate::map("publish_context", &request.publish_context)?;
        validate::map("volume_context", &request.volume_context)?;
        self.within_capabilities(&capability)?;
        let (service, context) = (self.clone(), request.volume_context.clone());
        let publish_context = request.publish_context.clone();
        let holds = vec![self.hold_volume(Mode::Alone, &id)];
        self.single("NodeStageVolume", &request, holds, |ctx| async move {
            let volume = service.access(&id, &context, &publish_context, &secrets).await?;
            let log = Log {
                secrets,
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
        let holds = vec![self.hold_volume(Mode::Alone, &id)];
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
        let staging = validate::optional_path("staging_target_path", &request.staging_target_path)?;
        let capability = validate::capability("volume_capability", request.volume_capability.as_ref())?;
        validate::map("publish_context", &request.publish_context)?;
        validate::map("volume_context", &request.volume_context)?;
        validate::persistent(&request.volume_context)?;
        // What is no longer a matter of form is FAILED_PRECONDITION.
        let staging = staging.ok_or_else(not_staged)?.to_path_buf();
        self.within_capabilities(&capability)?;
        let read_only = request.readonly || capability.mode.is_read_only();
        let service = self.clone();
        // A mounted file system is bound once more; a raw device's user begins to write.
        let mode = if capability.access == AccessType::Block { Mode::Open } else { Mode::Bind };
        let holds = vec![self.hold_volume(mode, &id), Hold::path(&target)];
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
        let holds = vec![self.hold_volume(Mode::Bind, &id), Hold::path(&target)];
        self.single("NodeUnpublishVolume", &request, holds, |ctx| async move {
            blocking(move || service.host.unpublish(&ctx, &target)).await
        })
        .await?;
        Ok(pb::NodeUnpublishVolumeResponse {})
    }

    /// NodeGetVolumeStats. It takes no hold: a volume that hangs must not make kubelet's other calls wait. Kubelet asks
    /// again and again, so equal questions join, and a few of them hang at most: they have places and a time of their
    /// own.
    pub(super) async fn stats(
        &self,
        mut request: pb::NodeGetVolumeStatsRequest,
    ) -> Result<pb::NodeGetVolumeStatsResponse> {
        let id = VolumeId(validate::volume_id(&request.volume_id)?.to_owned());
        validate::text("volume_path", &request.volume_path, validate::MAX_PATH)?;
        validate::optional_path("staging_target_path", &request.staging_target_path)?;
        request.staging_target_path.clear();
        let (service, path) = (self.clone(), request.volume_path.clone());
        let operation =
            Operation { name: "NodeGetVolumeStats", request: request.encode_to_vec(), holds: Vec::new() };
        let stats = self.questions.run(operation, |ctx| async move {
            ctx.stage(format!("looking at {path}"));
            let access = service.backend.node.held(&id).await?;
            blocking(move || service.host.stats(&id.0, &access, Path::new(&path))).await
        });
        let stats = stats.await?;
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
        validate::optional_path("staging_target_path", &request.staging_target_path)?;
        let range = validate::range(request.capacity_range.as_ref())?;
        if let Some(capability) = &request.volume_capability {
            validate::capability("volume_capability", Some(capability))?;
        }
        validate::ordered(range)?;
        let (service, path) = (self.clone(), PathBuf::from(&request.volume_path));
        let holds = vec![self.hold_volume(Mode::Alone, &id)];
        let capacity = self
            .single("NodeExpandVolume", &request, holds, |ctx| async move {
                service.expand_present(&ctx, id, range, path, &secrets).await
            })
            .await?;
        Ok(pb::NodeExpandVolumeResponse { capacity_bytes: bytes(capacity) })
    }

    /// Grows a volume that is on this node; its size then, 0 if that is not known.
    async fn expand_present(
        &self,
        ctx: &Ctx,
        id: VolumeId,
        range: CapacityRange,
        path: PathBuf,
        secrets: &Secrets,
    ) -> Result<u64> {
        let (access, size) = self.present(&id, secrets).await?;
        let size = match self.backend.expansion.clone().filter(|it| it.is_on_node()) {
            Some(expansion) => {
                let (host, name, at, to) = (self.host.clone(), id.0.clone(), path.clone(), access.clone());
                blocking(move || host.found_at(&name, &to, &at)).await?;
                Some(expansion.expand(ctx, &id, range).await?.capacity)
            }
            None => size,
        };
        if let Some(size) = size.filter(|size| *size < range.required) {
            return Err(Error::OutOfRange(format!(
                "capacity_range: volume {id} has {size} bytes, {} are required; expand it at the controller first",
                range.required
            )));
        }
        // Without leave to ask the server, the caller's word is what the controller has confirmed.
        let wanted = size.or(Some(range.required).filter(|size| *size > 0));
        let (host, ctx) = (self.host.clone(), ctx.clone());
        let capacity = blocking(move || host.expand(&ctx, &id.0, &access, wanted, &path)).await?;
        Ok(capacity.or(size).unwrap_or(0))
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

    /// "Exceeds capabilities" of NodeStageVolume and NodePublishVolume is FAILED_PRECONDITION.
    fn within_capabilities(&self, capability: &Capability) -> Result<()> {
        let refused = |e| Error::Refused(format!("volume_capability: {e}"));
        self.backend.provisioner.supports(capability).map_err(refused)
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

/// A publish without a staging path is FAILED_PRECONDITION by the specification ("Staging target path not set").
fn not_staged() -> Error {
    let text =
        "staging_target_path: is required, because this driver stages volumes; call NodeStageVolume first";
    Error::Refused(text.into())
}

/// Runs work that blocks on a thread for it; a panic there is an internal error. Only from within an operation: their
/// places bound how many threads of a driver can hang.
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

/// Writes what is done with a volume into its record.
struct Log {
    secrets: Secrets,
    node: Arc<dyn NodeAccess>,
    id: VolumeId,
    access: Access,
    runtime: Handle,
}

impl FormatLog for Log {
    fn note(&self, note: &FsNote) -> Result<()> {
        self.runtime.block_on(self.node.note(&self.id, note))
    }

    fn stored(&self) -> Result<Option<Vec<(u64, u64)>>> {
        self.runtime.block_on(self.node.stored(&self.id, &self.secrets))
    }

    fn attaching(&self, clients: &[String], alone: bool) -> Result<()> {
        self.runtime.block_on(self.node.attaching(&self.id, &self.access, clients, alone))
    }

    fn attached(&self, client: Option<&str>) -> Result<()> {
        self.runtime.block_on(self.node.attached(&self.id, &self.access, client))
    }
}
