//! The optional traits: each call goes to the same function of [`super::store::Store`], on a blocking thread.

use async_trait::async_trait;

use super::store::Store;
use super::{Nfs, snapshot};
use crate::{
    Access, Capacity, CapacityQuery, CapacityRange, CapacityReport, Clones, Ctx, ExpandOutcome, Expansion,
    FsNote, Gauge, Listing, Measures, Modify, NodeAccess, NodeRequest, NodeVolume, Page, Result, Snapshot,
    SnapshotId, SnapshotSpec, Snapshots, StringMap, Volume, VolumeId,
};

#[async_trait]
impl Snapshots for Nfs {
    fn snapshot_id(&self, spec: &SnapshotSpec) -> Result<SnapshotId> {
        snapshot::handle(spec).map(|handle| SnapshotId(handle.to_string()))
    }

    async fn snapshot(&self, ctx: &Ctx, spec: SnapshotSpec) -> Result<Snapshot> {
        let ctx = ctx.clone();
        self.workers.change(move |store| store.snapshot(&ctx, &spec)).await
    }

    async fn delete_snapshot(&self, _: &Ctx, id: &SnapshotId) -> Result<()> {
        let id = id.clone();
        self.workers.change(move |store| store.delete_snapshot(&id)).await
    }

    async fn get_snapshot(&self, _: &Ctx, id: &SnapshotId) -> Result<Snapshot> {
        let id = id.clone();
        self.workers.ask(move |store| store.get_snapshot(&id)).await
    }

    async fn list_snapshots(
        &self,
        _: &Ctx,
        source: Option<&VolumeId>,
        after: Option<&str>,
        max: usize,
    ) -> Result<Page<Snapshot>> {
        Store::check_token(after)?;
        let (source, after) = (source.cloned(), after.map(str::to_owned));
        self.workers.ask(move |store| store.list_snapshots(source.as_ref(), after.as_deref(), max)).await
    }
}

impl Clones for Nfs {}

#[async_trait]
impl Expansion for Nfs {
    async fn expand(&self, ctx: &Ctx, id: &VolumeId, range: CapacityRange) -> Result<ExpandOutcome> {
        let (ctx, id) = (ctx.clone(), id.clone());
        self.workers.change(move |store| store.expand(&ctx, &id, range)).await
    }
}

#[async_trait]
impl Listing for Nfs {
    async fn list(&self, after: Option<&str>, max: usize) -> Result<Page<Volume>> {
        Store::check_token(after)?;
        let after = after.map(str::to_owned);
        self.workers.ask(move |store| store.list(after.as_deref(), max)).await
    }
}

#[async_trait]
impl CapacityReport for Nfs {
    async fn capacity(&self, query: &CapacityQuery) -> Result<Capacity> {
        let query = query.clone();
        self.workers.ask(move |store| store.capacity(&query)).await
    }
}

#[async_trait]
impl Modify for Nfs {
    async fn modify(&self, _: &Ctx, id: &VolumeId, parameters: &StringMap) -> Result<()> {
        let (id, parameters) = (id.clone(), parameters.clone());
        self.workers.change(move |store| store.modify(&id, &parameters)).await
    }
}

impl Measures for Nfs {
    fn gauges(&self) -> Vec<Gauge> {
        let shares = self.store.shares();
        let sum = |of: fn(&super::share::Share) -> u64| shares.iter().map(|share| of(share)).sum::<u64>();
        #[allow(clippy::cast_precision_loss, reason = "no count here needs more than 52 bits")]
        let gauge = |name, help, value: u64| Gauge { name, help, value: value as f64 };
        vec![
            gauge("nfs_calls", "Calls sent to NFS servers since the start.", sum(super::share::Share::calls)),
            gauge(
                "nfs_idle_connections",
                "Connections to NFS servers that wait for work.",
                sum(|share| share.idle() as u64),
            ),
            gauge(
                "nfs_shares_in_trouble",
                "Shares that could not be used at the last try.",
                self.store.troubles().len() as u64,
            ),
            gauge(
                "nfs_removals_pending",
                "Deleted directories that are not removed yet.",
                self.store.removals.pending() as u64,
            ),
            gauge(
                "nfs_removals_stuck",
                "Deleted directories of which the server does not let something be removed.",
                self.store.removals.stuck().len() as u64,
            ),
        ]
    }
}

#[async_trait]
impl NodeAccess for Nfs {
    async fn access(&self, request: &NodeRequest<'_>) -> Result<NodeVolume> {
        let (id, context) = (request.id.clone(), request.context.clone());
        self.workers.ask(move |store| store.access(&id, &context)).await
    }

    /// What is mounted on the node says all: also of volumes that were made by hand, whose handles are not ours.
    async fn held(&self, _: &VolumeId) -> Result<Access> {
        Ok(Access::Nfs(Box::default()))
    }

    /// There is nothing to format.
    async fn note(&self, _: &VolumeId, _: &FsNote) -> Result<()> {
        Ok(())
    }
}
