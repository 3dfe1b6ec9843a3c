//! The Controller service: each RPC validates its request, says what it holds, and calls the backend.

mod lists;
mod publish;
mod snapshots;
mod volumes;

use csi_proto::v1 as pb;
use pb::controller_server::Controller;
use provisioners::Result;
use tonic::{Request, Response, Status};

use crate::driver::{Service, open};

/// An RPC whose work is a method of the driver: `rpc!(method, "Method", Request => Response, |r| subject, work)`.
macro_rules! rpc {
    ($self:ident, $name:literal, $request:ident, $subject:ident, $work:ident) => {{
        let (metadata, message) = open($request);
        let subject = message.$subject.clone();
        $self.answer($name, &metadata, &subject, $self.$work(message)).await
    }};
    ($self:ident, $name:literal, $request:ident, $work:ident) => {{
        let (metadata, message) = open($request);
        $self.answer($name, &metadata, "", $self.$work(message)).await
    }};
}
pub(crate) use rpc;

#[tonic::async_trait]
impl Controller for Service {
    async fn create_volume(
        &self,
        request: Request<pb::CreateVolumeRequest>,
    ) -> Result<Response<pb::CreateVolumeResponse>, Status> {
        rpc!(self, "CreateVolume", request, name, create)
    }

    async fn delete_volume(
        &self,
        request: Request<pb::DeleteVolumeRequest>,
    ) -> Result<Response<pb::DeleteVolumeResponse>, Status> {
        rpc!(self, "DeleteVolume", request, volume_id, delete)
    }

    async fn controller_publish_volume(
        &self,
        request: Request<pb::ControllerPublishVolumeRequest>,
    ) -> Result<Response<pb::ControllerPublishVolumeResponse>, Status> {
        rpc!(self, "ControllerPublishVolume", request, volume_id, publish)
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<pb::ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<pb::ControllerUnpublishVolumeResponse>, Status> {
        rpc!(self, "ControllerUnpublishVolume", request, volume_id, unpublish)
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<pb::ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<pb::ValidateVolumeCapabilitiesResponse>, Status> {
        rpc!(self, "ValidateVolumeCapabilities", request, volume_id, validate)
    }

    async fn list_volumes(
        &self,
        request: Request<pb::ListVolumesRequest>,
    ) -> Result<Response<pb::ListVolumesResponse>, Status> {
        rpc!(self, "ListVolumes", request, volumes)
    }

    async fn get_capacity(
        &self,
        request: Request<pb::GetCapacityRequest>,
    ) -> Result<Response<pb::GetCapacityResponse>, Status> {
        rpc!(self, "GetCapacity", request, capacity)
    }

    async fn controller_get_capabilities(
        &self,
        request: Request<pb::ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<pb::ControllerGetCapabilitiesResponse>, Status> {
        let capabilities = crate::capabilities::controller(&self.backend);
        let work = async { Ok(pb::ControllerGetCapabilitiesResponse { capabilities }) };
        self.answer("ControllerGetCapabilities", request.metadata(), "", work).await
    }

    async fn create_snapshot(
        &self,
        request: Request<pb::CreateSnapshotRequest>,
    ) -> Result<Response<pb::CreateSnapshotResponse>, Status> {
        rpc!(self, "CreateSnapshot", request, source_volume_id, snapshot)
    }

    async fn delete_snapshot(
        &self,
        request: Request<pb::DeleteSnapshotRequest>,
    ) -> Result<Response<pb::DeleteSnapshotResponse>, Status> {
        rpc!(self, "DeleteSnapshot", request, snapshot_id, remove_snapshot)
    }

    async fn list_snapshots(
        &self,
        request: Request<pb::ListSnapshotsRequest>,
    ) -> Result<Response<pb::ListSnapshotsResponse>, Status> {
        rpc!(self, "ListSnapshots", request, source_volume_id, snapshots)
    }

    async fn get_snapshot(
        &self,
        request: Request<pb::GetSnapshotRequest>,
    ) -> Result<Response<pb::GetSnapshotResponse>, Status> {
        rpc!(self, "GetSnapshot", request, snapshot_id, one_snapshot)
    }

    async fn controller_expand_volume(
        &self,
        request: Request<pb::ControllerExpandVolumeRequest>,
    ) -> Result<Response<pb::ControllerExpandVolumeResponse>, Status> {
        rpc!(self, "ControllerExpandVolume", request, volume_id, expand)
    }

    async fn controller_get_volume(
        &self,
        request: Request<pb::ControllerGetVolumeRequest>,
    ) -> Result<Response<pb::ControllerGetVolumeResponse>, Status> {
        rpc!(self, "ControllerGetVolume", request, volume_id, one_volume)
    }

    async fn controller_modify_volume(
        &self,
        request: Request<pb::ControllerModifyVolumeRequest>,
    ) -> Result<Response<pb::ControllerModifyVolumeResponse>, Status> {
        rpc!(self, "ControllerModifyVolume", request, volume_id, modify)
    }
}
