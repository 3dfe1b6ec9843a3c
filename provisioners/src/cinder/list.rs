//! Listing and free space.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::answer::{CinderBackup, CinderSnapshot, CinderVolume};
use super::cloud::{Ask, Cloud, Service};
use super::handle::parse_handle;
use super::params::Params;
use super::snapshot::{Copy, show};
use super::store::{Found, Store, owner};
use crate::size::GIB;
use crate::{
    Capacity, CapacityQuery, Error, Page, PvcMeta, Result, Snapshot, StringMap, Topology, Volume, VolumeId,
};

/// How long a list waits for the other clouds once one has answered.
const OTHERS: Duration = Duration::from_secs(8);

impl Store {
    /// Volumes of this cluster after a handle, at most `max` (0: all), in the order of handles. Cinder's own order is
    /// by a marker, and a marker that is deleted ends a listing, so all pages are read.
    pub(super) async fn list(&self, after: Option<&str>, max: usize) -> Result<Page<Volume>> {
        let listed = self.of_each(|cloud, owned_by| async move {
            let listed = cloud.all::<CinderVolume>().await?;
            let ours = listed.into_iter().filter(|it| owner(it) == Some(&owned_by) && !it.is_marked());
            Ok(ours.map(|volume| Found::new(&cloud, volume)).collect())
        });
        let found = listed.await?;
        let page = page(found, after, max, |found| found.handle.to_string())?;
        Ok(Page { items: page.items.iter().map(|found| self.show(found)).collect(), next: page.next })
    }

    /// Snapshots and backups of this cluster after a handle, at most `max` (0: all), of one volume if `source` is given.
    pub(super) async fn list_snapshots(
        &self,
        source: Option<&VolumeId>,
        after: Option<&str>,
        max: usize,
    ) -> Result<Page<Snapshot>> {
        let listed = self.of_each(|cloud, owned_by| async move {
            let mut found = copies::<CinderSnapshot>(&cloud, &owned_by).await?;
            match copies::<CinderBackup>(&cloud, &owned_by).await {
                // Many clouds have no backup service, and no right to list its backups.
                Err(Error::NotFound(_) | Error::Denied(_)) => {}
                other => found.extend(other?),
            }
            Ok(found)
        });
        let mut found = listed.await?;
        let source = source.map(|id| Self::identity(&id.0));
        found.retain(|snapshot| source.as_ref().is_none_or(|id| *id == Self::identity(&snapshot.source.0)));
        page(found, after, max, |snapshot| snapshot.id.0.clone())
    }

    /// What all clouds have. One that does not answer, or not soon after another has, is passed over, and its error
    /// logged, unless none does: it must not hide the others'.
    async fn of_each<T: Send + 'static, F>(&self, list: impl Fn(Arc<Cloud>, String) -> F) -> Result<Vec<T>>
    where
        F: Future<Output = Result<Vec<T>>> + Send + 'static,
    {
        let (mut asked, mut lists, mut failed) = (JoinSet::new(), Vec::new(), None);
        for (i, cloud) in self.clouds.iter().enumerate() {
            let (listed, name) = (list(cloud.clone(), self.config.owner.clone()), cloud.spec.name.clone());
            asked.spawn(async move { (i, name, listed.await) });
        }
        let mut patience = Duration::MAX;
        while let Ok(Some(Ok((i, cloud, listed)))) = tokio::time::timeout(patience, asked.join_next()).await {
            match listed {
                Ok(some) => {
                    lists.push((i, some));
                    patience = OTHERS;
                }
                Err(error) => {
                    tracing::warn!(%cloud, %error, "a list goes without this cloud");
                    failed = Some(error);
                }
            }
        }
        if let Some(error) = failed.filter(|_| lists.is_empty()) {
            return Err(error);
        }
        lists.sort_by_key(|(i, _)| *i);
        Ok(lists.into_iter().flat_map(|(_, some)| some).collect())
    }

    /// Whether volumes can be made for a node in a place.
    async fn serves(&self, cloud: &Cloud, topology: &Topology) -> Result<bool> {
        if self.config.ignore_zone {
            return Ok(true);
        }
        let Some(zone) = topology.get(&self.config.topology_key) else { return Ok(false) };
        Ok(cloud.zone_names(Service::Volume).await?.contains(zone))
    }

