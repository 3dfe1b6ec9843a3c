//! The `rbd` backend: images of Ceph clusters.
//!
//! ```text
//! <pool>[/<namespace>]/<image>     one volume; its image-meta holds
//!   volumectl.volume               the volume's record: whose it is, how it was asked for
//!   volumectl.fs                   the file system that was made on it
//!   volumectl.published/<node>     where ControllerPublishVolume has published it
//!   volumectl.client/<node>        as which client a node has it open
//!   volumectl.modified             the mutable parameters that it was given
//!   volumectl.claim                the node that alone may map it
//!   volumectl.turn                 changes with every publication and claim
//!   volumectl.growing              who is growing it
//!   volumectl.deleted              since when it is deleted and waits for the purge
//! objects in each pool or namespace, as maps of records:
//!   volumectl.intents              creations that have begun, clones to be flattened
//!   volumectl.snapshots            snapshots
//!   volumectl.groups               groups of snapshots
//!   volumectl.journal              fencing, step by step
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use tokio::sync::Semaphore;

use crate::parts::{any, ask_beside};
use crate::{
    Backend, Capability, Creation, Ctx, Error, Identity, NodeId, NodeState, Nodes, ParameterDoc, Part,
    Provisioner, Result, Secrets, StringMap, Volume, VolumeId, VolumeSpec,
};

mod admin;
mod alive;
mod attach;
mod bare;
mod blocks;
mod capacity;
mod claim;
mod clones;
mod config;
mod create;
mod delete;
mod errors;
mod expand;
mod fence;
mod ffi;
mod foreign;
mod group;
mod handle;
mod journal;
mod key;
mod list;
mod locks;
mod making;
mod mapping;
mod missing;
mod modify;
mod monitors;
mod node;
mod params;
mod plan;
mod purge;
#[cfg(test)]
pub(crate) mod reading;
mod record;
mod session;
mod sessions;
mod site;
mod snapshot;
mod stale;
mod store;
mod sweep;
mod tasks;
mod theirs;
mod torn;
mod traits;
mod trash;
mod wire;

pub use admin::{Admin, ImageDetails, ImageInfo};
pub use bare::Bare;
pub use config::{Mounter, Purge, RbdCluster, RbdConfig};
pub use fence::{FenceOptions, FencePlan, FenceReport, Step};
pub(crate) use ffi::exit;
pub use handle::{Handle, Place, parse_handle};
pub use key::{AES256K, is_aes256k};
pub use locks::{Alive, ImageLocks, LockOwner, MappingClaim, OpenBy};

use plan::Plan;
use store::Store;

/// The rbd backend.
pub struct Rbd {
    store: Arc<Store>,
    nodes: Option<Arc<dyn Nodes>>,
    calls: Arc<Calls>,
}

/// Bounds the calls into Ceph's libraries: one that never comes back keeps its place.
struct Calls {
    places: Arc<Semaphore>,
    overdue: AtomicUsize,
}

impl Rbd {
    /// Checks the configuration; connects to nothing. Something wrong: [`Error::Invalid`]. `nodes` knows how a node is.
    pub fn new(config: RbdConfig, nodes: Option<Arc<dyn Nodes>>) -> Result<Self> {
        let places = Arc::new(Semaphore::new(config.max_calls.max(1)));
        let calls = Arc::new(Calls { places, overdue: AtomicUsize::new(0) });
        Ok(Self { store: Arc::new(Store::new(config)?), nodes, calls })
    }

    /// The backend with all its features; attachment only if configured.
    pub fn backend(self: Arc<Self>) -> Backend {
        let backend = Backend::new(self.clone())
            .with_snapshots(self.clone())
            .with_clones(self.clone())
            .with_groups(self.clone())
            .with_expansion(self.clone())
            .with_listing(self.clone())
            .with_capacity(self.clone())
            .with_blocks(self.clone())
            .with_modify(self.clone())
            .with_measures(self.clone());
        if self.store.config.attach { backend.with_attachment(self) } else { backend }
    }

    /// Looks for what earlier processes left to do (the trash, interrupted creations and flattenings), now and every
    /// minute, on a thread of its own. For the controller.
    pub fn sweep_in_background(&self) {
        sweep::sweep_in_background(&self.store);
    }

    /// Runs work on a thread that may block, in bounded number and time. When the time is over the caller is answered,
    /// and the work ends at its next safe point.
    async fn run<T: Send + 'static>(
        &self,
        ctx: &Ctx,
        work: impl FnOnce(&Store, &Ctx) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        run(&self.store, &self.calls, ctx, work).await
    }

    /// [`Rbd::run`] for a call without a context: the user is that of the configuration.
    async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.run(&Ctx::new(), move |store, _| work(store)).await
    }

    /// How the nodes are that a volume is published to, and `node`. `None`: there is no Kubernetes to ask.
    async fn node_states(
        &self,
        ctx: &Ctx,
        id: &VolumeId,
        node: Option<&NodeId>,
    ) -> Result<Option<BTreeMap<String, NodeState>>> {
        let Some(nodes) = &self.nodes else { return Ok(None) };
        let wanted = id.clone();
        let published =
            self.run(ctx, move |store, ctx| Ok(store.usable(&wanted, ctx.secrets())?.1.nodes())).await?;
        let mut states = BTreeMap::new();
        for name in published.into_iter().chain(node.map(|node| node.0.clone())) {
            let state = nodes.state(&name).await;
            states.insert(name, state);
        }
        Ok(Some(states))
    }
}

