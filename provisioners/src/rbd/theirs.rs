//! Images that others have made, as hand-made PersistentVolumes name them. They are used and grown, and never listed, copied
//! or deleted: whose they are is not known.

use jiff::Timestamp;

use super::handle::{Handle, parse_handle};
use super::record::{Found, Requested, TORN, VOLUME, VolumeRecord};
use super::site::{Header, Site};
use super::store::Store;
use crate::{Error, PvcMeta, Result, Secrets, StringMap, VolumeId};

/// What a PersistentVolume's `volumeAttributes` may say of how such an image is used.
const ATTRIBUTES: [&str; 5] = ["fsType", "mapOptions", "mkfsOptions", "mounter", "unmapOptions"];

impl Store {
    /// A volume that is to be used: one of ours, or an image of others.
    pub(super) fn usable(&self, id: &VolumeId, secrets: &Secrets) -> Result<(Site, Found)> {
        let handle = parse_handle(&id.0).map_err(|_| Error::NotFound(format!("there is no volume {id}")))?;
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
    pub(super) fn usage(&self, attributes: &StringMap) -> StringMap {
        if !self.is_theirs() {
            return self.record.parameters.clone();
        }
        let known = attributes.iter().filter(|(key, _)| ATTRIBUTES.contains(&key.as_str()));
        known.map(|(key, value)| (key.clone(), value.clone())).collect()
    }
}
