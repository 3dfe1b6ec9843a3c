//! What `volumectl` does with images and locks. Every call blocks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::config::RbdConfig;
use super::fence::{FenceOptions, FencePlan, FenceReport};
use super::handle::{Handle, Place};
use super::locks::ImageLocks;
use super::params::features_text;
use super::plan::Plan;
use super::record::Found;
use super::site::Site;
use super::store::Store;
use crate::{
    AccessMode, AccessType, Capability, CapacityRange, Ctx, Error, NodeState, PvcMeta, Result, Secrets,
    Snapshot, SnapshotId, SnapshotSpec, StringMap, Volume, VolumeId, VolumeSpec,
};

/// How long a removal waits for the space to be freed.
const PURGE: Duration = Duration::from_secs(30);

/// An image as `volumectl volume ls` and `info` show it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageInfo {
    /// `<pool>[/<namespace>]/<image>`.
    pub image: String,
    /// The volume's handle, if it is one of this driver.
    pub volume: Option<String>,
    /// Bytes.
    pub size: u64,
    /// The claim as `<namespace>/<name>`.
    pub claim: Option<String>,
    /// The PersistentVolume.
    pub pv: Option<String>,
    /// The nodes that it is published to.
    pub published: Vec<String>,
    /// When the volume was made.
    pub created: Option<String>,
    /// Only of `info`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<ImageDetails>,
}

/// What an open image tells.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageDetails {
    /// The id that stays when the name changes.
    pub id: String,
    /// The features' names.
    pub features: String,
    /// The pool of the data.
    pub data_pool: String,
    /// Bytes of a stripe and objects that it goes over.
    pub striping: (u64, u64),
    /// The snapshot that it is a clone of.
    pub parent: Option<String>,
    /// Its clones.
    pub children: Vec<String>,
    /// Its snapshots' names and bytes.
    pub snapshots: BTreeMap<String, u64>,
    /// Who has it open.
    pub watchers: Vec<String>,
    /// The file system that was made on it.
    pub file_system: Option<String>,
}

/// A connection for an administrator.
pub struct Admin {
    store: Arc<Store>,
}

impl Admin {
    /// Checks the configuration; connects at the first call.
    pub fn new(config: RbdConfig) -> Result<Self> {
        Ok(Self { store: Arc::new(Store::new(config)?) })
    }

    fn sites(&self, pool: Option<&str>) -> Result<Vec<Site>> {
        let sites = self.store.sites()?;
        let Some(path) = pool else { return Ok(sites) };
        let wanted: Vec<_> =
            sites.into_iter().filter(|site| site.place.path() == path || site.place.pool == path).collect();
        if wanted.is_empty() {
            return Err(Error::NotFound(format!(
                "there is no pool {path} for images; see `ceph osd pool ls`"
            )));
        }
        Ok(wanted)
    }

