//! Finding shares and volumes, showing volumes and changing their records.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use super::client::{Fh, Kind};
use super::config::{NfsConfig, NfsShare};
use super::handle::{Handle, ShareId};
use super::record::VolumeRecord;
use super::share::{Own, Share, Told};
use super::usage::Usages;
use super::{Mounted, removal::Removals};
use crate::record::{decode, encode};
use crate::{Condition, Error, Result, StringMap, Volume, VolumeId};

/// The backend's state: what was configured, and connections. All else is on the servers.
pub(super) struct Store {
    pub(super) config: NfsConfig,
    shares: Mutex<BTreeMap<ShareId, Arc<Share>>>,
    pub(super) removals: Removals,
    pub(super) usages: Usages,
    mounted: Option<Arc<dyn Mounted>>,
}

/// A volume on a share.
pub(super) struct Found {
    pub(super) share: Arc<Share>,
    pub(super) own: Own,
    pub(super) handle: Handle,
    pub(super) record: VolumeRecord,
}

/// The name of a record's file.
pub(super) fn file_name(key: &str) -> Vec<u8> {
    format!("{key}.json").into_bytes()
}

impl Store {
    pub(super) fn new(config: NfsConfig, mounted: Option<Arc<dyn Mounted>>) -> Result<Self> {
        config.validate()?;
        let it = Self {
            shares: Mutex::default(),
            removals: Removals::default(),
            usages: Usages::default(),
            mounted,
            config,
        };
        for spec in &it.config.shares {
            it.add(ShareId::Named(spec.name.clone()), spec.clone());
        }
        Ok(it)
    }

    fn add(&self, id: ShareId, spec: NfsShare) -> Arc<Share> {
        let by_mount = spec.client == super::NfsClient::Mount;
        let mut share = Share::new(id.clone(), spec, &self.config);
        share.mounted = self.mounted.clone().filter(|_| by_mount);
        #[cfg(test)]
        {
            share.death.clone_from(&self.config.death);
        }
        self.shares
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(id)
            .or_insert(Arc::new(share))
            .clone()
    }

    /// A share that is configured, or that handles or classes name; not to be had: [`Error::NotFound`].
    pub(super) fn share(&self, id: &ShareId) -> Result<Arc<Share>> {
        if let Some(share) = self.shares.lock().unwrap_or_else(PoisonError::into_inner).get(id) {
            return Ok(share.clone());
        }
        match id {
            ShareId::Direct(server, path) if self.config.any_share => {
                let spec = NfsShare { server: server.clone(), path: path.clone(), ..NfsShare::default() };
                Ok(self.add(id.clone(), spec))
            }
            ShareId::Direct(..) => Err(Error::NotFound(format!(
                "share {id}: the configuration allows only its own shares (anyShare: false)"
            ))),
            ShareId::Named(name) => Err(Error::NotFound(format!(
                "share {name:?} is not configured here; add it to the configuration"
            ))),
        }
    }

    /// All shares that are known now, in the order of their handles.
    pub(super) fn shares(&self) -> Vec<Arc<Share>> {
        let mut shares: Vec<_> =
            self.shares.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        shares.sort_by_key(|share| Handle { share: share.id.clone(), key: String::new() }.to_string());
        shares
    }

    /// The share and key of a handle to delete. `None`: not a handle of ours, so there is nothing to delete. A share that
    /// is no longer configured may well hold it: [`Error::Refused`].
    pub(super) fn to_delete(&self, id: &str) -> Result<Option<(Arc<Share>, Handle)>> {
        let Some(handle) = Handle::parse(id) else { return Ok(None) };
        match self.share(&handle.share) {
            Ok(share) => Ok(Some((share, handle))),
            Err(error) => Err(Error::Refused(format!("{id} cannot be deleted: {error}"))),
        }
    }

    /// A volume by its handle. None such: [`Error::NotFound`].
    pub(super) fn volume(&self, id: &VolumeId) -> Result<Found> {
        let none = |why: &str| Error::NotFound(format!("volume {id}: {why}"));
        let handle = Handle::parse(&id.0)
            .ok_or_else(|| none("not a handle of this backend, so there is no such volume"))?;
        let share = self.share(&handle.share).map_err(|e| none(&e.to_string()))?;
        let (own, record) = load::<VolumeRecord>(&share, |own| own.volumes.clone(), &handle.key)?;
        let record = record.ok_or_else(|| none(&format!("no such volume on {}", share.place())))?;
        Ok(Found { share, own, handle, record })
    }

