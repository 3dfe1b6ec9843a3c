//! Finding volumes, showing them and changing their records.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::config::LocalConfig;
use super::handle::{Handle, parse_handle};
use super::layout::{Root, VOLUME_RECORD, failed, is_dir, replace};
use super::lease::{Sharing, lock};
use super::params::{Params, VolumeType};
use super::record::{VolumeRecord, encode, is_absent, load};
use super::size::Space;
use super::{LocalHost, record};
use crate::identity::firsts;
use crate::parameters::flag;
use crate::parts::{Question, ask_all};
use crate::{Condition, Ctx, Error, Identity, NodeId, Part, Result, StringMap, Topology, Volume, VolumeId};

/// The backend's state: only what was configured. All else is on disk.
pub(super) struct Store {
    pub(super) config: LocalConfig,
    /// In the order of their handles.
    pub(super) roots: Vec<Arc<Root>>,
    /// Of each root the first that is the same directory: a symbolic link or a bind mount may lead there.
    firsts: Vec<usize>,
    pub(super) host: Arc<dyn LocalHost>,
}

/// A volume on disk.
#[derive(Debug)]
pub(super) struct Found<'a> {
    pub(super) root: &'a Root,
    pub(super) handle: Handle,
    pub(super) dir: PathBuf,
    pub(super) record: VolumeRecord,
}

impl Root {
    /// The volume with a key, if it is in this root.
    pub(super) fn find_volume(&self, key: &str) -> Result<Option<Found<'_>>> {
        let dir = self.volume_dir(key)?;
        self.volume_at(key, dir)
    }

    /// The volume with a key, if it is in this directory.
    pub(super) fn volume_at(&self, key: &str, dir: PathBuf) -> Result<Option<Found<'_>>> {
        if !is_dir(&dir)? {
            return Ok(None);
        }
        let Some(record) = record::load::<VolumeRecord>(&dir.join(VOLUME_RECORD))? else {
            return Ok(None);
        };
        if parse_handle(&record.id).is_ok_and(|handle| handle.key == key) {
            let handle = Handle { root: self.name.clone(), key: key.to_owned() };
            return Ok(Some(Found { root: self, handle, dir, record }));
        }
        Ok(None)
    }
}

impl Found<'_> {
    pub(super) fn data(&self) -> PathBuf {
        self.dir.join(self.record.kind.data_name())
    }

    /// The data file's length in bytes; of a directory the recorded size. Removed behind our back:
    /// [`Error::Refused`].
    pub(super) fn length(&self) -> Result<u64> {
        let data = self.data();
        match fs::symlink_metadata(&data) {
            Ok(meta) if meta.is_dir() && self.record.kind == VolumeType::Directory => {
                Ok(self.record.capacity)
            }
            Ok(meta) if meta.is_file() && self.record.kind == VolumeType::File => Ok(meta.len()),
            Ok(_) => Err(self.lost("is not what it was made as")),
            Err(e) if is_absent(&e) => Err(self.lost("is missing")),
            Err(e) => Err(failed("looking at", &data, e)),
        }
    }

    fn lost(&self, what: &str) -> Error {
        Error::Refused(format!(
            "volume {}: its data {} {what}, though its record is there; put it back, or delete the volume",
            self.handle,
            self.data().display()
        ))
    }

    /// As [`Found::length`], and less than the recorded size is [`Error::Refused`].
    pub(super) fn whole(&self) -> Result<u64> {
        let length = self.length()?;
        if length >= self.record.capacity {
            return Ok(length);
        }
        Err(Error::Refused(format!(
            "volume {}: {} has {length} bytes, less than the {} recorded; it was cut short, restore it from a snapshot or a backup",
            self.handle,
            self.data().display(),
            self.record.capacity
        )))
    }

    /// Changes a volume's record, durably, one process at a time; `change` says whether it changed anything.
    pub(super) fn update(
        &self,
        change: impl FnOnce(&mut VolumeRecord) -> Result<bool>,
    ) -> Result<VolumeRecord> {
        let dir = File::open(&self.dir).map_err(|e| failed("opening", &self.dir, e))?;
        lock(&Ctx::new(), &dir, &self.dir, Sharing::Alone)?;
        let path = self.dir.join(VOLUME_RECORD);
        let mut record: VolumeRecord = load(&path)?
            .ok_or_else(|| Error::NotFound(format!("volume {}: its record is gone", self.handle)))?;
        if change(&mut record)? {
            replace(&path, &encode(&record)?)?;
        }
        Ok(record)
    }
}

