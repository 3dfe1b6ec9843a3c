//! What the parts of the backend share: configuration, connections, background work, and how a volume is found.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::config::RbdConfig;
use super::ffi::Linked;
use super::foreign::no_volume;
use super::handle::{Handle, Place, parse_handle};
use super::record::Found;
use super::session::Session;
use super::sessions::Sessions;
use super::site::{Header, Site};
use super::tasks::Tasks;
use crate::parameters::Once;
use crate::parts::Asked;
use crate::{Condition, Ctx, Error, Identity, NodeId, Result, Secrets, StringMap, Volume, VolumeId};

/// How long what a monitor said of a pool holds.
const FRESH: Duration = Duration::from_secs(5);

/// A pool as the monitors see it.
#[derive(Debug, Clone, Default)]
pub(super) struct PoolState {
    /// Nothing can be written.
    pub(super) full: bool,
    /// Bytes that can still be written, replication and full ratio counted.
    pub(super) available: u64,
    /// Bytes, 0: no quota.
    pub(super) quota: u64,
    /// Bytes that are stored.
    pub(super) stored: u64,
}

/// Pools by name.
type Pools = BTreeMap<String, PoolState>;

/// The backend's state.
pub(super) struct Store {
    pub(super) config: RbdConfig,
    pub(super) sessions: Sessions,
    pub(super) tasks: Tasks,
    /// What the sweep of each cluster could not do.
    pub(super) failing: Mutex<BTreeMap<String, usize>>,
    /// The clusters that the last list went without.
    pub(super) trouble: Mutex<BTreeSet<String>>,
    /// Of each `clusterID` the first that is of the same cluster.
    first_ids: BTreeMap<String, String>,
    /// By cluster, and when it was asked.
    pools: Mutex<BTreeMap<String, (Instant, Pools)>>,
    /// What was said of parameters that have no effect.
    pub(super) told: Once,
    /// Whether each cluster answers, when it was asked that.
    asked: BTreeMap<String, Asked>,
}

impl Store {
    pub(super) fn new(config: RbdConfig) -> Result<Self> {
        config.check()?;
        Ok(Self {
            sessions: Sessions::new(&config),
            tasks: Tasks::new(&config),
            failing: Mutex::default(),
            trouble: Mutex::default(),
            pools: Mutex::default(),
            told: Once::default(),
            asked: config.clusters.iter().map(|it| (it.id.clone(), Asked::default())).collect(),
            first_ids: config.first_ids(),
            config,
        })
    }

    /// What a handle names; a text that is none names itself.
    pub(super) fn identity(&self, text: &str) -> Identity {
        let Ok(mut handle) = parse_handle(text) else { return Identity::new(text) };
        if let Some(first) = self.first_ids.get(&handle.place.cluster) {
            handle.place.cluster.clone_from(first);
        }
        Identity::new(handle)
    }

    /// The clusters whose user is known, if they are to be asked: a node asks none.
    pub(super) fn asked_clusters(&self) -> Vec<(String, Asked)> {
        let known = self.sessions.clusters().filter(|cluster| self.sessions.is_known(cluster));
        let asked = |id: &String| (id.clone(), self.asked.get(id).cloned().unwrap_or_default());
        known.filter(|_| self.config.controller).map(|cluster| asked(&cluster.id)).collect()
    }

    /// Whether a cluster answers; `None`: whether the libraries are there.
    pub(super) fn check(&self, cluster: Option<&str>) -> Result<()> {
        super::ffi::available().map_err(super::errors::no_libraries)?;
        let Some(cluster) = cluster else { return Ok(()) };
        self.sessions.get(cluster, &Secrets::default())?.command("osd stat", &[]).map(drop)
    }

    /// A place, connected.
    pub(super) fn site(&self, place: &Place, secrets: &Secrets) -> Result<Site> {
        self.sessions.get(&place.cluster, secrets)?.site(place)
    }

    /// The other places of the same cluster that are configured.
    pub(super) fn other_places(&self, but: &Place) -> Vec<Place> {
        let cluster = self.sessions.cluster(&but.cluster).ok();
        let pools = cluster.map(|c| c.pools.clone()).unwrap_or_default();
        let places = pools.into_iter().map(|pool| Place { pool, ..but.clone() });
        places.filter(|place| place != but).collect()
    }

