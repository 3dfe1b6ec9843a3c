//! Finding shares and volumes, showing volumes and changing their records.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use super::alias::Aliases;
use super::client::{Fh, Kind};
use super::config::{NfsConfig, NfsShare, plain_path, plain_server};
use super::handle::{Handle, ShareId};
use super::identity::is_of;
use super::pool::lock;
use super::record::VolumeRecord;
use super::share::{Own, Share, Told};
use super::sweep::Watch;
use super::usage::Usages;
use super::{Mounted, removal::Removals};
use crate::parameters::Once;
use crate::record::decode;
use crate::{Condition, Error, Result, StringMap, Volume, VolumeId};

/// How many shares are kept that callers have named and no server has answered for.
const UNKNOWN_MAX: usize = 64;

/// The backend's state: what was configured, and connections. All else is on the servers.
pub(super) struct Store {
    pub(super) config: NfsConfig,
    pub(super) shares: Mutex<BTreeMap<ShareId, Arc<Share>>>,
    pub(super) removals: Removals,
    pub(super) usages: Usages,
    pub(super) watch: Watch,
    pub(super) aliases: Aliases,
    /// What was said of parameters that have no effect.
    pub(super) told: Once,
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

/// The key of a record's file.
pub(super) fn key_of(name: &[u8]) -> Option<String> {
    std::str::from_utf8(name).ok()?.strip_suffix(".json").map(str::to_owned)
}

impl Store {
    pub(super) fn new(config: NfsConfig, mounted: Option<Arc<dyn Mounted>>) -> Result<Self> {
        config.validate()?;
        let shares = config.shares.into_iter().map(NfsShare::plain).collect();
        let config = NfsConfig { shares, ..config };
        let it = Self {
            shares: Mutex::default(),
            removals: Removals::default(),
            usages: Usages::default(),
            watch: Watch::default(),
            aliases: Aliases::new(&config),
            told: Once::default(),
            mounted,
            config,
        };
        for spec in &it.config.shares {
            it.add(ShareId::Named(spec.name.clone()), spec.clone());
        }
        it.recall();
        Ok(it)
    }

    pub(super) fn add(&self, id: ShareId, spec: NfsShare) -> Arc<Share> {
        let by_mount = spec.client == super::NfsClient::Mount;
        let mounted = self.mounted.clone().filter(|_| by_mount);
        let share = Arc::new(Share::new(id.clone(), spec, &self.config, mounted));
        let mut shares = lock(&self.shares);
        // What callers name is forgotten again if no server answers for it.
        if shares.values().filter(|share| !share.is_known()).count() >= UNKNOWN_MAX {
            shares.retain(|_, share| share.is_known() || Arc::strong_count(share) > 1);
        }
        shares.entry(id).or_insert(share).clone()
    }

    /// The one id of a share that a handle names in some spelling.
    fn plain_id(&self, id: &ShareId) -> ShareId {
        let ShareId::Direct(server, path) = id else { return id.clone() };
        match self.aliases.configured(server, path) {
            Some(name) => ShareId::Named(name.to_owned()),
            None => ShareId::Direct(plain_server(server), plain_path(path)),
        }
    }

    /// Whether two handles name one thing.
    pub(super) fn is_one(&self, one: &str, other: &str) -> bool {
        self.aliases.identity(one) == self.aliases.identity(other)
    }

    /// The handle that was given out for a volume, which may have another spelling of the share.
    pub(super) fn given(&self, handle: &Handle, id: &str) -> Handle {
        let given = Handle::parse(id).filter(|_| self.is_one(id, &handle.to_string()));
        given.unwrap_or_else(|| handle.clone())
    }

    /// A share that is configured, or that handles or classes name; not to be had: [`Error::NotFound`].
    pub(super) fn share(&self, id: &ShareId) -> Result<Arc<Share>> {
        let id = &self.plain_id(id);
        if let Some(share) = lock(&self.shares).get(id) {
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
        let (own, record) = load::<VolumeRecord>(&share, Index::Volumes, &handle.key)?;
        self.learn(&share);
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
        if found.force() {
            context.insert("unmountPolicy".to_owned(), "force".to_owned());
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
            let (share, key) = (&found.share.id, &found.handle.key);
            let stuck = self
                .removals
                .stuck()
                .into_iter()
                .find(|(of, whose, _)| of == share && whose.as_ref() == Some(key));
            if let Some((.., problem)) = stuck {
                return Ok(Some(format!("it is being deleted: {problem}")));
            }
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
}

impl Found {
    /// The volume's directory, if it is the one that was made for it.
    pub(super) fn dir(&self) -> Result<Option<Fh>> {
        let walked = self.share.walk(&self.own.root, &self.record.dir);
        let walked = match walked {
            Err(fault) if fault.is(super::client::Status::NOT_DIRECTORY) => return Ok(None),
            other => other.told(&self.share, &format!("looking for directory {}", self.record.dir))?,
        };
        match walked {
            Some(node) if is_of(&self.share, &self.own, &self.record, &node)? => Ok(Some(node.fh)),
            _ => Ok(None),
        }
    }

    /// Mount options of the share's configuration and the class, which cannot be changed.
    pub(super) fn options(&self) -> Vec<String> {
        let of_class = self.record.parameters.get("mountOptions").map(String::as_str).unwrap_or_default();
        let of_class = of_class.split(',').filter(|option| !option.is_empty()).map(str::to_owned);
        self.share.spec.mount_options.iter().cloned().chain(of_class).collect()
    }

    /// Whether DeleteVolume waits until all is removed: as it was set last.
    pub(super) fn fails(&self) -> bool {
        let record = &self.record;
        let maps = [&record.modified, &record.mutable_parameters, &record.parameters];
        maps.iter().find_map(|map| map.get("onDeleteFailure")).is_some_and(|word| word == "fail")
    }

    /// Whether nodes give up what the server does not take when they unmount the share.
    pub(super) fn force(&self) -> bool {
        self.record.parameters.get("unmountPolicy").is_some_and(|policy| policy == "force")
    }
}

/// Where records are.
#[derive(Debug, Clone, Copy)]
pub(super) enum Index {
    /// Of volumes.
    Volumes,
    /// Of volumes that are being made.
    Intents,
}

impl Index {
    fn dir(self, own: &Own) -> &Fh {
        match self {
            Self::Volumes => &own.volumes,
            Self::Intents => &own.intents,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Volumes => "volumes",
            Self::Intents => "intents",
        }
    }
}

/// A record of one of the driver's own directories, and these.
pub(super) fn load<T: crate::record::Record>(
    share: &Share,
    index: Index,
    key: &str,
) -> Result<(Own, Option<T>)> {
    let name = file_name(key);
    let got = share.with_own(|own| Ok((own.clone(), share.get(index.dir(own), &name)?)));
    let (own, got) = got.told(share, "reading a record")?;
    let Some((node, content)) = got else { return Ok((own, None)) };
    if node.attr.kind != Kind::File {
        return Err(Error::Corrupt {
            what: place_of(share, index, key),
            problem: "not a regular file".into(),
        });
    }
    Ok((own, Some(parse(share, index, key, &content)?)))
}

fn place_of(share: &Share, index: Index, key: &str) -> String {
    format!("{}/{}/{}/{key}.json", share.place(), super::share::OWN, index.word())
}

/// Reads a record's bytes.
pub(super) fn parse<T: crate::record::Record>(
    share: &Share,
    index: Index,
    key: &str,
    content: &[u8],
) -> Result<T> {
    decode(&place_of(share, index, key), content)
}