impl Store {
    pub(super) fn new(config: LocalConfig, host: Arc<dyn LocalHost>) -> Result<Self> {
        config.validate()?;
        let mut roots: Vec<_> =
            config.roots.iter().map(|(name, path)| Arc::new(Root::new(name, path))).collect();
        roots.sort_by_key(|root| format!("{}:", root.name));
        // One alone has no other names.
        let look = roots.len() > 1;
        let seen: Vec<_> =
            roots.iter().map(|root| look.then(|| fs::metadata(&root.path).ok()).flatten()).collect();
        let firsts = firsts(&seen, |a, b| match (a, b) {
            (Some(a), Some(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
            _ => false,
        });
        Ok(Self { config, roots, firsts, host })
    }

    /// What a handle names; a text that is none names itself.
    pub(super) fn identity(&self, text: &str) -> Identity {
        let Ok(mut handle) = parse_handle(text) else { return Identity::new(text) };
        if let Some(at) = self.roots.iter().position(|root| root.name == handle.root) {
            handle.root.clone_from(&self.roots[self.firsts[at]].name);
        }
        Identity::new(handle)
    }

    /// A configured root; one that is not: [`Error::NotFound`].
    pub(super) fn root(&self, name: &str) -> Result<&Root> {
        let root = self.roots.iter().map(Arc::as_ref).find(|root| root.name == name);
        root.ok_or_else(|| {
            Error::NotFound(format!("root {name:?} is not configured here; add it to the configuration"))
        })
    }

    /// The root and key of a handle to delete. `None`: not a handle of ours, so there is nothing to delete. A root that
    /// is no longer configured may well hold it: [`Error::Refused`].
    pub(super) fn to_delete(&self, id: &str) -> Result<Option<(&Root, Handle)>> {
        let Ok(handle) = parse_handle(id) else {
            return Ok(None);
        };
        match self.root(&handle.root) {
            Ok(root) => Ok(Some((root, handle))),
            Err(error) => Err(Error::Refused(format!("{id} cannot be deleted: {error}"))),
        }
    }

    /// A volume by its handle. None such: [`Error::NotFound`].
    pub(super) fn volume(&self, id: &VolumeId) -> Result<Found<'_>> {
        let none = |why: &str| Error::NotFound(format!("volume {id}: {why}"));
        let handle = parse_handle(&id.0)
            .map_err(|_| none("not a handle of this backend, so there is no such volume"))?;
        let root = self.root(&handle.root).map_err(|e| none(&e.to_string()))?;
        let found = root.find_volume(&handle.key)?;
        found.ok_or_else(|| none(&format!("no such volume in {}", root.path.display())))
    }

    /// The parameters that a volume has now.
    pub(super) fn params_of(&self, record: &VolumeRecord) -> Result<Params> {
        let mut mutable = record.mutable_parameters.clone();
        mutable.extend(record.modified.clone());
        Params::parse(&self.config, &record.parameters, &mutable)
    }

    /// Refuses to touch what another cluster owns.
    pub(super) fn check_owner(&self, what: &str, cluster: &str) -> Result<()> {
        crate::record::check_owner(what, cluster, &self.config.cluster)
    }

    /// The segments of this node.
    pub(super) fn topology(&self) -> Topology {
        Topology::from([(self.config.topology_key.clone(), self.config.node.0.clone())])
    }

    /// A volume as others see it.
    pub(super) fn show(&self, found: &Found<'_>) -> Volume {
        let record = &found.record;
        Volume {
            id: VolumeId(found.handle.to_string()),
            capacity: record.capacity,
            context: StringMap::from([("type".into(), record.kind.word().into())]),
            source: record.source.clone(),
            topology: vec![self.topology()],
            published: record.published.keys().cloned().map(NodeId).collect(),
            condition: self.condition(found),
        }
    }

    fn condition(&self, found: &Found<'_>) -> Condition {
        if let Err(error) = found.whole() {
            return Condition::abnormal(error.to_string());
        }
        let fs = &found.record.fs;
        if let (Some(fs_type), None) = (&fs.formatting, fs.file_system()) {
            return Condition::abnormal(format!(
                "an older version began a format with {fs_type} and did not complete it; when the volume is staged again, it is formatted if nothing was written, and refused if not"
            ));
        }
        match Space::of(&found.root.path, self.config.reserve) {
            Ok(space) if space.free < space.reserve && !is_thick(&found.record) => {
                Condition::abnormal(format!(
                    "the root {} is nearly full: {} bytes free, {} to be kept in reserve; delete what is not needed there",
                    found.root.path.display(),
                    space.free,
                    space.reserve
                ))
            }
            Ok(_) => Condition::healthy(),
            Err(error) => Condition::abnormal(error.to_string()),
        }
    }

    /// Whether each root can be used: it is there or can be made, and not read-only. Nothing is made for that.
    pub(super) fn parts(&self) -> Vec<Part> {
        let question = |root: &Arc<Root>| {
            let root = root.clone();
            Question {
                name: format!("root {}", root.name),
                asked: root.asked.clone(),
                ask: Box::new(move || check_writable(root.look()?)),
            }
        };
        ask_all(self.roots.iter().map(question).collect())
    }
}

fn is_thick(record: &VolumeRecord) -> bool {
    record.parameters.get("thick").is_some_and(|value| flag(value) == Some(true))
}

fn check_writable(path: &Path) -> Result<()> {
    let stat =
        rustix::fs::statvfs(path).map_err(|e| failed("looking at the file system of", path, e.into()))?;
    if stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        return Err(Error::Unavailable(format!(
            "root {} is on a read-only file system; mount it read-write (see dmesg for why it is so)",
            path.display()
        )));
    }
    Ok(())
}
