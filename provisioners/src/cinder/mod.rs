//! The `cinder` backend: volumes of OpenStack Cinder, attached by Nova.
//!
//! ```text
//! a volume's metadata in Cinder
//!   volumectl.cluster      whose it is: the driver's clusterId
//!   volumectl.name         its CSI name
//!   volumectl.record[.N]   its record: how it was asked for
//!   volumectl.published    how it is published, where that is not as it was made for
//!   volumectl.deleted      since when it is deleted and waits for its snapshots, and its own id
//!   volumectl.attempt      which call has made it
//! a snapshot's or backup's
//!   volumectl.cluster, volumectl.name, volumectl.source, volumectl.attempt
//! on the node, <stateDir>/cinder/<id>.json: what was done there with its file system (`notes.rs`)
//! ```

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;

use crate::{
    Access, Attachment, Backend, Capability, Capacity, CapacityQuery, CapacityRange, CapacityReport, Clones,
    Creation, Ctx, ExpandOutcome, Expansion, FsNote, Gauge, Identity, Listing, Measures, Modify, NodeAccess,
    NodeId, NodeRequest, NodeVolume, Page, ParameterDoc, Part, Placement, Provisioner, PublishRequest,
    Result, Snapshot, SnapshotId, SnapshotSpec, Snapshots, Source, StringMap, Topology, Volume, VolumeId,
    VolumeSpec,
};

mod answer;
mod attach;
mod attempts;
mod bare;
mod blank;
mod cloud;
mod config;
mod create;
mod delete;
pub mod disks;
mod errors;
mod expand;
mod handle;
mod instance;
mod iso;
mod limit;
mod list;
mod listed;
mod node;
mod notes;
mod params;
mod plan;
#[cfg(test)]
pub(crate) mod reading;
mod record;
mod room;
mod session;
mod settings;
mod snapshot;
mod status;
mod store;
mod watch;

pub use bare::Bare;
pub use cloud::Service;
pub use config::{CinderCloud, CinderConfig, MetadataSource};

use instance::Instance;
use plan::Plan;
use store::Store;

/// How often volumes are looked for that waited for snapshots which are gone.
const SWEEP: Duration = Duration::from_secs(300);

/// The cinder backend.
pub struct Cinder {
    store: Arc<Store>,
    workers: crate::blocking::Workers<Store>,
    instance: OnceLock<Instance>,
    sweeping: AtomicBool,
    /// Kubelet's directory: disks mounted elsewhere are not pods'.
    kubelet: std::path::PathBuf,
}

impl Cinder {
    /// Checks the configuration; asks nobody. Something wrong: [`crate::Error::Invalid`].
    pub fn new(config: CinderConfig, kubelet: std::path::PathBuf) -> Result<Self> {
        let store = Arc::new(Store::new(config)?);
        Ok(Self {
            workers: crate::blocking::Workers::new("cinder", store.clone()),
            store,
            instance: OnceLock::new(),
            sweeping: AtomicBool::new(false),
            kubelet,
        })
    }

    /// The backend with all its features.
    pub fn backend(self: Arc<Self>) -> Backend {
        let backend = Backend::new(self.clone())
            .with_snapshots(self.clone())
            .with_clones(self.clone())
            .with_expansion(self.clone())
            .with_attachment(self.clone())
            .with_listing(self.clone())
            .with_capacity(self.clone())
            .with_modify(self.clone())
            .with_measures(self.clone());
        if self.store.config.ignore_zone { backend } else { backend.with_placement(self) }
    }

    /// Deletes volumes that waited for snapshots which are gone, every five minutes: what an interrupted call has left.
    /// Begins with the first Probe of a controller.
    fn sweep_in_background(&self) {
        if !self.store.config.controller || self.sweeping.swap(true, Ordering::Relaxed) {
            return;
        }
        let store = Arc::downgrade(&self.store);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(SWEEP).await;
                let Some(store) = store.upgrade() else { return };
                store.release_all().await;
            }
        });
    }

    /// Which server this node is; asked until somebody knows.
    async fn instance(&self) -> Result<Instance> {
        if let Some(known) = self.instance.get() {
            return Ok(known.clone());
        }
        let found = self.workers.ask(|store| Instance::find(&store.config)).await?;
        tracing::info!(server = %found.id, zone = ?found.zone, "this node");
        Ok(self.instance.get_or_init(|| found).clone())
    }
}

