//! ListVolumes, ListSnapshots, ControllerGetVolume and GetCapacity.

use csi_proto::v1 as pb;
use provisioners::{
    CapacityQuery, Ctx, Error, Page, Result, Secrets, Snapshot, SnapshotId, Snapshots, Volume, VolumeId,
};

use crate::driver::Service;
use crate::validate::{self, MAX_STRING};
use crate::{convert, token};

const VOLUMES: &str = "volumes";
const SNAPSHOTS: &str = "snapshots";

impl Service {
    pub(super) async fn volumes(&self, request: pb::ListVolumesRequest) -> Result<pb::ListVolumesResponse> {
        let max = validate::max_entries(request.max_entries)?;
        let listing = self.feature(self.backend.listing.as_ref(), "ListVolumes")?;
        // A token that is not ours is ABORTED, which comes after what has no form.
        let after = token::decode(VOLUMES, &request.starting_token)?;
        let page = listing.list(after.as_deref(), max).await?;
        Ok(pb::ListVolumesResponse {
            next_token: next(VOLUMES, &page),
            entries: page.items.iter().map(volume_entry).collect(),
        })
    }

    pub(super) async fn one_volume(
        &self,
        request: pb::ControllerGetVolumeRequest,
    ) -> Result<pb::ControllerGetVolumeResponse> {
        use pb::controller_get_volume_response::VolumeStatus;
        let id = validate::volume_id(&request.volume_id)?.into();
        let volume = self.backend.provisioner.get(&id).await?;
        Ok(pb::ControllerGetVolumeResponse {
            volume: Some(convert::volume(&volume)),
            status: Some(VolumeStatus {
                published_node_ids: convert::published(&volume),
                volume_condition: Some(convert::condition(&volume.condition)),
            }),
        })
    }

    /// ListSnapshots; a filter that matches nothing is an empty list (CSI ListSnapshots).
    pub(super) async fn snapshots(
        &self,
        mut request: pb::ListSnapshotsRequest,
    ) -> Result<pb::ListSnapshotsResponse> {
        let ctx = Ctx::new().with_secrets(Secrets::new(std::mem::take(&mut request.secrets)));
        let max = validate::max_entries(request.max_entries)?;
        let source = optional("source_volume_id", &request.source_volume_id)?.map(VolumeId::from);
        let one = optional("snapshot_id", &request.snapshot_id)?.map(SnapshotId::from);
        let snapshots = self.feature(self.backend.snapshots.as_ref(), "ListSnapshots")?;
        let after = token::decode(SNAPSHOTS, &request.starting_token)?;
        let page = match one {
            Some(id) => self.only(snapshots.as_ref(), &ctx, &id, source.as_ref()).await?,
            None => snapshots.list_snapshots(&ctx, source.as_ref(), after.as_deref(), max).await?,
        };
        Ok(pb::ListSnapshotsResponse {
            next_token: next(SNAPSHOTS, &page),
            entries: page.items.iter().map(snapshot_entry).collect(),
        })
    }

    pub(super) async fn capacity(&self, request: pb::GetCapacityRequest) -> Result<pb::GetCapacityResponse> {
        let capabilities = match request.volume_capabilities.as_slice() {
            [] => Vec::new(),
            some => validate::capabilities("volume_capabilities", some)?,
        };
        validate::map("parameters", &request.parameters)?;
        let capacity = self.feature(self.backend.capacity.as_ref(), "GetCapacity")?;
        let (_, parameters) = convert::split_parameters(&request.parameters);
        let topology = request.accessible_topology.map(|t| t.segments);
        let free = capacity.capacity(&CapacityQuery { capabilities, parameters, topology }).await?;
        Ok(pb::GetCapacityResponse {
            available_capacity: convert::bytes(free.available),
            maximum_volume_size: free.maximum.map(convert::bytes),
            minimum_volume_size: free.minimum.map(convert::bytes),
        })
    }

    /// The page of the snapshot with a handle, if it is one of `source`.
    async fn only(
        &self,
        snapshots: &dyn Snapshots,
        ctx: &Ctx,
        id: &SnapshotId,
        source: Option<&VolumeId>,
    ) -> Result<Page<Snapshot>> {
        let of =
            |snapshot: &Snapshot, id: &VolumeId| self.identity(&id.0) == self.identity(&snapshot.source.0);
        let items = match snapshots.get_snapshot(ctx, id).await {
            Ok(snapshot) => Vec::from_iter(source.is_none_or(|id| of(&snapshot, id)).then_some(snapshot)),
            Err(Error::NotFound(_)) => Vec::new(),
            Err(error) => return Err(error),
        };
        Ok(Page { items, next: None })
    }
}

fn optional<'a>(field: &str, value: &'a str) -> Result<Option<&'a str>> {
    if value.is_empty() { Ok(None) } else { validate::text(field, value, MAX_STRING).map(Some) }
}

fn next<T>(list: &str, page: &Page<T>) -> String {
    page.next.as_deref().map(|after| token::encode(list, after)).unwrap_or_default()
}

fn volume_entry(volume: &Volume) -> pb::list_volumes_response::Entry {
    use pb::list_volumes_response::{Entry, VolumeStatus};
    Entry {
        volume: Some(convert::volume(volume)),
        status: Some(VolumeStatus {
            published_node_ids: convert::published(volume),
            volume_condition: Some(convert::condition(&volume.condition)),
        }),
    }
}

fn snapshot_entry(snapshot: &Snapshot) -> pb::list_snapshots_response::Entry {
    pb::list_snapshots_response::Entry { snapshot: Some(convert::snapshot(snapshot)) }
}
