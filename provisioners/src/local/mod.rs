//! The `local` backend: files and directories below one or more roots on the node.
//!
//! ```text
//! <root>/<volume>/volume.json        the volume's record
//! <root>/<volume>/disk.img | data/   its data: a file (type file) or a directory (type directory)
//! <root>/.volumectl/
//!   index/<key> -> <volume>          only where nameTemplate made the directory's name
//!   tmp/<what>.<random>/             what is being made, locked: published by one rename, so complete or absent
//!   trash/                           what is being deleted
//!   snapshots/<key>/                 snapshot.json and the data, a full copy
//!   groups/<key>.json                a group of snapshots; `.pending` while it is made or deleted
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::blocking::Workers;
use crate::parts::any;
use crate::{
    Backend, Capability, Creation, Ctx, Identity, ParameterDoc, Part, Provisioner, Result, StringMap, Volume,
    VolumeId, VolumeSpec,
};

mod attach;
mod capacity;
mod config;
mod copy;
mod copytree;
mod create;
mod delete;
mod draft;
mod expand;
mod group;
mod handle;
mod layout;
mod lease;
mod list;
mod modify;
mod node;
mod params;
mod plan;
mod record;
mod recover;
mod remove;
mod size;
mod snapshot;
mod store;
mod traits;
mod walk;
mod xattrs;

#[cfg(test)]
mod tests;

pub use config::{DEFAULT_SIZE, ExpandedBy, LocalConfig, Reserve};
pub use handle::{Handle, parse_handle};
pub use lease::{Lease, Sharing};
pub use record::check_volume_record;

use plan::Plan;
use store::Store;

/// What the local backend asks of the node that it runs on. `csi/src/host/` implements it.
pub trait LocalHost: Send + Sync + 'static {
    /// Makes sure that nothing of ours keeps a file or directory from being deleted, and says who uses it: loop devices
    /// over the file, mount points of it or of those devices. A loop device that nobody uses (left by a crash) is
    /// detached. Empty: nobody.
    fn release(&self, data: &Path) -> Result<Vec<String>>;

    /// Stops writes to the file systems mounted from these backing files until the guard is dropped, for at most
    /// `limit`; also ends when this process dies. Files that nobody has mounted need nothing.
    /// A backing file in use as a raw block device cannot be stopped: [`crate::Error::Refused`].
    fn quiesce(&self, data: &[PathBuf], limit: Duration) -> Result<Box<dyn Quiesced>>;

    /// What tells whether a backing file was attached, detached or written to: compared before and after a copy. Its text
    /// means nothing else.
    fn activity(&self, data: &Path) -> Result<String>;

    /// Tells the loop device over the file, if there is one, that the file has grown.
    fn grown(&self, data: &Path) -> Result<()>;
}

/// Writes are stopped while this lives.
pub trait Quiesced: Send {
    /// Lets writes go on. Fails when they went on before this call (the limit passed), so what was copied
    /// meanwhile must be thrown away.
    fn resume(self: Box<Self>) -> Result<()>;
}

/// The local backend.
pub struct Local {
    store: Arc<Store>,
    workers: Workers<Store>,
}

impl Local {
    /// Checks the configuration; changes nothing on disk. Something wrong: [`crate::Error::Invalid`].
    pub fn new(config: LocalConfig, host: Arc<dyn LocalHost>) -> Result<Self> {
        let store = Arc::new(Store::new(config, host)?);
        Ok(Self { workers: Workers::new("local", store.clone()), store })
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
            .with_modify(self.clone())
            .with_placement(self.clone());
        if self.store.config.attach { backend.with_attachment(self) } else { backend }
    }

    /// Finishes interrupted deletions and removes what was half made, in all roots; says what it did, a line each.
    /// For the controller, before it serves calls. A root that another process is using is left alone.
    pub fn recover(&self) -> Result<Vec<String>> {
        self.store.recover()
    }
}

#[async_trait]
impl Provisioner for Local {
    fn kind(&self) -> &'static str {
        "local"
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

    fn identity(&self, handle: &str) -> Identity {
        self.store.identity(handle)
    }

    fn supports(&self, capability: &Capability) -> Result<()> {
        plan::supports(capability)
    }

    fn prepare(&self, spec: VolumeSpec) -> Result<Box<dyn Creation>> {
        let plan = Plan::new(&self.store.config, &self.store.topology(), spec)?;
        Ok(Box::new(LocalCreation { workers: self.workers.clone(), plan }))
    }

    async fn delete(&self, ctx: &Ctx, id: &VolumeId) -> Result<()> {
        let (ctx, id) = (ctx.clone(), id.clone());
        self.workers.change(move |store| store.delete(&ctx, &id)).await
    }

    async fn get(&self, id: &VolumeId) -> Result<Volume> {
        let id = id.clone();
        self.workers.ask(move |store| Ok(store.show(&store.volume(&id)?))).await
    }

    async fn differs(&self, _: &Ctx, id: &VolumeId, parameters: &StringMap) -> Result<Option<String>> {
        let (id, parameters) = (id.clone(), parameters.clone());
        self.workers.ask(move |store| store.differs(&id, &parameters)).await
    }
}

struct LocalCreation {
    workers: Workers<Store>,
    plan: Plan,
}

#[async_trait]
impl Creation for LocalCreation {
    fn id(&self) -> &VolumeId {
        &self.plan.id
    }

    async fn run(self: Box<Self>, ctx: &Ctx) -> Result<Volume> {
        let (ctx, plan, workers) = (ctx.clone(), self.plan, self.workers);
        workers.change(move |store| store.create(&ctx, &plan)).await
    }
}
