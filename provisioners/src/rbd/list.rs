//! Listing: the names of all, the headers of one page.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::{Arc, PoisonError};
use std::thread::ScopedJoinHandle;

use super::config::RbdCluster;
use super::handle::parse_handle;
use super::record::{Found, OURS, SnapshotRecord};
use super::session::Session;
use super::site::{SNAPSHOTS, Site};
use super::store::Store;
use crate::{Condition, Ctx, Error, Page, Result, Secrets, Snapshot, SnapshotId, Volume, VolumeId};

/// The pools of a cluster that volumes may be in.
fn pools(cluster: &RbdCluster, session: &Session) -> Result<Vec<String>> {
    if cluster.pools.is_empty() { session.rbd_pools() } else { Ok(cluster.pools.clone()) }
}

impl Store {
    /// Every place that may hold volumes of ours, in the order of handles, of the clusters that answer; if none does, its
    /// error.
    pub(super) fn sites(&self) -> Result<Vec<Site>> {
        self.sites_as(&Secrets::default(), None)
    }

    /// The same as the user of a call's secrets; `only`: those of one cluster. Secrets are of one cluster: where another one
    /// refuses them, its own user counts.
    fn sites_as(&self, secrets: &Secrets, only: Option<&str>) -> Result<Vec<Site>> {
        let asked: Vec<_> =
            self.sessions.clusters().filter(|cluster| only.is_none_or(|id| id == cluster.id)).collect();
        // Beside each other: those that are away cost the time of one.
        let answers: Vec<_> = std::thread::scope(|scope| {
            let ask = |cluster| scope.spawn(move || self.sites_for(cluster, secrets));
            let asked: Vec<_> = asked.iter().map(|cluster| (&cluster.id, ask(*cluster))).collect();
            let answer = |thread: ScopedJoinHandle<'_, _>| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(Error::Internal("a look at a cluster's pools panicked".into())))
            };
            asked.into_iter().map(|(id, thread)| (id, answer(thread))).collect()
        });
        let (mut sites, mut failed, mut good) = (BTreeMap::new(), None, false);
        for (cluster, answer) in answers {
            match answer {
                Ok(some) => {
                    good = true;
                    self.answered(cluster);
                    sites.extend(some);
                }
                Err(error) => {
                    self.left_out(cluster, &error);
                    failed = Some(error);
                }
            }
        }
        match failed {
            Some(error) if !good => Err(error),
            _ => Ok(sites.into_values().collect()),
        }
    }

    fn sites_for(&self, cluster: &RbdCluster, secrets: &Secrets) -> Result<BTreeMap<String, Site>> {
        match self.sites_of(cluster, secrets) {
            Err(Error::Denied(_)) if self.sessions.is_known(cluster) => {
                self.sites_of(cluster, &Secrets::default())
            }
            other => other,
        }
    }

    /// Looks at each of some places, until `look` says that it has enough. A cluster that does not answer keeps nobody from
    /// seeing what the others have; where none does, its error is the answer.
    fn look_at_each(
        &self,
        sites: &[Site],
        mut look: impl FnMut(&Site) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let (mut good, mut failed, mut denied) = (BTreeSet::new(), BTreeMap::new(), None);
        for site in sites {
            let cluster = site.place.cluster.as_str();
            if failed.contains_key(cluster) {
                continue;
            }
            match look(site) {
                Ok(ControlFlow::Break(())) => return Ok(()),
                Ok(ControlFlow::Continue(())) => {
                    good.insert(cluster);
                }
                // What the user may not see is not missing from what he sees.
                Err(Error::Denied(why)) => {
                    tracing::debug!(place = %site.place, why, "a list goes without this place");
                    denied = Some(Error::Denied(why));
                }
                Err(error) => {
                    self.left_out(cluster, &error);
                    good.remove(cluster);
                    failed.insert(cluster, error);
                }
            }
        }
        match failed.into_values().next().or(denied) {
            Some(error) if good.is_empty() => Err(error),
            _ => Ok(()),
        }
    }

    /// Logs and counts a cluster that a list goes without.
    fn left_out(&self, cluster: &str, error: &Error) {
        tracing::warn!(cluster, %error, "a list goes without this cluster");
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).insert(cluster.to_owned());
    }

    fn answered(&self, cluster: &str) {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).remove(cluster);
    }

    /// The places of one cluster; one that the user may not see is an error.
    pub(super) fn sites_in(&self, cluster: &str) -> Result<Vec<Site>> {
        self.sites_by(cluster, &self.sessions.get(cluster, &Secrets::default())?)
    }

    /// Those that the user may see.
    pub(super) fn visible_in(&self, cluster: &str) -> Result<Vec<Site>> {
        let sites = self.sites_of(self.sessions.cluster(cluster)?, &Secrets::default())?;
        Ok(sites.into_values().collect())
    }

    /// The same by a connection of one's own.
    pub(super) fn sites_by(&self, cluster: &str, session: &Arc<Session>) -> Result<Vec<Site>> {
        let sites = session.sites(pools(self.sessions.cluster(cluster)?, session)?)?;
        Ok(sites.into_values().collect())
    }

    /// Those that the user may see.
    fn sites_of(&self, cluster: &RbdCluster, secrets: &Secrets) -> Result<BTreeMap<String, Site>> {
        let session = self.sessions.get(&cluster.id, secrets)?;
        session.visible_sites(pools(cluster, &session)?, &cluster.namespace)
    }

    /// Volumes after a handle, at most `max` (0: all).
    pub(super) fn list(&self, after: Option<&str>, max: usize) -> Result<Page<Volume>> {
        if let Some(after) = after {
            parse_handle(after).map_err(|e| Error::BadToken(e.to_string()))?;
        }
        let (mut items, mut next) = (Vec::new(), None);
        self.look_at_each(&self.sites()?, |site| {
            let images = site.pool.images().map_err(|e| site.fail("listing images", e))?;
            let mut images: Vec<_> = images.into_iter().filter(|(_, name)| !name.starts_with(OURS)).collect();
            images.sort_unstable_by(|a, b| a.1.cmp(&b.1));
            for (id, name) in images {
                let handle = site.handle(&name);
                if after.is_some_and(|after| handle.to_string().as_str() <= after) {
                    continue;
                }
                let Some(volume) = self.list_one(site, &handle, &id)? else { continue };
                if max != 0 && items.len() == max {
                    next = items.last().map(|volume: &Volume| volume.id.0.clone());
                    return Ok(ControlFlow::Break(()));
                }
                items.push(volume);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(Page { items, next })
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
        ctx: &Ctx,
        source: Option<&VolumeId>,
        after: Option<&str>,
        max: usize,
    ) -> Result<Page<Snapshot>> {
        if let Some(after) = after {
            parse_handle(after).map_err(|e| Error::BadToken(e.to_string()))?;
        }
        let (mut items, mut next) = (Vec::<Snapshot>::new(), None);
        let cluster = source.and_then(|id| parse_handle(&id.0).ok()).map(|handle| handle.place.cluster);
        self.look_at_each(&self.sites_as(ctx.secrets(), cluster.as_deref())?, |site| {
            let mut from = String::new();
            loop {
                let batch = site.entries::<SnapshotRecord>(SNAPSHOTS, &from, "", 500)?;
                let Some((last, _)) = batch.last() else { return Ok(ControlFlow::Continue(())) };
                last.clone_into(&mut from);
                for (_, record) in batch {
                    let Some(snapshot) = self.listed(record, source, after) else { continue };
                    if max != 0 && items.len() == max {
                        next = items.last().map(|snapshot| snapshot.id.0.clone());
                        return Ok(ControlFlow::Break(()));
                    }
                    items.push(snapshot);
                }
            }
        })?;
        Ok(Page { items, next })
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