async fn run<T: Send + 'static>(
    store: &Arc<Store>,
    calls: &Arc<Calls>,
    ctx: &Ctx,
    work: impl FnOnce(&Store, &Ctx) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (store, calls, ctx) = (store.clone(), calls.clone(), ctx.clone());
    {
        let limit = store.config.call_timeout;
        let overdue = |calls: &Calls| {
            Error::Unavailable(format!(
                "{} calls to Ceph have not come back and no more are made; see `ceph -s`, and repeat the call",
                calls.overdue.load(Ordering::Relaxed)
            ))
        };
        let place = tokio::time::timeout(limit, calls.places.clone().acquire_owned()).await;
        let place = place.map_err(|_| overdue(&calls))?.map_err(|_| overdue(&calls))?;
        let inner = ctx.clone();
        let mut task = tokio::task::spawn_blocking(move || {
            let (_place, _call) = (place, store.tasks.call());
            work(&store, &inner)
        });
        let ended = |e| Error::Internal(format!("the rbd backend's work ended early: {e}"));
        match tokio::time::timeout(limit, &mut task).await {
            Ok(done) => done.unwrap_or_else(|e| Err(ended(e))),
            Err(_) => {
                ctx.stop();
                calls.overdue.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    let _ = task.await;
                    calls.overdue.fetch_sub(1, Ordering::Relaxed);
                });
                Err(Error::Deadline(format!(
                    "not done in {} s at stage: {}; the cluster did not answer (see `ceph -s`); repeat the call",
                    limit.as_secs(),
                    ctx.current_stage()
                )))
            }
        }
    }
}

#[async_trait]
impl Provisioner for Rbd {
    fn kind(&self) -> &'static str {
        "rbd"
    }

    fn parameters(&self) -> &'static [ParameterDoc] {
        &params::DOCS
    }

    async fn check(&self) -> Result<()> {
        any(self.parts().await)
    }

    async fn parts(&self) -> Vec<Part> {
        let clusters = self.store.asked_clusters();
        if clusters.is_empty() {
            return vec![Part { name: String::new(), state: self.ask(|store| store.check(None)).await }];
        }
        let asked = clusters.into_iter().map(|(id, known)| {
            let (store, calls) = (self.store.clone(), self.calls.clone());
            let name = format!("cluster {id}");
            let look =
                async move { run(&store, &calls, &Ctx::new(), move |store, _| store.check(Some(&id))).await };
            (name, known, look)
        });
        ask_beside(asked.collect()).await
    }

    fn identity(&self, handle: &str) -> Identity {
        self.store.identity(handle)
    }

    fn supports(&self, capability: &Capability) -> Result<()> {
        plan::supports(capability)
    }

    fn prepare(&self, spec: VolumeSpec) -> Result<Box<dyn Creation>> {
        let plan = Plan::new(&self.store.config, spec)?;
        self.store.told.tell("rbd", &plan.params.ignored);
        Ok(Box::new(RbdCreation { store: self.store.clone(), calls: self.calls.clone(), plan }))
    }

    async fn delete(&self, ctx: &Ctx, id: &VolumeId) -> Result<()> {
        let id = id.clone();
        self.run(ctx, move |store, ctx| store.delete(ctx, &id)).await
    }

    async fn get(&self, id: &VolumeId) -> Result<Volume> {
        let id = id.clone();
        self.ask(move |store| Ok(store.show(&store.usable(&id, &Secrets::default())?.1))).await
    }

    async fn differs(&self, ctx: &Ctx, id: &VolumeId, parameters: &StringMap) -> Result<Option<String>> {
        let (id, parameters) = (id.clone(), parameters.clone());
        self.run(ctx, move |store, ctx| {
            let (_, found) = store.volume(&id, ctx.secrets())?;
            plan::class_differs(&store.config, &found, &parameters)
        })
        .await
    }
}

struct RbdCreation {
    store: Arc<Store>,
    calls: Arc<Calls>,
    plan: Plan,
}

#[async_trait]
impl Creation for RbdCreation {
    fn id(&self) -> &VolumeId {
        &self.plan.id
    }

    async fn run(self: Box<Self>, ctx: &Ctx) -> Result<Volume> {
        let plan = self.plan;
        let ctx = ctx.clone().with_secrets(plan.spec.secrets.clone());
        run(&self.store, &self.calls, &ctx, move |store, ctx| store.create(ctx, &plan)).await
    }
}
