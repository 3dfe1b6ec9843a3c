//! The `nfs` backend: directories below one or more exports of NFS servers.
//!
//! ```text
//! <share>/<dir>                      a volume: nothing of ours is in it
//! <share>/.volumectl/
//!   volumes/<key>.json               a volume's record
//!   intents/<key>.json               the record of one that is being made
//!   paths/<sha256 of dir>.json       the record again, where subDir made the directory's name
//!   tmp/                             what is being made: published by one rename, so complete or absent
//!   changes/<key>.<digest>.<round>   the right to follow a record: a symbolic link to a draft in tmp
//!   trash/                           what is being removed
//!   snapshots/<key>/                 snapshot.json and data/, a full copy
//!   retained/<key>.<number>.json     records of volumes that were deleted and kept
//!   shares/<hash>.json               other shares that classes have named (`anyShare`)
//! ```
//!
//! The controller speaks NFS itself (`client/`) and mounts nothing. Every change is one that the server does at once
//! (mkdir, link, rename), so that it is durable when it is answered (RFC 1813, 4.8) and of two who try, one succeeds.

use std::process::Child;
use std::sync::Arc;

use async_trait::async_trait;

use crate::blocking::Workers;
use crate::parameters::Ignored;
use crate::parts::any;
use crate::{
    Backend, Capability, Creation, Ctx, Identity, ParameterDoc, Part, Provisioner, Result, StringMap, Volume,
    VolumeId, VolumeSpec,
};

mod alias;
mod attributes;
mod bare;
mod capacity;
mod change;
mod changed;
mod client;
mod config;
mod copytree;
mod create;
mod delete;
mod draft;
mod erase;
#[cfg(test)]
mod erase_tests;
mod errors;
mod expand;
mod fill;
mod handle;
mod identity;
mod learnt;
mod list;
mod local;
mod modify;
mod nested;
mod node;
mod params;
mod place;
mod plan;
mod pool;
mod readback;
#[cfg(test)]
pub(crate) mod reading;
mod record;
mod remote;
mod removal;
mod renames;
mod share;
mod shares;
mod snapshot;
mod state;
mod store;
mod sweep;
mod traits;
mod tree;
mod usage;

#[cfg(test)]
mod tests;

pub use bare::Bare;
pub use client::Version;
pub use config::{NfsClient, NfsConfig, NfsShare};
pub use params::OnDelete;
pub use readback::{READ_BACK, read_back};
pub use remote::serve;

use plan::Plan;
use store::Store;

/// Starts helpers that have a share mounted, for `client: mount`. `csi/src/host/` implements it.
pub trait Mounted: Send + Sync + 'static {
    /// A process in a mount namespace of its own, in which the share is mounted: it runs [`serve`] on its standard input
    /// and output, and is killed when it does not answer.
    fn start(&self, share: &NfsShare) -> std::io::Result<Child>;
}

/// The NFS backend.
pub struct Nfs {
    store: Arc<Store>,
    workers: Workers<Store>,
}

impl Nfs {
    /// Checks the configuration; connects to no server. Something wrong: [`crate::Error::Invalid`].
    pub fn new(config: NfsConfig, mounted: Option<Arc<dyn Mounted>>) -> Result<Self> {
        let store = Arc::new(Store::new(config, mounted)?);
        Ok(Self { workers: Workers::new("nfs", store.clone()), store })
    }

    /// The backend with all its features.
    pub fn backend(self: Arc<Self>) -> Backend {
        Backend::new(self.clone())
            .with_snapshots(self.clone())
            .with_clones(self.clone())
            .with_expansion(self.clone())
            .with_listing(self.clone())
            .with_capacity(self.clone())
            .with_modify(self.clone())
            .with_measures(self)
    }

    /// Goes on with what earlier processes left to do, now and every half minute.
    pub fn sweep_in_background(&self) {
        sweep::sweep_in_background(&self.store);
    }
}

#[async_trait]
impl Provisioner for Nfs {
    fn kind(&self) -> &'static str {
        "nfs"
    }

    fn parameters(&self) -> &'static [ParameterDoc] {
        &params::DOCS
    }

    async fn check(&self) -> Result<()> {
        any(self.parts().await)
    }

    async fn parts(&self) -> Vec<Part> {
        let parts = self.workers.ask(|store| Ok(store.parts())).await;
        parts.unwrap_or_else(|error| vec![Part { name: String::new(), state: Err(error) }])
    }

    async fn describe(&self) -> Vec<String> {
        self.workers.ask(|store| Ok(store.describe())).await.unwrap_or_default()
    }

    fn attention(&self) -> Vec<String> {
        let line = |(share, key, problem): (_, Option<String>, String)| match key {
            Some(key) => format!("deleted volume {share}:{key}: {problem}"),
            None => problem,
        };
        self.store.removals.stuck().into_iter().map(line).collect()
    }

    fn identity(&self, handle: &str) -> Identity {
        self.store.aliases.identity(handle)
    }

    fn supports(&self, capability: &Capability) -> Result<()> {
        plan::supports(capability)
    }

    fn prepare(&self, spec: VolumeSpec) -> Result<Box<dyn Creation>> {
        if spec.secrets.get("mountOptions").is_some() {
            self.store.told.tell("nfs", &[no_mount()]);
        }
        let plan = Plan::new(&self.store.config, spec)?;
        Ok(Box::new(NfsCreation { workers: self.workers.clone(), plan }))
    }

    async fn delete(&self, ctx: &Ctx, id: &VolumeId) -> Result<()> {
        let (ctx, id) = (ctx.clone(), id.clone());
        self.workers.change(move |store| store.delete(&ctx, &id)).await
    }

    async fn get(&self, id: &VolumeId) -> Result<Volume> {
        let id = id.clone();
        self.workers
            .ask(move |store| {
                let found = store.volume(&id)?;
                let condition = store.condition(&found);
                Ok(Store::show(&found, condition))
            })
            .await
    }

    async fn differs(&self, _: &Ctx, id: &VolumeId, parameters: &StringMap) -> Result<Option<String>> {
        let (id, parameters) = (id.clone(), parameters.clone());
        self.workers
            .ask(move |store| plan::class_differs(&store.config, &store.volume(&id)?.record, &parameters))
            .await
    }
}

/// csi-driver-nfs has its controller mount the share with the options of a secret.
fn no_mount() -> Ignored {
    let why = "the controller's own client mounts nothing; set nfsVersion or mountOptions of the share in the driver's configuration";
    Ignored { field: "secrets[\"mountOptions\"]".into(), why: why.into() }
}

struct NfsCreation {
    workers: Workers<Store>,
    plan: Plan,
}

#[async_trait]
impl Creation for NfsCreation {
    fn id(&self) -> &VolumeId {
        &self.plan.id
    }

    async fn run(self: Box<Self>, ctx: &Ctx) -> Result<Volume> {
        let (ctx, plan, workers) = (ctx.clone(), self.plan, self.workers);
        workers.change(move |store| store.create(&ctx, &plan)).await
    }
}
