//! Listing: the names of all, the headers of one page.

use std::collections::BTreeMap;

use super::handle::parse_handle;
use super::record::{Found, OURS, SnapshotRecord};
use super::site::{SNAPSHOTS, Site};
use super::store::Store;
use crate::{Condition, Error, Page, Result, Secrets, Snapshot, SnapshotId, Volume, VolumeId};

impl Store {
    /// Every place that may hold volumes of ours, in the order of handles.
    pub(super) fn sites(&self) -> Result<Vec<Site>> {
        let mut sites = BTreeMap::new();
        for cluster in self.sessions.clusters() {
            sites.extend(self.sites_of(cluster)?);
        }
        Ok(sites.into_values().collect())
    }

    fn sites_of(&self, cluster: &super::config::RbdCluster) -> Result<BTreeMap<String, Site>> {
        let session = self.sessions.get(&cluster.id, &Secrets::default())?;
        let pools = if cluster.pools.is_empty() { session.rbd_pools()? } else { cluster.pools.clone() };
        session.sites(pools)
    }

    /// The places of [`Store::sites`], of the clusters whose user is configured or was in a call before.
    pub(super) fn known_sites(&self) -> Vec<Result<Site>> {
        let mut all = Vec::new();
        for cluster in self.sessions.clusters() {
            if self.sessions.is_known(cluster) {
                match self.sites_of(cluster) {
                    Ok(sites) => all.extend(sites.into_values().map(Ok)),
                    Err(error) => all.push(Err(error)),
                }
            }
        }
        all
    }

    /// Volumes after a handle, at most `max` (0: all).
    pub(super) fn list(&self, after: Option<&str>, max: usize) -> Result<Page<Volume>> {
        if let Some(after) = after {
            parse_handle(after).map_err(|e| Error::BadToken(e.to_string()))?;
        }
        let mut items = Vec::new();
        for site in self.sites()? {
            let images = site.pool.images().map_err(|e| site.fail("listing images", e))?;
            let mut images: Vec<_> = images.into_iter().filter(|(_, name)| !name.starts_with(OURS)).collect();
            images.sort_unstable_by(|a, b| a.1.cmp(&b.1));
            for (id, name) in images {
                let handle = site.handle(&name);
                if after.is_some_and(|after| handle.to_string().as_str() <= after) {
                    continue;
                }
                let Some(volume) = self.list_one(&site, &handle, &id)? else { continue };
                if max != 0 && items.len() == max {
                    let next = items.last().map(|volume: &Volume| volume.id.0.clone());
                    return Ok(Page { items, next });
                }
                items.push(volume);
            }
        }
        Ok(Page { items, next: None })
    }

    /// A volume for the listing; a damaged one is shown as that. `None`: an image of others, or gone meanwhile.
    fn list_one(&self, site: &Site, handle: &super::handle::Handle, id: &str) -> Result<Option<Volume>> {
        let Some(header) = site.header(id)? else { return Ok(None) };
        let size = header.size;
        match Found::read(handle, header) {
            Ok(found) => {
                let ours = found.filter(|found| found.record.cluster == self.config.owner);
                Ok(ours.map(|found| self.show(&found)))
            }
            Err(error) => Ok(Some(Volume {
                id: VolumeId(handle.to_string()),
                capacity: size,
                context: crate::StringMap::new(),
                source: None,
                topology: Vec::new(),
                published: std::collections::BTreeSet::new(),
                condition: Condition::abnormal(error.to_string()),
            })),
        }
    }

    /// Snapshots after a handle, at most `max` (0: all), of one volume if `source` is given.
    pub(super) fn list_snapshots(
        &self,
        source: Option<&VolumeId>,
        after: Option<&str>,
        max: usize,
    ) -> Result<Page<Snapshot>> {
        if let Some(after) = after {
            parse_handle(after).map_err(|e| Error::BadToken(e.to_string()))?;
        }
        let mut items: Vec<Snapshot> = Vec::new();
        for site in self.sites()? {
            let mut from = String::new();
            loop {
                let batch = site.entries::<SnapshotRecord>(SNAPSHOTS, &from, "", 500)?;
                let Some((last, _)) = batch.last() else { break };
                last.clone_into(&mut from);
                for (_, record) in batch {
                    let Some(snapshot) = self.listed(record, source, after) else { continue };
                    if max != 0 && items.len() == max {
                        let next = items.last().map(|snapshot| snapshot.id.0.clone());
                        return Ok(Page { items, next });
                    }
                    items.push(snapshot);
                }
            }
        }
        Ok(Page { items, next: None })
    }

    fn listed(
        &self,
        record: Result<SnapshotRecord>,
        source: Option<&VolumeId>,
        after: Option<&str>,
    ) -> Option<Snapshot> {
        let record = record
            .inspect_err(|error| tracing::warn!(%error, "a snapshot is left out of the listing"))
            .ok()?;
        let wanted = record.complete
            && record.cluster == self.config.owner
            && source.is_none_or(|id| id.0 == record.source)
            && after.is_none_or(|after| record.id.as_str() > after);
        wanted.then(|| show_snapshot(&record))
    }
}

/// A snapshot as the rest of the program sees it.
pub(super) fn show_snapshot(record: &SnapshotRecord) -> Snapshot {
    Snapshot {
        id: SnapshotId(record.id.clone()),
        source: VolumeId(record.source.clone()),
        size: record.size,
        created: record.created,
        ready: record.complete,
        group: record.group.clone(),
    }
}