#[async_trait]
impl Provisioner for Cinder {
    fn kind(&self) -> &'static str {
        "cinder"
    }

    fn parameters(&self) -> &'static [ParameterDoc] {
        &params::DOCS
    }

    async fn check(&self) -> Result<()> {
        let mut states: Vec<_> = self.parts().await.into_iter().map(|part| part.state).collect();
        if states.is_empty() || states.iter().any(Result::is_ok) { Ok(()) } else { states.swap_remove(0) }
    }

    async fn parts(&self) -> Vec<Part> {
        self.sweep_in_background();
        self.store.parts().await
    }

    async fn describe(&self) -> Vec<String> {
        self.store.describe().await
    }

    fn identity(&self, handle: &str) -> Identity {
        Store::identity(handle)
    }

    fn supports(&self, capability: &Capability) -> Result<()> {
        plan::supports(capability)
    }

    fn prepare(&self, spec: VolumeSpec) -> Result<Box<dyn Creation>> {
        let plan = Plan::new(&self.store.config, spec)?;
        self.store.cloud_of_class(plan.cloud.as_deref())?;
        Ok(Box::new(CinderCreation { store: self.store.clone(), plan }))
    }

    async fn delete(&self, ctx: &Ctx, id: &VolumeId) -> Result<()> {
        self.store.explain(id, self.store.delete(ctx, id).await).await
    }

    async fn get(&self, id: &VolumeId) -> Result<Volume> {
        Ok(self.store.show(&self.store.volume(id).await?))
    }

    async fn differs(&self, _: &Ctx, id: &VolumeId, parameters: &StringMap) -> Result<Option<String>> {
        plan::class_differs(&self.store.volume(id).await?, parameters)
    }
}

struct CinderCreation {
    store: Arc<Store>,
    plan: Plan,
}

#[async_trait]
impl Creation for CinderCreation {
    fn id(&self) -> &VolumeId {
        &self.plan.id
    }

    async fn run(self: Box<Self>, ctx: &Ctx) -> Result<Volume> {
        let made = self.store.create(ctx, &self.plan).await;
        match &self.plan.spec.source {
            Some(Source::Volume(id)) => self.store.explain(id, made).await,
            Some(Source::Snapshot(id)) => self.store.explain_snapshot(id, made).await,
            None => made,
        }
    }
}

#[async_trait]
impl Snapshots for Cinder {
    fn snapshot_id(&self, spec: &SnapshotSpec) -> Result<SnapshotId> {
        self.store.snapshot_key(spec)
    }

    async fn snapshot(&self, ctx: &Ctx, spec: SnapshotSpec) -> Result<Snapshot> {
        let taken = self.store.snapshot(ctx, &spec).await;
        self.store.explain(&spec.source, taken).await
    }

    async fn delete_snapshot(&self, ctx: &Ctx, id: &SnapshotId) -> Result<()> {
        self.store.explain_snapshot(id, self.store.delete_snapshot(ctx, id).await).await
    }

    async fn get_snapshot(&self, _: &Ctx, id: &SnapshotId) -> Result<Snapshot> {
        self.store.get_snapshot(id).await
    }

    async fn list_snapshots(
        &self,
        _: &Ctx,
        source: Option<&VolumeId>,
        after: Option<&str>,
        max: usize,
    ) -> Result<Page<Snapshot>> {
        self.store.list_snapshots(source, after, max).await
    }
}

impl Clones for Cinder {}

#[async_trait]
impl Expansion for Cinder {
    async fn expand(&self, ctx: &Ctx, id: &VolumeId, range: CapacityRange) -> Result<ExpandOutcome> {
        self.store.explain(id, self.store.expand(ctx, id, range).await).await
    }
}

