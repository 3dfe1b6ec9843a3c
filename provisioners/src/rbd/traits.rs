//! The optional traits: each call goes to the same function of [`super::store::Store`], on a blocking thread.

use std::sync::PoisonError;

use async_trait::async_trait;

use super::Rbd;
use super::store::Store;
use crate::{
    Access, Attachment, Block, Blocks, Capacity, CapacityQuery, CapacityRange, CapacityReport, ChangedBlocks,
    Clones, Ctx, Error, ExpandOutcome, Expansion, FsNote, Gauge, GroupSnapshot, GroupSnapshots, GroupSpec,
    Listing, Measures, Modify, NodeAccess, NodeId, NodeRequest, NodeVolume, Page, PublishRequest, Result,
    Secrets, Snapshot, SnapshotId, SnapshotSpec, Snapshots, StringMap, Volume, VolumeId,
};

/// So many ranges wait for a slow reader before the work waits, too.
const RANGES: usize = 256;

#[async_trait]
impl Snapshots for Rbd {
    fn snapshot_id(&self, spec: &SnapshotSpec) -> Result<SnapshotId> {
        Store::snapshot_handle(spec).map(|handle| SnapshotId(handle.to_string()))
    }

    async fn snapshot(&self, ctx: &Ctx, spec: SnapshotSpec) -> Result<Snapshot> {
        let ctx = ctx.clone().with_secrets(spec.secrets.clone());
        self.run(&ctx, move |store, ctx| store.snapshot(ctx, &spec)).await
    }

    async fn delete_snapshot(&self, ctx: &Ctx, id: &SnapshotId) -> Result<()> {
        let id = id.clone();
        self.run(ctx, move |store, ctx| store.delete_snapshot(ctx, &id)).await
    }

    async fn get_snapshot(&self, ctx: &Ctx, id: &SnapshotId) -> Result<Snapshot> {
        let id = id.clone();
        self.run(ctx, move |store, ctx| store.get_snapshot(ctx, &id)).await
    }

    async fn list_snapshots(
        &self,
        ctx: &Ctx,
        source: Option<&VolumeId>,
        after: Option<&str>,
        max: usize,
    ) -> Result<Page<Snapshot>> {
        let (source, after) = (source.cloned(), after.map(str::to_owned));
        self.run(ctx, move |store, ctx| store.list_snapshots(ctx, source.as_ref(), after.as_deref(), max))
            .await
    }
}

impl Clones for Rbd {}

#[async_trait]
impl GroupSnapshots for Rbd {
    fn group_id(&self, spec: &GroupSpec) -> Result<String> {
        Store::group_handle(spec).map(|handle| handle.to_string())
    }

    async fn snapshot_group(&self, ctx: &Ctx, spec: GroupSpec) -> Result<GroupSnapshot> {
        let ctx = ctx.clone().with_secrets(spec.secrets.clone());
        self.run(&ctx, move |store, ctx| store.snapshot_group(ctx, &spec)).await
    }

    async fn delete_group(&self, ctx: &Ctx, id: &str, members: &[SnapshotId]) -> Result<()> {
        let (id, members) = (id.to_owned(), members.to_vec());
        self.run(ctx, move |store, ctx| store.delete_group(ctx, &id, &members)).await
    }

    async fn get_group(&self, ctx: &Ctx, id: &str, members: &[SnapshotId]) -> Result<GroupSnapshot> {
        let (id, members) = (id.to_owned(), members.to_vec());
        self.run(ctx, move |store, ctx| store.get_group(ctx, &id, &members)).await
    }
}

#[async_trait]
impl Expansion for Rbd {
    async fn expand(&self, ctx: &Ctx, id: &VolumeId, range: CapacityRange) -> Result<ExpandOutcome> {
        let id = id.clone();
        self.run(ctx, move |store, ctx| store.expand(ctx, &id, range)).await
    }
}

#[async_trait]
impl Attachment for Rbd {
    async fn publish(&self, ctx: &Ctx, id: &VolumeId, request: &PublishRequest) -> Result<StringMap> {
        let states = self.node_states(ctx, id, Some(&request.node)).await?;
        let (id, request) = (id.clone(), request.clone());
        self.run(ctx, move |store, ctx| store.publish(ctx, &id, &request, states.as_ref())).await
    }

    async fn unpublish(&self, ctx: &Ctx, id: &VolumeId, node: Option<&NodeId>) -> Result<()> {
        let states = match self.node_states(ctx, id, node).await {
            Err(Error::NotFound(_)) => return Ok(()),
            other => other?,
        };
        let (id, node) = (id.clone(), node.cloned());
        self.run(ctx, move |store, ctx| store.unpublish(ctx, &id, node.as_ref(), states.as_ref())).await
    }
}

