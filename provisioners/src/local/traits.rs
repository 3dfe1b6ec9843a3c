//! The optional traits: each call goes to the same function of [`super::store::Store`], on a blocking thread.

use async_trait::async_trait;

use super::store::Store;
use super::{ExpandedBy, Local};
use crate::{
    Access, Attachment, Capacity, CapacityQuery, CapacityRange, CapacityReport, Clones, Ctx, ExpandOutcome,
    Expansion, FsNote, GroupSnapshot, GroupSnapshots, GroupSpec, Listing, Modify, NodeAccess, NodeId,
    NodeRequest, NodeVolume, Page, Placement, PublishRequest, Result, Snapshot, SnapshotId, SnapshotSpec,
    Snapshots, StringMap, Topology, Volume, VolumeId,
};

#[async_trait]
impl Snapshots for Local {
    fn snapshot_id(&self, spec: &SnapshotSpec) -> Result<SnapshotId> {
        Store::snapshot_handle(spec).map(|handle| SnapshotId(handle.to_string()))
    }

    async fn snapshot(&self, ctx: &Ctx, spec: SnapshotSpec) -> Result<Snapshot> {
        let ctx = ctx.clone();
        self.workers.change(move |store| store.snapshot(&ctx, &spec)).await
    }

    async fn delete_snapshot(&self, ctx: &Ctx, id: &SnapshotId) -> Result<()> {
        let (ctx, id) = (ctx.clone(), id.clone());
        self.workers.change(move |store| store.delete_snapshot(&ctx, &id)).await
    }

    async fn get_snapshot(&self, _: &Ctx, id: &SnapshotId) -> Result<Snapshot> {
        let id = id.clone();
        self.workers.ask(move |store| Ok(store.find_snapshot_by_id(&id)?.show())).await
    }

    async fn list_snapshots(
        &self,
        _: &Ctx,
        source: Option<&VolumeId>,
        after: Option<&str>,
        max: usize,
    ) -> Result<Page<Snapshot>> {
        let (source, after) = (source.cloned(), after.map(str::to_owned));
        self.workers.ask(move |store| store.list_snapshots(source.as_ref(), after.as_deref(), max)).await
    }
}

impl Clones for Local {}

#[async_trait]
impl GroupSnapshots for Local {
    fn group_id(&self, spec: &GroupSpec) -> Result<String> {
        Store::group_handle(spec).map(|handle| handle.to_string())
    }

    async fn snapshot_group(&self, ctx: &Ctx, spec: GroupSpec) -> Result<GroupSnapshot> {
        let ctx = ctx.clone();
        self.workers.change(move |store| store.snapshot_group(&ctx, &spec)).await
    }

    async fn delete_group(&self, ctx: &Ctx, id: &str, members: &[SnapshotId]) -> Result<()> {
        let (ctx, id, members) = (ctx.clone(), id.to_owned(), members.to_vec());
        self.workers.change(move |store| store.delete_group(&ctx, &id, &members)).await
    }

    async fn get_group(&self, _: &Ctx, id: &str, members: &[SnapshotId]) -> Result<GroupSnapshot> {
        let (id, members) = (id.to_owned(), members.to_vec());
        self.workers.ask(move |store| store.get_group(&id, &members)).await
    }
}

#[async_trait]
impl Expansion for Local {
    async fn expand(&self, ctx: &Ctx, id: &VolumeId, range: CapacityRange) -> Result<ExpandOutcome> {
        let (ctx, id) = (ctx.clone(), id.clone());
        self.workers.change(move |store| store.expand(&ctx, &id, range)).await
    }

    fn is_on_node(&self) -> bool {
        self.store.config.expansion == ExpandedBy::Node
    }
}

#[async_trait]
impl Attachment for Local {
    async fn publish(&self, _: &Ctx, id: &VolumeId, request: &PublishRequest) -> Result<StringMap> {
        let (id, request) = (id.clone(), request.clone());
        self.workers.change(move |store| store.publish(&id, &request)).await
    }

    async fn unpublish(&self, _: &Ctx, id: &VolumeId, node: Option<&NodeId>) -> Result<()> {
        let (id, node) = (id.clone(), node.cloned());
        self.workers.change(move |store| store.unpublish(&id, node.as_ref())).await
    }
}

#[async_trait]
impl Listing for Local {
    async fn list(&self, after: Option<&str>, max: usize) -> Result<Page<Volume>> {
        let after = after.map(str::to_owned);
        self.workers.ask(move |store| store.list(after.as_deref(), max)).await
    }
}

#[async_trait]
impl CapacityReport for Local {
    async fn capacity(&self, query: &CapacityQuery) -> Result<Capacity> {
        let query = query.clone();
        self.workers.ask(move |store| store.capacity(&query)).await
    }
}

#[async_trait]
impl Modify for Local {
    async fn modify(&self, _: &Ctx, id: &VolumeId, parameters: &StringMap) -> Result<()> {
        let (id, parameters) = (id.clone(), parameters.clone());
        self.workers.change(move |store| store.modify(&id, &parameters)).await
    }
}

impl Placement for Local {
    fn topology(&self) -> Topology {
        self.store.topology()
    }
}

#[async_trait]
impl NodeAccess for Local {
    async fn access(&self, request: &NodeRequest<'_>) -> Result<NodeVolume> {
        let id = request.id.clone();
        self.workers.ask(move |store| store.access(&id)).await
    }

    async fn held(&self, id: &VolumeId) -> Result<Access> {
        let id = id.clone();
        self.workers.ask(move |store| store.access(&id).map(|volume| volume.access)).await
    }

    async fn note(&self, id: &VolumeId, note: &FsNote) -> Result<()> {
        let (id, note) = (id.clone(), note.clone());
        self.workers.change(move |store| store.note(&id, &note)).await
    }
}
