//! The GroupController service, served where the backend has group snapshots.

use csi_proto::v1 as pb;
use pb::group_controller_server::GroupController;
use provisioners::{Error, GroupSpec, Result, Secrets, SnapshotId, VolumeId};
use tonic::{Request, Response, Status};

use crate::controller::{exclusive_volume, rpc, snapshot_key};
use crate::convert;
use crate::driver::{Service, open};
use crate::flight::Hold;
use crate::validate::{self, MAX_STRING};

#[tonic::async_trait]
impl GroupController for Service {
    async fn group_controller_get_capabilities(
        &self,
        request: Request<pb::GroupControllerGetCapabilitiesRequest>,
    ) -> Result<Response<pb::GroupControllerGetCapabilitiesResponse>, Status> {
        let capabilities = crate::capabilities::group(&self.backend);
        let work = async { Ok(pb::GroupControllerGetCapabilitiesResponse { capabilities }) };
        self.answer("GroupControllerGetCapabilities", request.metadata(), "", work).await
    }

    async fn create_volume_group_snapshot(
        &self,
        request: Request<pb::CreateVolumeGroupSnapshotRequest>,
    ) -> Result<Response<pb::CreateVolumeGroupSnapshotResponse>, Status> {
        rpc!(self, "CreateVolumeGroupSnapshot", request, name, create_group)
    }

    async fn delete_volume_group_snapshot(
        &self,
        request: Request<pb::DeleteVolumeGroupSnapshotRequest>,
    ) -> Result<Response<pb::DeleteVolumeGroupSnapshotResponse>, Status> {
        rpc!(self, "DeleteVolumeGroupSnapshot", request, group_snapshot_id, delete_group)
    }

    async fn get_volume_group_snapshot(
        &self,
        request: Request<pb::GetVolumeGroupSnapshotRequest>,
    ) -> Result<Response<pb::GetVolumeGroupSnapshotResponse>, Status> {
        rpc!(self, "GetVolumeGroupSnapshot", request, group_snapshot_id, get_group)
    }
}

impl Service {
    async fn create_group(
        &self,
        mut request: pb::CreateVolumeGroupSnapshotRequest,
    ) -> Result<pb::CreateVolumeGroupSnapshotResponse> {
        let secrets = Secrets::new(std::mem::take(&mut request.secrets));
        let groups = self.feature(self.backend.groups.as_ref(), "CreateVolumeGroupSnapshot")?.clone();
        let name = validate::text("name", &request.name, MAX_STRING)?.to_owned();
        let sources = sources(&request.source_volume_ids)?;
        validate::map("parameters", &request.parameters)?;
        let (_, parameters) = convert::split_parameters(&request.parameters);
        let spec = GroupSpec { name, sources, parameters, secrets };
        let mut holds: Vec<_> = spec.sources.iter().map(|id| exclusive_volume(&id.0)).collect();
        holds.push(group_hold(&groups.group_id(&spec)?));
        let group = self
            .single("CreateVolumeGroupSnapshot", &request, holds, |ctx| async move {
                groups.snapshot_group(&ctx, spec).await
            })
            .await?;
        Ok(pb::CreateVolumeGroupSnapshotResponse { group_snapshot: Some(convert::group(&group)) })
    }

    async fn delete_group(
        &self,
        mut request: pb::DeleteVolumeGroupSnapshotRequest,
    ) -> Result<pb::DeleteVolumeGroupSnapshotResponse> {
        let secrets = Secrets::new(std::mem::take(&mut request.secrets));
        let groups = self.feature(self.backend.groups.as_ref(), "DeleteVolumeGroupSnapshot")?.clone();
        let id = validate::text("group_snapshot_id", &request.group_snapshot_id, MAX_STRING)?.to_owned();
        let members = members(&request.snapshot_ids)?;
        let mut holds: Vec<_> = members.iter().map(|id| Hold::Exclusive(snapshot_key(&id.0))).collect();
        holds.push(group_hold(&id));
        self.single("DeleteVolumeGroupSnapshot", &request, holds, |ctx| async move {
            groups.delete_group(&ctx.with_secrets(secrets), &id, &members).await
        })
        .await?;
        Ok(pb::DeleteVolumeGroupSnapshotResponse {})
    }

    async fn get_group(
        &self,
        request: pb::GetVolumeGroupSnapshotRequest,
    ) -> Result<pb::GetVolumeGroupSnapshotResponse> {
        let groups = self.feature(self.backend.groups.as_ref(), "GetVolumeGroupSnapshot")?;
        let id = validate::text("group_snapshot_id", &request.group_snapshot_id, MAX_STRING)?;
        let group = groups.get_group(id, &members(&request.snapshot_ids)?).await?;
        Ok(pb::GetVolumeGroupSnapshotResponse { group_snapshot: Some(convert::group(&group)) })
    }
}

fn group_hold(id: &str) -> Hold {
    Hold::Exclusive(format!("group snapshot {id}"))
}

fn sources(ids: &[String]) -> Result<Vec<VolumeId>> {
    if ids.is_empty() {
        return Err(Error::invalid("source_volume_ids", "is required and was empty"));
    }
    let mut sources = ids
        .iter()
        .map(|id| validate::text("source_volume_ids", id, MAX_STRING).map(VolumeId::from))
        .collect::<Result<Vec<_>>>()?;
    sources.sort();
    if let Some([twice, _]) = sources.array_windows().find(|[a, b]| a == b) {
        return Err(Error::invalid("source_volume_ids", format!("names the volume {twice} twice")));
    }
    Ok(sources)
}

fn members(ids: &[String]) -> Result<Vec<SnapshotId>> {
    ids.iter().map(|id| validate::text("snapshot_ids", id, MAX_STRING).map(SnapshotId::from)).collect()
}
