//! CreateSnapshot, DeleteSnapshot and GetSnapshot.

use csi_proto::v1 as pb;
use provisioners::{Ctx, Result, Secrets, SnapshotSpec};

use crate::convert;
use crate::driver::Service;
use crate::flight::Mode;
use crate::validate::{self, MAX_STRING};

impl Service {
    pub(super) async fn snapshot(
        &self,
        mut request: pb::CreateSnapshotRequest,
    ) -> Result<pb::CreateSnapshotResponse> {
        let secrets = Secrets::new(std::mem::take(&mut request.secrets));
        let source = validate::text("source_volume_id", &request.source_volume_id, MAX_STRING)?;
        let name = validate::text("name", &request.name, MAX_STRING)?;
        validate::map("parameters", &request.parameters)?;
        let snapshots = self.feature(self.backend.snapshots.as_ref(), "CreateSnapshot")?.clone();
        let (_, parameters) = convert::split_parameters(&request.parameters);
        let spec = SnapshotSpec { name: name.to_owned(), source: source.into(), parameters, secrets };
        let id = snapshots.snapshot_id(&spec)?;
        let holds = vec![self.hold_snapshot(Mode::Alone, &id), self.hold_volume(Mode::Copy, &spec.source)];
        let snapshot =
            self.single("CreateSnapshot", &request, holds, |ctx| async move {
                snapshots.snapshot(&ctx, spec).await
            })
            .await?;
        Ok(pb::CreateSnapshotResponse { snapshot: Some(convert::snapshot(&snapshot)) })
    }

    pub(super) async fn remove_snapshot(
        &self,
        mut request: pb::DeleteSnapshotRequest,
    ) -> Result<pb::DeleteSnapshotResponse> {
        let secrets = Secrets::new(std::mem::take(&mut request.secrets));
        let id = validate::text("snapshot_id", &request.snapshot_id, MAX_STRING)?.into();
        let snapshots = self.feature(self.backend.snapshots.as_ref(), "DeleteSnapshot")?.clone();
        let holds = vec![self.hold_snapshot(Mode::Alone, &id)];
        self.single("DeleteSnapshot", &request, holds, |ctx| async move {
            snapshots.delete_snapshot(&ctx.with_secrets(secrets), &id).await
        })
        .await?;
        Ok(pb::DeleteSnapshotResponse {})
    }

    pub(super) async fn one_snapshot(
        &self,
        mut request: pb::GetSnapshotRequest,
    ) -> Result<pb::GetSnapshotResponse> {
        let ctx = Ctx::new().with_secrets(Secrets::new(std::mem::take(&mut request.secrets)));
        let id = validate::text("snapshot_id", &request.snapshot_id, MAX_STRING)?.into();
        let snapshots = self.feature(self.backend.snapshots.as_ref(), "GetSnapshot")?;
        let snapshot = snapshots.get_snapshot(&ctx, &id).await?;
        Ok(pb::GetSnapshotResponse { snapshot: Some(convert::snapshot(&snapshot)) })
    }
}