#[async_trait]
impl Attachment for Cinder {
    async fn publish(&self, ctx: &Ctx, id: &VolumeId, request: &PublishRequest) -> Result<StringMap> {
        self.store.explain(id, self.store.publish(ctx, id, request).await).await
    }

    async fn unpublish(&self, ctx: &Ctx, id: &VolumeId, node: Option<&NodeId>) -> Result<()> {
        self.store.explain(id, self.store.unpublish(ctx, id, node).await).await
    }
}

#[async_trait]
impl Listing for Cinder {
    async fn list(&self, after: Option<&str>, max: usize) -> Result<Page<Volume>> {
        self.store.list(after, max).await
    }
}

#[async_trait]
impl CapacityReport for Cinder {
    async fn capacity(&self, query: &CapacityQuery) -> Result<Capacity> {
        self.store.capacity(query).await
    }
}

#[async_trait]
impl Modify for Cinder {
    async fn modify(&self, ctx: &Ctx, id: &VolumeId, parameters: &StringMap) -> Result<()> {
        self.store.explain(id, self.store.modify(ctx, id, parameters).await).await
    }
}

impl Placement for Cinder {
    fn topology(&self) -> Topology {
        let zone = self.instance.get().and_then(|instance| instance.zone.clone());
        zone.map(|zone| (self.store.config.topology_key.clone(), zone)).into_iter().collect()
    }
}

impl Measures for Cinder {
    fn gauges(&self) -> Vec<Gauge> {
        #[allow(clippy::cast_precision_loss)]
        let sum = |of: &dyn Fn(&cloud::Cloud) -> u64| {
            self.store.clouds.iter().map(|cloud| of(cloud)).sum::<u64>() as f64
        };
        let waiters = |cloud: &cloud::Cloud| {
            let all = cloud.volumes.waiters() + cloud.snapshots.waiters() + cloud.backups.waiters();
            u64::try_from(all).unwrap_or(0)
        };
        let gauge = |name, help, value| Gauge { name, help, value };
        vec![
            gauge(
                "cinder_requests",
                "Requests sent to Cinder and Nova.",
                sum(&|c| c.counts.requests.load(Ordering::Relaxed)),
            ),
            gauge(
                "cinder_retries",
                "Requests that were sent again.",
                sum(&|c| c.counts.retries.load(Ordering::Relaxed)),
            ),
            gauge("cinder_polls", "Rounds of the pollers.", sum(&|c| c.counts.polls.load(Ordering::Relaxed))),
            gauge("cinder_logins", "Tokens asked for.", sum(&|c| c.counts.logins.load(Ordering::Relaxed))),
            gauge("cinder_waiting", "Operations that wait for Cinder or Nova.", sum(&waiters)),
        ]
    }
}

#[async_trait]
impl NodeAccess for Cinder {
    async fn access(&self, request: &NodeRequest<'_>) -> Result<NodeVolume> {
        self.store.access(request)
    }

    async fn held(&self, id: &VolumeId) -> Result<Access> {
        self.store.held(id)
    }

    async fn note(&self, id: &VolumeId, note: &FsNote) -> Result<()> {
        let (id, note) = (id.clone(), note.clone());
        self.workers.change(move |store| store.note(&id, &note)).await
    }

    async fn node_id(&self) -> Result<Option<String>> {
        let id = self.instance().await?.id;
        // Kubelet asks when it gets to know the driver. It is answered also when nothing could be forgotten.
        let forget = |store: &Store| {
            store.forget_notes();
            Ok(())
        };
        if let Err(error) = self.workers.change(forget).await {
            tracing::warn!(%error, "notes of volumes that are not here any more stay");
        }
        Ok(Some(id))
    }

    fn volume_limit(&self) -> u32 {
        let config = &self.store.config;
        let outside = limit::mounted_outside(&config.root, &self.kubelet);
        limit::volume_limit(&config.root, config.max_disks, |disk| {
            outside.iter().any(|name| name.starts_with(disk))
        })
    }
}