    /// What the project's quota leaves, and the pools, where their state may be asked for.
    pub(super) async fn capacity(&self, query: &CapacityQuery) -> Result<Capacity> {
        let params = Params::parse(&query.parameters, &StringMap::new(), &PvcMeta::default())?;
        let cloud = self.cloud_of_class(params.cloud.as_deref())?;
        if let Some(topology) = &query.topology
            && !self.serves(cloud, topology).await?
        {
            return Ok(Capacity { minimum: Some(GIB), ..Capacity::default() });
        }
        let limits = cloud
            .send(Ask::get(Service::Volume, "limits"))
            .await
            .map_err(|fault| fault.doing("asking for limits"))?;
        let absolute = &limits["limits"]["absolute"];
        let left = |most: &str, used: &str| {
            let most = absolute[most].as_i64().filter(|most| *most >= 0)?;
            Some(u64::try_from(most.saturating_sub(absolute[used].as_i64().unwrap_or(0))).unwrap_or(0))
        };
        let mut gib = left("maxTotalVolumeGigabytes", "totalGigabytesUsed");
        if left("maxTotalVolumes", "totalVolumesUsed") == Some(0) {
            gib = Some(0);
        }
        let pools = cloud.send(Ask::get(Service::Volume, "scheduler-stats/get_pools?detail=true")).await;
        if let Some(free) = pools.ok().and_then(|pools| free_in(&pools)) {
            gib = Some(gib.map_or(free, |gib| gib.min(free)));
        }
        // Neither a quota nor pools: more than anybody asks for, and no lie about how much.
        let bytes =
            gib.map_or(i64::MAX.unsigned_abs(), |gib| gib.saturating_mul(GIB)).min(i64::MAX.unsigned_abs());
        Ok(Capacity { available: bytes, maximum: (bytes > 0).then_some(bytes), minimum: Some(GIB) })
    }
}

/// An owner's snapshots, or backups. One that cannot be shown is passed over.
async fn copies<T: Copy>(cloud: &Cloud, owned_by: &str) -> Result<Vec<Snapshot>> {
    let mut found = Vec::new();
    for one in cloud.all::<T>().await?.iter().filter(|one| owner(*one) == Some(owned_by)) {
        match show(cloud, one) {
            Ok(snapshot) => found.push(snapshot),
            Err(error) => tracing::warn!(%error, "an entry was passed over"),
        }
    }
    Ok(found)
}

/// The free space of all pools in GiB; `None`: one of them says "infinite" or "unknown".
fn free_in(pools: &serde_json::Value) -> Option<u64> {
    let pools = pools["pools"].as_array()?;
    let free = pools.iter().map(|pool| {
        let free = &pool["capabilities"]["free_capacity_gb"];
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        free.as_f64().filter(|free| *free >= 0.0).map(|free| free as u64)
    });
    free.sum()
}

/// A page in the order of handles.
fn page<T>(mut all: Vec<T>, after: Option<&str>, max: usize, key: impl Fn(&T) -> String) -> Result<Page<T>> {
    if let Some(after) = after {
        parse_handle(after).map_err(|e| Error::BadToken(e.to_string()))?;
    }
    all.sort_by_key(&key);
    let mut items: Vec<T> =
        all.into_iter().filter(|item| after.is_none_or(|after| key(item).as_str() > after)).collect();
    let more = max != 0 && items.len() > max;
    if more {
        items.truncate(max);
    }
    let next = items.last().filter(|_| more).map(&key);
    Ok(Page { items, next })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_that_do_not_know_are_no_limit() {
        let pools = |free: &str| {
            serde_json::from_str::<serde_json::Value>(&format!(
            r#"{{"pools": [{{"capabilities": {{"free_capacity_gb": 10.5}}}}, {{"capabilities": {{"free_capacity_gb": {free}}}}}]}}"#
        )).unwrap()
        };
        assert_eq!(free_in(&pools("2")), Some(12));
        assert_eq!(free_in(&pools("\"infinite\"")), None);
    }
}
