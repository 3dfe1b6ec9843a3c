//! ControllerPublishVolume and ControllerUnpublishVolume.

use csi_proto::v1 as pb;
use provisioners::{NodeId, PublishRequest, Result, Secrets};

use crate::driver::Service;
use crate::flight::Mode;
use crate::validate::{self, MAX_NODE_ID};

impl Service {
    pub(super) async fn publish(
        &self,
        mut request: pb::ControllerPublishVolumeRequest,
    ) -> Result<pb::ControllerPublishVolumeResponse> {
        let secrets = Secrets::new(std::mem::take(&mut request.secrets));
        let id = validate::volume_id(&request.volume_id)?.into();
        let node = NodeId(validate::text("node_id", &request.node_id, MAX_NODE_ID)?.to_owned());
        let capability = validate::capability("volume_capability", request.volume_capability.as_ref())?;
        validate::map("volume_context", &request.volume_context)?;
        self.supports("volume_capability", std::slice::from_ref(&capability))?;
        let attachment = self.feature(self.backend.attachment.as_ref(), "ControllerPublishVolume")?.clone();
        let wish = PublishRequest {
            node,
            read_only: request.readonly || capability.mode.is_read_only(),
            capability,
        };
        let holds = vec![self.hold_volume(Mode::Alone, &id)];
        let publish_context = self
            .single("ControllerPublishVolume", &request, holds, |ctx| async move {
                attachment.publish(&ctx.with_secrets(secrets), &id, &wish).await
            })
            .await?;
        Ok(pb::ControllerPublishVolumeResponse { publish_context })
    }

    pub(super) async fn unpublish(
        &self,
        mut request: pb::ControllerUnpublishVolumeRequest,
    ) -> Result<pb::ControllerUnpublishVolumeResponse> {
        let secrets = Secrets::new(std::mem::take(&mut request.secrets));
        let id = validate::volume_id(&request.volume_id)?.into();
        let node = match request.node_id.as_str() {
            "" => None,
            name => Some(NodeId(validate::text("node_id", name, MAX_NODE_ID)?.to_owned())),
        };
        let attachment = self.feature(self.backend.attachment.as_ref(), "ControllerUnpublishVolume")?.clone();
        let holds = vec![self.hold_volume(Mode::Alone, &id)];
        self.single("ControllerUnpublishVolume", &request, holds, |ctx| async move {
            attachment.unpublish(&ctx.with_secrets(secrets), &id, node.as_ref()).await
        })
        .await?;
        Ok(pb::ControllerUnpublishVolumeResponse {})
    }
}