#[async_trait]
impl Listing for Rbd {
    async fn list(&self, after: Option<&str>, max: usize) -> Result<Page<Volume>> {
        let after = after.map(str::to_owned);
        self.ask(move |store| store.list(after.as_deref(), max)).await
    }
}

#[async_trait]
impl CapacityReport for Rbd {
    async fn capacity(&self, query: &CapacityQuery) -> Result<Capacity> {
        let query = query.clone();
        self.ask(move |store| store.capacity(&query)).await
    }
}

#[async_trait]
impl ChangedBlocks for Rbd {
    async fn blocks(
        &self,
        ctx: &Ctx,
        base: Option<&SnapshotId>,
        target: &SnapshotId,
        from: u64,
    ) -> Result<Blocks> {
        let (base, target) = (base.cloned(), target.clone());
        let found = self.run(ctx, move |store, ctx| store.compared(ctx, base.as_ref(), &target)).await?;
        let capacity = found.capacity;
        if from > capacity {
            return Err(Error::OutOfRange(format!(
                "starting_offset: {from} is beyond the snapshot's {capacity} bytes"
            )));
        }
        let (send, ranges) = tokio::sync::mpsc::channel(RANGES);
        tokio::task::spawn_blocking(move || {
            let each = |offset, size| send.blocking_send(Ok(Block { offset, size })).is_ok();
            if let Err(error) = found.stream(from, each) {
                let _ = send.blocking_send(Err(error));
            }
        });
        Ok(Blocks { capacity, ranges })
    }
}

#[async_trait]
impl Modify for Rbd {
    async fn modify(&self, ctx: &Ctx, id: &VolumeId, parameters: &StringMap) -> Result<()> {
        let (id, parameters) = (id.clone(), parameters.clone());
        self.run(ctx, move |store, ctx| store.modify(ctx, &id, &parameters)).await
    }
}

impl Measures for Rbd {
    fn gauges(&self) -> Vec<Gauge> {
        let mut gauges = self.store.tasks.gauges();
        let overdue = self.calls.overdue.load(std::sync::atomic::Ordering::Relaxed);
        let trouble = self.store.trouble.lock().unwrap_or_else(PoisonError::into_inner).len();
        #[allow(clippy::cast_precision_loss)]
        gauges.extend([
            Gauge {
                name: "rbd_clusters_in_trouble",
                help: "Clusters that the last list went without; the log names them",
                value: trouble as f64,
            },
            Gauge {
                name: "rbd_connections",
                help: "Connections to clusters that are open",
                value: self.store.sessions.open() as f64,
            },
            Gauge {
                name: "rbd_overdue_calls",
                help: "Calls into Ceph's libraries that were given up and have not come back",
                value: overdue as f64,
            },
        ]);
        gauges
    }
}

#[async_trait]
impl NodeAccess for Rbd {
    async fn access(&self, request: &NodeRequest<'_>) -> Result<NodeVolume> {
        let (id, attributes) = (request.id.clone(), request.context.clone());
        let ctx = Ctx::new().with_secrets(request.secrets.clone());
        self.run(&ctx, move |store, ctx| store.access(&id, &attributes, ctx.secrets())).await
    }

    async fn held(&self, id: &VolumeId) -> Result<Access> {
        Store::held(id)
    }

    async fn attached(&self, volume: &VolumeId, access: &Access, address: Option<&str>) -> Result<()> {
        let Access::Rbd(image) = access else { return Ok(()) };
        let (id, before, address) = (volume.clone(), image.watchers.clone(), address.map(str::to_owned));
        self.ask(move |store| store.mapped(&id, &before, address.as_deref())).await
    }

    async fn attaching(
        &self,
        volume: &VolumeId,
        access: &Access,
        clients: &[String],
        alone: bool,
    ) -> Result<()> {
        let Access::Rbd(image) = access else { return Ok(()) };
        let (id, clients, locked) = (volume.clone(), clients.to_vec(), image.locked);
        self.ask(move |store| store.before_mapping(&id, locked, &clients, alone)).await
    }

    async fn note(&self, id: &VolumeId, note: &FsNote) -> Result<()> {
        let (id, note) = (id.clone(), note.clone());
        self.ask(move |store| store.note(&id, &note)).await
    }

    async fn stored(&self, id: &VolumeId, secrets: &Secrets) -> Result<Option<Vec<(u64, u64)>>> {
        let (id, ctx) = (id.clone(), Ctx::new().with_secrets(secrets.clone()));
        self.run(&ctx, move |store, ctx| store.stored(&id, ctx.secrets())).await
    }
}
