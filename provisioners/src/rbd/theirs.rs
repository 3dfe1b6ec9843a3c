//! Images that others have made, as hand-made PersistentVolumes name them. They are used and grown, and never listed, copied
//! or deleted: whose they are is not known.

use jiff::Timestamp;

use super::config::Mounter;
use super::foreign::{ATTRIBUTES, check_place, no_volume};
use super::handle::{Handle, parse_handle};
use super::params::{DOCS, Params};
use super::record::{Found, Requested, TORN, VOLUME, VolumeRecord};
use super::site::{Header, Site};
use super::store::Store;
use crate::parameters::{Ignored, field_of, is_key, others};
use crate::{Parameters, PvcMeta, Result, Secrets, StringMap, VolumeId};

/// What a PersistentVolume's `volumeAttributes` may say of how such an image is used.
const USAGE: [&str; 5] = ["fsType", "mapOptions", "mkfsOptions", "mounter", "unmapOptions"];
/// What they may say of where it is.
const PLACE: [&str; 4] = ["clusterID", "pool", "radosNamespace", "imageName"];

impl Store {
    /// A volume that is to be used: one of ours, or an image of others.
    pub(super) fn usable(&self, id: &VolumeId, secrets: &Secrets) -> Result<(Site, Found)> {
        let handle = parse_handle(&id.0).map_err(|_| no_volume(id))?;
        let site = self.site(&handle.place, secrets)?;
        let found = Self::usable_at(&site, &handle)?;
        Ok((site, found))
    }

    /// The same at its place.
    pub(super) fn usable_at(site: &Site, handle: &Handle) -> Result<Found> {
        let header = Self::header_at(site, handle)?;
        // A record that is another image's is the copy of a clone that is half made.
        let found = if header.meta.contains_key(VOLUME) {
            Found::read(handle, header)?
        } else {
            Self::of_others(site, handle, header)?
        };
        let found = found.ok_or_else(|| Self::no_record(handle))?;
        found.check()?;
        Ok(found)
    }

    /// An image without a record, if nothing else says that it is ours: nobody of us has begun to make it, or to remove it.
    fn of_others(site: &Site, handle: &Handle, header: Header) -> Result<Option<Found>> {
        if header.meta.contains_key(TORN) || site.intent(&handle.name)?.is_some() {
            return Ok(None);
        }
        let record = VolumeRecord {
            id: handle.to_string(),
            name: handle.name.clone(),
            cluster: String::new(),
            pvc: PvcMeta::default(),
            requested: Requested { required: 0, limit: 0 },
            parameters: StringMap::new(),
            source: None,
            block: false,
            fs_type: None,
            created: Timestamp::UNIX_EPOCH,
            depth: 0,
        };
        Ok(Some(Found { handle: handle.clone(), header, record }))
    }
}

impl Found {
    /// Whether it is an image of others.
    fn is_theirs(&self) -> bool {
        self.record.cluster.is_empty()
    }

    /// How it is to be used: one of ours as its class said, one of others as the PersistentVolume says.
    pub(super) fn usage(&self, store: &Store, attributes: &StringMap) -> Result<Params> {
        if !self.is_theirs() {
            return Params::parse(&store.config, &self.record.parameters);
        }
        usage(store.config.mounter, &self.handle, attributes)
    }

    /// Whether a holder that is proved dead is fenced without being asked.
    pub(super) fn is_auto(&self) -> Result<bool> {
        Ok(self.parameters()?.get("lockRecovery").is_some_and(|word| word == "auto"))
    }
}

/// Reads a PersistentVolume's `volumeAttributes`: those of hand-made ones, and of Ceph's own driver. Keys with a slash are
/// other programs'.
pub(super) fn usage(mounter: Mounter, handle: &Handle, attributes: &StringMap) -> Result<Params> {
    const FIELD: &str = "volume_context";
    let (mut own, mut rest) = (StringMap::new(), StringMap::new());
    for (key, value) in attributes.iter().filter(|(key, _)| !key.contains('/')) {
        let is_own = USAGE.iter().chain(&PLACE).any(|known| is_key(known, key));
        let map = if is_own { &mut own } else { &mut rest };
        map.insert(key.clone(), value.clone());
    }
    let attribute =
        |key: &str| own.iter().find(|(given, _)| is_key(key, given)).map(|(_, value)| value.clone());
    check_place(attribute, handle)?;
    let used = own.iter().filter(|(key, _)| USAGE.iter().any(|known| is_key(known, key)));
    let used: StringMap = used.map(|(key, value)| (key.clone(), value.clone())).collect();
    let mut params = Params::at(handle.place.clone(), mounter, &Parameters::new(FIELD, &used, &DOCS)?)?;
    let known = |key: &str| ATTRIBUTES.iter().find(|other| is_key(other.name, key));
    for (key, value) in &rest {
        let field = field_of(FIELD, key);
        match known(key) {
            Some(other) => other.check(value).map_err(|problem| crate::Error::invalid(field, problem))?,
            None => params.ignored.push(Ignored { field, why: "it is not known here".into() }),
        }
    }
    params.ignored.extend(others(FIELD, &rest, &ATTRIBUTES));
    Ok(params)
}