    /// Images that are locked or open: of one image, of one pool, or of all.
    pub fn locks(
        &self,
        pool: Option<&str>,
        image: Option<&str>,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Vec<ImageLocks>> {
        let Some(image) = image else {
            return Store::all_locks(&self.sites(pool)?, progress);
        };
        let (site, handle) = self.store.named(image)?;
        let none = || Error::NotFound(format!("there is no image {}", handle.spec()));
        let id = site.image_id(&handle.name)?.ok_or_else(none)?;
        let around = Store::surroundings(&site)?;
        Ok(Store::image_locks(&site, &around, &handle.name, &id)?.into_iter().collect())
    }

    /// What recovering an image would do. `None`: no lock is held.
    pub fn plan_recovery(
        &self,
        image: &str,
        options: FenceOptions,
        state: &dyn Fn(&str) -> Option<NodeState>,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Option<FencePlan>> {
        let (site, handle) = self.store.named(image)?;
        self.store.plan_fence(&site, &handle, options, state, progress)
    }

    /// Does it.
    pub fn recover(&self, image: &str, plan: &FencePlan) -> Result<FenceReport> {
        let (site, handle) = self.store.named(image)?;
        Store::fence(&site, &handle, plan)
    }

    /// Takes the fence of a journal entry back.
    pub fn undo(&self, id: &str) -> Result<FenceReport> {
        self.store.undo_fence(id)
    }

    /// Every journal entry.
    pub fn journal(&self) -> Result<Vec<FenceReport>> {
        self.store.journal()
    }

    /// Every image, of one pool or of all.
    pub fn images(&self, pool: Option<&str>) -> Result<Vec<ImageInfo>> {
        let mut all = Vec::new();
        for site in self.sites(pool)? {
            let images = site.pool.images().map_err(|e| site.fail("listing images", e))?;
            let one = |(id, name): &(String, String)| brief(&site, name, id);
            all.extend(super::locks::in_parallel(&images, one, &|_, _| {})?.into_iter().flatten());
        }
        all.sort_by(|a: &ImageInfo, b| a.image.cmp(&b.image));
        Ok(all)
    }

    /// One image in full. None such: [`Error::NotFound`].
    pub fn info(&self, image: &str) -> Result<ImageInfo> {
        let (site, handle) = self.store.named(image)?;
        let none = || Error::NotFound(format!("there is no image {}", handle.spec()));
        let id = site.image_id(&handle.name)?.ok_or_else(none)?;
        let mut info = brief(&site, &handle.name, &id)?.ok_or_else(none)?;
        info.details = Some(details(&site, &handle, &id)?);
        Ok(info)
    }

    /// Makes a volume by hand, with the class parameters that are given. Taken with other parameters:
    /// [`Error::AlreadyExists`].
    pub fn create(&self, image: &str, bytes: u64, mut parameters: StringMap, block: bool) -> Result<Volume> {
        let handle = self.store.handle_of(image)?;
        let Place { cluster, pool, namespace } = &handle.place;
        parameters.insert("clusterID".into(), cluster.clone());
        parameters.insert("pool".into(), pool.clone());
        if !namespace.is_empty() {
            parameters.insert("radosNamespace".into(), namespace.clone());
        }
        let access = if block {
            AccessType::Block
        } else {
            AccessType::Mount { fs_type: String::new(), flags: Vec::new(), group: None }
        };
        let spec = VolumeSpec {
            name: handle.name.clone(),
            range: CapacityRange { required: bytes, limit: 0 },
            capabilities: vec![Capability { access, mode: AccessMode::SingleNodeWriter }],
            parameters,
            mutable_parameters: StringMap::new(),
            source: None,
            topology: None,
            pvc: PvcMeta::default(),
            secrets: Secrets::default(),
        };
        let plan = Plan::new(&self.store.config, spec)?;
        if plan.handle != handle {
            let problem = format!("{:?} is too long for an image's name; use at most 63 bytes", handle.name);
            return Err(Error::invalid("image", problem));
        }
        self.store.create(&Ctx::new(), &plan)
    }

    /// Deletes a volume and waits a while for its space; whether that is free. An image without a record of this driver
    /// is never deleted.
    pub fn remove(&self, image: &str) -> Result<bool> {
        let (site, handle) = self.store.named(image)?;
        let none = || Error::NotFound(format!("there is no image {}", handle.spec()));
        let id = site.image_id(&handle.name)?.ok_or_else(none)?;
        self.store.delete(&Ctx::new(), &VolumeId(handle.to_string()))?;
        Ok(self.store.tasks.wait_purged(&id, PURGE))
    }

    /// Grows a volume to a size. Smaller than it is: [`Error::Refused`].
    pub fn resize(&self, image: &str, bytes: u64) -> Result<u64> {
        let handle = self.store.handle_of(image)?;
        let id = VolumeId(handle.to_string());
        let (_, found) = self.store.volume(&id, &Secrets::default())?;
        if bytes < found.header.size {
            return Err(Error::Refused(format!(
                "{} has {} bytes; a volume is never made smaller, for what is beyond {bytes} would be lost",
                handle.spec(),
                found.header.size
            )));
        }
        let range = CapacityRange { required: bytes, limit: 0 };
        Ok(self.store.expand(&Ctx::new(), &id, range)?.capacity)
    }

    /// Copies what a clone shares with its parent, and waits for it.
    pub fn flatten(&self, image: &str, progress: impl FnMut(u64, u64)) -> Result<()> {
        let (site, handle) = self.store.named(image)?;
        let found = Store::volume_at(&site, &handle)?;
        let open = site.open(&found.header.image)?;
        if open.parent().map_err(|e| site.fail("reading the parent", e))?.is_none() {
            return Ok(());
        }
        open.flatten(progress).map_err(|e| site.fail(&format!("flattening {}", handle.spec()), e))
    }

    /// Takes a snapshot of a volume.
    pub fn snapshot(&self, image: &str, name: &str) -> Result<Snapshot> {
        let handle = self.store.handle_of(image)?;
        let spec = SnapshotSpec {
            name: name.to_owned(),
            source: VolumeId(handle.to_string()),
            parameters: StringMap::new(),
            secrets: Secrets::default(),
        };
        self.store.snapshot(&Ctx::new(), &spec)
    }

    /// The snapshots of a volume.
    pub fn snapshots(&self, image: &str) -> Result<Vec<Snapshot>> {
        let handle = self.store.handle_of(image)?;
        let source = VolumeId(handle.to_string());
        Ok(self.store.list_snapshots(&Ctx::new(), Some(&source), None, 0)?.items)
    }

    /// Deletes a snapshot of a volume by its name. None such: [`Error::NotFound`].
    pub fn remove_snapshot(&self, image: &str, name: &str) -> Result<()> {
        let snapshots = self.snapshots(image)?;
        let own = snapshots.into_iter().find(|s| s.id.0.rsplit('/').next() == Some(name));
        let own = own.ok_or_else(|| Error::NotFound(format!("{image} has no snapshot {name}")))?;
        self.store.delete_snapshot(&Ctx::new(), &SnapshotId(own.id.0))
    }
}

/// `None`: the image is gone.
fn brief(site: &Site, name: &str, id: &str) -> Result<Option<ImageInfo>> {
    let Some(header) = site.header(id)? else { return Ok(None) };
    let (handle, size) = (site.handle(name), header.size);
    let found = super::locks::known(Found::read(&handle, header)).flatten();
    let record = found.as_ref().map(|found| &found.record);
    let claim = record.and_then(|record| {
        let name = record.pvc.name.as_ref()?;
        Some(format!("{}/{name}", record.pvc.namespace.clone().unwrap_or_default()))
    });
    Ok(Some(ImageInfo {
        image: handle.spec(),
        volume: record.map(|record| record.id.clone()),
        size,
        claim,
        pv: record.and_then(|record| record.pvc.pv_name.clone()),
        published: found.as_ref().map(Found::nodes).unwrap_or_default(),
        created: record.map(|record| record.created.to_string()),
        details: None,
    }))
}

fn details(site: &Site, handle: &Handle, id: &str) -> Result<ImageDetails> {
    let failed = |errno| site.fail(&format!("reading {}", handle.spec()), errno);
    let image = site.look(id)?.ok_or_else(|| Error::NotFound(format!("image {} is gone", handle.spec())))?;
    let linked = |it: super::ffi::Linked| {
        let place = super::store::place_of(site, &it);
        let note = if it.in_trash { " (in the trash)" } else { "" };
        format!("{}/{}{note}", place.path(), it.name)
    };
    let parent = image.parent().map_err(failed)?;
    let snapshots = image.snapshots().map_err(failed)?;
    let fs = site.header(id)?.map(|header| Found::read(handle, header)).transpose()?.flatten();
    Ok(ImageDetails {
        id: image.id().map_err(failed)?,
        features: features_text(Some(image.features().map_err(failed)?)),
        data_pool: image.data_pool().map_err(failed)?,
        striping: (image.stripe_unit().map_err(failed)?, image.stripe_count().map_err(failed)?),
        parent: parent.map(|parent| format!("{}@{}", linked(parent.image), parent.snapshot)),
        children: image.children().map_err(failed)?.into_iter().map(linked).collect(),
        snapshots: snapshots.into_iter().map(|snapshot| (snapshot.name, snapshot.size)).collect(),
        watchers: image.watchers().map_err(failed)?.into_iter().map(|w| w.address).collect(),
        file_system: fs
            .map(|found| found.fs())
            .transpose()?
            .and_then(|fs| fs.file_system().map(str::to_owned)),
    })
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").field("connections", &self.store.sessions.open()).finish()
    }
}
