//! The GroupController service, served where the backend has group snapshots.

use std::collections::BTreeSet;

use csi_proto::v1 as pb;
use pb::group_controller_server::GroupController;
use provisioners::{Ctx, Error, GroupSpec, Identity, Result, Secrets, SnapshotId, VolumeId};
use tonic::{Request, Response, Status};

use crate::controller::rpc;
use crate::convert;
use crate::driver::{Service, open};
use crate::flight::{Hold, Mode};
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
        let name = validate::text("name", &request.name, MAX_STRING)?.to_owned();
        let sources = sources(&request.source_volume_ids, |id| self.identity(id))?;
        validate::map("parameters", &request.parameters)?;
        let groups = self.feature(self.backend.groups.as_ref(), "CreateVolumeGroupSnapshot")?.clone();
        let (_, parameters) = convert::split_parameters(&request.parameters);
        let spec = GroupSpec { name, sources, parameters, secrets };
        let mut holds: Vec<_> = spec.sources.iter().map(|id| self.hold_volume(Mode::Copy, id)).collect();
        holds.push(Hold::group(&self.identity(&groups.group_id(&spec)?)));
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
        let id = validate::text("group_snapshot_id", &request.group_snapshot_id, MAX_STRING)?.to_owned();
        let members = members(&request.snapshot_ids)?;
        let groups = self.feature(self.backend.groups.as_ref(), "DeleteVolumeGroupSnapshot")?.clone();
        let mut holds: Vec<_> = members.iter().map(|id| self.hold_snapshot(Mode::Alone, id)).collect();
        holds.push(Hold::group(&self.identity(&id)));
        self.single("DeleteVolumeGroupSnapshot", &request, holds, |ctx| async move {
            groups.delete_group(&ctx.with_secrets(secrets), &id, &members).await
        })
        .await?;
        Ok(pb::DeleteVolumeGroupSnapshotResponse {})
    }

    async fn get_group(
        &self,
        mut request: pb::GetVolumeGroupSnapshotRequest,
    ) -> Result<pb::GetVolumeGroupSnapshotResponse> {
        let ctx = Ctx::new().with_secrets(Secrets::new(std::mem::take(&mut request.secrets)));
        let id = validate::text("group_snapshot_id", &request.group_snapshot_id, MAX_STRING)?;
        let members = members(&request.snapshot_ids)?;
        let groups = self.feature(self.backend.groups.as_ref(), "GetVolumeGroupSnapshot")?;
        let group = groups.get_group(&ctx, id, &members).await?;
        Ok(pb::GetVolumeGroupSnapshotResponse { group_snapshot: Some(convert::group(&group)) })
    }
}

/// The volumes of a group. One that is named twice, however it is spelled: [`Error::Invalid`].
fn sources(ids: &[String], identity: impl Fn(&str) -> Identity) -> Result<Vec<VolumeId>> {
    if ids.is_empty() {
        return Err(Error::invalid("source_volume_ids", "is required and was empty"));
    }
    let mut sources = ids
        .iter()
        .map(|id| validate::text("source_volume_ids", id, MAX_STRING).map(VolumeId::from))
        .collect::<Result<Vec<_>>>()?;
    sources.sort();
    let mut seen = BTreeSet::new();
    match sources.iter().find(|id| !seen.insert(identity(&id.0))) {
        Some(twice) => Err(Error::invalid("source_volume_ids", format!("names the volume {twice} twice"))),
        None => Ok(sources),
    }
}

fn members(ids: &[String]) -> Result<Vec<SnapshotId>> {
    ids.iter().map(|id| validate::text("snapshot_ids", id, MAX_STRING).map(SnapshotId::from)).collect()
}