    /// Refuses to touch what another cluster owns.
    pub(super) fn check_owner(&self, what: &str, cluster: &str) -> Result<()> {
        crate::record::check_owner(what, cluster, &self.config.owner)
    }

    /// A volume as others see it; what is told nodes is enough to mount it.
    pub(super) fn show(found: &Found, condition: Condition) -> Volume {
        let (spec, record) = (&found.share.spec, &found.record);
        let mut context = StringMap::from([
            ("server".to_owned(), spec.server.clone()),
            ("share".to_owned(), spec.path.clone()),
            ("subdir".to_owned(), record.dir.clone()),
        ]);
        let options = found.options();
        if !options.is_empty() {
            context.insert("mountOptions".to_owned(), options.join(","));
        }
        Volume {
            id: VolumeId(found.handle.to_string()),
            capacity: record.capacity,
            context,
            source: record.source.clone(),
            topology: Vec::new(),
            published: BTreeSet::new(),
            condition,
        }
    }

    /// How a volume is: whether its directory is there, and holds no more than was asked for.
    pub(super) fn condition(&self, found: &Found) -> Condition {
        match self.look_at(found) {
            Ok(None) => Condition::healthy(),
            Ok(Some(problem)) => Condition::abnormal(problem),
            Err(error) => Condition::abnormal(error.to_string()),
        }
    }

    fn look_at(&self, found: &Found) -> Result<Option<String>> {
        let record = &found.record;
        let Some(dir) = found.dir()? else {
            return Ok(Some(format!(
                "its directory {} is not on {} any more, or another was put in its place; put it back, or delete the volume",
                record.dir,
                found.share.place()
            )));
        };
        let used = self.usages.of(&found.share, &found.handle.to_string(), &dir)?;
        Ok(used.filter(|used| *used > record.capacity).map(|used| {
            format!(
                "it holds {used} bytes, more than the {} asked for; NFS does not enforce sizes: expand the volume, or remove files",
                record.capacity
            )
        }))
    }

    /// Whether all shares answer and can be used.
    pub(super) fn check(&self) -> Result<()> {
        for share in self.shares() {
            let own = share.with_own(|own| {
                share.attr(&own.volumes)?;
                Ok(())
            });
            own.told(&share, "looking at the driver's directory")?;
        }
        Ok(())
    }
}

impl Found {
    /// The volume's directory, if it is the one that was made for it.
    pub(super) fn dir(&self) -> Result<Option<Fh>> {
        let walked = self.share.walk(&self.own.root, &self.record.dir);
        let walked = match walked {
            Err(fault) if fault.is(super::client::Status::NOT_DIRECTORY) => return Ok(None),
            other => other.told(&self.share, &format!("looking for directory {}", self.record.dir))?,
        };
        Ok(walked.filter(|node| node.attr.id == self.record.dir_id).map(|node| node.fh))
    }

    /// Mount options of the share's configuration and the class, which cannot be changed.
    pub(super) fn options(&self) -> Vec<String> {
        let of_class = self.record.parameters.get("mountOptions").map(String::as_str).unwrap_or_default();
        let of_class = of_class.split(',').filter(|option| !option.is_empty()).map(str::to_owned);
        self.share.spec.mount_options.iter().cloned().chain(of_class).collect()
    }

    /// Writes the record anew.
    pub(super) fn save(&self, record: &VolumeRecord) -> Result<()> {
        let content = encode(record)?;
        let saved = self.share.replace(&self.own, &self.own.volumes, &file_name(&self.handle.key), &content);
        saved.told(&self.share, &format!("writing the record of volume {}", self.handle))
    }
}

/// A record of one of the driver's own directories, and these.
pub(super) fn load<T: crate::record::Record>(
    share: &Share,
    dir: impl Fn(&Own) -> Fh,
    key: &str,
) -> Result<(Own, Option<T>)> {
    let name = file_name(key);
    let got = share.with_own(|own| Ok((own.clone(), share.get(&dir(own), &name)?)));
    let (own, got) = got.told(share, "reading a record")?;
    let Some((node, content)) = got else { return Ok((own, None)) };
    let what = format!("{}/{}/{}", share.place(), super::share::OWN, String::from_utf8_lossy(&name));
    if node.attr.kind != Kind::File {
        return Err(Error::Corrupt { what, problem: "not a regular file".into() });
    }
    Ok((own, Some(decode(&what, &content)?)))
}