    /// A volume. None such, or no handle of ours: [`Error::NotFound`].
    pub(super) fn volume(&self, id: &VolumeId, secrets: &Secrets) -> Result<(Site, Found)> {
        let handle = parse_handle(&id.0).map_err(|_| no_volume(id))?;
        let site = self.site(&handle.place, secrets)?;
        let found = Self::volume_at(&site, &handle)?;
        Ok((site, found))
    }

    /// The volume of a handle at its place.
    pub(super) fn volume_at(site: &Site, handle: &Handle) -> Result<Found> {
        let header = Self::header_at(site, handle)?;
        let found = Found::read(handle, header)?.ok_or_else(|| Self::no_record(handle))?;
        found.check()?;
        Ok(found)
    }

    /// The header of a handle's image at its place, whoever has made it.
    pub(super) fn header_at(site: &Site, handle: &Handle) -> Result<Header> {
        let none = || Error::NotFound(format!("there is no volume {handle}"));
        let id = site.image_id(&handle.name)?.ok_or_else(none)?;
        site.header(&id)?.ok_or_else(none)
    }

    /// The error for an image that is no volume.
    pub(super) fn no_record(handle: &Handle) -> Error {
        Error::NotFound(format!(
            "there is no volume {handle}: image {} exists, but has no record of this driver (`rbd image-meta ls {}`)",
            handle.spec(),
            handle.spec()
        ))
    }

    /// A volume as the rest of the program sees it.
    pub(super) fn show(&self, found: &Found) -> Volume {
        let place = &found.handle.place;
        let mut context = StringMap::from([
            ("clusterID".to_owned(), place.cluster.clone()),
            ("pool".to_owned(), place.pool.clone()),
            ("imageName".to_owned(), found.handle.name.clone()),
        ]);
        if !place.namespace.is_empty() {
            context.insert("radosNamespace".into(), place.namespace.clone());
        }
        Volume {
            id: VolumeId(found.record.id.clone()),
            capacity: found.header.size,
            context,
            source: found.record.source.clone(),
            topology: Vec::new(),
            published: found.nodes().into_iter().map(NodeId).collect(),
            condition: self.condition(found),
        }
    }

    fn condition(&self, found: &Found) -> Condition {
        if let Err(error) = found.check() {
            return Condition::abnormal(error.to_string());
        }
        if let Some(text) = self.tasks.flattening(&found.header.image) {
            return Condition { abnormal: false, message: text };
        }
        let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let place = &found.handle.place;
        let state = pools.get(&place.cluster).and_then(|(_, pools)| pools.get(&place.pool));
        if state.is_some_and(|state| state.full) {
            return Condition::abnormal(format!("pool {} is full: writes wait; see `ceph df`", place.pool));
        }
        Condition::healthy()
    }

    /// Refuses a volume in a pool that is full, where every write would wait: [`Error::Exhausted`].
    pub(super) fn check_room(&self, site: &Site, plan: &super::plan::Plan) -> Result<()> {
        let data = plan.params.options.data_pool.as_deref();
        for pool in [Some(site.place.pool.as_str()), data].into_iter().flatten() {
            match self.pool_state(&site.session, pool, FRESH) {
                Ok(Some(state)) if state.full => {
                    return Err(Error::Exhausted(format!(
                        "pool {pool} is full or over its quota; see `ceph df` and `ceph osd pool get-quota {pool}`"
                    )));
                }
                // Without leave to ask, the write itself will tell.
                _ => {}
            }
        }
        Ok(())
    }

    /// Refuses a size that a pool can never hold: more than its whole room, times `maxOvercommit`, for images are thin.
    pub(super) fn check_size(&self, session: &Arc<Session>, pool: &str, bytes: u64) -> Result<()> {
        let factor = self.config.max_overcommit;
        // Without leave to ask, nothing is known of its room.
        let state = match self.pool_state(session, pool, FRESH) {
            Err(Error::Denied(_)) => return Ok(()),
            other => other?,
        };
        let Some(state) = state.filter(|_| factor > 0) else { return Ok(()) };
        let whole = if state.quota > 0 { state.quota } else { state.stored.saturating_add(state.available) };
        let limit = whole.saturating_mul(factor);
        if bytes <= limit || whole == 0 {
            return Ok(());
        }
        Err(Error::OutOfRange(format!(
            "capacity_range: {bytes} bytes are more than pool {pool} can ever hold: it has room for {whole} bytes in all, and a volume may be {factor} times that (maxOvercommit), {limit} bytes; ask for less, or enlarge the pool"
        )))
    }

