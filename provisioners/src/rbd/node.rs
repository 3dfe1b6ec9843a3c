//! The node's side: how to get at an image, and what is noted of it.

use jiff::Timestamp;

use super::config::Mounter;
use super::ffi::{Key, Locker};
use super::handle::parse_handle;
use super::params::Params;
use super::record::{CLIENT, ClientNote, FS, Found, FsState};
use super::session::Session;
use super::site::Site;
use super::store::Store;
use crate::{Access, Error, NodeVolume, RbdImage, RbdMounter, Result, SecretText, Secrets, VolumeId};

impl Store {
    /// How to get at a volume on this node.
    pub(super) fn access(&self, id: &VolumeId, secrets: &Secrets) -> Result<NodeVolume> {
        let (site, found) = self.volume(id, secrets)?;
        if found.is_deleted() {
            return Err(Error::Refused(format!("volume {id} is being deleted")));
        }
        let params = Params::parse(&self.config, &found.record.parameters)?;
        let image = Self::image(&site, &found, &params)?;
        let fs = found.fs();
        Ok(NodeVolume {
            access: Access::Rbd(Box::new(image)),
            size: Some(found.header.size),
            fs_type: params.fs_type.or(found.record.fs_type),
            mkfs_options: params.mkfs_options,
            root_mode: None,
            formatted: fs.formatted,
            formatting: fs.formatting.is_some(),
        })
    }

    fn image(site: &Site, found: &Found, params: &Params) -> Result<RbdImage> {
        let session = &site.session;
        let failed = |errno| site.fail("asking the connection", errno);
        let looked = site.look(&found.header.image)?;
        let (watchers, lockers) = match &looked {
            Some(image) => (image.watchers(), image.lockers()),
            None => (Ok(Vec::new()), Ok(Vec::new())),
        };
        let watchers = watchers.map_err(|e| site.fail("listing watchers", e))?;
        let lockers = lockers.map_err(|e| site.fail("listing locks", e))?;
        let place = &found.handle.place;
        let secure = params.map_options.iter().any(|o| o.starts_with("ms_mode=") && o != "ms_mode=legacy");
        Ok(RbdImage {
            cluster: place.cluster.clone(),
            pool: place.pool.clone(),
            namespace: place.namespace.clone(),
            image: found.handle.name.clone(),
            fsid: session.connection.fsid().map_err(failed)?,
            mounter: match params.mounter {
                Mounter::Krbd => RbdMounter::Krbd,
                Mounter::Fuse => RbdMounter::Fuse,
            },
            mon_host: session.connection.setting("mon_host").map_err(failed)?,
            monitors: session.monitors(secure)?,
            user: session.settings.user.clone(),
            key: Some(session.key()?),
            map_options: params.map_options.clone(),
            unmap_options: params.unmap_options.clone(),
            watchers: watchers.into_iter().map(|watcher| watcher.address).collect(),
            locked: lockers.iter().any(Locker::is_managed),
        })
    }

    /// How a volume that may be on this node is got at; the cluster is not asked.
    pub(super) fn held(id: &VolumeId) -> Result<Access> {
        let handle = parse_handle(&id.0).map_err(|_| Error::NotFound(format!("there is no volume {id}")))?;
        Ok(Access::Rbd(Box::new(RbdImage {
            cluster: handle.place.cluster,
            pool: handle.place.pool,
            namespace: handle.place.namespace,
            image: handle.name,
            ..RbdImage::default()
        })))
    }

    /// Writes down the state of a format.
    pub(super) fn formatted(&self, id: &VolumeId, fs_type: &str, done: bool) -> Result<()> {
        let (site, found) = self.volume(id, &Secrets::default())?;
        let mut fs = found.fs();
        if done {
            fs = FsState { formatting: None, formatted: Some(fs_type.to_owned()) };
        } else {
            fs.formatting = Some(fs_type.to_owned());
        }
        let value = serde_json::to_vec(&fs).map_err(|e| Error::Internal(e.to_string()))?;
        site.update(&found.header.image, &[(FS, &value)], &[])
    }

    /// Notes as which client this node has an image open. `before` are those that had it open already; `address` is
    /// ours, if that is known: else it is the one that was not there before.
    pub(super) fn mapped(&self, id: &VolumeId, before: &[String], address: Option<&str>) -> Result<()> {
        let (site, found) = self.volume(id, &Secrets::default())?;
        let address = match address {
            Some(address) => Some(address.to_owned()),
            None => {
                let image = site.look(&found.header.image)?;
                let watchers = image.map(|image| image.watchers()).transpose();
                let watchers = watchers.map_err(|e| site.fail("listing watchers", e))?.unwrap_or_default();
                let mut all: Vec<_> = watchers.into_iter().map(|watcher| watcher.address).collect();
                let new = all.iter().position(|address| !before.contains(address));
                // The only client is ours: an interrupted mapping that was found again.
                let ours = new.or((all.len() == 1).then_some(0));
                ours.map(|index| all.swap_remove(index))
            }
        };
        let Some(address) = address else { return Ok(()) };
        let note = ClientNote { address, since: Timestamp::now() };
        let value = serde_json::to_vec(&note).map_err(|e| Error::Internal(e.to_string()))?;
        let key = format!("{CLIENT}{}", self.config.node);
        site.update(&found.header.image, &[(&key, &value)], &[])
    }
}

impl Session {
    /// The monitors' addresses for the kernel's client: those of messenger 2 if `secure`, else of messenger 1.
    fn monitors(&self, secure: bool) -> Result<Vec<String>> {
        let dump = self.command("mon dump", &[])?;
        let wanted = if secure { "v2" } else { "v1" };
        let addresses = super::capacity::list(&dump, "mons").filter_map(|mon| {
            let mut all = super::capacity::list(&mon["public_addrs"], "addrvec");
            let own = all.find(|address| address["type"] == wanted)?;
            own["addr"].as_str().map(str::to_owned)
        });
        Ok(addresses.collect())
    }

    /// The user's key: the one given, else the one in the keyring of the configuration.
    fn key(&self) -> Result<SecretText> {
        if let Some(Key(key)) = &self.settings.key {
            return Ok(SecretText::new(key));
        }
        let missing = |why: String| Error::invalid("secrets[\"userKey\"]", why);
        let files = self.connection.setting("keyring").unwrap_or_default();
        let section = format!("[client.{}]", self.settings.user);
        for file in files.split([',', ';', ' ']).filter(|file| !file.is_empty()) {
            let Ok(text) = std::fs::read_to_string(file) else { continue };
            let own = text.split_once(&section).map(|(_, rest)| rest.split("\n[").next().unwrap_or(rest));
            if let Some(key) = own.and_then(super::session::key_in) {
                return Ok(SecretText::new(&key));
            }
        }
        Err(missing(format!("no key of client.{} was found in the keyrings {files}", self.settings.user)))
    }
}
