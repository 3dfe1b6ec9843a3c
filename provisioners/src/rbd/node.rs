//! The node's side: how to get at an image, and what is noted of it.

use super::config::Mounter;
use super::ffi::{Key, Locker};
use super::foreign::no_volume;
use super::handle::parse_handle;
use super::params::{FAST_DIFF, Params};
use super::record::{FS, Found, PERMIT, seal};
use super::session::Session;
use super::site::Site;
use super::store::Store;
use crate::{
    Access, Error, FsNote, NodeVolume, Permit, RbdIdentity, RbdImage, RbdMounter, Result, SecretText,
    Secrets, StringMap, VolumeId,
};

impl Store {
    /// How to get at a volume on this node.
    pub(super) fn access(
        &self,
        id: &VolumeId,
        attributes: &StringMap,
        secrets: &Secrets,
    ) -> Result<NodeVolume> {
        let (site, found) = self.usable(id, secrets)?;
        if found.is_deleted() {
            return Err(Error::Refused(format!("volume {id} is being deleted")));
        }
        let params = found.usage(self, attributes)?;
        self.told.tell("rbd", &params.ignored);
        let image = Self::image(&site, &found, &params)?;
        let fs = found.fs()?;
        Ok(NodeVolume {
            access: Access::Rbd(Box::new(image)),
            size: Some(found.header.size),
            fs_type: params.fs_type.or(found.record.fs_type),
            mkfs_options: params.mkfs_options,
            root_mode: None,
            formatted: fs.file_system().map(str::to_owned),
            raw: fs.is_raw(),
            vouched: None,
            permit: Permit {
                code: found.header.meta.get(PERMIT).cloned(),
                how: format!("`rbd image-meta set {} {PERMIT} CODE`", found.handle.spec()),
            },
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
            identity: Some(RbdIdentity { pool: site.pool.id(), image: found.header.image.clone() }),
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
        let handle = parse_handle(&id.0).map_err(|_| no_volume(id))?;
        Ok(Access::Rbd(Box::new(RbdImage {
            cluster: handle.place.cluster,
            pool: handle.place.pool,
            namespace: handle.place.namespace,
            image: handle.name,
            ..RbdImage::default()
        })))
    }

    /// Notes what is done with a volume's file system. An operator's permission is used up first.
    pub(super) fn note(&self, id: &VolumeId, note: &FsNote) -> Result<()> {
        let (site, found) = self.usable(id, &Secrets::default())?;
        let (mut fs, mut used) = (found.fs()?, Vec::new());
        let before = fs.clone();
        fs.take(&id.0, note)?;
        if let FsNote::Making { permit: Some(code), .. } = note {
            if found.header.meta.get(PERMIT) != Some(code) {
                return Err(Error::Refused(format!(
                    "volume {id}: the permission to format it was taken back"
                )));
            }
            used.push(PERMIT);
        }
        let value = seal(&fs)?;
        let set: &[(&str, &[u8])] = if fs == before { &[] } else { &[(FS, &value)] };
        let has = [FS, PERMIT].map(|key| (key, found.header.meta.get(key).map_or("", String::as_str)));
        if site.update_if(&found.header.image, &has, set, &used)? {
            return Ok(());
        }
        Err(Error::Unavailable(format!(
            "what is noted of volume {id} was changed at this moment; repeat the call"
        )))
    }

    /// Where the cluster has stored anything of a volume, its parents included. `None`: only asking for every object
    /// could tell.
    pub(super) fn stored(&self, id: &VolumeId, secrets: &Secrets) -> Result<Option<Vec<(u64, u64)>>> {
        let (site, found) = self.usable(id, secrets)?;
        let failed = |e| site.fail("asking which blocks are stored", e);
        let Some(image) = site.look(&found.header.image)? else { return Ok(None) };
        if image.features().map_err(failed)? & FAST_DIFF == 0 {
            return Ok(None);
        }
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        let told = image.diff(None, (0, found.header.size), true, |offset, size, exists| {
            match ranges.last_mut() {
                _ if !exists => {}
                Some((_, end)) if *end == offset => *end += size,
                _ => ranges.push((offset, offset + size)),
            }
            true
        });
        told.map_err(failed)?;
        Ok(Some(ranges))
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
        for file in files.split([',', ';', ' ']).filter(|file| !file.is_empty()) {
            let Ok(text) = std::fs::read_to_string(file) else { continue };
            if let Ok(key) = super::key::key_in(&text, &self.settings.user) {
                return Ok(SecretText::new(&key));
            }
        }
        Err(missing(format!("no key of client.{} was found in the keyrings {files}", self.settings.user)))
    }
}