    /// What to say when making an image took too long.
    pub(super) fn why_slow(&self, site: &Site, handle: &Handle) -> Error {
        match self.pool_state(&site.session, &site.place.pool, Duration::ZERO) {
            Ok(Some(state)) if state.full => Error::Exhausted(format!(
                "creating image {}: pool {} is full or over its quota; see `ceph df`",
                handle.spec(),
                site.place.pool
            )),
            _ => site.fail(&format!("creating image {}", handle.spec()), super::ffi::Errno::TIMEDOUT),
        }
    }

    /// A pool as the monitors see it, at most `age` old. `None`: no such pool.
    pub(super) fn pool_state(
        &self,
        session: &Arc<Session>,
        pool: &str,
        age: Duration,
    ) -> Result<Option<PoolState>> {
        let lock = || self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((asked, pools)) = lock().get(&session.cluster)
            && asked.elapsed() < age
        {
            return Ok(pools.get(pool).cloned());
        }
        let pools = super::capacity::pools(session)?;
        let found = pools.get(pool).cloned();
        lock().insert(session.cluster.clone(), (Instant::now(), pools));
        Ok(found)
    }

    /// How deep a clone of this volume would be. Too deep: the volume is flattened in the background, and the call is
    /// to be repeated ([`Error::Unavailable`], with how far that is).
    pub(super) fn depth_above(&self, ctx: &Ctx, site: &Site, found: &Found) -> Result<u32> {
        let noted = found.record.depth + 1;
        if noted <= self.config.soft_depth {
            return Ok(noted);
        }
        ctx.stage("counting parents");
        let depth = Self::true_depth(site, &found.header)? + 1;
        if depth <= self.config.hard_depth {
            return Ok(depth);
        }
        self.tasks.flatten(site, &found.header.image, &found.handle.name)?;
        let progress = self.tasks.flattening(&found.header.image).unwrap_or_else(|| "waiting".into());
        Err(Error::Unavailable(format!(
            "a clone of {} would be {depth} images deep, the limit is {}; the source is being flattened: {progress}; repeat the call",
            found.handle, self.config.hard_depth
        )))
    }

    fn true_depth(site: &Site, header: &Header) -> Result<u32> {
        let mut depth = 0;
        let mut at = (site.clone(), header.image.clone());
        while depth < 64 {
            let Some(image) = at.0.look(&at.1)? else { break };
            let parent = image.parent().map_err(|e| at.0.fail("reading an image's parent", e))?;
            let Some(parent) = parent else { break };
            depth += 1;
            at = (site.session.site(&place_of(site, &parent.image))?, parent.image.id);
        }
        Ok(depth)
    }
}

/// Where a linked image is.
pub(super) fn place_of(site: &Site, image: &Linked) -> Place {
    Place {
        cluster: site.place.cluster.clone(),
        pool: image.pool.clone(),
        namespace: image.namespace.clone(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rbd::RbdCluster;

    fn store() -> Store {
        let cluster = |id: &str, monitor: &str| RbdCluster {
            id: id.into(),
            monitors: vec![monitor.into()],
            ..RbdCluster::default()
        };
        let clusters =
            vec![cluster("a", "10.0.0.1"), cluster("b", "10.0.0.1:6789"), cluster("c", "10.0.0.2")];
        Store::new(RbdConfig { clusters, ..RbdConfig::default() }).unwrap()
    }

    proptest! {
        /// `a` and `b` are one cluster, `c` is another, `d` is not configured.
        #[test]
        fn c12_all_spellings_of_one_handle_are_one_identity(
            one in "[abcd]:[pq]/([mn]/)?[xy]",
            other in "[abcd]:[pq]/([mn]/)?[xy]",
        ) {
            let store = store();
            let same = one.replace("b:", "a:") == other.replace("b:", "a:");
            prop_assert_eq!(store.identity(&one) == store.identity(&other), same);
        }
    }
}
