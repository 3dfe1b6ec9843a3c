//! The Node service: each RPC validates its request, asks the backend how to get at the volume, and has the host do it.

mod work;

use csi_proto::v1 as pb;
use pb::node_server::Node;
use provisioners::Result;
use tonic::{Request, Response, Status};

use crate::controller::rpc;
use crate::driver::{Service, open};
use crate::{capabilities, convert};

#[tonic::async_trait]
impl Node for Service {
    async fn node_stage_volume(
        &self,
        request: Request<pb::NodeStageVolumeRequest>,
    ) -> Result<Response<pb::NodeStageVolumeResponse>, Status> {
        rpc!(self, "NodeStageVolume", request, volume_id, stage)
    }

    async fn node_unstage_volume(
        &self,
        request: Request<pb::NodeUnstageVolumeRequest>,
    ) -> Result<Response<pb::NodeUnstageVolumeResponse>, Status> {
        rpc!(self, "NodeUnstageVolume", request, volume_id, unstage)
    }

    async fn node_publish_volume(
        &self,
        request: Request<pb::NodePublishVolumeRequest>,
    ) -> Result<Response<pb::NodePublishVolumeResponse>, Status> {
        rpc!(self, "NodePublishVolume", request, volume_id, publish_on_node)
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<pb::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<pb::NodeUnpublishVolumeResponse>, Status> {
        rpc!(self, "NodeUnpublishVolume", request, volume_id, unpublish_on_node)
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<pb::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<pb::NodeGetVolumeStatsResponse>, Status> {
        rpc!(self, "NodeGetVolumeStats", request, volume_id, stats)
    }

    async fn node_expand_volume(
        &self,
        request: Request<pb::NodeExpandVolumeRequest>,
    ) -> Result<Response<pb::NodeExpandVolumeResponse>, Status> {
        rpc!(self, "NodeExpandVolume", request, volume_id, expand_on_node)
    }

    async fn node_get_capabilities(
        &self,
        request: Request<pb::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<pb::NodeGetCapabilitiesResponse>, Status> {
        let capabilities = capabilities::node(&self.backend);
        let work = async { Ok(pb::NodeGetCapabilitiesResponse { capabilities }) };
        self.answer("NodeGetCapabilities", request.metadata(), "", work).await
    }

    async fn node_get_info(
        &self,
        request: Request<pb::NodeGetInfoRequest>,
    ) -> Result<Response<pb::NodeGetInfoResponse>, Status> {
        let work = async {
            // The backend may have to find out where it is, before it knows its zone.
            let node_id = self.backend.node.node_id().await?.unwrap_or_else(|| self.node_id.clone());
            let topology = self.backend.placement.as_ref().map(|p| p.topology());
            Ok(pb::NodeGetInfoResponse {
                node_id,
                max_volumes_per_node: self.backend.node.volume_limit().into(),
                accessible_topology: topology
                    .filter(|t| !t.is_empty())
                    .map(|t| convert::topology_segments(&t)),
            })
        };
        self.answer("NodeGetInfo", request.metadata(), "", work).await
    }
}
